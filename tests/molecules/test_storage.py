"""Saved models: what is written is read back, and damage is named before anything is built."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from structdiff.datasets import load_smiles
from structdiff.errors import CheckpointError, StructDiffError
from structdiff.molecules import MoleculeGenerator
from structdiff.molecules.data import ZINC250K, read_molecules
from structdiff.molecules.storage import _SIZES

SMILES = ["CCO", "CCN", "CC=O", "C1CC1", "[O-][N+](=O)CC"] * 4
TINY = {
    "network_settings": {
        "node_width": 8,
        "edge_width": 8,
        "condition_width": 8,
        "layers": 1,
        "heads": 2,
        "walks": 2,
    },
    "max_steps": 3,
    "batch_size": 8,
    "accelerator": "cpu",
    "random_state": 0,
    "progress": False,
}


@pytest.fixture(scope="module")
def generator() -> MoleculeGenerator:
    return MoleculeGenerator(**TINY).fit(SMILES)


@pytest.fixture
def saved(generator: MoleculeGenerator, tmp_path: Path) -> Path:
    return generator.save_pretrained(tmp_path / "model")


def edit(folder: Path, change: object) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))


# --- round trip ------------------------------------------------------------------------------
def test_float32_comes_back_exactly(generator: MoleculeGenerator, saved: Path) -> None:
    again = MoleculeGenerator.from_pretrained(saved)
    expected = generator.denoiser_.network.state_dict()
    found = again.denoiser_.network.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_everything_else_comes_back(generator: MoleculeGenerator, saved: Path) -> None:
    again = MoleculeGenerator.from_pretrained(str(saved))
    fresh = {"random_state": None, "accelerator": "auto"}
    assert again.get_params() == {**generator.get_params(), **fresh}
    assert again.vocabulary_ == generator.vocabulary_
    assert again.node_counts_.tolist() == generator.node_counts_.tolist()
    assert again.training_ == generator.training_
    assert again.spec_ == generator.spec_


def test_loaded_model_samples_the_same_molecules(generator: MoleculeGenerator, saved: Path) -> None:
    again = MoleculeGenerator.from_pretrained(saved)
    expected = generator.sample_smiles(6, steps=5, random_state=1)
    assert again.sample_smiles(6, steps=5, random_state=1) == expected


def test_float16_halves_the_file_and_rounds_the_weights(
    generator: MoleculeGenerator, saved: Path, tmp_path: Path
) -> None:
    half = generator.save_pretrained(tmp_path / "half", dtype="float16")
    weights = {k: v.half().float() for k, v in generator.denoiser_.network.state_dict().items()}
    found = MoleculeGenerator.from_pretrained(half).denoiser_.network.state_dict()
    assert all(torch.equal(found[name], value) for name, value in weights.items())
    assert all(value.dtype == torch.float32 for value in found.values())
    sizes = [(f / "model.safetensors").stat().st_size for f in (half, saved)]
    assert sizes[0] < 0.7 * sizes[1]


def test_published_weights_survive_the_round_trip(weights_dir: Path, tmp_path: Path) -> None:
    made = MoleculeGenerator.from_gdss(weights_dir / "gdss" / "gdss_qm9.safetensors")
    made.set_params(progress=False)
    made.save_pretrained(tmp_path)
    again = MoleculeGenerator.from_pretrained(tmp_path)
    assert again.sample_smiles(8, steps=10, random_state=0) == made.sample_smiles(
        8, steps=10, random_state=0
    )


def test_nothing_but_the_two_files_is_left(saved: Path) -> None:
    assert sorted(f.name for f in saved.iterdir()) == ["config.json", "model.safetensors"]


def test_numpy_parameters_are_saved_as_numbers(tmp_path: Path) -> None:
    made = MoleculeGenerator(**{**TINY, "random_state": np.int64(7)}).fit(SMILES)
    again = MoleculeGenerator.from_pretrained(made.save_pretrained(tmp_path))
    assert again.training_["seed"] == 7


def test_unseeded_samples_of_a_loaded_model_differ(saved: Path) -> None:
    again = MoleculeGenerator.from_pretrained(saved)
    assert again.sample_smiles(12, steps=5) != again.sample_smiles(12, steps=5)


def test_unfitted_generator_cannot_be_saved(tmp_path: Path) -> None:
    with pytest.raises(StructDiffError, match="not fitted: there is nothing to save"):
        MoleculeGenerator().save_pretrained(tmp_path)


def test_unknown_dtype_is_refused(generator: MoleculeGenerator, tmp_path: Path) -> None:
    with pytest.raises(StructDiffError, match="dtype must be 'float32' or 'float16', got 'int8'"):
        generator.save_pretrained(tmp_path, dtype="int8")


# --- damage ----------------------------------------------------------------------------------
def test_unknown_name_lists_the_ways_to_name_a_model() -> None:
    with pytest.raises(CheckpointError, match=r"no model 'gdss-qm10': give one of the embedded"):
        MoleculeGenerator.from_pretrained("gdss-qm10")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_missing_file_is_named(saved: Path, name: str) -> None:
    (saved / name).unlink()
    with pytest.raises(CheckpointError, match=f"holds no {name}: it is not a saved model"):
        MoleculeGenerator.from_pretrained(saved)


@pytest.mark.parametrize("keep", [0, 5, 200, -1])
def test_truncated_weights_are_named(saved: Path, keep: int) -> None:
    path = saved / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=r"model\.safetensors is truncated or no safetensors"):
        MoleculeGenerator.from_pretrained(saved)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_named(saved: Path, value: float) -> None:
    weights = load_file(saved / "model.safetensors")
    weights["node_prior"][1] = value
    save_file(weights, saved / "model.safetensors")
    with pytest.raises(CheckpointError, match="'node_prior' holds NaN or infinity"):
        MoleculeGenerator.from_pretrained(saved)


def test_weights_of_another_shape_are_named(saved: Path) -> None:
    weights = load_file(saved / "model.safetensors")
    weights["edge_prior"] = torch.zeros(9)
    save_file(weights, saved / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"'edge_prior' has shape \(9,\), expected \(4,\)"):
        MoleculeGenerator.from_pretrained(saved)


@pytest.mark.parametrize("change", ["lost", "extra"])
def test_weights_of_another_network_are_named(saved: Path, change: str) -> None:
    weights = load_file(saved / "model.safetensors")
    if change == "lost":
        del weights["node_prior"]
    else:
        weights["extra"] = torch.zeros(1)
    save_file(weights, saved / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"is of another network: .* is missing or unknown"):
        MoleculeGenerator.from_pretrained(saved)


@pytest.mark.parametrize("text", ["", "{", "\x00\x01", "[1, 2]", "null", '{"format": "other"}'])
def test_damaged_config_is_named(saved: Path, text: str) -> None:
    (saved / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        MoleculeGenerator.from_pretrained(saved)


def test_a_time_series_model_is_refused_with_the_estimator_that_loads_it(saved: Path) -> None:
    edit(saved, lambda config: config.update(format="structdiff.timeseries/1"))
    with pytest.raises(
        CheckpointError,
        match=r"a time series model, load it with structdiff\.timeseries\.TSDiff\.from_pretrained",
    ):
        MoleculeGenerator.from_pretrained(saved)


@pytest.mark.parametrize("part", ["parameters", "model", "vocabulary", "node_counts"])
def test_config_without_a_part_says_which(saved: Path, part: str) -> None:
    edit(saved, lambda config: config.pop(part))
    with pytest.raises(CheckpointError, match=f"lacks \\['{part}'\\]"):
        MoleculeGenerator.from_pretrained(saved)


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c.update(parameters=[1]),
        lambda c: c.update(model="transformer"),
        lambda c: c["model"].pop("processes"),
        lambda c: c["model"].update(network="other"),
        lambda c: c["model"].update(processes={"x": {"type": "Other"}, "adj": {"type": "VP"}}),
        lambda c: c["model"].update(prediction={"x": "data"}),
        lambda c: c["model"]["network_config"].update(unknown=1),
        lambda c: c["model"]["network_config"].update(heads=0),
        lambda c: c["model"]["network_config"].update(node_width="wide"),
        lambda c: c["model"]["network_config"].update(layers=10**9),
        lambda c: c["model"]["network_config"].update(node_width=10**12),
        lambda c: c.update(vocabulary={"atom_types": [["Q", 0]], "max_atoms": 3}),
        lambda c: c.update(vocabulary=None),
        lambda c: c.update(node_counts=["many"]),
        lambda c: c.update(node_counts=[]),
        lambda c: c.update(node_counts=[0, -1]),
        lambda c: c.update(training=3),
    ],
)
def test_config_that_describes_no_model_is_refused(saved: Path, change: object) -> None:
    edit(saved, change)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        MoleculeGenerator.from_pretrained(saved)


def test_a_wide_config_takes_no_memory_before_the_shapes_are_compared(saved: Path) -> None:
    edit(saved, lambda c: c["model"]["network_config"].update(node_width=4096))
    with pytest.raises(CheckpointError, match="is of another network"):
        MoleculeGenerator.from_pretrained(saved)


def test_parameters_of_a_newer_version_are_named(saved: Path) -> None:
    edit(saved, lambda c: c["parameters"].update(magic=1))
    with pytest.raises(CheckpointError, match=r"unknown parameters \['magic'\]"):
        MoleculeGenerator.from_pretrained(saved)


def test_failed_write_leaves_the_former_model(
    generator: MoleculeGenerator, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, content: bytes) -> None:
        path.write_text("half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        generator.save_pretrained(saved)
    monkeypatch.undo()
    MoleculeGenerator.from_pretrained(saved)
    assert sorted(f.name for f in saved.iterdir()) == ["config.json", "model.safetensors"]


# --- Hugging Face ----------------------------------------------------------------------------
def test_repository_name_is_downloaded(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {}

    def download(repository: str, **options: object) -> str:
        asked.update(options, repository=repository)
        return str(saved)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    MoleculeGenerator.from_pretrained("owner/name", revision="v2", token="secret")
    assert asked == {
        "repository": "owner/name",
        "revision": "v2",
        "token": "secret",
        "allow_patterns": ["config.json", "model.safetensors"],
    }


def test_unreachable_repository_is_an_error_of_the_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def download(repository: str, **options: object) -> str:
        raise OSError("connection refused")

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    with pytest.raises(
        CheckpointError, match="nor a reachable Hugging Face repository: connection"
    ):
        MoleculeGenerator.from_pretrained("owner/name")


def test_upload_holds_a_loadable_model(
    generator: MoleculeGenerator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Api:
        def __init__(self, token: str | None) -> None:
            assert token == "secret"

        def create_repo(self, repository: str, private: bool, exist_ok: bool) -> SimpleNamespace:
            assert private and exist_ok
            return SimpleNamespace(repo_id=repository)

        def upload_folder(self, repo_id: str, folder_path: str, commit_message: str) -> object:
            shutil.copytree(folder_path, tmp_path / repo_id)
            return SimpleNamespace(commit_url=f"hub/{repo_id}/commit/1")

    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    url = generator.push_to_hub("owner/name", private=True, token="secret", dtype="float16")
    assert url == "hub/owner/name/commit/1"
    MoleculeGenerator.from_pretrained(tmp_path / "owner" / "name")


# --- published checkpoints -------------------------------------------------------------------
@pytest.mark.parametrize(("name", "types"), [("qm9", 4), ("zinc250k", 9), ("zinc250k_v2", 9)])
def test_published_molecule_checkpoints_load(weights_dir: Path, name: str, types: int) -> None:
    made = MoleculeGenerator.from_gdss(weights_dir / "gdss" / f"gdss_{name}.safetensors")
    assert len(made.vocabulary_) == types
    assert len(made.node_counts_) == made.vocabulary_.max_atoms + 1
    assert made.denoiser_.system.processes["adj"].prior_std() == 1.0


@pytest.mark.parametrize("name", ["community_small", "ego_small", "enzymes", "grid"])
def test_checkpoints_of_graphs_are_refused(weights_dir: Path, name: str) -> None:
    with pytest.raises(CheckpointError, match=r"only molecule checkpoints \(qm9, zinc250k\)"):
        MoleculeGenerator.from_gdss(weights_dir / "gdss" / f"gdss_{name}.safetensors")


def test_size_laws_hold_every_training_molecule() -> None:
    """120,803 rows less the 3 single atoms that the published sampler never draws, and 224,568."""
    assert sum(_SIZES["qm9"]) == 120_803 - 3
    assert sum(_SIZES["zinc250k"]) == 224_568


def test_size_laws_agree_with_a_slice_of_the_data(data_dir: Path) -> None:
    """The first 3,000 training rows of ZINC250k: every share within 5 standard errors."""
    train, _ = load_smiles("zinc250k")
    found = read_molecules(train[:3000], ZINC250K, drop_charges=True).node_counts
    shares = torch.tensor(_SIZES["zinc250k"]).double() / 224_568
    error = (torch.from_numpy(found) / found.sum() - shares).abs()
    assert bool((error <= 5 * torch.sqrt(shares * (1 - shares) / found.sum())).all())
