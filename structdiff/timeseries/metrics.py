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
from structdiff.timeseries._arrays import Array, check_pair
from structdiff.timeseries.calibration import (
    COVERAGE_LEVELS,
    central_interval,
    probability_integral_transform,
    quantile_calibration,
)
from structdiff.timeseries.scores import (
    QUANTILE_LEVELS,
    energy_score,
    mean_weighted_quantile_loss,
    quantile_loss,
    sample_crps,
    sample_quantiles,
    seasonal_error,
    weighted_quantile_loss,
)

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
    x, y, observed = check_pair(paths, targets)
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
    x, y, observed = check_pair(paths, targets)
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
