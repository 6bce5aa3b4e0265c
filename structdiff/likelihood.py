r"""Log-likelihood by the probability flow.

In :math:`v = x/\alpha` the flow is :math:`dv = \epsilon(\alpha v, t)\,d\rho`, with
:math:`\rho = \sigma/\alpha`, and the density along it changes by its divergence:

.. math:: \log p(x_0) = \log \pi(x_T) + \ln|\alpha_T|^D
          + \int_{t_{min}}^{t_{max}} \nabla_v \cdot \frac{dv}{ds}\, ds
          - \ln\left|\frac{dx_0}{dy_0}\right|

Everything is counted in the free coordinates: masked entries do not exist, a symmetric pair is one
number. Components that are conditioned on are held, so the answer is a conditional density; values
behind a bijection are paid for by its derivative (the last term).

Sources: Chen et al. 2018 (instantaneous change of variables), Grathwohl et al. 2019 (Hutchinson
inside the integral), Song et al. 2021 (the probability flow, eq. 39).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from structdiff.denoisers import BaseDenoiser
from structdiff.diagnostics.field import Field, ProbeLaw, optional
from structdiff.errors import StructDiffError
from structdiff.noise import as_source
from structdiff.processes.system import FrozenClock
from structdiff.samplers.base import Source
from structdiff.samplers.grids import times_at
from structdiff.spaces import Transformed
from structdiff.state import State

EXACT_UP_TO = 64
"""Free coordinates of the largest object up to which the divergence is exact by default."""
DEFAULT_PROBES = 16
"""Probes per object beyond."""


@dataclass(frozen=True)
class Likelihood:
    """Log-likelihoods of a batch, term by term; nats."""

    log_likelihood: Tensor
    """log p(x_0), float64 (B,)."""
    prior: Tensor
    r""":math:`\log \pi(x_T) + \ln|\alpha_T|^D`: the prior's density of the flow's end, (B,)."""
    divergence: Tensor
    """Integral of the divergence, (B,)."""
    change_of_variables: Tensor
    """Minus log |dx/dy| of the bijections, (B,); 0 where a space has none."""
    dimension: Tensor
    """Free coordinates that exist in each object, (B,)."""
    nfe: int
    """Network evaluations of the run (derivatives come on top)."""
    probes: int | None
    """Probes of Hutchinson's estimate; None: the exact divergence."""

    def bits_per_dimension(self, bin_width: float = 1.0) -> Tensor:
        r""":math:`-\log_2 p / D - \log_2 w`, (B,).

        For integers that were dequantised, i.e. had uniform noise on a bin added, this bounds the
        bits that their probability is worth from above.

        Parameters
        ----------
        bin_width
            w: the width of a bin in the units of the data. 1 for plain integers; 1/256 for bytes
            in [0, 1] (the offset of 8), 2/256 for bytes in [-1, 1] (the offset of 7).

        Raises
        ------
        StructDiffError
            If the width is not positive.
        """
        if not bin_width > 0:
            raise StructDiffError(f"the width of a bin must be positive, got {bin_width}")
        bits = -self.log_likelihood / (self.dimension * math.log(2))
        return bits - math.log2(bin_width)


def log_likelihood(
    denoiser: BaseDenoiser,
    x0: State | Tensor,
    condition: Any = None,
    source: Source = None,
    **options: Any,
) -> Tensor:
    """Log p(x0) per object, nats, float64 (B,); the options are those of :func:`likelihood`."""
    return likelihood(denoiser, x0, condition, source, **options).log_likelihood


@torch.no_grad()
def likelihood(
    denoiser: BaseDenoiser,
    x0: State | Tensor,
    condition: Any = None,
    source: Source = None,
    *,
    probes: int | None = None,
    exact: bool | None = None,
    law: ProbeLaw = "rademacher",
    t_min: float | None = None,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    method: str = "dopri5",
    variable: Literal["noise_level", "time"] = "noise_level",
) -> Likelihood:
    r"""Log-likelihood of data under the probability flow of a denoiser.

    Integrated in float64 by torchdiffeq, whatever the precision of the network. The error norm is,
    for every object, the root mean square over its own coordinates or the error of its
    log-density, whichever is larger, and of these the largest in the batch: a step is taken when
    every object accepts it, so batch mates matter within the tolerance only.

    Parameters
    ----------
    denoiser
        Any denoiser over any system.
    x0
        Data, as values: components (B, ...). Components that are conditioned on hold their value;
        ignored ones (a clock frozen at 1) are replaced by a draw from their prior.
    condition
        Passed to the denoiser.
    source
        Noise source, a seed, a seed per object (B,), or None: what the probes are drawn from. They
        are drawn once and kept along the whole trajectory, and averaged inside the integral:
        averaging densities of several runs would be biased.
    probes
        Probes of Hutchinson's estimate. None: the exact divergence, with one backward pass per
        coordinate, up to 64 coordinates (of the largest object), 16 probes beyond.
    exact
        True: the exact divergence whatever the size; not with ``probes``.
    law
        Distribution of the probes; Rademacher has the smaller variance.
    t_min
        Shared time at which the density is evaluated; None is the system's own. The density is
        that of :math:`x_0 + \rho(t_{min})\epsilon`.
    rtol, atol
        Tolerances of the solver's error norm, for coordinates and nats alike.
    method
        Any adaptive method of torchdiffeq.
    variable
        "noise_level": integrate over :math:`\operatorname{arcsinh} \rho` of the first moving
        component: like rho where data is resolved, like its logarithm where noise prevails, so the
        flow is nowhere stiff. "time": over shared time, for a first component whose clock waits.

    Raises
    ------
    StructDiffError
        If no component moves, the data lies outside its space, an argument is out of range,
        torchdiffeq is missing, or the solver's step shrinks to nothing.
    """
    drawn = as_source(source, stream=2)  # priors drew from stream 0, samplers from 1
    system = denoiser.system
    values = system.check(x0)
    y0, correction = _unconstrained(denoiser, values)
    ignored = [
        k for k, c in system.clocks.items() if isinstance(c, FrozenClock) and not system.frozen(k)
    ]
    if ignored:
        prior = system.prior(y0, drawn)
        y0 = y0.replace(**{k: prior[k] for k in ignored})
    field = Field(denoiser, y0, None, condition)
    count = _probe_count(field, probes, exact)
    directions = None if count is None else field.probes(count, drawn, law).double()
    start = system.t_min if t_min is None else float(t_min)
    flow = _Flow(field, directions, variable, start)
    end, divergence = flow.integrate(field.flatten(y0).double(), rtol, atol, method)
    prior_term = _prior_log_density(field, end)
    return Likelihood(
        prior_term + divergence + correction,
        prior_term,
        divergence,
        correction,
        field.size,
        flow.nfe,
        count,
    )


def _probe_count(field: Field, probes: int | None, exact: bool | None) -> int | None:
    if probes is not None and (isinstance(probes, bool) or probes < 1):
        raise StructDiffError(f"probes must be a positive integer or None, got {probes!r}")
    if probes is not None and exact:
        raise StructDiffError("ask for probes or for the exact divergence, not for both")
    if probes is not None:
        return int(probes)
    within = field.dimension <= EXACT_UP_TO
    return None if (within if exact is None else exact) else DEFAULT_PROBES


def _unconstrained(denoiser: BaseDenoiser, values: State) -> tuple[State, Tensor]:
    """The coordinates that the processes run on, and minus log |dx/dy| per object (B,)."""
    system = denoiser.system
    encoded = system.encode(values)
    parts = {
        k: system.spaces[k].project(v, encoded.masks.get(k)) if k in system.moving else v
        for k, v in encoded.items()
    }
    inside = State._trusted(parts, encoded.masks)
    correction = torch.zeros(values.batch_size, dtype=torch.float64, device=values.device)
    for name in system.moving:
        finite = torch.isfinite(parts[name]).flatten(1).all(1)
        if not bool(finite.all()):
            number = int((~finite).nonzero()[0, 0])
            raise StructDiffError(
                f"object {number} has values in component {name!r} that are not finite or lie "
                f"outside its space {system.spaces[name]}"
            )
        space = system.spaces[name]
        if isinstance(space, Transformed):
            slope = space.bijection.log_derivative(parts[name].double())
            mask = encoded.masks.get(name)
            packed = space.pack(space.project(slope, mask))
            correction = correction - packed.sum(1)
    return inside, correction


class _Flow:
    """The augmented probability flow on (v, log-density): (B, D + 1)."""

    def __init__(
        self,
        field: Field,
        probes: Tensor | None,
        variable: Literal["noise_level", "time"],
        t_min: float,
    ) -> None:
        if variable not in ("noise_level", "time"):
            raise StructDiffError(f"variable must be 'noise_level' or 'time', got {variable!r}")
        if not 0 < t_min < field.system.t_max:
            raise StructDiffError(
                f"t_min must lie between 0 and t_max = {field.system.t_max}, got {t_min}"
            )
        self.field, self.probes, self.variable, self.t_min = field, probes, variable, t_min
        self.reference = field.names[0]
        self.nfe = 0

    def _point(self, t: float) -> float:
        """The variable at a shared time."""
        if self.variable == "time":
            return t
        return math.asinh(math.exp(-float(self.field.system.half_log_snr(t)[self.reference])))

    def _time(self, point: Tensor) -> Tensor:
        """Shared time of a value of the variable."""
        if self.variable == "time":
            return point
        system = self.field.system
        t = times_at(system, self.reference, -torch.log(torch.sinh(point)))
        return t.clamp(self.t_min, system.t_max)

    def _rates(self, t: Tensor) -> dict[str, Tensor]:
        """Speed of every component's rho in the variable."""
        speed = self.field.noise_rates(t)
        if self.variable == "time":
            return speed
        system, name = self.field.system, self.reference
        rho = system.sigma(t)[name] / system.alpha(t)[name]
        return {k: v / speed[name] * torch.sqrt(1 + rho**2) for k, v in speed.items()}

    def slope(self, point: Tensor, augmented: Tensor) -> Tensor:
        """Derivative of (v, log-density) in the variable of integration."""
        point = point.double()
        t = self._time(point)
        self.nfe += 1
        v = augmented[:, :-1]
        alpha, rate = self.field.alpha(t, v), self.field.rows(self._rates(t), v)
        local = self.field.linearise("noise", alpha * v, t)
        divergence = local.divergence(self.probes, rate * alpha)
        return torch.cat([local.value * rate, divergence[:, None]], dim=1)

    def _norm(self, error: Tensor) -> Tensor:
        """Largest over objects of (rms over own coordinates, error of the log-density)."""
        rows = error.reshape(-1, self.field.dimension + 1)
        square = (rows[:, :-1] ** 2).sum(1) / self.field.size.clamp(min=1)
        return torch.maximum(square.sqrt().max(), rows[:, -1].abs().max())

    def integrate(self, v: Tensor, rtol: float, atol: float, method: str) -> tuple[Tensor, Tensor]:
        """From t_min to t_max: v there and the integral of the divergence."""
        if not rtol > 0 or not atol > 0:
            raise StructDiffError(f"tolerances must be positive, got {rtol} and {atol}")
        odeint = optional("torchdiffeq", "torchdiffeq", "dynamics").odeint
        ends = (self._point(self.t_min), self._point(self.field.system.t_max))
        points = torch.tensor(ends, dtype=torch.float64, device=v.device)
        start = torch.cat([v, torch.zeros_like(v[:, :1])], dim=1)
        # Step onto the end and never past it, where the noise level may not exist.
        first_step = 1e-3 * float(points[-1] - points[0])
        options = {"norm": self._norm, "step_t": points[-1:], "first_step": first_step}
        try:
            solution = odeint(
                self.slope, start, points, rtol=rtol, atol=atol, method=method, options=options
            )
        except AssertionError as error:  # how torchdiffeq says that the step shrank to nothing
            raise StructDiffError(
                f"the likelihood's flow failed ({error}): the model's output is not finite or not "
                "smooth; loosen rtol and atol"
            ) from error
        return solution[-1][:, :-1], solution[-1][:, -1]


def _prior_log_density(field: Field, v: Tensor) -> Tensor:
    """Log-density of v under the prior of x = alpha v, in the free coordinates, (B,)."""
    system = field.system
    alpha = field.alpha(system.t_max, v)
    stds = {
        k: torch.tensor(system.processes[k].prior_std(), dtype=torch.float64) for k in field.names
    }
    std = field.rows(stds, v) / alpha
    log_density = -((v / std) ** 2) / 2 - torch.log(std) - math.log(2 * math.pi) / 2
    return (log_density * field.exists).sum(1)
