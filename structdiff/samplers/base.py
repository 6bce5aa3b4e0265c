r"""The one loop of every sampler: backward in time, from the prior to the data.

Almost every solver is one linear combination per step and component,

.. math:: x_u = a\,x_t + \sum_j c_j\,m_j + d\,z,

of the state, the latest model outputs and fresh noise; its coefficients depend only on the grid
and the process. :class:`LinearSampler` owns that step, so such a sampler is a coefficient
function. Any other sampler on a grid gives a :meth:`SteppedSampler.stepper`. Everything else
(times, evaluations and their count, noise, masks and symmetry, components that stand still,
progress, callbacks) is here, once.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor
from tqdm import tqdm

from structdiff.arguments import whole
from structdiff.denoisers import BaseDenoiser, Pair
from structdiff.noise import Interval, NoiseSource, as_source
from structdiff.processes.gaussian import GaussianProcess
from structdiff.processes.system import System, Time
from structdiff.samplers.grids import Grid, GridLike, UniformTime, as_grid
from structdiff.state import State

Source: TypeAlias = "NoiseSource | int | Sequence[int] | Tensor | None"
"""What :func:`structdiff.noise.as_source` reads: nothing, a seed, a seed per object, a source."""
Callback: TypeAlias = Callable[[int, float, State], None]
"""Called after every step with its number from 1, the shared time reached and the state there."""
Stepper: TypeAlias = Callable[[State, int], State]
"""Takes the state at ``times[i]`` and i to the state at ``times[i + 1]``."""
Output: TypeAlias = Literal["data", "noise", "score", "velocity"]
"""Which reading of the network's output a sampler combines."""


class Update(NamedTuple):
    """Coefficients of one step of one component."""

    state: float
    """a"""
    outputs: tuple[float, ...]
    """c_j: of the latest model output, then the earlier ones."""
    noise: float = 0.0
    """d"""


@dataclass(frozen=True)
class Schedule:
    """A component's process on a grid, as Python numbers: the loop never waits for a device."""

    process: GaussianProcess
    time: list[float]
    """The component's own time."""
    log_alpha: list[float]
    alpha: list[float]
    sigma: list[float]
    log_snr: list[float]
    r"""Half log-SNR, :math:`\ln(\alpha/\sigma)`."""
    drift: list[float]
    diffusion: list[float]

    def rho(self, i: int) -> float:
        r""":math:`\sigma/\alpha` at point i."""
        return math.exp(-self.log_snr[i])

    def stands_still(self, i: int) -> bool:
        """Whether the component does not move in step i (its clock is frozen or waits)."""
        return self.time[i] == self.time[i + 1]


def schedules(system: System, times: Sequence[float]) -> dict[str, Schedule]:
    """The moving components' processes on a grid of shared times."""
    grid = torch.tensor(times, dtype=torch.float64)
    own = system.times(grid)
    return {
        k: Schedule(
            system.processes[k],
            *(
                values.tolist()
                for values in (
                    own[k],
                    system.processes[k].log_alpha(own[k]),
                    system.processes[k].alpha(own[k]),
                    system.processes[k].sigma(own[k]),
                    system.processes[k].half_log_snr(own[k]),
                    system.processes[k].drift(own[k]),
                    system.processes[k].diffusion(own[k]),
                )
            ),
        )
        for k in system.moving
    }


class Run:
    """What one run of a sampler shares between its steps: evaluations, their count, and noise.

    Parameters
    ----------
    denoiser
        Estimates E[x0 | xt].
    condition
        Passed to the denoiser.
    source
        Where noise comes from.
    """

    def __init__(self, denoiser: BaseDenoiser, condition: Any, source: Source) -> None:
        self.denoiser = denoiser
        self.system = denoiser.system
        self.moving = self.system.moving
        self.condition = condition
        self.source = as_source(source, stream=1)  # the prior drew from stream 0
        self.nfe = 0

    def inside(self, x: State) -> State:
        """Put the moving components into their spaces; frozen ones are returned untouched."""
        return State._trusted(
            {
                k: self.system.spaces[k].project(v, x.masks.get(k)) if k in self.moving else v
                for k, v in x.items()
            },
            x.masks,
        )

    def evaluate(self, output: Output, x: State, t: Time) -> State:
        """One network evaluation at the frozen joint state, read as ``output``."""
        self.nfe += 1
        if output == "data":
            return self.inside(self.denoiser(x, t, self.condition))
        if output == "noise":
            return self.inside(self.denoiser.noise(x, t, self.condition))
        if output == "velocity":
            return self.inside(self.denoiser.velocity(x, t, self.condition))
        return self.inside(self.denoiser.score(x, t, self.condition))

    def pair(self, x: State, t: Time) -> Pair:
        """One network evaluation read as data and noise, which a network may predict apart."""
        self.nfe += 1
        data, noise = self.denoiser.pair(x, t, self.condition)
        return Pair(self.inside(data), self.inside(noise))

    def draw(self, name: str, x: State, interval: Interval | None = None) -> Tensor:
        """Standard normal noise for one component, inside its space."""
        return self.system.spaces[name].noise(
            name, x[name], x.masks.get(name), self.source, interval
        )

    def combine(
        self,
        x: State,
        updates: Mapping[str, Update | None],
        outputs: Sequence[State],
        interval: Interval | None = None,
    ) -> State:
        """The linear step; components without an update keep their very tensor."""
        new = {}
        for name, value in x.items():
            update = updates.get(name)
            if update is None:
                new[name] = value
                continue
            result = value * update.state
            for coefficient, output in zip(update.outputs, outputs, strict=False):
                result.add_(output[name], alpha=coefficient)
            if update.noise:
                result.add_(self.draw(name, x, interval), alpha=update.noise)
            new[name] = result
        return State._trusted(new, x.masks)


class Sampler(ABC):
    """Backward in time: (denoiser, state at t_max) -> data.

    Parameters
    ----------
    steps
        Number of steps. With ``denoise`` the last of them is the prediction of the data at t_min,
        so the grid has ``steps`` points; without it, it has ``steps`` intervals and the state at
        t_min is returned.
    grid
        Where the steps lie: a grid or the times themselves; None is the sampler's own choice.
    denoise
        Return the denoised state at the end rather than one that still carries noise.
    progress
        Draw a progress bar.

    Raises
    ------
    StructDiffError
        If ``steps`` is not a positive integer.
    """

    default_grid: ClassVar[Grid] = UniformTime()

    def __init__(
        self,
        steps: int,
        grid: GridLike | None = None,
        *,
        denoise: bool = True,
        progress: bool = False,
    ) -> None:
        self.steps = whole("steps", steps)
        self.grid = self.default_grid if grid is None else as_grid(grid)
        self.denoise = denoise
        self.progress = progress
        self.nfe = 0
        """Network evaluations of the latest run, counted."""

    def times(self, system: System) -> list[float]:
        """Shared times of the grid: ``steps`` points, and one more if not ``denoise``."""
        points = self.steps if self.denoise else self.steps + 1
        values: list[float] = self.grid.times(system, points).tolist()
        return values

    @abstractmethod
    def solve(self, run: Run, x: State) -> Iterator[tuple[float, State]]:
        """Shared time and state after every step, from the state at ``system.t_max``."""

    def denoised(self, run: Run, x: State, t: Time) -> State:
        """The prediction of the data; frozen components as they are."""
        data = run.evaluate("data", x, t)
        return State._trusted({k: data[k] if k in run.moving else v for k, v in x.items()}, x.masks)

    @torch.no_grad()
    def _states(
        self, denoiser: BaseDenoiser, x: State | Tensor, condition: Any, source: Source
    ) -> Iterator[tuple[float, State]]:
        run = Run(denoiser, condition, source)
        start = run.inside(run.system.check(x))
        self.nfe = 0
        for t, state in self.solve(run, start):
            self.nfe = run.nfe
            yield t, state

    def trajectory(
        self,
        denoiser: BaseDenoiser,
        x: State | Tensor,
        condition: Any = None,
        source: Source = None,
    ) -> Iterator[State]:
        """The state after every step, lazily, in the coordinates that the processes run on.

        Parameters
        ----------
        denoiser
            Estimates E[x0 | xt] under its system.
        x
            State at ``system.t_max``, usually ``system.prior(...)``; components (B, ...).
        condition
            Passed to the denoiser.
        source
            Noise source, a seed, a seed per object (B,), or None for torch's global generator.
        """
        for _, state in self._states(denoiser, x, condition, source):
            yield state

    def __call__(
        self,
        denoiser: BaseDenoiser,
        x: State | Tensor,
        condition: Any = None,
        source: Source = None,
        callback: Callback | None = None,
    ) -> State:
        """Run the trajectory and return its last state, decoded to values.

        Parameters
        ----------
        denoiser, x, condition, source
            As for :meth:`trajectory`.
        callback
            Called after every step with (step, shared time, state).
        """
        states = self._states(denoiser, x, condition, source)
        bar = tqdm(states, total=self.steps, disable=not self.progress, desc="sampling")
        state = denoiser.system.check(x)
        for number, (t, state) in enumerate(bar, start=1):
            if callback is not None:
                callback(number, t, state)
        # Decoding may move the zeros of what does not exist: exp(0) = 1.
        return denoiser.system.decode(state).masked()

    def __repr__(self) -> str:
        return f"{type(self).__name__}(steps={self.steps}, grid={self.grid})"


class SteppedSampler(Sampler):
    """A sampler that goes from one grid time to the next; others can build on its steps."""

    @abstractmethod
    def stepper(self, run: Run, times: Sequence[float]) -> Stepper:
        """Prepare a run on a grid: coefficients once, history local to what is returned."""

    def solve(self, run: Run, x: State) -> Iterator[tuple[float, State]]:
        """Step along the grid, then predict the data."""
        times = self.times(run.system)
        step = self.stepper(run, times)
        for i, t in enumerate(times[1:]):
            x = step(x, i)
            yield t, x
        if self.denoise:
            yield 0.0, self.finish(run, x, times[-1])

    def finish(self, run: Run, x: State, t: float) -> State:
        """The last step, from the end of the grid to the prediction of the data."""
        return self.denoised(run, x, t)


class LinearSampler(SteppedSampler):
    """A sampler that is a coefficient function."""

    output: ClassVar[Output] = "data"
    """The model output m that the coefficients multiply."""
    history: ClassVar[int] = 1
    """How many model outputs a step may use."""

    @abstractmethod
    def coefficients(self, schedule: Schedule, i: int, depth: int) -> Update:
        """Coefficients of the step from point i to i + 1, given ``depth`` >= 1 model outputs."""

    def plan(self, run: Run, times: Sequence[float]) -> list[dict[str, Update | None]]:
        """The coefficients of every step and moving component."""
        updates: list[dict[str, Update | None]] = [{} for _ in times[1:]]
        for name, schedule in schedules(run.system, times).items():
            depth = 0
            for i, step in enumerate(updates):
                # A component that waits starts its history anew when it moves on.
                depth = 0 if schedule.stands_still(i) else min(depth + 1, self.history)
                step[name] = self.coefficients(schedule, i, depth) if depth else None
        return updates

    def stepper(self, run: Run, times: Sequence[float]) -> Stepper:
        """Evaluate, remember, combine."""
        updates = self.plan(run, times)
        outputs: deque[State] = deque(maxlen=self.history)

        def step(x: State, i: int) -> State:
            outputs.appendleft(run.evaluate(self.output, x, times[i]))
            return run.combine(x, updates[i], outputs, (times[i], times[i + 1]))

        return step
