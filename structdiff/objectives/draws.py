"""How the times of one batch are spread: each draw keeps its law, together they cover it.

Each function turns independent uniform numbers, one per object, into quantile levels (B,). Every
level is uniform on (0, 1) over random batches, so the mean loss is the same under all of them; the
variance of a batch's loss is not.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import TypeAlias

import torch
from torch import Tensor

Draws: TypeAlias = Callable[[Tensor], Tensor]
"""From independent uniform numbers (B,) to quantile levels (B,)."""


def stratified(u: Tensor) -> Tensor:
    """Object i of B draws from the i-th of B equally likely strata."""
    batch = len(u)
    return (torch.arange(batch, device=u.device) + u) / batch


def independent(u: Tensor) -> Tensor:
    """The numbers as they are; with a seed per object, an object's time is its own affair."""
    return u


def low_discrepancy(u: Tensor) -> Tensor:
    """Van der Corput's sequence under one random shift, the first object's number, modulo 1.

    Every prefix of the batch is spread almost evenly, so micro-batches are as well (the shift is
    that of Cranley and Patterson 1976; Kingma et al. 2021 draw a batch's times so from a lattice).
    """
    return (_van_der_corput(len(u), u.device) + u[:1]) % 1.0


@lru_cache(maxsize=16)
def _van_der_corput(count: int, device: torch.device) -> Tensor:
    """The bits of 0, 1, 2, ... mirrored at the point, float64 (count,)."""
    index = torch.arange(count, device=device)
    value, place = torch.zeros(count, dtype=torch.float64, device=device), 0.5
    for bit in range(max(count - 1, 0).bit_length()):
        value, place = value + ((index >> bit) & 1) * place, place / 2
    return value
