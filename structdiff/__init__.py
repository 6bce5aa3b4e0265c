"""Diffusion models on structured data: systems of named components.

A structured object (a molecule, a series, a pose) is a :class:`State`; a :class:`System` gives each
component its forward process; a :class:`Denoiser` estimates E[x0 | xt]; samplers run backward.
"""

from structdiff.denoisers import BaseDenoiser, Denoiser
from structdiff.errors import CheckpointError, StructDiffError
from structdiff.noise import (
    BrownianNoise,
    GlobalNoise,
    NoiseSource,
    PerObjectNoise,
    ReplayNoise,
    SeededNoise,
)
from structdiff.processes import (
    EDM,
    VE,
    VP,
    Cosine,
    DiscreteVP,
    FrozenClock,
    GaussianProcess,
    GeometricBrownian,
    Interpolant,
    InterpolantSystem,
    OrnsteinUhlenbeck,
    RectifiedFlow,
    Residual,
    SubVP,
    System,
)
from structdiff.spaces import Euclidean, Layout, Positive, Space, Symmetric, Transformed
from structdiff.state import State

__version__ = "0.1.0"

__all__ = [
    "EDM",
    "VE",
    "VP",
    "BaseDenoiser",
    "BrownianNoise",
    "CheckpointError",
    "Cosine",
    "Denoiser",
    "DiscreteVP",
    "Euclidean",
    "FrozenClock",
    "GaussianProcess",
    "GeometricBrownian",
    "GlobalNoise",
    "Interpolant",
    "InterpolantSystem",
    "Layout",
    "NoiseSource",
    "OrnsteinUhlenbeck",
    "PerObjectNoise",
    "Positive",
    "RectifiedFlow",
    "ReplayNoise",
    "Residual",
    "SeededNoise",
    "Space",
    "State",
    "StructDiffError",
    "SubVP",
    "Symmetric",
    "System",
    "Transformed",
]
