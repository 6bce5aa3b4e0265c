"""What every sampler keeps, over the registry: a sampler that enrols itself is covered."""

import pytest
import torch

from structdiff.noise import PerObjectNoise, ReplayNoise, SeededNoise
from structdiff.processes import VE, VP, FrozenClock, System
from structdiff.samplers import SAMPLERS, get_sampler
from structdiff.state import State
from structdiff.testbeds import CorrelatedGaussian, GaussianGraph

torch.set_num_threads(1)
# Published schemes are variants of enrolled samplers and keep the same promises but one: their
# batch-mean norms couple the batch.
VARIANTS = [(name, {}) for name in SAMPLERS] + [
    ("pc", {"compat": "reference", "norms": "object"}),
    ("pc", {"compat": "reference", "norms": "object", "predictor": "euler-maruyama"}),
    ("pc", {"predictor": "dpm++", "corrections": 2}),
    ("s4", {"compat": "reference", "norms": "object"}),
    ("rddm", {"eta": 1.0}),
    ("pc", {"norms": "object"}),
    ("s4", {"norms": "object"}),
    ("heun", {"churn": 5.0}),
    ("dpm++sde", {"form": "heun"}),
    ("dpm++3m", {"compat": "published"}),
    ("dpm++2s-ancestral", {"eta": 0.5}),
    ("tab3", {"variable": "log-rho"}),
    ("unipc2", {"scale": "bh1"}),
]
IDS = [name + "".join(f" {k}={v}" for k, v in options.items()) for name, options in VARIANTS]
SIZES = [4, 1, 0, 3, 2]
# beta_max 4: the chain of VP allows 8 steps
SYSTEM = System(
    {"x": VP(beta_max=4.0), "adj": VE(sigma_min=0.05, sigma_max=5.0)}, GaussianGraph.spaces()
)
PATHWISE = [
    # One Brownian path and one step size per batch, as registered: nothing is promised per object.
    pair
    for pair in zip(VARIANTS, IDS, strict=True)
    if not (SAMPLERS[pair[0][0]].couples_batch and SAMPLERS[pair[0][0]].stochastic)
]
every_object = pytest.mark.parametrize(
    ("name", "options"), [v for v, _ in PATHWISE], ids=[i for _, i in PATHWISE]
)
with_own_grid = pytest.mark.parametrize(
    ("name", "options"),
    [(n, o) for n, o in VARIANTS if SAMPLERS[n].nfe_per_step is not None],
    ids=[i for (n, _), i in zip(VARIANTS, IDS, strict=True) if SAMPLERS[n].nfe_per_step],
)
every_sampler = pytest.mark.parametrize(("name", "options"), VARIANTS, ids=IDS)


class Counted(torch.nn.Module):
    """A denoiser that counts its own evaluations."""

    def __init__(self, denoiser):
        super().__init__()
        self.inner, self.system, self.calls = denoiser, denoiser.system, 0

    def _count(self, method, *args):
        self.calls += 1
        return method(*args)

    def forward(self, *args):
        return self._count(self.inner, *args)

    def noise(self, *args):
        return self._count(self.inner.noise, *args)

    def score(self, *args):
        return self._count(self.inner.score, *args)

    def velocity(self, *args):
        return self._count(self.inner.velocity, *args)


def graphs(sizes=SIZES, max_nodes=5):
    testbed = GaussianGraph(sizes, max_nodes)
    return testbed.denoiser(SYSTEM), testbed.like


def sampled(name, options, sizes, seeds, max_nodes=5, steps=8):
    denoiser, like = graphs(sizes, max_nodes)
    source = PerObjectNoise(seeds)
    x = SYSTEM.prior(like, source)
    return get_sampler(name, steps, **options)(denoiser, x, source=source)


@every_sampler
def test_masked_entries_are_zero_and_adjacency_symmetric_at_every_step(name, options):
    denoiser, like = graphs()
    x = SYSTEM.prior(like, 0)
    states = list(get_sampler(name, 8, **options).trajectory(denoiser, x, source=0))
    assert len(states) == 8
    for state in states:
        for k, v in state.items():
            assert bool((v[~state.masks[k].expand_as(v)] == 0).all())
        assert torch.equal(state["adj"], state["adj"].transpose(1, 2))
        assert bool((state["adj"].diagonal(dim1=1, dim2=2) == 0).all())
        assert all(bool(v.isfinite().all()) for v in state.values())


@every_sampler
def test_invariants_do_not_rest_on_the_network(name, options):
    # The network's output is neither masked nor symmetric; what leaves the sampler is.
    denoiser, like = graphs()

    class Sloppy(Counted):
        def _count(self, method, *args):
            return method(*args).map(lambda v: v + 0.01 * torch.arange(v.shape[-1]).to(v))

    y = get_sampler(name, 8, **options)(Sloppy(denoiser), SYSTEM.prior(like, 0), source=0)
    assert torch.equal(y["adj"], y["adj"].transpose(1, 2))
    assert all(bool((v[~y.masks[k].expand_as(v)] == 0).all()) for k, v in y.items())


@every_sampler
def test_a_frozen_component_stays_bit_identical(name, options):
    system = SYSTEM.with_clocks({"x": FrozenClock()})
    testbed = GaussianGraph([3, 2, 3])
    given = testbed.sample(0)
    x = system.prior(given, 1)
    assert torch.equal(x["x"], given["x"])
    for state in get_sampler(name, 8, **options).trajectory(testbed.denoiser(system), x, source=2):
        assert torch.equal(state["x"], given["x"])
    assert not torch.equal(state["adj"], x["adj"])


@every_object
def test_an_object_does_not_depend_on_its_batch_mates(name, options):
    alone = sampled(name, options, [3], [7])
    together = sampled(name, options, [4, 3, 2, 1], [3, 7, 9, 11]).take(slice(1, 2))
    # One step size for the batch: within a hundred times the solver's tolerance of 1e-5.
    tolerance = 1e-3 if SAMPLERS[name].couples_batch else 1e-12
    for k in alone:
        n = 3
        a = alone[k][:, :n, :n] if k == "adj" else alone[k][:, :n]
        b = together[k][:, :n, :n] if k == "adj" else together[k][:, :n]
        assert float((a - b).abs().max()) < tolerance


@every_object
def test_an_object_does_not_depend_on_its_padding(name, options):
    a = sampled(name, options, [3, 2], [1, 2], max_nodes=3)
    b = sampled(name, options, [3, 2], [1, 2], max_nodes=6)
    assert float((a["x"] - b["x"][:, :3]).abs().max()) < 1e-10
    assert float((a["adj"] - b["adj"][:, :3, :3]).abs().max()) < 1e-10


@every_sampler
@pytest.mark.parametrize("denoise", [True, False])
def test_evaluations_are_counted_and_as_registered(name, options, denoise):
    denoiser, like = graphs()
    counted = Counted(denoiser)
    sampler = get_sampler(name, 8, denoise=denoise, **options)
    for _ in range(2):  # the count is of the latest run
        counted.calls = 0
        sampler(counted, SYSTEM.prior(like, 0), source=0)
        assert sampler.nfe == counted.calls
    per_step = SAMPLERS[name].nfe_per_step
    if per_step is not None:
        # Section 2 of the card: the published schemes take all N steps, any other predicts the
        # data in place of the last.
        per_step = 1 + options.get("corrections", 1) if name == "pc" else per_step
        published = options.get("compat") == "reference"
        expected = 8 * per_step if published or not denoise else 7 * per_step + 1
        assert sampler.nfe == expected


@every_sampler
def test_the_same_seed_gives_the_same_bits(name, options):
    denoiser, like = graphs()
    x = SYSTEM.prior(like, 0)
    sampler = get_sampler(name, 8, **options)
    a, b = sampler(denoiser, x, source=5), sampler(denoiser, x, source=5)
    assert all(torch.equal(a[k], b[k]) for k in a)


@every_sampler
def test_noise_is_drawn_exactly_when_registered_as_stochastic(name, options):
    denoiser, like = graphs()
    x = SYSTEM.prior(like, 0)
    sampler = get_sampler(name, 8, **options)
    a, b = sampler(denoiser, x, source=5), sampler(denoiser, x, source=6)
    stochastic = SAMPLERS[name].stochastic or {"churn", "eta"} & set(options)
    assert bool(stochastic) != all(torch.equal(a[k], b[k]) for k in a)


class Recorded:
    """A source that keeps what it hands out."""

    def __init__(self, seed):
        self.source, self.draws = SeededNoise(seed), {}

    def normal(self, name, like, interval=None):
        z = self.source.normal(name, like, interval)
        self.draws.setdefault(name, []).append(z)
        return z


@with_own_grid
def test_replayed_draws_reproduce_the_sample(name, options):
    system = System({"x": VP(beta_max=4.0), "a": VE(0.05, 5.0)})
    denoiser = CorrelatedGaussian().denoiser(system)
    x = system.prior(State({"x": torch.zeros(3, 2).double(), "a": torch.zeros(3, 3).double()}), 0)
    recorded = Recorded(3)
    sampler = get_sampler(name, 8, **options)
    a = sampler(denoiser, x, source=recorded)
    b = sampler(denoiser, x, source=ReplayNoise(recorded.draws))
    assert all(torch.equal(a[k], b[k]) for k in a)


@every_sampler
def test_one_step_works(name, options):
    system = System({"x": VP(beta_max=0.9), "adj": VE(0.05, 5.0)}, GaussianGraph.spaces())
    testbed = GaussianGraph([3, 2])
    y = get_sampler(name, 1, **options)(
        testbed.denoiser(system), system.prior(testbed.like, 0), source=0
    )
    assert all(bool(v.isfinite().all()) for v in y.values())


@every_sampler
def test_samples_have_the_mean_of_the_data(name, options):
    # 400 objects from the exact marginal at t_max: the standard error of the mean of x is 0.025
    # (0.6 shared, 0.5 over 2 x 3 entries); first-order schemes are off by 0.01 at 60 steps.
    testbed = GaussianGraph([3] * 400)
    start = SYSTEM.perturb(testbed.sample(0), SYSTEM.t_max, SYSTEM.noise(testbed.like, 1))
    steps = min(60, SAMPLERS[name].most_steps or 60)
    y = get_sampler(name, steps, **options)(testbed.denoiser(SYSTEM), start, source=2)
    pairs = y.masks["adj"]
    assert float(y["x"].mean()) == pytest.approx(0.3, abs=0.1)
    assert float(y["adj"][pairs].mean()) == pytest.approx(0.7, abs=0.1)
