"""What a set of molecules looks like as a distribution, and how far two sets are apart.

Per set: mean and covariance of the ChemNet activations, the mean NSPDK vector, drug-likeness (QED),
synthetic accessibility (SA), logP and molecular weight of every molecule, and the counts of its
Bemis-Murcko scaffolds. Between two sets:

    FCD = |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2))       (Preuer et al. 2018)
    NSPDK MMD = |v1 - v2|^2                                 (:mod:`structdiff.molecules.nspdk`)
    Wasserstein-1 distances of the four properties, and 1 - cosine of the scaffold counts.
"""

from __future__ import annotations

import importlib.util
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from hashlib import blake2b
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from numpy.typing import NDArray
from rdkit import Chem, RDConfig
from rdkit.Chem import QED, Crippen, Descriptors
from rdkit.Chem.Scaffolds import MurckoScaffold
from scipy.stats import wasserstein_distance
from tqdm import tqdm

from structdiff.errors import StructDiffError
from structdiff.molecules.nspdk import nspdk_mean

__all__ = ["PROPERTIES", "SCORES", "MoleculeStatistics", "distances", "frechet_distance"]

#: Properties of a molecule, in the order of the columns of ``MoleculeStatistics.properties``.
PROPERTIES = ("qed", "sa", "logp", "molecular_weight")

#: Distances between two sets, in the order they are reported.
SCORES = ("nspdk_mmd", "fcd", *(f"{name}_wasserstein" for name in PROPERTIES), "scaffold_distance")

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class MoleculeStatistics:
    """A set of molecules as a distribution.

    Attributes
    ----------
    count
        Number of molecules.
    nspdk_mean
        Shape (65536,).
    properties
        Shape (n, 4), columns as in ``PROPERTIES``.
    scaffolds
        Stable 64-bit hash of the scaffold's SMILES -> how many molecules have it; molecules without
        a ring have none.
    fcd_mean, fcd_covariance
        Shapes (512,) and (512, 512); None where FCD was not asked for.
    """

    count: int
    nspdk_mean: Floats
    properties: Floats
    scaffolds: Counter[int]
    fcd_mean: Floats | None = None
    fcd_covariance: Floats | None = None

    @classmethod
    def compute(
        cls, mols: Sequence[Chem.Mol], *, fcd: bool = True, progress: bool = False
    ) -> MoleculeStatistics:
        """Measure sanitised molecules.

        Parameters
        ----------
        mols
            At least one.
        fcd
            Whether to run ChemNet, the slow part (about 3 s per 1,000 molecules on one CPU core).
        progress
            Show progress bars.
        """
        activations = chemnet_activations(mols, progress=progress) if fcd else None
        return cls.from_activations(mols, activations, progress)

    @classmethod
    def from_activations(
        cls, mols: Sequence[Chem.Mol], activations: Floats | None, progress: bool = False
    ) -> MoleculeStatistics:
        """As :meth:`compute`, with ChemNet activations (n, 512) that are already there, or none."""
        mean = covariance = None
        if activations is not None:
            mean = activations.mean(0)
            # A single molecule has no covariance; zero makes FCD the distance of the means.
            covariance = np.cov(activations.T) if len(mols) > 1 else np.zeros((mean.size,) * 2)
        bar = tqdm(mols, "properties", disable=not progress)
        return cls(
            count=len(mols),
            nspdk_mean=nspdk_mean(mols, progress=progress),
            properties=np.array([molecule_properties(mol) for mol in bar]),
            scaffolds=scaffold_counts(mols),
            fcd_mean=mean,
            fcd_covariance=covariance,
        )


def distances(a: MoleculeStatistics, b: MoleculeStatistics) -> dict[str, float]:
    """Every distance in ``SCORES`` between two sets; FCD is NaN where one set lacks it."""
    found = {"nspdk_mmd": float(np.sum((a.nspdk_mean - b.nspdk_mean) ** 2)), "fcd": float("nan")}
    if a.fcd_mean is not None and b.fcd_mean is not None:
        assert a.fcd_covariance is not None
        assert b.fcd_covariance is not None
        found["fcd"] = frechet_distance(a.fcd_mean, a.fcd_covariance, b.fcd_mean, b.fcd_covariance)
    for column, name in enumerate(PROPERTIES):
        distance = wasserstein_distance(a.properties[:, column], b.properties[:, column])
        found[f"{name}_wasserstein"] = float(distance)
    found["scaffold_distance"] = _cosine_distance(a.scaffolds, b.scaffolds)
    return found


def _cosine_distance(a: Counter[int], b: Counter[int]) -> float:
    """1 - cosine of two count vectors; 0 if both are empty, 1 if one is."""
    if not a or not b:
        return float(bool(a) != bool(b))
    dot = sum(count * b[key] for key, count in a.items())
    norms = np.sqrt(float(sum(c * c for c in a.values())) * float(sum(c * c for c in b.values())))
    return float(1 - dot / norms)


def frechet_distance(
    mean_a: Floats, covariance_a: Floats, mean_b: Floats, covariance_b: Floats
) -> float:
    """Squared Frechet (Wasserstein-2) distance of two Gaussians.

    ``tr (C1 C2)^(1/2)`` is the sum of the roots of the eigenvalues of the symmetric matrix
    ``C1^(1/2) C2 C1^(1/2)``, so singular covariances (few molecules) need no special case.
    """
    values, vectors = np.linalg.eigh(covariance_a)
    root = (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T
    inner = np.linalg.eigvalsh(root @ covariance_b @ root)
    cross = np.sqrt(np.clip(inner, 0, None)).sum()
    shift = np.sum((mean_a - mean_b) ** 2)
    return max(0.0, float(shift + np.trace(covariance_a) + np.trace(covariance_b) - 2 * cross))


def chemnet_activations(
    mols: Sequence[Chem.Mol], *, batch_size: int = 128, progress: bool = False
) -> Floats:
    """Activations of ChemNet's last layer (n, 512); the weights come with the ``fcd`` package."""
    import fcd  # heavy, and only needed for this score
    from fcd.utils import SmilesDataset

    model = fcd.load_ref_model()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model.to(device)
    distinct, which = np.unique([Chem.MolToSmiles(mol) for mol in mols], return_inverse=True)
    data = SmilesDataset(distinct.tolist())
    parts = []
    with torch.inference_mode(), tqdm(total=len(data), desc="FCD", disable=not progress) as bar:
        for start in range(0, len(data), batch_size):
            rows = range(start, min(start + batch_size, len(data)))
            batch = torch.from_numpy(np.stack([data[row] for row in rows]))
            out = model(batch.transpose(1, 2).float().to(device))
            parts.append(out.double().cpu().numpy())
            bar.update(len(batch))
    return np.concatenate(parts)[which]


def molecule_properties(mol: Chem.Mol) -> tuple[float, float, float, float]:
    """QED (0..1), SA score (1 easy .. 10 hard), Crippen logP, molecular weight (g/mol)."""
    return (
        QED.qed(mol),
        _sa_scorer().calculateScore(mol),
        Crippen.MolLogP(mol),  # type: ignore[attr-defined]
        Descriptors.MolWt(mol),  # type: ignore[attr-defined]
    )


@cache
def _sa_scorer() -> ModuleType:
    """Ertl & Schuffenhauer's scorer, which RDKit ships as a contributed script."""
    path = Path(RDConfig.RDContribDir) / "SA_Score" / "sascorer.py"
    spec = importlib.util.spec_from_file_location("structdiff_sascorer", path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise StructDiffError(
            f"RDKit's SA score is missing ({path}); install the rdkit wheel from the package index"
        )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def stable_hash(text: str) -> int:
    """A 64-bit hash of text that is the same in every process."""
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little")


def scaffold_counts(mols: Sequence[Chem.Mol]) -> Counter[int]:
    """How often each Bemis-Murcko scaffold occurs, by the hash of its SMILES."""
    counts: Counter[int] = Counter()
    for mol in mols:
        if mol.GetRingInfo().NumRings():
            scaffold = Chem.MolToSmiles(MurckoScaffold.GetScaffoldForMol(mol))
            counts[stable_hash(scaffold)] += 1
    return counts
