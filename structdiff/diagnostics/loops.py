r"""Is the field a gradient? Integrals of a score along loops and paths.

A gradient's integral around a closed loop is 0 and, between two points, the same along every path:
the log-density ratio. By Stokes a loop's integral is the curl through it,
:math:`\oint s \cdot dl = \int (\partial_1 s_2 - \partial_2 s_1)\, dA`, :math:`2\pi r^2\omega`
around a rotation by omega. One that does not fall with the loop's size is a vortex.

Source: Vuong et al. 2025.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor

from structdiff.denoisers import BaseDenoiser
from structdiff.diagnostics.conservativity import orthonormal
from structdiff.diagnostics.field import (
    Components,
    Field,
    levels,
    mean_and_error,
)
from structdiff.noise import as_source
from structdiff.samplers.base import Source
from structdiff.state import State

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class Loop(Protocol):
    """A closed curve in a plane, as nodes and the steps of a quadrature rule along it."""

    @property
    def extent(self) -> float:
        """Its size, for reporting."""
        ...

    def nodes(self) -> tuple[Tensor, Tensor]:
        """Positions and weighted tangents, each float64 (n, 2)."""
        ...


@dataclass(frozen=True)
class Circle:
    """Trapezoid rule on a circle: spectrally accurate for smooth fields.

    Parameters
    ----------
    radius
        Its radius, in the units of the noisy state.
    points
        Number of nodes.
    """

    radius: float = 1.0
    points: int = 256

    @property
    def extent(self) -> float:
        """The radius."""
        return self.radius

    def nodes(self) -> tuple[Tensor, Tensor]:
        angle = torch.arange(self.points, dtype=torch.float64) * (2 * math.pi / self.points)
        cosine, sine = torch.cos(angle), torch.sin(angle)
        step = self.radius * 2 * math.pi / self.points
        return (
            self.radius * torch.stack((cosine, sine), dim=1),
            step * torch.stack((-sine, cosine), dim=1),
        )


@dataclass(frozen=True)
class Rectangle:
    """Gauss-Legendre rule on every side of a rectangle.

    Parameters
    ----------
    width, height
        Its sides, in the units of the noisy state.
    points
        Nodes per side.
    """

    width: float = 1.0
    height: float = 1.0
    points: int = 64

    @property
    def extent(self) -> float:
        """Half the diagonal."""
        return math.hypot(self.width, self.height) / 2

    def nodes(self) -> tuple[Tensor, Tensor]:
        node, weight = (torch.from_numpy(v) for v in np.polynomial.legendre.leggauss(self.points))
        a, b = self.width / 2, self.height / 2
        corners = torch.tensor([(-a, -b), (a, -b), (a, b), (-a, b)], dtype=torch.float64)
        positions, steps = [], []
        for start, end in zip(corners, corners.roll(-1, 0), strict=True):
            positions.append((start + end) / 2 + node[:, None] * (end - start) / 2)
            steps.append(weight[:, None] * (end - start) / 2)
        return torch.cat(positions), torch.cat(steps)


@dataclass(frozen=True)
class LoopIntegral:
    r"""Integrals :math:`\oint s \cdot dl` around closed loops at one noise level."""

    half_log_snr: float
    extent: Tensor
    """Size of every loop, (R,)."""
    integral: Tensor
    """Per loop, plane and object, (R, P, B)."""
    magnitude: Tensor
    r""":math:`\oint |s|\, dl`, (R, P, B): what the integral is small against."""

    @property
    def n(self) -> int:
        """Objects."""
        return self.integral.shape[2]

    @property
    def relative(self) -> Tensor:
        """|I| over the integral of |s|, (R, P, B)."""
        return self.integral.abs() / self.magnitude

    @property
    def value(self) -> Tensor:
        """Mean of the relative integral per loop, (R,)."""
        return self.relative.mean((1, 2))

    @property
    def standard_error(self) -> Tensor:
        """Standard error of ``value`` over the objects, (R,)."""
        return self.relative.mean(1).std(1) / math.sqrt(self.n)

    def plot(self, ax: Axes | None = None) -> Axes:
        """Relative integral against the size of the loop."""
        from structdiff.diagnostics import plots

        return plots.loop_integral(self, ax)


def loop_integral(
    denoiser: BaseDenoiser,
    centres: State | Tensor,
    half_log_snr: float,
    loops: Sequence[Loop] = (Circle(0.5), Circle(1.0), Circle(2.0)),
    *,
    planes: int | Tensor = 32,
    components: Components = None,
    condition: Any = None,
    source: Source = None,
) -> LoopIntegral:
    """Integrate the score around loops in planes through given points.

    Parameters
    ----------
    denoiser
        Any denoiser, over any system.
    centres
        Noisy states at this level, e.g. ``system.perturb(...)``, components (B, ...).
    half_log_snr
        Level of the first chosen component.
    loops
        Curves in a plane.
    planes
        Number of random planes per object, or pairs of orthonormal directions, (P, 2, D).
    components
        The components that move around the loop; None is all that move.
    condition
        Passed to the denoiser.
    source
        Randomness of the planes.

    Raises
    ------
    StructDiffError
        If the level is out of reach, or an object has fewer than two free coordinates.
    """
    drawn = as_source(source)
    (level,), (t,) = levels(denoiser.system, [half_log_snr], components)
    field = Field(denoiser, centres, components, condition)
    centre = field.flatten(field.like)
    if isinstance(planes, Tensor):
        pairs = planes.to(centre)[:, :, None].expand(-1, -1, *centre.shape)  # (P, 2, B, D)
    else:
        pairs = torch.stack([orthonormal(field, 2, drawn) for _ in range(planes)])
    integrals, magnitudes = [], []
    for loop in loops:
        position, step = (v.to(centre) for v in loop.nodes())  # (n, 2)
        length = step.norm(dim=1)
        rows = []
        for pair in pairs:
            around = centre + torch.einsum("nk,kbd->nbd", position, pair)
            with torch.no_grad():
                score = field.at_many(around, t)
            along = torch.einsum("nbd,nk,kbd->b", score, step, pair)
            rows.append((along, torch.einsum("nb,n->b", score.norm(dim=2), length)))
        along_all, magnitude_all = zip(*rows, strict=True)
        integrals.append(torch.stack(along_all))
        magnitudes.append(torch.stack(magnitude_all))
    extent = torch.tensor([loop.extent for loop in loops], dtype=torch.float64)
    return LoopIntegral(level, extent, torch.stack(integrals), torch.stack(magnitudes))


@dataclass(frozen=True)
class PathTest:
    r""":math:`\log p_t(b) - \log p_t(a)` in three ways that must agree; nats, each (B,)."""

    half_log_snr: float
    straight: Tensor
    """Integral of the score along the straight line."""
    corner: Tensor
    """Integral along an L: half of the coordinates first, then the others."""
    likelihood: Tensor
    """Difference of the probability flow's log-densities."""

    @property
    def n(self) -> int:
        """Pairs of points."""
        return len(self.straight)

    @property
    def value(self) -> float:
        """Mean of the largest disagreement of the three."""
        return mean_and_error(self._disagreement())[0]

    @property
    def standard_error(self) -> float:
        """Standard error of ``value``."""
        return mean_and_error(self._disagreement())[1]

    def _disagreement(self) -> Tensor:
        three = torch.stack((self.straight, self.corner, self.likelihood))
        return three.amax(0) - three.amin(0)

    def plot(self, ax: Axes | None = None) -> Axes:
        """Path integrals against the difference of log-likelihoods."""
        from structdiff.diagnostics import plots

        return plots.path_test(self, ax)


def path_test(
    denoiser: BaseDenoiser,
    start: State | Tensor,
    end: State | Tensor,
    half_log_snr: float,
    *,
    condition: Any = None,
    points: int = 128,
    source: Source = None,
    **likelihood_options: Any,
) -> PathTest:
    """Compare log-density ratios along two paths and by the probability flow.

    Parameters
    ----------
    denoiser
        Any denoiser, over any system.
    start, end
        Noisy states at this level, components (B, ...) with the same masks and held components.
    half_log_snr
        Level of the first moving component.
    condition
        Passed to the denoiser.
    points
        Gauss-Legendre nodes per straight piece.
    source
        Randomness of the likelihood's probes.
    likelihood_options
        Passed to :func:`structdiff.likelihood.likelihood`.
    """
    # Imported here: the likelihood itself is built on this package's field.
    from structdiff.likelihood import likelihood

    system = denoiser.system
    (level,), (t,) = levels(system, [half_log_snr], None)
    field = Field(denoiser, start, None, condition)
    a, b = field.flatten(field.like), field.flatten(system.check(end))
    first_half = torch.arange(field.dimension, device=a.device) < (field.dimension + 1) // 2
    corner = torch.where(first_half, b, a)
    node, weight = (torch.from_numpy(v).to(a) for v in np.polynomial.legendre.leggauss(points))

    def along(p: Tensor, q: Tensor) -> Tensor:
        line = (p + q) / 2 + node[:, None, None] * (q - p) / 2
        with torch.no_grad():
            score = field.at_many(line, t)
        return torch.einsum("nbd,bd,n->b", score, (q - p) / 2, weight)

    scale = {k: 1 / v for k, v in system.alpha(t).items() if k in system.moving}
    densities = []
    for point in (b, a):
        state = field.state(point)
        unscaled = State._trusted(
            {k: v * scale[k].to(v) if k in scale else v for k, v in state.items()}, state.masks
        )
        found = likelihood(
            denoiser, system.decode(unscaled), condition, source, t_min=t, **likelihood_options
        )
        densities.append(found.prior + found.divergence)
    return PathTest(
        level,
        along(a, b),
        along(a, corner) + along(corner, b),
        (densities[0] - densities[1]).to(a),
    )
