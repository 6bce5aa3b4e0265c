r"""How many dimensions the data has around a point, read off two spectra.

Scores at noised copies of a point span the directions normal to the data's surface, each with
singular values near 1 in units of noise (:func:`normal_bundle`). Along the probability flow in
:math:`v = x/\alpha` its Jacobian

.. math:: dY/d\rho = (\partial\hat\epsilon/\partial v)\, Y

keeps tangents and shrinks normals like rho: slopes 0 and 1 in logarithms (:func:`flow_spectrum`).

Sources: Stanczuk et al. 2024 (normal bundle), Horvat and Pfister 2024 (flow Jacobian).
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
    chosen_components,
    mean_and_error,
    optional,
)
from structdiff.diagnostics.intrinsic_dimension import scaled_by_alpha, times_of
from structdiff.errors import StructDiffError
from structdiff.noise import as_source
from structdiff.samplers.base import Source
from structdiff.samplers.grids import times_at
from structdiff.state import State

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class _Dimensions:
    """What every estimate of a dimension per point says about all of them."""

    dimension: Tensor

    @property
    def n(self) -> int:
        """Points."""
        return len(self.dimension)

    @property
    def value(self) -> float:
        """Global estimate: the mean over points."""
        return mean_and_error(self.dimension.double())[0]

    @property
    def standard_error(self) -> float:
        """Standard error of ``value``."""
        return mean_and_error(self.dimension.double())[1]


@dataclass(frozen=True)
class NormalBundle(_Dimensions):
    """Dimensions from the spectrum of scores around every point."""

    rho: float
    singular_values: Tensor
    r"""In units of noise, :math:`\sigma\,sv/\sqrt K`, decreasing: near 1 for a normal direction,
    near 0 for a tangent one; (B, min(K, D))."""
    dimension: Tensor
    """Free coordinates minus the number of large singular values, (B,)."""

    def plot(self, ax: Axes | None = None) -> Axes:
        """The spectra, with the gap."""
        from structdiff.diagnostics import plots

        return plots.normal_bundle(self, ax)


def normal_bundle(
    denoiser: BaseDenoiser,
    x0: State | Tensor,
    rho: float = 0.01,
    *,
    components: Components = None,
    condition: Any = None,
    samples: int | None = None,
    source: Source = None,
) -> NormalBundle:
    """Dimension by the singular values of scores at noised copies of every point.

    Parameters
    ----------
    denoiser, x0, components, condition, source
        As for :func:`flipd`.
    rho
        Noise level; small against the curvature of the data.
    samples
        Noised copies per point, K; None is max(100, 4 D).

    Raises
    ------
    StructDiffError
        If the level is out of reach, or there are fewer copies than two.
    """
    drawn, system = as_source(source), denoiser.system
    (t,) = times_of(denoiser, [rho], components)
    data = system.encode(system.check(x0)).masked()
    scaled = scaled_by_alpha(system.alpha(t), data, system.moving)
    field = Field(denoiser, scaled, components, condition)
    count = max(100, 4 * field.dimension) if samples is None else samples
    if count < 2:
        raise StructDiffError(f"a spectrum needs at least two samples, got {samples}")
    centre = field.flatten(scaled)
    noise = field.probes(count, drawn, "gaussian")  # (K, B, D)
    with torch.no_grad():
        predicted = field.at_many(centre + field.sigma(t, centre) * noise, t, "noise")
    spectrum = torch.linalg.svdvals(predicted.permute(1, 0, 2)) / math.sqrt(count)
    return NormalBundle(rho, spectrum, field.size - _large(spectrum, field.size))


def _large(spectrum: Tensor, size: Tensor) -> Tensor:
    """Singular values before the largest gap of their logarithms, (B,).

    Only values of coordinates that exist are compared: the others are exactly 0.
    """
    logs = spectrum.clamp(min=1e-30).log()
    gaps = logs[:, :-1] - logs[:, 1:]
    ranks = torch.arange(1, spectrum.shape[1], device=spectrum.device)
    inside = ranks < size[:, None]
    return torch.where(inside, gaps, -torch.inf).argmax(1) + 1


@dataclass(frozen=True)
class FlowSpectrum(_Dimensions):
    """Singular values of the probability flow's Jacobian on the way to the data."""

    rho: Tensor
    """Noise levels, decreasing, (L,)."""
    singular_values: Tensor
    """Decreasing, per level and point, (L, B, D)."""
    slopes: Tensor
    """d ln(singular value) / d ln(rho) over the last decade of rho, (B, D): 0 along the data, 1
    across."""
    dimension: Tensor
    """Number of slopes below 1/2, (B,)."""
    nfe: int
    """Network evaluations."""

    def plot(self, ax: Axes | None = None) -> Axes:
        """Singular values against the noise level, with their slopes."""
        from structdiff.diagnostics import plots

        return plots.flow_spectrum(self, ax)


def flow_spectrum(
    denoiser: BaseDenoiser,
    start: State | Tensor,
    rho: Sequence[float] | None = None,
    *,
    components: Components = None,
    condition: Any = None,
    columns: int | None = None,
    rtol: float = 1e-6,
    atol: float = 1e-8,
    source: Source = None,
) -> FlowSpectrum:
    r"""Integrate the probability flow and its Jacobian from a noisy state towards the data.

    In v = x / alpha the Jacobian :math:`Y = dv/dv_T` follows
    :math:`dY/d\rho = (\partial\epsilon/\partial v)\,Y`; tangents of the data saturate, normals
    shrink like rho. The solver is torchdiffeq's dopri5, over the logarithm of rho, in float64.

    Parameters
    ----------
    denoiser
        Any denoiser, over any system.
    start
        Noisy states at the first level, in the coordinates that the processes run on, (B, ...);
        ``system.prior(...)`` for the default levels.
    rho
        Decreasing noise levels of the first chosen component, at least one decade; None is 25 from
        the prior's (t_max) to 0.003, or to t_min if that comes first. Where the data curves, a
        tangent's slope over the last decade is of the order of the decade's middle, not 0.
    components
        The components that flow, the others held; None is all that move.
    condition
        Passed to the denoiser.
    columns
        Follow this many random orthonormal directions instead of all: the spectrum is then that of
        a random block, which shows k saturating values as long as it is wider than k. None is all
        up to 64 coordinates, 64 beyond.
    rtol, atol
        Tolerances.
    source
        Randomness of the block.

    Raises
    ------
    StructDiffError
        If a level is out of reach, the levels do not decrease over a decade, or torchdiffeq is
        missing.
    """
    grid = _flow_levels(denoiser, components) if rho is None else [float(r) for r in rho]
    if len(grid) < 3 or sorted(grid, reverse=True) != grid or grid[0] < 10 * grid[-1] * (1 - 1e-9):
        raise StructDiffError("noise levels must decrease over at least one decade, three or more")
    times = times_of(denoiser, grid, components)
    odeint = optional("torchdiffeq", "torchdiffeq", "dynamics").odeint
    field = Field(denoiser, start, components, condition)
    width = min(field.dimension, 64) if columns is None else columns
    block = _block(field, width, source)
    flow = _Flow(field, width)
    v = field.flatten(field.like).double()
    v = v / field.alpha(times[0], v)
    points = -torch.stack([field.half_log_snr(t) for t in times]).to(v)
    solution = odeint(
        flow.slope,
        torch.cat([v[:, :, None], block], dim=2).flatten(1),
        points,
        rtol=rtol,
        atol=atol,
        method="dopri5",
        options={"step_t": points[-1:]},
    )
    matrices = solution.reshape(len(grid), len(v), field.dimension, width + 1)[..., 1:]
    spectrum = torch.linalg.svdvals(matrices)
    slopes = _last_decade(torch.tensor(grid, dtype=torch.float64).to(v), spectrum)
    rank = torch.arange(spectrum.shape[2], device=v.device) < field.size[:, None]
    dimension = ((slopes < 0.5) & rank).sum(1)
    return FlowSpectrum(
        torch.tensor(grid, dtype=torch.float64), spectrum, slopes, dimension, flow.nfe
    )


def _flow_levels(denoiser: BaseDenoiser, components: Components) -> list[float]:
    """25 levels from t_max to 0.003 or t_min."""
    system = denoiser.system
    name = chosen_components(system, components)[0]
    first, last = (
        math.exp(-float(system.half_log_snr(t)[name])) for t in (system.t_max, system.t_min)
    )
    ends = math.log10(first), math.log10(max(0.003, last))
    grid: list[float] = torch.logspace(*ends, 25, dtype=torch.float64).tolist()
    return grid


def _block(field: Field, width: int, source: Source) -> Tensor:
    """The identity, or random orthonormal columns, on existing coordinates: (B, D, width)."""
    b, d = field.exists.shape
    if width >= d:
        return (
            torch.eye(d, dtype=torch.float64, device=field.exists.device).expand(b, d, d)
            * (field.exists[:, :, None])
        )
    if width < 1:
        raise StructDiffError(f"columns must be positive, got {width}")
    gaussian = field.probes(width, as_source(source), "gaussian").double()
    q, _ = torch.linalg.qr(gaussian.permute(1, 2, 0))
    return q * field.exists[:, :, None]


def _last_decade(rho: Tensor, spectrum: Tensor) -> Tensor:
    """Least-squares slopes of ln sv against ln rho over the last decade, (B, columns)."""
    last = rho <= 10 * rho[-1] * (1 + 1e-9)
    x = rho[last].log()
    y = spectrum[last].clamp(min=1e-30).log()
    gap = x - x.mean()
    return torch.einsum("l,lbd->bd", gap, y - y.mean(0)) / gap.square().sum()


class _Flow:
    """The flow of (v, Y) over ln rho of the reference component."""

    def __init__(self, field: Field, columns: int) -> None:
        self.field, self.columns = field, columns
        self.nfe = 0

    def _rates(self, t: Tensor) -> dict[str, Tensor]:
        """D rho_k / d ln rho of the reference."""
        speed, first = self.field.noise_rates(t), self.field.names[0]
        rho = self.field.system.sigma(t)[first] / self.field.system.alpha(t)[first]
        return {k: v / speed[first] * rho for k, v in speed.items()}

    def slope(self, log_rho: Tensor, flat: Tensor) -> Tensor:
        """Derivative of (v, Y), flat (B, D (1 + columns))."""
        field = self.field
        system = field.system
        t = times_at(system, field.names[0], -log_rho.double())
        t = t.clamp(system.t_min, system.t_max)
        self.nfe += 1
        both = flat.reshape(len(flat), field.dimension, self.columns + 1)
        v, y = both[..., 0], both[..., 1:]
        alpha, rate = field.alpha(t, v), field.rows(self._rates(t), v)
        local = field.linearise("noise", alpha * v, t)
        scaled = alpha[:, :, None] * y
        if self.columns < field.dimension:
            turned = local.jvp(scaled.permute(2, 0, 1)).permute(1, 2, 0)
        else:
            turned = local.matrix() @ scaled
        moved = rate[:, :, None] * turned
        return torch.cat([(rate * local.value)[:, :, None], moved], dim=2).flatten(1)
