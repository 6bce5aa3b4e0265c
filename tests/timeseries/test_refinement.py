"""Refinement: the published iteration, and exact answers on a Gaussian."""

import math

import pytest
import torch

from structdiff.errors import StructDiffError
from structdiff.guidance import path_levels
from structdiff.noise import ReplayNoise
from structdiff.processes import System
from structdiff.state import State
from structdiff.testbeds import StationaryGaussian
from structdiff.timeseries.refinement import (
    base_rows,
    denoising_losses,
    forecast_entries,
    refine_windows,
    representative_time,
    stable_step,
)
from structdiff.timeseries.refinement_terms import Regularizer
from support.refinement import CHAIN, FIRST, TAU, TIMES, Curved, draws, gaussian, horizon, scales

torch.set_num_threads(1)


# --- the iteration --------------------------------------------------------------------------------
@pytest.mark.parametrize("regularizer", ["squared", "quantile"])
@pytest.mark.parametrize("method", ["langevin", "ml"])
def test_refinement_is_the_papers_loop(method, regularizer):
    # Kollovieh et al. 2023, section 3.2: y <- y - eta grad E + sqrt(2 eta) 0.1 xi, eps fresh in
    # every iteration; written out with the Gaussian's closed form and lambda = 1.
    process, denoiser, y = gaussian()
    alpha, sigma = scales(TAU)
    eye = torch.eye(12, dtype=torch.float64)
    inverse = torch.linalg.inv(alpha**2 * process.covariance() + sigma**2 * eye)
    free, numbers = horizon(12, 4), draws(2 * 5, y)
    levels = path_levels(3) if regularizer == "quantile" else None
    expected, numbers_left = y.clone(), iter(numbers)
    for _ in range(5):
        eps = next(numbers_left)
        gap = eps - sigma * (alpha * expected + sigma * eps) @ inverse
        slope = -2 * alpha * sigma * gap @ inverse
        if levels is None:
            slope = slope + 2 * torch.where(free, 0.0, expected - y)
        else:
            k = levels[:, None]
            slope = slope + torch.where(y > expected, -k, torch.where(y < expected, 1 - k, 0.0))
        expected = expected - 0.1 * slope
        if method == "langevin":
            expected = expected + math.sqrt(0.2) * 0.1 * next(numbers_left)
    got = refine_windows(
        denoiser,
        y,
        time=TAU,
        free=free,
        method=method,
        regularizer=regularizer,
        levels=levels,
        iterations=5,
        step=0.1,
        source=ReplayNoise({"x": numbers}),
    )
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)


def test_a_quantile_ensemble_of_one_forecast_is_spread_in_the_order_of_its_levels():
    _, denoiser, y = gaussian(batch=1)
    rows = base_rows(y[:, -4:], 9)
    start = torch.cat([y[:, :8].expand(9, 8), rows.values], dim=1)
    got = refine_windows(
        denoiser,
        start,
        time=TAU,
        free=None,
        regularizer="quantile",
        levels=rows.levels,
        method="ml",
        source=ReplayNoise({"x": [d[:1].expand(9, 12) for d in draws(20, start)]}),
    )
    # Around the kink a path jumps by up to the step, so ensembles of three are compared.
    forecast = got[:, -4:]
    assert (forecast[-3:].mean(0) - forecast[:3].mean(0) > 0.2).all()
    assert (forecast[-1] - forecast[0] > 0.3).all()


# --- exact answers (card G6) ----------------------------------------------------------------------
def test_ml_with_the_context_kept_finds_the_conditional_mean():
    process, denoiser, y = gaussian(length=16)
    free, (alpha, sigma) = horizon(16, 6), scales(FIRST)
    mean, _ = process.conditional(y, ~free)
    smoothed = StationaryGaussian(process.autocovariance.clone())
    smoothed.autocovariance[0] += sigma**2 / alpha**2
    exact, _ = smoothed.conditional(y, ~free)
    got = refine_windows(
        denoiser,
        y,
        time=FIRST,
        free=free,
        method="ml",
        energy="score",
        weight=math.inf,
        step=0.1,
        iterations=1500,
    )
    assert torch.equal(got[:, ~free], y[:, ~free])
    torch.testing.assert_close(got[:, free], exact, rtol=0, atol=1e-6)
    # u = 1e-4 of smoothing is what remains.
    torch.testing.assert_close(got[:, free], mean, rtol=0, atol=1e-3)


def test_ml_with_a_weight_finds_the_penalised_minimum_and_tends_to_the_conditional_mean():
    process, denoiser, y = gaussian(phi=0.7, length=12)
    free = horizon(12, 4)
    alpha, sigma = scales(FIRST)
    eye = torch.eye(12, dtype=torch.float64)
    precision = torch.linalg.inv(process.covariance() + sigma**2 / alpha**2 * eye)
    mean, _ = process.conditional(y, ~free)
    misses = []
    for weight in (1.0, 10.0, 100.0):
        held = 2 * weight * torch.diag((~free).double())
        exact = torch.linalg.solve(precision + held, (y @ held).T).T
        got = refine_windows(
            denoiser,
            y,
            time=FIRST,
            free=free,
            method="ml",
            energy="score",
            weight=weight,
            step=1 / (6 + 2 * weight),
            iterations=int(40 * (6 + 2 * weight)),
        )
        torch.testing.assert_close(got, exact, rtol=0, atol=1e-5)
        misses.append(float((got[:, free] - mean).norm()))
    assert misses[0] > 5 * misses[1] > 25 * misses[2] and misses[2] < 0.02


@pytest.mark.parametrize(("scale", "weight"), [(1.0, math.inf), (0.5, math.inf), (1.0, 20.0)])
def test_langevin_has_the_conditional_covariance(scale, weight):
    # Card G6: within 10 % at noise scale 1; the covariance grows with the square of the scale.
    process, denoiser, y = gaussian(phi=0.7, length=12, batch=1)
    free = horizon(12, 4)
    mean, covariance = process.conditional(y, ~free)
    got = refine_windows(
        denoiser,
        y.expand(4000, 12),
        time=FIRST,
        free=free,
        energy="score",
        weight=weight,
        noise_scale=scale,
        step=0.02,
        iterations=500,
        source=0,
    )[:, free]
    target = scale**2 * covariance
    assert (torch.cov(got.T) - target).norm() < 0.1 * target.norm()
    assert (got.mean(0) - mean[0]).norm() < 0.1


def gaussian_energies(phi, weight, step, iterations=20):
    """Energy 1/2 y' S^-1 y + lambda R along 20 ML iterations from a last-value forecast."""
    process, denoiser, y = gaussian(phi, length=48, batch=20)
    free = horizon(48, 12)
    start = torch.where(free, y[:, 35:36], y)
    precision, path = torch.linalg.inv(process.covariance()), [start]
    hold = Regularizer(start, "squared", free)
    for count in range(1, iterations + 1):
        path.append(
            refine_windows(
                denoiser,
                start,
                time=FIRST,
                free=free,
                method="ml",
                energy="score",
                weight=weight,
                step=step,
                iterations=count,
            )
        )
    strength = 0.0 if weight == math.inf else weight
    return torch.stack([(v @ precision * v).sum(1) / 2 + strength * hold.value(v) for v in path])


@pytest.mark.parametrize(("phi", "weight"), [(0.9, math.inf), (0.85, 1.0)])
def test_20_published_steps_lower_the_exact_energy_in_every_iteration(phi, weight):
    # Curvature 19.0 and 14.3, both below 2 / 0.1.
    assert (gaussian_energies(phi, weight, 0.1).diff(dim=0) < 0).all()


def test_published_steps_overshoot_where_the_exact_curvature_is_above_20():
    # phi = 0.9, lambda = 1: the largest curvature is 20.97; half the step descends.
    assert (gaussian_energies(0.9, 1.0, 0.1).diff(dim=0)[-1] > 0).all()
    assert (gaussian_energies(0.9, 1.0, 0.05).diff(dim=0) < 0).all()


def test_20_published_steps_at_the_representative_time_lower_the_mean_denoising_loss():
    # In the mean over eps the loss is |s (a^2 S + s^2)^-1 a y|^2 and a constant.
    process, denoiser, y = gaussian(length=48, batch=20)
    tau = representative_time(denoiser, process.sample(256, 1), TIMES, 0)
    free, (alpha, sigma) = horizon(48, 12), scales(tau)
    start = torch.where(free, y[:, 35:36], y)
    eye = torch.eye(48, dtype=torch.float64)
    gain = alpha * sigma * torch.linalg.inv(alpha**2 * process.covariance() + sigma**2 * eye)
    hold, energies = Regularizer(start, "squared", free), []
    for count in range(21):
        still = ReplayNoise({"x": [torch.zeros_like(start)] * count})
        v = refine_windows(
            denoiser,
            start,
            time=tau,
            free=free,
            method="ml",
            step=0.1,
            iterations=count,
            source=still,
        )
        energies.append((v @ gain).square().sum(1) + hold.value(v))
    assert (torch.stack(energies).diff(dim=0) < 0).all()


# --- the step -------------------------------------------------------------------------------------
@pytest.mark.parametrize(("energy", "factor"), [("denoising", 2.0), ("score", 1.0)])
def test_the_stable_step_is_one_over_the_curvature_where_the_data_do_not_vary(energy, factor):
    # Windows of one level each: what is not level has variance 0 and curvature 2/u or 1/u.
    denoiser = StationaryGaussian(torch.ones(8)).denoiser(System(CHAIN))
    y = torch.tensor([[1.0, -1] * 4], dtype=torch.float64)
    options = {"time": TAU, "free": torch.ones(8, dtype=torch.bool), "energy": energy}
    step = stable_step(denoiser, TAU, energy=energy, weight=math.inf)
    alpha, sigma = scales(TAU)
    assert step == pytest.approx(sigma**2 / alpha**2 / factor, rel=1e-12)
    for times, expected in ((1.0, 0.0), (2.0, -1.0)):
        still = ReplayNoise({"x": [torch.zeros_like(y)]})
        got = refine_windows(
            denoiser, y, method="ml", iterations=1, step=times * step, source=still, **options
        )
        torch.testing.assert_close(got, expected * y, rtol=0, atol=1e-9)
    held = stable_step(denoiser, TAU, energy=energy, weight=3.0)
    assert 1 / held == pytest.approx(1 / step + 6, rel=1e-12)
    assert stable_step(denoiser, TAU, energy=energy, regularizer="quantile") == step


@pytest.mark.parametrize(("index", "published"), [(40, True), (5, False)])
def test_without_a_step_the_published_one_is_taken_unless_it_may_overshoot(index, published):
    _, denoiser, y = gaussian()
    time = float(TIMES[index])
    stable = stable_step(denoiser, time)
    assert (stable > 0.1) == published
    options = {"time": time, "free": horizon(12, 4), "source": 3}
    got = refine_windows(denoiser, y, **options)
    assert torch.equal(got, refine_windows(denoiser, y, step=min(0.1, stable), **options))


# --- the representative time ----------------------------------------------------------------------
def gaussian_losses(process):
    # eps - eps_theta has variance a^2 l / (a^2 l + s^2) along a direction of variance l.
    signal = CHAIN.alpha(TIMES)[:, None] ** 2 * process.spectrum[0]
    return (signal / (signal + CHAIN.sigma(TIMES)[:, None] ** 2)).mean(1)


@pytest.mark.parametrize("phi", [0.9, 0.99])
def test_the_losses_and_the_representative_time_of_a_gaussian_are_the_exact_ones(phi):
    process, denoiser, _ = gaussian(phi, length=48)
    windows, exact = process.sample(1024, 1), gaussian_losses(process)
    losses = denoising_losses(denoiser, windows, TIMES, 0)
    torch.testing.assert_close(losses, exact, rtol=0.03, atol=0.002)
    nearest = int((exact - exact.mean()).abs().argmin())
    found = representative_time(denoiser, windows, TIMES, 0)
    assert abs(round(found * 100) - 1 - nearest) <= 1


def test_more_draws_are_averaged_and_masked_entries_do_not_count():
    _, denoiser, y = gaussian()
    numbers = draws(2, y)
    both = denoising_losses(denoiser, y, TIMES[::9], ReplayNoise({"x": numbers}), draws=2)
    each = [denoising_losses(denoiser, y, TIMES[::9], ReplayNoise({"x": [n]})) for n in numbers]
    torch.testing.assert_close(both, (each[0] + each[1]) / 2, rtol=1e-12, atol=0)
    torch.manual_seed(0)
    curved, mask = Curved(System(CHAIN)), torch.tensor([[True, True, True, False]])
    x = torch.randn(5, 4, dtype=torch.float64)
    masked = State({"x": x}, {"x": mask})
    short = denoising_losses(curved, x[:, :3], [TAU], ReplayNoise({"x": [x[:, :3]]}))
    full = denoising_losses(curved, masked, [TAU], ReplayNoise({"x": [x]}))
    torch.testing.assert_close(full, short, rtol=1e-12, atol=0)


# --- rows -----------------------------------------------------------------------------------------
def test_samples_are_sorted_at_every_time_step_and_points_repeated():
    samples = torch.tensor([[[3.0, 1], [1, 2], [2, 3]], [[6.0, 9], [5, 8], [4, 7]]])
    rows = base_rows(samples)
    assert rows.values.tolist() == [[1, 1], [2, 2], [3, 3], [4, 7], [5, 8], [6, 9]]
    assert rows.levels.tolist() == [0.25, 0.5, 0.75, 0.25, 0.5, 0.75]
    points = base_rows(torch.tensor([[1.0, 2], [3, 4]]), 2)
    assert points.values.tolist() == [[1, 2], [1, 2], [3, 4], [3, 4]]
    torch.testing.assert_close(points.levels, torch.tensor([1, 2, 1, 2]).double() / 3)


def test_only_the_end_of_the_first_channel_is_forecast():
    assert forecast_entries(4, 2, 3).nonzero().tolist() == [[2, 0], [3, 0]]


@pytest.mark.parametrize(
    "base", [torch.ones(3), torch.tensor([[math.nan, 1.0]]), torch.ones(1, 0, 2)]
)
def test_a_base_that_is_no_forecast_is_refused(base):
    with pytest.raises(StructDiffError):
        base_rows(base)


def test_losses_need_a_time_and_a_draw():
    _, denoiser, y = gaussian()
    for times, count in (([], 1), (TIMES, 0)):
        with pytest.raises(StructDiffError, match="at least one"):
            denoising_losses(denoiser, y, times, draws=count)
