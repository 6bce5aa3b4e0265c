"""EEG windows drawn from a trained denoiser: new ones, and ones that complete what is missing.

Every window has its own noise seed, a function of the random state and its number: it depends
neither on the batch size nor on which other windows are asked for. Posterior means are averages
over antithetic paths, whose noise differs by its sign: what is linear in it cancels exactly.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from tqdm import tqdm

from structdiff.arguments import whole_seed
from structdiff.denoisers import Denoiser
from structdiff.guidance import gaussian_start, posterior_start
from structdiff.noise import Interval, PerObjectNoise
from structdiff.samplers import Sampler
from structdiff.state import State
from structdiff.timeseries.eeg_guidance import impute_guidance
from structdiff.timeseries.eeg_prior import WindowCovariance

START_RANK = 256
"""Directions that the start of synthesis knows: at the noise level where sampling starts, the
others are noise."""


class SignedNoise:
    """Noise per object, times a sign per object: (seed, 1) and (seed, -1) are an antithetic pair.

    Parameters
    ----------
    seeds
        One integer in [0, 2**63) per object, (B,).
    signs
        1 or -1 per object, (B,).
    stream
        As for :class:`~structdiff.noise.PerObjectNoise`.
    """

    def __init__(self, seeds: Tensor, signs: Tensor, stream: int = 0) -> None:
        self.source, self.signs = PerObjectNoise(seeds, stream), signs

    def normal(self, name: str, like: Tensor, interval: Interval | None = None) -> Tensor:
        """Standard normal numbers in the shape of ``like`` (B, ...)."""
        drawn = self.source.normal(name, like, interval)
        return drawn * self.signs.to(drawn).reshape(-1, *[1] * (drawn.dim() - 1))


def object_seeds(seed: int | None, count: int, stream: int) -> Tensor:
    """A seed per object, int64 (count,): the first ones whatever ``count`` is.

    Raises
    ------
    StructDiffError
        If the seed is none.
    """
    root = np.random.SeedSequence(whole_seed("random_state", seed))
    generator = np.random.default_rng(root.spawn(stream + 1)[stream])
    return torch.from_numpy(generator.integers(2**63 - 1, size=count))


def synthesize(
    denoiser: Denoiser,
    sampler: Sampler,
    prior: WindowCovariance,
    condition: Tensor,
    seeds: Tensor,
    batch_size: int,
    progress: bool,
) -> Tensor:
    """Draw a window for every condition: float32 (N, L, C) on the CPU.

    Parameters
    ----------
    denoiser, sampler, prior
        The model, how to sample, and the Gaussian that sampling starts from.
    condition
        Features (N, L, E).
    seeds
        One per window, (N,).
    batch_size
        Windows at a time.
    progress
        Show a progress bar.
    """
    length, channels = prior.values.shape
    start_prior = prior.low_rank(START_RANK)
    drawn = []
    for rows in _batches(torch.arange(len(condition)), batch_size, progress, "sampling"):
        device = next(denoiser.buffers()).device
        like = State({"x": torch.zeros(len(rows), length, channels, device=device)})
        own = seeds[rows].to(device)
        start = gaussian_start(denoiser.system, like, start_prior, own)
        state = sampler(denoiser, start, condition[rows].to(device), source=own)
        drawn.append(state["x"].cpu())
    return torch.cat(drawn)


def complete(
    denoiser: Denoiser,
    sampler: Sampler,
    prior: WindowCovariance,
    windows: Tensor,
    observed: Tensor,
    condition: Tensor,
    seeds: Tensor,
    *,
    paths: int,
    rank: int,
    batch_size: int,
    progress: bool,
) -> Tensor:
    """Fill in what windows miss; float32 (N, L, C) on the CPU.

    Parameters
    ----------
    denoiser, sampler, prior
        The model, how to sample, and the Gaussian of the guidance.
    windows
        (N, L, C); what stands in missing entries has no influence.
    observed
        Which entries are known, bool (N, L, C).
    condition
        Features (N, L, E).
    seeds
        One per window, (N,).
    paths
        1 is a draw; more, an even number, are averaged to the posterior mean.
    rank
        Of the low-rank system; see :func:`~structdiff.timeseries.eeg_guidance.impute_guidance`.
    batch_size
        Windows times paths at a time.
    progress
        Show a progress bar.
    """
    filled = torch.empty_like(windows)
    # Windows with the same mask share a factorisation: next to one another.
    _, mask = torch.unique(observed.flatten(1), dim=0, return_inverse=True)
    order = torch.argsort(mask, stable=True)
    device = next(denoiser.buffers()).device
    number = torch.arange(paths)
    signs = 1.0 - 2.0 * (number % 2)
    for rows in _batches(order, max(batch_size // paths, 1), progress, "imputing"):
        each = rows.repeat_interleave(paths)
        # A pair of paths shares its seed; pairs are far apart in the space of seeds.
        own = (seeds[each] ^ ((number // 2) * 0x9E3779B97F4A7C1).repeat(len(rows))) & (2**63 - 1)
        values = State({"x": windows[each].to(device)})
        guide = impute_guidance(denoiser, values, observed[each].to(device), prior, rank)
        sign = signs.repeat(len(rows)).to(device)
        like = values.map(torch.zeros_like)
        start = posterior_start(guide, like, SignedNoise(own.to(device), sign))  # type: ignore[arg-type]
        noise = SignedNoise(own.to(device), sign, stream=1)
        state = sampler(guide, start, condition[each].to(device), source=noise)
        filled[rows] = state["x"].unflatten(0, (len(rows), paths)).mean(1).cpu()
    return filled


def _batches(order: Tensor, size: int, progress: bool, label: str) -> Iterator[Tensor]:
    with tqdm(total=len(order), desc=label, unit="window", disable=not progress) as bar:
        for rows in order.split(size):
            yield rows
            bar.update(len(rows))


def draw_events(counts: npt.NDArray[np.int64], n: int, seed: int | None) -> npt.NDArray[np.int64]:
    """Numbers of event types in the proportions of ``counts``; the first ones whatever n is."""
    generator = np.random.default_rng(np.random.SeedSequence(seed).spawn(3)[2])
    cumulative = np.cumsum(counts) / counts.sum()
    return np.searchsorted(cumulative, generator.random(n), side="right").astype(np.int64)
