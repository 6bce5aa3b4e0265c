r"""Explicit Runge-Kutta methods for the probability flow, in the coordinate where it is smooth.

With :math:`v = x/\alpha` and :math:`\rho = \sigma/\alpha` the probability flow of every linear
Gaussian process is :math:`dv/d\rho = \epsilon(\alpha v)` (Zhang and Chen 2023, rho-RK), and a
tableau (a, b, c) steps it by

.. math:: v_i = v_t + \sum_{j<i} a_{ij}\,w_j \epsilon_j, \qquad
          v_u = v_t + \sum_j b_j\,w_j \epsilon_j, \qquad w_j = \rho_u - \rho_t.

The stages lie at :math:`\rho_t + c_i (\rho_u - \rho_t)` of the first component that moves; its
:math:`w_j` are the step, the classical method. Another component moves along its own curve
:math:`\rho^k(\theta)`, :math:`\theta` the fraction of the way; the joint flow depends on that
curve, not on its ends alone, so replacing it by the chord would cap every method at order 2. Here
:math:`w_j^k = d\rho^k/d\theta` at :math:`c_j`, the curve read as the polynomial through as many of
its points as the quadrature (b, c) has degrees: then :math:`\sum_j b_j w_j^k` is exactly the step
of the component, and the order of the method is kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import pairwise
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from structdiff.errors import StructDiffError
from structdiff.processes.system import System, Time, identity_clock
from structdiff.samplers.base import Run, Schedule, SteppedSampler, Stepper, Update, schedules
from structdiff.samplers.grids import Grid, GridLike, Karras, times_at
from structdiff.samplers.registry import register
from structdiff.state import State

_TOLERANCE = 1e-10


@dataclass(frozen=True)
class Tableau:
    """An explicit Runge-Kutta method: Butcher's a, b and c.

    Parameters
    ----------
    a
        Strictly lower triangle, row by row: (), (a21,), (a31, a32), ...; one row per stage.
    b
        Weights of the stages, one per stage.
    c
        Where the stages lie, as fractions of the step in [0, 1]; None is the sums of the rows.

    Raises
    ------
    StructDiffError
        If the method is not explicit (a row of another length, a first stage off the start), not
        consistent (b does not sum to 1, or c is not the row sums), or leaves the step.
    """

    a: tuple[tuple[float, ...], ...]
    b: tuple[float, ...]
    c: tuple[float, ...]

    def __init__(
        self,
        a: Sequence[Sequence[float]],
        b: Sequence[float],
        c: Sequence[float] | None = None,
    ) -> None:
        rows = tuple(tuple(float(v) for v in row) for row in a)
        weights = tuple(float(v) for v in b)
        if not weights or len(rows) != len(weights):
            raise StructDiffError(
                f"a tableau has one row of a and one weight b per stage, got {len(rows)} rows "
                f"and {len(weights)} weights"
            )
        for i, row in enumerate(rows):
            if len(row) != i:
                raise StructDiffError(
                    f"the tableau is not explicit: row {i + 1} of a must hold the {i} coefficients "
                    f"of the stages before it, got {len(row)}"
                )
        sums = tuple(sum(row) for row in rows)
        nodes = sums if c is None else tuple(float(v) for v in c)
        consistent = len(nodes) == len(sums) and all(
            abs(s - n) <= _TOLERANCE for s, n in zip(sums, nodes, strict=True)
        )
        if not consistent:
            raise StructDiffError(
                f"the tableau is not consistent: c must be the sums {sums} of the rows of a, "
                f"got {nodes}"
            )
        if not abs(sum(weights) - 1) <= _TOLERANCE:
            raise StructDiffError(
                f"the tableau is not consistent: b must sum to 1, got {sum(weights)}"
            )
        if not all(-_TOLERANCE <= n <= 1 + _TOLERANCE for n in nodes):
            raise StructDiffError(
                f"the stages of a tableau must lie within the step, got c={nodes}"
            )
        object.__setattr__(self, "a", rows)
        object.__setattr__(self, "b", weights)
        object.__setattr__(self, "c", tuple(min(max(n, 0.0), 1.0) for n in nodes))

    @cached_property
    def stages(self) -> int:
        """Network evaluations a step."""
        return len(self.b)

    @cached_property
    def uses(self) -> tuple[tuple[int, ...], ...]:
        """Which slopes every stage after the first asks for, and the end of the step."""
        return tuple(tuple(j for j, v in enumerate(row) if v) for row in (*self.a[1:], self.b))

    @cached_property
    def rows(self) -> Tensor:
        """The rows of a after the first, and b, float64 (stages, stages)."""
        rows = [[*row, *[0.0] * (self.stages - len(row))] for row in (*self.a[1:], self.b)]
        return torch.tensor(rows, dtype=torch.float64)

    @cached_property
    def degrees(self) -> int:
        r"""Degrees of the quadrature: largest q with :math:`\sum b_j c_j^{m-1} = 1/m`, m <= q."""
        q = 1
        while q <= self.stages * 2:
            moment = sum(b * c**q for b, c in zip(self.b, self.c, strict=True))
            if abs(moment - 1 / (q + 1)) > _TOLERANCE:
                break
            q += 1
        return q

    @cached_property
    def path_nodes(self) -> tuple[float, ...]:
        """Fractions of the step at which the curve of a component is read, (q,)."""
        points = max(self.degrees, 2)
        index = torch.arange(points, dtype=torch.float64)
        # Chebyshev's points with the ends: a coarse step's curve is interpolated without wiggles.
        return tuple(((1 - torch.cos(torch.pi * index / (points - 1))) / 2).tolist())

    @cached_property
    def path_slopes(self) -> Tensor:
        r"""From a curve at its nodes to :math:`d\rho/d\theta` at the stages, (q, stages)."""
        nodes = torch.tensor(self.path_nodes, dtype=torch.float64)
        powers = torch.arange(len(nodes), dtype=torch.float64)
        at = torch.tensor(self.c, dtype=torch.float64)[:, None]
        slopes = powers * at ** (powers - 1).clamp(min=0)
        return (slopes @ torch.linalg.inv(nodes[:, None] ** powers)).T.contiguous()


EULER = Tableau([()], [1])
"""Order 1: DDIM."""
HEUN = Tableau([(), (1,)], [1 / 2, 1 / 2])
"""Order 2: the trapezoid, EDM's."""
KUTTA = Tableau([(), (1 / 2,), (-1, 2)], [1 / 6, 2 / 3, 1 / 6])
"""Order 3 (Kutta 1901)."""
RK4 = Tableau([(), (1 / 2,), (0, 1 / 2), (0, 0, 1)], [1 / 6, 1 / 3, 1 / 3, 1 / 6])
"""Order 4, the classical one."""


class Entry(NamedTuple):
    """Where a component enters a step."""

    rho: float
    alpha: float
    time: float
    """The component's own."""
    update: Update | None = None
    """How its state gets there; None where it is there already."""


class _Stage(NamedTuple):
    """One combination of the slopes so far, for every component that moves."""

    time: Time
    """Where the combination lies."""
    uses: tuple[int, ...] = ()
    """Which slopes the coefficients of the updates belong to."""
    updates: Mapping[str, Update | None] = {}


class _Step(NamedTuple):
    entry: Mapping[str, Update | None]
    """What happens to the state before its first slope: fresh noise, where a sampler churns."""
    stages: tuple[_Stage, ...]
    """Where slopes are taken, the first at the state itself; and last the end of the step."""


class RungeKutta(SteppedSampler):
    r"""An explicit Runge-Kutta method on the probability flow in :math:`\rho`, on any system.

    One-step methods need no start, but a high order only pays from some 50 evaluations on: below
    15 the flow near t_min is too stiff for their stages.

    Parameters
    ----------
    steps, grid, denoise, progress
        See :class:`~structdiff.samplers.base.Sampler`.
    tableau
        The method: :data:`EULER`, :data:`HEUN`, :data:`KUTTA`, :data:`RK4`, or your own.

    Raises
    ------
    StructDiffError
        If ``tableau`` is not a :class:`Tableau`.
    """

    default_grid: ClassVar[Grid] = Karras()

    def __init__(
        self,
        steps: int,
        grid: GridLike | None = None,
        *,
        tableau: Tableau = RK4,
        denoise: bool = True,
        progress: bool = False,
    ) -> None:
        super().__init__(steps, grid, denoise=denoise, progress=progress)
        if not isinstance(tableau, Tableau):
            raise StructDiffError(f"tableau must be a Tableau, got {type(tableau).__name__}")
        self.tableau = tableau

    def enter(self, schedule: Schedule, i: int) -> Entry:
        """Where a component enters step i: here at the grid point itself."""
        return Entry(schedule.rho(i), schedule.alpha[i], schedule.time[i])

    def plan(self, run: Run, times: Sequence[float]) -> list[_Step]:
        """Times and coefficients of every stage of every step, as Python numbers."""
        system, tableau = run.system, self.tableau
        plans = schedules(system, times)
        stages = _between(system, plans, times, tableau.c)
        same = tableau.path_nodes == tableau.c
        nodes = stages if same else _between(system, plans, times, tableau.path_nodes)
        alphas, levels = system.alpha(stages), system.half_log_snr(nodes)
        entries = {k: [self.enter(p, i) for i in range(len(stages))] for k, p in plans.items()}
        rows = {
            k: _updates(tableau, entries[k], alphas[k], torch.exp(-levels[k]), p)
            for k, p in plans.items()
        }
        # Where every row of the tableau lies: the later stages, and the end of the step.
        arrivals = [*stages.T[1:].tolist(), times[1:]]
        columns = []
        for used, lies, *moves in zip(tableau.uses, arrivals, *rows.values(), strict=True):
            columns.append(
                [
                    _Stage(t, used, dict(zip(plans, updates, strict=True)))
                    for t, *updates in zip(lies, *moves, strict=True)
                ]
            )
        steps = []
        for i, later in enumerate(zip(*columns, strict=True)):
            here = {k: e[i] for k, e in entries.items() if not plans[k].stands_still(i)}
            if any(plans[k].sigma[i + 1] == 0 for k in here):
                # Without noise left there is no slope at the end: only Euler's step is defined.
                later = (_Stage(times[i + 1], (0,), _euler(here, plans, i + 1)),)
            entry = {k: e.update for k, e in here.items() if e.update is not None}
            first = _Stage(entry_time(system, times[i], here) if entry else times[i])
            steps.append(_Step(entry, (first, *later)))
        return steps

    def stepper(self, run: Run, times: Sequence[float]) -> Stepper:
        """A slope per stage, then the step."""
        plan = self.plan(run, times)

        def step(x: State, i: int) -> State:
            entry, stages = plan[i]
            if entry:
                x = run.combine(x, entry, ())
            point = x
            slopes: list[State] = []
            for now, later in pairwise(stages):
                slopes.append(run.evaluate("noise", point, now.time))
                point = run.combine(x, later.updates, [slopes[j] for j in later.uses])
            return point

        return step


def _updates(
    tableau: Tableau, entries: Sequence[Entry], alpha: Tensor, path: Tensor, schedule: Schedule
) -> list[list[Update | None]]:
    """One component's updates to every stage after the first and to the end, by row and step.

    Parameters
    ----------
    tableau
        The method.
    entries
        Where the component enters every step.
    alpha
        Its signal scale at the stages, float64 (steps, stages).
    path
        Its noise level at the tableau's path nodes, float64 (steps, nodes).
    schedule
        Its process on the grid.
    """
    start = torch.tensor([(e.rho, e.alpha) for e in entries], dtype=torch.float64).reshape(-1, 2)
    path = torch.cat((start[:, :1], path[:, 1:]), dim=1)
    weights = path @ tableau.path_slopes  # (steps, stages)
    ends = torch.tensor(schedule.alpha[1:], dtype=torch.float64)
    scale = torch.cat((alpha[:, 1:], ends[:, None]), dim=1)  # of v at every row, (steps, stages)
    ratios = (scale / start[:, 1:]).T.tolist()
    slopes = (scale.T[..., None] * weights * tableau.rows[:, None]).tolist()
    still = [schedule.stands_still(i) for i in range(len(entries))]
    return [
        [
            None if waits else Update(ratio, tuple([on_slopes[j] for j in used]))
            for waits, ratio, on_slopes in zip(still, ratios[n], slopes[n], strict=True)
        ]
        for n, used in enumerate(tableau.uses)
    ]


def _euler(
    entries: Mapping[str, Entry], plans: Mapping[str, Schedule], end: int
) -> dict[str, Update | None]:
    """Euler's step from the entries to grid point ``end``."""
    updates: dict[str, Update | None] = {}
    for name, entry in entries.items():
        alpha = plans[name].alpha[end]
        step = plans[name].rho(end) - entry.rho
        updates[name] = Update(alpha / entry.alpha, (alpha * step,))
    return updates


def _between(
    system: System,
    plans: Mapping[str, Schedule],
    times: Sequence[float],
    fractions: Sequence[float],
) -> Tensor:
    """Shared times at fractions of every step in the rho of the first component that moves in it.

    Returns
    -------
    Tensor
        float64 (steps, fractions); the ends of a step exactly where the grid has them.
    """
    grid = torch.tensor(times, dtype=torch.float64)
    theta = torch.tensor(fractions, dtype=torch.float64)
    result = torch.where(theta < 1, grid[:-1, None], grid[1:, None])
    inner = (theta > 0) & (theta < 1)
    waiting = list(range(len(grid) - 1)) if bool(inner.any()) else []
    for name, plan in plans.items():
        moves = [i for i in waiting if not plan.stands_still(i)]
        waiting = [i for i in waiting if plan.stands_still(i)]
        if not moves:
            continue
        rho = torch.tensor([(plan.rho(i), plan.rho(i + 1)) for i in moves], dtype=torch.float64)
        start, end = rho[:, :1], rho[:, 1:]
        found = times_at(system, name, -torch.log(start + theta[inner] * (end - start)))
        found = torch.minimum(torch.maximum(found, grid[1:][moves, None]), grid[:-1][moves, None])
        for row, i in enumerate(moves):
            result[i, inner] = found[row]
    return result


def entry_time(system: System, shared: float, entries: Mapping[str, Entry]) -> Time:
    """The time of a step's first slope: the shared one, or own ones where a component left it."""
    left = {k: e.time for k, e in entries.items() if e.update is not None}
    if not left:
        return shared
    together = set(left) == set(system.moving) and len(set(left.values())) == 1
    if together and all(system.clocks[k] is identity_clock for k in left):
        return next(iter(left.values()))  # one number: denoisers remember what it stands for
    own = dict(system.times(shared))
    own.update({k: torch.tensor(t, dtype=torch.float64) for k, t in left.items()})
    return own


for _order, (_name, _tableau) in enumerate(
    {"euler": EULER, "heun": HEUN, "kutta": KUTTA, "rk4": RK4}.items(), start=1
):
    register(
        f"rhork-{_name}",
        partial(RungeKutta, tableau=_tableau),
        order=_order,
        nfe_per_step=_tableau.stages,
        stochastic=False,
        source="Zhang and Chen 2023 (DEIS), rho-RK",
    )
