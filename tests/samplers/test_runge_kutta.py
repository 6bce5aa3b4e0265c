"""Explicit Runge-Kutta methods in rho: order, agreement with other solvers, systems and clocks.

Numbers: samplers card, section 7.3 (its columns are evaluations, the steps are evaluations over
stages). Where the flow of one Gaussian is closed, it is the reference: with the eigenvalues l of
the covariance, the deviation of v from the mean scales as sqrt((l + rho_u^2) / (l + rho_t^2)).
"""

import math

import pytest
import torch

from structdiff.denoisers import BaseDenoiser
from structdiff.errors import StructDiffError
from structdiff.processes import EDM, VE, VP, System
from structdiff.samplers import DDIM, Heun, Karras, UniformLogSNR, UniformTime, get_sampler
from structdiff.samplers.runge_kutta import EULER, HEUN, KUTTA, RK4, RungeKutta, Tableau
from structdiff.state import State
from structdiff.testbeds import CorrelatedGaussian, GaussianMixture

torch.set_num_threads(1)
THREE_EIGHTHS = Tableau([(), (1 / 3,), (-1 / 3, 1), (1, -1, 1)], [1 / 8, 3 / 8, 3 / 8, 1 / 8])
RALSTON = Tableau([(), (2 / 3,)], [1 / 4, 3 / 4])
CASH_KARP = Tableau(
    [
        (),
        (1 / 5,),
        (3 / 40, 9 / 40),
        (3 / 10, -9 / 10, 6 / 5),
        (-11 / 54, 5 / 2, -70 / 27, 35 / 27),
        (1631 / 55296, 175 / 512, 575 / 13824, 44275 / 110592, 253 / 4096),
    ],
    [37 / 378, 0, 250 / 621, 125 / 594, 0, 512 / 1771],
)
METHODS = {"euler": EULER, "heun": HEUN, "kutta": KUTTA, "rk4": RK4, "3/8": THREE_EIGHTHS}
ORDERS = {"euler": 1, "heun": 2, "kutta": 3, "rk4": 4, "3/8": 4}


def rms(a, b):
    return float((a - b).square_norm().mean().sqrt())


@pytest.fixture(scope="module")
def gaussian():
    """A plane Gaussian under VP, 64 starts and where the flow takes them, in closed form."""
    system = System(VP())
    mean = torch.tensor([1.5, -0.5], dtype=torch.float64)
    covariance = torch.tensor([[0.5, 0.3], [0.3, 0.4]], dtype=torch.float64)
    denoiser = GaussianMixture([1.0], mean[None], covariance[None]).denoiser(system)
    x = system.prior(State({"x": torch.zeros(64, 2, dtype=torch.float64)}), 0)
    process, t, u = system.processes["x"], system.t_max, system.t_min
    rho = [float(torch.exp(-process.half_log_snr(time))) for time in (t, u)]
    values, vectors = torch.linalg.eigh(covariance)
    scale = ((values + rho[1] ** 2) / (values + rho[0] ** 2)).sqrt()
    start = (x["x"] / process.alpha(t) - mean) @ vectors
    end = (mean + (start * scale) @ vectors.T) * process.alpha(u)
    return denoiser, x, State({"x": end})


def order(tableau, steps, denoiser, x, exact):
    errors = [
        rms(RungeKutta(n, tableau=tableau, denoise=False)(denoiser, x), exact)
        for n in (steps, 2 * steps)
    ]
    return math.log2(errors[0] / errors[1])


@pytest.mark.parametrize("name", METHODS)
def test_order_on_a_gaussian_with_a_closed_flow(name, gaussian):
    assert order(METHODS[name], 320, *gaussian) == pytest.approx(ORDERS[name], abs=0.15)


def test_a_fifth_order_tableau_of_the_user_keeps_its_order(gaussian):
    assert order(CASH_KARP, 100, *gaussian) == pytest.approx(5, abs=0.15)


SYSTEM = {"x": VP(), "a": VE(sigma_min=0.01, sigma_max=10.0)}


@pytest.fixture(scope="module")
def clocks():
    """Two processes on two clocks, and the flow's end by a method of order 5 at 640 steps."""
    system = System(SYSTEM, clocks={"a": lambda t: t**2})
    denoiser = CorrelatedGaussian().denoiser(system)
    like = State({"x": torch.zeros(8, 2).double(), "a": torch.zeros(8, 3).double()})
    x = system.prior(like, 0)
    return denoiser, x, RungeKutta(640, tableau=CASH_KARP, denoise=False)(denoiser, x)


@pytest.mark.parametrize("name", ["heun", "kutta", "rk4"])
def test_order_holds_on_two_processes_with_two_clocks(name, clocks):
    # On the chords between grid points instead of the components' own curves all stop at order 2.
    assert order(METHODS[name], 320, *clocks) == pytest.approx(ORDERS[name], abs=0.15)


@pytest.fixture(scope="module")
def mixture():
    denoiser = GaussianMixture.gmm3().denoiser(System(VP()))
    x = denoiser.system.prior(State({"x": torch.zeros(512, 2, dtype=torch.float64)}), 0)
    return denoiser, x, get_sampler("ode", 1, denoise=False, rtol=1e-8, atol=1e-8)(denoiser, x)


# 512 other trajectories than the card's: 15 %.
@pytest.mark.parametrize(
    ("name", "evaluations", "error"),
    [
        ("heun", 5, 6.1),
        ("heun", 10, 1.2),
        ("heun", 20, 0.22),
        ("heun", 100, 6.1e-3),
        ("kutta", 10, 0.75),
        ("kutta", 20, 0.086),
        ("kutta", 50, 1.1e-2),
        ("kutta", 100, 1.7e-3),
        ("rk4", 10, 1.0),
        ("rk4", 20, 0.17),
        ("rk4", 50, 7.9e-3),
        ("rk4", 100, 8.2e-4),
    ],
)
def test_trajectory_error_is_the_published_figure(name, evaluations, error, mixture):
    denoiser, x, exact = mixture
    tableau = METHODS[name]
    sampler = RungeKutta(evaluations // tableau.stages, tableau=tableau, denoise=False)
    assert rms(sampler(denoiser, x), exact) == pytest.approx(error, rel=0.15)


@pytest.mark.parametrize("grid", [Karras(), UniformTime(2), UniformLogSNR()])
def test_euler_is_ddim(grid, clocks):
    denoiser, x, _ = clocks
    a, b = RungeKutta(12, grid, tableau=EULER), DDIM(12, grid)
    assert rms(a(denoiser, x), b(denoiser, x)) < 1e-12


def test_heun_in_rho_is_the_trapezoid_of_edm(mixture):
    denoiser, x, _ = mixture
    sampler = get_sampler("rhork-heun", 15)
    y = sampler(denoiser, x)
    assert rms(y, Heun(15)(denoiser, x)) < 1e-12 * float(y.square_norm().mean().sqrt())


class Constant(BaseDenoiser):
    """Every entry's noise is 1: the flow is v_u = v_t + rho_u - rho_t."""

    def forward(self, x, t, condition=None):
        return (x - self.noise(x, t) * self.system.sigma(t)) / self.system.alpha(t)

    def noise(self, x, t, condition=None):
        return x.map(torch.ones_like)


@pytest.mark.parametrize("tableau", [*METHODS.values(), RALSTON, CASH_KARP])
def test_every_component_moves_exactly_by_its_own_step(tableau, clocks):
    _, x, _ = clocks
    system = System(SYSTEM, clocks={"a": lambda t: t**2})
    sampler = RungeKutta(3, tableau=tableau, denoise=False)
    times = sampler.times(system)
    before, t = x, times[0]
    for u, after in zip(times[1:], sampler.trajectory(Constant(system), x), strict=True):
        step = {
            k: torch.exp(-system.half_log_snr(u)[k]) - torch.exp(-system.half_log_snr(t)[k])
            for k in x
        }
        moved = after / system.alpha(u) - before / system.alpha(t)
        for k in x:
            assert float((moved[k] / step[k] - 1).abs().max()) < 1e-10
        before, t = after, u


def test_a_component_that_waits_keeps_its_very_tensor():
    waits = {"x": lambda t: (2 * t - 1).clamp(min=1e-3), "a": lambda t: (2 * t).clamp(max=1.0)}
    system = System(SYSTEM, clocks=waits)
    denoiser = CorrelatedGaussian().denoiser(system)
    x = system.prior(State({"x": torch.zeros(4, 2).double(), "a": torch.zeros(4, 3).double()}), 0)
    states = list(RungeKutta(10, UniformTime(), denoise=False).trajectory(denoiser, x))
    assert all(s["a"] is x["a"] for s in states[:5])
    # The grid passes 0.5005 and 0.4006: x comes to rest within the sixth step.
    assert all(s["x"] is states[5]["x"] for s in states[6:])
    assert not torch.equal(states[-1]["a"], x["a"])
    assert all(bool(v.isfinite().all()) for v in states[-1].values())


def test_the_step_to_no_noise_is_eulers():
    denoiser = GaussianMixture.gmm3().denoiser(System(EDM()))
    x = torch.randn(16, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 80
    sampler = RungeKutta(3, [1.0, 0.1, 0.01, 0.0], tableau=RK4, denoise=False)
    *_, before, last = sampler.trajectory(denoiser, x)
    assert rms(last, denoiser(before, 0.01)) < 1e-12
    assert sampler.nfe == 4 + 4 + 1


def test_float32_states_stay_float32_and_close_to_float64(clocks):
    denoiser, x, _ = clocks
    sampler = RungeKutta(10)
    single, double = sampler(denoiser, x.to(torch.float32)), sampler(denoiser, x)
    assert all(v.dtype == torch.float32 for v in single.values())
    assert rms(single.to(torch.float64), double) < 1e-4


@pytest.mark.parametrize(
    ("tableau", "degrees"), [(EULER, 1), (HEUN, 2), (RALSTON, 3), (KUTTA, 4), (RK4, 4)]
)
def test_degrees_of_the_quadrature(tableau, degrees):
    # Left rectangle 1, trapezoid 2, Radau 3, Simpson 4.
    assert tableau.degrees == degrees


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([(), (1, 0)], [0.5, 0.5]), "not explicit: row 2"),
        (([(0.5,)], [1]), "not explicit: row 1"),
        (([()], [0.9]), "b must sum to 1, got 0.9"),
        (([(), (1,)], [0.5, 0.5], [0, 0.5]), "c must be the sums"),
        (([(), (1,)], [0.5, 0.5], [0]), "c must be the sums"),
        (([(), (1.5,)], [0.5, 0.5]), "within the step"),
        (([()], [0.5, 0.5]), "one row of a and one weight b per stage, got 1 rows and 2"),
        (([], []), "one row of a"),
        (([()], [math.nan]), "b must sum to 1"),
    ],
)
def test_a_tableau_that_is_no_explicit_method_is_named(arguments, message):
    with pytest.raises(StructDiffError, match=message):
        Tableau(*arguments)


def test_the_sampler_asks_for_a_tableau():
    with pytest.raises(StructDiffError, match="tableau must be a Tableau, got str"):
        RungeKutta(5, tableau="rk4")
