r"""DPM-Solver++: exponential multistep solvers in data prediction (Lu et al. 2022).

With :math:`h = \lambda_u - \lambda_t`, :math:`r = h_{prev}/h` and :math:`H = (1 + \eta) h`,

.. math:: x_u = \frac{\sigma_u}{\sigma_t} e^{-\eta h} x_t + \alpha_u (1 - e^{-H})
          \left(m_0 + \tfrac{1}{2r}(m_0 - m_1)\right) + \sigma_u \sqrt{1 - e^{-2 \eta h}}\,z.

:math:`\eta = 0` is the probability flow (2M), :math:`\eta = 1` the reverse SDE (SDE-DPM++ 2M).
"""

from __future__ import annotations

import math
from typing import ClassVar, Literal

from structdiff.errors import StructDiffError
from structdiff.samplers.base import LinearSampler, Schedule, Update
from structdiff.samplers.grids import Grid, GridLike, UniformLogSNR
from structdiff.samplers.registry import register


class DPMSolver(LinearSampler):
    r"""DPM-Solver++ of order 1 or 2 (multistep), for the ODE or the SDE.

    Parameters
    ----------
    steps, grid, denoise, progress
        See :class:`~structdiff.samplers.base.Sampler`.
    order
        1 (equal to DDIM at eta = 0) or 2 (2M).
    eta
        Noise: 0 is the probability flow, 1 the reverse SDE.
    form
        How the slope enters: "midpoint" weighs it by half the step's weight, "heun" integrates it
        exactly. Both are of order 2; midpoint has the smaller error.
    lower_order_final
        Take the last step to first order, which steadies runs of few steps. With ``denoise`` the
        prediction of the data is that step.

    Raises
    ------
    StructDiffError
        If order, eta or form is not one of the above.
    """

    default_grid: ClassVar[Grid] = UniformLogSNR()
    history: ClassVar[int] = 2

    def __init__(
        self,
        steps: int,
        grid: GridLike | None = None,
        *,
        order: int = 2,
        eta: float = 0.0,
        form: Literal["midpoint", "heun"] = "midpoint",
        lower_order_final: bool = True,
        denoise: bool = True,
        progress: bool = False,
    ) -> None:
        super().__init__(steps, grid, denoise=denoise, progress=progress)
        if order not in (1, 2):
            raise StructDiffError(f"order of DPM-Solver++ must be 1 or 2, got {order}")
        if form not in ("midpoint", "heun"):
            raise StructDiffError(f"form must be 'midpoint' or 'heun', got {form!r}")
        if not eta >= 0:
            raise StructDiffError(f"eta must not be negative, got {eta}")
        self.order, self.eta, self.form = order, float(eta), form
        self.lower_order_final = lower_order_final

    def coefficients(self, schedule: Schedule, i: int, depth: int) -> Update:
        lam = schedule.log_snr
        h = lam[i + 1] - lam[i]
        data = -schedule.alpha[i + 1] * math.expm1(-(1 + self.eta) * h)
        state = (
            schedule.sigma[i + 1]
            / schedule.sigma[i]
            * (math.exp(-self.eta * h) if self.eta else 1.0)
        )
        noise = (
            schedule.sigma[i + 1] * math.sqrt(-math.expm1(-2 * self.eta * h)) if self.eta else 0.0
        )
        last = i + 2 == len(lam) and self.lower_order_final and not self.denoise
        # At sigma = 0 the step is infinitely long in lambda: only first order is defined there.
        if self.order == 1 or depth == 1 or last or math.isinf(h):
            return Update(state, (data,), noise)
        if self.form == "midpoint":
            slope = data / 2
        else:
            long = (1 + self.eta) * h
            slope = schedule.alpha[i + 1] * (math.expm1(-long) / long + 1)
        slope *= h / (lam[i] - lam[i - 1])
        return Update(state, (data + slope, -slope), noise)


class SDEDPMSolver(DPMSolver):
    """SDE-DPM-Solver++ 2M: the reverse SDE to weak order 2, one evaluation a step.

    Parameters
    ----------
    steps, grid, order, eta, form, lower_order_final, denoise, progress
        As for :class:`DPMSolver`; ``eta`` is 1 unless given.
    """

    def __init__(
        self,
        steps: int,
        grid: GridLike | None = None,
        *,
        order: int = 2,
        eta: float = 1.0,
        form: Literal["midpoint", "heun"] = "midpoint",
        lower_order_final: bool = True,
        denoise: bool = True,
        progress: bool = False,
    ) -> None:
        super().__init__(
            steps,
            grid,
            order=order,
            eta=eta,
            form=form,
            lower_order_final=lower_order_final,
            denoise=denoise,
            progress=progress,
        )


register("dpm++", DPMSolver, order=2, nfe_per_step=1, stochastic=False, source="Lu et al. 2022, 2M")
register(
    "dpm++sde",
    SDEDPMSolver,
    order=2,
    nfe_per_step=1,
    stochastic=True,
    source="Lu et al. 2022, SDE 2M",
)
