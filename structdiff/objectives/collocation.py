"""Where a regulariser looks: points and times at which a residual is evaluated."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from structdiff.noise import NoiseSource
from structdiff.processes.system import System
from structdiff.state import State


class Collocation(Protocol):
    """Where the residual is evaluated."""

    def __call__(
        self, system: System, noisy: State, t: Tensor, source: NoiseSource
    ) -> tuple[State, Tensor]:
        """Points of the shapes of ``noisy``, and shared times (B,)."""
        ...


def at_the_data(
    system: System, noisy: State, t: Tensor, source: NoiseSource
) -> tuple[State, Tensor]:
    """Where the forward process takes the data: where samplers go."""
    return noisy, t


@dataclass(frozen=True)
class Box:
    """Uniform over a box and over the times of the system (Deveney et al.: [-3.5, 3.5]^2).

    Most of a box in more than a few dimensions is where no data are.

    Parameters
    ----------
    low, high
        Ends of every free coordinate.
    """

    low: float
    high: float

    def __call__(
        self, system: System, noisy: State, t: Tensor, source: NoiseSource
    ) -> tuple[State, Tensor]:
        noise = system.noise(noisy, source)
        inside = noise.map(lambda z: self.low + (self.high - self.low) * torch.special.ndtr(z))
        fixed = {k: noisy[k] for k in noisy if k not in system.moving}
        points = system.project(inside).replace(**fixed)
        u = torch.special.ndtr(source.normal("collocation", torch.empty_like(t)))
        return points, system.t_min + (system.t_max - system.t_min) * u
