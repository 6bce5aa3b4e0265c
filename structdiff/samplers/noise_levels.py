r"""How noisy is a state? Posteriors of the noise level, for chains that also move through it.

In :math:`v = x/\alpha`, :math:`\rho = \sigma/\alpha` every process adds noise to unscaled data,
:math:`v = x_0 + \rho_l\,\epsilon`, so one v can be asked for its level l. With all levels equally
likely,

.. math:: p(l \mid v) \propto p_l(v), \qquad
          \frac{\partial \ln p_l(v)}{\partial \ln \rho} = \rho^2 (\nabla \cdot s + \|s\|^2)
          = \nabla \cdot D - d + \frac{\|v - D\|^2}{\rho^2}

with :math:`D = E[x_0 \mid v, l]` in d dimensions: the density from a testbed, a trained classifier,
or the integral of the score.

A level is a point in shared time. All components of a system share its number; each stands at its
own time, from its own clock, with the noise of its own process. Levels count from the noisiest,
``t_max``, to the cleanest, ``t_min``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, TypeAlias, runtime_checkable

import torch
from torch import Tensor, nn

from structdiff.denoisers import BaseDenoiser
from structdiff.errors import StructDiffError
from structdiff.noise import NoiseSource, as_source
from structdiff.processes.system import System
from structdiff.samplers.grids import FixedTimes, UniformLogSNR
from structdiff.state import State, expand_right

Levels: TypeAlias = "int | Tensor | Sequence[float]"
"""A number of noise levels, or their shared times."""


@runtime_checkable
class NoisePosterior(Protocol):
    """The probability of every noise level given a state."""

    times: Tensor
    """Shared time of every level, float64 (L,), decreasing."""
    nfe: int
    """Evaluations of the denoiser that one call costs."""

    def log_probabilities(self, v: State, condition: Any = None) -> Tensor:
        """Log-probabilities of the levels, (B, L), of a state in the coordinates v = x / alpha."""
        ...


def noise_levels(system: System, levels: Levels = 1000) -> Tensor:
    """Shared times of the levels: a number of them, uniform in log noise, or a grid of one's own.

    Parameters
    ----------
    system
        The forward processes.
    levels
        How many, uniform in the log of the noise of the first moving component; or the times.

    Returns
    -------
    Tensor
        Decreasing, float64 (L,).

    Raises
    ------
    StructDiffError
        If there are fewer than 2 levels, or they leave the interval in which the system samples.
    """
    if isinstance(levels, int):
        if levels < 2:
            raise StructDiffError(f"a chain needs at least 2 noise levels, got {levels}")
        return UniformLogSNR().times(system, levels)
    times = FixedTimes(levels).times(system, len(levels))
    if len(times) < 2 or times[-1] < system.t_min or times[0] > system.t_max:
        raise StructDiffError(
            f"noise levels must be at least 2 times within [{system.t_min}, {system.t_max}], got "
            f"{len(times)} within [{float(times[-1])}, {float(times[0])}]"
        )
    return times


class Place:
    """Where objects stand: their own times and scales, each of shape () or (B,), on one device.

    Parameters
    ----------
    system
        The forward processes.
    shared
        Shared time per object, () or (B,).
    """

    def __init__(self, system: System, shared: Tensor) -> None:
        self.system = system
        self.own = system.times(shared)
        """Own time of every component."""
        self.alpha = {k: system.processes[k].alpha(self.own[k]) for k in system.moving}
        self.rho = {
            k: torch.exp(-system.processes[k].half_log_snr(self.own[k])) for k in system.moving
        }
        """Noise scale of every moving component in v = x / alpha."""

    def scaled(self, v: State) -> State:
        """From v to x: what denoisers take."""
        new = {k: v[k] * expand_right(a, v[k]) for k, a in self.alpha.items()}
        return State._trusted({**v, **new}, v.masks)

    def unscaled(self, x: State) -> State:
        """From x to v."""
        new = {k: x[k] / expand_right(a, x[k]) for k, a in self.alpha.items()}
        return State._trusted({**x, **new}, x.masks)


class ExactNoisePosterior:
    """From a density that is known at every noise level: testbeds.

    Parameters
    ----------
    denoiser
        With ``log_density(x, t)`` -> (B,), such as ``GaussianMixture(...).denoiser(system)``.
    levels
        Number of levels, or their shared times.

    Raises
    ------
    StructDiffError
        If the denoiser knows no density.
    """

    nfe = 0

    def __init__(self, denoiser: BaseDenoiser, levels: Levels = 1000) -> None:
        if not callable(getattr(denoiser, "log_density", None)):
            raise StructDiffError(
                f"{type(denoiser).__name__} has no log_density(x, t): use a NoiseClassifier or a "
                "ScoreNoisePosterior"
            )
        self.denoiser = denoiser
        self.times = noise_levels(denoiser.system, levels)

    def log_probabilities(self, v: State, condition: Any = None) -> Tensor:
        system = self.denoiser.system
        dimensions = system.dimensions(v)
        columns = []
        for t in self.times:
            place = Place(system, t)
            density = self.denoiser.log_density(place.scaled(v), place.own)  # type: ignore[operator]
            for k, alpha in place.alpha.items():  # of x = alpha v to that of v
                density = density + dimensions[k] * torch.log(alpha).to(density)
            columns.append(density)
        return torch.log_softmax(torch.stack(columns, dim=1), dim=1)


class NoiseClassifier(nn.Module):
    """A network that reads the noise level off a state; train it with ``NoiseLevelCrossEntropy``.

    Parameters
    ----------
    network
        Module ``(v, condition) -> logits (B, L)``. It sees v = x / alpha, which spans the noise of
        every level: a network that needs a bounded input should compress it, by arcsinh say.
    system
        The forward processes.
    levels
        Number of levels L, or their shared times.
    """

    nfe = 0

    def __init__(self, network: nn.Module, system: System, levels: Levels = 1000) -> None:
        super().__init__()
        self.network = network
        self.system = system
        self.times = noise_levels(system, levels)

    def forward(self, v: State, condition: Any = None) -> Tensor:
        """Log-probabilities of the levels, (B, L).

        Raises
        ------
        StructDiffError
            If the network gives another number of logits.
        """
        logits: Tensor = self.network(v, condition)
        if logits.shape != (v.batch_size, len(self.times)):
            raise StructDiffError(
                f"the classifier's network gave logits of shape {tuple(logits.shape)}, needed "
                f"({v.batch_size}, {len(self.times)}): one per object and noise level"
            )
        return torch.log_softmax(logits, dim=1)

    def log_probabilities(self, v: State, condition: Any = None) -> Tensor:
        result: Tensor = self(v, condition)
        return result


class ScoreNoisePosterior:
    r"""From any differentiable denoiser, without training: the score integrated over the levels.

    The derivative of the module's equation is taken at ``nodes`` levels and integrated linearly in
    :math:`\ln \rho` between them; the error is of second order in their distance. A call costs
    ``nodes`` evaluations and as many backward passes per probe.

    Parameters
    ----------
    denoiser
        Estimates E[x0 | xt]; differentiable in the state.
    levels
        Number of levels, or their shared times.
    nodes
        Levels at which the denoiser is evaluated, spread evenly from the first to the last.
    probes
        Random signs that estimate the divergence (Hutchinson): unbiased in the logarithm, so the
        level that is drawn is spread a little too widely. None takes every coordinate in turn.
    source
        Where the signs come from.

    Raises
    ------
    StructDiffError
        If there are fewer than 2 nodes, more nodes than levels, or no probe.
    """

    def __init__(
        self,
        denoiser: BaseDenoiser,
        levels: Levels = 1000,
        *,
        nodes: int = 16,
        probes: int | None = 1,
        source: NoiseSource | int | None = None,
    ) -> None:
        self.denoiser = denoiser
        self.times = noise_levels(denoiser.system, levels)
        if not 2 <= nodes <= len(self.times):
            raise StructDiffError(
                f"nodes must lie between 2 and the number of levels {len(self.times)}, got {nodes}"
            )
        if probes is not None and probes < 1:
            raise StructDiffError(f"probes must be at least 1, or None for all, got {probes}")
        self.nfe, self.probes, self.source = nodes, probes, as_source(source)
        self._nodes = torch.linspace(0, len(self.times) - 1, nodes).round().long()
        self._weights = self._quadrature()

    def _quadrature(self) -> dict[str, Tensor]:
        """Weights (nodes, L) that turn derivatives at the nodes into log-densities at the levels.

        Those of the first level are 0: the constant is lost in the normalisation.
        """
        log_rho = {k: torch.log(v) for k, v in Place(self.denoiser.system, self.times).rho.items()}
        count, nodes = len(self.times), self._nodes
        right = torch.searchsorted(nodes, torch.arange(count)).clamp(1, len(nodes) - 1)
        weights = {}
        for name, u in log_rho.items():
            a, b = u[nodes[right - 1]], u[nodes[right]]
            # A component that waits between two nodes gains nothing there, however it is weighed.
            share = torch.where(a == b, 0.0, (u - a) / torch.where(a == b, 1.0, b - a))
            hats = torch.zeros(count, len(nodes), dtype=torch.float64)
            hats.scatter_(1, right[:, None] - 1, 1 - share[:, None])
            hats.scatter_(1, right[:, None], share[:, None])
            areas = (hats[1:] + hats[:-1]) / 2 * u.diff()[:, None]
            weights[name] = torch.cat([torch.zeros_like(areas[:1]), areas.cumsum(0)]).T
        return weights

    def log_probabilities(self, v: State, condition: Any = None) -> Tensor:
        if torch.is_inference_mode_enabled():  # whose tensors know no gradient: take copies
            with torch.inference_mode(False), torch.no_grad():
                masks = {k: m.clone() for k, m in v.masks.items()}
                return self.log_probabilities(v.map(Tensor.clone).with_masks(masks), condition)
        slopes: dict[str, list[Tensor]] = {k: [] for k in self._weights}
        for t in self.times[self._nodes]:
            for k, slope in self._slopes(v, t, condition).items():
                slopes[k].append(slope)
        parts = [torch.stack(s, 1) @ self._weights[k].to(s[0]) for k, s in slopes.items()]
        return torch.log_softmax(torch.stack(parts).sum(0), dim=1)

    def _slopes(self, v: State, t: Tensor, condition: Any) -> dict[str, Tensor]:
        """Derivative of ln p by every moving component's ln rho at one level, each (B,)."""
        system = self.denoiser.system
        place = Place(system, t)
        with torch.enable_grad():
            points = {k: v[k].detach().requires_grad_(True) for k in place.rho}
            at = State._trusted({**v, **points}, v.masks)
            # The time is a number so that the network's coefficients are computed once.
            data = self.denoiser(place.scaled(at), float(t), condition)
            free = {
                k: system.spaces[k].pack(system.spaces[k].project(data[k], v.masks.get(k)))
                for k in points
            }
            divergence = {k: self._divergence(k, v, free[k], point) for k, point in points.items()}
        counts = system.dimensions(v)
        slopes = {}
        for k, rho in place.rho.items():
            gap = (system.spaces[k].pack(v[k]) - free[k].detach()).square().sum(1)
            slopes[k] = divergence[k] - counts[k] + gap / rho.to(gap) ** 2
        return slopes

    def _divergence(self, name: str, v: State, data: Tensor, point: Tensor) -> Tensor:
        """Of a component's data prediction (B, d) in its own free coordinates, (B,)."""
        space, mask = self.denoiser.system.spaces[name], v.masks.get(name)
        if self.probes is None:
            basis = torch.eye(data.shape[1]).to(data)
            probes = [
                space.project(space.unpack(row.expand_as(data), v[name]), mask) for row in basis
            ]
        else:
            probes = [
                torch.sign(space.noise(name, v[name], mask, self.source))
                for _ in range(self.probes)
            ]
        total = data.new_zeros(len(data))
        for probe in probes:
            (pulled,) = torch.autograd.grad(
                (data * space.pack(probe)).sum(), point, retain_graph=True, allow_unused=True
            )
            if pulled is not None:  # a denoiser need not look at every component
                total = total + (pulled * probe).flatten(1).sum(1)
        return total if self.probes is None else total / self.probes
