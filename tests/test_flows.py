"""Fields of interpolants and the Schroedinger bridge: processes card, sections 2.4, 2.5, 8, 10."""

import math

import pytest
import torch

from structdiff.errors import StructDiffError
from structdiff.flows import FlowDenoiser, Heads, schroedinger_drift
from structdiff.noise import SeededNoise
from structdiff.processes import VP, RectifiedFlow
from structdiff.processes.interpolant import Interpolant, InterpolantSystem
from structdiff.processes.paths import (
    Brownian,
    BSquared,
    EncodingDecoding,
    Linear,
    Mirror,
    NoNoise,
    OneSided,
    SinSquared,
    Trigonometric,
)
from structdiff.state import State
from structdiff.testbeds import GaussianMixture
from structdiff.testbeds.interpolant import InterpolatedMixtures, bridge_covariance, bridge_energy
from support.interpolants import ENDS, INTERPOLANTS, every_interpolant

torch.set_num_threads(1)

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
