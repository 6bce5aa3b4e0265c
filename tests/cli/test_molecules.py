"""``structdiff molecules`` end to end, on the published QM9 checkpoint and a few training steps."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import structdiff
from structdiff.cli import main
from structdiff.cli.console import noting_interrupts
from structdiff.cli.tables import read_generated_csv, read_smiles_csv

ROOT = Path(structdiff.__file__).resolve().parents[1]
SMILES = [
    "C",
    "N",
    "O",
    "CC",
    "CO",
    "CN",
    "C#C",
    "C#N",
    "C=O",
    "CCO",
    "CCC",
    "CCN",
    "COC",
    "C1CC1",
    "C1CO1",
    "NC=O",
]


@pytest.fixture
def published(weights_dir: Path) -> str:
    """The QM9 checkpoint of Jo et al. 2022, converted tensor by tensor."""
    return str(weights_dir / "gdss" / "gdss_qm9.safetensors")


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def smiles_csv(workplace: Path) -> Path:
    file = workplace / "smiles.csv"
    file.write_text("smiles\n" + "\n".join(SMILES) + "\n")
    return file


def sample(model: str, *words: str) -> int:
    return main(["molecules", "sample", "--model", model, "--steps", "3", *words])


def complaint(capsys: pytest.CaptureFixture[str]) -> str:
    lines = capsys.readouterr().err.splitlines()
    found = [line for line in lines if line.startswith("structdiff: ")]
    assert len(found) == 1 and "Traceback" not in "".join(lines)
    return found[0]


# ---------------------------------------------------------------- sample


def test_sample_writes_the_molecules_and_a_picture(published: str, workplace: Path) -> None:
    assert sample(published, "--num", "5", "--seed", "0", "--out", "m.csv", "--grid", "g.png") == 0
    frame = read_generated_csv("m.csv")
    assert frame.columns.tolist() == ["smiles", "valid", "corrected"]
    assert len(frame) == 5
    assert Path("g.png").read_bytes().startswith(b"\x89PNG")
    assert not list(workplace.glob("*.part"))


def test_the_same_seed_writes_the_same_file(published: str, workplace: Path) -> None:
    for name in ("a.csv", "b.csv"):
        assert sample(published, "--num", "5", "--seed", "3", "--out", name) == 0
    assert Path("a.csv").read_bytes() == Path("b.csv").read_bytes()


def test_sample_answers_machines_in_json_alone(
    published: str, workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sample(published, "--num", "4", "--seed", "0", "--json") == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["molecules"] == 4
    assert 0 <= answer["valid before correction"] <= 1


def test_an_unknown_sampler_is_answered_with_the_known_ones(
    published: str, workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sample(published, "--num", "2", "--sampler", "eular") == 2
    line = complaint(capsys)
    assert "'eular'" in line and "dpm++" in line and "ddim" in line
    assert list(workplace.iterdir()) == []


def test_ctrl_c_writes_what_is_finished(published: str, workplace: Path) -> None:
    words = ["--model", published, "--num", "100000", "--batch-size", "8", "--steps", "3"]
    process = subprocess.Popen(
        [sys.executable, "-m", "structdiff.cli", "molecules", "sample", *words, "--out", "m.csv"],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        # A test run in the background of a shell inherits an ignored SIGINT.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    part = workplace / "m.csv.part"
    while process.poll() is None and not (part.is_file() and part.stat().st_size):
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, messages = process.communicate(timeout=60)
    assert process.returncode == 130, messages
    finished = len(read_generated_csv("m.csv"))
    assert finished >= 8 and finished % 8 == 0
    assert f"{finished:,} of 100,000 molecules are finished and written to m.csv" in messages
    assert "Traceback" not in messages


class Finalised:
    """Ctrl-C comes while this is collected."""

    def __del__(self) -> None:
        signal.raise_signal(signal.SIGINT)


@pytest.fixture
def heard() -> Iterator[None]:
    """Ctrl-C is heard, also where the tests run in the background of a shell, which ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("heard")
def test_an_interrupt_that_got_lost_stops_at_the_next_batch_without_a_traceback(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "unraisablehook", sys.__unraisablehook__)
    with noting_interrupts() as asked:
        Finalised()
        assert asked
    assert capsys.readouterr().err == ""
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert sys.unraisablehook is sys.__unraisablehook__


@pytest.mark.usefixtures("heard")
def test_an_interrupt_waits_for_the_row_being_written_and_a_second_does_not() -> None:
    with noting_interrupts() as asked:
        with asked.held():
            signal.raise_signal(signal.SIGINT)
            assert asked
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


# ---------------------------------------------------------------- checkpoints that cannot be used


def damaged_copy(published: str, workplace: Path) -> Path:
    copy = workplace / "gdss_qm9.safetensors"
    shutil.copy(published, copy)
    shutil.copy(Path(published).with_suffix(".json"), copy.with_suffix(".json"))
    copy.chmod(0o644)
    return copy


def test_a_truncated_checkpoint_is_named(
    published: str, workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = damaged_copy(published, workplace)
    copy.write_bytes(copy.read_bytes()[:5_000])
    assert sample(str(copy), "--num", "2", "--out", "m.csv") == 2
    assert "gdss_qm9.safetensors" in complaint(capsys)
    assert not Path("m.csv").exists()


def test_weights_that_are_not_numbers_are_named(
    published: str, workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = damaged_copy(published, workplace)
    tensors = load_file(copy)
    name = next(name for name, value in tensors.items() if value.is_floating_point())
    tensors[name] = torch.full_like(tensors[name], float("nan"))
    save_file(tensors, copy)
    assert sample(str(copy), "--num", "2", "--out", "m.csv") == 2
    line = complaint(capsys)
    assert "gdss_qm9.safetensors" in line and "NaN" in line


class Hostile:
    """A pickle that runs a command when it is loaded."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch executed",)


def test_a_hostile_checkpoint_is_refused_and_nothing_is_run(
    workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({"params_x": Hostile()}, "hostile.pth")
    Path("plain.pth").write_bytes(pickle.dumps(Hostile()))
    for name in ("hostile.pth", "plain.pth"):
        assert sample(name, "--num", "2") == 2
        assert name in complaint(capsys)
    assert not Path("executed").exists()


# ---------------------------------------------------------------- train, evaluate, info


def test_a_model_is_trained_resumed_described_and_sampled(
    smiles_csv: Path, workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["molecules", "train", str(smiles_csv), "--out", "model", "--seed", "0"]
    assert main([*words, "--max-steps", "2", "--batch-size", "8"]) == 0
    assert main([*words, "--max-steps", "4", "--batch-size", "8", "--resume"]) == 0
    capsys.readouterr()
    assert main(["molecules", "info", "model", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["parameters"] > 0
    assert sample("model", "--num", "3", "--out", "m.csv") == 0
    assert len(read_smiles_csv("m.csv")) == 3


def test_rows_that_cannot_be_used_are_counted(
    workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [*SMILES, "", "not a molecule", "[Xe]", "C.C", "C" * 30]
    Path("s.csv").write_text("smiles\n" + "\n".join(rows) + "\n")
    words = ["molecules", "train", "s.csv", "--out", "model", "--preset", "qm9"]
    assert main([*words, "--max-steps", "1"]) == 0
    assert "16 of 21 records usable" in capsys.readouterr().err


def test_a_file_without_a_usable_row_is_code_2(
    workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("s.csv").write_text("smiles\n[Xe]\nnonsense\n")
    assert main(["molecules", "train", "s.csv", "--out", "model", "--preset", "qm9"]) == 2
    assert "s.csv: no" in complaint(capsys)


def test_evaluate_scores_a_file_against_a_file(
    smiles_csv: Path, workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("m.csv").write_text("smiles,valid,corrected\nCCO,True,False\nC,True,False\nC,False,True\n")
    words = ["molecules", "evaluate", "m.csv", "--reference", str(smiles_csv), "--no-fcd", "--json"]
    assert main([*words, "--train", str(smiles_csv), "--plot", "p.png"]) == 0
    scores = json.loads(capsys.readouterr().out)
    assert scores["novelty"] == 0.0  # every generated molecule is in the training file
    assert Path("p.png").read_bytes().startswith(b"\x89PNG")
