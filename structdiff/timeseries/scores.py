"""Scores of sample paths, entry by entry: quantile losses, exact CRPS, energy score.

What they mean together is said in :mod:`structdiff.timeseries.metrics`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from structdiff.errors import StructDiffError
from structdiff.timeseries._arrays import Array, check_levels, check_pair, check_paths

#: The levels of the field's CRPS.
QUANTILE_LEVELS = tuple(k / 10 for k in range(1, 10))


def sample_quantiles(paths: npt.ArrayLike, levels: Sequence[float] = QUANTILE_LEVELS) -> Array:
    """Sample quantiles as the field's tables take them: sorted[round((S - 1) q)], halves to even.

    No interpolation, so every quantile is one of the samples.

    Parameters
    ----------
    paths
        (N, S, h).
    levels
        Q numbers in [0, 1].

    Returns
    -------
    Array
        (N, Q, h).

    Raises
    ------
    StructDiffError
        The paths have another shape or are not finite, or a level is outside [0, 1].
    """
    x = check_paths(paths)
    rows = np.round((x.shape[1] - 1) * check_levels(levels)).astype(int)
    return np.sort(x, axis=1)[:, rows]


def quantile_loss(
    quantiles: npt.ArrayLike, targets: npt.ArrayLike, levels: Sequence[float] = QUANTILE_LEVELS
) -> Array:
    """Twice the pinball loss, 2 (1[y <= y_q] - q)(y_q - y), 0 where nothing was observed.

    Parameters
    ----------
    quantiles
        (N, Q, h).
    targets
        (N, h); NaN = not observed.
    levels
        The Q levels.

    Returns
    -------
    Array
        (N, Q, h).

    Raises
    ------
    StructDiffError
        The shapes disagree, a quantile is not finite or a target infinite.
    """
    x, y, observed = check_pair(quantiles, targets, what="quantiles")
    q = check_levels(levels)
    if len(q) != x.shape[1]:
        raise StructDiffError(f"{x.shape[1]} quantiles for {len(q)} levels; give one for each")
    below = (y[:, None] <= x) - q[:, None]
    return np.where(observed[:, None], 2 * np.abs((x - y[:, None]) * below), 0.0)


def weighted_quantile_loss(
    quantiles: npt.ArrayLike, targets: npt.ArrayLike, levels: Sequence[float] = QUANTILE_LEVELS
) -> float:
    """The field's CRPS from quantiles (N, Q, h): mean over levels of sum of losses over sum |y|.

    For a point forecast, repeated over the levels, it is ND. Infinite or NaN where all observed
    targets are 0.

    Raises
    ------
    StructDiffError
        As :func:`quantile_loss`.
    """
    _, y, _ = check_pair(quantiles, targets, what="quantiles")
    loss = quantile_loss(quantiles, targets, levels)
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(loss.sum(axis=(0, 2)).mean() / np.abs(y).sum())


def mean_weighted_quantile_loss(
    paths: npt.ArrayLike, targets: npt.ArrayLike, levels: Sequence[float] = QUANTILE_LEVELS
) -> float:
    """The CRPS of the field's tables: gluonts' mean_wQuantileLoss of sample paths (N, S, h).

    Raises
    ------
    StructDiffError
        As :func:`evaluate_forecasts`.
    """
    return weighted_quantile_loss(sample_quantiles(paths, levels), targets, levels)


def seasonal_error(history: npt.ArrayLike, seasonality: int) -> float:
    """Mean |y_t - y_(t - m)| over the pairs of a series (n,) that were observed; m = 1 if n <= m.

    NaN without such a pair.
    """
    y = np.asarray(history, dtype=np.float64).reshape(-1)
    m = seasonality if seasonality < len(y) else 1
    difference = np.abs(y[m:] - y[:-m])
    difference = difference[np.isfinite(difference)]
    return float(difference.mean()) if len(difference) else float("nan")


# ---------------------------------------------------------------- exact scores


def sample_crps(paths: npt.ArrayLike, targets: npt.ArrayLike, *, fair: bool = False) -> Array:
    """Exact CRPS of the empirical distribution of the paths, E|X - y| - 1/2 E|X - X'|.

    The pairs are summed through the order statistics, sum_(i<j) |x_i - x_j| =
    sum_k (2 k - S - 1) x_(k), so the cost is that of sorting.

    Parameters
    ----------
    paths
        (N, S, h).
    targets
        (N, h); NaN = not observed.
    fair
        Divide the pairs by S (S - 1), not S^2: the expectation is then the CRPS of the
        distribution the paths come from, whatever S (Ferro, QJRMS 2014).

    Returns
    -------
    Array
        (N, h), in the units of the data; NaN where nothing was observed.

    Raises
    ------
    StructDiffError
        As :func:`evaluate_forecasts`; or ``fair`` with one path.
    """
    x, y, observed = check_pair(paths, targets)
    samples = x.shape[1]
    if fair and samples < 2:
        raise StructDiffError("the fair CRPS needs at least 2 paths for each entry, not 1")
    ordered = np.sort(x - y[:, None], axis=1)  # about the target: no cancellation at a high level
    rank = 2.0 * np.arange(1, samples + 1) - samples - 1
    pairs = samples * (samples - 1) if fair else samples**2
    spread = np.einsum("s,nsh->nh", rank, ordered) / pairs
    return np.where(observed, np.abs(ordered).mean(axis=1) - spread, np.nan)


def energy_score(paths: npt.ArrayLike, targets: npt.ArrayLike) -> Array:
    """E||X - y|| - 1/2 E||X - X'|| over the observed steps: the CRPS of a whole path.

    Unlike a mean over steps of CRPS, it changes when the dependence between steps does
    (Gneiting and Raftery, JASA 2007, eq. 22 with beta = 1).

    Parameters
    ----------
    paths
        (N, S, h).
    targets
        (N, h); NaN = not observed.

    Returns
    -------
    Array
        (N,), in the units of the data; NaN where no step was observed.

    Raises
    ------
    StructDiffError
        As :func:`evaluate_forecasts`.
    """
    from scipy.spatial.distance import pdist

    x, y, observed = check_pair(paths, targets)
    scores = np.full(len(x), np.nan)
    for i in np.flatnonzero(observed.any(axis=1)):
        steps = observed[i]
        centred = x[i][:, steps] - y[i, steps]  # (S, observed steps)
        spread = pdist(centred).sum() / len(centred) ** 2 if len(centred) > 1 else 0.0
        scores[i] = np.linalg.norm(centred, axis=1).mean() - spread
    return scores
