"""What a training run says about itself: ``metrics.csv`` and a progress bar over its steps."""

from __future__ import annotations

import csv
import math
import os
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ProgressBar
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from structdiff.errors import StructDiffError

_FIXED = ("step", "epoch", "learning_rate")


class MetricsLog(pl.Callback):
    """Write what the module logs to a CSV file, row by row, before the checkpoint of that step.

    So no kill can lose a row that a resumed run will not write again; rows after the checkpoint are
    dropped when a run resumes, so none appears twice. (Lightning's own CSV logger deletes the
    former log on resuming, and writes a step's row after its checkpoint.)

    Parameters
    ----------
    path
        Of the file; None checks the loss and writes nothing.
    every
        Optimiser steps between rows.
    """

    def __init__(self, path: Path | None, every: int) -> None:
        self.path, self.every = path, every
        self._columns: list[str] = []
        self._rate = math.nan

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.path is None or not trainer.is_global_zero:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.path.exists():
            self._keep_until(self.path, trainer.global_step)

    def _keep_until(self, path: Path, step: int) -> None:
        """Drop the rows after ``step``, and a last one that was cut short."""
        with open(path, newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            self._columns = list(reader.fieldnames or ())
            rows = [row for row in reader if None not in row.values()]
        part = path.with_name(f"{path.name}.part")
        with open(part, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self._columns)
            writer.writeheader()
            writer.writerows(row for row in rows if int(row["step"]) <= step)
        os.replace(part, path)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._rate = trainer.optimizers[0].param_groups[0]["lr"]

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        step = trainer.global_step
        if step % self.every and step < trainer.max_steps:
            return
        values = {name: float(value) for name, value in trainer.callback_metrics.items()}
        for name, value in values.items():
            if not math.isfinite(value):
                raise StructDiffError(
                    f"{name} is {value} at step {step}: lower the learning rate, or train with "
                    "precision 32-true"
                )
        if self.path is not None and trainer.is_global_zero:
            row = (step, trainer.current_epoch, self._rate)
            self._append({**dict(zip(_FIXED, row, strict=True)), **values})

    def _append(self, row: dict[str, float]) -> None:
        assert self.path is not None
        fresh = not self._columns
        if fresh:
            self._columns = list(row)
        with open(self.path, "w" if fresh else "a", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self._columns, extrasaction="ignore")
            if fresh:
                writer.writeheader()
            writer.writerow(row)


class StepProgress(ProgressBar):
    """A bar over all optimiser steps; Lightning's runs over one epoch, and epochs are endless here.

    Parameters
    ----------
    every
        Steps between updates.
    """

    def __init__(self, every: int = 10) -> None:
        super().__init__()
        self.every = every
        self.bar: Progress | None = None
        self._enabled = True

    def disable(self) -> None:
        self._enabled = False

    def enable(self) -> None:
        self._enabled = True

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not self._enabled:
            return
        self.bar = Progress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.description}"),
            console=Console(stderr=True),
        )
        self.bar.add_task("", total=trainer.max_steps, completed=trainer.global_step)
        self.bar.start()

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        step = trainer.global_step
        if self.bar is None or (step % self.every and step < trainer.max_steps):
            return
        values = ", ".join(
            f"{name} {float(value):.4g}" for name, value in trainer.progress_bar_metrics.items()
        )
        self.bar.update(TaskID(0), completed=step, description=values)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._stop()

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        self._stop()

    def _stop(self) -> None:
        if self.bar is not None:
            self.bar.stop()
            self.bar = None
