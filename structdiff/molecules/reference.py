"""Reference statistics: what generated molecules are compared with, small enough to ship.

One file holds the test set as a distribution, hashes of the training molecules for novelty, and the
noise floor of every score: the same score of slices of the *training* set, at several slice sizes
``n``. Both NSPDK MMD and FCD are biased upwards by about ``c / n`` and the Wasserstein distances by
``c / sqrt(n)``, so between the measured sizes a floor is read on a line in log n and log score.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rdkit import Chem, rdBase
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from tqdm import tqdm

from structdiff.molecules.data import canonical_smiles
from structdiff.molecules.statistics import (
    SCORES,
    MoleculeStatistics,
    chemnet_activations,
    distances,
    stable_hash,
)
from structdiff.molecules.vocabulary import MoleculeDataError

__all__ = ["FLOOR_SIZES", "ReferenceStatistics"]

FLOOR_SIZES = (100, 300, 1_000, 3_000, 10_000)
MAX_SLICES = 10
FORMAT = "structdiff molecule reference 1"
FILE = "reference.safetensors"


@dataclass(frozen=True)
class ReferenceStatistics:
    """A test set, its training set's hashes, and the noise floors.

    Attributes
    ----------
    statistics
        The test molecules as a distribution.
    train_hashes
        Sorted uint64 hashes of the canonical training SMILES without stereo; None if unknown.
    floors
        Score -> {slice size: value for that many random training molecules}.
    about
        Free text about the origin: data set, split, citation.
    """

    statistics: MoleculeStatistics
    train_hashes: NDArray[np.uint64] | None = None
    floors: dict[str, dict[int, float]] = field(default_factory=dict)
    about: dict[str, str] = field(default_factory=dict)

    @classmethod
    def compute(
        cls,
        test: Iterable[str | Chem.Mol],
        train: Iterable[str | Chem.Mol] | None = None,
        *,
        floor_sizes: Sequence[int] = FLOOR_SIZES,
        fcd: bool = True,
        random_state: int = 0,
        about: dict[str, str] | None = None,
        progress: bool = False,
    ) -> ReferenceStatistics:
        """Measure a test set, and a random slice of the training set for the floors.

        Parameters
        ----------
        test, train
            SMILES or Mols. Those that cannot be read are an error for ``test`` only.
        floor_sizes
            Slice sizes; those larger than the training set are left out.
        fcd
            Whether to compute FCD.
        random_state
            Which training molecules the slices hold.
        about
            Origin of the data, stored with it.
        progress
            Show progress bars.

        Raises
        ------
        MoleculeDataError
            If the test set is empty or holds a record that is not a molecule.
        """
        statistics = MoleculeStatistics.compute(read(test, "test"), fcd=fcd, progress=progress)
        hashes, floors = None, {}
        if train is not None:
            bar = tqdm(train, "training SMILES", disable=not progress)
            smiles = [s for s in map(canonical_smiles, bar) if s]
            hashes = np.unique(hash_smiles(smiles))
            sizes = [n for n in floor_sizes if n <= len(smiles)]
            floors = noise_floors(
                smiles, statistics, sizes, random_state, fcd=fcd, progress=progress
            )
        return cls(statistics, hashes, floors, dict(about or {}))

    def floor(self, score: str, n: int) -> float:
        """What ``score`` is for ``n`` molecules drawn from the training set; NaN if unknown."""
        known = self.floors.get(score)
        if not known:
            return float("nan")
        sizes = np.array(sorted(known))
        values = np.array([known[int(size)] for size in sizes])
        if len(sizes) == 1 or n in known or not (values > 0).all():
            return float(values[np.abs(sizes - n).argmin()])
        # Clamped to the measured sizes: the line says nothing beyond them.
        return float(np.exp(np.interp(np.log(n), np.log(sizes), np.log(values))))

    def is_novel(self, smiles: Iterable[str]) -> NDArray[np.bool_]:
        """Which canonical SMILES without stereo are not in the training set.

        Raises
        ------
        MoleculeDataError
            If the reference holds no training set.
        """
        if self.train_hashes is None:
            raise MoleculeDataError("this reference holds no training set; pass train= as well")
        return ~np.isin(hash_smiles(smiles), self.train_hashes)

    def save(self, path: str | Path) -> None:
        """Write one safetensors file; :meth:`load` reads it."""
        s = self.statistics
        keys = np.array(sorted(s.scaffolds), dtype=np.uint64)
        tensors: dict[str, NDArray[Any]] = {
            "nspdk_mean": s.nspdk_mean.astype(np.float32),
            "properties": s.properties.astype(np.float32),
            "scaffold_keys": keys,
            "scaffold_counts": np.array([s.scaffolds[int(k)] for k in keys], dtype=np.uint32),
        }
        if s.fcd_mean is not None and s.fcd_covariance is not None:
            tensors["fcd_mean"] = s.fcd_mean
            upper = np.triu_indices(len(s.fcd_mean))
            tensors["fcd_covariance_upper"] = s.fcd_covariance[upper].astype(np.float32)
        if self.train_hashes is not None:
            tensors["train_hashes"] = self.train_hashes
        metadata = {
            "format": FORMAT,
            "count": str(s.count),
            "floors": json.dumps(self.floors),
            "about": json.dumps(self.about),
        }
        partial = Path(f"{path}.partial")
        save_file(tensors, str(partial), metadata)
        partial.replace(path)  # a full disk or a Ctrl-C leaves no half file under the name

    @classmethod
    def from_pretrained(cls, name: str | Path) -> ReferenceStatistics:
        """The statistics that come with an embedded model (``"gdss-qm9"``), or :meth:`load`'s."""
        embedded = Path(str(resources.files("structdiff"))) / "pretrained" / str(name) / FILE
        return cls.load(embedded if embedded.is_file() else name)

    @classmethod
    def load(cls, path: str | Path) -> ReferenceStatistics:
        """Read what :meth:`save` wrote.

        Raises
        ------
        MoleculeDataError
            If the file is missing, damaged, or of another kind.
        """
        try:
            with safe_open(str(path), framework="numpy") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise MoleculeDataError(f"{path}: not a readable reference file ({error})") from error
        if metadata.get("format") != FORMAT:
            raise MoleculeDataError(
                f"{path}: not reference statistics ({metadata.get('format', 'no format')}); "
                "write them with ReferenceStatistics.save"
            )
        return cls(
            _statistics(int(metadata["count"]), tensors),
            tensors.get("train_hashes"),
            {
                score: {int(n): float(value) for n, value in known.items()}
                for score, known in json.loads(metadata["floors"]).items()
            },
            json.loads(metadata["about"]),
        )


def _statistics(count: int, tensors: dict[str, NDArray[Any]]) -> MoleculeStatistics:
    mean, covariance = tensors.get("fcd_mean"), None
    if mean is not None:
        covariance = np.zeros((len(mean), len(mean)))
        covariance[np.triu_indices(len(mean))] = tensors["fcd_covariance_upper"]
        covariance = covariance + np.triu(covariance, 1).T
    keys = tensors["scaffold_keys"].tolist()
    return MoleculeStatistics(
        count=count,
        nspdk_mean=tensors["nspdk_mean"].astype(np.float64),
        properties=tensors["properties"].astype(np.float64),
        scaffolds=Counter(dict(zip(keys, tensors["scaffold_counts"].tolist(), strict=True))),
        fcd_mean=mean,
        fcd_covariance=covariance,
    )


def read(records: Iterable[str | Chem.Mol], what: str) -> list[Chem.Mol]:
    """Flat, sanitised molecules of SMILES or Mols.

    Raises
    ------
    MoleculeDataError
        If there is none, or one cannot be read; the message names its row.
    """
    mols = []
    with rdBase.BlockLogs():
        for row, record in enumerate(records):
            smiles = canonical_smiles(record)
            mol = Chem.MolFromSmiles(smiles) if smiles else None
            if mol is None:
                raise MoleculeDataError(
                    f"{what} row {row}: {record!r} is not a molecule; remove or correct it"
                )
            mols.append(mol)
    if not mols:
        raise MoleculeDataError(f"no {what} molecules; pass at least one SMILES")
    return mols


def hash_smiles(smiles: Iterable[str]) -> NDArray[np.uint64]:
    """Stable hashes of canonical SMILES, shape (n,)."""
    return np.array([stable_hash(s) for s in smiles], dtype=np.uint64)


def noise_floors(
    train: Sequence[str],
    reference: MoleculeStatistics,
    sizes: Sequence[int],
    random_state: int,
    *,
    fcd: bool = True,
    progress: bool = False,
) -> dict[str, dict[int, float]]:
    """Mean scores of random training slices of the given sizes.

    The largest slice is cut into up to ten disjoint smaller ones, because one slice of few
    molecules scatters: the Wasserstein distances by about half their value.
    """
    floors: dict[str, dict[int, float]] = {score: {} for score in SCORES}
    if not sizes:
        return floors
    rng = np.random.default_rng(random_state)
    rows = rng.choice(len(train), max(sizes), replace=False)
    mols = [Chem.MolFromSmiles(train[row]) for row in rows]
    wanted = fcd and reference.fcd_mean is not None
    activations = chemnet_activations(mols, progress=progress) if wanted else None
    for n in tqdm(sizes, "noise floors", disable=not progress):
        starts = range(0, len(mols) - n + 1, n)[:MAX_SLICES]
        found = []
        for start in starts:
            cut = slice(start, start + n)
            part = None if activations is None else activations[cut]
            found.append(distances(MoleculeStatistics.from_activations(mols[cut], part), reference))
        for score in SCORES:
            floors[score][n] = float(np.mean([each[score] for each in found]))
    return floors
