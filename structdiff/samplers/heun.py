r"""Heun's method with churn, in the coordinates of EDM (Karras et al. 2022, algorithm 2).

With :math:`v = x/\alpha` and :math:`\rho = \sigma/\alpha` the probability flow of every process is
:math:`dv/d\rho = \epsilon(\alpha v)`: an Euler step to the next :math:`\rho`, then the mean of the
two slopes. Churn first raises :math:`\rho` by a factor :math:`1 + \gamma` with fresh noise. Two
evaluations a step; the prediction of the data at the end costs one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import torch

from structdiff.errors import StructDiffError
from structdiff.processes.system import Time
from structdiff.samplers.base import Run, SteppedSampler, Stepper, Update, schedules
from structdiff.samplers.grids import Grid, GridLike, Karras
from structdiff.samplers.registry import register
from structdiff.state import State


class Heun(SteppedSampler):
    r"""EDM's deterministic or churned second-order sampler, on any system.

    Parameters
    ----------
    steps, grid, denoise, progress
        See :class:`~structdiff.samplers.base.Sampler`.
    churn
        Total amount of stochasticity: :math:`\gamma = \min(churn / steps, \sqrt 2 - 1)`; 0 is the
        deterministic sampler.
    churn_min, churn_max
        Noise levels :math:`\rho` between which a component is churned.
    churn_noise
        Factor on the fresh noise.
    """

    default_grid: ClassVar[Grid] = Karras()

    def __init__(
        self,
        steps: int,
        grid: GridLike | None = None,
        *,
        churn: float = 0.0,
        churn_min: float = 0.0,
        churn_max: float = math.inf,
        churn_noise: float = 1.0,
        denoise: bool = True,
        progress: bool = False,
    ) -> None:
        super().__init__(steps, grid, denoise=denoise, progress=progress)
        if not churn >= 0 or not churn_noise >= 0:
            raise StructDiffError(
                f"churn and churn_noise must not be negative, got {churn} and {churn_noise}"
            )
        self.churn, self.churn_noise = float(churn), float(churn_noise)
        self.churn_min, self.churn_max = float(churn_min), float(churn_max)

    def _gamma(self, rho: float) -> float:
        inside = self.churn_min <= rho <= self.churn_max
        return min(self.churn / self.steps, math.sqrt(2) - 1) if inside else 0.0

    def stepper(self, run: Run, times: Sequence[float]) -> Stepper:
        """Churn, Euler trial, trapezoid."""
        plans = schedules(run.system, times)

        def step(x: State, i: int) -> State:
            churned: dict[str, Update | None] = {}
            trial: dict[str, Update | None] = {}
            mean: dict[str, Update | None] = {}
            own: dict[str, torch.Tensor] = dict(run.system.times(times[i]))
            for name, plan in plans.items():
                if plan.stands_still(i):
                    continue
                rho, end, alpha = plan.rho(i), plan.rho(i + 1), plan.alpha[i]
                gamma = self._gamma(rho)
                if gamma:
                    high = (1 + gamma) * rho
                    own[name] = plan.process.time_at(-math.log(high))
                    before, alpha = alpha, float(plan.process.alpha(own[name]))
                    spread = math.sqrt(high**2 - rho**2) * self.churn_noise
                    churned[name] = Update(alpha / before, (), alpha * spread)
                    rho = high
                ratio = plan.alpha[i + 1] / alpha
                slope = plan.alpha[i + 1] * (end - rho)
                trial[name] = Update(ratio, (slope,))
                mean[name] = Update(ratio, (slope / 2, slope / 2))
            time: Time = times[i]
            if churned:
                x, time = run.combine(x, churned, ()), own
            first = run.evaluate("noise", x, time)
            guess = run.combine(x, trial, (first,))
            if any(plan.sigma[i + 1] == 0 for plan in plans.values()):
                return guess  # without noise left there is no second slope
            second = run.evaluate("noise", guess, times[i + 1])
            return run.combine(x, mean, (first, second))

        return step


register("heun", Heun, order=2, nfe_per_step=2, stochastic=False, source="Karras et al. 2022 (EDM)")
