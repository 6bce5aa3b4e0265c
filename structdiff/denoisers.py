r"""Denoisers: :math:`E[x_0 \mid x_t]`, the one contract everything else is written against.

A network may predict any of five things; with :math:`x = \alpha x_0 + \sigma \epsilon` they are exact
linear functions of one another:

==========  =============================================  ==========================================
prediction  x0                                             noise
==========  =============================================  ==========================================
noise       (x - sigma F) / alpha                          F
score       (x + sigma^2 F) / alpha                        -sigma F
data        F                                              (x - alpha F) / sigma
velocity    (sigma F - dsigma x)/(sigma dalpha - alpha dsigma)  (dalpha x - alpha F)/(dalpha sigma - alpha dsigma)
edm         c_skip x + c_out F(c_in x)                     from x0
==========  =============================================  ==========================================

Guidance is a denoiser that wraps a denoiser: override ``forward`` and every sampler follows.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Literal, TypeAlias, get_args

import torch
from torch import Tensor, nn

from structdiff.errors import StructDiffError
from structdiff.processes.system import System, Time
from structdiff.state import State, as_state

Prediction: TypeAlias = Literal["noise", "score", "data", "velocity", "edm"]
Scales: TypeAlias = dict[str, dict[str, Tensor]]


class BaseDenoiser(nn.Module, ABC):
    """Anything that estimates E[x0 | xt] under a system.

    Parameters
    ----------
    system
        The forward processes.
    """

    def __init__(self, system: System) -> None:
        super().__init__()
        self.system = system

    @abstractmethod
    def forward(self, x: State | Tensor, t: Time, condition: Any = None) -> State:
        """E[x0 | xt = x]: state, shared time () or (B,) or times by name -> State."""

    def noise(self, x: State | Tensor, t: Time, condition: Any = None) -> State:
        r""":math:`E[\epsilon \mid x_t]`, one network call."""
        x, times = as_state(x), self.system.times(t)
        data = self(x, times, condition)
        return (x - data * self.system.alpha(times)) / self.system.sigma(times)

    def score(self, x: State | Tensor, t: Time, condition: Any = None) -> State:
        r""":math:`\nabla \log p_t(x) = -E[\epsilon \mid x_t]/\sigma`, one network call."""
        times = self.system.times(t)
        return -self.noise(x, times, condition) / self.system.sigma(times)

    def velocity(self, x: State | Tensor, t: Time, condition: Any = None) -> State:
        r"""Probability-flow velocity :math:`\dot\alpha x_0 + \dot\sigma \epsilon` in own times."""
        x, times = as_state(x), self.system.times(t)
        data = self(x, times, condition)
        noise = (x - data * self.system.alpha(times)) / self.system.sigma(times)
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
        One of noise, score, data, velocity, edm; or one per component.
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

    def network_inputs(self, x: State, times: dict[str, Tensor]) -> tuple[State, dict[str, Tensor]]:
        """What the network sees: the scaled state and the half log-SNR (B,) per component."""
        system = self.system
        scaled = [k for k, kind in self.prediction.items() if self.scale_input or kind == "edm"]
        if scaled:
            alpha, sigma = system.alpha(times), system.sigma(times)
            factors: dict[str, Tensor | float] = dict.fromkeys(x, 1.0)
            factors |= {k: self._edm_scales(k, alpha[k], sigma[k])[0] for k in scaled}
            x = x * factors
        log_snr = {
            k: v.to(x.device, x.dtype).expand(x.batch_size)
            for k, v in system.half_log_snr(times).items()
        }
        return x, log_snr

    def _call(self, x: State, times: dict[str, Tensor], condition: Any) -> State:
        """The network on its scaled input; its output in the state's own dtype."""
        out: State = self.network(*self.network_inputs(x, times), condition)
        return out.map(lambda v, like: v.to(like.dtype), x)

    def _to_data(self, out: State, x: State, times: dict[str, Tensor]) -> State:
        alpha, sigma = self.system.alpha(times), self.system.sigma(times)
        on_x: dict[str, Tensor | float] = {}
        on_out: dict[str, Tensor | float] = {}
        for k, kind in self.prediction.items():
            a, s = alpha[k], sigma[k]
            if kind == "data":
                on_x[k], on_out[k] = 0.0, 1.0
            elif kind == "noise":
                on_x[k], on_out[k] = 1 / a, -s / a
            elif kind == "score":
                on_x[k], on_out[k] = 1 / a, s**2 / a
            elif kind == "velocity":
                da, ds = self._derivatives(k, times)
                on_x[k], on_out[k] = -ds / (s * da - a * ds), s / (s * da - a * ds)
            else:
                _, on_x[k], on_out[k] = self._edm_scales(k, a, s)
        if all(kind == "data" for kind in self.prediction.values()):
            return out
        return x * on_x + out * on_out

    def _derivatives(self, name: str, times: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        process = self.system.processes[name]
        return process.alpha_derivative(times[name]), process.sigma_derivative(times[name])

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
        x, times = as_state(x), self.system.times(t)
        return self._to_data(self._call(x, times, condition), x, times)

    def noise(self, x: State | Tensor, t: Time, condition: Any = None) -> State:
        r""":math:`E[\epsilon \mid x_t]`, one network call, no detour where the network gives it."""
        x, times = as_state(x), self.system.times(t)
        out = self._call(x, times, condition)
        alpha, sigma = self.system.alpha(times), self.system.sigma(times)
        on_x: dict[str, Tensor | float] = {}
        on_out: dict[str, Tensor | float] = {}
        for k, kind in self.prediction.items():
            a, s = alpha[k], sigma[k]
            if kind == "noise":
                on_x[k], on_out[k] = 0.0, 1.0
            elif kind == "score":
                on_x[k], on_out[k] = 0.0, -s
            elif kind == "data":
                on_x[k], on_out[k] = 1 / s, -a / s
            elif kind == "velocity":
                da, ds = self._derivatives(k, times)
                on_x[k], on_out[k] = da / (da * s - a * ds), -a / (da * s - a * ds)
            else:
                _, skip, scale = self._edm_scales(k, a, s)
                on_x[k], on_out[k] = (1 - a * skip) / s, -a * scale / s
        return x * on_x + out * on_out

    def extra_repr(self) -> str:
        return f"prediction={self.prediction}, system={self.system}"
