"""The molecule generator as scikit-learn's users know estimators: fit, sample, the same seed."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
import torch
from rdkit import Chem
from sklearn.base import clone

from structdiff.errors import StructDiffError
from structdiff.molecules import MoleculeGenerator
from structdiff.molecules.vocabulary import MoleculeDataError
from structdiff.samplers import get_sampler

SMILES = ["CCO", "CCN", "CC=O", "C1CC1", "CCC", "OCC=O", "C#N", "CC(C)O", "NCCO", "C1CO1"] * 4
NETWORK = {
    "node_width": 16,
    "edge_width": 12,
    "condition_width": 16,
    "layers": 2,
    "heads": 2,
    "walks": 2,
}
TINY = {
    "network_settings": NETWORK,
    "max_steps": 60,
    "batch_size": 16,
    "learning_rate": 5e-3,
    "ema_decay": 0.9,
    "accelerator": "cpu",
    "random_state": 0,
    "progress": False,
}


@pytest.fixture(scope="module")
def generator() -> MoleculeGenerator:
    return MoleculeGenerator(**TINY).fit(SMILES)


# --- estimator -------------------------------------------------------------------------------
def test_fit_returns_itself() -> None:
    made = MoleculeGenerator(**{**TINY, "max_steps": 1})
    assert made.fit(SMILES) is made


def test_parameters_are_read_and_set() -> None:
    made = MoleculeGenerator(**TINY)
    assert {k: made.get_params()[k] for k in TINY} == TINY
    assert made.set_params(batch_size=3).batch_size == 3


def test_clone_has_the_parameters_and_no_weights(generator: MoleculeGenerator) -> None:
    twin = clone(generator)
    assert twin.get_params() == generator.get_params()
    assert not hasattr(twin, "denoiser_")


@pytest.mark.parametrize(
    "use",
    [
        lambda g: g.sample(1),
        lambda g: g.sample_smiles(1),
        lambda g: g.sample_frame(1),
        lambda g: next(g.sample_batches(1)),
    ],
)
def test_unfitted_generator_says_what_to_do(use: Callable[[MoleculeGenerator], object]) -> None:
    with pytest.raises(StructDiffError, match="not fitted: call fit or from_pretrained"):
        use(MoleculeGenerator())


def test_training_is_a_function_of_the_seed(generator: MoleculeGenerator) -> None:
    again = MoleculeGenerator(**TINY).fit(SMILES)
    other = MoleculeGenerator(**{**TINY, "random_state": 1}).fit(SMILES)
    first, second, third = (g.denoiser_.network.state_dict() for g in (generator, again, other))
    assert all(torch.equal(first[k], second[k]) for k in first)
    assert not torch.equal(first["node_in.weight"], third["node_in.weight"])


def test_training_leaves_torch_global_generator_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    MoleculeGenerator(**{**TINY, "max_steps": 1}).fit(SMILES)
    assert torch.equal(torch.rand(3), expected)


def test_training_lowers_the_loss(generator: MoleculeGenerator) -> None:
    from structdiff.molecules.data import read_molecules
    from structdiff.noise import SeededNoise
    from structdiff.objectives import CategoricalCrossEntropy

    x0 = read_molecules(SMILES, generator.vocabulary_).to_state()
    fresh = MoleculeGenerator(**{**TINY, "max_steps": 1}).fit(SMILES)
    with torch.no_grad():
        before, after = (
            float(CategoricalCrossEntropy()(g.denoiser_, x0, source=SeededNoise(0)).mean())
            for g in (fresh, generator)
        )
    assert after < 0.8 * before


def test_training_is_recorded(generator: MoleculeGenerator) -> None:
    assert generator.training_["molecules"] == 40
    assert generator.training_["steps"] == 60
    assert generator.training_["loss"] > 0


def test_law_of_sizes_is_that_of_the_training_molecules(generator: MoleculeGenerator) -> None:
    sizes = [Chem.MolFromSmiles(s).GetNumAtoms() for s in SMILES]
    assert generator.node_counts_.tolist() == np.bincount(sizes).tolist()


def test_preset_fixes_atom_types_and_size() -> None:
    made = MoleculeGenerator(**{**TINY, "max_steps": 1}, preset="qm9", charges=False).fit(SMILES)
    assert [symbol for symbol, _ in made.vocabulary_.atom_types] == ["C", "N", "O", "F"]
    assert made.vocabulary_.max_atoms == 9


@pytest.mark.parametrize("records", [SMILES, np.array(SMILES), pd.Series(SMILES), iter(SMILES)])
def test_any_iterable_of_smiles_trains(records: object) -> None:
    made = MoleculeGenerator(**{**TINY, "max_steps": 1}).fit(records)
    assert made.report_.usable == 40


def test_mols_train_like_their_smiles() -> None:
    short = {**TINY, "max_steps": 2}
    by_mol = MoleculeGenerator(**short).fit([Chem.MolFromSmiles(s) for s in SMILES])
    by_smiles = MoleculeGenerator(**short).fit(SMILES)
    for name, value in by_mol.denoiser_.network.state_dict().items():
        assert torch.equal(value, by_smiles.denoiser_.network.state_dict()[name]), name


@pytest.mark.parametrize("network", ["transformer", "gdss"])
def test_half_precision_trains_without_nan(network: str) -> None:
    settings = {"network_settings": NETWORK if network == "transformer" else None}
    made = MoleculeGenerator(
        **{**TINY, **settings, "max_steps": 12}, network=network, precision="bf16-mixed"
    ).fit(SMILES)
    weights = made.denoiser_.network.state_dict().values()
    assert all(bool(value.isfinite().all()) for value in weights)
    assert all(value.dtype == torch.float32 for value in weights)


def test_gdss_networks_train_and_sample() -> None:
    made = MoleculeGenerator(
        **{**TINY, "network_settings": None, "max_steps": 5}, network="gdss", charges=False
    ).fit(SMILES)
    assert made.denoiser_.prediction == {"x": "score", "adj": "score"}
    assert len(made.sample_smiles(3, steps=5)) == 3


# --- bad training data -----------------------------------------------------------------------
def test_unusable_records_are_counted() -> None:
    records = [*SMILES, "C(", "", None, "CCO.CC", 7]
    made = MoleculeGenerator(**{**TINY, "max_steps": 1}).fit(records)
    assert made.report_.total == 45
    assert made.report_.usable == 40
    assert made.report_.rejected == {"invalid": 2, "empty": 2, "fragments": 1}


def test_without_a_usable_molecule_nothing_is_trained() -> None:
    made = MoleculeGenerator(**TINY, preset="qm9")
    with pytest.raises(MoleculeDataError, match="no usable molecule among the records"):
        made.fit(["C(", "", "[Xe]"])
    assert not hasattr(made, "denoiser_")


@pytest.mark.parametrize("records", [[], ["C("]])
def test_without_a_readable_molecule_there_is_no_vocabulary(records: list[str]) -> None:
    with pytest.raises(MoleculeDataError, match="no readable molecule"):
        MoleculeGenerator(**TINY).fit(records)


def test_a_single_string_is_refused() -> None:
    with pytest.raises(StructDiffError, match="takes a list of SMILES or Mols, got a single one"):
        MoleculeGenerator(**TINY).fit("CCO")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"preset": "qm8"}, "no preset 'qm8'; there are qm9, zinc250k"),
        ({"network": "gnn"}, "unknown network 'gnn': choose one of transformer, gdss"),
        ({"precision": "16-mixed"}, "16-mixed needs a GPU"),
        ({"max_steps": 0}, "max_steps must be at least 1"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
    ],
)
def test_impossible_parameters_are_named_by_fit(change: dict, message: str) -> None:
    with pytest.raises(StructDiffError, match=message):
        MoleculeGenerator(**{**TINY, **change}).fit(SMILES)


# --- sampling --------------------------------------------------------------------------------
def test_frame_has_its_columns_and_rows(generator: MoleculeGenerator) -> None:
    frame = generator.sample_frame(21, steps=5)
    assert list(frame.columns) == ["smiles", "valid", "corrected"]
    assert len(frame) == 21
    assert frame.index.tolist() == list(range(21))
    assert frame["valid"].dtype == bool and frame["corrected"].dtype == bool
    assert all(isinstance(s, str) for s in frame["smiles"])


def test_molecules_are_sanitised_and_equal_their_smiles(generator: MoleculeGenerator) -> None:
    mols = generator.sample(8, steps=5, random_state=3)
    smiles = generator.sample_smiles(8, steps=5, random_state=3)
    assert all(isinstance(m, Chem.Mol) for m in mols)
    assert [Chem.MolToSmiles(m) for m in mols] == smiles
    assert all(Chem.MolFromSmiles(s) is not None for s in smiles)


def test_batches_join_to_the_frame(generator: MoleculeGenerator) -> None:
    small = clone(generator).set_params(batch_size=2)
    small.__dict__.update({k: v for k, v in vars(generator).items() if k.endswith("_")})
    batches = list(small.sample_batches(20, steps=4, random_state=1))
    assert [len(batch) for batch in batches] == [8, 8, 4]
    joined = pd.concat(batches, ignore_index=True)
    pd.testing.assert_frame_equal(joined, generator.sample_frame(20, steps=4, random_state=1))


@pytest.mark.parametrize("sampler", [None, "dpm++", "pc"])
def test_a_seed_gives_the_same_molecules_whatever_the_batch(
    generator: MoleculeGenerator, sampler: str | None
) -> None:
    expected = generator.sample_smiles(24, sampler, steps=8, random_state=2)
    for batch_size in (1, 5, 64):
        generator.batch_size = batch_size
        found = generator.sample_smiles(24, sampler, steps=8, random_state=2)
        generator.batch_size = TINY["batch_size"]
        assert found == expected


def test_a_smaller_sample_is_the_beginning_of_a_larger_one(generator: MoleculeGenerator) -> None:
    large = generator.sample_smiles(30, steps=6, random_state=4)
    assert generator.sample_smiles(7, steps=6, random_state=4) == large[:7]


def test_other_seeds_give_other_molecules(generator: MoleculeGenerator) -> None:
    first = generator.sample_smiles(30, steps=6, random_state=4)
    assert generator.sample_smiles(30, steps=6, random_state=5) != first


def test_the_estimators_own_seed_is_the_default(generator: MoleculeGenerator) -> None:
    assert generator.sample_smiles(9, steps=4) == generator.sample_smiles(
        9, steps=4, random_state=generator.random_state
    )


def test_without_a_seed_samples_are_fresh(generator: MoleculeGenerator) -> None:
    generator.random_state = None
    first, second = generator.sample_smiles(30, steps=4), generator.sample_smiles(30, steps=4)
    generator.random_state = TINY["random_state"]
    assert first != second


def test_sizes_follow_the_training_law(generator: MoleculeGenerator) -> None:
    """Two hundred draws of a law on 2 to 4 atoms: within 4 standard errors of every share."""
    from structdiff.molecules.sampling import _plan

    sizes, _ = _plan(2000, generator.node_counts_, 0)
    shares = np.bincount(sizes, minlength=5) / 2000
    expected = generator.node_counts_ / generator.node_counts_.sum()
    assert np.all(np.abs(shares - expected) < 4 * np.sqrt(expected * (1 - expected) / 2000) + 1e-12)


@pytest.mark.parametrize("n", [0, -3, True, 2.5, "4", None, float("nan")])
def test_impossible_numbers_are_refused(generator: MoleculeGenerator, n: object) -> None:
    with pytest.raises(StructDiffError, match="n must be a whole number of at least 1, got"):
        generator.sample(n)


def test_numpy_integers_are_numbers(generator: MoleculeGenerator) -> None:
    assert len(generator.sample_smiles(np.int64(2), steps=3)) == 2


def test_negative_seed_is_refused(generator: MoleculeGenerator) -> None:
    with pytest.raises(StructDiffError, match="random_state must be None or a whole number from 0"):
        generator.sample(1, random_state=-1)


def test_unknown_sampler_lists_the_known_ones(generator: MoleculeGenerator) -> None:
    with pytest.raises(StructDiffError, match=r"dpm\+\+") as caught:
        generator.sample(1, sampler="magic")
    assert all(name in str(caught.value) for name in ("magic", "ddim", "pc", "heun"))


def test_zero_steps_are_refused(generator: MoleculeGenerator) -> None:
    with pytest.raises(ValueError, match="steps"):
        generator.sample(1, steps=0)


def test_a_sampler_object_is_taken_as_it_is(generator: MoleculeGenerator) -> None:
    by_name = generator.sample_smiles(5, "ddim", steps=6, random_state=1)
    assert generator.sample_smiles(5, get_sampler("ddim", 6), random_state=1) == by_name
    with pytest.raises(StructDiffError, match="steps is part of the sampler object"):
        generator.sample(1, get_sampler("ddim", 6), steps=3)


# --- published checkpoint --------------------------------------------------------------------
def test_published_weights_sample_valid_molecules(weights_dir) -> None:
    """95.5 +- 1.3 % (two standard errors at n = 1,000) without correction at 100 steps in the
    published code, 93.7 % at 50 steps; 256 molecules scatter by 1.4 %.
    """
    made = MoleculeGenerator.from_gdss(weights_dir / "gdss" / "gdss_qm9.safetensors")
    made.set_params(progress=False)
    frame = made.sample_frame(256, random_state=0)
    assert 0.91 <= frame["valid"].mean() <= 0.99
    assert frame["smiles"].nunique() >= 250


# --- devices ---------------------------------------------------------------------------------
def test_an_absent_gpu_is_named(generator: MoleculeGenerator, monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    asked = clone(generator).set_params(accelerator="gpu")
    asked.__dict__ |= {k: v for k, v in vars(generator).items() if k.endswith("_")}
    with pytest.raises(StructDiffError, match="no GPU here: set accelerator='auto' or 'cpu'"):
        asked.sample(1)


def test_an_unknown_accelerator_is_named(generator: MoleculeGenerator) -> None:
    asked = clone(generator).set_params(accelerator="abacus")
    asked.__dict__ |= {k: v for k, v in vars(generator).items() if k.endswith("_")}
    with pytest.raises(StructDiffError, match="cannot sample on accelerator 'abacus'"):
        asked.sample(1)
