r"""Residual diffusion: from the data to a known companion plus noise.

.. math:: x_t = x_0 + A(t)\,(y - x_0) + B(t)\,\epsilon = (1 - A)\,x_0 + A\,y + B\,\epsilon

y is a degraded image, low-resolution data, the previous window; :math:`I_{res} = y - x_0` is the
residual. As an SDE, :math:`dx = \theta (y - x)\,dt + g\,dw` with :math:`\theta = \dot A/(1-A)` and
:math:`g^2 = dB^2/dt + 2\theta B^2`. Source: Liu et al. 2024 (RDDM), in continuous time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar, Literal, NamedTuple, TypeAlias, get_args

import torch
from torch import Tensor

from structdiff.errors import StructDiffError
from structdiff.processes.gaussian import GaussianProcess, _double

Ramp: TypeAlias = Literal["decreased", "average", "increased", "normal"]
"""Rate of the cumulated amount: falling, constant, growing, or a Gaussian bell over time."""
_BELL = 3.0  # the bell spans 3 standard deviations to either side


def _bell_share(z: Tensor) -> Tensor:
    """Share of the bell to the left of z standard deviations."""
    left = torch.special.ndtr(_double(-_BELL))
    return (torch.special.ndtr(z) - left) / (1 - 2 * left)


@dataclass(frozen=True)
class _Amount:
    """An amount that grows from 0 at t = 0 to 1 at t = 1; its rate has the shape of a ramp."""

    ramp: Ramp
    power: float

    def value(self, t: Tensor) -> Tensor:
        if self.ramp == "increased":
            return t ** (self.power + 1)
        if self.ramp == "decreased":
            return -torch.expm1((self.power + 1) * torch.log1p(-t))
        return t.clone() if self.ramp == "average" else _bell_share(_BELL * (2 * t - 1))

    def log_rest(self, t: Tensor) -> Tensor:
        """ln(1 - value), without the cancellation at either end."""
        if self.ramp == "decreased":
            return (self.power + 1) * torch.log1p(-t)
        if self.ramp == "normal":
            near, far = torch.clamp(t, max=0.5), torch.clamp(t, min=0.5)
            # What is left of a bell is what mirrored time has passed of it.
            return torch.where(
                t < 0.5, torch.log1p(-self.value(near)), torch.log(self.value(1 - far))
            )
        return torch.log1p(-self.value(t))

    def rate(self, t: Tensor) -> Tensor:
        """Derivative of the value."""
        if self.ramp == "increased":
            return (self.power + 1) * t**self.power
        if self.ramp == "decreased":
            return (self.power + 1) * (1 - t) ** self.power
        if self.ramp == "average":
            return torch.ones_like(t)
        z = _BELL * (2 * t - 1)
        height = 2 * _BELL / math.sqrt(2 * math.pi) / math.erf(_BELL / math.sqrt(2))
        return height * torch.exp(-(z**2) / 2)

    def relative_rate(self, t: Tensor) -> Tensor:
        """Rate over what is left, rate / (1 - value)."""
        if self.ramp == "decreased":
            return (self.power + 1) / (1 - t)
        return self.rate(t) * torch.exp(-self.log_rest(t))

    def time_at(self, value: float) -> float:
        """Inverse of the value."""
        if self.ramp == "increased":
            return float(value ** (1 / (self.power + 1)))
        if self.ramp == "decreased":
            return -math.expm1(math.log1p(-value) / (self.power + 1))
        if self.ramp == "average":
            return value
        left = float(torch.special.ndtr(_double(-_BELL)))
        z = torch.special.ndtri(_double(left + value * (1 - 2 * left)))
        return (float(z) / _BELL + 1) / 2


@dataclass(frozen=True)
class Residual(GaussianProcess):
    r"""RDDM: :math:`\alpha = 1 - A(t)`, companion coefficient :math:`A(t)`, :math:`\sigma = B(t)`.

    The paper's chain has rates :math:`\alpha_i` (of A) and :math:`\beta_i^2` (of B squared) in the
    shape of a ramp; this is its limit of many links.

    Parameters
    ----------
    companion
        Name of the component y that the data move to.
    mean_ramp, mean_power
        Shape of the rate of A; for ``"decreased"`` and ``"increased"`` the power of time in it.
    noise_ramp, noise_power
        The same of :math:`B^2`.
    noise_scale
        :math:`B(1)^2`: 1 in the paper, 0.01 for restoration.
    t_min
        Time at which sampling stops.
    alpha_min
        Share of the data left where sampling starts: ``t_max`` is where :math:`1 - A` falls to it.
        At t = 1 nothing is left, so a network that predicts noise could not tell the data.

    Raises
    ------
    StructDiffError
        If a ramp is unknown or a number out of range.
    """

    companion: str = "y"
    mean_ramp: Ramp = "decreased"
    noise_ramp: Ramp = "increased"
    mean_power: float = 1.0
    noise_power: float = 1.0
    noise_scale: float = 1.0
    t_min: float = 1e-3
    alpha_min: float = 1e-3

    shifted: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for ramp in (self.mean_ramp, self.noise_ramp):
            if ramp not in get_args(Ramp):
                raise StructDiffError(
                    f"unknown ramp {ramp!r}: choose one of {', '.join(get_args(Ramp))}"
                )
        if not (self.mean_power >= 0 and self.noise_power >= 0 and self.noise_scale > 0):
            raise StructDiffError(
                "Residual needs powers of at least 0 and a positive noise_scale, got "
                f"{self.mean_power}, {self.noise_power} and {self.noise_scale}"
            )
        if not 0 < self.alpha_min < 1:
            raise StructDiffError(f"Residual needs 0 < alpha_min < 1, got {self.alpha_min}")
        if not 0 < self.t_min < self.t_max:
            raise StructDiffError(
                f"Residual needs 0 < t_min < t_max, got {self.t_min} and {self.t_max:.4g}"
            )

    @property
    def t_max(self) -> float:  # type: ignore[override]
        return self._mean.time_at(1 - self.alpha_min)

    @property
    def _mean(self) -> _Amount:
        return _Amount(self.mean_ramp, self.mean_power)

    @property
    def _noise(self) -> _Amount:
        return _Amount(self.noise_ramp, self.noise_power)

    def shift(self, t: Tensor | float) -> Tensor:
        return self._mean.value(_double(t))

    def log_alpha(self, t: Tensor | float) -> Tensor:
        return self._mean.log_rest(_double(t))

    def sigma(self, t: Tensor | float) -> Tensor:
        return torch.sqrt(self.noise_scale * self._noise.value(_double(t)))

    def drift(self, t: Tensor | float) -> Tensor:
        return -self._mean.relative_rate(_double(t))

    def diffusion_squared(self, t: Tensor | float) -> Tensor:
        t = _double(t)
        growth = self._noise.rate(t) + 2 * self._mean.relative_rate(t) * self._noise.value(t)
        return self.noise_scale * growth

    def time_at(self, half_log_snr: Tensor | float) -> Tensor:
        level = _double(half_log_snr)
        levels, logits = (v.to(level.device) for v in _levels(self))
        # Nearly linear in logit(t): interpolate, then Newton to the last bits.
        right = torch.searchsorted(levels, -level).clamp(1, len(levels) - 1)
        share = (-level - levels[right - 1]) / (levels[right] - levels[right - 1])
        logit = torch.lerp(logits[right - 1], logits[right], share.clamp(0, 1))
        for _ in range(4):
            t = torch.sigmoid(logit)
            slope = (
                -self.diffusion_squared(t) / (2 * self.sigma(t) ** 2) * t * torch.sigmoid(-logit)
            )
            logit = logit - ((self.half_log_snr(t) - level) / slope).clamp(-1, 1)
        return torch.sigmoid(logit)


@lru_cache(maxsize=64)
def _levels(process: Residual) -> tuple[Tensor, Tensor]:
    """Minus the half log-SNR, rising, and logit(t) at which it is reached; each (1801,)."""
    logits = torch.linspace(-60, 30, 1801, dtype=torch.float64)
    return -process.half_log_snr(torch.sigmoid(logits)), logits


class ResidualPosterior(NamedTuple):
    r"""Law of :math:`x_s` given :math:`x_t`, the data and the residual: a Gaussian."""

    state: Tensor
    r"""Coefficient of :math:`x_t` in the mean, with the companion in it (un-centred)."""
    residual: Tensor
    r"""Coefficient of :math:`y - x_0`."""
    data: Tensor
    r"""Coefficient of :math:`x_0`."""
    variance: Tensor


def residual_posterior(process: GaussianProcess, s: float, t: float) -> ResidualPosterior:
    r"""One link backwards of the residual chain, from t to s < t (Liu et al. 2024).

    .. math:: \frac{B_s^2}{B_t^2} x_t + \frac{\beta^2 A_s - B_s^2 \alpha}{B_t^2} I_{res}
              + \frac{\beta^2}{B_t^2} x_0, \qquad \text{variance } \frac{\beta^2 B_s^2}{B_t^2}

    with :math:`\alpha = A_t - A_s` and :math:`\beta^2 = B_t^2 - B_s^2`, for the chain
    :math:`x_t = x_s + \alpha I_{res} + \beta z`. At s = 0 nothing has been added yet,
    :math:`A_0 = B_0 = 0`: the mean is the data itself and the variance 0.

    Parameters
    ----------
    process
        Its :math:`1 - \alpha` is A and its :math:`\sigma` B; any process whose noise grows.
    s, t
        Times of the link, 0 <= s < t.

    Raises
    ------
    StructDiffError
        If s and t are out of order or the noise does not grow between them.
    """
    if not 0 <= s < t:
        raise StructDiffError(f"a link of the residual chain needs 0 <= s < t, got {s} and {t}")
    a_s, a_t = (-torch.expm1(process.log_alpha(time)) for time in (s, t))
    b_s, b_t = (process.sigma(time) ** 2 for time in (s, t))
    alpha, beta = a_t - a_s, b_t - b_s
    if float(beta) <= 0:
        raise StructDiffError(f"{process} adds no noise between {s} and {t}")
    return ResidualPosterior(
        b_s / b_t, (beta * a_s - b_s * alpha) / b_t, beta / b_t, beta * b_s / b_t
    )
