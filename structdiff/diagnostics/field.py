r"""The one view that every diagnostic takes of a model: a vector field on flat free coordinates.

Chosen components of a system are laid out as vectors (B, D) in which every entry is a free number:
masked entries are absent, a symmetric pair counts once. The others are held at given values. With
the model's own output G (data or noise, whichever it predicts), every reading is linear,

.. math:: F = c \circ G + e \circ x .
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from structdiff.denoisers import BaseDenoiser, Denoiser
from structdiff.diagnostics.linearisation import ROWS, Linearisation
from structdiff.errors import StructDiffError
from structdiff.noise import NoiseSource
from structdiff.processes.system import System
from structdiff.samplers.adaptive import _clock_rate
from structdiff.samplers.grids import times_at
from structdiff.state import State

Reading: TypeAlias = Literal["data", "noise", "score"]
"""Which prediction of the model is read as a vector field."""
Components: TypeAlias = "str | Sequence[str] | None"
"""A component, several, or None for all that move."""
ProbeLaw: TypeAlias = Literal["rademacher", "gaussian"]
"""Distribution of the probe vectors; both have unit covariance."""

_RANDOM = (
    nn.modules.dropout._DropoutNd,
    nn.modules.batchnorm._BatchNorm,
)


def optional(module: str, package: str, extra: str) -> Any:
    """Import an optional library where it is used.

    Raises
    ------
    StructDiffError
        If it is not installed; the message names the extra that brings it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise StructDiffError(f"this needs {package}: pip install 'structdiff[{extra}]'") from error


def chosen_components(system: System, components: Components) -> tuple[str, ...]:
    """The named components, in the system's order.

    Raises
    ------
    StructDiffError
        If a name is unknown, or belongs to a component that does not move.
    """
    if components is None:
        return system.moving
    names = (components,) if isinstance(components, str) else tuple(components)
    for name in names:
        if name not in system.moving:
            raise StructDiffError(
                f"no component {name!r} moves in this system: choose among {list(system.moving)}"
            )
    return tuple(k for k in system.moving if k in names)


def _check_settled(denoiser: BaseDenoiser) -> None:
    """A field must be a function: no dropout, no batch statistics."""
    for name, module in denoiser.named_modules():
        if isinstance(module, _RANDOM) and module.training:
            raise StructDiffError(
                f"layer {name!r} ({type(module).__name__}) is in training mode, so the model is "
                "not a function of its input: call denoiser.eval() first"
            )


class Field:
    """A model as a vector field on the free coordinates of some components.

    Parameters
    ----------
    denoiser
        Any denoiser, over any system.
    like
        State in the coordinates that the processes run on, components (B, ...): shapes and masks,
        and the values of the components that are held.
    components
        The components that vary; None is all that move.
    condition
        Passed to the denoiser.

    Raises
    ------
    StructDiffError
        If a component is unknown or stands still, or the model has active dropout or batch
        statistics.
    """

    exists: Tensor
    """Which coordinates exist in which object, bool (B, D)."""
    size: Tensor
    """Free coordinates of every object, (B,)."""

    def __init__(
        self,
        denoiser: BaseDenoiser,
        like: State | Tensor,
        components: Components = None,
        condition: Any = None,
    ) -> None:
        _check_settled(denoiser)
        self.denoiser, self.condition = denoiser, condition
        self.system = denoiser.system
        self.names = chosen_components(self.system, components)
        if not self.names:
            raise StructDiffError("no component of this system moves: there is no field to look at")
        self.like = self.system.check(like)
        self._layout = self.system.layout(self._part(self.like))
        self.exists = self._layout.exists
        self.size = self.exists.sum(1)

    @property
    def dimension(self) -> int:
        """Coordinates of the largest object, D."""
        return self.exists.shape[1]

    def _part(self, x: State) -> State:
        masks = {k: m for k, m in x.masks.items() if k in self.names}
        return State._trusted({k: x[k] for k in self.names}, masks)

    # --- vectors and states ------------------------------------------------------------------
    def flatten(self, x: State) -> Tensor:
        """The varying components as vectors, exactly 0 where nothing exists, (B, D)."""
        part = self._part(x)
        inside = State._trusted(
            {k: self.system.spaces[k].project(v, part.masks.get(k)) for k, v in part.items()},
            part.masks,
        )
        return self._layout.flatten(inside) * self.exists

    def state(self, vector: Tensor) -> State:
        """The whole state with the varying components read from (B, D); the others are held."""
        moving = self._layout.unflatten(vector)
        values = {k: moving[k].to(v) if k in self.names else v for k, v in self.like.items()}
        return State._trusted(values, self.like.masks)

    def rows(self, numbers: Mapping[str, Tensor], like: Tensor) -> Tensor:
        """A number () or (B,) per component as a row per coordinate, (1 or B, D)."""
        parts = []
        for name, width in zip(self.names, self._widths, strict=True):
            number = numbers[name].to(like.device, like.dtype)
            parts.append(number.reshape(-1, 1).expand(-1, width))
        size = max(len(p) for p in parts)
        return torch.cat([p.expand(size, -1) for p in parts], dim=1)

    @property
    def _widths(self) -> list[int]:
        return [len(c) for c in self._layout._columns.values()]

    def probes(self, count: int, source: NoiseSource, law: ProbeLaw = "rademacher") -> Tensor:
        """Random directions of unit covariance in the free coordinates, (count, B, D).

        Drawn component by component from ``source``: with a seed per object they depend neither on
        batch mates nor on padding.
        """
        part = self._part(self.like)
        drawn = []
        for _ in range(count):
            noise = State._trusted(
                {
                    k: self.system.spaces[k].noise(k, v, part.masks.get(k), source)
                    for k, v in part.items()
                },
                part.masks,
            )
            drawn.append(self.flatten(noise))
        stack = torch.stack(drawn)
        if law == "gaussian":
            return stack
        if law != "rademacher":
            raise StructDiffError(f"probes are 'rademacher' or 'gaussian', got {law!r}")
        return torch.where(stack < 0, -1.0, 1.0).to(stack) * self.exists

    # --- times -------------------------------------------------------------------------------
    def time_at(self, half_log_snr: Tensor | float) -> Tensor:
        """Shared time at which the first varying component has a given half log-SNR."""
        levels = torch.as_tensor(half_log_snr, dtype=torch.float64)
        return times_at(self.system, self.names[0], levels)

    def half_log_snr(self, t: Tensor | float) -> Tensor:
        """Half log-SNR of the first varying component at a shared time."""
        return self.system.half_log_snr(t)[self.names[0]]

    def alpha(self, t: Tensor | float, like: Tensor) -> Tensor:
        """Signal scale per coordinate, (1 or B, D)."""
        return self.rows(self.system.alpha(t), like)

    def sigma(self, t: Tensor | float, like: Tensor) -> Tensor:
        """Noise scale per coordinate, (1 or B, D)."""
        return self.rows(self.system.sigma(t), like)

    def clock_rates(self, t: Tensor) -> dict[str, Tensor]:
        """Speed of every component's own time in shared time."""
        return {k: _clock_rate(self.system.clocks[k], t) for k in self.names}

    def noise_rates(self, t: Tensor) -> dict[str, Tensor]:
        r"""Speed of every component's :math:`\rho = \sigma/\alpha` in shared time.

        :math:`d\rho/dt = g^2 / (2 \alpha \sigma)` in the component's own time, times its clock's
        rate: the flow of v = x / alpha is :math:`dv = \epsilon\, d\rho`.
        """
        system = self.system
        own, alpha, sigma = system.times(t), system.alpha(t), system.sigma(t)
        return {
            k: system.processes[k].diffusion_squared(own[k]) / (2 * alpha[k] * sigma[k]) * rate
            for k, rate in self.clock_rates(t).items()
        }

    # --- the field ---------------------------------------------------------------------------
    @property
    def native(self) -> Reading:
        """What the model is called for: noise where its network gives it, else data.

        A component that is conditioned on has no noise: dividing by its scale of 0 would put NaN
        into derivatives of the others.
        """
        kinds = self.denoiser.prediction if isinstance(self.denoiser, Denoiser) else {}
        direct = all(kinds.get(k) in ("noise", "score") for k in self.names)
        clean = any(self.system.frozen(k) for k in self.system.processes)
        return "noise" if direct and not clean else "data"

    def output(self, x: Tensor, t: Tensor | float) -> Tensor:
        """The model's own output G at flat points (B, D) and shared time () or (B,): (B, D)."""
        state = self.state(x)
        call = self.denoiser.noise if self.native == "noise" else self.denoiser
        return self.flatten(call(state, t, self.condition)).to(x.dtype)

    def coefficients(
        self, reading: Reading, t: Tensor | float, like: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Rows (c, e) of F = c G + e x, each (1 or B, D)."""
        a, s = self.alpha(t, like), self.sigma(t, like)
        if reading == self.native:
            return torch.ones_like(a), torch.zeros_like(a)
        if self.native == "noise":
            return (-s / a, 1 / a) if reading == "data" else (-1 / s, torch.zeros_like(s))
        return (-a / s, 1 / s) if reading == "noise" else (a / s**2, -1 / s**2)

    def read(self, reading: Reading, x: Tensor, t: Tensor | float) -> Tensor:
        """Data, noise or score at flat points, (B, D); one network call."""
        on_output, on_x = self.coefficients(reading, t, x)
        return on_output * self.output(x, t) + on_x * x * self.exists

    def score(self, x: Tensor, t: Tensor | float) -> Tensor:
        """The score at flat points (B, D) and shared time () or (B,): (B, D)."""
        return self.read("score", x, t)

    def linearise(self, reading: Reading, x: Tensor, t: Tensor | float) -> Linearisation:
        """The field and its derivatives at flat points; one network call for all of them."""
        return Linearisation(self, reading, x, t)

    def repeated(self, count: int) -> Field:
        """The same field over ``count`` copies of its objects, copy by copy: (count * B, D).

        Raises
        ------
        StructDiffError
            If the field has a condition: only its owner knows how to repeat it.
        """
        if self.condition is not None:
            raise StructDiffError("a field with a condition cannot be repeated")
        index = torch.arange(self.like.batch_size, device=self.like.device).repeat(count)
        return Field(self.denoiser, self.like.take(index), self.names)

    def at_many(self, points: Tensor, t: Tensor | float, reading: Reading = "score") -> Tensor:
        """The field at several points per object: (n, B, D), shared time () -> (n, B, D).

        One call for all of them, in pieces of some ten thousand rows; with a condition, one call
        per point.
        """
        b, d = points.shape[1:]
        if self.condition is not None:
            return torch.stack([self.read(reading, p, t) for p in points])
        piece = max(1, ROWS // b)
        values = [
            self.repeated(len(part)).read(reading, part.reshape(-1, d), t).reshape(-1, b, d)
            for part in points.split(piece)
        ]
        return torch.cat(values)


def noisy_field(
    denoiser: BaseDenoiser,
    x0: State | Tensor,
    t: float,
    components: Components,
    condition: Any,
    source: NoiseSource,
) -> tuple[Field, Tensor]:
    """The field around data noised to shared time t, and the noisy points (B, D).

    Components that are conditioned on stay clean; the rest is noised whether it varies or is held.
    """
    system = denoiser.system
    data = system.encode(system.check(x0))
    noisy = system.perturb(data, t, system.noise(data, source))
    kept = {k: data[k] if system.frozen(k) else v for k, v in noisy.items()}
    field = Field(denoiser, State._trusted(kept, data.masks), components, condition)
    return field, field.flatten(field.like)


def levels(
    system: System, half_log_snr: Sequence[float] | Tensor | None, components: Components
) -> tuple[list[float], list[float]]:
    """Half log-SNR of the first chosen component and the shared times where it has it.

    Parameters
    ----------
    half_log_snr
        The levels; None is every integer from -4 to 4 that the process reaches.

    Raises
    ------
    StructDiffError
        If a level is out of the process's reach.
    """
    name = chosen_components(system, components)[0]
    low = float(system.half_log_snr(system.t_max)[name])
    high = float(system.half_log_snr(system.t_min)[name])
    if half_log_snr is None:
        values = [float(v) for v in range(-4, 5) if low <= v <= high]
    else:
        values = [float(v) for v in half_log_snr]
    for value in values:
        if not low - 1e-6 <= value <= high + 1e-6:
            raise StructDiffError(
                f"half log-SNR {value:.4g} is out of reach: between t_min and t_max component "
                f"{name!r} covers {low:.4g} to {high:.4g}"
            )
    times = times_at(system, name, torch.tensor(values, dtype=torch.float64))
    return values, times.clamp(system.t_min, system.t_max).tolist()


def mean_and_error(values: Tensor) -> tuple[float, float]:
    """Mean over objects and its standard error; the error of one object is NaN."""
    n = len(values)
    error = values.std().item() / n**0.5 if n > 1 else float("nan")
    return values.mean().item(), error


ScoreFunction: TypeAlias = Callable[[Tensor], Tensor]
"""A vector field on flat points, (B, D) -> (B, D)."""
