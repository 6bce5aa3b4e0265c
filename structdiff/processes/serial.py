"""Processes as JSON, so that a saved model says under which processes it was trained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from structdiff.errors import StructDiffError
from structdiff.processes.discrete import DiscreteVP
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
from structdiff.processes.ornstein_uhlenbeck import OrnsteinUhlenbeck
from structdiff.processes.residual import Residual

_KINDS: dict[str, type[GaussianProcess]] = {
    kind.__name__: kind
    for kind in (
        *(VP, SubVP, VE, Cosine, EDM, RectifiedFlow, DiscreteVP),
        *(Residual, GeometricBrownian, OrnsteinUhlenbeck),
    )
}


def process_to_dict(process: GaussianProcess) -> dict[str, Any]:
    """``{"type": class name, **parameters}``."""
    return {"type": type(process).__name__, **asdict(process)}  # type: ignore[call-overload]


def process_from_dict(values: Mapping[str, Any]) -> GaussianProcess:
    """Read what :func:`process_to_dict` wrote.

    Raises
    ------
    StructDiffError
        If the type is unknown or a parameter does not exist; the message says which.
    """
    parameters = dict(values)
    kind = _KINDS.get(parameters.pop("type", ""))
    if kind is None:
        raise StructDiffError(
            f"unknown process {values.get('type')!r}: choose one of {', '.join(_KINDS)}"
        )
    try:
        return kind(**parameters)
    except TypeError as error:
        raise StructDiffError(f"process {kind.__name__}: {error}") from error
