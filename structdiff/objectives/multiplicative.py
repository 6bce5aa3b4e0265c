r"""Multiplicative denoising score matching, for positive data under multiplicative noise.

The Hyvarinen score :math:`h(x, t) = x\,\partial_x \log p_t(x)` needs no boundary term at 0. With
:math:`x_t = x_0 e^{c + \sqrt{v} z}`,

.. math:: L = E\, w\, v(t)\, \| \hat h(x_t, t) - h^\star \|^2 / D, \qquad
          h^\star = x_t\,\partial_{x_t} \log p(x_t \mid x_0) = -(1 + z/\sqrt{v}).

On the logarithm y, :math:`h = \partial_y \log p_Y - 1`: this is denoising score matching of y, and
the weight v makes the targets have unit variance. Sources: Hyvarinen 2007 (positive data); Shetty
et al. 2025 (the multiplicative denoising form).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from structdiff.denoisers import BaseDenoiser
from structdiff.errors import StructDiffError
from structdiff.objectives.base import Objective
from structdiff.objectives.time_laws import AnyTimeLaw
from structdiff.objectives.weights import Weight, weights_at
from structdiff.processes.system import System, Time
from structdiff.spaces import Log, Transformed
from structdiff.state import State, expand_right


def check_positive(system: System) -> None:
    """Every component that moves must be positive through its logarithm.

    Raises
    ------
    StructDiffError
        If one is not; the message says which, and what its space is.
    """
    for name in system.moving:
        space = system.spaces[name]
        if not (isinstance(space, Transformed) and isinstance(space.bijection, Log)):
            raise StructDiffError(
                f"component {name!r} lies in {space!r}: multiplicative noise needs positive data, "
                "so give the component the space Positive()"
            )


def hyvarinen_score(
    denoiser: BaseDenoiser, x: State, t: Time, condition: Any = None
) -> dict[str, Tensor]:
    r""":math:`h = x\,\partial_x \log p_t(x)` of the components that move, one network call.

    Parameters
    ----------
    denoiser
        Over a system whose moving components have the space ``Positive()``.
    x
        State in the coordinates that the processes run on: the (centred) logarithm, (B, ...).
    t, condition
        As for :meth:`~structdiff.denoisers.BaseDenoiser.score`.

    Raises
    ------
    StructDiffError
        If a moving component is not positive.
    """
    check_positive(denoiser.system)
    score = denoiser.score(x, t, condition)
    return {k: score[k] - 1 for k in denoiser.system.moving}


class MultiplicativeScoreMatching(Objective):
    """Weighted squared error of the Hyvarinen score over existing free coordinates.

    Parameters
    ----------
    time_law
        Where training looks.
    weight
        Weight on top of v(t), in terms of the half log-SNR as everywhere; 1 by default.
    component_weights
        Factor per component.

    Raises
    ------
    StructDiffError
        In a call, if a moving component is not positive.
    """

    def __init__(
        self,
        time_law: AnyTimeLaw | None = None,
        weight: Weight | None = None,
        component_weights: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__(time_law, component_weights)
        self.weight = weight

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
        counts, sigmas = system.dimensions(x0), system.sigma(times)
        weights = weights_at(self.weight, system, times) if self.weight is not None else None
        losses = {}
        for k, found in hyvarinen_score(denoiser, noisy, times, condition).items():
            sigma = expand_right(sigmas[k], noise[k])
            error = sigma * (found + (1 + noise[k] / sigma))
            mask = x0.masks.get(k)
            error = error if mask is None else torch.where(mask, error, 0.0)
            squared = system.spaces[k].pack(error).square().sum(1) / counts[k].clamp(min=1)
            losses[k] = squared if weights is None else weights[k].to(squared.dtype) * squared
        return losses
