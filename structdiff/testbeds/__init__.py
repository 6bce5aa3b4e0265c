"""Densities whose denoiser is known exactly under any system: check a sampler in seconds."""

from structdiff.testbeds.graph import GaussianGraph
from structdiff.testbeds.interpolant import InterpolatedMixtures, bridge_covariance, bridge_energy
from structdiff.testbeds.mixtures import CorrelatedGaussian, GaussianMixture, LogNormalMixture
from structdiff.testbeds.sphere import Sphere

__all__ = [
    "CorrelatedGaussian",
    "GaussianGraph",
    "GaussianMixture",
    "InterpolatedMixtures",
    "LogNormalMixture",
    "Sphere",
    "bridge_covariance",
    "bridge_energy",
]
