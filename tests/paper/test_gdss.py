"""Figures of the GDSS paper, measured again with its published QM9 weights and with ours."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from structdiff.molecules import MoleculeGenerator, ReferenceStatistics, evaluate
from structdiff.molecules.sampling import choose_sampler

pytestmark = pytest.mark.paper


@pytest.fixture(scope="module")
def published(weights_dir: Path) -> MoleculeGenerator:
    generator = MoleculeGenerator.from_gdss(weights_dir / "gdss" / "gdss_qm9.safetensors")
    return generator.set_params(progress=False)


def scores(frame: pd.DataFrame, fcd: bool = False) -> pd.Series:
    return evaluate(frame, ReferenceStatistics.from_pretrained("gdss-qm9"), fcd=fcd)


def test_published_weights_and_scheme_give_the_published_validity(published) -> None:
    """Paper, table 2: 95.72 % valid without correction, 98.46 % unique, at 2,000 evaluations."""
    found = scores(published.sample_frame(1000, sampler="published", random_state=0))
    assert found["validity_without_correction"] == pytest.approx(0.957, abs=0.015)
    assert found["uniqueness"] >= 0.97


def test_a_hundred_published_steps_are_as_good(published) -> None:
    """Method card, section 10: 95.3 +- 2 %, uniqueness >= 98.5 %, NSPDK <= 0.008 at n = 1,000."""
    frame = published.sample_frame(1000, sampler="published", steps=100, random_state=0)
    found = scores(frame)
    assert found["validity_without_correction"] == pytest.approx(0.953, abs=0.02)
    assert found["uniqueness"] >= 0.985
    assert found["nspdk_mmd"] <= 0.008


def test_the_default_sampler_is_as_good_in_a_hundred_evaluations(published) -> None:
    """A twentieth of the published number, at the published validity."""
    sampler = choose_sampler(published.spec_, None, None)
    found = scores(published.sample_frame(1000, sampler=sampler, random_state=0))
    assert sampler.nfe == 100
    assert found["validity_without_correction"] >= 0.95
    assert found["nspdk_mmd"] <= 0.008


def test_fifty_evaluations_suffice_for_most(published) -> None:
    """The published scheme has 88.3 % at 50 evaluations (method card, section 7)."""
    sampler = choose_sampler(published.spec_, "s4", 50)
    found = scores(published.sample_frame(1000, sampler=sampler, random_state=0))
    assert sampler.nfe == 50
    assert found["validity_without_correction"] >= 0.93
    assert found["nspdk_mmd"] <= 0.008


def test_the_embedded_model_beats_the_published_one() -> None:
    """10,000 molecules in at most 100 evaluations, against table 2 of the paper."""
    generator = MoleculeGenerator.from_pretrained("gdss-qm9")
    sampler = choose_sampler(generator.spec_, None, None)
    found = scores(generator.sample_frame(10_000, sampler=sampler, random_state=0), fcd=True)
    assert sampler.nfe <= 100
    assert found["validity_without_correction"] >= 0.97
    assert found["nspdk_mmd"] <= 0.003
    assert found["fcd"] <= 2.9
    assert found["uniqueness"] >= 0.95
