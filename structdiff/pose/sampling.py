"""From a trained pose model to hypotheses of a clip.

Noise belongs to a frame and a hypothesis, not to a window or a batch: windows that share frames see
the same noise there, so that one fades into the other, and a clip's hypotheses are the same bits
whichever other clips are lifted along. The hypotheses of a clip are centred: their noise adds up to
0 over hypotheses, each draw alone being what it was. Their mean then is the model's answer and not
the chance of a few draws.
"""

from __future__ import annotations

import hashlib
import inspect
import math
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from structdiff.arguments import whole
from structdiff.denoisers import Denoiser
from structdiff.errors import StructDiffError
from structdiff.noise import Interval, PerObjectNoise, splitmix64
from structdiff.pose.denoising import PoseNetwork
from structdiff.pose.models import ModelSpec
from structdiff.pose.process import published_grid
from structdiff.pose.windows import Cuts
from structdiff.processes import DiscreteVP
from structdiff.samplers import SAMPLERS, Sampler, get_sampler

ROWS = 64
"""Windows times hypotheses that are sampled at a time, about."""


def clip_seed(seed: int) -> int:
    """Key of a call's noise, far from those of its neighbours."""
    digest = hashlib.blake2b(f"pose/{int(seed)}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


class FrameNoise:
    """Noise per frame and hypothesis, centred over the hypotheses.

    Parameters
    ----------
    seed
        Of the call.
    numbers
        Number of every window's frames in the clip, (M, N).
    hypotheses
        H.
    device
        Where the noise is needed.
    stream
        Independent sequences of one seed: samplers draw from another than priors do.
    """

    def __init__(
        self, seed: int, numbers: Tensor, hypotheses: int, device: torch.device, stream: int = 0
    ) -> None:
        self.hypotheses = hypotheses
        key = torch.tensor(clip_seed(seed), dtype=torch.int64)
        draws = splitmix64(key, numbers[:, None] * 65_536 + torch.arange(hypotheses)[:, None] + 1)
        seeds = (draws & (2**63 - 1)).to(device)  # (M, H, N)
        self._frames = seeds.shape[-1]
        self._source = PerObjectNoise(seeds.flatten(), stream)
        self._windows = PerObjectNoise(seeds[..., 0].flatten(), stream + 2)

    def normal(self, name: str, like: Tensor, interval: Interval | None = None) -> Tensor:
        """Standard normal numbers for (M H, N ...); the H of a window lie side by side.

        Numbers that are not of frames, such as the (M H, 1) that a sampler seeds its path with, are
        independent.
        """
        size = like[0].numel()
        if size % self._frames:
            return self._windows.normal(name, like, interval)
        each = like.new_empty(len(like) * self._frames, size // self._frames)
        drawn = self._source.normal(name, each, interval).reshape(like.shape)
        if self.hypotheses == 1:
            return drawn
        groups = drawn.unflatten(0, (-1, self.hypotheses))
        scale = math.sqrt(self.hypotheses / (self.hypotheses - 1))
        return ((groups - groups.mean(1, keepdim=True)) * scale).flatten(0, 1)


def choose_sampler(spec: ModelSpec, denoiser: Denoiser, sampler: Any, steps: int | None) -> Sampler:
    """The sampler asked for; the model's recommended one where nothing is.

    Names that take one evaluation a step run on the published indices of the chain.

    Parameters
    ----------
    spec, denoiser
        The model.
    sampler
        None, a name of :data:`structdiff.samplers.SAMPLERS`, or a sampler.
    steps
        None is the recommended number.

    Raises
    ------
    StructDiffError
        If the name is unknown, or steps are given together with a sampler object.
    """
    if isinstance(sampler, Sampler):
        if steps is not None:
            raise StructDiffError("steps is part of the sampler object: leave one of them out")
        return sampler
    name = spec.sampler["name"] if sampler is None else sampler
    if not isinstance(name, str):
        raise StructDiffError(
            f"unknown sampler {name!r}: give a Sampler, or the name of one: {', '.join(SAMPLERS)}"
        )
    count = whole("steps", spec.sampler["steps"] if steps is None else steps)
    info = SAMPLERS.get(name)
    options: dict[str, Any] = {}
    if info is not None and name not in ("ode", "sde", "dlg"):
        process = denoiser.system.processes[next(iter(denoiser.system.processes))]
        if isinstance(process, DiscreteVP) and info.nfe_per_step == 1:
            options["grid"] = published_grid(count, process.links)
    if info is not None and "progress" in inspect.signature(info.factory).parameters:
        options["progress"] = False
    return get_sampler(name, count, **options)


class PoseSampler:
    """Hypotheses of clips from a trained model.

    Parameters
    ----------
    denoiser
        Frozen and in evaluation mode.
    spec
        What it is made of.
    sampler
        How to sample.
    flip
        Average every prediction with the mirror image's.
    overlap
        Frames that neighbouring windows share; None is the model's own.

    Raises
    ------
    StructDiffError
        If the overlap is not below the frames of a window.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        spec: ModelSpec,
        sampler: Sampler,
        flip: bool = True,
        overlap: int | None = None,
    ) -> None:
        self.denoiser, self.spec, self.sampler, self.flip = denoiser, spec, sampler, flip
        self.overlap = spec.overlap if overlap is None else overlap
        self._ready: tuple[Any, ...] = ()
        if not 0 <= self.overlap < spec.frames:
            raise StructDiffError(
                f"windows of {spec.frames} frames overlap in 0 to {spec.frames - 1} of them, not "
                f"{self.overlap}"
            )

    @torch.no_grad()
    def lift(self, keypoints: Tensor, hypotheses: int, seed: int, bar: tqdm[Any] | None) -> Tensor:
        """Root-relative hypotheses (H, T, J, 3) in metres of one clip.

        Parameters
        ----------
        keypoints
            Normalised 2D joints (T, J, 2).
        hypotheses
            H.
        seed
            Of the noise.
        bar
            Moves on by the clip's frames.

        Raises
        ------
        StructDiffError
            If the model gives poses that are not finite.
        """
        cuts = Cuts(len(keypoints), self.spec.frames, self.overlap)
        windows = cuts.cut(keypoints)
        at_once = max(1, ROWS // hypotheses)
        parts, shown = [], 0
        for start in range(0, len(windows), at_once):
            rows = slice(start, start + at_once)
            parts.append(self._windows(windows[rows], cuts.numbers[rows], hypotheses, seed))
            if bar is not None:
                done = len(keypoints) * min(start + at_once, len(windows)) // len(windows)
                bar.update(done - shown)
                shown = done
        joined = cuts.join(torch.cat(parts).transpose(0, 1))
        if not bool(joined.isfinite().all()):
            raise StructDiffError(
                "the model gives poses that are not finite: check the keypoints' units, or train "
                "it again at a lower learning rate"
            )
        return joined

    def _windows(self, windows: Tensor, numbers: Tensor, count: int, seed: int) -> Tensor:
        """Hypotheses (M, H, N, J, 3) of a few windows (M, N, J, 2)."""
        network = self.denoiser.network
        assert isinstance(network, PoseNetwork)
        device = next(network.parameters()).device
        seen = windows.to(device).repeat_interleave(count, 0)
        empty = network.clean(seen.new_zeros(*seen.shape[:-1], 3))
        begin, during = (FrameNoise(seed, numbers, count, device, stream) for stream in (0, 1))
        if not self._ready:
            self._ready = (network.prepared(),)
        before = network.flip
        network.flip, network.ready = self.flip, self._ready[0]
        try:
            start = self.denoiser.system.prior(empty, begin)
            drawn = self.sampler(self.denoiser, start, seen, during)
        finally:
            network.flip, network.ready = before, None
        return network.pose(drawn).cpu().unflatten(0, (-1, count))
