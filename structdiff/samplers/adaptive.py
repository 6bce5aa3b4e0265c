r"""Adaptive integration of the probability flow and of the reverse SDE.

The moving components are laid out flat over their free coordinates (B, D) and handed to
torchdiffeq or torchsde. The flow runs in :math:`v = x/\alpha` over the noise level :math:`\rho =
\sigma/\alpha` of one component, where it is :math:`dv/d\rho = \epsilon(\alpha v)` and not stiff;
other components follow with :math:`dv_k/d\rho = \epsilon_k\, d\rho_k/d\rho`. The SDE runs in x
over time.

Both solvers choose one step size for the whole batch from a norm over it, and the Brownian path of
the SDE belongs to the batch: an object's sample depends on its batch mates, within the tolerance
for the flow, entirely for the SDE. The registry says so (``couples_batch``).
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch
from torch import Tensor

from structdiff.errors import StructDiffError
from structdiff.processes.system import System, identity_clock
from structdiff.samplers.base import Run, Sampler
from structdiff.samplers.grids import GridLike, times_at
from structdiff.samplers.registry import register
from structdiff.spaces import Layout
from structdiff.state import State


def _solver(name: str) -> Any:
    """The optional package that integrates."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise StructDiffError(
            f"this sampler needs {name}: pip install 'structdiff[dynamics]', or choose another"
        ) from error


class _Flat:
    """The moving components of a state as vectors (B, D), and back."""

    def __init__(self, run: Run, x: State) -> None:
        self.whole = x
        self.names = run.moving
        self.layout: Layout = run.system.layout(self.part(x))

    def part(self, x: State) -> State:
        masks = {k: m for k, m in x.masks.items() if k in self.names}
        return State._trusted({k: x[k] for k in self.names}, masks)

    def vector(self, x: State) -> Tensor:
        return self.layout.flatten(self.part(x))

    def state(self, vector: Tensor) -> State:
        moving = self.layout.unflatten(vector)
        new = {k: moving[k] if k in self.names else v for k, v in self.whole.items()}
        return State._trusted(new, self.whole.masks)


def _scaled(x: State, factors: dict[str, Tensor], names: tuple[str, ...]) -> State:
    """Multiply the named components by numbers."""
    return State._trusted(
        {k: v * factors[k].to(v) if k in names else v for k, v in x.items()}, x.masks
    )


class _Adaptive(Sampler):
    """What the two have in common: reporting ``steps`` states of a run that picks its own steps.

    Parameters
    ----------
    steps
        Number of states that the trajectory reports; the solver steps as it needs.
    grid
        Where they lie.
    """

    def times(self, system: System) -> list[float]:
        """Shared times reported: the start and ``steps`` more; the last is t_min."""
        points = self.steps + 1
        values: list[float] = self.grid.times(system, points).tolist()
        return values

    def _report(
        self, run: Run, states: Iterator[State], times: list[float]
    ) -> Iterator[tuple[float, State]]:
        for t, state in zip(times, states, strict=True):
            if self.denoise and t == times[-1]:
                yield 0.0, self.denoised(run, state, t)
            else:
                yield t, state


def _clock_rate(clock: Callable[[Tensor], Tensor], t: Tensor) -> Tensor:
    """Speed of a component's own time, by automatic differentiation."""
    if clock is identity_clock:
        return torch.ones_like(t)
    with torch.enable_grad():
        shared = t.detach().clone().requires_grad_(True)
        own = clock(shared)
        if not own.requires_grad:  # a clock that waits
            return torch.zeros_like(t)
        (rate,) = torch.autograd.grad(own.sum(), shared)
    return rate


class ProbabilityFlow(_Adaptive):
    """Adaptive Runge-Kutta on the probability flow, by torchdiffeq.

    Parameters
    ----------
    steps, grid, denoise, progress
        See :class:`~structdiff.samplers.base.Sampler`; ``steps`` is the number of states reported.
    rtol, atol
        Tolerances of the solver's error norm.
    method
        Any adaptive method of torchdiffeq.
    variable
        "rho": integrate over the noise level of the first moving component; "time": over shared
        time, for clocks that wait.
    """

    def __init__(
        self,
        steps: int,
        grid: GridLike | None = None,
        *,
        rtol: float = 1e-5,
        atol: float = 1e-5,
        method: str = "dopri5",
        variable: Literal["rho", "time"] = "rho",
        denoise: bool = True,
        progress: bool = False,
    ) -> None:
        super().__init__(steps, grid, denoise=denoise, progress=progress)
        if not rtol > 0 or not atol > 0:
            raise StructDiffError(f"tolerances must be positive, got {rtol} and {atol}")
        if variable not in ("rho", "time"):
            raise StructDiffError(f"variable must be 'rho' or 'time', got {variable!r}")
        self.rtol, self.atol, self.method, self.variable = rtol, atol, method, variable

    def solve(self, run: Run, x: State) -> Iterator[tuple[float, State]]:
        """Integrate in one go, then report."""
        odeint = _solver("torchdiffeq").odeint
        system, times = run.system, self.times(run.system)
        reference = run.moving[0]
        flat = _Flat(run, x)

        def rates(t: Tensor) -> dict[str, Tensor]:
            """Speed of every component's noise level in shared time: g^2 / (2 alpha sigma)."""
            own, alpha, sigma = system.times(t), system.alpha(t), system.sigma(t)
            return {
                k: system.processes[k].diffusion_squared(own[k])
                / (2 * alpha[k] * sigma[k])
                * _clock_rate(system.clocks[k], t)
                for k in run.moving
            }

        def slope(point: Tensor, vector: Tensor) -> Tensor:
            point = point.double()
            t = point if self.variable == "time" else times_at(system, reference, -point.log())
            noise = run.evaluate(
                "noise", _scaled(flat.state(vector), system.alpha(t), run.moving), t
            )
            speed = rates(t)
            if self.variable == "rho":
                speed = {k: v / speed[reference] for k, v in speed.items()}
            return flat.vector(_scaled(noise, speed, run.moving))

        grid = torch.tensor(times, dtype=torch.float64, device=x.device)
        alpha = system.alpha(grid)
        points = (
            grid if self.variable == "time" else system.sigma(grid)[reference] / alpha[reference]
        )
        start = flat.vector(_scaled(x, {k: 1 / v[0] for k, v in alpha.items()}, run.moving))
        try:
            vectors = odeint(
                slope,
                start,
                points,
                rtol=self.rtol,
                atol=self.atol,
                method=self.method,
                # Step onto the end and never past it, where the noise level may not exist.
                options={"step_t": points[-1:]},
            )
        except AssertionError as error:  # how torchdiffeq says that the step shrank to nothing
            raise StructDiffError(
                f"the adaptive flow failed ({error}): the model's output is not finite or not "
                "smooth; loosen rtol and atol, or choose a sampler on a grid"
            ) from error
        states = (
            _scaled(flat.state(v), {k: a[i] for k, a in alpha.items()}, run.moving)
            for i, v in enumerate(vectors[1:], start=1)
        )
        yield from self._report(run, states, times[1:])


class _Reverse(torch.nn.Module):
    """The reverse SDE over s = t_max - t on flat vectors, as torchsde wants it."""

    noise_type = "diagonal"
    sde_type = "ito"

    def __init__(self, run: Run, flat: _Flat) -> None:
        super().__init__()
        self.run, self.flat = run, flat
        self.ones = flat.whole.map(torch.ones_like)

    def _scales(self, s: Tensor) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
        system = self.run.system
        t = (system.t_max - s.double()).clamp(min=system.t_min)
        own = system.times(t)
        rate = {k: _clock_rate(system.clocks[k], t) for k in self.run.moving}
        drift = {k: system.processes[k].drift(own[k]) * rate[k] for k in self.run.moving}
        g2 = {k: system.processes[k].diffusion_squared(own[k]) * rate[k] for k in self.run.moving}
        return t, drift, g2

    def f(self, s: Tensor, vector: Tensor) -> Tensor:
        """Drift over s: g^2 score - f x."""
        t, drift, g2 = self._scales(s)
        x = self.flat.state(vector)
        score = self.run.evaluate("score", x, t)
        moving = self.run.moving
        down = {k: -v for k, v in drift.items()}
        return self.flat.vector(_scaled(score, g2, moving)) + self.flat.vector(
            _scaled(x, down, moving)
        )

    def g(self, s: Tensor, vector: Tensor) -> Tensor:
        """Diffusion per coordinate; 0 where a coordinate does not exist."""
        _, _, g2 = self._scales(s)
        scales = {k: v.sqrt() for k, v in g2.items()}
        spread = self.flat.vector(_scaled(self.ones, scales, self.run.moving))
        return torch.where(self.flat.layout.exists, spread, torch.zeros_like(spread))


class ReverseSDE(_Adaptive):
    """Adaptive stochastic Runge-Kutta on the reverse SDE, by torchsde.

    Parameters
    ----------
    steps, grid, denoise, progress
        See :class:`~structdiff.samplers.base.Sampler`; ``steps`` is the number of states reported.
    rtol, atol
        Tolerances of the solver's error norm.
    first_step
        Length of the first step, in shared time.
    """

    def __init__(
        self,
        steps: int,
        grid: GridLike | None = None,
        *,
        rtol: float = 1e-2,
        atol: float = 1e-2,
        first_step: float = 1e-2,
        denoise: bool = True,
        progress: bool = False,
    ) -> None:
        super().__init__(steps, grid, denoise=denoise, progress=progress)
        if not rtol > 0 or not atol > 0 or not first_step > 0:
            raise StructDiffError(
                f"tolerances and first step must be positive, got {rtol}, {atol} and {first_step}"
            )
        self.rtol, self.atol, self.first_step = rtol, atol, first_step

    def solve(self, run: Run, x: State) -> Iterator[tuple[float, State]]:
        """Integrate in one go, then report."""
        torchsde = _solver("torchsde")
        system, times = run.system, self.times(run.system)
        flat = _Flat(run, x)
        start = flat.vector(x)
        points = system.t_max - torch.tensor(times, dtype=torch.float64)
        points = points.to(start)
        # One draw from the source seeds the whole path.
        draw = run.source.normal(run.moving[0], start.new_empty(len(start), 1))
        entropy = int(draw.double().view(torch.int64).sum()) % 2**31
        path = torchsde.BrownianInterval(
            t0=float(points[0]),
            t1=float(points[-1]),
            size=tuple(start.shape),
            dtype=start.dtype,
            device=start.device,
            entropy=entropy,
            levy_area_approximation="space-time",
        )
        vectors = torchsde.sdeint(
            _Reverse(run, flat),
            start,
            points,
            bm=path,
            method="srk",
            dt=self.first_step,
            adaptive=True,
            rtol=self.rtol,
            atol=self.atol,
        )
        states = (flat.state(vector) for vector in vectors[1:])
        yield from self._report(run, states, times[1:])


register(
    "ode",
    ProbabilityFlow,
    order=5,
    nfe_per_step=None,
    stochastic=False,
    source="Song et al. 2021 (score SDE), probability flow; torchdiffeq",
    couples_batch=True,
)
register(
    "sde",
    ReverseSDE,
    order=1,
    nfe_per_step=None,
    stochastic=True,
    source="Song et al. 2021 (score SDE), reverse SDE; torchsde",
    couples_batch=True,
)
