"""Residual diffusion: core card of the processes, sections 2.2, 8 and 10.4."""

import math

import pytest
import torch

from structdiff.denoisers import BaseDenoiser
from structdiff.errors import StructDiffError
from structdiff.processes import VE, VP, Residual, System, residual_posterior
from structdiff.residual import ResidualDenoiser
from structdiff.samplers import DDIM, UniformTime, get_sampler
from structdiff.samplers.residual import RDDM
from structdiff.state import State
from structdiff.testbeds import GaussianMixture

torch.set_num_threads(1)
RAMPS = [
    Residual(),
    Residual(mean_ramp="average", noise_ramp="decreased", noise_scale=0.01),
    Residual(mean_ramp="normal", noise_ramp="average"),
    Residual(mean_ramp="increased", mean_power=2.0),
]
every_ramp = pytest.mark.parametrize(
    "process", RAMPS, ids=lambda p: f"{p.mean_ramp}-{p.noise_ramp}"
)
SYSTEM = System({"x": Residual(), "y": VP()})


def normal(seed, batch=5, width=2):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, width, generator=generator, dtype=torch.float64)


# --- the process -------------------------------------------------------------------------------
def test_the_published_ramps_in_continuous_time():
    # "decreased" rates 2 (1 - t) of A and "increased" rates 2 t of B^2, both summing to 1.
    t = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    assert torch.allclose(Residual().shift(t), 2 * t - t**2, rtol=1e-14)
    assert torch.allclose(Residual().sigma(t), t, rtol=1e-14)
    assert torch.allclose(Residual(noise_scale=0.01).sigma(t), 0.1 * t, rtol=1e-14)


@pytest.mark.parametrize("power", [1.0, 2.0])
@pytest.mark.parametrize("ramp", ["decreased", "increased", "average"])
def test_ramps_are_the_limit_of_the_published_sums(ramp, power):
    # The chain's rates: linspace(0, 1, T) ** power, as it is or reversed, over their sum.
    steps = 20000
    rates = torch.linspace(0, 1, steps, dtype=torch.float64) ** power
    rates = {"increased": rates, "decreased": rates.flip(0), "average": torch.ones(steps).double()}[
        ramp
    ]
    chain = (rates / rates.sum()).cumsum(0)
    t = torch.arange(1, steps + 1, dtype=torch.float64) / steps
    process = Residual(mean_ramp=ramp, noise_ramp=ramp, mean_power=power, noise_power=power)
    assert float((process.shift(t) - chain).abs().max()) < 3 / steps
    assert float((process.sigma(t) ** 2 - chain).abs().max()) < 3 / steps


@every_ramp
def test_what_the_companion_gains_the_data_lose(process):
    t = torch.linspace(0, 1, 101, dtype=torch.float64)
    assert torch.allclose(process.shift(t) + process.alpha(t), torch.ones(101).double(), atol=1e-15)


@every_ramp
def test_the_drift_is_the_pull_towards_the_companion(process):
    # dx = theta (y - x) dt moves the mean A y along: dA/dt = theta (1 - A).
    t = torch.linspace(0.01, 0.9, 50, dtype=torch.float64).requires_grad_(True)
    (slope,) = torch.autograd.grad(process.shift(t).sum(), t)
    assert torch.allclose(slope, -process.drift(t) * (1 - process.shift(t)), rtol=1e-10)


@every_ramp
def test_euler_steps_of_the_published_sde_gather_the_companion(process):
    # Card, check 3: 2000 steps, 1 %.
    end, steps, share = 0.9 * process.t_max, 2000, 0.0
    times = torch.linspace(0, end, steps + 1, dtype=torch.float64)[:-1]
    for theta in (-process.drift(times)).tolist():
        share += theta * (1 - share) * end / steps
    assert share == pytest.approx(float(process.shift(end)), rel=0.01)


@every_ramp
def test_sampling_starts_where_a_thousandth_of_the_data_is_left(process):
    assert float(process.alpha(process.t_max)) == pytest.approx(1e-3, rel=1e-9)


@pytest.mark.parametrize(
    "options",
    [{"mean_ramp": "up"}, {"noise_power": -1.0}, {"noise_scale": 0.0}, {"alpha_min": 0.0}],
)
def test_impossible_ramps_are_refused(options):
    with pytest.raises(StructDiffError):
        Residual(**options)


# --- the chain ---------------------------------------------------------------------------------
@pytest.mark.parametrize("process", [*RAMPS, VP()], ids=repr)
@pytest.mark.parametrize(("s", "t"), [(0.1, 0.3), (0.5, 0.52), (0.0, 0.01), (0.01, 0.95)])
def test_the_posterior_is_gaussian_conditioning(process, s, t):
    x0, residual, x_t = normal(0), normal(1), normal(2)
    law = residual_posterior(process, s, t)
    mean = law.state * x_t + law.residual * residual + law.data * x0
    # Joint law of (x_s, x_t) given x0 and the residual, conditioned on x_t.
    a_s, a_t = (1 - float(process.alpha(time)) for time in (s, t))
    v_s, v_t = (float(process.sigma(time)) ** 2 for time in (s, t))
    expected = x0 + a_s * residual + v_s / v_t * (x_t - x0 - a_t * residual)
    assert torch.allclose(mean, expected, rtol=1e-11, atol=1e-11)
    assert float(law.variance) == pytest.approx(v_s - v_s**2 / v_t, rel=1e-9, abs=1e-18)


def test_the_first_link_gives_back_the_data():
    # Published code pads the shifted sums with 1 where 0 is meant and repairs the link by hand.
    law = residual_posterior(Residual(), 0.0, 0.1)
    assert [float(v) for v in law] == pytest.approx([0, 0, 1, 0], abs=1e-15)


def test_links_compose_to_the_marginal():
    # From x_t ~ N(x0 + A_t I, B_t^2), links down to 0.1: mean x0 + A I and variance B^2 there.
    process, x0, residual, t = Residual(), 0.7, -1.3, 0.9
    mean = x0 + float(process.shift(t)) * residual
    variance = float(process.sigma(t)) ** 2
    for s in (0.7, 0.4, 0.2, 0.1):
        law = residual_posterior(process, s, t)
        mean = float(law.state * mean + law.residual * residual + law.data * x0)
        variance = float(law.state**2 * variance + law.variance)
        t = s
    assert mean == pytest.approx(x0 + float(process.shift(0.1)) * residual, rel=1e-12)
    assert variance == pytest.approx(float(process.sigma(0.1)) ** 2, rel=1e-12)


def test_a_link_against_time_is_refused():
    with pytest.raises(StructDiffError, match="0 <= s < t"):
        residual_posterior(Residual(), 0.5, 0.5)


# --- the denoiser ------------------------------------------------------------------------------
class Heads(torch.nn.Module):
    """Returns what it is given, and keeps what it saw."""

    def __init__(self, *heads):
        super().__init__()
        self.heads, self.seen = heads, None

    def forward(self, x, levels, condition=None):
        self.seen = x, levels, condition
        return self.heads if len(self.heads) > 1 else self.heads[0]


def oracle(prediction, t, **options):
    """A perfect network of any kind."""
    x0 = State({"x": normal(0), "y": normal(1)})
    noise = SYSTEM.noise(x0, 2)
    x = SYSTEM.perturb(x0, t, noise).replace(y=x0["y"])
    quantities = {
        "residual": State({"x": x0["y"] - x0["x"]}),
        "noise": State({"x": noise["x"]}),
        "data": State({"x": x0["x"]}),
    }
    heads = [quantities[k] for k in prediction.split("+")]
    return ResidualDenoiser(Heads(*heads), SYSTEM, prediction, **options), x, x0, noise


@pytest.mark.parametrize("t", [0.4, torch.linspace(0.1, 0.9, 5).double()], ids=["float", "tensor"])
@pytest.mark.parametrize("prediction", ["residual+noise", "residual", "noise", "data"])
def test_every_prediction_gives_data_and_noise(prediction, t):
    denoiser, x, x0, noise = oracle(prediction, t)
    data, found = denoiser.pair(x, t)
    assert torch.allclose(data["x"], x0["x"], atol=1e-12)
    assert torch.allclose(found["x"], noise["x"], atol=1e-12)
    assert torch.allclose(denoiser(x, t)["x"], x0["x"], atol=1e-12)
    assert torch.allclose(denoiser.noise(x, t)["x"], noise["x"], atol=1e-12)


def test_the_companion_is_its_own_data():
    denoiser, x, _, _ = oracle("residual+noise", 0.4)
    assert denoiser(x, 0.4)["y"] is x["y"]


def test_the_network_sees_the_state_with_its_companion():
    denoiser, x, x0, noise = oracle("residual+noise", 0.4)
    denoiser.pair(x, 0.4, "given")
    seen, levels, condition = denoiser.network.seen
    amount = 2 * 0.4 - 0.4**2
    expected = x0["x"] + amount * (x0["y"] - x0["x"]) + 0.4 * noise["x"]
    assert torch.allclose(seen["x"], expected, rtol=1e-13) and condition == "given"
    assert float(levels["x"][0]) == pytest.approx(math.log((1 - amount) / 0.4))


@pytest.mark.parametrize("t", [0.4, torch.full((5,), 0.4).double()], ids=["float", "tensor"])
def test_a_network_may_ask_for_both_amounts(t):
    denoiser, x, _, _ = oracle("residual+noise", 0.4, conditioning="amounts")
    denoiser(x, t)
    levels = denoiser.network.seen[1]
    expected = torch.tensor([[0.64, 0.4]], dtype=torch.float64).expand(5, 2)
    assert torch.allclose(levels["x"], expected, rtol=1e-6)


def test_without_a_companion_the_residual_is_the_negative_data():
    system = System(VP())
    denoiser = ResidualDenoiser(Heads(State({"x": normal(3)})), system, "residual")
    assert torch.equal(denoiser(State({"x": normal(0)}), 0.5)["x"], -normal(3))


@pytest.mark.parametrize(
    ("heads", "prediction", "message"), [(1, "residual+noise", "a pair"), (2, "noise", "one state")]
)
def test_a_network_that_returns_too_little_or_too_much_is_refused(heads, prediction, message):
    state = State({"x": normal(0), "y": normal(1)})
    denoiser = ResidualDenoiser(Heads(*[state] * heads), SYSTEM, prediction)
    with pytest.raises(StructDiffError, match=message):
        denoiser(state, 0.5)


@pytest.mark.parametrize("options", [{"prediction": "both"}, {"conditioning": "time"}])
def test_unknown_choices_are_refused(options):
    with pytest.raises(StructDiffError, match="choose one of"):
        ResidualDenoiser(torch.nn.Identity(), SYSTEM, **options)


# --- the sampler -------------------------------------------------------------------------------
class Paired(BaseDenoiser):
    """The same predictions as another denoiser, handed out as an independent pair."""

    consistent = False

    def __init__(self, inner):
        super().__init__(inner.system)
        self.inner = inner

    def forward(self, x, t, condition=None):
        return self.inner(x, t, condition)

    def pair(self, x, t, condition=None):
        return self.inner.pair(x, t, condition)


@pytest.mark.parametrize("wrap", [lambda d: d, Paired], ids=["one prediction", "a pair"])
@pytest.mark.parametrize("process", [VP(), VE(0.01, 10.0)], ids=repr)
def test_a_consistent_pair_without_noise_is_ddim(process, wrap):
    # Card, check 4: y = 0 and A = 1 - alpha, B = sigma.
    denoiser = GaussianMixture.gmm3().denoiser(System(process))
    x = denoiser.system.prior(State({"x": normal(0, 64)}), 0)
    for grid in (UniformTime(2), UniformTime(1)):
        a, b = RDDM(10, grid)(wrap(denoiser), x)["x"], DDIM(10, grid)(denoiser, x)["x"]
        assert float((a - b).abs().max()) < 1e-12


@pytest.mark.parametrize("eta", [0.0, 0.6])
def test_a_step_is_the_published_one(eta):
    # I_u = I_t - (A_t - A_u) I_res - (B_t - sqrt(B_u^2 - s^2)) eps + s z, un-centred.
    t, u = 0.6, 0.5
    state = State({"x": normal(0), "y": normal(1)})
    residual, noise, z = normal(2), normal(3), normal(4)
    denoiser = ResidualDenoiser(Heads(State({"x": residual}), State({"x": noise})), SYSTEM)

    class Draw:
        takes_components = True

        def normal(self, name, like, interval=None):
            return z

    sampler = RDDM(1, [t, u], eta=eta, denoise=False)
    y = SYSTEM.uncentred(sampler(denoiser, state, source=Draw()), u)["x"]
    a_t, a_u = (2 * s - s**2 for s in (t, u))
    fresh = eta * (t**2 - u**2) * u**2 / t**2
    expected = SYSTEM.uncentred(state, t)["x"] - (a_t - a_u) * residual
    expected = expected - (t - math.sqrt(u**2 - fresh)) * noise + math.sqrt(fresh) * z
    assert torch.allclose(y, expected, atol=1e-14)


@every_ramp
def test_full_noise_draws_from_the_posterior_of_the_chain(process):
    # With the true residual and noise, a step at eta = 1 has the posterior's mean and variance.
    t, u = 0.6, 0.5
    x0, residual, noise = normal(0), normal(1), normal(2)
    system = System({"x": process, "y": VP()})
    state = State({"x": x0, "y": x0 + residual})
    x = system.perturb(state, t, State({"x": noise, "y": noise})).replace(y=state["y"])
    law = residual_posterior(process, u, t)
    mean = law.state * system.uncentred(x, t)["x"] + law.residual * residual + law.data * x0

    class Constant:
        def __init__(self, value):
            self.value = value

        def normal(self, name, like, interval=None):
            return torch.full_like(like, self.value)

    denoiser = ResidualDenoiser(Heads(State({"x": residual}), State({"x": noise})), system)
    sampler = RDDM(1, [t, u], eta=1.0, denoise=False)
    low, high = (
        system.uncentred(sampler(denoiser, x, source=Constant(v)), u)["x"] for v in (0.0, 1.0)
    )
    assert torch.allclose(low, mean, atol=1e-12)
    assert torch.allclose(high - low, law.variance.sqrt().expand(5, 2), rtol=1e-9)


@pytest.mark.parametrize("eta", [-0.1, 1.1])
def test_an_eta_outside_of_the_posterior_is_refused(eta):
    with pytest.raises(StructDiffError, match=r"\[0, 1\]"):
        RDDM(10, eta=eta)


def test_a_pair_costs_one_evaluation_per_step():
    denoiser, x, _, _ = oracle("residual+noise", 0.4)
    calls = []
    denoiser.network.register_forward_hook(lambda *_: calls.append(1))
    sampler = RDDM(7)
    sampler(denoiser, x)
    assert len(calls) == sampler.nfe == 7


@pytest.mark.parametrize("name", ["rddm", "dpm++", "heun", "dpm++sde"])
def test_companions_stay_and_masked_entries_are_zero(name):
    exists = torch.tensor([[[True], [True], [False]], [[True], [False], [False]]])
    generator = torch.Generator().manual_seed(0)
    state = State(
        {k: torch.randn(2, 3, 4, generator=generator) for k in ("x", "y")},
        {"x": exists, "y": exists},
    ).masked()

    class Sloppy(torch.nn.Module):
        def forward(self, x, levels, condition=None):
            assert not x["x"][~exists.expand(2, 3, 4)].any()
            return x + 0.1, x - 0.1

    x = SYSTEM.prior(state, 0)
    for step in get_sampler(name, 6).trajectory(ResidualDenoiser(Sloppy(), SYSTEM), x, source=1):
        assert step["y"] is x["y"] and step["x"].dtype == torch.float32
        assert not step["x"][~exists.expand(2, 3, 4)].any()


# --- residual diffusion under every sampler ----------------------------------------------------
FACTOR = torch.tensor(
    [[0.8, 0, 0, 0], [0.3, 0.6, 0, 0], [0.7, 0.2, 0.4, 0], [0.1, 0.7, -0.2, 0.3]],
    dtype=torch.float64,
)
RESTORATION = GaussianMixture(
    [1.0], [[0.5, -1.0, 0.2, 0.4]], (FACTOR @ FACTOR.T)[None], {"x": 2, "y": 2}
)


def given_companion(x):
    """Conditional mean and covariance of the data given the companion."""
    mean, cov = RESTORATION.mean(), RESTORATION.covariance()
    gain = torch.linalg.solve(cov[2:, 2:], cov[2:, :2]).T
    return mean[:2] + (x["y"] - mean[2:]) @ gain.T, cov[:2, :2] - gain @ cov[2:, :2]


def flow(process, x, start, end):
    """The probability flow of a Gaussian: every principal axis stretches on its own."""
    centre, cov = given_companion(x)
    variances, axes = torch.linalg.eigh(cov)
    spread = [process.alpha(t) ** 2 * variances + process.sigma(t) ** 2 for t in (start, end)]
    along = (x["x"] - process.alpha(start) * centre) @ axes
    stretched = along * (spread[1] / spread[0]).sqrt()
    return process.alpha(end) * centre + stretched @ axes.T


@pytest.mark.parametrize("process", RAMPS[:2], ids=["generation", "restoration"])
@pytest.mark.parametrize("name", ["rddm", "ddpm", "exponential-ito", "dpm++", "dpm++sde"])
def test_the_samples_have_the_joint_covariance_of_data_and_companion(name, process):
    # 4000 draws: standard errors of the covariances up to 0.03; 100 steps: some
    # have order 1.
    system = System({"x": process, "y": VP()})
    x = system.prior(RESTORATION.sample(4000, 0), 1)
    sample = get_sampler(name, 100, grid=UniformTime(2))(RESTORATION.denoiser(system), x, source=2)
    joint = RESTORATION.join(sample)
    assert torch.allclose(joint.mean(0), RESTORATION.mean(), atol=0.06)
    assert torch.allclose(torch.cov(joint.T), RESTORATION.covariance(), atol=0.08)


@every_ramp
@pytest.mark.parametrize(("name", "order"), [("ddim", 1), ("rddm", 1), ("dpm++", 2), ("heun", 2)])
def test_orders_hold_on_residual_diffusion(name, order, process):
    system = System({"x": process, "y": VP()})
    denoiser = RESTORATION.denoiser(system)
    x = system.prior(RESTORATION.sample(8, 0), 1)
    exact = flow(process, x, system.t_max, system.t_min)
    errors = [
        float((get_sampler(name, n, denoise=False)(denoiser, x)["x"] - exact).square().mean())
        for n in (160, 320)
    ]
    assert math.log2(errors[0] / errors[1]) / 2 == pytest.approx(order, abs=0.15)


@pytest.mark.parametrize("process", RAMPS[2:], ids=["normal", "increased"])
def test_the_adaptive_flow_follows_any_ramp(process):
    system = System({"x": process, "y": VP()})
    x = system.prior(RESTORATION.sample(4, 0), 1)
    sampler = get_sampler("ode", 1, denoise=False, rtol=1e-6, atol=1e-6)
    found = sampler(RESTORATION.denoiser(system), x)["x"]
    assert torch.allclose(found, flow(process, x, system.t_max, system.t_min), atol=1e-4)


@every_ramp
def test_the_time_of_a_noise_level_is_exact_from_end_to_end(process):
    t = torch.tensor([1e-9, 1e-4, 0.01, 0.3, 0.7, 0.99, process.t_max], dtype=torch.float64)
    assert torch.allclose(process.time_at(process.half_log_snr(t)), t, rtol=1e-12, atol=0)
