r"""UniPC: a unified predictor and corrector at one evaluation a step (Zhao et al. 2023).

In data prediction, with :math:`h = \lambda_u - \lambda_t`, :math:`r_k = (\lambda_{-k} -
\lambda_t)/h`, :math:`r_p = 1`, :math:`D_k = (m_{-k} - m_0)/r_k` and a scale B of order h,

.. math:: x_u = \frac{\sigma_u}{\sigma_t} x_t + \alpha_u (1 - e^{-h}) m_0
          - \alpha_u B \sum_k w_k D_k.

The predictor sums over the p - 1 earlier points; the corrector over these and the new one. It needs
the output at the predicted state, which the next step evaluates anyway. As both start from the same
:math:`x_t`, the correction of a state is itself a linear combination of outputs: the next step adds
it before it predicts, and UniPC is one :class:`~structdiff.samplers.base.LinearSampler`. The state
that the last step reaches stays as predicted. Order p + 1.
"""

from __future__ import annotations

import math
from functools import partial
from typing import ClassVar, Literal, TypeAlias, get_args

import numpy as np

from structdiff.errors import StructDiffError
from structdiff.samplers.base import LinearSampler, Schedule, Update
from structdiff.samplers.dpm_solver import order_allowed, phi
from structdiff.samplers.grids import Grid, GridLike, UniformLogSNR
from structdiff.samplers.registry import register

Scale: TypeAlias = Literal["bh1", "bh2"]
"""B: h itself, or :math:`1 - e^{-h}`, up to the sign."""


class UniPC(LinearSampler):
    r"""UniPC-p of data prediction, p = 1, 2 or 3.

    Parameters
    ----------
    steps, grid, denoise, progress
        See :class:`~structdiff.samplers.base.Sampler`.
    order
        p; the sampler converges with order p + 1.
    scale
        "bh2" (:math:`B = e^{-h} - 1`) or "bh1" (:math:`B = -h`). B cancels where more than one
        weight is solved for: they differ in the predictor of p = 2 and the corrector of p = 1.
    lower_order_final
        Let p fall to 2 and 1 in the last steps, which steadies runs of few steps. With ``denoise``
        the prediction of the data is the step of order 1. None: below 15 steps.

    Raises
    ------
    StructDiffError
        If order or scale is not one of the above.
    """

    default_grid: ClassVar[Grid] = UniformLogSNR()
    history: ClassVar[int] = 4

    def __init__(
        self,
        steps: int,
        grid: GridLike | None = None,
        *,
        order: int = 2,
        scale: Scale = "bh2",
        lower_order_final: bool | None = None,
        denoise: bool = True,
        progress: bool = False,
    ) -> None:
        super().__init__(steps, grid, denoise=denoise, progress=progress)
        if order not in (1, 2, 3):
            raise StructDiffError(f"order of UniPC must be 1, 2 or 3, got {order}")
        if scale not in get_args(Scale):
            raise StructDiffError(f"scale of UniPC must be 'bh1' or 'bh2', got {scale!r}")
        self.order, self.scale = order, scale
        self.lower_order_final = self.steps < 15 if lower_order_final is None else lower_order_final

    def _order(self, schedule: Schedule, i: int, depth: int) -> int:
        """P of the step from point i."""
        after = len(schedule.log_snr) - 2 - i + self.denoise
        return order_allowed(self.order, depth, after, self.lower_order_final)

    def coefficients(self, schedule: Schedule, i: int, depth: int) -> Update:
        lam = schedule.log_snr
        h = lam[i + 1] - lam[i]
        state = schedule.sigma[i + 1] / schedule.sigma[i]
        # At sigma = 0 the step is infinitely long in lambda: only first order is defined there.
        order = 1 if math.isinf(h) else self._order(schedule, i, depth)
        outputs = [0.0] * self.history
        for j, weight in enumerate(self._predictor(schedule, i, order)):
            outputs[j] += weight
        outputs[0] -= schedule.alpha[i + 1] * math.expm1(-h)
        if depth > 1:  # the step before also moved: correct where it led
            before = self._order(schedule, i - 1, depth - 1)
            for j, weight in enumerate(self._correction(schedule, i - 1, before)):
                outputs[j] += state * weight
        return Update(state, tuple(outputs[: max(depth, 1)]))

    def _predictor(self, schedule: Schedule, i: int, order: int) -> list[float]:
        """What the predictor from point i adds to DDIM: on the outputs at i, i - 1, ..."""
        if order == 1:
            return []
        h, ratios, factor = self._step(schedule, i, order)
        weights = self._weights(h, ratios[:-1])
        return _on_outputs([factor * w for w in weights], ratios[:-1])

    def _correction(self, schedule: Schedule, i: int, order: int) -> list[float]:
        """Corrected less predicted state at point i + 1: on the outputs at i + 1, i, i - 1, ..."""
        h, ratios, factor = self._step(schedule, i, order)
        *old, new = (factor * w for w in self._weights(h, ratios))
        corrected = _on_outputs(old, ratios[:-1])
        corrected[0] -= new  # D of the new point is the output there less the one at i
        for j, weight in enumerate(self._predictor(schedule, i, order)):
            corrected[j] -= weight
        return [new, *corrected]

    def _step(self, schedule: Schedule, i: int, order: int) -> tuple[float, list[float], float]:
        """H, the ratios r_1, ..., r_p and -alpha B of the step from point i."""
        lam = schedule.log_snr
        h = lam[i + 1] - lam[i]
        ratios = [(lam[i - k] - lam[i]) / h for k in range(1, order)]
        return h, [*ratios, 1.0], -schedule.alpha[i + 1] * self._b(h)

    def _b(self, h: float) -> float:
        return -h if self.scale == "bh1" else math.expm1(-h)

    def _weights(self, h: float, ratios: list[float]) -> list[float]:
        r"""Solve :math:`\sum_k r_k^{n-1} w_k = n!\,z\varphi_{n+1}(z)/B` at z = -h."""
        if len(ratios) == 1:
            return [0.5]  # the paper's choice for one unknown: its limit for small h
        rows = range(1, len(ratios) + 1)
        matrix = np.array([[r ** (n - 1) for r in ratios] for n in rows])
        right = [math.factorial(n) * -h * phi(n + 1, -h) / self._b(h) for n in rows]
        weights: list[float] = np.linalg.solve(matrix, np.array(right)).tolist()
        return weights


def _on_outputs(weights: list[float], ratios: list[float]) -> list[float]:
    """Weights on D_k = (m_k - m_0)/r_k as weights on m_0, m_1, ..."""
    each = [w / r for w, r in zip(weights, ratios, strict=True)]
    return [-sum(each), *each]


for _order in (1, 2, 3):
    register(
        f"unipc{_order}",
        partial(UniPC, order=_order),
        order=_order + 1,
        nfe_per_step=1,
        stochastic=False,
        source=f"Zhao et al. 2023, UniPC-{_order} (bh2)",
    )
