r"""The sampler of residual diffusion: take off the residual and the noise, each at its own rate.

In the un-centred state, with :math:`A = 1 - \alpha` and :math:`B = \sigma`,

.. math:: x_u = x_t - (A_t - A_u)\,\hat I_{res} - (B_t - \sqrt{B_u^2 - s^2})\,\hat\epsilon + s z,
          \qquad s^2 = \eta\,(B_t^2 - B_u^2)\,B_u^2 / B_t^2 .

In the centred state the residual's term reads :math:`(\alpha_u - \alpha_t)\,\hat x_0`, so the step
exists for every process. Where data and noise come from one prediction it is, at
:math:`\eta = 0`, DDIM; where a network predicts both, the two are used as they are. Source: Liu et
al. 2024 (RDDM).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

from structdiff.errors import StructDiffError
from structdiff.samplers.base import Run, Schedule, SteppedSampler, Stepper, Update, schedules
from structdiff.samplers.grids import Grid, GridLike, UniformTime
from structdiff.samplers.registry import register
from structdiff.state import State


class RDDM(SteppedSampler):
    r"""Steps in data and noise apart (Liu et al. 2024), on any process and denoiser.

    Parameters
    ----------
    steps, grid, denoise, progress
        See :class:`~structdiff.samplers.base.Sampler`.
    eta
        Share of the posterior's variance that is drawn anew, in [0, 1]; 0 is deterministic.

    Raises
    ------
    StructDiffError
        If ``eta`` is out of range.
    """

    default_grid: ClassVar[Grid] = UniformTime(power=2.0)

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
            raise StructDiffError(f"eta of RDDM must lie in [0, 1], got {eta}")
        self.eta = float(eta)

    def _noise_left(self, plan: Schedule, i: int) -> tuple[float, float]:
        """Predicted and fresh noise at point i + 1."""
        sigma = plan.sigma[i + 1]
        share = self.eta * max(1 - (sigma / plan.sigma[i]) ** 2, 0.0)
        return sigma * math.sqrt(1 - share), sigma * math.sqrt(share)

    def _apart(self, plan: Schedule, i: int) -> Update:
        """From data and noise that are predicted both."""
        kept, fresh = self._noise_left(plan, i)
        return Update(1.0, (plan.alpha[i + 1] - plan.alpha[i], kept - plan.sigma[i]), fresh)

    def _together(self, plan: Schedule, i: int) -> Update:
        """The same where the noise is what the data leave of the state."""
        kept, fresh = self._noise_left(plan, i)
        ratio = kept / plan.sigma[i]
        return Update(ratio, (plan.alpha[i + 1] - plan.alpha[i] * ratio,), fresh)

    def stepper(self, run: Run, times: Sequence[float]) -> Stepper:
        """Predict data and noise, move by their coefficients."""
        # A wrapper that only gives data counts as consistent.
        consistent = getattr(run.denoiser, "consistent", True)
        coefficients = self._together if consistent else self._apart
        updates = [
            {
                name: None if plan.stands_still(i) else coefficients(plan, i)
                for name, plan in schedules(run.system, times).items()
            }
            for i in range(len(times) - 1)
        ]

        def predict(x: State, t: float) -> tuple[State, ...]:
            if consistent:
                return (run.evaluate("data", x, t),)
            return run.pair(x, t)

        def step(x: State, i: int) -> State:
            outputs = predict(x, times[i])
            return run.combine(x, updates[i], outputs, (times[i], times[i + 1]))

        return step


register("rddm", RDDM, order=1, nfe_per_step=1, stochastic=False, source="Liu et al. 2024 (RDDM)")
