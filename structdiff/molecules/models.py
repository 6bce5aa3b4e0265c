"""What a molecule model is made of, as plain data: the content of its ``config.json``.

A :class:`ModelSpec` plus a state dict is a model; :func:`build_denoiser` puts it together. The two
families are our graph transformer, which predicts class probabilities, and the published GDSS score
networks, which predict the noise (VP) or the score (VE) of each component.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from structdiff.denoisers import Denoiser
from structdiff.errors import CheckpointError, StructDiffError
from structdiff.graphs.checkpoints import build_score_network
from structdiff.graphs.networks import GDSSNetwork
from structdiff.graphs.transformer import GraphTransformer
from structdiff.molecules.vocabulary import Vocabulary
from structdiff.processes import VE, VP, RectifiedFlow, System
from structdiff.processes.serial import process_from_dict, process_to_dict
from structdiff.spaces import Symmetric

NETWORKS = ("transformer", "gdss")

GDSS_WIDTHS: dict[str, dict[str, Any]] = {
    "x": {"model_type": "ScoreNetworkX", "depth": 2, "nhid": 16},
    "adj": {
        "model_type": "ScoreNetworkA",
        "nhid": 16,
        "num_layers": 3,
        "num_linears": 3,
        "c_init": 2,
        "c_hid": 8,
        "c_final": 4,
        "adim": 16,
        "num_heads": 4,
    },
}
"""The published QM9 networks; ZINC250k differs in ``num_layers`` = 6."""


@dataclass(frozen=True)
class ModelSpec:
    """Everything about a model but its weights.

    Parameters
    ----------
    network
        ``"transformer"`` or ``"gdss"``.
    network_config
        Constructor arguments; for ``"gdss"`` those of the two networks under ``x`` and ``adj``.
    processes
        Forward process per component, as :func:`~structdiff.processes.serial.process_to_dict` says.
    prediction
        What the network predicts, per component.
    sampler
        Recommended sampler: ``name``, ``steps`` and ``options``.
    """

    network: str
    network_config: dict[str, Any]
    processes: dict[str, dict[str, Any]]
    prediction: dict[str, str]
    sampler: dict[str, Any] = field(default_factory=dict)

    @property
    def categorical(self) -> bool:
        """Whether the network gives class probabilities, so that decoding takes the largest."""
        return self.network == "transformer"

    def to_dict(self) -> dict[str, Any]:
        """JSON-serialisable form."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ModelSpec:
        """Read :meth:`to_dict`'s form; raises CheckpointError when a field is missing."""
        try:
            return cls(**{k: values[k] for k in cls.__dataclass_fields__})
        except KeyError as error:
            raise CheckpointError(f"the model's config.json has no {error}") from error


def new_spec(network: str, vocabulary: Vocabulary, settings: Mapping[str, Any]) -> ModelSpec:
    """The model that ``fit`` trains.

    Parameters
    ----------
    network
        ``"transformer"`` or ``"gdss"``.
    vocabulary
        Atom types; gives the width of ``x``.
    settings
        Constructor arguments that replace the defaults: for the transformer its own, for GDSS
        those of the adjacency network.

    Raises
    ------
    StructDiffError
        If the network is unknown.
    """
    check_network(network)
    types = len(vocabulary)
    if network == "transformer":
        line = process_to_dict(RectifiedFlow())
        # The defaults are written out: a saved model must not change when they do.
        with torch.device("meta"):
            config = GraphTransformer(**{"node_classes": types, **settings}).config
        return ModelSpec(
            network,
            config,
            {"x": line, "adj": line},
            {"x": "data", "adj": "data"},
            TRANSFORMER_SAMPLER,
        )
    large = vocabulary.max_atoms > 9
    config = {
        "x": {**GDSS_WIDTHS["x"], "max_feat_num": types},
        "adj": {
            **GDSS_WIDTHS["adj"],
            "num_layers": 6 if large else 3,
            **settings,
            "max_feat_num": types,
            "max_node_num": vocabulary.max_atoms,
        },
    }
    x = VP(0.1, 1.0, prior_scale=1.0) if large else VE(0.1, 1.0)
    adj = VE(0.2, 1.0) if large else VE(0.1, 1.0)
    return ModelSpec(
        network,
        config,
        {"x": process_to_dict(x), "adj": process_to_dict(adj)},
        {"x": "noise" if large else "score", "adj": "score"},
        GDSS_SAMPLER,
    )


def check_network(network: str) -> None:
    """Raise StructDiffError, with the known ones, if there is no such network."""
    if network not in NETWORKS:
        raise StructDiffError(f"unknown network {network!r}: choose one of {', '.join(NETWORKS)}")


TRANSFORMER_SAMPLER: dict[str, Any] = {
    "name": "pc",
    "steps": 50,
    "options": {
        "predictor": "dpm++sde",
        "snr": 0.4,
        "scale_eps": 0.85,
        "corrections": 4,
        "between": [0.1, 0.3],
        "norms": "level",
    },
}
"""SDE-DPM-Solver++ 2M with slightly cooled corrections where the last bonds are decided. Without
them more valences are impossible; stronger cooling leaves none but narrows the distribution."""

GDSS_SAMPLER: dict[str, Any] = {
    "name": "s4",
    "steps": 100,
    "options": {"snr": 0.2, "scale_eps": 0.7, "norms": "level"},
}
"""What GDSS networks are sampled with unless told otherwise: the splitting solver with exact
half-step variances and corrections scaled by the noise level. On the published QM9 weights its 100
evaluations are worth the published scheme's 2,000 (``benchmarks/results/gdss_published.md``)."""


def build_denoiser(spec: ModelSpec) -> Denoiser:
    """The denoiser of a spec, with fresh weights."""
    system = System(
        {name: process_from_dict(values) for name, values in spec.processes.items()},
        spaces={"adj": Symmetric()},
    )
    network: torch.nn.Module
    if spec.network == "transformer":
        network = GraphTransformer(**spec.network_config)
    else:
        parts = (build_score_network(spec.network_config[name]) for name in ("x", "adj"))
        network = GDSSNetwork(*parts, prediction=spec.prediction)
    return Denoiser(
        network,
        system,
        spec.prediction,  # type: ignore[arg-type]
        scale_input=spec.network == "transformer",
    )


def class_frequencies(
    types: NDArray[np.int8], bonds: NDArray[np.uint8], vocabulary: Vocabulary
) -> tuple[torch.Tensor, torch.Tensor]:
    """How often each atom type (F,) and bond order (4,) occurs among existing sites."""
    atoms = np.bincount(types[types >= 0], minlength=len(vocabulary)).astype(float)
    exists = types >= 0
    i, j = np.triu_indices(types.shape[1], 1)
    pairs = exists[:, i] & exists[:, j]
    orders = np.bincount(bonds[:, i, j][pairs], minlength=4).astype(float)
    return (
        torch.tensor(atoms / max(atoms.sum(), 1), dtype=torch.float32),
        torch.tensor(orders / max(orders.sum(), 1), dtype=torch.float32),
    )
