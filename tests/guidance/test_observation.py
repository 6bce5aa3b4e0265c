"""Self-guidance by observations: its energies, gradients, scales and what it leaves alone."""

import pytest
import torch
from torch import nn

from structdiff.denoisers import BaseDenoiser, Denoiser
from structdiff.errors import StructDiffError
from structdiff.guidance import ObservationGuidance, path_levels, published_scale
from structdiff.noise import ReplayNoise
from structdiff.processes import VP, DiscreteVP, FrozenClock, System
from structdiff.samplers import get_sampler
from structdiff.spaces import Symmetric
from structdiff.state import State
from structdiff.testbeds import CorrelatedGaussian, StationaryGaussian
from support.gradients import finite_difference

torch.set_num_threads(1)
CHAIN = DiscreteVP(100, 1e-4, 0.1, prior_scale=1.0)
BETAS = torch.linspace(1e-4, 0.1, 100, dtype=torch.float64)
BAR = torch.cumprod(1 - BETAS, 0)
BEFORE = torch.cat([torch.ones(1), BAR[:-1]])
TILDE = BETAS * (1 - BEFORE) / (1 - BAR)


class Curved(BaseDenoiser):
    """A smooth prediction that mixes all entries of all components."""

    def forward(self, x, t, condition=None):
        total = sum(torch.sin(v).flatten(1).sum(1) for v in x.values())
        return x.map(lambda v: torch.tanh(v) + 0.3 * total.reshape(-1, *[1] * (v.dim() - 1)))


def window(phi=0.9, length=12, batch=3, steps=CHAIN):
    process = StationaryGaussian.ar1(phi, length)
    return process.denoiser(System(steps)), process.sample(batch, 0)["x"]


# --- the paper's chain (card G1) ---------------------------------------------------------------
@pytest.mark.parametrize(
    ("index", "figure"),
    [(0, 0.9999), (9, 0.95451), (19, 0.82282), (49, 0.28298), (74, 0.05608), (99, 0.005619)],
)
def test_the_chain_has_the_papers_signal(index, figure):
    # Section 2.1 of Kollovieh et al. 2023: T = 100, beta from 1e-4 to 0.1; figures measured there.
    assert abs(float(CHAIN.alpha(CHAIN.time_of(index))) ** 2 - figure) < 1e-5


def test_the_paper_guides_by_4_9095_in_all_and_not_at_all_in_its_last_step():
    # sum of beta~_t over the chain; beta~_0 = 0.
    times = CHAIN.time_of(torch.arange(100))
    scale = published_scale(CHAIN, 1.0)(times)
    # The shift of the mean: the data coefficient sqrt(abar_{t-1}) beta / (1 - abar) of the step.
    shift = scale * (1 - BAR) / BAR.sqrt() * BEFORE.sqrt() * BETAS / (1 - BAR)
    assert float(scale[0]) == 0.0
    assert abs(float(shift.sum()) - 4.9095) < 1e-4


@pytest.mark.parametrize("energy", ["squared", "quantile"])
def test_published_scale_makes_an_ancestral_run_the_papers(energy):
    # The loop as published: mean = mu_theta(x_t, t) - s beta~_t grad E(x_t, t), then the noise.
    denoiser, y = window()
    observed = torch.zeros_like(y, dtype=torch.bool)
    observed[:, :8] = True
    draws = list(torch.randn(99, *y.shape, dtype=torch.float64).unbind())
    start = torch.randn_like(y)
    levels = None if energy == "squared" else path_levels(3)
    scale = published_scale(CHAIN, 2.0)
    guided = ObservationGuidance(denoiser, y, observed, energy, levels, scale)
    got = get_sampler("ddpm", 100, grid=CHAIN.trailing(100))(
        guided, start, source=ReplayNoise({"x": draws})
    )["x"]
    x = start
    for i in range(99, -1, -1):
        x = x.detach().requires_grad_(True)
        data = denoiser(x, CHAIN.time_of(i))["x"]
        gap = (y - data)[:, :8]
        each = gap**2
        if levels is not None:
            each = torch.maximum(levels[:, None] * gap, (levels[:, None] - 1) * gap)
        (slope,) = torch.autograd.grad(each.sum(), x)
        noise = (x - BAR[i].sqrt() * data) / (1 - BAR[i]).sqrt()
        mean = (x - BETAS[i] / (1 - BAR[i]).sqrt() * noise) / (1 - BETAS[i]).sqrt()
        x = (mean - 2.0 * TILDE[i] * slope).detach()
        if i > 0:
            x = x + TILDE[i].sqrt() * draws[99 - i]
    assert float((got - x).abs().max()) < 1e-10


def test_a_number_as_scale_is_the_papers_ddim():
    # e~ = e + s sqrt(1 - abar) grad E (code of the paper, DDIMGuidance).
    denoiser, y = window()
    observed = torch.arange(12) < 8
    guided = ObservationGuidance(denoiser, y, observed.expand_as(y), scale=0.5)
    x, i = torch.randn_like(y), 40
    t = CHAIN.time_of(i)
    point = x.clone().requires_grad_(True)
    data = denoiser(point, t)["x"]
    (slope,) = torch.autograd.grad(((data - y)[:, :8] ** 2).sum(), point)
    noise = (x - BAR[i].sqrt() * data) / (1 - BAR[i]).sqrt()
    expected = (noise + 0.5 * (1 - BAR[i]).sqrt() * slope).detach()
    assert float((guided.noise(x, t)["x"] - expected).abs().max()) < 1e-12


# --- energies and gradients (card G3) ----------------------------------------------------------
@pytest.mark.parametrize("energy", ["squared", "quantile"])
def test_the_gradient_is_that_of_the_energy(energy):
    system = System(VP())
    x, y = torch.randn(2, 3, 5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    observed = torch.rand(3, 5, 2, generator=torch.Generator().manual_seed(1)) < 0.6
    levels = None if energy == "squared" else path_levels(3)
    guided = ObservationGuidance(Curved(system), y, observed, energy, levels, scale=0.7)
    moved = guided(x, 0.5)["x"] - Curved(system)(State({"x": x}), 0.5)["x"]
    slope = finite_difference(lambda at: guided.energy(Curved(system)(State({"x": at}), 0.5)), x)
    factor = 0.7 * system.sigma(0.5)["x"] ** 2 / system.alpha(0.5)["x"]
    assert torch.allclose(moved, -factor * slope, rtol=1e-6, atol=1e-7)


def test_the_gradient_of_a_symmetric_matrix_is_that_of_its_pairs():
    system = System({"adj": VP()}, {"adj": Symmetric()})
    space, masks = Symmetric(), {"adj": torch.ones(2, 4, 4, dtype=torch.bool)}
    masks["adj"][1, 3], masks["adj"][1, :, 3] = False, False
    pairs, known = torch.randn(2, 2, 6, dtype=torch.float64).unbind()
    like = torch.zeros(2, 4, 4, dtype=torch.float64)

    def state(free):
        return State({"adj": space.project(space.unpack(free, like), masks["adj"])}, masks)

    observed = {"adj": torch.ones(2, 4, 4, dtype=torch.bool)}
    guided = ObservationGuidance(Curved(system), state(known), observed)
    moved = guided(state(pairs), 0.5) - Curved(system)(state(pairs), 0.5)
    slope = finite_difference(lambda p: guided.energy(Curved(system)(state(p), 0.5)), pairs)
    factor = system.sigma(0.5)["adj"] ** 2 / system.alpha(0.5)["adj"]
    assert torch.allclose(moved["adj"], -factor * state(slope)["adj"], rtol=1e-6, atol=1e-7)


def test_a_component_is_guided_by_what_is_seen_of_another():
    testbed = CorrelatedGaussian()
    system = System({"x": VP(), "a": VP()})
    values, observed = testbed.sample(4, 0), {"x": torch.ones(4, 2, dtype=torch.bool)}
    guided = ObservationGuidance(testbed.denoiser(system), values, observed)
    x = system.prior(values, 1)
    moved = guided(x, 0.5)["a"] - testbed.denoiser(system)(x, 0.5)["a"]
    assert float(moved.abs().min()) > 1e-6


def test_frozen_components_are_not_touched():
    testbed = CorrelatedGaussian()
    system = System({"x": VP(), "a": VP()}, clocks={"a": FrozenClock()})
    values, observed = testbed.sample(4, 0), {"x": torch.ones(4, 2, dtype=torch.bool)}
    guided = ObservationGuidance(Curved(system), values, observed)
    assert torch.equal(get_sampler("dpm++", 5)(guided, system.prior(values, 1))["a"], values["a"])


@pytest.mark.parametrize("energy", ["squared", "quantile"])
def test_what_is_not_observed_has_no_influence(energy):
    # Bit for bit, whatever stands there.
    denoiser, y = window()
    observed = (torch.arange(12) % 3 > 0).expand_as(y)
    levels = None if energy == "squared" else path_levels(3)
    results = []
    for other in (0.0, 1e9, float("nan")):
        values = torch.where(observed, y, other)
        guided = ObservationGuidance(denoiser, values, observed, energy, levels, 0.1)
        results.append(get_sampler("dpm++", 8)(guided, torch.ones_like(y))["x"])
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_what_does_not_exist_is_not_observed():
    _, y = window()
    state = State({"x": y}, {"x": torch.arange(12) < 9})
    guided = ObservationGuidance(Curved(System(CHAIN)), state, torch.ones(3, 12, dtype=torch.bool))
    assert not guided.observations.observed["x"][:, 9:].any()


def test_nothing_observed_changes_nothing():
    denoiser, y = window()
    guided = ObservationGuidance(denoiser, y, torch.zeros_like(y, dtype=torch.bool))
    x = torch.randn_like(y)
    assert torch.equal(guided(x, 0.3)["x"], denoiser(x, 0.3)["x"])


def test_path_levels_are_those_of_the_paper_for_every_series():
    # Path i of S has level i / (S + 1).
    assert path_levels(3, 2).tolist() == [0.25, 0.5, 0.75, 0.25, 0.5, 0.75]


def test_the_quantile_energy_is_least_at_its_level():
    # Of many observations the pinball sum is minimised by their quantile: 100 normal numbers.
    y = torch.randn(100, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    system = System(VP())
    values = y.expand(2, 100)
    guided = ObservationGuidance(
        Curved(system),
        values,
        torch.ones(2, 100, dtype=torch.bool),
        "quantile",
        torch.tensor([0.105, 0.805]),
    )
    guesses = [State({"x": guess.expand(2, 100)}) for guess in y]
    best = torch.stack([guided.energy(guess) for guess in guesses]).argmin(0)
    # The 11th and the 81st smallest of 100.
    assert [int((y <= y[i]).sum()) for i in best] == [11, 81]


# --- inside samplers ---------------------------------------------------------------------------
class Mixing(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(12, 12, dtype=torch.float64)

    def forward(self, x, log_snr, condition):
        return State({"x": torch.tanh(self.linear(x["x"]))})


def trained(y, prediction="noise"):
    torch.manual_seed(0)
    denoiser = Denoiser(Mixing(), System(CHAIN), prediction=prediction)
    observed = (torch.arange(12) < 8).expand_as(y)
    return ObservationGuidance(denoiser, y, observed, scale=0.05)


def test_inference_mode_gives_the_same_as_no_grad():
    _, y = window()
    start = torch.randn_like(y)
    guided = trained(y)
    plain = get_sampler("dpm++", 6)(guided, start)["x"]
    with torch.inference_mode():
        assert torch.equal(get_sampler("dpm++", 6)(guided, start.clone())["x"], plain)


def test_data_and_noise_of_a_pair_add_up():
    _, y = window()
    guided, x = trained(y), torch.randn_like(y)
    data, noise = guided.pair(x, 0.4)
    again = data["x"] * CHAIN.alpha(0.4) + noise["x"] * CHAIN.sigma(0.4)
    assert torch.allclose(again, x, atol=1e-12)
    assert torch.allclose(data["x"], guided(x, 0.4)["x"], atol=1e-12)


def test_a_guided_denoiser_can_itself_be_differentiated():
    _, y = window(batch=1)
    guided = trained(y)
    x = torch.randn_like(y).requires_grad_(True)
    assert torch.autograd.gradcheck(lambda at: guided(at, 0.4)["x"], x)


def test_no_gradient_is_left_in_the_network():
    _, y = window()
    guided = trained(y)
    data = guided(torch.randn_like(y), 0.4)["x"]
    assert not data.requires_grad
    assert all(p.grad is None for p in guided.parameters())


def test_objects_may_stand_at_times_of_their_own():
    denoiser, y = window()
    observed = (torch.arange(12) < 8).expand_as(y)
    guided = ObservationGuidance(denoiser, y, observed, scale=published_scale(CHAIN, 2.0))
    x, times = torch.randn_like(y), torch.tensor([0.2, 0.5, 0.9])
    together = guided(x, times)["x"]
    for i in range(3):
        alone = ObservationGuidance(
            denoiser, y[i : i + 1], observed[i : i + 1], scale=published_scale(CHAIN, 2.0)
        )
        assert torch.allclose(together[i], alone(x[i : i + 1], times[i])["x"][0], atol=1e-12)


# --- errors ------------------------------------------------------------------------------------
class Detached(BaseDenoiser):
    def forward(self, x, t, condition=None):
        return x.detach()


def known(y):
    return torch.ones_like(y, dtype=torch.bool)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"energy": "absolute"}, "'squared' or 'quantile'"),
        ({"energy": "quantile"}, "needs levels"),
        ({"levels": torch.full((3,), 0.5)}, "takes none"),
        ({"energy": "quantile", "levels": torch.tensor([0.5, 1.0, 0.2])}, r"in \(0, 1\)"),
        ({"energy": "quantile", "levels": torch.full((2,), 0.5)}, r"per object \(3,\)"),
        ({"observed": torch.ones(3, 12)}, "must be boolean"),
        ({"observed": torch.ones(4, 12, dtype=torch.bool)}, "does not fit"),
        ({"observed": {"a": torch.ones(3, 12, dtype=torch.bool)}}, "'a' is observed"),
        ({"observed": {}}, "nothing to guide by"),
        ({"values": torch.full((3, 12), float("inf"))}, r"not finite .* \(0, 0\)"),
    ],
)
def test_what_does_not_fit_is_named(arguments, message):
    denoiser, y = window()
    with pytest.raises(StructDiffError, match=message):
        ObservationGuidance(denoiser, **{"values": y, "observed": known(y), **arguments})


def test_a_prediction_cut_from_its_input_is_an_error():
    _, y = window()
    guided = ObservationGuidance(Detached(System(CHAIN)), y, known(y))
    with pytest.raises(StructDiffError, match="must be differentiable"):
        guided(State({"x": y}), 0.5)


def test_another_batch_than_the_observed_is_an_error():
    denoiser, y = window()
    guided = ObservationGuidance(denoiser, y, known(y))
    with pytest.raises(StructDiffError, match="batch that was observed"):
        guided(y[:2], 0.5)
