"""The one Lightning module: any denoiser, any objective.

Every random number of a training step, those of dropout included, is a function of (seed, batch
number, rank), so a resumed run continues exactly where the interrupted one stopped and needs no
generator state.
"""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from structdiff.denoisers import Denoiser
from structdiff.noise import SeededNoise
from structdiff.objectives import Objective
from structdiff.state import State, as_state

_MIX = 0x9E3779B97F4A7C15


def mix_seed(*parts: int) -> int:
    """One 63-bit seed from several integers; near-by inputs give unrelated seeds (splitmix64)."""
    value = 0
    for part in parts:
        value = (value + part + _MIX) & (2**64 - 1)
        value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & (2**64 - 1)
        value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & (2**64 - 1)
        value ^= value >> 31
    return value >> 1


class DiffusionModule(pl.LightningModule):
    """Minimise an objective over batches of clean states with AdamW.

    Parameters
    ----------
    denoiser
        The model; only its network has parameters.
    objective
        What is minimised.
    learning_rate, weight_decay
        Of AdamW.
    warmup_steps
        Optimiser steps of linear warm-up.
    total_steps
        Optimiser steps in all; None keeps the rate constant after the warm-up.
    cooldown
        Share of ``total_steps`` at the end over which the rate falls linearly to 0. Before it the
        rate is constant, so a run can be resumed with a larger ``total_steps`` and stays the run
        it would have been.
    seed
        Of times and noise.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        objective: Objective,
        *,
        learning_rate: float = 1e-3,
        weight_decay: float = 0.0,
        warmup_steps: int = 100,
        total_steps: int | None = None,
        cooldown: float = 0.3,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.objective = objective
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.warmup_steps = warmup_steps
        self.total_steps = total_steps
        self.cooldown = cooldown
        self.seed = seed
        self.batches_seen = 0
        """Training steps this process has taken: the number of the next one's noise."""

    def training_step(self, batch: State | Tensor | tuple[State, Any], batch_idx: int) -> Tensor:
        """Mean loss of one batch: a state, or a (state, condition) pair."""
        x0, condition = batch if isinstance(batch, tuple) else (batch, None)
        place = self.seed, self.batches_seen, self.global_rank
        source = SeededNoise(mix_seed(*place))
        # Dropout knows no source: it draws from torch's global generators, which are put back.
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            torch.manual_seed(mix_seed(*place, 1))
            loss = self.objective(self.denoiser, as_state(x0), condition, source).mean()
        # Here and not after the batch, where callbacks have written the checkpoint already.
        self.batches_seen += 1
        self.objective.update(self._over_processes(loss.detach()))
        self.log("loss", loss, prog_bar=True, batch_size=as_state(x0).batch_size, sync_dist=True)
        return loss

    def _over_processes(self, loss: Tensor) -> Tensor:
        """The loss that all processes share, where the objective goes by it."""
        if not self.objective.adaptive or self._trainer is None:
            return loss
        mean: Tensor = self.trainer.strategy.reduce(loss.clone(), reduce_op="mean")
        return mean

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["batches_seen"] = self.batches_seen
        checkpoint["objective"] = self.objective.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.batches_seen = checkpoint["batches_seen"]
        # Checkpoints from before objectives had a state: they had nothing but their steps.
        self.objective.load_state_dict(checkpoint.get("objective", {"step": self.batches_seen}))

    def transfer_batch_to_device(
        self, batch: Any, device: torch.device, dataloader_idx: int
    ) -> Any:
        """States move with their masks; Lightning would rebuild them without."""
        if isinstance(batch, State):
            return batch.to(device)
        if isinstance(batch, tuple):
            return tuple(
                self.transfer_batch_to_device(part, device, dataloader_idx) for part in batch
            )
        return super().transfer_batch_to_device(batch, device, dataloader_idx)

    def rate_at(self, step: int) -> float:
        """Share of the learning rate at an optimiser step: warm-up, constant, cool-down."""
        warm = min(1.0, (step + 1) / max(1, self.warmup_steps))
        if self.total_steps is None or not self.cooldown:
            return warm
        left = (self.total_steps - step) / (self.cooldown * self.total_steps)
        return warm * min(1.0, max(0.0, left))

    def configure_optimizers(self) -> Any:
        """AdamW with the schedule stepped every optimiser step."""
        optimizer = torch.optim.AdamW(
            self.denoiser.parameters(), lr=self.learning_rate, weight_decay=self.weight_decay
        )
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self.rate_at)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }
