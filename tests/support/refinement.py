"""What the tests of refinement share: the published chain, windows, networks."""

import torch
from torch import nn

from structdiff.denoisers import BaseDenoiser
from structdiff.processes import DiscreteVP, System
from structdiff.testbeds import StationaryGaussian

CHAIN = DiscreteVP(100, 1e-4, 0.1, prior_scale=1.0)
TIMES = CHAIN.time_of(torch.arange(100))
TAU = float(TIMES[24])
FIRST = float(TIMES[0])  # the smallest noise of the chain: u = 1e-4


class Curved(BaseDenoiser):
    """A smooth prediction that mixes all entries of a window."""

    def forward(self, x, t, condition=None):
        total = torch.sin(x["x"]).flatten(1).sum(1)
        return x.map(lambda v: torch.tanh(v) + 0.3 * total.reshape(-1, *[1] * (v.dim() - 1)))


class Network(nn.Module):
    """Two layers along the window; its weights require gradients."""

    def __init__(self, length):
        super().__init__()
        self.first = nn.Linear(length, 16)
        self.second = nn.Linear(16, length)

    def forward(self, x, log_snr, condition):
        hidden = torch.tanh(self.first(x["x"].movedim(1, -1)))
        return x.map(lambda v: self.second(hidden).movedim(-1, 1))


def scales(time):
    return float(CHAIN.alpha(time)), float(CHAIN.sigma(time))


def gaussian(phi=0.9, length=12, mean=0.0, batch=3):
    process = StationaryGaussian.ar1(phi, length, mean=mean)
    return process, process.denoiser(System(CHAIN)), process.sample(batch, 0)["x"]


def horizon(length, steps):
    return torch.arange(length) >= length - steps


def draws(count, like, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return list(torch.randn(count, *like.shape, dtype=like.dtype, generator=generator).unbind())
