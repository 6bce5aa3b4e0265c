"""Refinement's energies and what holds on to the start: their gradients are their slopes."""

import pytest
import torch

from structdiff.denoisers import Denoiser
from structdiff.noise import ReplayNoise
from structdiff.processes import System
from structdiff.state import State
from structdiff.timeseries.refinement import forecast_entries
from structdiff.timeseries.refinement_terms import DenoisingEnergy, Regularizer, ScoreEnergy
from support.gradients import finite_difference
from support.refinement import CHAIN, TAU, Curved, Network, draws, gaussian, scales

torch.set_num_threads(1)


# --- the energy -----------------------------------------------------------------------------------
def test_the_denoising_gradient_is_the_slope_of_the_summed_loss():
    y = torch.randn(2, 5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    energy, noise = DenoisingEnergy(Curved(System(CHAIN)), TAU), draws(1, y)[0]
    alpha, sigma = scales(TAU)
    noised = alpha * y + sigma * noise
    data = Curved(System(CHAIN))(State({"x": noised}), TAU)["x"]
    gap = noise - (noised - alpha * data) / sigma
    value = energy.value(State({"x": y}), noise)
    torch.testing.assert_close(value, gap.square().sum((1, 2)), rtol=1e-12, atol=0)
    slope = finite_difference(lambda z: energy.value(State({"x": z}), noise), y)
    found = energy.gradient(State({"x": y}), ReplayNoise({"x": [noise]}))
    torch.testing.assert_close(found, slope, rtol=1e-6, atol=1e-6)


def test_the_denoising_gradient_without_noise_is_its_mean_on_a_gaussian():
    # eps - eps_theta is linear in (eps, y): E grad = 2 a^2 s^2 M^-2 y with M = a^2 S + s^2 I.
    process, denoiser, y = gaussian()
    alpha, sigma = scales(TAU)
    total = alpha**2 * process.covariance() + sigma**2 * torch.eye(12, dtype=torch.float64)
    inverse = torch.linalg.inv(total)
    still = ReplayNoise({"x": [torch.zeros_like(y)]})
    found = DenoisingEnergy(denoiser, TAU).gradient(State({"x": y}), still)
    exact = 2 * alpha**2 * sigma**2 * y @ inverse @ inverse
    torch.testing.assert_close(found, exact, rtol=1e-9, atol=1e-10)


def test_the_score_gradient_is_that_of_the_smoothed_density():
    # -grad log N(y; m, S + u I) = (S + u I)^-1 (y - m), u = s^2 / a^2; no draw is taken.
    process, denoiser, y = gaussian(mean=0.7)
    alpha, sigma = scales(TAU)
    smoothed = process.covariance() + sigma**2 / alpha**2 * torch.eye(12, dtype=torch.float64)
    found = ScoreEnergy(denoiser, TAU).gradient(State({"x": y}), ReplayNoise({}))
    exact = torch.linalg.solve(smoothed, (y - 0.7).T).T
    torch.testing.assert_close(found, exact, rtol=1e-9, atol=1e-10)


# --- what holds on to the start -------------------------------------------------------------------
def test_the_squared_regularizer_leaves_the_forecast_alone_and_the_quantile_one_does_not():
    start = torch.zeros(2, 3, 2)
    free = forecast_entries(3, 1, 2)
    moved = torch.tensor([[[1.0, 2], [3, 4], [5, 6]]]).repeat(2, 1, 1)
    # 1 + 4 + 9 + 16 + 36: without the 5 of channel 0's horizon.
    assert Regularizer(start, "squared", free).value(moved).tolist() == [66.0, 66.0]
    # All above the start: (1 - k) times the whole sum, 21.
    levels = torch.tensor([0.25, 0.75])
    quantile = Regularizer(start, "quantile", free, levels=levels)
    assert quantile.value(moved).tolist() == [0.75 * 21, 0.25 * 21]
    assert quantile.value(-moved).tolist() == [0.25 * 21, 0.75 * 21]


@pytest.mark.parametrize("kind", ["squared", "quantile"])
def test_the_regularizers_gradient_is_its_slope(kind):
    generator = torch.Generator().manual_seed(2)
    start, y = torch.randn(2, 2, 4, 2, dtype=torch.float64, generator=generator)
    levels = torch.tensor([0.2, 0.9]) if kind == "quantile" else None
    missing = torch.tensor([True, False, False, False])[:, None]
    hold = Regularizer(start, kind, forecast_entries(4, 1, 2), missing, levels)
    slope = finite_difference(hold.value, y)
    torch.testing.assert_close(hold.gradient(y), slope, rtol=1e-7, atol=1e-7)
    assert not hold.gradient(y)[:, 0].any()
    assert bool(hold.gradient(y)[:, 3, 0].any()) == (kind == "quantile")


def test_a_path_at_its_start_is_not_pushed_by_its_level():
    start = torch.zeros(1, 3)
    hold = Regularizer(start, "quantile", levels=torch.tensor([0.9]))
    assert hold.gradient(start).tolist() == [[0.0, 0.0, 0.0]]


def test_a_network_learns_nothing_but_its_input_matters():
    # The gradient goes through the network: its Jacobian is seen, not only its output.
    torch.manual_seed(0)
    denoiser = Denoiser(Network(6), System(CHAIN), "noise").double()
    y = torch.randn(2, 6, 1, dtype=torch.float64)
    noise = draws(1, y)[0]
    energy = DenoisingEnergy(denoiser, TAU)
    with torch.no_grad():
        found = energy.gradient(State({"x": y}), ReplayNoise({"x": [noise]}))
        slope = finite_difference(lambda z: energy.value(State({"x": z}), noise), y)
    torch.testing.assert_close(found, slope, rtol=1e-5, atol=1e-7)
