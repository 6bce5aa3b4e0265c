r"""One-sided processes of flow matching: from data to noise on a curve other than diffusion's.

.. math:: x_t = \alpha(t)\,x_0 + \sigma(t)\,\epsilon

They are ordinary Gaussian processes; the plainest,
:class:`~structdiff.processes.gaussian.RectifiedFlow`, stands with those. Sources: Lipman et al.
2023; Tong et al. 2024; Albergo, Boffi and Vanden-Eijnden 2023.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from structdiff.errors import StructDiffError
from structdiff.processes.gaussian import GaussianProcess


def _double(t: Tensor | float) -> Tensor:
    return torch.as_tensor(t, dtype=torch.float64)


@dataclass(frozen=True)
class TrigonometricFlow(GaussianProcess):
    r"""The quarter circle: :math:`x_t = \cos\frac{\pi t}{2} x_0 + \sin\frac{\pi t}{2} \epsilon`.

    VP-CFM of Tong et al. 2024.

    Parameters
    ----------
    t_min, t_max
        Sampling interval; the drift is singular at 1.
    """

    t_min: float = 1e-3
    t_max: float = 0.999

    def log_alpha(self, t: Tensor | float) -> Tensor:
        return torch.log(torch.cos(math.pi / 2 * _double(t)))

    def sigma(self, t: Tensor | float) -> Tensor:
        return torch.sin(math.pi / 2 * _double(t))

    def drift(self, t: Tensor | float) -> Tensor:
        return -math.pi / 2 * torch.tan(math.pi / 2 * _double(t))

    def diffusion_squared(self, t: Tensor | float) -> Tensor:
        return math.pi * torch.tan(math.pi / 2 * _double(t))

    def time_at(self, half_log_snr: Tensor | float) -> Tensor:
        return torch.atan(torch.exp(-_double(half_log_snr))) * 2 / math.pi


@dataclass(frozen=True)
class LipmanFlow(GaussianProcess):
    r"""Lipman et al. 2023: :math:`x_t = (1-t)\,x_0 + (\sigma_0 + (1-\sigma_0)\,t)\,\epsilon`.

    Parameters
    ----------
    sigma_0
        Noise left at the data; 0 is the straight line of
        :class:`~structdiff.processes.gaussian.RectifiedFlow`.
    t_min, t_max
        Sampling interval; the drift is singular at 1.
    """

    sigma_0: float = 1e-4
    t_min: float = 1e-3
    t_max: float = 0.999

    def __post_init__(self) -> None:
        if not 0 <= self.sigma_0 < 1:
            raise StructDiffError(f"LipmanFlow needs 0 <= sigma_0 < 1, got {self.sigma_0}")

    def log_alpha(self, t: Tensor | float) -> Tensor:
        return torch.log1p(-_double(t))

    def sigma(self, t: Tensor | float) -> Tensor:
        return self.sigma_0 + (1 - self.sigma_0) * _double(t)

    def drift(self, t: Tensor | float) -> Tensor:
        return -1 / (1 - _double(t))

    def diffusion_squared(self, t: Tensor | float) -> Tensor:
        return 2 * self.sigma(t) / (1 - _double(t))

    def time_at(self, half_log_snr: Tensor | float) -> Tensor:
        ratio = torch.exp(_double(half_log_snr))
        return (1 - ratio * self.sigma_0) / (1 + ratio * (1 - self.sigma_0))


@dataclass(frozen=True)
class UnitVarianceFlow(GaussianProcess):
    r"""Linear in the data, unit variance: :math:`x_t = (1-t)\,x_0 + \sqrt{t(2-t)}\,\epsilon`.

    With :math:`1 - t = e^{-\tau}` it is the Ornstein-Uhlenbeck process, hence every VP diffusion up
    to its clock (Albergo et al. 2023, section 5.1).

    Parameters
    ----------
    t_min, t_max
        Sampling interval; the drift is singular at 1.
    """

    t_min: float = 1e-3
    t_max: float = 0.999

    def log_alpha(self, t: Tensor | float) -> Tensor:
        return torch.log1p(-_double(t))

    def sigma(self, t: Tensor | float) -> Tensor:
        t = _double(t)
        return torch.sqrt(t * (2 - t))

    def drift(self, t: Tensor | float) -> Tensor:
        return -1 / (1 - _double(t))

    def diffusion_squared(self, t: Tensor | float) -> Tensor:
        return 2 / (1 - _double(t))

    def time_at(self, half_log_snr: Tensor | float) -> Tensor:
        log_alpha = torch.nn.functional.logsigmoid(2 * _double(half_log_snr)) / 2
        return -torch.expm1(log_alpha)
