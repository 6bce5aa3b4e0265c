r"""Linear Gaussian processes: :math:`x_t = \alpha(t) x_0 + \sigma(t) \epsilon`.

Everything follows from the two scales. With :math:`f = d\ln\alpha/dt` and
:math:`\lambda = \ln(\alpha/\sigma)` (half the log-SNR), the forward SDE is

.. math:: dx = f(t)\,x\,dt + g(t)\,dw, \qquad g^2 = \frac{d\sigma^2}{dt} - 2 f \sigma^2
          = -2 \sigma^2 \frac{d\lambda}{dt}.

Time runs from the data at 0 to the prior at 1. All functions take a time tensor of any shape and
return float64 of that shape; closed forms throughout, ``expm1`` where subtraction would cancel.

A mean may also hold a known companion y (a degraded image, the previous window, the constant 1):
:math:`x_t = \alpha x_0 + c(t)\,y + \sigma\epsilon`. The *centred* coordinate :math:`x_t - c(t)\,y`
is then an ordinary member of the family, so states are centred everywhere; only a network sees the
un-centred one (:class:`~structdiff.denoisers.Denoiser`).

Sources: Song et al. 2021 (VP, sub-VP, VE), Nichol and Dhariwal 2021 (cosine), Karras et al. 2022
(EDM), Lipman et al. 2023 and Liu et al. 2023 (the straight line of flow matching).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from structdiff.errors import StructDiffError


def _double(t: Tensor | float) -> Tensor:
    return torch.as_tensor(t, dtype=torch.float64)


def _chain_index(t: float, links: int) -> int:
    """Link of a published chain at time t: floor(t (N - 1)), safe against the last bit of t."""
    return math.floor(t * (links - 1) + 1e-9)


class GaussianProcess(ABC):
    """Base of the linear Gaussian processes.

    Subclasses give ``log_alpha``, ``drift``, ``sigma``, ``diffusion_squared`` and ``time_at``.
    """

    t_min: float
    """Time at which sampling stops and the denoised state is returned."""
    t_max: float = 1.0
    """Time at which sampling starts; below 1 only where the process is singular at 1."""
    shifted: ClassVar[bool] = False
    """Whether the mean holds c(t) y; where not, nothing is computed for it."""
    companion: str | None = None
    """The component that is y, conditioned on; None with a shift is the constant 1."""

    @abstractmethod
    def log_alpha(self, t: Tensor | float) -> Tensor:
        """Logarithm of the signal scale."""

    @abstractmethod
    def sigma(self, t: Tensor | float) -> Tensor:
        """Noise scale: standard deviation of x_t given x_0."""

    @abstractmethod
    def drift(self, t: Tensor | float) -> Tensor:
        r"""Coefficient :math:`f = d\ln\alpha/dt` of the linear drift."""

    @abstractmethod
    def diffusion_squared(self, t: Tensor | float) -> Tensor:
        """Squared diffusion coefficient :math:`g^2`."""

    @abstractmethod
    def time_at(self, half_log_snr: Tensor | float) -> Tensor:
        r"""Time at which :math:`\lambda(t)` takes a given value: inverse of ``half_log_snr``."""

    def shift(self, t: Tensor | float) -> Tensor:
        """Coefficient c of the companion in the mean; 0 where there is none."""
        return torch.zeros_like(_double(t))

    def alpha(self, t: Tensor | float) -> Tensor:
        """Signal scale."""
        return torch.exp(self.log_alpha(t))

    def half_log_snr(self, t: Tensor | float) -> Tensor:
        r""":math:`\lambda = \ln(\alpha/\sigma)`."""
        return self.log_alpha(t) - torch.log(self.sigma(t))

    def diffusion(self, t: Tensor | float) -> Tensor:
        """Diffusion coefficient :math:`g`."""
        return torch.sqrt(self.diffusion_squared(t))

    def alpha_derivative(self, t: Tensor | float) -> Tensor:
        r""":math:`d\alpha/dt`."""
        return self.drift(t) * self.alpha(t)

    def sigma_derivative(self, t: Tensor | float) -> Tensor:
        r""":math:`d\sigma/dt = (g^2 + 2 f \sigma^2) / (2\sigma)`."""
        sigma = self.sigma(t)
        return self.diffusion_squared(t) / (2 * sigma) + self.drift(t) * sigma

    def discrete_step(self, t: float, dt: float) -> tuple[float, float]:
        r"""Forward chain of ``1/dt`` steps: (factor, G) of :math:`x_{i} = a\,x_{i-1} + G z`.

        The exact transition of the process over [t - dt, t]; VP and VE override it with the DDPM
        and SMLD chains that the reverse-diffusion predictor is defined on (Song et al. 2021,
        app. E).
        """
        before = max(t - dt, 0.0)
        factor = float(torch.exp(self.log_alpha(t) - self.log_alpha(before)))
        variance = float(self.sigma(t)) ** 2 - factor**2 * float(self.sigma(before)) ** 2
        return factor, math.sqrt(max(variance, 0.0))

    def chain_step(self, t: float, links: int) -> tuple[float, float]:
        r"""Link at time t of the published chain with ``links`` links: (factor, G).

        Published reverse-diffusion samplers index the DDPM and SMLD chains by
        :math:`i = \lfloor t (N - 1) \rfloor`; processes without such a chain take an Euler step
        of 1/N. Unlike :meth:`discrete_step` it knows no other grid.
        """
        step = 1 / links
        return 1 + float(self.drift(t)) * step, float(self.diffusion(t)) * math.sqrt(step)

    def chain_alpha(self, t: float, links: int) -> float:
        r"""Published step-size factor of the Langevin corrector: :math:`1 - \beta_i`, else 1."""
        return 1.0

    def prior_std(self) -> float:
        r"""Standard deviation of the prior that sampling starts from: :math:`\sigma(1)`."""
        return float(self.sigma(self.t_max))


@dataclass(frozen=True)
class VP(GaussianProcess):
    r"""Variance preserving: :math:`\beta(t) = \beta_0 + t(\beta_1-\beta_0)`.

    Parameters
    ----------
    beta_min, beta_max
        Noise rate at t = 0 and t = 1.
    t_min
        Time at which sampling stops.
    prior_scale
        Standard deviation of the prior; None is the matched :math:`\sigma(1)`, GDSS and score-SDE
        start from 1 whatever the schedule.
    """

    beta_min: float = 0.1
    beta_max: float = 20.0
    t_min: float = 1e-3
    prior_scale: float | None = None

    def __post_init__(self) -> None:
        if not 0 < self.beta_min <= self.beta_max:
            raise StructDiffError(
                f"VP needs 0 < beta_min <= beta_max, got {self.beta_min} and {self.beta_max}"
            )

    def beta(self, t: Tensor | float) -> Tensor:
        """Noise rate."""
        return self.beta_min + _double(t) * (self.beta_max - self.beta_min)

    def log_alpha(self, t: Tensor | float) -> Tensor:
        t = _double(t)
        return -(t**2) * (self.beta_max - self.beta_min) / 4 - t * self.beta_min / 2

    def sigma(self, t: Tensor | float) -> Tensor:
        return torch.sqrt(-torch.expm1(2 * self.log_alpha(t)))

    def drift(self, t: Tensor | float) -> Tensor:
        return -self.beta(t) / 2

    def diffusion_squared(self, t: Tensor | float) -> Tensor:
        return self.beta(t)

    def _time_at_log_alpha(self, log_alpha: Tensor) -> Tensor:
        slope, rate = self.beta_max - self.beta_min, self.beta_min
        # Root of slope t^2/4 + rate t/2 + log_alpha = 0 in the form that does not cancel.
        root = torch.sqrt(rate**2 / 4 - slope * log_alpha)
        return -2 * log_alpha / (rate / 2 + root)

    def time_at(self, half_log_snr: Tensor | float) -> Tensor:
        # alpha^2 = sigmoid(2 lambda) when alpha^2 + sigma^2 = 1.
        log_alpha = torch.nn.functional.logsigmoid(2 * _double(half_log_snr)) / 2
        return self._time_at_log_alpha(log_alpha)

    def discrete_step(self, t: float, dt: float) -> tuple[float, float]:
        beta = float(self.beta(t)) * dt
        if beta >= 1:
            raise StructDiffError(
                f"the reverse-diffusion chain of VP needs beta * dt < 1, got {beta:.3g} "
                f"at t = {t:.3g}: use at least {math.ceil(self.beta_max) + 1} steps, "
                "or another sampler"
            )
        return math.sqrt(1 - beta), math.sqrt(beta)

    def chain_step(self, t: float, links: int) -> tuple[float, float]:
        # linspace(beta_min / N, beta_max / N, N)[i]
        return self.discrete_step(_chain_index(t, links) / max(links - 1, 1), 1 / links)

    def chain_alpha(self, t: float, links: int) -> float:
        return 1 - float(self.beta(_chain_index(t, links) / max(links - 1, 1))) / links

    def prior_std(self) -> float:
        return super().prior_std() if self.prior_scale is None else self.prior_scale


@dataclass(frozen=True)
class SubVP(VP):
    r"""Sub-VP: the drift of VP with :math:`\sigma = 1 - \alpha^2` (Song et al. 2021, eq. 29)."""

    def sigma(self, t: Tensor | float) -> Tensor:
        return -torch.expm1(2 * self.log_alpha(t))

    def diffusion_squared(self, t: Tensor | float) -> Tensor:
        return self.beta(t) * -torch.expm1(4 * self.log_alpha(t))

    def time_at(self, half_log_snr: Tensor | float) -> Tensor:
        # e^{-lambda} alpha^2 ... : alpha / (1 - alpha^2) = e^lambda is a quadratic in alpha.
        rho = torch.exp(-_double(half_log_snr))
        alpha = 2 / (rho + torch.sqrt(rho**2 + 4))
        # ln alpha near alpha = 1 (rho -> 0): alpha^2 = 1 - rho alpha.
        log_alpha = torch.where(rho < 0.1, torch.log1p(-rho * alpha) / 2, torch.log(alpha))
        return self._time_at_log_alpha(log_alpha)

    def discrete_step(self, t: float, dt: float) -> tuple[float, float]:
        return GaussianProcess.discrete_step(self, t, dt)

    def chain_step(self, t: float, links: int) -> tuple[float, float]:
        return GaussianProcess.chain_step(self, t, links)


@dataclass(frozen=True)
class VE(GaussianProcess):
    r"""Variance exploding: :math:`\sigma(t) = \sigma_{min} (\sigma_{max}/\sigma_{min})^t`.

    Parameters
    ----------
    sigma_min, sigma_max
        Noise scale at t = 0 and t = 1.
    t_min
        Time at which sampling stops.
    prior_scale
        Standard deviation of the prior; None is :math:`\sigma_{max}`.
    """

    sigma_min: float = 0.01
    sigma_max: float = 50.0
    t_min: float = 1e-5
    prior_scale: float | None = None

    def __post_init__(self) -> None:
        if not 0 < self.sigma_min < self.sigma_max:
            raise StructDiffError(
                f"VE needs 0 < sigma_min < sigma_max, got {self.sigma_min} and {self.sigma_max}"
            )

    @property
    def log_ratio(self) -> float:
        """ln(sigma_max / sigma_min)."""
        return math.log(self.sigma_max / self.sigma_min)

    def log_alpha(self, t: Tensor | float) -> Tensor:
        return torch.zeros_like(_double(t))

    def sigma(self, t: Tensor | float) -> Tensor:
        return self.sigma_min * torch.exp(self.log_ratio * _double(t))

    def drift(self, t: Tensor | float) -> Tensor:
        return torch.zeros_like(_double(t))

    def diffusion_squared(self, t: Tensor | float) -> Tensor:
        return 2 * self.log_ratio * self.sigma(t) ** 2

    def time_at(self, half_log_snr: Tensor | float) -> Tensor:
        return (-_double(half_log_snr) - math.log(self.sigma_min)) / self.log_ratio

    def discrete_step(self, t: float, dt: float) -> tuple[float, float]:
        if t - dt < -1e-12:  # the first link of the SMLD chain starts from the clean data
            return 1.0, float(self.sigma(t))
        return 1.0, math.sqrt(float(self.sigma(t)) ** 2 - float(self.sigma(t - dt)) ** 2)

    def chain_step(self, t: float, links: int) -> tuple[float, float]:
        # sigma_i log-spaced from sigma_min to sigma_max, sigma_{-1} = 0
        gap = 1 / max(links - 1, 1)
        return self.discrete_step(_chain_index(t, links) * gap, gap)

    def prior_std(self) -> float:
        return super().prior_std() if self.prior_scale is None else self.prior_scale


@dataclass(frozen=True)
class Cosine(GaussianProcess):
    r"""Cosine VP: :math:`\alpha = \cos u(t) / \cos u(0)`, :math:`u = \frac{\pi}{2}\frac{t+s}{1+s}`.

    Parameters
    ----------
    offset
        s of Nichol and Dhariwal 2021.
    t_min, t_max
        Sampling interval; alpha vanishes at 1, so sampling starts just before.
    """

    offset: float = 0.008
    t_min: float = 1e-3
    t_max: float = 0.999

    def _angle(self, t: Tensor | float) -> Tensor:
        return math.pi / 2 * (_double(t) + self.offset) / (1 + self.offset)

    def log_alpha(self, t: Tensor | float) -> Tensor:
        return torch.log(torch.cos(self._angle(t))) - torch.log(torch.cos(self._angle(0.0)))

    def sigma(self, t: Tensor | float) -> Tensor:
        # 1 - cos^2 u / cos^2 u0 = sin(u - u0) sin(u + u0) / cos^2 u0: no cancellation at t -> 0.
        start, angle = self._angle(0.0), self._angle(t)
        return torch.sqrt(torch.sin(angle - start) * torch.sin(angle + start)) / torch.cos(start)

    def drift(self, t: Tensor | float) -> Tensor:
        return -math.pi / 2 / (1 + self.offset) * torch.tan(self._angle(t))

    def diffusion_squared(self, t: Tensor | float) -> Tensor:
        return -2 * self.drift(t)

    def time_at(self, half_log_snr: Tensor | float) -> Tensor:
        rho2 = torch.exp(-2 * _double(half_log_snr))
        # sin^2 u = sigma^2 cos^2 u0 + sin^2 u0, with sigma^2 = rho^2 / (1 + rho^2).
        start = self._angle(0.0)
        sine2 = (rho2 * torch.cos(start) ** 2 + torch.sin(start) ** 2 * (1 + rho2)) / (1 + rho2)
        cosine2 = torch.cos(start) ** 2 / (1 + rho2)
        angle = torch.atan2(torch.sqrt(sine2), torch.sqrt(cosine2))
        return angle * 2 / math.pi * (1 + self.offset) - self.offset


@dataclass(frozen=True)
class EDM(GaussianProcess):
    r"""Noise added to unscaled data, linear in time: :math:`\sigma(t) = \sigma_{max} t`.

    Parameters
    ----------
    sigma_min, sigma_max
        Noise scales at which sampling stops and starts (Karras et al. 2022: 0.002 and 80).
    """

    sigma_min: float = 0.002
    sigma_max: float = 80.0

    @property
    def t_min(self) -> float:  # type: ignore[override]
        return self.sigma_min / self.sigma_max

    def log_alpha(self, t: Tensor | float) -> Tensor:
        return torch.zeros_like(_double(t))

    def sigma(self, t: Tensor | float) -> Tensor:
        return self.sigma_max * _double(t)

    def drift(self, t: Tensor | float) -> Tensor:
        return torch.zeros_like(_double(t))

    def diffusion_squared(self, t: Tensor | float) -> Tensor:
        return 2 * self.sigma_max**2 * _double(t)

    def time_at(self, half_log_snr: Tensor | float) -> Tensor:
        return torch.exp(-_double(half_log_snr)) / self.sigma_max


@dataclass(frozen=True)
class RectifiedFlow(GaussianProcess):
    r"""The straight line of flow matching: :math:`x_t = (1-t)\,x_0 + t\,\epsilon`.

    Parameters
    ----------
    t_min, t_max
        Sampling interval; the drift -1/(1-t) is singular at 1.
    """

    t_min: float = 1e-3
    t_max: float = 0.999

    def log_alpha(self, t: Tensor | float) -> Tensor:
        return torch.log1p(-_double(t))

    def sigma(self, t: Tensor | float) -> Tensor:
        return _double(t).clone()

    def drift(self, t: Tensor | float) -> Tensor:
        return -1 / (1 - _double(t))

    def diffusion_squared(self, t: Tensor | float) -> Tensor:
        t = _double(t)
        return 2 * t / (1 - t)

    def time_at(self, half_log_snr: Tensor | float) -> Tensor:
        return torch.sigmoid(-_double(half_log_snr))
