"""Multistep samplers: their coefficients, starts, ends, and the noise of their SDE forms."""

import math

import pytest
import torch
from scipy.integrate import quad

from structdiff.denoisers import BaseDenoiser
from structdiff.errors import StructDiffError
from structdiff.noise import BrownianNoise
from structdiff.processes import EDM, VE, VP, Cosine, DiscreteVP, System
from structdiff.samplers import (
    DEIS,
    IPNDM,
    Karras,
    UniformLogSNR,
    UniformTime,
    UniPC,
    get_sampler,
)
from structdiff.samplers.base import schedules
from structdiff.samplers.deis import UNIFORM_ADAMS_BASHFORTH, adams_bashforth
from structdiff.samplers.dpm_solver import phi
from structdiff.state import State
from structdiff.testbeds import CorrelatedGaussian, GaussianMixture

torch.set_num_threads(1)
DOUBLE = {"dtype": torch.float64}
MULTISTEP = ["tab3", "rhoab3", "ipndm", "ipndm-v", "dpm++", "dpm++3m", "unipc1", "unipc3"]


def schedule(process=None, grid=None, points=11):
    system = System(process or VP())
    return schedules(system, (grid or UniformTime(2)).times(system, points).tolist())["x"]


def rms(a, b):
    return float((a - b).square_norm().mean().sqrt())


@pytest.fixture(scope="module")
def mixture():
    denoiser = GaussianMixture.gmm3().denoiser(System(VP()))
    return denoiser, denoiser.system.prior(State({"x": torch.zeros(32, 2).double()}), 0)


# --- Adams-Bashforth weights -------------------------------------------------------------------
@pytest.mark.parametrize("points", [2, 3, 4])
def test_rho_weights_integrate_polynomials_in_rho_exactly(points):
    # Acceptance check 5: sum_j C_j rho_j^n = (rho_u^(n+1) - rho_t^(n+1)) / (n + 1).
    plan = schedule(grid=Karras())
    for i in range(points - 1, 10):
        weights = adams_bashforth(plan, i, points, "rho")
        for n in range(points):
            once = sum(w * plan.rho(i - j) ** n for j, w in enumerate(weights))
            exact = (plan.rho(i + 1) ** (n + 1) - plan.rho(i) ** (n + 1)) / (n + 1)
            scale = sum(abs(w) * plan.rho(i - j) ** n for j, w in enumerate(weights))
            assert abs(once - exact) < 1e-12 * scale


@pytest.mark.parametrize("points", [2, 3, 4])
def test_log_rho_weights_integrate_polynomials_in_log_rho_exactly(points):
    # The primitive of lambda^n under d rho = -e^-lambda d lambda:
    # e^-lambda (lambda^n + n lambda^(n-1) + n (n-1) lambda^(n-2) + ...).
    def primitive(n, lam):
        total = sum(math.perm(n, k) * lam ** (n - k) for k in range(n + 1))
        return math.exp(-lam) * total

    plan = schedule(grid=UniformLogSNR())
    for i in range(points - 1, 10):
        weights = adams_bashforth(plan, i, points, "log-rho")
        for n in range(points):
            terms = [w * plan.log_snr[i - j] ** n for j, w in enumerate(weights)]
            exact = primitive(n, plan.log_snr[i + 1]) - primitive(n, plan.log_snr[i])
            assert abs(sum(terms) - exact) < 1e-12 * sum(map(abs, terms))


@pytest.mark.parametrize("process", [VP(), VE(), Cosine()], ids=lambda p: type(p).__name__)
def test_time_weights_are_the_integrals_of_the_card(process):
    # Section 2.7: int_t^u d rho/dw l_j(w) dw, here by scipy's adaptive quadrature in time.
    plan = schedule(process, points=9)

    def slope(w):  # d rho / dw = g^2 / (2 sigma alpha)
        g2 = float(process.diffusion_squared(w))
        return g2 / (2 * float(process.sigma(w)) * float(process.alpha(w)))

    for i in (3, 5, 7):
        knots = [plan.time[i - j] for j in range(4)]
        for j, weight in enumerate(adams_bashforth(plan, i, 4, "time")):
            others = [k for n, k in enumerate(knots) if n != j]

            def integrand(w, j=j, others=others, knots=knots):
                return slope(w) * math.prod((w - k) / (knots[j] - k) for k in others)

            exact, _ = quad(integrand, plan.time[i], plan.time[i + 1], epsabs=0, epsrel=1e-12)
            assert weight == pytest.approx(exact, rel=1e-9)


@pytest.mark.parametrize("steps", [3, 10, 100])
@pytest.mark.parametrize("variable", ["time", "rho", "log-rho"])
def test_weights_sum_to_the_one_of_first_order(variable, steps):
    # Acceptance check 5; k = 0: alpha_u (rho_u - rho_t) = sigma_u - alpha_u sigma_t / alpha_t.
    plan = schedule(points=steps + 1)
    for i in range(2, steps):
        weights = adams_bashforth(plan, i, 3, variable)
        first = plan.sigma[i + 1] / plan.alpha[i + 1] - plan.sigma[i] / plan.alpha[i]
        assert sum(weights) == pytest.approx(first, rel=1e-10)


def test_time_weights_are_those_in_rho_where_rho_is_linear_in_time():
    plan = schedule(EDM(), Karras())
    for i in range(3, 10):
        a, b = (adams_bashforth(plan, i, 4, variable) for variable in ("time", "rho"))
        assert a == pytest.approx(b, rel=1e-10)


@pytest.mark.parametrize("points", [1, 2, 3, 4])
def test_weights_of_equal_steps_are_the_classical_ones(points):
    plan = schedule(EDM(), UniformTime())
    h = plan.rho(5) - plan.rho(4)
    expected = [h * b for b in UNIFORM_ADAMS_BASHFORTH[points - 1]]
    assert adams_bashforth(plan, 4, points, "rho") == pytest.approx(expected, rel=1e-10)


def test_kinks_of_a_discrete_chain_do_not_spoil_the_weights():
    plan = schedule(DiscreteVP(100), UniformTime())
    for i in range(3, 10):
        first = plan.rho(i + 1) - plan.rho(i)
        assert sum(adams_bashforth(plan, i, 4, "time")) == pytest.approx(first, rel=1e-10)


# --- equivalences ------------------------------------------------------------------------------
def test_ipndm_on_equal_steps_is_rho_adams_bashforth(mixture):
    denoiser = GaussianMixture.gmm3().denoiser(System(EDM(sigma_max=20.0)))
    x = denoiser.system.prior(State({"x": torch.zeros(8, 2).double()}), 0)
    a, b = (get_sampler(name, 12, grid=UniformTime())(denoiser, x) for name in ("ipndm", "rhoab3"))
    assert rms(a, b) < 1e-10


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_ipndm_with_variable_steps_is_rho_adams_bashforth(order, mixture):
    grid = UniformTime(2)
    a = IPNDM(9, grid, order=order, variable_step=True)(*mixture)
    b = DEIS(9, grid, order=order - 1, variable="rho")(*mixture)
    assert rms(a, b) == 0


def published_unipc(denoiser, x, times, order, scale):
    """Section 2.6 read off: predict, evaluate, correct from the same start, go on."""
    process = denoiser.system.processes["x"]
    lam = process.half_log_snr(times).tolist()
    alpha, sigma = process.alpha(times).tolist(), process.sigma(times).tolist()
    outputs = [denoiser(x, times[0])]
    for i in range(len(times) - 1):
        p = min(order, i + 1)
        h = lam[i + 1] - lam[i]
        b = -h if scale == "bh1" else math.expm1(-h)
        r = [(lam[i - k] - lam[i]) / h for k in range(1, p)] + [1.0]
        right, value = [], math.expm1(-h) / -h - 1
        for n in range(1, p + 1):
            right.append(value * math.factorial(n) / b)
            value = value / -h - 1 / math.factorial(n + 1)

        def solve(size, right=right, r=r):
            rows = torch.tensor([[r[k] ** n for k in range(size)] for n in range(size)], **DOUBLE)
            return torch.linalg.solve(rows, torch.tensor(right[:size], **DOUBLE)).tolist()

        base = x * (sigma[i + 1] / sigma[i]) - outputs[-1] * (alpha[i + 1] * math.expm1(-h))
        slopes = [(outputs[-1 - k] - outputs[-1]) / r[k - 1] for k in range(1, p)]
        weights = [0.5] if p == 2 else solve(p - 1) if p > 2 else []
        predicted = base
        for w, d in zip(weights, slopes, strict=True):
            predicted = predicted - d * (alpha[i + 1] * b * w)
        if i + 2 == len(times):
            return predicted  # no corrector after the last step
        new = denoiser(predicted, times[i + 1])
        weights = [0.5] if p == 1 else solve(p)
        for w, d in zip(weights, [*slopes, new - outputs[-1]], strict=True):
            base = base - d * (alpha[i + 1] * b * w)
        x = base
        outputs.append(new)


@pytest.mark.parametrize("scale", ["bh1", "bh2"])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_unipc_as_one_linear_step_is_predictor_and_corrector(order, scale, mixture):
    denoiser, x = mixture
    sampler = UniPC(12, order=order, scale=scale, denoise=False, lower_order_final=False)
    times = torch.tensor(sampler.times(denoiser.system), **DOUBLE)
    expected = published_unipc(denoiser, x, times, order, scale)
    assert rms(sampler(denoiser, x), expected) < 1e-11


def test_the_two_scales_of_unipc_agree_where_more_than_one_weight_is_solved_for():
    plan = schedule(grid=UniformLogSNR())
    a, b = (UniPC(20, order=3, scale=scale) for scale in ("bh1", "bh2"))
    for i in (4, 8):
        for x, y in zip(a.coefficients(plan, i, 4)[1], b.coefficients(plan, i, 4)[1], strict=True):
            assert x == pytest.approx(y, rel=1e-9)


@pytest.mark.parametrize("z", [-8.0, -1.5, -0.99, -1e-3, 0.0, 0.5])
@pytest.mark.parametrize("k", [0, 1, 2, 3, 4])
def test_phi_functions_are_their_integrals(k, z):
    if k == 0:
        expected = math.exp(z)
    else:
        scale = math.factorial(k - 1)
        expected, _ = quad(lambda s: math.exp((1 - s) * z) * s ** (k - 1) / scale, 0, 1)
    assert phi(k, z) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("compat", [None, "published"])
def test_third_order_solver_integrates_a_parabola_only_with_the_right_factor(compat):
    # Section 2.5: data prediction 1 + 2 lambda + 3 lambda^2 (in half log-SNR), integrated exactly:
    # x_u = (sigma_u/sigma_t) x_t + sigma_u int e^lambda m(lambda) d lambda.
    plan = schedule(grid=UniformLogSNR())
    sampler = get_sampler("dpm++3m", 20, compat=compat)
    i, lam = 5, plan.log_snr
    update = sampler.coefficients(plan, i, 3)
    got = sum(c * (1 + 2 * lam[i - j] + 3 * lam[i - j] ** 2) for j, c in enumerate(update.outputs))
    primitive = [math.exp(v) * (3 * v * v - 4 * v + 5) for v in lam]
    exact = plan.sigma[i + 1] * (primitive[i + 1] - primitive[i])
    assert (abs(got / exact - 1) < 1e-12) == (compat is None)


# --- starts and ends ---------------------------------------------------------------------------
@pytest.mark.parametrize("name", [*MULTISTEP, "tab0", "dpm++2s"])
def test_a_last_step_without_noise_is_the_prediction_of_the_data(name, mixture):
    # sigma_u = 0 allows a first-order step only, and that is x0; multistep formulas give NaN.
    times = UniformTime(2).times(System(VP()), 8)
    a = get_sampler(name, 8, grid=times)
    b = get_sampler(name, 8, grid=torch.cat((times, torch.zeros(1).double())), denoise=False)
    assert rms(a(*mixture), b(*mixture)) < 1e-12
    assert a.nfe == b.nfe


@pytest.mark.parametrize("name", ["dpm++", "dpm++3m", "unipc2", "unipc3"])
def test_the_last_step_falls_to_first_order(name, mixture):
    denoiser, x = mixture
    sampler = get_sampler(name, 14, denoise=False)
    *_, before, last = sampler.trajectory(denoiser, x)
    times = sampler.times(denoiser.system)[-2:]
    if not name.startswith("unipc"):
        ddim = get_sampler("ddim", 1, grid=times, denoise=False)(denoiser, before)
        assert rms(last, ddim) < 1e-12
    kept = get_sampler(name, 14, denoise=False, lower_order_final=False)(denoiser, x)
    assert rms(last, kept) > 1e-6


@pytest.mark.parametrize(("steps", "falls"), [(14, True), (15, False)])
@pytest.mark.parametrize("name", ["dpm++3m", "dpm++3m-sde", "unipc3"])
def test_the_order_falls_at_the_end_below_fifteen_steps(name, steps, falls):
    assert get_sampler(name, steps).lower_order_final is falls


@pytest.mark.parametrize("name", MULTISTEP)
def test_the_first_step_is_ddim(name, mixture):
    denoiser, x = mixture
    sampler = get_sampler(name, 9)
    ddim = get_sampler("ddim", 9, grid=sampler.grid)
    assert rms(next(sampler.trajectory(denoiser, x)), next(ddim.trajectory(denoiser, x))) < 1e-12


# --- singlestep --------------------------------------------------------------------------------
class Listening(BaseDenoiser):
    """Keeps the half log-SNR of every evaluation."""

    def __init__(self, inner):
        super().__init__(inner.system)
        self.inner, self.seen = inner, []

    def forward(self, x, t, condition=None):
        self.seen.append({k: float(v) for k, v in self.system.half_log_snr(t).items()})
        return self.inner(x, t, condition)


def test_every_component_is_evaluated_at_its_own_midpoint():
    system = System({"x": VP(), "a": VE(0.01, 10.0)}, clocks={"a": lambda t: t**2})
    denoiser = Listening(CorrelatedGaussian().denoiser(system))
    x = system.prior(State({"x": torch.zeros(2, 2).double(), "a": torch.zeros(2, 3).double()}), 0)
    get_sampler("dpm++2s", 4, denoise=False)(denoiser, x)
    seen = denoiser.seen
    for i in range(1, 7, 2):
        for k in ("x", "a"):
            assert seen[i][k] == pytest.approx((seen[i - 1][k] + seen[i + 1][k]) / 2, abs=1e-9)


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
def test_ancestral_step_keeps_the_marginals(eta):
    # A known x0: mean alpha_u x0 and variance sigma_u^2 after a step from those of t.
    sampler = get_sampler("dpm++2s-ancestral", 5, eta=eta)
    plan = schedule(grid=UniformLogSNR())
    for i in range(10):
        update = sampler._whole(plan, i)
        assert update.state * plan.alpha[i] + update.outputs[0] == pytest.approx(plan.alpha[i + 1])
        spread = math.hypot(update.state * plan.sigma[i], update.noise)
        assert spread == pytest.approx(plan.sigma[i + 1], rel=1e-12)


def test_full_ancestral_noise_is_that_of_the_posterior():
    # eta = 1: the noise that DDPM adds, section 2.1.
    plan = schedule(grid=UniformLogSNR())
    ours, ddpm = get_sampler("dpm++2s-ancestral", 5), get_sampler("ddpm", 5)
    for i in range(10):
        expected = ddpm.coefficients(plan, i, 1).noise
        assert ours._whole(plan, i).noise == pytest.approx(expected, rel=1e-12)


# --- noise -------------------------------------------------------------------------------------
def doubling(name, source):
    """Distance between runs of n and 2n steps, for n = 32 and n = 128."""
    denoiser = CorrelatedGaussian().denoiser(System({"x": VP(), "a": VP()}))
    like = State({"x": torch.zeros(40, 2).double(), "a": torch.zeros(40, 3).double()})
    x = denoiser.system.prior(like, 0)

    def run(steps):
        sampler = get_sampler(name, steps, grid=UniformTime(2), denoise=False)
        return sampler(denoiser, x, source=source())

    return [rms(run(n), run(2 * n)) for n in (32, 128)]


SDE = ["dpm++sde", "dpm++3m-sde", "dpm++2s-ancestral"]


@pytest.mark.parametrize("name", SDE)
def test_runs_on_one_brownian_path_converge_pathwise(name):
    # Acceptance check 6: strong order of at least 1/2, so four times the steps halve the distance.
    coarse, fine = doubling(name, lambda: BrownianNoise(1))
    assert coarse / fine > 2


@pytest.mark.parametrize("name", SDE)
def test_runs_on_one_seed_do_not_converge_pathwise(name):
    coarse, fine = doubling(name, lambda: 1)
    assert coarse / fine < 1.4


# --- options -----------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("tab3", {"order": 4}, "0 to 3"),
        ("tab3", {"variable": "t"}, "'log-rho'"),
        ("ipndm", {"order": 5}, "iPNDM"),
        ("unipc2", {"order": 4}, "UniPC"),
        ("unipc2", {"scale": "bh3"}, "'bh2'"),
        ("dpm++3m", {"order": 0}, "1, 2 or 3"),
        ("dpm++3m", {"compat": "reference"}, "'published'"),
        ("dpm++2s", {"eta": 1.5}, "eta"),
        ("dpm++2s-ancestral", {"eta": -0.1}, "eta"),
    ],
)
def test_an_option_out_of_range_is_refused_and_named(name, options, said):
    with pytest.raises(StructDiffError, match=said):
        get_sampler(name, 10, **options)


@pytest.mark.parametrize(
    ("name", "grid"), [("tab2", UniformTime(2)), ("rhoab2", Karras()), ("unipc2", UniformLogSNR())]
)
def test_default_grids_are_those_the_solvers_pair_with(name, grid):
    assert get_sampler(name, 5).grid == grid
