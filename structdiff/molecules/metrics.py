"""The evaluation suite for generated molecules, every score beside its noise floor.

    validity = molecules / records,  uniqueness = distinct / molecules,
    novelty = (distinct and not in the training set) / distinct,

on canonical SMILES without stereo on both sides. The distances between distributions are those of
:mod:`structdiff.molecules.statistics`; ``<score>_floor`` is the same distance for as many molecules
of the *training* set, so a score at its floor cannot be improved.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pandas as pd
from rdkit import Chem, rdBase
from tqdm import tqdm

from structdiff.molecules.data import canonical_smiles
from structdiff.molecules.reference import ReferenceStatistics, hash_smiles, noise_floors, read
from structdiff.molecules.statistics import SCORES, MoleculeStatistics, distances
from structdiff.molecules.vocabulary import MoleculeDataError

__all__ = ["evaluate"]

Molecules = Iterable[str | Chem.Mol]


def evaluate(
    generated: pd.DataFrame | Molecules,
    reference: ReferenceStatistics | Molecules,
    train: Molecules | None = None,
    *,
    floor: bool = True,
    fcd: bool = True,
    random_state: int = 0,
    progress: bool = False,
) -> pd.Series:
    """Score generated molecules against a reference set.

    Parameters
    ----------
    generated
        A frame with the columns ``smiles`` and ``valid`` (before correction) as
        ``MoleculeGenerator.sample_frame`` returns it, or SMILES, or Mols. Empty, missing and
        unreadable SMILES count as invalid.
    reference
        Test molecules, or their :class:`ReferenceStatistics`, which also know the training set.
    train
        Training molecules, for novelty and the floors. With statistics that know them, not needed.
    floor
        Whether to report the noise floors.
    fcd
        Whether to compute FCD, the slow score (about 3 s per 1,000 molecules on one CPU core).
    random_state
        Which training molecules make the floor.
    progress
        Show progress bars.

    Returns
    -------
    pandas.Series
        ``num_molecules``, ``validity_without_correction`` (NaN unless ``generated`` has a column
        ``valid``), ``validity``, ``uniqueness``, ``novelty`` (NaN without a training set), as
        shares of 1; ``nspdk_mmd``, ``fcd``, ``qed_wasserstein``, ``sa_wasserstein``,
        ``logp_wasserstein``, ``molecular_weight_wasserstein`` (g/mol), ``scaffold_distance``, each
        followed by its ``_floor`` (NaN where it is unknown).

    Raises
    ------
    MoleculeDataError
        If nothing was generated, nothing generated is a molecule, a column is missing, or a record
        of the reference is not a molecule.
    """
    records, valid = _records(generated)
    known = _reference(reference, fcd, progress)
    training = None if train is None else _parsable(train, progress)
    hashes = known.train_hashes if training is None else hash_smiles(training)
    mols, smiles = _readable(records, progress)
    distinct = sorted(set(smiles))
    scores = {
        "num_molecules": float(len(records)),
        "validity_without_correction": valid,
        "validity": len(mols) / len(records),
        "uniqueness": len(distinct) / len(mols),
        "novelty": float("nan"),
    }
    if hashes is not None:
        scores["novelty"] = float((~np.isin(hash_smiles(distinct), hashes)).mean())
    measured = MoleculeStatistics.compute(mols, fcd=fcd, progress=progress)
    found = distances(measured, known.statistics)
    floors: dict[str, dict[int, float]] = {}
    if floor and training is not None:
        n = min(len(mols), len(training))
        floors = noise_floors(
            training, known.statistics, [n], random_state, fcd=fcd, progress=progress
        )
    for score in SCORES:
        scores[score] = found[score]
        if floor:
            own = floors.get(score)
            at = next(iter(own.values())) if own else known.floor(score, len(mols))
            scores[f"{score}_floor"] = at
    return pd.Series(scores, name="score")


def _records(generated: pd.DataFrame | Molecules) -> tuple[list[object], float]:
    """The generated records, and the share that was valid before correction (NaN if not said)."""
    share = float("nan")
    if isinstance(generated, pd.DataFrame):
        if "smiles" not in generated.columns:
            raise MoleculeDataError(
                f"the generated frame has no column 'smiles' (it has {list(generated.columns)}); "
                "rename the one that holds the molecules"
            )
        if "valid" in generated.columns and len(generated):
            share = _share(generated["valid"])
        records = generated["smiles"].tolist()
    elif isinstance(generated, str):
        raise MoleculeDataError(
            f"generated is one string, {generated!r}; pass a list of SMILES or a frame"
        )
    else:
        records = list(generated)
    if not records:
        raise MoleculeDataError("no generated molecules to evaluate; sample at least one")
    return records, share


def _share(column: pd.Series) -> float:
    """Mean of a column of truth values, also as a CSV without a schema gives them."""
    truth = {"true": 1.0, "false": 0.0, "1": 1.0, "0": 0.0, "1.0": 1.0, "0.0": 0.0}
    values = column.astype(str).str.strip().str.lower().map(truth)
    if values.isna().any():
        row = int(np.flatnonzero(values.isna().to_numpy())[0])
        raise MoleculeDataError(
            f"column 'valid', row {row}: {column.iloc[row]!r} is neither True nor False"
        )
    return float(values.mean())


def _readable(records: list[object], progress: bool) -> tuple[list[Chem.Mol], list[str]]:
    """The records that are molecules, flat, and their canonical SMILES."""
    mols, smiles = [], []
    with rdBase.BlockLogs():
        for record in tqdm(records, "reading molecules", disable=not progress):
            text = canonical_smiles(record) if isinstance(record, str | Chem.Mol) else None
            mol = Chem.MolFromSmiles(text) if text else None
            if mol is not None and text is not None:
                mols.append(mol)
                smiles.append(text)
    if not mols:
        raise MoleculeDataError(
            f"none of the {len(records)} generated records is a molecule "
            f"(the first is {records[0]!r}); pass SMILES or Mols"
        )
    return mols, smiles


def _reference(
    reference: ReferenceStatistics | Molecules, fcd: bool, progress: bool
) -> ReferenceStatistics:
    """Statistics of the reference; those of molecules are computed, without floors."""
    if isinstance(reference, ReferenceStatistics):
        return reference
    if isinstance(reference, str):
        raise MoleculeDataError(
            f"reference is one string, {reference!r}; pass a list of SMILES, "
            "or ReferenceStatistics.load(file)"
        )
    mols = read(reference, "reference")
    return ReferenceStatistics(MoleculeStatistics.compute(mols, fcd=fcd, progress=progress))


def _parsable(train: Molecules, progress: bool) -> list[str]:
    """Canonical SMILES of the training records that are molecules."""
    bar = tqdm(train, "training SMILES", disable=not progress)
    found = [smiles for smiles in map(canonical_smiles, bar) if smiles]
    if not found:
        raise MoleculeDataError("no training record is a molecule; pass SMILES or Mols, or None")
    return found
