"""Graphs of atoms and bonds -> RDKit molecules, and the least change that makes one valid.

The published rule (Zang & Wang 2020, MoFlow; used by GDSS): bonds are added one by one, and where
an N, O or S then exceeds its usual valence by exactly one, it becomes a cation,

    charge(v) = +1   if   sum of orders at v = usual valence(v) + 1,   v in {N, O, S}.

A molecule that then passes the valence check is *valid without correction*. For the others, while
an atom has too many bonds, its bond of highest order is lowered by one. A vocabulary with charges
states them itself, so the first rule does not apply to it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rdkit import Chem, rdBase
from tqdm import tqdm

from structdiff.molecules.chemistry import BOND_TYPES, assemble, keep_largest_fragment
from structdiff.molecules.vocabulary import Vocabulary

__all__ = [
    "BuiltMolecule",
    "build_molecules",
    "correct",
    "is_valid_without_correction",
    "keep_largest_fragment",
    "overloaded_atom",
]

#: Usual valence of the elements that the cation rule knows: N, O, S (by atomic number).
CATION_VALENCE = {7: 3, 8: 2, 16: 2}


@dataclass(frozen=True)
class BuiltMolecule:
    """A generated molecule.

    Attributes
    ----------
    mol
        Sanitised, one fragment; None if the graph has no atom.
    smiles
        Its canonical SMILES; empty if there is none.
    valid
        Whether the graph passed the valence check as it was.
    corrected
        Whether bonds had to be lowered or removed.
    fragments
        How many fragments the (corrected) graph had; the largest is kept.
    """

    mol: Chem.Mol | None
    smiles: str
    valid: bool
    corrected: bool
    fragments: int


def overloaded_atom(mol: Chem.Mol) -> int | None:
    """The first atom with an impossible valence, or None if there is none."""
    with rdBase.BlockLogs():
        problems = Chem.DetectChemistryProblems(mol, Chem.SanitizeFlags.SANITIZE_PROPERTIES)
    for problem in problems:
        if problem.GetType() == "AtomValenceException":
            return int(problem.GetAtomIdx())
    return None


def is_valid_without_correction(mol: Chem.Mol) -> bool:
    """Whether every atom has a possible valence; several fragments are allowed."""
    return overloaded_atom(mol) is None


def charged_molecule(
    atom_types: NDArray[np.integer[Any]], bonds: NDArray[np.integer[Any]], vocabulary: Vocabulary
) -> Chem.RWMol:
    """The unsanitised molecule of types (N,) and orders (N, N) under the cation rule.

    The published code adds the bonds in the row-major order of the lower triangle and looks at the
    molecule after each. Only an atom that passes through valence + 1 while it is *over its limit*
    is charged; once charged it stays so. That is followed exactly. A molecule without an overloaded
    atom had none on the way, because valences only grow, and skips the replay.
    """
    mol = assemble(atom_types, bonds, vocabulary)
    if vocabulary.has_charges or is_valid_without_correction(mol):
        return mol
    return _replay(mol)


def _replay(final: Chem.RWMol) -> Chem.RWMol:
    """Add the bonds of ``final`` one by one, charging cations on the way."""
    mol = Chem.RWMol()
    for atom in final.GetAtoms():
        mol.AddAtom(Chem.Atom(atom.GetAtomicNum()))
    for bond in final.GetBonds():
        mol.AddBond(bond.GetBeginAtomIdx(), bond.GetEndAtomIdx(), bond.GetBondType())
        at = overloaded_atom(mol)
        if at is None:
            continue
        atom = mol.GetAtomWithIdx(at)
        usual = CATION_VALENCE.get(atom.GetAtomicNum())
        if usual is not None and _bond_order(atom) - usual == 1:
            atom.SetFormalCharge(1)
    return mol


def _bond_order(atom: Chem.Atom) -> int:
    return round(sum(bond.GetBondTypeAsDouble() for bond in atom.GetBonds()))


def correct(mol: Chem.Mol) -> Chem.RWMol:
    """Lower bonds until every valence is possible: at each overloaded atom, that of highest order.

    Among bonds of equal order the one the atom got first is lowered, as published. Every step
    removes one bond order, so it ends.
    """
    mol = Chem.RWMol(mol)
    while (at := overloaded_atom(mol)) is not None:
        highest = max(mol.GetAtomWithIdx(at).GetBonds(), key=Chem.Bond.GetBondTypeAsDouble)
        start, end = highest.GetBeginAtomIdx(), highest.GetEndAtomIdx()
        order = round(highest.GetBondTypeAsDouble()) - 1
        mol.RemoveBond(start, end)
        if order:
            mol.AddBond(start, end, BOND_TYPES[order])
    return mol


def build_molecules(
    atom_types: NDArray[np.integer[Any]],
    bonds: NDArray[np.integer[Any]],
    vocabulary: Vocabulary,
    *,
    progress: bool = False,
) -> list[BuiltMolecule]:
    """Molecules of decoded graphs: built, corrected where needed, the largest fragment kept.

    Parameters
    ----------
    atom_types
        Shape (B, N): index into the vocabulary, -1 for no atom.
    bonds
        Shape (B, N, N): orders 0..3, of which the lower triangles are read.
    vocabulary
        The atom types.
    progress
        Show a progress bar.

    Returns
    -------
    list of BuiltMolecule
        B of them, in order.
    """
    graphs = zip(atom_types, bonds, strict=True)
    bar = tqdm(graphs, "building molecules", total=len(atom_types), disable=not progress)
    with rdBase.BlockLogs():
        return [_build(types, orders, vocabulary) for types, orders in bar]


def _build(
    types: NDArray[np.integer[Any]], orders: NDArray[np.integer[Any]], vocabulary: Vocabulary
) -> BuiltMolecule:
    mol: Chem.Mol = charged_molecule(types, orders, vocabulary)
    if not mol.GetNumAtoms():
        return BuiltMolecule(None, "", valid=False, corrected=False, fragments=0)
    valid = is_valid_without_correction(mol)
    if not valid:
        mol = correct(mol)
    Chem.SanitizeMol(mol)
    smiles = Chem.MolToSmiles(mol)
    fragments = smiles.count(".") + 1
    if fragments > 1:
        mol = keep_largest_fragment(mol)
        smiles = Chem.MolToSmiles(mol)
    return BuiltMolecule(Chem.Mol(mol), smiles, valid, not valid, fragments)
