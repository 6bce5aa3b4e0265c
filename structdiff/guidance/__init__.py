"""Guidance: denoisers that wrap denoisers, so that every sampler follows observations."""

from structdiff.guidance.base import GuidedDenoiser
from structdiff.guidance.covariance import CovarianceGuidance, GaussianCovariance
from structdiff.guidance.observation import ObservationGuidance, path_levels, published_scale
from structdiff.guidance.start import gaussian_start, noised_start, posterior_start

__all__ = [
    "CovarianceGuidance",
    "GaussianCovariance",
    "GuidedDenoiser",
    "ObservationGuidance",
    "gaussian_start",
    "noised_start",
    "path_levels",
    "posterior_start",
    "published_scale",
]
