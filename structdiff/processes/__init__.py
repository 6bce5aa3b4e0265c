"""Forward processes: from data at time 0 to the prior at time 1."""

from structdiff.processes.discrete import DiscreteVP
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
from structdiff.processes.ornstein_uhlenbeck import OrnsteinUhlenbeck
from structdiff.processes.residual import Residual, ResidualPosterior, residual_posterior
from structdiff.processes.system import FrozenClock, System

__all__ = [
    "EDM",
    "VE",
    "VP",
    "Cosine",
    "DiscreteVP",
    "FrozenClock",
    "GaussianProcess",
    "GeometricBrownian",
    "OrnsteinUhlenbeck",
    "RectifiedFlow",
    "Residual",
    "ResidualPosterior",
    "SubVP",
    "System",
    "residual_posterior",
]
