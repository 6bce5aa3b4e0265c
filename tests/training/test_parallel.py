"""Two processes train one model: on disjoint records, with equal weights, by the mean gradient."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from itertools import chain
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import structdiff
from structdiff.denoisers import Denoiser
from structdiff.noise import SeededNoise
from structdiff.objectives import DenoisingScoreMatching
from structdiff.processes import VP, System
from structdiff.state import State
from structdiff.training import DiffusionModule, ShuffledBatches, mix_seed

SIZE, BATCH, STEPS, SEED = 13, 2, 7, 5


class Affine(nn.Module):
    """The smallest network: x0 = A xt + b."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)

    def forward(self, x: State, log_snr: dict[str, Tensor], condition: object = None) -> State:
        return State({"x": self.linear(x["x"])})


def make_module() -> DiffusionModule:
    torch.manual_seed(0)
    denoiser = Denoiser(Affine(), System(VP()), "data")
    return DiffusionModule(
        denoiser,
        DenoisingScoreMatching(),
        learning_rate=0.01,
        warmup_steps=2,
        total_steps=STEPS,
        seed=SEED,
    )


def records() -> Tensor:
    return torch.randn(SIZE, 3, generator=torch.Generator().manual_seed(1))


# Lightning starts the other process by running this file again.
SCRIPT = """
import sys
from pathlib import Path
import torch
torch.set_num_threads(1)
sys.path.insert(0, {folder!r})
from test_parallel import BATCH, SEED, SIZE, STEPS, make_module, records
from structdiff.molecules import MoleculeGenerator
from structdiff.state import State
from structdiff.training import ShuffledBatches, TrainingSettings, fit

out, seen, module, data = Path({out!r}), [], make_module(), records()

def make_batch(numbers):
    seen.append(numbers.tolist())
    return State({{"x": data[numbers]}})

settings = TrainingSettings(STEPS, ema_decay=0.5, checkpoint_every=100, accelerator="cpu",
                            devices=2, strategy="ddp", gradient_clip=0.5, progress=False)
trainer = fit(module, ShuffledBatches(SIZE, BATCH, make_batch, seed=SEED), settings, out=out)
rank = trainer.global_rank

generator = MoleculeGenerator(network="gdss", max_steps=3, batch_size=2, accelerator="cpu",
                              devices=2, strategy="ddp", random_state=0, progress=False)
generator.fit(["CCO", "CCC", "CC=O", "CCN", "C#N", "OCO", "CCCC", "NCC"])
torch.save(
    {{
        "world_size": trainer.world_size,
        "seen": seen,
        "average": module.state_dict(),
        "gdss": generator.denoiser_.network.state_dict(),
    }},
    out / f"rank{{rank}}.pt",
)
"""


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict]]:
    out = tmp_path_factory.mktemp("parallel")
    script = out / "script.py"
    script.write_text(SCRIPT.format(folder=str(Path(__file__).parent), out=str(out)))
    env = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "MASTER_PORT": str(free_port()),
        "PYTHONPATH": str(Path(structdiff.__file__).parents[1]),
    }
    done = subprocess.run(
        [sys.executable, str(script)], env=env, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return out, [torch.load(out / f"rank{r}.pt", weights_only=True) for r in (0, 1)]


def test_both_ranks_see_disjoint_records_in_every_epoch(trained: tuple[Path, list[dict]]) -> None:
    first, second = (rank["seen"] for rank in trained[1])
    assert len(first) == len(second) == STEPS
    per_epoch = SIZE // (2 * BATCH)
    for start in range(0, STEPS, per_epoch):
        epoch = [*first[start : start + per_epoch], *second[start : start + per_epoch]]
        numbers = list(chain.from_iterable(epoch))
        assert len(numbers) == len(set(numbers)) == BATCH * len(epoch)


def test_weights_stay_equal_on_both_ranks(trained: tuple[Path, list[dict]]) -> None:
    assert trained[1][0]["world_size"] == 2
    for part in ("average", "gdss"):
        for name, value in trained[1][0][part].items():
            assert torch.equal(value, trained[1][1][part][name]), name


def test_gdss_networks_train_in_parallel_in_spite_of_their_unused_half_layers(
    trained: tuple[Path, list[dict]],
) -> None:
    weights = trained[1][0]["gdss"]
    assert all(bool(value.isfinite().all()) for value in weights.values())


def test_two_ranks_take_the_step_of_one_process_with_both_batches(
    trained: tuple[Path, list[dict]],
) -> None:
    """Noise is keyed by (seed, step, rank), so one process that scores both ranks' batches with
    both ranks' noise and takes the mean is the same training; AdamW written out by torch.
    """
    module, data = make_module(), records()
    shares = [
        ShuffledBatches(SIZE, BATCH, lambda n: data[n], seed=SEED, rank=r, world_size=2)
        for r in (0, 1)
    ]
    parameters = list(module.denoiser.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=0.01, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, module.rate_at)
    batches = [iter(share) for share in shares]
    average: list[Tensor] = []
    for step in range(STEPS):
        losses = []
        for rank in (0, 1):
            batch = next(batches[rank], None)
            if batch is None:  # an epoch is over: the next one's order
                batches[rank] = iter(shares[rank])
                batch = next(batches[rank])
            source = SeededNoise(mix_seed(SEED, step, rank))
            state = State({"x": batch})
            losses.append(module.objective(module.denoiser, state, None, source).mean())
        optimizer.zero_grad()
        ((losses[0] + losses[1]) / 2).backward()
        nn.utils.clip_grad_norm_(parameters, 0.5)
        optimizer.step()
        schedule.step()
        now = [p.detach().clone() for p in parameters]
        average = [0.5 * a + 0.5 * p for a, p in zip(average or now, now, strict=True)]
    out, ranks = trained
    raw = torch.load(out / "checkpoints" / "last.ckpt", weights_only=True)["current_model_state"]
    for k, (name, _) in enumerate(module.denoiser.named_parameters()):
        torch.testing.assert_close(raw[f"denoiser.{name}"], now[k], atol=1e-6, rtol=0)
        stored = ranks[0]["average"][f"denoiser.{name}"]
        torch.testing.assert_close(stored, average[k], atol=1e-6, rtol=0)
