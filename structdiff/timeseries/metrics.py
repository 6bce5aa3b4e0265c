r"""How good probabilistic forecasts are: sharpness and calibration from sample paths, on arrays.

Paths are ``(N, S, h)``, S futures of h steps for each of N entries; targets are ``(N, h)``, NaN
where nothing was observed. The score that the field's tables call CRPS is one global ratio,

    mean_wQuantileLoss = mean_q  2 sum |(y_q - y)(1[y <= y_q] - q)|  /  sum |y|,  q = .1, ..., .9,

both sums over every observed entry and step, y_q the sample quantile sorted[round((S - 1) q)]. It
stands with nine terms for the integral that is the CRPS (Gneiting and Raftery, JASA 2007):

    CRPS = E|X - y| - 1/2 E|X - X'| = integral of 2 (1[y <= y_q] - q)(y_q - y) over q in [0, 1].

The nine levels do not see the tails; the exact integral, the energy score (which sees the
dependence between steps), coverage and calibration stand beside it.

gluonts' ``Evaluator`` gives the first of these numbers, equal to ours to 1e-9 (tests), from an
iterator of forecast objects with calendars, one series at a time. Here the same arithmetic runs
over all entries at once, on arrays that need no calendar, and without gluonts' limit on pandas.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from structdiff.errors import StructDiffError

__all__ = [
    "COVERAGE_LEVELS",
    "QUANTILE_LEVELS",
    "central_interval",
    "energy_score",
    "evaluate_each_series",
    "evaluate_forecasts",
    "mean_weighted_quantile_loss",
    "probability_integral_transform",
    "quantile_calibration",
    "quantile_loss",
    "sample_crps",
    "sample_quantiles",
    "seasonal_error",
    "weighted_quantile_loss",
]

Array = npt.NDArray[np.float64]

#: The levels of the field's CRPS.
QUANTILE_LEVELS = tuple(k / 10 for k in range(1, 10))
#: The central intervals that are reported, percent.
COVERAGE_LEVELS = (50, 80, 95)


# ---------------------------------------------------------------- one table for many forecasts


def evaluate_forecasts(
    paths: npt.ArrayLike,
    targets: npt.ArrayLike,
    history: Sequence[npt.ArrayLike] | None = None,
    seasonality: int | None = None,
) -> pd.Series:
    """Every score of a set of forecasts.

    Parameters
    ----------
    paths
        (N, S, h), finite.
    targets
        (N, h); NaN = not observed.
    history
        The N past series (any lengths, NaN = missing), for MASE.
    seasonality
        Steps in a season, for MASE: 24 for hourly data, 5 for business days.

    Returns
    -------
    pandas.Series
        Ratios, without units:
        ``mean_wQuantileLoss`` (the CRPS of the field's tables); ``ND``, sum |y - median| over sum
        |y|; ``NRMSE``, root of the mean over entries of the mean path's MSE, over the mean over
        entries of mean |y|; ``MASE``, mean over entries of mean |y - median| over the
        :func:`seasonal_error` of their history (NaN without a history; an entry whose history
        never changes over a season has no such scale and is left out, gluonts returns infinity);
        ``wCRPS`` and ``wCRPS_fair`` (exact sample CRPS, summed, over sum |y|; the second
        unbiased in S, NaN for one path); ``wEnergyScore`` (energy scores, summed, over the sum of
        the targets' norms); ``coverage_50`` ... (share of targets inside the central interval)
        and ``width_50`` ... (mean width over mean |y|); ``calibration_error`` (mean over the nine
        levels of |share below - level|). Infinite or NaN where all observed targets are 0.

    Raises
    ------
    StructDiffError
        The shapes disagree; a path is not finite; a target is infinite; nothing was observed; or
        only one of ``history`` and ``seasonality`` is given.
    """
    sums = _entry_sums(paths, targets, history, seasonality)
    return _scores(sums, np.zeros(len(sums), dtype=int)).iloc[0].rename("score")


def evaluate_each_series(
    paths: npt.ArrayLike,
    targets: npt.ArrayLike,
    history: Sequence[npt.ArrayLike] | None = None,
    seasonality: int | None = None,
    *,
    ids: Iterable[Any] | None = None,
) -> pd.DataFrame:
    """The scores of :func:`evaluate_forecasts` for each series by itself.

    Parameters
    ----------
    paths, targets, history, seasonality
        As there.
    ids
        The series of each entry, N of them; entries of one series (rolling windows) are scored
        together. By default every entry is a series.

    Returns
    -------
    pandas.DataFrame
        A row for each series in order of first appearance, NaN where nothing of it was observed.

    Raises
    ------
    StructDiffError
        As there; or there is not one id for each entry.
    """
    sums = _entry_sums(paths, targets, history, seasonality)
    names = pd.RangeIndex(len(sums)) if ids is None else pd.Index(list(ids))
    if len(names) != len(sums):
        raise StructDiffError(f"{len(names)} ids for {len(sums)} entries; give one id for each")
    return _scores(sums, names)


# ---------------------------------------------------------------- the field's CRPS


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
    x = _paths(paths)
    rows = np.round((x.shape[1] - 1) * _levels(levels)).astype(int)
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
    x, y, observed = _pair(quantiles, targets, what="quantiles")
    q = _levels(levels)
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
    _, y, _ = _pair(quantiles, targets, what="quantiles")
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
    x, y, observed = _pair(paths, targets)
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

    x, y, observed = _pair(paths, targets)
    scores = np.full(len(x), np.nan)
    for i in np.flatnonzero(observed.any(axis=1)):
        steps = observed[i]
        centred = x[i][:, steps] - y[i, steps]  # (S, observed steps)
        spread = pdist(centred).sum() / len(centred) ** 2 if len(centred) > 1 else 0.0
        scores[i] = np.linalg.norm(centred, axis=1).mean() - spread
    return scores


# ---------------------------------------------------------------- intervals and calibration


def central_interval(paths: npt.ArrayLike, level: float) -> tuple[Array, Array]:
    """The central interval that holds ``level`` percent, from sample paths.

    Ends lie at the positions q (S + 1) of the sorted paths, linear in between (Weibull's rule): a
    new value that is exchangeable with the S paths then lies below the k-th of them with
    probability k / (S + 1), so the interval of a perfect model covers ``level`` percent. It ends at
    the smallest and largest path where S is too small for the level.

    Parameters
    ----------
    paths
        (N, S, h).
    level
        Percent, in (0, 100).

    Returns
    -------
    lower, upper
        (N, h) each.

    Raises
    ------
    StructDiffError
        The level is outside (0, 100), or the paths have another shape or are not finite.
    """
    if not 0 < level < 100:
        raise StructDiffError(f"an interval's level is percent between 0 and 100, not {level!r}")
    tail = (1 - level / 100) / 2
    lower, upper = np.quantile(_paths(paths), [tail, 1 - tail], axis=1, method="weibull")
    return lower, upper


def probability_integral_transform(
    paths: npt.ArrayLike, targets: npt.ArrayLike, levels: Sequence[float]
) -> Array:
    """P(PIT <= q) of each target: its rank among the paths, its place between two paths spread out.

    With b paths below y and e equal to it, (b + U (1 + e)) / (S + 1), U uniform on [0, 1], is
    uniform if y is exchangeable with the paths; the probability is taken over U, so nothing is
    drawn (Czado, Gneiting and Held, Biometrics 2009).

    Parameters
    ----------
    paths
        (N, S, h).
    targets
        (N, h); NaN = not observed.
    levels
        Q numbers in [0, 1].

    Returns
    -------
    Array
        (N, Q, h); NaN where nothing was observed.

    Raises
    ------
    StructDiffError
        As :func:`evaluate_forecasts`.
    """
    x, y, observed = _pair(paths, targets)
    below = (x < y[:, None]).sum(axis=1)[:, None]  # (N, 1, h)
    equal = (x == y[:, None]).sum(axis=1)[:, None]
    place = _levels(levels)[:, None] * (x.shape[1] + 1)
    reached = np.clip((place - below) / (1 + equal), 0.0, 1.0)
    return np.where(observed[:, None], reached, np.nan)


def quantile_calibration(
    paths: npt.ArrayLike, targets: npt.ArrayLike, levels: Sequence[float] = QUANTILE_LEVELS
) -> Array:
    """Share of the observed targets below the quantile of each level; the levels if calibrated.

    Parameters
    ----------
    paths
        (N, S, h).
    targets
        (N, h); NaN = not observed.
    levels
        Q numbers in [0, 1].

    Returns
    -------
    Array
        (Q,).

    Raises
    ------
    StructDiffError
        As :func:`evaluate_forecasts`.
    """
    return np.nanmean(probability_integral_transform(paths, targets, levels), axis=(0, 2))


# ---------------------------------------------------------------- sums, entry by entry


def _entry_sums(
    paths: npt.ArrayLike,
    targets: npt.ArrayLike,
    history: Sequence[npt.ArrayLike] | None,
    seasonality: int | None,
) -> pd.DataFrame:
    """What every score is a ratio of, for each entry (rows)."""
    if (history is None) != (seasonality is None):
        raise StructDiffError("MASE needs both the history and the seasonality; one is missing")
    x, y, observed = _pair(paths, targets)
    ordered = np.sort(x, axis=1)
    count = observed.sum(axis=1)
    some = np.where(count > 0, count, np.nan)
    size = np.abs(y).sum(axis=1)  # y is 0 where nothing was observed
    squares = np.where(observed, (x.mean(axis=1) - y) ** 2, 0.0).sum(axis=1)
    columns: dict[str, Array] = {
        "count": count,
        "size": size,
        "mean_size": size / some,
        "norm": np.sqrt((y**2).sum(axis=1)),
        "quantile_loss": quantile_loss(sample_quantiles(ordered), targets).sum(axis=2).mean(axis=1),
        "absolute_error": _absolute_error(_median(ordered), y, observed).sum(axis=1),
        "mse": squares / some,
        "crps": np.nansum(sample_crps(ordered, targets), axis=1),
        "energy": energy_score(x, targets),
        "mase": np.full(len(x), np.nan),
        "crps_fair": np.full(len(x), np.nan),
    }
    if x.shape[1] > 1:
        columns["crps_fair"] = np.nansum(sample_crps(ordered, targets, fair=True), axis=1)
    if history is not None and seasonality is not None:
        columns["mase"] = _scaled_errors(ordered, targets, history, seasonality)
    for level in COVERAGE_LEVELS:
        lower, upper = central_interval(ordered, level)
        columns[f"inside_{level}"] = (_inside(lower, upper, y) & observed).sum(axis=1)
        columns[f"width_{level}"] = np.where(observed, upper - lower, 0.0).sum(axis=1)
    reached = np.nansum(probability_integral_transform(x, targets, QUANTILE_LEVELS), axis=2)
    columns |= {f"below_{k}": reached[:, k] for k in range(len(QUANTILE_LEVELS))}
    return pd.DataFrame(columns)


def _scores(sums: pd.DataFrame, groups: Any) -> pd.DataFrame:
    """Scores of groups of entries: ratios of sums, in one row for each group."""
    by = sums.groupby(groups, sort=False, observed=True, dropna=False)
    total, mean = by.sum(min_count=1), by.mean()
    seen = total["count"].where(total["count"] > 0)
    size = total["size"].where(seen.notna())
    scores = {
        "mean_wQuantileLoss": total["quantile_loss"] / size,
        "ND": total["absolute_error"] / size,
        "NRMSE": np.sqrt(mean["mse"]) / mean["mean_size"],
        "MASE": mean["mase"],
        "wCRPS": total["crps"] / size,
        "wCRPS_fair": total["crps_fair"] / size,
        "wEnergyScore": total["energy"] / total["norm"],
    }
    scores |= {f"coverage_{k}": total[f"inside_{k}"] / seen for k in COVERAGE_LEVELS}
    scores |= {f"width_{k}": total[f"width_{k}"] / size for k in COVERAGE_LEVELS}
    off = [(total[f"below_{k}"] / seen - q).abs() for k, q in enumerate(QUANTILE_LEVELS)]
    scores["calibration_error"] = sum(off) / len(off)
    return pd.DataFrame(scores).rename_axis(index=None)


def _scaled_errors(
    paths: npt.ArrayLike,
    targets: npt.ArrayLike,
    history: Sequence[npt.ArrayLike],
    seasonality: int,
) -> Array:
    """Mean |y - median| / seasonal error of each entry; NaN where that error is 0 or unknown."""
    x, y, observed = _pair(paths, targets)
    if len(history) != len(x):
        raise StructDiffError(f"{len(history)} histories for {len(x)} entries; give one for each")
    if seasonality < 1:
        raise StructDiffError(f"seasonality is a number of steps, at least 1, not {seasonality!r}")
    scale = np.array([seasonal_error(each, seasonality) for each in history])
    count = observed.sum(axis=1)
    usable = (scale > 0) & (count > 0)
    error = _absolute_error(_median(x), y, observed).sum(axis=1)
    return np.divide(error, count * scale, out=np.full(len(x), np.nan), where=usable)


def _median(paths: npt.ArrayLike) -> Array:
    return sample_quantiles(paths, (0.5,))[:, 0]


def _absolute_error(point: Array, y: Array, observed: npt.NDArray[np.bool_]) -> Array:
    return np.where(observed, np.abs(point - y), 0.0)


def _inside(lower: Array, upper: Array, y: Array) -> npt.NDArray[np.bool_]:
    return (lower <= y) & (y <= upper)


# ---------------------------------------------------------------- checks


def _levels(levels: Sequence[float]) -> Array:
    q = np.asarray(levels, dtype=np.float64).reshape(-1)
    if not ((q >= 0) & (q <= 1)).all():
        raise StructDiffError(f"quantile levels lie between 0 and 1, not {list(levels)}")
    return q


def _paths(paths: npt.ArrayLike, what: str = "paths") -> Array:
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


def _pair(
    paths: npt.ArrayLike, targets: npt.ArrayLike, what: str = "paths"
) -> tuple[Array, Array, npt.NDArray[np.bool_]]:
    """Paths, targets with 0 where nothing was observed, and where something was."""
    x = _paths(paths, what)
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
