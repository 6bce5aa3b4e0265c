r"""Time grids: where along the way a sampler evaluates its network.

A grid is a function of the system, because most grids are uniform not in time but in the noise
level, :math:`\lambda = \ln(\alpha/\sigma)` or :math:`\rho = \sigma/\alpha`. Grid and solver are
chosen together: the right pairing matters as much as the order of the solver. All grids are
float64, strictly decreasing, and begin and end exactly at the system's ``t_max`` and ``t_min``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias, runtime_checkable

import torch
from torch import Tensor

from structdiff.errors import StructDiffError
from structdiff.processes.system import System, identity_clock


@runtime_checkable
class Grid(Protocol):
    """Points in shared time for a system."""

    def times(self, system: System, points: int) -> Tensor:
        """Decreasing shared times from ``system.t_max`` to ``system.t_min``, float64 (points,)."""
        ...


GridLike: TypeAlias = "Grid | Tensor | Sequence[float]"
"""A grid, or the times themselves."""


def _pinned(times: Tensor, system: System) -> Tensor:
    """Put the ends exactly where the system says: inverse functions only come close."""
    times = times.clone()
    times[-1] = system.t_min
    times[0] = system.t_max  # a grid of one point is the start
    return times


@dataclass(frozen=True)
class UniformTime:
    r"""Uniform in a power of time: :math:`t_i = (T^{1/p} + \frac{i}{N}(t_0^{1/p} - T^{1/p}))^p`.

    Parameters
    ----------
    power
        p; 1 is uniform (Euler-Maruyama, DDPM), 2 puts more points near the data (DEIS, DDIM).
    """

    power: float = 1.0

    def __post_init__(self) -> None:
        if not self.power > 0:
            raise StructDiffError(f"the power of a time grid must be positive, got {self.power}")

    def times(self, system: System, points: int) -> Tensor:
        start, end = system.t_max ** (1 / self.power), system.t_min ** (1 / self.power)
        roots = torch.linspace(start, end, points, dtype=torch.float64)
        return _pinned(roots**self.power, system)


@dataclass(frozen=True)
class UniformLogSNR:
    r"""Uniform in the half log-SNR :math:`\lambda` of one component (DPM-Solver++, UniPC).

    Parameters
    ----------
    component
        Component whose noise level the grid follows; None is the first that moves.
    """

    component: str | None = None

    def times(self, system: System, points: int) -> Tensor:
        start, end = _ends(system, self.component)
        levels = torch.linspace(float(start), float(end), points, dtype=torch.float64)
        return _pinned(times_at(system, self.component, levels), system)


@dataclass(frozen=True)
class Karras:
    r"""Uniform in :math:`\rho^{1/7}`, :math:`\rho = \sigma/\alpha` (Karras et al. 2022, eq. 5).

    Parameters
    ----------
    rho
        The exponent, 7 in the paper.
    component
        Component whose noise level the grid follows; None is the first that moves.
    """

    rho: float = 7.0
    component: str | None = None

    def __post_init__(self) -> None:
        if not self.rho > 0:
            raise StructDiffError(f"the exponent of a Karras grid must be positive, got {self.rho}")

    def times(self, system: System, points: int) -> Tensor:
        start, end = _ends(system, self.component)
        roots = torch.linspace(
            float(torch.exp(-start / self.rho)),
            float(torch.exp(-end / self.rho)),
            points,
            dtype=torch.float64,
        )
        return _pinned(times_at(system, self.component, -self.rho * torch.log(roots)), system)


class FixedTimes:
    """Given times: a grid found by a search, or one to compare with.

    Parameters
    ----------
    times
        Decreasing shared times; their number must be what the sampler asks for.

    Raises
    ------
    StructDiffError
        If the times do not decrease or leave [0, 1].
    """

    def __init__(self, times: Tensor | Sequence[float]) -> None:
        given = torch.as_tensor(times, dtype=torch.float64).detach().cpu()
        if given.dim() != 1 or len(given) == 0:
            raise StructDiffError(f"a grid is a list of times, got shape {tuple(given.shape)}")
        if not bool((given.diff() < 0).all()) or not 0 <= given[-1] <= given[0] <= 1:
            raise StructDiffError("grid times must decrease strictly and lie within [0, 1]")
        self._times = given

    def times(self, system: System, points: int) -> Tensor:
        if points != len(self._times):
            raise StructDiffError(f"the sampler needs {points} grid times, got {len(self._times)}")
        return self._times

    def __repr__(self) -> str:
        return f"FixedTimes({self._times.tolist()})"


def as_grid(grid: GridLike) -> Grid:
    """Read a tensor or list of times as a grid."""
    return grid if isinstance(grid, Grid) else FixedTimes(grid)


def _reference(system: System, component: str | None) -> str:
    """The component that a grid in noise levels follows."""
    if component is None:
        return system.moving[0]
    if component not in system.moving:
        raise StructDiffError(
            f"no component {component!r} moves in this system: choose one of {list(system.moving)}"
        )
    return component


def _ends(system: System, component: str | None) -> tuple[Tensor, Tensor]:
    """Half log-SNR of the reference component where sampling starts and stops."""
    name = _reference(system, component)
    start, end = system.half_log_snr(system.t_max)[name], system.half_log_snr(system.t_min)[name]
    return start, end


def times_at(system: System, component: str | None, levels: Tensor) -> Tensor:
    """Shared times at which a component has the given half log-SNR; shape of ``levels``."""
    name = _reference(system, component)
    own = system.processes[name].time_at(levels)
    clock = system.clocks[name]
    if clock is identity_clock:
        return own
    # A clock is any monotone function: invert it by bisection, to the last bit of float64.
    low = torch.full_like(own, system.t_min)
    high = torch.full_like(own, system.t_max)
    for _ in range(60):
        middle = (low + high) / 2
        above = clock(middle) > own
        low, high = torch.where(above, low, middle), torch.where(above, middle, high)
    return (low + high) / 2
