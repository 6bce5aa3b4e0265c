r"""The Gaussian of EEG windows, estimated from few of them and exact at full rank.

A window of L times and C channels has (LC)^2 covariances, a recording some hundred windows. EEG is
nearly a sum of what spreads instantly over the scalp, each rhythm in patterns of its own:

.. math:: S = \sum_{j=1}^{L} u_j u_j^\top \otimes \Sigma_j,

with :math:`u_j` the eigenvectors of the mean covariance over time (nearly sines and cosines, or
what follows an event) and :math:`\Sigma_j` (C, C) the covariance of the channels along them. The
eigenvectors of S are :math:`u_j \otimes v_{jk}`, so that S takes part in everything, at every noise
level, by products with (L, L) and (C, C) matrices. A :math:`\Sigma_j` from N windows is shrunk to
those of its neighbours j by Ledoit and Wolf's (2004) share, with the sampling error of a Gaussian,
:math:`E\|\hat\Sigma - \Sigma\|^2 = ((\mathrm{tr}\,\Sigma)^2 + \mathrm{tr}\,\Sigma^2)/N`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from structdiff.errors import StructDiffError
from structdiff.guidance import GaussianCovariance
from structdiff.timeseries.prior import GaussianSkip

NEIGHBOURS = 8
"""Directions in time, on either side, whose channel covariances are averaged as the target."""
FLOOR = 0.01
"""Of the mean variance along a direction in time, added to every channel pattern: neighbouring
electrodes are so alike that sampling error would otherwise decide what tells them apart."""
REST = 1e-6
"""Of the mean variance of all directions, the smallest that one has: what was filtered out of the
training data must still have an inverse."""


@dataclass(frozen=True)
class WindowCovariance:
    """A Gaussian over windows (L, C), float64.

    Parameters
    ----------
    level
        Mean per channel, (C,).
    times
        Orthonormal directions in time, columns of (L, L).
    patterns
        Per direction, orthonormal channel patterns, columns of (C, C): (L, C, C).
    values
        Variances along them, positive, (L, C).
    """

    level: Tensor
    times: Tensor
    patterns: Tensor
    values: Tensor

    def coordinates(self, windows: Tensor) -> Tensor:
        """Along the eigenvectors, windows (B, L, C) without mean -> (B, L, C)."""
        along = self.times.T @ windows
        return (along.transpose(0, 1) @ self.patterns).transpose(0, 1)

    def windows(self, coordinates: Tensor) -> Tensor:
        """Back from :meth:`coordinates`."""
        along = (coordinates.transpose(0, 1) @ self.patterns.mT).transpose(0, 1)
        return self.times @ along

    def to(self, device: torch.device) -> WindowCovariance:
        """On another device."""
        parts = (self.level, self.times, self.patterns, self.values)
        return WindowCovariance(*(part.to(device) for part in parts))

    def rows(self, entries: Tensor) -> Tensor:
        """Rows of the matrix of eigenvectors for entries l C + c (M,): (M, L C)."""
        channels = len(self.level)
        in_time = self.times[entries // channels]  # (M, L)
        over = self.patterns[:, entries % channels].transpose(0, 1)  # (M, L, C)
        return (in_time[:, :, None] * over).flatten(1)

    def low_rank(self, rank: int) -> GaussianCovariance:
        """Its ``rank`` largest directions, over the coordinates (L C,).

        Raises
        ------
        StructDiffError
            If the rank is below 1.
        """
        if rank < 1:
            raise StructDiffError(f"rank must be at least 1, got {rank}")
        (length, channels), flat = self.values.shape, self.values.flatten()
        kept = flat.argsort(descending=True, stable=True)[:rank]
        j, k = kept // channels, kept % channels
        over = self.patterns[j, :, k].T  # (C, k)
        vectors = (self.times[:, None, j] * over[None]).reshape(length * channels, -1)
        rest = float(flat.sum() - flat[kept].sum()) / max(len(flat) - len(kept), 1)
        rest = min(max(rest, 0.0), float(flat[kept[-1]]))
        return GaussianCovariance(self.level.repeat(length), vectors, flat[kept], rest)


def limit_bursts(windows: Tensor) -> Tensor:
    """Windows (N, L, C) as float64; those above nine times the median power are drawn in to it.

    A covariance follows its largest samples: one movement would outweigh a minute of EEG.
    """
    values = windows.double()
    power = values.square().mean((1, 2), keepdim=True)
    limit = 9 * power.median()
    return values * torch.sqrt((limit / power.clamp(min=1e-30)).clamp(max=1.0))


def fit_covariance(windows: Tensor, effective: float | None = None) -> WindowCovariance:
    """The Gaussian of windows (N, L, C).

    Parameters
    ----------
    windows
        Finite, scaled; two or more.
    effective
        How many independent windows they are worth: fewer than N where they overlap.

    Raises
    ------
    StructDiffError
        If there are fewer than two windows.
    """
    count = len(windows)
    if count < 2:
        raise StructDiffError(f"a covariance needs two or more windows, got {count}")
    values = limit_bursts(windows)
    level = values.mean((0, 1))
    gap = values - level
    in_time = torch.einsum("nlc,nmc->lm", gap, gap)
    times = torch.linalg.eigh(in_time).eigenvectors.flip(1)  # the strongest first
    along = (times.T @ gap).transpose(0, 1)  # (L, N, C)
    raw = along.mT @ along / count
    spatial = shrink_to_neighbours(raw, count if effective is None else effective)
    variances, patterns = torch.linalg.eigh(spatial)
    mean = variances.clamp(min=0).mean(1, keepdim=True)
    floored = (variances.clamp(min=0) + FLOOR * mean) / (1 + FLOOR)
    return WindowCovariance(level, times, patterns, floored.clamp(min=REST * float(mean.mean())))


def shrink_to_neighbours(raw: Tensor, count: float) -> Tensor:
    """Channel covariances (L, C, C) of ``count`` windows, each drawn to those next to it."""
    power = raw.diagonal(dim1=1, dim2=2).sum(1).clamp(min=1e-30)  # (L,)
    shape = raw / power[:, None, None]
    # Sums over the neighbours as differences of cumulative sums.
    total = torch.cat([torch.zeros_like(shape[:1]), shape.cumsum(0)])
    place = torch.arange(len(raw))
    low = (place - NEIGHBOURS).clamp(min=0)
    high = (place + NEIGHBOURS + 1).clamp(max=len(raw))
    target = (total[high] - total[low]) / (high - low)[:, None, None]
    error = (1 + target.square().sum((1, 2))) / count
    distance = (shape - target).square().sum((1, 2)).clamp(min=1e-30)
    share = (error / distance).clamp(max=1.0)[:, None, None]
    return (share * target + (1 - share) * shape) * power[:, None, None]


class WindowSkip(GaussianSkip):
    """:class:`~structdiff.timeseries.prior.GaussianSkip` around a :class:`WindowCovariance`.

    Parameters
    ----------
    backbone
        As there.
    shape
        (L, C) of a window.
    """

    level: Tensor
    times: Tensor
    patterns: Tensor

    def __init__(self, backbone: nn.Module, shape: tuple[int, int]) -> None:
        nn.Module.__init__(self)  # the parent's buffers are those of a low-rank matrix
        self.backbone, self.shape = backbone, (int(shape[0]), int(shape[1]))
        length, channels = self.shape
        self.register_buffer("level", torch.zeros(channels))
        self.register_buffer("times", torch.eye(length))
        self.register_buffer("patterns", torch.eye(channels).repeat(length, 1, 1))
        self.register_buffer("values", torch.ones(length, channels))

    @property
    def windows(self) -> WindowCovariance:
        """The prior, at the precision of the weights but float64, on the CPU."""
        names = ("level", "times", "patterns", "values")
        return WindowCovariance(*(getattr(self, name).detach().cpu().double() for name in names))

    def set_windows(self, prior: WindowCovariance) -> None:
        """Take over a prior of the same shape."""
        for name in ("level", "times", "patterns", "values"):
            getattr(self, name).copy_(getattr(prior, name))

    def denoise(self, window: Tensor, variance: Tensor) -> Tensor:
        """As the parent's, by products with (L, L) and (C, C) matrices."""
        spread = variance[:, :, None]
        gap = window.unflatten(1, self.shape) - self.level
        moved = self._by_factor(gap, self.values / (self.values + spread))
        return (self.level + moved).flatten(1)

    def spread(self, out: Tensor, variance: Tensor) -> Tensor:
        """As the parent's."""
        spread = variance[:, :, None]
        factor = torch.sqrt(self.values * spread / (self.values + spread))  # (B, L, C)
        return self._by_factor(out.unflatten(1, self.shape), factor).flatten(1)

    def _by_factor(self, windows: Tensor, factor: Tensor) -> Tensor:
        prior = WindowCovariance(self.level, self.times, self.patterns, self.values)
        return prior.windows(factor * prior.coordinates(windows))


@dataclass(frozen=True)
class WindowWeight:
    r""":class:`~structdiff.timeseries.prior.GaussianWeight` of a window's eigenvalues.

    Parameters
    ----------
    values
        Eigenvalues of the prior, any shape.
    """

    values: Tensor

    def __call__(self, half_log_snr: Tensor) -> Tensor:
        values = self.values.to(half_log_snr).flatten()
        variance = torch.exp(-2 * half_log_snr)[:, None]
        return 1 / (values / (values + variance)).mean(1)
