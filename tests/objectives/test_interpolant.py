"""The losses of interpolants and of flow matching: processes card, sections 2.4, 2.5 and 8.

A loss that is a squared error up to a constant has its minimum where its gradient in every
direction vanishes. So every test of a minimiser puts the exact field plus a multiple of some
direction into the loss: at 0 the slope is 0 within its standard error (z-score), and the loss rises
on both sides.
"""

import math

import pytest
import torch

from structdiff.denoisers import Denoiser
from structdiff.errors import StructDiffError
from structdiff.flows import BaseFlow, FlowDenoiser
from structdiff.noise import PerObjectNoise, SeededNoise
from structdiff.objectives.couplings import MinibatchOT, Sinkhorn
from structdiff.objectives.interpolant import (
    FlowMatching,
    InterpolantMatching,
    conditional_flow_matching,
)
from structdiff.processes import (
    VP,
    Brownian,
    BSquared,
    Constant,
    EncodingDecoding,
    FrozenClock,
    Interpolant,
    InterpolantSystem,
    Linear,
    LipmanFlow,
    Mirror,
    RectifiedFlow,
    SinSquared,
    System,
    Trigonometric,
    TrigonometricFlow,
)
from structdiff.testbeds import GaussianGraph, GaussianMixture, InterpolatedMixtures

torch.set_num_threads(1)
BASE = GaussianMixture([0.4, 0.6], [[2.0, 1.0], [-1.0, 2.0]], [[[0.5, 0.2], [0.2, 0.4]]] * 2)
ENDS = InterpolatedMixtures(GaussianMixture.gmm3(), BASE)
INTERPOLANTS = [
    Interpolant(Linear(), Brownian()),
    Interpolant(Linear(), BSquared()),
    Interpolant(Trigonometric(), Brownian(0.5)),
    Interpolant(EncodingDecoding(), SinSquared()),
    Interpolant(Mirror(), Brownian()),
]
every_interpolant = pytest.mark.parametrize("interpolant", INTERPOLANTS, ids=repr)


class Shifted(BaseFlow):
    """The exact fields plus a multiple of a direction in all of them."""

    def __init__(self, flow, amount):
        super().__init__(flow.system)
        self.flow, self.amount = flow, amount

    def heads(self, x, t, condition=None):
        fields = self.flow.fields(x, t)
        step = torch.stack((torch.sin(x["x"][:, 0]), torch.cos(x["x"][:, 1])), 1) * self.amount
        own = self.system.times(t)["x"].reshape(-1, 1)
        step = step * (0.5 + own)
        return {
            "b": fields.velocity.map(lambda v: v + step),
            "v": fields.mean_velocity.map(lambda v: v + step),
            "eta": fields.noise.map(lambda v: v + step),
            "s": fields.score.map(lambda v: v + step),
        }


class OneHead(BaseFlow):
    """A flow that has one head only, so that the loss of that head is what is tested."""

    def __init__(self, flow, head):
        super().__init__(flow.system)
        self.flow, self.head = flow, head

    def heads(self, x, t, condition=None):
        return {self.head: self.flow.heads(x, t)[self.head]}


def system(interpolant):
    return InterpolantSystem(
        interpolant, base=lambda like, source: BASE.sample(len(like.first), source)
    )


@every_interpolant
@pytest.mark.parametrize("loss", ["b", "v", "s", "eta"])
def test_the_exact_field_minimises_its_loss(loss, interpolant):
    if loss == "s":  # the score's own loss where it is not damped
        interpolant = Interpolant(interpolant.path, interpolant.gamma, 1e-4, 0.02, 0.98)
    flow = ENDS.flow(system(interpolant))
    x0 = ENDS.data.sample(8000, 0)
    objective = InterpolantMatching((loss,))

    def at(amount):
        model = Shifted(flow, amount)
        if loss == "s":
            model = OneHead(model, "s")
        return objective(model, x0, source=1)

    with torch.no_grad():
        up, here, down = at(0.1), at(0.0), at(-0.1)
    slope = (up - down) / 0.2
    error = float(slope.std()) / math.sqrt(len(slope))
    assert abs(float(slope.mean())) <= 3.5 * error
    # A field that is off by half of the direction would be seen.
    curvature = float((up + down - 2 * here).mean()) / 0.01
    assert curvature / 2 > 3.5 * error


def test_the_minimiser_of_the_noise_loss_is_plus_the_expected_noise():
    # Card 8: with the other sign the minimiser would be -E[z|x].
    flow, x0 = ENDS.flow(system(Interpolant())), ENDS.data.sample(4000, 0)

    class Negative(BaseFlow):
        def heads(self, x, t, condition=None):
            return {"eta": -flow.noise(x, t)}

    objective = InterpolantMatching(("eta",))
    right = objective(OneHead(Shifted(flow, 0.0), "eta"), x0, source=1).mean()
    wrong = objective(Negative(flow.system), x0, source=1).mean()
    assert float(right) < -0.1 < 0.1 < float(wrong)


def test_the_loss_is_the_squared_error_up_to_what_no_model_changes():
    # .5|b|^2 - y.b and .5|b - y|^2 differ by .5|y|^2, the same for every model.
    flow, x0 = ENDS.flow(system(Interpolant())), ENDS.data.sample(64, 0)
    objective = InterpolantMatching(("b",), antithetic=False)
    draw = objective.draw(flow.system, x0, SeededNoise(1))
    rate = flow.system.scales(draw.times)["x"].noise_rate
    target = flow.system.path_velocity(draw.x0, draw.base, draw.times) + draw.noise * rate
    constants = []
    for amount in (0.0, 0.7):
        model = Shifted(flow, amount)
        loss = objective(model, x0, source=1)
        error = (model.velocity(draw.noisy, draw.times) - target).square_norm() / 2 / 2
        constants.append(error - loss)
    assert torch.allclose(constants[0], constants[1], rtol=1e-9, atol=1e-9)


def test_antithetic_pairs_tame_the_ends_of_the_brownian_noise():
    # dgamma grows like t^{-1/2} (card 2.4), so a gradient's variance like ln(1/t_min) without
    # twins. Measured: spread 0.88 with, 4.3 without.
    interpolant = Interpolant(Linear(), Brownian(), t_min=1e-6, t_max=1 - 1e-6)
    flow, x0 = ENDS.flow(system(interpolant)), ENDS.data.sample(4000, 0)

    def spread(antithetic):
        objective = InterpolantMatching(("b",), antithetic=antithetic)
        up, down = (objective(Shifted(flow, a), x0, source=1) for a in (0.1, -0.1))
        return float((up - down).std() / 0.2)

    assert spread(True) < spread(False) / 2


def test_antithetic_pairs_have_the_mean_of_single_draws():
    flow, x0 = ENDS.flow(system(Interpolant(Linear(), BSquared()))), ENDS.data.sample(20_000, 0)
    model = Shifted(flow, 0.3)
    both = InterpolantMatching(("b",))(model, x0, source=1)
    one = InterpolantMatching(("b",), antithetic=False)(model, x0, source=2)
    error = math.hypot(float(both.std()), float(one.std())) / math.sqrt(20_000)
    assert abs(float(both.mean() - one.mean())) < 3.5 * error


def test_losses_are_weighted_and_added():
    flow, x0 = ENDS.flow(system(Interpolant())), ENDS.data.sample(16, 0)
    model = Shifted(flow, 0.2)
    b, eta = (InterpolantMatching((k,))(model, x0, source=3) for k in ("b", "eta"))
    both = InterpolantMatching({"b": 2.0, "eta": 0.5})(model, x0, source=3)
    assert torch.allclose(both, 2 * b + 0.5 * eta, rtol=1e-10)


def test_a_given_base_is_used_object_by_object():
    flow = ENDS.flow(InterpolantSystem(Interpolant(), base="data"))
    x0, x1 = ENDS.sample(8, 0)
    draw = InterpolantMatching().paired(x1).draw(flow.system, x0, SeededNoise(1))
    expected = flow.system.interpolate(x0, x1, draw.times, draw.noise)
    assert torch.equal(draw.noisy["x"], expected["x"])


def test_data_as_a_base_must_be_given():
    flow = ENDS.flow(InterpolantSystem(Interpolant(), base="data"))
    with pytest.raises(StructDiffError, match="hand its samples"):
        InterpolantMatching()(flow, ENDS.data.sample(4, 0), source=0)


def test_a_coupling_pairs_the_base_with_the_data():
    s = system(Interpolant(Linear(), Brownian(0.1)))
    x0 = ENDS.data.sample(64, 0)
    free = InterpolantMatching().draw(s, x0, SeededNoise(1))
    tied = InterpolantMatching(coupling=MinibatchOT()).draw(s, x0, SeededNoise(1))
    assert float((x0 - tied.base).square_norm().sum()) < float((x0 - free.base).square_norm().sum())
    assert torch.equal(tied.noise["x"], free.noise["x"])
    assert torch.equal(tied.base["x"].sort(0).values, free.base["x"].sort(0).values)


def test_a_coupling_pairs_the_noise_of_a_one_sided_component():
    s = InterpolantSystem(RectifiedFlow())
    x0 = ENDS.data.sample(64, 0)
    free = InterpolantMatching().draw(s, x0, SeededNoise(1))
    tied = InterpolantMatching(coupling=MinibatchOT()).draw(s, x0, SeededNoise(1))
    assert float((x0 - tied.noise).square_norm().sum()) < float(
        (x0 - free.noise).square_norm().sum()
    )


# --- structured objects --------------------------------------------------------------------------
class Small(torch.nn.Module):
    """Two heads on graphs, equivariant enough for a test."""

    def __init__(self):
        super().__init__()
        self.a, self.b = (
            torch.nn.Parameter(torch.ones(2).double()),
            torch.nn.Parameter(torch.zeros(2).double()),
        )

    def forward(self, x, level, condition):
        return tuple(x * a + b for a, b in zip(self.a, self.b, strict=True))


def graph(clocks=None):
    testbed = GaussianGraph([3, 2, 4, 3])
    s = InterpolantSystem(
        {"x": Interpolant(Linear(), Brownian()), "adj": Interpolant(Trigonometric(), BSquared())},
        GaussianGraph.spaces(),
        clocks,
    )
    return testbed, s, FlowDenoiser(Small(), s)


def test_the_loss_of_an_object_does_not_depend_on_its_padding():
    _, _, model = graph()
    small, large = GaussianGraph([3, 2], 3), GaussianGraph([3, 2], 6)
    x0 = small.sample(0)
    wide = large.like.map(torch.clone)
    for k in wide:
        index = (
            (slice(None), slice(0, 3), slice(0, 3)) if k == "adj" else (slice(None), slice(0, 3))
        )
        wide[k][index] = x0[k]
    a = InterpolantMatching()(model, x0, source=PerObjectNoise([1, 2]))
    b = InterpolantMatching()(model, wide, source=PerObjectNoise([1, 2]))
    assert torch.allclose(a, b, rtol=1e-10)


def test_a_frozen_component_stays_clean_and_has_no_loss():
    testbed, s, model = graph({"x": FrozenClock()})
    x0 = testbed.sample(0)
    objective = InterpolantMatching()
    draw = objective.draw(s, x0, SeededNoise(1))
    assert torch.equal(draw.noisy["x"], x0["x"])
    losses = objective.component_losses(model, x0, None, SeededNoise(1))
    assert list(losses) == ["adj"] and bool(losses["adj"].isfinite().all())


def test_gradients_reach_both_heads():
    testbed, _, model = graph()
    InterpolantMatching()(model, testbed.sample(0), source=0).mean().backward()
    assert bool((model.network.a.grad != 0).all()) and bool(model.network.a.grad.isfinite().all())


# --- flow matching -------------------------------------------------------------------------------
class Exact(torch.nn.Module):
    """A velocity network that knows the mixture, plus a multiple of a direction."""

    def __init__(self, process, amount):
        super().__init__()
        self.denoiser, self.amount = GaussianMixture.gmm3().denoiser(System(process)), amount

    def forward(self, x, log_snr, condition):
        t = self.denoiser.system.processes["x"].time_at(log_snr["x"])
        return self.denoiser.velocity(x, t).map(lambda v: v + self.amount * torch.sin(x["x"]))


@pytest.mark.parametrize(
    "process", [RectifiedFlow(), LipmanFlow(0.1), TrigonometricFlow()], ids=repr
)
def test_the_exact_velocity_minimises_flow_matching(process):
    x0 = GaussianMixture.gmm3().sample(20_000, 0)
    up, here, down = (
        FlowMatching()(Denoiser(Exact(process, a), System(process), "velocity"), x0, source=1)
        for a in (0.1, 0.0, -0.1)
    )
    slope = (up - down) / 0.2
    error = float(slope.std()) / math.sqrt(len(slope))
    assert abs(float(slope.mean())) < 3.5 * error < float(((up - here) / 0.1).mean())


def test_flow_matching_is_the_noise_loss_weighted_by_the_speed_of_the_log_snr():
    # Card 2.6: |d u|^2 = (sigma dlambda)^2 |d eps|^2.
    process = RectifiedFlow()
    denoiser = Denoiser(Exact(process, 0.3), System(process), "velocity")
    x0 = GaussianMixture.gmm3().sample(32, 0)
    objective = FlowMatching()
    draw = objective.draw(denoiser.system, x0, SeededNoise(1))
    t = draw.times["x"]
    speed = t * (1 / (1 - t) + 1 / t)
    error = (denoiser.noise(draw.noisy, draw.times) - draw.noise).square_norm() / 2
    assert torch.allclose(objective(denoiser, x0, source=1), speed**2 * error, rtol=1e-8)


def test_flow_matching_draws_the_coupled_noise():
    x0 = GaussianMixture.gmm3().sample(64, 0)
    s = System(RectifiedFlow())
    free, tied = (
        FlowMatching(coupling=c).draw(s, x0, SeededNoise(1)) for c in (None, MinibatchOT())
    )
    assert float((x0 - tied.noise).square_norm().sum()) < float(
        (x0 - free.noise).square_norm().sum()
    )


# --- the published methods -----------------------------------------------------------------------
@pytest.mark.parametrize("method", ["i-cfm", "fm", "ot-cfm", "vp-cfm"])
def test_methods_without_noise_train_ordinary_denoisers(method):
    process, objective = conditional_flow_matching(method)
    assert isinstance(objective, FlowMatching) and not isinstance(process, Interpolant)
    assert isinstance(objective.coupling, MinibatchOT) == (method == "ot-cfm")


def test_the_target_of_fm_is_the_published_one():
    # (x1 - (1 - s0) x_t) / (1 - (1 - s0) t), paper's time 1 - t; ours has the other sign.
    process, _ = conditional_flow_matching("fm", 0.1)
    x0, noise, t = torch.tensor([1.3, -0.4]), torch.tensor([0.2, 0.9]), 0.3
    noisy = float(process.alpha(t)) * x0 + float(process.sigma(t)) * noise
    published = (x0 - 0.9 * noisy) / (1 - 0.9 * (1 - t))
    ours = float(process.alpha_derivative(t)) * x0 + float(process.sigma_derivative(t)) * noise
    assert torch.allclose(ours, -published, rtol=1e-6)


def test_the_target_of_sb_cfm_is_the_published_one():
    # x1 - x0 + (1 - 2t) / (2 t (1 - t)) (x_t - mu_t), paper's time 1 - t.
    process, objective = conditional_flow_matching("sb-cfm", 0.7)
    s, t = process.scales(0.3), 0.7
    x0, x1, z = torch.randn(3, 5, generator=torch.Generator().manual_seed(0)).double()
    mean = s.data * x0 + s.base * x1
    noisy = mean + s.noise * z
    published = (x0 - x1) + (1 - 2 * t) / (2 * t * (1 - t)) * (noisy - mean)
    ours = s.data_rate * x0 + s.base_rate * x1 + s.noise_rate * z
    assert torch.allclose(ours, -published, rtol=1e-10)
    assert isinstance(objective.coupling, Sinkhorn)
    assert objective.coupling.reg == pytest.approx(2 * 0.7**2)


def test_the_score_loss_of_sb_cfm_is_that_of_sf2m():
    # |lambda net + eps|^2 with lambda = 2 sqrt(t(1-t))/s0 and net = s0^2/2 score is |eps - eta|^2.
    process, _ = conditional_flow_matching("sb-cfm", 0.7)
    t = torch.linspace(0.1, 0.9, 5, dtype=torch.float64)
    weight = 2 * torch.sqrt(t * (1 - t)) / 0.7
    score = torch.randn(5, generator=torch.Generator().manual_seed(0)).double()
    assert torch.allclose(weight * (0.7**2 / 2 * score), process.noise_scale(t) * score, rtol=1e-12)


@pytest.mark.parametrize("method", ["i-cfm", "ot-cfm"])
def test_constant_noise_makes_the_line_an_interpolant(method):
    process, objective = conditional_flow_matching(method, 0.1)
    assert process == Interpolant(Linear(), Constant(0.1))
    assert isinstance(objective.coupling, MinibatchOT) == (method == "ot-cfm")


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (lambda: conditional_flow_matching("cfm"), "unknown method"),
        (lambda: conditional_flow_matching("sb-cfm"), "positive sigma_0"),
        (lambda: conditional_flow_matching("vp-cfm", 0.1), "no sigma_0"),
        (lambda: InterpolantMatching(("u",)), "b, v, s and eta"),
        (
            lambda: InterpolantMatching()(
                GaussianMixture.gmm3().denoiser(System(VP())), ENDS.data.sample(2, 0)
            ),
            "FlowMatching",
        ),
    ],
)
def test_what_does_not_go_together_is_named(make, what):
    with pytest.raises(StructDiffError, match=what):
        make()
