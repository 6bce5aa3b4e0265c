r"""Time laws: from which noise levels training draws, apart from how it weighs them.

A law is a quantile function on (0, 1), so any source of normal numbers drives it and the same seed
gives the same times. Only the product of law and weight matters for the mean gradient:

.. math:: E_{t \sim p}[w(t)\,\ell(t)] = \int p(t)\,w(t)\,\ell(t)\,dt

Laws of the noise level rather than of the time need a system to read it from: they are
:class:`SystemTimeLaw` and become a law by ``law.under(system)``. How the draws are spread over a
batch is a third thing: stratified by default, see :mod:`structdiff.objectives.draws`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeAlias, runtime_checkable

import torch
from torch import Tensor

from structdiff.errors import StructDiffError
from structdiff.noise import NoiseSource
from structdiff.objectives.draws import Draws, stratified
from structdiff.processes.system import System, identity_clock


@runtime_checkable
class TimeLaw(Protocol):
    """A distribution of the shared time on (0, 1)."""

    def quantile(self, u: Tensor) -> Tensor:
        """Time below which a share ``u`` of the draws lies, float64, the shape of ``u``."""
        ...


@runtime_checkable
class SystemTimeLaw(Protocol):
    """A distribution of the noise level: a time law once the system is known."""

    def under(self, system: System) -> TimeLaw:
        """The law of the shared time under a system, (0, 1) standing for [t_min, t_max]."""
        ...


AnyTimeLaw: TypeAlias = "TimeLaw | SystemTimeLaw"


def law_under(law: AnyTimeLaw, system: System) -> TimeLaw:
    """The law as one of time: bound to the system where it needs one, else itself."""
    return law.under(system) if isinstance(law, SystemTimeLaw) else law


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


@dataclass(frozen=True)
class EDMLaw:
    r""":math:`\ln(\sigma/\alpha) \sim N(mean, std^2)`, truncated to the system's noise levels.

    Karras et al. 2022, table 1.

    Parameters
    ----------
    mean, std
        Of the logarithm of the noise-to-signal ratio.
    component
        Whose noise level is meant; may be None where only one component moves.
    """

    mean: float = -1.2
    std: float = 1.2
    component: str | None = None

    def under(self, system: System) -> TimeLaw:
        level = _NoiseLevel.of(system, self.component)
        ends = torch.tensor([level.low, level.high], dtype=torch.float64)
        first, last = torch.special.ndtr((ends - self.mean) / self.std)
        if not last - first > 1e-12:
            raise StructDiffError(
                f"ln(sigma/alpha) ~ N({self.mean}, {self.std}^2) never falls on the system's noise "
                f"levels, {level.low:.3g} to {level.high:.3g}: choose another mean or std"
            )

        def quantile(u: Tensor) -> Tensor:
            inside = first + u * (last - first)
            return level.time_where(self.mean + self.std * torch.special.ndtri(inside))

        return _Bound(quantile)


@dataclass(frozen=True)
class Importance:
    r"""Draws in proportion to :math:`g^2/\sigma^2 = -2\,d\lambda/dt`: the log-SNR is uniform.

    With the weight ``Simple`` it has the mean gradient that ``Likelihood`` has under ``Uniform``,
    at a variance that does not explode near the data (Song et al. 2021, Maximum likelihood
    training, section 3.4). With several moving components the rates are added.

    Parameters
    ----------
    component
        Whose noise level is meant; None adds those of all moving components.
    """

    component: str | None = None

    def under(self, system: System) -> TimeLaw:
        names = system.moving if self.component is None else (self.component,)
        level = _NoiseLevel(system, names)

        def quantile(u: Tensor) -> Tensor:
            return level.time_where(level.low + u * (level.high - level.low))

        return _Bound(quantile)


@dataclass(frozen=True)
class _Bound:
    """A law given by its quantile function."""

    function: Callable[[Tensor], Tensor]

    def quantile(self, u: Tensor) -> Tensor:
        return self.function(u)


class _NoiseLevel:
    """The increasing function -sum_k lambda_k(t) of shared time, and its inverse."""

    def __init__(self, system: System, names: tuple[str, ...]) -> None:
        unknown = sorted(set(names) - set(system.moving))
        if unknown or not names:
            raise StructDiffError(
                f"the noise level of {unknown or 'no component'} cannot be drawn: the moving "
                f"components of the system are {list(system.moving)}"
            )
        self.system, self.names = system, names
        self.low, self.high = float(self(system.t_min)), float(self(system.t_max))

    @classmethod
    def of(cls, system: System, component: str | None) -> _NoiseLevel:
        """Of one component, which must be named where several move."""
        if component is None and len(system.moving) > 1:
            raise StructDiffError(
                "several components move: name the one whose noise level is drawn, one of "
                f"{list(system.moving)}"
            )
        return cls(system, system.moving if component is None else (component,))

    def __call__(self, t: Tensor | float) -> Tensor:
        levels = self.system.half_log_snr(t)
        return -torch.stack([levels[k] for k in self.names]).sum(0)

    def time_where(self, level: Tensor) -> Tensor:
        """Place on (0, 1) between t_min and t_max where the level is taken."""
        start, end = self.system.t_min, self.system.t_max
        name = self.names[0]
        if len(self.names) == 1 and self.system.clocks[name] is identity_clock:
            t = self.system.processes[name].time_at(-level).clamp(start, end)
            return (t - start) / (end - start)
        return bisect(lambda place: self(start + place * (end - start)), level)


def bisect(function: Callable[[Tensor], Tensor], value: Tensor) -> Tensor:
    """Where in (0, 1) an increasing function takes a value: 60 halvings, float64.

    Parameters
    ----------
    function
        Increasing, from float64 tensors in (0, 1) to tensors of the same shape.
    value
        Values taken between the ends; others give the nearer end.
    """
    low, high = torch.zeros_like(value), torch.ones_like(value)
    for _ in range(60):
        middle = (low + high) / 2
        below = function(middle) < value
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return (low + high) / 2


def draw_times(
    law: AnyTimeLaw,
    like: Tensor,
    t_min: float,
    t_max: float,
    source: NoiseSource,
    draws: Draws = stratified,
) -> Tensor:
    """One time per object, float64 (B,).

    Parameters
    ----------
    law
        Distribution on (0, 1), stretched to [t_min, t_max].
    like
        Any tensor with the batch's first axis and device.
    t_min, t_max
        Ends of the interval.
    source
        Where the randomness comes from.
    draws
        How the quantile levels are spread over the batch; stratified by default.

    Raises
    ------
    StructDiffError
        If the law is one of the noise level and was not bound to a system.
    """
    if not isinstance(law, TimeLaw):
        raise StructDiffError(
            f"{law} is a law of the noise level: bind it with law_under(law, system), or choose a "
            "law of time such as Uniform()"
        )
    batch = like.shape[0]
    normal = source.normal("time", torch.empty(batch, dtype=torch.float64, device=like.device))
    u = torch.erf(normal / math.sqrt(2)).add(1).div(2)
    u = draws(u).clamp(1e-9, 1 - 1e-9)
    return t_min + (t_max - t_min) * law.quantile(u)
