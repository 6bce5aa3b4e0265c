"""The checkpoint that a run resumes from: always there, always whole, read without pickle.

One file, ``last.ckpt``, is replaced every few steps, after the last step, and when Ctrl-C or a
cluster's SIGTERM asks for the end; a run killed at any other moment finds the former one.
"""

from __future__ import annotations

import io
import os
import pickle
import signal
import threading
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch import Tensor

from structdiff.errors import CheckpointError

LAST = "last.ckpt"
"""Name of the checkpoint that a run resumes from, inside its ``checkpoints`` folder."""
_ASK_EVERY = 10
"""Steps between which several processes agree on whether one of them was interrupted."""

# A short file makes torch seek before its beginning, which is an OSError.
_DAMAGED = (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, OSError)


class CheckpointFiles(TorchCheckpointIO):
    """Lightning's checkpoint files, written whole or not at all, and read without pickle."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        """Write beside the former file and put the new one in its place."""
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        place, part = Path(path), Path(f"{path}.part")
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(part, "wb") as file:
                file.write(buffer.getbuffer())
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, place)
        except BaseException:
            part.unlink(missing_ok=True)
            raise

    def load_checkpoint(
        self, path: str | Path, map_location: Any = "cpu", weights_only: bool | None = True
    ) -> dict[str, Any]:
        """Read tensors and plain values only, whatever ``weights_only`` says.

        Raises
        ------
        CheckpointError
            If the file is damaged or holds anything else.
        """
        try:
            checkpoint = super().load_checkpoint(path, map_location or "cpu", weights_only=True)
        except (FileNotFoundError, PermissionError):
            raise
        except _DAMAGED as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else "it ends early"
            raise CheckpointError(
                f"{path} is no readable checkpoint ({reason}): start the training anew in another "
                "folder"
            ) from error
        if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
            raise CheckpointError(f"{path} is no checkpoint of a training run")
        return checkpoint


def check_belongs(checkpoint: Mapping[str, Any], module: pl.LightningModule, folder: Path) -> None:
    """That a checkpoint is of this model.

    Raises
    ------
    CheckpointError
        If names or shapes of the weights differ.
    """
    stored: Mapping[str, Tensor] = checkpoint["state_dict"]
    expected = {name: value.shape for name, value in module.state_dict().items()}
    differing = sorted(
        name
        for name in set(stored) | set(expected)
        if name not in stored or stored[name].shape != expected.get(name)
    )
    if differing:
        raise CheckpointError(
            f"{folder} holds the run of another model (weights {differing[0]!r} differ): resume it "
            "with the data and settings it was started with, or choose another folder"
        )


class KeepLast(Checkpoint):
    """Keep one checkpoint; on Ctrl-C finish the step, save, and only then stop.

    A step cut in half could not be resumed exactly. A second Ctrl-C stops at once.

    Parameters
    ----------
    path
        Of the checkpoint.
    every
        Optimiser steps between checkpoints.
    """

    def __init__(self, path: Path, every: int) -> None:
        self.path, self.every = path, every
        self._asked_to_stop = False
        self._former_handler: Any = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # Only the main thread may, and only it receives Ctrl-C.
        if threading.current_thread() is threading.main_thread():
            self._former_handler = signal.signal(signal.SIGINT, self._interrupt)

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        if self._asked_to_stop:
            raise KeyboardInterrupt
        self._asked_to_stop = True

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        step, stop = trainer.global_step, self._stop(trainer)
        # Several processes receive a SIGTERM at different steps, and saving is a joint act.
        terminated = trainer.received_sigterm and trainer.world_size == 1
        ending = stop or terminated or step >= trainer.max_steps
        if ending or step % self.every == 0:
            trainer.save_checkpoint(self.path)
        if stop:
            raise KeyboardInterrupt

    def _stop(self, trainer: pl.Trainer) -> bool:
        """Whether to stop now; all processes say the same."""
        if trainer.world_size == 1:
            return self._asked_to_stop
        if trainer.global_step % _ASK_EVERY:
            return False
        return trainer.strategy.reduce_boolean_decision(self._asked_to_stop, all=False)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self._restore()

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        self._restore()

    def _restore(self) -> None:
        if self._former_handler is not None:
            signal.signal(signal.SIGINT, self._former_handler)
            self._former_handler = None
