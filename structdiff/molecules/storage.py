"""Saved molecule models: ``config.json`` beside ``model.safetensors``; no pickle is ever loaded."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as safetensors_bytes
from torch import Tensor

from structdiff.errors import CheckpointError, StructDiffError
from structdiff.graphs.checkpoints import GDSSCheckpoint, build_networks, read_gdss
from structdiff.molecules.models import GDSS_SAMPLER, NETWORKS, ModelSpec, build_denoiser
from structdiff.molecules.vocabulary import Vocabulary
from structdiff.processes import VE, VP, GaussianProcess, SubVP
from structdiff.processes.serial import process_to_dict

if TYPE_CHECKING:
    from structdiff.molecules.gdss import MoleculeGenerator

CONFIG, WEIGHTS = "config.json", "model.safetensors"
FORMAT = "structdiff.molecules/1"
_LARGEST = 4096
# What building a model from a damaged description may raise.
_DAMAGE = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RuntimeError)


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
    _write_whole(folder / WEIGHTS, safetensors_bytes(weights))
    # Parameters may be NumPy numbers.
    text = json.dumps(config, indent=1, default=lambda value: value.item())
    _write_whole(folder / CONFIG, f"{text}\n".encode())
    return folder


def _write_whole(path: Path, content: bytes) -> None:
    part = path.with_name(f"{path.name}.part")
    try:
        part.write_bytes(content)
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def load(
    cls: type[MoleculeGenerator], name: str | Path, revision: str | None, token: str | None
) -> MoleculeGenerator:
    """Read what :func:`save` wrote, from the package, a folder, or the Hugging Face hub."""
    folder = _find(name, revision, token)
    config = _read_config(folder / CONFIG)
    weights = _read_weights(folder / WEIGHTS)
    generator = cls(**_known_parameters(cls, config["parameters"], folder / CONFIG))
    # Of the training: its seed would make every unseeded sample the same, its device may be absent.
    generator.set_params(random_state=None, accelerator="auto")
    try:
        _describe(generator, config)
        # Shapes are compared before memory is taken: a damaged config may ask for any amount.
        with torch.device("meta"):
            expected = build_denoiser(generator.spec_).network.state_dict()
        check_weights(weights, expected, folder / WEIGHTS)
        generator.denoiser_ = build_denoiser(generator.spec_)
    except CheckpointError:
        raise
    except _DAMAGE as error:
        raise CheckpointError(
            f"{folder / CONFIG} describes no model ({error}): get the model again"
        ) from error
    generator.denoiser_.network.load_state_dict({k: v.float() for k, v in weights.items()})
    generator.denoiser_.eval()
    return generator


def _describe(generator: MoleculeGenerator, config: dict[str, Any]) -> None:
    generator.spec_ = ModelSpec.from_dict(config["model"])
    if generator.spec_.network not in NETWORKS:
        raise ValueError(f"unknown network {generator.spec_.network!r}")
    _check_widths(generator.spec_.network_config)
    generator.vocabulary_ = Vocabulary.from_dict(config["vocabulary"])
    counts = np.asarray(config["node_counts"], dtype=np.int64)
    if counts.ndim != 1 or not len(counts) or counts.min() < 0:
        raise ValueError("'node_counts' is no list of counts")
    generator.node_counts_ = counts
    generator.training_ = dict(config.get("training", {}))


def _check_widths(settings: Mapping[str, Any]) -> None:
    for name, value in settings.items():
        if isinstance(value, Mapping):
            _check_widths(value)
        elif isinstance(value, int) and not 0 <= value <= _LARGEST:
            raise ValueError(f"{name} = {value} is no width or depth up to {_LARGEST}")


def push(
    generator: MoleculeGenerator, repository: str, dtype: str, private: bool, token: str | None
) -> str:
    """Save into a repository of the Hugging Face hub; the address of the commit."""
    from huggingface_hub import HfApi

    api = HfApi(token=token)
    with tempfile.TemporaryDirectory() as folder:
        save(generator, Path(folder), dtype)
        name = api.create_repo(repository, private=private, exist_ok=True).repo_id
        commit = api.upload_folder(
            repo_id=name, folder_path=folder, commit_message="Upload a StructDiff molecule model"
        )
    return str(commit.commit_url)


def _find(name: str | Path, revision: str | None, token: str | None) -> Path:
    embedded = Path(str(resources.files("structdiff"))) / "pretrained" / str(name)
    if str(name) in embedded_models():
        return embedded
    folder = Path(name)
    if folder.is_dir():
        return folder
    if str(name).count("/") == 1 and not folder.is_absolute() and str(name)[0] not in ".~":
        return _from_hub(str(name), revision, token)
    raise CheckpointError(
        f"no model {str(name)!r}: give one of the embedded models "
        f"({', '.join(embedded_models()) or 'none'}), a folder with {CONFIG} and {WEIGHTS}, or a "
        "Hugging Face repository 'owner/name'"
    )


def _from_hub(repository: str, revision: str | None, token: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(
            snapshot_download(
                repository, revision=revision, token=token, allow_patterns=[CONFIG, WEIGHTS]
            )
        )
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
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
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged ({error}): get the model again") from error
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        raise CheckpointError(f"{path} does not describe a molecule model of this package")
    missing = {"parameters", "model", "vocabulary", "node_counts"} - set(config)
    if missing:
        raise CheckpointError(f"{path} lacks {sorted(missing)}: get the model again")
    return config


def _known_parameters(cls: type[MoleculeGenerator], values: Any, path: Path) -> dict[str, Any]:
    if not isinstance(values, dict):
        raise CheckpointError(f"{path}: 'parameters' is no table: get the model again")
    unknown = sorted(set(values) - set(cls().get_params()))
    if unknown:
        raise CheckpointError(
            f"{path} names unknown parameters {unknown}: the model was saved by a newer version"
        )
    return values


def _read_weights(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(str(path))
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{path.parent} holds no {path.name}: it is not a saved model"
        ) from error
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(
            f"{path} is truncated or no safetensors file ({error}): get the model again"
        ) from error


def check_weights(weights: dict[str, Tensor], expected: dict[str, Tensor], path: Path) -> None:
    """Names, shapes and finiteness, before anything is copied; the message names the first fault.

    Raises
    ------
    CheckpointError
        If the weights are another network's, or hold NaN or infinity.
    """
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
    preset = str(checkpoint.model_config["data"]["data"]).lower()
    generator = cls(preset=preset, network="gdss", charges=False)
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
    options = dict(GDSS_SAMPLER["options"])
    known = checkpoint.sampling
    options |= {k: float(known[k]) for k in ("snr", "scale_eps") if known.get(k) is not None}
    return {**GDSS_SAMPLER, "options": options}


# How many molecules of the training splits (120,803 of QM9, 224,568 of ZINC250k: the rows outside
# the published test splits) have 0, 1, 2, ... heavy atoms. The three single atoms of QM9 are left
# out: the published sampler reads the sizes off the bonds and never draws one.
# fmt: off
_SIZES: dict[str, tuple[int, ...]] = {
    "qm9": (0, 0, 4, 8, 26, 115, 558, 2903, 16541, 100645),
    "zinc250k": (
        0, 0, 0, 0, 0, 0, 3, 5, 13, 67, 178, 654, 1053, 1606, 2532, 3844, 5695, 7863, 10489, 13065,
        15906, 18296, 16825, 18950, 20907, 20537, 17331, 14237, 9057, 6991, 5478, 4320, 3375, 2327,
        1553, 925, 358, 126, 2,
    ),
}
# fmt: on


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
    vocabulary = Vocabulary.preset(name)
    if checkpoint.params_x["max_feat_num"] != len(vocabulary):
        raise CheckpointError(
            f"{path} has {checkpoint.params_x['max_feat_num']} atom types, {name} has "
            f"{len(vocabulary)}: use a published checkpoint"
        )
    return vocabulary, np.asarray(_SIZES[name], dtype=np.int64)
