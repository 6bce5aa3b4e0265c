"""A run killed at any moment and resumed is the run that was never interrupted, bit for bit."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

import structdiff
from structdiff.errors import CheckpointError, StructDiffError
from structdiff.molecules import MoleculeGenerator
from structdiff.training import DiffusionModule

STEPS, EVERY = 42, 7
# 31 molecules in batches of 6: epochs of 5 steps, so that checkpoints fall inside epochs and, at
# step 35, on the end of one.
SMILES = [
    *("C" * n + tail for n in range(1, 7) for tail in ("", "O", "N", "C=O", "C#N")),
    "CC(C)O",
]
SETTINGS = {
    "network_settings": {
        "node_width": 8,
        "edge_width": 8,
        "condition_width": 8,
        "layers": 1,
        "heads": 2,
        "walks": 2,
    },
    "max_steps": STEPS,
    "batch_size": 6,
    "learning_rate": 1e-2,
    "ema_decay": 0.9,
    "checkpoint_every": EVERY,
    "accelerator": "cpu",
    "random_state": 3,
    "progress": False,
}
# Kill the process from inside, at a moment that a test can name.
RUN = """
import os, signal, sys
import torch
torch.set_num_threads(1)
sys.path.insert(0, {folder!r})
from test_resume import SETTINGS, SMILES
from structdiff.molecules import MoleculeGenerator
from structdiff.training import DiffusionModule
import structdiff.training.checkpoints as checkpoints

def die():
    os.kill(os.getpid(), signal.SIGKILL)

{sabotage}
MoleculeGenerator(**SETTINGS).fit(SMILES, out={out!r})
"""
IN_A_STEP = """
step = DiffusionModule.training_step
def dying(self, batch, batch_idx):
    loss = step(self, batch, batch_idx)
    if self.trainer.global_step == {step}:
        die()
    return loss
DiffusionModule.training_step = dying
"""
IN_A_WRITE = """
sync = os.fsync
def dying(descriptor, count=[0]):
    count[0] += 1
    if count[0] == 3:
        os.ftruncate(descriptor, 1000)
        die()
    sync(descriptor)
checkpoints.os.fsync = dying
"""


def _fit(out: Path, resume: bool = False, **changes: object) -> MoleculeGenerator:
    return MoleculeGenerator(**{**SETTINGS, **changes}).fit(SMILES, out=out, resume=resume)


def _killed_run(out: Path, sabotage: str) -> None:
    script = RUN.format(folder=str(Path(__file__).parent), out=str(out), sabotage=sabotage)
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        env={
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(Path(structdiff.__file__).parents[1]),
        },
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr


def _curve(out: Path) -> list[dict[str, str]]:
    with open(out / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def _checkpoint(out: Path) -> dict:
    return torch.load(out / "checkpoints" / "last.ckpt", weights_only=True)


def _assert_equal(a: object, b: object, where: str = "") -> None:
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            _assert_equal(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, list):
        assert len(a) == len(b), where
        for number, pair in enumerate(zip(a, b, strict=True)):
            _assert_equal(*pair, f"{where}[{number}]")
    else:
        assert a == b, where


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole")
    _fit(out)
    return out


@pytest.mark.parametrize(
    ("sabotage", "saved"),
    [
        # Inside step 18, four steps after a checkpoint in the middle of an epoch.
        (IN_A_STEP.format(step=18), 14),
        # Inside step 36, just after a checkpoint that ends an epoch.
        (IN_A_STEP.format(step=36), 35),
        # While the third checkpoint, of step 21, is written: the second must still be whole.
        (IN_A_WRITE, 14),
    ],
    ids=["in_a_step", "after_an_epoch", "in_a_write"],
)
def test_killed_and_resumed_run_equals_the_uninterrupted_one(
    whole: Path, tmp_path: Path, sabotage: str, saved: int
) -> None:
    _killed_run(tmp_path, sabotage)
    assert _checkpoint(tmp_path)["global_step"] == saved
    _fit(tmp_path, resume=True)
    assert _curve(tmp_path) == _curve(whole)
    resumed, uninterrupted = _checkpoint(tmp_path), _checkpoint(whole)
    for part in (
        "state_dict",  # the average
        "current_model_state",
        "averaging_state",
        "optimizer_states",
        "lr_schedulers",
        "batches_seen",
        "global_step",
    ):
        _assert_equal(resumed[part], uninterrupted[part], part)


def test_the_curve_has_every_logged_step_once(whole: Path) -> None:
    assert [int(row["step"]) for row in _curve(whole)] == [10, 20, 30, 40, 42]


def test_finished_run_resumes_to_the_same_average(whole: Path) -> None:
    again = _fit(whole, resume=True)
    stored = _checkpoint(whole)["state_dict"]
    for name, value in again.denoiser_.network.state_dict().items():
        assert torch.equal(value, stored[f"denoiser.network.{name}"]), name


def test_the_last_checkpoint_keeps_raw_weights_beside_the_average(whole: Path) -> None:
    last, name = _checkpoint(whole), "denoiser.network.node_prior"
    assert not torch.equal(last["state_dict"][name], last["current_model_state"][name])


def test_finished_run_goes_on_with_more_steps(tmp_path: Path) -> None:
    _fit(tmp_path)
    _fit(tmp_path, resume=True, max_steps=49)
    assert _checkpoint(tmp_path)["global_step"] == 49
    assert [int(row["step"]) for row in _curve(tmp_path)] == [10, 20, 30, 40, 42, 49]


def test_folder_with_a_run_is_not_overwritten(whole: Path) -> None:
    with pytest.raises(CheckpointError, match="already holds a training run: resume it"):
        _fit(whole)


def test_resume_without_a_checkpoint_starts_from_the_beginning(tmp_path: Path) -> None:
    _fit(tmp_path, resume=True, max_steps=2)
    assert _checkpoint(tmp_path)["global_step"] == 2


def test_resume_with_another_model_says_so(whole: Path) -> None:
    settings = {**SETTINGS["network_settings"], "node_width": 16}
    with pytest.raises(CheckpointError, match="run of another model"):
        _fit(whole, resume=True, network_settings=settings, max_steps=50)


@pytest.mark.parametrize(
    ("change", "named"), [({"batch_size": 5}, "batch_size = 6"), ({"random_state": 4}, "seed = 3")]
)
def test_resume_with_another_data_order_says_so(whole: Path, change: dict, named: str) -> None:
    with pytest.raises(CheckpointError, match=named):
        _fit(whole, resume=True, max_steps=50, **change)


def test_resume_with_fewer_steps_than_taken_says_so(whole: Path) -> None:
    with pytest.raises(StructDiffError, match="a run of 42 steps already"):
        _fit(whole, resume=True, max_steps=41)


def test_truncated_checkpoint_is_named(whole: Path, tmp_path: Path) -> None:
    content = (whole / "checkpoints" / "last.ckpt").read_bytes()
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.ckpt").write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match=r"last\.ckpt is no readable checkpoint"):
        _fit(tmp_path, resume=True)


class _Hostile:
    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.victim),)


def test_no_pickle_is_executed_on_resume(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    hostile = {"state_dict": {}, "global_step": 1, "extra": _Hostile(tmp_path / "executed")}
    torch.save(hostile, tmp_path / "checkpoints" / "last.ckpt")
    with pytest.raises(CheckpointError, match="no readable checkpoint"):
        _fit(tmp_path, resume=True)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("sent", "raised"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)]
)
def test_asked_to_stop_it_saves_a_checkpoint_from_which_the_run_is_the_same(
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    sent: signal.Signals,
    raised: type[BaseException],
) -> None:
    step = DiffusionModule.training_step

    def interrupted(self: DiffusionModule, batch: object, batch_idx: int) -> torch.Tensor:
        if self.trainer.global_step == 16:
            os.kill(os.getpid(), sent)
        return step(self, batch, batch_idx)

    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch, pytest.raises(raised) as caught:
        patch.setattr(DiffusionModule, "training_step", interrupted)
        _fit(tmp_path)
    if raised is SystemExit:
        assert caught.value.code == 143
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers
    assert _checkpoint(tmp_path)["global_step"] == 17
    _fit(tmp_path, resume=True)
    assert _curve(tmp_path) == _curve(whole)
    _assert_equal(_checkpoint(tmp_path)["state_dict"], _checkpoint(whole)["state_dict"])


def test_full_disk_leaves_the_former_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from structdiff.training import checkpoints

    def full(descriptor: int, count: list[int] = [0]) -> None:  # noqa: B006
        count[0] += 1
        if count[0] == 2:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        _fit(tmp_path)
    assert _checkpoint(tmp_path)["global_step"] == EVERY
    assert [f.name for f in (tmp_path / "checkpoints").iterdir()] == ["last.ckpt"]
