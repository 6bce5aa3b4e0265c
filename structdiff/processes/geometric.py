r"""Geometric Brownian motion: multiplicative noise for positive data.

.. math:: dX = \mu X\,dt + \varsigma(t) X\,dW, \qquad
          X_t = X_0 \exp\left(\mu t - \tfrac12 v(t) + \sqrt{v(t)}\,z\right), \quad
          v(t) = \int_0^t \varsigma^2

On the logarithm y = ln X it is a variance-exploding process with a deterministic drift. So it is
used with ``spaces={"x": Positive()}``: there :math:`\alpha = 1`, :math:`\sigma^2 = v(t)`, and the
drift :math:`\mu t - v/2` is a shift by a constant, which centred states do not see. Source: Shetty
et al. 2025 (multiplicative diffusion); Dale's law as geometric Brownian motion.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from structdiff.errors import StructDiffError
from structdiff.processes.gaussian import GaussianProcess, _double


@dataclass(frozen=True)
class GeometricBrownian(GaussianProcess):
    r"""GBM on the logarithm: :math:`v(t) = \varsigma^2 t^p`.

    Parameters
    ----------
    mu
        Growth rate :math:`\mu`.
    volatility
        :math:`\varsigma`: the standard deviation of :math:`\ln X_1` given :math:`X_0`.
    power
        p; 1 is the constant volatility of the paper. Any other schedule of the volatility is a
        change of time, as grids are: 2 spends more of it near the data.
    t_min
        Time at which sampling stops.
    prior_scale
        Standard deviation of the prior of the centred logarithm; None is :math:`\varsigma`, to
        which the spread of the logarithm of the data may be added.
    """

    mu: float = 0.0
    volatility: float = 1.5
    power: float = 1.0
    t_min: float = 1e-3
    prior_scale: float | None = None

    shifted: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not (self.volatility > 0 and self.power > 0):
            raise StructDiffError(
                "GeometricBrownian needs a positive volatility and power, got "
                f"{self.volatility} and {self.power}"
            )

    def variance(self, t: Tensor | float) -> Tensor:
        """v(t): variance of the logarithm of x_t given x_0."""
        return self.volatility**2 * _double(t) ** self.power

    def shift(self, t: Tensor | float) -> Tensor:
        return self.mu * _double(t) - self.variance(t) / 2

    def log_alpha(self, t: Tensor | float) -> Tensor:
        return torch.zeros_like(_double(t))

    def sigma(self, t: Tensor | float) -> Tensor:
        return self.volatility * _double(t) ** (self.power / 2)

    def drift(self, t: Tensor | float) -> Tensor:
        return torch.zeros_like(_double(t))

    def diffusion_squared(self, t: Tensor | float) -> Tensor:
        return self.volatility**2 * self.power * _double(t) ** (self.power - 1)

    def time_at(self, half_log_snr: Tensor | float) -> Tensor:
        return (torch.exp(-_double(half_log_snr)) / self.volatility) ** (2 / self.power)

    def prior_std(self) -> float:
        return super().prior_std() if self.prior_scale is None else self.prior_scale
