r"""Where a model's densities do not follow its own process: a map of the Fokker-Planck residual.

.. math:: R[u] = \partial_t u + \nabla\!\cdot F + F \cdot \nabla u
          - \tfrac12 g^2 (\Delta u + |\nabla u|^2), \qquad u = \log p_t

is 0 everywhere for the true log-density, and its gradient for the true score. A peak at one noise
level is a hole in the training's time law; large values at one place, a region it saw too little
of. The residual drives the gap between ODE and SDE (:mod:`structdiff.diagnostics.gap`).

Source: Deveney et al. 2023; residuals from :mod:`structdiff.objectives.fokker_planck`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from structdiff.denoisers import BaseDenoiser
from structdiff.diagnostics.field import (
    chosen_components,
    levels,
    noisy_field,
)
from structdiff.diagnostics.linearisation import differentiable_attention
from structdiff.errors import StructDiffError
from structdiff.noise import NoiseSource, as_source
from structdiff.objectives.fokker_planck import (
    HasLogDensity,
    fokker_planck_residual,
    score_fokker_planck_residual,
)
from structdiff.samplers.base import Source
from structdiff.state import State

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class FokkerPlanckMap:
    """The residual at noised data, level by level, per unit of shared time."""

    form: Literal["log_density", "score"]
    half_log_snr: Tensor
    """Levels, (L,)."""
    residual: Tensor
    """Per level and point, (L, B): R, or the root mean square of its gradient's coordinates."""
    points: Tensor
    """Where, flat, (L, B, D)."""

    @property
    def n(self) -> int:
        """Points per level."""
        return self.residual.shape[1]

    @property
    def value(self) -> Tensor:
        """Root mean square per level, (L,)."""
        return self.residual.square().mean(1).sqrt()

    @property
    def standard_error(self) -> Tensor:
        """Standard error of ``value``, by the delta method, (L,)."""
        spread = self.residual.square().std(1) / math.sqrt(self.n)
        return spread / (2 * self.value).clamp(min=1e-300)

    def plot(self, ax: Axes | None = None, coordinate: int = 0) -> Axes:
        """The residual's size over a coordinate and the noise level."""
        from structdiff.diagnostics import plots

        return plots.fokker_planck_map(self, ax, coordinate)


def fokker_planck_map(
    denoiser: BaseDenoiser,
    x0: State | Tensor,
    half_log_snr: Sequence[float] | Tensor | None = None,
    *,
    form: Literal["log_density", "score"] = "score",
    condition: Any = None,
    probes: int | None = None,
    directions: int | None = None,
    source: Source = None,
) -> FokkerPlanckMap:
    """The Fokker-Planck residual at noised data.

    Parameters
    ----------
    denoiser
        Any denoiser over any system; for ``form="log_density"`` one with ``log_density``.
    x0
        Data, as values, components (B, ...).
    half_log_snr
        Levels of the first moving component; None is every integer from -4 to 4 in reach.
    form
        "score": the gradient of R, for any model; "log_density": R itself.
    condition
        Passed to the denoiser.
    probes
        Random directions that estimate second derivatives; None is exact.
    directions
        Random directions that the score form is projected on; None is all coordinates.
    source
        Noise source, a seed, a seed per object (B,), or None.

    Raises
    ------
    StructDiffError
        If the denoiser has no log-density, the form is unknown, or a level is out of reach.
    """
    system, drawn = denoiser.system, as_source(source)
    values, times = levels(system, half_log_snr, None)
    residuals, points = [], []
    for t in times:
        field, x = noisy_field(denoiser, x0, t, chosen_components(system, None), condition, drawn)
        with differentiable_attention():
            found = _residual(denoiser, field.like, t, form, condition, probes, directions, drawn)
        residuals.append(found.detach())
        points.append(x)
    return FokkerPlanckMap(
        form,
        torch.tensor(values, dtype=torch.float64),
        torch.stack(residuals),
        torch.stack(points),
    )


def _residual(
    denoiser: BaseDenoiser,
    noisy: State,
    t: float,
    form: Literal["log_density", "score"],
    condition: Any,
    probes: int | None,
    directions: int | None,
    source: NoiseSource,
) -> Tensor:
    """One number per object, (B,)."""
    system = denoiser.system
    given = {} if condition is None else {"condition": condition}
    if form == "log_density":
        if not isinstance(denoiser, HasLogDensity):
            raise StructDiffError(
                f"{type(denoiser).__name__} has no log-density: use form='score', or train a "
                "PotentialDenoiser"
            )
        return fokker_planck_residual(
            lambda x, time: denoiser.log_density(x, time, **given),
            system,
            noisy,
            t,
            probes,
            source,
        )
    if form != "score":
        raise StructDiffError(f"form must be 'score' or 'log_density', got {form!r}")
    rows = score_fokker_planck_residual(
        lambda x, time: denoiser.score(x, time, **given),
        system,
        noisy,
        t,
        directions,
        probes,
        source,
    )
    size = torch.stack([system.dimensions(noisy)[k] for k in system.moving]).sum(0)
    # Along random signs q the mean of (q . R)^2 is |R|^2 already.
    square = rows.square().sum(1) if directions is None else rows.square().mean(1)
    return (square / size.clamp(min=1)).sqrt()
