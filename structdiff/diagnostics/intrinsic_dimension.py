r"""How many dimensions the data has around a point, read off a score.

Noise of scale :math:`\rho` leaves a density :math:`p_\rho` that thins out along the normals of the
data's surface only, so that, for data of dimension k among D coordinates,

.. math:: k = D + \frac{\partial \ln p_\rho(x)}{\partial \ln \rho}
            = D + \rho^2\,(\nabla\!\cdot s + |s|^2)
            = \mathrm{tr}\,\frac{\partial \hat x_0}{\partial v} + |\hat\epsilon|^2,
          \qquad v = x_t/\alpha

(FLIPD; the last form has no cancellation at small noise). Its first term alone is the effective
rank of the denoiser. For spectra that say the same see :mod:`structdiff.diagnostics.spectra`.

Source: Kamkari et al. 2024.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from structdiff.denoisers import BaseDenoiser
from structdiff.diagnostics.field import (
    Components,
    Field,
    levels,
)
from structdiff.errors import StructDiffError
from structdiff.noise import as_source
from structdiff.samplers.base import Source
from structdiff.state import State

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def times_of(denoiser: BaseDenoiser, rho: Sequence[float], components: Components) -> list[float]:
    """Shared times at which the first component has the noise levels rho = sigma / alpha."""
    if not len(rho) or not min(rho) > 0:
        raise StructDiffError(f"noise levels must be positive, got {list(rho)}")
    return levels(denoiser.system, [-math.log(r) for r in rho], components)[1]


def _noise_levels(
    denoiser: BaseDenoiser, given: Sequence[float] | None, components: Components
) -> list[float]:
    """The given levels, or nine from 1 down to 0.01 as far as the process reaches."""
    if given is not None:
        return [float(r) for r in given]
    grid = torch.logspace(0, -2, 9, dtype=torch.float64).tolist()
    system, within = denoiser.system, []
    for rho in grid:
        try:
            levels(system, [-math.log(rho)], components)
        except StructDiffError:
            continue
        within.append(rho)
    if not within:
        raise StructDiffError("the process reaches no noise level from 1 to 0.01: give levels")
    return within


@dataclass(frozen=True)
class IntrinsicDimension:
    """Estimates of the dimension per noise level and point."""

    rho: Tensor
    r"""Noise levels :math:`\sigma/\alpha` of the first component, decreasing, (L,)."""
    dimension: Tensor
    """Estimate per level and point, (L, B)."""
    size: Tensor
    """Free coordinates of every object, (B,): no dimension can be larger."""

    @property
    def n(self) -> int:
        """Points."""
        return self.dimension.shape[1]

    @property
    def value(self) -> Tensor:
        """Global estimate per level: the mean over points, (L,)."""
        return self.dimension.mean(1)

    @property
    def standard_error(self) -> Tensor:
        """Standard error of ``value``, (L,); NaN for a single point."""
        return self.dimension.std(1) / math.sqrt(self.n)

    def plateau(self, width: int = 3) -> tuple[Tensor, Tensor]:
        """Per point, the mean over the ``width`` neighbouring levels that vary least.

        Returns
        -------
        tuple of Tensor
            The dimension (B,) and the noise level in the middle of the plateau (B,).

        Raises
        ------
        StructDiffError
            If there are fewer levels than ``width``.
        """
        if not 1 <= width <= len(self.rho):
            raise StructDiffError(
                f"a plateau over {width} levels needs at least as many, there are {len(self.rho)}"
            )
        windows = self.dimension.unfold(0, width, 1)  # (L - width + 1, B, width)
        best = (windows.amax(2) - windows.amin(2)).argmin(0)
        points = torch.arange(self.n, device=best.device)
        middle = self.rho.unfold(0, width, 1).log().mean(1).exp()
        return windows.mean(2)[best, points], middle.to(best.device)[best]

    def plot(self, ax: Axes | None = None) -> Axes:
        """Estimates against the noise level, with the plateau."""
        from structdiff.diagnostics import plots

        return plots.intrinsic_dimension(self, ax)


def flipd(
    denoiser: BaseDenoiser,
    x0: State | Tensor,
    rho: Sequence[float] | None = None,
    *,
    components: Components = None,
    condition: Any = None,
    probes: int | None = None,
    source: Source = None,
) -> IntrinsicDimension:
    """Local intrinsic dimension by the Fokker-Planck equation (FLIPD), per point and level.

    Parameters
    ----------
    denoiser
        Any denoiser, over any system.
    x0
        Data, as values, components (B, ...).
    rho
        Noise levels sigma / alpha of the first chosen component; None is nine from 1 to 0.01.
    components
        The components whose dimension is asked for, the others held at the data; None is all that
        move, jointly (levels of the others follow the shared time).
    condition
        Passed to the denoiser.
    probes
        Probes of Hutchinson's trace; None is exact, one backward pass per coordinate.
    source
        Randomness of the probes.

    Raises
    ------
    StructDiffError
        If a level is out of reach.
    """
    return _traces(denoiser, x0, rho, components, condition, probes, source, with_noise=True)


def effective_rank(
    denoiser: BaseDenoiser,
    x0: State | Tensor,
    rho: Sequence[float] | None = None,
    *,
    components: Components = None,
    condition: Any = None,
    probes: int | None = None,
    source: Source = None,
) -> IntrinsicDimension:
    r"""Trace of the denoiser's Jacobian :math:`\partial\hat x_0/\partial v`; as :func:`flipd`.

    The directions that it lets through: FLIPD without :math:`|\hat\epsilon|^2`, which vanishes on
    the data as the noise does.
    """
    return _traces(denoiser, x0, rho, components, condition, probes, source, with_noise=False)


def _traces(
    denoiser: BaseDenoiser,
    x0: State | Tensor,
    rho: Sequence[float] | None,
    components: Components,
    condition: Any,
    probes: int | None,
    source: Source,
    *,
    with_noise: bool,
) -> IntrinsicDimension:
    drawn, system = as_source(source), denoiser.system
    grid = _noise_levels(denoiser, rho, components)
    data = system.encode(system.check(x0)).masked()
    field = Field(denoiser, data, components, condition)
    directions = None if probes is None else field.probes(probes, drawn)
    rows = []
    for t in times_of(denoiser, grid, components):
        scaled = scaled_by_alpha(system.alpha(t), data, system.moving)
        here = Field(denoiser, scaled, components, condition)
        x = here.flatten(scaled)
        local = here.linearise("data", x, t)
        estimate = local.divergence(directions, here.alpha(t, x))
        if with_noise:
            on_data, on_x = _noise_from_data(here, t, x)
            noise = on_data * local.value + on_x * x
            estimate = estimate + noise.square().sum(1)
        rows.append(estimate)
    return IntrinsicDimension(
        torch.tensor(grid, dtype=torch.float64), torch.stack(rows), field.size
    )


def scaled_by_alpha(alpha: dict[str, Tensor], data: State, moving: Sequence[str]) -> State:
    """The data where the forward process takes it on average."""
    return State._trusted(
        {k: v * alpha[k].to(v) if k in moving else v for k, v in data.items()}, data.masks
    )


def _noise_from_data(field: Field, t: float, x: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of noise = first * data + second * x."""
    a, s = field.alpha(t, x), field.sigma(t, x)
    return -a / s, field.exists / s
