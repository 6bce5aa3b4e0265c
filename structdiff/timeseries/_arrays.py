"""Sample paths and targets as arrays, checked once where they enter."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from structdiff.errors import StructDiffError

Array = npt.NDArray[np.float64]


def check_levels(levels: Sequence[float]) -> Array:
    q = np.asarray(levels, dtype=np.float64).reshape(-1)
    if not ((q >= 0) & (q <= 1)).all():
        raise StructDiffError(f"quantile levels lie between 0 and 1, not {list(levels)}")
    return q


def check_paths(paths: npt.ArrayLike, what: str = "paths") -> Array:
    x = np.asarray(paths, dtype=np.float64)
    if x.ndim != 3 or 0 in x.shape:
        raise StructDiffError(
            f"{what} have the shape (entries, {'samples' if what == 'paths' else 'levels'}, steps) "
            f"with none of them 0, not {x.shape}"
        )
    wrong = ~np.isfinite(x)
    if wrong.any():
        n, s, k = np.argwhere(wrong)[0]
        raise StructDiffError(
            f"{what}: {x[n, s, k]} at entry {n}, sample {s}, step {k} "
            f"({int(wrong.sum())} in all); every value must be finite"
        )
    return x


def check_pair(
    paths: npt.ArrayLike, targets: npt.ArrayLike, what: str = "paths"
) -> tuple[Array, Array, npt.NDArray[np.bool_]]:
    """Paths, targets with 0 where nothing was observed, and where something was."""
    x = check_paths(paths, what)
    y = np.asarray(targets, dtype=np.float64)
    if y.shape != (x.shape[0], x.shape[2]):
        raise StructDiffError(
            f"targets have the shape {y.shape}; {what} of shape {x.shape} need "
            f"{(x.shape[0], x.shape[2])}"
        )
    if np.isinf(y).any():
        n, k = np.argwhere(np.isinf(y))[0]
        raise StructDiffError(f"targets: {y[n, k]} at entry {n}, step {k}; NaN means not observed")
    observed = ~np.isnan(y)
    if not observed.any():
        raise StructDiffError("targets: none is observed (all are NaN); there is nothing to score")
    return x, np.where(observed, y, 0.0), observed
