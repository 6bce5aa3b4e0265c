r"""Denoisers that are flows: models of stochastic interpolants.

With conditional expectations given :math:`x_t = d\,x_0 + c\,x_1 + \gamma z`, in package time (the
data at 0; Albergo, Boffi and Vanden-Eijnden 2023 count the other way, so their b is our -b),

.. math:: v = E[\dot d x_0 + \dot c x_1], \quad \eta = E[z], \quad b = v + \dot\gamma\eta, \quad
          s = \nabla\log p_t = -\eta/\gamma .

:math:`dx = b\,dt` carries the densities both ways, and for any :math:`\varepsilon(t) \ge 0`,
chosen after training, so do the SDEs :math:`dx = (b + \varepsilon s)\,dt + \sqrt{2\varepsilon}\,dw`
with time and :math:`dx = (b - \varepsilon s)\,dt + \sqrt{2\varepsilon}\,d\bar w` against it.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias, get_args

import torch
from torch import Tensor, nn

from structdiff.denoisers import BaseDenoiser
from structdiff.errors import StructDiffError
from structdiff.processes.interpolant import Interpolant, InterpolantSystem, Scales
from structdiff.processes.paths import Brownian, EncodingDecoding, Linear
from structdiff.processes.system import Time
from structdiff.state import State, as_state, expand_right

Head: TypeAlias = Literal["b", "v", "eta", "s"]
"""What a network of a flow predicts; bounded where the interpolant is: v and eta."""


def _times(x: Tensor, factor: Any) -> Tensor:
    return x * expand_right(factor, x) if isinstance(factor, Tensor) else x * factor


class Fields:
    """Every field of a flow at one state and time, from the heads of one network call.

    Parameters
    ----------
    x
        The state.
    interpolants
        Process per component.
    scales
        Scales per component at the time, tensors or Python numbers.
    heads
        What the network returned, by the name of its head.
    """

    def __init__(
        self,
        x: State,
        interpolants: Mapping[str, Interpolant],
        scales: Mapping[str, Scales],
        heads: Mapping[Head, State],
    ) -> None:
        self._x, self._interpolants, self._scales = x, interpolants, scales
        self._heads = heads

    def _state(self, rule: Any) -> State:
        return State._trusted({k: rule(k) for k in self._x}, self._x.masks)

    def _missing(self, name: str, what: str) -> StructDiffError:
        return StructDiffError(
            f"{what} of component {name!r} does not follow from the heads {list(self._heads)}: "
            "train the flow with the head 'eta' beside 'b' or 'v' (to sample without, choose "
            "'flow' with denoise=False)"
        )

    def _eta(self, k: str) -> Tensor:
        p, s = self._interpolants[k], self._scales[k]
        if not p.noisy:
            raise StructDiffError(
                f"component {k!r} is interpolated without noise, so it has no score: sample it "
                "with 'flow' (or epsilon = 0), or choose another gamma and train again"
            )
        if "eta" in self._heads:
            return self._heads["eta"][k]
        if "s" in self._heads:
            return _times(self._heads["s"][k], -s.noise)
        if "b" in self._heads and not p.path.two_sided:
            # x = d x0 + gamma z and b = d' x0 + gamma' z: two equations for two unknowns.
            whole = s.data * s.noise_rate - s.data_rate * s.noise
            b, x = self._heads["b"][k], self._x[k]
            return _times(b, s.data / whole) - _times(x, s.data_rate / whole)
        raise self._missing(k, "the noise")

    def _velocity(self, k: str, epsilon: float | Tensor = 0.0) -> Tensor:
        """B + epsilon s."""
        p, s = self._interpolants[k], self._scales[k]
        driven = not (isinstance(epsilon, float) and epsilon == 0)
        damped = _damped(s.noise, p.gamma_min)
        if "b" in self._heads:
            b = self._heads["b"][k]
            return b - _times(self._eta(k), epsilon / damped) if driven else b
        factor = s.noise_rate - epsilon / damped if driven else s.noise_rate
        if "v" in self._heads:
            v = self._heads["v"][k]
            return v + _times(self._eta(k), factor) if p.noisy or driven else v
        if p.path.two_sided:
            raise self._missing(k, "the velocity")
        return self._mean_velocity(k) + _times(self._eta(k), factor)

    def _mean_velocity(self, k: str) -> Tensor:
        """V."""
        p, s = self._interpolants[k], self._scales[k]
        if "v" in self._heads:
            return self._heads["v"][k]
        if not p.path.two_sided:
            return _times(self._data(k), s.data_rate)
        b = self._velocity(k)
        return b - _times(self._eta(k), s.noise_rate) if p.noisy else b

    def _data(self, k: str) -> Tensor:
        p, s = self._interpolants[k], self._scales[k]
        rest = self._x[k] - _times(self._eta(k), s.noise) if p.noisy else self._x[k]
        if isinstance(p.path, EncodingDecoding):
            if bool(torch.as_tensor(s.data <= 0).any()):
                raise StructDiffError(
                    f"on the base's half of its way (t >= 1/2) component {k!r} holds nothing of "
                    "the data: go to t < 1/2 with 'flow' or 'interpolant-sde' first"
                )
            return _times(rest, 1 / s.data)
        if not p.path.two_sided:
            return _times(rest, 1 / s.data)
        # d x0 + c x1 = rest and d' x0 + c' x1 = v.
        whole = s.base_rate * s.data - s.base * s.data_rate
        v = self._mean_velocity(k)
        return _times(rest, s.base_rate / whole) - _times(v, s.base / whole)

    @property
    def velocity(self) -> State:
        """The velocity b of the flow."""
        return self._state(self._velocity)

    @property
    def mean_velocity(self) -> State:
        """The velocity v of data and base alone."""
        return self._state(self._mean_velocity)

    @property
    def noise(self) -> State:
        r"""The noise :math:`\eta = E[z|x_t]`."""
        return self._state(self._eta)

    @property
    def score(self) -> State:
        """The score, damped where the noise scale is below the interpolant's ``gamma_min``."""
        return self._state(
            lambda k: _times(
                self._eta(k), -1 / _damped(self._scales[k].noise, self._interpolants[k].gamma_min)
            )
        )

    @property
    def data(self) -> State:
        """E[x0 | xt]."""
        return self._state(self._data)

    def drift(self, epsilon: Mapping[str, float]) -> State:
        """B + epsilon s; see :meth:`BaseFlow.drift`."""
        return self._state(lambda k: self._velocity(k, float(epsilon.get(k, 0.0))))


def _damped(noise: Any, least: float) -> Any:
    return noise.clamp(min=least) if isinstance(noise, Tensor) else max(noise, least)


class BaseFlow(BaseDenoiser):
    """Anything that knows the velocity and the noise of an interpolant system.

    Parameters
    ----------
    system
        The interpolants.
    """

    system: InterpolantSystem

    def __init__(self, system: InterpolantSystem) -> None:
        if not isinstance(system, InterpolantSystem):
            raise StructDiffError(
                f"a flow needs an InterpolantSystem, got {type(system).__name__}: wrap the "
                "processes in InterpolantSystem, or use Denoiser with prediction='velocity'"
            )
        super().__init__(system)
        self._remembered: dict[float, dict[str, Scales]] = {}
        self._remembered_system = system

    @abstractmethod
    def heads(self, x: State, t: Time, condition: Any = None) -> dict[Head, State]:
        """What the model predicts at x, by the name of its head: one evaluation."""

    def fields(self, x: State | Tensor, t: Time, condition: Any = None) -> Fields:
        """Every field at x and t, from one evaluation.

        Parameters
        ----------
        x
            State, components (B, ...).
        t
            Shared time () or (B,), or the components' own times by name.
        condition
            Passed to the network.
        """
        x = as_state(x)
        return Fields(x, self.system.interpolants, self._scales(t), self.heads(x, t, condition))

    def _scales(self, t: Time) -> dict[str, Scales]:
        """Scales at t; as Python numbers, remembered, where samplers come back to a grid."""
        if not isinstance(t, float):
            return self.system.scales(t)
        if self._remembered_system is not self.system or len(self._remembered) > 10_000:
            self._remembered.clear()
            self._remembered_system = self.system
        if t not in self._remembered:
            exact = self.system.scales(t)
            self._remembered[t] = {k: Scales(*map(float, s)) for k, s in exact.items()}
        return self._remembered[t]

    def forward(self, x: State | Tensor, t: Time, condition: Any = None) -> State:
        """E[x0 | xt = x], one evaluation.

        Raises
        ------
        StructDiffError
            If it is not determined: on the base's half of an encoding-decoding interpolant, or
            without the noise head of a noisy one.
        """
        return self.fields(x, t, condition).data

    def noise(self, x: State | Tensor, t: Time, condition: Any = None) -> State:
        r""":math:`\eta = E[z \mid x_t]`, one evaluation."""
        return self.fields(x, t, condition).noise

    def score(self, x: State | Tensor, t: Time, condition: Any = None) -> State:
        r""":math:`\nabla\log p_t = -\eta/\gamma`, one evaluation; damped below ``gamma_min``."""
        return self.fields(x, t, condition).score

    def velocity(self, x: State | Tensor, t: Time, condition: Any = None) -> State:
        """The velocity b of the flow in own times, one evaluation."""
        return self.fields(x, t, condition).velocity

    def drift(
        self,
        x: State | Tensor,
        t: Time,
        epsilon: float | Mapping[str, float],
        condition: Any = None,
    ) -> State:
        r""":math:`b + \varepsilon s`, one evaluation.

        Parameters
        ----------
        x, t, condition
            See :meth:`fields`.
        epsilon
            0 is the flow; a positive number the drift of the SDE that runs with time, from data to
            base; a negative one (minus the strength) of the SDE that runs against it, to the data.
            One number, or one per component.
        """
        strengths = (
            epsilon
            if isinstance(epsilon, Mapping)
            else dict.fromkeys(self.system.processes, epsilon)
        )
        return self.fields(x, t, condition).drift(strengths)


class Heads(nn.Module):
    """Several networks as one with several heads.

    Parameters
    ----------
    networks
        Modules ``(State, level, condition) -> State``, in the order of the heads.
    """

    def __init__(self, *networks: nn.Module) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)

    def forward(self, x: State, level: dict[str, Tensor], condition: Any) -> tuple[State, ...]:
        """The networks' outputs, in order."""
        return tuple(network(x, level, condition) for network in self.networks)


class FlowDenoiser(BaseFlow):
    r"""A network, the interpolants it was trained under, and what its heads predict.

    Parameters
    ----------
    network
        Module ``(State, level, condition)``, where ``level`` is :math:`\ln((1-t)/t)` per component
        (B,), one-sided the half log-SNR: networks written for
        :class:`~structdiff.denoisers.Denoiser` serve. It returns a State, or with several heads as
        many States. :class:`Heads` makes one of several networks.
    system
        The interpolants.
    heads
        What the network returns, in order: "b" (velocity), "v" (velocity without the noise's
        part), "eta" (noise) and "s" (score). Prefer "eta" to "s": it is bounded.

    Raises
    ------
    StructDiffError
        If a head is unknown or named twice, or the network returns another number of heads.
    """

    def __init__(
        self,
        network: nn.Module,
        system: InterpolantSystem,
        heads: Head | Sequence[Head] = ("b", "eta"),
    ) -> None:
        super().__init__(system)
        self.network = network
        self.head_names: tuple[Head, ...] = (heads,) if isinstance(heads, str) else tuple(heads)
        known = get_args(Head)
        if not self.head_names or len(set(self.head_names)) < len(self.head_names):
            raise StructDiffError(f"heads must be named once each, got {self.head_names}")
        for head in self.head_names:
            if head not in known:
                raise StructDiffError(
                    f"unknown head {head!r} of a flow: choose from {', '.join(known)}"
                )

    def heads(self, x: State, t: Time, condition: Any = None) -> dict[Head, State]:
        """What the network predicts, in the state's own precision: one network call."""
        batch, like = x.batch_size, x.first
        level = {
            # Finite where a component stands at an end of its way.
            k: v.clamp(-20, 20).to(like.device, like.dtype).expand(batch)
            for k, v in self.system.level(t).items()
        }
        out = self.network(x, level, condition)
        states: tuple[State, ...] = (out,) if isinstance(out, State) else tuple(out)
        if len(states) != len(self.head_names):
            raise StructDiffError(
                f"the network returned {len(states)} state(s) for the heads {self.head_names}"
            )
        return {
            head: x.map(lambda v, o: o.to(v.dtype), state)
            for head, state in zip(self.head_names, states, strict=True)
        }

    def extra_repr(self) -> str:
        return f"heads={self.head_names}, system={self.system}"


def schroedinger_drift(
    flow: BaseFlow,
    x: State | Tensor,
    t: Time,
    to: Literal["data", "base"] = "data",
    condition: Any = None,
) -> State:
    r"""Drift of the Schroedinger bridge per unit of elapsed time, one evaluation.

    For linear interpolants with :math:`\gamma = \sqrt{2\varepsilon t(1-t)}` whose ends are coupled
    by the entropic plan :math:`\pi \sim e^{-|x_0-x_1|^2/(4\varepsilon)}` (a Sinkhorn coupling of
    regularisation 4 epsilon), :math:`b + \varepsilon s` is the bridge's drift towards the base and
    :math:`-b + \varepsilon s` the one towards the data, both with noise
    :math:`\sqrt{2\varepsilon}\,dw`.

    Parameters
    ----------
    flow
        Trained on such a coupling.
    x, t, condition
        See :meth:`BaseFlow.fields`.
    to
        Which way the bridge is walked.

    Raises
    ------
    StructDiffError
        If a moving component's interpolant is not linear with Brownian noise.
    """
    if to not in ("data", "base"):
        raise StructDiffError(f"to must be 'data' or 'base', got {to!r}")
    strengths = {}
    for name in flow.system.moving:
        p = flow.system.interpolants[name]
        if not isinstance(p.path, Linear) or not isinstance(p.gamma, Brownian):
            raise StructDiffError(
                f"component {name!r} is no Schroedinger bridge: its interpolant must be "
                f"Interpolant(Linear(), Brownian(2 * epsilon)), got {p}"
            )
        strengths[name] = p.gamma.a / 2
    if to == "base":
        return flow.drift(x, t, strengths, condition)
    return -flow.drift(x, t, {k: -e for k, e in strengths.items()}, condition)
