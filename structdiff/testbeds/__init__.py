"""Densities whose denoiser is known exactly under any system: check a sampler in seconds."""

from structdiff.testbeds.graph import GaussianGraph
from structdiff.testbeds.interpolant import InterpolatedMixtures, bridge_covariance, bridge_energy
from structdiff.testbeds.mixtures import CorrelatedGaussian, GaussianMixture, LogNormalMixture
from structdiff.testbeds.sphere import Sphere
from structdiff.testbeds.stationary import StationaryGaussian

__all__ = [
    "CorrelatedGaussian",
    "GaussianGraph",
    "GaussianMixture",
    "InterpolatedMixtures",
    "LogNormalMixture",
    "Sphere",
    "StationaryGaussian",
    "bridge_covariance",
    "bridge_energy",
]
