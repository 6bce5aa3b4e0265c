"""Train a pose model: the estimator's settings put into the shared training loop."""

from __future__ import annotations

import hashlib
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from structdiff.denoisers import Denoiser
from structdiff.objectives import Uniform
from structdiff.pose.augmentation import TurnedFrames
from structdiff.pose.data import PoseDataset
from structdiff.pose.denoising import mirrored_joints, pose_state
from structdiff.pose.models import ModelSpec
from structdiff.pose.objective import DisentangledLoss, OftenPureNoise
from structdiff.pose.settings import Optimisation
from structdiff.pose.skeletons import Skeleton
from structdiff.pose.windows import TrainingFrames
from structdiff.state import State
from structdiff.training import DiffusionModule, ShuffledBatches, TrainingSettings, fit
from structdiff.training.module import mix_seed

if TYPE_CHECKING:
    from structdiff.pose.ddhpose import PoseLifter


class TrainingBatches:
    """What the training loop is fed with: clean bones and the 2D joints they are seen by.

    Half of the windows are mirrored, a share is turned. What is drawn for a batch is a function of
    the seed and the windows in it, so that a resumed run sees what it would have seen.

    Parameters
    ----------
    windows
        Of the training set.
    spec
        Of the model.
    seed
        Of mirroring and turning.
    """

    def __init__(self, windows: TrainingFrames, spec: ModelSpec, seed: int) -> None:
        self.windows, self.spec, self.seed = windows, spec, seed
        self.skeleton = Skeleton.from_dict(spec.skeleton)

    def __len__(self) -> int:
        return len(self.windows)

    def batch(self, rows: Tensor) -> tuple[State, Tensor]:
        """Windows number ``rows``: bones, and normalised 2D joints (B, N, J, 2)."""
        generator = torch.Generator().manual_seed(mix_seed(self.seed, *rows[:8].tolist()))
        if isinstance(self.windows, TurnedFrames):
            keypoints, joints = self.windows.turned(rows, generator)
        else:
            keypoints, joints = self.windows.batch(rows)
        flipped = (torch.rand(len(rows), generator=generator) < 0.5)[:, None, None, None]
        keypoints = torch.where(flipped, mirrored_joints(keypoints, self.skeleton), keypoints)
        joints = torch.where(flipped, mirrored_joints(joints, self.skeleton), joints)
        return pose_state(joints, self.skeleton, root_slot=self.spec.root_slot), keypoints

    def digest(self) -> str:
        """Of the frames: as many of others are not the same training set."""
        found = hashlib.blake2b(digest_size=8)
        for part in (self.windows.keypoints, self.windows.joints):
            found.update(part.numpy().tobytes())
        return found.hexdigest()


def training_windows(
    model: PoseLifter, data: PoseDataset, spec: ModelSpec
) -> TrainingFrames | TurnedFrames:
    """The windows that a model is trained on; the published training turns none."""
    if model.preset == "paper":
        return TrainingFrames(data, spec.frames, spec.view, published=True)
    if model.turn:
        return TurnedFrames(data, spec.frames, spec.view, share=model.turn)
    return TrainingFrames(data, spec.frames, spec.view)


def train(
    model: PoseLifter,
    denoiser: Denoiser,
    batches: TrainingBatches,
    out: str | Path | None,
    resume: bool,
) -> dict[str, Any]:
    """Fit a denoiser in place and return a record of the training.

    Parameters
    ----------
    model
        Holds the settings.
    denoiser
        With fresh weights.
    batches
        Training set.
    out, resume
        As for :meth:`PoseLifter.fit`.
    """
    paper, seed = model.preset == "paper", model._seed()
    chosen = Optimisation.of(model)
    settings = TrainingSettings(
        max_steps=model.max_steps,
        precision=model.precision,
        gradient_clip=1.0,
        ema_decay=0.0 if paper else min(0.999, 1 - 10 / max(model.max_steps, 20)),
        checkpoint_every=model.checkpoint_every,
        accelerator=model.accelerator,
        progress=model.progress,
    )
    objective = (
        DisentangledLoss(Uniform())
        if paper
        else DisentangledLoss(
            OftenPureNoise(),
            direction_weight=model.direction_weight,
            lifter_steps=round(model.lifter_share * model.max_steps),
        )
    )
    module = DiffusionModule(
        denoiser,
        objective,
        learning_rate=chosen.learning_rate,
        weight_decay=chosen.weight_decay,
        warmup_steps=0 if paper else min(100, model.max_steps // 10),
        total_steps=None if paper else model.max_steps,
        cooldown=0.5,
        seed=seed,
    )
    shuffled = ShuffledBatches(
        len(batches), chosen.batch_size, batches.batch, seed=seed, digest=batches.digest()
    )
    callbacks = []
    if model.max_minutes is not None:
        from lightning.pytorch.callbacks import Timer

        callbacks.append(Timer(timedelta(minutes=float(model.max_minutes)), verbose=False))
    trainer = fit(module, shuffled, settings, out=out, resume=resume, callbacks=callbacks)
    loss = trainer.callback_metrics.get("loss")
    return {
        "windows": len(batches),
        "steps": trainer.global_step,
        "seed": seed,
        "loss": None if loss is None else round(float(loss), 5),
    }
