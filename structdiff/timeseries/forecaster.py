"""A trained model of windows asked for forecasts: what every use of it shares."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from tqdm import tqdm

from structdiff.arguments import whole, whole_seed
from structdiff.denoisers import Denoiser
from structdiff.devices import sampling_device
from structdiff.errors import StructDiffError
from structdiff.guidance import GaussianCovariance
from structdiff.timeseries.forecasting import (
    check_levels,
    check_quantiles,
    forecast_columns,
    path_frame,
)
from structdiff.timeseries.frames import Panel, read_panel
from structdiff.timeseries.models import ModelSpec
from structdiff.timeseries.sampling import WindowSampler, choose_sampler, series_seeds

Array = npt.NDArray[np.float64]


class Forecaster:
    """Forecasts of a model whose parts :class:`~structdiff.timeseries.TSDiff` holds."""

    id_col: Hashable
    time_col: Hashable
    target_col: Hashable
    fill_gaps: bool
    snap: bool
    accelerator: str
    guidance: str | None
    guidance_scale: float | None
    sampler: Any
    steps: int | None
    n_samples: int
    random_state: int | None
    progress: bool

    denoiser_: Denoiser
    spec_: ModelSpec
    covariance_: GaussianCovariance
    freq_: str | int
    panel_: Panel

    def _read(self, df: Any, freq: Any) -> Panel:
        return read_panel(
            df, freq, self.id_col, self.time_col, self.target_col, self.fill_gaps, self.snap
        )

    def predict(
        self, df: Any = None, h: int | None = None, level: Any = None, quantiles: Any = None
    ) -> Any:
        """Forecast the points after the end of every series.

        Parameters
        ----------
        df
            Series to go on with; None is the training frame. They need not be those of training.
        h
            Points ahead; None is the model's. More are reached by windows one after another.
        level
            Percents of central intervals, such as ``[80, 95]``.
        quantiles
            Quantile levels, such as ``[0.1, 0.9]``.

        Returns
        -------
        DataFrame
            In the shape of the frame: ``TSDiff`` (the median), ``TSDiff-lo-80``,
            ``TSDiff-hi-80``, ``TSDiff-q0.1`` ...

        Raises
        ------
        StructDiffError
            If the model is not fitted, a series is all missing where the model looks, or a level
            is out of range.
        """
        check_levels(level), check_quantiles(quantiles)
        panel = self.panel_of(df)
        steps = self._horizon(h)
        columns = forecast_columns(self.panel_paths(panel, steps), level, quantiles)
        return panel.restore(columns, panel.future(steps))

    def sample_paths(
        self, df: Any = None, h: int | None = None, n_samples: int | None = None
    ) -> pd.DataFrame:
        """The sample paths themselves; ``df`` and ``h`` as for :meth:`predict`.

        Returns
        -------
        DataFrame
            Long: columns ``sample`` and ``TSDiff``, one path after another. Wide: the number of
            the path as a column level.
        """
        panel, steps = self.panel_of(df), self._horizon(h)
        return path_frame(panel, self.panel_paths(panel, steps, n_samples), panel.future(steps))

    def panel_paths(
        self,
        panel: Panel,
        h: int | None = None,
        n_samples: int | None = None,
        seed: int | None = None,
    ) -> list[Array]:
        """Sample paths after the end of every series, (S, h) each, in its units.

        Parameters
        ----------
        panel
            Series.
        h, n_samples
            None is the model's.
        seed
            None is ``random_state``, or fresh randomness without one.
        """
        sampler, steps = self.window_sampler(), self._horizon(h)
        panel.require_observed(sampler.spec.context)
        paths, seed = self._paths(n_samples), self.sampling_seed(seed)
        names = zip(panel.ids, panel.values, strict=True)
        bar = tqdm(names, "sampling", len(panel), unit="series", disable=not self.progress)
        return [
            sampler.forecast(values, steps, series_seeds(seed, name, paths)) for name, values in bar
        ]

    def panel_of(self, df: Any) -> Panel:
        """Read a frame under the model's frequency; None is the training frame.

        Raises
        ------
        StructDiffError
            If there is no training frame, as after ``from_pretrained``, or the series are of
            another frequency.
        """
        self._check_fitted()
        if df is None:
            if not hasattr(self, "panel_"):
                raise StructDiffError("a loaded model has no training frame: pass the series as df")
            return self.panel_
        try:
            panel = self._read(df, self.freq_)
        except StructDiffError:
            self._check_frequency(df)
            raise
        # Months read as hours and filled up are hardly anything but gaps.
        if sum(int(np.isnan(v).sum()) for v in panel.values) > sum(map(len, panel.values)) / 2:
            self._check_frequency(df)
        return panel

    def _check_frequency(self, df: Any) -> None:
        """Raise StructDiffError if a frame clearly has another frequency than the model."""
        try:
            found = read_panel(
                df, None, self.id_col, self.time_col, self.target_col, fill_gaps=True
            ).freq
        except StructDiffError:  # a frame with other faults, of which it is told elsewhere
            return
        # Integers under dates have their own advice.
        if isinstance(found, str) and isinstance(self.freq_, str) and found != self.freq_:
            raise StructDiffError(
                f"the series have frequency {found!r}, and the model was trained on "
                f"{self.freq_!r}: fit a model to them, or resample them"
            )

    def window_sampler(self) -> WindowSampler:
        """The trained model with its sampler and guidance, on the device of ``accelerator``."""
        self._check_fitted()
        denoiser = self.denoiser_.to(sampling_device(self.accelerator))
        kind = self.guidance or self.spec_.guidance["kind"]
        own = kind == self.spec_.guidance["kind"]
        scale = self.guidance_scale
        if scale is None and own:
            scale = self.spec_.guidance["scale"]
        chosen = choose_sampler(self.spec_, denoiser, self.sampler, self.steps)
        return WindowSampler(denoiser, self.spec_, self.covariance_, chosen, kind, scale)

    def sampling_seed(self, seed: int | None = None) -> int:
        """The seed of a call: its own, else ``random_state``, else a fresh one."""
        chosen = self.random_state if seed is None else seed
        known = whole_seed("random_state" if seed is None else "seed", chosen)
        if known is None:
            return int(np.random.SeedSequence().generate_state(1, np.uint64)[0] >> 1)
        return known

    def _check_fitted(self) -> None:
        if not hasattr(self, "denoiser_"):
            raise StructDiffError("this TSDiff is not fitted: call fit or from_pretrained")

    def _horizon(self, h: int | None) -> int:
        self._check_fitted()
        return self.spec_.horizon if h is None else whole("h", h)

    def _paths(self, n_samples: int | None) -> int:
        return whole("n_samples", self.n_samples if n_samples is None else n_samples)
