r"""Denoising score matching: the squared error of the predicted noise.

.. math:: L = E\, w(\lambda_t)\, \| \hat\epsilon(x_t, t) - \epsilon \|^2 / D

With D the number of free coordinates; Vincent 2011, Song et al. 2021. Since
:math:`s = -\hat\epsilon/\sigma`, this is GDSS's loss :math:`\|\sigma s + z\|^2` per component.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from structdiff.denoisers import BaseDenoiser
from structdiff.objectives.base import Coupling, Objective, Regularizer
from structdiff.objectives.draws import Draws, stratified
from structdiff.objectives.time_laws import AnyTimeLaw
from structdiff.objectives.weights import AnyWeight, Simple, weights_at
from structdiff.state import State


class DenoisingScoreMatching(Objective):
    """Weighted mean squared error of the noise over existing free coordinates.

    Parameters
    ----------
    time_law
        Where training looks.
    weight
        Weight of the squared error of the noise; 1 by default.
    component_weights
        Factor per component.
    reduction
        ``"mean"`` over an object's free coordinates (objects of different size count alike), or
        ``"sum"``, with which large objects count more; half of it summed over the full matrix is
        the published GDSS loss.
    coupling, regularizers, draws
        As for :class:`~structdiff.objectives.base.Objective`.
    """

    def __init__(
        self,
        time_law: AnyTimeLaw | None = None,
        weight: AnyWeight | None = None,
        component_weights: Mapping[str, float] | None = None,
        reduction: str = "mean",
        coupling: Coupling | None = None,
        regularizers: Sequence[Regularizer] = (),
        draws: Draws = stratified,
    ) -> None:
        super().__init__(time_law, component_weights, coupling, regularizers, draws)
        if reduction not in ("mean", "sum"):
            raise ValueError(f"unknown reduction {reduction!r}; use 'mean' or 'sum'")
        self.weight: AnyWeight = Simple() if weight is None else weight
        self.reduction = reduction

    def distances(
        self,
        denoiser: BaseDenoiser,
        x0: State,
        noisy: State,
        noise: State,
        times: dict[str, Tensor],
        condition: Any,
    ) -> dict[str, Tensor]:
        system = denoiser.system
        error = (denoiser.noise(noisy, times, condition) - noise).masked()
        squared = {k: system.spaces[k].pack(v).square().sum(1) for k, v in error.items()}
        if self.reduction == "mean":
            counts = system.dimensions(x0)
            squared = {k: v / counts[k].clamp(min=1) for k, v in squared.items()}
        weights = weights_at(self.weight, system, times)
        return {k: weights[k].to(v.dtype) * v for k, v in squared.items()}
