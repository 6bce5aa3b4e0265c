"""Interpolants, one-sided flows and flow denoisers: processes card, sections 2.4, 2.5, 8, 10."""

import json
import math

import pytest
import torch

from structdiff.errors import StructDiffError
from structdiff.flows import FlowDenoiser, Heads, schroedinger_drift
from structdiff.noise import SeededNoise
from structdiff.processes import VP, FrozenClock, RectifiedFlow, System
from structdiff.processes.flow_matching import LipmanFlow, TrigonometricFlow, UnitVarianceFlow
from structdiff.processes.interpolant import Interpolant, InterpolantSystem
from structdiff.processes.paths import (
    Brownian,
    BSquared,
    Constant,
    EncodingDecoding,
    Linear,
    Mirror,
    NoNoise,
    OneSided,
    Sigmoid,
    SinSquared,
    Trigonometric,
)
from structdiff.processes.serial import process_from_dict, process_to_dict
from structdiff.samplers import get_sampler
from structdiff.spaces import Positive
from structdiff.state import State
from structdiff.testbeds import GaussianMixture
from structdiff.testbeds.interpolant import (
    InterpolatedMixtures,
    bridge_covariance,
    bridge_energy,
)

torch.set_num_threads(1)

INTERPOLANTS = [
    Interpolant(path, gamma)
    for path in (Linear(), Trigonometric())
    for gamma in (NoNoise(), Constant(0.2), Brownian(0.5), BSquared(), Sigmoid())
] + [
    Interpolant(Linear(), SinSquared()),
    Interpolant(Trigonometric(), SinSquared(0.6)),
    Interpolant(EncodingDecoding(), SinSquared()),
    Interpolant(EncodingDecoding(), Brownian()),
    Interpolant(Mirror(), Brownian()),
    Interpolant(Mirror(), BSquared(2.0)),
    Interpolant(OneSided(TrigonometricFlow())),
    Interpolant(OneSided(VP())),
]
FLOWS = [TrigonometricFlow(), LipmanFlow(0.01), LipmanFlow(0.0), UnitVarianceFlow()]
every_interpolant = pytest.mark.parametrize("interpolant", INTERPOLANTS, ids=repr)
every_flow = pytest.mark.parametrize("process", FLOWS, ids=repr)
BASE = GaussianMixture([0.4, 0.6], [[2.0, 1.0], [-1.0, 2.0]], [[[0.5, 0.2], [0.2, 0.4]]] * 2)
ENDS = InterpolatedMixtures(GaussianMixture.gmm3(), BASE)


def times(count=100, low=1e-3, high=0.999):
    u = torch.rand(count, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return low + u * (high - low)


def derivative(fn, t):
    t = t.clone().requires_grad_(True)
    value = fn(t)
    if not value.requires_grad:
        return torch.zeros_like(t)
    (slope,) = torch.autograd.grad(value.sum(), t, allow_unused=True)
    return torch.zeros_like(t) if slope is None else slope


# --- closed forms --------------------------------------------------------------------------------
@every_interpolant
@pytest.mark.parametrize("scale", ["data", "base", "noise"])
def test_rates_are_the_derivatives_of_the_scales(interpolant, scale):
    t = times()
    implied = derivative(lambda t: getattr(interpolant.scales(t), scale), t)
    given = getattr(interpolant.scales(t), f"{scale}_rate")
    assert torch.allclose(given, implied, rtol=1e-10, atol=1e-10)


@every_interpolant
def test_scales_are_float64_whatever_the_time(interpolant):
    assert {v.dtype for v in interpolant.scales(torch.tensor(0.3))} == {torch.float64}


@pytest.mark.parametrize(
    "interpolant", [p for p in INTERPOLANTS if p.path.two_sided], ids=lambda p: repr(p)
)
def test_the_ends_are_data_and_base(interpolant):
    start, end = interpolant.scales(0.0), interpolant.scales(1.0)
    left = float(interpolant.noise_scale(0.0))  # the constant one stays at the ends
    full = math.sqrt(1 - left**2) if interpolant.path.keeps_variance else 1.0
    assert float(start.data) == pytest.approx(full, abs=1e-12)
    assert float(end.base) == pytest.approx(full, abs=1e-12)
    assert abs(float(start.base)) + abs(float(end.data)) < 1e-12
    if not isinstance(interpolant.gamma, Constant):
        assert abs(float(start.noise)) + abs(float(end.noise)) < 1e-12


@pytest.mark.parametrize(
    "gamma", [NoNoise(), Brownian(0.5), BSquared(), SinSquared(0.6), Sigmoid()]
)
def test_the_trigonometric_interpolant_keeps_unit_variance(gamma):
    s = Interpolant(Trigonometric(), gamma).scales(times())
    assert torch.allclose(s.data**2 + s.base**2 + s.noise**2, torch.ones(100).double(), rtol=1e-12)


def test_gamma_times_its_rate_is_finite_at_the_ends_of_the_brownian_one():
    # a (1 - 2t) / 2, card 2.4.
    t = torch.tensor([1e-12, 0.25, 1 - 1e-12], dtype=torch.float64)
    product = Brownian(0.8).value(t) * Brownian(0.8).rate(t)
    assert torch.allclose(product, 0.4 * (1 - 2 * t), rtol=1e-9)


@every_flow
def test_drift_and_diffusion_of_a_flow_are_what_its_scales_imply(process):
    t = times()
    assert torch.allclose(process.drift(t), derivative(process.log_alpha, t), rtol=1e-10)
    implied = derivative(lambda t: process.sigma(t) ** 2, t) - 2 * process.drift(t) * (
        process.sigma(t) ** 2
    )
    assert torch.allclose(process.diffusion_squared(t), implied, rtol=1e-10)


@every_flow
def test_time_at_inverts_the_log_snr_of_a_flow(process):
    t = times()
    assert torch.allclose(process.time_at(process.half_log_snr(t)), t, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("process", [*INTERPOLANTS, *FLOWS], ids=repr)
def test_a_process_comes_back_from_json(process):
    assert process_from_dict(json.loads(json.dumps(process_to_dict(process)))) == process


def test_an_unknown_part_of_an_interpolant_is_named():
    written = process_to_dict(Interpolant()) | {"gamma": {"type": "Gaussian"}}
    with pytest.raises(StructDiffError, match=r"unknown process 'Gaussian'.*Brownian"):
        process_from_dict(written)


def test_lipmans_flow_without_noise_at_the_data_is_the_straight_line():
    t = times()
    a, b = LipmanFlow(0.0), RectifiedFlow()
    assert torch.equal(a.sigma(t), b.sigma(t)) and torch.equal(a.alpha(t), b.alpha(t))


@pytest.mark.parametrize("process", [TrigonometricFlow(), UnitVarianceFlow()], ids=repr)
def test_a_unit_variance_flow_is_vp_up_to_its_clock(process):
    # Card 2.4: one-sided with sqrt(1 - t^2) and t is VP after t = e^{-tau}. Equal log-SNR, equal
    # scales, so DDIM on matched grids makes the same trajectory.
    vp, mixture = VP(), GaussianMixture.gmm3()
    grid = torch.linspace(0.99, 0.01, 9, dtype=torch.float64)
    matched = process.time_at(vp.half_log_snr(grid))
    assert torch.allclose(process.alpha(matched), vp.alpha(grid), rtol=1e-9)
    x = torch.randn(16, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ours = get_sampler("ddim", 9, grid=matched)(mixture.denoiser(System(process)), x)["x"]
    theirs = get_sampler("ddim", 9, grid=grid)(mixture.denoiser(System(vp)), x)["x"]
    assert torch.allclose(ours, theirs, rtol=1e-9)


# --- systems -------------------------------------------------------------------------------------
def pair(n=6, source=0):
    return ENDS.sample(n, source)


def test_interpolate_starts_at_the_data_and_ends_at_the_base():
    system = InterpolantSystem(Interpolant())
    (x0, x1), z = pair(), System(VP()).noise(pair()[0], 1)
    assert torch.equal(system.interpolate(x0, x1, 0.0, z)["x"], x0["x"])
    assert torch.equal(system.interpolate(x0, x1, 1.0, z)["x"], x1["x"])


def test_path_velocity_is_the_derivative_of_interpolate_without_noise():
    system = InterpolantSystem(Interpolant(Trigonometric(), BSquared()))
    (x0, x1), h = pair(), 1e-6
    zero = x0 * 0.0
    up, down = (system.interpolate(x0, x1, t, zero) for t in (0.4 + h, 0.4 - h))
    slope = (up - down) / (2 * h)
    assert torch.allclose(system.path_velocity(x0, x1, 0.4)["x"], slope["x"], rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize(
    "reading", ["alpha", "sigma", "half_log_snr", "drift", "diffusion", "log_alpha"]
)
def test_what_only_diffusions_have_is_refused_by_name(reading):
    system = InterpolantSystem(Interpolant())
    with pytest.raises(StructDiffError, match="'flow' or 'interpolant-sde'"):
        getattr(system, reading)(0.5)


@pytest.mark.parametrize("name", ["ddim", "euler-maruyama", "heun", "dpm++", "s4"])
def test_samplers_of_diffusions_refuse_a_two_sided_interpolant(name):
    flow = ENDS.flow(InterpolantSystem(Interpolant()))
    with pytest.raises(StructDiffError, match="'flow' or 'interpolant-sde'"):
        get_sampler(name, 4)(flow, pair()[1], source=0)


@pytest.mark.parametrize("name", ["ddim", "dpm++", "heun", "s4", "euler-maruyama"])
def test_a_one_sided_interpolant_is_served_by_the_samplers_of_diffusions(name):
    # Its flow and the denoiser of the same process are one thing.
    mixture, process = GaussianMixture.gmm3(), TrigonometricFlow()
    start = GaussianMixture([1.0], [[0.0, 0.0]], torch.eye(2)[None])
    flow = InterpolatedMixtures(mixture, start).flow(
        InterpolantSystem(Interpolant.one_sided(process))
    )
    denoiser = mixture.denoiser(System(process))
    x = denoiser.system.prior(State({"x": torch.zeros(8, 2).double()}), 0)
    a, b = (get_sampler(name, 12)(model, x, source=1)["x"] for model in (flow, denoiser))
    assert torch.allclose(a, b, rtol=1e-8, atol=1e-10)


def test_the_prior_of_a_data_base_is_refused():
    system = InterpolantSystem(Interpolant(), base="data")
    with pytest.raises(StructDiffError, match=r"system.start\(samples\)"):
        system.prior(pair()[0], 0)


def test_the_prior_of_a_mirror_is_refused():
    with pytest.raises(StructDiffError, match="mirror"):
        InterpolantSystem(Interpolant(Mirror())).prior(pair()[0], 0)


def test_the_prior_has_the_spread_of_the_interpolant_at_its_start():
    # c^2 + gamma^2 at t_max for a normal base, up to the data's (1 - t_max)^2: 2e4 draws.
    p = Interpolant(Linear(), Brownian(2.0), t_max=0.9)
    x = InterpolantSystem(p).prior(State({"x": torch.zeros(20_000, 1).double()}), 0)["x"]
    expected = math.sqrt(0.9**2 + 2.0 * 0.9 * 0.1)
    assert float(x.std()) == pytest.approx(expected, rel=0.02)


def test_a_base_is_drawn_as_values_and_encoded():
    system = InterpolantSystem(
        Interpolant(Linear(), NoNoise()),
        {"x": Positive()},
        base=lambda like, source: like.map(lambda v: torch.full_like(v, math.e)),
    )
    like = State({"x": torch.ones(2, 1)})
    assert torch.allclose(system.draw_base(like, 0)["x"], torch.ones(2, 1))
    assert torch.allclose(system.prior(like, 0)["x"], torch.full((2, 1), 0.999))


def test_a_frozen_component_keeps_its_data_in_the_prior():
    system = InterpolantSystem({"x": Interpolant(), "y": VP()}, clocks={"y": FrozenClock()})
    like = State({"x": torch.zeros(3, 2), "y": torch.arange(3.0)[:, None]})
    assert torch.equal(system.prior(like, 0)["y"], like["y"])


def test_new_clocks_keep_the_interpolants_and_the_base():
    system = InterpolantSystem(Interpolant(), base="data").with_clocks({"x": FrozenClock()})
    assert isinstance(system, InterpolantSystem) and system.base == "data"


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (lambda: Interpolant(EncodingDecoding(), NoNoise()), "noise in the middle"),
        (lambda: Interpolant(Mirror(), NoNoise()), "noise in the middle"),
        (lambda: Interpolant(Trigonometric(), SinSquared()), "below 1"),
        (lambda: Interpolant(OneSided(VP()), Brownian()), "leave gamma out"),
        (lambda: Brownian(-1.0), "positive a"),
        (lambda: LipmanFlow(1.0), "sigma_0"),
        (lambda: InterpolantSystem(Interpolant(), base="noise"), "'normal', 'data'"),
        (lambda: FlowDenoiser(torch.nn.Identity(), System(VP())), "InterpolantSystem"),
        (lambda: FlowDenoiser(torch.nn.Identity(), InterpolantSystem(VP()), ["u"]), "unknown head"),
    ],
)
def test_what_does_not_go_together_is_named(make, what):
    with pytest.raises(StructDiffError, match=what):
        make()


# --- fields --------------------------------------------------------------------------------------
NOISY = [p for p in INTERPOLANTS if p.noisy and not isinstance(p.path, OneSided)]
every_noisy = pytest.mark.parametrize("interpolant", NOISY, ids=repr)


def exact(interpolant):
    return ENDS.flow(InterpolantSystem(interpolant))


def points(n=12):
    return torch.randn(n, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@every_interpolant
def test_the_exact_velocity_carries_the_density(interpolant):
    # d_t log p + div b + b . grad log p = 0 (transport equation, card 2.4), by derivatives of the
    # closed-form density alone.
    flow, x, t = exact(interpolant), points(), torch.tensor(0.37, dtype=torch.float64)

    def log_density(x, t):
        return flow.log_density(State({"x": x[None]}), t)[0]

    def b(x):
        return flow.velocity(State({"x": x[None]}), t)["x"][0]

    rate = torch.func.vmap(lambda x: torch.func.jacfwd(log_density, argnums=1)(x, t))(x)
    slope = torch.func.vmap(lambda x: torch.func.jacrev(log_density)(x, t))(x)
    spread = torch.func.vmap(lambda x: torch.func.jacfwd(b)(x).diagonal().sum())(x)
    velocity = flow.velocity(State({"x": x}), t)["x"]
    assert float((rate + spread + (velocity * slope).sum(1)).abs().max()) < 1e-9


@every_noisy
def test_the_exact_score_is_the_gradient_of_the_log_density(interpolant):
    flow, x = exact(interpolant), points().requires_grad_(True)
    (slope,) = torch.autograd.grad(flow.log_density(x, 0.3).sum(), x)
    assert torch.allclose(flow.score(x.detach(), 0.3)["x"], slope, rtol=1e-9, atol=1e-9)


def test_the_velocity_of_a_pair_of_gaussians_is_the_cards():
    # b = dm + dC/2 C^{-1} (x - m), card 2.4, for one Gaussian at each end.
    c0, c1 = torch.tensor([[0.3, 0.1], [0.1, 0.2]]).double(), torch.eye(2).double() * 0.7
    m0, m1 = torch.tensor([1.0, -1.0]).double(), torch.tensor([0.5, 2.0]).double()
    ends = InterpolatedMixtures(
        GaussianMixture([1.0], m0[None], c0[None]), GaussianMixture([1.0], m1[None], c1[None])
    )
    p = Interpolant(Linear(), Brownian(0.6))
    x, t = points(), 0.35
    mean, spread = (1 - t) * m0 + t * m1, (1 - t) ** 2 * c0 + t**2 * c1
    cov = spread + 0.6 * t * (1 - t) * torch.eye(2).double()
    rate = -2 * (1 - t) * c0 + 2 * t * c1 + 0.6 * (1 - 2 * t) * torch.eye(2).double()
    expected = (m1 - m0) + (x - mean) @ torch.linalg.solve(cov, rate / 2)
    given = ends.flow(InterpolantSystem(p)).velocity(x, t)["x"]
    assert torch.allclose(given, expected, rtol=1e-10)


def test_the_noise_head_is_the_expected_noise_and_not_its_negative():
    # Card 8: a public code's loss has its minimiser at -E[z|x]. The slope of z on eta is 1.
    p = Interpolant(Linear(), Brownian())
    system = InterpolantSystem(p)
    x0, x1 = ENDS.sample(40_000, 0)
    z = system.noise(x0, 1)
    eta = ENDS.flow(system).noise(system.interpolate(x0, x1, 0.5, z), 0.5)["x"]
    slope = float((eta * z["x"]).sum() / (eta * eta).sum())
    assert slope == pytest.approx(1.0, abs=0.03)


class Given(torch.nn.Module):
    """A network that knows the exact fields and hands out some of them."""

    def __init__(self, flow, heads):
        super().__init__()
        self.flow, self.heads = flow, heads

    def forward(self, x, level, condition):
        t = torch.sigmoid(-level["x"].double())
        fields = self.flow.fields(x, t)
        readings = {
            "b": lambda: fields.velocity,
            "v": lambda: fields.mean_velocity,
            "eta": lambda: fields.noise,
            "s": lambda: fields.score,
        }
        return tuple(readings[h]() for h in self.heads)


@every_noisy
@pytest.mark.parametrize("heads", [("b", "eta"), ("v", "eta"), ("b", "s"), ("v", "s")])
def test_any_two_heads_give_every_field(interpolant, heads):
    flow = exact(interpolant)
    model = FlowDenoiser(Given(flow, heads), flow.system, heads)
    x = State({"x": points()})
    for name in ("velocity", "score", "noise"):
        expected = getattr(flow, name)(x, 0.3)["x"]
        assert torch.allclose(getattr(model, name)(x, 0.3)["x"], expected, rtol=1e-9, atol=1e-9)
    assert torch.allclose(model(x, 0.3)["x"], flow(x, 0.3)["x"], rtol=1e-8, atol=1e-8)
    drift = flow.velocity(x, 0.3) - flow.score(x, 0.3) * 0.7
    assert torch.allclose(model.drift(x, 0.3, -0.7)["x"], drift["x"], rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("heads", ["b", "eta"])
@pytest.mark.parametrize("interpolant", [Interpolant(Mirror()), Interpolant(OneSided(VP()))])
def test_one_head_is_enough_where_the_noise_is_all_there_is(heads, interpolant):
    if isinstance(interpolant.path, OneSided):
        interpolant = Interpolant(OneSided(RectifiedFlow()))  # whose level is ln((1-t)/t)
    flow = exact(interpolant)
    model = FlowDenoiser(Given(flow, (heads,)), flow.system, heads)
    x = State({"x": points()})
    for name in ("velocity", "score", "forward"):
        expected = getattr(flow, name)(x, 0.3)["x"]
        assert torch.allclose(getattr(model, name)(x, 0.3)["x"], expected, rtol=1e-9, atol=1e-9)


def test_mirror_velocity_is_minus_gamma_times_its_rate_times_the_score():
    # Card 2.4 and 8: b = -gamma dgamma s; a public code has the other sign.
    flow, x, t = exact(Interpolant(Mirror(), Brownian(0.8))), points(), 0.2
    expected = -0.8 * (1 - 2 * t) / 2 * flow.score(x, t)["x"]
    assert torch.allclose(flow.velocity(x, t)["x"], expected, rtol=1e-10)


def test_drift_is_velocity_plus_epsilon_times_score():
    flow, x = exact(Interpolant()), points()
    expected = flow.velocity(x, 0.4)["x"] - 0.7 * flow.score(x, 0.4)["x"]
    assert torch.allclose(flow.drift(x, 0.4, -0.7)["x"], expected, rtol=1e-10)


def test_the_score_is_damped_where_the_noise_scale_is_below_the_threshold():
    flow = exact(Interpolant(Linear(), BSquared(), gamma_min=0.05))
    eta = flow.noise(points(), 0.01)["x"]
    assert torch.allclose(flow.score(points(), 0.01)["x"], -eta / 0.05)
    assert torch.allclose(flow.score(points(), 0.1)["x"], -flow.noise(points(), 0.1)["x"] / 0.09)


def test_two_networks_are_one_with_two_heads():
    flow = exact(Interpolant())

    class One(torch.nn.Module):
        def __init__(self, head):
            super().__init__()
            self.given = Given(flow, (head,))

        def forward(self, *inputs):
            return self.given(*inputs)[0]

    both = FlowDenoiser(Heads(One("b"), One("eta")), flow.system)
    assert torch.allclose(both(points(), 0.6)["x"], flow(points(), 0.6)["x"], rtol=1e-8)


def test_the_score_without_noise_is_refused():
    with pytest.raises(StructDiffError, match="sample it with 'flow'"):
        exact(Interpolant(Linear(), NoNoise())).score(points(), 0.5)


def test_data_without_the_noise_head_is_refused():
    flow = exact(Interpolant())
    model = FlowDenoiser(Given(flow, ("b",)), flow.system, "b")
    with pytest.raises(StructDiffError, match="head 'eta'"):
        model(points(), 0.5)


def test_data_on_the_base_half_of_encoding_and_decoding_is_refused():
    flow = exact(Interpolant(EncodingDecoding(), SinSquared()))
    model = FlowDenoiser(Given(flow, ("b", "eta")), flow.system)
    with pytest.raises(StructDiffError, match="t < 1/2"):
        model(points(), 0.7)


def test_a_network_with_another_number_of_heads_is_refused():
    flow = exact(Interpolant())
    model = FlowDenoiser(Given(flow, ("b",)), flow.system, ("b", "eta"))
    with pytest.raises(StructDiffError, match="returned 1 state"):
        model.velocity(points(), 0.5)


def test_fields_take_a_time_per_object():
    flow, x = exact(Interpolant()), points(3)
    t = torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64)
    together = flow.drift(State({"x": x}), t, -0.5)["x"]
    alone = [flow.drift(x[i : i + 1], float(t[i]), -0.5)["x"] for i in range(3)]
    assert torch.allclose(together, torch.cat(alone), rtol=1e-10)


# --- Schroedinger bridge -------------------------------------------------------------------------
# N(0, 1) -> N(2, 0.5^2), card 2.4.
@pytest.mark.parametrize(
    ("epsilon", "published"), [(0.05, 0.452494), (0.2, 0.338516), (1.0, 0.118034)]
)
def test_the_bridge_has_the_least_kinetic_energy_of_all_gaussian_couplings(epsilon, published):
    from scipy.optimize import minimize_scalar

    found = minimize_scalar(
        lambda c: bridge_energy(c, 1.0, 0.5, 2.0, epsilon),
        bounds=(-0.49, 0.49),
        method="bounded",
        options={"xatol": 1e-9},
    ).x
    assert found == pytest.approx(bridge_covariance(1.0, 0.5, epsilon), abs=1e-5)
    assert found == pytest.approx(published, abs=1e-5)


def bridge(epsilon, data_std=0.5, base_std=1.0):
    c = bridge_covariance(data_std, base_std, epsilon)
    ends = InterpolatedMixtures(
        GaussianMixture([1.0], [[2.0]], [[[data_std**2]]]),
        GaussianMixture([1.0], [[0.0]], [[[base_std**2]]]),
        torch.tensor([[c]]),
    )
    return ends, ends.flow(InterpolantSystem(Interpolant(Linear(), Brownian(2 * epsilon))))


@pytest.mark.parametrize("to", ["data", "base"])
def test_the_energy_of_the_bridge_is_the_mean_square_of_its_drift(to):
    # Monte Carlo over times and paths, 4e4: standard error 0.5 %.
    ends, flow = bridge(0.2)
    x0, x1 = ends.sample(40_000, 0)
    t = torch.linspace(1e-4, 1 - 1e-4, 40_000, dtype=torch.float64)
    x = flow.system.interpolate(x0, x1, t, flow.system.noise(x0, 1))
    energy = float(schroedinger_drift(flow, x, t, to)["x"].square().mean())
    stds = (0.5, 1.0) if to == "base" else (1.0, 0.5)
    expected = bridge_energy(bridge_covariance(*stds, 0.2), *stds, 2.0, 0.2)
    assert energy == pytest.approx(expected, rel=0.02)


def test_the_sde_of_the_bridge_couples_its_ends_by_the_entropic_plan():
    # The path law of the bridge, not only its marginals: covariance of where a path starts and
    # where it ends, closed form .338516; 2e4 paths, standard error 0.004, 200 Euler steps.
    _, flow = bridge(0.2)
    source, steps, h = SeededNoise(0), 200, 1 / 200
    start = source.normal("x", torch.empty(20_000, 1, dtype=torch.float64))
    x = start
    for i in range(steps):
        t = min(max(1 - i * h, 1e-6), 1 - 1e-6)
        z = source.normal("x", x)
        x = x + schroedinger_drift(flow, x, t)["x"] * h + math.sqrt(2 * 0.2 * h) * z
    ends = torch.cat((start, x), 1).T.cov()
    assert float(x.mean()) == pytest.approx(2.0, abs=0.02)
    assert float(ends[1, 1]) == pytest.approx(0.25, abs=0.01)
    assert float(ends[0, 1]) == pytest.approx(0.338516, abs=0.015)


def test_the_bridge_drift_of_another_interpolant_is_refused():
    with pytest.raises(StructDiffError, match="no Schroedinger bridge"):
        schroedinger_drift(exact(Interpolant(Trigonometric(), BSquared())), points(), 0.5)
