r"""The Ornstein-Uhlenbeck process :math:`dx = -x\,d\tau + dw` that runs to a horizon T.

.. math:: \alpha = e^{-\tau}, \qquad \sigma^2 = \tfrac12 (1 - e^{-2\tau}), \qquad \tau = T t

Its prior is N(0, I/2). Source: Deveney et al. 2023, who study Fokker-Planck residuals on it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from structdiff.errors import StructDiffError
from structdiff.processes.gaussian import GaussianProcess, _double


@dataclass(frozen=True)
class OrnsteinUhlenbeck(GaussianProcess):
    r"""Unit pull and unit noise over a time T.

    Parameters
    ----------
    horizon
        T, 10 in the paper; times here are shares of it.
    t_min
        Time at which sampling stops: 1e-6, that is 1e-5 in the paper's time.
    """

    horizon: float = 10.0
    t_min: float = 1e-6

    def __post_init__(self) -> None:
        if not self.horizon > 0:
            raise StructDiffError(f"OrnsteinUhlenbeck needs a positive horizon, got {self.horizon}")

    def log_alpha(self, t: Tensor | float) -> Tensor:
        return -self.horizon * _double(t)

    def sigma(self, t: Tensor | float) -> Tensor:
        return torch.sqrt(-torch.expm1(2 * self.log_alpha(t)) / 2)

    def drift(self, t: Tensor | float) -> Tensor:
        return torch.full_like(_double(t), -self.horizon)

    def diffusion_squared(self, t: Tensor | float) -> Tensor:
        return torch.full_like(_double(t), self.horizon)

    def time_at(self, half_log_snr: Tensor | float) -> Tensor:
        # e^{2 lambda} = 2 alpha^2 / (1 - alpha^2), so alpha^2 = sigmoid(2 lambda - ln 2).
        odds = 2 * _double(half_log_snr) - math.log(2)
        return -torch.nn.functional.logsigmoid(odds) / (2 * self.horizon)
