"""Saved window models: what :mod:`structdiff.storage` stores, with the Gaussian of the windows."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import torch
from torch import Tensor

from structdiff.errors import CheckpointError
from structdiff.guidance import GaussianCovariance
from structdiff.samplers import Sampler
from structdiff.storage import (
    CONFIG,
    TIME_SERIES,
    WEIGHTS,
    check_fitted,
    check_weights,
    check_widths,
    expected_tensors,
    find_model,
    naming_damage,
    push_model,
    read_config,
    read_weights,
    restored_estimator,
    write_model,
)
from structdiff.timeseries.freq import parse_frequency
from structdiff.timeseries.models import ModelSpec, build_denoiser, set_prior
from structdiff.timeseries.prior import PRIOR_TENSORS
from structdiff.timeseries.sampling import WindowSampler, choose_sampler
from structdiff.timeseries.windows import Scaling

if TYPE_CHECKING:
    from structdiff.timeseries.tsdiff import TSDiff

_PARTS = ("parameters", "model", "freq", "refinement_time")
_LONGEST = 100_000


def save(model: TSDiff, folder: Path, dtype: str) -> Path:
    """Write a fitted model; each file appears whole or not at all."""
    check_fitted(model)
    parameters = model.get_params()
    if isinstance(parameters["sampler"], Sampler):
        parameters["sampler"] = parameters["steps"] = None  # an object of the session
    if parameters["freq"] is not None:
        parameters["freq"] = model.freq_
    config = {
        "format": TIME_SERIES.name,
        "parameters": parameters,
        "model": model.spec_.to_dict(),
        "freq": model.freq_,
        "refinement_time": model.refinement_time_,
        "training": getattr(model, "training_", {}),
    }
    weights = {k: v for k, v in model.denoiser_.network.state_dict().items() if not _of_prior(k)}
    prior = model.covariance_
    exact = {f"prior.{name}": getattr(prior, name).float() for name in PRIOR_TENSORS[:3]}
    exact["prior.rest"] = torch.tensor(prior.rest)
    exact["levels"] = torch.from_numpy(model.levels_)
    return write_model(folder, config, weights, dtype, exact)


def _of_prior(name: str) -> bool:
    return name in PRIOR_TENSORS


def load(cls: type[TSDiff], name: str | Path, revision: str | None, token: str | None) -> TSDiff:
    """Read what :func:`save` wrote, from the package, a folder, or the Hugging Face hub."""
    folder = find_model(name, TIME_SERIES, revision, token)
    config = read_config(folder / CONFIG, TIME_SERIES, _PARTS)
    tensors = read_weights(folder / WEIGHTS)
    model: TSDiff = restored_estimator(cls, config["parameters"], folder / CONFIG)
    with naming_damage(folder / CONFIG):
        spec = model.spec_ = ModelSpec.from_dict(config["model"])
        _check_sizes(spec)
        model.freq_ = _frequency(config["freq"])
        model.refinement_time_ = _time(config["refinement_time"])
        model.training_ = dict(config.get("training", {}))
        # Shapes are compared before memory is taken: a damaged config may ask for any amount.
        expected = expected_tensors(lambda: build_denoiser(spec).network)
        expected = {k: v for k, v in expected.items() if not _of_prior(k)}
        further = _further(spec, tensors)
        check_weights(tensors, {**expected, **further}, folder / WEIGHTS)
        model.denoiser_ = build_denoiser(spec)
        model.covariance_ = _prior(tensors)
        model.levels_ = tensors["levels"].double().numpy()
        set_prior(model.denoiser_, model.covariance_)
        chosen = choose_sampler(spec, model.denoiser_, None, None)
        kind, scale = spec.guidance["kind"], spec.guidance["scale"]
        WindowSampler(model.denoiser_, spec, model.covariance_, chosen, kind, scale)
    weights = {k: tensors[k] for k in expected}
    held = {k: v for k, v in model.denoiser_.network.state_dict().items() if _of_prior(k)}
    model.denoiser_.network.load_state_dict({**weights, **held})
    model.denoiser_.eval().requires_grad_(False)
    return model


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


def _further(spec: ModelSpec, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
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


def _prior(tensors: dict[str, Tensor]) -> GaussianCovariance:
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


def push(model: TSDiff, repository: str, dtype: str, private: bool, token: str | None) -> str:
    """Save into a repository of the Hugging Face hub; the address of the commit."""

    def write(folder: Path) -> Any:
        return save(model, folder, dtype)

    return push_model(write, repository, TIME_SERIES, private, token)
