"""Molecules survive the way into arrays and back; what cannot is counted by reason."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
import torch
from rdkit import Chem

from structdiff.errors import StructDiffError
from structdiff.molecules.correction import build_molecules
from structdiff.molecules.data import (
    QM9,
    QM9_CHARGED,
    ZINC250K,
    ZINC250K_CHARGED,
    MoleculeDataError,
    MoleculeSet,
    Vocabulary,
    canonical_smiles,
    decode,
    graph_masks,
    read_molecules,
)
from structdiff.state import State


@pytest.fixture(scope="module")
def qm9(data_dir) -> pd.Series:
    return pd.read_csv(data_dir / "molecules" / "qm9_smiles.csv.gz").smiles


@pytest.fixture(scope="module")
def zinc(data_dir) -> pd.Series:
    return pd.read_csv(data_dir / "molecules" / "zinc250k_smiles.csv.gz").smiles


def returned(molecules: MoleculeSet, rule: str = "threshold") -> list[str]:
    """SMILES after arrays -> State -> arrays -> molecules."""
    types, bonds = decode(molecules.to_state(), molecules.vocabulary, rule)
    return [m.smiles for m in build_molecules(types, bonds, molecules.vocabulary)]


@pytest.mark.parametrize("rule", ["threshold", "argmax"])
def test_every_neutral_qm9_molecule_returns(qm9, rule):
    molecules = read_molecules(qm9[::40], QM9)
    assert set(molecules.report.rejected) == {"charge"}
    assert returned(molecules, rule) == molecules.smiles


def test_every_qm9_molecule_returns_with_charges(qm9):
    molecules = read_molecules(qm9[::40], QM9_CHARGED)
    assert not molecules.report.rejected
    assert returned(molecules) == molecules.smiles


def test_every_zinc_molecule_returns_with_charges(zinc):
    molecules = read_molecules(zinc[::250], ZINC250K_CHARGED)
    assert molecules.report.usable == molecules.report.total
    assert returned(molecules) == molecules.smiles


@pytest.mark.paper
def test_all_of_qm9_returns_with_charges(qm9):
    molecules = read_molecules(qm9, QM9_CHARGED)
    assert molecules.report.usable == 133_885  # rows of the file, by its card
    assert returned(molecules) == molecules.smiles


@pytest.mark.paper
def test_all_but_one_of_zinc_returns_with_charges(zinc):
    molecules = read_molecules(zinc, ZINC250K_CHARGED)
    # One phosphine oxide has hydrogens at phosphorus that no valence rule implies.
    assert dict(molecules.report.rejected) == {"hydrogens": 1}
    for start in range(0, len(molecules), 20_000):
        part = slice(start, start + 20_000)
        types, bonds = decode(molecules.to_state(part), molecules.vocabulary)
        built = build_molecules(types, bonds, molecules.vocabulary)
        assert [m.smiles for m in built] == molecules.smiles[part]


def test_the_heavy_atom_histogram_of_qm9_is_that_of_its_card(qm9):
    # Its card: 3, 5, 9, 31, 130 molecules of 1..5 atoms; the file is nearly sorted by size.
    counts = read_molecules(qm9[:1000], QM9_CHARGED).node_counts
    assert counts[:6].tolist() == [0, 3, 5, 9, 31, 130]


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (None, "empty"),
        (float("nan"), "empty"),
        ("  ", "empty"),
        (Chem.Mol(), "empty"),
        ("not a molecule", "invalid"),
        ("C(C)(C)(C)(C)C", "invalid"),
        (7, "invalid"),
        ("c1cccc1", "aromatic"),
        ("CC.O", "fragments"),
        ("CCl", "element"),
        ("*C", "element"),
        ("C[NH3+]", "charge"),
        ("C" * 10, "too_large"),
        ("[CH2]C", "hydrogens"),
        ("C$C", "bond"),
    ],
)
def test_a_bad_record_is_counted_under_its_reason(record, reason):
    molecules = read_molecules(["CCO", record], QM9)
    assert dict(molecules.report.rejected) == {reason: 1}
    assert molecules.report.examples[reason][0][0] == 1
    assert molecules.rows.tolist() == [0]


def test_the_report_names_row_smiles_and_remedy():
    text = str(read_molecules(["CC", "CC.O"], QM9).report)
    assert "1 of 2 records usable" in text
    assert "largest_fragment=True" in text
    assert "row 1: 'CC.O'" in text


def test_the_report_is_json():
    report = read_molecules(["CC", "x", "CC"], QM9).report
    assert json.loads(json.dumps(report.to_dict()))["noted"] == {"duplicate": 1}


def test_duplicates_are_kept_and_counted():
    molecules = read_molecules(["CCO", "OCC"], QM9)
    assert (len(molecules), molecules.report.noted["duplicate"]) == (2, 1)


def test_duplicates_can_be_dropped():
    molecules = read_molecules(["CCO", "OCC"], QM9, drop_duplicates=True)
    assert (len(molecules), molecules.report.rejected["duplicate"]) == (1, 1)


def test_the_largest_fragment_can_be_kept():
    molecules = read_molecules(["[Na+].CC(=O)[O-]"], QM9_CHARGED, largest_fragment=True)
    assert molecules.smiles == ["CC(=O)[O-]"]
    assert molecules.report.noted["fragments_dropped"] == 1


def test_charges_can_be_dropped():
    molecules = read_molecules(["C[NH3+]"], QM9, drop_charges=True)
    assert returned(molecules) == ["CN"]
    assert molecules.report.noted["charges_dropped"] == 1


def test_stereo_isotopes_and_maps_are_removed_and_counted():
    molecules = read_molecules(["C[C@H](F)O", "F/C=C/F", "[13CH3]C", "[CH3:1]N"], QM9)
    assert molecules.smiles == ["CC(O)F", "FC=CF", "CC", "CN"]
    assert molecules.report.noted["stereo"] == 4


def test_a_mol_is_read_like_its_smiles():
    mol = Chem.AddHs(Chem.MolFromSmiles("c1ccoc1"))
    a, b = read_molecules([mol], QM9), read_molecules(["c1ccoc1"], QM9)
    assert np.array_equal(a.bonds, b.bonds)
    assert mol.GetNumAtoms() == 9  # the caller's molecule is untouched


def test_nothing_usable_is_an_error_that_carries_the_report():
    with pytest.raises(MoleculeDataError, match=r"0 of 1 records usable.*\n.*row 0: 'x'"):
        read_molecules(["x"], QM9)


def test_reading_writes_no_log(capfd):
    read_molecules(["CC", "c1cccc1", "C(C)(C)(C)(C)C"], QM9)
    assert capfd.readouterr().err == ""


def test_the_state_has_the_documented_shapes_and_masks():
    state = read_molecules(["C=O", "C#N", "CCO"], QM9, max_atoms=5).to_state([0, 2])
    assert state["x"].shape == (2, 5, 4)
    assert state["adj"][0].nonzero().tolist() == [[0, 1], [1, 0]]
    assert state["adj"][0, 0, 1] == 2
    assert state.masks["x"].squeeze(-1).sum(1).tolist() == [2, 3]
    assert state.masks["adj"].sum((1, 2)).tolist() == [2, 6]


def test_a_single_atom_exists():
    molecules = read_molecules(["C", "O"], QM9)
    assert molecules.to_state().masks["x"].sum() == 2
    assert returned(molecules) == ["C", "O"]


def test_no_mask_includes_the_diagonal():
    mask = graph_masks(torch.tensor([4]), 4)["adj"]
    assert not mask.diagonal(dim1=1, dim2=2).any()


def one_atom_pair(x: list[list[float]], bond: float) -> State:
    adj = torch.tensor([[[0.0, bond], [bond, 0.0]]])
    return State({"x": torch.tensor([x]), "adj": adj}, graph_masks(torch.tensor([2]), 2))


@pytest.mark.parametrize(
    ("value", "order"), [(0.49, 0), (0.5, 1), (1.49, 1), (1.5, 2), (2.5, 3), (9.0, 3), (-2.0, 0)]
)
def test_bond_orders_are_by_the_published_thresholds(value, order):
    # gdss.md 2.5
    _, bonds = decode(one_atom_pair([[1, 0, 0, 0], [1, 0, 0, 0]], value), QM9)
    assert bonds[0].tolist() == [[0, order], [order, 0]]


def test_the_first_type_above_one_half_wins():
    types, _ = decode(one_atom_pair([[0, 0.6, 0.9, 0], [0.51, 0, 0, 2]], 1), QM9)
    assert types.tolist() == [[1, 0]]


def test_a_node_below_one_half_is_no_atom_and_loses_its_bonds():
    types, bonds = decode(one_atom_pair([[0.5, 0.4, 0, 0], [1, 0, 0, 0]], 1), QM9)
    assert types.tolist() == [[-1, 0]]
    assert bonds.sum() == 0


def test_argmax_gives_every_existing_node_an_atom():
    types, _ = decode(one_atom_pair([[0.3, 0.4, 0, 0], [-3, -2, -1, -4]], 1), QM9, "argmax")
    assert types.tolist() == [[1, 2]]


def test_values_that_are_not_finite_are_an_error():
    with pytest.raises(StructDiffError, match="1 of 1 sampled molecules"):
        decode(one_atom_pair([[float("nan"), 0, 0, 0], [1, 0, 0, 0]], 1), QM9)


def test_an_unknown_rule_lists_the_known_ones():
    with pytest.raises(ValueError, match="'threshold' or 'argmax'"):
        decode(one_atom_pair([[1, 0, 0, 0], [1, 0, 0, 0]], 1), QM9, "nearest")


def test_another_vocabulary_is_an_error():
    with pytest.raises(MoleculeDataError, match="4 channels, the vocabulary 9"):
        decode(one_atom_pair([[1, 0, 0, 0], [1, 0, 0, 0]], 1), ZINC250K)


@pytest.mark.parametrize("name", ["qm9", "zinc250k"])
def test_the_neutral_types_come_first_in_the_charged_preset(name):
    plain, charged = (Vocabulary.preset(name, charges=c) for c in (False, True))
    assert charged.atom_types[: len(plain)] == plain.atom_types
    assert (plain.has_charges, charged.has_charges) == (False, True)


def test_a_vocabulary_survives_json():
    text = json.dumps(ZINC250K_CHARGED.to_dict())
    assert Vocabulary.from_dict(json.loads(text)) == ZINC250K_CHARGED


def test_a_vocabulary_of_ones_own():
    own = Vocabulary.from_smiles(["CCBr", "C[O-]", "x", None])
    assert own.atom_types == (("C", 0), ("Br", 0), ("O", -1))
    assert own.max_atoms == 3


@pytest.mark.parametrize(
    ("types", "message"),
    [((), "at least one"), ((("C", 0), ("C", 0)), "repeated"), ((("Xx", 0),), "'Xx'")],
)
def test_an_impossible_vocabulary_is_an_error(types, message):
    with pytest.raises(MoleculeDataError, match=message):
        Vocabulary(types, 9)


def test_an_unknown_preset_lists_the_known_ones():
    with pytest.raises(MoleculeDataError, match="qm9, zinc250k"):
        Vocabulary.preset("guacamol")


def test_canonical_smiles_is_stable_and_flat():
    assert canonical_smiles("OC[C@@H](F)C") == canonical_smiles("C[C@H](F)CO") == "CC(F)CO"
    assert canonical_smiles("c1cccc1") is None
