"""What a trained denoiser knows, and where it errs.

Every diagnostic is a function of a denoiser (which carries its system) and data; it returns a small
frozen result with ``value``, ``standard_error`` and ``n`` per noise level, and ``plot(ax)``.
"""

from structdiff.diagnostics.conservativity import (
    Asymmetry,
    asymmetry,
    asymmetry_at,
    sub_jacobian_asymmetry,
)
from structdiff.diagnostics.distances import (
    energy_distance,
    gaussian_wasserstein,
    histogram_wasserstein,
    sliced_wasserstein,
)
from structdiff.diagnostics.field import Field, noisy_field
from structdiff.diagnostics.fokker_planck import FokkerPlanckMap, fokker_planck_map
from structdiff.diagnostics.gap import Distance, Gap, GaussianGap, gaussian_gap, ode_sde_gap
from structdiff.diagnostics.gauge import GaugeSplit, gauge_condition, gauge_split
from structdiff.diagnostics.intrinsic_dimension import IntrinsicDimension, effective_rank, flipd
from structdiff.diagnostics.linearisation import Linearisation
from structdiff.diagnostics.loops import (
    Circle,
    LoopIntegral,
    PathTest,
    Rectangle,
    loop_integral,
    path_test,
)
from structdiff.diagnostics.spectra import FlowSpectrum, NormalBundle, flow_spectrum, normal_bundle

__all__ = [
    "Asymmetry",
    "Circle",
    "Distance",
    "Field",
    "FlowSpectrum",
    "FokkerPlanckMap",
    "Gap",
    "GaugeSplit",
    "GaussianGap",
    "IntrinsicDimension",
    "Linearisation",
    "LoopIntegral",
    "NormalBundle",
    "PathTest",
    "Rectangle",
    "asymmetry",
    "asymmetry_at",
    "effective_rank",
    "energy_distance",
    "flipd",
    "flow_spectrum",
    "fokker_planck_map",
    "gauge_condition",
    "gauge_split",
    "gaussian_gap",
    "gaussian_wasserstein",
    "histogram_wasserstein",
    "loop_integral",
    "noisy_field",
    "normal_bundle",
    "ode_sde_gap",
    "path_test",
    "sliced_wasserstein",
    "sub_jacobian_asymmetry",
]
