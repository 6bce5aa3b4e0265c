"""The evaluation suite on inputs whose scores are known."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from rdkit import Chem

from structdiff.datasets import load_smiles
from structdiff.molecules.metrics import evaluate
from structdiff.molecules.reference import ReferenceStatistics
from structdiff.molecules.statistics import (
    PROPERTIES,
    SCORES,
    chemnet_activations,
    frechet_distance,
    molecule_properties,
)
from structdiff.molecules.vocabulary import MoleculeDataError

REFERENCE = ["CCO", "CCN", "c1ccccc1", "CC(C)=O", "C1CCOC1", "CC#N"]


def score(generated, reference=REFERENCE, **options):
    return evaluate(generated, reference, **{"fcd": False, **options})


def test_a_set_against_itself_scores_zero():
    scores = score(REFERENCE, fcd=True)
    assert scores[list(SCORES)].abs().max() < 1e-6


def test_validity_counts_every_record():
    assert score(["CCO", "", None, float("nan"), "x", "C"]).validity == pytest.approx(2 / 6)


def test_validity_without_correction_is_the_column_valid():
    frame = pd.DataFrame({"smiles": ["CCO", "C", "CC", "CN"], "valid": [True, False, True, True]})
    assert score(frame).validity_without_correction == 0.75


def test_validity_without_correction_is_read_from_text():
    frame = pd.DataFrame({"smiles": ["CCO", "C"], "valid": ["True", "False"]})
    assert score(frame).validity_without_correction == 0.5


def test_validity_without_correction_is_unknown_for_smiles():
    assert np.isnan(score(["CCO"]).validity_without_correction)


def test_uniqueness_is_by_canonical_smiles():
    assert score(["CCO", "OCC", "CN", "C"]).uniqueness == 0.75


def test_novelty_is_the_share_of_distinct_molecules_outside_the_training_set():
    assert score(["CCO", "OCC", "CN", "CF"], train=["CCO", "CN"]).novelty == pytest.approx(1 / 3)


def test_novelty_ignores_stereo_on_both_sides():
    # The published evaluation compares flat output with stereo-bearing ZINC SMILES (gdss.md 8.9).
    assert score(["CC(O)F", "C[C@H](O)Cl"], train=["C[C@@H](O)F", "CC(O)Cl"]).novelty == 0


def test_novelty_is_unknown_without_a_training_set():
    assert np.isnan(score(["CCO"]).novelty)


def test_mols_score_like_their_smiles():
    smiles = ["CCO", "C[C@H](O)F", "c1ccoc1"]
    hydrogens = [Chem.AddHs(Chem.MolFromSmiles(s)) for s in smiles]
    pd.testing.assert_series_equal(score(smiles), score(hydrogens))


def test_wasserstein_of_a_shift_is_the_shift():
    # Molecular weight of CO minus that of C is exactly one oxygen, 15.999.
    scores = score(["CO"] * 3, ["C"] * 2)
    assert scores.molecular_weight_wasserstein == pytest.approx(15.999, abs=1e-3)


@pytest.mark.parametrize(
    ("generated", "distance"),
    [(["Cc1ccccc1"], 0.0), (["C1CC1"], 1.0), (["CC"], 1.0), (["c1ccccc1", "C1CC1"], 1 - 0.5**0.5)],
)
def test_scaffold_distance_is_one_minus_the_cosine(generated, distance):
    found = score(generated, ["Cc1ccccc1", "CCc1ccccc1"]).scaffold_distance
    assert found == pytest.approx(distance, abs=1e-12)


def test_the_floor_is_the_score_of_a_training_slice():
    train = ["CCC", "CCF", "CCCO"]
    scores = score(["CCO", "CN", "CF"], train=train)
    own = score(train)
    for name in ("nspdk_mmd", "qed_wasserstein", "scaffold_distance"):
        assert scores[f"{name}_floor"] == pytest.approx(own[name])


def test_the_floor_can_be_left_out():
    assert not [name for name in score(["CCO"], floor=False).index if "floor" in name]


def test_the_floor_has_a_fixed_seed():
    train = [f"{'C' * n}O" for n in range(1, 40)]
    a, b = (score(["CCO", "CN"], train=train, random_state=s).nspdk_mmd_floor for s in (3, 3))
    assert a == b != score(["CCO", "CN"], train=train, random_state=4).nspdk_mmd_floor


def test_known_properties_of_aspirin():
    # PubChem 2244: 180.16 g/mol. The other three are RDKit's own values, recorded as a guard.
    qed, sa, logp, weight = molecule_properties(Chem.MolFromSmiles("CC(=O)Oc1ccccc1C(=O)O"))
    assert (qed, sa) == (pytest.approx(0.550, abs=1e-3), pytest.approx(1.58, abs=0.01))
    assert (logp, weight) == (pytest.approx(1.31, abs=0.01), pytest.approx(180.16, abs=0.01))


def test_frechet_distance_of_diagonal_gaussians():
    # |m|^2 + sum (s1 - s2)^2 for standard deviations s.
    a, b = np.diag([1.0, 4.0]), np.diag([9.0, 0.0])
    assert frechet_distance(np.zeros(2), a, np.array([1.0, 2.0]), b) == pytest.approx(5 + 4 + 4)


def test_fcd_equals_that_of_the_fcd_package(data_dir):
    import fcd

    train, test = load_smiles("qm9", progress=False)
    ours, theirs = test[:80], train[60_000:60_080]
    flat = [[Chem.CanonSmiles(s) for s in x] for x in (ours, theirs)]
    activations = [fcd.get_predictions(fcd.load_ref_model(), s, n_jobs=0) for s in flat]
    a, b = ((x.astype(float).mean(0), np.cov(x.astype(float).T)) for x in activations)
    expected = fcd.calculate_frechet_distance(a[0], a[1], b[0], b[1])
    found = score(ours, theirs, fcd=True).fcd
    assert found == pytest.approx(expected, abs=1e-3)


def test_activations_of_equal_molecules_are_equal():
    a, b, c = chemnet_activations([Chem.MolFromSmiles(s) for s in ("CCO", "C", "OCC")])
    assert np.array_equal(a, c)
    assert not np.allclose(a, b)


@pytest.mark.parametrize(
    ("generated", "message"),
    [
        ([], "no generated molecules"),
        (pd.DataFrame({"smiles": []}), "no generated molecules"),
        (pd.DataFrame({"SMILES": ["C"]}), r"no column 'smiles' \(it has \['SMILES'\]\)"),
        (pd.DataFrame({"smiles": ["C"], "valid": ["maybe"]}), "row 0: 'maybe' is neither"),
        (["x", ""], "none of the 2 generated records"),
        ("CCO", "one string"),
    ],
)
def test_unusable_generated_molecules_are_named(generated, message):
    with pytest.raises(MoleculeDataError, match=message):
        score(generated)


@pytest.mark.parametrize(
    ("reference", "message"),
    [([], "no reference molecules"), (["C", "x"], "reference row 1: 'x'"), ("C", "one string")],
)
def test_an_unusable_reference_is_named(reference, message):
    with pytest.raises(MoleculeDataError, match=message):
        score(["CCO"], reference)


def test_statistics_stand_for_the_molecules_they_were_computed_from():
    train = ["CCO", "CCF"]
    known = ReferenceStatistics.compute(REFERENCE, train, fcd=False, floor_sizes=(2,))
    a = score(["CCO", "CN"], known)
    b = score(["CCO", "CN"], REFERENCE, train=train)
    pd.testing.assert_series_equal(a, b)


def test_every_property_has_a_score():
    assert {f"{name}_wasserstein" for name in PROPERTIES} < set(SCORES)
