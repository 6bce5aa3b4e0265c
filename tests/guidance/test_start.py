"""Matched starts: their exact distributions, their seeds, and what they leave alone."""

import pytest
import torch

from structdiff.errors import StructDiffError
from structdiff.guidance import (
    CovarianceGuidance,
    GaussianCovariance,
    gaussian_start,
    noised_start,
    posterior_start,
)
from structdiff.noise import ReplayNoise
from structdiff.processes import DiscreteVP, FrozenClock, System
from structdiff.state import State
from structdiff.testbeds import StationaryGaussian

torch.set_num_threads(1)
CHAIN = DiscreteVP(100, 1e-4, 0.1)
SYSTEM = System(CHAIN)
ALPHA, SIGMA = float(CHAIN.alpha(1.0)), float(CHAIN.sigma(1.0))
PROCESS = StationaryGaussian.ar1(0.9, 6, mean=2.0)
PRIOR = GaussianCovariance.from_matrix(PROCESS.covariance(), torch.full((6,), 2.0))
LIKE = State({"x": torch.zeros(7, 6, dtype=torch.float64)})
SEEN = torch.tensor([1, 1, 0, 1, 0, 0]).bool()


def moments(start, draws):
    """Mean (6,) and covariance (6, 6) of an affine start, from a basis of its normal numbers."""
    basis = torch.cat([torch.zeros(1, 6 * draws), torch.eye(6 * draws)]).double()
    like = State({"x": torch.zeros(len(basis), 6, dtype=torch.float64)})
    rows = start(like, ReplayNoise({"x": basis.split(6, dim=1)}))["x"]
    root = rows[1:] - rows[0]
    return rows[0], root.T @ root


def test_a_gaussian_start_has_the_noised_mean_and_covariance():
    # N(alpha m, alpha^2 S + sigma^2 I), exactly.
    mean, covariance = moments(lambda like, s: gaussian_start(SYSTEM, like, PRIOR, s), 1)
    assert torch.allclose(mean, ALPHA * PRIOR.mean, atol=1e-12)
    expected = ALPHA**2 * PROCESS.covariance() + SIGMA**2 * torch.eye(6)
    assert torch.allclose(covariance, expected, atol=1e-12)


def test_a_posterior_start_has_the_noised_conditional_mean_and_covariance():
    # Matheron's rule: the prior given y, observed with noise of variance 0.01, then noised.
    y = PROCESS.sample(1, 0)["x"]

    def start(like, source):
        values = y.expand(like.batch_size, 6)
        guided = CovarianceGuidance(
            PROCESS.denoiser(SYSTEM), values, SEEN.expand_as(values), PRIOR, noise=0.01
        )
        return posterior_start(guided, like, source)

    mean, covariance = moments(start, 3)
    conditional, rest = PROCESS.conditional(y, SEEN, noise=0.01)
    expected = ALPHA**2 * rest + SIGMA**2 * torch.eye(3)
    assert torch.allclose(mean[~SEEN], ALPHA * conditional[0], atol=1e-9)
    assert torch.allclose(covariance[~SEEN][:, ~SEEN], expected, atol=1e-9)


def test_a_noised_start_has_the_reference_as_its_mean():
    y = PROCESS.sample(7, 0)["x"]
    draw = torch.randn_like(y)
    start = noised_start(SYSTEM, y, ReplayNoise({"x": [draw]}))["x"]
    assert torch.allclose(start, ALPHA * y + SIGMA * draw, atol=1e-12)


STARTS = {
    "noised": lambda like, seeds: noised_start(SYSTEM, like, seeds),
    "gaussian": lambda like, seeds: gaussian_start(SYSTEM, like, PRIOR, seeds),
    "posterior": lambda like, seeds: posterior_start(
        CovarianceGuidance(
            PROCESS.denoiser(SYSTEM), like, SEEN.expand_as(like["x"]), PRIOR
        ),
        like,
        seeds,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", STARTS)
def test_an_objects_start_depends_on_its_seed_alone(name):
    like = State({"x": PROCESS.sample(3, 0)["x"]})
    together = STARTS[name](like, torch.tensor([5, 6, 7]))["x"]
    alone = STARTS[name](like.take(slice(1, 2)), torch.tensor([6]))["x"]
    assert torch.allclose(together[1:2], alone, atol=1e-12)
    assert not torch.allclose(together[0], together[2])


@pytest.mark.parametrize("name", STARTS)
def test_entries_that_do_not_exist_are_zero(name):
    exists = torch.arange(6) < 4
    start = STARTS[name](State({"x": PROCESS.sample(3, 0)["x"]}, {"x": exists}), 0)
    assert not start["x"][:, ~exists].any()
    assert start["x"][:, exists].all()


def test_what_exists_is_drawn_from_its_marginal():
    # 20000 draws: the correlation of neighbours is that of the full window.
    like = State({"x": torch.zeros(20000, 6).double()}, {"x": torch.arange(6) < 4})
    wide = GaussianCovariance.from_matrix(1000 * PROCESS.covariance())
    start = gaussian_start(SYSTEM, like, wide, 0)["x"][:, :4]
    expected = ALPHA**2 * 1000 * PROCESS.covariance()[:4, :4] + SIGMA**2 * torch.eye(4)
    assert float((torch.cov(start.T) - expected).norm() / expected.norm()) < 0.03


def test_components_without_a_covariance_and_frozen_ones_start_as_ever():
    system = System({"x": CHAIN, "free": CHAIN, "still": CHAIN}, clocks={"still": FrozenClock()})
    like = State({k: torch.ones(4, 6).double() for k in ("x", "free", "still")})
    start = gaussian_start(system, like, {"x": PRIOR}, 0)
    assert torch.equal(start["still"], like["still"])
    assert 0.3 < float(start["free"].std()) < 2
    assert torch.equal(noised_start(system, like, 0)["still"], like["still"])


def test_a_reference_that_is_not_finite_is_named():
    with pytest.raises(StructDiffError, match="'x' of the reference"):
        noised_start(SYSTEM, torch.full((2, 6), float("nan")))


def test_a_covariance_of_another_size_or_component_is_named():
    with pytest.raises(StructDiffError, match="6 free coordinates, its covariance 5"):
        gaussian_start(SYSTEM, LIKE, GaussianCovariance.from_matrix(torch.eye(5)))
    with pytest.raises(StructDiffError, match=r"covariance for \['a'\]"):
        gaussian_start(SYSTEM, LIKE, {"a": PRIOR})
