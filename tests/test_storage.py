"""Storage that every head shares: formats keep heads apart, files are whole, damage is named.

What a whole model survives is checked with the heads' own estimators, in ``tests/molecules``.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from structdiff import storage
from structdiff.errors import CheckpointError, StructDiffError
from structdiff.storage import MOLECULES, TIME_SERIES


class Toy:
    """The smallest estimator: two parameters and the two that a loaded model forgets."""

    def __init__(
        self,
        width: int = 3,
        rate: float = 0.1,
        random_state: int | None = None,
        accelerator: str = "auto",
    ) -> None:
        self.values = {
            "width": width,
            "rate": rate,
            "random_state": random_state,
            "accelerator": accelerator,
        }

    def get_params(self) -> dict[str, Any]:
        return dict(self.values)

    def set_params(self, **parameters: Any) -> Toy:
        self.values.update(parameters)
        return self


class Seedless:
    """An estimator without ``random_state`` and ``accelerator``."""

    def __init__(self, width: int = 3) -> None:
        self.width = width

    def get_params(self) -> dict[str, Any]:
        return {"width": self.width}

    def set_params(self, **parameters: Any) -> Seedless:
        assert set(parameters) <= {"width"}
        return self


WEIGHTS = {"w": torch.arange(6.0).reshape(2, 3)}


def config(format: storage.ModelFormat, **parts: Any) -> dict[str, Any]:
    return {"format": format.name, "parameters": {"width": 4}, **parts}


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package that ships one model of each head, and one whose config is damaged."""
    root = tmp_path / "pretrained"
    monkeypatch.setattr(storage, "PRETRAINED", root)
    storage.write_model(root / "gdss-toy", config(MOLECULES), WEIGHTS, "float32")
    storage.write_model(root / "tsdiff-toy", config(TIME_SERIES), WEIGHTS, "float32")
    storage.write_model(root / "broken", config(TIME_SERIES), WEIGHTS, "float32")
    (root / "broken" / "config.json").write_text("{")
    return root


# --- heads -----------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("format", "names"), [(MOLECULES, ["gdss-toy"]), (TIME_SERIES, ["tsdiff-toy"])]
)
def test_embedded_models_are_those_of_the_asked_head(
    shipped: Path, format: storage.ModelFormat, names: list[str]
) -> None:
    assert storage.embedded_models(format) == names


def test_the_package_ships_the_molecule_model_under_its_name() -> None:
    assert "gdss-qm9" in storage.embedded_models(MOLECULES)
    assert "gdss-qm9" not in storage.embedded_models(TIME_SERIES)


@pytest.mark.parametrize(
    ("name", "asked", "said"),
    [
        (
            "tsdiff-toy",
            MOLECULES,
            "does not describe a molecule model of this package: it is a time series model, load "
            "it with structdiff.timeseries.TSDiff.from_pretrained",
        ),
        (
            "gdss-toy",
            TIME_SERIES,
            "does not describe a time series model of this package: it is a molecule model, load "
            "it with structdiff.molecules.MoleculeGenerator.from_pretrained",
        ),
    ],
)
def test_a_model_of_another_head_names_the_estimator_that_loads_it(
    shipped: Path, name: str, asked: storage.ModelFormat, said: str
) -> None:
    folder = storage.find_model(name, asked)
    with pytest.raises(CheckpointError) as raised:
        storage.read_config(folder / "config.json", asked, ["parameters"])
    assert str(raised.value) == f"{folder / 'config.json'} {said}"


def test_another_head_is_named_whatever_its_version(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text('{"format": "structdiff.timeseries/9"}')
    with pytest.raises(CheckpointError, match=r"load it with structdiff\.timeseries\.TSDiff"):
        storage.read_config(path, MOLECULES, [])


@pytest.mark.parametrize(
    "text", ['{"format": "structdiff.molecules/9"}', '{"format": [1]}', "{}", "[]", "3"]
)
def test_a_config_of_no_other_head_offers_no_other_estimator(tmp_path: Path, text: str) -> None:
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(CheckpointError, match=r"a molecule model of this package$"):
        storage.read_config(path, MOLECULES, [])


def test_an_unknown_name_lists_only_models_of_the_head(shipped: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no model 'nix': .* models \(tsdiff-toy\), a fold"):
        storage.find_model("nix", TIME_SERIES)


def test_a_damaged_embedded_model_is_found_so_that_its_damage_is_named(shipped: Path) -> None:
    folder = storage.find_model("broken", TIME_SERIES)
    with pytest.raises(CheckpointError, match=r"broken/config\.json is damaged"):
        storage.read_config(folder / "config.json", TIME_SERIES, [])


def test_formats_are_named_after_the_module_of_their_estimator() -> None:
    for format in storage.FORMATS:
        assert format.name.split("/")[0] == format.estimator.rpartition(".")[0]


# --- files -----------------------------------------------------------------------------------
def test_a_model_in_a_folder_comes_back(tmp_path: Path) -> None:
    storage.write_model(tmp_path / "a" / "b", config(TIME_SERIES, h=24), WEIGHTS, "float32")
    folder = storage.find_model(tmp_path / "a" / "b", TIME_SERIES)
    found = storage.read_config(folder / "config.json", TIME_SERIES, ["h"])
    assert found == config(TIME_SERIES, h=24)
    assert torch.equal(storage.read_weights(folder / "model.safetensors")["w"], WEIGHTS["w"])


def test_only_real_weights_take_the_stored_type(tmp_path: Path) -> None:
    weights = {
        "real": torch.ones(2),
        "count": torch.tensor([70_000]),  # beyond float16
        "flag": torch.tensor([True]),
    }
    exact = {"covariance": torch.full((2, 2), 1 / 3, dtype=torch.float64)}
    storage.write_model(tmp_path, config(TIME_SERIES), weights, "float16", exact)
    found = storage.read_weights(tmp_path / "model.safetensors")
    assert {name: value.dtype for name, value in found.items()} == {
        "real": torch.float16,
        "count": torch.int64,
        "flag": torch.bool,
        "covariance": torch.float64,
    }
    assert found["count"].item() == 70_000
    assert torch.equal(found["covariance"], exact["covariance"])


def test_an_exact_tensor_may_not_take_the_name_of_a_weight(tmp_path: Path) -> None:
    with pytest.raises(StructDiffError, match="'w' has the name of a weight"):
        storage.write_model(tmp_path, {}, WEIGHTS, "float32", exact={"w": torch.ones(1)})


def test_a_weight_beyond_float16_is_refused_when_it_is_saved(tmp_path: Path) -> None:
    """The largest float16 is 65504; a file with infinity could not be loaded again."""
    weights = {"small": torch.ones(1), "large": torch.tensor([-1e5, 1.0])}
    with pytest.raises(StructDiffError, match=r"'large' reaches 1e\+05, too large for float16"):
        storage.write_model(tmp_path / "half", {}, weights, "float16")
    assert not (tmp_path / "half").exists()


def test_numpy_in_a_config_becomes_plain(tmp_path: Path) -> None:
    parts = {"one": np.float32(0.5), "many": np.arange(3), "tensor": torch.ones(2)}
    storage.write_model(tmp_path, config(TIME_SERIES, **parts), WEIGHTS, "float32")
    found = json.loads((tmp_path / "config.json").read_text())
    assert [found[name] for name in parts] == [0.5, [0, 1, 2], [1.0, 1.0]]


def test_a_config_without_a_form_in_json_leaves_the_former_model(tmp_path: Path) -> None:
    storage.write_model(tmp_path, config(TIME_SERIES), WEIGHTS, "float32")
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    other = {"w": torch.zeros(2, 3)}
    with pytest.raises(StructDiffError, match=r"of type object has no form in config\.json"):
        storage.write_model(tmp_path, config(TIME_SERIES, odd=object()), other, "float32")
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_an_unfitted_estimator_is_named() -> None:
    with pytest.raises(StructDiffError, match="this Toy is not fitted: there is nothing to save"):
        storage.check_fitted(Toy())


# --- restoring -------------------------------------------------------------------------------
def test_parameters_come_back_but_those_of_the_former_machine(tmp_path: Path) -> None:
    saved = {"width": 5, "rate": 0.2, "random_state": 7, "accelerator": "gpu"}
    again = storage.restored_estimator(Toy, saved, tmp_path)
    assert again.get_params() == {**saved, "random_state": None, "accelerator": "auto"}


def test_an_estimator_without_a_seed_gets_none(tmp_path: Path) -> None:
    assert storage.restored_estimator(Seedless, {"width": 5}, tmp_path).width == 5


@pytest.mark.parametrize(
    ("values", "said"), [([1], "'parameters' is no table"), ({"z": 1}, r"parameters \['z'\]")]
)
def test_odd_parameters_are_refused(tmp_path: Path, values: object, said: str) -> None:
    with pytest.raises(CheckpointError, match=said):
        storage.restored_estimator(Toy, values, tmp_path)


def test_expected_tensors_take_no_memory() -> None:
    """2^18 squared numbers of 4 bytes are 256 GiB."""
    expected = storage.expected_tensors(lambda: nn.Linear(2**18, 2**18))
    assert {name: tuple(value.shape) for name, value in expected.items()} == {
        "weight": (2**18, 2**18),
        "bias": (2**18,),
    }
    assert all(value.is_meta for value in expected.values())


@pytest.mark.parametrize("settings", [{"a": 4097}, {"a": -1}, {"b": {"a": 10**12}}])
def test_widths_out_of_bounds_are_refused_at_any_depth(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"a = -?\d+ is no width or depth up to 4096"):
        storage.check_widths(settings)


def test_widths_up_to_the_largest_pass() -> None:
    storage.check_widths({"a": 4096, "b": 0, "c": 1e9, "d": "wide", "e": {"f": True}})


@pytest.mark.parametrize("error", [KeyError("x"), TypeError("x"), RuntimeError("x")])
def test_damage_is_an_error_of_the_file(error: Exception) -> None:
    with (
        pytest.raises(CheckpointError, match=r"^m/config\.json describes no model \(.*x.*\): get"),
        storage.naming_damage(Path("m/config.json")),
    ):
        raise error


def test_a_checkpoint_error_keeps_its_words() -> None:
    with (
        pytest.raises(CheckpointError, match=r"^as it is$"),
        storage.naming_damage(Path("config.json")),
    ):
        raise CheckpointError("as it is")


# --- Hugging Face ----------------------------------------------------------------------------
def test_an_upload_says_the_kind_and_holds_what_was_saved(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: dict[str, Any] = {}

    class Api:
        def __init__(self, token: str | None) -> None:
            sent["token"] = token

        def create_repo(self, repository: str, private: bool, exist_ok: bool) -> SimpleNamespace:
            sent["private"] = private
            return SimpleNamespace(repo_id=repository)

        def upload_folder(self, repo_id: str, folder_path: str, commit_message: str) -> object:
            files = [file.name for file in Path(folder_path).iterdir()]
            sent.update(repository=repo_id, message=commit_message, files=files)
            return SimpleNamespace(commit_url="the address")

    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    url = storage.push_model(
        lambda folder: (folder / "one").touch(), "owner/name", TIME_SERIES, False, "secret"
    )
    assert url == "the address"
    assert sent == {
        "token": "secret",
        "private": False,
        "repository": "owner/name",
        "message": "Upload a StructDiff time series model",
        "files": ["one"],
    }


def test_an_unreachable_repository_without_a_reason_names_the_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def download(repository: str, **options: object) -> str:
        raise ConnectionError

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    with pytest.raises(CheckpointError, match="reachable Hugging Face repository: ConnectionError"):
        storage.find_model("owner/name", TIME_SERIES)
