"""The noise classifier's objective: its draws, its optimum, its training."""

import math

import pytest
import torch
from torch import nn

from structdiff.errors import StructDiffError
from structdiff.objectives.noise_level import AtLevels, NoiseLevelCrossEntropy
from structdiff.processes import VE, VP, FrozenClock, System
from structdiff.samplers import ExactNoisePosterior, NoiseClassifier, noise_levels
from structdiff.samplers.noise_levels import Place
from structdiff.state import State
from structdiff.testbeds import CorrelatedGaussian, GaussianMixture
from structdiff.training import DiffusionModule, ShuffledBatches, TrainingSettings, fit

torch.set_num_threads(1)
LEVELS = 32


class Exact(nn.Module):
    """The posterior of a testbed as a classifier's network."""

    def __init__(self, denoiser, levels):
        super().__init__()
        self.posterior = ExactNoisePosterior(denoiser, levels)

    def forward(self, v, condition=None):
        return self.posterior.log_probabilities(v)


class Seen(nn.Module):
    """Uniform logits; keeps what it is shown."""

    def forward(self, v, condition=None):
        self.v, self.condition = v, condition
        return torch.zeros(v.batch_size, LEVELS, dtype=torch.float64)


@pytest.mark.parametrize("clocks", [{}, {"a": lambda t: t**2}, {"a": FrozenClock()}])
def test_loss_of_the_exact_posterior_is_the_entropy_of_the_level(clocks):
    # E[-ln p(l | v)] over the joint law of (v, l), here from draws that the objective did not make.
    testbed = CorrelatedGaussian()
    system = System({"x": VP(), "a": VE(0.02, 20.0)}, clocks=clocks)
    classifier = NoiseClassifier(Exact(testbed.denoiser(system), LEVELS), system, LEVELS)
    x0, count = testbed.sample(6400, 0), 6400
    loss = NoiseLevelCrossEntropy(LEVELS)(classifier, x0, source=1)
    level = torch.arange(count) % LEVELS
    place = Place(system, classifier.times[level])
    noisy = system.perturb(x0, place.own, system.noise(x0, 2))
    v = place.unscaled(noisy.replace(**{k: x0[k] for k in x0 if system.frozen(k)}))
    own = -classifier(v).gather(1, level[:, None])[:, 0]
    assert loss.shape == (count,)
    error = math.sqrt(float(loss.var() + own.var()) / count)
    assert float(loss.mean()) == pytest.approx(float(own.mean()), abs=3 * error)


def test_every_level_is_drawn_equally_often():
    system = System(VE())
    times = noise_levels(system, 10)
    u = (torch.arange(1000).double() + 0.5) / 1000
    drawn = system.t_min + AtLevels(10).under(system).quantile(u) * (system.t_max - system.t_min)
    level = (drawn[:, None] - times).abs().argmin(1)
    assert torch.allclose(drawn, times[level], atol=1e-12)
    assert level.bincount(minlength=10).tolist() == [100] * 10


def test_the_network_sees_unscaled_data_noised_to_the_level():
    system = System(VP())
    network = Seen()
    classifier = NoiseClassifier(network, system, LEVELS)
    x0 = State({"x": torch.full((6400, 1), 3.0, dtype=torch.float64)})
    NoiseLevelCrossEntropy(LEVELS)(classifier, x0, condition="c", source=0)
    # Stratified draws: objects 0..199 are the cleanest level, the last 200 the noisiest.
    rho = Place(system, classifier.times).rho["x"]
    for objects, level in ((slice(0, 200), -1), (slice(-200, None), 0)):
        gap = network.v["x"][objects] - 3
        assert float(gap.std()) == pytest.approx(float(rho[level]), rel=0.2)
    assert network.condition == "c"


def test_frozen_components_are_shown_as_they_are():
    system = System({"x": VP(), "a": VE()}, clocks={"a": FrozenClock()})
    network = Seen()
    x0 = CorrelatedGaussian().sample(64, 0)
    NoiseLevelCrossEntropy(LEVELS)(NoiseClassifier(network, system, LEVELS), x0, source=0)
    assert torch.equal(network.v["a"], x0["a"])


class Perceptron(nn.Module):
    """Two hidden layers on the compressed state and its size."""

    def __init__(self, width=64):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(3, width),
            nn.SiLU(),
            nn.Linear(width, width),
            nn.SiLU(),
            nn.Linear(width, LEVELS),
        )

    def forward(self, v, condition=None):
        size = v["x"].norm(dim=1, keepdim=True)
        return self.layers(torch.asinh(torch.cat([v["x"], size], dim=1)))


def test_a_trained_classifier_comes_close_to_the_exact_posterior():
    testbed, system = GaussianMixture.gmm3(), System(VE(0.01, 50.0))
    torch.manual_seed(0)
    classifier = NoiseClassifier(Perceptron(), system, LEVELS)
    data = testbed.sample(8192, 0).to(torch.float32)
    module = DiffusionModule(
        classifier,
        NoiseLevelCrossEntropy(LEVELS),
        learning_rate=3e-3,
        warmup_steps=50,
        total_steps=800,
    )
    fit(
        module,
        ShuffledBatches(8192, 512, data.take),
        TrainingSettings(max_steps=800, progress=False, accelerator="cpu", ema_decay=0.99),
    )
    level = torch.arange(3200) % LEVELS
    x0 = testbed.sample(3200, 5)
    v = system.perturb(x0, classifier.times[level], system.noise(x0, 6))
    exact = ExactNoisePosterior(testbed.denoiser(system), LEVELS).log_probabilities(v)
    learned = classifier(v.to(torch.float32)).detach().double()
    # Total variation 0.06 here; a uniform guess is at 0.52.
    assert float((exact.exp() - learned.exp()).abs().sum(1).mean() / 2) < 0.1


def test_only_a_classifier_can_be_trained_with_it():
    system = System(VE())
    denoiser = GaussianMixture.gmm3().denoiser(system)
    with pytest.raises(StructDiffError, match="NoiseClassifier"):
        NoiseLevelCrossEntropy()(denoiser, GaussianMixture.gmm3().sample(4, 0))


def test_classifier_and_objective_must_have_the_same_levels():
    classifier = NoiseClassifier(Seen(), System(VE()), LEVELS)
    with pytest.raises(StructDiffError, match="32 noise levels, the objective 20"):
        NoiseLevelCrossEntropy(20)(classifier, GaussianMixture.gmm3().sample(4, 0))
