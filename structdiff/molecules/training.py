"""Train a molecule model: the estimator's settings put into the shared training loop."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from structdiff.molecules.data import MoleculeSet
from structdiff.objectives import CategoricalCrossEntropy, DenoisingScoreMatching, Objective
from structdiff.training import DiffusionModule, ShuffledBatches, TrainingSettings, fit

if TYPE_CHECKING:
    from structdiff.molecules.gdss import MoleculeGenerator


def train(
    generator: MoleculeGenerator, molecules: MoleculeSet, out: str | Path | None, resume: bool
) -> dict[str, Any]:
    """Fit ``generator.denoiser_`` in place and return a record of the training.

    Parameters
    ----------
    generator
        Holds the settings and the denoiser.
    molecules
        Training set.
    out, resume
        As for :meth:`MoleculeGenerator.fit`.
    """
    seed = generator._seed()
    settings = TrainingSettings(
        max_steps=generator.max_steps,
        precision=generator.precision,
        ema_decay=generator.ema_decay,
        checkpoint_every=generator.checkpoint_every,
        accelerator=generator.accelerator,
        devices=generator.devices,
        strategy=generator.strategy,
        progress=generator.progress,
    )
    module = DiffusionModule(
        generator.denoiser_,
        _objective(generator),
        learning_rate=generator.learning_rate,
        weight_decay=generator.weight_decay,
        total_steps=generator.max_steps,
        seed=seed,
    )
    batches = ShuffledBatches(
        len(molecules),
        generator.batch_size,
        molecules.to_state,
        seed=seed,
        rank=int(os.environ.get("RANK", "0")),
        world_size=int(os.environ.get("WORLD_SIZE", "1")),
    )
    if generator.compile_network:
        for layer in generator.denoiser_.network.layers:  # type: ignore[union-attr]
            layer.compile()
    trainer = fit(module, batches, settings, out=out, resume=resume)
    loss = trainer.callback_metrics.get("loss")
    return {
        "molecules": len(molecules),
        "steps": trainer.global_step,
        "loss": None if loss is None else round(float(loss), 5),
    }


def _objective(generator: MoleculeGenerator) -> Objective:
    weights = {"x": 1.0, "adj": generator.bond_weight}
    if generator.spec_.categorical:
        return CategoricalCrossEntropy(component_weights=weights)
    return DenoisingScoreMatching(component_weights={"x": 0.5, "adj": 1.0}, reduction="sum")
