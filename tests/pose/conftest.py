"""Poses that tests of several modules measure."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

Array = npt.NDArray[np.floating]


@pytest.fixture
def poses() -> tuple[Array, Array]:
    """Predictions and targets that differ by 5 cm or so, (3, 7, 17, 3), metres."""
    source = np.random.default_rng(0)
    target = source.normal(0, 0.3, (3, 7, 17, 3))
    return target + source.normal(0, 0.05, target.shape), target
