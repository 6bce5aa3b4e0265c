"""Forecast, fill, refine and synthesise series with one diffusion model of windows.

TSDiff (Kollovieh et al., NeurIPS 2023) trains without conditions and conditions when it samples.

>>> from structdiff.timeseries import TSDiff
>>> model = TSDiff(h=24).fit(frame)                     # columns unique_id, ds, y; or a wide frame
>>> model.predict(level=[80, 95])
>>> filled = model.impute(frame_with_gaps)
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from sklearn.base import BaseEstimator

from structdiff.timeseries.frames import Panel
from structdiff.timeseries.models import (
    build_denoiser,
    check_guidance,
    choose_context,
    choose_lags,
    new_spec,
    set_prior,
)
from structdiff.timeseries.refining import refinement_time
from structdiff.timeseries.season import seasonality_of
from structdiff.timeseries.settings import check_settings
from structdiff.timeseries.storage import SavedWindowModel
from structdiff.timeseries.uses import SeriesUses

Array = npt.NDArray[np.float64]


class TSDiff(SeriesUses, SavedWindowModel, BaseEstimator):
    """A generative model of windows of series: one training, many uses.

    Frames are long (columns for id, time and value), wide (a DatetimeIndex and one column per
    series) or a single Series; answers come in the same shape. NaN is a missing value. The frames
    handed in are never changed.

    Parameters
    ----------
    h
        Horizon: points ahead that a window holds. Other horizons can be asked for when predicting.
    freq
        Frequency; inferred where it can be.
    context
        Points of the past that a window holds; by default as many as the frequency suggests and the
        series can teach (:func:`structdiff.timeseries.models.choose_context`).
    lags
        Distances of lagged copies beside the series, ``"auto"`` or None.
    scaling
        ``"standard"`` or ``"mean"``, see :mod:`structdiff.timeseries.windows`.
    preset
        ``"paper"``: exact S4, 100 DDPM steps, mean scaling, quantile guidance, as published.
    kernel, hidden, blocks, state_size, network_settings
        Of the network, see :class:`~structdiff.timeseries.networks.TSDiffNetwork`.
    guidance
        ``"covariance"``, ``"quantile"`` (TSDiff-Q) or ``"squared"`` (TSDiff-MS); None is the
        model's own.
    guidance_scale
        s of the last two.
    sampler, steps
        Name of a sampler or a :class:`~structdiff.samplers.Sampler`, and its steps; by default the
        model's own, 20 steps of DPM-Solver++.
    n_samples
        Sample paths per series.
    batch_size, max_steps, max_minutes, learning_rate
        Of training, which stops after the steps or the minutes, whichever come first.
    checkpoint_every
        Optimiser steps between checkpoints, when ``fit`` is given a folder.
    accelerator
        Where to train and sample: ``"auto"``, ``"cpu"`` or ``"gpu"``.
    fill_gaps, snap
        Insert absent timestamps as missing values; move jittered ones to the grid.
    id_col, time_col, target_col
        Columns of long frames.
    random_state
        Seeds weights, data order, noise and, unless a call gives its own, sampling.
    progress
        Show progress bars.

    Attributes
    ----------
    denoiser_ : Denoiser
        The trained model; works with every sampler of :mod:`structdiff.samplers`.
    spec_ : ModelSpec
        What it is made of.
    covariance_ : GaussianCovariance
        Of the scaled training windows.
    freq_ : str or int
        Frequency of the training series.
    levels_ : numpy.ndarray
        Shift, scale, lowest and highest scaled value of training windows, (N, 4): what brings
        synthetic series into the units of the data.
    refinement_time_ : float
        Noise level, as a time, at which refinement asks the model.
    training_ : dict
        Record of the training.
    """

    panel_: Panel

    def __init__(
        self,
        h: int = 24,
        *,
        freq: Any = None,
        context: int | None = None,
        lags: str | Sequence[int] | None = "auto",
        scaling: str = "standard",
        preset: str | None = None,
        kernel: str = "s4d",
        hidden: int = 64,
        blocks: int = 3,
        state_size: int = 64,
        network_settings: dict[str, Any] | None = None,
        guidance: str | None = None,
        guidance_scale: float | None = None,
        sampler: Any = None,
        steps: int | None = None,
        n_samples: int = 100,
        batch_size: int = 64,
        max_steps: int = 1000,
        max_minutes: float | None = None,
        learning_rate: float = 1e-3,
        checkpoint_every: int = 500,
        accelerator: str = "auto",
        fill_gaps: bool = False,
        snap: bool = False,
        id_col: Hashable = "unique_id",
        time_col: Hashable = "ds",
        target_col: Hashable = "y",
        random_state: int | None = None,
        progress: bool = True,
    ) -> None:
        self.h = h
        self.freq = freq
        self.context = context
        self.lags = lags
        self.scaling = scaling
        self.preset = preset
        self.kernel = kernel
        self.hidden = hidden
        self.blocks = blocks
        self.state_size = state_size
        self.network_settings = network_settings
        self.guidance = guidance
        self.guidance_scale = guidance_scale
        self.sampler = sampler
        self.steps = steps
        self.n_samples = n_samples
        self.batch_size = batch_size
        self.max_steps = max_steps
        self.max_minutes = max_minutes
        self.learning_rate = learning_rate
        self.checkpoint_every = checkpoint_every
        self.accelerator = accelerator
        self.fill_gaps = fill_gaps
        self.snap = snap
        self.id_col = id_col
        self.time_col = time_col
        self.target_col = target_col
        self.random_state = random_state
        self.progress = progress

    # --- training ----------------------------------------------------------------------------
    def fit(
        self,
        df: Any,
        y: None = None,
        *,
        out: str | Path | None = None,
        resume: bool = False,
    ) -> TSDiff:
        """Train on the series of a frame.

        Parameters
        ----------
        df
            Long or wide frame, or a Series.
        y
            Ignored; there for scikit-learn's habits.
        out
            Folder for checkpoints and the log; None keeps neither.
        resume
            Continue the run in ``out``: the same frame and settings give the same model as an
            uninterrupted run.

        Raises
        ------
        StructDiffError
            If the frame is not a set of regular series, or none is long enough.
        CheckpointError
            If ``out`` already holds a run and ``resume`` is False.
        """
        return self.fit_panel(self._read(df, self.freq), out=out, resume=resume)

    def fit_panel(
        self, panel: Panel, *, out: str | Path | None = None, resume: bool = False
    ) -> TSDiff:
        """Train on series that were read already; see :meth:`fit`."""
        from structdiff.timeseries.training import TrainingWindows, train

        check_settings(self)
        horizon = int(self.h)
        season = seasonality_of(panel.freq)
        longest = max(len(v) for v in panel.values)
        points = int(sum(np.isfinite(v).sum() for v in panel.values))
        if self.guidance is not None:
            check_guidance(self.guidance)
        spec = new_spec(
            context=choose_context(self.context, horizon, season, longest, points),
            horizon=horizon,
            lags=choose_lags(self.lags, season, self.preset),
            points=points,
            preset=self.preset,
            scaling=self.scaling,  # type: ignore[arg-type]
            kernel=self.kernel,
            hidden=self.hidden,
            blocks=self.blocks,
            state_size=self.state_size,
            network_settings=self.network_settings or {},
        )
        usable = panel.at_least(spec.reach + horizon)
        windows = TrainingWindows(usable, spec, self._seed())
        self.spec_ = spec.with_rank(len(windows.prior.values))
        self.covariance_, self.freq_, self.panel_ = windows.prior, panel.freq, panel
        self.levels_ = windows.levels()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self._seed())
            self.denoiser_ = build_denoiser(self.spec_)
        set_prior(self.denoiser_, windows.prior)
        self.window_sampler()  # an impossible one is an error now, not after the training
        self.training_ = train(self, windows, out, resume)
        self.training_ |= {"series": len(usable), "left_out": len(panel) - len(usable)}
        self.denoiser_.eval().requires_grad_(False)
        self.refinement_time_ = refinement_time(self.denoiser_, windows.sample.x, self._seed())
        return self

    def _seed(self) -> int:
        return 0 if self.random_state is None else int(self.random_state)

    # --- elsewhere ---------------------------------------------------------------------------
    def to_gluonts(self, prediction_length: int | None = None, *, lead_time: int = 0) -> Any:
        """The model as a gluonts predictor.

        Parameters
        ----------
        prediction_length
            None is the model's horizon.
        lead_time
            Points between the end of a series and its forecast.
        """
        from structdiff.timeseries.gluonts import predictor_of

        return predictor_of(self, prediction_length, lead_time=lead_time)
