"""What training minimises: a time law, a weight, and a distance, each its own small object.

A coupling may pair the noise with the data, and regularisers may be added; what an objective
remembers between steps (a curriculum's stage, the number of steps) is saved with checkpoints.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

from torch import Tensor

from structdiff.denoisers import BaseDenoiser
from structdiff.errors import CheckpointError, StructDiffError
from structdiff.noise import NoiseSource, as_source
from structdiff.objectives.draws import Draws, stratified
from structdiff.objectives.time_laws import AnyTimeLaw, TimeLaw, Uniform, draw_times, law_under
from structdiff.processes.system import System
from structdiff.state import State


class Coupling(Protocol):
    """Which noise goes with which data; both marginals must stay what they are."""

    def __call__(self, x0: State, noise: State, source: NoiseSource) -> State:
        """The noise paired anew: object i of what is returned belongs to object i of ``x0``."""
        ...


@runtime_checkable
class AdaptiveTimeLaw(Protocol):
    """A time law that follows the training, e.g. a curriculum."""

    def update(self, loss: float) -> None:
        """Take note of the loss of one training step."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """What is needed to go on exactly here: plain values only."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where :meth:`state_dict` was taken."""
        ...


class Draw(NamedTuple):
    """One noisy batch, everything in the coordinates that the processes run on."""

    x0: State
    t: Tensor
    """Shared time, float64 (B,)."""
    times: dict[str, Tensor]
    """The components' own times, each float64 (B,)."""
    noise: State
    noisy: State


class Regularizer(ABC):
    """A penalty per object that is added to an objective's loss.

    Parameters
    ----------
    weight
        Factor of the penalty.
    every
        Training steps from one evaluation to the next. A due step counts ``every`` times, so that
        the mean over training does not depend on it. Steps are those that the objective was told
        of by :meth:`Objective.update`.

    Raises
    ------
    StructDiffError
        If ``every`` is below 1.
    """

    def __init__(self, weight: float = 1.0, every: int = 1) -> None:
        if every < 1:
            raise StructDiffError(f"every must be at least 1 step, got {every}")
        self.weight, self.every = weight, every

    @abstractmethod
    def penalty(
        self,
        denoiser: BaseDenoiser,
        x0: State,
        noisy: State,
        t: Tensor,
        condition: Any,
        source: NoiseSource,
    ) -> Tensor:
        """Unweighted penalty per object at shared times t (B,): (B,)."""


class Objective(ABC):
    """Base of the objectives: draws a time and noise per object and scores the denoiser there.

    Parameters
    ----------
    time_law
        Where on (0, 1) training looks; stretched over the system's [t_min, t_max].
    component_weights
        Factor per component; 1 where none is given.
    coupling
        Pairs the noise of a batch with its data; None leaves them independent.
    regularizers
        Penalties added to the loss.
    draws
        How the times of a batch are spread: ``stratified``, ``independent`` or ``low_discrepancy``
        of :mod:`structdiff.objectives.draws`.
    """

    def __init__(
        self,
        time_law: AnyTimeLaw | None = None,
        component_weights: Mapping[str, float] | None = None,
        coupling: Coupling | None = None,
        regularizers: Sequence[Regularizer] = (),
        draws: Draws = stratified,
    ) -> None:
        self.time_law: AnyTimeLaw = Uniform() if time_law is None else time_law
        self.component_weights = dict(component_weights or {})
        self.coupling = coupling
        self.regularizers = tuple(regularizers)
        self.draws = draws
        self.step = 0
        """Training steps behind this objective, as told by :meth:`update`."""
        self._bound: tuple[AnyTimeLaw, System, TimeLaw] | None = None

    def __call__(
        self,
        denoiser: BaseDenoiser,
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
        drawn = as_source(source)
        draw = self.draw(denoiser.system, x0, drawn)
        losses = self._losses_at(denoiser, draw, condition)
        weighted = [self.component_weights.get(k, 1.0) * v for k, v in losses.items()]
        total = weighted[0]
        for loss in weighted[1:]:
            total = total + loss
        for term in self.regularizers:
            if self.step % term.every == 0:
                value = term.penalty(denoiser, draw.x0, draw.noisy, draw.t, condition, drawn)
                total = total + term.weight * term.every * value
        return total

    def component_losses(
        self, denoiser: BaseDenoiser, x0: State, condition: Any, source: NoiseSource
    ) -> dict[str, Tensor]:
        """Unweighted loss per component and object, each (B,); frozen components have none."""
        return self._losses_at(denoiser, self.draw(denoiser.system, x0, source), condition)

    def draw(self, system: System, x0: State, source: NoiseSource) -> Draw:
        """Times, noise and the noisy state of a batch; frozen components stay clean."""
        x0 = system.encode(system.check(x0))
        t = draw_times(self._law(system), x0.first, system.t_min, system.t_max, source, self.draws)
        times, noise = system.times(t), system.noise(x0, source)
        if self.coupling is not None:
            noise = self.coupling(x0, noise, source)
        noisy = system.perturb(x0, times, noise)
        fixed = {k: x0[k] for k in x0 if system.frozen(k)}
        return Draw(x0, t, times, noise, noisy.replace(**fixed) if fixed else noisy)

    def _law(self, system: System) -> TimeLaw:
        """The time law under a system, remembered: a batch comes with every step."""
        bound = self._bound
        if bound is None or bound[0] is not self.time_law or bound[1] is not system:
            bound = self.time_law, system, law_under(self.time_law, system)
            self._bound = bound
        return bound[2]

    def _losses_at(self, denoiser: BaseDenoiser, draw: Draw, condition: Any) -> dict[str, Tensor]:
        losses = self.distances(denoiser, draw.x0, draw.noisy, draw.noise, draw.times, condition)
        return {k: v for k, v in losses.items() if not denoiser.system.frozen(k)}

    @abstractmethod
    def distances(
        self,
        denoiser: BaseDenoiser,
        x0: State,
        noisy: State,
        noise: State,
        times: dict[str, Tensor],
        condition: Any,
    ) -> dict[str, Tensor]:
        """Loss per component and object at given times and noise, each (B,)."""

    # --- what lasts from step to step --------------------------------------------------------
    @property
    def adaptive(self) -> bool:
        """Whether :meth:`update` needs the loss itself."""
        return isinstance(self.time_law, AdaptiveTimeLaw)

    def update(self, loss: Tensor | float) -> None:
        """Count a training step and let an adaptive time law see its loss.

        Training calls this after every loss; what is drawn next may depend on it.

        Parameters
        ----------
        loss
            Mean loss of the step over all processes that train together, shape ().
        """
        self.step += 1
        if isinstance(self.time_law, AdaptiveTimeLaw):
            self.time_law.update(float(loss))

    def state_dict(self) -> dict[str, Any]:
        """What is needed to go on exactly here: plain values, stored with every checkpoint."""
        state: dict[str, Any] = {"step": self.step}
        if isinstance(self.time_law, AdaptiveTimeLaw):
            state["time_law"] = self.time_law.state_dict()
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where :meth:`state_dict` was taken.

        Raises
        ------
        CheckpointError
            If one of the two runs has an adaptive time law and the other has not.
        """
        if self.adaptive != ("time_law" in state):
            was, now = ("without", "with") if self.adaptive else ("with", "without")
            raise CheckpointError(
                f"the run was started {was} an adaptive time law and cannot go on {now} one: "
                "resume it with the objective it was started with, or choose another folder"
            )
        if isinstance(self.time_law, AdaptiveTimeLaw):
            self.time_law.load_state_dict(state["time_law"])
        self.step = int(state["step"])
