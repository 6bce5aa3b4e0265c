r"""How good are synthetic windows? Train a forecaster on them and test it on real series.

A window holds ``context`` points and the ``horizon`` points after them. Every window, synthetic or
real, is divided by its own mean :math:`|y|` over the context; the forecast of a test window is
multiplied by it again and scored by the field's CRPS (Kollovieh et al. 2023, TSDiff, section 5.3):

- the linear predictive score: a ridge regression from context to horizon, whose CRPS is
  :math:`\sum |y - \hat y| / \sum |y|`; the same ridge trained on :func:`real_windows` is the
  reference,
- train on synthetic, test on real: a neural forecaster of gluonts, 100 sample paths.

Windows go in as (N, context + horizon) arrays in original units or divided by any positive number:
the division above undoes it. It does not undo a shift, so a window in which the level has been
taken off must get it back first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from structdiff.errors import StructDiffError
from structdiff.timeseries._arrays import Array
from structdiff.timeseries._pairs import check_draw, check_pairs
from structdiff.timeseries.downstream import Downstream, downstream_paths
from structdiff.timeseries.frames import Panel
from structdiff.timeseries.metrics import mean_weighted_quantile_loss

__all__ = [
    "last_windows",
    "linear_predictive_score",
    "real_windows",
    "train_on_synthetic",
]

# ---------------------------------------------------------------- windows of real series


def last_windows(series: Panel | Sequence[npt.ArrayLike], context: int, horizon: int) -> Array:
    """The last ``context + horizon`` points of every series: what a forecaster is tested on.

    Parameters
    ----------
    series
        A panel or values per series, with the horizon; NaN = missing.
    context, horizon
        Points before and after the beginning of the forecast.

    Returns
    -------
    Array
        (M, context + horizon); NaN before the beginning of a shorter series.

    Raises
    ------
    StructDiffError
        There is no series, or ``context`` or ``horizon`` is below 1.
    """
    values = _values(series, context, horizon)
    windows = np.full((len(values), context + horizon), np.nan)
    for window, y in zip(windows, values, strict=True):
        tail = y[-len(window) :]
        window[len(window) - len(tail) :] = tail
    return windows


def real_windows(
    series: Panel | Sequence[npt.ArrayLike],
    context: int,
    horizon: int,
    n: int = 10_000,
    seed: int = 0,
) -> Array:
    """Random windows of real series, to train the reference on.

    Each comes from a series drawn uniformly among those long enough and begins uniformly at one of
    its places where no value is missing. Give the training part of the series only.

    Parameters
    ----------
    series
        A panel or values per series; NaN = missing.
    context, horizon
        Points of a window before and after the beginning of the forecast.
    n
        How many.
    seed
        Seed of the draw, at least 0.

    Returns
    -------
    Array
        (n, context + horizon), in original units.

    Raises
    ------
    StructDiffError
        No series has ``context + horizon`` observed values in a row; or ``context``, ``horizon``
        or ``n`` is below 1 or the seed negative.
    """
    values = _values(series, context, horizon)
    check_draw(n, seed)
    length = context + horizon
    starts = [_whole(y, length) for y in values]
    usable = [i for i, places in enumerate(starts) if len(places)]
    if not usable:
        raise StructDiffError(
            f"no series has {length} observed values in a row (context {context}, horizon "
            f"{horizon}); the longest has {max(map(len, values))} points: shorten the context or "
            "impute the series first"
        )
    generator = np.random.default_rng(seed)
    windows = np.empty((n, length))
    for window, i in zip(windows, generator.choice(usable, size=n), strict=True):
        start = generator.choice(starts[i])
        window[:] = values[i][start : start + length]
    return windows


# ---------------------------------------------------------------- linear predictive score


def linear_predictive_score(
    synthetic: npt.ArrayLike,
    test: npt.ArrayLike,
    context: int,
    *,
    alpha: float = 1.0,
    rescale: bool = True,
) -> float:
    """CRPS on real windows of a ridge regression fitted to synthetic ones; lower is better.

    Parameters
    ----------
    synthetic
        (N, context + horizon); with :func:`real_windows` the score is the reference.
    test
        (M, context + horizon), as from :func:`last_windows`, original units; NaN = missing. What is
        missing in a context is interpolated in time, in a horizon it is not scored.
    context
        Points of a window that the forecaster sees.
    alpha
        Weight of the squared coefficients (the intercept is free).
    rescale
        Whether to divide each synthetic window by its mean |context|. The published code takes
        them as the model wrote them, scaled only approximately.

    Returns
    -------
    float
        mean_wQuantileLoss of the point forecast, which equals ND: a ratio without units.

    Raises
    ------
    StructDiffError
        The shapes disagree, a synthetic value is not finite, a test context is all missing, no
        target is observed, ``alpha`` is not positive, or scikit-learn is not installed.
    """
    train, contexts, targets, scale = check_pairs(synthetic, test, context, rescale=rescale)
    if not alpha > 0:
        raise StructDiffError(f"alpha={alpha}: the ridge's weight must be positive")
    try:
        from sklearn.linear_model import Ridge
    except ImportError as error:
        raise StructDiffError(
            "the linear predictive score needs scikit-learn: pip install 'structdiff[timeseries]'"
        ) from error
    ridge = Ridge(alpha=alpha).fit(train[:, :context], train[:, context:])
    # A horizon of one step: some versions of scikit-learn drop its axis.
    forecast = np.reshape(ridge.predict(contexts), targets.shape) * scale
    return mean_weighted_quantile_loss(forecast[:, None], targets)


# ---------------------------------------------------------------- train on synthetic, test on real


def train_on_synthetic(
    synthetic: npt.ArrayLike,
    test: npt.ArrayLike,
    context: int,
    model: Downstream = "deepar",
    **settings: Any,
) -> float:
    """CRPS on real windows of a neural forecaster trained on synthetic ones; lower is better.

    Parameters
    ----------
    synthetic, test, context
        As in :func:`linear_predictive_score`.
    model
        As in :func:`downstream_paths`.
    **settings
        The other arguments of :func:`downstream_paths`.

    Returns
    -------
    float
        mean_wQuantileLoss of the sample paths: a ratio without units.

    Raises
    ------
    StructDiffError
        As :func:`linear_predictive_score` and :func:`downstream_paths`.
    """
    paths = downstream_paths(synthetic, test, context, model, **settings)
    return mean_weighted_quantile_loss(paths, np.asarray(test, dtype=np.float64)[:, context:])


# ---------------------------------------------------------------- arrays


def _values(
    series: Panel | Sequence[npt.ArrayLike], context: int, horizon: int
) -> list[npt.NDArray[np.float64]]:
    if min(context, horizon) < 1:
        raise StructDiffError(f"context={context}, horizon={horizon}: both have at least one point")
    each = series.values if isinstance(series, Panel) else series
    values = [np.asarray(y, dtype=np.float64).reshape(-1) for y in each]
    if not values:
        raise StructDiffError("there is no series to cut windows from")
    return values


def _whole(y: Array, length: int) -> npt.NDArray[np.intp]:
    """Where a window of ``length`` observed points can begin."""
    if len(y) < length:
        return np.empty(0, dtype=np.intp)
    gaps = np.concatenate([[0], np.cumsum(~np.isfinite(y))])
    return np.flatnonzero(gaps[length:] == gaps[:-length])
