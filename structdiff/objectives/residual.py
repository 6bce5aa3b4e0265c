r"""What residual diffusion minimises: the error of each predicted quantity on its own.

.. math:: L = E\left[ w_r \| \hat I_{res} - (y - x_0) \| + w_\epsilon \| \hat\epsilon - \epsilon \|
          \right] / D

in the 1-norm (the paper's) or the squared 2-norm, over the D free coordinates. Source: Liu et al.
2024 (RDDM).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from torch import Tensor

from structdiff.denoisers import BaseDenoiser
from structdiff.errors import StructDiffError
from structdiff.objectives.base import Objective
from structdiff.objectives.time_laws import AnyTimeLaw
from structdiff.residual import ResidualDenoiser
from structdiff.state import State


class ResidualMatching(Objective):
    """Error of residual, noise or data, whichever a :class:`ResidualDenoiser` predicts.

    Parameters
    ----------
    time_law
        Where training looks.
    norm
        ``"l1"``, as published, or ``"l2"``. Only the latter has the conditional means as its
        optimum; the former has the medians.
    head_weights
        Factor per predicted quantity (residual, noise, data); 1 where none is given.
    component_weights
        Factor per component.

    Raises
    ------
    StructDiffError
        If the norm or a quantity is unknown; in a call, if the denoiser is of another kind.
    """

    def __init__(
        self,
        time_law: AnyTimeLaw | None = None,
        norm: Literal["l1", "l2"] = "l1",
        head_weights: Mapping[str, float] | None = None,
        component_weights: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__(time_law, component_weights)
        if norm not in ("l1", "l2"):
            raise StructDiffError(f"unknown norm {norm!r}: choose l1 or l2")
        unknown = sorted(set(head_weights or {}) - {"residual", "noise", "data"})
        if unknown:
            raise StructDiffError(
                f"head_weights for {unknown}: the quantities are residual, noise and data"
            )
        self.norm = norm
        self.head_weights = dict(head_weights or {})

    def distances(
        self,
        denoiser: BaseDenoiser,
        x0: State,
        noisy: State,
        noise: State,
        times: dict[str, Tensor],
        condition: Any,
    ) -> dict[str, Tensor]:
        if not isinstance(denoiser, ResidualDenoiser):
            raise StructDiffError(
                f"{type(denoiser).__name__} predicts no residual: train it with "
                "DenoisingScoreMatching, or use a ResidualDenoiser"
            )
        spaces, counts = denoiser.system.spaces, denoiser.system.dimensions(x0)
        companions = denoiser.companions(noisy)
        losses: dict[str, Tensor] = {}
        for name, found in denoiser.predictions(noisy, times, condition).items():
            for k, error in found.map(
                lambda a, b: a - b, _target(name, x0, noise, companions)
            ).items():
                free = spaces[k].pack(spaces[k].project(error, x0.masks.get(k)))
                size = (free.abs() if self.norm == "l1" else free.square()).sum(1)
                loss = self.head_weights.get(name, 1.0) * size / counts[k].clamp(min=1)
                losses[k] = losses[k] + loss if k in losses else loss
        return losses


def _target(name: str, x0: State, noise: State, companions: State) -> Mapping[str, Tensor]:
    """The true value of a predicted quantity."""
    if name == "residual":
        return companions.map(lambda y, x: y - x, x0)
    return noise if name == "noise" else x0
