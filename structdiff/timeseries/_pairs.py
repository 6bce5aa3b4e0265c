"""Windows to train a forecaster on and windows to test it on, checked and scaled alike."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from structdiff.errors import StructDiffError
from structdiff.timeseries._arrays import Array


class Pairs(NamedTuple):
    """What a forecaster is trained on and tested on."""

    train: Array
    """Scaled training windows (N, context + horizon)."""
    contexts: Array
    """Scaled test contexts (M, context), their gaps bridged."""
    targets: Array
    """Test targets (M, horizon), not scaled; NaN = not observed."""
    scale: Array
    """What the test contexts were divided by, (M, 1)."""


def check_pairs(
    synthetic: npt.ArrayLike, test: npt.ArrayLike, context: int, *, rescale: bool
) -> Pairs:
    """Check the windows, divide each by its own mean |context| and bridge the tests' gaps."""
    train = np.asarray(synthetic, dtype=np.float64)
    real = np.asarray(test, dtype=np.float64)
    for name, windows in {"synthetic": train, "test": real}.items():
        if windows.ndim != 2 or 0 in windows.shape:
            raise StructDiffError(
                f"{name} windows have the shape (windows, context + horizon), not {windows.shape}"
            )
    if train.shape[1] != real.shape[1]:
        raise StructDiffError(
            f"synthetic windows have {train.shape[1]} points, test windows {real.shape[1]}; "
            "both hold context + horizon"
        )
    if not 1 <= context < train.shape[1]:
        raise StructDiffError(
            f"context={context}: must leave a horizon in windows of {train.shape[1]} points"
        )
    wrong = np.argwhere(~np.isfinite(train))
    if len(wrong):
        row, step = wrong[0]
        raise StructDiffError(
            f"synthetic window {row}, step {step}: {train[row, step]} ({len(wrong)} such values in "
            "all); every value must be finite, leave broken windows out"
        )
    if np.isinf(real).any():
        row, step = np.argwhere(np.isinf(real))[0]
        raise StructDiffError(
            f"test window {row}, step {step}: {real[row, step]}; NaN means not observed"
        )
    empty = np.flatnonzero(np.isnan(real[:, :context]).all(axis=1))
    if len(empty):
        raise StructDiffError(
            f"test window {empty[0]} has no observed value in its context ({len(empty)} such "
            "windows in all); leave them out"
        )
    if rescale:
        train = train / _scale(train[:, :context])
    contexts, scale = real[:, :context], _scale(real[:, :context])
    whole = np.stack([_interpolated(row) for row in contexts])
    return Pairs(train, whole / scale, real[:, context:], scale)


def _scale(contexts: Array) -> Array:
    """Mean |y| of the observed context, 1 where that is 0; (N, 1)."""
    scale = np.nanmean(np.abs(contexts), axis=1, keepdims=True)
    return np.where(scale > 0, scale, 1.0)


def _interpolated(y: Array) -> Array:
    """The series with its gaps bridged by straight lines, its ends held."""
    seen = np.flatnonzero(~np.isnan(y))
    return y if len(seen) == len(y) else np.interp(np.arange(len(y)), seen, y[seen])


def check_draw(n: int, seed: int) -> None:
    if n < 1:
        raise StructDiffError(f"n={n}: at least one must be drawn")
    if seed < 0:
        raise StructDiffError(f"seed={seed}: a seed is at least 0")
