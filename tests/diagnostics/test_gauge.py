"""A rotation along the level sets of a Gaussian: harmless in continuous time, costly in steps."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch

from structdiff import VP, StructDiffError, System
from structdiff.diagnostics import gauge_condition, gauge_split
from structdiff.samplers import Heun, UniformTime
from structdiff.testbeds import GaussianMixture

SYSTEM = System(VP())
MEAN = torch.tensor([1.0, -1.0], dtype=torch.float64)
COVARIANCE = torch.tensor([[1.0, 0.6], [0.6, 0.5]], dtype=torch.float64)
GAUSSIAN = GaussianMixture([1.0], MEAN[None], COVARIANCE[None])
EXACT = GAUSSIAN.denoiser(SYSTEM)
TURN = torch.tensor([[0.0, -1.0], [1.0, 0.0]], dtype=torch.float64)
TIME = 0.3
LEVEL = float(SYSTEM.half_log_snr(TIME)["x"])


def precision(t):
    alpha, sigma = float(SYSTEM.alpha(t)["x"]), float(SYSTEM.sigma(t)["x"])
    return torch.linalg.inv(alpha**2 * COVARIANCE + sigma**2 * torch.eye(2).double())


def gauge(x, t):
    """r = A S_t^{-1} (x - m_t)."""
    return (x - float(SYSTEM.alpha(t)["x"]) * MEAN) @ precision(t) @ TURN.T


def score(x):
    return EXACT.score(x, TIME)["x"]


def noisy(n, seed=0):
    x = GAUSSIAN.sample(n, seed)
    return SYSTEM.perturb(x, TIME, SYSTEM.noise(x, seed + 1))["x"]


def test_the_rotation_is_a_gauge():
    """diagnostics 10 (3): |div r + r . s| <= 1e-10."""
    found = gauge_condition(lambda x: gauge(x, TIME), score, noisy(64))
    assert found.abs().max() <= 1e-10


def test_a_stretch_is_no_gauge():
    """r = x: div r + r . s = 2 + x . s."""
    x = noisy(16)
    found = gauge_condition(lambda p: p, score, x)
    assert torch.allclose(found, 2 + (x * score(x)).sum(1))


def test_probes_estimate_the_condition():
    """Rademacher probes have no error on a field whose Jacobian is diagonal."""
    x = noisy(16)
    probes = torch.ones(1, 16, 2, dtype=torch.float64)
    found = gauge_condition(lambda p: p, score, x, probes)
    assert torch.allclose(found, gauge_condition(lambda p: p, score, x))


def test_gauge_and_gradient_are_orthogonal():
    """diagnostics 7.2 at t = 0.3, c = 1: E|s|^2 = E|r|^2 = 2.4126, cross term 0."""
    x = noisy(200_000)
    s, r = score(x), gauge(x, TIME)
    assert s.square().sum(1).mean() == pytest.approx(2.4126, rel=0.01)
    assert r.square().sum(1).mean() == pytest.approx(2.4126, rel=0.01)
    assert (s * r).sum(1).mean().abs() <= 1e-2


def covariance_error(solve):
    """Relative error of the sampled covariance, without sampling: a solver's step on an affine
    score is an affine map, known from the images of the origin and of the axes."""
    end = solve(torch.cat([torch.zeros(1, 2), torch.eye(2)]).double())
    linear = (end[1:] - end[0]).T
    found = linear @ linear.T * SYSTEM.processes["x"].prior_std() ** 2
    return float((found - COVARIANCE).norm() / COVARIANCE.norm())


def in_time(model, steps, order):
    """Textbook Euler and Heun on dx/dt over the grid quadratic in time: those of the card."""

    def solve(x):
        times = UniformTime(2.0).times(SYSTEM, steps + 1).tolist()
        for t, u in pairwise(times):
            first = model.velocity(x, t)["x"]
            if order == 2:
                second = model.velocity(x + (u - t) * first, u)["x"]
                first = (first + second) / 2
            x = x + (u - t) * first
        return x

    return covariance_error(solve)


@pytest.mark.parametrize(
    ("c", "order", "steps", "expected"),
    [(1, 2, 20, 0.39), (1, 2, 50, 0.023), (5, 2, 100, 4.2), (1, 1, 100, 0.78), (1, 1, 400, 0.15)],
)
def test_steps_turn_rotation_into_expansion(wrong, c, order, steps, expected):
    """diagnostics 7.2; its figures carry a sampling error of 0.004."""
    model = wrong(EXACT, 1.0, lambda x, t: c * gauge(x, t))
    assert in_time(model, steps, order) == pytest.approx(expected, abs=0.004, rel=0.03)


def test_more_steps_recover_the_marginals(wrong):
    """diagnostics 10 (3): more than 3 times better from 100 to 400 steps at c = 5."""
    model = wrong(EXACT, 1.0, lambda x, t: 5 * gauge(x, t))
    assert in_time(model, 100, 2) > 3 * in_time(model, 400, 2)


def test_the_packages_heun_recovers_them_too(wrong):
    """It integrates over rho, so its errors are its own."""
    model = wrong(EXACT, 1.0, gauge)

    def error(steps):
        sampler = Heun(steps, UniformTime(2.0), denoise=False)
        return covariance_error(lambda x: sampler(model, x)["x"])

    assert error(100) > 3 * error(400)


# --- the split ----------------------------------------------------------------------------------
QUICK = {"steps": 300, "batch": 256, "width": 48, "layers": 2, "points": 2000, "source": 0}


def share(c):
    return c**2 / (1 + c**2)


def test_a_small_fit_finds_the_share_of_the_rotation(wrong):
    """diagnostics 10 (4): E|r|^2 / E|s|^2 = 0.5 within 0.03 at c = 1."""
    data = GAUSSIAN.sample(5000, 0)
    found = gauge_split(wrong(EXACT, 1.0, gauge), data, LEVEL, **QUICK)
    assert found.value == pytest.approx(share(1.0), abs=0.03)
    total = found.square_gradient.mean() + found.square_remainder.mean()
    assert total == pytest.approx(float(found.square_score.mean()), rel=0.05)


def test_an_exact_score_leaves_the_fits_own_error_only():
    found = gauge_split(EXACT, GAUSSIAN.sample(5000, 0), LEVEL, **QUICK)
    assert found.value <= 5e-3
    assert found.standard_error <= found.value


def test_the_fit_is_a_function_of_its_seed_and_leaves_the_global_generator_alone():
    options = {**QUICK, "steps": 5}
    before = torch.random.get_rng_state()
    first, second = (
        gauge_split(EXACT, GAUSSIAN.sample(100, 0), LEVEL, **options) for _ in range(2)
    )
    assert first.value == second.value
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.paper
@pytest.mark.parametrize("c", [0.0, 0.3, 1.0])
def test_the_shares_of_the_card(wrong, c):
    """diagnostics 7.3: .0000 / .0826 / .5002 for c = 0 / .3 / 1."""
    model = wrong(EXACT, 1.0, lambda x, t: c * gauge(x, t))
    found = gauge_split(model, GAUSSIAN.sample(20_000, 0), LEVEL, source=0)
    assert found.value == pytest.approx(share(c), abs=0.01)
    assert found.condition_rms <= 0.2 * math.sqrt(2.4126) + 0.05


def test_bad_fits_are_refused():
    with pytest.raises(StructDiffError, match="positive"):
        gauge_split(EXACT, GAUSSIAN.sample(4, 0), LEVEL, steps=0)
