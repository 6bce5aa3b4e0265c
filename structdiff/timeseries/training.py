"""Train a window model: the estimator's settings put into the shared training loop."""

from __future__ import annotations

import hashlib
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from structdiff.denoisers import BaseDenoiser
from structdiff.errors import StructDiffError
from structdiff.guidance import GaussianCovariance
from structdiff.objectives import DenoisingScoreMatching, Importance, Simple, Uniform
from structdiff.objectives.weights import weights_at
from structdiff.state import State
from structdiff.timeseries.models import ModelSpec
from structdiff.timeseries.prior import GaussianWeight, fit_prior
from structdiff.timeseries.storage import as_stored
from structdiff.timeseries.windows import WindowMaker
from structdiff.training import DiffusionModule, ShuffledBatches, TrainingSettings, fit

if TYPE_CHECKING:
    from structdiff.timeseries.frames import Panel
    from structdiff.timeseries.tsdiff import TSDiff

PRIOR_WINDOWS = 20_000
"""Windows that the Gaussian is fitted to, at most."""
KEPT_LEVELS = 1024
"""Shifts and scales of training windows that a model keeps."""
_LEAST_OBSERVED = 0.5


class ObservedScoreMatching(DenoisingScoreMatching):
    """Denoising score matching over observed entries: a gap that was filled teaches nothing.

    The condition is which entries are observed, bool (B, L, C); the network gets none.
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
        error = denoiser.noise(noisy, times)["x"] - noise["x"]
        count = condition.flatten(1).sum(1).clamp(min=1)
        squared = (error * condition).flatten(1).square().sum(1) / count
        weight = weights_at(self.weight, denoiser.system, times)["x"]
        return {"x": weight.to(squared.dtype) * squared}


class TrainingWindows:
    """All windows of the training series, with the Gaussian that was fitted to them.

    Parameters
    ----------
    panel
        Training series; each of them at least a window and its lags long.
    spec
        Of the windows.
    seed
        Which windows the Gaussian is fitted to, where there are very many.

    Raises
    ------
    StructDiffError
        If every window is mostly missing.
    """

    def __init__(self, panel: Panel, spec: ModelSpec, seed: int) -> None:
        shape = (spec.context, spec.horizon, spec.lags, spec.scaling)
        self.maker = WindowMaker(panel.values, *shape, fill=True)
        index, cut = self.maker.training_cuts()
        keep = self._observed_share(index, cut) >= _LEAST_OBSERVED
        if not bool(keep.any()):
            raise StructDiffError(
                f"every window of {spec.length} points is more than half missing: fit on series "
                "with fewer gaps, or with a shorter context"
            )
        self.index, self.cut = index[keep], cut[keep]
        self.skipped = int((~keep).sum())
        generator = torch.Generator().manual_seed(seed)
        chosen = torch.randperm(len(self), generator=generator)[:PRIOR_WINDOWS]
        self.sample = self.maker.batch(self.index[chosen], self.cut[chosen], future=True)
        self.prior = self._fit(spec.rank)

    def __len__(self) -> int:
        return len(self.index)

    def levels(self) -> npt.NDArray[np.float64]:
        """Shift, scale, lowest and highest scaled value of some of the windows, (N, 4)."""
        values = self.sample.x[:KEPT_LEVELS, :, 0].double()
        low, high = values.amin(1), values.amax(1)
        shift, scale = (v[:KEPT_LEVELS].double() for v in (self.sample.shift, self.sample.scale))
        return torch.stack((shift, scale, low, high), dim=1).numpy()

    def _observed_share(self, index: Tensor, cut: Tensor) -> Tensor:
        """Of the points of every window, by running sums along the series."""
        total = torch.cat((torch.zeros(1), self.maker._observed.double().cumsum(0)))
        end = self.maker._first[index] + cut + self.maker.horizon
        return (total[end] - total[end - self.maker.length]) / self.maker.length

    def _fit(self, rank: int) -> GaussianCovariance:
        windows = self.sample.x
        if len(windows) < 2:  # one window: it, and no certainty about it
            size = windows[0].numel()
            return GaussianCovariance(windows[0].flatten(), torch.eye(size, 1), torch.ones(1), 1.0)
        return as_stored(fit_prior(windows, rank))

    def digest(self) -> str:
        """Of the series: as many windows of others are not the same training set."""
        found = hashlib.blake2b(digest_size=8)
        for part in (self.maker.lengths, self.maker._values, self.maker._observed):
            found.update(part.numpy().tobytes())
        return found.hexdigest()

    def batch(self, rows: Tensor) -> tuple[State, Tensor]:
        """Windows number ``rows`` and what is observed of them."""
        made = self.maker.batch(self.index[rows], self.cut[rows], future=True)
        return State({"x": made.x}), made.observed


def train(
    model: TSDiff, windows: TrainingWindows, out: str | Path | None, resume: bool
) -> dict[str, Any]:
    """Fit ``model.denoiser_`` in place and return a record of the training.

    Parameters
    ----------
    model
        Holds the settings and the denoiser.
    windows
        Training set.
    out, resume
        As for :meth:`TSDiff.fit`.
    """
    paper, seed = model.preset == "paper", model._seed()
    settings = TrainingSettings(
        max_steps=model.max_steps,
        gradient_clip=0.5 if paper else 1.0,
        ema_decay=0.0 if paper else min(0.999, 1 - 10 / max(model.max_steps, 20)),
        checkpoint_every=model.checkpoint_every,
        accelerator=model.accelerator,
        progress=model.progress,
    )
    objective = (
        ObservedScoreMatching(Uniform(), Simple())
        if paper
        else ObservedScoreMatching(Importance(), GaussianWeight(windows.prior))
    )
    module = DiffusionModule(
        model.denoiser_,
        objective,
        learning_rate=model.learning_rate,
        warmup_steps=0 if paper else 100,
        total_steps=None if paper else model.max_steps,
        cooldown=0.5,
        seed=seed,
    )
    batches = ShuffledBatches(
        len(windows), model.batch_size, windows.batch, seed=seed, digest=windows.digest()
    )
    callbacks = []
    if model.max_minutes is not None:
        from lightning.pytorch.callbacks import Timer

        callbacks.append(Timer(timedelta(minutes=float(model.max_minutes)), verbose=False))
    trainer = fit(module, batches, settings, out=out, resume=resume, callbacks=callbacks)
    loss = trainer.callback_metrics.get("loss")
    return {
        "windows": len(windows),
        "steps": trainer.global_step,
        "seed": seed,
        "loss": None if loss is None else round(float(loss), 5),
    }
