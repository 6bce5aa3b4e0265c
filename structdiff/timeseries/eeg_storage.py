"""Saved EEG models: ``config.json`` beside ``model.safetensors``, without personal data.

An mne info may hold the subject's name and the time of the recording; what a model needs of it is
written out field by field, so that nothing else can come along.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from structdiff.estimators import Contents, SavedEstimator
from structdiff.storage import EEG, check_widths, expected_tensors
from structdiff.timeseries.eeg_data import ChannelScale, import_mne
from structdiff.timeseries.eeg_model import EEGSpec, build_denoiser

if TYPE_CHECKING:
    import mne

_FIDUCIALS = ("nasion", "lpa", "rpa")


_BACKBONE = "backbone."
"""Prefix of the trained weights; what else the network holds is its prior, stored as it is."""


class SavedEEGModel(SavedEstimator):
    """What is stored of an EEG model: network, channels, events and units, but no subject."""

    _FORMAT = EEG
    _PARTS = ("model", "info")

    spec_: EEGSpec
    info_: mne.Info
    scale_: ChannelScale
    means_: Tensor

    def _contents(self) -> Contents:
        config = {"model": self.spec_.to_dict(), "info": info_to_dict(self.info_)}
        state = self.denoiser_.network.state_dict()
        exact = {k: v for k, v in state.items() if not k.startswith(_BACKBONE)}
        exact |= {"centre": self.scale_.centre, "scale": self.scale_.scale, "means": self.means_}
        return Contents(config, {k: v for k, v in state.items() if k not in exact}, exact)

    def _describe(self, config: Mapping[str, Any]) -> None:
        self.spec_ = EEGSpec.from_dict(config["model"])
        check_widths({k: v for k, v in self.spec_.to_dict().items() if k != "length"})
        self.info_ = info_from_dict(config["info"], self.spec_)

    def _expected(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        spec, channels = self.spec_, len(self.spec_.channels)
        network = expected_tensors(lambda: build_denoiser(spec).network)
        with torch.device("meta"):
            return {
                **network,
                "centre": torch.empty(channels),
                "scale": torch.empty(channels),
                "means": torch.empty(len(spec.events), spec.length, channels),
            }

    def _assemble(self, tensors: Mapping[str, Tensor]) -> None:
        self.denoiser_ = build_denoiser(self.spec_)
        network = self.denoiser_.network
        network.load_state_dict({name: tensors[name] for name in network.state_dict()})
        self.scale_ = ChannelScale(tensors["centre"].double(), tensors["scale"].double())
        self.means_ = tensors["means"]


def info_to_dict(info: mne.Info) -> dict[str, Any]:
    """Types, positions and filter of the channels; names and rate stand in the specification."""
    montage = info.get_montage()
    positions = None if montage is None else montage.get_positions()
    return {
        "types": info.get_channel_types(),
        # Metres, with the sensor's and the reference's place; NaN has no form in JSON.
        "locations": [_numbers(channel["loc"]) for channel in info["chs"]],
        "montage": positions
        and {
            "frame": positions["coord_frame"],
            "channels": {k: _numbers(v) for k, v in positions["ch_pos"].items()},
            "fiducials": {
                k: None if positions[k] is None else _numbers(positions[k]) for k in _FIDUCIALS
            },
        },
        "highpass": float(info["highpass"]),
        "lowpass": float(info["lowpass"]),
        "reference": int(info["custom_ref_applied"]),
    }


def info_from_dict(values: Mapping[str, Any], spec: EEGSpec) -> mne.Info:
    """Read what :func:`info_to_dict` wrote.

    Raises
    ------
    ValueError
        If it does not describe the specification's channels.
    """
    library = import_mne()
    info = library.create_info(list(spec.channels), spec.sfreq, list(values["types"]))
    written = values["montage"]
    if written is not None:
        fiducials = {k: v if v is None else _array(v, 3) for k, v in written["fiducials"].items()}
        montage = library.channels.make_dig_montage(
            {k: _array(v, 3) for k, v in written["channels"].items()},
            coord_frame=written["frame"],
            **{k: fiducials[k] for k in _FIDUCIALS},
        )
        info.set_montage(montage, on_missing="ignore", verbose="ERROR")
    for channel, place in zip(info["chs"], values["locations"], strict=True):
        channel["loc"] = _array(place, 12)
    with info._unlock():
        info["highpass"], info["lowpass"] = float(values["highpass"]), float(values["lowpass"])
        info["custom_ref_applied"] = int(values["reference"])
    return info


def _numbers(values: Iterable[float]) -> list[float | None]:
    return [None if np.isnan(v) else float(v) for v in values]


def _array(values: Sequence[float | None], size: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    array = np.array([np.nan if v is None else v for v in values], dtype=float)
    if array.shape != (size,):
        raise ValueError(f"a place has {size} numbers, got {array.shape}")
    return array
