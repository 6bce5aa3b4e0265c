"""Fields over the free coordinates of the moving components, for derivatives with torch.func.

A derivative of a symmetric matrix or of a padded set is one with respect to its free coordinates:
so points, directions and gradients are kept packed, ``{component: (B, d)}``, and a state is made of
them only where a network is called. Frozen components are conditioned on and have no coordinates.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor

from structdiff.noise import NoiseSource
from structdiff.processes.system import System, Time
from structdiff.state import State

Packed: TypeAlias = dict[str, Tensor]
"""Free coordinates per moving component, each (B, d), existing or not."""


def along(field: Callable[..., Any], point: Any, direction: Any) -> tuple[Any, Any]:
    """A field's value and its derivative along a direction (forward mode)."""
    pair: Any = torch.func.jvp(field, (point,), (direction,))
    return pair[0], pair[1]


class FreeCoordinates:
    """The packed view of one noisy batch at one time.

    Parameters
    ----------
    system
        The forward processes.
    x
        Noisy state.
    t
        Shared time () or (B,), or the components' own times by name.
    """

    def __init__(self, system: System, x: State, t: Time) -> None:
        self.system, self.state = system, x
        self.names = system.moving
        self.times: dict[str, Tensor] = {
            k: v.to(x.device).expand(x.batch_size).clone() for k, v in system.times(t).items()
        }
        """The components' own times, each float64 (B,)."""
        self.points: Packed = {k: system.spaces[k].pack(x[k]) for k in self.names}
        self.exists: Packed = {k: self._existing(k) for k in self.names}
        """1 where a coordinate exists, else 0."""
        self.rates = self._rates(t)
        """Own time that passes per unit of shared time, each (B,) in the dtype of the state."""

    def _existing(self, name: str) -> Tensor:
        value, mask = self.state[name], self.state.masks.get(name)
        full = torch.ones_like(value)
        return self.system.spaces[name].pack(full if mask is None else full * mask)

    def _rates(self, t: Time) -> dict[str, Tensor]:
        like = self.state.first
        if isinstance(t, Mapping):  # own times: all components move one to one
            return {k: like.new_ones(like.shape[0]) for k in self.names}
        shared = torch.as_tensor(t, dtype=torch.float64, device=like.device)
        shared = shared.expand(like.shape[0]).clone()  # forward mode refuses shared memory
        return {
            k: along(self.system.clocks[k], shared, torch.ones_like(shared))[1].to(like.dtype)
            for k in self.names
        }

    def to_state(self, points: Packed) -> State:
        """The state with its moving components replaced."""
        unpacked = {
            k: self.system.spaces[k].unpack(v * self.exists[k], self.state[k])
            for k, v in points.items()
        }
        return State._trusted({**self.state, **unpacked}, self.state.masks)

    def pack(self, x: State) -> Packed:
        """The moving components of a field's value, 0 where nothing exists."""
        return {k: self.system.spaces[k].pack(x[k]) * self.exists[k] for k in self.names}

    def own_times(self, times: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """All own times, those of the moving components replaced."""
        return {**self.times, **times}

    def moving_times(self) -> dict[str, Tensor]:
        """Own times of the moving components."""
        return {k: self.times[k] for k in self.names}

    def time_tangents(self) -> dict[str, Tensor]:
        """Derivatives of the moving components' own times by the shared one, float64 (B,)."""
        return {k: self.rates[k].double() for k in self.names}

    def coefficient(self, method: str) -> dict[str, Tensor]:
        """A coefficient of the system per moving component, (B, 1), in the state's dtype."""
        values: dict[str, Tensor] = getattr(self.system, method)(self.times)
        return {k: values[k].to(self.state.dtype)[:, None] for k in self.names}

    def rademacher(self, source: NoiseSource) -> Packed:
        """Independent random signs on the existing coordinates."""
        noise = self.pack(self.system.noise(self.state, source))
        return {k: torch.sign(v) for k, v in noise.items()}

    def basis(self) -> list[Packed]:
        """Unit vectors of all coordinates, existing or not, one after the other."""
        vectors = []
        for name in self.names:
            for column in range(self.points[name].shape[1]):
                vector = {k: torch.zeros_like(v) for k, v in self.points.items()}
                vector[name][:, column] = 1.0
                vectors.append(vector)
        return vectors


def inner(a: Packed, b: Packed) -> Tensor:
    """Inner product per object over all components, (B,)."""
    return torch.stack([(a[k] * b[k]).sum(1) for k in a]).sum(0)
