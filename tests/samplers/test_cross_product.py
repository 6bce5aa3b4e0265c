"""Any process x any sampler, plain and guided: the promise of the design, over both registries.

The data are N(1.2, 0.5^2), so every answer is known. Samplers without an order (heuristics, chains)
promise no moments and have tests of their own.
"""

import math

import pytest
import torch

from structdiff.denoisers import BaseDenoiser
from structdiff.processes import (
    EDM,
    VE,
    VP,
    Cosine,
    DiscreteVP,
    GeometricBrownian,
    LipmanFlow,
    OrnsteinUhlenbeck,
    RectifiedFlow,
    Residual,
    SubVP,
    System,
    TrigonometricFlow,
    UnitVarianceFlow,
)
from structdiff.samplers import SAMPLERS, Karras, get_sampler
from structdiff.state import State, expand_right
from structdiff.testbeds import GaussianMixture

torch.set_num_threads(1)
MEAN, STD = 1.2, 0.5
PROCESSES = {
    "VP": VP(),
    "sub-VP": SubVP(),
    "VE": VE(0.01, 10.0),
    "EDM": EDM(),
    "cosine": Cosine(),
    "rectified flow": RectifiedFlow(),
    "DDPM chain": DiscreteVP(),
    "OU": OrnsteinUhlenbeck(),
    "trigonometric flow": TrigonometricFlow(),
    "unit-variance flow": UnitVarianceFlow(),
    "Lipman's flow": LipmanFlow(),
    "GBM on the logarithm": GeometricBrownian(mu=0.4),
    "residual": Residual(companion="y"),
}
# Uniform steps in EDM's time, which is its noise level, leave all but the first without noise.
GRIDS = {"EDM": Karras()}
CONVERGENT = [name for name, info in SAMPLERS.items() if info.order is not None]


def start(system, mean, std, objects=800):
    """The exact marginal at t_max, its two moments matched by the draws."""
    process, generator = system.processes["x"], torch.Generator().manual_seed(0)
    z = torch.randn(objects // 2, 1, generator=generator, dtype=torch.float64)
    z = torch.cat([z, -z])
    alpha, sigma = float(process.alpha(system.t_max)), float(process.sigma(system.t_max))
    x = alpha * mean + math.hypot(alpha * std, sigma) * z / z.std()
    others = {k: torch.linspace(-2, 2, objects).double()[:, None] for k in system.processes}
    return State(others | {"x": x})


def gaussian(system):
    """The exact denoiser; what else the system holds is independent of x."""
    names = list(system.processes)
    means, variances = {"x": MEAN}, {"x": STD**2}
    return GaussianMixture(
        [1.0],
        [[means.get(k, 0.0) for k in names]],
        [torch.diag(torch.tensor([variances.get(k, 1.0) for k in names])).tolist()],
        dict.fromkeys(names, 1),
    ).denoiser(system)


# 100 steps, 800 objects: the standard errors of mean and deviation are 0.018 and 0.0125, and
# first-order schemes are off by up to 0.03 (table 7.4 of the samplers' card).
@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("name", CONVERGENT)
def test_every_sampler_serves_every_process(name, process):
    system = System(
        {"x": PROCESSES[process]} | ({"y": VP()} if process == "residual" else {}),
    )
    sampler = get_sampler(name, 100, **({"grid": GRIDS[process]} if process in GRIDS else {}))
    y = sampler(gaussian(system), start(system, MEAN, STD), source=1)["x"]
    assert float(y.mean()) == pytest.approx(MEAN, abs=0.08)
    assert float(y.std()) == pytest.approx(STD, abs=0.07)


class Observed(BaseDenoiser):
    """Conditions on y = x0 + noise: adds (sigma^2/alpha) grad log p(y | xt), by autograd."""

    def __init__(self, inner, value, std):
        super().__init__(inner.system)
        self.inner, self.value, self.std = inner, value, std

    def forward(self, x, t, condition=None):
        alpha, sigma = self.system.alpha(t)["x"], self.system.sigma(t)["x"]
        with torch.enable_grad():
            point = x["x"].detach().requires_grad_(True)
            data = self.inner(x.replace(x=point), t, condition)["x"]
            (slope,) = torch.autograd.grad(data.sum(), point)
        gain = expand_right(sigma**2 / alpha, data)
        data = data.detach()
        # Cov(x0 | xt) = sigma^2/alpha dD/dx; exact for Gaussian data.
        pull = gain * slope * (self.value - data) / (gain * slope + self.std**2)
        return x.replace(x=data + pull)


@pytest.mark.parametrize("name", CONVERGENT)
def test_guidance_works_under_every_sampler(name):
    system, value, noise = System(VP()), 0.2, 0.3
    gain = STD**2 / (STD**2 + noise**2)
    mean, std = MEAN + gain * (value - MEAN), STD * math.sqrt(1 - gain)
    guided = Observed(gaussian(system), value, noise)
    y = get_sampler(name, 100)(guided, start(system, mean, std), source=1)["x"]
    assert float(y.mean()) == pytest.approx(mean, abs=0.05)
    assert float(y.std()) == pytest.approx(std, abs=0.05)
