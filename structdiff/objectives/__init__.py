"""What training minimises: time law x weight x distance, a coupling, and regularisers."""

from structdiff.objectives.base import (
    AdaptiveTimeLaw,
    Coupling,
    Draw,
    Objective,
    Regularizer,
)
from structdiff.objectives.categorical import CategoricalCrossEntropy, CategoricalNetwork
from structdiff.objectives.collocation import Box, Collocation, at_the_data
from structdiff.objectives.conservativity import CurlPenalty, curl_square
from structdiff.objectives.couplings import Independent, MinibatchOT, Sinkhorn, TransportCoupling
from structdiff.objectives.curriculum import Curriculum
from structdiff.objectives.draws import Draws, independent, low_discrepancy, stratified
from structdiff.objectives.fokker_planck import (
    FokkerPlanck,
    ScoreFokkerPlanck,
    fokker_planck_residual,
    score_fokker_planck_residual,
)
from structdiff.objectives.interpolant import (
    FlowMatching,
    InterpolantMatching,
    conditional_flow_matching,
)
from structdiff.objectives.multiplicative import MultiplicativeScoreMatching, hyvarinen_score
from structdiff.objectives.noise_level import NoiseLevelCrossEntropy
from structdiff.objectives.residual import ResidualMatching
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
from structdiff.objectives.weights import (
    AnyWeight,
    EDMWeight,
    Likelihood,
    MinSNR,
    ProcessWeight,
    Sigmoid,
    Simple,
    VelocityWeight,
    Weight,
    weights_at,
)

__all__ = [
    "AdaptiveTimeLaw",
    "AnyTimeLaw",
    "AnyWeight",
    "Box",
    "CategoricalCrossEntropy",
    "CategoricalNetwork",
    "Collocation",
    "Coupling",
    "CurlPenalty",
    "Curriculum",
    "DenoisingScoreMatching",
    "Draw",
    "Draws",
    "EDMLaw",
    "EDMWeight",
    "FlowMatching",
    "FokkerPlanck",
    "Importance",
    "Independent",
    "InterpolantMatching",
    "Likelihood",
    "LogitNormal",
    "MinSNR",
    "MinibatchOT",
    "MultiplicativeScoreMatching",
    "NoiseLevelCrossEntropy",
    "Objective",
    "ProcessWeight",
    "Regularizer",
    "ResidualMatching",
    "ScoreFokkerPlanck",
    "Sigmoid",
    "Simple",
    "Sinkhorn",
    "SystemTimeLaw",
    "TimeLaw",
    "TransportCoupling",
    "Uniform",
    "VelocityWeight",
    "Weight",
    "at_the_data",
    "conditional_flow_matching",
    "curl_square",
    "draw_times",
    "fokker_planck_residual",
    "hyvarinen_score",
    "independent",
    "law_under",
    "low_discrepancy",
    "score_fokker_planck_residual",
    "stratified",
    "weights_at",
]
