"""Samplers: from the prior back to the data, over any system and any denoiser."""

from structdiff.samplers.adaptive import ProbabilityFlow, ReverseSDE
from structdiff.samplers.base import LinearSampler, Run, Sampler, Schedule, SteppedSampler, Update
from structdiff.samplers.boundary import BoundarySearch, search_boundary
from structdiff.samplers.deis import DEIS, IPNDM
from structdiff.samplers.denoising_mcmc import DenoisingLangevinGibbs, effective_sample_size
from structdiff.samplers.dpm_singlestep import DPMSolverSinglestep
from structdiff.samplers.dpm_solver import DPMSolver, SDEDPMSolver
from structdiff.samplers.euler import EulerMaruyama, ReverseDiffusion
from structdiff.samplers.evodiff import EVODiff
from structdiff.samplers.exponential import DDIM, DDPM, ExponentialIto
from structdiff.samplers.geometric import AmbientReverseGBM, ReverseGBM
from structdiff.samplers.grid_search import GridSearch, search_grid
from structdiff.samplers.grids import FixedTimes, Grid, Karras, UniformLogSNR, UniformTime
from structdiff.samplers.heun import EDMSampler, Heun
from structdiff.samplers.interpolant import Flow, InterpolantSDE
from structdiff.samplers.langevin import PredictorCorrector
from structdiff.samplers.lml import LML
from structdiff.samplers.noise_levels import (
    ExactNoisePosterior,
    NoiseClassifier,
    NoisePosterior,
    ScoreNoisePosterior,
    noise_levels,
)
from structdiff.samplers.registry import SAMPLERS, SamplerInfo, get_sampler, register
from structdiff.samplers.residual import RDDM
from structdiff.samplers.runge_kutta import RungeKutta, Tableau
from structdiff.samplers.splitting import S4
from structdiff.samplers.unipc import UniPC

__all__ = [
    "DDIM",
    "DDPM",
    "DEIS",
    "IPNDM",
    "LML",
    "RDDM",
    "S4",
    "SAMPLERS",
    "AmbientReverseGBM",
    "BoundarySearch",
    "DPMSolver",
    "DPMSolverSinglestep",
    "DenoisingLangevinGibbs",
    "EDMSampler",
    "EVODiff",
    "EulerMaruyama",
    "ExactNoisePosterior",
    "ExponentialIto",
    "FixedTimes",
    "Flow",
    "Grid",
    "GridSearch",
    "Heun",
    "InterpolantSDE",
    "Karras",
    "LinearSampler",
    "NoiseClassifier",
    "NoisePosterior",
    "PredictorCorrector",
    "ProbabilityFlow",
    "ReverseDiffusion",
    "ReverseGBM",
    "ReverseSDE",
    "Run",
    "RungeKutta",
    "SDEDPMSolver",
    "Sampler",
    "SamplerInfo",
    "Schedule",
    "ScoreNoisePosterior",
    "SteppedSampler",
    "Tableau",
    "UniPC",
    "UniformLogSNR",
    "UniformTime",
    "Update",
    "effective_sample_size",
    "get_sampler",
    "noise_levels",
    "register",
    "search_boundary",
    "search_grid",
]
