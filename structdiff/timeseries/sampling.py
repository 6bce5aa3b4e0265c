"""From a trained window model to paths of series: given what is known, or freely.

The paths of one series are one batch, whose shape depends on their number alone. So a series' paths
are the same bits whichever other series are asked for, and however large training batches were.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from structdiff.arguments import whole
from structdiff.denoisers import BaseDenoiser, Denoiser
from structdiff.errors import StructDiffError
from structdiff.guidance import (
    CovarianceGuidance,
    GaussianCovariance,
    ObservationGuidance,
    gaussian_start,
    path_levels,
    posterior_start,
    published_scale,
)
from structdiff.noise import PerObjectNoise, splitmix64
from structdiff.processes import DiscreteVP
from structdiff.samplers import SAMPLERS, Karras, Sampler, get_sampler
from structdiff.samplers.exponential import DDPM
from structdiff.state import State
from structdiff.timeseries.models import OWN_SCALES, PAPER_SCALES, ModelSpec, check_guidance
from structdiff.timeseries.windows import WindowBatch, WindowMaker

Array = npt.NDArray[np.float64]
ROWS = 128
"""Windows that are sampled at a time, at most."""
OBSERVATION_NOISE = 1e-4
"""Variance of the noise of an observation, in units of the scaled window."""
_FAR = 1e3
"""Of the largest observed value: beyond it a draw is not of the data any more."""


def series_seeds(seed: int, name: Any, paths: int, stream: str = "") -> Tensor:
    """One seed per path: a function of the seed, the series' name and the path's number alone.

    Parameters
    ----------
    seed
        Of the call.
    name
        Id of the series.
    paths
        S.
    stream
        Tells apart what is drawn for the same series.
    """
    text = f"{int(seed)}/{stream}/{type(name).__name__}/{name!r}".encode()
    key = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")
    numbers = np.random.default_rng(key).integers(2**63 - 1, size=paths)
    return torch.from_numpy(numbers)


def choose_sampler(spec: ModelSpec, denoiser: Denoiser, sampler: Any, steps: int | None) -> Sampler:
    """The sampler asked for; the model's recommended one where nothing is.

    Names run on the grid that suits the model: Karras', or for a DDPM chain its own nodes.

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
    count = whole("steps", spec.sampler["steps"] if steps is None else steps)
    info = SAMPLERS.get(name)
    options: dict[str, Any] = {}
    if info is not None and name not in ("ode", "sde", "dlg"):
        process = denoiser.system.processes["x"]
        if not isinstance(process, DiscreteVP):
            options["grid"] = Karras()
        elif info.nfe_per_step == 1 and count <= process.links:
            options["grid"] = process.trailing(count)
    if info is not None and "progress" in inspect.signature(info.factory).parameters:
        options["progress"] = False
    return get_sampler(name, count, **options)


@dataclass
class WindowSampler:
    """Everything that sampling windows needs.

    Parameters
    ----------
    denoiser
        The trained model, frozen and in evaluation mode (its kernels are then computed once).
    spec
        What it is made of.
    prior
        Gaussian of the training windows.
    sampler
        How to sample.
    guidance, scale
        Kind of guidance and, for ``"quantile"`` and ``"squared"``, its scale.
    """

    denoiser: Denoiser
    spec: ModelSpec
    prior: GaussianCovariance
    sampler: Sampler
    guidance: str
    scale: float | None = None

    def __post_init__(self) -> None:
        check_guidance(self.guidance)
        if self.guidance == "covariance":
            if self.scale is not None:
                raise StructDiffError(
                    "guidance by covariance has no scale: leave guidance_scale out, or choose "
                    "guidance='quantile'"
                )
        elif self.scale is None:
            scales = OWN_SCALES if self.spec.skip else PAPER_SCALES
            self.scale = scales[self.guidance]
        elif not self.scale > 0:
            raise StructDiffError(f"guidance_scale must be positive, got {self.scale}")

    def _guided(
        self, x: State, observed: Tensor, levels: Tensor, seeds: Tensor
    ) -> tuple[BaseDenoiser, State]:
        """The guided denoiser and where it starts."""
        system = self.denoiser.system
        if self.guidance == "covariance":
            guided = CovarianceGuidance(
                self.denoiser, x, {"x": observed}, self.prior, OBSERVATION_NOISE
            )
            return guided, posterior_start(guided, x, seeds)
        process, published = system.processes["x"], self.scale
        rule: Any = published
        if isinstance(process, DiscreteVP) and isinstance(self.sampler, DDPM):
            rule = published_scale(process, float(published or 0.0))
        guide = ObservationGuidance(
            self.denoiser,
            x,
            {"x": observed},
            "quantile" if self.guidance == "quantile" else "squared",
            levels if self.guidance == "quantile" else None,
            rule,
        )
        return guide, system.prior(x, PerObjectNoise(seeds))

    @torch.no_grad()
    def given(self, x: Tensor, observed: Tensor, seeds: Tensor) -> Tensor:
        """Windows given what is observed of them, (S, L, C).

        Parameters
        ----------
        x, observed
            Scaled values and which of them are known, (S, L, C) or (1, L, C) for all.
        seeds
            Per path, (S,).

        Raises
        ------
        StructDiffError
            If what is drawn runs away, as under a guidance that is too strong.
        """
        paths = len(seeds)
        device = next(self.denoiser.parameters()).device
        levels = path_levels(paths)
        parts = []
        for start in range(0, paths, ROWS):
            rows = slice(start, min(paths, start + ROWS))
            count = rows.stop - start
            window, seen = (
                v[rows] if len(v) > 1 else v.expand(count, -1, -1) for v in (x, observed)
            )
            state = State({"x": window.to(device)})
            own = seeds[rows].to(device)
            guided, begin = self._guided(state, seen.to(device), levels[rows].to(device), own)
            parts.append(self.sampler(guided, begin, source=own)["x"])
        drawn = torch.cat(parts)
        limit = _FAR * (1 + float((x * observed).abs().max()))
        if not bool((drawn.abs() <= limit).all()):  # of NaN, too
            softer = "" if self.scale is None else f"lower guidance_scale than {self.scale:g}, "
            raise StructDiffError(
                f"sampling under the guidance {self.guidance!r} diverged: {softer}take more steps, "
                "or train the model for longer"
            )
        return drawn

    @torch.no_grad()
    def free(self, seeds: Tensor) -> Tensor:
        """Windows from the model alone, (S, L, C); they start from the Gaussian of the training
        windows, noised, or under the published settings from noise.

        Parameters
        ----------
        seeds
            Per window, (S,).
        """
        device = next(self.denoiser.parameters()).device
        parts = []
        for start in range(0, len(seeds), ROWS):
            own = seeds[start : start + ROWS].to(device)
            empty = torch.zeros(len(own), self.spec.length, self.spec.channels, device=device)
            state = State({"x": empty})
            noise = PerObjectNoise(own)
            system = self.denoiser.system
            begin = (
                gaussian_start(system, state, self.prior, noise)
                if self.spec.skip
                else system.prior(state, noise)
            )
            parts.append(self.sampler(self.denoiser, begin, source=own)["x"])
        return torch.cat(parts)

    def forecast(self, history: Array, h: int, seeds: Tensor) -> Array:
        """Paths of the ``h`` points after a series, (S, h) in its units.

        A horizon beyond the model's is reached by windows one after another, each path on its own.

        Parameters
        ----------
        history
            (T,), NaN = missing.
        h
            Points ahead.
        seeds
            Per path, (S,).
        """
        spec, paths = self.spec, len(seeds)
        pieces: list[Array] = []
        for window in _windows(np.asarray(history, float), spec, paths, h, pieces):
            own = seeds if not pieces else _next_seeds(seeds, len(pieces))
            drawn = self.given(window.x, window.observed, own)
            values = window.unscaled(drawn.cpu()) if len(window.x) > 1 else _unscaled(window, drawn)
            pieces.append(values[:, spec.context :, 0].numpy())
        return np.concatenate(pieces, axis=1)[:, :h]


def _unscaled(window: WindowBatch, drawn: Tensor) -> Tensor:
    """Draws (S, L, C) of a single window in the units of its series."""
    return drawn.cpu().double() * window.scale + window.shift


def _next_seeds(seeds: Tensor, number: int) -> Tensor:
    """Fresh seeds for the ``number``-th window of the same paths."""
    return splitmix64(seeds, torch.tensor(number, dtype=torch.int64)) & (2**63 - 1)


def _windows(
    history: Array, spec: ModelSpec, paths: int, h: int, pieces: list[Array]
) -> Iterator[WindowBatch]:
    """The windows of a forecast: one for all paths, then one per path after what it drew."""
    shape = (spec.context, spec.horizon, spec.lags, spec.scaling)
    one = torch.tensor([0])
    yield WindowMaker([history], *shape).batch(one, torch.tensor([len(history)]), future=False)
    while sum(p.shape[1] for p in pieces) < h:
        drawn = np.concatenate(pieces, axis=1)
        series = [np.concatenate([history[-spec.reach :], path]) for path in drawn]
        maker = WindowMaker(series, *shape)
        yield maker.batch(torch.arange(paths), maker.lengths, future=False)
