r"""Which part of a score's error matters: gradient and gauge.

Adding r to the score leaves every marginal :math:`p_t` as it is, in continuous time, if and only if

.. math:: \nabla \cdot r + r \cdot \nabla \log p_t = 0 .

Any field splits uniquely in :math:`L^2(p_t)` into :math:`s = \nabla\phi + r` with r such a gauge,
and the parts are orthogonal: :math:`E|s|^2 = E|\nabla\phi|^2 + E|r|^2`. So curl as such is neither
necessary nor sufficient for wrong samples; finite steps, however, turn rotation into expansion.

Source: Horvat and Pfister 2024.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from structdiff.denoisers import BaseDenoiser
from structdiff.diagnostics.field import (
    Components,
    Field,
    ScoreFunction,
    chosen_components,
    levels,
    noisy_field,
)
from structdiff.errors import StructDiffError
from structdiff.noise import NoiseSource, as_source
from structdiff.potential import PotentialDenoiser
from structdiff.processes.system import System
from structdiff.spaces import Space
from structdiff.state import State

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def gauge_condition(
    remainder: ScoreFunction, score: ScoreFunction, x: Tensor, probes: Tensor | None = None
) -> Tensor:
    r""":math:`\nabla \cdot r + r \cdot s` per point, (B,): 0 where r is a gauge for s.

    Parameters
    ----------
    remainder, score
        r and s as functions (B, D) -> (B, D); objects must not see each other.
    x
        Points, (B, D).
    probes
        Directions of unit covariance (V, B, D) for Hutchinson's estimate; None is exact.
    """
    with torch.enable_grad():
        point = x.detach().clone().requires_grad_(True)
        value = remainder(point)
        if probes is None:
            basis = torch.eye(x.shape[1]).to(x)[:, None].expand(-1, len(x), -1)
            directions = basis
        else:
            directions = probes
        (product,) = torch.autograd.grad(
            value, point, directions, is_grads_batched=True, materialize_grads=True
        )
    if probes is None:
        divergence = product.diagonal(dim1=0, dim2=2).sum(1)
    else:
        divergence = (product * probes).sum(2).mean(0)
    with torch.no_grad():
        return divergence + (value.detach() * score(x)).sum(1)


class PotentialNetwork(nn.Module):
    r"""A small smooth network for one number per object at one noise level.

    Parameters
    ----------
    system
        Gives the spaces, whose free coordinates are the input.
    like
        State whose shapes the network is for.
    scale, height
        Input and output are measured in these units, so that the network sees and gives numbers of
        order 1.
    width, layers
        Of the multilayer perceptron, SiLU.
    """

    def __init__(
        self,
        system: System,
        like: State,
        scale: float,
        height: float,
        width: int = 128,
        layers: int = 3,
    ) -> None:
        super().__init__()
        self.spaces: dict[str, Space] = system.spaces
        self.scale, self.height = scale, height
        size = self._packed(like).shape[1]
        widths = [size, *[width] * layers]
        blocks: list[nn.Module] = []
        for a, b in pairwise(widths):
            blocks += [nn.Linear(a, b), nn.SiLU()]
        self.layers = nn.Sequential(*blocks, nn.Linear(widths[-1], 1))

    def _packed(self, x: State) -> Tensor:
        return torch.cat([self.spaces[k].pack(v) for k, v in x.masked().items()], dim=1)

    def forward(self, x: State, log_snr: Any, condition: Any) -> Tensor:
        """(B,)."""
        value: Tensor = self.layers(self._packed(x) / self.scale)[:, 0]
        return value * self.height


@dataclass(frozen=True)
class GaugeSplit:
    """A score split into a gradient and the rest, at one noise level."""

    half_log_snr: float
    square_score: Tensor
    """|s|^2 per point, (n,)."""
    square_gradient: Tensor
    """|grad phi|^2 per point, (n,)."""
    square_remainder: Tensor
    """|r|^2 per point, (n,)."""
    condition: Tensor
    """div r + r . grad phi per point, (n,): 0 if r is a gauge for the density of phi."""
    potential: PotentialDenoiser
    """The fitted potential, itself a denoiser at this noise level."""

    @property
    def n(self) -> int:
        """Points of the evaluation; their noise is none of the fit's."""
        return len(self.square_score)

    @property
    def value(self) -> float:
        """Share of the remainder, E|r|^2 / E|s|^2."""
        return float(self.square_remainder.mean() / self.square_score.mean())

    @property
    def standard_error(self) -> float:
        """Standard error of the share over the points, by the delta method."""
        spread = (self.square_remainder - self.value * self.square_score).std()
        return float(spread / math.sqrt(self.n) / self.square_score.mean())

    @property
    def condition_rms(self) -> float:
        """Root mean square of the gauge condition's residual."""
        return float(self.condition.square().mean().sqrt())

    def plot(self, ax: Axes | None = None) -> Axes:
        """The mean squares of score, gradient and remainder."""
        from structdiff.diagnostics import plots

        return plots.gauge_split(self, ax)


def gauge_split(
    denoiser: BaseDenoiser,
    x0: State | Tensor,
    half_log_snr: float,
    *,
    components: Components = None,
    steps: int = 2000,
    batch: int = 512,
    width: int = 128,
    layers: int = 3,
    rate: float = 3e-3,
    points: int = 4096,
    source: NoiseSource | int | None = None,
) -> GaugeSplit:
    r"""Split a score by fitting a potential: minimise :math:`E|\nabla\phi - s|^2` over p_t.

    The fit gives one consistent reference for the gauge condition, not the truth; with the exact
    score of the same data as ``denoiser`` it tells how much of the share the fit itself leaves.

    Parameters
    ----------
    denoiser
        Any denoiser, over any system; without a condition.
    x0
        Data, as values, components (n, ...): noised anew in every step.
    half_log_snr
        Level of the first chosen component.
    components
        The components whose score is split; None is all that move, jointly.
    steps, batch, rate
        Of the fit by Adam, with a cosine decay to 0.
    width, layers
        Of the potential's network.
    points
        Noisy points that the split is evaluated at.
    source
        Noise source or seed.

    Raises
    ------
    StructDiffError
        If the level is out of reach, or a number is not positive.
    """
    if min(steps, batch, width, layers, points) < 1 or not rate > 0:
        raise StructDiffError("steps, batch, width, layers, points and rate must be positive")
    system, drawn = denoiser.system, as_source(source)
    names = chosen_components(system, components)
    (level,), (t,) = levels(system, [half_log_snr], names)
    data = system.check(x0)

    def noisy(count: int) -> tuple[Field, Tensor, Tensor]:
        uniform = torch.special.ndtr(drawn.normal("index", data.first.new_empty(count).double()))
        index = (uniform * data.batch_size).long().clamp(max=data.batch_size - 1)
        field, x = noisy_field(denoiser, data.take(index), t, names, None, drawn)
        with torch.no_grad():
            return field, x, field.score(x, t)

    field, x, score = noisy(points)
    scale = float(x.std().clamp(min=1e-12))
    strength = float(score.square().mean().sqrt().clamp(min=1e-12))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_seed(drawn, x))
        network = PotentialNetwork(system, field.like, scale, scale * strength, width, layers)
    potential = PotentialDenoiser(network.to(x.device, x.dtype), system)
    optimiser = torch.optim.Adam(potential.parameters(), lr=rate)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    with torch.enable_grad():
        for _ in range(steps):
            part, _, target = noisy(batch)
            gap = (part.flatten(potential.score(part.like, t)) - target) / strength
            optimiser.zero_grad()
            gap.square().sum(1).mean().backward()
            optimiser.step()
            decay.step()
    potential.requires_grad_(False)
    return _evaluate(field, potential, x, t, level, drawn)


def _seed(source: NoiseSource, like: Tensor) -> int:
    """An integer from the source, for the network's initialisation."""
    return int(source.normal("network", like.new_empty(1).double()).view(torch.int64)) % 2**31


def _evaluate(
    field: Field,
    potential: PotentialDenoiser,
    x: Tensor,
    t: float,
    level: float,
    source: NoiseSource,
) -> GaugeSplit:
    """The split at given points; divergences are exact up to 64 coordinates, else by 16 probes."""
    reference = Field(potential, field.like, field.names)
    s, gradient = field.linearise("score", x, t), reference.linearise("score", x, t)
    probes = field.probes(16, source) if field.dimension > 64 else None
    remainder = s.value - gradient.value
    divergence = s.divergence(probes) - gradient.divergence(probes)
    return GaugeSplit(
        level,
        s.value.square().sum(1),
        gradient.value.square().sum(1),
        remainder.square().sum(1),
        divergence + (remainder * gradient.value).sum(1),
        potential,
    )
