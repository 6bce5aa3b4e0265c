"""Fill what is missing inside series: windows around the gaps, sampled given what is known."""

from __future__ import annotations

from collections.abc import Hashable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

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

    Raises
    ------
    StructDiffError
        If a window around a gap has no observed point; it names the gap.
    """
    values, spec = panel.values[number], sampler.spec
    missing = np.flatnonzero(np.isnan(values))
    maker = WindowMaker([values], spec.context, spec.horizon, spec.lags, spec.scaling)
    drawn: list[Array] = []
    for k, (end, places) in enumerate(plan(missing, len(values), spec.length)):
        window = maker.batch(torch.tensor([0]), torch.tensor([end - spec.horizon]), future=True)
        if not bool(window.observed[..., 0].any()):
            raise StructDiffError(
                f"{panel.label(number)}: nothing is known within {spec.length} points around "
                f"{show(panel.times[number][places[0]])}; cut the series there, or fit a model "
                "with a longer context"
            )
        seeds = series_seeds(seed, panel.ids[number], paths, f"impute {k}")
        x = sampler.given(window.x, window.observed, seeds).cpu()
        inside = torch.as_tensor(places) - (end - spec.length)
        drawn.append(_units(x[:, inside, 0], window.scale, window.shift))
    return Filled(missing, np.concatenate(drawn, axis=1) if drawn else np.empty((paths, 0)))


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
    columns: dict[Hashable, list[Array]] = {}
    for name, pick in forecast_columns([f.paths for f in filled], levels).items():
        columns[name] = []
        for values, part, drawn in zip(panel.values, filled, pick, strict=True):
            whole = values.copy()
            whole[part.places] = drawn
            columns[name].append(whole)
    return columns


def _units(x: Tensor, scale: Tensor, shift: Tensor) -> Array:
    values: Array = (x.double() * scale + shift).numpy()
    return values
