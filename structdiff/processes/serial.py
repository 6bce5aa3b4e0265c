"""Processes as JSON, so that a saved model says under which processes it was trained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from structdiff.errors import StructDiffError
from structdiff.processes import paths
from structdiff.processes.discrete import DiscreteVP
from structdiff.processes.flow_matching import LipmanFlow, TrigonometricFlow, UnitVarianceFlow
from structdiff.processes.gaussian import (
    EDM,
    VE,
    VP,
    Cosine,
    GaussianProcess,
    RectifiedFlow,
    SubVP,
)
from structdiff.processes.geometric import GeometricBrownian
from structdiff.processes.interpolant import Interpolant
from structdiff.processes.ornstein_uhlenbeck import OrnsteinUhlenbeck
from structdiff.processes.residual import Residual

_KINDS: dict[str, type[GaussianProcess]] = {
    kind.__name__: kind
    for kind in (
        *(VP, SubVP, VE, Cosine, EDM, RectifiedFlow, DiscreteVP),
        *(Residual, GeometricBrownian, OrnsteinUhlenbeck),
        *(Interpolant, TrigonometricFlow, LipmanFlow, UnitVarianceFlow),
    )
}
# What an interpolant is made of, beside the processes themselves.
_PARTS: dict[str, type] = {
    kind.__name__: kind
    for kind in (
        *(paths.Linear, paths.Trigonometric, paths.EncodingDecoding, paths.Mirror, paths.OneSided),
        *(paths.NoNoise, paths.Constant, paths.Brownian, paths.BSquared, paths.SinSquared),
        *(paths.Sigmoid, paths.ProcessNoise),
    )
}


def process_to_dict(process: GaussianProcess) -> dict[str, Any]:
    """``{"type": class name, **parameters}``."""
    return _written(process)


def _written(part: Any) -> dict[str, Any]:
    """A dataclass with its type's name, and so the dataclasses inside it."""
    values = {f.name: getattr(part, f.name) for f in fields(part)}
    return {
        "type": type(part).__name__,
        **{k: _written(v) if is_dataclass(v) else v for k, v in values.items()},
    }


def process_from_dict(values: Mapping[str, Any]) -> GaussianProcess:
    """Read what :func:`process_to_dict` wrote.

    Raises
    ------
    StructDiffError
        If the type is unknown or a parameter does not exist; the message says which.
    """
    return _read(values, _KINDS)


def _read(values: Mapping[str, Any], kinds: Mapping[str, type]) -> Any:
    parameters = {
        k: _read(v, {**_KINDS, **_PARTS}) if isinstance(v, Mapping) and "type" in v else v
        for k, v in values.items()
    }
    kind = kinds.get(parameters.pop("type", ""))
    if kind is None:
        raise StructDiffError(
            f"unknown process {values.get('type')!r}: choose one of {', '.join(kinds)}"
        )
    try:
        return kind(**parameters)
    except TypeError as error:
        raise StructDiffError(f"process {kind.__name__}: {error}") from error
