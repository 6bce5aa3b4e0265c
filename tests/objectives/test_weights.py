"""Weights: each stated on one target and checked on others through the error dictionary."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from structdiff.denoisers import Denoiser
from structdiff.noise import SeededNoise
from structdiff.objectives import (
    DenoisingScoreMatching,
    EDMLaw,
    EDMWeight,
    Importance,
    Likelihood,
    MinSNR,
    Sigmoid,
    Simple,
    Uniform,
    VelocityWeight,
    draw_times,
    law_under,
    weights_at,
)
from structdiff.processes import EDM, VE, VP, Cosine, RectifiedFlow, SubVP, System
from structdiff.state import State

T = torch.linspace(0.05, 0.95, 19, dtype=torch.float64)
PROCESSES = [VP(), SubVP(), VE(), Cosine(), EDM(), RectifiedFlow()]


class Given(nn.Module):
    """The same output whatever comes in."""

    def __init__(self, out: Tensor) -> None:
        super().__init__()
        self.out = out

    def forward(self, x: State, log_snr: dict[str, Tensor], condition: object = None) -> State:
        return State({"x": self.out})


def errors(process: object) -> dict[str, Tensor]:
    """Squared errors of every quantity that one prediction implies, each (B,)."""
    system = System(process)
    x0 = State({"x": SeededNoise(1).normal("x", torch.empty(19, 4).double())})
    noise = system.noise(x0, SeededNoise(2))
    noisy = system.perturb(x0, T, noise)
    a, s = (system.alpha(T)["x"][:, None], system.sigma(T)["x"][:, None])
    out = SeededNoise(3).normal("x", torch.empty(19, 4).double())
    denoiser = Denoiser(Given(out), system, "noise")
    data, eps = denoiser(noisy, T)["x"], denoiser.noise(noisy, T)["x"]
    process_velocity = (
        process.alpha_derivative(T)[:, None] * x0["x"]
        + process.sigma_derivative(T)[:, None] * noise["x"]
    )
    return {
        "eps": (eps - noise["x"]).square().mean(1),
        "x0": (data - x0["x"]).square().mean(1),
        "v": ((a * eps - s * data) - (a * noise["x"] - s * x0["x"])).square().mean(1),
        "u": (denoiser.velocity(noisy, T)["x"] - process_velocity).square().mean(1),
    }


@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: type(p).__name__)
def test_the_error_dictionary_of_the_module_holds(process: object) -> None:
    e = errors(process)
    a, s = process.alpha(T), process.sigma(T)
    rate = process.diffusion_squared(T) / (2 * s**2)
    torch.testing.assert_close(e["eps"], (a / s) ** 2 * e["x0"])
    torch.testing.assert_close(e["eps"], e["u"] / (s * rate) ** 2)
    torch.testing.assert_close(e["v"], ((a**2 + s**2) / s) ** 2 * e["x0"])


@pytest.mark.parametrize("process", [VP(), Cosine()], ids=["VP", "Cosine"])
def test_min_snr_is_the_published_weight_of_each_target(process: object) -> None:
    """Card, 2.7: min(SNR, 5) on x0, min(SNR, 5)/SNR on the noise, min(SNR, 5)/(SNR + 1) on v."""
    e = errors(process)
    snr = torch.exp(2 * process.half_log_snr(T))
    capped = snr.clamp(max=5.0)
    weighted = MinSNR()(process.half_log_snr(T)) * e["eps"]
    torch.testing.assert_close(weighted, capped * e["x0"])
    torch.testing.assert_close(weighted, capped / (snr + 1) * e["v"])
    assert bool((snr > 5).any()) and bool((snr < 5).any())


def test_sigmoid_is_one_half_at_its_bias_and_falls_towards_the_data() -> None:
    """sigmoid(b - 2 lambda): the closed form at log-SNR b - 1, b, b + 1."""
    weights = Sigmoid(3.0)(torch.tensor([1.0, 1.5, 2.0], dtype=torch.float64))
    expected = torch.tensor([0.7310585786300049, 0.5, 0.2689414213699951]).double()
    torch.testing.assert_close(weights, expected, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: type(p).__name__)
def test_likelihood_weight_is_minus_twice_the_slope_of_the_half_log_snr(process: object) -> None:
    t = T.clone().requires_grad_(True)
    (slope,) = torch.autograd.grad(process.half_log_snr(t).sum(), t)
    torch.testing.assert_close(Likelihood().at(process, T), -2 * slope)


@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: type(p).__name__)
def test_velocity_weight_makes_the_loss_that_of_flow_matching(process: object) -> None:
    e = errors(process)
    torch.testing.assert_close(VelocityWeight().at(process, T) * e["eps"], e["u"])


def test_every_component_is_weighed_by_its_own_process() -> None:
    system = System({"x": VP(), "a": VE()})
    weights = weights_at(Likelihood(), system, system.times(T))
    torch.testing.assert_close(weights["a"], torch.full_like(T, 2 * VE().log_ratio))
    torch.testing.assert_close(weights["x"], VP().beta(T) / VP().sigma(T) ** 2)


def test_score_matching_applies_a_weight_of_the_process() -> None:
    system = System(VP())
    x0 = State({"x": torch.zeros(19, 4).double()})
    noise = system.noise(x0, SeededNoise(2))
    denoiser = Denoiser(Given(torch.zeros(19, 4).double()), system, "noise")
    times = system.times(T)
    plain, weighed = (
        DenoisingScoreMatching(weight=w).distances(denoiser, x0, x0, noise, times, None)["x"]
        for w in (Simple(), Likelihood())
    )
    torch.testing.assert_close(weighed, VP().beta(T) / VP().sigma(T) ** 2 * plain)


# --- weight x law --------------------------------------------------------------------------------
def mean_over(law: object, system: System, function: object) -> float:
    """By stratified draws: a million points, 1e-5 of error."""
    t = draw_times(
        law_under(law, system), torch.empty(1_000_000), system.t_min, system.t_max, SeededNoise(0)
    )
    return float(function(t).mean())


@pytest.mark.parametrize("process", [VP(), VE(), Cosine()], ids=["VP", "VE", "Cosine"])
def test_importance_with_simple_is_likelihood_with_uniform(process: object) -> None:
    """E_uniform[(g^2/sigma^2) l] = Z E_importance[l], Z the mean of the weight: for the loss
    l(t) = alpha^2 s^2 / (alpha^2 s^2 + sigma^2) of a Gaussian of std 0.3.
    """
    system = System(process)

    def loss(t: Tensor) -> Tensor:
        signal = (0.3 * process.alpha(t)) ** 2
        return signal / (signal + process.sigma(t) ** 2)

    span = process.half_log_snr(process.t_min) - process.half_log_snr(process.t_max)
    total = 2 * float(span) / (process.t_max - process.t_min)
    found = mean_over(Uniform(), system, lambda t: Likelihood().at(process, t) * loss(t))
    expected = total * mean_over(Importance(), system, loss)
    assert found == pytest.approx(expected, rel=1e-3)


def test_edm_weight_and_law_are_the_published_training() -> None:
    """Table 1: E over ln sigma ~ N(-1.2, 1.2^2) of (sigma^2 + s^2)/(sigma s)^2 |dx0|^2 is E of
    |dF|^2: with |dx0|^2 = c_out^2 the mean is 1 whatever the law.
    """
    process = EDM()
    weight, s = EDMWeight(0.5), 0.5

    def loss(t: Tensor) -> Tensor:
        sigma = process.sigma(t)
        c_out_squared = (sigma * s) ** 2 / (sigma**2 + s**2)
        return weight(process.half_log_snr(t)) * c_out_squared / sigma**2

    assert mean_over(EDMLaw(), System(process), loss) == pytest.approx(1.0, abs=1e-9)
