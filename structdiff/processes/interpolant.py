r"""Stochastic interpolants: a bridge between any two densities, with noise in between.

.. math:: x_t = d(t)\,x_0 + c(t)\,x_1 + \gamma(t)\,z

with the data :math:`x_0` at time 0, the base :math:`x_1` at time 1 and standard normal z. (Albergo,
Boffi and Vanden-Eijnden 2023 count time the other way: their t is our 1 - t, so their velocities
are ours with the other sign.) A *path* gives d and c, a *gamma* the noise scale; rates are closed
forms, everything is float64.

Where the base is standard normal noise and nothing else is random the interpolant is one-sided,
:math:`x_t = \alpha x_0 + \sigma z`: an ordinary :class:`GaussianProcess`, which every sampler
serves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, NoReturn, TypeAlias

import torch
from torch import Tensor

from structdiff.errors import StructDiffError
from structdiff.noise import NoiseSource, as_source
from structdiff.processes.gaussian import GaussianProcess
from structdiff.processes.paths import (
    Brownian,
    Gamma,
    Linear,
    Mirror,
    NoNoise,
    OneSided,
    Path,
    ProcessNoise,
)
from structdiff.processes.system import Clock, System, Time
from structdiff.spaces import Space
from structdiff.state import TENSOR, State

Base: TypeAlias = "Literal['normal', 'data'] | Callable[[State, NoiseSource], State]"
"""What stands at time 1: standard normal noise, a draw ``(like, source) -> State``, or data that
the caller hands over."""


def _double(t: Tensor | float) -> Tensor:
    return torch.as_tensor(t, dtype=torch.float64)


class Scales(NamedTuple):
    """The three scales of an interpolant and their rates, float64 tensors or Python numbers."""

    data: Any
    base: Any
    noise: Any
    data_rate: Any
    base_rate: Any
    noise_rate: Any


@dataclass(frozen=True)
class Interpolant(GaussianProcess):
    r"""A path with a noise scale: the process of one component of an :class:`InterpolantSystem`.

    Parameters
    ----------
    path
        :class:`Linear`, :class:`Trigonometric`, :class:`EncodingDecoding`, :class:`Mirror` or
        :class:`OneSided`.
    gamma
        :class:`Brownian` (None), :class:`BSquared`, :class:`SinSquared`, :class:`Sigmoid`,
        :class:`Constant` or :class:`NoNoise`; a one-sided path brings its own.
    gamma_min
        Noise scale below which the score :math:`-E[z|x_t]/\gamma` is not divided out: there it is
        damped to :math:`-E[z|x_t]/\gamma_{min}`, and samplers add no noise.
    t_min, t_max
        Interval that training and sampling keep to; rates may be infinite at 0 and 1.

    Raises
    ------
    StructDiffError
        If path and gamma do not go together; and from every reading that only a Gaussian process
        has (``alpha``, ``sigma``, ``half_log_snr``, ``drift`` ...), unless the path is one-sided.
    """

    path: Path = field(default_factory=Linear)
    gamma: Gamma | None = None
    gamma_min: float = 1e-2
    t_min: float = 1e-3
    t_max: float = 0.999

    def __post_init__(self) -> None:
        if isinstance(self.path, OneSided):
            own = ProcessNoise(self.path.process)
            if self.gamma not in (None, own):
                raise StructDiffError(
                    f"a one-sided interpolant has the noise of its process, got {self.gamma}: "
                    "leave gamma out"
                )
            object.__setattr__(self, "gamma", own)
        elif self.gamma is None:
            object.__setattr__(self, "gamma", Brownian())
        middle = float(self._gamma.value(0.5))
        if middle == 0 and (self.path.needs_noise or isinstance(self.path, Mirror)):
            raise StructDiffError(
                f"{self.path} needs noise in the middle, got {self.gamma}: use SinSquared()"
            )
        if self.path.keeps_variance and not middle < 1:
            raise StructDiffError(
                f"{self.path} keeps the variance at 1, so gamma must stay below 1: "
                f"{self.gamma} reaches {middle:.3g} at t = 1/2"
            )

    @classmethod
    def one_sided(cls, process: GaussianProcess) -> Interpolant:
        """A Gaussian process as an interpolant, on the process's own interval of time."""
        return cls(OneSided(process), t_min=process.t_min, t_max=process.t_max)

    @property
    def _gamma(self) -> Gamma:
        assert self.gamma is not None
        return self.gamma

    @property
    def noisy(self) -> bool:
        """Whether there is noise, and so a score."""
        return not isinstance(self.gamma, NoNoise)

    def scales(self, t: Tensor | float) -> Scales:
        """Scales of data, base and noise and their rates at t, each of the shape of t."""
        t, gamma = _double(t), self._gamma
        noise, noise_rate = gamma.value(t), gamma.rate(t)
        (data, base), (data_rate, base_rate) = self.path.scales(t), self.path.rates(t)
        if self.path.keeps_variance and self.noisy:
            room = torch.sqrt(1 - noise**2)
            shrinking = -noise * noise_rate / room
            data_rate, base_rate = (
                room * data_rate + shrinking * data,
                room * base_rate + shrinking * base,
            )
            data, base = room * data, room * base
        return Scales(data, base, noise, data_rate, base_rate, noise_rate)

    def data_scale(self, t: Tensor | float) -> Tensor:
        """Scale d of the data."""
        return self.scales(t).data

    def base_scale(self, t: Tensor | float) -> Tensor:
        """Scale c of the base."""
        return self.scales(t).base

    def noise_scale(self, t: Tensor | float) -> Tensor:
        r"""Scale :math:`\gamma` of the noise."""
        return self._gamma.value(t)

    def level(self, t: Tensor | float) -> Tensor:
        r"""What networks see of the time: :math:`\ln((1-t)/t)`, one-sided the half log-SNR.

        The two agree on the straight line to noise.
        """
        if isinstance(self.path, OneSided):
            return self.path.process.half_log_snr(t)
        return -torch.logit(_double(t))

    def epsilon(self, t: Tensor | float) -> Tensor:
        r"""A natural strength of the SDE's noise: :math:`\gamma^2/(2t(1-t))`, one-sided half g^2.

        For the Brownian gamma it is a/2, with which the SDE of a Schroedinger bridge is the bridge;
        for the others it vanishes at both ends.
        """
        if isinstance(self.path, OneSided):
            return self.path.process.diffusion_squared(t) / 2
        t = _double(t)
        return self.noise_scale(t) ** 2 / (2 * t * (1 - t))

    # What only a Gaussian process has; a one-sided interpolant is one.
    def _gaussian(self, what: str) -> GaussianProcess:
        if isinstance(self.path, OneSided):
            return self.path.process
        _not_gaussian(f"{type(self.path).__name__.lower()} interpolant", what)

    def log_alpha(self, t: Tensor | float) -> Tensor:
        return self._gaussian("alpha").log_alpha(t)

    def alpha(self, t: Tensor | float) -> Tensor:
        return self._gaussian("alpha").alpha(t)

    def alpha_derivative(self, t: Tensor | float) -> Tensor:
        return self._gaussian("alpha").alpha_derivative(t)

    def sigma(self, t: Tensor | float) -> Tensor:
        return self._gaussian("sigma").sigma(t)

    def sigma_derivative(self, t: Tensor | float) -> Tensor:
        return self._gaussian("sigma").sigma_derivative(t)

    def half_log_snr(self, t: Tensor | float) -> Tensor:
        return self._gaussian("log-SNR").half_log_snr(t)

    def time_at(self, half_log_snr: Tensor | float) -> Tensor:
        return self._gaussian("log-SNR").time_at(half_log_snr)

    def drift(self, t: Tensor | float) -> Tensor:
        return self._gaussian("linear drift").drift(t)

    def diffusion_squared(self, t: Tensor | float) -> Tensor:
        return self._gaussian("diffusion coefficient").diffusion_squared(t)

    def discrete_step(self, t: float, dt: float) -> tuple[float, float]:
        return self._gaussian("chain").discrete_step(t, dt)

    def chain_step(self, t: float, links: int) -> tuple[float, float]:
        return self._gaussian("chain").chain_step(t, links)

    def chain_alpha(self, t: float, links: int) -> float:
        return self._gaussian("chain").chain_alpha(t, links)

    def prior_std(self) -> float:
        return self._gaussian("prior").prior_std()


def _not_gaussian(who: str, what: str) -> NoReturn:
    raise StructDiffError(
        f"a {who} has no {what}: its base is not noise. Sample it with 'flow' or "
        "'interpolant-sde', from a state that InterpolantSystem.start or .prior gives"
    )


class InterpolantSystem(System):
    r"""A system some or all of whose components are bridges between two densities.

    Parameters
    ----------
    processes
        :class:`Interpolant` per component, or one for a plain tensor. Gaussian processes stand for
        their one-sided interpolants.
    spaces, clocks
        See :class:`~structdiff.processes.system.System`.
    base
        What the two-sided components have at time 1: "normal" noise in their spaces, a draw
        ``(like, source) -> State`` of values, or "data": samples that the caller hands to the
        objective and to the sampler.
    """

    def __init__(
        self,
        processes: Mapping[str, GaussianProcess] | GaussianProcess,
        spaces: Mapping[str, Space] | None = None,
        clocks: Mapping[str, Clock] | None = None,
        base: Base = "normal",
    ) -> None:
        if isinstance(processes, GaussianProcess):
            processes = {TENSOR: processes}
        if not callable(base) and base not in ("normal", "data"):
            raise StructDiffError(f"base must be 'normal', 'data' or a function, got {base!r}")
        self.interpolants = {
            k: p if isinstance(p, Interpolant) else Interpolant.one_sided(p)
            for k, p in processes.items()
        }
        super().__init__(self.interpolants, spaces, clocks)
        self.base = base

    def with_clocks(self, clocks: Mapping[str, Clock]) -> InterpolantSystem:
        return InterpolantSystem(
            self.interpolants, self.spaces, {**self.clocks, **clocks}, self.base
        )

    def scales(self, t: Time) -> dict[str, Scales]:
        """Scales of data, base and noise and their rates in own time, per component."""
        times = self.times(t)
        return {k: p.scales(times[k]) for k, p in self.interpolants.items()}

    def level(self, t: Time) -> dict[str, Tensor]:
        """What networks see of the time, per component; see :meth:`Interpolant.level`."""
        times = self.times(t)
        return {k: p.level(times[k]) for k, p in self.interpolants.items()}

    def draw_base(self, like: State, source: NoiseSource | int | None = None) -> State:
        """Draw the base x1 of every component, in the coordinates that the processes run on.

        Raises
        ------
        StructDiffError
            If the base is data, which only the caller has.
        """
        drawn = as_source(source)
        if callable(self.base):
            return self.encode(self.check(self.base(like, drawn)))
        if self.base == "data" and any(p.path.two_sided for p in self.interpolants.values()):
            raise StructDiffError(
                "the base of this system is data: hand its samples to the objective (base=...), "
                "and to the sampler by system.start(samples)"
            )
        return self.noise(like, drawn)

    def interpolate(self, x0: State, x1: State, t: Time, z: State) -> State:
        r""":math:`x_t = d\,x_0 + c\,x_1 + \gamma z`, for states in the processes' coordinates."""
        scales = self.scales(t)
        return (
            x0 * {k: s.data for k, s in scales.items()}
            + x1 * {k: s.base for k, s in scales.items()}
            + z * {k: s.noise for k, s in scales.items()}
        )

    def path_velocity(self, x0: State, x1: State, t: Time) -> State:
        r""":math:`\partial_t I = \dot d\,x_0 + \dot c\,x_1`, without the noise's part."""
        scales = self.scales(t)
        return x0 * {k: s.data_rate for k, s in scales.items()} + x1 * {
            k: s.base_rate for k, s in scales.items()
        }

    def start(self, x1: State, source: NoiseSource | int | None = None) -> State:
        r"""The state at t_max that sampling starts from: :math:`c\,x_1 + \gamma z` at t_max.

        Parameters
        ----------
        x1
            Base, as values. A mirror component starts from data, and a frozen one is kept. For
            one-sided components the state is noise, whatever is given.
        source
            Where the noise comes from.
        """
        x1 = self.encode(self.check(x1))
        noise, scales = self.noise(x1, source), self.scales(self.t_max)
        return State._trusted(
            {k: self._started(k, v, noise[k], scales[k]) for k, v in x1.items()}, x1.masks
        )

    def _started(self, name: str, x1: Tensor, noise: Tensor, scales: Scales) -> Tensor:
        if self.frozen(name):
            return x1
        path = self.interpolants[name].path
        if isinstance(path, OneSided):
            return noise * path.process.prior_std()
        scale = scales.base if path.two_sided else scales.data
        return x1 * float(scale) + noise * float(scales.noise)

    def prior(self, like: State, source: NoiseSource | int | None = None) -> State:
        """Draw the base and start from it; frozen components keep those of ``like``.

        Raises
        ------
        StructDiffError
            If the base is data, or a component is a mirror, whose base is its data.
        """
        mirrors = [k for k in self.moving if isinstance(self.interpolants[k].path, Mirror)]
        if mirrors and not callable(self.base):
            _not_gaussian(f"mirror interpolant ({', '.join(mirrors)})", "prior but the data")
        drawn = as_source(source)
        x1 = self.decode(self.draw_base(like, drawn))
        kept = {k: like[k] for k in like if self.frozen(k)}
        return self.start(x1.replace(**kept) if kept else x1, drawn)
