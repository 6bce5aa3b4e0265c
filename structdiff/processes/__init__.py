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
from structdiff.processes.system import FrozenClock, System

__all__ = [
    "EDM",
    "VE",
    "VP",
    "Cosine",
    "DiscreteVP",
    "FrozenClock",
    "GaussianProcess",
    "RectifiedFlow",
    "SubVP",
    "System",
]
