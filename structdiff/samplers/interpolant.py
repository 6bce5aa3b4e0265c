r"""Flows and their SDEs, from the velocity and the score alone: any process, any interpolant.

.. math:: dx = b\,dt \qquad\text{or}\qquad
          dx = (b - \varepsilon s)\,dt + \sqrt{2\varepsilon}\,d\bar w,

both from :math:`t_{max}` down to :math:`t_{min}`. All strengths :math:`\varepsilon(t) \ge 0` have
the same marginals, so the strength is chosen after training: 0 is the flow, half the squared
diffusion of a Gaussian process its reverse SDE, more is Langevin on the way. (Albergo, Boffi and
Vanden-Eijnden 2023, whose time runs the other way.) One evaluation gives both fields.

Steps are taken in the components' own times; within a step every clock runs straight.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Literal, TypeAlias, get_args

import torch

from structdiff.errors import StructDiffError
from structdiff.processes.gaussian import GaussianProcess
from structdiff.processes.interpolant import Interpolant, InterpolantSystem
from structdiff.processes.system import FrozenClock, Time, identity_clock
from structdiff.samplers.base import Run, SteppedSampler, Stepper, Update
from structdiff.samplers.grids import GridLike
from structdiff.samplers.registry import register
from structdiff.state import State

Strength: TypeAlias = "float | Callable[[float], float]"
r""":math:`\varepsilon`: a number, or a function of the component's own time."""
FlowMethod: TypeAlias = Literal["euler", "heun", "rk4"]
SDEMethod: TypeAlias = Literal["euler-maruyama", "heun", "strang"]

# Stages of the explicit Runge-Kutta methods: (share of the step, weight of the last slope to get
# there), then the weights of all slopes.
_TABLEAUS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "euler": ((), (1.0,)),
    "heun": ((1.0,), (1 / 2, 1 / 2)),
    "rk4": ((1 / 2, 1 / 2, 1.0), (1 / 6, 1 / 3, 1 / 3, 1 / 6)),
}


# Half the largest share of a state's noise variance that an explicit step draws anew when nobody
# asks for a strength: above it learned networks take the state for one of another noise level.
_SHARE = 1 / 40


class _Clocks:
    """Own times of the moving components on a grid, as Python numbers."""

    def __init__(self, run: Run, times: Sequence[float]) -> None:
        self.run, self.shared = run, list(times)
        own = run.system.times(torch.tensor(self.shared, dtype=torch.float64))
        self.own: dict[str, list[float]] = {k: own[k].tolist() for k in run.moving}
        self.plain = all(
            c is identity_clock or isinstance(c, FrozenClock) for c in run.system.clocks.values()
        )

    def length(self, name: str, i: int) -> float:
        """Own time that passes in step i, backward: not negative."""
        return self.own[name][i] - self.own[name][i + 1]

    def time(self, i: int, share: float) -> Time:
        """Where the step has got to after a share of it."""
        if share in (0.0, 1.0):
            return self.shared[i + int(share)]
        if self.plain:
            return self.shared[i] + share * (self.shared[i + 1] - self.shared[i])
        whole = self.run.system.times(self.shared[i])
        straight = {
            k: torch.tensor(self.own[k][i] - share * self.length(k, i), dtype=torch.float64)
            for k in self.own
        }
        return {**whole, **straight}

    def updates(
        self, i: int, weights: Sequence[float], ends: Sequence[float] | None = None
    ) -> dict[str, Update | None]:
        """Backward by the weighted slopes; ``ends`` where a component is at 0 after the step."""
        result: dict[str, Update | None] = {}
        for name in self.own:
            length = self.length(name, i)
            if length == 0:
                continue
            # At time 0 a diffusion has no velocity to average with.
            chosen = ends if ends is not None and self.own[name][i + 1] == 0 else weights
            result[name] = Update(1.0, tuple(-length * w for w in chosen))
        return result


class Flow(SteppedSampler):
    """Runge-Kutta on the flow's velocity, over time.

    Parameters
    ----------
    steps, grid, denoise, progress
        See :class:`~structdiff.samplers.base.Sampler`.
    method
        "euler" (order 1, one evaluation a step), "heun" (2, two) or "rk4" (4, four; 2 between
        components whose clocks differ and bend).
    """

    def __init__(
        self,
        steps: int,
        grid: GridLike | None = None,
        *,
        method: FlowMethod = "heun",
        denoise: bool = True,
        progress: bool = False,
    ) -> None:
        super().__init__(steps, grid, denoise=denoise, progress=progress)
        if method not in get_args(FlowMethod):
            raise StructDiffError(f"method must be euler, heun or rk4, got {method!r}")
        self.method: FlowMethod = method

    def stepper(self, run: Run, times: Sequence[float]) -> Stepper:
        """Slopes at the stages, then their weighted mean."""
        shares, weights = _TABLEAUS[self.method]
        # The last slope but one reaches the end without asking for a velocity there.
        ends = {"euler": (1.0,), "heun": (1.0,), "rk4": (0.0, 0.0, 1.0)}[self.method]
        clocks = _Clocks(run, times)

        def step(x: State, i: int) -> State:
            slopes = [run.evaluate("velocity", x, times[i])]
            for share in shares:
                guess = run.combine(x, clocks.updates(i, (share,)), slopes[-1:])
                slopes.append(run.evaluate("velocity", guess, clocks.time(i, share)))
            return run.combine(x, clocks.updates(i, weights, ends), slopes)

        return step


class InterpolantSDE(SteppedSampler):
    r"""The SDE of any strength with the flow's marginals.

    Parameters
    ----------
    steps, grid, denoise, progress
        See :class:`~structdiff.samplers.base.Sampler`.
    epsilon
        :math:`\varepsilon(t) \ge 0` per unit of own time: a number, a function of the component's
        own time, or one of these per component. None is half the squared diffusion of a Gaussian
        process (its reverse SDE; on a coarse grid as much of it as a step bears) and
        :math:`\gamma^2/(2t(1-t))` of an interpolant, which for a Schroedinger bridge is the
        bridge. Where an interpolant's noise scale is below its
        ``gamma_min`` the strength is 0.
    method
        "euler-maruyama" (weak order 1, one evaluation a step); "heun": all the noise, then Heun's
        two slopes, as published (still of weak order 1); "strang": half of the noise before the
        two slopes and half after (weak order 2).

    Raises
    ------
    StructDiffError
        If the method is unknown, or a strength is negative or not finite on the grid.
    """

    def __init__(
        self,
        steps: int,
        grid: GridLike | None = None,
        *,
        epsilon: Strength | Mapping[str, Strength] | None = None,
        method: SDEMethod = "strang",
        denoise: bool = True,
        progress: bool = False,
    ) -> None:
        super().__init__(steps, grid, denoise=denoise, progress=progress)
        if method not in get_args(SDEMethod):
            raise StructDiffError(f"method must be euler-maruyama, heun or strang, got {method!r}")
        self.epsilon, self.method = epsilon, method

    def _strengths(self, clocks: _Clocks) -> dict[str, list[float]]:
        """Strength of every moving component at every grid time."""
        system = clocks.run.system
        strengths = {}
        for name, own in clocks.own.items():
            process = system.processes[name]
            given = self.epsilon.get(name) if isinstance(self.epsilon, Mapping) else self.epsilon
            if given is None:
                values = [
                    min(_natural(process, t), bound)
                    for t, bound in zip(own, _bounds(process, own), strict=True)
                ]
            else:
                values = [float(given(t)) if callable(given) else float(given) for t in own]
            for t, value in zip(own, values, strict=True):
                if not 0 <= value < math.inf:
                    raise StructDiffError(
                        f"epsilon must be finite and not negative, got {value} for component "
                        f"{name!r} at t = {t:.4g}"
                    )
            if isinstance(process, Interpolant):
                values = [
                    e if e and _scored(process, t) else 0.0
                    for e, t in zip(values, own, strict=True)
                ]
            strengths[name] = values
        return strengths

    def stepper(self, run: Run, times: Sequence[float]) -> Stepper:
        """Noise and slopes, in the order of the method."""
        clocks = _Clocks(run, times)
        strengths = self._strengths(clocks)
        drifts = [
            _Drift(run, times[i], {k: e[i] for k, e in strengths.items()})
            for i in range(len(times))
        ]

        def noise(i: int, first: float, second: float) -> dict[str, Update | None]:
            """Noise of variance 2 (first e_i + second e_{i+1}) times the step."""
            result: dict[str, Update | None] = {}
            for name, e in strengths.items():
                variance = 2 * (first * e[i] + second * e[i + 1]) * clocks.length(name, i)
                if variance > 0:
                    result[name] = Update(1.0, (), math.sqrt(variance))
            return result

        def slopes(x: State, i: int) -> State:
            first = drifts[i](x)
            guess = run.combine(x, clocks.updates(i, (1.0,)), (first,))
            second = drifts[i + 1](guess)
            return run.combine(x, clocks.updates(i, (0.5, 0.5), (1.0,)), (first, second))

        def step(x: State, i: int) -> State:
            start, end = times[i], times[i + 1]
            if self.method == "euler-maruyama":
                moved = run.combine(x, clocks.updates(i, (1.0,)), (drifts[i](x),))
                return run.combine(moved, noise(i, 1.0, 0.0), (), (start, end))
            if self.method == "heun":
                return slopes(run.combine(x, noise(i, 0.5, 0.5), (), (start, end)), i)
            middle = (start + end) / 2
            x = slopes(run.combine(x, noise(i, 0.5, 0.0), (), (start, middle)), i)
            return run.combine(x, noise(i, 0.0, 0.5), (), (middle, end))

        return step


def _bounds(process: GaussianProcess | Interpolant, own: Sequence[float]) -> list[float]:
    r"""The largest strength at every grid time that an explicit step bears.

    Towards a Gaussian of the noise's own width a step shrinks by
    :math:`1 - \varepsilon h/\sigma^2`; a coarse grid meets the end of flow matching, where
    :math:`g` is without bound, and the data, where :math:`\sigma` vanishes.
    """
    if isinstance(process, Interpolant):
        return [math.inf] * len(own)
    lengths = [a - b for a, b in pairwise(own)]
    longest = [max(pair) for pair in zip([0.0, *lengths], [*lengths, 0.0], strict=True)]
    levels = process.sigma(torch.tensor(own, dtype=torch.float64)).tolist()
    return [
        _SHARE * level**2 / length if length > 0 else math.inf
        for level, length in zip(levels, longest, strict=True)
    ]


def _natural(process: object, t: float) -> float:
    if isinstance(process, Interpolant):
        return float(process.epsilon(t))
    return float(process.diffusion_squared(t)) / 2  # type: ignore[attr-defined]


def _scored(process: Interpolant, t: float) -> bool:
    """Whether the noise scale is large enough to divide by."""
    return float(process.noise_scale(t)) > process.gamma_min


class _Drift:
    """B - epsilon s at one grid time, from one evaluation.

    Of a Gaussian process the velocity follows from the score, :math:`f x - g^2 s/2`; where a
    network predicts data and noise apart both are used; a flow knows both fields.
    """

    def __init__(self, run: Run, t: float, strengths: Mapping[str, float]) -> None:
        self.run, self.t, self.strengths = run, t, dict(strengths)
        self.read = self._score
        self.factors: dict[str, tuple[float, float]] = {}
        if isinstance(run.system, InterpolantSystem):
            self.read = self._flow
            return
        own = run.system.times(t)
        # A wrapper that only gives data counts as consistent.
        consistent = getattr(run.denoiser, "consistent", True)
        self.read = self._score if consistent else self._pair
        for name, e in self.strengths.items():
            process, time = run.system.processes[name], own[name]
            if consistent:
                first, second = process.drift(time), -process.diffusion_squared(time) / 2 - e
            else:
                first = process.alpha_derivative(time)
                second = process.sigma_derivative(time) + e / process.sigma(time)
            self.factors[name] = (float(first), float(second))

    def __call__(self, x: State) -> State:
        return self.read(x)

    def _flow(self, x: State) -> State:
        against = {k: -e for k, e in self.strengths.items()}
        self.run.nfe += 1
        drift = self.run.denoiser.drift(x, self.t, against, self.run.condition)  # type: ignore[operator]
        return self.run.inside(drift)

    def _score(self, x: State) -> State:
        return self._combined(x, x, self.run.evaluate("score", x, self.t))

    def _pair(self, x: State) -> State:
        self.run.nfe += 1
        data, noise = self.run.denoiser.pair(x, self.t, self.run.condition)
        return self._combined(x, self.run.inside(data), self.run.inside(noise))

    def _combined(self, x: State, first: State, second: State) -> State:
        moved = {k: (first[k] * a).add_(second[k], alpha=b) for k, (a, b) in self.factors.items()}
        return State._trusted({**x, **moved}, x.masks)


register(
    "flow",
    Flow,
    order=2,
    nfe_per_step=2,
    stochastic=False,
    source="Albergo, Boffi and Vanden-Eijnden 2023; Lipman et al. 2023: Heun on the velocity",
)
register(
    "interpolant-sde",
    InterpolantSDE,
    order=2,
    nfe_per_step=2,
    stochastic=True,
    source="Albergo, Boffi and Vanden-Eijnden 2023, with the noise split around the drift",
)
