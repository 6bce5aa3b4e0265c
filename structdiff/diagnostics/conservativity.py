r"""Is the field a gradient? The asymmetry of a score's Jacobian.

A score is a gradient, so its Jacobian J is symmetric at every point; for its integrals along loops
and paths see :mod:`structdiff.diagnostics.loops`. The asymmetry

.. math:: A = |J - J^\top|_F \,/\, |J|_F

is 0 for a gradient, :math:`\sqrt 2` for a random matrix and 2 for a pure rotation. A small one does
not make a score right, nor a large one wrong for sampling (:mod:`structdiff.diagnostics.gauge`);
whatever uses the score as a gradient (likelihoods, MALA, composition) needs it small.

Sources: Vuong et al. 2025 (sub-Jacobians); estimators: Hutchinson's identity.
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
    ProbeLaw,
    levels,
    noisy_field,
)
from structdiff.errors import StructDiffError
from structdiff.noise import as_source
from structdiff.samplers.base import Source
from structdiff.state import State

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class Asymmetry:
    """Asymmetry of a score's Jacobian by noise level."""

    half_log_snr: Tensor
    """Levels, (L,)."""
    numerator: Tensor
    """|J - J^T|_F^2 per level and object, (L, B)."""
    denominator: Tensor
    """|J|_F^2 per level and object, (L, B)."""

    @property
    def n(self) -> int:
        """Points per level."""
        return self.numerator.shape[1]

    @property
    def value(self) -> Tensor:
        """A per level: the root of the ratio of the means, (L,)."""
        return (self.numerator.mean(1) / self.denominator.mean(1)).sqrt()

    @property
    def standard_error(self) -> Tensor:
        """Standard error of A over the points, by the delta method, (L,)."""
        mean = self.denominator.mean(1)
        ratio = self.numerator.mean(1) / mean
        spread = (self.numerator - ratio[:, None] * self.denominator).std(1)
        error = spread / math.sqrt(self.n) / mean
        return error / (2 * ratio.sqrt()).clamp(min=1e-300)

    def plot(self, ax: Axes | None = None) -> Axes:
        """A against the noise level."""
        from structdiff.diagnostics import plots

        return plots.asymmetry(self, ax)


def asymmetry_at(
    field: Field, x: Tensor, t: Tensor | float, probes: Tensor
) -> tuple[Tensor, Tensor]:
    """Unbiased estimates of |J - J^T|_F^2 and |J|_F^2 of the score at flat points.

    Parameters
    ----------
    field
        The model.
    x
        Points, (B, D).
    t
        Shared time () or (B,).
    probes
        Directions of unit covariance, (V, B, D): one forward and one backward derivative each.

    Returns
    -------
    tuple of Tensor
        Both (B,).
    """
    skew, forward = field.linearise("score", x, t).skew(probes)
    return (skew**2).sum(2).mean(0), (forward**2).sum(2).mean(0)


def asymmetry(
    denoiser: BaseDenoiser,
    x0: State | Tensor,
    half_log_snr: Sequence[float] | Tensor | None = None,
    *,
    components: Components = None,
    condition: Any = None,
    probes: int = 8,
    law: ProbeLaw = "rademacher",
    source: Source = None,
) -> Asymmetry:
    """Asymmetry of the score's Jacobian at noised data, level by level.

    Parameters
    ----------
    denoiser
        Any denoiser, over any system.
    x0
        Data, as values, components (B, ...).
    half_log_snr
        Levels of the first chosen component; None is every integer from -4 to 4 in reach.
    components
        The components whose block of the Jacobian is tested; None is all that move, jointly.
    condition
        Passed to the denoiser.
    probes
        Probe vectors per point.
    law
        Their distribution.
    source
        Noise source, a seed, a seed per object (B,), or None.

    Raises
    ------
    StructDiffError
        If a level is out of reach or there is no probe.
    """
    if probes < 1:
        raise StructDiffError(f"asymmetry needs at least one probe, got {probes}")
    drawn = as_source(source)
    values, times = levels(denoiser.system, half_log_snr, components)
    pairs = []
    for t in times:
        field, x = noisy_field(denoiser, x0, t, components, condition, drawn)
        pairs.append(asymmetry_at(field, x, t, field.probes(probes, drawn, law)))
    first, second = zip(*pairs, strict=True)
    return Asymmetry(_levels(values), torch.stack(first), torch.stack(second))


def sub_jacobian_asymmetry(
    denoiser: BaseDenoiser,
    x0: State | Tensor,
    half_log_snr: Sequence[float] | Tensor | None = None,
    *,
    components: Components = None,
    condition: Any = None,
    directions: int = 8,
    source: Source = None,
) -> Asymmetry:
    """The same for :math:`Q^T J Q` with random orthonormal Q (D, m): exact on that subspace.

    Parameters
    ----------
    denoiser, x0, half_log_snr, components, condition, source
        As for :func:`asymmetry`.
    directions
        m, at least 2 and at most the free coordinates of the smallest object.

    Raises
    ------
    StructDiffError
        If an object has fewer coordinates than directions.
    """
    drawn = as_source(source)
    values, times = levels(denoiser.system, half_log_snr, components)
    pairs = []
    for t in times:
        field, x = noisy_field(denoiser, x0, t, components, condition, drawn)
        basis = orthonormal(field, directions, drawn)  # (m, B, D)
        local = field.linearise("score", x, t)
        skew, forward = local.skew(basis)
        # <q_i, (J - J^T) q_j> and <q_i, J q_j>, both (B, m, m).
        antisymmetric = torch.einsum("ibd,jbd->bij", basis, skew)
        whole = torch.einsum("ibd,jbd->bij", basis, forward)
        pairs.append(((antisymmetric**2).sum((1, 2)), (whole**2).sum((1, 2))))
    first, second = zip(*pairs, strict=True)
    return Asymmetry(_levels(values), torch.stack(first), torch.stack(second))


def orthonormal(field: Field, count: int, source: Source) -> Tensor:
    """Random orthonormal directions in the existing coordinates of every object, (count, B, D).

    Raises
    ------
    StructDiffError
        If an object has fewer coordinates than directions.
    """
    smallest = int(field.size.min())
    if not 1 <= count <= smallest:
        raise StructDiffError(
            f"cannot take {count} independent directions: the smallest object has {smallest} free "
            "coordinates"
        )
    gaussian = field.probes(count, as_source(source), "gaussian")
    q, _ = torch.linalg.qr(gaussian.permute(1, 2, 0))  # (B, D, count)
    return q.permute(2, 0, 1)


def _levels(values: Sequence[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)
