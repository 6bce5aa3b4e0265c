r"""DPM-Solver++: exponential multistep solvers in data prediction (Lu et al. 2022).

With :math:`h = \lambda_u - \lambda_t`, :math:`r = h_{prev}/h` and :math:`H = (1 + \eta) h`,

.. math:: x_u = \frac{\sigma_u}{\sigma_t} e^{-\eta h} x_t + \alpha_u (1 - e^{-H})
          \left(m_0 + \tfrac{1}{2r}(m_0 - m_1)\right) + \sigma_u \sqrt{1 - e^{-2 \eta h}}\,z.

:math:`\eta = 0` is the probability flow (2M), :math:`\eta = 1` the reverse SDE (SDE-DPM++ 2M).
Order 3 integrates the parabola through the latest three data predictions; see
:class:`DPMSolver` for the error in the published one.
"""

from __future__ import annotations

import math
from functools import partial
from typing import ClassVar, Literal

from structdiff.errors import StructDiffError
from structdiff.samplers.base import LinearSampler, Schedule, Update
from structdiff.samplers.grids import Grid, GridLike, UniformLogSNR
from structdiff.samplers.registry import register


def phi(k: int, z: float) -> float:
    r"""Exponential integrator's :math:`\varphi_k(z) = \int_0^1 e^{(1-s)z} s^{k-1}/(k-1)!\,ds`.

    :math:`\varphi_0 = e^z`, :math:`z\varphi_{k+1} = \varphi_k - 1/k!`. The power series near 0,
    where the recursion cancels.
    """
    if k == 0:
        return math.exp(z)
    if k == 1:
        return math.expm1(z) / z if z else 1.0
    if abs(z) < 1:
        term, total, j = 1 / math.factorial(k), 0.0, 0
        while abs(term) > 1e-18 * abs(total):
            total += term
            j += 1
            term *= z / (j + k)
        return total
    return (phi(k - 1, z) - 1 / math.factorial(k - 1)) / z


def order_allowed(order: int, depth: int, after: int, lower_order_final: bool) -> int:
    """Order of a multistep step with ``depth`` outputs at hand and ``after`` steps to come."""
    return min(order, depth, after + 1) if lower_order_final else min(order, depth)


class DPMSolver(LinearSampler):
    r"""DPM-Solver++ of order 1, 2 or 3 (multistep), for the ODE or the SDE.

    Order 3 takes the parabola through the latest three data predictions,
    :math:`m(s) = m_0 + D_1 s + D_2 s^2` with :math:`s = (\lambda - \lambda_t)/h`, and adds
    :math:`\alpha_u H (\varphi_2 D_1 + c\,\varphi_3 D_2)`, :math:`\varphi_k = \varphi_k(-H)`. The
    integral of :math:`s^2` gives c = 2; the public codes have c = 1, which is of order 2.

    Parameters
    ----------
    steps, grid, denoise, progress
        See :class:`~structdiff.samplers.base.Sampler`.
    order
        1 (equal to DDIM at eta = 0), 2 (2M) or 3 (3M).
    eta
        Noise: 0 is the probability flow, 1 the reverse SDE. With noise the weak order is at most 2.
    form
        How the slope enters at order 2: "midpoint" weighs it by half the step's weight, "heun"
        integrates it exactly. Both are of order 2; midpoint has the smaller error.
    lower_order_final
        Let the order fall to 2 and 1 in the last steps, which steadies runs of few steps. With
        ``denoise`` the prediction of the data is the step of order 1. None: below 15 steps.
    compat
        "published": c = 1, for runs that repeat published figures of 3M.

    Raises
    ------
    StructDiffError
        If order, eta, form or compat is not one of the above.
    """

    default_grid: ClassVar[Grid] = UniformLogSNR()
    history: ClassVar[int] = 3

    def __init__(
        self,
        steps: int,
        grid: GridLike | None = None,
        *,
        order: int = 2,
        eta: float = 0.0,
        form: Literal["midpoint", "heun"] = "midpoint",
        lower_order_final: bool | None = None,
        compat: Literal["published"] | None = None,
        denoise: bool = True,
        progress: bool = False,
    ) -> None:
        super().__init__(steps, grid, denoise=denoise, progress=progress)
        if order not in (1, 2, 3):
            raise StructDiffError(f"order of DPM-Solver++ must be 1, 2 or 3, got {order}")
        if form not in ("midpoint", "heun"):
            raise StructDiffError(f"form must be 'midpoint' or 'heun', got {form!r}")
        if not eta >= 0:
            raise StructDiffError(f"eta must not be negative, got {eta}")
        if compat not in (None, "published"):
            raise StructDiffError(f"compat must be None or 'published', got {compat!r}")
        self.order, self.eta, self.form, self.compat = order, float(eta), form, compat
        self.lower_order_final = self.steps < 15 if lower_order_final is None else lower_order_final

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
        after = len(lam) - 2 - i + self.denoise
        order = order_allowed(self.order, depth, after, self.lower_order_final)
        # At sigma = 0 the step is infinitely long in lambda: only first order is defined there.
        if order == 1 or math.isinf(h):
            return Update(state, (data,), noise)
        slopes = self._second(schedule, i, data) if order == 2 else self._third(schedule, i)
        return Update(state, (data + slopes[0], *slopes[1:]), noise)

    def _second(self, schedule: Schedule, i: int, data: float) -> tuple[float, float]:
        """What the line through the latest two data predictions adds."""
        lam = schedule.log_snr
        h = lam[i + 1] - lam[i]
        long = (1 + self.eta) * h
        exact = schedule.alpha[i + 1] * long * phi(2, -long)
        slope = data / 2 if self.form == "midpoint" else exact
        slope *= h / (lam[i] - lam[i - 1])
        return slope, -slope

    def _third(self, schedule: Schedule, i: int) -> tuple[float, float, float]:
        """What the parabola through the latest three adds."""
        lam = schedule.log_snr
        h = lam[i + 1] - lam[i]
        long = (1 + self.eta) * h
        r0, r1 = (lam[i] - lam[i - 1]) / h, (lam[i - 1] - lam[i - 2]) / h
        c = 1 if self.compat == "published" else 2
        first = schedule.alpha[i + 1] * long * phi(2, -long)
        second = schedule.alpha[i + 1] * long * phi(3, -long) * c
        # On D10 = (m0 - m1)/r0 and on D10 - D11, D11 = (m1 - m2)/r1, divided by their steps.
        bend = (first * r0 + second) / (r0 + r1)
        a, b = (first + bend) / r0, bend / r1
        return a, -a - b, b


class SDEDPMSolver(DPMSolver):
    """SDE-DPM-Solver++: the reverse SDE to weak order 2, one evaluation a step.

    Parameters
    ----------
    steps, grid, order, eta, form, lower_order_final, compat, denoise, progress
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
        lower_order_final: bool | None = None,
        compat: Literal["published"] | None = None,
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
            compat=compat,
            denoise=denoise,
            progress=progress,
        )


register("dpm++", DPMSolver, order=2, nfe_per_step=1, stochastic=False, source="Lu et al. 2022, 2M")
register(
    "dpm++3m",
    partial(DPMSolver, order=3),
    order=3,
    nfe_per_step=1,
    stochastic=False,
    source="Lu et al. 2022, 3M (corrected)",
)
register(
    "dpm++sde",
    SDEDPMSolver,
    order=2,
    nfe_per_step=1,
    stochastic=True,
    source="Lu et al. 2022, SDE 2M",
)
register(
    "dpm++3m-sde",
    partial(SDEDPMSolver, order=3),
    order=2,
    nfe_per_step=1,
    stochastic=True,
    source="Lu et al. 2022, SDE 3M (corrected)",
)
