"""Posteriors of the noise level against exact densities."""

import pytest
import torch
from torch import nn

from structdiff.errors import StructDiffError
from structdiff.processes import VE, VP, FrozenClock, RectifiedFlow, System
from structdiff.samplers.noise_levels import (
    ExactNoisePosterior,
    NoiseClassifier,
    NoisePosterior,
    Place,
    ScoreNoisePosterior,
    noise_levels,
)
from structdiff.spaces import Symmetric
from structdiff.state import State
from structdiff.testbeds import CorrelatedGaussian, GaussianGraph, GaussianMixture

torch.set_num_threads(1)
TWO = {"x": VP(), "a": VE(sigma_min=0.02, sigma_max=20.0)}


def at_levels(testbed, system, level, times):
    """States v whose noise is that of the given levels."""
    x0 = testbed.sample(len(level), 0)
    place = Place(system, times[level])
    noisy = system.perturb(x0, place.own, system.noise(x0, 1))
    fixed = {k: x0[k] for k in x0 if system.frozen(k)}
    return place.unscaled(noisy.replace(**fixed) if fixed else noisy)


def spread(count, levels):
    return torch.arange(count) % levels


def distance(a, b):
    """Total variation per object."""
    return (a.exp() - b.exp()).abs().sum(1) / 2


def test_levels_are_uniform_in_log_noise_and_end_where_sampling_does():
    system = System(VE())
    times = noise_levels(system, 100)
    rho = Place(system, times).rho["x"].log()
    assert times[0] == system.t_max and times[-1] == system.t_min
    assert float((rho.diff() - rho.diff().mean()).abs().max()) < 1e-10


@pytest.mark.parametrize("process", [VE(), VP(), RectifiedFlow()], ids=["ve", "vp", "rf"])
def test_exact_posterior_of_one_gaussian_is_bayes_rule(process):
    # v | l ~ N(m, s^2 + rho_l^2) in every process: x = alpha v hides nothing.
    system = System(process)
    testbed = GaussianMixture([1.0], [[0.7]], [[[0.25]]])
    posterior = ExactNoisePosterior(testbed.denoiser(system), 50)
    rho = Place(system, posterior.times).rho["x"]
    v = torch.tensor([[-3.0], [0.7], [40.0]], dtype=torch.float64)
    expected = torch.distributions.Normal(0.7, (0.25 + rho**2).sqrt()).log_prob(v)
    got = posterior.log_probabilities(State({"x": v}))
    assert torch.allclose(got, expected.log_softmax(1), atol=1e-9)


@pytest.mark.parametrize("process", [VE(), VP()], ids=["ve", "vp"])
def test_integrated_score_is_the_exact_posterior_of_the_mixture(process):
    system = System(process)
    testbed = GaussianMixture.gmm3()
    exact = ExactNoisePosterior(testbed.denoiser(system), 100)
    v = at_levels(testbed, system, spread(100, 100), exact.times)
    score = ScoreNoisePosterior(testbed.denoiser(system), 100, nodes=64, probes=None)
    gap = distance(exact.log_probabilities(v), score.log_probabilities(v))
    assert float(gap.max()) < 0.01


def test_integrated_score_gains_two_orders_in_the_distance_of_the_nodes():
    system = System(VE())
    testbed = GaussianMixture.gmm3()
    exact = ExactNoisePosterior(testbed.denoiser(system), 181)
    v = at_levels(testbed, system, spread(60, 181), exact.times)
    p = exact.log_probabilities(v)
    gaps = [
        float(
            distance(
                p,
                ScoreNoisePosterior(
                    testbed.denoiser(system), 181, nodes=n, probes=None
                ).log_probabilities(v),
            ).mean()
        )
        for n in (19, 37)
    ]
    assert gaps[0] / gaps[1] == pytest.approx(4, rel=0.25)


@pytest.mark.parametrize("clocks", [{}, {"a": lambda t: t**2}, {"a": FrozenClock()}])
def test_integrated_score_of_a_system_is_its_exact_posterior(clocks):
    # Components share the level; a frozen one is conditioned on.
    system = System(TWO, clocks=clocks)
    testbed = CorrelatedGaussian()
    exact = ExactNoisePosterior(testbed.denoiser(system), 60)
    v = at_levels(testbed, system, spread(60, 60), exact.times)
    score = ScoreNoisePosterior(testbed.denoiser(system), 60, nodes=60, probes=None)
    gap = distance(exact.log_probabilities(v), score.log_probabilities(v))
    assert float(gap.max()) < 0.02


class MatrixGaussian(nn.Module):
    """Symmetric matrices with independent N(0, s^2) pairs: E[x0 | xt] is a multiple of xt."""

    def __init__(self, system, s=0.5):
        super().__init__()
        self.system, self.s = system, s

    def forward(self, x, t, condition=None):
        a, b = self.system.alpha(t), self.system.sigma(t)
        gain = {k: a[k] * self.s**2 / (a[k] ** 2 * self.s**2 + b[k] ** 2) for k in a}
        return x * gain


@pytest.mark.parametrize("probes", [None, 1])
def test_divergence_counts_every_pair_of_a_symmetric_matrix_once(probes):
    # E[x0 | xt] is a multiple of xt: one random sign per pair gives its divergence exactly.
    system = System({"adj": VE(0.05, 5.0)}, {"adj": Symmetric()})
    like = GaussianGraph([4, 2, 3]).like
    like = State({"adj": like["adj"]}, {"adj": like.masks["adj"]})
    v = system.noise(like, 0)
    score = ScoreNoisePosterior(MatrixGaussian(system), 80, nodes=80, probes=probes, source=1)
    variance = 0.25 + Place(system, score.times).rho["adj"] ** 2
    square = v.square_norm()[:, None] / 2
    pairs = system.dimensions(v)["adj"][:, None]
    exact = (-square / (2 * variance) - pairs / 2 * variance.log()).log_softmax(1)
    assert float(distance(exact, score.log_probabilities(v)).max()) < 1e-3


def test_masked_entries_say_nothing_about_the_level():
    system = System({"x": VP(beta_max=4.0), "adj": VE(0.05, 5.0)}, GaussianGraph.spaces())
    small, large = GaussianGraph([3, 2], 3), GaussianGraph([3, 2], 6)
    results = []
    for testbed in (small, large):
        v = system.noise(testbed.like, torch.tensor([4, 9]))
        posterior = ScoreNoisePosterior(
            testbed.denoiser(system), 40, nodes=8, source=torch.tensor([1, 2])
        )
        results.append(posterior.log_probabilities(v))
    assert torch.allclose(*results, atol=1e-10)


def test_posterior_runs_in_single_precision():
    system = System(VE())
    posterior = ScoreNoisePosterior(GaussianMixture.gmm3().denoiser(system), 50)
    got = posterior.log_probabilities(State({"x": torch.randn(4, 2)}))
    assert got.dtype == torch.float32 and bool(got.isfinite().all())


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_gradients_are_taken_whatever_the_mode(mode):
    system = System({"x": VP(beta_max=4.0), "adj": VE(0.05, 5.0)}, GaussianGraph.spaces())
    testbed = GaussianGraph([3, 2])

    def ask():
        posterior = ScoreNoisePosterior(testbed.denoiser(system), 40, nodes=4, source=3)
        return posterior.log_probabilities(system.noise(testbed.like, 0))

    with mode():
        inside = ask()
    assert torch.equal(inside, ask()) and not inside.requires_grad


class Logits(nn.Module):
    def __init__(self, levels):
        super().__init__()
        self.levels = levels

    def forward(self, v, condition=None):
        return torch.arange(self.levels).expand(v.batch_size, -1).to(v.dtype) * condition


def test_classifier_normalises_what_its_network_says_under_the_condition():
    classifier = NoiseClassifier(Logits(3), System(VE()), 3)
    got = classifier.log_probabilities(State({"x": torch.zeros(2, 2)}), 2.0)
    assert torch.allclose(got, torch.tensor([0.0, 2.0, 4.0]).log_softmax(0).expand(2, 3))


def test_every_posterior_fulfils_the_contract():
    system = System(VE())
    denoiser = GaussianMixture.gmm3().denoiser(system)
    for posterior in (
        ExactNoisePosterior(denoiser, 4),
        ScoreNoisePosterior(denoiser, 4, nodes=2),
        NoiseClassifier(Logits(4), system, 4),
    ):
        assert isinstance(posterior, NoisePosterior)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda s, d: noise_levels(s, 1), "at least 2 noise levels"),
        (lambda s, d: noise_levels(s, [1.0, 0.0]), "within"),
        (lambda s, d: ExactNoisePosterior(MatrixGaussian(s)), "log_density"),
        (lambda s, d: ScoreNoisePosterior(d, 8, nodes=9), "nodes"),
        (lambda s, d: ScoreNoisePosterior(d, 8, nodes=8, probes=0), "probes"),
        (
            lambda s, d: NoiseClassifier(Logits(5), s, 4)(State({"x": torch.zeros(2, 2)}), 1.0),
            r"\(2, 5\), needed \(2, 4\)",
        ),
    ],
)
def test_bad_arguments_are_named(make, message):
    system = System(VE())
    with pytest.raises(StructDiffError, match=message):
        make(system, GaussianMixture.gmm3().denoiser(system))
