"""The curriculum: where each stage looks, when it ends, and that it resumes exactly."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats

from structdiff.denoisers import Denoiser
from structdiff.errors import CheckpointError, StructDiffError
from structdiff.noise import SeededNoise
from structdiff.objectives import (
    Curriculum,
    DenoisingScoreMatching,
    EDMLaw,
    LogitNormal,
    Uniform,
    draw_times,
    law_under,
)
from structdiff.processes import VP, System
from structdiff.state import State

LEVELS = torch.linspace(0, 1, 1001, dtype=torch.float64)


def at_stage(stage: int, **settings: object) -> Curriculum:
    curriculum = Curriculum(patience=1, smoothing=0.0, **settings)
    while curriculum.stage < stage:
        curriculum.update(1.0)
    return curriculum


# --- pacing --------------------------------------------------------------------------------------
@pytest.mark.parametrize("smoothing", [0.0, 0.99])
@pytest.mark.parametrize("loss", [0.3, 1.7e-5, -2.0])
def test_with_a_constant_loss_every_stage_lasts_patience_and_one_steps(
    smoothing: float, loss: float
) -> None:
    """Card, acceptance 12: stage N starts after exactly (N - 1)(tau + 1) steps."""
    curriculum = Curriculum(clusters=20, patience=200, smoothing=smoothing)
    stages = []
    for _ in range(19 * 201 + 50):
        stages.append(curriculum.stage)
        curriculum.update(loss)
    assert stages == [min(1 + step // 201, 20) for step in range(19 * 201 + 50)]


def test_an_improving_loss_keeps_its_stage() -> None:
    curriculum = Curriculum(clusters=3, patience=5, smoothing=0.9)
    for step in range(200):
        curriculum.update(1.0 / (step + 1))
    assert curriculum.stage == 1


def test_an_improvement_starts_the_patience_anew() -> None:
    curriculum = Curriculum(clusters=3, patience=3, smoothing=0.0)
    stages = []
    for loss in (5, 6, 6, 4, 6, 6, 6):
        curriculum.update(loss)
        stages.append(curriculum.stage)
    assert stages == [1, 1, 1, 1, 1, 1, 2]


def test_losses_are_compared_within_a_stage_only() -> None:
    """The level jumps when a cluster is added: a higher one is the new stage's best."""
    curriculum = Curriculum(clusters=3, patience=2, smoothing=0.5)
    for loss in (1, 1, 1):
        curriculum.update(loss)
    assert curriculum.stage == 2
    for loss in (9, 8, 7, 6, 5, 4, 3):  # falls all the time, above the former stage's 1
        curriculum.update(loss)
    assert curriculum.stage == 2


def test_the_first_losses_of_a_stage_are_averaged_evenly() -> None:
    """Weights d^(k-i) over their sum: after (4, 2) with d = 0.5 the mean is 8/3."""
    curriculum = Curriculum(smoothing=0.5)
    curriculum.update(4.0)
    curriculum.update(2.0)
    assert curriculum.state_dict()["smoothed"] == pytest.approx(8 / 3)


# --- where it looks ------------------------------------------------------------------------------
@pytest.mark.parametrize("split", ["quantile", "time"])
@pytest.mark.parametrize("stage", [1, 2, 3, 4])
def test_support_is_exactly_the_union_of_the_easy_clusters(split: str, stage: int) -> None:
    """Card, acceptance 12. Of four clusters of a uniform time, those above (4 - n) / 4."""
    times = at_stage(stage, clusters=4, split=split).quantile(LEVELS)
    assert float(times[0]) == pytest.approx(1 - stage / 4, abs=1e-12)
    assert float(times[-1]) == pytest.approx(1.0, abs=1e-12)
    torch.testing.assert_close(times.diff(), torch.full((1000,), stage / 4000).double())


def test_a_stage_is_the_law_conditioned_on_its_clusters() -> None:
    """Logit-normal draws above t = 2/4, clusters of equal time: the truncated law's quantiles."""
    law = LogitNormal(-0.3, 0.8)
    u = LEVELS[1:-1]
    found = at_stage(2, law=law, clusters=4, split="time").quantile(u)
    below = stats.norm.cdf((0.0 - (-0.3)) / 0.8)
    expected = stats.norm.ppf(below + u.numpy() * (1 - below), -0.3, 0.8)
    torch.testing.assert_close(torch.logit(found), torch.from_numpy(expected))


def test_quantile_clusters_hold_equal_shares_of_the_law() -> None:
    law = LogitNormal(-0.3, 0.8)
    found = at_stage(1, law=law, clusters=4).quantile(LEVELS[1:-1])
    torch.testing.assert_close(found, law.quantile(0.75 + 0.25 * LEVELS[1:-1]))


def test_log_snr_clusters_have_equal_shares_of_the_log_snr() -> None:
    process = VP()
    system = System(process)
    law = law_under(at_stage(1, clusters=5, split="log-snr"), system)
    start = system.t_min + (1 - system.t_min) * float(law.quantile(LEVELS[:1]))
    top, bottom = float(process.half_log_snr(1e-3)), float(process.half_log_snr(1.0))
    assert float(process.half_log_snr(start)) == pytest.approx(bottom + (top - bottom) / 5)


@pytest.mark.parametrize("split", ["quantile", "time", "log-snr"])
def test_the_last_stage_is_the_decorated_law(split: str) -> None:
    system = System(VP())
    for base in (Uniform(), EDMLaw()):
        staged = law_under(at_stage(4, law=base, clusters=4, split=split), system)
        u = LEVELS[1:-1]
        torch.testing.assert_close(staged.quantile(u), law_under(base, system).quantile(u))


def test_a_bound_curriculum_follows_the_stage() -> None:
    curriculum = Curriculum(clusters=2, patience=1, split="time")
    law = law_under(curriculum, System(VP()))
    low = torch.zeros(1, dtype=torch.float64)
    assert float(law.quantile(low)) == pytest.approx(0.5)
    curriculum.update(1.0)
    curriculum.update(1.0)
    assert float(law.quantile(low)) == 0.0


def test_draws_of_a_stage_stay_above_its_edge() -> None:
    times = draw_times(at_stage(1, clusters=4), torch.empty(500, 1), 0.1, 0.9, SeededNoise(0))
    assert 0.7 < float(times.min()) < 0.702 and float(times.max()) < 0.9


# --- in training ---------------------------------------------------------------------------------
class Zero(torch.nn.Module):
    def forward(self, x: State, log_snr: dict, condition: object = None) -> State:
        return x * 0.0


def test_an_objective_hands_the_loss_to_its_curriculum() -> None:
    objective = DenoisingScoreMatching(Curriculum(clusters=3, patience=1, smoothing=0.0))
    denoiser, x0 = Denoiser(Zero(), System(VP()), "noise"), State({"x": torch.zeros(100, 1)})
    lowest = []
    for _ in range(5):
        lowest.append(float(objective.draw(denoiser.system, x0, SeededNoise(0)).t.min()))
        objective.update(torch.tensor(1.0))
    assert [round(3 * value) for value in lowest] == [2, 2, 1, 1, 0]
    assert objective.step == 5


def test_a_restored_curriculum_goes_on_exactly() -> None:
    """Through a stage's middle, with unequal losses, and through infinity before the first one."""
    losses = torch.rand(400, generator=torch.Generator().manual_seed(0)).tolist()
    whole, former = Curriculum(patience=30), Curriculum(patience=30)
    for cut in (0, 57, 203):
        for loss in losses[:cut]:
            former.update(loss)
        restored = Curriculum(patience=30)
        restored.load_state_dict(former.state_dict())
        for curriculum in (restored, former):
            for loss in losses[cut:]:
                curriculum.update(loss)
        assert restored.state_dict() == former.state_dict()
        former = Curriculum(patience=30)
    for loss in losses:
        whole.update(loss)
    assert whole.state_dict() == restored.state_dict()
    assert 1 < whole.stage < 20 and math.isfinite(whole.state_dict()["best"])


def test_a_state_of_other_settings_is_refused() -> None:
    state = Curriculum(clusters=10).state_dict()
    with pytest.raises(CheckpointError, match="whose clusters is 10, not 20"):
        Curriculum().load_state_dict(state)


def test_a_state_without_a_curriculum_is_refused() -> None:
    state = DenoisingScoreMatching().state_dict()
    with pytest.raises(CheckpointError, match="started without an adaptive time law"):
        DenoisingScoreMatching(Curriculum()).load_state_dict(state)


# --- errors --------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"clusters": 0}, "at least 1, got 0 and 200"),
        ({"smoothing": 1.0}, r"\[0, 1\), got 1.0"),
        ({"split": "sigma"}, "unknown split 'sigma': choose one of quantile, time, log-snr"),
    ],
)
def test_bad_settings_are_named(settings: dict, words: str) -> None:
    with pytest.raises(StructDiffError, match=words):
        Curriculum(**settings)


def test_a_law_of_the_noise_level_asks_for_a_system() -> None:
    with pytest.raises(StructDiffError, match="needs a system"):
        Curriculum(EDMLaw()).quantile(LEVELS)
