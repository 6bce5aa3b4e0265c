"""Multiplicative denoising score matching: core card of the processes, sections 2.3 and 10.6."""

import math

import pytest
import torch

from structdiff.denoisers import Denoiser
from structdiff.errors import StructDiffError
from structdiff.objectives import DenoisingScoreMatching, EDMWeight
from structdiff.objectives.multiplicative import MultiplicativeScoreMatching, hyvarinen_score
from structdiff.processes import VE, GeometricBrownian, System
from structdiff.spaces import Positive
from structdiff.state import State
from structdiff.testbeds import LogNormalMixture

torch.set_num_threads(1)
TESTBED = LogNormalMixture()
SYSTEM = System(GeometricBrownian(mu=0.2), {"x": Positive()})
DENOISER = TESTBED.denoiser(SYSTEM)


class Net(torch.nn.Module):
    def __init__(self, width=3):
        super().__init__()
        torch.manual_seed(0)
        layers = (torch.nn.Linear(width + 1, 16), torch.nn.SiLU(), torch.nn.Linear(16, width))
        self.layers = torch.nn.Sequential(*layers).double()

    def forward(self, x, log_snr, condition=None):
        return x.map(lambda v: self.layers(torch.cat((v, log_snr["x"][:, None]), dim=1)))


def gradients(objective, prediction):
    x0 = State({"x": torch.exp(torch.linspace(-1, 1, 24).double().reshape(8, 3))})
    x0 = x0.with_masks({"x": torch.tensor([[True, True, False]])})
    denoiser = Denoiser(Net(), SYSTEM, prediction)
    return torch.autograd.grad(objective(denoiser, x0, source=3).sum(), denoiser.parameters())


@pytest.mark.parametrize("prediction", ["noise", "score", "data"])
@pytest.mark.parametrize("weight", [None, EDMWeight()], ids=["simple", "edm"])
def test_gradients_are_those_of_denoising_the_logarithm(prediction, weight):
    # Card, check 6: same noise, same network, 1e-10.
    multiplicative = gradients(MultiplicativeScoreMatching(weight=weight), prediction)
    additive = gradients(DenoisingScoreMatching(weight=weight), prediction)
    for a, b in zip(multiplicative, additive, strict=True):
        assert float((a - b).abs().max()) <= 1e-10 * (1 + float(b.abs().max()))


def test_the_hyvarinen_score_is_the_logarithmic_derivative_of_the_density():
    # p_X(x) = p_Y(log x) / x
    x = torch.linspace(0.2, 3, 9, dtype=torch.float64)[:, None].requires_grad_(True)
    log_density = DENOISER.log_density(State({"x": torch.log(x)}), 0.3) - torch.log(x[:, 0])
    (slope,) = torch.autograd.grad(log_density.sum(), x)
    h = hyvarinen_score(DENOISER, State({"x": torch.log(x.detach())}), 0.3)
    assert torch.allclose(h["x"], x.detach() * slope, atol=1e-11)


def test_the_conditional_mean_of_the_target_is_the_hyvarinen_score():
    # Section 2.3: z-scores of 29 bins; 4 bounds the largest of them with probability 0.998.
    t, n = 0.3, 200_000
    x0 = SYSTEM.encode(TESTBED.sample(n, 0))
    z = SYSTEM.noise(x0, 1)
    noisy = SYSTEM.perturb(x0, t, z)
    target = -(1 + z["x"][:, 0] / (1.5 * math.sqrt(t)))
    gap = target - hyvarinen_score(DENOISER, noisy, t)["x"][:, 0]
    edges = torch.quantile(noisy["x"][:, 0], torch.linspace(0, 1, 30, dtype=torch.float64)[1:-1])
    bins = torch.bucketize(noisy["x"][:, 0], edges)
    scores = [
        float(gap[bins == b].mean() / gap[bins == b].std()) * math.sqrt(int((bins == b).sum()))
        for b in range(29)
    ]
    assert max(abs(s) for s in scores) < 4


def test_the_loss_of_the_true_score_is_the_spread_of_the_target():
    # E v |h - h*|^2 with the mean over times of E Var(z | x_t) as its minimum, below 1.
    x0 = TESTBED.sample(20000, 0)
    objective = MultiplicativeScoreMatching()
    best = float(objective(DENOISER, x0, source=1).mean())

    class Off(torch.nn.Module):
        def forward(self, x, log_snr, condition=None):
            t = SYSTEM.processes["x"].time_at(log_snr["x"])
            return DENOISER.noise(SYSTEM.centred(x, t), t) + 0.1

    worse = float(objective(Denoiser(Off(), SYSTEM, "noise"), x0, source=1).mean())
    assert 0 < best < 1
    assert worse - best == pytest.approx(0.01, abs=2e-3)


@pytest.mark.parametrize("slope", [0.5, -1.3])
def test_the_implicit_loss_differs_from_the_explicit_one_by_a_constant(slope):
    # Hyvarinen 2007: E[h^2/2 + h + x dh/dx] = E (h - h_true)^2 / 2 - E h_true^2 / 2; quadrature.
    t = 0.3
    y = torch.linspace(-9, 9, 4001, dtype=torch.float64)[:, None]
    weight = DENOISER.log_density(State({"x": y}), t).exp() * (y[1] - y[0])
    true = hyvarinen_score(DENOISER, State({"x": y}), t)["x"][:, 0]
    y = y[:, 0]
    h, x_slope = slope * torch.sin(y) - 0.2 * y, slope * torch.cos(y) - 0.2  # x dh/dx = dh/dy
    implicit = (weight * (h**2 / 2 + h + x_slope)).sum()
    explicit = (weight * ((h - true) ** 2 - true**2) / 2).sum()
    assert float(implicit) == pytest.approx(float(explicit), rel=1e-10)


def test_data_that_are_not_positive_by_their_space_are_refused():
    denoiser = Denoiser(Net(1), System(VE()), "noise")
    with pytest.raises(StructDiffError, match=r"'x' lies in Euclidean.*Positive\(\)"):
        MultiplicativeScoreMatching()(denoiser, State({"x": torch.ones(2, 1).double()}), source=0)
