r"""Weights of the squared error of the *noise*.

The error of any other prediction is the same error up to a factor of the noise level, so one
convention serves all (:math:`\lambda` is half the log-SNR, a prime a derivative by time):

.. math:: |\delta\epsilon|^2 = (\alpha/\sigma)^2 |\delta x_0|^2 = \sigma^2 |\delta s|^2
          = (\sigma\lambda')^{-2} |\delta u|^2, \qquad
          |\delta v|^2 = \big((\alpha^2+\sigma^2)/\sigma\big)^2 |\delta x_0|^2

with u the probability-flow velocity and :math:`v = \alpha\epsilon - \sigma x_0`. Most weights are
functions of the log-SNR; some need the process as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, TypeAlias, runtime_checkable

import torch
from torch import Tensor

from structdiff.processes.gaussian import GaussianProcess
from structdiff.processes.system import System


class Weight(Protocol):
    """Weight per object at its half log-SNR."""

    def __call__(self, half_log_snr: Tensor) -> Tensor:
        """(B,) -> (B,)."""
        ...


@runtime_checkable
class ProcessWeight(Protocol):
    """Weight per object at a time of a process."""

    def at(self, process: GaussianProcess, t: Tensor) -> Tensor:
        """Own time (B,) -> (B,)."""
        ...


AnyWeight: TypeAlias = "Weight | ProcessWeight"


def weights_at(weight: AnyWeight, system: System, times: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weight per component and object, each (B,).

    Parameters
    ----------
    weight
        Of either kind.
    system
        The forward processes.
    times
        The components' own times, each (B,).
    """
    if isinstance(weight, ProcessWeight):
        return {k: weight.at(process, times[k]) for k, process in system.processes.items()}
    return {k: weight(v) for k, v in system.half_log_snr(times).items()}


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


@dataclass(frozen=True)
class MinSNR:
    r""":math:`\min(SNR, \gamma)` on x0, i.e. :math:`\min(1, \gamma/SNR)` (Hang et al. 2023).

    Parameters
    ----------
    gamma
        SNR above which the error of x0 counts no more.
    """

    gamma: float = 5.0

    def __call__(self, half_log_snr: Tensor) -> Tensor:
        return (self.gamma * torch.exp(-2 * half_log_snr)).clamp(max=1.0)


@dataclass(frozen=True)
class Sigmoid:
    r""":math:`\mathrm{sigmoid}(b - 2\lambda)`: noise levels near the data count ever less.

    Kingma and Gao 2023 define it against a uniform log-SNR, which is the time law ``Importance``.

    Parameters
    ----------
    bias
        b, the log-SNR of weight one half; 2 to 3 in use.
    """

    bias: float = 2.0

    def __call__(self, half_log_snr: Tensor) -> Tensor:
        return torch.sigmoid(self.bias - 2 * half_log_snr)


@dataclass(frozen=True)
class Likelihood:
    r""":math:`g^2/\sigma^2 = -2\lambda'`: twice the evidence bound under uniform times.

    Diverges near the data; the law ``Importance`` with ``Simple`` has the same mean gradient with
    less variance (Song et al. 2021).
    """

    def at(self, process: GaussianProcess, t: Tensor) -> Tensor:
        return process.diffusion_squared(t) / process.sigma(t) ** 2


@dataclass(frozen=True)
class VelocityWeight:
    r""":math:`(\sigma\lambda')^2`: the error of the probability-flow velocity (flow matching)."""

    def at(self, process: GaussianProcess, t: Tensor) -> Tensor:
        # sigma lambda' = -g^2 / (2 sigma)
        return (process.diffusion_squared(t) / (2 * process.sigma(t))) ** 2
