"""``structdiff pose demo`` with the embedded model, as a new user runs it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from structdiff.cli import main
from structdiff.pose import evaluate
from structdiff.pose.data import load_cmu17_demo
from structdiff.pose.readers import read_hypotheses

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one run of the demo leaves behind."""
    folder = tmp_path_factory.mktemp("demo")
    names = {"--out": "p.npz", "--plot": "p.png", "--video": "p.mp4"}
    words = [word for option, name in names.items() for word in (option, str(folder / name))]
    assert main(["pose", "demo", *words]) == 0
    return folder


def test_the_demo_needs_nothing_and_writes_poses_a_picture_and_a_film(made: Path) -> None:
    assert {file.name for file in made.iterdir()} == {"p.npz", "p.png", "p.mp4"}
    assert (made / "p.png").read_bytes().startswith(b"\x89PNG")
    assert b"ftyp" in (made / "p.mp4").read_bytes()[:16]


def test_its_poses_are_better_than_one_frame_tells(made: Path) -> None:
    # 71.7 mm: ridge regression of one frame with detected keypoints, all of CMU17's test clips.
    drawn = read_hypotheses(made / "p.npz")
    clips = load_cmu17_demo(detected=True)
    table = evaluate([drawn[clip.name] for clip in clips], clips, protocol="h36m")
    assert table.loc["all frames", "MPJPE"] < 71.7
    assert 60 < table.loc["all frames", "coverage (80 %)"] < 95


def test_the_demo_answers_machines_in_json_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["pose", "demo", "--json", "--video", "p.gif"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert list(answer) == ["walking", "jumping", "all frames"]
    assert answer["all frames"]["frames"] == 720
    assert np.isfinite([row["MPJPE (mm)"] for row in answer.values()]).all()


def test_the_embedded_model_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pose", "info", "--json"]) == 0
    assert "ddhpose-cmu17" in [each["name"] for each in json.loads(capsys.readouterr().out)]
