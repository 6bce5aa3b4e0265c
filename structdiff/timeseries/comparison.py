"""A window model under every sampler, for :mod:`structdiff.samplers.comparison`.

What is compared are free windows, scaled as the network sees them, with as many real ones: a
sampler that cannot draw these cannot forecast either, and no guidance hides what it does.
"""

from __future__ import annotations

from copy import copy
from hashlib import blake2b

import numpy as np
import torch
from torch import Tensor

from structdiff.errors import StructDiffError
from structdiff.samplers import Sampler
from structdiff.samplers.comparison import ComparableModel, Metric, sliced_wasserstein
from structdiff.timeseries.frames import Panel
from structdiff.timeseries.sampling import choose_sampler
from structdiff.timeseries.synthetic import real_windows
from structdiff.timeseries.tsdiff import TSDiff
from structdiff.timeseries.windows import WindowMaker

_FLOOR_PAIRS = 4


class WindowComparison(ComparableModel):
    """A model of windows and the series its windows are compared with.

    Parameters
    ----------
    model
        Fitted or loaded.
    reference
        Series, at least one of them with a window without gaps.
    name
        How the user calls the model.

    Raises
    ------
    StructDiffError
        If the model is not fitted, or the series have another frequency or no whole window.
    """

    metrics = (
        Metric("sliced_w2", "sliced W2 to real windows", "smaller"),
        Metric("covariance", "covariance error, relative", "smaller"),
        Metric("roughness", "roughness error, |log| of the ratio of steps", "smaller"),
    )

    def __init__(self, model: TSDiff, reference: Panel, name: str = "series") -> None:
        if not hasattr(model, "denoiser_"):
            raise StructDiffError("this TSDiff is not fitted: there is nothing to draw")
        if reference.freq != model.freq_:
            raise StructDiffError(
                f"the series have the frequency {reference.freq!r}, the model was fitted to "
                f"{model.freq_!r}"
            )
        self.name, self.reference = name, reference
        self.model = copy(model)  # the caller's estimator keeps its settings
        self.model.steps, self.model.progress = None, False
        self.fingerprint = _fingerprint(model, self.real(1, 0))

    def sampler(self, name: str, steps: int) -> Sampler:
        """On the grid that the model runs it on."""
        return choose_sampler(self.model.spec_, self.model.denoiser_, name, steps)

    def draw(self, sampler: Sampler, n: int, seed: int) -> Tensor:
        """Scaled windows (n, L)."""
        self.model.sampler = sampler
        return torch.from_numpy(self.model.synthetic_windows(n, seed, scaled=True))

    def real(self, n: int, seed: int) -> Tensor:
        """Scaled windows of the reference, (n, L)."""
        spec = self.model.spec_
        rows = real_windows(self.reference, spec.context, spec.horizon, n, seed)
        maker = WindowMaker(list(rows), spec.context, spec.horizon, (), spec.scaling)
        cut = torch.full((n,), spec.context)
        return maker.batch(torch.arange(n), cut, future=True).x[:, :, 0].double()

    def scores(self, drawn: Tensor) -> dict[str, float]:
        """Sliced W2; ||C - C'|| / ||C'|| of the covariances; |log| of the ratio of RMS steps."""
        return _distances(drawn, self.real(len(drawn), 0))

    def floors(self, n: int) -> dict[str, float]:
        """Scores of real windows against others."""
        each = [
            _distances(self.real(n, 2 * k + 1), self.real(n, 2 * k + 2))
            for k in range(_FLOOR_PAIRS)
        ]
        return {name: float(np.mean([pair[name] for pair in each])) for name in each[0]}


def _distances(drawn: Tensor, real: Tensor) -> dict[str, float]:
    covariance, true = (torch.cov(x.T, correction=0) for x in (drawn, real))
    steps, true_steps = (x.diff(dim=1).square().mean().sqrt() for x in (drawn, real))
    return {
        "sliced_w2": sliced_wasserstein(drawn, real),
        "covariance": float((covariance - true).norm() / true.norm()),
        "roughness": float((steps / true_steps).log().abs()),
    }


def _fingerprint(model: TSDiff, real: Tensor) -> str:
    """Of the weights and the reference."""
    digest = blake2b(digest_size=6)
    for name, value in sorted(model.denoiser_.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    digest.update(repr(model.spec_.to_dict()).encode())
    digest.update(real.numpy().tobytes())
    return digest.hexdigest()
