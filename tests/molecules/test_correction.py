"""Building molecules from graphs, the cation rule, and valence correction."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from rdkit import Chem, rdBase

from structdiff.molecules.correction import (
    build_molecules,
    correct,
    is_valid_without_correction,
    keep_largest_fragment,
    overloaded_atom,
)
from structdiff.molecules.data import QM9, QM9_CHARGED, ZINC250K, Vocabulary


def graph(symbols: str, *edges: tuple[int, int, int], vocabulary: Vocabulary = QM9):
    """Types (1, N) and bonds (1, N, N) of a graph with one-letter elements."""
    names = [symbol for symbol, _ in vocabulary.atom_types]
    types = np.array([[names.index(s) for s in symbols]])
    bonds = np.zeros((1, len(symbols), len(symbols)), dtype=np.uint8)
    for i, j, order in edges:
        bonds[0, i, j] = bonds[0, j, i] = order
    return types, bonds


def built(symbols: str, *edges: tuple[int, int, int], vocabulary: Vocabulary = QM9):
    return build_molecules(*graph(symbols, *edges, vocabulary=vocabulary), vocabulary)[0]


def star(centre: str, leaves: int, order: int = 1) -> tuple[str, list[tuple[int, int, int]]]:
    return centre + "C" * leaves, [(0, k + 1, order) for k in range(leaves)]


def literal_molecule(
    types: NDArray[np.int64], bonds: NDArray[np.uint8], vocabulary: Vocabulary
) -> Chem.RWMol:
    """The published rule word for word: sanitise after every bond; charge at valence + 1."""
    usual = {"N": 3, "O": 2, "S": 2}
    kinds = {1: Chem.BondType.SINGLE, 2: Chem.BondType.DOUBLE, 3: Chem.BondType.TRIPLE}
    exists = types >= 0
    mol = Chem.RWMol()
    for k in types[exists]:
        mol.AddAtom(Chem.Atom(vocabulary.atom_types[k][0]))
    adjacency = bonds[exists][:, exists]
    for i in range(len(adjacency)):
        for j in range(i):
            if not adjacency[i, j]:
                continue
            mol.AddBond(i, j, kinds[int(adjacency[i, j])])
            try:
                Chem.SanitizeMol(mol, Chem.SanitizeFlags.SANITIZE_PROPERTIES)
            except Chem.AtomValenceException as error:
                atom = mol.GetAtomWithIdx(error.cause.GetAtomIdx())
                order = sum(int(b.GetBondTypeAsDouble()) for b in atom.GetBonds())
                if atom.GetSymbol() in usual and order - usual[atom.GetSymbol()] == 1:
                    atom.SetFormalCharge(1)
    return mol


def literal_build(
    types: NDArray[np.int64], bonds: NDArray[np.uint8], vocabulary: Vocabulary
) -> tuple[bool, set[str]]:
    """Validity, and the SMILES of all fragments after correction, by the published loop."""
    mol = literal_molecule(types, bonds, vocabulary)
    kinds = {1: Chem.BondType.SINGLE, 2: Chem.BondType.DOUBLE}
    steps = 0
    while True:
        try:
            Chem.SanitizeMol(mol, Chem.SanitizeFlags.SANITIZE_PROPERTIES)
            break
        except Chem.AtomValenceException as error:
            steps += 1
            atom = mol.GetAtomWithIdx(error.cause.GetAtomIdx())
            queue = sorted(atom.GetBonds(), key=lambda b: -int(b.GetBondType()))
            start, end = queue[0].GetBeginAtomIdx(), queue[0].GetEndAtomIdx()
            order = int(queue[0].GetBondType()) - 1
            mol.RemoveBond(start, end)
            if order:
                mol.AddBond(start, end, kinds[order])
    return steps == 0, set(Chem.MolToSmiles(Chem.MolFromSmiles(Chem.MolToSmiles(mol))).split("."))


@pytest.mark.parametrize(("vocabulary", "density"), [(QM9, 0.25), (QM9, 0.6), (ZINC250K, 0.25)])
def test_building_equals_the_literal_incremental_rule_on_random_graphs(vocabulary, density):
    rng = np.random.default_rng(0)
    types = rng.integers(-1, len(vocabulary), (300, 9))
    types[:, 0] = rng.integers(0, len(vocabulary), 300)
    orders = rng.choice([1, 1, 1, 2, 3], (300, 9, 9)) * (rng.random((300, 9, 9)) < density)
    lower = np.tril(orders, -1).astype(np.uint8)
    bonds = lower + lower.transpose(0, 2, 1)
    with rdBase.BlockLogs():
        expected = [literal_build(t, b, vocabulary) for t, b in zip(types, bonds, strict=True)]
    molecules = build_molecules(types, bonds, vocabulary)
    assert [m.valid for m in molecules] == [valid for valid, _ in expected]
    assert all(m.smiles in parts for m, (_, parts) in zip(molecules, expected, strict=True))
    assert 0 < sum(m.valid for m in molecules) < 300  # the graphs exercise both ways


@pytest.mark.parametrize(
    ("centre", "bonds", "smiles"), [("N", 4, "C[N+](C)(C)C"), ("O", 3, "C[O+](C)C")]
)
def test_an_atom_one_above_its_valence_becomes_a_cation(centre, bonds, smiles):
    symbols, edges = star(centre, bonds)
    molecule = built(symbols, *edges)
    assert (molecule.smiles, molecule.valid, molecule.corrected) == (smiles, True, False)


def test_an_atom_two_above_its_valence_is_corrected():
    symbols, edges = star("N", 5)
    molecule = built(symbols, *edges)
    assert (molecule.valid, molecule.corrected, molecule.fragments) == (False, True, 2)


def test_a_pentavalent_nitro_group_is_not_valid_without_correction():
    # RDKit's full sanitisation would repair N(=O)=O before it looks at valences.
    assert not built("CNOO", (0, 1, 1), (1, 2, 2), (1, 3, 2)).valid


def test_a_vocabulary_with_charges_states_them_itself():
    symbols, edges = star("N", 4)
    assert not built(symbols, *edges, vocabulary=QM9_CHARGED).valid


def test_a_charged_type_carries_its_charge():
    types, bonds = graph("CN", (0, 1, 1))
    types[0, 1] = QM9_CHARGED.atom_types.index(("N", 1))
    assert build_molecules(types, bonds, QM9_CHARGED)[0].smiles == "C[NH3+]"


def test_correction_lowers_the_bond_of_highest_order():
    # C with a triple and two single bonds: the triple bond becomes double.
    molecule = built("CCFF", (0, 1, 3), (0, 2, 1), (0, 3, 1))
    assert (molecule.smiles, molecule.valid) == ("C=C(F)F", False)


def test_correction_removes_a_single_bond():
    assert built("FCC", (0, 1, 1), (0, 2, 1)).fragments == 2


def test_correct_leaves_a_valid_molecule_alone():
    assert Chem.MolToSmiles(correct(Chem.MolFromSmiles("CC(=O)N"))) == "CC(N)=O"


def test_the_overloaded_atom_is_named():
    mol = Chem.MolFromSmiles("CCC(C)(C)(C)C", sanitize=False)
    assert overloaded_atom(mol) == 2
    assert not is_valid_without_correction(mol)


def test_a_single_atom_is_a_molecule():
    assert built("O").smiles == "O"


def test_a_graph_without_atoms_is_no_molecule():
    molecule = build_molecules(np.full((1, 3), -1), np.zeros((1, 3, 3), np.uint8), QM9)[0]
    assert (molecule.mol, molecule.valid, molecule.smiles) == (None, False, "")


@pytest.mark.parametrize(
    ("smiles", "largest"),
    [
        ("C1CC1.[Br-].[Br-]", "C1CC1"),  # by atoms, not by the length of the string
        ("CCC.CCO", "CCO"),  # equal atoms: the heavier
        ("CCN.CNC", "CCN"),  # equal weight: the first SMILES
    ],
)
def test_the_largest_fragment_has_most_atoms(smiles, largest):
    assert Chem.MolToSmiles(keep_largest_fragment(Chem.MolFromSmiles(smiles))) == largest


def test_building_writes_no_log(capfd):
    symbols, edges = star("C", 6)
    built(symbols, *edges)
    assert capfd.readouterr().err == ""
