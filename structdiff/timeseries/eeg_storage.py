"""Saved EEG models: ``config.json`` beside ``model.safetensors``, without personal data.

An mne info may hold the subject's name and the time of the recording; what a model needs of it is
written out field by field, so that nothing else can come along.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from structdiff import storage
from structdiff.storage import CONFIG, EEG, WEIGHTS
from structdiff.timeseries.eeg_data import ChannelScale, import_mne
from structdiff.timeseries.eeg_model import EEGSpec, build_denoiser

if TYPE_CHECKING:
    import mne

    from structdiff.timeseries.eeg import EEGDiffusion

_EXACT = ("centre", "scale", "means")
_FIDUCIALS = ("nasion", "lpa", "rpa")


def save(model: EEGDiffusion, folder: Path) -> Path:
    """Write a fitted model; each file appears whole or not at all."""
    storage.check_fitted(model)
    config = {
        "format": EEG.name,
        "parameters": model.get_params(),
        "model": model.spec_.to_dict(),
        "info": info_to_dict(model.info_),
        "training": model.training_,
    }
    exact = {"centre": model.scale_.centre, "scale": model.scale_.scale, "means": model.means_}
    weights = model.denoiser_.network.state_dict()
    return storage.write_model(folder, config, weights, "float32", exact)


def load(
    cls: type[EEGDiffusion], name: str | Path, revision: str | None, token: str | None
) -> EEGDiffusion:
    """Read what :func:`save` wrote, from a folder or the Hugging Face hub."""
    folder = storage.find_model(name, EEG, revision, token)
    path = folder / CONFIG
    config = storage.read_config(path, EEG, ("parameters", "model", "info"))
    weights = storage.read_weights(folder / WEIGHTS)
    model = storage.restored_estimator(cls, config["parameters"], path)
    with storage.naming_damage(path):
        model.spec_ = spec = EEGSpec.from_dict(config["model"])
        storage.check_widths({k: v for k, v in spec.to_dict().items() if k != "length"})
        model.info_ = info_from_dict(config["info"], spec)
        model.training_ = dict(config.get("training", {}))
        channels = len(spec.channels)
        expected = storage.expected_tensors(lambda: build_denoiser(spec).network)
        with torch.device("meta"):
            expected |= {
                "centre": torch.empty(channels),
                "scale": torch.empty(channels),
                "means": torch.empty(len(spec.events), spec.length, channels),
            }
        storage.check_weights(weights, expected, folder / WEIGHTS)
        model.denoiser_ = build_denoiser(spec)
    model.scale_ = ChannelScale(weights["centre"].double(), weights["scale"].double())
    model.means_ = weights["means"]
    network = {k: v.float() for k, v in weights.items() if k not in _EXACT}
    model.denoiser_.network.load_state_dict(network)
    model.denoiser_.eval()
    return model


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
