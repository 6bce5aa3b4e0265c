"""Saved window models: what :mod:`structdiff.storage` stores, with the Gaussian of the windows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from structdiff.errors import CheckpointError
from structdiff.estimators import Contents, SavedEstimator
from structdiff.guidance import GaussianCovariance
from structdiff.samplers import Sampler
from structdiff.storage import TIME_SERIES, check_widths, expected_tensors
from structdiff.timeseries.freq import parse_frequency
from structdiff.timeseries.models import ModelSpec, build_denoiser, set_prior
from structdiff.timeseries.prior import PRIOR_TENSORS
from structdiff.timeseries.sampling import WindowSampler, choose_sampler
from structdiff.timeseries.windows import Scaling

_LONGEST = 100_000


class SavedWindowModel(SavedEstimator):
    """What is stored of a window model: its network, its Gaussian, its frequency and levels."""

    _FORMAT = TIME_SERIES
    _PARTS = ("model", "freq", "refinement_time")

    spec_: ModelSpec
    covariance_: GaussianCovariance
    freq_: str | int
    levels_: npt.NDArray[np.float64]
    refinement_time_: float

    def _parameters(self) -> dict[str, Any]:
        parameters = self.get_params()
        if isinstance(parameters["sampler"], Sampler):
            parameters["sampler"] = parameters["steps"] = None  # an object of the session
        if parameters["freq"] is not None:
            parameters["freq"] = self.freq_
        return parameters

    def _contents(self) -> Contents:
        config = {
            "model": self.spec_.to_dict(),
            "freq": self.freq_,
            "refinement_time": self.refinement_time_,
        }
        state, prior = self.denoiser_.network.state_dict(), self.covariance_
        exact = {f"prior.{name}": getattr(prior, name).float() for name in PRIOR_TENSORS[:3]}
        exact["prior.rest"] = torch.tensor(prior.rest)
        exact["levels"] = torch.from_numpy(self.levels_)
        return Contents(config, {k: v for k, v in state.items() if not _of_prior(k)}, exact)

    def _describe(self, config: Mapping[str, Any]) -> None:
        self.spec_ = ModelSpec.from_dict(config["model"])
        _check_sizes(self.spec_)
        self.freq_ = _frequency(config["freq"])
        self.refinement_time_ = _time(config["refinement_time"])

    def _expected(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        network = expected_tensors(lambda: build_denoiser(self.spec_).network)
        weights = {k: v for k, v in network.items() if not _of_prior(k)}
        return {**weights, **_further(self.spec_, tensors)}

    def _assemble(self, tensors: Mapping[str, Tensor]) -> None:
        spec = self.spec_
        self.denoiser_ = build_denoiser(spec)
        self.covariance_ = _prior(tensors)
        self.levels_ = tensors["levels"].double().numpy()
        set_prior(self.denoiser_, self.covariance_)
        chosen = choose_sampler(spec, self.denoiser_, None, None)
        kind, scale = spec.guidance["kind"], spec.guidance["scale"]
        # An impossible one is the file's damage, not an error of the first forecast.
        WindowSampler(self.denoiser_, spec, self.covariance_, chosen, kind, scale)
        network = self.denoiser_.network
        network.load_state_dict({k: tensors.get(k, v) for k, v in network.state_dict().items()})
        self.denoiser_.requires_grad_(False)


def _of_prior(name: str) -> bool:
    return name in PRIOR_TENSORS


def _check_sizes(spec: ModelSpec) -> None:
    check_widths({k: v for k, v in spec.network.items() if k != "length"})
    lengths = (spec.context, spec.horizon, spec.rank, *spec.lags)
    if not all(isinstance(v, int) and 1 <= v <= _LONGEST for v in lengths):
        raise ValueError(f"no window has the lengths {lengths}")
    if spec.network["length"] != spec.length:
        raise ValueError(f"a network of length {spec.network['length']} for {spec.length} points")
    if spec.scaling not in get_args(Scaling):
        raise ValueError(f"unknown scaling {spec.scaling!r}")


def _frequency(freq: Any) -> str | int:
    """A stored frequency, if it is one: a name, or the step of integer time."""
    if isinstance(freq, bool) or not isinstance(freq, (str, int)):
        raise ValueError(f"no frequency is {freq!r}")
    parse_frequency(freq)
    return freq


def _time(time: Any) -> float:
    if not 0 < float(time) <= 1:
        raise ValueError(f"no time of refinement is {time}")
    return float(time)


def _further(spec: ModelSpec, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Shapes of what is stored besides the network."""
    size = spec.length * spec.channels
    levels = tensors.get("levels")
    rows = len(levels) if levels is not None and levels.dim() == 2 else 0
    with torch.device("meta"):
        return {
            "prior.mean": torch.empty(size),
            "prior.vectors": torch.empty(size, spec.rank),
            "prior.values": torch.empty(spec.rank),
            "prior.rest": torch.empty(()),
            "levels": torch.empty(rows, 4),
        }


def _prior(tensors: Mapping[str, Tensor]) -> GaussianCovariance:
    if not len(tensors["levels"]) or not bool((tensors["levels"][:, 1] > 0).all()):
        raise CheckpointError(
            "the model holds no levels of training windows, or one without a scale: get it again"
        )
    mean, vectors, values = (tensors[f"prior.{name}"] for name in PRIOR_TENSORS[:3])
    return GaussianCovariance(mean, vectors, values, float(tensors["prior.rest"]))


def as_stored(prior: GaussianCovariance) -> GaussianCovariance:
    """The prior in the precision of a file, so that a model forecasts the same after loading."""
    mean, vectors, values = (getattr(prior, name).float() for name in PRIOR_TENSORS[:3])
    return GaussianCovariance(mean, vectors, values, float(np.float32(prior.rest)))
