"""The Lightning module, its settings, and what is left when training is over."""

from __future__ import annotations

import csv
import math
from itertools import chain
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn

from structdiff.denoisers import Denoiser
from structdiff.errors import CheckpointError, StructDiffError
from structdiff.objectives import DenoisingScoreMatching, Objective
from structdiff.processes import VP, System
from structdiff.state import State
from structdiff.training import DiffusionModule, ShuffledBatches, TrainingSettings, fit, mix_seed
from structdiff.training.reporting import StepProgress


class Constant(nn.Module):
    """One parameter: the same x0 everywhere."""

    def __init__(self) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.zeros(()))

    def forward(self, x: State, log_snr: dict[str, Tensor], condition: object = None) -> State:
        return State({"x": self.value.expand_as(x["x"])})


class Distance(Objective):
    """(value - 1)^2 whatever the noise."""

    def distances(self, denoiser, x0, noisy, noise, times, condition):
        value = denoiser(noisy, times)["x"]
        return {"x": (value - 1).square().flatten(1).mean(1)}


class Recorder(pl.Callback):
    """The parameter after every optimiser step."""

    def __init__(self) -> None:
        self.values: list[float] = []
        self.rates: list[float] = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self.values.append(pl_module.denoiser.network.value.item())


def train(steps: int, out: Path | None = None, **changes: object) -> tuple[float, Recorder]:
    recorder = Recorder()
    module = DiffusionModule(
        Denoiser(Constant(), System(VP()), "data"), Distance(), learning_rate=0.1, warmup_steps=3
    )
    batches = ShuffledBatches(8, 2, lambda numbers: State({"x": torch.zeros(len(numbers), 1)}))
    settings = {"ema_decay": 0.9, "accelerator": "cpu", "progress": False, **changes}
    fit(module, batches, TrainingSettings(steps, **settings), callbacks=[recorder], out=out)
    return module.denoiser.network.value.item(), recorder


def test_weights_after_fit_are_the_moving_average() -> None:
    value, recorder = train(11)
    average = recorder.values[0]
    for raw in recorder.values[1:]:
        average = 0.9 * average + 0.1 * raw
    assert value == pytest.approx(average, abs=1e-6)
    assert abs(value - recorder.values[-1]) > 0.05


def test_without_decay_the_last_weights_are_kept() -> None:
    value, recorder = train(5, ema_decay=0.0)
    assert value == recorder.values[-1]


def test_max_steps_counts_optimiser_steps() -> None:
    assert len(train(11)[1].values) == 11


def test_rate_warms_up_stays_and_cools_down() -> None:
    module = DiffusionModule(
        Denoiser(Constant(), System(VP())),
        Distance(),
        warmup_steps=4,
        total_steps=20,
        cooldown=0.5,
    )
    rates = [module.rate_at(step) for step in range(21)]
    assert rates[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert rates[10] == 1.0
    assert rates[15] == pytest.approx(0.5)
    assert rates[20] == 0.0


def test_the_log_holds_the_rate_of_its_step(tmp_path: Path) -> None:
    _, recorder = train(3, tmp_path, log_every=1)
    with open(tmp_path / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["learning_rate"]) for row in rows] == recorder.rates
    assert list(rows[0]) == ["step", "epoch", "learning_rate", "loss"]


def test_nothing_is_kept_without_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    train(2)
    assert list(tmp_path.iterdir()) == []


class _Explodes(Distance):
    def distances(self, *arguments):
        return {"x": super().distances(*arguments)["x"] * math.nan}


def test_loss_that_is_not_a_number_ends_the_training(tmp_path: Path) -> None:
    module = DiffusionModule(Denoiser(Constant(), System(VP()), "data"), _Explodes())
    batches = ShuffledBatches(8, 2, lambda numbers: State({"x": torch.zeros(len(numbers), 1)}))
    settings = TrainingSettings(20, accelerator="cpu", progress=False)
    with pytest.raises(StructDiffError, match="loss is nan at step 10: lower the learning rate"):
        fit(module, batches, settings, out=tmp_path)


def test_progress_bar_runs_over_all_steps() -> None:
    class Watching(StepProgress):
        seen: list[tuple[float, float]] = []

        def on_train_batch_end(self, *arguments) -> None:
            super().on_train_batch_end(*arguments)
            task = self.bar.tasks[0]
            self.seen.append((task.completed, task.total))

    module = DiffusionModule(Denoiser(Constant(), System(VP()), "data"), Distance())
    trainer = pl.Trainer(
        max_steps=6,
        max_epochs=-1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        callbacks=[Watching(every=1)],
    )
    batches = ShuffledBatches(8, 2, lambda numbers: State({"x": torch.zeros(len(numbers), 1)}))
    trainer.fit(module, batches)
    assert Watching.seen == [(step, 6) for step in range(1, 7)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"precision": "16-mixed", "accelerator": "cpu"}, "16-mixed needs a GPU"),
        ({"precision": "half"}, "unknown precision 'half': choose one of 32-true"),
        ({"max_steps": 0}, "max_steps must be at least 1, got 0"),
        ({"checkpoint_every": 0}, "checkpoint_every must be at least 1"),
        ({"ema_decay": 1.0}, r"ema_decay must lie in \[0, 1\)"),
    ],
)
def test_impossible_settings_are_named(changes: dict, message: str) -> None:
    with pytest.raises(StructDiffError, match=message):
        TrainingSettings(**{"max_steps": 5, **changes})


def test_unknown_strategy_is_an_error_of_the_input() -> None:
    with pytest.raises(StructDiffError, match=r"training cannot start.*no-such-strategy"):
        train(2, strategy="no-such-strategy")


# --- data order ------------------------------------------------------------------------------
def test_an_epoch_shows_no_record_twice() -> None:
    batches = ShuffledBatches(10, 3, lambda numbers: numbers.tolist(), seed=1)
    shown = list(chain.from_iterable(batches))
    assert len(shown) == len(set(shown)) == 9


def test_every_epoch_has_its_own_order() -> None:
    batches = ShuffledBatches(10, 5, lambda numbers: numbers.tolist(), seed=1)
    assert list(batches) != list(batches)


def test_order_is_a_function_of_seed_and_position() -> None:
    whole = ShuffledBatches(10, 3, lambda numbers: numbers.tolist(), seed=1)
    shown = [batch for _ in range(3) for batch in whole]
    later = ShuffledBatches(10, 3, lambda numbers: numbers.tolist(), seed=1)
    later.load_state_dict({**whole.state_dict(), "position": 4})
    assert [*later, *later] == shown[4:]


def test_ranks_share_an_epoch_without_overlap() -> None:
    parts = [
        ShuffledBatches(11, 2, lambda n: n.tolist(), seed=1, rank=r, world_size=2) for r in (0, 1)
    ]
    assert len(parts[0]) == len(parts[1]) == 2
    numbers = [number for part in parts for batch in part for number in batch]
    assert len(numbers) == len(set(numbers)) == 8


def test_few_records_make_smaller_batches() -> None:
    assert [len(b) for b in ShuffledBatches(3, 256, lambda n: n.tolist())] == [3]


def test_fewer_records_than_processes_are_refused() -> None:
    with pytest.raises(StructDiffError, match="2 records cannot feed 3 processes"):
        ShuffledBatches(2, 1, list, world_size=3)


def test_position_of_other_data_is_refused() -> None:
    state = ShuffledBatches(10, 3, list).state_dict()
    with pytest.raises(CheckpointError, match="started with size = 10, not 11"):
        ShuffledBatches(11, 3, list).load_state_dict(state)


def test_seeds_mix_to_distinct_63_bit_numbers() -> None:
    seeds = {mix_seed(a, b, c) for a in range(10) for b in range(10) for c in range(10)}
    assert len(seeds) == 1000
    assert all(0 <= seed < 2**63 for seed in seeds)


# --- states ----------------------------------------------------------------------------------
class Forgetful(Constant):
    """Drops half of its answer in training."""

    def forward(self, x: State, log_snr: dict[str, Tensor], condition: object = None) -> State:
        answer = (self.value + 0.3).expand_as(x["x"])
        return State({"x": nn.functional.dropout(answer, 0.5, self.training)})


def test_dropout_is_a_function_of_the_seed_and_leaves_the_global_generator_alone() -> None:
    def losses(seed: int) -> list[float]:
        module = DiffusionModule(Denoiser(Forgetful(), System(VP()), "data"), Distance(), seed=seed)
        module.log = lambda *a, **k: None
        batch = State({"x": torch.zeros(4, 50)})
        return [module.training_step(batch, i).item() for i in range(3)]

    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = losses(0)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert losses(0) == first and len({*first, *losses(1)}) > 3


def test_states_keep_their_masks_on_the_way_to_the_device() -> None:
    module = DiffusionModule(Denoiser(Constant(), System(VP())), DenoisingScoreMatching())
    mask = torch.tensor([[True], [False]])
    batch = State({"x": torch.ones(2, 1)}, {"x": mask}), torch.ones(2)
    moved, condition = module.transfer_batch_to_device(batch, torch.device("cpu"), 0)
    assert torch.equal(moved.masks["x"], mask)
    assert torch.equal(condition, torch.ones(2))
