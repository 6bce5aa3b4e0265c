"""The curl penalty: zero for gradients, the known value for rotations, in free coordinates."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from structdiff.denoisers import BaseDenoiser
from structdiff.errors import StructDiffError
from structdiff.noise import SeededNoise
from structdiff.objectives import CurlPenalty, DenoisingScoreMatching, curl_square
from structdiff.processes import VE, VP, FrozenClock, System
from structdiff.spaces import Symmetric
from structdiff.state import State
from structdiff.testbeds import CorrelatedGaussian, GaussianGraph, GaussianMixture

TIMES = torch.linspace(0.05, 0.95, 40, dtype=torch.float64)


class Rotated(BaseDenoiser):
    """An exact score with om A x added to it, A the rotation of the plane."""

    def __init__(self, exact: BaseDenoiser, om: float) -> None:
        super().__init__(exact.system)
        self.exact = exact
        self.om = nn.Parameter(torch.tensor(om, dtype=torch.float64))

    def score(self, x: State, t: object, condition: object = None) -> State:
        turned = torch.stack((-x["x"][:, 1], x["x"][:, 0]), dim=1)
        return State({"x": self.exact.score(x, t)["x"] + self.om * turned})

    def noise(self, x: State, t: object, condition: object = None) -> State:
        return -self.score(x, t) * self.system.sigma(t)

    def forward(self, x: State, t: object, condition: object = None) -> State:
        sigma = self.system.sigma(t)
        return (x - self.noise(x, t) * sigma) / self.system.alpha(t)


def plane() -> tuple[BaseDenoiser, State]:
    mixture, system = GaussianMixture.gmm3(), System(VP())
    x0 = mixture.sample(40, 1)
    return mixture.denoiser(system), system.perturb(x0, TIMES, system.noise(x0, 2))


@pytest.mark.parametrize("units", ["noise", "score"])
def test_penalty_of_a_gradient_is_zero(units: str) -> None:
    exact, x = plane()
    penalty = CurlPenalty(units=units).penalty(exact, x, x, TIMES, None, SeededNoise(0))
    assert penalty.shape == (40,)
    assert float(penalty.max()) < 1e-18


def test_a_joint_score_of_two_components_has_no_curl_in_any_units() -> None:
    """Across components too, where sigma differs: sigma_k J_kl sigma_l stays symmetric."""
    testbed = CorrelatedGaussian()
    system = System({"x": VP(), "a": VE(0.1, 10.0)}, clocks={"a": lambda t: t**2})
    x0 = testbed.sample(40, 1)
    x = system.perturb(x0, TIMES, system.noise(x0, 2))
    for units in ("noise", "score"):
        term = CurlPenalty(units=units)
        penalty = term.penalty(testbed.denoiser(system), x, x, TIMES, None, SeededNoise(0))
        assert float(penalty.max()) < 1e-18


def test_rotated_score_has_the_curl_of_the_card() -> None:
    """Diagnostics card, 7.3: 8 om^2 = 0.72 at om = 0.3, exactly in the plane with random signs."""
    exact, x = plane()
    square = curl_square(Rotated(exact, 0.3), exact.system, x, TIMES, 0)
    torch.testing.assert_close(square, torch.full((40,), 0.72, dtype=torch.float64))


def test_penalty_in_noise_units_is_scaled_by_the_fourth_power_of_sigma() -> None:
    """sigma J sigma twice, per free coordinate: 8 om^2 sigma^4 / 2."""
    exact, x = plane()
    penalty = CurlPenalty().penalty(Rotated(exact, 0.3), x, x, TIMES, None, SeededNoise(0))
    torch.testing.assert_close(penalty, 0.36 * VP().sigma(TIMES) ** 4)


def test_the_estimate_is_unbiased_in_more_dimensions() -> None:
    """A linear field of five coordinates: |M - M^T|_F^2 within 5 standard errors."""
    matrix = torch.randn(5, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x, n = State({"x": torch.zeros(4000, 5, dtype=torch.float64)}), 4000

    def field(x: State, t: object) -> State:
        return State({"x": x["x"] @ matrix.T})

    found = curl_square(field, System(VP()), x, 0.5, 1)
    expected = float((matrix - matrix.T).square().sum())
    assert abs(float(found.mean()) - expected) < 5 * float(found.std()) / math.sqrt(n)


def test_a_symmetric_component_is_judged_by_its_pairs() -> None:
    """The exact score of graphs, padded and symmetric, has no curl in its free coordinates."""
    graphs = GaussianGraph([4, 2, 3], max_nodes=5)
    system = System({"x": VP(), "adj": VE(0.1, 3.0)}, spaces={"adj": Symmetric()})
    t = torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64)
    x = system.perturb(graphs.sample(0), t, system.noise(graphs.like, 1))
    square = curl_square(graphs.denoiser(system), system, x, t, 2)
    assert float(square.max()) < 1e-18


def test_a_frozen_component_has_no_coordinates() -> None:
    """The score of x given a: only the block of x counts, however asymmetric the rest."""
    system = System({"x": VP(), "a": VP()}, clocks={"a": FrozenClock(0.0)})
    state = State({"x": torch.ones(3, 2).double(), "a": torch.ones(3, 2).double()})

    def field(x: State, t: object) -> State:
        return State({"x": x["x"] + x["a"] * x["a"].sum(), "a": x["x"].flip(1) * x["a"]})

    assert float(curl_square(field, system, state, 0.5, 0).abs().max()) < 1e-20


def test_training_reaches_the_parameters() -> None:
    """d/d om of 8 om^2 / 2 is 8 om."""
    exact, x = plane()
    rotated = Rotated(exact, 0.3)
    term = CurlPenalty(units="score")
    term.penalty(rotated, x, x, TIMES, None, SeededNoise(0)).mean().backward()
    assert float(rotated.om.grad) == pytest.approx(8 * 0.3)


def test_the_penalty_is_added_to_the_loss_on_due_steps_only() -> None:
    """Every third step, three times: the mean over steps is that of every step."""
    exact, _ = plane()
    rotated, x0 = Rotated(exact, 0.3), GaussianMixture.gmm3().sample(4, 0)
    plain = DenoisingScoreMatching()
    lazy = DenoisingScoreMatching(regularizers=[CurlPenalty(2.0, every=3, units="score")])
    added = []
    for _ in range(6):
        gap = lazy(rotated, x0, source=1) - plain(rotated, x0, source=1)
        added.append(float(gap.detach().mean()))
        lazy.update(0.0)
    every = 2.0 * 3 * 0.36
    assert added == pytest.approx([every, 0, 0, every, 0, 0])


def test_unknown_units_name_the_known_ones() -> None:
    with pytest.raises(StructDiffError, match="unknown units 'nats': choose 'noise' or 'score'"):
        CurlPenalty(units="nats")


def test_every_must_be_a_step() -> None:
    with pytest.raises(StructDiffError, match="at least 1 step, got 0"):
        CurlPenalty(every=0)


def test_draws_of_the_loss_do_not_depend_on_regularisers() -> None:
    """The same times and noise with and without: the loss of a gradient is the plain one."""
    exact, _ = plane()
    x0 = GaussianMixture.gmm3().sample(4, 0)
    plain = DenoisingScoreMatching()(exact, x0, source=1)
    with_term = DenoisingScoreMatching(regularizers=[CurlPenalty()])(exact, x0, source=1)
    torch.testing.assert_close(with_term, plain, rtol=1e-12, atol=1e-12)
    assert isinstance(with_term, Tensor)
