r"""Denoisers: :math:`E[x_0 \mid x_t]`, the one contract everything else is written against.

A network may predict any of six things; with :math:`x = \alpha x_0 + \sigma \epsilon` they are
exact linear functions of one another (:math:`w = \sigma \dot\alpha - \alpha \dot\sigma`,
:math:`n = \alpha^2 + \sigma^2`):

==========  =====================================  =====================================
prediction  x0                                     noise
==========  =====================================  =====================================
noise       (x - sigma F) / alpha                  F
score       (x + sigma^2 F) / alpha                -sigma F
data        F                                      (x - alpha F) / sigma
velocity    (sigma F - dsigma x) / w               (dalpha x - alpha F) / w
v           (alpha x - sigma F) / n                (sigma x + alpha F) / n
edm         c_skip x + c_out F(c_in x)             from x0
==========  =====================================  =====================================

States are centred where a process has a companion in its mean
(:mod:`structdiff.processes.gaussian`): the table holds as it stands, and only the network's input
is un-centred, before any scaling.

Guidance is a denoiser that wraps a denoiser: override ``forward`` and every sampler follows.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import torch
from torch import Tensor, nn

from structdiff.errors import StructDiffError
from structdiff.processes.system import System, Time
from structdiff.state import State, as_state, expand_right

Prediction: TypeAlias = Literal["noise", "score", "data", "velocity", "v", "edm"]
_Factors: TypeAlias = "tuple[Tensor | float, Tensor | float]"


class _Reading(NamedTuple):
    """How a network is called at one time and how its output is read, per component."""

    shift: Mapping[str, Tensor | float]
    """Coefficient of the companion that the network sees in its input; mostly empty."""
    scale: Mapping[str, Tensor | float]
    """Factor on the network's input; components without one are handed over as they are."""
    log_snr: Mapping[str, Tensor | float]
    on_x: Mapping[str, Tensor | float]
    on_out: Mapping[str, Tensor | float]


def _times(x: Tensor, factor: Tensor | float) -> Tensor:
    return x * factor if isinstance(factor, float) else x * expand_right(factor, x)


def _blend(x: Tensor, out: Tensor, on_x: Tensor | float, on_out: Tensor | float) -> Tensor:
    """``on_x * x + on_out * out``, without the terms that are not there."""
    value = out if isinstance(on_out, float) and on_out == 1 else _times(out, on_out)
    if isinstance(on_x, float):
        return value if on_x == 0 else torch.add(value, x, alpha=on_x)
    return value + _times(x, on_x)


def _inputs(system: System, x: State, reading: _Reading) -> tuple[State, dict[str, Tensor]]:
    """Un-centred, scaled state and half log-SNR (B,) per component."""
    if reading.shift:
        x = system.add_shift(x, reading.shift)
    if reading.scale:
        scaled = {k: _times(x[k], factor) for k, factor in reading.scale.items()}
        x = State._trusted({**x, **scaled}, x.masks)
    b, like = x.batch_size, x.first
    return x, {
        k: like.new_full((b,), v) if isinstance(v, float) else v.to(x.device, x.dtype).expand(b)
        for k, v in reading.log_snr.items()
    }


class Pair(NamedTuple):
    """Data and noise predicted by one network call."""

    data: State
    noise: State


class BaseDenoiser(nn.Module, ABC):
    """Anything that estimates E[x0 | xt] under a system.

    Parameters
    ----------
    system
        The forward processes.
    """

    consistent: bool = True
    """Whether data and noise satisfy x = alpha x0 + sigma noise, so that one implies the other."""

    def __init__(self, system: System) -> None:
        super().__init__()
        self.system = system

    @abstractmethod
    def forward(self, x: State | Tensor, t: Time, condition: Any = None) -> State:
        """E[x0 | xt = x]: state, shared time () or (B,) or times by name -> State."""

    def noise(self, x: State | Tensor, t: Time, condition: Any = None) -> State:
        r""":math:`E[\epsilon \mid x_t]`, one network call."""
        return self.pair(x, t, condition).noise

    def pair(self, x: State | Tensor, t: Time, condition: Any = None) -> Pair:
        r""":math:`E[x_0 \mid x_t]` and :math:`E[\epsilon \mid x_t]`, one network call.

        The two satisfy :math:`x_t = \alpha x_0 + \sigma\epsilon`, unless the denoiser's network
        predicts both (:attr:`consistent`).
        """
        x, times = as_state(x), self.system.times(t)
        data = self(x, times, condition)
        return Pair(data, (x - data * self.system.alpha(times)) / self.system.sigma(times))

    def score(self, x: State | Tensor, t: Time, condition: Any = None) -> State:
        r""":math:`\nabla \log p_t(x) = -E[\epsilon \mid x_t]/\sigma`, one network call."""
        times = self.system.times(t)
        return -self.noise(x, times, condition) / self.system.sigma(times)

    def velocity(self, x: State | Tensor, t: Time, condition: Any = None) -> State:
        r"""Probability-flow velocity :math:`\dot\alpha x_0 + \dot\sigma \epsilon` in own times."""
        times = self.system.times(t)
        data, noise = self.pair(x, times, condition)
        return data * self.system.alpha_derivative(times) + noise * self.system.sigma_derivative(
            times
        )


class Denoiser(BaseDenoiser):
    r"""A network, the system it was trained under, and what it predicts.

    Parameters
    ----------
    network
        Module ``(State, log_snr, condition) -> State``; ``log_snr`` maps each component to its
        half log-SNR (B,), so that a trained network serves any grid and any sampler.
    system
        The forward processes.
    prediction
        One of noise, score, data, velocity, v, edm; or one per component.
    data_std
        Standard deviation of the data per component (or one number), for ``edm`` preconditioning
        and for ``scale_input``.
    scale_input
        Divide the network's input by :math:`\sqrt{\alpha^2 s^2 + \sigma^2}` for every prediction
        type. Its scale then depends on the log-SNR alone, so a network trained under one process
        can be sampled under any other.

    Raises
    ------
    StructDiffError
        If a prediction type is unknown.
    """

    def __init__(
        self,
        network: nn.Module,
        system: System,
        prediction: Prediction | Mapping[str, Prediction] = "data",
        data_std: float | Mapping[str, float] = 1.0,
        scale_input: bool = False,
    ) -> None:
        super().__init__(system)
        self.network = network
        self.scale_input = scale_input
        self._remembered: dict[tuple[str, float], _Reading] = {}
        self._remembered_system = system
        names = list(system.processes)
        self.prediction: dict[str, Prediction] = (
            {k: prediction for k in names} if isinstance(prediction, str) else dict(prediction)
        )
        self.data_std = (
            dict(data_std) if isinstance(data_std, Mapping) else dict.fromkeys(names, data_std)
        )
        for name in names:
            kind = self.prediction.get(name)
            if kind not in get_args(Prediction):
                raise StructDiffError(
                    f"unknown prediction {kind!r} for component {name!r}: "
                    f"choose one of {', '.join(get_args(Prediction))}"
                )

    def _edm_scales(self, name: str, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """c_in, c_skip, c_out of Karras et al. 2022 (table 1), for any alpha and sigma."""
        std = self.data_std[name]
        total = torch.sqrt(alpha**2 * std**2 + sigma**2)
        return 1 / total, alpha * std**2 / total**2, sigma * std / total

    def _on_data(self, name: str, time: Tensor, a: Tensor, s: Tensor) -> _Factors:
        """E[x0] = first x + second F."""
        kind = self.prediction[name]
        if kind == "data":
            return 0.0, 1.0
        if kind == "noise":
            return 1 / a, -s / a
        if kind == "score":
            return 1 / a, s**2 / a
        if kind == "velocity":
            da, q = self._rates(name, time, s)
            return -q / (s**2 * da - a * q), s**2 / (s**2 * da - a * q)
        if kind == "v":
            return a / (a**2 + s**2), -s / (a**2 + s**2)
        _, skip, scale = self._edm_scales(name, a, s)
        return skip, scale

    def _on_noise(self, name: str, time: Tensor, a: Tensor, s: Tensor) -> _Factors:
        """E[noise] = first x + second F, without a detour over the data."""
        kind = self.prediction[name]
        if kind == "data":
            return 1 / s, -a / s
        if kind == "noise":
            return 0.0, 1.0
        if kind == "score":
            return 0.0, -s
        if kind == "velocity":
            da, q = self._rates(name, time, s)
            return s * da / (s**2 * da - a * q), -a * s / (s**2 * da - a * q)
        if kind == "v":
            return s / (a**2 + s**2), a / (a**2 + s**2)
        std = self.data_std[name]
        total = a**2 * std**2 + s**2
        # 1 - alpha c_skip = sigma^2 / total: no cancellation where sigma is small.
        return s / total, -a * std / torch.sqrt(total)

    def _on_score(self, name: str, time: Tensor, a: Tensor, s: Tensor) -> _Factors:
        if self.prediction[name] == "score":
            return 0.0, 1.0
        on_x, on_out = self._on_noise(name, time, a, s)
        return -on_x / s, -on_out / s

    def _rates(self, name: str, time: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        """Rate of alpha, and of sigma^2/2, which stays finite where sigma is 0."""
        process = self.system.processes[name]
        half = process.diffusion_squared(time) / 2 + process.drift(time) * s**2
        return process.alpha_derivative(time), half

    def _reading(self, output: str, t: Time) -> _Reading:
        """How the network is called at t and how ``output`` is read from what it returns."""
        system, times = self.system, self.system.times(t)
        alpha, sigma = system.alpha(times), system.sigma(times)
        rule = {"data": self._on_data, "noise": self._on_noise, "score": self._on_score}[output]
        pairs = {k: rule(k, times[k], alpha[k], sigma[k]) for k in system.processes}
        scale: dict[str, Tensor | float] = {
            k: self._edm_scales(k, alpha[k], sigma[k])[0]
            for k, kind in self.prediction.items()
            if self.scale_input or kind == "edm"
        }
        return _Reading(
            system.shift(times),
            scale,
            dict(system.half_log_snr(times)),
            {k: pair[0] for k, pair in pairs.items()},
            {k: pair[1] for k, pair in pairs.items()},
        )

    def _numbers(self, output: str, t: float) -> _Reading:
        """The same as Python numbers, remembered: samplers come back to the times of a grid."""
        if self._remembered_system is not self.system or len(self._remembered) > 10_000:
            self._remembered.clear()
            self._remembered_system = self.system
        reading = self._remembered.get((output, t))
        if reading is None:
            exact = self._reading(output, t)
            reading = _Reading(*({k: float(v) for k, v in part.items()} for part in exact))
            self._remembered[output, t] = reading
        return reading

    def network_inputs(self, x: State, times: dict[str, Tensor]) -> tuple[State, dict[str, Tensor]]:
        """What the network sees: un-centred and scaled state, half log-SNR (B,) per component."""
        return _inputs(self.system, x, self._reading("data", times))

    def _read(self, output: str, x: State | Tensor, t: Time, condition: Any) -> State:
        x = as_state(x)
        reading = self._numbers(output, t) if isinstance(t, float) else self._reading(output, t)
        out: State = self.network(*_inputs(self.system, x, reading), condition)
        return State._trusted(
            {
                k: _blend(v, out[k].to(v.dtype), reading.on_x[k], reading.on_out[k])
                for k, v in x.items()
            },
            x.masks,
        )

    def forward(self, x: State | Tensor, t: Time, condition: Any = None) -> State:
        """E[x0 | xt = x]: one network call.

        Parameters
        ----------
        x
            Noisy state, components (B, ...).
        t
            Shared time () or (B,), or the components' own times by name.
        condition
            Passed to the network.
        """
        return self._read("data", x, t, condition)

    def noise(self, x: State | Tensor, t: Time, condition: Any = None) -> State:
        r""":math:`E[\epsilon \mid x_t]`, one network call, no detour where the network gives it."""
        return self._read("noise", x, t, condition)

    def score(self, x: State | Tensor, t: Time, condition: Any = None) -> State:
        r""":math:`\nabla \log p_t(x)`, one network call, no detour where the network gives it."""
        return self._read("score", x, t, condition)

    def extra_repr(self) -> str:
        return f"prediction={self.prediction}, system={self.system}"
