r"""DEIS: exponential Adams-Bashforth on the probability flow (Zhang and Chen 2023), and iPNDM.

With :math:`v = x/\alpha` and :math:`\rho = \sigma/\alpha` the probability flow of every process is
:math:`dv/d\rho = \epsilon(\alpha v)`. The noise prediction is extrapolated by the Lagrange
polynomial through the latest k + 1 points of a variable w, and the rest is integrated exactly:

.. math:: x_u = \frac{\alpha_u}{\alpha_t} x_t + \alpha_u \sum_{j=0}^{k} \epsilon_j
          \int_{\rho_t}^{\rho_u} \ell_j(w(\rho))\,d\rho.

w is time in tAB, :math:`\rho` in rhoAB (k-diffusion's LMS) and :math:`\ln\rho` in the form that
diffusers calls DEIS. For k = 0 all of them are DDIM. Order k + 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import ClassVar, Literal, TypeAlias, get_args

import numpy as np
import torch

from structdiff.errors import StructDiffError
from structdiff.samplers.base import LinearSampler, Output, Schedule, Update
from structdiff.samplers.grids import Grid, GridLike, Karras, UniformTime
from structdiff.samplers.registry import register

Variable: TypeAlias = Literal["time", "rho", "log-rho"]
"""What the polynomial of DEIS runs in; time is the component's own."""

UNIFORM_ADAMS_BASHFORTH: tuple[tuple[float, ...], ...] = (
    (1.0,),
    (3 / 2, -1 / 2),
    (23 / 12, -16 / 12, 5 / 12),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)
"""Weights of the latest slope, then the earlier ones, for steps of equal length."""


@cache
def _gauss_legendre(points: int = 64) -> tuple[list[float], list[float]]:
    """Nodes and weights on [0, 1]."""
    nodes, weights = np.polynomial.legendre.leggauss(points)
    return ((nodes + 1) / 2).tolist(), (weights / 2).tolist()


def _lagrange(j: int, at: float, points: Sequence[float]) -> float:
    r""":math:`\ell_j`: 1 at ``points[j]``, 0 at the others."""
    factors = ((at - other) / (points[j] - other) for n, other in enumerate(points) if n != j)
    return math.prod(factors)


def adams_bashforth(
    schedule: Schedule, i: int, points: int, variable: Variable
) -> tuple[float, ...]:
    r"""Weights :math:`\int_{\rho_t}^{\rho_u} \ell_j\,d\rho` of the latest slopes, newest first.

    64-point Gauss-Legendre in the half log-SNR :math:`\lambda = -\ln\rho`, where the weight
    :math:`d\rho = -e^{-\lambda} d\lambda` has no singularity: in time it grows like
    :math:`t^{-1/2}` towards the data, and a long last step would lose digits.

    Parameters
    ----------
    schedule
        The component's process on the grid.
    i
        The step goes from point i to i + 1.
    points
        k + 1: how many of the latest points the polynomial runs through.
    variable
        What it runs in.
    """
    start, rho = schedule.log_snr[i], schedule.rho(i)
    h = schedule.log_snr[i + 1] - start
    # Without noise left the step is infinitely long in lambda: only first order is defined there.
    if points == 1 or math.isinf(h):
        return (rho * math.expm1(-h), *(0.0,) * (points - 1))
    nodes, weights = _gauss_legendre()
    read: Callable[[list[float]], list[float]] = partial(_coordinates, schedule, variable)
    levels = [start + h * node for node in nodes]
    known = [schedule.log_snr[i - j] for j in range(points)]
    through = schedule.time[i - points + 1 : i + 1][::-1] if variable == "time" else read(known)
    at = read(levels)
    return tuple(
        -rho
        * h
        * sum(
            weight * math.exp(-h * node) * _lagrange(j, value, through)
            for node, weight, value in zip(nodes, weights, at, strict=True)
        )
        for j in range(points)
    )


def _coordinates(schedule: Schedule, variable: Variable, levels: list[float]) -> list[float]:
    """The variable at given half log-SNRs."""
    if variable == "log-rho":
        return levels
    if variable == "rho":
        return [math.exp(-level) for level in levels]
    values: list[float] = schedule.process.time_at(
        torch.tensor(levels, dtype=torch.float64)
    ).tolist()
    return values


class DEIS(LinearSampler):
    r"""Diffusion exponential integrator sampler: tAB-k, rhoAB-k, and the log-rho form.

    The first steps use the orders that their history allows; so does a component that waited.

    Parameters
    ----------
    steps, grid, denoise, progress
        See :class:`~structdiff.samplers.base.Sampler`. Unless given, the grid is the one each form
        works best on: :math:`t^2` for "time", Karras for the other two.
    order
        k in 0, ..., 3: degree of the polynomial. The sampler converges with order k + 1.
    variable
        What the polynomial runs in: "time" (tAB, the paper's recommendation), "rho" (rhoAB) or
        "log-rho".

    Raises
    ------
    StructDiffError
        If order or variable is not one of the above.
    """

    output: ClassVar[Output] = "noise"
    history: ClassVar[int] = 4

    def __init__(
        self,
        steps: int,
        grid: GridLike | None = None,
        *,
        order: int = 3,
        variable: Variable = "time",
        denoise: bool = True,
        progress: bool = False,
    ) -> None:
        if variable not in get_args(Variable):
            raise StructDiffError(
                f"variable of DEIS must be 'time', 'rho' or 'log-rho', got {variable!r}"
            )
        if order not in (0, 1, 2, 3):
            raise StructDiffError(
                f"order of DEIS is the degree of its polynomial, 0 to 3, got {order}"
            )
        best: Grid = UniformTime(power=2.0) if variable == "time" else Karras()
        super().__init__(steps, best if grid is None else grid, denoise=denoise, progress=progress)
        self.order, self.variable = order, variable

    def coefficients(self, schedule: Schedule, i: int, depth: int) -> Update:
        points = min(depth, self.order + 1)
        weights = adams_bashforth(schedule, i, points, self.variable)
        return _update(schedule, i, weights)


class IPNDM(LinearSampler):
    r"""Improved pseudo numerical method: DDIM on a combination of the latest noise predictions.

    .. math:: x_u = \frac{\alpha_u}{\alpha_t} x_t + \alpha_u (\rho_u - \rho_t)
              \sum_j b_j \epsilon_j

    with the Adams-Bashforth weights b of equal steps (Liu et al. 2022; Zhang and Chen 2023). Few
    steps are its strength. On a grid whose steps differ, as all good ones do, the weights are of
    order 2 only, whatever their number.

    Parameters
    ----------
    steps, grid, denoise, progress
        See :class:`~structdiff.samplers.base.Sampler`.
    order
        1 to 4: how many noise predictions are combined; 1 is DDIM.
    variable_step
        Take the weights of the actual steps in :math:`\rho` instead (iPNDM_v): this is rhoAB, and
        converges with the given order.

    Raises
    ------
    StructDiffError
        If order is not one of the above.
    """

    default_grid: ClassVar[Grid] = UniformTime(power=2.0)
    output: ClassVar[Output] = "noise"
    history: ClassVar[int] = 4

    def __init__(
        self,
        steps: int,
        grid: GridLike | None = None,
        *,
        order: int = 4,
        variable_step: bool = False,
        denoise: bool = True,
        progress: bool = False,
    ) -> None:
        super().__init__(steps, grid, denoise=denoise, progress=progress)
        if order not in (1, 2, 3, 4):
            raise StructDiffError(f"order of iPNDM must be 1, 2, 3 or 4, got {order}")
        self.order, self.variable_step = order, bool(variable_step)

    def coefficients(self, schedule: Schedule, i: int, depth: int) -> Update:
        points = min(depth, self.order)
        if self.variable_step:
            return _update(schedule, i, adams_bashforth(schedule, i, points, "rho"))
        (step,) = adams_bashforth(schedule, i, 1, "rho")
        # Without noise left only the latest prediction tells where the data lie.
        points = 1 if schedule.sigma[i + 1] == 0 else points
        return _update(schedule, i, [step * b for b in UNIFORM_ADAMS_BASHFORTH[points - 1]])


def _update(schedule: Schedule, i: int, weights: Sequence[float]) -> Update:
    """The step in v as a step in x."""
    ratio = math.exp(schedule.log_alpha[i + 1] - schedule.log_alpha[i])
    return Update(ratio, tuple(schedule.alpha[i + 1] * w for w in weights))


for _order in range(4):
    register(
        f"tab{_order}",
        partial(DEIS, order=_order, variable="time"),
        order=_order + 1,
        nfe_per_step=1,
        stochastic=False,
        source=f"Zhang and Chen 2023 (DEIS), tAB{_order}",
    )
for _order in range(4):
    register(
        f"rhoab{_order}",
        partial(DEIS, order=_order, variable="rho"),
        order=_order + 1,
        nfe_per_step=1,
        stochastic=False,
        source=f"Zhang and Chen 2023 (DEIS), rhoAB{_order}",
    )
register(
    "ipndm",
    IPNDM,
    order=2,
    nfe_per_step=1,
    stochastic=False,
    source="Liu et al. 2022; Zhang and Chen 2023, iPNDM",
)
register(
    "ipndm-v",
    partial(IPNDM, variable_step=True),
    order=4,
    nfe_per_step=1,
    stochastic=False,
    source="iPNDM with the weights of the actual steps",
)
