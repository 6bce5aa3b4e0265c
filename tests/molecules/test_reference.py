"""Reference statistics: saving, loading, floors, and the file that is shipped for QM9."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from rdkit import Chem
from safetensors.numpy import save_file

import structdiff.molecules
from structdiff.datasets import load_smiles
from structdiff.molecules.metrics import evaluate
from structdiff.molecules.nspdk import nspdk_mean
from structdiff.molecules.reference import ReferenceStatistics
from structdiff.molecules.statistics import SCORES, MoleculeStatistics, distances
from structdiff.molecules.vocabulary import MoleculeDataError

TEST = ["CCO", "CCN", "c1ccccc1", "CC(C)=O", "C1CCOC1", "CC#N"]
TRAIN = ["CCF", "CCC", "C1CC1", "OCC", "C[C@H](F)O"]


@pytest.fixture(scope="module")
def small() -> ReferenceStatistics:
    return ReferenceStatistics.compute(TEST, TRAIN, floor_sizes=(2, 4, 99), about={"name": "toy"})


@pytest.fixture(scope="module")
def shipped() -> ReferenceStatistics:
    package = Path(structdiff.molecules.__path__[0]).parent
    return ReferenceStatistics.load(package / "pretrained" / "gdss-qm9" / "reference.safetensors")


def test_saving_and_loading_keeps_every_distance(small, tmp_path):
    small.save(tmp_path / "r.safetensors")
    loaded = ReferenceStatistics.load(tmp_path / "r.safetensors")
    found = distances(small.statistics, loaded.statistics)
    assert max(abs(value) for value in found.values()) < 1e-4


def test_saving_and_loading_keeps_floors_hashes_and_origin(small, tmp_path):
    small.save(tmp_path / "r.safetensors")
    loaded = ReferenceStatistics.load(tmp_path / "r.safetensors")
    assert loaded.floors == small.floors
    assert np.array_equal(loaded.train_hashes, small.train_hashes)
    assert (loaded.about, loaded.statistics.count) == ({"name": "toy"}, 6)


def test_float32_storage_does_not_change_fcd(small, tmp_path):
    small.save(tmp_path / "r.safetensors")
    loaded = ReferenceStatistics.load(tmp_path / "r.safetensors").statistics
    other = MoleculeStatistics.compute([Chem.MolFromSmiles(s) for s in ("CCS", "CCCl", "CF")])
    exact, stored = (distances(other, s)["fcd"] for s in (small.statistics, loaded))
    assert stored == pytest.approx(exact, abs=1e-3)


def test_slices_larger_than_the_training_set_are_left_out(small):
    assert set(small.floors["fcd"]) == {2, 4}


def test_novelty_by_hash(small):
    assert small.is_novel(["CCO", "CC(O)F", "CCCl"]).tolist() == [False, False, True]


def test_novelty_needs_a_training_set():
    known = ReferenceStatistics.compute(TEST, fcd=False)
    with pytest.raises(MoleculeDataError, match="no training set"):
        known.is_novel(["C"])


def test_floors_lie_on_a_line_in_log_log():
    floors = {"nspdk_mmd": {100: 0.04, 10_000: 0.0004}}
    known = ReferenceStatistics(
        MoleculeStatistics.compute([Chem.MolFromSmiles("C")], fcd=False), None, floors
    )
    assert known.floor("nspdk_mmd", 1_000) == pytest.approx(0.004)
    assert known.floor("nspdk_mmd", 100) == 0.04
    assert known.floor("nspdk_mmd", 10**6) == pytest.approx(0.0004)
    assert np.isnan(known.floor("fcd", 100))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(MoleculeDataError, match=r"none\.safetensors: not a readable"):
        ReferenceStatistics.load(tmp_path / "none.safetensors")


def test_a_damaged_file_is_named(tmp_path):
    (tmp_path / "bad.safetensors").write_bytes(b"\x10" * 40)
    with pytest.raises(MoleculeDataError, match="not a readable reference file"):
        ReferenceStatistics.load(tmp_path / "bad.safetensors")


def test_another_kind_of_file_is_named(tmp_path):
    save_file({"weight": np.zeros(2)}, str(tmp_path / "other.safetensors"))
    with pytest.raises(MoleculeDataError, match=r"ReferenceStatistics\.save"):
        ReferenceStatistics.load(tmp_path / "other.safetensors")


def test_an_unreadable_test_molecule_is_named():
    with pytest.raises(MoleculeDataError, match="test row 1: 'x'"):
        ReferenceStatistics.compute(["C", "x"], fcd=False)


def test_the_shipped_statistics_are_those_of_the_qm9_test_set(shipped, data_dir):
    _, test = load_smiles("qm9", progress=False)
    assert shipped.statistics.count == len(test) == 13_082
    measured = nspdk_mean([Chem.MolFromSmiles(s) for s in test])
    assert np.sum((measured - shipped.statistics.nspdk_mean) ** 2) < 1e-10


def test_the_shipped_hashes_are_those_of_the_qm9_training_set(shipped, data_dir):
    train, _ = load_smiles("qm9", progress=False)
    assert not shipped.is_novel([Chem.CanonSmiles(s) for s in train[::100]]).any()


def test_the_shipped_floors_are_the_published_ones(shipped):
    # gdss.md 6.2: about 2e-4 at 10,000; 1/300 + 1/300 less the mean kernel's share at 300, where
    # the full test set leaves only the first half.
    assert shipped.floor("nspdk_mmd", 10_000) == pytest.approx(2e-4, abs=5e-5)
    assert shipped.floor("nspdk_mmd", 300) == pytest.approx(1 / 300, abs=5e-4)
    assert set(shipped.floors) == set(SCORES)


def test_the_shipped_floor_is_what_a_training_sample_scores(shipped, data_dir):
    train, _ = load_smiles("qm9", progress=False)
    sample = np.random.default_rng(5).choice(train, 300, replace=False)
    scores = evaluate(sample, shipped)
    assert scores.novelty == 0
    assert scores.nspdk_mmd == pytest.approx(scores.nspdk_mmd_floor, rel=0.15)
    assert scores.fcd == pytest.approx(scores.fcd_floor, rel=0.15)


def test_the_shipped_file_is_small():
    package = Path(structdiff.molecules.__path__[0]).parent
    file = package / "pretrained" / "gdss-qm9" / "reference.safetensors"
    assert file.stat().st_size < 2_100_000
