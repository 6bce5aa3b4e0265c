"""Volts with gaps in, volts without gaps out: epochs, whole recordings, and what comes after them.

All windows of a recording's pass are completed at once; windows of a later pass overlap those of
the former ones and see what was filled in there, so that it goes on smoothly.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from structdiff.samplers import Sampler
from structdiff.timeseries import eeg_sampling
from structdiff.timeseries.eeg_data import Floats, Mask, covering_windows
from structdiff.timeseries.eeg_model import skip_of

if TYPE_CHECKING:
    from structdiff.timeseries.eeg import EEGDiffusion


def means_of(model: EEGDiffusion, events: Tensor) -> Tensor:
    """What was taken off windows of these events (N,), (N, L, C); 0 for the event -1."""
    none = torch.zeros(1, model.spec_.length, len(model.spec_.channels))
    return torch.cat([model.means_, none])[events]


def fill(
    model: EEGDiffusion,
    sampler: Sampler,
    data: Floats,
    missing: Mask,
    events: Tensor,
    paths: int,
    seed: int,
) -> Floats:
    """Volts (N, C, L) with what is missing filled in.

    Parameters
    ----------
    model
        Fitted.
    sampler
        How to sample.
    data, missing
        Volts, and which of them are missing, (N, C, L).
    events
        Numbers of their event types, -1 for none, (N,).
    paths
        1 is a draw, more are averaged to the posterior mean.
    seed
        Every window's noise is a function of it and the window's number.
    """
    result: Floats = np.where(missing, 0.0, data)
    touched = np.flatnonzero(missing.any(axis=(1, 2)))
    if not len(touched):
        return result
    rows = torch.from_numpy(touched)
    means = means_of(model, events[rows])
    filled = eeg_sampling.complete(
        model.denoiser_,
        sampler,
        skip_of(model.denoiser_).windows,
        model.scale_.to_model(result[touched]) - means,
        torch.from_numpy(~missing[touched]).mT,
        model.spec_.condition(events[rows]),
        eeg_sampling.object_seeds(seed, len(data), 0)[rows],
        paths=paths,
        rank=model.rank,
        batch_size=model.batch_size,
        progress=model.progress,
    )
    result[touched] = model.scale_.to_volts(filled + means)
    return result


def fill_recording(
    model: EEGDiffusion, sampler: Sampler, data: Floats, missing: Mask, paths: int, seed: int
) -> Floats:
    """As :func:`fill`, for volts (C, T) of at least a window."""
    length = model.spec_.length
    filled: Floats = np.where(missing, 0.0, data)
    left = missing.copy()
    for number, starts in enumerate(covering_windows(data.shape[1], length)):
        place = starts[:, None] + np.arange(length)
        volts, gaps = np.moveaxis(filled[:, place], 0, 1), np.moveaxis(left[:, place], 0, 1)
        none = torch.full((len(starts),), -1)
        done = fill(model, sampler, volts, gaps, none, paths, seed ^ (number + 1))
        for start, window, gap in zip(starts.tolist(), done, gaps, strict=True):
            part = np.s_[:, start : start + length]
            filled[part] = np.where(gap, window, filled[part])
            left[part] = False
    return filled


def extend(
    model: EEGDiffusion,
    sampler: Sampler,
    data: Floats,
    missing: Mask,
    ahead: int,
    paths: int,
    seed: int,
) -> Floats:
    """The ``ahead`` samples after volts (C, T): (C, ahead), at most half a window at a time."""
    length, channels = model.spec_.length, len(data)
    step = min(ahead, length // 2)
    known, gaps, total = data, missing, data.shape[1]
    while known.shape[1] < total + ahead:
        last = known.shape[1] - (length - step)
        window = np.pad(known[:, last:], ((0, 0), (0, step)))
        gap = np.pad(gaps[:, last:], ((0, 0), (0, step)), constant_values=True)
        none, own = torch.tensor([-1]), seed ^ known.shape[1]
        done = fill(model, sampler, window[None], gap[None], none, paths, own)[0]
        known = np.concatenate([known, done[:, -step:]], axis=1)
        gaps = np.concatenate([gaps, np.zeros((channels, step), dtype=bool)], axis=1)
    return np.ascontiguousarray(known[:, total : total + ahead])
