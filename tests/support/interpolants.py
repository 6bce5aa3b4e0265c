"""The interpolants that are tested, and a pair of mixtures between which all is known."""

import pytest
import torch

from structdiff.processes import VP
from structdiff.processes.flow_matching import TrigonometricFlow
from structdiff.processes.interpolant import Interpolant
from structdiff.processes.paths import (
    Brownian,
    BSquared,
    Constant,
    EncodingDecoding,
    Linear,
    Mirror,
    NoNoise,
    OneSided,
    Sigmoid,
    SinSquared,
    Trigonometric,
)
from structdiff.testbeds import GaussianMixture
from structdiff.testbeds.interpolant import InterpolatedMixtures

INTERPOLANTS = [
    Interpolant(path, gamma)
    for path in (Linear(), Trigonometric())
    for gamma in (NoNoise(), Constant(0.2), Brownian(0.5), BSquared(), Sigmoid())
] + [
    Interpolant(Linear(), SinSquared()),
    Interpolant(Trigonometric(), SinSquared(0.6)),
    Interpolant(EncodingDecoding(), SinSquared()),
    Interpolant(EncodingDecoding(), Brownian()),
    Interpolant(Mirror(), Brownian()),
    Interpolant(Mirror(), BSquared(2.0)),
    Interpolant(OneSided(TrigonometricFlow())),
    Interpolant(OneSided(VP())),
]
every_interpolant = pytest.mark.parametrize("interpolant", INTERPOLANTS, ids=repr)
BASE = GaussianMixture([0.4, 0.6], [[2.0, 1.0], [-1.0, 2.0]], [[[0.5, 0.2], [0.2, 0.4]]] * 2)
ENDS = InterpolatedMixtures(GaussianMixture.gmm3(), BASE)


def times(count=100, low=1e-3, high=0.999):
    u = torch.rand(count, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return low + u * (high - low)
