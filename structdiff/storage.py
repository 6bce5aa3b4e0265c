"""Saved models of any head: ``config.json`` beside ``model.safetensors``; no pickle is ever loaded.

A model is found by the name of an embedded one, by its folder, or by its Hugging Face repository.
What its files say is checked before anything is built: a config may ask for any amount of memory,
and weights may be truncated, of another network, or not finite. What a config holds besides its
``format`` and the estimator's ``parameters`` is the head's own business, in the head's ``storage``.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as safetensors_bytes
from torch import Tensor, nn

from structdiff.errors import CheckpointError, StructDiffError

CONFIG, WEIGHTS = "config.json", "model.safetensors"
#: The models that the package ships, a folder for each.
PRETRAINED = Path(str(resources.files("structdiff"))) / "pretrained"
_LARGEST = 4096
# What building a model from a damaged description may raise.
_DAMAGE = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RuntimeError)


@dataclass(frozen=True)
class ModelFormat:
    """What the models of one head are called, in their files and in messages.

    Parameters
    ----------
    name
        The ``format`` of their ``config.json``: ``"structdiff.HEAD/VERSION"``.
    kind
        In messages, before the word "model".
    estimator
        Dotted name of the class that loads them.
    """

    name: str
    kind: str
    estimator: str


# Only names, for messages about a model of another head: no head is imported.
MOLECULES = ModelFormat(
    "structdiff.molecules/1", "molecule", "structdiff.molecules.MoleculeGenerator"
)
TIME_SERIES = ModelFormat("structdiff.timeseries/1", "time series", "structdiff.timeseries.TSDiff")
EEG = ModelFormat("structdiff.timeseries.eeg/1", "EEG", "structdiff.timeseries.eeg.EEGDiffusion")
POSE = ModelFormat("structdiff.pose/1", "pose", "structdiff.pose.PoseLifter")
FORMATS = (MOLECULES, TIME_SERIES, EEG, POSE)
"""All heads' formats; a new head adds its own."""


class Estimator(Protocol):
    """The part of scikit-learn's face that storage needs."""

    def get_params(self) -> dict[str, Any]: ...

    def set_params(self, **parameters: Any) -> Any: ...


_E = TypeVar("_E", bound=Estimator)


# --- writing ---------------------------------------------------------------------------------
def check_fitted(estimator: object) -> None:
    """Raise StructDiffError for an estimator without a ``denoiser_``: there is nothing to save."""
    if not hasattr(estimator, "denoiser_"):
        raise StructDiffError(
            f"this {type(estimator).__name__} is not fitted: there is nothing to save"
        )


def write_model(
    folder: Path,
    config: Mapping[str, Any],
    weights: Mapping[str, Tensor],
    dtype: str,
    exact: Mapping[str, Tensor] | None = None,
) -> Path:
    """Write a model's two files; each appears whole or not at all.

    Parameters
    ----------
    folder
        Made if it does not exist.
    config
        Content of ``config.json``; NumPy numbers and arrays become numbers and lists.
    weights
        State of the network. Real floating-point tensors are stored as ``dtype``, others as they
        are.
    dtype
        ``"float32"`` or ``"float16"``.
    exact
        Further tensors, by names that no weight has, which keep their own type.

    Raises
    ------
    StructDiffError
        If the dtype is unknown, a weight is too large for it, a name is taken twice, or a value of
        the config has no form in JSON.
    """
    if dtype not in ("float32", "float16"):
        raise StructDiffError(f"dtype must be 'float32' or 'float16', got {dtype!r}")
    tensors = {name: _stored(name, value, dtype) for name, value in weights.items()}
    for name, value in (exact or {}).items():
        if name in tensors:
            raise StructDiffError(f"the tensor {name!r} has the name of a weight: rename it")
        tensors[name] = value.detach().cpu().contiguous()
    # Both are made before either is written: a value without a form in JSON spoils no model.
    text = json.dumps(config, indent=1, default=_plain)
    content = safetensors_bytes(tensors)
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / WEIGHTS, content)
    write_whole(folder / CONFIG, f"{text}\n".encode())
    return folder


def _stored(name: str, value: Tensor, dtype: str) -> Tensor:
    value = value.detach().cpu().contiguous()
    if not value.is_floating_point():
        return value
    stored = value.to(getattr(torch, dtype))
    if bool((stored.isinf() & value.isfinite()).any()):
        raise StructDiffError(
            f"the weight {name!r} reaches {float(value.abs().max()):.3g}, too large for {dtype}: "
            "save as 'float32'"
        )
    return stored


def _plain(value: Any) -> Any:
    """NumPy's numbers and arrays as Python's."""
    if hasattr(value, "tolist"):
        return value.tolist()
    raise StructDiffError(
        f"{value!r} of type {type(value).__name__} has no form in {CONFIG}: use plain numbers, "
        "strings, lists and tables as parameters"
    )


def write_whole(path: Path, content: bytes) -> None:
    """Write a file beside its place and move it there: a failure leaves the former file."""
    part = path.with_name(f"{path.name}.part")
    try:
        part.write_bytes(content)
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def push_model(
    save: Callable[[Path], object],
    repository: str,
    format: ModelFormat,
    private: bool,
    token: str | None,
) -> str:
    """Save into a repository of the Hugging Face hub; the address of the commit.

    Parameters
    ----------
    save
        Writes the model's files into the folder that it is given.
    repository, private
        ``"owner/name"``; made, private or not, if it does not exist.
    format
        Of the model.
    token
        Of the hub; None is the one of ``hf auth login``.
    """
    from huggingface_hub import HfApi

    api = HfApi(token=token)
    with tempfile.TemporaryDirectory() as folder:
        save(Path(folder))
        name = api.create_repo(repository, private=private, exist_ok=True).repo_id
        commit = api.upload_folder(
            repo_id=name,
            folder_path=folder,
            commit_message=f"Upload a StructDiff {format.kind} model",
        )
    return str(commit.commit_url)


# --- finding ---------------------------------------------------------------------------------
def embedded_models(format: ModelFormat) -> list[str]:
    """Names of the models of one head that the package ships."""
    return [name for name in _embedded() if _written_format(PRETRAINED / name) == format.name]


def _embedded() -> list[str]:
    return sorted(file.parent.name for file in PRETRAINED.glob(f"*/{WEIGHTS}"))


def _written_format(folder: Path) -> object:
    """The format of a model; None if its config is damaged, which reading it complains about."""
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return config.get("format") if isinstance(config, dict) else None


def find_model(
    name: str | Path, format: ModelFormat, revision: str | None = None, token: str | None = None
) -> Path:
    """The folder of a model: embedded in the package, on this disk, or fetched from the hub.

    Parameters
    ----------
    name
        Of an embedded model (of any head: :func:`read_config` says whose it is), a folder, or
        ``"owner/name"``.
    format
        Of the models that a message offers instead.
    revision, token
        Of a Hugging Face repository.

    Raises
    ------
    CheckpointError
        If there is no such model, or the repository cannot be reached.
    """
    if str(name) in _embedded():
        return PRETRAINED / str(name)
    folder = Path(name)
    if folder.is_dir():
        return folder
    if str(name).count("/") == 1 and not folder.is_absolute() and str(name)[0] not in ".~":
        return _from_hub(str(name), revision, token)
    raise CheckpointError(
        f"no model {str(name)!r}: give one of the embedded models "
        f"({', '.join(embedded_models(format)) or 'none'}), a folder with {CONFIG} and {WEIGHTS}, "
        "or a Hugging Face repository 'owner/name'"
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
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CheckpointError(
            f"{repository!r} is neither a folder nor a reachable Hugging Face repository: {reason}"
        ) from error


# --- reading ---------------------------------------------------------------------------------
def read_config(path: Path, format: ModelFormat, required: Iterable[str]) -> dict[str, Any]:
    """Read the ``config.json`` at ``path``: of one head, with at least the required parts.

    Raises
    ------
    CheckpointError
        If it is missing or damaged, of another head (the message names the estimator that loads
        it), or lacks a part.
    """
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{path.parent} holds no {path.name}: it is not a saved model"
        ) from error
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged ({error}): get the model again") from error
    if not isinstance(config, dict) or config.get("format") != format.name:
        written = config.get("format") if isinstance(config, dict) else None
        raise CheckpointError(
            f"{path} does not describe a {format.kind} model of this package"
            f"{_whose(written, format)}"
        )
    missing = set(required) - set(config)
    if missing:
        raise CheckpointError(f"{path} lacks {sorted(missing)}: get the model again")
    return config


def _whose(written: object, asked: ModelFormat) -> str:
    """Of which other head a format is, whatever its version; empty if of none."""
    head = str(written).split("/")[0]
    for known in FORMATS:
        if known != asked and known.name.split("/")[0] == head:
            return f": it is a {known.kind} model, load it with {known.estimator}.from_pretrained"
    return ""


def restored_estimator(cls: Callable[..., _E], values: Any, path: Path) -> _E:
    """An unfitted estimator with the ``parameters`` of the config at ``path``.

    Of the training are ``random_state`` (its seed would make every unseeded sample the same) and
    ``accelerator`` (its device may be absent): they are None and ``"auto"`` again.

    Raises
    ------
    CheckpointError
        If the values are no table, or name parameters that the estimator does not have.
    """
    if not isinstance(values, dict):
        raise CheckpointError(f"{path}: 'parameters' is no table: get the model again")
    known = set(cls().get_params())
    unknown = sorted(set(values) - known)
    if unknown:
        raise CheckpointError(
            f"{path} names unknown parameters {unknown}: the model was saved by a newer version"
        )
    estimator = cls(**values)
    fresh = {"random_state": None, "accelerator": "auto"}
    estimator.set_params(**{name: value for name, value in fresh.items() if name in known})
    return estimator


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file; CheckpointError if it is missing or damaged."""
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


def expected_tensors(build: Callable[[], nn.Module]) -> dict[str, Tensor]:
    """Names and shapes of the state of what ``build`` builds, without taking its memory."""
    with torch.device("meta"):
        return build().state_dict()


def check_weights(
    weights: Mapping[str, Tensor], expected: Mapping[str, Tensor], path: Path
) -> None:
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


def check_widths(settings: Mapping[str, Any]) -> None:
    """Raise ValueError, naming the setting, if a whole number at any depth is beyond 4,096."""
    for name, value in settings.items():
        if isinstance(value, Mapping):
            check_widths(value)
        elif isinstance(value, int) and not 0 <= value <= _LARGEST:
            raise ValueError(f"{name} = {value} is no width or depth up to {_LARGEST}")


@contextmanager
def naming_damage(path: Path) -> Iterator[None]:
    """Around building what ``path`` describes: what its damage raises becomes a CheckpointError."""
    try:
        yield
    except CheckpointError:
        raise
    except _DAMAGE as error:
        raise CheckpointError(
            f"{path} describes no model ({error}): get the model again"
        ) from error
