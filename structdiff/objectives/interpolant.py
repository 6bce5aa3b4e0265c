r"""What flows are trained by: the losses of stochastic interpolants, and flow matching.

With :math:`x_t = d x_0 + c x_1 + \gamma z` and :math:`\partial_t I = \dot d x_0 + \dot c x_1`,

.. math::
    L_b = E\,\tfrac12|b|^2 - (\partial_t I + \dot\gamma z)\cdot b, \qquad
    L_v = E\,\tfrac12|v|^2 - \partial_t I\cdot v, \qquad
    L_s = E\,\tfrac12|s|^2 + \gamma^{-1} z\cdot s, \qquad
    L_\eta = E\,\tfrac12|\eta|^2 - z\cdot\eta,

all per free coordinate (Albergo, Boffi and Vanden-Eijnden 2023, section 2). They are squared errors
up to a constant, so they may be negative; their minimisers are the fields of
:mod:`structdiff.flows`, that of :math:`L_\eta` is :math:`+E[z|x_t]`. Since :math:`\dot\gamma` and
:math:`1/\gamma` grow without bound at the ends, every pair is looked at with z and -z.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias

from torch import Tensor

from structdiff.denoisers import BaseDenoiser
from structdiff.errors import StructDiffError
from structdiff.flows import BaseFlow, Fields, Head
from structdiff.noise import NoiseSource
from structdiff.objectives.base import Coupling, Draw, Objective, Regularizer
from structdiff.objectives.couplings import MinibatchOT, Sinkhorn
from structdiff.objectives.draws import Draws, stratified
from structdiff.objectives.time_laws import AnyTimeLaw, draw_times, law_under
from structdiff.processes.flow_matching import LipmanFlow, TrigonometricFlow
from structdiff.processes.gaussian import GaussianProcess, RectifiedFlow
from structdiff.processes.interpolant import Interpolant, InterpolantSystem
from structdiff.processes.paths import Brownian, Constant, Linear, OneSided
from structdiff.processes.system import System
from structdiff.state import State

FlowMethod: TypeAlias = Literal["i-cfm", "fm", "ot-cfm", "sb-cfm", "vp-cfm"]


class BridgeDraw(Draw):
    """One noisy batch of an interpolant system."""

    base: State
    """x1, in the coordinates that the processes run on."""


class FlowMatching(Objective):
    r"""Squared error of the velocity of a Gaussian process, per free coordinate.

    .. math:: L = E\,|\hat u(x_t, t) - (\dot\alpha x_0 + \dot\sigma\epsilon)|^2 / D

    For any denoiser under any Gaussian processes; one of prediction "velocity" under
    :class:`~structdiff.processes.gaussian.RectifiedFlow` is flow matching as usually meant. In
    terms of the noise the weight is :math:`(\sigma\dot\lambda)^2`.

    Parameters
    ----------
    time_law, component_weights, coupling, regularizers, draws
        See :class:`~structdiff.objectives.base.Objective`; the coupling makes it OT-CFM.
    """

    def distances(
        self,
        denoiser: BaseDenoiser,
        x0: State,
        noisy: State,
        noise: State,
        times: dict[str, Tensor],
        condition: Any,
    ) -> dict[str, Tensor]:
        system = denoiser.system
        target = x0 * system.alpha_derivative(times) + noise * system.sigma_derivative(times)
        error = (denoiser.velocity(noisy, times, condition) - target).masked()
        return per_coordinate(system, x0, {k: v.square() for k, v in error.items()})


def per_coordinate(system: System, like: State, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Mean over the existing free coordinates per component and object, each (B,)."""
    counts = system.dimensions(like)
    return {k: system.spaces[k].pack(v).sum(1) / counts[k].clamp(min=1) for k, v in values.items()}


class InterpolantMatching(Objective):
    r"""The losses of stochastic interpolants on a flow.

    Parameters
    ----------
    losses
        Which fields are fitted: any of "b", "v", "s" and "eta", or their weights. One loss per
        head of the network, usually of the same name; any other is converted.
    antithetic
        Look at z and -z with the same time and ends: twice the evaluations, and a variance that
        stays bounded at the ends. One-sided components have no other randomness and no twin.
    time_law, component_weights, regularizers, draws
        See :class:`~structdiff.objectives.base.Objective`.
    coupling
        Pairs the base (of one-sided components: the noise) of a batch with its data.

    Raises
    ------
    StructDiffError
        If a loss is unknown, or (when called) the denoiser is not a flow.
    """

    def __init__(
        self,
        losses: Sequence[Head] | Mapping[Head, float] = ("b", "eta"),
        *,
        antithetic: bool = True,
        time_law: AnyTimeLaw | None = None,
        component_weights: Mapping[str, float] | None = None,
        coupling: Coupling | None = None,
        regularizers: Sequence[Regularizer] = (),
        draws: Draws = stratified,
    ) -> None:
        super().__init__(time_law, component_weights, coupling, regularizers, draws)
        weights = losses if isinstance(losses, Mapping) else dict.fromkeys(losses, 1.0)
        self.losses: dict[Head, float] = dict(weights)
        unknown = [name for name in self.losses if name not in ("b", "v", "s", "eta")]
        if unknown or not self.losses:
            raise StructDiffError(f"losses must be some of b, v, s and eta, got {list(losses)}")
        self.antithetic = antithetic
        self._base: State | None = None

    def paired(self, base: State) -> InterpolantMatching:
        """The same objective for one batch whose base is given: values, object i with object i.

        Parameters
        ----------
        base
            x1 of every component; what one-sided and mirror components hold is not used.
        """
        here = copy.copy(self)
        here._base = base
        return here

    def draw(self, system: System, x0: State, source: NoiseSource) -> BridgeDraw:
        """Times, base, noise and the state between them; frozen components stay clean."""
        if not isinstance(system, InterpolantSystem):
            raise StructDiffError(
                f"InterpolantMatching needs an InterpolantSystem, got {type(system).__name__}: "
                "use FlowMatching for Gaussian processes"
            )
        x0 = system.encode(system.check(x0))
        law = law_under(self.time_law, system)
        t = draw_times(law, x0.first, system.t_min, system.t_max, source, self.draws)
        times, z = system.times(t), system.noise(x0, source)
        base = (
            system.draw_base(x0, source)
            if self._base is None
            else system.encode(system.check(self._base))
        )
        if self.coupling is not None:
            base, z = self._coupled(self.coupling, system, x0, base, z, source)
        draw = BridgeDraw(x0, t, times, z, _between(system, x0, base, times, z))
        draw.base = base
        return draw

    def _coupled(
        self,
        coupling: Coupling,
        system: InterpolantSystem,
        x0: State,
        base: State,
        z: State,
        source: NoiseSource,
    ) -> tuple[State, State]:
        """Base and noise after the coupling of the far ends with the data."""
        bridged = {k for k, p in system.interpolants.items() if p.path.two_sided}
        ends = State._trusted({k: base[k] if k in bridged else z[k] for k in x0}, x0.masks)
        ends = coupling(x0, ends, source)
        return (
            State._trusted({k: ends[k] if k in bridged else base[k] for k in x0}, x0.masks),
            State._trusted({k: z[k] if k in bridged else ends[k] for k in x0}, x0.masks),
        )

    def _losses_at(self, denoiser: BaseDenoiser, draw: Draw, condition: Any) -> dict[str, Tensor]:
        if not isinstance(denoiser, BaseFlow) or not isinstance(draw, BridgeDraw):
            raise StructDiffError(
                f"InterpolantMatching trains flows, got {type(denoiser).__name__}: use FlowDenoiser"
            )
        system = denoiser.system
        losses = self._half(denoiser, draw, draw.noise, draw.noisy, condition)
        twins = [k for k in system.moving if _has_twin(system.interpolants[k])]
        if self.antithetic and twins:
            z = State._trusted(
                {k: -v if k in twins else v for k, v in draw.noise.items()}, draw.noise.masks
            )
            other = _between(system, draw.x0, draw.base, draw.times, z)
            mirrored = self._half(denoiser, draw, z, other, condition)
            losses = {k: (v + mirrored[k]) / 2 for k, v in losses.items()}
        return losses

    def _half(
        self, denoiser: BaseFlow, draw: BridgeDraw, z: State, noisy: State, condition: Any
    ) -> dict[str, Tensor]:
        """The losses at one sign of the noise, (B,) per moving component."""
        system, times = denoiser.system, draw.times
        fields = denoiser.fields(noisy, times, condition)
        total: dict[str, Tensor] = {}
        for name, weight in self.losses.items():
            value = _field(fields, name)
            target = _target(name, system, draw, z)
            moving = State._trusted(
                {k: value[k] * (value[k] / 2 - target[k]) for k in system.moving},
                {k: m for k, m in noisy.masks.items() if k in system.moving},
            )
            for k, loss in per_coordinate(system, draw.x0, moving.masked()).items():
                total[k] = total[k] + weight * loss if k in total else weight * loss
        return total

    def distances(
        self,
        denoiser: BaseDenoiser,
        x0: State,
        noisy: State,
        noise: State,
        times: dict[str, Tensor],
        condition: Any,
    ) -> dict[str, Tensor]:
        """Not enough to go by: these losses also need the base."""
        raise StructDiffError(
            "the losses of an interpolant need its base too: call the objective, component_losses, "
            "or paired(base)"
        )


def _between(
    system: InterpolantSystem, x0: State, base: State, times: dict[str, Tensor], z: State
) -> State:
    noisy = system.interpolate(x0, base, times, z)
    fixed = {k: x0[k] for k in x0 if system.frozen(k)}
    return noisy.replace(**fixed) if fixed else noisy


def _has_twin(interpolant: Interpolant) -> bool:
    """Whether -z may stand for z: not where a coupling may have tied z to the data."""
    return interpolant.noisy and not isinstance(interpolant.path, OneSided)


def _field(fields: Fields, name: Head) -> State:
    if name == "b":
        return fields.velocity
    if name == "v":
        return fields.mean_velocity
    return fields.noise if name == "eta" else fields.score


def _target(name: Head, system: InterpolantSystem, draw: BridgeDraw, z: State) -> State:
    """What the field is the conditional expectation of."""
    if name == "eta":
        return z
    scales = system.scales(draw.times)
    if name == "s":
        return -z / {k: s.noise for k, s in scales.items()}
    path = system.path_velocity(draw.x0, draw.base, draw.times)
    return path if name == "v" else path + z * {k: s.noise_rate for k, s in scales.items()}


def conditional_flow_matching(
    method: FlowMethod = "i-cfm", sigma_0: float = 0.0
) -> tuple[GaussianProcess, Objective]:
    r"""The process of a component and the objective of a published flow-matching method.

    ========  ===================================================  =========================
    method    between data and normal noise                        coupling
    ========  ===================================================  =========================
    i-cfm     straight line, plus noise :math:`\sigma_0`           independent
    fm        :math:`(1-t)x_0 + (\sigma_0 + (1-\sigma_0)t)\epsilon`  independent
    ot-cfm    as i-cfm                                             exact optimal transport
    sb-cfm    Brownian bridge of variance rate :math:`\sigma_0^2`  Sinkhorn, :math:`2\sigma_0^2`
    vp-cfm    quarter circle                                       independent
    ========  ===================================================  =========================

    A plain process goes with ``System`` and ``Denoiser(prediction="velocity")``, an
    :class:`~structdiff.processes.interpolant.Interpolant` with ``InterpolantSystem`` and
    :class:`~structdiff.flows.FlowDenoiser`: of head "b", and of "b" and "eta" for sb-cfm, whose
    second loss is the score loss of [SF]2M (the weight :math:`2\sqrt{t(1-t)}/\sigma_0` there makes
    its target the noise). Sources: Lipman et al. 2023, Tong et al. 2024.

    Parameters
    ----------
    method
        One of the table.
    sigma_0
        Noise scale; sb-cfm needs a positive one, vp-cfm has none.

    Raises
    ------
    StructDiffError
        If the method is unknown or sigma_0 does not go with it.
    """
    if method not in ("i-cfm", "fm", "ot-cfm", "sb-cfm", "vp-cfm"):
        raise StructDiffError(
            f"unknown method {method!r}: choose i-cfm, fm, ot-cfm, sb-cfm or vp-cfm"
        )
    if not sigma_0 >= 0 or (method == "sb-cfm" and sigma_0 == 0):
        raise StructDiffError(f"{method} needs a positive sigma_0, got {sigma_0}")
    if method == "sb-cfm":
        bridge = Interpolant(Linear(), Brownian(sigma_0**2))
        return bridge, InterpolantMatching(("b", "eta"), coupling=Sinkhorn(2 * sigma_0**2))
    if method == "vp-cfm":
        if sigma_0:
            raise StructDiffError(f"vp-cfm has no sigma_0, got {sigma_0}: leave it out")
        return TrigonometricFlow(), FlowMatching()
    if method == "fm":
        return LipmanFlow(sigma_0), FlowMatching()
    coupling = MinibatchOT() if method == "ot-cfm" else None
    if sigma_0 == 0:
        return RectifiedFlow(), FlowMatching(coupling=coupling)
    return (
        Interpolant(Linear(), Constant(sigma_0)),
        # Constant noise has no rate: a twin would change nothing.
        InterpolantMatching(("b",), coupling=coupling, antithetic=False),
    )
