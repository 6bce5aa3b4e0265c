"""What training minimises: a time law, a weight, and a distance, each its own small object."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from structdiff.denoisers import Denoiser
from structdiff.noise import NoiseSource, as_source
from structdiff.objectives.time_laws import TimeLaw, Uniform, draw_times
from structdiff.state import State


class Objective(ABC):
    """Base of the objectives: draws a time and noise per object and scores the denoiser there.

    Parameters
    ----------
    time_law
        Where on (0, 1) training looks; stretched over the system's [t_min, t_max].
    component_weights
        Factor per component; 1 where none is given.
    """

    def __init__(
        self,
        time_law: TimeLaw | None = None,
        component_weights: Mapping[str, float] | None = None,
    ) -> None:
        self.time_law: TimeLaw = Uniform() if time_law is None else time_law
        self.component_weights = dict(component_weights or {})

    def __call__(
        self,
        denoiser: Denoiser,
        x0: State,
        condition: Any = None,
        source: NoiseSource | int | None = None,
    ) -> Tensor:
        """Loss per object, (B,), normalised by each object's free dimension.

        Parameters
        ----------
        denoiser
            The model under training.
        x0
            Clean data.
        condition
            Passed to the network.
        source
            Randomness of times and noise; torch's global generator by default.
        """
        losses = self.component_losses(denoiser, x0, condition, as_source(source))
        weighted = [self.component_weights.get(k, 1.0) * v for k, v in losses.items()]
        total = weighted[0]
        for loss in weighted[1:]:
            total = total + loss
        return total

    def component_losses(
        self, denoiser: Denoiser, x0: State, condition: Any, source: NoiseSource
    ) -> dict[str, Tensor]:
        """Unweighted loss per component and object, each (B,); frozen components have none."""
        system = denoiser.system
        x0 = system.encode(system.check(x0))
        t = draw_times(self.time_law, x0.first, system.t_min, system.t_max, source)
        times, noise = system.times(t), system.noise(x0, source)
        noisy = system.perturb(x0, times, noise)
        fixed = {k: x0[k] for k in x0 if system.frozen(k)}
        noisy = noisy.replace(**fixed) if fixed else noisy
        losses = self.distances(denoiser, x0, noisy, noise, times, condition)
        return {k: v for k, v in losses.items() if k not in fixed}

    @abstractmethod
    def distances(
        self,
        denoiser: Denoiser,
        x0: State,
        noisy: State,
        noise: State,
        times: dict[str, Tensor],
        condition: Any,
    ) -> dict[str, Tensor]:
        """Loss per component and object at given times and noise, each (B,)."""
