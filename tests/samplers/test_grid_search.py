"""Grids found by search: exact in the small, better than any default on fresh noise."""

import itertools

import pytest
import torch

from structdiff.errors import StructDiffError
from structdiff.processes import EDM, VE, VP, FrozenClock, System
from structdiff.samplers import DDIM, Karras, UniformLogSNR, UniformTime, get_sampler
from structdiff.samplers.grid_search import GridSearch, cheapest_path, search_grid
from structdiff.state import State
from structdiff.testbeds import CorrelatedGaussian, GaussianGraph, GaussianMixture

torch.set_num_threads(1)
PROCESSES = {"vp": VP(), "ve": VE(0.01, 50.0), "edm": EDM()}


def prior(system, count, seed):
    return system.prior(State({"x": torch.zeros(count, 2, dtype=torch.float64)}), seed)


def rms(a, b):
    return float((a - b).square_norm().mean().sqrt())


@pytest.fixture(scope="module", params=PROCESSES)
def searched(request):
    """A search on 256 objects; 512 others, and where the exact flow takes them."""
    denoiser = GaussianMixture.gmm3().denoiser(System(PROCESSES[request.param]))
    search = GridSearch(denoiser, prior(denoiser.system, 256, 0))
    x = prior(denoiser.system, 512, 1)
    return denoiser, search, x, get_sampler("ode", 1, rtol=1e-7, atol=1e-7)(denoiser, x)


@pytest.mark.parametrize("steps", [6, 7, 8, 9, 10])
def test_the_grid_that_is_found_beats_every_default_on_fresh_noise(steps, searched):
    denoiser, search, x, exact = searched
    found = rms(DDIM(steps, search.grid(steps))(denoiser, x), exact)
    for grid in (UniformTime(2), UniformLogSNR(), Karras()):
        assert found < 0.95 * rms(DDIM(steps, grid)(denoiser, x), exact)


@pytest.mark.parametrize("denoise", [True, False])
def test_a_grid_has_the_points_that_its_sampler_asks_for(denoise, searched):
    denoiser, search, _, _ = searched
    grid = search.grid(6, denoise=denoise)
    times = DDIM(6, grid, denoise=denoise).times(denoiser.system)
    assert len(times) == 6 + (not denoise) and set(times) <= set(search.times)


def test_ends_of_a_grid_are_exact(searched):
    denoiser, search, _, _ = searched
    times = search.grid(5).times(denoiser.system, 5)
    assert times[0] == denoiser.system.t_max and times[-1] == denoiser.system.t_min


def test_every_evaluation_is_counted(searched):
    _, search, _, _ = searched
    assert search.nfe == 2 * 60 + 60  # Heun's method, then one DDIM slope per time but the last


@pytest.mark.parametrize("steps", [1, 2, 3, 5, 7])
def test_the_path_is_the_cheapest_of_all(steps):
    costs = torch.rand(8, 8, generator=torch.Generator().manual_seed(steps), dtype=torch.float64)
    # What lies below the diagonal must not tempt.
    costs = costs.triu(1) - 10 * torch.ones_like(costs).tril()

    def price(path):
        return sum(float(costs[i, j]) for i, j in itertools.pairwise(path))

    ways = [(0, *middle, 7) for middle in itertools.combinations(range(1, 7), steps - 1)]
    path = cheapest_path(costs, steps)
    assert tuple(path) == min(ways, key=price)


@pytest.mark.parametrize(
    ("clock", "moving"), [(lambda t: t**2, ("x", "a")), (FrozenClock(), ("x",))]
)
def test_costs_are_the_relative_errors_of_single_steps_of_what_moves(clock, moving):
    system = System({"x": VP(), "a": VE(0.02, 20.0)}, clocks={"a": clock})
    denoiser = CorrelatedGaussian().denoiser(system)
    x = system.prior(CorrelatedGaussian().sample(20, 0), 1)
    search = GridSearch(denoiser, x, teacher_steps=6)
    teacher = get_sampler("heun", 6, grid=UniformLogSNR(), denoise=False)
    states = [x, *teacher.trajectory(denoiser, x)]
    for i, j in ((0, 1), (0, 6), (2, 5), (5, 6)):
        step = DDIM(1, [search.times[i], search.times[j]], denoise=False)
        gap = step(denoiser, states[i]) - states[j]
        shares = [gap[k].square().mean() / states[j][k].square().mean() for k in moving]
        assert float(search.costs[i, j]) == pytest.approx(float(sum(shares).sqrt()), rel=1e-9)
    assert bool(search.costs[torch.ones(7, 7).tril().bool()].isinf().all())


def test_a_flow_without_curvature_costs_nothing():
    # One data point: the flow is a straight line in v over rho, which DDIM follows exactly.
    system = System(VE(0.01, 50.0))
    denoiser = GaussianMixture([1.0], [[1.0, 2.0]], [[[1e-18, 0.0], [0.0, 1e-18]]]).denoiser(system)
    search = GridSearch(denoiser, prior(system, 8, 0), teacher_steps=10)
    assert float(search.costs[torch.ones(11, 11).triu(1).bool()].max()) < 1e-9


def test_padding_does_not_change_the_costs():
    system = System({"x": VP(beta_max=4.0), "adj": VE(0.05, 5.0)}, GaussianGraph.spaces())
    costs = []
    for nodes in (3, 6):
        testbed = GaussianGraph([3, 2, 3], nodes)
        x = system.prior(testbed.like, torch.tensor([1, 2, 3]))
        costs.append(GridSearch(testbed.denoiser(system), x, teacher_steps=8).costs)
    assert torch.allclose(*costs)


def test_the_teacher_and_its_times_can_be_chosen():
    denoiser = GaussianMixture.gmm3().denoiser(System(VP()))
    x = prior(denoiser.system, 8, 0)
    search = GridSearch(denoiser, x, teacher_steps=5, candidates=UniformTime(), teacher=DDIM)
    assert search.times == UniformTime().times(denoiser.system, 6).tolist()
    assert search.nfe == 5 + 5
    # DDIM is its own teacher: its single steps between neighbours are exact.
    assert float(search.costs.diagonal(1).max()) < 1e-12


def test_one_call_is_the_search_and_its_grid():
    denoiser = GaussianMixture.gmm3().denoiser(System(VP()))
    x = prior(denoiser.system, 16, 0)
    one = search_grid(denoiser, x, 4, denoise=False, teacher_steps=12)
    two = GridSearch(denoiser, x, teacher_steps=12).grid(4, denoise=False)
    assert torch.equal(one.times(denoiser.system, 5), two.times(denoiser.system, 5))


def test_a_search_in_single_precision_finds_a_grid():
    denoiser = GaussianMixture.gmm3().denoiser(System(VP()))
    x = prior(denoiser.system, 16, 0).to(torch.float32)
    assert len(search_grid(denoiser, x, 5, teacher_steps=20).times(denoiser.system, 5)) == 5


@pytest.mark.parametrize("steps", [0, 1, 9])
def test_impossible_numbers_of_steps_are_named(steps):
    denoiser = GaussianMixture.gmm3().denoiser(System(VP()))
    search = GridSearch(denoiser, prior(denoiser.system, 4, 0), teacher_steps=7)
    with pytest.raises(StructDiffError, match="between 1 and 7 steps"):
        search.grid(steps)


def test_a_teacher_that_diverges_is_named():
    class Broken(torch.nn.Module):
        system = System(VP())

        def forward(self, x, t, condition=None):
            return x / 0

        noise = forward

    with pytest.raises(StructDiffError, match="not finite"):
        GridSearch(Broken(), prior(Broken.system, 4, 0))


def test_a_teacher_needs_steps():
    denoiser = GaussianMixture.gmm3().denoiser(System(VP()))
    with pytest.raises(StructDiffError, match="at least 2 steps"):
        GridSearch(denoiser, prior(denoiser.system, 4, 0), teacher_steps=1)
