"""Denoising Langevin-Gibbs: the chain's law, its samples, its cost (samplers' card, 2.10, 7.5)."""

import math
from itertools import islice

import ot
import pytest
import torch

from structdiff.errors import StructDiffError
from structdiff.noise import PerObjectNoise
from structdiff.processes import VE, VP, FrozenClock, System
from structdiff.samplers.base import Run
from structdiff.samplers.denoising_mcmc import (
    DenoisingLangevinGibbs,
    draw_levels,
    effective_sample_size,
)
from structdiff.samplers.grids import FixedTimes, Karras
from structdiff.samplers.heun import Heun
from structdiff.samplers.noise_levels import ExactNoisePosterior, Place, ScoreNoisePosterior
from structdiff.state import State
from structdiff.testbeds import CorrelatedGaussian, GaussianMixture

torch.set_num_threads(1)


def from_the_joint(testbed, system, times, count):
    """Draws of (v, level) from the exact law of the chain: every level equally likely."""
    generator = torch.Generator().manual_seed(2)
    level = torch.randint(len(times), (count,), generator=generator)
    x0 = testbed.sample(count, 0)
    place = Place(system, times[level])
    noisy = system.perturb(x0, place.own, system.noise(x0, 1))
    return place.unscaled(noisy.replace(**{k: x0[k] for k in x0 if system.frozen(k)})), level


def standardised(testbed, system, v, level, times):
    """Coordinates that are N(0, 1) under p(v | level) of one Gaussian, (B, D)."""
    rho = Place(system, times).rho
    spread = torch.cat(
        [
            rho[k][level][:, None].expand(-1, width)
            if k in rho
            else torch.zeros(len(level), width, dtype=torch.float64)
            for k, width in testbed.components.items()
        ],
        dim=1,
    )
    factor = torch.linalg.cholesky(testbed.covariance() + torch.diag_embed(spread**2))
    gap = testbed.join(v) - testbed.mean()
    return torch.linalg.solve_triangular(factor, gap[..., None], upper=False)[..., 0]


CHAINS, LEVELS = 3000, 25
COUPLED = CorrelatedGaussian(covariance=0.6 * torch.eye(5).double() + 0.4)
PAIR = {"x": VP(), "a": VE(0.01, 20.0)}
STATIONARY = {
    # The Langevin step widens a variance V by the share eta / (4 V), here 1.1 % at most: less than
    # half a standard error.
    "one component, VE": (
        GaussianMixture([1.0], [[1.0, -2.0]], [[[4.0, 1.0], [1.0, 3.0]]]),
        System(VE(0.1, 20.0)),
        0.1,
    ),
    "two components, VP and VE": (COUPLED, System(PAIR), {"x": 0.02, "a": 0.01}),
    "conditioned on one of two": (
        COUPLED,
        System(PAIR, clocks={"a": FrozenClock()}),
        0.02,
    ),
}


@pytest.fixture(scope="module", params=STATIONARY)
def stationary(request):
    """The chain's state after some steps from its exact law: standardised v, and levels."""
    testbed, system, eta = STATIONARY[request.param]
    posterior = ExactNoisePosterior(testbed.denoiser(system), LEVELS)
    v, level = from_the_joint(testbed, system, posterior.times, CHAINS)
    sampler = DenoisingLangevinGibbs(2, posterior=posterior, eta=eta)
    chain = sampler.joint_chain(testbed.denoiser(system), v, level, source=3)
    *_, (v, level) = islice(chain, 60)
    return standardised(testbed, system, v, level, posterior.times), level


def test_mean_of_the_state_is_stationary(stationary):
    u, _ = stationary
    assert float(u.mean(0).abs().max()) < 3 / math.sqrt(CHAINS)


def test_variance_of_the_state_is_stationary(stationary):
    u, _ = stationary
    assert float((u.var(0) - 1).abs().max()) < 3 * math.sqrt(2 / CHAINS)


def test_mean_of_the_log_noise_is_stationary(stationary):
    _, level = stationary
    error = math.sqrt((LEVELS**2 - 1) / 12 / CHAINS)
    assert float(level.double().mean()) == pytest.approx((LEVELS - 1) / 2, abs=3 * error)


def test_variance_of_the_log_noise_is_stationary(stationary):
    _, level = stationary
    variance = (LEVELS**2 - 1) / 12
    error = variance * math.sqrt(0.8 / CHAINS)  # of a uniform law: kurtosis 9/5
    assert float(level.double().var()) == pytest.approx(variance, abs=3 * error)


class Quiet:
    """A source of zeros: what is left of a step is its drift."""

    def normal(self, name, like, interval=None):
        return torch.zeros_like(like)


def test_langevin_drift_is_half_the_step_times_the_score_of_the_unscaled_state():
    # v | l ~ N(m, s^2 + rho_l^2) whatever the process.
    testbed, system = GaussianMixture([1.0], [[0.7]], [[[0.25]]]), System(VP())
    posterior = ExactNoisePosterior(testbed.denoiser(system), 30)
    level = torch.arange(30)
    v = State({"x": torch.linspace(-2, 2, 30).double()[:, None]})
    sampler = DenoisingLangevinGibbs(2, posterior=posterior, eta=0.3)
    moved, _ = next(sampler.joint_chain(testbed.denoiser(system), v, level, source=Quiet()))
    variance = 0.25 + Place(system, posterior.times).rho["x"][:, None] ** 2
    assert torch.allclose(moved["x"], v["x"] - 0.15 * (v["x"] - 0.7) / variance, atol=1e-12)


def test_levels_are_drawn_from_their_probabilities():
    system = System(VE())
    run = Run(GaussianMixture.gmm3().denoiser(system), None, 0)
    p = torch.tensor([0.5, 0.0, 0.2, 0.3])
    drawn = draw_levels(p.log().expand(20_000, -1), run).bincount(minlength=4) / 20_000
    assert drawn[1] == 0 and float((drawn - p).abs().max()) < 3 * 0.5 / math.sqrt(20_000)


def test_published_variant_takes_the_likeliest_level():
    testbed, system = GaussianMixture.gmm3(), System(VE())
    posterior = ExactNoisePosterior(testbed.denoiser(system), 20)
    v, level = from_the_joint(testbed, system, posterior.times, 50)
    sampler = DenoisingLangevinGibbs(2, posterior=posterior, compat="published")
    v, level = next(sampler.joint_chain(testbed.denoiser(system), v, level, source=0))
    assert torch.equal(level, posterior.log_probabilities(v).argmax(1))


@pytest.fixture(scope="module")
def mixture():
    """Table 7.5: three Gaussians, VE 0.01..50; a sliced W2 to 2000 fresh samples."""
    testbed, system = GaussianMixture.gmm3(), System(VE(0.01, 50.0))
    denoiser = testbed.denoiser(system)
    x = system.prior(State({"x": torch.zeros(2000, 2, dtype=torch.float64)}), 0)
    fresh = testbed.sample(2000, 9)["x"].numpy()

    def sliced(y):
        return ot.sliced_wasserstein_distance(y["x"].numpy(), fresh, n_projections=100, seed=0)

    return denoiser, x, sliced


# Table 7.5, KAR1 from sigma 50; 2000 instead of 4000 samples, other directions.
@pytest.mark.parametrize(("steps", "figure"), [(2, 23.6), (3, 4.1), (5, 0.84)])
def test_integrator_alone_has_the_published_figure(steps, figure, mixture):
    denoiser, x, sliced = mixture
    sampler = Heun(steps)
    assert sliced(sampler(denoiser, x)) == pytest.approx(figure, rel=0.05)
    assert sampler.nfe == 2 * steps - 1


def test_three_evaluations_suffice_where_the_chain_lives(mixture):
    # Table 7.5: 0.13 at eta 0.1 (0.25 asked for), floor 0.06 to 0.11; 23.6 without the chain.
    denoiser, x, sliced = mixture
    posterior = ExactNoisePosterior(denoiser, 100)
    sampler = DenoisingLangevinGibbs(2, posterior=posterior, eta=0.1)
    assert sliced(sampler(denoiser, x, source=1)) <= 0.25


def test_default_posterior_samples_as_well_as_the_exact_one(mixture):
    denoiser, x, sliced = mixture
    assert sliced(DenoisingLangevinGibbs(2, eta=0.1)(denoiser, x, source=1)) <= 0.25


def test_a_larger_step_lives_at_more_noise(mixture):
    # Table 7.5: median sigma .22 / 1.1 / 4.2 at eta .1 / .5 / 2.
    denoiser, _, _ = mixture
    posterior = ExactNoisePosterior(denoiser, 60)
    rho = Place(denoiser.system, posterior.times).rho["x"]
    v, _ = from_the_joint(GaussianMixture.gmm3(), denoiser.system, posterior.times[-1:], 500)
    level = torch.full((500,), 59)
    medians = []
    for eta in (0.1, 0.5, 2.0):
        sampler = DenoisingLangevinGibbs(2, posterior=posterior, eta=eta)
        *_, (_, at) = islice(sampler.joint_chain(denoiser, v, level, source=0), 20)
        medians.append(float(rho[at].median()))
    assert medians[0] < medians[1] < medians[2]


class Watched(torch.nn.Module):
    """A denoiser that keeps the times at which it is asked for noise."""

    def __init__(self, denoiser):
        super().__init__()
        self.inner, self.system, self.times = denoiser, denoiser.system, []

    def forward(self, *args):
        return self.inner(*args)

    def score(self, *args):
        return self.inner.score(*args)

    def noise(self, x, t, condition=None):
        self.times.append(t["x"] if isinstance(t, dict) else torch.tensor(t).expand(x.batch_size))
        return self.inner.noise(x, t, condition)


def test_integrator_of_a_chain_is_heun_from_its_own_level(mixture):
    # A chain denoised alone by Heun's sampler, on the grid that begins at the chain's own time.
    denoiser, x, _ = mixture
    watched = Watched(denoiser)
    sampler = DenoisingLangevinGibbs(
        4, posterior=ExactNoisePosterior(denoiser, 30), eta=2.0, skip=1, denoise=False
    )
    first, *_, last = sampler.trajectory(watched, x.take(slice(0, 6)), source=0)
    # Two evaluations a step: where it starts and where it ends.
    times = torch.stack(watched.times[-8::2] + watched.times[-1:])  # (points, B)
    assert len(times[0].unique()) > 1
    for b in range(6):
        alone = Heun(3, FixedTimes(times[1:, b]), denoise=False)
        y = alone(denoiser, first.take(slice(b, b + 1)))
        assert torch.allclose(y["x"][0], last["x"][b], atol=1e-9)
        roots = (Place(denoiser.system, times[:, b]).rho["x"] ** (1 / 7)).diff()
        assert torch.allclose(roots, roots.mean().expand(4), atol=1e-9)
        assert times[-1, b] == denoiser.system.t_min


class Spied(ExactNoisePosterior):
    """Keeps the states it is asked about and their likeliest levels."""

    def log_probabilities(self, v, condition=None):
        result = super().log_probabilities(v, condition)
        self.seen = [*getattr(self, "seen", []), (v["x"], result.argmax(1))]
        return result


def test_the_visited_state_of_least_noise_is_denoised(mixture):
    denoiser, x, _ = mixture
    spied, watched = Spied(denoiser, 30), Watched(denoiser)
    sampler = DenoisingLangevinGibbs(
        1, posterior=spied, eta=0.5, skip=6, burn_in=3, order=1, compat="published", denoise=False
    )
    y = sampler(watched, x.take(slice(0, 20)), source=0)
    visited = [state for state, _ in spied.seen[-6:]]
    levels = torch.stack([level for _, level in spied.seen[-6:]])
    best = levels.argmax(0)
    assert len(best.unique()) > 1
    assert torch.equal(watched.times[-1], spied.times[levels.max(0).values])
    start = State({"x": torch.stack([visited[i][b] for b, i in enumerate(best.tolist())])})
    here, end = Place(denoiser.system, watched.times[-1]), denoiser.system.t_min
    slope = denoiser.noise(start, here.own)["x"]
    width = Place(denoiser.system, torch.tensor(end)).rho["x"] - here.rho["x"]
    assert torch.allclose(y["x"], start["x"] + width[:, None] * slope, atol=1e-12)


def test_a_step_at_the_prior_level_is_the_plain_sampler(mixture):
    # All chains at the noisiest level: the integrator's grid is the Karras grid of any sampler.
    denoiser, x, _ = mixture
    sampler, run = DenoisingLangevinGibbs(5), Run(denoiser, None, 0)
    start = torch.full((2000,), denoiser.system.t_max, dtype=torch.float64)
    *_, (_, y) = sampler._integrate(run, x, start)
    assert torch.allclose(y["x"], Heun(5, Karras())(denoiser, x)["x"], atol=1e-8)


@pytest.mark.parametrize(("order", "nfe"), [(1, 3), (2, 5)])
@pytest.mark.parametrize("nodes", [None, 16])
def test_every_evaluation_is_counted(order, nfe, nodes, mixture):
    denoiser, x, _ = mixture
    posterior = None if nodes else ExactNoisePosterior(denoiser, 20)
    sampler = DenoisingLangevinGibbs(
        3, posterior=posterior, skip=4, burn_in=2, start_steps=5, order=order
    )
    sampler(denoiser, x.take(slice(0, 2)), source=0)
    assert sampler.nfe == 9 + 6 * (1 + (nodes or 0)) + nfe


def test_a_further_sample_of_a_chain_costs_skip_and_the_integrator(mixture):
    denoiser, x, _ = mixture
    sampler = DenoisingLangevinGibbs(2, posterior=ExactNoisePosterior(denoiser, 20), skip=7)
    costs = []
    for _ in sampler.sample_chain(denoiser, x.take(slice(0, 2)), 3, source=0):
        costs.append(sampler.nfe)
    assert costs[1] - costs[0] == costs[2] - costs[1] == 7 + 3


def test_first_sample_of_a_chain_is_what_a_call_returns(mixture):
    denoiser, x, _ = mixture
    sampler = DenoisingLangevinGibbs(2, posterior=ExactNoisePosterior(denoiser, 20))
    few = x.take(slice(0, 5))
    first = next(sampler.sample_chain(denoiser, few, 1, source=4))
    assert torch.equal(first["x"], sampler(denoiser, few, source=4)["x"])


def test_samples_along_a_chain_persist(mixture):
    # Successive samples of one chain are correlated; those of two chains are not.
    denoiser, x, _ = mixture
    sampler = DenoisingLangevinGibbs(2, posterior=ExactNoisePosterior(denoiser, 40), skip=2)
    a, b = sampler.sample_chain(denoiser, x.take(slice(0, 400)), 2, source=0)
    both = torch.stack([a["x"][:, 0], b["x"][:, 0]])
    assert float(torch.corrcoef(both)[0, 1]) > 0.5
    assert abs(float(torch.corrcoef(torch.stack([both[0], both[1].roll(1)]))[0, 1])) < 0.2


def test_chains_do_not_depend_on_their_batch_mates(mixture):
    denoiser, x, _ = mixture
    posterior = ExactNoisePosterior(denoiser, 40)
    results = []
    for index in ([0, 1, 2, 3], [2]):
        sampler = DenoisingLangevinGibbs(2, posterior=posterior, skip=3, burn_in=3)
        samples = sampler.sample_chain(
            denoiser, x.take(index), 2, source=PerObjectNoise(torch.tensor(index))
        )
        results.append(list(samples)[-1]["x"])
    assert torch.allclose(results[0][2], results[1][0], atol=1e-12)


def test_chains_run_in_single_precision(mixture):
    denoiser, x, _ = mixture
    y = DenoisingLangevinGibbs(2)(denoiser, x.take(slice(0, 8)).to(torch.float32), source=0)
    assert y["x"].dtype == torch.float32 and bool(y["x"].isfinite().all())


def test_effective_sample_size_of_an_autoregression():
    # x_t = phi x_{t-1} + noise: ESS / T -> (1 - phi) / (1 + phi).
    generator = torch.Generator().manual_seed(0)
    phi, length = 0.8, 400
    x, values = torch.randn(500, generator=generator), []
    for _ in range(length):
        x = phi * x + math.sqrt(1 - phi**2) * torch.randn(500, generator=generator)
        values.append(x)
    size = float(effective_sample_size(torch.stack(values)))
    assert size == pytest.approx(length * (1 - phi) / (1 + phi), rel=0.05)


def test_effective_sample_size_of_independent_samples_is_their_number():
    chain = torch.randn(200, 1000, generator=torch.Generator().manual_seed(0))
    assert float(effective_sample_size(chain)) == pytest.approx(200, rel=0.05)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"grid": FixedTimes([1.0, 0.5])}, "Karras"),
        ({"eta": 0.0}, "eta"),
        ({"eta": {"x": -1.0}}, "eta"),
        ({"start_noise": 0.0}, "start_noise"),
        ({"skip": 0}, "skip"),
        ({"burn_in": -1}, "burn_in"),
        ({"order": 3}, "order"),
        ({"compat": "reference"}, "compat"),
        ({"posterior": object()}, "no noise posterior"),
    ],
)
def test_bad_arguments_are_named(options, message):
    with pytest.raises(StructDiffError, match=message):
        DenoisingLangevinGibbs(2, **options)


def test_a_posterior_of_another_system_is_refused(mixture):
    denoiser, x, _ = mixture
    other = System(VE(0.01, 50.0, t_min=0.0))
    posterior = ScoreNoisePosterior(GaussianMixture.gmm3().denoiser(other), 50)
    with pytest.raises(StructDiffError, match="levels of this system"):
        DenoisingLangevinGibbs(2, posterior=posterior)(denoiser, x)


def test_an_eta_is_needed_for_every_moving_component():
    system = System({"x": VP(), "a": VE()})
    denoiser = CorrelatedGaussian().denoiser(system)
    like = State({"x": torch.zeros(2, 2).double(), "a": torch.zeros(2, 3).double()})
    with pytest.raises(StructDiffError, match="'a'"):
        DenoisingLangevinGibbs(2, eta={"x": 0.1})(denoiser, system.prior(like, 0))


def test_the_number_of_samples_must_be_positive(mixture):
    denoiser, x, _ = mixture
    with pytest.raises(StructDiffError, match="samples"):
        next(DenoisingLangevinGibbs(2).sample_chain(denoiser, x, 0))
