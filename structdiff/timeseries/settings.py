"""What the estimator's settings may be: checked before training, not after."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from structdiff.errors import StructDiffError

if TYPE_CHECKING:
    from structdiff.timeseries.tsdiff import TSDiff


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


def is_number(value: Any) -> bool:
    """Whether it is an integer or a float, of Python or NumPy, and no truth value."""
    return isinstance(value, (int, float, np.number)) and not isinstance(value, bool)


def check_seed(name: str, seed: Any) -> None:
    """Raise StructDiffError if that is no seed; None is fresh randomness."""
    if seed is not None and not (is_number(seed) and float(seed).is_integer() and seed >= 0):
        raise StructDiffError(f"{name} must be None or a whole number from 0 on, got {seed!r}")


def check_settings(model: TSDiff) -> None:
    """Refuse settings that ``fit`` or a later use would fail with.

    What the frame has a say in (context, lags, frequency) is checked where it is chosen.

    Raises
    ------
    StructDiffError
        Naming the setting.
    """
    for name in ("h", "n_samples", "max_steps", "batch_size", "checkpoint_every"):
        whole(name, getattr(model, name))
    for name, value in (
        ("learning_rate", model.learning_rate),
        ("max_minutes", model.max_minutes),
        ("guidance_scale", model.guidance_scale),
    ):
        if value is None and name != "learning_rate":
            continue
        if value is None or not is_number(value) or not 0 < float(value) < math.inf:
            raise StructDiffError(f"{name} must be a positive number, got {value!r}")
    check_seed("random_state", model.random_state)
