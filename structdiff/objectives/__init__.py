"""What training minimises: time law x weight x distance."""

from structdiff.objectives.base import Objective
from structdiff.objectives.categorical import CategoricalCrossEntropy, CategoricalNetwork
from structdiff.objectives.score_matching import DenoisingScoreMatching
from structdiff.objectives.time_laws import LogitNormal, TimeLaw, Uniform, draw_times
from structdiff.objectives.weights import EDMWeight, Simple, Weight

__all__ = [
    "CategoricalCrossEntropy",
    "CategoricalNetwork",
    "DenoisingScoreMatching",
    "EDMWeight",
    "LogitNormal",
    "Objective",
    "Simple",
    "TimeLaw",
    "Uniform",
    "Weight",
    "draw_times",
]
