r"""What a stochastic interpolant is made of: paths between two densities, and noise scales.

.. math:: x_t = d(t)\,x_0 + c(t)\,x_1 + \gamma(t)\,z

A path gives d and c and their rates, a gamma the noise scale and its rate: closed forms, float64,
of any shape of t. (Albergo, Boffi and Vanden-Eijnden 2023, section 4.)
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from structdiff.errors import StructDiffError
from structdiff.processes.gaussian import GaussianProcess


def _double(t: Tensor | float) -> Tensor:
    return torch.as_tensor(t, dtype=torch.float64)


# --- noise scales --------------------------------------------------------------------------------
class Gamma(ABC):
    r"""Noise scale :math:`\gamma(t)` of an interpolant, and its rate."""

    @abstractmethod
    def value(self, t: Tensor | float) -> Tensor:
        r""":math:`\gamma(t)`."""

    @abstractmethod
    def rate(self, t: Tensor | float) -> Tensor:
        r""":math:`d\gamma/dt`; infinite where the Brownian one begins and ends."""


@dataclass(frozen=True)
class NoNoise(Gamma):
    """0: the deterministic interpolants of flow matching; they have no score of their own."""

    def value(self, t: Tensor | float) -> Tensor:
        return torch.zeros_like(_double(t))

    def rate(self, t: Tensor | float) -> Tensor:
        return torch.zeros_like(_double(t))


@dataclass(frozen=True)
class Constant(Gamma):
    r"""The same noise at all times: :math:`\sigma_0` of conditional flow matching (Tong et al.).

    It does not vanish at the ends, so both densities come out smoothed by it.

    Parameters
    ----------
    sigma_0
        The noise scale.
    """

    sigma_0: float = 0.1

    def __post_init__(self) -> None:
        _positive("Constant", "sigma_0", self.sigma_0)

    def value(self, t: Tensor | float) -> Tensor:
        return torch.full_like(_double(t), self.sigma_0)

    def rate(self, t: Tensor | float) -> Tensor:
        return torch.zeros_like(_double(t))


@dataclass(frozen=True)
class Brownian(Gamma):
    r""":math:`\sqrt{a\,t(1-t)}`: the spread of a Brownian bridge of variance rate a.

    Parameters
    ----------
    a
        Variance rate; :math:`2\varepsilon` makes the entropic coupling's interpolant a
        Schroedinger bridge.
    """

    a: float = 1.0

    def __post_init__(self) -> None:
        _positive("Brownian", "a", self.a)

    def value(self, t: Tensor | float) -> Tensor:
        t = _double(t)
        return torch.sqrt(self.a * t * (1 - t))

    def rate(self, t: Tensor | float) -> Tensor:
        t = _double(t)
        return self.a * (1 - 2 * t) / (2 * self.value(t))


@dataclass(frozen=True)
class BSquared(Gamma):
    r""":math:`b\,t(1-t)`.

    Parameters
    ----------
    scale
        b.
    """

    scale: float = 1.0

    def __post_init__(self) -> None:
        _positive("BSquared", "scale", self.scale)

    def value(self, t: Tensor | float) -> Tensor:
        t = _double(t)
        return self.scale * t * (1 - t)

    def rate(self, t: Tensor | float) -> Tensor:
        return self.scale * (1 - 2 * _double(t))


@dataclass(frozen=True)
class SinSquared(Gamma):
    r""":math:`b \sin^2(\pi t)`.

    Parameters
    ----------
    scale
        b.
    """

    scale: float = 1.0

    def __post_init__(self) -> None:
        _positive("SinSquared", "scale", self.scale)

    def value(self, t: Tensor | float) -> Tensor:
        return self.scale * torch.sin(math.pi * _double(t)) ** 2

    def rate(self, t: Tensor | float) -> Tensor:
        return self.scale * math.pi * torch.sin(2 * math.pi * _double(t))


@dataclass(frozen=True)
class Sigmoid(Gamma):
    r"""A plateau with smooth flanks: :math:`S(f(t-\frac12)+1) - S(f(t-\frac12)-1)`, less its ends.

    Parameters
    ----------
    sharpness
        f.
    """

    sharpness: float = 10.0

    def __post_init__(self) -> None:
        _positive("Sigmoid", "sharpness", self.sharpness)

    def value(self, t: Tensor | float) -> Tensor:
        u, end = self.sharpness * (_double(t) - 0.5), torch.as_tensor(-self.sharpness / 2).double()
        plateau = torch.sigmoid(u + 1) - torch.sigmoid(u - 1)
        return plateau - (torch.sigmoid(end + 1) - torch.sigmoid(end - 1))

    def rate(self, t: Tensor | float) -> Tensor:
        u = self.sharpness * (_double(t) - 0.5)
        up, down = torch.sigmoid(u + 1), torch.sigmoid(u - 1)
        return self.sharpness * (up * (1 - up) - down * (1 - down))


@dataclass(frozen=True)
class ProcessNoise(Gamma):
    """The noise scale of a Gaussian process: what a one-sided interpolant has.

    Parameters
    ----------
    process
        The process.
    """

    process: GaussianProcess

    def value(self, t: Tensor | float) -> Tensor:
        return self.process.sigma(t)

    def rate(self, t: Tensor | float) -> Tensor:
        return self.process.sigma_derivative(t)


def _positive(kind: str, name: str, value: float) -> None:
    if not (value > 0 and math.isfinite(value)):
        raise StructDiffError(f"{kind} needs a positive {name}, got {value}")


# --- paths ---------------------------------------------------------------------------------------
class Path(ABC):
    """Scales of data and base over time."""

    keeps_variance: ClassVar[bool] = False
    r"""Whether both scales are shrunk by :math:`\sqrt{1-\gamma^2}` to make room for the noise."""
    two_sided: ClassVar[bool] = True
    """Whether a base takes part besides the noise."""
    needs_noise: ClassVar[bool] = False
    """Whether the interpolant is lost where the noise vanishes inside (0, 1)."""

    @abstractmethod
    def scales(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Scale of the data and of the base."""

    @abstractmethod
    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Their derivatives."""


@dataclass(frozen=True)
class Linear(Path):
    r"""The straight line: :math:`(1-t)\,x_0 + t\,x_1`."""

    def scales(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return 1 - t, t.clone()

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return -torch.ones_like(t), torch.ones_like(t)


@dataclass(frozen=True)
class Trigonometric(Path):
    r""":math:`\sqrt{1-\gamma^2}\,(\cos\frac{\pi t}{2}\,x_0 + \sin\frac{\pi t}{2}\,x_1)`.

    Ends of unit variance stay of unit variance on the way.
    """

    keeps_variance: ClassVar[bool] = True

    def scales(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return torch.cos(math.pi / 2 * t), torch.sin(math.pi / 2 * t)

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        data, base = self.scales(t)
        return -math.pi / 2 * base, math.pi / 2 * data


@dataclass(frozen=True)
class EncodingDecoding(Path):
    r""":math:`\cos^2(\pi t)` on the data up to t = 1/2, on the base from there.

    In the middle there is nothing but noise: data and base are independent given it.
    """

    needs_noise: ClassVar[bool] = True

    def scales(self, t: Tensor) -> tuple[Tensor, Tensor]:
        scale, none = torch.cos(math.pi * t) ** 2, torch.zeros_like(t)
        return torch.where(t < 0.5, scale, none), torch.where(t < 0.5, none, scale)

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        rate, none = -math.pi * torch.sin(2 * math.pi * t), torch.zeros_like(t)
        return torch.where(t < 0.5, rate, none), torch.where(t < 0.5, none, rate)


@dataclass(frozen=True)
class Mirror(Path):
    r"""The data at all times, :math:`x_0 + \gamma z`: from the data to the data."""

    two_sided: ClassVar[bool] = False

    def scales(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return torch.ones_like(t), torch.zeros_like(t)

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return torch.zeros_like(t), torch.zeros_like(t)


@dataclass(frozen=True)
class OneSided(Path):
    r""":math:`\alpha(t)\,x_0 + \sigma(t)\,z` of a Gaussian process: the noise is the base.

    Parameters
    ----------
    process
        The process.
    """

    process: GaussianProcess
    two_sided: ClassVar[bool] = False

    def scales(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return self.process.alpha(t), torch.zeros_like(t)

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return self.process.alpha_derivative(t), torch.zeros_like(t)
