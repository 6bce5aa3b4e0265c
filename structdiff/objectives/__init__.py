"""What training minimises: time law x weight x distance, a coupling, and regularisers."""

from structdiff.objectives.base import (
    AdaptiveTimeLaw,
    Coupling,
    Draw,
    Objective,
    Regularizer,
)
from structdiff.objectives.categorical import CategoricalCrossEntropy, CategoricalNetwork
from structdiff.objectives.draws import Draws, independent, low_discrepancy, stratified
from structdiff.objectives.score_matching import DenoisingScoreMatching
from structdiff.objectives.time_laws import (
    AnyTimeLaw,
    EDMLaw,
    Importance,
    LogitNormal,
    SystemTimeLaw,
    TimeLaw,
    Uniform,
    draw_times,
    law_under,
)
from structdiff.objectives.weights import EDMWeight, Simple, Weight

__all__ = [
    "AdaptiveTimeLaw",
    "AnyTimeLaw",
    "CategoricalCrossEntropy",
    "CategoricalNetwork",
    "Coupling",
    "DenoisingScoreMatching",
    "Draw",
    "Draws",
    "EDMLaw",
    "EDMWeight",
    "Importance",
    "LogitNormal",
    "Objective",
    "Regularizer",
    "Simple",
    "SystemTimeLaw",
    "TimeLaw",
    "Uniform",
    "Weight",
    "draw_times",
    "independent",
    "law_under",
    "low_discrepancy",
    "stratified",
]
