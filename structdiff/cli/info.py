"""``structdiff info``: what runs here, on what, with which models and data."""

from __future__ import annotations

import importlib.metadata
import json as json_module
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import structdiff
from structdiff.cli.console import print_json, print_table
from structdiff.errors import StructDiffError

if TYPE_CHECKING:
    from structdiff.storage import ModelFormat

#: The weights that come with the package, a folder for each model.
PRETRAINED = Path(structdiff.__file__).resolve().parent / "pretrained"
#: The packages a report of a problem should name.
_PACKAGES = ("structdiff", "torch", "numpy", "lightning", "rdkit", "fcd", "pandas", "torchdiffeq")


def info(
    json: Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")] = False,
) -> None:
    """Show versions, devices, embedded models and where data is looked for."""
    from structdiff.samplers import SAMPLERS

    facts: dict[str, Any] = {
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in _PACKAGES},
        "devices": _devices(),
        "samplers": list(SAMPLERS),
        "models": [path.name for path in embedded_models()],
        "data_folder": _data_folder(),
        "cache_folder": _cache_folder(),
    }
    if json:
        print_json(facts)
        return
    rows: list[tuple[str, object]] = [("python", facts["python"])]
    rows += [(name, version or "not installed") for name, version in facts["versions"].items()]
    rows += [
        ("devices", "\n".join(facts["devices"])),
        ("samplers", ", ".join(facts["samplers"])),
        ("models", "\n".join(facts["models"]) or "none"),
        ("data folder (STRUCTDIFF_DATA)", facts["data_folder"] or "not set"),
        ("cache folder", facts["cache_folder"] or "needs structdiff[datasets]"),
    ]
    print_table("structdiff", ["what", "value"], rows)


def embedded_models(format: ModelFormat | None = None) -> list[Path]:
    """The folders of the models that come with the package: of one head, or all."""
    if format is None:
        return sorted(config.parent for config in PRETRAINED.glob("*/config.json"))
    from structdiff import storage

    return [PRETRAINED / name for name in storage.embedded_models(format)]


def show_models(model: str | None, format: ModelFormat, writer: str, json: bool) -> None:
    """Describe a model of one head, or list those that come with the package.

    Parameters
    ----------
    model
        Name or folder; None lists.
    format
        Of the head's models.
    writer
        The command that writes such folders, for a message.
    json
        Print JSON instead of a table.

    Raises
    ------
    StructDiffError
        If there is no such model.
    """
    if model is None:
        facts = [model_facts(folder) for folder in embedded_models(format)]
        if json:
            print_json(facts)
            return
        rows = [(each["name"], each["parameters"], each["megabytes"]) for each in facts]
        print_table("embedded models", ["name", "parameters", "MB"], rows)
        return
    described = model_facts(_model_folder(model, format, writer))
    if json:
        print_json(described)
        return
    settings = described.pop("config")
    print_table(
        described["name"],
        ["what", "value"],
        [*described.items(), *_flattened(settings)],
    )


def _model_folder(model: str, format: ModelFormat, writer: str) -> Path:
    """Where a model lies: a folder with config.json, or one that comes with the package."""
    for folder in embedded_models(format):
        if folder.name == model:
            return folder
    if Path(model).is_dir():
        for needed in ("config.json", "model.safetensors"):
            if not (Path(model) / needed).is_file():
                raise StructDiffError(
                    f"{model}: not a saved model, it has no {needed}; give the folder that "
                    f"`{writer}` wrote"
                )
        return Path(model)
    known = ", ".join(folder.name for folder in embedded_models(format)) or "none"
    raise StructDiffError(
        f"{model}: no such model; give a folder, a checkpoint file, or an embedded model ({known})"
    )


def _flattened(settings: Mapping[str, Any], prefix: str = "") -> list[tuple[str, object]]:
    """Nested settings as ``outer.inner``."""
    rows: list[tuple[str, object]] = []
    for name, value in settings.items():
        if isinstance(value, Mapping):
            rows += _flattened(value, f"{prefix}{name}.")
        else:
            rows.append((f"{prefix}{name}", value))
    return rows


def model_facts(folder: Path) -> dict[str, Any]:
    """What the configuration and the weights of a saved model say, without building it."""
    from safetensors import SafetensorError, safe_open

    from structdiff.errors import CheckpointError

    config, weights = folder / "config.json", folder / "model.safetensors"
    try:
        settings = json_module.loads(config.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{config}: not JSON ({error}); save or fetch it again") from error
    try:
        with safe_open(weights, framework="numpy") as tensors:
            shapes = [tensors.get_slice(name).get_shape() for name in tensors.keys()]  # noqa: SIM118
    except SafetensorError as error:
        raise CheckpointError(
            f"{weights}: not a complete safetensors file ({error}); save or fetch it again"
        ) from error
    return {
        "name": folder.name,
        "folder": str(folder),
        "parameters": sum(_product(shape) for shape in shapes),
        "megabytes": weights.stat().st_size / 1e6,
        "config": settings,
    }


def _product(shape: list[int]) -> int:
    size = 1
    for length in shape:
        size *= length
    return size


def _version(package: str) -> str | None:
    if package == "structdiff":
        return structdiff.__version__
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _devices() -> list[str]:
    import torch

    found = [f"cpu ({torch.get_num_threads()} threads)"]
    found += [
        f"cuda:{index} ({torch.cuda.get_device_name(index)})"
        for index in range(torch.cuda.device_count())
    ]
    if torch.backends.mps.is_available():
        found.append("mps")
    return found


def _data_folder() -> str | None:
    from structdiff.datasets import data_folder

    folder = data_folder()
    return None if folder is None else str(folder)


def _cache_folder() -> str | None:
    from structdiff.datasets import cache_folder

    try:
        return str(cache_folder())
    except ModuleNotFoundError:
        return None
