"""Pictures of forecasts: the past, the median, a fan of intervals, and what came true.

A forecast is either sample paths (S, h) or a result frame with the columns ``TSDiff``,
``TSDiff-lo-80``, ``TSDiff-hi-80``, ``TSDiff-q0.1`` of one series. Everything is drawn on a
matplotlib Axes (extra ``[plots]``), which is returned. Colours tell apart for every kind of sight
(Okabe and Ito 2008).
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from structdiff.errors import StructDiffError
from structdiff.timeseries.metrics import (
    central_interval,
    probability_integral_transform,
    quantile_calibration,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["plot_calibration", "plot_forecast", "plot_panel", "plot_pit"]

BLUE, ORANGE, INK, GREY = "#0072B2", "#D55E00", "#333333", "#8c8c8c"


def plot_forecast(
    history: pd.Series | npt.ArrayLike,
    forecast: pd.DataFrame | npt.ArrayLike,
    truth: pd.Series | npt.ArrayLike | None = None,
    levels: Sequence[float] | None = None,
    ax: Axes | None = None,
    *,
    times: Any = None,
    model: str = "TSDiff",
) -> Axes:
    """History, median, fan of central intervals and, where known, the truth of one series.

    Parameters
    ----------
    history
        A Series indexed by time, or values (n,) at the times 0 .. n - 1; NaN = missing (a gap).
    forecast
        Sample paths (S, h), or a frame of one series with the columns ``model``,
        ``model-lo-80`` and ``model-hi-80``, or ``model-q0.1`` and ``model-q0.9``.
    truth
        The h values that came true; NaN = not observed.
    levels
        Percent of the intervals to draw. By default 50, 80 and 95 for paths, and every interval
        that a frame has.
    ax
        Where to draw; a new figure by default.
    times
        The h times of the forecast. By default the index of ``forecast`` if it is a frame, else
        those that follow the history.
    model
        Name before the columns of a frame.

    Returns
    -------
    Axes

    Raises
    ------
    StructDiffError
        The forecast has another shape or lacks a column or level; the truth or the times are not h;
        the history's index has no frequency to go on with; or matplotlib is not installed.
    """
    past = history if isinstance(history, pd.Series) else pd.Series(np.asarray(history, float))
    middle, bands = _fan(forecast, levels, model)
    h = len(middle)
    if times is None:
        times = forecast.index if isinstance(forecast, pd.DataFrame) else _after(past.index, h)
    if len(times) != h:
        raise StructDiffError(f"{len(times)} times for a forecast of {h} steps; give one for each")
    ax = _axes(ax)
    x, x_past = _drawable(times), _drawable(past.index)
    ax.plot(x_past, past.to_numpy(float), color=INK, linewidth=1.0, label="history")
    for n, (level, lower, upper) in enumerate(bands):  # the widest first, the narrowest darkest
        colour = _tint(BLUE, 0.2 + 0.35 * n / max(len(bands) - 1, 1))
        ax.fill_between(x, lower, upper, color=colour, linewidth=0, label=f"{level:g} %")
    mark = "o" if h == 1 else None  # one step is a point, which a line does not show
    ax.plot(x, middle, color=BLUE, linewidth=1.5, label="forecast", marker=mark)
    if truth is not None:
        came = np.asarray(truth, float).reshape(-1)
        if len(came) != h:
            raise StructDiffError(f"the truth has {len(came)} values, the forecast {h} steps")
        ax.plot(x, came, color=ORANGE, linewidth=1.2, label="truth", marker=mark)
    ax.legend(frameon=False, fontsize="small", loc="best")
    return _finish(ax)


def plot_panel(
    forecasts: pd.DataFrame,
    history: pd.DataFrame | None = None,
    truth: pd.DataFrame | None = None,
    *,
    ids: Sequence[Any] | None = None,
    levels: Sequence[float] | None = None,
    last: int | None = None,
    max_series: int = 9,
    columns: int = 3,
    id_col: str = "unique_id",
    time_col: str = "ds",
    target_col: str = "y",
    model: str = "TSDiff",
) -> Figure:
    """Small multiples of a long result frame, one Axes for each series, in one call.

    Parameters
    ----------
    forecasts
        Long: ``id_col``, ``time_col`` and the columns of ``model``. A column ``target_col`` (as in
        the result of a cross-validation) is drawn as the truth.
    history
        Long, with ``target_col``: what was known.
    truth
        Long, with ``target_col``: what came true; matched by id and time.
    ids
        Which series, in this order; by default the first ``max_series``.
    levels
        Percent of the intervals; by default all that the frame has.
    last
        How many points of the history to draw; by default 5 times the horizon.
    max_series
        How many series at most where ``ids`` are not given.
    columns
        Axes in a row.
    id_col, time_col, target_col, model
        Names of the columns.

    Returns
    -------
    Figure

    Raises
    ------
    StructDiffError
        A column or an id is absent; a series has two forecasts for one time (several cutoffs);
        there is nothing to draw; or matplotlib is not installed.
    """
    for name, frame, needed in (
        ("forecasts", forecasts, [id_col, time_col]),
        ("history", history, [id_col, time_col, target_col]),
        ("truth", truth, [id_col, time_col, target_col]),
    ):
        if frame is None:
            continue
        absent = [c for c in needed if c not in frame.columns]
        if absent:
            raise StructDiffError(f"{name}: no column {absent[0]!r}; it has {list(frame.columns)}")
    known = list(pd.unique(forecasts[id_col]))
    chosen = known[:max_series] if ids is None else list(ids)
    unknown = [each for each in chosen if each not in set(known)]
    if unknown or not chosen:
        what = f"no forecast for {unknown[0]!r}" if unknown else "no series to draw"
        raise StructDiffError(f"forecasts: {what}; it has {known[:5]} ({len(known)} series)")

    pyplot = _pyplot()
    columns = min(columns, len(chosen))
    rows = math.ceil(len(chosen) / columns)
    figure, grid = pyplot.subplots(
        rows, columns, figsize=(4.2 * columns, 2.6 * rows), squeeze=False, layout="constrained"
    )
    for ax, each in zip(grid.flat, chosen, strict=False):
        own = forecasts[forecasts[id_col] == each].set_index(time_col).sort_index()
        if own.index.has_duplicates:
            twice = own.index[own.index.duplicated()][0]
            raise StructDiffError(
                f"forecasts: series {each!r} has two rows for {twice}; draw one cutoff at a time"
            )
        past = pd.Series(index=own.index[:0], dtype=float)
        if history is not None:
            past = _one(history, each, id_col, time_col, target_col)
            past = past[past.index < own.index[0]].iloc[-(last or 5 * len(own)) :]
        came = own[target_col] if target_col in own.columns else None
        if truth is not None:
            came = _one(truth, each, id_col, time_col, target_col).reindex(own.index)
        plot_forecast(past, own, came, levels, ax, model=model)
        ax.set_title(str(each), fontsize="medium")
        key = ax.get_legend_handles_labels()
        ax.get_legend().remove()
    figure.legend(*key, loc="outside upper center", ncols=len(key[1]), frameon=False)
    for ax in list(grid.flat)[len(chosen) :]:
        ax.remove()
    return figure


def plot_calibration(
    paths: npt.ArrayLike, targets: npt.ArrayLike, ax: Axes | None = None, *, bins: int = 20
) -> Axes:
    """Share of the targets below each quantile against its level; the diagonal is calibrated.

    An S through the diagonal from above to below is overconfidence, the reverse too wide a fan, a
    curve on one side a bias.

    Parameters
    ----------
    paths
        (N, S, h).
    targets
        (N, h); NaN = not observed.
    ax
        Where to draw; a new figure by default.
    bins
        Steps between the level 0 and 1.

    Returns
    -------
    Axes

    Raises
    ------
    StructDiffError
        As :func:`~structdiff.timeseries.metrics.quantile_calibration`; or no matplotlib.
    """
    levels = np.linspace(0, 1, bins + 1)
    share = quantile_calibration(paths, targets, list(levels))
    ax = _axes(ax, (3.8, 3.8))
    ax.plot([0, 1], [0, 1], color=GREY, linewidth=0.8, linestyle=":")
    ax.plot(levels, share, color=BLUE, marker="o", markersize=3)
    ax.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
    ax.set_xlabel("level of the quantile")
    ax.set_ylabel("share of targets below it")
    return _finish(ax)


def plot_pit(
    paths: npt.ArrayLike, targets: npt.ArrayLike, ax: Axes | None = None, *, bins: int = 10
) -> Axes:
    """Histogram of the targets' ranks among the paths (PIT), as density; flat is calibrated.

    Parameters
    ----------
    paths
        (N, S, h).
    targets
        (N, h); NaN = not observed.
    ax
        Where to draw; a new figure by default.
    bins
        Number of bars.

    Returns
    -------
    Axes

    Raises
    ------
    StructDiffError
        As :func:`~structdiff.timeseries.metrics.quantile_calibration`; or no matplotlib.
    """
    edges = np.linspace(0, 1, bins + 1)
    reached = probability_integral_transform(paths, targets, list(edges))
    density = np.diff(np.nanmean(reached, axis=(0, 2))) * bins
    ax = _axes(ax, (4.4, 3.0))
    ax.bar(edges[:-1], density, width=1 / bins, align="edge", color=BLUE, edgecolor="white")
    ax.axhline(1, color=GREY, linewidth=0.8, linestyle=":")
    ax.set_xlim(0, 1)
    ax.set_xlabel("rank of the target among the paths (PIT)")
    ax.set_ylabel("density")
    return _finish(ax)


# ---------------------------------------------------------------- what is drawn

Band = tuple[float, np.ndarray, np.ndarray]


def _fan(
    forecast: Any, levels: Sequence[float] | None, model: str
) -> tuple[np.ndarray, list[Band]]:
    """The middle (h,), and the bands (level, lower, upper), the widest first."""
    if not isinstance(forecast, pd.DataFrame):
        paths = np.asarray(forecast, dtype=float)
        if paths.ndim != 2:
            raise StructDiffError(f"paths of one series have the shape (S, h), not {paths.shape}")
        wanted = sorted((50, 80, 95) if levels is None else levels, reverse=True)
        ends = [central_interval(paths[None], level) for level in wanted]
        bands = [(k, low[0], up[0]) for k, (low, up) in zip(wanted, ends, strict=True)]
        return np.median(paths, axis=0), bands
    if model not in forecast.columns:
        raise StructDiffError(f"forecast: no column {model!r}; it has {list(forecast.columns)}")
    pairs = _interval_columns(forecast, model)
    wanted = sorted(pairs if levels is None else levels, reverse=True)
    absent = [level for level in wanted if level not in pairs]
    if absent:
        raise StructDiffError(
            f"forecast: no interval of {absent[0]:g} % for {model!r}; it has {sorted(pairs)}"
        )
    values = {level: [forecast[c].to_numpy(float) for c in pairs[level]] for level in wanted}
    return forecast[model].to_numpy(float), [(k, *values[k]) for k in wanted]


def _interval_columns(frame: pd.DataFrame, model: str) -> dict[float, tuple[str, str]]:
    """The columns of each central interval, from lo/hi pairs and from symmetric quantiles."""
    name = re.escape(model)
    ends: dict[float, dict[str, str]] = {}
    for column in map(str, frame.columns):
        if found := re.fullmatch(rf"{name}-(lo|hi)-(\d+(?:\.\d+)?)", column):
            ends.setdefault(float(found[2]), {})[found[1]] = column
        elif found := re.fullmatch(rf"{name}-q(0?\.\d+)", column):
            q = float(found[1])
            if q != 0.5:
                level = round(100 * abs(1 - 2 * q), 6)
                ends.setdefault(level, {}).setdefault("lo" if q < 0.5 else "hi", column)
    return {k: (v["lo"], v["hi"]) for k, v in ends.items() if len(v) == 2}


def _one(frame: pd.DataFrame, each: Any, id_col: str, time_col: str, target_col: str) -> pd.Series:
    """One series of a long frame, by time."""
    own = frame[frame[id_col] == each].drop_duplicates(time_col)
    return own.set_index(time_col)[target_col].sort_index()


def _after(index: pd.Index, h: int) -> pd.Index:
    """The h times that follow an index."""
    if isinstance(index, pd.PeriodIndex):
        return pd.period_range(index[-1] + 1, periods=h, freq=index.freq)
    if isinstance(index, pd.DatetimeIndex):
        step = index.freq or (pd.infer_freq(index) if len(index) > 2 else None)
        if step is None:
            raise StructDiffError("history: no frequency can be read from its index; give `times`")
        return pd.date_range(index[-1], periods=h + 1, freq=step)[1:]
    if not pd.api.types.is_integer_dtype(index) or not len(index):
        raise StructDiffError("history: its index is not one of times; give `times`")
    step = int(index[-1] - index[-2]) if len(index) > 1 else 1
    return pd.Index(index[-1] + step * np.arange(1, h + 1))


def _drawable(times: Any) -> Any:
    """What matplotlib takes: periods by their start."""
    index = pd.Index(times)
    return index.to_timestamp() if isinstance(index, pd.PeriodIndex) else index


# ---------------------------------------------------------------- matplotlib


def _pyplot() -> Any:
    try:
        from matplotlib import pyplot
    except ImportError as error:
        raise StructDiffError("plots need matplotlib: pip install 'structdiff[plots]'") from error
    return pyplot


def _axes(ax: Axes | None, size: tuple[float, float] = (6.4, 3.4)) -> Axes:
    if ax is not None:
        return ax
    _, made = _pyplot().subplots(figsize=size, layout="constrained")
    return made


def _tint(colour: str, strength: float) -> tuple[float, ...]:
    """A colour on white: opaque, so that a band looks like its entry in the legend."""
    from matplotlib.colors import to_rgb

    return tuple(1 - strength * (1 - part) for part in to_rgb(colour))


def _finish(ax: Axes) -> Axes:
    """Bare frame, and dates that say no more than they must."""
    from matplotlib import dates

    ax.spines[["top", "right"]].set_visible(False)
    if isinstance(ax.xaxis.get_major_locator(), dates.AutoDateLocator):
        locator = dates.AutoDateLocator(maxticks=6)
        ax.xaxis.set_major_locator(locator)
        ax.xaxis.set_major_formatter(dates.ConciseDateFormatter(locator))
    return ax
