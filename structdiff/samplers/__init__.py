"""Samplers: from the prior back to the data, over any system and any denoiser."""

from structdiff.samplers.base import LinearSampler, Run, Sampler, Schedule, Update
from structdiff.samplers.dpm_solver import DPMSolver, SDEDPMSolver
from structdiff.samplers.exponential import DDIM, DDPM, ExponentialIto
from structdiff.samplers.grids import FixedTimes, Grid, Karras, UniformLogSNR, UniformTime
from structdiff.samplers.registry import SAMPLERS, SamplerInfo, get_sampler, register

__all__ = [
    "DDIM",
    "DDPM",
    "SAMPLERS",
    "DPMSolver",
    "ExponentialIto",
    "FixedTimes",
    "Grid",
    "Karras",
    "LinearSampler",
    "Run",
    "SDEDPMSolver",
    "Sampler",
    "SamplerInfo",
    "Schedule",
    "UniformLogSNR",
    "UniformTime",
    "Update",
    "get_sampler",
    "register",
]
