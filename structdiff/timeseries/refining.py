"""Refinement of another model's forecasts, from frames and series to windows and back."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from pandas.api.types import is_numeric_dtype
from torch import Tensor

from structdiff.denoisers import Denoiser
from structdiff.errors import StructDiffError
from structdiff.processes import DiscreteVP
from structdiff.samplers import Karras
from structdiff.timeseries.forecasting import as_long, shown
from structdiff.timeseries.frames import Panel
from structdiff.timeseries.freq import show
from structdiff.timeseries.refinement import (
    base_rows,
    forecast_entries,
    refine_windows,
    representative_time,
)
from structdiff.timeseries.sampling import ROWS, WindowSampler, series_seeds
from structdiff.timeseries.windows import WindowMaker

if TYPE_CHECKING:
    from structdiff.timeseries.forecaster import Forecaster

Array = npt.NDArray[np.float64]
_TIMES, _WINDOWS = 16, 128


@dataclass(frozen=True)
class Refinement:
    r"""How forecasts are refined; see :func:`~structdiff.timeseries.refinement.refine_windows`.

    Parameters
    ----------
    method
        ``"langevin"`` or ``"ml"``.
    regularizer
        ``"squared"`` (the forecast is free, its context is held) or ``"quantile"`` (every path is
        drawn to its own quantile of the base).
    iterations, step, noise_scale, weight
        A step of None is the paper's 0.1, or less where that would overshoot. The published noise
        scale is 0.1; with 0.5 a point forecast becomes spread enough to gain about twice as much
        (``benchmarks/tsdiff_choices.py``).
    """

    method: str = "langevin"
    regularizer: str = "squared"
    iterations: int = 20
    step: float | None = None
    noise_scale: float = 0.5
    weight: float = 1.0

    def __call__(
        self,
        sampler: WindowSampler,
        panel: Panel,
        number: int,
        base: Array,
        paths: int,
        time: float,
        seed: int,
    ) -> Array:
        """Refined paths (S, h) of series ``number``.

        Parameters
        ----------
        sampler
            The trained model.
        panel
            Series up to the forecast.
        number
            Which one.
        base
            Paths (S, h) or points (h,), in the units of the series.
        paths
            S that points are made into.
        time
            Of the energy.
        seed
            Of the call.
        """
        spec, device = sampler.spec, next(sampler.denoiser.parameters()).device
        history = panel.values[number]
        # Sorted at every step, so that row i stands for the i-th quantile.
        rows = base_rows(base[None], paths)
        drawn = np.asarray(rows.values, dtype=np.float64)
        start, observed, scale, shift = _windows(history, drawn, sampler)
        missing = ~observed
        missing[:, spec.context :] = False
        seeds = series_seeds(seed, panel.ids[number], len(drawn), "refine")
        levels = rows.levels if self.regularizer == "quantile" else None
        free = forecast_entries(spec.length, spec.horizon, spec.channels).to(device)
        parts = []
        for first in range(0, len(drawn), ROWS):
            part = slice(first, first + ROWS)
            refined = refine_windows(
                sampler.denoiser,
                start[part].to(device),
                time=time,
                free=free if self.regularizer == "squared" else None,
                method=self.method,  # type: ignore[arg-type]
                regularizer=self.regularizer,  # type: ignore[arg-type]
                levels=None if levels is None else levels[part].to(device),
                missing=missing[part].to(device),
                iterations=self.iterations,
                step=self.step,
                noise_scale=self.noise_scale,
                weight=self.weight,
                source=seeds[part].to(device),
            )
            parts.append(refined[:, spec.context :, 0].double().cpu())
        result: Array = (torch.cat(parts) * scale[:, None] + shift[:, None]).numpy()
        return result


def _windows(
    history: Array, drawn: Array, sampler: WindowSampler
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Scaled windows with the base in their horizon (and its lags), what is observed, scales."""
    spec, count = sampler.spec, len(drawn)
    shape = (spec.context, spec.horizon, spec.lags, spec.scaling)
    series = [np.concatenate([history, path]) for path in drawn]
    made = WindowMaker(series, *shape, fill=True).batch(
        torch.arange(count), torch.full((count,), len(history)), future=True
    )
    return made.x, made.observed, made.scale, made.shift


def refinement_time(denoiser: Denoiser, windows: Tensor, seed: int) -> float:
    """The representative noise level of training windows (N, L, C), as a time."""
    system = denoiser.system
    process = system.processes["x"]
    if isinstance(process, DiscreteVP):
        times = process.trailing(min(_TIMES, process.links))
    else:
        times = Karras().times(system, _TIMES)
    return representative_time(denoiser, windows[:_WINDOWS], times, seed)


def _times(column: pd.Series, ahead: pd.Index, label: str) -> pd.Index:
    """The times of forecasts as those of the series: other libraries have other resolutions."""
    try:
        return pd.Index(column).astype(ahead.dtype)
    except (TypeError, ValueError) as error:
        raise StructDiffError(
            f"{label}: its times are {ahead.dtype}, those of its forecasts {column.dtype}: {error}"
        ) from error


def base_forecasts(
    panel: Panel, forecasts: Any, h: int, names: Forecaster, column: Hashable | None
) -> list[Array]:
    """Base paths (S, h) or points (h,) of every series of a panel, from a frame.

    Raises
    ------
    StructDiffError
        If a series has no forecast, or one of another horizon, start or with missing values.
    """
    if not isinstance(forecasts, (pd.DataFrame, pd.Series)):
        raise StructDiffError(f"forecasts must be a frame, got {type(forecasts).__name__}")
    # As for pictures: the layout of the series says how the forecasts' frame is read.
    frame = as_long(panel, forecasts, names.id_col, names.time_col, names.target_col)
    taken = {names.id_col, names.time_col, "sample", "cutoff"}
    values = [c for c in frame.columns if c not in taken]
    if column is None and len(values) != 1:
        column = next((c for c in ("TSDiff", names.target_col) if c in values), None)
    chosen = values[0] if column is None and len(values) == 1 else column
    if chosen not in frame.columns:
        raise StructDiffError(f"which column is the forecast? Name one of {values} with column=")
    if not is_numeric_dtype(frame[chosen]):
        raise StructDiffError(f"the forecasts in {chosen!r} are {frame[chosen].dtype}, not numbers")
    keys = ["sample"] if "sample" in frame.columns else []
    by = dict(list(frame.groupby(names.id_col, sort=False, observed=True)))
    result = []
    for i, ahead in enumerate(panel.future(h)):
        own = by.get(shown(panel.ids[i]))
        if own is None:
            raise StructDiffError(f"{panel.label(i)} has no forecast in the frame to refine")
        own = own.sort_values([*keys, names.time_col], kind="stable")
        paths = own[chosen].to_numpy(np.float64, na_value=np.nan)
        times = _times(own[names.time_col], ahead, panel.label(i))
        # Every path, and one where there are no numbers of paths, has the h times ahead.
        count = own["sample"].nunique() if keys else 1
        if len(paths) != count * h or not times.equals(ahead.append([ahead] * (count - 1))):
            each = "" if count == 1 else f" in {count} paths"
            raise StructDiffError(
                f"{panel.label(i)}: the model refines {h} points from {show(ahead[0])} on, the "
                f"forecasts have {len(paths)}{each} from {show(times[0])} to {show(times[-1])}"
            )
        wrong = ~np.isfinite(paths)
        if wrong.any():
            raise StructDiffError(
                f"{panel.label(i)}: the forecast at {show(times[int(wrong.argmax())])} is missing "
                "or infinite"
            )
        result.append(paths.reshape(-1, h) if keys else paths)
    return result
