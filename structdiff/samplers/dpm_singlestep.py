r"""DPM-Solver++ 2S: a midpoint step in half log-SNR, two evaluations a step (Lu et al. 2022).

With the midpoint m at :math:`\lambda_m = \lambda_t + h/2`,

.. math:: x_m = \frac{\sigma_m}{\sigma_t} x_t + \alpha_m (1 - e^{-h/2}) x_0(x_t, t), \qquad
          x_u = \frac{\sigma_u}{\sigma_t} x_t + \alpha_u (1 - e^{-h}) x_0(x_m, m).

Every component has its own midpoint. The ancestral form goes further down than u, to
:math:`\rho_{down}`, and comes back up with fresh noise: :math:`\rho_{down}^2 + \rho_{up}^2 =
\rho_u^2`. Noise added on the way up keeps the marginals exact, so only the way down errs: the weak
order is 2 as well.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import ClassVar, NamedTuple

import torch

from structdiff.errors import StructDiffError
from structdiff.processes.system import Time
from structdiff.samplers.base import Run, Schedule, SteppedSampler, Stepper, Update, schedules
from structdiff.samplers.grids import Grid, GridLike, UniformLogSNR
from structdiff.samplers.registry import register
from structdiff.state import State


class _Step(NamedTuple):
    """One step of all components: to the midpoints, the times there, and on to the end."""

    half: dict[str, Update | None]
    time: Time
    whole: dict[str, Update | None]
    single: bool
    """Whether one evaluation does: no component has a midpoint."""


class DPMSolverSinglestep(SteppedSampler):
    r"""DPM-Solver++ 2S of order 2, for the ODE or with ancestral noise.

    Parameters
    ----------
    steps, grid, denoise, progress
        See :class:`~structdiff.samplers.base.Sampler`.
    eta
        Ancestral noise: 0 is the probability flow; 1 restores at every step the noise that the
        posterior :math:`q(x_u | x_t, x_0)` has.

    Raises
    ------
    StructDiffError
        If eta is outside [0, 1].
    """

    default_grid: ClassVar[Grid] = UniformLogSNR()

    def __init__(
        self,
        steps: int,
        grid: GridLike | None = None,
        *,
        eta: float = 0.0,
        denoise: bool = True,
        progress: bool = False,
    ) -> None:
        super().__init__(steps, grid, denoise=denoise, progress=progress)
        if not 0 <= eta <= 1:
            raise StructDiffError(f"eta of DPM-Solver++ 2S must lie in [0, 1], got {eta}")
        self.eta = float(eta)

    def _plan(self, run: Run, times: Sequence[float]) -> list[_Step]:
        """Coefficients and midpoint times of every step."""
        plans = schedules(run.system, times)
        steps = []
        for i in range(len(times) - 1):
            middle: dict[str, torch.Tensor] = dict(run.system.times(times[i]))
            half: dict[str, Update | None] = {}
            whole: dict[str, Update | None] = {}
            for name, plan in plans.items():
                if plan.stands_still(i):
                    continue
                if plan.sigma[i + 1] > 0:
                    half[name], middle[name] = self._half(plan, i)
                whole[name] = self._whole(plan, i)
            steps.append(_Step(half, middle, whole, not half))
        return steps

    def _down(self, plan: Schedule, i: int) -> tuple[float, float]:
        r""":math:`\lambda` at the end of the deterministic step, less that at its start; rho_up."""
        h = plan.log_snr[i + 1] - plan.log_snr[i]
        # rho_up = eta rho_u sqrt(1 - (rho_u/rho_t)^2)
        kept = 1 + self.eta**2 * math.expm1(-2 * h)  # (rho_down / rho_u)^2
        up = self.eta * plan.rho(i + 1) * math.sqrt(-math.expm1(-2 * h))
        return h - math.log(kept) / 2, up

    def _half(self, plan: Schedule, i: int) -> tuple[Update, torch.Tensor]:
        h, _ = self._down(plan, i)
        level = plan.log_snr[i] + h / 2
        time = plan.process.time_at(level)
        alpha = float(plan.process.alpha(time))
        return Update(
            alpha / plan.alpha[i] * math.exp(-h / 2), (-alpha * math.expm1(-h / 2),)
        ), time

    def _whole(self, plan: Schedule, i: int) -> Update:
        h, up = self._down(plan, i)
        end = plan.alpha[i + 1]
        return Update(end / plan.alpha[i] * math.exp(-h), (-end * math.expm1(-h),), end * up)

    def stepper(self, run: Run, times: Sequence[float]) -> Stepper:
        """Half a step to the midpoint, then the whole one with the prediction made there."""
        plan = self._plan(run, times)

        def step(x: State, i: int) -> State:
            now = plan[i]
            data = run.evaluate("data", x, times[i])
            if not now.single:
                data = run.evaluate("data", run.combine(x, now.half, (data,)), now.time)
            return run.combine(x, now.whole, (data,), (times[i], times[i + 1]))

        return step


register(
    "dpm++2s",
    DPMSolverSinglestep,
    order=2,
    nfe_per_step=2,
    stochastic=False,
    source="Lu et al. 2022, 2S",
)
register(
    "dpm++2s-ancestral",
    partial(DPMSolverSinglestep, eta=1.0),
    order=2,
    nfe_per_step=2,
    stochastic=True,
    source="2S with the ancestral noise of k-diffusion",
)
