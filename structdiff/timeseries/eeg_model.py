"""What an EEG model is made of, and its training."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from structdiff.denoisers import Denoiser
from structdiff.errors import StructDiffError
from structdiff.objectives import DenoisingScoreMatching, EDMLaw
from structdiff.processes import EDM, System
from structdiff.state import State
from structdiff.timeseries.eeg_data import (
    Floats,
    Instance,
    check_finite,
    clean_starts,
    is_raw,
    missing_entries,
    voltages,
)
from structdiff.timeseries.eeg_metrics import event_names
from structdiff.timeseries.eeg_prior import (
    WindowSkip,
    WindowWeight,
    fit_covariance,
    limit_bursts,
)
from structdiff.timeseries.networks import TSDiffNetwork
from structdiff.training import DiffusionModule, ShuffledBatches, TrainingSettings, fit

if TYPE_CHECKING:
    from structdiff.timeseries.eeg import EEGDiffusion

PROCESS = EDM(0.01, 50.0)
"""The strongest rhythm of a window, all its entries together, is a standard deviation of some ten:
above it there is only noise; below a hundredth of a channel's there is none."""
TIME_LAW = EDMLaw(-0.5, 1.5)
UNCONDITIONED = 10
"""One training window in so many is shown without its event, for recordings without events."""
LONGEST = 1024
"""Samples of a window beyond which a warning says what to do."""
_COVARIANCE_WINDOWS = 1000
"""At most so many windows of a recording are held at once for its covariance."""


@dataclass(frozen=True)
class EEGSpec:
    """What a model is made of, as far as a file must know it."""

    channels: tuple[str, ...]
    """Names, in order."""
    sfreq: float
    """Hz."""
    length: int
    """L, samples of a window."""
    tmin: float
    """Seconds of the first sample relative to the event."""
    baseline: tuple[float | None, float | None] | None
    """The correction that the training epochs had."""
    events: tuple[str, ...]
    """Names of the event types; none for a model of continuous recordings."""
    codes: tuple[int, ...]
    """Their numbers in the events array."""
    counts: tuple[int, ...]
    """How many training epochs each had."""
    hidden: int
    blocks: int
    state_size: int
    kernel: str

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> EEGSpec:
        """Read what :meth:`to_dict` wrote."""
        own: dict[str, Any] = {f.name: values[f.name] for f in fields(cls)}
        own = {k: tuple(v) if isinstance(v, list) else v for k, v in own.items()}
        spec = cls(**own)
        if not spec.channels or spec.length < 2 or not spec.sfreq > 0:
            raise ValueError("no channels, windows or sampling rate")
        if not len(spec.events) == len(spec.codes) == len(spec.counts):
            raise ValueError("events, codes and counts differ in number")
        return spec

    def condition(self, events: Tensor) -> Tensor:
        """One-hot event over time, float32 (N, L, E); zeros for an event -1.

        Parameters
        ----------
        events
            Numbers of the event types, int64 (N,).
        """
        hot = torch.arange(len(self.events)) == events[:, None]
        return hot.float()[:, None].expand(-1, self.length, -1)


def build_denoiser(spec: EEGSpec) -> Denoiser:
    """An untrained denoiser; its Gaussian is white until one is set."""
    channels, length = len(spec.channels), spec.length
    backbone = TSDiffNetwork(
        channels,
        spec.hidden,
        spec.blocks,
        spec.state_size,
        spec.kernel,  # type: ignore[arg-type]
        length=length,
        features=channels + len(spec.events),
    )
    # The first prediction is the Gaussian's: training starts from what is known.
    last = backbone.head[-1]
    assert isinstance(last, nn.Linear)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    network = WindowSkip(backbone, (length, channels))
    return Denoiser(network, System({"x": PROCESS}), "data", data_std=1.0, scale_input=True)


def skip_of(denoiser: Denoiser) -> WindowSkip:
    """The network with its prior."""
    assert isinstance(denoiser.network, WindowSkip)
    return denoiser.network


def event_means(windows: Tensor, events: Tensor, count: int) -> Tensor:
    """Mean window per event, float32 (E, L, C), shrunk to 0 by the share of it that is noise.

    The positive-part estimate of James and Stein (1961) with the variance that epochs have around
    their events' means: an event of few epochs, or without a response, keeps little.

    Parameters
    ----------
    windows
        (N, L, C).
    events
        Numbers of their event types, (N,).
    count
        E.
    """
    values = limit_bursts(windows)
    means = torch.zeros(count, *values.shape[1:], dtype=torch.float64)
    sizes = torch.bincount(events, minlength=count).clamp(min=1)
    means.index_add_(0, events, values)
    means /= sizes[:, None, None]
    free = max(len(values) - count, 1)
    variance = (values - means[events]).square().sum() / free
    square = means.square().sum((1, 2)).clamp(min=1e-30)
    share = (1 - variance / (sizes * square)).clamp(min=0.0)
    return (means * share[:, None, None]).float()


class TrainingData(NamedTuple):
    """What an EEG model is trained on."""

    volts: Floats
    """Windows, (N, C, L); of a recording, at most a thousand of them."""
    events: Tensor | None
    """Event types of the windows, (N,); none for a recording."""
    recording: Floats | None
    """Volts, (C, T); none for epochs."""
    starts: Tensor | None
    """First samples of the recording's windows."""


def spec_of(model: EEGDiffusion, inst: Instance, names: Sequence[str]) -> EEGSpec:
    """What a model of these channels of a recording or of epochs will be made of.

    Raises
    ------
    StructDiffError
        If the window of a recording holds fewer than two samples.
    """
    sfreq = float(inst.info["sfreq"])
    network = (model.hidden, model.blocks, model.state_size, model.kernel)
    if is_raw(inst):
        length = round(model.window * sfreq)
        if length < 2:
            raise StructDiffError(
                f"a window of {model.window} s holds {length} samples at {sfreq:g} Hz: choose a "
                "longer one"
            )
        return EEGSpec(tuple(names), sfreq, length, 0.0, None, (), (), (), *network)
    present = event_names(inst).tolist()
    events = tuple(name for name in inst.event_id if name in set(present))
    return EEGSpec(
        tuple(names),
        sfreq,
        len(inst.times),
        float(inst.tmin),
        None if inst.baseline is None else tuple(inst.baseline),
        events,
        tuple(int(inst.event_id[name]) for name in events),
        tuple(present.count(name) for name in events),
        *network,
    )


def training_data(inst: Instance, spec: EEGSpec) -> TrainingData:
    """Windows without anything missing.

    Raises
    ------
    StructDiffError
        If an observed value is not finite, a recording is too short, or fewer than two windows are
        left.
    """
    names = spec.channels
    if spec.length > LONGEST:
        warnings.warn(
            f"windows of {spec.length} samples at {spec.sfreq:g} Hz are slow to train on: "
            ".resample(128) keeps everything below 50 Hz",
            stacklevel=3,
        )
    data, missing = voltages(inst, names), missing_entries(inst, names, bads=False)
    check_finite(data, names, missing)
    events = recording = starts = None
    if is_raw(inst):
        recording = np.where(missing, 0.0, data)
        places = clean_starts(missing, spec.length, max(spec.length // 16, 1))
        chosen = places[evenly(len(places), _COVARIANCE_WINDOWS)]
        volts = np.stack([data[:, s : s + spec.length] for s in chosen.tolist()])
        starts = torch.from_numpy(places)
    else:
        touched = np.asarray(missing.any(axis=(1, 2)))
        if touched.any():
            warnings.warn(
                f"{int(touched.sum())} of {len(touched)} epochs are touched by a 'BAD' annotation "
                f"and left out of the training, the first is epoch {int(touched.argmax())}",
                stacklevel=3,
            )
        volts = data[~touched]
        labels = event_names(inst)[~touched].tolist()
        events = torch.tensor([spec.events.index(name) for name in labels], dtype=torch.long)
    if len(volts) < 2:
        raise StructDiffError(
            f"training needs two or more windows, got {len(volts)}: give more epochs, or a longer "
            "recording"
        )
    return TrainingData(volts, events, recording, starts)


def evenly(count: int, most: int) -> npt.NDArray[np.int64]:
    """At most ``most`` of ``count`` numbers, evenly chosen."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(np.int64))


def train(model: EEGDiffusion, data: TrainingData) -> dict[str, Any]:
    """Make and fit ``model.denoiser_`` and ``model.means_``; a record of the training.

    Parameters
    ----------
    model
        Holds the settings, the specification and the channels' scale.
    data
        In volts.
    """
    spec, seed = model.spec_, 0 if model.random_state is None else int(model.random_state)
    windows = model.scale_.to_model(data.volts)
    if data.events is None:
        model.means_ = torch.zeros(0, *windows.shape[1:])
        records, count = _recording_records(model, data)
        # Windows start every sixteenth of their length.
        effective = min(float(len(windows)), count / 16 + 1)
    else:
        model.means_ = event_means(windows, data.events, len(spec.events))
        windows = windows - model.means_[data.events]
        records, count = _epoch_records(spec, windows, data.events)
        effective = float(len(windows))
    prior = fit_covariance(windows, effective)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model.denoiser_ = build_denoiser(spec)
    skip_of(model.denoiser_).set_windows(prior)
    module = DiffusionModule(
        model.denoiser_,
        DenoisingScoreMatching(TIME_LAW, WindowWeight(prior.values)),
        learning_rate=model.learning_rate,
        warmup_steps=min(50, model.max_steps // 5 + 1),
        total_steps=model.max_steps,
        seed=seed,
    )
    settings = TrainingSettings(
        max_steps=model.max_steps,
        ema_decay=model.ema_decay,
        accelerator=model.accelerator,
        progress=model.progress,
    )
    trainer = fit(module, ShuffledBatches(count, model.batch_size, records, seed=seed), settings)
    model.denoiser_.eval()
    loss = trainer.callback_metrics.get("loss")
    return {
        "windows": len(windows) if data.starts is None else len(data.starts),
        "steps": trainer.global_step,
        "seed": seed,
        "loss": None if loss is None else round(float(loss), 5),
    }


_Records: TypeAlias = "Callable[[Tensor], tuple[State, Tensor]]"


def _epoch_records(spec: EEGSpec, windows: Tensor, events: Tensor) -> tuple[_Records, int]:
    """Every window so many times, once without its event."""

    def batch(rows: Tensor) -> tuple[State, Tensor]:
        own = rows % len(windows)
        shown = torch.where(rows < len(windows), -1, events[own])
        return State({"x": windows[own]}), spec.condition(shown)

    return batch, len(windows) * UNCONDITIONED


def _recording_records(model: EEGDiffusion, data: TrainingData) -> tuple[_Records, int]:
    """Overlapping windows, cut out when they are asked for."""
    spec, starts = model.spec_, data.starts
    assert data.recording is not None and starts is not None
    recording = model.scale_.to_model(data.recording[None])[0]  # (T, C)

    def batch(rows: Tensor) -> tuple[State, Tensor]:
        place = starts[rows][:, None] + torch.arange(spec.length)
        return State({"x": recording[place]}), spec.condition(torch.full_like(rows, -1))

    return batch, len(starts)
