"""``structdiff timeseries`` end to end, with a model of a few steps on monthly series."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from structdiff.cli import main
from structdiff.timeseries import TSDiff
from structdiff.timeseries.evaluation import evaluate

H = 12
FEW = ["--n-samples", "20", "--steps", "4", "--seed", "1"]


def monthly() -> pd.DataFrame:
    """Three series of twelve years with a season; the last has a gap."""
    months = np.arange(144)
    season = 1 + 0.25 * np.sin(2 * np.pi * months / 12) + 0.1 * np.cos(2 * np.pi * months / 6)
    times = pd.date_range("1949-01-01", periods=144, freq="MS")
    trend = 100 + 2.5 * months
    columns = {"007": trend * season, "air": 40 * season, "rail": 10 * trend * season}
    wide = pd.DataFrame({name: values.round(2) for name, values in columns.items()}, index=times)
    wide.iloc[60:64, 2] = np.nan
    long = wide.rename_axis("ds").melt(ignore_index=False, var_name="unique_id", value_name="y")
    return long.reset_index()[["unique_id", "ds", "y"]]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("fitted")
    monthly().to_csv(folder / "air.csv", index=False)
    words = ["--horizon", str(H), "--hidden", "16", "--max-steps", "10", "--batch-size", "16"]
    assert run("fit", str(folder / "air.csv"), "--out", str(folder / "model"), *words) == 0
    return str(folder / "model")


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monthly().to_csv("air.csv", index=False)
    return tmp_path


def run(*words: str) -> int:
    return main(["timeseries", *words])


def complaint(capsys: pytest.CaptureFixture[str]) -> str:
    printed = capsys.readouterr()
    found = [line for line in printed.err.splitlines() if line.startswith("structdiff: ")]
    assert len(found) == 1 and "Traceback" not in printed.err
    return found[0]


def files(folder: Path) -> set[str]:
    return {file.name for file in folder.iterdir()}


# ---------------------------------------------------------------- fit


def test_fit_keeps_a_model_that_python_loads(model: str) -> None:
    loaded = TSDiff.from_pretrained(model)
    assert (loaded.spec_.horizon, loaded.freq_) == (H, "MS")
    assert loaded.training_["steps"] == 10


def test_fit_says_which_series_were_too_short(
    workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    frame = monthly()
    short = frame["unique_id"].eq("air") & (frame["ds"] > "1950-01-01")
    frame[~short].to_csv("short.csv", index=False)
    words = ["--horizon", "12", "--hidden", "8", "--max-steps", "2"]
    assert run("fit", "short.csv", "--out", "m", *words) == 0
    printed = capsys.readouterr()
    assert "short.csv: 1 of 3 series have fewer than" in printed.err
    assert "2 steps" in printed.err and "from 2 series (1 too short), frequency MS" in printed.err
    assert "Warning" not in printed.err
    assert printed.out == "m\n"


def test_a_run_is_resumed_and_not_written_over(
    workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["fit", "air.csv", "--out", "m", "--horizon", "12", "--hidden", "8"]
    assert run(*words, "--max-steps", "2") == 0
    capsys.readouterr()
    assert run(*words, "--max-steps", "3") == 2
    assert "resume" in complaint(capsys)
    assert run(*words, "--max-steps", "3", "--resume") == 0
    assert TSDiff.from_pretrained("m").training_["steps"] == 3


def test_ctrl_c_says_how_to_go_on(
    workplace: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(TSDiff, "fit", interrupted)
    assert run("fit", "air.csv", "--out", "m") == 130
    assert "with --out m --resume goes on" in capsys.readouterr().err


# ---------------------------------------------------------------- forecast


def test_a_forecast_is_that_of_the_estimator_in_the_files_shape(
    model: str, workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--level", "80", "--level", "95", "--quantile", "0.1", "--plot", "fc.png", "--json"]
    assert run("forecast", "air.csv", "--model", model, *words, *FEW) == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["series"], answer["points ahead"], answer["paths"]) == (3, H, 20)
    loaded = TSDiff.from_pretrained(model)
    loaded.set_params(n_samples=20, steps=4, random_state=1, progress=False)
    expected = loaded.predict(monthly(), level=[80, 95], quantiles=[0.1])
    written = pd.read_csv(
        "forecast.csv", parse_dates=["ds"], dtype={"unique_id": str}, float_precision="round_trip"
    )
    pd.testing.assert_frame_equal(
        written, expected, check_exact=True, check_dtype=False, check_column_type=False
    )
    assert written["unique_id"].unique().tolist() == ["007", "air", "rail"]
    assert Path("fc.png").read_bytes().startswith(b"\x89PNG")
    assert files(workplace) == {"air.csv", "forecast.csv", "fc.png"}


def test_a_wide_file_is_answered_wide(model: str, workplace: Path) -> None:
    frame = monthly().pivot(index="ds", columns="unique_id", values="y").rename_axis("month")
    frame.to_csv("wide.csv.gz")
    words = ["--level", "80", "--out", "fc.csv.gz", "--horizon", "5"]
    assert run("forecast", "wide.csv.gz", "--model", model, *words, *FEW) == 0
    written = pd.read_csv("fc.csv.gz")
    names = [f"{name}{end}" for name in frame.columns for end in ("", "-lo-80", "-hi-80")]
    assert written.columns.tolist() == ["month", *names]
    assert written["month"].tolist()[::4] == ["1961-01-01", "1961-05-01"]


def test_the_same_seed_writes_the_same_file(model: str, workplace: Path) -> None:
    for name in ("a.csv", "b.csv"):
        assert run("forecast", "air.csv", "--model", model, "--out", name, *FEW) == 0
    assert Path("a.csv").read_bytes() == Path("b.csv").read_bytes()


def test_without_a_model_one_is_fitted_first_and_can_be_kept(
    workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--horizon", "6", "--context", "24", "--max-steps", "2", "--save", "kept"]
    assert run("forecast", "air.csv", *words, *FEW) == 0
    assert "no --model: one is fitted to air.csv first" in capsys.readouterr().err
    assert len(pd.read_csv("forecast.csv")) == 3 * 6
    first = Path("forecast.csv").read_bytes()
    assert run("forecast", "air.csv", "--model", "kept", "--out", "again.csv", *FEW) == 0
    assert Path("again.csv").read_bytes() == first


def test_a_forecast_that_fails_leaves_the_earlier_file(
    model: str, workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    frame = monthly()
    frame.loc[frame["unique_id"].eq("air") & (frame["ds"] > "1950-01-01"), "y"] = np.nan
    frame.to_csv("ends.csv", index=False)
    Path("forecast.csv").write_text("earlier")
    assert run("forecast", "ends.csv", "--model", model, *FEW) == 2
    line = complaint(capsys)
    assert "ends.csv: series 'air': all of its last" in line and "1950-01-01" in line
    assert Path("forecast.csv").read_text() == "earlier"


# ---------------------------------------------------------------- evaluate, impute, synthesize


def test_evaluate_prints_the_suites_scores_beside_the_naive_ones(
    model: str, workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    frame = monthly()
    words = ["--windows", "2", "--step", "6", "--out", "s.csv", "--json", *FEW]
    assert run("evaluate", "air.csv", "--model", model, *words) == 0
    answer = json.loads(capsys.readouterr().out)
    assert list(answer) == ["TSDiff", "seasonal naive (m=12)", "random walk"]
    loaded = TSDiff.from_pretrained(model).set_params(n_samples=20, steps=4, progress=False)
    options = {"n_windows": 2, "step_size": 6, "scenarios": (), "refine": None, "synthetic": 0}
    expected = evaluate(loaded, frame, seed=1, **options)
    for row, name in enumerate(answer):
        for column, score in (("CRPS", "mean_wQuantileLoss"), ("MASE", "MASE"), ("ND", "ND")):
            assert answer[name][column] == pytest.approx(expected[score][row], rel=1e-12)
    assert answer["seasonal naive (m=12)"]["in 80 %"] is None
    written = pd.read_csv("s.csv", index_col="forecast", float_precision="round_trip")
    assert written.loc["TSDiff", "CRPS"] == answer["TSDiff"]["CRPS"]


def test_evaluate_shows_a_table(
    model: str, workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("evaluate", "air.csv", "--model", model, *FEW) == 0
    printed = capsys.readouterr().out
    assert "air.csv: 3 series, 1 x 12 points" in printed
    assert all(word in printed for word in ("CRPS", "NRMSE", "MASE", "in 95 %", "random walk"))


def test_impute_fills_gaps_and_keeps_what_is_observed(
    model: str, workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    frame = monthly()
    frame.drop(index=range(20, 23)).to_csv("absent.csv", index=False)
    words = ["--model", model, "--fill-gaps", "--json", *FEW]
    assert run("impute", "absent.csv", *words) == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["values filled"], answer["with gaps"]) == (3 + 4, 2)
    filled = pd.read_csv("filled.csv", parse_dates=["ds"], dtype={"unique_id": str})
    assert filled["ds"].tolist() == frame["ds"].tolist()
    known = frame["y"].notna() & ~frame.index.isin(range(20, 23))
    assert filled["y"][known].tolist() == frame["y"][known].tolist()
    assert filled["y"].notna().all()


@pytest.mark.parametrize(
    "words",
    [
        ["fit", "absent.csv", "--out", "m"],
        ["forecast", "absent.csv"],
        ["forecast", "absent.csv", "--model", "MODEL"],
        ["evaluate", "absent.csv", "--model", "MODEL"],
        ["impute", "absent.csv", "--model", "MODEL"],
    ],
    ids=lambda words: " ".join(words[::2]),
)
def test_absent_rows_are_named_with_the_option_that_inserts_them(
    words: list[str], model: str, workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monthly().drop(index=range(20, 23)).to_csv("absent.csv", index=False)
    assert run(*(model if word == "MODEL" else word for word in words)) == 2
    line = complaint(capsys)
    assert "absent.csv: series '007': 3 timestamps are missing, the first is 1950-09-01" in line
    assert "pass --fill-gaps to insert" in line and "fill_gaps" not in line
    assert files(workplace) == {"air.csv", "absent.csv"}


def test_synthesize_writes_as_many_series_as_asked(model: str, workplace: Path) -> None:
    assert run("synthesize", "--model", model, "-n", "5", "--steps", "4", "--seed", "0") == 0
    frame = pd.read_csv("synthetic.csv")
    assert frame["unique_id"].nunique() == 5
    spec = TSDiff.from_pretrained(model).spec_
    assert len(frame) == 5 * spec.length and frame["y"].notna().all()


def test_info_describes_a_model(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("info", model, "--json") == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["config"]["format"] == "structdiff.timeseries/1"
    assert answer["config"]["model"]["horizon"] == H


# ---------------------------------------------------------------- bad input: code 2, one line


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["forecast", "no.csv", "--model", "MODEL"], "no.csv: no such file; name a CSV of series"),
        (["forecast", "air.csv", "--model", "tsdif"], "no model 'tsdif': give one of the embedded"),
        (["forecast", "air.csv", "--model", "gdss-qm9"], "it is a molecule model, load it with"),
        (["forecast", "air.csv", "--model", "MODEL", "--horizon", "0"], "--horizon 0: should be a"),
        (["forecast", "air.csv", "--model", "MODEL", "--level", "120"], "between 0 and 100, such"),
        (["forecast", "air.csv", "--model", "MODEL", "--quantile", "9"], "between 0 and 1, such"),
        (["forecast", "air.csv", "--model", "MODEL", "--sampler", "eular"], "'eular'"),
        (["forecast", "air.csv", "--model", "MODEL", "--guidance", "no"], "guidance 'no': choose"),
        (["forecast", "air.csv", "--model", "MODEL", "--out", "a.xls"], "a.xls: cannot write"),
        (["forecast", "air.csv", "--model", "MODEL", "--out", "no/a.csv"], "the folder no does no"),
        (["forecast", "air.csv", "--model", "MODEL", "--plot", "a.gif"], "a.gif: cannot draw"),
        (
            ["forecast", "air.csv", "--model", "MODEL", "--max-steps", "5"],
            "--max-steps 5: is for f",
        ),
        (["forecast", "air.csv", "--model", "MODEL", "--id-col", "shop"], "no column 'shop' (--id"),
        (["forecast", "air.csv", "--preset", "papr"], "--preset papr: choose paper"),
        (
            ["forecast", "air.csv", "--model", "MODEL", "--guidance-scale", "3"],
            "leave --guidance-scale out, or choose --guidance quantile",
        ),
        (
            ["evaluate", "air.csv", "--model", "MODEL", "--horizon", "3", "--refine"],
            "not --horizon 3: leave --refine and --synthetic out",
        ),
        (["evaluate", "air.csv", "--model", "MODEL", "--seed", "-1"], "--seed -1: a seed is a"),
        (["forecast", "air.csv", "--model", "MODEL", "--seed", "-1"], "--seed must be a whole num"),
        (["fit", "air.csv", "--out", "m", "--seed", "-1"], "air.csv: --seed must be a whole num"),
        (["fit", "air.csv", "--out", "air.csv"], "air.csv: is a file; give the name of a folder"),
        (["fit", "air.csv", "--out", "m", "--kernel", "s5"], "--kernel s5: choose s4d or s4"),
        (["fit", "air.csv", "--out", "m", "--max-minutes", "0"], "--max-minutes 0.0: should be a"),
        (["fit", "air.csv", "--out", "m", "--freq", "hh"], "air.csv: "),
        (["fit", "air.csv", "--out", "m", "--horizon", "500"], "air.csv: no series is long enough"),
        (["evaluate", "air.csv", "--model", "MODEL", "--windows", "90"], "take fewer windows"),
        (["evaluate", "air.csv", "--model", "MODEL", "--windows", "0"], "--windows 0: should be"),
        (["impute", "air.csv"], "Missing option '--model'"),
        (["synthesize", "--model", "MODEL", "-n", "0"], "--num 0: should be"),
        (["info", "nothing"], "nothing: no such model; give a folder"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(
    words: list[str],
    expected: str,
    model: str,
    workplace: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    capsys.readouterr()
    assert run(*(model if word == "MODEL" else word for word in words)) == 2
    assert expected in complaint(capsys)
    assert files(workplace) == {"air.csv"}


def test_parquet_without_its_library_is_refused_before_any_work(
    model: str,
    workplace: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert run("forecast", "air.csv", "--model", model, "--out", "fc.parquet") == 2
    line = complaint(capsys)
    assert "fc.parquet: Parquet needs pyarrow: pip install 'structdiff[parquet]'" in line


# ---------------------------------------------------------------- what comes with the package


def test_the_demo_forecasts_the_embedded_series_at_once(
    workplace: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("structdiff.cli.timeseries._DEMO_SITES", 2)
    monkeypatch.delenv("STRUCTDIFF_DATA", raising=False)
    monkeypatch.setenv("STRUCTDIFF_CACHE", str(workplace / "cache"))
    assert run("demo", "--json") == 0
    answer = json.loads(capsys.readouterr().out)
    assert list(answer) == ["tsdiff-demo", "a day ago", "a week ago", "random walk"]
    assert answer["tsdiff-demo"]["CRPS"] < answer["a day ago"]["CRPS"]
    frame = pd.read_csv("demo_forecast.csv", index_col="ds", parse_dates=True)
    assert frame.shape == (24, 2 * 5) and frame.notna().all(axis=None)
    assert str(frame.index[0]) == "2024-03-03 00:00:00"
    assert (frame["site-01-lo-95"] < frame["site-01"]).all()
    assert Path("demo_forecast.png").read_bytes().startswith(b"\x89PNG")
    assert files(workplace) == {"air.csv", "demo_forecast.csv", "demo_forecast.png"}


def test_each_heads_info_lists_its_own_models(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("info", "--json") == 0
    assert [each["name"] for each in json.loads(capsys.readouterr().out)] == ["tsdiff-demo"]
    assert main(["molecules", "info", "--json"]) == 0
    assert [each["name"] for each in json.loads(capsys.readouterr().out)] == ["gdss-qm9"]
    assert main(["molecules", "info", "tsdiff-demo"]) == 2
    assert "tsdiff-demo: no such model" in complaint(capsys)


def test_samplers_are_compared_on_the_embedded_model(
    workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--model", "tsdiff-demo", "--samplers", "ddim", "--nfe", "2,6", "--num", "30"]
    assert main(["samplers", "compare", *words, "--json"]) == 0
    few, more = (row["scores"] for row in json.loads(capsys.readouterr().out)["rows"])
    assert more["covariance"] < few["covariance"]


def test_a_comparison_of_another_model_needs_series(
    model: str, workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["samplers", "compare", "--model", model, "--samplers", "ddim", "--nfe", "2"]
    assert main([*words, "--num", "4"]) == 2
    assert "pass --reference, a CSV of real series" in complaint(capsys)
    assert main([*words, "--num", "4", "--reference", "air.csv"]) == 0
