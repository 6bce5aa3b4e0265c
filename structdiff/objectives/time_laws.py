"""Time laws: from which noise levels training draws, apart from how it weighs them.

A law is a quantile function on (0, 1), so any source of normal numbers drives it and the same seed
gives the same times. Only the product of law and weight matters for the mean gradient.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from structdiff.noise import NoiseSource


class TimeLaw(Protocol):
    """A distribution of the shared time on (0, 1)."""

    def quantile(self, u: Tensor) -> Tensor:
        """Time below which a share ``u`` of the draws lies, float64, the shape of ``u``."""
        ...


@dataclass(frozen=True)
class Uniform:
    """Every time equally often."""

    def quantile(self, u: Tensor) -> Tensor:
        return u


@dataclass(frozen=True)
class LogitNormal:
    """logit(t) ~ N(mean, std^2): more draws in the middle (Esser et al. 2024).

    Parameters
    ----------
    mean, std
        Of the logit; a positive mean moves draws towards the prior.
    """

    mean: float = 0.0
    std: float = 1.0

    def quantile(self, u: Tensor) -> Tensor:
        return torch.sigmoid(self.mean + self.std * torch.special.ndtri(u))


def draw_times(
    law: TimeLaw, like: Tensor, t_min: float, t_max: float, source: NoiseSource
) -> Tensor:
    """One time per object, stratified over the batch, float64 (B,).

    Object i of B draws from the i-th of B equally likely strata, which keeps every draw's law over
    random batches and lowers the variance of the batch loss.

    Parameters
    ----------
    law
        Distribution on (0, 1), stretched to [t_min, t_max].
    like
        Any tensor with the batch's first axis and device.
    source
        Where the randomness comes from.
    """
    batch = like.shape[0]
    normal = source.normal("time", torch.empty(batch, dtype=torch.float64, device=like.device))
    u = torch.erf(normal / math.sqrt(2)).add(1).div(2)
    u = (torch.arange(batch, device=like.device) + u) / batch
    u = u.clamp(1e-9, 1 - 1e-9)
    return t_min + (t_max - t_min) * law.quantile(u)
