r"""Geometric Brownian motion backwards, as published: on the logarithm, and on the value itself.

With the Hyvarinen score h (:mod:`structdiff.objectives.multiplicative`), a step of length d is

.. math:: X \leftarrow X \exp\left((\tfrac32 \varsigma^2 - \mu + \varsigma^2 h)\,d
          + \varsigma \sqrt{d}\,z\right) \qquad\text{or}\qquad
          X \leftarrow X \left(1 + (2 \varsigma^2 - \mu + \varsigma^2 h)\,d
          + \varsigma \sqrt{d}\,z\right).

The first keeps every value positive. In the second the factor can turn negative, which happens
where steps are long: it is here to show that. The first is Euler-Maruyama of the logarithm; any
other sampler of the package works on positive data in the same way, with less error per step.
Source: Shetty et al. 2025.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from tqdm import tqdm

from structdiff.denoisers import BaseDenoiser
from structdiff.errors import StructDiffError
from structdiff.objectives.multiplicative import check_positive
from structdiff.processes.geometric import GeometricBrownian
from structdiff.processes.system import System
from structdiff.samplers.base import (
    Callback,
    Run,
    Sampler,
    Schedule,
    Source,
    SteppedSampler,
    Stepper,
    Update,
    schedules,
)
from structdiff.samplers.grids import Grid, UniformTime
from structdiff.state import State


def _check_geometric(system: System) -> None:
    """Every component that moves must be a geometric Brownian motion on positive numbers."""
    check_positive(system)
    for name in system.moving:
        if not isinstance(system.processes[name], GeometricBrownian):
            raise StructDiffError(
                f"component {name!r} moves by {system.processes[name]}, but this sampler is "
                "defined for GeometricBrownian alone: choose any other sampler"
            )


def _length(plan: Schedule, i: int) -> float:
    return plan.time[i] - plan.time[i + 1]


class ReverseGBM(SteppedSampler):
    """The published step on the logarithm; no value is ever negative.

    Parameters
    ----------
    steps, grid, denoise, progress
        See :class:`~structdiff.samplers.base.Sampler`.

    Raises
    ------
    StructDiffError
        In a run over a component that is no geometric Brownian motion of positive numbers.
    """

    default_grid: ClassVar[Grid] = UniformTime(power=2.0)

    def stepper(self, run: Run, times: Sequence[float]) -> Stepper:
        """One evaluation of the score and one draw per step."""
        _check_geometric(run.system)
        updates: list[dict[str, Update | None]] = [{} for _ in times[1:]]
        excess: list[dict[str, float]] = [{} for _ in times[1:]]
        for name, plan in schedules(run.system, times).items():
            for i in range(len(times) - 1):
                d, v = _length(plan, i), plan.diffusion[i] ** 2
                updates[i][name] = (
                    None if plan.stands_still(i) else Update(1.0, (v * d,), math.sqrt(v * d))
                )
                # In the centred logarithm the published drift leaves what the frozen volatility
                # gets wrong: nothing where it is constant.
                true = plan.sigma[i] ** 2 - plan.sigma[i + 1] ** 2
                if not math.isclose(v * d, true, rel_tol=1e-12):
                    excess[i][name] = (v * d - true) / 2

        def step(x: State, i: int) -> State:
            score = run.evaluate("score", x, times[i])
            x = run.combine(x, updates[i], (score,), (times[i], times[i + 1]))
            return run.system.add_shift(x, excess[i]) if excess[i] else x

        return step


class AmbientReverseGBM(Sampler):
    """The published step on the value itself: its factor may turn negative, and then so does X.

    States are values here, in the trajectory too, since a negative number has no logarithm; the
    network sees the logarithm of their size.

    Parameters
    ----------
    steps, grid, denoise, progress
        See :class:`~structdiff.samplers.base.Sampler`.

    Raises
    ------
    StructDiffError
        In a run over a component that is no geometric Brownian motion of positive numbers.
    """

    default_grid: ClassVar[Grid] = UniformTime(power=2.0)

    def solve(self, run: Run, x: State) -> Iterator[tuple[float, State]]:
        """Step along the grid in values, from the logarithm at ``t_max``."""
        _check_geometric(run.system)
        times = self.times(run.system)
        plans = schedules(run.system, times)
        values = _values(run, run.system.uncentred(x, times[0]))
        for i, t in enumerate(times[:-1]):
            score = run.evaluate("score", _logarithm(run, values, t), t)
            values = self._step(run, values, score, plans, i, (t, times[i + 1]))
            yield times[i + 1], values
        if self.denoise:
            found = self.denoised(run, _logarithm(run, values, times[-1]), times[-1])
            yield 0.0, _moving(run, values, lambda v, k: torch.sign(v) * torch.exp(found[k]))

    def _step(
        self,
        run: Run,
        values: State,
        score: State,
        plans: dict[str, Schedule],
        i: int,
        interval: tuple[float, float],
    ) -> State:
        def move(value: Tensor, name: str) -> Tensor:
            plan, process = plans[name], run.system.processes[name]
            if plan.stands_still(i):
                return value
            assert isinstance(process, GeometricBrownian)
            d, v = _length(plan, i), plan.diffusion[i] ** 2
            z = run.draw(name, values, interval)
            # 2 v - mu + v h with h = score - 1
            factor = 1 + (v - process.mu) * d + v * d * score[name] + math.sqrt(v * d) * z
            return value * factor

        return _moving(run, values, move)

    def __call__(
        self,
        denoiser: BaseDenoiser,
        x: State | Tensor,
        condition: Any = None,
        source: Source = None,
        callback: Callback | None = None,
    ) -> State:
        """Run the trajectory and return its last state: values, some of them perhaps negative.

        Parameters
        ----------
        denoiser, x, condition, source, callback
            As for :meth:`structdiff.samplers.base.Sampler.__call__`.
        """
        system, state = denoiser.system, denoiser.system.check(x)
        states = self._states(denoiser, state, condition, source)
        bar = tqdm(states, total=self.steps, disable=not self.progress, desc="sampling")
        for number, (t, state) in enumerate(bar, start=1):
            if callback is not None:
                callback(number, t, state)
        decoded = {
            k: state[k] if k in system.moving else system.spaces[k].decode(state[k]) for k in state
        }
        return State._trusted(decoded, state.masks).masked()


def _moving(run: Run, x: State, fn: Callable[[Tensor, str], Tensor]) -> State:
    """Change the moving components only."""
    return State._trusted({k: fn(v, k) if k in run.moving else v for k, v in x.items()}, x.masks)


def _values(run: Run, logarithm: State) -> State:
    return _moving(run, logarithm, lambda v, k: torch.exp(v))


def _logarithm(run: Run, values: State, t: float) -> State:
    """Centred logarithm of the size; 0 where nothing exists."""
    return run.inside(run.system.centred(_moving(run, values, lambda v, k: torch.log(v.abs())), t))
