"""Train a molecule model: the estimator's settings put into the shared training loop."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from structdiff.molecules.data import MoleculeSet
from structdiff.objectives import (
    CategoricalCrossEntropy,
    DenoisingScoreMatching,
    LogitNormal,
    Objective,
)
from structdiff.training import DiffusionModule, ShuffledBatches, TrainingSettings, fit

if TYPE_CHECKING:
    from structdiff.molecules.gdss import MoleculeGenerator

TIME_LAW = LogitNormal(-0.5, 0.8)
"""On the straight line, values one apart are told apart where t lies between 0.15 and 0.6: below it
the input decides every atom and bond, above it no network can, so training looks in between."""


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
        strategy=_strategy(generator),
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
    batches = ShuffledBatches(len(molecules), generator.batch_size, molecules.to_state, seed=seed)
    if generator.compile_network:
        for layer in generator.denoiser_.network.layers:  # type: ignore[union-attr]
            layer.compile()
    trainer = fit(module, batches, settings, out=out, resume=resume)
    loss = trainer.callback_metrics.get("loss")
    return {
        "molecules": len(molecules),
        "steps": trainer.global_step,
        "seed": seed,
        "loss": None if loss is None else round(float(loss), 5),
    }


def _strategy(generator: MoleculeGenerator) -> str:
    """Data-parallel training must be told that the GDSS networks' last layers use half of theirs:
    the node branch of the adjacency network, the pair branch of the node network.
    """
    several = generator.strategy == "auto" and generator.devices not in (1, "1")
    if not generator.spec_.categorical and (several or generator.strategy == "ddp"):
        return "ddp_find_unused_parameters_true"
    return generator.strategy


def _objective(generator: MoleculeGenerator) -> Objective:
    if generator.spec_.categorical:
        return CategoricalCrossEntropy(component_weights={"x": 1.0, "adj": generator.bond_weight})
    # Half the sum over the full matrix, as published: the pairs count once.
    return DenoisingScoreMatching(component_weights={"x": 0.5, "adj": 1.0}, reduction="sum")
