r"""The Fokker-Planck residual: how far a model's densities are from being those of its own process.

The log-density of a process :math:`dx = F\,dt + g\,dw` satisfies :math:`R[\log p_t] = 0` with

.. math:: R[u] = \partial_t u + \nabla\!\cdot F + F \cdot \nabla u
          - \tfrac12 g^2 (\Delta u + |\nabla u|^2)

and its score the gradient of that,
:math:`\partial_t s = \nabla[\tfrac12 g^2(\nabla\!\cdot s + |s|^2) - F \cdot s - \nabla\!\cdot F]`.
A model with a residual samples different laws by its ODE and its SDE; adding :math:`w_R\,E[R^2]` to
the loss closes that gap (Deveney et al. 2023).

With several components every term is summed over them, each in its own time at its clock's rate.
Derivatives are over free coordinates; states are centred, so that F is linear: :math:`F = f x`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, Protocol, TypeAlias, get_args, runtime_checkable

import torch
from torch import Tensor

from structdiff.denoisers import BaseDenoiser
from structdiff.errors import StructDiffError
from structdiff.noise import NoiseSource, as_source
from structdiff.objectives.base import Regularizer
from structdiff.objectives.collocation import Collocation, at_the_data
from structdiff.objectives.free_coordinates import FreeCoordinates, Packed, along, inner
from structdiff.processes.system import System, Time
from structdiff.state import State, as_state

LogDensity: TypeAlias = Callable[[State, Time], Tensor]
"""log p_t(x) up to a constant: a state and times by name, each (B,) -> (B,)."""
Score: TypeAlias = Callable[[State, Time], State]
r""":math:`\nabla \log p_t(x)`: a state and times by name, each (B,) -> State."""

Per: TypeAlias = Literal["time", "log-snr"]
"""The clock that a residual is a rate in: shared time, or the components' log-SNR."""


@runtime_checkable
class HasLogDensity(Protocol):
    """A denoiser that knows its log-density, e.g. a ``PotentialDenoiser`` or a testbed's."""

    def log_density(self, x: State | Tensor, t: Time) -> Tensor:
        """Log-density of x_t up to a constant, (B,)."""
        ...


# --- residuals -----------------------------------------------------------------------------------
def fokker_planck_residual(
    log_density: HasLogDensity | LogDensity,
    system: System,
    x: State | Tensor,
    t: Time,
    probes: int | None = None,
    source: NoiseSource | int | None = None,
) -> Tensor:
    """Residual R of a log-density per object, (B,); exactly 0 for the true one.

    Parameters
    ----------
    log_density
        A denoiser with ``log_density``, or a function (State, times) -> (B,); smooth in both.
    system
        The processes it should belong to.
    x
        Noisy state (centred, in the coordinates the processes run on).
    t
        Shared time () or (B,), or the components' own times by name.
    probes
        Random directions that estimate the Laplacian (Hutchinson, Rademacher); None takes it
        exactly with one derivative per free coordinate.
    source
        Randomness of the probes.
    """
    rest, laplacians = _potential_parts(_density(log_density), system, x, t, probes, source)
    return rest - laplacians.mean(0)


def score_fokker_planck_residual(
    score: BaseDenoiser | Score,
    system: System,
    x: State | Tensor,
    t: Time,
    directions: int | None = None,
    probes: int | None = None,
    source: NoiseSource | int | None = None,
) -> Tensor:
    """Residual of a score, for models without a potential; exactly 0 for the true one.

    Parameters
    ----------
    score
        A denoiser, or a function (State, times) -> State; twice differentiable in x.
    system
        The processes it should belong to.
    x, t
        As for :func:`fokker_planck_residual`.
    directions
        Random directions (Rademacher) on which the residual is projected, by forward derivatives
        only; None gives all free coordinates of the moving components by one backward pass.
    probes
        Random directions that estimate the divergence; None takes it exactly.
    source
        Randomness of directions and probes.

    Returns
    -------
    Tensor
        (B, directions), or (B, D).
    """
    field = score.score if isinstance(score, BaseDenoiser) else score
    rest, brackets = _score_parts(field, system, x, t, directions, probes, source)
    return rest - brackets.mean(0)


def _density(given: HasLogDensity | LogDensity) -> LogDensity:
    return given.log_density if isinstance(given, HasLogDensity) else given


def _potential_parts(
    log_density: LogDensity,
    system: System,
    x: State | Tensor,
    t: Time,
    probes: int | None,
    source: NoiseSource | int | None,
) -> tuple[Tensor, Tensor]:
    """R = first (B,) - mean of second (V, B): all but the Laplacian, and its estimates."""
    free = FreeCoordinates(system, system.check(as_state(x)), t)
    drift, spread = free.coefficient("drift"), free.coefficient("diffusion")

    def total(points: Packed, times: dict[str, Tensor]) -> Tensor:
        return log_density(free.to_state(points), free.own_times(times)).sum()

    times = free.moving_times()
    gradient: Callable[..., tuple[Packed, dict[str, Tensor]]] = torch.func.grad(
        total, argnums=(0, 1)
    )
    slope, by_time = gradient(free.points, times)
    rest = torch.zeros_like(free.state.first.reshape(free.state.batch_size, -1)[:, 0])
    for k, rate in free.rates.items():
        transport = drift[k] * (free.points[k] * slope[k] + free.exists[k])
        square = spread[k] ** 2 * slope[k] ** 2 / 2
        rest = rest + rate * (by_time[k].to(rate.dtype) + (transport - square).sum(1))

    weight = {k: free.rates[k][:, None] * spread[k] ** 2 / 2 for k in free.names}
    return rest, torch.stack(
        [
            inner(_times(weight, v), along(lambda p: gradient(p, times)[0], free.points, v)[1])
            for v in _probes(free, probes, source)
        ]
    )


def _score_parts(
    score: Score,
    system: System,
    x: State | Tensor,
    t: Time,
    directions: int | None,
    probes: int | None,
    source: NoiseSource | int | None,
) -> tuple[Tensor, Tensor]:
    """R = first (B, K) - mean of second (V, B, K): only the divergence is estimated."""
    free = FreeCoordinates(system, system.check(as_state(x)), t)
    drawn = as_source(source)
    drift, spread = free.coefficient("drift"), free.coefficient("diffusion")
    rates = {k: v[:, None] for k, v in free.rates.items()}
    diffusion = {k: rates[k] * spread[k] ** 2 / 2 for k in free.names}
    transport = {k: rates[k] * drift[k] for k in free.names}

    def field(points: Packed, times: dict[str, Tensor]) -> Packed:
        return free.pack(score(free.to_state(points), free.own_times(times)))

    times = free.moving_times()
    aims = None if directions is None else [free.rademacher(drawn) for _ in range(directions)]

    def known(points: Packed) -> Tensor:
        """g^2 |s|^2 / 2 - F . s per object."""
        s = field(points, times)
        return inner(_times(diffusion, s), s) - inner(_times(transport, points), s)

    def divergence(points: Packed, v: Packed) -> Tensor:
        """g^2 v . (ds/dx) v / 2 per object."""
        return inner(_times(diffusion, v), along(lambda p: field(p, times), points, v)[1])

    _, moved = along(lambda s: field(free.points, s), times, free.time_tangents())
    rest = _project(moved, aims) - _slopes(known, free.points, aims)
    return rest, torch.stack(
        [
            _slopes(lambda p, v=v: divergence(p, v), free.points, aims)  # type: ignore[misc]
            for v in _probes(free, probes, drawn)
        ]
    )


def _times(factors: Packed, x: Packed) -> Packed:
    return {k: factors[k] * v for k, v in x.items()}


def _probes(
    free: FreeCoordinates, probes: int | None, source: NoiseSource | int | None
) -> list[Packed]:
    """Directions whose mean gives a trace: random signs, or every axis times root D."""
    if probes is not None:
        drawn = as_source(source)
        return [free.rademacher(drawn) for _ in range(probes)]
    axes = free.basis()
    return [{k: v * len(axes) ** 0.5 for k, v in axis.items()} for axis in axes]


def _project(x: Packed, aims: list[Packed] | None) -> Tensor:
    """(B, K) along directions, or (B, D) side by side."""
    if aims is None:
        return torch.cat(list(x.values()), dim=1)
    return torch.stack([inner(x, q) for q in aims], dim=1)


def _slopes(
    scalar: Callable[[Packed], Tensor], points: Packed, aims: list[Packed] | None
) -> Tensor:
    """Derivatives of a number per object along directions (B, K), or its gradient (B, D)."""
    if aims is None:
        gradient: Packed = torch.func.grad(lambda p: scalar(p).sum())(points)
        return _project(gradient, None)
    return torch.stack([along(scalar, points, q)[1] for q in aims], dim=1)


# --- regularisers --------------------------------------------------------------------------------
class _Residual(Regularizer):
    """What the two forms share: where they look, and how many probes estimate a trace."""

    def __init__(
        self,
        weight: float = 1.0,
        every: int = 1,
        probes: int | None = 2,
        collocation: Collocation = at_the_data,
        per: Per = "time",
    ) -> None:
        super().__init__(weight, every)
        if per not in get_args(Per):
            raise StructDiffError(
                f"unknown unit {per!r} of the residual: choose one of {', '.join(get_args(Per))}"
            )
        if probes is not None and probes < 2:
            raise StructDiffError(
                f"{type(self).__name__} needs at least 2 probes, got {probes}: the square of a "
                "single estimate also penalises the estimator's variance; None is exact"
            )
        self.probes, self.collocation = probes, collocation
        self.per: Per = per

    def _scale(self, system: System, x: State, t: Tensor) -> Tensor:
        """What a squared residual is multiplied by for the chosen clock, (B,)."""
        if self.per == "time":
            return torch.ones_like(x.first.reshape(x.batch_size, -1)[:, 0])
        free = FreeCoordinates(system, x, t)
        spread, sigma = free.coefficient("diffusion"), free.coefficient("sigma")
        # -d(log-SNR)/dt = g^2 / sigma^2 per component
        speeds = [r * (spread[k] / sigma[k])[:, 0] ** 2 for k, r in free.rates.items()]
        return torch.stack(speeds).sum(0) ** -2

    def _squares(self, rest: Tensor, estimates: Tensor) -> Tensor:
        """Squared residual (B, ...) from estimates (V, B, ...), unbiased.

        The mean product of two different estimates; plain squares would add their variance, and
        pull an exact model away from the truth.
        """
        residual = rest - estimates.mean(0)
        if self.probes is None:
            return residual**2
        return residual**2 - estimates.var(0) / self.probes


class FokkerPlanck(_Residual):
    r"""Squared Fokker-Planck residual of the log-density: the denoiser must know it.

    Parameters
    ----------
    weight
        w_R; Deveney et al. use 0.1 to 10 and find 0.1 to 1 best.
    every
        Training steps between evaluations.
    probes
        Random directions for the Laplacian, at least 2; None is exact, for few dimensions.
    collocation
        Where to look: ``at_the_data``, or e.g. a :class:`Box`.
    per
        ``"time"`` as published; ``"log-snr"`` divides the residual by the rate :math:`g^2/\sigma^2`
        at which the log-SNR falls (added over components), so that the weight means the same under
        every process and the last instants before the data, where the log-density changes fastest
        and a sampler has nothing left to do, do not rule the penalty.
    """

    def penalty(
        self,
        denoiser: BaseDenoiser,
        x0: State,
        noisy: State,
        t: Tensor,
        condition: Any,
        source: NoiseSource,
    ) -> Tensor:
        if not isinstance(denoiser, HasLogDensity):
            raise StructDiffError(
                f"{type(denoiser).__name__} has no log-density: train a PotentialDenoiser, or use "
                "the residual of the score, ScoreFokkerPlanck"
            )
        given = {} if condition is None else {"condition": condition}
        x, times = self.collocation(denoiser.system, noisy, t, source)
        parts = _potential_parts(
            lambda x, t: denoiser.log_density(x, t, **given),
            denoiser.system,
            x,
            times,
            self.probes,
            source,
        )
        return self._squares(*parts) * self._scale(denoiser.system, x, times)


class ScoreFokkerPlanck(_Residual):
    """Squared Fokker-Planck residual of the score, per free coordinate: for any denoiser.

    Parameters
    ----------
    weight, every, probes, collocation, per
        As for :class:`FokkerPlanck`.
    directions
        Random directions, by forward derivatives only; None takes the whole residual by a backward
        pass.
    """

    def __init__(
        self,
        weight: float = 1.0,
        every: int = 1,
        probes: int | None = 2,
        collocation: Collocation = at_the_data,
        per: Per = "time",
        directions: int | None = None,
    ) -> None:
        super().__init__(weight, every, probes, collocation, per)
        self.directions = directions

    def penalty(
        self,
        denoiser: BaseDenoiser,
        x0: State,
        noisy: State,
        t: Tensor,
        condition: Any,
        source: NoiseSource,
    ) -> Tensor:
        system = denoiser.system
        x, times = self.collocation(system, noisy, t, source)
        parts = _score_parts(
            lambda x, t: denoiser.score(x, t, condition),
            system,
            x,
            times,
            self.directions,
            self.probes,
            source,
        )
        dimensions = system.dimensions(x)
        count = torch.stack([dimensions[k] for k in system.moving]).sum(0).clamp(min=1)
        # Along random signs q the mean of (q . R)^2 is |R|^2 already.
        squares = self._squares(*parts)
        total = squares.sum(1) if self.directions is None else squares.mean(1)
        return total / count * self._scale(system, x, times)
