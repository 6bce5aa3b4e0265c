"""Between graphs and RDKit's molecules: assembly, canonical SMILES, fragments, types of bonds."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from rdkit import Chem, rdBase
from rdkit.Chem import rdMolDescriptors

from structdiff.molecules.vocabulary import Vocabulary, parse_smiles

BOND_ORDERS: dict[Chem.BondType, int] = {
    Chem.BondType.SINGLE: 1,
    Chem.BondType.DOUBLE: 2,
    Chem.BondType.TRIPLE: 3,
}
BOND_TYPES: dict[int, Chem.BondType] = {order: kind for kind, order in BOND_ORDERS.items()}


def assemble(
    atom_types: NDArray[np.integer[Any]], bonds: NDArray[np.integer[Any]], vocabulary: Vocabulary
) -> Chem.RWMol:
    """The unsanitised molecule of one graph: types (N,), orders (N, N), lower triangle read."""
    mol = Chem.RWMol()
    keep = np.flatnonzero(atom_types >= 0)
    for symbol, charge in (vocabulary.atom_types[k] for k in atom_types[keep].tolist()):
        atom = Chem.Atom(symbol)
        if charge:
            atom.SetFormalCharge(charge)
        mol.AddAtom(atom)
    lower = np.tril(bonds[np.ix_(keep, keep)], -1)
    ends, starts = np.nonzero(lower)
    for i, j, order in zip(
        ends.tolist(), starts.tolist(), lower[ends, starts].tolist(), strict=True
    ):
        mol.AddBond(i, j, BOND_TYPES[order])
    return mol


def canonical_smiles(molecule: str | Chem.Mol) -> str | None:
    """Canonical SMILES without stereo, isotopes, atom maps; None for what RDKit cannot read."""
    with rdBase.BlockLogs():
        mol = parse_smiles(molecule) if isinstance(molecule, str) else clean_copy(molecule)
        return None if mol is None else flat_smiles(mol)


def clean_copy(mol: Chem.Mol) -> Chem.Mol | None:
    """A sanitised copy without explicit hydrogens; None if it is empty or cannot be sanitised."""
    copy = Chem.RemoveHs(mol, sanitize=False)
    return copy if copy.GetNumAtoms() and not Chem.SanitizeMol(copy, catchErrors=True) else None


def flat_smiles(mol: Chem.Mol) -> str:
    """Canonical SMILES without stereo; changes ``mol``."""
    Chem.RemoveStereochemistry(mol)
    for atom in mol.GetAtoms():
        if atom.GetAtomMapNum():
            atom.SetAtomMapNum(0)
    return Chem.MolToSmiles(mol, isomericSmiles=False)


def keep_largest_fragment(mol: Chem.Mol) -> Chem.Mol:
    """The fragment with most heavy atoms; among equals the heaviest, then the first by SMILES."""
    fragments = Chem.GetMolFrags(mol, asMols=True)
    if len(fragments) == 1:
        return mol

    def rank(fragment: Chem.Mol) -> tuple[int, float, str]:
        weight = round(
            rdMolDescriptors.CalcExactMolWt(fragment), 3
        )  # equal formulas tie, whatever the order
        return -fragment.GetNumHeavyAtoms(), -weight, Chem.MolToSmiles(fragment)

    return min(fragments, key=rank)
