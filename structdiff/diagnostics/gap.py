r"""The gap between the two laws that one score gives: by its ODE and by its SDE.

.. math:: dx = [f x - \tfrac{1+\eta^2}{2} g^2 s]\,dt + \eta\, g\, d\bar w, \qquad
          \eta = 0 \text{ (ODE)},\ 1 \text{ (SDE)}

Both have the data's marginals if s is the score of the forward process, and only then; how far they
part measures how far it is not (:mod:`structdiff.diagnostics.fokker_planck` says where). For a
score that is affine in x both laws are Gaussian, and their moments follow from linear ODEs.

Source: Deveney et al. 2023.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from structdiff.denoisers import BaseDenoiser
from structdiff.diagnostics.distances import (
    energy_distance,
    gaussian_wasserstein,
    histogram_wasserstein,
    sliced_wasserstein,
)
from structdiff.diagnostics.field import Components, Field, chosen_components, optional
from structdiff.errors import StructDiffError
from structdiff.noise import as_source
from structdiff.samplers.base import Sampler, Source
from structdiff.samplers.euler import EulerMaruyama
from structdiff.samplers.grids import UniformTime
from structdiff.samplers.heun import Heun
from structdiff.spaces import Layout
from structdiff.state import State

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ENERGY_POINTS = 4096
"""At most this many samples go into an energy distance, which is quadratic in them."""
PARTS = 4
"""Disjoint parts of the samples that a distance's standard error is estimated from."""


@dataclass(frozen=True)
class Distance:
    """A distance between two samples."""

    value: float
    standard_error: float
    """From disjoint quarters of the samples."""
    energy: float
    """Energy distance of the same samples (the first 4096)."""


@dataclass(frozen=True)
class Gap:
    """Distances between the ODE's samples, the SDE's, and the data."""

    kind: str
    """How W2 was measured: "exact" (1-D), "histogram" (2-D) or "sliced"."""
    ode_sde: Distance
    ode_data: Distance | None
    """None where no data was given."""
    sde_data: Distance | None
    ode: Tensor
    """Samples of the ODE, flat, (n, D)."""
    sde: Tensor
    """Samples of the SDE, flat, (n, D)."""
    data: Tensor | None
    half_log_snr: float
    """Level at which the samples were taken: where the samplers stop."""

    @property
    def n(self) -> int:
        """Samples of each."""
        return len(self.ode)

    @property
    def value(self) -> float:
        """W2 between ODE and SDE."""
        return self.ode_sde.value

    @property
    def standard_error(self) -> float:
        """Standard error of ``value``."""
        return self.ode_sde.standard_error

    def plot(self, ax: Axes | None = None) -> Axes:
        """The two clouds, with W2."""
        from structdiff.diagnostics import plots

        return plots.gap(self, ax)


def ode_sde_gap(
    denoiser: BaseDenoiser,
    like: State | Tensor,
    data: State | Tensor | None = None,
    *,
    steps: int = 800,
    ode: Sampler | None = None,
    sde: Sampler | None = None,
    components: Components = None,
    condition: Any = None,
    bins: int = 64,
    box: tuple[float, float] | None = None,
    source: Source = None,
) -> Gap:
    """Sample both laws from the same prior draws and measure how far they lie apart.

    W2 is exact in one dimension, exact on a histogram in two, sliced in more; values are compared
    (bijections undone).

    Parameters
    ----------
    denoiser
        Any denoiser, over any system.
    like
        State whose shapes, masks and held components the samples take, components (n, ...).
    data
        Data to compare with, as values, of the same shapes and masks; None leaves it out.
    steps
        Steps of both default samplers: Heun and Euler-Maruyama on grids quadratic in time, without
        a final denoising.
    ode, sde
        Samplers to use instead; give both the same ``denoise``.
    components
        The components compared; None is all that move, jointly.
    condition
        Passed to the denoiser.
    bins, box
        Of the histogram; None is the smallest square around both samples.
    source
        Noise source, a seed, a seed per object (n,), or None.
    """
    system = denoiser.system
    given = system.check(like)
    names = chosen_components(system, components)
    grid = UniformTime(power=2.0)
    flow = Heun(steps, grid, denoise=False) if ode is None else ode
    diffusion = EulerMaruyama(steps, grid, denoise=False) if sde is None else sde
    start = system.prior(given, as_source(source))
    layout = Layout(_part(given, names), system.spaces)

    def flat(x: State) -> Tensor:
        return layout.flatten(_part(x, names)) * layout.exists

    samples = [flat(s(denoiser, start, condition, source)) for s in (flow, diffusion)]
    real = None if data is None else flat(system.check(data))
    width = samples[0].shape[1]
    kind = {1: "exact", 2: "histogram"}.get(width, "sliced")
    everything = torch.cat(samples if real is None else [*samples, real])
    edges = (float(everything.min()), float(everything.max())) if box is None else box

    def w2(a: Tensor, b: Tensor) -> float:
        return histogram_wasserstein(a, b, bins, edges) if width == 2 else sliced_wasserstein(a, b)

    def distance(a: Tensor, b: Tensor) -> Distance:
        parts = [w2(p, q) for p, q in zip(a.chunk(PARTS), b.chunk(PARTS), strict=False)]
        error = float(torch.tensor(parts).std() / math.sqrt(len(parts)))
        energy = energy_distance(a[:ENERGY_POINTS], b[:ENERGY_POINTS])
        return Distance(w2(a, b), error, energy)

    return Gap(
        kind,
        distance(*samples),
        None if real is None else distance(samples[0], real),
        None if real is None else distance(samples[1], real),
        samples[0],
        samples[1],
        real,
        float(system.half_log_snr(system.t_min)[names[0]]),
    )


def _part(x: State, names: tuple[str, ...]) -> State:
    return State._trusted(
        {k: x[k] for k in names}, {k: m for k, m in x.masks.items() if k in names}
    )


# --- affine scores: moments ----------------------------------------------------------------------
@dataclass(frozen=True)
class GaussianGap:
    """The laws of an affine score: means and covariances over the free coordinates at t_min."""

    half_log_snr: float
    ode_mean: Tensor
    ode_covariance: Tensor
    sde_mean: Tensor
    sde_covariance: Tensor

    @property
    def value(self) -> float:
        """W2 between the two Gaussians."""
        return gaussian_wasserstein(
            (self.ode_mean, self.sde_mean), (self.ode_covariance, self.sde_covariance)
        )

    def plot(self, ax: Axes | None = None) -> Axes:
        """One-standard-deviation intervals of both laws per coordinate."""
        from structdiff.diagnostics import plots

        return plots.gaussian_gap(self, ax)


def gaussian_gap(
    denoiser: BaseDenoiser,
    like: State | Tensor,
    *,
    components: Components = None,
    condition: Any = None,
    rtol: float = 1e-7,
    atol: float = 1e-9,
) -> GaussianGap:
    r"""Moments of both laws for a score that is affine in x, without sampling.

    With :math:`s = b - P x`: :math:`\dot m = A m - \tfrac{1+\eta^2}{2} g^2 b` and :math:`\dot C =
    A C + C A^\top - \eta^2 g^2`, :math:`A = f + \tfrac{1+\eta^2}{2} g^2 P`, integrated from the
    prior at t_max back to t_min.

    Parameters
    ----------
    denoiser
        A denoiser whose score is affine, e.g. of Gaussian data.
    like
        One object of the system, components (1, ...).
    components, condition
        As for :func:`ode_sde_gap`.
    rtol, atol
        Tolerances of torchdiffeq's dopri5.

    Raises
    ------
    StructDiffError
        If there is not one object, the score is not affine, or torchdiffeq is missing.
    """
    system = denoiser.system
    field = Field(denoiser, like, components, condition)
    if field.like.batch_size != 1:
        raise StructDiffError(f"give one object, not {field.like.batch_size}")
    odeint = optional("torchdiffeq", "torchdiffeq", "dynamics").odeint
    d = field.dimension
    origin = torch.zeros(1, d, dtype=torch.float64, device=field.like.device)
    _check_affine(field, origin)

    def parts(t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """F, g^2 (D,), b (D,) and P (D, D)."""
        times, rate = system.times(t), field.clock_rates(t)
        drift = {k: system.processes[k].drift(times[k]) * rate[k] for k in field.names}
        spread = {k: system.processes[k].diffusion_squared(times[k]) * rate[k] for k in field.names}
        local = field.linearise("score", origin, t)
        f, g2 = (field.rows(values, origin)[0] for values in (drift, spread))
        return f, g2, local.value[0], -local.matrix()[0]

    def moments_of(eta: float) -> tuple[Tensor, Tensor]:
        half = (1 + eta**2) / 2

        def slope(t: Tensor, moments: Tensor) -> Tensor:
            inside = t.double().clamp(system.t_min, system.t_max)
            f, g2, b, precision = parts(inside)
            mean, covariance = moments[0], moments[1:]
            a = torch.diag(f) + half * g2[:, None] * precision
            turned = a @ covariance
            change = turned + turned.T - torch.diag(eta**2 * g2)
            return torch.cat([(a @ mean - half * g2 * b)[None], change])

        stds = {
            k: torch.tensor(system.processes[k].prior_std(), dtype=torch.float64)
            for k in field.names
        }
        prior = torch.diag(field.rows(stds, origin)[0] ** 2)
        moments = torch.cat([origin, prior])
        ends = torch.tensor([system.t_max, system.t_min]).to(origin)
        # Step onto the end and never past it, where the process may not exist.
        options = {"step_t": ends[-1:], "first_step": 1e-4 * (system.t_max - system.t_min)}
        end = odeint(slope, moments, ends, rtol=rtol, atol=atol, method="dopri5", options=options)[
            -1
        ]
        return end[0], end[1:]

    (ode_mean, ode_covariance), (sde_mean, sde_covariance) = moments_of(0.0), moments_of(1.0)
    return GaussianGap(
        float(field.half_log_snr(system.t_min)),
        ode_mean,
        ode_covariance,
        sde_mean,
        sde_covariance,
    )


def _check_affine(field: Field, origin: Tensor) -> None:
    """The score at a far point must be what its value and slope at the origin say."""
    t = (field.system.t_min + field.system.t_max) / 2
    local = field.linearise("score", origin, t)
    far = torch.linspace(1.0, 3.0, field.dimension).to(origin)[None]
    predicted = local.value + (local.matrix()[0] @ far[0])[None]
    with torch.no_grad():
        found = field.score(far, t)
    if not torch.allclose(predicted, found, rtol=1e-5, atol=1e-6):
        raise StructDiffError(
            "the score is not affine in x, so its laws are not Gaussian: use ode_sde_gap"
        )
