"""Saved molecule models: ``config.json`` beside ``model.safetensors``; no pickle is ever loaded."""

from __future__ import annotations

import json
import os
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from structdiff.errors import CheckpointError, StructDiffError
from structdiff.graphs.checkpoints import GDSSCheckpoint, build_networks, read_gdss
from structdiff.molecules.models import GDSS_SAMPLER, ModelSpec, build_denoiser
from structdiff.molecules.vocabulary import Vocabulary
from structdiff.processes import VE, VP, GaussianProcess, SubVP
from structdiff.processes.serial import process_to_dict

if TYPE_CHECKING:
    from structdiff.molecules.gdss import MoleculeGenerator

CONFIG, WEIGHTS = "config.json", "model.safetensors"
FORMAT = "structdiff.molecules/1"


def embedded_models() -> list[str]:
    """Names of the models that the package ships."""
    root = Path(str(resources.files("structdiff"))) / "pretrained"
    return sorted(f.parent.name for f in root.glob(f"*/{WEIGHTS}"))


def save(generator: MoleculeGenerator, folder: Path, dtype: str) -> Path:
    """Write a fitted generator; each file appears whole or not at all."""
    if not hasattr(generator, "denoiser_"):
        raise StructDiffError("this MoleculeGenerator is not fitted: there is nothing to save")
    if dtype not in ("float32", "float16"):
        raise StructDiffError(f"dtype must be 'float32' or 'float16', got {dtype!r}")
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "format": FORMAT,
        "parameters": generator.get_params(),
        "model": generator.spec_.to_dict(),
        "vocabulary": generator.vocabulary_.to_dict(),
        "node_counts": np.asarray(generator.node_counts_).tolist(),
        "training": getattr(generator, "training_", {}),
    }
    weights = {
        name: value.detach().cpu().to(getattr(torch, dtype)).contiguous()
        for name, value in generator.denoiser_.network.state_dict().items()
    }
    part = folder / f"{WEIGHTS}.part"
    save_file(weights, str(part))
    os.replace(part, folder / WEIGHTS)
    part = folder / f"{CONFIG}.part"
    part.write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    os.replace(part, folder / CONFIG)
    return folder


def load(cls: type[MoleculeGenerator], name: str | Path) -> MoleculeGenerator:
    """Read what :func:`save` wrote, from the package, a folder, or the Hugging Face hub."""
    folder = _find(name)
    config = _read_config(folder / CONFIG)
    generator = cls(**_known_parameters(cls, config["parameters"]))
    generator.spec_ = ModelSpec.from_dict(config["model"])
    generator.vocabulary_ = Vocabulary.from_dict(config["vocabulary"])
    generator.node_counts_ = np.asarray(config["node_counts"], dtype=np.int64)
    generator.training_ = dict(config.get("training", {}))
    generator.denoiser_ = build_denoiser(generator.spec_)
    _load_weights(generator.denoiser_.network, folder / WEIGHTS)
    generator.denoiser_.eval()
    return generator


def _find(name: str | Path) -> Path:
    embedded = Path(str(resources.files("structdiff"))) / "pretrained" / str(name)
    if str(name) in embedded_models():
        return embedded
    folder = Path(name)
    if folder.is_dir():
        return folder
    if str(name).count("/") == 1 and not folder.is_absolute() and str(name)[0] not in ".~":
        return _from_hub(str(name))
    raise CheckpointError(
        f"no model {str(name)!r}: give one of the embedded models "
        f"({', '.join(embedded_models()) or 'none'}), a folder with {CONFIG} and {WEIGHTS}, or a "
        "Hugging Face repository 'owner/name'"
    )


def _from_hub(repository: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repository, allow_patterns=[CONFIG, WEIGHTS]))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise CheckpointError(
            f"{repository!r} is neither a folder nor a reachable Hugging Face repository: {reason}"
        ) from error


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{path.parent} holds no {path.name}: it is not a saved model"
        ) from error
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path} is damaged ({error}): get the model again") from error
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        raise CheckpointError(f"{path} does not describe a molecule model of this package")
    missing = {"parameters", "model", "vocabulary", "node_counts"} - set(config)
    if missing:
        raise CheckpointError(f"{path} lacks {sorted(missing)}: get the model again")
    return config


def _known_parameters(cls: type[MoleculeGenerator], values: dict[str, Any]) -> dict[str, Any]:
    unknown = sorted(set(values) - set(cls().get_params()))
    if unknown:
        raise CheckpointError(f"the model was saved with unknown parameters {unknown}")
    return values


def _load_weights(network: torch.nn.Module, path: Path) -> None:
    try:
        weights = load_file(str(path))
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{path.parent} holds no {path.name}: it is not a saved model"
        ) from error
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(
            f"{path} is truncated or no safetensors file ({error}): get the model again"
        ) from error
    check_weights(weights, network, path)
    network.load_state_dict({k: v.float() for k, v in weights.items()})


def check_weights(weights: dict[str, Tensor], network: torch.nn.Module, path: Path) -> None:
    """Names, shapes and finiteness, before anything is copied; the message names the first fault.

    Raises
    ------
    CheckpointError
        If the weights are another network's, or hold NaN or infinity.
    """
    expected = network.state_dict()
    if set(weights) != set(expected):
        odd = sorted(set(weights) ^ set(expected))
        raise CheckpointError(f"{path} is of another network: {odd[0]!r} is missing or unknown")
    for name, value in weights.items():
        if value.shape != expected[name].shape:
            raise CheckpointError(
                f"{path} is of another network: {name!r} has shape {tuple(value.shape)}, "
                f"expected {tuple(expected[name].shape)}"
            )
        if not bool(value.isfinite().all()):
            raise CheckpointError(f"{path}: {name!r} holds NaN or infinity; train or get it again")


def load_gdss(cls: type[MoleculeGenerator], path: Path) -> MoleculeGenerator:
    """A generator from a published GDSS molecule checkpoint."""
    checkpoint = read_gdss(path)
    vocabulary, counts = _published_data(checkpoint, path)
    processes = {
        name: process_to_dict(_published_process(checkpoint.model_config["sde"][name]))
        for name in ("x", "adj")
    }
    network = build_networks(checkpoint)
    spec = ModelSpec(
        "gdss",
        {"x": checkpoint.params_x, "adj": checkpoint.params_adj},
        processes,
        network.prediction,
        _published_sampler(checkpoint),
    )
    generator = cls(network="gdss", charges=False)
    generator.spec_, generator.vocabulary_, generator.node_counts_ = spec, vocabulary, counts
    generator.training_ = {"source": checkpoint.name}
    generator.denoiser_ = build_denoiser(spec)
    generator.denoiser_.network.load_state_dict(network.state_dict())
    generator.denoiser_.eval()
    return generator


def _published_process(sde: dict[str, Any]) -> GaussianProcess:
    """The process of a published configuration, with the published prior N(0, 1)."""
    low, high = float(sde["beta_min"]), float(sde["beta_max"])
    kinds = {"VP": VP, "subVP": SubVP, "VE": VE}
    return kinds[sde["type"]](low, high, prior_scale=1.0)  # type: ignore[operator,no-any-return]


def _published_sampler(checkpoint: GDSSCheckpoint) -> dict[str, Any]:
    known = checkpoint.sampling
    options = {
        "snr": float(known.get("snr", GDSS_SAMPLER["options"]["snr"])),
        "scale_eps": float(known.get("scale_eps", GDSS_SAMPLER["options"]["scale_eps"])),
    }
    return {**GDSS_SAMPLER, "options": options}


# Heavy atoms of the training splits of both sets (rows outside the published test split, in which
# single-atom molecules are never drawn): counted by structdiff.molecules.data on the data.
_SIZES: dict[str, tuple[int, ...]] = {}


def _published_data(
    checkpoint: GDSSCheckpoint, path: Path
) -> tuple[Vocabulary, np.ndarray[Any, np.dtype[np.int64]]]:
    data = checkpoint.model_config.get("data", {})
    name = str(data.get("data", "")).lower()
    if name not in _SIZES:
        raise CheckpointError(
            f"{path} was trained on {data.get('data')!r}: only molecule checkpoints "
            f"({', '.join(_SIZES)}) can be loaded here"
        )
    return Vocabulary.preset(name), np.asarray(_SIZES[name], dtype=np.int64)
