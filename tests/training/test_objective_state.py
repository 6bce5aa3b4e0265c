"""What an objective remembers is stored with checkpoints, and a resumed run goes on exactly."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn

import structdiff
from structdiff.denoisers import Denoiser
from structdiff.errors import CheckpointError
from structdiff.objectives import CurlPenalty, Curriculum, DenoisingScoreMatching
from structdiff.processes import VP, System
from structdiff.state import State
from structdiff.training import DiffusionModule, ShuffledBatches, TrainingSettings, fit


class Linear(nn.Module):
    """x0 = A x: a Jacobian with a curl."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.tensor([[0.5, 0.4], [-0.3, 0.2]]))

    def forward(self, x: State, log_snr: dict[str, Tensor], condition: object = None) -> State:
        return State({"x": x["x"] @ self.matrix.T})


class Watch(pl.Callback):
    """Stage of the curriculum, and loss, after every step."""

    def __init__(self) -> None:
        self.stages: list[int] = []
        self.losses: list[float] = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self.stages.append(pl_module.objective.time_law.stage)
        self.losses.append(float(outputs["loss"].detach()))


def objective(patience: int = 3) -> DenoisingScoreMatching:
    law = Curriculum(clusters=4, patience=patience, smoothing=0.5)
    return DenoisingScoreMatching(law, regularizers=[CurlPenalty(0.1, every=4)])


def train(steps: int, out: Path | None = None, resume: bool = False, **changes: object):
    module = DiffusionModule(Denoiser(Linear(), System(VP()), "data"), objective(**changes))
    points = torch.randn(24, 2, generator=torch.Generator().manual_seed(0))
    batches = ShuffledBatches(24, 6, lambda numbers: State({"x": points[numbers]}))
    settings = TrainingSettings(steps, accelerator="cpu", progress=False, checkpoint_every=5)
    watch = Watch()
    fit(module, batches, settings, out=out, resume=resume, callbacks=[watch])
    return module, watch


def test_training_advances_the_curriculum() -> None:
    module, watch = train(40)
    assert sorted(set(watch.stages)) == [1, 2, 3, 4]
    assert module.objective.step == 40


def test_a_resumed_run_continues_stage_and_counters(tmp_path: Path) -> None:
    """Interrupted inside a stage and between due steps of the regulariser: the same losses, stages
    and weights, bit for bit.
    """
    whole, watched = train(30)
    train(13, tmp_path)
    second, rest = train(30, tmp_path, resume=True)
    assert rest.stages == watched.stages[13:]
    assert rest.losses == watched.losses[13:]
    assert torch.equal(second.denoiser.network.matrix, whole.denoiser.network.matrix)
    assert second.objective.state_dict() == whole.objective.state_dict()


def test_another_curriculum_cannot_take_over_a_run(tmp_path: Path) -> None:
    train(5, tmp_path)
    with pytest.raises(CheckpointError, match="whose patience is 3, not 4"):
        train(10, tmp_path, resume=True, patience=4)


def test_a_checkpoint_without_the_state_of_an_objective_still_resumes() -> None:
    """Runs from before objectives had a state: their step is the number of batches."""
    module = DiffusionModule(Denoiser(Linear(), System(VP()), "data"), DenoisingScoreMatching())
    module.on_load_checkpoint({"batches_seen": 17})
    assert module.objective.step == 17


# --- several processes -----------------------------------------------------------------------
# Lightning starts the other process by running this file again.
SCRIPT = """
import json, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
sys.path.insert(0, {folder!r})
from test_objective_state import objective, Linear
from structdiff.denoisers import Denoiser
from structdiff.processes import VP, System
from structdiff.state import State
from structdiff.training import DiffusionModule, ShuffledBatches, TrainingSettings, fit

module = DiffusionModule(Denoiser(Linear(), System(VP()), "data"), objective())
own, inner = [], module.objective.update
def update(loss):
    own.append(float(loss))
    inner(loss)
module.objective.update = update
points = torch.arange(8.0)[:, None].expand(8, 2)
batches = ShuffledBatches(8, 2, lambda numbers: State({{"x": points[numbers]}}))
settings = TrainingSettings(20, accelerator="cpu", devices=2, strategy="ddp", progress=False)
trainer = fit(module, batches, settings)
result = {{"told": own, "state": module.objective.state_dict()}}
Path({out!r}, f"{{trainer.global_rank}}.json").write_text(json.dumps(result))
"""


def test_two_processes_share_one_curriculum(tmp_path: Path) -> None:
    """Both are told the mean of their losses, so both are in the same stage."""
    script = tmp_path / "run.py"
    script.write_text(SCRIPT.format(folder=str(Path(__file__).parent), out=str(tmp_path)))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(structdiff.__file__).parents[1]),
        "MASTER_PORT": port,
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [sys.executable, str(script)], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert first["told"] == second["told"]
    assert first["state"] == second["state"]
    assert first["state"]["time_law"]["stage"] > 1
