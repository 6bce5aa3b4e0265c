"""A molecule model under every sampler: its settings, their cost, its scores."""

from __future__ import annotations

import math

import pytest

from structdiff.errors import StructDiffError
from structdiff.molecules import MoleculeGenerator, ReferenceStatistics, evaluate
from structdiff.molecules.comparison import MoleculeComparison
from structdiff.samplers import SAMPLERS
from structdiff.samplers.comparison import compare, plan

SMILES = ["CCO", "CCN", "CC=O", "C1CC1", "COC", "NCC#N"]


@pytest.fixture(scope="module")
def reference() -> ReferenceStatistics:
    return ReferenceStatistics.from_pretrained("gdss-qm9")


@pytest.fixture(scope="module")
def model(reference: ReferenceStatistics) -> MoleculeComparison:
    generator = MoleculeGenerator.from_pretrained("gdss-qm9")
    return MoleculeComparison(generator, reference, "gdss-qm9")


def test_scores_are_those_of_the_evaluation_suite(
    model: MoleculeComparison, reference: ReferenceStatistics
) -> None:
    (found,) = compare(model, plan(model, [6], ["dpm++"]), 24, 1)
    frame = model.generator.sample_frame(24, sampler="dpm++", steps=6, random_state=1)
    expected = evaluate(frame, reference, floor=False)
    assert found.scores == {
        "fcd": pytest.approx(expected["fcd"]),
        "nspdk": pytest.approx(expected["nspdk_mmd"]),
        "valid": expected["validity_without_correction"],
        "unique": expected["uniqueness"],
    }


def test_the_models_own_sampler_runs_with_its_own_settings(model: MoleculeComparison) -> None:
    assert model.sampler("pc", 9).snr == 0.4  # config.json of gdss-qm9
    assert not hasattr(model.sampler("ddim", 9), "snr")


@pytest.mark.parametrize("nfe", [6, 20])
def test_the_own_sampler_is_held_to_the_budget_by_counting(
    nfe: int, model: MoleculeComparison
) -> None:
    (case,) = plan(model, [nfe], ["pc"])
    assert case.steps is not None
    counted = []
    for steps in (case.steps, case.steps + 1):
        sampler = model.sampler("pc", steps)
        model.draw(sampler, 1, 0)
        counted.append(sampler.nfe)
    assert counted[0] <= nfe < counted[1]


def test_floors_are_those_of_the_reference(
    model: MoleculeComparison, reference: ReferenceStatistics
) -> None:
    assert model.floors(1000) == {
        "fcd": reference.floor("fcd", 1000),
        "nspdk": reference.floor("nspdk_mmd", 1000),
    }


def test_every_sampler_of_the_registry_is_offered(model: MoleculeComparison) -> None:
    assert model.sampler_names() == list(SAMPLERS)


def test_the_fingerprint_follows_weights_and_reference(
    model: MoleculeComparison, reference: ReferenceStatistics
) -> None:
    other = ReferenceStatistics.compute(SMILES, fcd=False)
    assert MoleculeComparison(model.generator, reference).fingerprint == model.fingerprint
    assert MoleculeComparison(model.generator, other).fingerprint != model.fingerprint
    changed = MoleculeGenerator.from_pretrained("gdss-qm9")
    next(changed.denoiser_.parameters()).data.view(-1)[0] += 1
    assert MoleculeComparison(changed, reference).fingerprint != model.fingerprint


def test_a_reference_without_floors_has_none(model: MoleculeComparison) -> None:
    other = MoleculeComparison(model.generator, ReferenceStatistics.compute(SMILES, fcd=False))
    assert other.floors(100) == {}
    (found,) = compare(other, plan(other, [3], ["ddim"]), 8, 0)
    assert math.isnan(found.scores["fcd"]) and found.scores["nspdk"] > 0


def test_molecules_that_are_not_finite_give_the_reason(reference: ReferenceStatistics) -> None:
    broken = MoleculeGenerator.from_pretrained("gdss-qm9")
    for parameter in broken.denoiser_.parameters():
        parameter.data.fill_(float("nan"))
    model = MoleculeComparison(broken, reference)
    (found,) = compare(model, plan(model, [3], ["ddim"]), 4, 0)
    assert found.scores == {} and "4 of 4 sampled molecules hold NaN" in found.note


def test_an_unfitted_generator_is_refused(reference: ReferenceStatistics) -> None:
    with pytest.raises(StructDiffError, match="is not fitted"):
        MoleculeComparison(MoleculeGenerator(), reference)
