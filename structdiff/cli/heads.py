"""Any model of any head by name: the head is what its ``config.json`` says.

A head enters with one line in ``_HEADS``: the format that its ``save_pretrained`` writes, and a
function that loads a model for :mod:`structdiff.samplers.comparison`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from structdiff.cli.info import embedded_models
from structdiff.errors import StructDiffError

if TYPE_CHECKING:
    from structdiff.samplers.comparison import ComparableModel

_TESTBED = "testbed:"
#: Files of weights that are read as published GDSS molecule checkpoints.
_CHECKPOINTS = {".pth", ".pt", ".safetensors"}


def load_comparable(
    model: str, reference: str | None = None, batch_size: int | None = None
) -> ComparableModel:
    """A model whose samplers can be compared.

    Parameters
    ----------
    model
        ``testbed:NAME``, an embedded model, a folder, owner/name on Hugging Face, or a checkpoint.
    reference
        What its objects are compared with, as its head reads it; the model's own by default.
    batch_size
        Objects at a time; the model's own by default.

    Raises
    ------
    StructDiffError
        If there is no such model, it is of no known head, or it needs a reference.
    """
    if model.startswith(_TESTBED):
        for option, value in (("--reference", reference), ("--batch-size", batch_size)):
            if value is not None:
                raise StructDiffError(
                    f"{option} {value}: {model} is its own reference, drawn at once; leave it out"
                )
        from structdiff.samplers.testbed_models import testbed_model

        return testbed_model(model[len(_TESTBED) :])
    return _HEADS[_head(model)](model, reference, batch_size)


def _head(model: str) -> str:
    """Which head a model belongs to."""
    if Path(model).suffix.lower() in _CHECKPOINTS:
        return "structdiff.molecules"
    config = _config(model)
    try:
        values = json.loads(config.read_text(encoding="utf-8"))
    except ValueError as error:
        raise StructDiffError(f"{config}: not JSON ({error}); save or fetch it again") from error
    written = values.get("format") if isinstance(values, dict) else None
    head = str(written).split("/")[0]
    if head not in _HEADS:
        raise StructDiffError(
            f"{config}: its format {written!r} is of no head of this version "
            f"({', '.join(_HEADS)}); save the model again, or update structdiff"
        )
    return head


def _config(model: str) -> Path:
    """Where a model's ``config.json`` lies."""
    for folder in embedded_models():
        if folder.name == model:
            return folder / "config.json"
    if model and Path(model).is_dir():
        config = Path(model) / "config.json"
        if not config.is_file():
            raise StructDiffError(f"{model} holds no config.json: it is not a saved model")
        return config
    if model.count("/") == 1 and not model.startswith((".", "/", "~")):
        return _from_hub(model)
    known = ", ".join(folder.name for folder in embedded_models()) or "none"
    raise StructDiffError(
        f"{model}: no such model; give an embedded model ({known}), testbed:gmm3, a folder, a "
        "checkpoint file, or a Hugging Face repository 'owner/name'"
    )


def _from_hub(repository: str) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(repository, "config.json"))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise StructDiffError(
            f"{repository!r} is neither a folder nor a reachable Hugging Face repository: {reason}"
        ) from error


def _molecules(model: str, reference: str | None, batch_size: int | None) -> ComparableModel:
    from structdiff.cli.molecules import load_model, load_reference
    from structdiff.molecules.comparison import MoleculeComparison

    generator = load_model(model)
    if batch_size is not None:
        generator.set_params(batch_size=batch_size)
    if reference is None:
        own = _own_reference(model)
        if own is None:
            raise StructDiffError(
                f"{model} has no reference statistics: pass --reference, a CSV of test molecules "
                "or an embedded model's statistics (gdss-qm9)"
            )
        reference = str(own)
    return MoleculeComparison(generator, load_reference(reference), name=model)


def _series(model: str, reference: str | None, batch_size: int | None) -> ComparableModel:
    from structdiff import datasets
    from structdiff.cli.series_files import naming
    from structdiff.cli.series_models import load_model, series_for
    from structdiff.cli.timeseries import DEMO_MODEL, DEMO_SERIES
    from structdiff.timeseries.comparison import WindowComparison

    if batch_size is not None:
        raise StructDiffError(
            f"--batch-size {batch_size}: windows are drawn in batches of their own; leave it out"
        )
    if reference is None and model != DEMO_MODEL:
        raise StructDiffError(
            f"{model} has no series to compare with: pass --reference, a CSV of real series"
        )
    loaded = load_model(model, {})
    path = datasets.path(DEMO_SERIES) if reference is None else Path(reference)
    series = series_for(loaded, path, (None, None, None), False, False)
    with naming(path):
        return WindowComparison(loaded, loaded.panel_of(series.frame), name=model)


def _poses(model: str, reference: str | None, batch_size: int | None) -> ComparableModel:
    from structdiff.cli.pose import DEMO_CLIPS, DEMO_MODEL
    from structdiff.cli.pose_files import naming, read_clips
    from structdiff.cli.pose_models import load_lifter, skeleton_of
    from structdiff.pose.comparison import LifterComparison

    if batch_size is not None:
        raise StructDiffError(
            f"--batch-size {batch_size}: windows are lifted in batches of their own; leave it out"
        )
    if reference is None and model != DEMO_MODEL:
        raise StructDiffError(
            f"{model} has no clips to compare with: pass --reference, a file with 2D and 3D joints "
            f"or {DEMO_CLIPS}"
        )
    loaded = load_lifter(model)
    place = reference or DEMO_CLIPS
    clips = read_clips(place, spatial=True, detected=reference is None, to=skeleton_of(loaded))
    with naming(place):
        return LifterComparison(loaded, clips, name=model)


def _own_reference(model: str) -> Path | None:
    """The reference statistics beside a model's weights."""
    folders = [folder for folder in embedded_models() if folder.name == model] or [Path(model)]
    file = folders[0] / "reference.safetensors"
    return file if file.is_file() else None


_HEADS: dict[str, Callable[[str, str | None, int | None], Any]] = {
    "structdiff.molecules": _molecules,
    "structdiff.timeseries": _series,
    "structdiff.pose": _poses,
}
