r"""Weights of the squared error of the *noise*, as functions of the half log-SNR.

The error of any other prediction is the same error up to a factor of the noise level
(:math:`|\delta\epsilon|^2 = (\alpha/\sigma)^2 |\delta x_0|^2`), so one convention serves all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class Weight(Protocol):
    """Weight per object at its half log-SNR."""

    def __call__(self, half_log_snr: Tensor) -> Tensor:
        """(B,) -> (B,)."""
        ...


@dataclass(frozen=True)
class Simple:
    """1: the unweighted error of the noise (Ho et al. 2020; the default of score-SDE and GDSS)."""

    def __call__(self, half_log_snr: Tensor) -> Tensor:
        return torch.ones_like(half_log_snr)


@dataclass(frozen=True)
class EDMWeight:
    r"""Unit weight of the preconditioned network: :math:`(\rho^2+s^2)/(\rho s)^2` on x0.

    Parameters
    ----------
    data_std
        s, the standard deviation of the data (Karras et al. 2022, table 1).
    """

    data_std: float = 0.5

    def __call__(self, half_log_snr: Tensor) -> Tensor:
        # On x0 the weight is 1/rho^2 + 1/s^2; an error of x0 is rho times the error of the noise.
        rho_squared = torch.exp(-2 * half_log_snr)
        return 1 + rho_squared / self.data_std**2
