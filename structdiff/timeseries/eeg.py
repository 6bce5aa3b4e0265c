"""Diffusion models of EEG: mne objects in, mne objects with the same info out (extra ``[eeg]``).

>>> from structdiff.timeseries.eeg import EEGDiffusion, evaluate_eeg
>>> model = EEGDiffusion(random_state=0).fit(train_epochs)       # mne.Epochs
>>> synthetic = model.synthesize(200, event="square")            # mne.EpochsArray
>>> test_epochs.info["bads"] = ["Cz"]
>>> repaired = model.impute(test_epochs)                         # only what is missing changes
>>> evaluate_eeg(test_epochs, synthetic, train=train_epochs)
>>> model = EEGDiffusion(window=2.0).fit(raw)                    # continuous recordings
>>> next_second = model.forecast(raw, duration=1.0)              # mne.io.RawArray
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from sklearn.base import BaseEstimator
from torch import Tensor

from structdiff.arguments import whole
from structdiff.devices import sampling_device
from structdiff.errors import StructDiffError
from structdiff.samplers import get_sampler
from structdiff.timeseries import eeg_repair, eeg_sampling
from structdiff.timeseries.eeg_data import (
    ChannelScale,
    Floats,
    Instance,
    check_channels,
    check_finite,
    check_length,
    good_channels,
    import_mne,
    is_raw,
    loaded,
    missing_entries,
    picked_info,
    replaced,
    voltages,
)
from structdiff.timeseries.eeg_metrics import evaluate_eeg, event_names
from structdiff.timeseries.eeg_model import skip_of, spec_of, train, training_data
from structdiff.timeseries.eeg_plots import plot_eeg
from structdiff.timeseries.eeg_storage import SavedEEGModel

if TYPE_CHECKING:
    import mne
    from matplotlib.figure import Figure


__all__ = ["EEGDiffusion", "evaluate_eeg", "plot_eeg"]


class EEGDiffusion(SavedEEGModel, BaseEstimator):
    """A generative model of EEG windows: synthesis per event, imputation, forecasts.

    Of the channels, a saved model holds names, positions and sampling rate; nothing about the
    subject or the time of the recording is stored.

    Parameters
    ----------
    window
        Seconds of a window, for continuous recordings; epochs have their own.
    picks
        Which channels: a type ("eeg"), or names. Those in ``info["bads"]`` are left out.
    rank
        Of the low-rank covariance that imputation falls back to where much is missing.
    hidden, blocks, state_size, kernel
        Of the network, :class:`~structdiff.timeseries.networks.TSDiffNetwork`.
    sampler, steps
        A name of :data:`structdiff.samplers.SAMPLERS`, and its steps.
    n_samples
        Paths that a posterior mean averages, an even number.
    batch_size, max_steps, learning_rate, ema_decay
        Of training; a batch also is how many windows are sampled at a time.
    accelerator
        Where to train and sample: "auto", "cpu" or "gpu".
    random_state
        Seeds initial weights, data order, noise and, unless a call gives its own, sampling.
    progress
        Show progress bars.

    Attributes
    ----------
    denoiser_ : Denoiser
        The trained model of scaled windows {x: (B, L, C)}.
    spec_ : EEGSpec
        Channels, sampling rate, length, events.
    info_ : mne.Info
        Of the training data, for the model's channels.
    scale_ : ChannelScale
        Centre and scale per channel, microvolts.
    means_ : torch.Tensor
        What is taken off the scaled epochs of every event type, (E, L, C).
    training_ : dict
        Steps, windows, seed and loss of the training.
    """

    def __init__(
        self,
        *,
        window: float = 2.0,
        picks: str | Sequence[str] = "eeg",
        rank: int = 1024,
        hidden: int = 64,
        blocks: int = 3,
        state_size: int = 64,
        kernel: str = "s4d",
        sampler: str = "dpm++",
        steps: int = 20,
        n_samples: int = 4,
        batch_size: int = 32,
        max_steps: int = 300,
        learning_rate: float = 1e-3,
        ema_decay: float = 0.99,
        accelerator: str = "auto",
        random_state: int | None = None,
        progress: bool = True,
    ) -> None:
        self.window = window
        self.picks = picks
        self.rank = rank
        self.hidden = hidden
        self.blocks = blocks
        self.state_size = state_size
        self.kernel = kernel
        self.sampler = sampler
        self.steps = steps
        self.n_samples = n_samples
        self.batch_size = batch_size
        self.max_steps = max_steps
        self.learning_rate = learning_rate
        self.ema_decay = ema_decay
        self.accelerator = accelerator
        self.random_state = random_state
        self.progress = progress

    # --- training ----------------------------------------------------------------------------
    def fit(self, inst: Instance, y: None = None) -> EEGDiffusion:
        """Train on epochs, or on windows of a continuous recording.

        Epochs and windows that a "BAD" annotation touches are left out.

        Parameters
        ----------
        inst
            ``mne.Epochs``, ``EpochsArray`` or ``Raw``, in volts.
        y
            Ignored; there for scikit-learn's habits.

        Raises
        ------
        StructDiffError
            If a channel is flat, a value is not finite, no channel or fewer than two windows are
            left, or a recording is shorter than a window; the message names channel and epoch.
        """
        inst = loaded(inst)
        names = good_channels(inst, self.picks)
        self.spec_ = spec_of(self, inst, names)
        data = training_data(inst, self.spec_)
        self.info_ = picked_info(inst, names)
        self.scale_ = ChannelScale.of(data.volts, names)
        self.training_ = train(self, data)
        return self

    # --- what is asked of a fitted model -------------------------------------------------------
    def _sampling(self, random_state: int | None) -> tuple[Any, int | None]:
        if not hasattr(self, "denoiser_"):
            raise StructDiffError("this EEGDiffusion is not fitted: call fit or from_pretrained")
        self.denoiser_.to(sampling_device(self.accelerator))
        seed = self.random_state if random_state is None else random_state
        return get_sampler(self.sampler, self.steps), seed

    def synthesize(
        self, n: int, event: str | None = None, random_state: int | None = None
    ) -> mne.EpochsArray:
        """Draw epochs.

        Parameters
        ----------
        n
            How many.
        event
            Name of an event type; None draws them in the proportions of the training epochs.
        random_state
            Seed; None uses the estimator's, or fresh randomness without one. A seed gives the same
            epochs whatever the batch size, and the first epochs of a larger sample.

        Returns
        -------
        mne.EpochsArray
            With the info, channels, tmin, event_id and baseline correction of the training data.

        Raises
        ------
        StructDiffError
            If n < 1, the event is unknown, or the model is not fitted.
        """
        sampler, seed = self._sampling(random_state)
        spec = self.spec_
        n = whole("n", n)
        if event is not None and event not in spec.events:
            raise StructDiffError(
                f"unknown event {event!r}: the model was fitted on {list(spec.events) or 'none'}"
            )
        if not spec.events:
            events = np.full(n, -1)
        elif event is None:
            events = eeg_sampling.draw_events(np.asarray(spec.counts), n, seed)
        else:
            events = np.full(n, spec.events.index(event))
        numbers = torch.from_numpy(events).long()
        drawn = eeg_sampling.synthesize(
            self.denoiser_,
            sampler,
            skip_of(self.denoiser_).windows,
            spec.condition(numbers),
            eeg_sampling.object_seeds(seed, n, 0),
            self.batch_size,
            self.progress,
        )
        means = eeg_repair.means_of(self, numbers)
        return self._epochs(self.scale_.to_volts(drawn + means), events)

    def _epochs(self, data: Floats, events: np.ndarray[Any, np.dtype[np.int64]]) -> mne.EpochsArray:
        spec = self.spec_
        code = np.asarray([*spec.codes, 1])[events]
        onset = np.arange(len(data)) * spec.length
        return import_mne().EpochsArray(
            data,
            self.info_.copy(),
            events=np.stack([onset, np.zeros_like(onset), code], axis=1),
            tmin=spec.tmin,
            event_id=dict(zip(spec.events, spec.codes, strict=True)) or None,
            baseline=spec.baseline,
            on_missing="ignore",
            verbose="ERROR",
        )

    def impute(
        self,
        inst: Instance,
        channels: str | Sequence[str] | None = None,
        *,
        draws: int | None = None,
        annotations: bool = True,
        random_state: int | None = None,
    ) -> Any:
        """Fill in what is missing; everything else stays as it is, bit for bit.

        Missing are ``channels``, ``info["bads"]`` and what "BAD" annotations cover. The info of the
        result is the caller's: its ``bads`` still name what was filled in.

        Parameters
        ----------
        inst
            Epochs of the model's length, or a continuous recording, which is filled in window by
            window; it may have other channels, which are not touched.
        channels
            Names of channels that are missing throughout.
        draws
            None is the posterior mean; a number gives as many draws of the posterior.
        annotations
            Whether what "BAD" annotations cover is missing.
        random_state
            As for :meth:`synthesize`.

        Returns
        -------
        mne.Epochs or mne.io.Raw, or a list of them
            A copy, of the type of ``inst``; with ``draws``, a list of so many.

        Raises
        ------
        StructDiffError
            If channels, sampling rate or length are not the model's, a missing channel was not part
            of the training, or an observed value is not finite.
        """
        sampler, seed = self._sampling(random_state)
        inst, spec = loaded(inst), self.spec_
        names, raw = list(spec.channels), is_raw(inst)
        if draws is not None and draws < 1:
            raise StructDiffError(f"draws must be None or at least 1, got {draws}")
        check_channels(inst, names, spec.sfreq)
        check_length(inst, spec.length, spec.tmin)
        data = voltages(inst, names)
        gone = [channels] if isinstance(channels, str) else channels or ()
        missing = missing_entries(inst, names, gone, annotations=annotations)
        check_finite(data, names, missing)
        if not missing.any():
            warnings.warn(
                "nothing is missing: name channels, set info['bads'], or annotate segments 'BAD'",
                stacklevel=2,
            )
        paths = self._paths() if draws is None else 1
        results = []
        for own in eeg_sampling.object_seeds(seed, draws or 1, 1).tolist():
            if raw:
                filled = eeg_repair.fill_recording(self, sampler, data, missing, paths, own)
            else:
                events = self._event_numbers(inst)
                filled = eeg_repair.fill(self, sampler, data, missing, events, paths, own)
            results.append(replaced(inst, names, np.where(missing, filled, data)))
        return results[0] if draws is None else results

    def _event_numbers(self, epochs: mne.BaseEpochs) -> Tensor:
        """The model's number of every epoch's event; -1 where it knows none."""
        place = {name: number for number, name in enumerate(self.spec_.events)}
        return torch.tensor([place.get(name, -1) for name in event_names(epochs).tolist()])

    def _paths(self) -> int:
        if self.n_samples < 2 or self.n_samples % 2:
            raise StructDiffError(
                f"n_samples must be an even number of at least 2, got {self.n_samples}"
            )
        return self.n_samples

    def forecast(
        self,
        raw: mne.io.BaseRaw,
        duration: float = 1.0,
        *,
        draws: int | None = None,
        random_state: int | None = None,
    ) -> Any:
        """What comes after the end of a recording.

        The end of the recording is the observed part of a window whose last part is missing; more
        than half of a window is forecast in steps.

        Parameters
        ----------
        raw
            At least half a window long. Bad channels and segments are not looked at.
        duration
            Seconds.
        draws
            None is the posterior mean; a number gives as many draws.
        random_state
            As for :meth:`synthesize`.

        Returns
        -------
        mne.io.RawArray, or a list of them
            ``duration`` seconds of the model's channels, numbered on from the recording's end.

        Raises
        ------
        StructDiffError
            If the recording is no Raw, too short, or does not fit the model.
        """
        sampler, seed = self._sampling(random_state)
        spec = self.spec_
        names, ahead = list(spec.channels), round(duration * spec.sfreq)
        if not is_raw(raw):
            raise StructDiffError("a forecast goes on after the end of a Raw, got Epochs")
        step = min(ahead, spec.length // 2)
        if step < 1 or raw.n_times < spec.length - step or (draws is not None and draws < 1):
            raise StructDiffError(
                f"a forecast of {ahead} samples needs a duration above 0, draws of at least 1 and "
                f"a recording of at least {spec.length - step} samples, this one has {raw.n_times}"
            )
        check_channels(raw, names, spec.sfreq)
        data, missing = voltages(raw, names), missing_entries(raw, names)
        check_finite(data, names, missing)
        paths = self._paths() if draws is None else 1
        results = []
        for own in eeg_sampling.object_seeds(seed, draws or 1, 1).tolist():
            future = eeg_repair.extend(self, sampler, data, missing, ahead, paths, own)
            info, first = picked_info(raw, names), raw.first_samp + raw.n_times
            results.append(
                import_mne().io.RawArray(future, info, first_samp=first, verbose="ERROR")
            )
        return results[0] if draws is None else results

    def plot(
        self,
        real: mne.BaseEpochs,
        other: mne.BaseEpochs | None = None,
        *,
        n: int = 100,
        random_state: int | None = None,
    ) -> Figure:
        """Spectra, evoked responses and channel covariances beside those of real epochs.

        Parameters
        ----------
        real
            Epochs.
        other
            What to compare; None is ``n`` synthetic epochs.
        n, random_state
            As for :meth:`synthesize`.
        """
        return plot_eeg(real, self.synthesize(n, None, random_state) if other is None else other)
