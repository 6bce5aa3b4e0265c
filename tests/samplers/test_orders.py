"""Every sampler's order of convergence, against exact solutions.

Numbers: method card of the samplers, section 7.3 (trajectory error on the three-Gaussian mixture),
section 2.11 of the processes' card (the five-dimensional system).
"""

import math

import numpy as np
import pytest
import torch

from structdiff.processes import VE, VP, System
from structdiff.samplers import (
    DDIM,
    DDPM,
    SAMPLERS,
    DPMSolver,
    ExponentialIto,
    UniformLogSNR,
    UniformTime,
    get_sampler,
)
from structdiff.state import State
from structdiff.testbeds import CorrelatedGaussian, GaussianMixture

torch.set_num_threads(1)
DETERMINISTIC = [k for k, v in SAMPLERS.items() if not v.stochastic and v.nfe_per_step and v.order]


def flow(denoiser, x, rates=lambda t: {}):
    """Probability flow from t_max to t_min by DOP853; independent of the samplers."""
    from scipy.integrate import solve_ivp

    system = denoiser.system
    layout = system.layout(x)
    shape = layout.flatten(x).shape

    def slope(t, y):
        state = layout.unflatten(torch.from_numpy(y.reshape(shape)))
        speed = dict.fromkeys(state, 1.0) | rates(t)
        return layout.flatten(denoiser.velocity(state, t) * speed).numpy().ravel()

    solution = solve_ivp(
        slope,
        (system.t_max, system.t_min),
        layout.flatten(x).numpy().ravel(),
        method="DOP853",
        rtol=1e-10,
        atol=1e-10,
        dense_output=True,
    )
    return lambda t: layout.unflatten(torch.from_numpy(solution.sol(t).reshape(shape)))


def rms(a, b):
    """Root mean square distance between states."""
    return float(((a - b).square_norm().mean()).sqrt())


@pytest.fixture(scope="module")
def mixture():
    denoiser = GaussianMixture.gmm3().denoiser(System(VP()))
    x = denoiser.system.prior(State({"x": torch.zeros(48, 2, dtype=torch.float64)}), 0)
    return denoiser, x, flow(denoiser, x)(denoiser.system.t_min)


SYSTEM = {"x": VP(), "a": VE(sigma_min=0.01, sigma_max=10.0)}


@pytest.fixture(scope="module", params=["one clock", "clocks t and t^2"])
def pair(request):
    squared = request.param != "one clock"
    system = System(SYSTEM, clocks={"a": lambda t: t**2} if squared else None)
    denoiser = CorrelatedGaussian().denoiser(system)
    like = State({"x": torch.zeros(32, 2).double(), "a": torch.zeros(32, 3).double()})
    x = system.prior(like, 0)
    solution = flow(denoiser, x, (lambda t: {"a": 2 * t}) if squared else (lambda t: {}))
    return denoiser, x, solution(system.t_min)


def measured_order(name, denoiser, x, exact, steps):
    errors = [
        rms(get_sampler(name, n, denoise=False)(denoiser, x), exact) for n in (steps, 2 * steps)
    ]
    return math.log2(errors[0] / errors[1])


@pytest.mark.parametrize("steps", [160, 320])
@pytest.mark.parametrize("name", DETERMINISTIC)
def test_order_on_the_mixture(name, steps, mixture):
    assert measured_order(name, *mixture, steps) == pytest.approx(SAMPLERS[name].order, abs=0.15)


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_order_on_a_system_of_two_processes(name, pair):
    assert measured_order(name, *pair, 160) == pytest.approx(SAMPLERS[name].order, abs=0.15)


@pytest.fixture(scope="module")
def many():
    """512 trajectories as the card has them, solved by the adaptive flow checked below."""
    denoiser = GaussianMixture.gmm3().denoiser(System(VP()))
    x = denoiser.system.prior(State({"x": torch.zeros(512, 2, dtype=torch.float64)}), 0)
    return denoiser, x, get_sampler("ode", 1, denoise=False, rtol=1e-8, atol=1e-8)(denoiser, x)


# Table 7.3, t0 = 1e-3, 512 other trajectories: few pass near the mixture's watersheds and make most
# of the error, hence 15 %.
@pytest.mark.parametrize(
    ("name", "grid", "steps", "error"),
    [
        ("ddim", UniformTime(2), 20, 0.124),
        ("ddim", UniformTime(2), 100, 2.3e-2),
        ("ddim", UniformLogSNR(), 50, 7.5e-2),
        ("dpm++", UniformLogSNR(), 20, 3.9e-2),
        ("dpm++", UniformLogSNR(), 100, 2.0e-3),
    ],
)
def test_trajectory_error_is_the_published_figure(name, grid, steps, error, many):
    denoiser, x, exact = many
    sampler = get_sampler(name, steps, grid=grid, denoise=False)
    assert rms(sampler(denoiser, x), exact) == pytest.approx(error, rel=0.15)


@pytest.mark.parametrize("variable", ["rho", "time"])
def test_adaptive_flow_reaches_the_exact_solution_to_its_tolerance(variable, mixture):
    denoiser, x, exact = mixture
    sampler = get_sampler("ode", 1, denoise=False, rtol=1e-8, atol=1e-8, variable=variable)
    assert rms(sampler(denoiser, x), exact) < 1e-6


def test_adaptive_flow_of_a_system_reaches_the_exact_solution(pair):
    denoiser, x, exact = pair
    sampler = get_sampler("ode", 1, denoise=False, rtol=1e-8, atol=1e-8)
    assert rms(sampler(denoiser, x), exact) < 1e-6


def test_adaptive_flow_reports_the_solution_at_its_grid_times(mixture):
    denoiser, x, _ = mixture
    solution = flow(denoiser, x)
    sampler = get_sampler("ode", 4, denoise=False, rtol=1e-7, atol=1e-7)
    times = sampler.times(denoiser.system)[1:]
    states = list(sampler.trajectory(denoiser, x))
    assert max(rms(s, solution(t)) for s, t in zip(states, times, strict=True)) < 1e-4


@pytest.mark.parametrize(
    "other",
    [
        lambda n, g: DPMSolver(n, g, order=1),
        lambda n, g: DDPM(n, g, eta=0.0),
        lambda n, g: ExponentialIto(n, g, eta=0.0),
    ],
    ids=["dpm++1", "ddpm eta=0", "exponential-ito eta=0"],
)
@pytest.mark.parametrize("denoise", [True, False])
def test_equals_ddim(other, denoise, mixture):
    denoiser, x, _ = mixture
    grid = UniformTime(2)
    a, b = DDIM(12, grid), other(12, grid)
    a.denoise = b.denoise = denoise
    assert rms(a(denoiser, x), b(denoiser, x)) < 1e-12


def test_second_order_history_survives_a_component_that_waits():
    # x moves on the first half of the shared time, a on the second: both stand still meanwhile.
    clocks = {
        "x": lambda t: (2 * t - 1).clamp(min=1e-3),
        "a": lambda t: (2 * t).clamp(max=1.0),
    }
    system = System(SYSTEM, clocks=clocks)
    denoiser = CorrelatedGaussian().denoiser(system)
    like = State({"x": torch.zeros(8, 2).double(), "a": torch.zeros(8, 3).double()})
    x = system.prior(like, 0)
    grid = UniformTime()
    errors = []
    fine = get_sampler("dpm++", 2560, grid=grid, denoise=False)(denoiser, x)
    for steps in (160, 320):
        y = get_sampler("dpm++", steps, grid=grid, denoise=False)(denoiser, x)
        errors.append(rms(y, fine))
    assert np.log2(errors[0] / errors[1]) > 1.7


def test_a_waiting_component_keeps_its_very_tensor():
    clocks = {"x": lambda t: (2 * t - 1).clamp(min=1e-3), "a": lambda t: (2 * t).clamp(max=1.0)}
    system = System(SYSTEM, clocks=clocks)
    denoiser = CorrelatedGaussian().denoiser(system)
    x = system.prior(State({"x": torch.zeros(8, 2).double(), "a": torch.zeros(8, 3).double()}), 0)
    first = next(get_sampler("dpm++sde", 10, grid=UniformTime()).trajectory(denoiser, x, source=1))
    assert first["a"] is x["a"] and not torch.equal(first["x"], x["x"])
