"""A head's estimator is saved, published and loaded by what it inherits; it says what it holds.

What the heads' own models survive is checked in ``tests/molecules`` and ``tests/timeseries``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sklearn.base import BaseEstimator, clone
from torch import Tensor, nn

from structdiff.errors import CheckpointError, StructDiffError
from structdiff.estimators import Contents, SavedEstimator
from structdiff.storage import ModelFormat, expected_tensors


class Line(SavedEstimator, BaseEstimator):
    """The smallest head: a linear map, and the mean of what it was fitted on."""

    _FORMAT = ModelFormat("structdiff.line/1", "line", "line.Line")
    _PARTS = ("inputs",)

    def __init__(self, width: int = 2, random_state: int | None = None) -> None:
        self.width = width
        self.random_state = random_state

    def fit(self, mean: float) -> Line:
        self.mean_, self.inputs_, self.training_ = torch.tensor(mean).double(), 3, {"loss": 0.5}
        self.denoiser_: Any = self._built()
        return self

    def _built(self) -> nn.Module:
        return nn.Linear(self.inputs_, self.width)

    def _contents(self) -> Contents:
        return Contents({"inputs": self.inputs_}, self.denoiser_.state_dict(), {"mean": self.mean_})

    def _describe(self, config: Mapping[str, Any]) -> None:
        self.inputs_ = int(config["inputs"])

    def _expected(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {**expected_tensors(self._built), "mean": torch.empty(())}

    def _assemble(self, tensors: Mapping[str, Tensor]) -> None:
        assert self.inputs_ < 100, "built before the shapes were compared"
        self.denoiser_, self.mean_ = self._built(), tensors["mean"]
        self.denoiser_.load_state_dict({k: v for k, v in tensors.items() if k != "mean"})


@pytest.fixture
def fitted() -> Line:
    return Line(random_state=7).fit(1 / 3)


def altered(folder: Path, **parts: Any) -> Path:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **parts}))
    return folder


def test_a_saved_estimator_comes_back_ready_to_be_used(fitted: Line, tmp_path: Path) -> None:
    again = Line.from_pretrained(fitted.save_pretrained(tmp_path))
    assert isinstance(again, Line) and not again.denoiser_.training
    assert torch.equal(again.denoiser_.weight, fitted.denoiser_.weight)
    assert again.training_ == {"loss": 0.5}
    assert again.get_params() == {"width": 2, "random_state": None}


def test_only_weights_take_the_asked_type(fitted: Line, tmp_path: Path) -> None:
    again = Line.from_pretrained(fitted.save_pretrained(tmp_path, dtype="float16"))
    assert torch.equal(again.denoiser_.weight, fitted.denoiser_.weight.half().float())
    assert again.mean_ == fitted.mean_ and again.mean_.dtype == torch.float64


def test_scikit_learn_sees_only_the_parameters(fitted: Line) -> None:
    assert clone(fitted).get_params() == {"width": 2, "random_state": 7}


def test_an_estimator_that_is_not_fitted_is_not_saved(tmp_path: Path) -> None:
    with pytest.raises(StructDiffError, match="this Line is not fitted"):
        Line().save_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ({"format": "structdiff.other/1"}, "does not describe a line model"),
        ({"inputs": "many"}, "describes no model"),
        ({"parameters": {"colour": 1}}, "newer version"),
    ],
)
def test_a_damaged_config_is_named(
    fitted: Line, tmp_path: Path, parts: dict[str, Any], said: str
) -> None:
    with pytest.raises(CheckpointError, match=said):
        Line.from_pretrained(altered(fitted.save_pretrained(tmp_path), **parts))


def test_a_config_without_a_needed_part_is_refused(fitted: Line, tmp_path: Path) -> None:
    path = fitted.save_pretrained(tmp_path) / "config.json"
    path.write_text(json.dumps({"format": "structdiff.line/1"}))
    with pytest.raises(CheckpointError, match=r"lacks \['inputs', 'parameters'\]"):
        Line.from_pretrained(tmp_path)


def test_nothing_is_built_before_the_shapes_were_compared(fitted: Line, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"'(bias|weight)' has shape"):
        Line.from_pretrained(altered(fitted.save_pretrained(tmp_path), inputs=10**9))


def test_a_head_that_does_not_say_what_it_holds_cannot_be_made() -> None:
    class Silent(SavedEstimator):
        pass

    with pytest.raises(TypeError, match="_assemble"):
        Silent()  # type: ignore[abstract]


def test_what_is_uploaded_is_what_is_saved(
    fitted: Line, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Api:
        def __init__(self, token: str | None) -> None:
            assert token == "secret"

        def create_repo(self, repository: str, private: bool, exist_ok: bool) -> SimpleNamespace:
            assert private
            return SimpleNamespace(repo_id=repository)

        def upload_folder(self, repo_id: str, folder_path: str, commit_message: str) -> object:
            assert commit_message == "Upload a StructDiff line model"
            again = Line.from_pretrained(folder_path)
            assert torch.equal(again.denoiser_.weight, fitted.denoiser_.weight.half().float())
            return SimpleNamespace(commit_url=f"hub/{repo_id}")

    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    url = fitted.push_to_hub("owner/name", dtype="float16", private=True, token="secret")
    assert url == "hub/owner/name"
