r"""Refinement: another forecaster's windows, polished by the learned density (TSDiff).

A window y, started at a base forecast :math:`\tilde y` behind its context, descends (Kollovieh et
al. 2023, section 3.2)

.. math:: E(y) = -\log p_\theta(y) + \lambda R(y, \tilde y), \qquad
          -\log p_\theta(y) \approx
          \|\epsilon - \epsilon_\theta(\alpha_\tau y + \sigma_\tau \epsilon, \tau)\|^2,

with one draw of :math:`\epsilon` per iteration at one time :math:`\tau`, the one whose loss is
nearest to the mean loss of all times. R is a sum of squares over everything but the forecast itself
(which is free), or a pinball loss over everything, the forecast included, at one level per path.

That stand-in costs a backward pass, and its gradients are noisy. The density of windows that carry
noise of variance :math:`u = \sigma_\tau^2 / \alpha_\tau^2` has the score itself for a gradient,

.. math:: -\nabla_y \log p_u(y) = \frac{\alpha_\tau}{\sigma_\tau}\,
          \epsilon_\theta(\alpha_\tau y, \tau), \qquad p_u \to p \text{ as } u \to 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, TypeAlias, TypeVar

import numpy.typing as npt
import torch
from torch import Tensor
from tqdm import tqdm

from structdiff.denoisers import BaseDenoiser
from structdiff.errors import StructDiffError
from structdiff.guidance import path_levels
from structdiff.noise import NoiseSource, as_source
from structdiff.state import State
from structdiff.timeseries.refinement_terms import (
    DenoisingEnergy,
    Regularizer,
    RegularizerName,
    ScoreEnergy,
    check_choice,
    check_finite,
    scales,
)

Method: TypeAlias = Literal["langevin", "ml"]
"""Langevin dynamics (the paper's LMC), or plain gradient descent (its maximum likelihood)."""
EnergyName: TypeAlias = Literal["denoising", "score"]
"""The paper's one-draw denoising loss, or the score of the density smoothed to the time."""
Source: TypeAlias = "NoiseSource | int | Sequence[int] | Tensor | None"
_Windows = TypeVar("_Windows", State, Tensor)

PUBLISHED_STEP = 0.1
"""Step of every published run but those on exchange rates, which took 0.01."""


class BaseRows(NamedTuple):
    """Base forecasts as rows of a batch, S per series and one series after another."""

    values: Tensor
    """Base forecast of every row, (N * S, h)."""
    levels: Tensor
    """Level i / (S + 1) of every row, float64 (N * S,)."""


def base_rows(base: Tensor | npt.ArrayLike, paths: int = 100) -> BaseRows:
    """Lay base forecasts out so that row i of a series pairs with the level i / (S + 1).

    Samples are sorted at every time step on its own: row i then is the base's quantile at its
    level. A point forecast is repeated S times.

    Parameters
    ----------
    base
        Samples (N, S, h), or point forecasts (N, h).
    paths
        S for point forecasts; samples bring their own.

    Raises
    ------
    StructDiffError
        If the base has another shape, no path, or entries that are not finite.
    """
    values = torch.as_tensor(base)
    if values.dim() not in (2, 3):
        raise StructDiffError(
            "base forecasts must be samples (N, S, h) or point forecasts (N, h), got shape "
            f"{tuple(values.shape)}"
        )
    check_finite(values, "the base forecast")
    if values.dim() == 2:
        values = values[:, None].repeat(1, paths, 1)
    series, rows = values.shape[:2]
    return BaseRows(values.sort(dim=1).values.flatten(0, 1), path_levels(rows, series))


def forecast_entries(length: int, horizon: int, channels: int = 1) -> Tensor:
    """The entries of a window that are its forecast, bool (L, C): the last ones of channel 0.

    Parameters
    ----------
    length, horizon
        L, points of a window, and how many of them come after the cut.
    channels
        C; the channels after the first hold lagged copies, which no forecast is read from.
    """
    entries = torch.zeros(length, channels, dtype=torch.bool)
    entries[length - horizon :, 0] = True
    return entries


# --- refinement -----------------------------------------------------------------------------------
def stable_step(
    denoiser: BaseDenoiser,
    time: float,
    *,
    energy: EnergyName = "denoising",
    regularizer: RegularizerName = "squared",
    weight: float = 1.0,
) -> float:
    r"""Step that overshoots on no Gaussian data: one over the largest curvature there can be.

    With :math:`u = \sigma_\tau^2/\alpha_\tau^2` and data of variance l along a direction, the
    curvature is :math:`1/(l + u)` for the score and :math:`2u/(l + u)^2` for the denoising loss:
    1/u and 2/u at most; squares add :math:`2\lambda`. Twice this step is where directions that the
    data hardly vary in begin to grow, and strongly correlated windows have many of those.

    Parameters
    ----------
    denoiser, time, energy, regularizer, weight
        As :func:`refine_windows` has them.
    """
    alpha, sigma = scales(denoiser.system, time)
    bound = (2.0 if energy == "denoising" else 1.0) * alpha**2 / sigma**2
    held = regularizer == "squared" and weight < math.inf  # what is pinned does not move
    return 1 / (bound + (2 * weight if held else 0.0))


def refine_windows(
    denoiser: BaseDenoiser,
    start: _Windows,
    *,
    time: float,
    free: Tensor | None,
    method: Method = "langevin",
    regularizer: RegularizerName = "squared",
    levels: Tensor | None = None,
    missing: Tensor | None = None,
    iterations: int = 20,
    step: float | None = None,
    noise_scale: float = 0.1,
    weight: float = 1.0,
    energy: EnergyName = "denoising",
    source: Source = None,
    condition: Any = None,
    progress: bool = False,
) -> _Windows:
    r"""Polish windows: :math:`y \leftarrow y - \eta \nabla E(y) + \sqrt{2\eta}\,\gamma\,\xi`.

    Parameters
    ----------
    denoiser
        Estimates E[x0 | xt]; exactly one component of its system moves. Its parameters get no
        gradient.
    start
        Windows (B, L, C) with the base forecast in their horizon (and in the lagged channels that
        reach it), in the coordinates that the processes run on.
    time
        The shared time tau of the energy; see :func:`representative_time`.
    free
        Entries that the squared regularizer leaves alone, bool, broadcastable to the windows; in
        the paper :func:`forecast_entries`. None holds all. The quantile one holds all either way.
    method
        "langevin", or "ml" without the noise :math:`\xi`.
    regularizer
        "squared" or "quantile".
    levels
        Level per window, (B,), for "quantile" only: those of :func:`base_rows`.
    missing
        Entries whose start is only filled in, such as gaps of the context: no regularizer holds
        them. None is none, as published.
    iterations
        How many steps.
    step
        :math:`\eta`; None is the published 0.1 or, where that may overshoot, :func:`stable_step`.
    noise_scale
        :math:`\gamma` of "langevin", 0.1 in the published code; 1 samples the density exp(-E).
    weight
        :math:`\lambda`, 1 in the paper. Infinite keeps the entries that "squared" holds exactly
        as they are: with "score" this samples, or maximises, the conditional density given them.
    energy
        "denoising", the paper's, or "score", at half its cost and without its noise.
    source
        Noise source, a seed, a seed per window (B,), or None for torch's global generator. A window
        draws in every iteration first for the energy (only "denoising"), then for the step.
    condition
        Passed to the denoiser.
    progress
        Show a progress bar.

    Returns
    -------
    State or Tensor
        The refined windows, in the form of ``start``.

    Raises
    ------
    StructDiffError
        If an option is unknown, the start is not finite or does not fit the system, a mask or the
        levels do not fit, or a number is out of range.
    """
    check_choice("method", method, Method)
    _check_numbers(iterations, step, noise_scale, weight, regularizer)
    state, drawn = denoiser.system.check(start), as_source(source, stream=3)
    density = _energy(energy)(denoiser, time, condition)
    name, mask = density.name, state.masks.get(density.name)
    window = density.space.project(state[name].detach(), mask)
    check_finite(window, "the start")
    hold = Regularizer(window, regularizer, free, missing, levels)
    if step is None:
        stable = stable_step(denoiser, time, energy=energy, regularizer=regularizer, weight=weight)
        step = min(PUBLISHED_STEP, stable)
    pinned, spread = weight == math.inf, math.sqrt(2 * step) * noise_scale
    # The network's parameters are not what is fitted: no graph outlives an iteration.
    with torch.no_grad():
        for _ in tqdm(range(iterations), "refining", disable=not progress):
            now = State._trusted({**state, name: window}, state.masks)
            slope = density.gradient(now, drawn)
            if not pinned:
                slope = slope + weight * hold.gradient(window)
            moved = window - step * density.space.project(slope, mask)
            if method == "langevin":
                moved = moved + spread * density.draw(now, drawn)
            window = torch.where(hold.held, window, moved) if pinned else moved
    return window if isinstance(start, Tensor) else start.replace(**{name: window})


def _energy(name: str) -> type[DenoisingEnergy] | type[ScoreEnergy]:
    check_choice("energy", name, EnergyName)
    return DenoisingEnergy if name == "denoising" else ScoreEnergy


# --- the representative time ----------------------------------------------------------------------
@torch.no_grad()
def denoising_losses(
    denoiser: BaseDenoiser,
    windows: State | Tensor,
    times: Sequence[float] | Tensor,
    source: Source = None,
    *,
    draws: int = 1,
    condition: Any = None,
    progress: bool = False,
) -> Tensor:
    """Mean squared error of the predicted noise at each time, float64 (T,) on the CPU.

    Parameters
    ----------
    denoiser
        Estimates E[x0 | xt]; exactly one component of its system moves.
    windows
        Clean windows (B, L, C), in the coordinates that the processes run on.
    times
        Shared times, (T,).
    source
        Noise source, a seed, a seed per window (B,), or None for torch's global generator. The
        times share their draws: what one draw adds to all of them does not move their order.
    draws
        Draws of the noise that are averaged.
    condition
        Passed to the denoiser.
    progress
        Show a progress bar.

    Raises
    ------
    StructDiffError
        If there is no time or draw, a time has no noise, or a window is not finite.
    """
    points = torch.as_tensor(times, dtype=torch.float64).flatten().tolist()
    if not points or draws < 1:
        raise StructDiffError(
            f"losses need at least one time and one draw, got {len(points)} and {draws}"
        )
    energies = [DenoisingEnergy(denoiser, t, condition) for t in points]
    state, first = denoiser.system.check(windows), energies[0]
    drawn = as_source(source, stream=4)  # a window drawn from the same seed shares nothing with it
    name, mask = first.name, state.masks.get(first.name)
    state = state.replace(**{name: first.space.project(state[name], mask)})
    check_finite(state[name], "the windows")
    total = torch.zeros(len(points), dtype=torch.float64, device=state.device)
    with tqdm(total=draws * len(points), desc="losses", disable=not progress) as bar:
        for _ in range(draws):
            noise = first.draw(state, drawn)
            for i, energy in enumerate(energies):
                total[i] += energy.value(state, noise).double().sum()
                bar.update()
    entries = first.space.dimension(state[name], mask).sum()
    return (total / (draws * entries)).cpu()


def representative_time(
    denoiser: BaseDenoiser,
    windows: State | Tensor,
    times: Sequence[float] | Tensor,
    source: Source = None,
    *,
    draws: int = 1,
    condition: Any = None,
    progress: bool = False,
) -> float:
    r"""The time whose loss is nearest to the mean of all, :math:`\arg\min_t (l(t) - \bar l)^2`.

    The paper's tau, from one draw on 1024 training windows. Parameters and errors are those of
    :func:`denoising_losses`; for the paper's chain the times are those of its indices,
    ``chain.time_of(torch.arange(chain.links))``.

    Returns
    -------
    float
        One of the times.
    """
    losses = denoising_losses(
        denoiser, windows, times, source, draws=draws, condition=condition, progress=progress
    )
    points = torch.as_tensor(times, dtype=torch.float64).flatten()
    return float(points[(losses - losses.mean()).square().argmin()])


def _check_numbers(
    iterations: int, step: float | None, noise_scale: float, weight: float, kind: str
) -> None:
    if iterations < 0:
        raise StructDiffError(f"iterations must be 0 or more, got {iterations}")
    if step is not None and not 0 < step < math.inf:
        raise StructDiffError(f"step must be a positive number, got {step}")
    if not 0 <= noise_scale < math.inf:
        raise StructDiffError(f"noise_scale must be 0 or a positive number, got {noise_scale}")
    if not weight >= 0 or (weight == math.inf and kind == "quantile"):
        raise StructDiffError(
            "weight must be 0 or a positive number, infinite only for the squared regularizer, "
            f"got {weight}"
        )
