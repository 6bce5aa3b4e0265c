"""Run a training: trainer, EMA, checkpoints, logger and progress bar put together once."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import (
    EMAWeightAveraging,
    LearningRateMonitor,
    ModelCheckpoint,
    RichProgressBar,
)
from lightning.pytorch.loggers import CSVLogger

from structdiff.errors import CheckpointError, StructDiffError
from structdiff.training.module import DiffusionModule

LAST = "last.ckpt"
"""Name of the checkpoint that a run resumes from, inside its ``checkpoints`` folder."""


@dataclass(frozen=True)
class TrainingSettings:
    """How to train, apart from what.

    Parameters
    ----------
    max_steps
        Optimiser steps in all.
    precision
        Lightning's name: ``"32-true"``, ``"bf16-mixed"``, ``"16-mixed"``.
    gradient_clip
        Largest gradient norm.
    ema_decay
        Of the weight average that is kept as the result.
    checkpoint_every
        Optimiser steps between checkpoints.
    accelerator, devices, num_nodes, strategy
        Lightning's; ``strategy="ddp"`` with several devices trains data-parallel.
    progress
        Show a progress bar.
    """

    max_steps: int
    precision: Any = "32-true"
    gradient_clip: float = 1.0
    ema_decay: float = 0.999
    checkpoint_every: int = 500
    accelerator: str = "auto"
    devices: int | str = 1
    num_nodes: int = 1
    strategy: Any = "auto"
    progress: bool = True

    def __post_init__(self) -> None:
        if self.max_steps < 1:
            raise StructDiffError(f"max_steps must be at least 1, got {self.max_steps}")
        if not 0 <= self.ema_decay < 1:
            raise StructDiffError(f"ema_decay must lie in [0, 1), got {self.ema_decay}")


def fit(
    module: DiffusionModule,
    batches: Iterable[Any],
    settings: TrainingSettings,
    *,
    out: str | Path | None = None,
    resume: bool = False,
    callbacks: Iterable[pl.Callback] = (),
) -> pl.Trainer:
    """Train ``module`` on ``batches``; its weights end up as the moving average.

    Parameters
    ----------
    module
        The model and objective.
    batches
        What Lightning iterates every epoch; with ``state_dict`` (as
        :class:`~structdiff.training.data.ShuffledBatches`) the data order resumes as well.
    settings
        How to train.
    out
        Folder for checkpoints and ``metrics.csv``; None keeps nothing.
    resume
        Continue from the last checkpoint in ``out``; without one, start from the beginning.
    callbacks
        More Lightning callbacks.

    Raises
    ------
    CheckpointError
        If ``out`` already holds a run and ``resume`` is False.
    """
    if out is None:
        with tempfile.TemporaryDirectory() as folder:
            return _run(module, batches, settings, Path(folder), None, callbacks, keep=False)
    folder = Path(out)
    last = folder / "checkpoints" / LAST
    if last.exists() and not resume:
        raise CheckpointError(
            f"{folder} already holds a training run: resume it (--resume), or choose another folder"
        )
    return _run(module, batches, settings, folder, last if last.exists() else None, callbacks)


def _run(
    module: DiffusionModule,
    batches: Iterable[Any],
    settings: TrainingSettings,
    folder: Path,
    checkpoint: Path | None,
    callbacks: Iterable[pl.Callback],
    keep: bool = True,
) -> pl.Trainer:
    chosen: list[pl.Callback] = [
        EMAWeightAveraging(decay=settings.ema_decay, update_starting_at_step=0),
        *callbacks,
    ]
    if keep:
        chosen.append(
            ModelCheckpoint(
                folder / "checkpoints",
                filename="last",
                every_n_train_steps=settings.checkpoint_every,
                save_on_train_epoch_end=False,
                enable_version_counter=False,
                save_top_k=1,
            )
        )
        chosen.append(LearningRateMonitor("step"))
    if settings.progress:
        chosen.append(RichProgressBar(refresh_rate=10, leave=True))
    trainer = pl.Trainer(
        max_steps=settings.max_steps,
        max_epochs=-1,
        precision=settings.precision,
        gradient_clip_val=settings.gradient_clip,
        accelerator=settings.accelerator,
        devices=settings.devices,
        num_nodes=settings.num_nodes,
        strategy=settings.strategy,
        logger=CSVLogger(folder, name=None, version="logs") if keep else False,
        callbacks=chosen,
        enable_checkpointing=keep,
        enable_progress_bar=settings.progress,
        enable_model_summary=False,
        use_distributed_sampler=False,
        log_every_n_steps=10,
    )
    trainer.fit(module, batches, ckpt_path=None if checkpoint is None else str(checkpoint))
    return trainer
