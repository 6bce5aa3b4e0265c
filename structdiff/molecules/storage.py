"""Saved molecule models: what :mod:`structdiff.storage` stores, and published GDSS checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from structdiff.errors import CheckpointError
from structdiff.estimators import Contents, SavedEstimator
from structdiff.graphs.checkpoints import GDSSCheckpoint, build_networks, read_gdss
from structdiff.molecules.models import GDSS_SAMPLER, NETWORKS, ModelSpec, build_denoiser
from structdiff.molecules.vocabulary import Vocabulary
from structdiff.processes import VE, VP, GaussianProcess, SubVP
from structdiff.processes.serial import process_to_dict
from structdiff.storage import MOLECULES, check_widths, expected_tensors

if TYPE_CHECKING:
    from structdiff.molecules.gdss import MoleculeGenerator


class SavedGenerator(SavedEstimator):
    """What is stored of a generator: its networks, atom types and sizes of molecules."""

    _FORMAT = MOLECULES
    _PARTS = ("model", "vocabulary", "node_counts")

    spec_: ModelSpec
    vocabulary_: Vocabulary
    node_counts_: np.ndarray[Any, np.dtype[np.int64]]

    def _contents(self) -> Contents:
        config = {
            "model": self.spec_.to_dict(),
            "vocabulary": self.vocabulary_.to_dict(),
            "node_counts": np.asarray(self.node_counts_).tolist(),
        }
        return Contents(config, self.denoiser_.network.state_dict())

    def _describe(self, config: Mapping[str, Any]) -> None:
        self.spec_ = ModelSpec.from_dict(config["model"])
        if self.spec_.network not in NETWORKS:
            raise ValueError(f"unknown network {self.spec_.network!r}")
        check_widths(self.spec_.network_config)
        self.vocabulary_ = Vocabulary.from_dict(config["vocabulary"])
        counts = np.asarray(config["node_counts"], dtype=np.int64)
        if counts.ndim != 1 or not len(counts) or counts.min() < 0:
            raise ValueError("'node_counts' is no list of counts")
        self.node_counts_ = counts

    def _expected(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return expected_tensors(lambda: build_denoiser(self.spec_).network)

    def _assemble(self, tensors: Mapping[str, Tensor]) -> None:
        self.denoiser_ = build_denoiser(self.spec_)
        self.denoiser_.network.load_state_dict(tensors)


def load_gdss(cls: type[MoleculeGenerator], path: Path) -> MoleculeGenerator:
    """A generator from a published GDSS molecule checkpoint."""
    checkpoint = read_gdss(path)
    vocabulary, counts = _published_data(checkpoint, path)
    processes = {
        name: process_to_dict(_published_process(checkpoint.model_config["sde"][name]))
        for name in ("x", "adj")
    }
    network = build_networks(checkpoint)
    spec = ModelSpec(
        "gdss",
        {"x": checkpoint.params_x, "adj": checkpoint.params_adj},
        processes,
        network.prediction,
        _published_sampler(checkpoint),
    )
    preset = str(checkpoint.model_config["data"]["data"]).lower()
    generator = cls(preset=preset, network="gdss", charges=False)
    generator.spec_, generator.vocabulary_, generator.node_counts_ = spec, vocabulary, counts
    generator.training_ = {"source": checkpoint.name}
    generator.denoiser_ = build_denoiser(spec)
    generator.denoiser_.network.load_state_dict(network.state_dict())
    generator.denoiser_.eval()
    return generator


def _published_process(sde: dict[str, Any]) -> GaussianProcess:
    """The process of a published configuration, with the published prior N(0, 1)."""
    low, high = float(sde["beta_min"]), float(sde["beta_max"])
    kinds = {"VP": VP, "subVP": SubVP, "VE": VE}
    return kinds[sde["type"]](low, high, prior_scale=1.0)


def _published_sampler(checkpoint: GDSSCheckpoint) -> dict[str, Any]:
    options = dict(GDSS_SAMPLER["options"])
    known = checkpoint.sampling
    options |= {k: float(known[k]) for k in ("snr", "scale_eps") if known.get(k) is not None}
    return {**GDSS_SAMPLER, "options": options}


# How many molecules of the training splits (120,803 of QM9, 224,568 of ZINC250k: the rows outside
# the published test splits) have 0, 1, 2, ... heavy atoms. The three single atoms of QM9 are left
# out: the published sampler reads the sizes off the bonds and never draws one.
# fmt: off
_SIZES: dict[str, tuple[int, ...]] = {
    "qm9": (0, 0, 4, 8, 26, 115, 558, 2903, 16541, 100645),
    "zinc250k": (
        0, 0, 0, 0, 0, 0, 3, 5, 13, 67, 178, 654, 1053, 1606, 2532, 3844, 5695, 7863, 10489, 13065,
        15906, 18296, 16825, 18950, 20907, 20537, 17331, 14237, 9057, 6991, 5478, 4320, 3375, 2327,
        1553, 925, 358, 126, 2,
    ),
}
# fmt: on


def _published_data(
    checkpoint: GDSSCheckpoint, path: Path
) -> tuple[Vocabulary, np.ndarray[Any, np.dtype[np.int64]]]:
    data = checkpoint.model_config.get("data", {})
    name = str(data.get("data", "")).lower()
    if name not in _SIZES:
        raise CheckpointError(
            f"{path} was trained on {data.get('data')!r}: only molecule checkpoints "
            f"({', '.join(_SIZES)}) can be loaded here"
        )
    vocabulary = Vocabulary.preset(name)
    if checkpoint.params_x["max_feat_num"] != len(vocabulary):
        raise CheckpointError(
            f"{path} has {checkpoint.params_x['max_feat_num']} atom types, {name} has "
            f"{len(vocabulary)}: use a published checkpoint"
        )
    return vocabulary, np.asarray(_SIZES[name], dtype=np.int64)
