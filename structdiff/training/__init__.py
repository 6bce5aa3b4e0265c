"""Training by Lightning: one module for any denoiser and objective, resumable to the bit."""

from structdiff.training.data import ShuffledBatches
from structdiff.training.fit import TrainingSettings, fit
from structdiff.training.module import DiffusionModule, mix_seed

__all__ = ["DiffusionModule", "ShuffledBatches", "TrainingSettings", "fit", "mix_seed"]
