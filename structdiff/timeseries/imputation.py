"""Fill what is missing inside series: windows around the gaps, sampled given what is known."""

from __future__ import annotations

from collections.abc import Hashable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from structdiff.errors import StructDiffError
from structdiff.timeseries.forecasting import forecast_columns
from structdiff.timeseries.frames import Panel
from structdiff.timeseries.freq import show
from structdiff.timeseries.sampling import WindowSampler, series_seeds
from structdiff.timeseries.windows import WindowMaker

Array = npt.NDArray[np.float64]


class Filled(NamedTuple):
    """Draws for the missing points of one series."""

    places: npt.NDArray[np.intp]
    """Which points, (M,)."""
    paths: Array
    """(S, M), in the units of the series."""


def plan(missing: npt.NDArray[np.intp], points: int, length: int) -> list[tuple[int, list[int]]]:
    """Windows that fill a series: their ends, and which points each of them fills.

    A window is laid around the first point that is not filled yet, as much of it before as after
    where the series allows, and fills every missing point of its middle half.

    Parameters
    ----------
    missing
        Places of missing points, increasing.
    points
        Of the series.
    length
        Of a window.
    """
    windows: list[tuple[int, list[int]]] = []
    rest = list(missing)
    while rest:
        first = int(rest[0])
        end = first + length - length // 4
        end = min(end, points) if points >= length else points
        end = max(end, min(length, points))
        # At the end of a series the window is all there is to fill from.
        last = points if end == points else end - length // 4
        filled = [int(p) for p in rest if p < last]
        windows.append((end, filled))
        rest = rest[len(filled) :]
    return windows


def impute_series(
    sampler: WindowSampler, panel: Panel, number: int, paths: int, seed: int
) -> Filled:
    """Draw the missing points of series ``number``.

    Windows come one after another, and each path goes on from what it drew before: the points of a
    gap that several windows fill belong together.

    Raises
    ------
    StructDiffError
        If a window around a gap has no observed point; it names the gap.
    """
    values, spec = panel.values[number], sampler.spec
    missing = np.flatnonzero(np.isnan(values))
    shape = (spec.context, spec.horizon, spec.lags, spec.scaling)
    maker = WindowMaker([values], *shape)
    drawn, done = np.empty((paths, len(missing))), 0
    for k, (end, places) in enumerate(plan(missing, len(values), spec.length)):
        begin = max(0, end - spec.length)
        if np.isnan(values[begin:end]).all():
            raise _nothing_known(panel, number, places[0], spec.length)
        reach = max(0, end - spec.length - max(spec.lags, default=0))
        before = missing[:done] >= reach
        if before.any():
            copies = np.tile(values[reach:end], (paths, 1))
            copies[:, missing[:done][before] - reach] = drawn[:, :done][:, before]
            maker_k, last, rows = WindowMaker(list(copies), *shape), end - reach, paths
        else:
            maker_k, last, rows = maker, end, 1
        cut = torch.full((rows,), last - spec.horizon)
        window = maker_k.batch(torch.arange(rows), cut, future=True)
        seeds = series_seeds(seed, panel.ids[number], paths, f"impute {k}")
        x = sampler.given(window.x, window.observed, seeds).cpu()
        inside = torch.as_tensor(places) - (end - spec.length)
        scale, shift = window.scale[:, None], window.shift[:, None]
        drawn[:, done : done + len(places)] = x[:, inside, 0].double() * scale + shift
        done += len(places)
    return Filled(missing, drawn)


def _nothing_known(panel: Panel, number: int, place: int, length: int) -> StructDiffError:
    """The error for a gap, one of whose points is ``place``, that outgrows a window."""
    seen = np.flatnonzero(~np.isnan(panel.values[number]))
    if not len(seen):
        return StructDiffError(
            f"{panel.label(number)}: all {len(panel.values[number])} values are missing; drop it"
        )
    after = int(np.searchsorted(seen, place))
    first = int(seen[after - 1]) + 1 if after else 0
    last = (int(seen[after]) if after < len(seen) else len(panel.values[number])) - 1
    times = panel.times[number]
    return StructDiffError(
        f"{panel.label(number)}: the gap of {last - first + 1} points from {show(times[first])} to "
        f"{show(times[last])} is too long for windows of {length} points; cut the series there, or "
        "fit a model with a longer context"
    )


def filled_columns(
    panel: Panel, filled: list[Filled], levels: list[float]
) -> dict[Hashable, list[Array]]:
    """The filled series and, for every level, the ends of the interval of each of its points.

    Parameters
    ----------
    panel
        Series with missing points.
    filled
        Draws for them, per series.
    levels
        Percents; an observed value is both ends of its interval.
    """
    # A series without a gap has nothing to take an interval of: any path stands for its none.
    paths = [f.paths if len(f.places) else np.zeros((1, 1)) for f in filled]
    columns: dict[Hashable, list[Array]] = {}
    for name, pick in forecast_columns(paths, levels).items():
        columns[name] = []
        for values, part, drawn in zip(panel.values, filled, pick, strict=True):
            whole = values.copy()
            whole[part.places] = drawn[: len(part.places)]
            columns[name].append(whole)
    return columns
