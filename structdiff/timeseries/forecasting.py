"""From sample paths to the columns of a result frame, in the caller's shape."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from structdiff.arguments import whole
from structdiff.errors import StructDiffError
from structdiff.timeseries.calibration import central_interval
from structdiff.timeseries.frames import Panel
from structdiff.timeseries.layout import Layout
from structdiff.timeseries.scores import sample_quantiles

MODEL = "TSDiff"
Array = npt.NDArray[np.float64]


def check_levels(level: Any) -> list[float]:
    """Percents of central intervals, increasing; a number is one of them.

    Raises
    ------
    StructDiffError
        If one is not between 0 and 100.
    """
    what = "a level is percent between 0 and 100, such as 80"
    return _between(level, 100, what)


def check_quantiles(quantiles: Any) -> list[float]:
    """Quantile levels, increasing; a number is one of them.

    Raises
    ------
    StructDiffError
        If one is not between 0 and 1.
    """
    return _between(quantiles, 1, "a quantile lies between 0 and 1, such as 0.9")


def _between(values: Any, limit: float, what: str) -> list[float]:
    """Distinct numbers between 0 and a limit, increasing; None is none of them."""
    each = [] if values is None else np.atleast_1d(np.asarray(values, dtype=object)).tolist()
    for value in each:
        number = isinstance(value, (int, float, np.number)) and not isinstance(value, bool)
        if not number or not 0 < float(value) < limit:
            raise StructDiffError(f"{what}, not {value!r}")
    return sorted({float(value) for value in each})


def forecast_columns(
    paths: Sequence[Array], level: Any = None, quantiles: Any = None
) -> dict[Hashable, list[Array]]:
    """Columns of a forecast: the median, ``lo`` and ``hi`` of every level, every quantile.

    Parameters
    ----------
    paths
        Per series, (S, h).
    level
        Percents of central intervals.
    quantiles
        Quantile levels, by the rule of gluonts (the nearest of the sorted paths).

    Returns
    -------
    dict
        ``TSDiff``, ``TSDiff-lo-95``, ``TSDiff-lo-80``, ``TSDiff-hi-80``, ``TSDiff-hi-95``,
        ``TSDiff-q0.1`` ..., each an array (h,) per series.
    """
    levels, chosen = check_levels(level), check_quantiles(quantiles)
    columns: dict[Hashable, list[Array]] = {MODEL: [np.median(p, axis=0) for p in paths]}
    ends = {v: [central_interval(p[None], float(v)) for p in paths] for v in levels}
    for value in reversed(levels):
        columns[f"{MODEL}-lo-{value:g}"] = [low[0] for low, _ in ends[value]]
    for value in levels:
        columns[f"{MODEL}-hi-{value:g}"] = [high[0] for _, high in ends[value]]
    for value in chosen:
        columns[f"{MODEL}-q{value:g}"] = [sample_quantiles(p[None], [value])[0, 0] for p in paths]
    return columns


def path_frame(panel: Panel, paths: Sequence[Array], times: list[pd.Index]) -> pd.DataFrame:
    """Every path: long with a column ``sample``, or wide with the path's number as column level.

    Parameters
    ----------
    panel
        Whose layout is kept.
    paths
        Per series, (S, h).
    times
        Per series, its h times.
    """
    if panel.layout == "wide":
        count = len(paths[0])
        frame = panel.restore({i: [p[i] for p in paths] for i in range(count)}, times)
        return pd.DataFrame(frame)
    repeated = [t.append([t] * (len(p) - 1)) for t, p in zip(times, paths, strict=True)]
    numbers = [np.repeat(np.arange(len(p)), p.shape[1]) for p in paths]
    values = [p.reshape(-1) for p in paths]
    return pd.DataFrame(panel.restore({"sample": numbers, MODEL: values}, repeated))


def cutoffs(panel: Panel, h: int, n_windows: int, step_size: int | None) -> Iterable[int]:
    """How many points are cut from the end of each series for every window, the earliest first.

    Raises
    ------
    StructDiffError
        If a number is below 1, or a series is too short for the first window.
    """
    step = h if step_size is None else step_size
    for name, value in (("n_windows", n_windows), ("step_size", step), ("h", h)):
        whole(name, value)
    first = h + (n_windows - 1) * step
    for i, values in enumerate(panel.values):
        if len(values) <= first:
            raise StructDiffError(
                f"{panel.label(i)} has {len(values)} points; {n_windows} windows of {h} points, "
                f"{step} apart, need more than {first}: take fewer windows"
            )
    return [first - k * step for k in range(n_windows)]


def with_cutoff(frame: pd.DataFrame, known: Panel, time_col: Hashable) -> pd.DataFrame:
    """A result frame with the last known time of its series, as column ``cutoff`` after the time.

    A wide frame, which has one time for all its series, gets it as an outer index level.
    """
    if known.layout == "wide":
        return pd.concat({known.times[0][-1]: frame}, names=["cutoff"])
    counts = len(frame) // len(known)
    ends = [t[-1:].repeat(counts) for t in known.times]
    frame = frame.copy()
    place = list(frame.columns).index(time_col) + 1 if time_col in frame.columns else 0
    frame.insert(place, "cutoff", ends[0].append(ends[1:]).to_series().array)
    return frame


def plain(panel: Panel, id_col: Hashable, time_col: Hashable, target_col: Hashable) -> Panel:
    """The same series, to be written as a long frame with three plain columns."""
    layout = Layout(
        "long",
        time=time_col,
        target=target_col,
        id=id_col,
        id_place="column",
        order=[id_col, time_col, target_col],
        dtypes={target_col: np.dtype(np.float64)},
    )
    names = [shown(name) for name in panel.ids]
    labels = pd.Series(names, dtype=None if panel.ids[0] is None else object).array
    return replace(panel, ids=names, source=layout, labels=labels)


def shown(name: Any) -> Any:
    """The id of a series in plain long frames: of a column of several levels, they in one."""
    if name is None:
        return "series"
    return ", ".join(map(str, name)) if isinstance(name, tuple) else name


def as_long(
    panel: Panel, frame: Any, id_col: Hashable, time_col: Hashable, target_col: Hashable
) -> pd.DataFrame:
    """A result frame in the caller's shape as a long one with plain columns.

    Parameters
    ----------
    panel
        Whose layout the frame has.
    frame
        Result of a forecast or of a cross-validation.
    id_col, time_col, target_col
        Names that the columns get.
    """
    whole = frame.to_frame(MODEL) if isinstance(frame, pd.Series) else frame
    if not {id_col, time_col} <= set(
        whole.columns
    ):  # forecasts are often long where series are not
        spread = _from_long if panel.layout == "long" else _from_wide
        whole = spread(panel, whole, id_col, time_col)
    target = panel.source.target
    return whole if target == target_col else whole.rename(columns={target: target_col})


def _from_long(
    panel: Panel, whole: pd.DataFrame, id_col: Hashable, time_col: Hashable
) -> pd.DataFrame:
    """A long frame's index levels as columns, under the names asked for."""
    source = panel.source
    if source.index_names:
        names = [time_col, id_col] if source.time_first else [id_col, time_col]
        return whole.rename_axis(index=names).reset_index()
    if source.id_place == "index" or source.time_place == "index":
        name = id_col if source.id_place == "index" else time_col
        whole = whole.rename_axis(index=name).reset_index()
    if source.id is None:
        whole = whole.copy()
        whole[id_col] = "series"
    return whole


def _columns_of(whole: pd.DataFrame, name: Hashable) -> pd.DataFrame | pd.Series | None:
    """What a wide frame holds of one series; None if it has no such columns."""
    if not isinstance(name, tuple):
        return whole[name] if name in whole.columns else None
    # By place: pandas warns of a slow look-up among columns of several levels out of order.
    places = [i for i, column in enumerate(whole.columns) if column[: len(name)] == name]
    part = whole.iloc[:, places]
    if whole.columns.nlevels == len(name):
        return part.iloc[:, 0] if places else None
    part.columns = part.columns.get_level_values(-1)
    return part if places else None


def _from_wide(
    panel: Panel, whole: pd.DataFrame, id_col: Hashable, time_col: Hashable
) -> pd.DataFrame:
    """The series of a wide frame one below the other, as far as it has them."""
    source, before = panel.source, list(whole.index.names)
    if source.time_place == "column":
        place = next(
            (c for c in whole.columns if source.time in (c, c[0] if isinstance(c, tuple) else c)),
            None,
        )
        if place is None:
            raise StructDiffError(f"the frame has no column {source.time!r} for the time")
        times = pd.Index(whole[place])
    else:
        times = whole.index.get_level_values(-1)
    cut = whole.index.get_level_values("cutoff") if "cutoff" in before else None
    parts = []
    for name in panel.ids:
        one = whole if source.is_series else _columns_of(whole, name)
        if one is None:
            continue
        part = one.to_frame(MODEL) if isinstance(one, pd.Series) else one.copy()
        part.insert(0, id_col, shown(name))
        part.insert(1, time_col, times)
        if cut is not None:
            part.insert(2, "cutoff", cut)
        parts.append(part.reset_index(drop=True))
    if not parts:
        raise StructDiffError(
            f"the frame has none of the series; its columns are {list(whole.columns)[:8]}"
        )
    return pd.concat(parts, ignore_index=True)
