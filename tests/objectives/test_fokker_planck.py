"""The Fokker-Planck residual is 0 for exact densities only, on every system, and unbiased."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from structdiff.denoisers import BaseDenoiser, Denoiser
from structdiff.errors import StructDiffError
from structdiff.noise import SeededNoise
from structdiff.objectives import Box, DenoisingScoreMatching, FokkerPlanck, ScoreFokkerPlanck
from structdiff.objectives.fokker_planck import (
    fokker_planck_residual,
    score_fokker_planck_residual,
)
from structdiff.potential import PotentialDenoiser
from structdiff.processes import EDM, VE, VP, FrozenClock, System
from structdiff.spaces import Symmetric
from structdiff.state import State
from structdiff.testbeds import CorrelatedGaussian, GaussianGraph, GaussianMixture

GMM3 = GaussianMixture.gmm3()


def noised(testbed: object, system: System, n: int = 200) -> tuple[State, Tensor]:
    """Data at random times."""
    u = torch.rand(n, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    t = system.t_min + (system.t_max - system.t_min) * u
    x0 = testbed.sample(n, 1)
    return system.perturb(x0, t, system.noise(x0, 2)), t


# --- zero where it must be -----------------------------------------------------------------------
@pytest.mark.parametrize("process", [VP(), VE(0.05, 20.0), EDM(0.05, 20.0)])
def test_residual_of_the_exact_log_density_is_zero(process: object) -> None:
    """Card, acceptance 9: below 1e-9 (float64)."""
    system = System(process)
    x, t = noised(GMM3, system)
    residual = fokker_planck_residual(GMM3.denoiser(system), system, x, t)
    assert residual.shape == (200,)
    assert float(residual.abs().max()) < 1e-9


@pytest.mark.parametrize("directions", [None, 3])
def test_residual_of_the_exact_score_is_zero(directions: int | None) -> None:
    """Away from the last thousandth, where x0 and x cancel in the score."""
    system = System(VP(t_min=0.02))
    x, t = noised(GMM3, system)
    residual = score_fokker_planck_residual(
        GMM3.denoiser(system), system, x, t, directions=directions, source=0
    )
    assert residual.shape == (200, directions or 2)
    assert float(residual.abs().max()) < 1e-9


CLOCKS = {"shared": {}, "own": {"a": lambda t: t**2}, "frozen": {"a": FrozenClock(0.0)}}


@pytest.mark.parametrize("clocks", ["shared", "own"])
def test_residual_of_an_exact_system_is_zero_in_shared_and_own_clocks(clocks: str) -> None:
    testbed = CorrelatedGaussian()
    system = System({"x": VP(t_min=0.02), "a": VE(0.05, 10.0)}, clocks=CLOCKS[clocks])
    exact = testbed.denoiser(system)
    x, t = noised(testbed, system)
    assert float(fokker_planck_residual(exact, system, x, t).abs().max()) < 1e-9
    assert float(score_fokker_planck_residual(exact, system, x, t).abs().max()) < 1e-9


def test_components_may_have_times_of_their_own() -> None:
    testbed = CorrelatedGaussian()
    system = System({"x": VP(), "a": VE(0.05, 10.0)})
    x0 = testbed.sample(50, 1)
    times = {"x": torch.full((50,), 0.7).double(), "a": torch.full((50,), 0.2).double()}
    x = system.perturb(x0, times, system.noise(x0, 2))
    residual = fokker_planck_residual(testbed.denoiser(system), system, x, times)
    assert float(residual.abs().max()) < 1e-9


def test_a_frozen_component_is_conditioned_on() -> None:
    """log p_t(x, a) with a clean: its transport has no term of a."""
    testbed = CorrelatedGaussian()
    system = System({"x": VP(), "a": VE(0.05, 10.0)}, clocks=CLOCKS["frozen"])
    x0 = testbed.sample(50, 1)
    t = torch.linspace(0.1, 0.9, 50, dtype=torch.float64)
    x = system.perturb(x0, t, system.noise(x0, 2)).replace(a=x0["a"])
    residual = fokker_planck_residual(testbed.denoiser(system), system, x, t)
    assert float(residual.abs().max()) < 1e-9


class GaussianPotential(nn.Module):
    """log N(0, v_k) of independent free coordinates, v = alpha^2 s^2 + sigma^2 of a VP: exact."""

    def __init__(self, std: float = 0.5) -> None:
        super().__init__()
        self.std = nn.Parameter(torch.tensor(std, dtype=torch.float64))

    def forward(self, x: State, log_snr: dict[str, Tensor], condition: object = None) -> Tensor:
        total = torch.zeros(x.batch_size, dtype=x.dtype)
        for name, value in x.items():
            alpha_squared = torch.sigmoid(2 * log_snr[name])
            variance = alpha_squared * self.std**2 + 1 - alpha_squared
            count = x.masks[name].expand_as(value).flatten(1).sum(1)
            square = x.masked()[name].flatten(1).square().sum(1)
            pairs = 2 if name == "adj" else 1
            total = total - (square / variance + count * variance.log()) / (2 * pairs)
        return total


def graph_batch() -> tuple[System, State, Tensor]:
    graphs = GaussianGraph([4, 2, 3], max_nodes=5)
    system = System({"x": VP(), "adj": VP()}, spaces={"adj": Symmetric()})
    noise = system.noise(graphs.like, SeededNoise(4))
    return system, noise, torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64)


def test_only_existing_free_coordinates_count() -> None:
    """Pairs of a symmetric matrix once, absent nodes not at all: an exact density is exact."""
    system, x, t = graph_batch()
    denoiser = PotentialDenoiser(GaussianPotential().requires_grad_(False), system)
    assert float(fokker_planck_residual(denoiser, system, x, t).abs().max()) < 1e-9
    assert float(score_fokker_planck_residual(denoiser, system, x, t).abs().max()) < 1e-9


def test_what_absent_entries_hold_does_not_matter() -> None:
    system, x, t = graph_batch()
    exact = GaussianGraph([4, 2, 3], max_nodes=5).denoiser(system)
    clean = score_fokker_planck_residual(exact, system, x, t, probes=1, source=0)
    dirt = {k: torch.where(x.masks[k], v, 3.0) for k, v in x.items()}
    dirty = score_fokker_planck_residual(exact, system, x.replace(**dirt), t, probes=1, source=0)
    assert torch.equal(clean, dirty)


# --- and only there ------------------------------------------------------------------------------
def wave(x: State, size: float) -> Tensor:
    return size * torch.sin(x["x"][:, 0] + 2 * x["x"][:, 1])


def test_a_perturbed_log_density_has_its_own_residual() -> None:
    """u + h: R = F . grad h - g^2/2 (lap h + 2 s . grad h + |grad h|^2), written out for
    h = e sin(x0 + 2 x1).
    """
    system, size = System(VP()), 0.3
    exact = GMM3.denoiser(system)
    x, t = noised(GMM3, system)
    found = fokker_planck_residual(
        lambda x, t: exact.log_density(x, t) + wave(x, size), system, x, t
    )
    k = torch.tensor([1.0, 2.0], dtype=torch.float64)
    phase, beta = x["x"] @ k, VP().beta(t)
    slope = size * torch.cos(phase)[:, None] * k
    expected = (-beta / 2) * (x["x"] * slope).sum(1) - beta / 2 * (
        -5 * size * torch.sin(phase)
        + 2 * (exact.score(x, t)["x"] * slope).sum(1)
        + slope.square().sum(1)
    )
    torch.testing.assert_close(found, expected)


def test_residual_grows_in_proportion_to_the_perturbation() -> None:
    """Card, acceptance 9: 10 +- 0.2 per decade."""
    system = System(VP())
    exact = GMM3.denoiser(system)
    x, t = noised(GMM3, system, 1000)
    rms = [
        fokker_planck_residual(lambda x, t, e=e: exact.log_density(x, t) + wave(x, e), system, x, t)
        .square()
        .mean()
        .sqrt()
        for e in (1e-4, 1e-3, 1e-2)
    ]
    assert float(rms[1] / rms[0]) == pytest.approx(10, abs=0.2)
    assert float(rms[2] / rms[1]) == pytest.approx(10, abs=0.2)


def test_score_residual_is_the_gradient_of_that_of_the_potential() -> None:
    """For a conservative field; here the gradient by autograd of the potential form."""
    system = System(VP())
    exact = GMM3.denoiser(system)
    x, t = noised(GMM3, system, 20)

    def density(x: State, t: object) -> Tensor:
        return exact.log_density(x, t) + wave(x, 0.3)

    def score(x: State, t: object) -> State:
        slope = torch.func.grad(lambda v: density(State({"x": v}), t).sum())(x["x"])
        return State({"x": slope})

    expected = torch.func.grad(
        lambda v: fokker_planck_residual(density, system, State({"x": v}), t).sum()
    )(x["x"])
    found = score_fokker_planck_residual(score, system, x, t)
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-7)


def test_a_wrongly_scaled_score_has_the_residual_of_the_table() -> None:
    """Diagnostics card, table 7.4: data N(0, 0.25), VP, score times 1.05: the rms over p_t and
    t ~ U(0, 1) is 0.452 for the potential 1.05 log p_t. One dimension, 200,000 points: 1 %.
    """
    gaussian = GaussianMixture([1.0], [[0.0]], [[[0.25]]])
    system = System(VP(t_min=1e-5))
    exact = gaussian.denoiser(system)
    x, t = noised(gaussian, system, 200_000)
    residual = fokker_planck_residual(lambda x, t: 1.05 * exact.log_density(x, t), system, x, t)
    assert float(residual.square().mean().sqrt()) == pytest.approx(0.452, rel=0.03)


# --- estimators ----------------------------------------------------------------------------------
@pytest.mark.parametrize("form", ["potential", "score"])
def test_probes_estimate_the_exact_residual(form: str) -> None:
    """The mean over 4,000 random probes lies within 5 standard errors of the exact one."""
    system, n = System(VP()), 4000
    exact = GMM3.denoiser(system)
    x = State({"x": torch.tensor([[0.3, -0.7]], dtype=torch.float64).repeat(n, 1)})
    t = torch.full((n,), 0.2, dtype=torch.float64)
    residual = fokker_planck_residual if form == "potential" else score_fokker_planck_residual

    def field(x: State, t: object) -> object:
        if form == "potential":
            return exact.log_density(x, t) + wave(x, 0.3)
        return exact.score(x, t) * 1.1

    true = residual(field, system, x.take(slice(1)), {"x": t[:1]})[0]
    found = residual(field, system, x, {"x": t}, probes=1, source=3)
    error = found.std(0) / math.sqrt(n)
    assert bool(((found.mean(0) - true).abs() < 5 * error).all())
    assert bool((error > 1e-4).all())


@pytest.mark.parametrize("term", [FokkerPlanck(probes=2), FokkerPlanck(probes=3)])
def test_squares_of_estimates_are_unbiased(term: FokkerPlanck) -> None:
    """E of the penalty is R^2, not R^2 plus the variance of the probes: 5 standard errors."""
    system, n = System(VP()), 8000
    exact = GMM3.denoiser(system)
    x = State({"x": torch.tensor([[0.3, -0.7]], dtype=torch.float64).repeat(n, 1)})
    t = torch.full((n,), 0.2, dtype=torch.float64)
    squares = term.penalty(exact, x, x, t, None, SeededNoise(5))
    error = float(squares.std()) / math.sqrt(n)
    assert abs(float(squares.mean())) < 5 * error
    assert error > 1e-4


def test_projections_on_random_signs_have_the_mean_square_of_the_residual() -> None:
    system, n = System(VP()), 20_000
    exact = GMM3.denoiser(system)
    x = State({"x": torch.tensor([[0.3, -0.7]], dtype=torch.float64).repeat(n, 1)})
    t = torch.full((n,), 0.2, dtype=torch.float64)

    def field(x: State, t: object) -> State:
        return exact.score(x, t) * 1.1

    whole = score_fokker_planck_residual(field, system, x.take(slice(1)), {"x": t[:1]})
    parts = score_fokker_planck_residual(field, system, x, {"x": t}, directions=1, source=1)
    assert float(parts.square().mean()) == pytest.approx(float(whole.square().sum()), rel=0.03)


# --- as a regulariser ----------------------------------------------------------------------------
@pytest.mark.parametrize(
    "term",
    [
        FokkerPlanck(probes=None),
        FokkerPlanck(),
        ScoreFokkerPlanck(),
        ScoreFokkerPlanck(directions=2),
    ],
    ids=["exact", "probes", "score", "directions"],
)
def test_penalty_is_least_at_the_true_density(term: FokkerPlanck) -> None:
    """Of all multiples c log p the true one: the slope in c is 0 at 1 and changes its sign there
    (the Hessian of this density is diagonal, so that random signs give its trace exactly).
    """
    system = System(VP())
    x0 = State({"x": torch.zeros(500, 1).double()}, {"x": torch.ones(1, 1, dtype=torch.bool)})
    t = torch.linspace(0.05, 0.9, 500, dtype=torch.float64)
    x = system.noise(x0, 1)

    class Multiple(nn.Module):
        def __init__(self, factor: float) -> None:
            super().__init__()
            self.density = GaussianPotential(0.5)
            self.factor = nn.Parameter(torch.tensor(factor, dtype=torch.float64))

        def forward(self, x: State, log_snr: dict, condition: object = None) -> Tensor:
            return self.factor * self.density(x, log_snr)

    def slope(factor: float) -> float:
        network = Multiple(factor)
        denoiser = PotentialDenoiser(network, system)
        term.penalty(denoiser, x0, x, t, None, SeededNoise(2)).mean().backward()
        return float(network.factor.grad)

    assert abs(slope(1.0)) < 1e-9
    assert slope(0.9) < -1e-2 and slope(1.1) > 1e-2


def test_the_weighted_penalty_is_added_to_the_loss() -> None:
    system = System(VP())
    network = GaussianPotential(0.3)
    denoiser = PotentialDenoiser(network, system)
    x0 = State({"x": torch.randn(6, 2).double()}, {"x": torch.ones(1, 2, dtype=torch.bool)})
    term = FokkerPlanck(0.5, probes=None)
    plain, both = DenoisingScoreMatching(), DenoisingScoreMatching(regularizers=[term])
    draw = plain.draw(system, x0, SeededNoise(3))
    with torch.no_grad():
        # A network that is wrong in shape: an exact one of the wrong width has no residual.
        network.forward = lambda x, log_snr, condition=None: -x["x"].pow(4).sum(1)  # type: ignore
        penalty = term.penalty(denoiser, x0, draw.noisy, draw.t, None, SeededNoise(0))
        added = both(denoiser, x0, source=3) - plain(denoiser, x0, source=3)
    assert float(penalty.min()) > 1e-3
    torch.testing.assert_close(added, 0.5 * penalty)


def test_a_box_covers_itself_and_the_times_evenly() -> None:
    system = System(VP())
    like = State({"x": torch.zeros(20_000, 2, dtype=torch.float64)})
    t = torch.zeros(20_000, dtype=torch.float64)
    points, times = Box(-3.0, 2.0)(system, like, t, SeededNoise(0))
    assert float(points["x"].min()) >= -3 and float(points["x"].max()) <= 2
    for values, low, high in ((points["x"], -3.0, 2.0), (times[:, None], 1e-3, 1.0)):
        u = (values - low) / (high - low)
        ranks = torch.linspace(0, 1, 20_000).double()[:, None]
        assert float((u.sort(0).values - ranks).abs().max()) < 0.02  # Kolmogorov-Smirnov, p < 1e-6


class Waved(BaseDenoiser):
    """The exact density of GMM3 times exp sin(y0 + 2 y1), y = x / alpha, and its score."""

    def __init__(self, process: object) -> None:
        super().__init__(System(process))
        self.exact = GMM3.denoiser(self.system)
        self.k = torch.tensor([1.0, 2.0], dtype=torch.float64)

    def log_density(self, x: State, t: object) -> Tensor:
        return self.exact.log_density(x, t) + torch.sin(x["x"] @ self.k / self.alpha(t)[:, 0])

    def score(self, x: State, t: object, condition: object = None) -> State:
        phase = (x["x"] @ self.k)[:, None] / self.alpha(t)
        return State({"x": self.exact.score(x, t)["x"] + torch.cos(phase) * self.k / self.alpha(t)})

    def alpha(self, t: object) -> Tensor:
        return self.system.alpha(t)["x"][:, None]

    def forward(self, x: State, t: object, condition: object = None) -> State:
        raise AssertionError("the residuals need the density or the score")


@pytest.mark.parametrize("kind", [FokkerPlanck, ScoreFokkerPlanck])
def test_penalty_per_log_snr_is_the_same_under_every_process(kind: type) -> None:
    """VP and EDM see one family of densities of y = x / alpha by its log-SNR; the residual of a
    score is a gradient, which is alpha times that in y.
    """
    level = torch.tensor([-1.0, 0.5, 2.0], dtype=torch.float64)
    y = torch.tensor([[0.4, -0.3], [1.0, 0.7], [-1.5, 0.2]], dtype=torch.float64)
    penalties = {}
    for per in ("log-snr", "time"):
        for process in (VP(), EDM(0.01, 100.0)):
            waved = Waved(process)
            t = process.time_at(level)
            x = State({"x": y * waved.alpha(t)})
            term = kind(per=per, probes=None)
            value = term.penalty(waved, x, x, t, None, SeededNoise(0))
            power = 2 if kind is ScoreFokkerPlanck else 0
            penalties[per, type(process)] = value * waved.alpha(t)[:, 0] ** power
    torch.testing.assert_close(penalties["log-snr", VP], penalties["log-snr", EDM])
    ratio = penalties["time", VP] / penalties["time", EDM]
    assert bool(((ratio - 1).abs() > 0.1).all())
    assert float(penalties["log-snr", VP].min()) > 1e-3


def test_an_unknown_unit_names_the_known_ones() -> None:
    with pytest.raises(StructDiffError, match=r"unknown unit 'step'.*time, log-snr"):
        FokkerPlanck(per="step")


def test_one_probe_is_refused_with_the_reason() -> None:
    with pytest.raises(StructDiffError, match="at least 2 probes, got 1"):
        FokkerPlanck(probes=1)


def test_a_denoiser_without_a_density_is_refused_with_the_remedy() -> None:
    denoiser = Denoiser(nn.Identity(), System(VP()), "data")
    with pytest.raises(StructDiffError, match="Denoiser has no log-density: train a Potential"):
        FokkerPlanck().penalty(denoiser, State({"x": torch.zeros(2, 1)}), None, None, None, None)
