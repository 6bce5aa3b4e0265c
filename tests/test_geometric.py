"""Geometric Brownian motion and other bijections: core card of the processes, 2.3 and 10.5."""

import math

import pytest
import torch

from structdiff.denoisers import Denoiser
from structdiff.errors import StructDiffError
from structdiff.processes import VE, VP, GeometricBrownian, System
from structdiff.samplers import (
    EulerMaruyama,
    ExponentialIto,
    Karras,
    UniformLogSNR,
    UniformTime,
    get_sampler,
)
from structdiff.samplers.base import Run
from structdiff.samplers.geometric import AmbientReverseGBM, ReverseGBM
from structdiff.spaces import Arcsinh, Logit, Positive, Softplus, Transformed
from structdiff.state import State
from structdiff.testbeds import GaussianMixture, LogNormalMixture

torch.set_num_threads(1)
TESTBED = LogNormalMixture()
STD = math.sqrt(float(TESTBED.covariance()))
# The card's figures: volatility 1.5 over T = 1, quadratic grid, last step to 1e-4.
SYSTEM = System(GeometricBrownian(t_min=1e-4), {"x": Positive()})
DENOISER = TESTBED.denoiser(SYSTEM)


def start(n):
    """The exact law at t_max, in logarithms."""
    x0 = SYSTEM.encode(TESTBED.sample(n, 3))
    return SYSTEM.perturb(x0, 1.0, SYSTEM.noise(x0, 4))


# --- the process -------------------------------------------------------------------------------
def test_euler_steps_of_the_multiplicative_sde_have_the_law_of_the_process():
    # dX = mu X dt + sg X dW itself, 1000 steps of 40000 paths: standard error of the mean 0.004.
    process, steps = GeometricBrownian(mu=-0.5, volatility=0.8), 1000
    generator = torch.Generator().manual_seed(0)
    x, dt = torch.ones(40000), 1 / steps
    for _ in range(steps):
        x = x * (1 - 0.5 * dt + 0.8 * math.sqrt(dt) * torch.randn(40000, generator=generator))
    assert float(torch.log(x).mean()) == pytest.approx(float(process.shift(1.0)), rel=0.01)
    assert float(torch.log(x).std()) == pytest.approx(float(process.sigma(1.0)), rel=0.01)


def test_the_uncentred_logarithm_is_that_of_the_value():
    # X_t = X_0 exp((mu - sg^2/2) t + sg sqrt(t) z)
    system = System(GeometricBrownian(mu=0.3), {"x": Positive()})
    x0, z = TESTBED.sample(5, 0), State({"x": torch.linspace(-1, 1, 5).double()[:, None]})
    noisy = system.decode(system.uncentred(system.perturb(system.encode(x0), 0.4, z), 0.4))
    growth = (0.3 - 1.5**2 / 2) * 0.4 + 1.5 * math.sqrt(0.4) * z["x"]
    assert torch.allclose(noisy["x"], x0["x"] * torch.exp(growth), rtol=1e-13)


@pytest.mark.parametrize("options", [{"volatility": 0.0}, {"power": -1.0}])
def test_impossible_volatilities_are_refused(options):
    with pytest.raises(StructDiffError):
        GeometricBrownian(**options)


# --- backwards ---------------------------------------------------------------------------------
class Constant:
    """Every draw is one number."""

    def __init__(self, value):
        self.value = value

    def normal(self, name, like, interval=None):
        return torch.full_like(like, self.value)


def exact_std(sampler, nodes=700):
    """Standard deviation of log X without Monte Carlo: the sampler's own kernels on a grid.

    A step is affine in its draw, so runs with draws 0 and 1 give mean and width of the kernel.
    """
    y = torch.linspace(-7.5, 7.5, nodes, dtype=torch.float64)
    times = sampler.times(SYSTEM)
    steps = [sampler.stepper(Run(DENOISER, None, Constant(v)), times) for v in (0.0, 1.0)]
    variances = TESTBED.covariances[:, 0, 0] + float(SYSTEM.sigma(1.0)["x"]) ** 2
    law = torch.distributions.Normal(TESTBED.means[:, 0], variances.sqrt())
    mass = (TESTBED.weights * law.log_prob(y[:, None]).exp()).sum(1)
    mass = mass / mass.sum()
    for i in range(len(times) - 1):
        mean, high = (step(State({"x": y[:, None]}), i)["x"] for step in steps)
        kernel = torch.exp(-(((y - mean) / (high - mean)) ** 2) / 2)
        mass = mass @ (kernel / kernel.sum(1, keepdim=True))
    return float((mass @ y**2 - (mass @ y) ** 2).sqrt())


@pytest.mark.parametrize(("steps", "error"), [(25, 0.0049), (50, 0.0023), (100, 0.0012)])
def test_the_spread_of_the_logarithm_has_the_published_error(steps, error):
    # Section 2.3; half a unit of the last digit, and the card's own 2e5 paths: 1e-4 to 5e-4.
    found = exact_std(ReverseGBM(steps, denoise=False)) - STD
    assert found == pytest.approx(error, abs=3e-4)


@pytest.mark.parametrize("steps", [1, 2, 5, 25, 100])
def test_the_logarithmic_sampler_never_gives_a_negative_value(steps):
    y = ReverseGBM(steps)(DENOISER, start(2000), source=5)["x"]
    assert bool((y > 0).all())


@pytest.mark.parametrize(("steps", "flipped"), [(25, 0.019), (100, 0.0)])
def test_the_ambient_sampler_flips_signs_where_steps_are_long(steps, flipped):
    # Section 2.3: 1.9 % of the paths; standard error over 20000 paths 0.1 %.
    y = AmbientReverseGBM(steps, denoise=False)(DENOISER, start(20000), source=5)["x"]
    assert float((y < 0).double().mean()) == pytest.approx(flipped, abs=3e-3)


@pytest.mark.parametrize(("steps", "error"), [(25, -0.060), (50, -0.025), (100, -0.010)])
def test_the_ambient_sampler_has_the_published_bias(steps, error):
    # Of the mean of log |X|; standard error over 20000 paths 5e-3.
    y = AmbientReverseGBM(steps, denoise=False)(DENOISER, start(20000), source=5)["x"]
    found = float(y.abs().log().mean() - TESTBED.mean())
    assert found == pytest.approx(error, abs=0.012)


def test_the_logarithmic_step_is_euler_maruyama_of_the_logarithm():
    x = start(50)
    a = ReverseGBM(20, denoise=False)(DENOISER, x, source=5)
    b = EulerMaruyama(20, UniformTime(2), denoise=False)(DENOISER, x, source=5)
    assert torch.allclose(a["x"], b["x"], rtol=1e-12)


@pytest.mark.parametrize("power", [1.0, 2.0])
@pytest.mark.parametrize("ambient", [False, True], ids=["logarithm", "value"])
def test_a_step_is_the_published_one(ambient, power):
    process = GeometricBrownian(mu=0.4, volatility=1.2, power=power)
    system = System(process, {"x": Positive()})
    denoiser, t, u, z = TESTBED.denoiser(system), 0.5, 0.49, 0.7
    log_x = State({"x": torch.linspace(-1, 1, 7).double()[:, None]})
    kind = AmbientReverseGBM if ambient else ReverseGBM
    sampler = kind(1, [t, u], denoise=False)
    found = list(sampler.trajectory(denoiser, log_x, source=Constant(z)))[-1]
    variance, d = float(process.diffusion_squared(t)), t - u
    h = denoiser.score(log_x, t)["x"] - 1
    x = torch.exp(system.uncentred(log_x, t)["x"])
    if ambient:
        factor = 1 + (2 * variance - 0.4 + variance * h) * d + math.sqrt(variance * d) * z
        assert torch.allclose(found["x"], x * factor, rtol=1e-12)
    else:
        growth = (1.5 * variance - 0.4 + variance * h) * d + math.sqrt(variance * d) * z
        value = torch.exp(system.uncentred(found, u)["x"])
        assert torch.allclose(value, x * torch.exp(growth), rtol=1e-12)


@pytest.mark.parametrize("kind", [ReverseGBM, AmbientReverseGBM])
@pytest.mark.parametrize(
    ("system", "message"),
    [
        (System(GeometricBrownian()), r"Euclidean.*Positive\(\)"),
        (System(VE(), {"x": Positive()}), "GeometricBrownian alone"),
    ],
)
def test_other_systems_are_refused(kind, system, message):
    denoiser = TESTBED.denoiser(system)
    with pytest.raises(StructDiffError, match=message):
        kind(5)(denoiser, State({"x": torch.zeros(2, 1).double()}), source=0)


def test_masked_entries_of_the_ambient_sampler_are_zero():
    class Wide(torch.nn.Module):
        def forward(self, x, log_snr, condition=None):
            assert bool(x["x"].isfinite().all())
            return x * 0.1

    exists = torch.tensor([[True, True, False]])
    x = State({"x": torch.ones(2, 3)}, {"x": exists}).masked()
    y = AmbientReverseGBM(5)(Denoiser(Wide(), SYSTEM, "data"), x, source=0)
    assert not y["x"][:, 2].any() and bool(y["x"][:, :2].all())


@pytest.mark.parametrize("grid", [Karras(), UniformLogSNR()], ids=["karras", "log-snr"])
def test_the_exponential_ito_step_recovers_it_on_a_grid_of_noise_levels(grid):
    # Measured -0.0045 at 50 steps, and -0.0082 on the quadratic grid in time.
    assert exact_std(ExponentialIto(50, grid, denoise=False)) == pytest.approx(STD, abs=0.005)


@pytest.mark.parametrize("name", ["dpm++", "dpm++sde"])
def test_ordinary_samplers_recover_the_spread_of_positive_data(name):
    # Card, check 5: 0.005 at 50 steps; standard error over 30000 paths 1.5e-3.
    y = get_sampler(name, 50, denoise=False)(DENOISER, start(30000), source=5)["x"]
    assert bool((y > 0).all())
    assert float(y.log().std()) == pytest.approx(STD, abs=0.005)


# --- any bijection: values in the space, with the exact law ------------------------------------
LATENT = GaussianMixture([0.6, 0.4], [[-0.8], [1.1]], [[[0.25]], [[0.09]]])


@pytest.mark.parametrize(
    ("bijection", "low", "high"),
    [(Logit(), 0.0, 1.0), (Arcsinh(), -math.inf, math.inf), (Softplus(), 0.0, math.inf)],
    ids=["logit", "arcsinh", "softplus"],
)
@pytest.mark.parametrize("name", ["dpm++", "ddpm"])
def test_a_sampler_on_a_transformed_space_recovers_the_law_of_the_values(
    name, bijection, low, high
):
    # Kolmogorov distance to the exact law; at the 1 % level it is 1.63 / sqrt(5000) = 0.023.
    system = System(VP(), {"x": Transformed(bijection)})
    like = State({"x": torch.zeros(5000, 1, dtype=torch.float64)})
    sampler = get_sampler(name, 100)
    y = sampler(LATENT.denoiser(system), system.prior(like, 0), source=1)["x"][:, 0]
    assert bool(((y > low) & (y < high)).all())
    latent = bijection.forward(y.sort().values)
    z = (latent[:, None] - LATENT.means[:, 0]) / LATENT.covariances[:, 0, 0].sqrt()
    exact = (LATENT.weights * torch.special.ndtr(z)).sum(1)
    empirical = (torch.arange(5000).double() + 0.5) / 5000
    assert float((exact - empirical).abs().max()) < 0.03
