"""Forward processes: from data at time 0 to the prior at time 1."""

from structdiff.processes.discrete import DiscreteVP
from structdiff.processes.flow_matching import LipmanFlow, TrigonometricFlow, UnitVarianceFlow
from structdiff.processes.gaussian import (
    EDM,
    VE,
    VP,
    Cosine,
    GaussianProcess,
    RectifiedFlow,
    SubVP,
)
from structdiff.processes.geometric import GeometricBrownian
from structdiff.processes.interpolant import Interpolant, InterpolantSystem
from structdiff.processes.ornstein_uhlenbeck import OrnsteinUhlenbeck
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
from structdiff.processes.residual import Residual, ResidualPosterior, residual_posterior
from structdiff.processes.system import FrozenClock, System

__all__ = [
    "EDM",
    "VE",
    "VP",
    "BSquared",
    "Brownian",
    "Constant",
    "Cosine",
    "DiscreteVP",
    "EncodingDecoding",
    "FrozenClock",
    "GaussianProcess",
    "GeometricBrownian",
    "Interpolant",
    "InterpolantSystem",
    "Linear",
    "LipmanFlow",
    "Mirror",
    "NoNoise",
    "OneSided",
    "OrnsteinUhlenbeck",
    "RectifiedFlow",
    "Residual",
    "ResidualPosterior",
    "Sigmoid",
    "SinSquared",
    "SubVP",
    "System",
    "Trigonometric",
    "TrigonometricFlow",
    "UnitVarianceFlow",
    "residual_posterior",
]
