r"""EEG in and out of mne: windows in robust units, what is missing in them, errors that name it.

mne holds volts, (epochs, channels, times). The model sees windows (B, L, C) of

.. math:: x = (10^6\,v - c) / s, \qquad c = \mathrm{median}(10^6\,v),
          \quad s = 1.4826\,\mathrm{median}|10^6\,v - c|

per channel over the training data, in microvolts: a blink or a movement does not set the scale.
Missing are the channels a caller names, ``info["bads"]``, and what annotations that start with
"BAD" cover (of their own channels only, where they name some).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from structdiff.errors import StructDiffError

if TYPE_CHECKING:
    import mne

Instance: TypeAlias = "mne.BaseEpochs | mne.io.BaseRaw"
Floats: TypeAlias = npt.NDArray[np.float64]
Mask: TypeAlias = npt.NDArray[np.bool_]

MICRO = 1e6
"""Microvolts in a volt."""
FLAT = 1e-3
"""Microvolts of standard deviation below which a channel is called flat; amplifiers' steps are
wider."""


def import_mne() -> Any:
    """The library mne.

    Raises
    ------
    StructDiffError
        If it is not installed.
    """
    try:
        import mne
    except ImportError as error:
        raise StructDiffError("EEG needs the library mne: pip install 'structdiff[eeg]'") from error
    return mne


def is_raw(inst: object) -> bool:
    """Whether ``inst`` is a continuous recording (True) or epochs (False).

    Raises
    ------
    StructDiffError
        If it is neither.
    """
    mne = import_mne()
    if isinstance(inst, mne.io.BaseRaw):
        return True
    if isinstance(inst, mne.BaseEpochs):
        return False
    raise StructDiffError(f"give mne Epochs or Raw, got {type(inst).__name__}")


def loaded(inst: Instance) -> Instance:
    """``inst``, or a copy with its data in memory: unread epochs do not know how many they are."""
    return inst if is_raw(inst) or inst.preload else inst.copy().load_data()


def good_channels(inst: Instance, picks: str | Sequence[str]) -> list[str]:
    """Names of the channels to train on: of the kind, or those named, without ``info["bads"]``.

    Raises
    ------
    StructDiffError
        If a name is unknown, or nothing is left.
    """
    info, bads = inst.info, set(inst.info["bads"])
    if isinstance(picks, str):
        kinds = info.get_channel_types()
        asked = [n for n, kind in zip(info["ch_names"], kinds, strict=True) if kind == picks]
    else:
        unknown = sorted(set(picks) - set(info["ch_names"]))
        if unknown:
            raise StructDiffError(
                f"picks names the channels {unknown}, which the recording does not have: it has "
                f"{info['ch_names']}"
            )
        asked = [n for n in info["ch_names"] if n in set(picks)]
    good = [n for n in asked if n not in bads]
    if not good:
        raise StructDiffError(
            f"no channel is left to train on: {len(asked)} fit picks={picks!r}, and info['bads'] "
            f"names {sorted(bads)}; set other picks, or the channel types (set_channel_types)"
        )
    return good


def check_channels(inst: Instance, names: Sequence[str], sfreq: float) -> None:
    """That a recording has the model's channels, at the model's sampling rate.

    Raises
    ------
    StructDiffError
        If not; the message names what both have and the remedy.
    """
    if abs(inst.info["sfreq"] - sfreq) > 1e-6 * sfreq:
        raise StructDiffError(
            f"the model was fitted at {sfreq:g} Hz, this recording has "
            f"{inst.info['sfreq']:g} Hz: call .resample({sfreq:g}) on it first"
        )
    missing = [n for n in names if n not in inst.ch_names]
    if missing:
        raise StructDiffError(
            f"the model was fitted on the channels {list(names)}, this recording lacks {missing} "
            f"and has {inst.ch_names}: rename_channels, or fit on the channels that both have "
            "(.pick)"
        )


def check_length(inst: Instance, length: int, tmin: float) -> None:
    """That epochs have the model's samples, or a recording at least as many.

    Parameters
    ----------
    inst
        Epochs, or a continuous recording.
    length, tmin
        Of the model's windows: samples, and seconds of the first one relative to the event.

    Raises
    ------
    StructDiffError
        If not; the message names both lengths and the remedy.
    """
    if is_raw(inst):
        if inst.n_times < length:
            raise StructDiffError(
                f"the recording has {inst.n_times} samples, the model's windows {length}: "
                "give a longer recording, or fit with a shorter window"
            )
    elif len(inst.times) != length:
        raise StructDiffError(
            f"the epochs have {len(inst.times)} samples, the model's {length}: cut them "
            f"from {tmin:g} s on to the same length"
        )


def voltages(inst: Instance, names: Sequence[str]) -> Floats:
    """Volts of the named channels in that order: Raw (C, T), epochs (N, C, L)."""
    if is_raw(inst):
        return np.asarray(inst.get_data(picks=list(names)), dtype=np.float64)
    return np.asarray(inst.get_data(picks=list(names), copy=True), dtype=np.float64)


def check_finite(data: Floats, names: Sequence[str], missing: Mask | None = None) -> None:
    """That volts (C, T) or (N, C, L) are finite where they are not missing anyway.

    Raises
    ------
    StructDiffError
        Naming the epoch (or the sample) and the channel of the first value that is not.
    """
    wrong = ~np.isfinite(data)
    if missing is not None:
        wrong &= ~missing
    if not wrong.any():
        return
    *epoch, channel, time = (int(k) for k in np.argwhere(wrong)[0])
    where = (
        f"epoch {epoch[0]}, channel {names[channel]!r}"
        if epoch
        else (f"channel {names[channel]!r}")
    )
    raise StructDiffError(
        f"{where} holds NaN or infinity from sample {time} on ({int(wrong.sum())} values in all): "
        "drop the epoch, mark the channel in info['bads'], or cover the segment with an "
        "annotation 'BAD'"
    )


@dataclass(frozen=True)
class ChannelScale:
    """Centre and scale per channel, microvolts, float64 (C,)."""

    centre: Tensor
    scale: Tensor

    @classmethod
    def of(cls, data: Floats, names: Sequence[str]) -> ChannelScale:
        """Robust centre and scale of volts (N, C, L).

        Parameters
        ----------
        data
            Finite training windows.
        names
            Of the channels, for the error.

        Raises
        ------
        StructDiffError
            If a channel is flat.
        """
        values = np.moveaxis(data, 1, 0).reshape(len(names), -1) * MICRO
        spread = values.std(axis=1)
        flat = [n for n, s in zip(names, spread, strict=True) if s < FLAT]
        if flat:
            raise StructDiffError(
                f"the channels {flat} are flat (standard deviation below {FLAT:g} uV): add them to "
                "info['bads'], and if the recording is not in volts, rescale it"
            )
        centre = np.median(values, axis=1)
        scale = 1.4826 * np.median(np.abs(values - centre[:, None]), axis=1)
        # A channel that sits at one value for half of the time has no median deviation.
        scale = np.where(scale < FLAT, spread, scale)
        return cls(torch.from_numpy(centre), torch.from_numpy(scale))

    def to_model(self, data: Floats) -> Tensor:
        """Volts (N, C, L) -> model units, float32 (N, L, C)."""
        values = torch.from_numpy(np.ascontiguousarray(data)).double() * MICRO
        return ((values.mT - self.centre) / self.scale).float()

    def to_volts(self, windows: Tensor) -> Floats:
        """Model units (N, L, C) -> volts (N, C, L)."""
        values = (windows.double() * self.scale + self.centre) / MICRO
        return np.ascontiguousarray(values.mT.numpy())


def missing_entries(
    inst: Instance,
    names: Sequence[str],
    channels: Sequence[str] = (),
    *,
    bads: bool = True,
    annotations: bool = True,
) -> Mask:
    """Which entries of :func:`voltages` are missing: bool, Raw (C, T), epochs (N, C, L).

    Parameters
    ----------
    inst
        Recording or epochs.
    names
        The model's channels.
    channels
        Missing throughout.
    bads
        Whether the channels in ``info["bads"]`` are missing, too.
    annotations
        Whether what annotations that start with "BAD" cover is missing, too. Overlapping
        annotations are joined; one that names channels concerns those.

    Raises
    ------
    StructDiffError
        If a named or bad channel is none of the model's: it was bad in training, or left out.
    """
    gone = [*channels, *(inst.info["bads"] if bads else ())]
    kinds = dict(zip(inst.ch_names, inst.info.get_channel_types(), strict=True))
    modelled = {kinds[n] for n in names}
    # A bad channel of a kind that the model does not know (EOG, say) is none of its business.
    unknown = [n for n in gone if n not in names and (n in channels or kinds[n] in modelled)]
    if unknown:
        raise StructDiffError(
            f"the channels {unknown} cannot be imputed: the model was fitted without them (bad in "
            "the training data, or not picked); fit where they are good, or use mne's "
            "interpolate_bads"
        )
    raw = is_raw(inst)
    shape = (inst.n_times,) if raw else (len(inst), len(inst.times))
    mask = np.zeros((*shape[:-1], len(names), shape[-1]), dtype=bool)
    mask[..., [names.index(n) for n in gone if n in names], :] = True
    if annotations and inst.annotations is not None:
        for rows, start, stop, concerned in _bad_segments(inst):
            here = [k for k, n in enumerate(names) if not concerned or n in concerned]
            place = (here, slice(start, stop)) if raw else (rows, here, slice(start, stop))
            mask[place] = True
    return mask


def _bad_segments(inst: Instance) -> Iterator[tuple[int, int, int, tuple[str, ...]]]:
    """Epoch (0 of a Raw), first sample, sample after the last, and channels (empty is all)."""
    notes = inst.annotations
    bad = [k for k, text in enumerate(notes.description) if text.upper().startswith("BAD")]
    if not bad:
        return
    rate = inst.info["sfreq"]
    if is_raw(inst):
        for k in bad:
            # As mne rounds: both ends on their own.
            start, stop = notes.onset[k] - inst.first_time, notes.duration[k]
            first, last = round(start * rate), round((start + stop) * rate)
            yield 0, max(first, 0), max(last, 0), tuple(notes.ch_names[k])
        return
    small = inst.copy().pick(inst.ch_names[:1])
    for concerned in {tuple(notes.ch_names[k]) for k in bad}:
        chosen = [k for k in bad if tuple(notes.ch_names[k]) == concerned]
        small.set_annotations(_without_channels(notes[chosen]))
        for row, found in enumerate(small.get_annotations_per_epoch()):
            for onset, duration, *_ in found:
                first = round((onset - inst.tmin) * rate)
                last = round((onset + duration - inst.tmin) * rate)
                yield row, max(first, 0), max(last, 0), concerned


def _without_channels(notes: Any) -> Any:
    """The same annotations for all channels: mne refuses channels that an instance lacks."""
    mne = import_mne()
    return mne.Annotations(notes.onset, notes.duration, notes.description, notes.orig_time)


def clean_starts(missing: Mask, length: int, stride: int) -> npt.NDArray[np.int64]:
    """First samples of the windows of a recording that hold nothing missing.

    Parameters
    ----------
    missing
        Bool (C, T).
    length
        L, samples of a window.
    stride
        Samples between the windows that are looked at.

    Raises
    ------
    StructDiffError
        If the recording is shorter than a window, or no window is clean.
    """
    total = missing.shape[1]
    if total < length:
        raise StructDiffError(
            f"the recording has {total} samples, a window {length}: choose a shorter window"
        )
    count = np.concatenate([[0], np.cumsum(missing.any(axis=0))])
    starts = np.arange(0, total - length + 1, stride)
    clean = starts[count[starts + length] == count[starts]]
    if not len(clean):
        raise StructDiffError(
            f"every window of {length} samples is touched by a 'BAD' annotation: choose a shorter "
            "window, or remove annotations that are not about artefacts"
        )
    return clean


def covering_windows(total: int, length: int) -> list[npt.NDArray[np.int64]]:
    """First samples of windows that cover a recording, in passes of windows that do not overlap.

    Neighbours overlap by a third or more. The later pass sees what the earlier one has filled in,
    so that what is filled in goes on smoothly from window to window, although the windows of a
    pass are computed at once.
    """
    gaps = -(-(total - length) // max(2 * length // 3, 1))
    starts = np.unique(np.round(np.linspace(0, total - length, gaps + 1)).astype(np.int64))
    passes: list[list[int]] = []
    for start in starts.tolist():
        fitting = (k for k, taken in enumerate(passes) if taken[-1] + length <= start)
        place = next(fitting, len(passes))
        if place == len(passes):
            passes.append([])
        passes[place].append(start)
    return [np.asarray(taken) for taken in passes]


def picked_info(inst: Instance, names: Sequence[str]) -> mne.Info:
    """A copy of the caller's info for these channels, in this order; bads among them stay."""
    return import_mne().pick_info(inst.info, [inst.ch_names.index(n) for n in names])


def replaced(inst: Instance, names: Sequence[str], data: Floats) -> Instance:
    """A copy with other volts, Raw (C, T) or epochs (N, C, L), for these channels."""
    result = inst.copy().load_data()
    rows = [result.ch_names.index(n) for n in names]
    if is_raw(result):
        result[rows, :] = data
    else:
        result.get_data(copy=False)[:, rows] = data
    return result
