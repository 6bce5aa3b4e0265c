"""The flow sampler and the SDE of tunable strength on two-sided interpolants and on structure.

On diffusions the registry's tests of order, weak order, invariants and counts cover them. Numbers:
processes card, sections 2.4, 8 and 10 (7); samplers card, section 2.13.
"""

import functools
import math

import pytest
import torch

from structdiff.errors import StructDiffError
from structdiff.flows import FlowDenoiser
from structdiff.noise import PerObjectNoise
from structdiff.processes import (
    VE,
    VP,
    Brownian,
    BSquared,
    EncodingDecoding,
    FrozenClock,
    Interpolant,
    InterpolantSystem,
    Linear,
    Mirror,
    NoNoise,
    RectifiedFlow,
    SinSquared,
    System,
    Trigonometric,
)
from structdiff.samplers import get_sampler
from structdiff.state import State
from structdiff.testbeds import (
    CorrelatedGaussian,
    GaussianGraph,
    GaussianMixture,
    InterpolatedMixtures,
    bridge_covariance,
)

torch.set_num_threads(1)
BASE = GaussianMixture([0.4, 0.6], [[2.0, 1.0], [-1.0, 2.0]], [[[0.5, 0.2], [0.2, 0.4]]] * 2)
ENDS = InterpolatedMixtures(GaussianMixture.gmm3(), BASE)


class Sobol:
    """Low-discrepancy normals: the truth and the base without their own sampling error."""

    def __init__(self, seed):
        self.seed = seed

    def normal(self, name, like, interval=None):
        engine = torch.quasirandom.SobolEngine(like.shape[1], scramble=True, seed=self.seed)
        u = engine.draw(len(like), dtype=torch.float64)
        return torch.special.ndtri(u.clamp(1e-9, 1 - 1e-9)).to(like)


def sliced_w2(a, b):
    import ot

    return float(
        ot.sliced_wasserstein_distance(
            a.double().numpy(), b.double().numpy(), n_projections=64, seed=0
        )
    )


def distance(interpolant, epsilon, count=10_000, **options):
    """Sliced W2 of what 400 steps make of the base to the data; ideal draws are 0.006 apart."""
    flow = ENDS.flow(InterpolantSystem(interpolant))
    mirror = isinstance(interpolant.path, Mirror)
    ends = ENDS.data if mirror else BASE
    start = flow.system.start(ends.sample(count, Sobol(1)).to(torch.float32), Sobol(2))
    sampler = get_sampler("interpolant-sde", 400, epsilon=epsilon, denoise=False, **options)
    sample = sampler(flow, start, source=0)["x"]
    return sliced_w2(sample, ENDS.data.sample(count, Sobol(3))["x"])


# Card 10 (7): <= 0.08 at 400 steps with 1e4 samples, whose own error is 0.03 to 0.07.
@pytest.mark.parametrize("epsilon", [0.0, 0.5, 2.0])
def test_any_strength_reaches_the_data(epsilon):
    assert distance(Interpolant(), epsilon, method="euler-maruyama") <= 0.08


@pytest.mark.paper
@pytest.mark.parametrize("epsilon", [0.0, 0.5, 2.0])
@pytest.mark.parametrize(
    "interpolant",
    [
        Interpolant(Linear(), BSquared()),
        Interpolant(Trigonometric(), Brownian(0.5)),
        Interpolant(EncodingDecoding(), SinSquared()),
        Interpolant(Mirror(), BSquared(2.0)),
    ],
    ids=repr,
)
def test_every_interpolant_reaches_the_data_at_any_strength(interpolant, epsilon):
    assert distance(interpolant, epsilon, method="euler-maruyama") <= 0.08


def test_the_wrong_sign_of_the_score_would_be_seen():
    # b + e s in place of b - e s on the way to the data spreads the sample out of all bounds.
    flow = ENDS.flow(InterpolantSystem(Interpolant()))
    right = flow.drift
    flow.drift = lambda x, t, e, condition: right(x, t, {k: -v for k, v in e.items()}, condition)
    start = flow.system.start(BASE.sample(500, Sobol(1)), 0)
    sampler = get_sampler("interpolant-sde", 100, epsilon=2.0, method="euler-maruyama")
    y = sampler(flow, start, source=0)["x"]
    assert not bool((y.abs() < 20).all())


@functools.cache
def solved(interpolant):
    """A flow, a start, and where the flow takes it: DOP853, independent of the sampler."""
    from scipy.integrate import solve_ivp

    flow = ENDS.flow(InterpolantSystem(interpolant))
    x = flow.system.start(BASE.sample(16, 0), 1)["x"]

    def slope(t, y):
        return flow.velocity(torch.from_numpy(y.reshape(-1, 2)), float(t))["x"].numpy().ravel()

    ends = (flow.system.t_max, flow.system.t_min)
    run = solve_ivp(slope, ends, x.numpy().ravel(), method="DOP853", rtol=1e-10, atol=1e-10)
    return flow, x, torch.from_numpy(run.y[:, -1].reshape(-1, 2))


@pytest.mark.parametrize(
    ("method", "order", "steps"), [("euler", 1, 320), ("heun", 2, 80), ("rk4", 4, 80)]
)
@pytest.mark.parametrize(
    "interpolant", [Interpolant(), Interpolant(Trigonometric(), BSquared())], ids=repr
)
def test_order_of_the_flow_on_a_two_sided_interpolant(interpolant, method, order, steps):
    flow, x, exact = solved(interpolant)
    errors = [
        float((get_sampler("flow", n, method=method, denoise=False)(flow, x)["x"] - exact).norm())
        for n in (steps, 2 * steps)
    ]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.15)


def gaussian_std(method, steps, epsilon):
    """Exact standard deviation that a method makes of N(0, 1) -> N(2, 1/4): no Monte Carlo.

    The step maps start and draws affinely; row j feels draw j alone.
    """
    ends = InterpolatedMixtures(
        GaussianMixture([1.0], [[2.0]], [[[0.25]]]), GaussianMixture([1.0], [[0.0]], [[[1.0]]])
    )
    flow = ends.flow(InterpolantSystem(Interpolant(Linear(), Brownian(0.4))))

    class Probe:
        draws = 0

        def normal(self, name, like, interval=None):
            self.draws += 1
            z = torch.zeros_like(like)
            z[self.draws + 1] = 1.0
            return z

    def spread(t):
        return math.sqrt((1 - t) ** 2 * 0.25 + t**2 + 0.4 * t * (1 - t))

    t_max, t_min = flow.system.t_max, flow.system.t_min
    x = torch.full((2 * steps + 2, 1), (1 - t_max) * 2.0, dtype=torch.float64)
    x[1] += spread(t_max)
    sampler = get_sampler("interpolant-sde", steps, epsilon=epsilon, method=method, denoise=False)
    y = sampler(flow, x, source=Probe())["x"][:, 0]
    return float((y[1:] - y[0]).square().sum().sqrt()) - spread(t_min)


@pytest.mark.parametrize("epsilon", [0.2, lambda t: 0.5 * t * (1 - t) + 0.3, None])
@pytest.mark.parametrize(("method", "order"), [("euler-maruyama", 1), ("heun", 1), ("strang", 2)])
def test_weak_order_on_a_two_sided_interpolant(method, order, epsilon):
    # The card's Heun-type step (2.13) has correct slopes, yet noise all on one side: order 1.
    errors = [gaussian_std(method, n, epsilon) for n in (100, 200)]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.15)


def test_the_sde_at_its_natural_strength_walks_the_schroedinger_bridge():
    # The law of the pairs (start, end), not only the marginals: covariance .338516 (card 2.4) for
    # ends coupled by the entropic plan; 2e4 paths, standard error 0.004.
    c = bridge_covariance(0.5, 1.0, 0.2)
    ends = InterpolatedMixtures(
        GaussianMixture([1.0], [[2.0]], [[[0.25]]]),
        GaussianMixture([1.0], [[0.0]], [[[1.0]]]),
        torch.tensor([[c]]),
    )
    flow = ends.flow(InterpolantSystem(Interpolant(Linear(), Brownian(0.4))))
    start = ends.base.sample(20_000, 0)["x"]
    end = get_sampler("interpolant-sde", 100, denoise=False)(flow, start, source=1)["x"]
    assert float(torch.cat((start, end), 1).T.cov()[0, 1]) == pytest.approx(0.338516, abs=0.015)


# --- strengths -----------------------------------------------------------------------------------
def mixture(system=None):
    denoiser = GaussianMixture.gmm3().denoiser(system or System(VP()))
    return denoiser, denoiser.system.prior(State({"x": torch.zeros(16, 2).double()}), 0)


def test_at_half_the_squared_diffusion_it_is_the_reverse_sde():
    denoiser, x = mixture()

    def half(t):
        return VP().diffusion_squared(t) / 2

    options = {"method": "euler-maruyama", "epsilon": half}
    a = get_sampler("interpolant-sde", 20, **options)(denoiser, x, source=1)["x"]
    b = get_sampler("euler-maruyama", 20)(denoiser, x, source=1)["x"]
    assert torch.allclose(a, b, rtol=1e-10)


def test_the_strength_of_its_own_choice_bears_a_coarse_grid_at_the_end_of_flow_matching():
    # There g^2 = 2t/(1-t) is 1998 at the first of ten steps; at full strength the samples explode.
    denoiser, x = mixture(System(RectifiedFlow()))

    def spread(epsilon):
        sampler = get_sampler("interpolant-sde", 10, epsilon=epsilon)
        return float(sampler(denoiser, x, source=1)["x"].std())

    assert spread(None) < 3
    assert spread(lambda t: RectifiedFlow().diffusion_squared(t) / 2) > 6


@pytest.mark.parametrize("model", ["diffusion", "interpolant"])
def test_without_strength_it_is_the_flow_and_draws_nothing(model):
    if model == "diffusion":
        denoiser, x = mixture()
    else:
        denoiser = ENDS.flow(InterpolantSystem(Interpolant()))
        x = denoiser.system.start(BASE.sample(16, 0), 1)

    class Silent:
        def normal(self, name, like, interval=None):
            raise AssertionError("noise was drawn")

    a = get_sampler("interpolant-sde", 20, epsilon=0.0)(denoiser, x, source=Silent())["x"]
    b = get_sampler("flow", 20)(denoiser, x)["x"]
    assert torch.allclose(a, b, rtol=1e-8, atol=1e-10)


def test_a_strength_may_be_a_function_of_time_or_one_per_component():
    system = System({"x": VP(), "a": VE(0.1, 5.0)})
    denoiser = CorrelatedGaussian().denoiser(system)
    x = system.prior(State({"x": torch.zeros(4, 2).double(), "a": torch.zeros(4, 3).double()}), 0)

    def sample(epsilon):
        return get_sampler("interpolant-sde", 12, epsilon=epsilon)(denoiser, x, source=1)

    number, function = sample(0.3), sample(lambda t: 0.3)
    named = sample({"x": 0.3, "a": lambda t: 0.3})
    assert all(torch.equal(number[k], function[k]) and torch.equal(number[k], named[k]) for k in x)
    assert not torch.equal(sample({"x": 0.3})["a"], number["a"])  # None: its own


def test_where_the_noise_scale_is_small_no_noise_is_added():
    # gamma = t(1-t) < 0.3 everywhere: at any strength only the flow is left.
    flow = ENDS.flow(InterpolantSystem(Interpolant(Linear(), BSquared(), gamma_min=0.3)))
    x = flow.system.start(BASE.sample(8, 0), 1)
    a = get_sampler("interpolant-sde", 10, epsilon=1.0)(flow, x, source=1)["x"]
    assert torch.allclose(a, get_sampler("flow", 10)(flow, x)["x"], rtol=1e-10)


@pytest.mark.parametrize("epsilon", [-0.1, math.nan, lambda t: math.inf])
def test_a_strength_that_is_no_strength_is_refused(epsilon):
    denoiser, x = mixture()
    with pytest.raises(StructDiffError, match="not negative"):
        get_sampler("interpolant-sde", 5, epsilon=epsilon)(denoiser, x, source=0)


@pytest.mark.parametrize("name", ["flow", "interpolant-sde"])
def test_an_unknown_method_is_refused(name):
    with pytest.raises(StructDiffError, match="method must be"):
        get_sampler(name, 5, method="midpoint")


def test_an_interpolant_without_noise_has_its_flow():
    flow = ENDS.flow(InterpolantSystem(Interpolant(Linear(), NoNoise())))
    x = flow.system.start(BASE.sample(8, 0), 1)
    for name in ("flow", "interpolant-sde"):  # whose strength is 0 by itself
        y = get_sampler(name, 20, denoise=False)(flow, x, source=0)["x"]
        assert torch.allclose(y, get_sampler("flow", 20, denoise=False)(flow, x)["x"])


@pytest.mark.parametrize("method", ["euler", "heun", "rk4"])
def test_a_grid_may_end_at_time_zero(method):
    denoiser, x = mixture()
    grid = torch.linspace(1.0, 0.0, 101, dtype=torch.float64)
    y = get_sampler("flow", 100, grid=grid, method=method, denoise=False)(denoiser, x)["x"]
    exact = get_sampler("ode", 1, denoise=False, rtol=1e-8, atol=1e-8)(denoiser, x)["x"]
    assert float((y - exact).abs().max()) < (0.3 if method == "euler" else 0.03)


@pytest.mark.parametrize(("method", "count"), [("euler-maruyama", 1), ("heun", 2), ("strang", 2)])
def test_velocity_and_score_cost_one_evaluation(method, count):
    flow = ENDS.flow(InterpolantSystem(Interpolant()))
    calls, heads = [], flow.heads
    flow.heads = lambda *inputs: (calls.append(1), heads(*inputs))[1]
    sampler = get_sampler("interpolant-sde", 7, method=method, denoise=False)
    sampler(flow, flow.system.start(BASE.sample(4, 0), 1), source=0)
    assert len(calls) == sampler.nfe == 7 * count


# --- structure -----------------------------------------------------------------------------------
class Network(torch.nn.Module):
    """Two smooth heads that keep neither masks nor symmetry: the sampler has to."""

    def forward(self, x, level, condition):
        tilt = x.map(lambda v: 0.1 * torch.arange(v.shape[-1]).to(v))
        return (x * 0.3).map(torch.tanh) + tilt, (x * 0.5).map(torch.sin) + tilt


def graphs(sizes, clocks=None, max_nodes=5):
    testbed = GaussianGraph(sizes, max_nodes)
    system = InterpolantSystem(
        {"x": Interpolant(Linear(), Brownian()), "adj": Interpolant(Trigonometric(), BSquared())},
        GaussianGraph.spaces(),
        clocks,
    )
    return FlowDenoiser(Network(), system), testbed


both = pytest.mark.parametrize(
    ("name", "options"),
    [
        ("flow", {}),
        ("flow", {"method": "rk4"}),
        ("interpolant-sde", {}),
        ("interpolant-sde", {"method": "heun", "epsilon": 0.3}),
        ("interpolant-sde", {"method": "euler-maruyama", "epsilon": 0.3}),
    ],
)


@both
def test_graphs_stay_masked_and_symmetric_between_two_densities(name, options):
    model, testbed = graphs([4, 1, 0, 3])
    x = model.system.prior(testbed.like, 0)
    for state in get_sampler(name, 6, **options).trajectory(model, x, source=0):
        for k, v in state.items():
            assert bool((v[~state.masks[k].expand_as(v)] == 0).all())
        assert torch.equal(state["adj"], state["adj"].transpose(1, 2))


@both
def test_a_frozen_component_of_an_interpolant_stays_bit_identical(name, options):
    model, testbed = graphs([3, 2], {"x": FrozenClock()})
    given = testbed.sample(0)
    x = model.system.prior(given, 1)
    for state in get_sampler(name, 6, **options).trajectory(model, x, source=2):
        assert state["x"].data_ptr() == state["x"].data_ptr() and torch.equal(
            state["x"], given["x"]
        )
        assert bool(state["adj"].isfinite().all())


@both
def test_a_component_that_waits_keeps_its_tensor(name, options):
    clocks = {"x": lambda t: (2 * t - 1).clamp(min=1e-3), "adj": lambda t: (2 * t).clamp(max=0.999)}
    model, testbed = graphs([3, 2], clocks)
    x = model.system.prior(testbed.like, 1)
    sampler = get_sampler(name, 8, denoise=False, **options)
    states = [x, *sampler.trajectory(model, x, source=2)]
    assert all(torch.equal(s["adj"], x["adj"]) for s in states[:4])
    assert all(torch.equal(s["x"], states[-1]["x"]) for s in states[6:])
    assert not torch.equal(states[-1]["adj"], x["adj"])


@both
def test_an_object_between_two_densities_does_not_depend_on_its_batch_mates(name, options):
    def sample(sizes, seeds, max_nodes):
        model, testbed = graphs(sizes, max_nodes=max_nodes)
        source = PerObjectNoise(seeds)
        x = model.system.prior(testbed.like, source)
        return get_sampler(name, 6, **options)(model, x, source=source)

    alone, together = sample([3], [7], 3), sample([5, 3, 2], [1, 7, 9], 5)
    assert torch.allclose(alone["x"][0], together["x"][1, :3], rtol=1e-10, atol=1e-12)
    assert torch.allclose(alone["adj"][0], together["adj"][1, :3, :3], rtol=1e-10, atol=1e-12)


@both
def test_float32_stays_float32(name, options):
    model, testbed = graphs([3, 2])
    like = testbed.like.to(torch.float32)
    y = get_sampler(name, 6, **options)(model, model.system.prior(like, 0), source=0)
    assert {v.dtype for v in y.values()} == {torch.float32}


def test_an_interpolant_and_a_diffusion_share_a_system():
    # x between two densities, a a VP diffusion, one joint exact flow: both reach their data.
    data = CorrelatedGaussian()
    base = GaussianMixture([1.0], torch.zeros(1, 5), torch.eye(5)[None], {"x": 2, "a": 3})
    ends = InterpolatedMixtures(data, base)
    system = InterpolantSystem({"x": Interpolant(), "a": VP()})
    flow = ends.flow(system)
    like = State({"x": torch.zeros(4000, 2).double(), "a": torch.zeros(4000, 3).double()})
    y = get_sampler("interpolant-sde", 60)(flow, system.prior(like, 0), source=1)
    joint = data.join(y)
    assert torch.allclose(joint.mean(0), data.mean(), atol=0.06)
    assert torch.allclose(joint.T.cov(), data.covariance(), atol=0.08)
