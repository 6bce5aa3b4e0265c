r"""EVODiff: a few-step heuristic that balances successive data predictions (Li et al. 2025).

A multistep method of two data predictions whose weights follow how they project on one another,
:math:`P(a, b) = \mathrm{clip}(\langle a, b \rangle / \langle b, b \rangle, -2, 2)`. With
:math:`q = \sigma_u/\sigma_t`, :math:`g = \alpha_u - q \alpha_t`, the DDIM step
:math:`\bar x = q x + g m_0`, :math:`r` the last step in :math:`\lambda` over this one, and
:math:`S` the logistic function,

.. math::
   D_1 &= m_0 - r_1 m_1, \quad x_p = \bar x + \frac{g}{2 r_i} D_1, \quad \mu = E[x_0 | x_p], \quad
   D_2 = \mu - r_2 m_0, \\
   B &= (1 - \eta)\,r D_2 - \eta D_1 / r, \qquad x_u = \bar x + \frac{g}{2 \zeta} B,

where :math:`r_1, r_2` blend :math:`P(m_0, m_1), P(\mu, m_0)` with :math:`\sqrt{q / q_{prev}}`,
:math:`\eta = S(|P|/2)/2` and :math:`\zeta = S(|\zeta^*| - 1/2)` come from projections too, and
:math:`\mu`, the only evaluation of the step, is the next :math:`m_0`. The last step is a damped
first-order one.

It is no convergent scheme: neither the gains nor the factor of the last step tend to the
probability flow as steps get short. On three Gaussians in the plane under VP its error grows from
0.012 at 100 steps to 0.022 at 3200, and the published branch for more than 20 steps can blow up
(with projections per channel it overflows at 50). So it stops at 20 steps; use UniPC or
DPM-Solver++ beyond.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from structdiff.errors import StructDiffError
from structdiff.samplers.base import Run, Schedule, SteppedSampler, Stepper, schedules
from structdiff.samplers.grids import Grid, GridLike, UniformLogSNR
from structdiff.samplers.registry import register
from structdiff.state import State

MOST_STEPS = 20
"""Where the published scheme changes to a branch that can blow up."""


class _Move(NamedTuple):
    """One component's step: its kind and the numbers of the module's equation."""

    kind: Literal["first", "second", "last"]
    keep: float
    """q: scale of the noise that is left."""
    gain: float
    """g: weight of the data prediction."""
    h: float
    r: float
    """Length of the last step in log-SNR over this one's."""
    weight: float
    """Share of the projections in the balance, from 0 at the start to 1/2 at the data."""
    balance: float
    """What the projections are blended with."""
    damping: float
    """Factor on the DDIM step in the last step."""


class EVODiff(SteppedSampler):
    r"""EVODiff with reference-free variance control, order 2: for at most 20 steps.

    Parameters
    ----------
    steps, grid, denoise, progress
        See :class:`~structdiff.samplers.base.Sampler`. As published the grid is uniform in log-SNR
        and the last evaluation predicts the data.
    channel_axis
        The projections are one number per object and component, over its existing entries. With an
        axis (one for all components, or by name) they are one per index of that axis: 1 for images
        (B, C, H, W) is the published reading. Never an axis over which a component is symmetric.
    compat
        "published" allows more than 20 steps, with the published branch for them.

    Raises
    ------
    StructDiffError
        If steps exceed 20 without ``compat``, or ``channel_axis`` is no axis behind the batch.
    """

    default_grid: ClassVar[Grid] = UniformLogSNR()

    def __init__(
        self,
        steps: int,
        grid: GridLike | None = None,
        *,
        channel_axis: int | Mapping[str, int] | None = None,
        compat: Literal["published"] | None = None,
        denoise: bool = True,
        progress: bool = False,
    ) -> None:
        super().__init__(steps, grid, denoise=denoise, progress=progress)
        if compat not in (None, "published"):
            raise StructDiffError(f"compat must be None or 'published', got {compat!r}")
        if compat is None and self.steps > MOST_STEPS:
            raise StructDiffError(
                f"EVODiff is a heuristic for at most {MOST_STEPS} steps, got {steps}: it does not "
                "converge, and the published branch for more can blow up (measured: overflow at 50 "
                "steps). Choose unipc, dpm++ or heun, or compat='published'"
            )
        self.compat = compat
        self.channel_axis = channel_axis

    def _axes(self, x: State) -> dict[str, tuple[int, ...]]:
        """The axes that inner products run over, per component."""
        given = self.channel_axis
        kept = dict(given) if isinstance(given, Mapping) else dict.fromkeys(x, given)
        if unknown := sorted(set(kept) - set(x)):
            raise StructDiffError(
                f"channel_axis for {unknown}, but the state has the components {list(x)}"
            )
        axes = {}
        for name, value in x.items():
            axis = kept.get(name)
            behind = [*range(1, value.dim()), *range(1 - value.dim(), 0)]
            if axis is not None and axis not in behind:
                raise StructDiffError(
                    f"channel_axis {axis} is no axis behind the batch of component {name!r}, "
                    f"whose shape is {tuple(value.shape)}"
                )
            channels = None if axis is None else axis % value.dim()
            axes[name] = tuple(d for d in range(1, value.dim()) if d != channels)
        return axes

    def plan(self, run: Run, times: Sequence[float]) -> list[dict[str, _Move]]:
        """What every moving component does in every step."""
        moves: list[dict[str, _Move]] = [{} for _ in times[1:]]
        for name, schedule in schedules(run.system, times).items():
            steps = [i for i in range(len(moves)) if not schedule.stands_still(i)]
            depth = 0
            for i in steps:
                # A component that waited starts anew.
                depth = depth + 1 if i - 1 in steps else 1
                kind: Literal["first", "second", "last"] = "last" if i == steps[-1] else "second"
                # Two predictions are needed, and at sigma = 0 only first order is defined.
                if depth == 1 or schedule.sigma[i + 1] == 0:
                    kind = "first"
                moves[i][name] = _move(schedule, i, kind)
        return moves

    def stepper(self, run: Run, times: Sequence[float]) -> Stepper:
        """Probe, evaluate there, and take the corrected step."""
        plan = self.plan(run, times)
        long = len(plan) > MOST_STEPS
        outputs: list[State] = []  # at most two, the latest first
        fresh = False  # whether the latest was evaluated for the point where the next step starts
        axes: dict[str, tuple[int, ...]] = {}

        def step(x: State, i: int) -> State:
            nonlocal fresh
            if not axes:
                axes.update(self._axes(x))
            if not fresh:
                outputs.insert(0, run.evaluate("data", x, times[i]))
            del outputs[2:]
            new, corrections = dict(x), {}
            for name, move in plan[i].items():
                ddim = torch.add(x[name] * move.keep, outputs[0][name], alpha=move.gain)
                if move.kind == "first":
                    new[name] = ddim
                    continue
                pair = outputs[0][name], outputs[1][name]
                if move.kind == "last":
                    new[name] = _last(move, ddim, *pair)
                    continue
                corrections[name] = _Correction(move, axes[name], ddim, *pair, long)
                new[name] = corrections[name].probe
            fresh = bool(corrections)
            if fresh:
                outputs.insert(0, run.evaluate("data", State._trusted(new, x.masks), times[i + 1]))
                for name, correction in corrections.items():
                    new[name] = correction.apply(outputs[0][name])
            return State._trusted(new, x.masks)

        return step


def _move(schedule: Schedule, i: int, kind: Literal["first", "second", "last"]) -> _Move:
    lam, sigma, time = schedule.log_snr, schedule.sigma, schedule.time
    keep = sigma[i + 1] / sigma[i]
    gain = -schedule.alpha[i + 1] * math.expm1(lam[i] - lam[i + 1])
    if kind == "first":
        return _Move(kind, keep, gain, math.inf, 1.0, 0.0, 1.0, 1.0)
    late = (time[i + 1] + time[-1]) / (time[0] + time[-1])
    return _Move(
        kind,
        keep,
        gain,
        math.exp(lam[i + 1]) - math.exp(lam[i]),
        (lam[i] - lam[i - 1]) / (lam[i + 1] - lam[i]),
        (1 - late**2) / 2,
        math.sqrt(keep * sigma[i - 1] / sigma[i]),
        1 - math.sqrt(sigma[i + 1] * sigma[i]),
    )


def _last(move: _Move, ddim: Tensor, latest: Tensor, earlier: Tensor) -> Tensor:
    """The damped first-order step to the end."""
    q = move.keep if move.keep < 0.5 else move.keep - 0.5
    half = move.gain / 2
    step = torch.add(ddim * move.damping, latest, alpha=half)
    return step.add_(earlier, alpha=-half * (1 - math.sqrt(q) / 2))


class _Correction:
    """One component's second-order step, before and after the evaluation at its probe."""

    def __init__(
        self,
        move: _Move,
        axes: tuple[int, ...],
        ddim: Tensor,
        latest: Tensor,
        earlier: Tensor,
        long: bool,
    ) -> None:
        self.move, self.axes, self.ddim, self.latest, self.long = move, axes, ddim, latest, long
        balance = self._balance(latest, earlier)
        self.difference = latest - balance * earlier  # D_1
        # S(|r_1| / 4) r, within [r / 4, 3 r / 2]: S of a positive number lies within.
        self.radius = torch.sigmoid(balance.abs() / 4) * move.r
        self.probe = ddim + move.gain / 2 / self.radius * self.difference
        self.earlier = earlier

    def _dot(self, a: Tensor, b: Tensor) -> Tensor:
        product = a * b
        return product.sum(self.axes, keepdim=True) if self.axes else product

    def _project(self, a: Tensor, b: Tensor, scale: float = 1.0) -> Tensor:
        """P: 0 on what is 0, an object without entries for one."""
        norm = self._dot(b, b)
        empty = norm == 0
        ratio = self._dot(a, b) / torch.where(empty, 1.0, norm)
        return torch.where(empty, 0.0, (ratio * scale).clamp(-2, 2))

    def _balance(self, a: Tensor, b: Tensor) -> Tensor:
        share = self.move.weight
        return self._project(a, b) * share + (1 - share) * self.move.balance

    def apply(self, output: Tensor) -> Tensor:
        """The step with the prediction at the probe."""
        move = self.move
        second = output - self._balance(output, self.latest) * self.latest  # D_2
        before, after = self.difference / move.r, second * move.r
        eta = torch.sigmoid(self._project(after + before, after - before).abs() / 2) / 2
        slope = (1 - eta) * after - eta * before  # B
        gap = (self.difference - slope) * (move.gain / 2) / self.radius
        shift = self._project(gap, self.difference).abs() / move.gain - 0.5
        if self.long:
            change = self.latest - self.earlier
            agreement = self._project(self.latest, change, move.h) * (2 - move.keep**2)
            shift = -shift * torch.sigmoid(agreement)
        return self.ddim + move.gain / 2 / torch.sigmoid(shift) * slope


register(
    "evodiff",
    EVODiff,
    order=None,
    nfe_per_step=1,
    stochastic=False,
    source="Li et al. 2025 (EVODiff): a few-step heuristic",
    most_steps=MOST_STEPS,
)
