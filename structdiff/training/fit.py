"""Run a training: trainer, EMA, checkpoints, log and progress bar put together once."""

from __future__ import annotations

import logging
import signal
import threading
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging
from lightning.pytorch.utilities.exceptions import SIGTERMException

from structdiff.errors import CheckpointError, StructDiffError
from structdiff.training.checkpoints import LAST, CheckpointFiles, KeepLast, check_belongs
from structdiff.training.data import ShuffledBatches
from structdiff.training.module import DiffusionModule
from structdiff.training.reporting import MetricsLog, StepProgress

PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")


@dataclass(frozen=True)
class TrainingSettings:
    """How to train, apart from what.

    Parameters
    ----------
    max_steps
        Optimiser steps in all, also when a run is resumed. Every process takes each of them, on
        its own batch.
    precision
        ``"32-true"``, ``"bf16-mixed"``, or, on a GPU, ``"16-mixed"``.
    gradient_clip
        Largest gradient norm.
    ema_decay
        Of the weight average that is kept as the result.
    checkpoint_every
        Optimiser steps between checkpoints.
    log_every
        Optimiser steps between rows of ``metrics.csv``.
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
    log_every: int = 10
    accelerator: str = "auto"
    devices: int | str = 1
    num_nodes: int = 1
    strategy: Any = "auto"
    progress: bool = True

    def __post_init__(self) -> None:
        for name in ("max_steps", "checkpoint_every", "log_every"):
            if getattr(self, name) < 1:
                raise StructDiffError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 <= self.ema_decay < 1:
            raise StructDiffError(f"ema_decay must lie in [0, 1), got {self.ema_decay}")
        if self.precision not in PRECISIONS:
            raise StructDiffError(
                f"unknown precision {self.precision!r}: choose one of {', '.join(PRECISIONS)}"
            )
        if self.precision == "16-mixed" and not self._on_gpu():
            raise StructDiffError(
                "precision 16-mixed needs a GPU: choose bf16-mixed or 32-true on a CPU"
            )

    def _on_gpu(self) -> bool:
        gpu = torch.cuda.is_available() or torch.backends.mps.is_available()
        return self.accelerator != "cpu" and (gpu or self.accelerator not in ("auto", "gpu"))


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

    On a CPU a resumed run equals an uninterrupted one bit for bit: weights, average, and log.

    Parameters
    ----------
    module
        The model and objective.
    batches
        What Lightning iterates every epoch; :class:`~structdiff.training.data.ShuffledBatches`
        are shared out over the processes, and their order resumes as well.
    settings
        How to train.
    out
        Folder for ``checkpoints/last.ckpt`` and ``metrics.csv``; None keeps nothing.
    resume
        Continue from the last checkpoint in ``out``; without one, start from the beginning.
    callbacks
        More Lightning callbacks.

    Raises
    ------
    CheckpointError
        If ``out`` already holds a run and ``resume`` is False, or its checkpoint is damaged, of
        another model, or of other data.
    StructDiffError
        If the run has more steps behind it than ``max_steps``, or its loss is not finite.
    KeyboardInterrupt, SystemExit
        On Ctrl-C, or SIGTERM (143), after the step in progress is finished and saved.
    """
    folder = None if out is None else Path(out)
    last = None if folder is None else folder / "checkpoints" / LAST
    checkpoint = last if last is not None and last.exists() else None
    if checkpoint is not None and not resume:
        raise CheckpointError(
            f"{folder} already holds a training run: resume it (--resume), or choose another folder"
        )
    if checkpoint is not None:
        _check_resumable(checkpoint, module, settings)
    with _quiet(), _interruptible():
        trainer = _trainer(settings, folder, [*callbacks, _Share(batches)])
        trainer.fit(module, batches, ckpt_path=checkpoint, weights_only=True)
    return trainer


def _check_resumable(path: Path, module: DiffusionModule, settings: TrainingSettings) -> None:
    stored = CheckpointFiles().load_checkpoint(path)
    check_belongs(stored, module, path.parent.parent)
    if stored["global_step"] > settings.max_steps:
        raise StructDiffError(
            f"{path.parent.parent} holds a run of {stored['global_step']} steps already: resume it "
            f"with a larger max_steps than {settings.max_steps}"
        )


def _trainer(
    settings: TrainingSettings, folder: Path | None, callbacks: list[pl.Callback]
) -> pl.Trainer:
    log = None if folder is None else folder / "metrics.csv"
    chosen = [_Average(settings.ema_decay), MetricsLog(log, settings.log_every), *callbacks]
    if folder is not None:
        chosen.append(KeepLast(folder / "checkpoints" / LAST, settings.checkpoint_every))
    if settings.progress:
        chosen.append(StepProgress(settings.log_every))
    try:
        return pl.Trainer(
            max_steps=settings.max_steps,
            max_epochs=-1,
            precision=settings.precision,
            gradient_clip_val=settings.gradient_clip,
            accelerator=settings.accelerator,
            devices=settings.devices,
            num_nodes=settings.num_nodes,
            strategy=settings.strategy,
            logger=False,
            callbacks=chosen,
            plugins=[CheckpointFiles()],
            default_root_dir=folder,
            enable_checkpointing=folder is not None,
            enable_progress_bar=settings.progress,
            enable_model_summary=False,
            use_distributed_sampler=False,
        )
    except (ValueError, RuntimeError) as error:  # Lightning's words for an impossible choice
        raise StructDiffError(f"training cannot start: {error}") from error


class _Average(EMAWeightAveraging):
    """The moving average of the weights, after every step from the first."""

    def __init__(self, decay: float) -> None:
        # Buffers are constants of the model: an average would round them a little at every step.
        super().__init__(decay=decay, use_buffers=False, update_starting_at_step=0)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # A resumed run that has no step left never reaches the end of training.
        self.on_train_end(trainer, pl_module)


class _Share(pl.Callback):
    """Tell the batches which process they are in, once that is known."""

    def __init__(self, batches: Iterable[Any]) -> None:
        self.batches = batches

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        place = trainer.distributed_sampler_kwargs
        if place is not None and isinstance(self.batches, ShuffledBatches):
            self.batches.share(place["rank"], place["num_replicas"])


@contextmanager
def _quiet() -> Iterator[None]:
    """Without Lightning's remarks on devices, its tips and its farewell: they are not ours."""
    logger = logging.getLogger("lightning.pytorch")
    before = logger.level
    logger.setLevel(max(before, logging.WARNING))
    try:
        yield
    finally:
        logger.setLevel(before)


@contextmanager
def _interruptible() -> Iterator[None]:
    """Ctrl-C as KeyboardInterrupt, SIGTERM as an exit with 143.

    Lightning makes exits of both, the second one with code 0, and is deaf to Ctrl-C afterwards.
    """
    in_main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGINT) if in_main else None
    try:
        with warnings.catch_warnings():
            # A deprecation inside Lightning that its users can do nothing about.
            warnings.filterwarnings("ignore", message=".*LeafSpec.*")
            yield
    except SIGTERMException as stop:
        raise SystemExit(128 + signal.SIGTERM) from stop
    except SystemExit as stop:
        if isinstance(stop.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from None
        raise
    finally:
        if handler is not None:
            signal.signal(signal.SIGINT, handler)
