"""Numbers given as options, refused before any work in the words of the command line."""

from __future__ import annotations

import math

from structdiff.errors import StructDiffError


def check_positive(**counts: int | None) -> None:
    """Counts are at least 1."""
    for name, value in counts.items():
        if value is not None and value < 1:
            option = name.replace("_", "-")
            raise StructDiffError(f"--{option} {value}: should be a whole number of at least 1")


def check_rates(**rates: float | None) -> None:
    """Minutes and rates are positive and finite."""
    for name, value in rates.items():
        if value is not None and not 0 < value < math.inf:
            option = name.replace("_", "-")
            raise StructDiffError(f"--{option} {value}: should be a positive number")
