r"""The two terms that refinement descends: minus the log density, and what holds on to the start.

See :mod:`structdiff.timeseries.refinement`, which puts them together.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Literal, TypeAlias, get_args

import torch
from torch import Tensor

from structdiff.denoisers import BaseDenoiser
from structdiff.errors import StructDiffError
from structdiff.noise import NoiseSource
from structdiff.processes.system import System
from structdiff.state import State, expand_right

RegularizerName: TypeAlias = Literal["squared", "quantile"]
"""What holds on to the start: TSDiff's MS and Q."""


class WindowEnergy(ABC):
    """An estimate of -log p(y) that refinement descends, at one time of a denoiser.

    Parameters
    ----------
    denoiser
        Estimates E[x0 | xt]; exactly one component of its system moves.
    time
        The shared time tau.
    condition
        Passed to the denoiser.

    Raises
    ------
    StructDiffError
        If several components move, or there is no noise at the time.
    """

    def __init__(self, denoiser: BaseDenoiser, time: float, condition: Any = None) -> None:
        system = denoiser.system
        self.denoiser, self.time, self.condition = denoiser, float(time), condition
        self.name = moving_component(system)
        self.space = system.spaces[self.name]
        self.alpha, self.sigma = scales(system, self.time)

    def draw(self, windows: State, source: NoiseSource) -> Tensor:
        """Standard normal numbers of the windows' shape, 0 where no entry exists."""
        mask = windows.masks.get(self.name)
        return self.space.noise(self.name, windows[self.name], mask, source)

    def predicted_noise(self, windows: State, noised: Tensor) -> Tensor:
        """What the denoiser takes for noise in ``noised``, 0 where no entry exists."""
        state = State._trusted({**windows, self.name: noised}, windows.masks)
        noise = self.denoiser.noise(state, self.time, self.condition)[self.name]
        return self.space.project(noise, windows.masks.get(self.name))

    @abstractmethod
    def gradient(self, windows: State, source: NoiseSource) -> Tensor:
        """Gradient by the window that moves, (B, ...)."""


class DenoisingEnergy(WindowEnergy):
    r"""The paper's: :math:`\|\epsilon - \epsilon_\theta(\alpha y + \sigma\epsilon)\|^2`, summed."""

    def value(self, windows: State, noise: Tensor) -> Tensor:
        """Energy under given noise per object, (B,): the sum over positions and channels."""
        noised = self.alpha * windows[self.name] + self.sigma * noise
        return (noise - self.predicted_noise(windows, noised)).square().flatten(1).sum(1)

    def gradient(self, windows: State, source: NoiseSource) -> Tensor:
        """Gradient under one fresh draw: a network evaluation and a backward pass to its input."""
        noise = self.draw(windows, source)
        if torch.is_inference_mode_enabled():  # whose tensors know no gradient: take copies
            with torch.inference_mode(False):
                masks = {k: m.clone() for k, m in windows.masks.items()}
                return self._slope(windows.map(Tensor.clone).with_masks(masks), noise.clone())
        return self._slope(windows, noise)

    def _slope(self, windows: State, noise: Tensor) -> Tensor:
        with torch.enable_grad():
            point = windows[self.name].detach().requires_grad_(True)
            state = State._trusted({**windows, self.name: point}, windows.masks)
            noised = self.alpha * point + self.sigma * noise
            predicted = self.predicted_noise(state, noised)
            if not predicted.requires_grad:
                raise self._cut()
            # Summed over the batch: objects do not see each other.
            total = (noise - predicted).square().sum()
            (slope,) = torch.autograd.grad(total, point, allow_unused=True)
        if slope is None:
            raise self._cut()
        return slope

    def _cut(self) -> StructDiffError:
        return StructDiffError(
            f"{type(self.denoiser).__name__} gives a prediction that is cut from its input: "
            "refine with energy='score', which needs no gradient through it"
        )


class ScoreEnergy(WindowEnergy):
    r"""Minus the log density of windows that carry noise of variance :math:`\sigma^2/\alpha^2`.

    Only its gradient is known, without noise and without a backward pass.
    """

    def gradient(self, windows: State, source: NoiseSource) -> Tensor:
        """Exact gradient for the denoiser at hand: one network evaluation, no draw."""
        noise = self.predicted_noise(windows, self.alpha * windows[self.name])
        return noise * (self.alpha / self.sigma)


class Regularizer:
    r"""R(y, start), which keeps a window near the one that it started from.

    "squared" sums :math:`(y - \tilde y)^2` over the entries that are not free; "quantile" sums
    :math:`\max(\kappa e, (\kappa - 1) e)`, :math:`e = \tilde y - y`, over the free ones too. So it
    is in the published code: without it nothing would spread the paths of a point forecast.

    Parameters
    ----------
    start
        Where the windows start, (B, ...).
    kind
        "squared" or "quantile".
    free
        Entries that "squared" leaves alone, bool, broadcastable to ``start``; None is none.
    missing
        Entries whose start is only filled in: neither kind holds on to them.
    levels
        :math:`\kappa` in (0, 1) per object, (B,); for "quantile" only.

    Raises
    ------
    StructDiffError
        If a mask is not boolean or does not fit, or levels are missing, out of range, or given
        where none are used.
    """

    def __init__(
        self,
        start: Tensor,
        kind: RegularizerName = "squared",
        free: Tensor | None = None,
        missing: Tensor | None = None,
        levels: Tensor | None = None,
    ) -> None:
        check_choice("regularizer", kind, RegularizerName)
        free, missing = (
            _check_entries(what, mask, start)
            for what, mask in (("free", free), ("missing", missing))
        )
        self.start = start
        self.held = ~missing if kind == "quantile" else ~(missing | free)
        self.levels = _check_levels(levels, start, kind)

    def value(self, windows: Tensor) -> Tensor:
        """R per object, (B,)."""
        gap = self.start - windows
        if self.levels is None:
            parts = gap.square()
        else:
            parts = torch.maximum(self.levels * gap, (self.levels - 1) * gap)
        return parts.mul(self.held).flatten(1).sum(1)

    def gradient(self, windows: Tensor) -> Tensor:
        """Gradient of R by the windows, (B, ...); 0 at the kink of the pinball loss."""
        gap = self.start - windows
        if self.levels is None:
            return -2 * gap * self.held
        slope = (gap < 0).to(gap) - self.levels * (gap != 0)
        return slope * self.held


# --- checks ---------------------------------------------------------------------------------------
def moving_component(system: System) -> str:
    """The one component that moves: the windows."""
    if len(system.moving) != 1:
        raise StructDiffError(
            "refinement moves one component, the windows, but the system moves "
            f"{list(system.moving)}: freeze the others"
        )
    return system.moving[0]


def scales(system: System, time: float) -> tuple[float, float]:
    """Alpha and sigma of the windows at a shared time."""
    name = moving_component(system)
    alpha, sigma = (float(scale(float(time))[name]) for scale in (system.alpha, system.sigma))
    if not (alpha > 0 and sigma > 0):
        raise StructDiffError(
            f"at time {time} the signal's scale is {alpha:g} and the noise's {sigma:g}: choose a "
            f"time from {system.t_min:g} to {system.t_max:g}"
        )
    return alpha, sigma


def check_choice(what: str, value: str, choices: Any) -> None:
    """Refuse a value that is none of a literal type's."""
    if value not in get_args(choices):
        raise StructDiffError(f"{what} must be one of {list(get_args(choices))}, got {value!r}")


def check_finite(values: Tensor, what: str) -> None:
    """Refuse entries that are not finite, and name the first."""
    wrong = ~torch.isfinite(values)
    if bool(wrong.any()):
        where = tuple(wrong.nonzero()[0].tolist())
        raise StructDiffError(f"{what} is not finite at entry {where}: fill gaps before refining")


def _check_entries(what: str, entries: Tensor | None, start: Tensor) -> Tensor:
    if entries is None:
        return torch.zeros_like(start, dtype=torch.bool)
    if entries.dtype != torch.bool:
        raise StructDiffError(f"{what} must be boolean, got {entries.dtype}")
    try:
        return entries.to(start.device).expand_as(start)
    except RuntimeError:
        raise StructDiffError(
            f"{what} has shape {tuple(entries.shape)}, which does not fit the windows' "
            f"{tuple(start.shape)}"
        ) from None


def _check_levels(levels: Tensor | None, start: Tensor, kind: RegularizerName) -> Tensor | None:
    """Levels with the axes, dtype and device of the windows."""
    if (levels is None) != (kind == "squared"):
        raise StructDiffError(
            "the quantile regularizer needs levels, one per window; the squared one takes none"
        )
    if levels is None:
        return None
    if levels.shape != start.shape[:1] or not bool(((levels > 0) & (levels < 1)).all()):
        raise StructDiffError(
            f"levels must be one number in (0, 1) per window ({len(start)},), got shape "
            f"{tuple(levels.shape)} from {float(levels.min())} to {float(levels.max())}"
        )
    return expand_right(levels.to(start.device), start)
