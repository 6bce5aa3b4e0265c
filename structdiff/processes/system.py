r"""A system: one process, space and clock per component, itself a process over :class:`State`.

.. math:: x^k_t = \alpha_k(\tau_k(t))\, x^k_0 + \sigma_k(\tau_k(t))\, \epsilon^k

All components move on the shared time t; a clock :math:`\tau_k` turns it into the component's own
time. A clock frozen at 0 means *conditioned on*, frozen at 1 *ignored*.

A process whose mean also holds a companion component, :math:`c_k(t)\,y`, is carried in the centred
coordinate :math:`x^k_t - c_k\,y`, to which the equation above applies as it stands: everything here
takes and gives centred states. :meth:`System.uncentred` shows them as the forward SDE moves them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

import torch
from torch import Tensor

from structdiff.errors import StructDiffError
from structdiff.noise import Interval, NoiseSource, as_source
from structdiff.processes.gaussian import GaussianProcess
from structdiff.spaces import Euclidean, Layout, Space
from structdiff.state import TENSOR, State, as_state, expand_right

Clock: TypeAlias = Callable[[Tensor], Tensor]
"""A component's own time as a monotone function of the shared one, both in [0, 1]."""
Time: TypeAlias = "Tensor | float | Mapping[str, Tensor]"
"""Shared time of shape () or (B,), or the components' own times by name."""


class FrozenClock:
    """A component that does not move: at 0 it is conditioned on, at 1 it is ignored."""

    def __init__(self, time: float = 0.0) -> None:
        self.time = float(time)

    def __call__(self, t: Tensor) -> Tensor:
        return torch.full_like(t, self.time)

    def __repr__(self) -> str:
        return f"FrozenClock({self.time})"


def identity_clock(t: Tensor) -> Tensor:
    """The shared time itself."""
    return t


class System:
    """A forward process per component of a structured object.

    Parameters
    ----------
    processes
        Process per component, or one process for a plain tensor.
    spaces
        Space per component; Euclidean where none is given.
    clocks
        Clock per component; the shared time where none is given. Use :class:`FrozenClock` for a
        component that is conditioned on; the companion of another component is frozen by itself.

    Raises
    ------
    StructDiffError
        If a space or clock names a component that has no process, or a process names a companion
        that does not exist or is not frozen at 0.
    """

    def __init__(
        self,
        processes: Mapping[str, GaussianProcess] | GaussianProcess,
        spaces: Mapping[str, Space] | None = None,
        clocks: Mapping[str, Clock] | None = None,
    ) -> None:
        if isinstance(processes, GaussianProcess):
            processes = {TENSOR: processes}
        self.processes = dict(processes)
        for what, given in (("space", spaces or {}), ("clock", clocks or {})):
            unknown = sorted(set(given) - set(self.processes))
            if unknown:
                raise StructDiffError(
                    f"{what} for {unknown}, but the system has the components "
                    f"{list(self.processes)}"
                )
        self.spaces: dict[str, Space] = {
            k: (spaces or {}).get(k, Euclidean()) for k in self.processes
        }
        companions = {p.companion for p in self.processes.values()}
        self.clocks: dict[str, Clock] = {
            k: (clocks or {}).get(k, FrozenClock() if k in companions else identity_clock)
            for k in self.processes
        }
        self.shifted = tuple(k for k, p in self.processes.items() if p.shifted)
        """Components whose mean holds a companion."""
        self._check_companions()

    def _check_companions(self) -> None:
        for name in self.shifted:
            companion = self.processes[name].companion
            if companion is None:
                continue
            if companion == name or companion not in self.processes:
                raise StructDiffError(
                    f"the companion of component {name!r} is {companion!r}: it must be another "
                    f"component of the system, which has {list(self.processes)}"
                )
            if not self.frozen(companion):
                raise StructDiffError(
                    f"component {companion!r} is the companion of {name!r} and must be conditioned "
                    "on: leave its clock out or give it FrozenClock(0)"
                )

    def __repr__(self) -> str:
        return f"System({self.processes})"

    def frozen(self, name: str) -> bool:
        """Whether a component stands still at time 0, so that samplers must not touch it."""
        clock = self.clocks[name]
        return isinstance(clock, FrozenClock) and clock.time == 0.0

    @property
    def moving(self) -> tuple[str, ...]:
        """Components whose clock runs: the ones that samplers change."""
        return tuple(k for k, c in self.clocks.items() if not isinstance(c, FrozenClock))

    def with_clocks(self, clocks: Mapping[str, Clock]) -> System:
        """The same processes and spaces under other clocks."""
        return System(self.processes, self.spaces, {**self.clocks, **clocks})

    # --- times -------------------------------------------------------------------------------
    @property
    def t_min(self) -> float:
        """Shared time at which sampling stops: the largest of the moving processes' own."""
        return max(self.processes[k].t_min for k in self.moving or self.processes)

    @property
    def t_max(self) -> float:
        """Shared time at which sampling starts: the smallest of the moving processes' own."""
        return min(self.processes[k].t_max for k in self.moving or self.processes)

    def times(self, t: Time) -> dict[str, Tensor]:
        """The components' own times, float64, each of shape () or (B,)."""
        if isinstance(t, Mapping):
            return {k: torch.as_tensor(t[k], dtype=torch.float64) for k in self.processes}
        shared = torch.as_tensor(t, dtype=torch.float64)
        return {k: clock(shared) for k, clock in self.clocks.items()}

    def _each(self, method: str, t: Time) -> dict[str, Tensor]:
        times = self.times(t)
        return {k: getattr(p, method)(times[k]) for k, p in self.processes.items()}

    def log_alpha(self, t: Time) -> dict[str, Tensor]:
        """Logarithm of the signal scale per component."""
        return self._each("log_alpha", t)

    def alpha(self, t: Time) -> dict[str, Tensor]:
        """Signal scale per component."""
        return self._each("alpha", t)

    def sigma(self, t: Time) -> dict[str, Tensor]:
        """Noise scale per component."""
        return self._each("sigma", t)

    def half_log_snr(self, t: Time) -> dict[str, Tensor]:
        r""":math:`\lambda = \ln(\alpha/\sigma)` per component; what networks see."""
        return self._each("half_log_snr", t)

    def drift(self, t: Time) -> dict[str, Tensor]:
        """Linear drift coefficient per component, in the component's own time."""
        return self._each("drift", t)

    def diffusion(self, t: Time) -> dict[str, Tensor]:
        """Diffusion coefficient per component, in the component's own time."""
        return self._each("diffusion", t)

    def alpha_derivative(self, t: Time) -> dict[str, Tensor]:
        """D alpha / dt per component, in the component's own time."""
        return self._each("alpha_derivative", t)

    def sigma_derivative(self, t: Time) -> dict[str, Tensor]:
        """D sigma / dt per component, in the component's own time."""
        return self._each("sigma_derivative", t)

    def shift(self, t: Time) -> dict[str, Tensor]:
        """Coefficient of the companion, for the components that have one."""
        if not self.shifted:
            return {}
        times = self.times(t)
        return {k: self.processes[k].shift(times[k]) for k in self.shifted}

    # --- states ------------------------------------------------------------------------------
    def check(self, x: State | Tensor) -> State:
        """Read ``x`` as a state of this system; names must match, companions fit."""
        state = as_state(x)
        if set(state) != set(self.processes):
            raise StructDiffError(
                f"the state has the components {list(state)}, the system {list(self.processes)}"
            )
        for name in self.shifted:
            self._check_fit(state, name)
        return state

    def _check_fit(self, x: State, name: str) -> None:
        """A component and its companion must have one shape and exist in the same entries."""
        companion = self.processes[name].companion
        if companion is None:
            return
        value, other = x[name], x[companion]
        if value.shape != other.shape:
            raise StructDiffError(
                f"companion {companion!r} has shape {tuple(other.shape)}, component {name!r} "
                f"{tuple(value.shape)}: they must agree"
            )
        masks = x.masks.get(name), x.masks.get(companion)
        if masks[0] is masks[1]:
            return
        full = [torch.ones_like(value, dtype=torch.bool) if m is None else m for m in masks]
        if not torch.equal(full[0].expand_as(value), full[1].expand_as(value)):
            raise StructDiffError(
                f"companion {companion!r} and component {name!r} exist in different entries: "
                "give both the same mask"
            )

    def add_shift(self, x: State, shift: Mapping[str, Tensor | float]) -> State:
        """Add c y to the components that ``shift`` gives a coefficient c of shape () or (B,)."""
        moved = dict(x)
        for name, c in shift.items():
            value, companion = x[name], self.processes[name].companion
            other = torch.ones_like(value) if companion is None else x[companion]
            if other.shape != value.shape:
                self._check_fit(x, name)
            # In the space: a constant must not reach masked entries or a diagonal.
            other = self.spaces[name].project(other, x.masks.get(name))
            factor = expand_right(c, value) if isinstance(c, Tensor) else c
            moved[name] = value + other * factor
        return State._trusted(moved, x.masks)

    def uncentred(self, x: State | Tensor, t: Time) -> State:
        """The state as the forward SDE moves it: the centred one plus c(t) y."""
        return self.add_shift(as_state(x), self.shift(t))

    def centred(self, x: State | Tensor, t: Time) -> State:
        """Inverse of :meth:`uncentred`."""
        return self.add_shift(as_state(x), {k: -c for k, c in self.shift(t).items()})

    def noise(
        self,
        like: State,
        source: NoiseSource | int | None = None,
        interval: Interval | None = None,
    ) -> State:
        """Standard normal noise in the free coordinates of every component, shapes of ``like``."""
        drawn = as_source(source)
        return State._trusted(
            {
                k: self.spaces[k].noise(k, v, like.masks.get(k), drawn, interval)
                for k, v in like.items()
            },
            like.masks,
        )

    def perturb(self, x0: State, t: Time, noise: State) -> State:
        r"""Centred :math:`x_t = \alpha(t) x_0 + \sigma(t) \epsilon`; x0 data, standard noise."""
        return x0 * self.alpha(t) + noise * self.sigma(t)

    def prior(self, like: State, source: NoiseSource | int | None = None) -> State:
        """Draw the state that sampling starts from; frozen components keep those of ``like``.

        All in the coordinates that the processes run on: where a frozen component has a bijection,
        give :meth:`encode` of it.
        """
        noise = self.noise(like, source)
        return State._trusted(
            {
                k: like[k] if self.frozen(k) else noise[k] * self.processes[k].prior_std()
                for k in like
            },
            like.masks,
        )

    def project(self, x: State) -> State:
        """Put every component into its space: masked, symmetric."""
        return State._trusted(
            {k: self.spaces[k].project(v, x.masks.get(k)) for k, v in x.items()}, x.masks
        )

    def dimensions(self, like: State) -> dict[str, Tensor]:
        """Number of existing free coordinates per component and object, each (B,)."""
        return {k: self.spaces[k].dimension(v, like.masks.get(k)) for k, v in like.items()}

    def layout(self, like: State) -> Layout:
        """The flat view (B, D) over free coordinates, for solvers that integrate vectors."""
        return Layout(like, self.spaces)

    def encode(self, x: State) -> State:
        """From values to the coordinates the processes run on (bijections; else unchanged)."""
        return x.map(lambda v, space: space.encode(v), self.spaces)

    def decode(self, y: State) -> State:
        """From the processes' coordinates back to values."""
        return y.map(lambda v, space: space.decode(v), self.spaces)
