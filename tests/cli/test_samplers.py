"""``structdiff samplers``: the list, and comparisons on testbeds and on the embedded model."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

import structdiff
from structdiff.cli import main
from structdiff.molecules import MoleculeGenerator
from structdiff.samplers import SAMPLERS
from structdiff.samplers.comparison import Measurement
from structdiff.samplers.comparison_table import ComparisonTable
from structdiff.samplers.testbed_models import TestbedModel

ROOT = Path(structdiff.__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def compare(*words: str, model: str = "testbed:gmm3", num: int = 64) -> int:
    return main(["samplers", "compare", "--model", model, "--num", str(num), *words])


def rows(path: str = "samplers.csv") -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def complaint(capsys: pytest.CaptureFixture[str]) -> str:
    printed = capsys.readouterr()
    found = [line for line in printed.err.splitlines() if line.startswith("structdiff: ")]
    assert len(found) == 1 and "Traceback" not in printed.err and printed.out == ""
    return found[0]


# ---------------------------------------------------------------- the list


@pytest.mark.parametrize("words", [["samplers"], ["samplers", "list"]])
def test_the_list_names_every_sampler_and_its_properties(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 0
    table = capsys.readouterr().out
    assert all(f" {name} " in table for name in SAMPLERS)
    header = ("name", "order", "NFE/step", "noise", "grid", "steps", "source")
    assert all(word in table for word in header)


@pytest.mark.parametrize("words", [["samplers", "--json"], ["samplers", "list", "--json"]])
def test_the_list_is_json_for_machines(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 0
    listed = {each.pop("name"): each for each in json.loads(capsys.readouterr().out)}
    assert list(listed) == list(SAMPLERS)
    assert listed["heun"] == {
        "order": 2,
        "nfe_per_step": 2,
        "stochastic": False,
        "grid": "Karras 7",
        "most_steps": None,
        "couples_batch": False,
        "source": "Karras et al. 2022 (EDM)",
    }


def test_a_heuristic_has_a_dash_for_an_order(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    heuristic = replace(SAMPLERS["ddim"], order=None, most_steps=20)
    monkeypatch.setitem(SAMPLERS, "ddim", heuristic)
    assert main(["samplers"]) == 0
    (line,) = [each for each in capsys.readouterr().out.splitlines() if "│ ddim " in each]
    assert [cell.strip() for cell in line.split("│")[2:8]] == [
        "—",
        "1",
        "no",
        "t^2",
        "to 20",
        SAMPLERS["ddim"].source,
    ]


# ---------------------------------------------------------------- a comparison


def test_a_comparison_writes_a_table_and_a_picture(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--samplers", "ddim,ddpm,ode", "--nfe", "10,5", "--out", "t.csv", "--plot", "c.png"]
    assert compare(*words) == 0
    found = rows("t.csv")
    assert [(r["sampler"], r["nfe"], r["steps"]) for r in found] == [
        ("ode", "5", ""),
        ("ddim", "5", "5"),
        ("ddpm", "5", "5"),
        ("ode", "10", ""),
        ("ddim", "10", "10"),
        ("ddpm", "10", "10"),
    ]
    assert list(found[0])[7:] == [
        "evaluations",
        "error",
        "sliced_w2",
        "sliced_w2_floor",
        "cpu_ms",
        "note",
    ]
    assert float(found[1]["error"]) > float(found[4]["error"]) > 0 and found[2]["error"] == ""
    assert Path("c.png").read_bytes().startswith(b"\x89PNG")
    assert Path("c.png").stat().st_size > 10_000
    printed = capsys.readouterr().out
    assert "real data" in printed and "costs no fixed number of evaluations a step" in printed


def test_a_comparison_answers_machines_in_json_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert compare("--samplers", "ddim,sde", "--nfe", "4", "--json") == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["metrics"] == {"error": "smaller", "sliced_w2": "smaller"}
    assert answer["floors"]["sliced_w2"] > 0 and answer["count"] == 64
    first, second = answer["rows"]
    assert (first["sampler"], first["steps"], first["evaluations"]) == ("ddim", 4, 4)
    assert first["scores"]["error"] > 0
    assert (
        second["scores"] == {} and second["note"] == "costs no fixed number of evaluations a step"
    )


def test_the_same_command_measures_nothing_twice(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert compare("--samplers", "ddim,heun", "--nfe", "4,8") == 0
    before = Path("samplers.csv").read_bytes()

    def forbidden(*_: object) -> None:
        raise AssertionError("measured twice")

    monkeypatch.setattr(TestbedModel, "draw", forbidden)
    assert compare("--samplers", "ddim,heun", "--nfe", "4,8") == 0
    assert "4 cases are taken from samplers.csv" in capsys.readouterr().err
    assert Path("samplers.csv").read_bytes() == before


def test_a_table_is_widened_by_samplers_and_budgets() -> None:
    assert compare("--samplers", "ddim", "--nfe", "4") == 0
    assert compare("--samplers", "heun", "--nfe", "8") == 0
    assert [(r["sampler"], r["nfe"]) for r in rows()] == [("ddim", "4"), ("heun", "8")]


def test_fresh_measures_again(capsys: pytest.CaptureFixture[str]) -> None:
    assert compare("--samplers", "ddim,heun", "--nfe", "4") == 0
    assert compare("--samplers", "ddim", "--nfe", "4", "--fresh") == 0
    assert "are taken from" not in capsys.readouterr().err
    assert [r["sampler"] for r in rows()] == ["ddim"]


def test_the_embedded_model_is_compared_on_its_own_metrics() -> None:
    words = ["--samplers", "dpm++,pc", "--nfe", "4", "--batch-size", "8", "--plot", "c.svg"]
    assert compare(*words, model="gdss-qm9", num=12) == 0
    first, second = rows()
    assert {"dpm++", "pc"} == {first["sampler"], second["sampler"]}
    assert all(0 <= float(r["valid"]) <= 1 and float(r["fcd"]) > 0 for r in (first, second))
    assert float(first["nspdk_floor"]) > 0
    assert "<svg" in Path("c.svg").read_text()


def test_a_model_of_ones_own_is_compared_with_a_csv(capsys: pytest.CaptureFixture[str]) -> None:
    MoleculeGenerator.from_pretrained("gdss-qm9").save_pretrained("mine")
    Path("test.csv").write_text("smiles\nCCO\nCCN\nC1CC1\nCOC\n")
    words = ["--samplers", "ddim", "--nfe", "3"]
    assert compare(*words, model="mine", num=4) == 2
    assert "mine has no reference statistics: pass --reference" in complaint(capsys)
    assert compare(*words, "--reference", "test.csv", model="mine", num=4) == 0
    assert "nspdk_floor" not in rows()[0]


# ---------------------------------------------------------------- Ctrl-C


def test_ctrl_c_keeps_what_is_measured_and_the_same_command_goes_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    draw, calls = TestbedModel.draw, []

    def interrupted(*arguments: object) -> object:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return draw(*arguments)

    monkeypatch.setattr(TestbedModel, "draw", interrupted)
    words = ["--samplers", "ddim,heun,dpm++", "--nfe", "4,8"]
    assert compare(*words) == 130
    assert "2 of 6 cases are measured and written to samplers.csv; the same command goes on" in (
        capsys.readouterr().err
    )
    assert len(rows()) == 2
    assert compare(*words) == 0
    assert len(rows()) == 6 and len(calls) == 3 + 4


def test_ctrl_c_before_the_first_case_writes_nothing(
    monkeypatch: pytest.MonkeyPatch, workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(TestbedModel, "draw", interrupted)
    assert compare("--samplers", "ddim", "--nfe", "4") == 130
    assert "nothing was measured: nothing is written" in capsys.readouterr().err
    assert list(workplace.iterdir()) == []


def test_ctrl_c_between_a_row_and_its_count_counts_the_row(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    add = ComparisonTable.add

    def cut_short(self: ComparisonTable, measurement: Measurement) -> None:
        add(self, measurement)
        raise KeyboardInterrupt

    monkeypatch.setattr(ComparisonTable, "add", cut_short)
    assert compare("--samplers", "ddim,ddpm", "--nfe", "4,8") == 130
    assert "1 of 4 cases are measured" in capsys.readouterr().err
    assert len(rows()) == 1


def test_a_signal_stops_the_process_with_code_130_and_rows_on_disk() -> None:
    nfe = ",".join(map(str, range(50, 400)))
    words = ["compare", "--model", "testbed:gmm3", "--samplers", "ddpm", "--nfe", nfe]
    process = subprocess.Popen(
        [sys.executable, "-m", "structdiff.cli", "samplers", *words, "--num", "2000"],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        # A test run in the background of a shell inherits an ignored SIGINT.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    part = Path("samplers.csv.part")
    # The header is on disk before the first row is.
    while process.poll() is None and not (part.is_file() and part.read_text().count("\n") > 1):
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert 1 <= len(rows()) < 350 and not part.exists()
    assert f"{len(rows())} of 350 cases are measured" in said and "Traceback" not in said


# ---------------------------------------------------------------- bad input: code 2, one line


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--nfe", "0"], "--nfe 0: '0' should be a whole number of at least 1"),
        (["--nfe", "5,ten"], "--nfe 5,ten: 'ten' should be a whole number"),
        (["--nfe", "5,,10"], "--nfe 5,,10: '' should be a whole number"),
        (["--nfe", "-3"], "--nfe -3: '-3' should be"),
        (["--num", "0"], "--num 0: should be a whole number of at least 1"),
        (["--samplers", "ddim,huen"], "unknown sampler 'huen': did you mean 'heun'?"),
        (["--samplers", ""], "unknown sampler ''"),
        (["--model", "testbed:gmm4"], "unknown testbed 'gmm4': choose one of gmm3"),
        (
            ["--model", "gdss-qm8"],
            "gdss-qm8: no such model; give an embedded model (ddhpose-cmu17, gdss-qm9, ts",
        ),
        (
            ["--model", ""],
            ": no such model; give an embedded model (ddhpose-cmu17, gdss-qm9, tsdiff-demo)",
        ),
        (["--model", "no.pth"], "no.pth: no such checkpoint file"),
        (["--batch-size", "3"], "--batch-size 3: testbed:gmm3 is its own reference"),
        (["--reference", "r.csv"], "--reference r.csv: testbed:gmm3 is its own reference"),
        (["--plot", "c.gif"], "c.gif: cannot draw this format; end the name in .png"),
        (["--plot", "no/c.png"], "no/c.png: the folder no does not exist"),
        (["--out", "no/t.csv"], "no/t.csv: the folder no does not exist"),
        (["--out", "."], ".: is a folder"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(
    words: list[str], expected: str, workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = [] if "--model" in words else ["--model", "testbed:gmm3"]
    assert main(["samplers", "compare", *model, *words]) == 2
    assert expected in complaint(capsys)
    assert list(workplace.iterdir()) == []


def test_a_table_of_something_else_is_not_written_over(
    capsys: pytest.CaptureFixture[str],
) -> None:
    Path("samplers.csv").write_text("smiles\nC\n")
    assert compare("--nfe", "4") == 2
    assert "samplers.csv: is not a table of this command; choose another" in complaint(capsys)
    assert Path("samplers.csv").read_text() == "smiles\nC\n"


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (None, "mine holds no config.json: it is not a saved model"),
        ("{", "not JSON"),
        ("{}", "its format None is of no head of this version (structdiff.molecules"),
        ('{"format": "structdiff.novel/1"}', "its format 'structdiff.novel/1' is of no head"),
    ],
)
def test_a_folder_that_is_no_model_of_a_known_head_is_named(
    config: str | None, expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("mine").mkdir()
    if config is not None:
        Path("mine/config.json").write_text(config)
    assert compare("--nfe", "4", model="mine") == 2
    assert expected in complaint(capsys)
