"""Arguments that many functions take, checked in one way and refused in the same words."""

from __future__ import annotations

from typing import Any

import numpy as np

from structdiff.errors import StructDiffError


def whole(name: str, value: Any) -> int:
    """A whole number of at least 1.

    Raises
    ------
    StructDiffError
        If it is none; the message says ``name``.
    """
    if not is_number(value) or not float(value).is_integer() or value < 1:
        raise StructDiffError(f"{name} must be a whole number of at least 1, got {value!r}")
    return int(value)


def whole_seed(name: str, seed: Any) -> int | None:
    """A whole number from 0 on, or None for fresh randomness.

    Raises
    ------
    StructDiffError
        If it is neither; the message says ``name``.
    """
    if seed is None:
        return None
    if not is_number(seed) or not float(seed).is_integer() or seed < 0:
        raise StructDiffError(f"{name} must be None or a whole number from 0 on, got {seed!r}")
    return int(seed)


def is_number(value: Any) -> bool:
    """Whether it is an integer or a float, of Python or NumPy, and no truth value."""
    return isinstance(value, (int, float, np.number)) and not isinstance(value, bool)
