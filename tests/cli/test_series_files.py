"""Files of series: what is read is what stands there, what is wrong is named with its row."""

from __future__ import annotations

import gzip
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from structdiff.cli.series_files import (
    check_table,
    flattened,
    naming,
    read_series,
    write_frame,
)
from structdiff.cli.tables import TableError
from structdiff.errors import CheckpointError, StructDiffError
from structdiff.timeseries import read_panel

LONG = "unique_id,ds,y\n007,2024-01-01,1.5\n007,2024-01-02,\nNA,2024-01-01,0.1\n"

FORMATS = [".csv", ".csv.gz", ".parquet"]


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


# ---------------------------------------------------------------- what is read


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", LONG),
        ("a.csv", "\ufeff" + LONG.replace("\n", "\r\n")),
        ("a.csv", LONG.replace(",", ";")),
        ("a.tsv", LONG.replace(",", "\t")),
        ("a.csv", LONG.replace("02,\n", "02,nan\n")),
        ("a.csv", LONG.replace("02,\n", "02,NULL\n")),
        ("a.csv.gz", gzip.compress(LONG.encode(), mtime=0)),
    ],
)
def test_a_long_file_keeps_ids_as_they_are_written(
    name: str, content: str | bytes, tmp_path: Path
) -> None:
    frame = read_series(write(tmp_path / name, content)).frame
    assert frame["unique_id"].tolist() == ["007", "007", "NA"]
    assert frame["y"].tolist()[::2] == [1.5, 0.1] and np.isnan(frame["y"][1])


def test_a_missing_value_at_the_end_of_a_tab_separated_file_stays_one(tmp_path: Path) -> None:
    file = write(tmp_path / "a.tsv", "unique_id\tds\ty\na\t1\t2\na\t2\t\n")
    assert np.isnan(read_series(file).frame["y"].iloc[-1])


def test_every_digit_is_read(tmp_path: Path) -> None:
    # Written with repr, read with float: the same double.
    values = np.random.default_rng(0).standard_normal(500) * 10.0 ** np.arange(-250, 250)
    text = "".join(f"a,{i},{float(v)!r}\n" for i, v in enumerate(values))
    frame = read_series(write(tmp_path / "a.csv", "unique_id,ds,y\n" + text)).frame
    assert frame["y"].tolist() == values.tolist()


def test_whole_numbers_stay_whole(tmp_path: Path) -> None:
    frame = read_series(write(tmp_path / "a.csv", "unique_id,ds,y\na,1,5\na,2,6\n")).frame
    assert frame["ds"].dtype == frame["y"].dtype == np.int64


def test_the_first_column_of_a_wide_file_without_ds_is_the_time(tmp_path: Path) -> None:
    series = read_series(write(tmp_path / "a.csv", "date,a,b\n2024-01-01,1,2\n2024-01-02,,3\n"))
    assert series.time_col == "date"
    panel = read_panel(series.frame, "D", **series.columns)
    assert (panel.ids, panel.layout) == (["a", "b"], "wide")


def test_dates_of_eight_digits_are_dates(tmp_path: Path) -> None:
    frame = read_series(write(tmp_path / "a.csv", "ds,y\n20240131,1\n20240201,2\n")).frame
    assert frame["ds"].tolist() == [pd.Timestamp("2024-01-31"), pd.Timestamp("2024-02-01")]
    frame = read_series(write(tmp_path / "a.csv", "ds,y\n20240131,1\n20240132,2\n")).frame
    assert frame["ds"].tolist() == [20240131, 20240132]


def test_columns_can_be_named(tmp_path: Path) -> None:
    file = write(tmp_path / "a.csv", "shop,day,note,sales\nx,1,,5\nx,2,sale,6\n")
    series = read_series(file, "shop", "day", "sales")
    assert series.columns == {"id_col": "shop", "time_col": "day", "target_col": "sales"}
    assert read_panel(series.frame, **series.columns).ids == ["x"]


def test_names_of_the_model_are_used_where_the_file_has_them(tmp_path: Path) -> None:
    usual = ("shop", "day", "sales")
    file = write(tmp_path / "a.csv", "shop,day,sales\nx,1,5\n")
    assert read_series(file, usual=usual).id_col == "shop"
    assert read_series(write(tmp_path / "b.csv", LONG), usual=usual).id_col == "unique_id"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("unique_id,ds,y\na,1,5\nb,1,x7\n", r"row 3: series 'b': column 'y' holds 'x7', not a num"),
        ("unique_id,ds,y\na,1,5\na,2\n", r"row 3: 2 fields where the header has 3"),
        ("ds,a,b\n1,2,3\n2,3,1.2.3\n", r"row 3: column 'b' holds '1.2.3', not a number; correct"),
        ("name,date,value\nx,2024-01-01,5\n", r"row 2: column 'date'.*name --id-col, --time-col"),
        ("unique_id,ds,y\n", r"a header and no rows; write one time a row below it"),
        ("", r"the file is empty; it should be a CSV of series, long \(unique_id, ds, y\) or wide"),
        (b"\x89PNG\r\n", r"row 1: not a text file"),
        (b"\x1f\x8bnot gzip", r"damaged gzip file"),
    ],
)
def test_what_cannot_be_read_is_named_with_its_row(
    content: str | bytes, expected: str, tmp_path: Path
) -> None:
    with pytest.raises(TableError, match=rf"a\.csv: {expected}"):
        read_series(write(tmp_path / "a.csv", content))


def test_a_column_that_is_not_there_is_answered_with_the_header(tmp_path: Path) -> None:
    with pytest.raises(TableError, match=r"no column 'shop' \(--id-col\); it has 'unique_id', 'ds"):
        read_series(write(tmp_path / "a.csv", LONG), id_col="shop")


# ---------------------------------------------------------------- what is written


@pytest.mark.parametrize("suffix", FORMATS)
def test_what_is_written_is_read_again(suffix: str, tmp_path: Path) -> None:
    frame = pd.DataFrame(
        {
            "unique_id": ["007", "007"],
            "ds": pd.date_range("2024-01-01", periods=2, freq="h"),
            "TSDiff": [0.1 + 0.2, 1e-300],
        }
    )
    write_frame(frame, tmp_path / f"a{suffix}")
    again = read_series(tmp_path / f"a{suffix}", target_col="TSDiff").frame
    assert again["unique_id"].tolist() == ["007", "007"]
    assert again["TSDiff"].tolist() == frame["TSDiff"].tolist()
    assert pd.to_datetime(again["ds"]).tolist() == frame["ds"].tolist()
    assert [file.name for file in tmp_path.iterdir()] == [f"a{suffix}"]


def test_a_wide_parquet_file_keeps_its_dates_on_the_index(tmp_path: Path) -> None:
    times = pd.date_range("2024-01-01", periods=2, freq="D", tz="Europe/Berlin", name="day")
    columns = pd.MultiIndex.from_tuples([("a", "TSDiff"), ("a", "TSDiff-lo-80")])
    write_frame(pd.DataFrame([[1.0, 2], [3, 4]], times, columns), tmp_path / "a.parquet")
    again = read_series(tmp_path / "a.parquet").frame
    assert again.columns.tolist() == ["a", "a-lo-80"]
    assert again.index.tolist() == times.tolist() and again.index.name == "day"


def test_a_damaged_parquet_file_is_named(tmp_path: Path) -> None:
    file = write(tmp_path / "a.parquet", b"PAR1 and no more")
    with pytest.raises(TableError, match=r"a\.parquet: not a complete Parquet file"):
        read_series(file)


def test_the_same_frame_gives_the_same_compressed_file(tmp_path: Path) -> None:
    frame = pd.DataFrame({"ds": [1], "a": [2.5]})
    for name in ("a.csv.gz", "b.csv.gz"):
        write_frame(frame, tmp_path / name)
    assert (tmp_path / "a.csv.gz").read_bytes() == (tmp_path / "b.csv.gz").read_bytes()


def test_the_levels_of_a_wide_frame_become_one() -> None:
    columns = [("ds", ""), ("a", "TSDiff"), ("a", "TSDiff-lo-80"), ("b", "y"), ("b", "TSDiff-q0.1")]
    frame = pd.DataFrame(np.zeros((1, 5)), columns=pd.MultiIndex.from_tuples(columns))
    assert flattened(frame).columns.tolist() == ["ds", "a", "a-lo-80", "b", "b-q0.1"]


def test_two_columns_of_one_name_are_refused() -> None:
    columns = pd.MultiIndex.from_tuples([("a", "TSDiff-lo-80"), ("a-lo-80", "TSDiff")])
    with pytest.raises(StructDiffError, match="two columns of the result would be called 'a-lo-80"):
        flattened(pd.DataFrame(np.zeros((1, 2)), columns=columns))


def test_a_table_of_another_format_is_refused_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(TableError, match=r"a\.xlsx: cannot write this format; end the name in \.c"):
        check_table(tmp_path / "a.xlsx")
    with pytest.raises(TableError, match=r"the folder .* does not exist"):
        check_table(tmp_path / "no" / "a.csv")


def test_parquet_without_pyarrow_names_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)  # import pyarrow fails
    file = write(tmp_path / "a.parquet", b"PAR1")
    for work in (lambda: read_series(file), lambda: check_table(file)):
        with pytest.raises(StructDiffError, match=r"a\.parquet: .*pip install .structdiff\[parq"):
            work()


# ---------------------------------------------------------------- messages


def test_a_complaint_speaks_of_options_and_names_the_file() -> None:
    frame = pd.DataFrame({"ds": ["2024-01-01", "2024-01-02", "2024-01-04"], "y": [1.0, 2, 3]})
    with (
        pytest.raises(StructDiffError, match=r"^a\.csv: .*2024-01-03.*pass --fill-gaps to insert"),
        naming("a.csv"),
    ):
        read_panel(frame, "D")
    with (
        pytest.raises(StructDiffError, match=r"^a\.csv: .*with --time-col \(and --id-col, --targ"),
        naming("a.csv"),
    ):
        read_panel(frame[["y"]])


def test_a_complaint_about_a_model_is_left_to_name_the_model() -> None:
    with pytest.raises(CheckpointError, match=r"^model: damaged"), naming("a.csv"):
        raise CheckpointError("model: damaged")
