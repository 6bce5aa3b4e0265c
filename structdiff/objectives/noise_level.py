r"""Cross-entropy of the noise level: trains the classifier of denoising MCMC.

.. math:: L = -E\,\ln p_\theta(l \mid x_0 + \rho_l\,\epsilon), \qquad l \text{ uniform}

Its optimum is the posterior of the level, :math:`p(l \mid v) \propto p_l(v)` (Kim and Ye 2023).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from structdiff.errors import StructDiffError
from structdiff.objectives.base import Coupling, Objective
from structdiff.objectives.draws import Draws, stratified
from structdiff.processes.system import System
from structdiff.samplers.noise_levels import Levels, NoiseClassifier, Place, noise_levels
from structdiff.state import State


class NoiseLevelCrossEntropy(Objective):
    """Cross-entropy of the level at which clean data was noised, per object.

    Called with a :class:`~structdiff.samplers.noise_levels.NoiseClassifier` where other objectives
    take a denoiser; ``structdiff.training`` fits it the same way.

    Parameters
    ----------
    levels
        The classifier's noise levels: their number, or their shared times.
    component_weights, coupling, draws
        See :class:`~structdiff.objectives.base.Objective`. The loss is of the whole object and
        stands under the name of the first moving component.
    """

    def __init__(
        self,
        levels: Levels = 1000,
        component_weights: Mapping[str, float] | None = None,
        coupling: Coupling | None = None,
        draws: Draws = stratified,
    ) -> None:
        super().__init__(AtLevels(levels), component_weights, coupling, draws=draws)

    def distances(
        self,
        denoiser: Any,
        x0: State,
        noisy: State,
        noise: State,
        times: dict[str, Tensor],
        condition: Any,
    ) -> dict[str, Tensor]:
        """Cross-entropy of the level, (B,), under the name of the first moving component.

        Raises
        ------
        StructDiffError
            If the model is no noise classifier, or has other levels than this objective.
        """
        if not isinstance(denoiser, NoiseClassifier):
            raise StructDiffError(
                f"{type(denoiser).__name__} does not classify noise levels: train a NoiseClassifier"
            )
        system = denoiser.system
        drawn = self.time_law.under(system).times  # type: ignore[union-attr]
        if not torch.equal(drawn, denoiser.times):
            raise StructDiffError(
                f"the classifier has {len(denoiser.times)} noise levels, the objective "
                f"{len(drawn)}, at other times: give both the same levels"
            )
        gaps = sum(
            (times[k][:, None] - own.to(times[k])).abs()
            for k, own in system.times(drawn).items()
            if k in system.moving
        )
        level = torch.as_tensor(gaps).argmin(1)
        log_probabilities = denoiser(
            Place(system, drawn.to(level.device)[level]).unscaled(noisy), condition
        )
        return {system.moving[0]: -log_probabilities.gather(1, level[:, None])[:, 0]}


@dataclass(frozen=True)
class AtLevels:
    """A time law that knows only the given noise levels, each equally often.

    Parameters
    ----------
    levels
        Their number, uniform in log noise, or their shared times.
    """

    levels: Levels = 1000

    def under(self, system: System) -> _TheseTimes:
        return _TheseTimes(noise_levels(system, self.levels), system.t_min, system.t_max)


@dataclass(frozen=True)
class _TheseTimes:
    times: Tensor
    start: float
    end: float

    def quantile(self, u: Tensor) -> Tensor:
        # Times decrease with the level's number; the quantile must grow with u.
        index = ((1 - u) * len(self.times)).long().clamp(max=len(self.times) - 1)
        return (self.times.to(u.device)[index] - self.start) / (self.end - self.start)
