"""Couplings: what they pair, what they keep, and that they do what they are for.

Numbers: processes card, sections 2.4 (the bridge between Gaussians) and 2.5 (straight paths).
"""

import functools
import itertools

import pytest
import torch

from structdiff.denoisers import Denoiser
from structdiff.errors import StructDiffError
from structdiff.noise import SeededNoise
from structdiff.objectives.couplings import Independent, MinibatchOT, Sinkhorn
from structdiff.objectives.interpolant import FlowMatching
from structdiff.processes import VP, FrozenClock, RectifiedFlow, System
from structdiff.samplers import get_sampler
from structdiff.spaces import Symmetric
from structdiff.state import State
from structdiff.testbeds import GaussianGraph, GaussianMixture
from structdiff.testbeds.interpolant import bridge_covariance

torch.set_num_threads(1)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def batch(n=6, d=2):
    return State({"x": normal(n, d)}), State({"x": normal(n, d, seed=1)})


def cost(x0, noise):
    return float((x0 - noise).square_norm().sum())


def test_independent_hands_the_noise_back():
    x0, noise = batch()
    assert Independent()(x0, noise, SeededNoise(0)) is noise


def test_optimal_transport_is_the_cheapest_of_all_pairings():
    x0, noise = batch(6)
    best = min(cost(x0, noise.take(torch.tensor(p))) for p in itertools.permutations(range(6)))
    assert cost(x0, MinibatchOT()(x0, noise, SeededNoise(0))) == pytest.approx(best, rel=1e-12)


def test_optimal_transport_is_that_of_pot():
    import ot

    x0, noise = batch(50)
    plan = ot.emd([], [], MinibatchOT().cost(x0, noise).numpy())
    expected = noise["x"][torch.from_numpy(plan.argmax(1))]
    assert torch.equal(MinibatchOT()(x0, noise, SeededNoise(0))["x"], expected)


def test_optimal_transport_uses_every_noise_once():
    x0, noise = batch(40)
    paired = MinibatchOT()(x0, noise, SeededNoise(0))["x"]
    assert torch.equal(paired.sort(0).values, noise["x"].sort(0).values)


def test_in_one_dimension_optimal_transport_keeps_the_order():
    x0, noise = batch(40, 1)
    paired = MinibatchOT()(x0, noise, SeededNoise(0))["x"][:, 0]
    assert torch.equal(paired[x0["x"][:, 0].argsort()], paired.sort().values)


def test_the_components_of_an_object_stay_together():
    x0 = State({"x": normal(20, 2), "a": normal(20, 3, seed=2)})
    noise = State({"x": normal(20, 2, seed=1), "a": normal(20, 3, seed=3)})
    paired = MinibatchOT()(x0, noise, SeededNoise(0))
    where = [int((noise["x"] == row).all(1).nonzero()[0, 0]) for row in paired["x"]]
    assert torch.equal(paired["a"], noise["a"][where]) and where != list(range(20))


def graphs(sizes):
    testbed = GaussianGraph(sizes, 4)
    system = System({"x": VP(), "adj": VP()}, GaussianGraph.spaces())
    return system, testbed.sample(0), system.noise(testbed.like, 1)


@pytest.mark.parametrize("coupling", [MinibatchOT, lambda s: Sinkhorn(1.0, s)])
def test_objects_are_paired_with_noise_of_their_own_size(coupling):
    system, x0, noise = graphs([4, 2, 3, 2, 4, 2, 3, 4, 4, 2])
    paired = coupling(system)(x0, noise, SeededNoise(0))
    for k, mask in x0.masks.items():
        # A draw is nonzero exactly where something exists.
        assert torch.equal(paired[k] != 0, mask.expand_as(paired[k]))
    assert torch.equal(paired["adj"], paired["adj"].transpose(1, 2))
    assert not torch.equal(paired["x"], noise["x"])


def test_the_cost_counts_a_pair_of_nodes_once():
    x0 = State({"adj": Symmetric().project(normal(5, 3, 3))})
    noise = State({"adj": Symmetric().project(normal(5, 3, 3, seed=1))})
    free = MinibatchOT(System({"adj": VP()}, {"adj": Symmetric()})).cost(x0, noise)
    assert torch.allclose(2 * free, MinibatchOT().cost(x0, noise))


def test_a_component_that_is_conditioned_on_takes_no_part():
    system = System({"x": VP(), "y": VP()}, clocks={"y": FrozenClock()})
    x0 = State({"x": normal(9, 2), "y": 100 * normal(9, 2, seed=4)})
    noise = State({"x": normal(9, 2, seed=1), "y": normal(9, 2, seed=3)})
    paired = MinibatchOT(system)(x0, noise, SeededNoise(0))
    alone = MinibatchOT()(State({"x": x0["x"]}), State({"x": noise["x"]}), SeededNoise(0))
    assert torch.equal(paired["x"], alone["x"]) and torch.equal(paired["y"], noise["y"])


def test_the_entropic_plan_has_uniform_marginals():
    x0, noise = batch(30)
    plan = Sinkhorn(0.5, tolerance=1e-9, iterations=20_000).plan(x0, noise)
    assert torch.allclose(plan.sum(0), torch.full((30,), 1 / 30).double(), atol=1e-8)
    assert torch.allclose(plan.sum(1), torch.full((30,), 1 / 30).double(), atol=1e-8)


@pytest.mark.parametrize("reg", [0.05, 2.0])
def test_the_entropic_plan_is_a_gibbs_kernel_scaled_from_both_sides(reg):
    # ln plan + cost/reg is a sum of a row and a column term; reg 0.05 takes the log domain.
    x0, noise = batch(20)
    coupling = Sinkhorn(reg)
    rest = coupling.plan(x0, noise).log() + coupling.cost(x0, noise) / reg
    rest = rest - rest.mean(0) - rest.mean(1, keepdim=True) + rest.mean()
    assert float(rest.abs().max()) < 1e-9


@pytest.mark.parametrize("epsilon", [0.05, 0.2, 1.0])
def test_sinkhorn_of_four_epsilon_is_the_plan_of_the_bridge(epsilon):
    # Card 2.4: covariance sqrt(s0^2 s1^2 + e^2) - e between N(2, 1/4) and N(0, 1). Quantiles
    # instead of draws, so that only the grid's 1500 points are left as an error.
    quantiles = torch.special.ndtri((torch.arange(1500).double() + 0.5) / 1500)[:, None]
    x0, x1 = 2 + 0.5 * quantiles, quantiles
    plan = Sinkhorn(4 * epsilon, tolerance=1e-7).plan(State({"x": x0}), State({"x": x1}))
    covariance = float(((x0 - 2) * plan * x1.T).sum())
    assert covariance == pytest.approx(bridge_covariance(0.5, 1.0, epsilon), abs=3e-3)


def test_sinkhorn_draws_pairs_from_its_plan():
    # 2000 pairs of N(2, 1/4) and N(0, 1) drawn as in training: covariance .338516, standard error
    # of a sample covariance 0.013.
    x0, x1 = State({"x": 2 + 0.5 * normal(2000, 1)}), State({"x": normal(2000, 1, seed=1)})
    paired = Sinkhorn(0.8)(x0, x1, SeededNoise(2))["x"]
    covariance = float(torch.cat((x0["x"], paired), 1).T.cov()[0, 1])
    assert covariance == pytest.approx(0.338516, abs=0.04)
    assert float(paired.mean()) == pytest.approx(0.0, abs=0.1)
    assert float(paired.std()) == pytest.approx(1.0, abs=0.1)


def test_strong_regularisation_pairs_at_random():
    x0, noise = batch(30)
    plan = Sinkhorn(1e6).plan(x0, noise)
    assert torch.allclose(plan, torch.full((30, 30), 1 / 900).double(), rtol=1e-4)


def test_the_same_seed_draws_the_same_pairs():
    x0, noise = batch(30)
    a, b = (Sinkhorn(0.5)(x0, noise, SeededNoise(3))["x"] for _ in range(2))
    assert torch.equal(a, b)


def test_a_regularisation_of_zero_is_refused():
    with pytest.raises(StructDiffError, match="MinibatchOT"):
        Sinkhorn(0.0)


def test_a_missing_library_is_named_with_its_extra(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "ot", None)
    with pytest.raises(StructDiffError, match=r"structdiff\[ot\]"):
        Sinkhorn(1.0)(*batch(), SeededNoise(0))


# --- what it is for ------------------------------------------------------------------------------
class Velocity(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = torch.nn.Sequential(
            *(torch.nn.Linear(3, 64), torch.nn.SiLU()),
            *(torch.nn.Linear(64, 64), torch.nn.SiLU(), torch.nn.Linear(64, 2)),
        )

    def forward(self, x, log_snr, condition):
        t = torch.sigmoid(-log_snr["x"])[:, None]
        return x.map(lambda v: self.layers(torch.cat((v, t), 1)))


@functools.cache
def trained(coupling):
    """A small flow after 400 training steps, and the way of 4000 prior draws in n Euler steps."""
    torch.manual_seed(0)
    denoiser = Denoiser(Velocity(), System(RectifiedFlow()), "velocity")
    objective, source = FlowMatching(coupling=coupling), SeededNoise(0)
    optimizer = torch.optim.Adam(denoiser.parameters(), lr=5e-3)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 400)
    data = GaussianMixture.gmm3().sample(400 * 128, source).to(torch.float32)
    for x0 in (data.take(slice(i, i + 128)) for i in range(0, 400 * 128, 128)):
        optimizer.zero_grad()
        objective(denoiser, x0, source=source).mean().backward()
        optimizer.step()
        decay.step()
    start = denoiser.system.prior(State({"x": torch.zeros(4000, 2)}), 1)
    ways = {}
    for n in (1, 2, 5, 50):
        sampler = get_sampler("flow", n, method="euler", denoise=False)
        ways[n] = list(sampler.trajectory(denoiser, start))
    return start, ways


INDEPENDENT, OPTIMAL = Independent(), MinibatchOT()


# Card 2.5 at full size: 1.43/.59/.23 against .129/.107/.094 (benchmarks/results/couplings.md has
# ours). At this size, three samples of the truth: 1.16/.63/.28 against .28/.22/.18.
@pytest.mark.parametrize(("steps", "share"), [(1, 0.3), (2, 0.4), (5, 0.75)])
def test_optimal_transport_wins_at_one_to_five_steps(steps, share):
    import ot

    truth = GaussianMixture.gmm3().sample(20_000, 7)["x"].numpy()
    independent, optimal = (
        ot.sliced_wasserstein_distance(
            trained(c)[1][steps][-1]["x"].double().numpy(), truth, n_projections=64, seed=0
        )
        for c in (INDEPENDENT, OPTIMAL)
    )
    assert optimal < share * independent


def test_optimal_transport_straightens_the_paths():
    # Energy of the paths over that of straight ones, less 1: 1.02 against .004 (card 2.5).
    def excess(coupling):
        start, runs = trained(coupling)
        states = [start, *runs[50]]
        energy = 50 * sum((b - a).square_norm() for a, b in itertools.pairwise(states))
        return float(energy.mean() / (states[-1] - start).square_norm().mean()) - 1

    assert excess(OPTIMAL) < 0.05 < 0.5 < excess(INDEPENDENT)
