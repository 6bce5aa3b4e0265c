"""EVODiff against the published demo, on systems, and what makes it a few-step heuristic.

The golden samples were computed with the authors' public code (ShiguiLi/EVODiff, commit 1811f9e,
the EDM-CIFAR demo) in float64, with the exact denoiser of the three-Gaussian mixture on EDM noise
levels 0.002 to 80: 10 steps uniform in log-SNR, order 2. Figures: samplers card, section 7.3.
"""

import pytest
import torch

from structdiff.denoisers import BaseDenoiser
from structdiff.errors import StructDiffError
from structdiff.processes import EDM, VE, VP, FrozenClock, System
from structdiff.samplers import UniformLogSNR, UniformTime, get_sampler
from structdiff.samplers.evodiff import EVODiff
from structdiff.state import State
from structdiff.testbeds import CorrelatedGaussian, GaussianGraph, GaussianMixture

torch.set_num_threads(1)
START = 80 * torch.tensor([[0.5, -0.3], [-1.2, 0.8], [0.1, 1.5], [1.7, -0.6]], dtype=torch.float64)
# (channel axis, denoised at the end): inner products over the object, and per coordinate
GOLDEN = {
    (None, False): [
        [0.9144051362641572, -1.013048315632445],
        [-2.445433125504647, 0.34242612812683243],
        [1.3121237262399164, 2.107040880356002],
        [1.497881241299562, -1.4733641708464793],
    ],
    (None, True): [
        [0.9144085599291655, -1.0130581850355191],
        [-2.445423259417722, 0.3424143467964339],
        [1.3121256253274205, 2.107031547668712],
        [1.4978613268481873, -1.4733694371495216],
    ],
    (1, False): [
        [0.9377502044172268, -0.9563772733833911],
        [-2.43735276306664, 0.2985797495413112],
        [1.2190656451429827, 2.0542531436701323],
        [1.5811422576354184, -1.272980090247338],
    ],
    (1, True): [
        [0.9377526943286622, -0.9563877094674946],
        [-2.437343377019926, 0.2985690851362517],
        [1.2190705045840768, 2.0542452476343147],
        [1.5811190129330297, -1.272987360287833],
    ],
}
# 21 steps, over the object: the published branch for more than 20
GOLDEN_21 = [
    [0.8781522964146226, -0.8995078353209236],
    [-2.294033297826675, 0.3181765647651453],
    [1.0626035532280258, 2.0086327354486286],
    [1.5141667824943563, -1.3340284649919383],
]


def rms(a, b):
    return float((a - b).square_norm().mean().sqrt())


def mixture(process):
    return GaussianMixture.gmm3().denoiser(System(process))


@pytest.mark.parametrize(("channel_axis", "denoise"), GOLDEN)
def test_the_trajectory_ends_where_the_published_code_ends(channel_axis, denoise):
    # Predicting the data at the end is a step of ours and no step of the published count.
    sampler = EVODiff(10 + denoise, channel_axis=channel_axis, denoise=denoise)
    y = sampler(mixture(EDM()), START)["x"]
    expected = torch.tensor(GOLDEN[channel_axis, denoise], dtype=torch.float64)
    assert float((y - expected).abs().max()) < 1e-10


def test_the_branch_for_many_steps_is_the_published_one():
    y = EVODiff(21, compat="published", denoise=False)(mixture(EDM()), START)["x"]
    assert float((y - torch.tensor(GOLDEN_21, dtype=torch.float64)).abs().max()) < 1e-10


@pytest.fixture(scope="module", params=["edm", "vp"])
def many(request):
    denoiser = mixture(EDM() if request.param == "edm" else VP())
    x = denoiser.system.prior(State({"x": torch.zeros(512, 2, dtype=torch.float64)}), 0)
    exact = get_sampler("ode", 1, denoise=False, rtol=1e-8, atol=1e-8)(denoiser, x)
    return request.param, denoiser, x, exact


def test_error_at_ten_evaluations_is_the_published_figure(many):
    name, denoiser, x, exact = many
    sampler = EVODiff(10, UniformLogSNR(), denoise=False)
    error = {"edm": 0.19, "vp": 0.23}[name]
    assert rms(sampler(denoiser, x), exact) == pytest.approx(error, abs=0.02)
    assert sampler.nfe == 10


def test_it_does_not_converge():
    denoiser = mixture(VP())
    x = denoiser.system.prior(State({"x": torch.zeros(128, 2, dtype=torch.float64)}), 0)
    exact = get_sampler("ode", 1, denoise=False, rtol=1e-8, atol=1e-8)(denoiser, x)
    few, many = (
        rms(EVODiff(n, compat="published", denoise=False)(denoiser, x), exact) for n in (50, 400)
    )
    assert many > few


def test_the_published_branch_for_many_steps_blows_up(many):
    _, denoiser, x, _ = many
    sampler = EVODiff(50, compat="published", channel_axis=1, denoise=False)
    assert not float(sampler(denoiser, x)["x"].abs().max()) < 1e6


def test_more_than_twenty_steps_are_refused():
    with pytest.raises(StructDiffError, match=r"at most 20 steps, got 21.*unipc"):
        EVODiff(21)


SYSTEM = {"x": VP(), "a": VE(sigma_min=0.01, sigma_max=10.0)}
LIKE = State({"x": torch.zeros(4, 2).double(), "a": torch.zeros(4, 3).double()})


class Recorded(BaseDenoiser):
    """A denoiser that keeps its latest prediction."""

    def __init__(self, inner):
        super().__init__(inner.system)
        self.inner = inner

    def forward(self, x, t, condition=None):
        self.latest = self.inner(x, t, condition)
        return self.latest


def test_a_component_that_waits_starts_anew_with_a_ddim_step():
    # x moves on the first half of the shared time, a on the second; x ends in the sixth step.
    clocks = {"x": lambda t: (2 * t - 1).clamp(min=1e-3), "a": lambda t: (2 * t).clamp(max=1.0)}
    system = System(SYSTEM, clocks=clocks)
    denoiser = Recorded(CorrelatedGaussian().denoiser(system))
    x = system.prior(LIKE, 0)
    sampler = EVODiff(10, UniformTime(), denoise=False)
    states = []
    for state in sampler.trajectory(denoiser, x):
        states.append(state)
        if len(states) == 6:
            data = denoiser.latest["a"]
    assert all(s["a"] is x["a"] for s in states[:5])
    assert all(s["x"] is states[5]["x"] for s in states[6:])
    t, u = sampler.times(system)[5:7]
    ratio = system.sigma(u)["a"] / system.sigma(t)["a"]
    ddim = ratio * (x["a"] - system.alpha(t)["a"] * data) + system.alpha(u)["a"] * data
    assert float((states[5]["a"] - ddim).abs().max()) < 1e-12
    assert sampler.nfe <= 10


def test_a_component_that_rests_on_its_way_starts_anew():
    def rests(t):
        return torch.where(t > 2 / 3, 1.5 * t - 0.5, torch.where(t > 1 / 3, 0.5, 1.5 * t))

    system = System(SYSTEM, clocks={"a": rests})
    denoiser = Recorded(CorrelatedGaussian().denoiser(system))
    grid = torch.linspace(1, 0.01, 13, dtype=torch.float64)
    states, outputs = [system.prior(LIKE, 0)], []
    for state in EVODiff(12, grid, denoise=False).trajectory(denoiser, states[0]):
        states.append(state)
        outputs.append(denoiser.latest["a"])
    still = [i for i in range(12) if states[i + 1]["a"] is states[i]["a"]]
    assert len(still) >= 3
    i = still[-1] + 1
    t, u = grid[i], grid[i + 1]
    ratio = system.sigma(u)["a"] / system.sigma(t)["a"]
    # The prediction at the probe of the step before, the last time that a stood still.
    data = outputs[i - 1]
    ddim = ratio * (states[i]["a"] - system.alpha(t)["a"] * data) + system.alpha(u)["a"] * data
    assert float((states[i + 1]["a"] - ddim).abs().max()) < 1e-12


def test_every_component_is_balanced_by_its_own_projections():
    # Without correlation between the components the joint run is the two runs side by side.
    mean, spread = torch.tensor([0.4, -1.0]), torch.diag(torch.tensor([0.3, 0.5]))
    joint = GaussianMixture([1.0], mean[None], spread[None], {"x": 1, "a": 1})
    start = System(SYSTEM).prior(LIKE.map(lambda v: v[:, :1]), 3)
    together = EVODiff(8, UniformTime())(joint.denoiser(System(SYSTEM)), start)
    for k, name in enumerate(SYSTEM):
        one = GaussianMixture([1.0], mean[None, k : k + 1], spread[None, k : k + 1, k : k + 1])
        system = System({"x": SYSTEM[name]})
        # Both components stop at the later of their t_min.
        grid = UniformTime().times(System(SYSTEM), 8)
        alone = EVODiff(8, grid)(one.denoiser(system), State({"x": start[name]}))
        assert float((together[name] - alone["x"]).abs().max()) < 1e-10


def test_objects_without_entries_stay_zero():
    system = System({"x": VP(), "adj": VE(0.05, 5.0)}, GaussianGraph.spaces())
    testbed = GaussianGraph([3, 0, 1])
    start = system.prior(testbed.like, 0)
    for y in EVODiff(10).trajectory(testbed.denoiser(system), start):
        assert all(bool(v.isfinite().all()) for v in y.values())
        assert float(y["x"][1].abs().max()) == float(y["adj"][1:].abs().max()) == 0.0


def test_a_frozen_component_takes_no_part():
    system = System(SYSTEM, clocks={"a": FrozenClock()})
    denoiser = CorrelatedGaussian().denoiser(system)
    x = system.prior(LIKE.replace(a=torch.randn(4, 3).double()), 0)
    assert torch.equal(EVODiff(6)(denoiser, x)["a"], x["a"])


def test_the_step_to_no_noise_returns_a_prediction_of_the_data():
    # At sigma = 0 DDIM, the only defined step, is the latest prediction itself.
    denoiser = Recorded(mixture(EDM()))
    sampler = EVODiff(4, [1.0, 0.1, 0.01, 0.001, 0.0], denoise=False)
    y = sampler(denoiser, START)["x"]
    assert float((y - denoiser.latest["x"]).abs().max()) < 1e-12


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channel_axis": 0}, "channel_axis 0 is no axis behind the batch of component 'x'"),
        ({"channel_axis": 2}, r"channel_axis 2 .* shape is \(4, 2\)"),
        ({"channel_axis": -2}, "no axis behind the batch"),
        ({"channel_axis": {"y": 1}}, r"channel_axis for \['y'\]"),
    ],
)
def test_an_axis_that_does_not_exist_is_named(options, message):
    with pytest.raises(StructDiffError, match=message):
        EVODiff(4, **options)(mixture(EDM()), START)


def test_an_unknown_compat_is_named():
    with pytest.raises(StructDiffError, match="compat must be None or 'published'"):
        EVODiff(4, compat="reference")
