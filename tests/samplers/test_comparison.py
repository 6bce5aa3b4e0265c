"""Comparing samplers on a model: what fits a budget, what is measured, what is kept on disk."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from structdiff.errors import StructDiffError
from structdiff.samplers import DDIM, SAMPLERS, Sampler, UniformTime, get_sampler
from structdiff.samplers.comparison import (
    Case,
    ComparableModel,
    Metric,
    check_names,
    compare,
    most_steps,
    plan,
    sliced_wasserstein,
)
from structdiff.samplers.comparison_table import ComparisonTable, read_comparison
from structdiff.samplers.testbed_models import TESTBEDS, TestbedModel, testbed_model

N = 256


@pytest.fixture(scope="module")
def gmm3() -> TestbedModel:
    return testbed_model("gmm3")


class Toy(ComparableModel):
    """Scores a sampler by its number of steps; knows two samplers."""

    name, fingerprint = "toy", "1"
    metrics = (Metric("gap", "gap", "smaller"), Metric("share", "share", "greater"))

    def __init__(self) -> None:
        self.drawn: list[tuple[int, int, int]] = []

    def sampler_names(self) -> list[str]:
        return ["ddim", "heun"]

    def draw(self, sampler: Sampler, n: int, seed: int) -> int:
        self.drawn.append((sampler.steps, n, seed))
        if sampler.steps == 13:
            raise StructDiffError("thirteen\nsteps")
        sampler.nfe = sampler.steps
        return sampler.steps

    def scores(self, drawn: Any) -> dict[str, float]:
        return {"gap": 1 / drawn, "share": math.nan}

    def floors(self, n: int) -> dict[str, float]:
        return {"gap": 1 / n}


# ---------------------------------------------------------------- budgets


def test_every_sampler_of_the_registry_is_planned_at_every_budget(gmm3: TestbedModel) -> None:
    cases = plan(gmm3, [5, 10])
    assert [(c.sampler, c.nfe) for c in cases] == [(s, n) for n in (5, 10) for s in SAMPLERS]


def test_a_case_has_steps_or_a_reason(gmm3: TestbedModel) -> None:
    assert all((case.steps is None) == bool(case.note) for case in plan(gmm3, [1, 10, 1000]))


def test_no_measured_sampler_spends_more_than_its_budget(gmm3: TestbedModel) -> None:
    measured = list(compare(gmm3, plan(gmm3, [10]), 4, 0))
    spent = {m.case.sampler: m.evaluations for m in measured if m.scores}
    assert {"ddim": 10, "heun": 9}.items() <= spent.items()
    assert max(v for v in spent.values() if v is not None) <= 10


def test_an_adaptive_sampler_is_listed_with_its_reason(gmm3: TestbedModel) -> None:
    (case,) = plan(gmm3, [10], ["ode"])
    assert case == Case("ode", 10, None, "costs no fixed number of evaluations a step")


def test_a_sampler_with_a_largest_number_of_steps_is_listed_with_it(
    monkeypatch: pytest.MonkeyPatch, gmm3: TestbedModel
) -> None:
    from dataclasses import replace

    monkeypatch.setitem(SAMPLERS, "ddim", replace(SAMPLERS["ddim"], most_steps=20))
    assert plan(gmm3, [50], ["ddim"]) == [Case("ddim", 50, None, "takes at most 20 steps")]


@pytest.mark.parametrize(("nfe", "steps"), [(1, 1), (9, 3), (10, 3), (11, 3), (12, 4)])
def test_most_steps_is_the_largest_that_fits(nfe: int, steps: int) -> None:
    assert most_steps(lambda n: 3 * n if n > 1 else 1, nfe) == steps


def test_no_steps_fit_where_one_costs_too_much() -> None:
    assert most_steps(lambda n: 5 * n, 4) is None


def test_an_unknown_sampler_is_answered_with_the_nearest() -> None:
    with pytest.raises(StructDiffError, match=r"unknown sampler 'hein': did you mean 'heun'\?"):
        check_names(["ddim", "hein"], ["ddim", "heun"])


# ---------------------------------------------------------------- measuring


def test_a_case_that_fails_gives_the_reason_and_the_next_goes_on() -> None:
    toy = Toy()
    found = list(compare(toy, [Case("ddim", 13, 13), Case("ddim", 4, 4)], 7, 3))
    assert (found[0].note, found[0].scores) == ("thirteen steps", {})
    assert found[1].scores["gap"] == 0.25 and found[1].evaluations == 4
    assert toy.drawn == [(13, 7, 3), (4, 7, 3)]


@pytest.mark.parametrize("name", TESTBEDS)
def test_the_exact_answer_is_that_of_an_adaptive_solver(name: str) -> None:
    model = testbed_model(name)
    drawn = model.draw(get_sampler("ode", 1, rtol=1e-9, atol=1e-9), 32, 0)
    assert model.scores(drawn)["error"] < 1e-6


def test_the_error_of_ddim_on_the_mixture_is_the_cards() -> None:
    # Samplers card, table 7.3: DDIM, 10 steps of the t^2 grid, .258 without the last prediction, on
    # 512 other trajectories; the few near the watersheds make most of it, hence 15 %.
    model = testbed_model("gmm3")
    drawn = model.draw(DDIM(10, UniformTime(2.0), denoise=False), 4096, 0)
    assert model.scores(drawn)["error"] == pytest.approx(0.258, rel=0.15)


def test_a_stochastic_sampler_has_no_error_to_the_flow(gmm3: TestbedModel) -> None:
    (found,) = compare(gmm3, plan(gmm3, [10], ["ddpm"]), N, 0)
    assert math.isnan(found.scores["error"]) and found.scores["sliced_w2"] > 0


def test_many_steps_bring_the_sliced_distance_to_its_floor(gmm3: TestbedModel) -> None:
    floor = gmm3.floors(2000)["sliced_w2"]
    few, many = compare(gmm3, plan(gmm3, [5, 200], ["ddpm"]), 2000, 0)
    assert few.scores["sliced_w2"] > 3 * floor
    assert many.scores["sliced_w2"] < 2 * floor


def test_sliced_wasserstein_of_a_shift_is_its_mean_projection() -> None:
    # E (theta . v)^2 = |v|^2 / D over the unit sphere; 5 % by 128 directions.
    x = torch.randn(500, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    shift = torch.tensor([3.0, 4.0, 0.0])
    assert sliced_wasserstein(x, x + shift) == pytest.approx(5 / 3**0.5, rel=0.1)
    assert sliced_wasserstein(x, x) == 0


def test_an_unknown_testbed_is_answered_with_the_known() -> None:
    with pytest.raises(StructDiffError, match="unknown testbed 'gmm4': choose one of gmm3"):
        testbed_model("gmm4")


# ---------------------------------------------------------------- the table on disk


def rows_of(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def fill(path: Path, cases: list[Case], *, finish: bool = True) -> Toy:
    """Measure what the table does not hold, as the command does."""
    toy = Toy()
    table = ComparisonTable(path, toy, 7, 3)
    for case in cases:
        if table.measured(case) is None:
            (found,) = compare(toy, [case], 7, 3)
            table.add(found)
    if finish:
        table.finish()
    return toy


def test_a_row_says_what_was_measured_and_with_what(tmp_path: Path) -> None:
    fill(tmp_path / "t.csv", [Case("ddim", 5, 5), Case("heun", 5, None, "because")])
    first, second = rows_of(tmp_path / "t.csv")
    scores = ["gap", "gap_floor", "share"]
    settings = ["model", "fingerprint", "count", "seed"]
    what = ["sampler", "nfe", "steps", "evaluations"]
    assert list(first) == [*settings, *what, *scores, "cpu_ms", "note"]
    expected = {"model": "toy", "count": "7", "seed": "3", "sampler": "ddim", "gap": "0.2"}
    assert expected.items() <= first.items()
    assert float(first["gap_floor"]) == pytest.approx(1 / 7, rel=1e-5) and first["share"] == ""
    assert (second["steps"], second["gap"], second["note"]) == ("", "", "because")


def test_what_a_table_holds_is_not_measured_again(tmp_path: Path) -> None:
    cases = [Case("ddim", 5, 5), Case("heun", 5, 3)]
    assert len(fill(tmp_path / "t.csv", cases).drawn) == 2
    again = fill(tmp_path / "t.csv", [*cases, Case("ddim", 9, 9)])
    assert again.drawn == [(9, 7, 3)]
    assert [r["sampler"] + r["nfe"] for r in rows_of(tmp_path / "t.csv")] == [
        "ddim5",
        "heun5",
        "ddim9",
    ]


def test_a_reused_row_gives_back_what_was_measured(tmp_path: Path) -> None:
    fill(tmp_path / "t.csv", [Case("ddim", 5, 5)])
    found = ComparisonTable(tmp_path / "t.csv", Toy(), 7, 3).measured(Case("ddim", 5, 5))
    assert found is not None and found.evaluations == 5
    assert found.scores["gap"] == 0.2 and math.isnan(found.scores["share"])


def test_a_finished_table_is_read_without_its_model(tmp_path: Path) -> None:
    fill(tmp_path / "t.csv", [Case("ddim", 5, 5), Case("heun", 5, None, "because")])
    (first, second), floors = read_comparison(tmp_path / "t.csv")
    assert (first.case, first.evaluations, first.scores["gap"]) == (Case("ddim", 5, 5), 5, 0.2)
    assert second.note == "because" and second.scores == {}
    assert floors == {"gap": pytest.approx(1 / 7, rel=1e-5)}


def test_rows_of_a_run_that_was_killed_are_found_in_its_part(tmp_path: Path) -> None:
    fill(tmp_path / "t.csv", [Case("ddim", 5, 5)], finish=False)
    assert not (tmp_path / "t.csv").exists()
    with open(tmp_path / "t.csv.part", "a") as file:
        file.write("toy,1,7,3,heu")  # the line that the kill cut short
    assert fill(tmp_path / "t.csv", [Case("ddim", 5, 5), Case("heun", 5, 3)]).drawn == [(3, 7, 3)]
    assert len(rows_of(tmp_path / "t.csv")) == 2
    assert not (tmp_path / "t.csv.part").exists()


def test_a_failed_case_and_one_with_other_steps_are_measured_again(tmp_path: Path) -> None:
    fill(tmp_path / "t.csv", [Case("ddim", 13, 13), Case("ddim", 5, 5)])
    again = fill(tmp_path / "t.csv", [Case("ddim", 13, 13), Case("ddim", 5, 4)])
    assert [steps for steps, _, _ in again.drawn] == [13, 4]


@pytest.mark.parametrize("what", ["count", "seed", "model", "fingerprint"])
def test_a_table_of_another_comparison_is_not_mixed_with_this_one(
    what: str, tmp_path: Path
) -> None:
    fill(tmp_path / "t.csv", [Case("ddim", 5, 5)])
    toy = Toy()
    if what in ("model", "fingerprint"):
        setattr(toy, {"model": "name"}.get(what, what), "another")
    settings = {"count": 8 if what == "count" else 7, "seed": 4 if what == "seed" else 3}
    with pytest.raises(StructDiffError, match=f"holds a comparison with {what} .*--fresh"):
        ComparisonTable(tmp_path / "t.csv", toy, **settings)
    ComparisonTable(tmp_path / "t.csv", toy, **settings, fresh=True)


@pytest.mark.parametrize("content", ["smiles\nC\n", "", "a,b\n1,2\n"])
def test_another_file_is_not_written_over(content: str, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(content)
    with pytest.raises(StructDiffError, match="is not a table of this command; choose another"):
        ComparisonTable(tmp_path / "t.csv", Toy(), 7, 3)
    assert (tmp_path / "t.csv").read_text() == content


def test_a_ctrl_c_while_the_first_row_is_written_still_leaves_a_table(tmp_path, monkeypatch):
    path = tmp_path / "t.csv"
    table = ComparisonTable(path, Toy(), 7, 3)
    write = ComparisonTable._write

    def written_then_stopped(self, file, rows, header):
        write(self, file, rows, header=header)
        monkeypatch.undo()
        raise KeyboardInterrupt

    monkeypatch.setattr(ComparisonTable, "_write", written_then_stopped)
    (measurement,) = compare(Toy(), [Case("ddim", 5, 5)], 7, 3)
    with pytest.raises(KeyboardInterrupt):
        table.add(measurement)
    assert table.finish() and not path.with_name("t.csv.part").exists()
    assert ComparisonTable(path, Toy(), 7, 3).measured(Case("ddim", 5, 5)) is not None
