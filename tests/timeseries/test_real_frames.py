"""Public files as people have them: each reads as expected, or says what to do."""

import numpy as np
import pandas as pd
import pytest
from pandas.testing import assert_frame_equal

from structdiff.errors import StructDiffError
from structdiff.timeseries.frames import read_panel


@pytest.fixture
def read(data_dir):
    return lambda name, **arguments: pd.read_csv(data_dir / "timeseries" / name, **arguments)


def test_m4_hourly_reads_as_414_series_that_go_on_with_the_test_file(read):
    frame, test = read("m4_hourly_train.csv.gz"), read("m4_hourly_test.csv.gz")
    panel = read_panel(frame)
    assert (len(panel), panel.freq) == (414, 1)
    assert {len(v) for v in panel.values} == {700, 960}
    assert_frame_equal(panel.restore({"y": panel.values}), frame)
    truth = [g.to_numpy(float) for _, g in test.groupby("unique_id", sort=False)["y"]]
    assert_frame_equal(panel.restore({"y": truth}, panel.future(48)), test, check_dtype=False)


def test_exchange_reads_over_its_row_numbers(read):
    frame = read("exchange_rate.csv.gz")
    panel = read_panel(frame, time_col="t")
    assert panel.ids == list(frame.columns[1:])
    assert_frame_equal(panel.restore({"y": panel.values}), frame)


def test_exchange_reads_over_business_days(read):
    frame = read("exchange_rate.csv.gz", index_col="t")
    frame.index = pd.date_range("1990-01-01", periods=len(frame), freq="B")
    panel = read_panel(frame)
    assert panel.freq == "B"
    assert_frame_equal(panel.restore({"y": panel.values}), frame)


def test_exchange_over_row_numbers_without_a_named_column_asks_for_a_frequency(read):
    frame = read("exchange_rate.csv.gz", index_col="t")
    with pytest.raises(StructDiffError, match="freq=1"):
        read_panel(frame)
    assert len(read_panel(frame, freq=1)) == 8


def test_etth1_reads_as_seven_hourly_series(read):
    frame = read("ETTh1.csv.gz")
    panel = read_panel(frame, freq="H", time_col="date")
    assert panel.freq == "h"
    assert panel.ids == ["HUFL", "HULL", "MUFL", "MULL", "LUFL", "LULL", "OT"]
    assert panel.future(1)[0][0] == pd.Timestamp("2018-06-26 20:00")
    assert_frame_equal(panel.restore({"y": panel.values}).drop(columns="date"), frame.iloc[:, 1:])


def test_etth1_reads_as_one_series_by_naming_a_target(read):
    panel = read_panel(read("ETTh1.csv.gz"), time_col="date", target_col="OT")
    assert (len(panel), panel.ids, panel.layout) == (1, [None], "long")
    assert panel.unused_columns == ["HUFL", "HULL", "MUFL", "MULL", "LUFL", "LULL"]


def test_beijing_keeps_its_missing_values(read):
    frame = read("beijing_pm25_hourly.csv.gz")
    panel = read_panel(frame)
    share = panel.missing()["share"]
    assert (len(panel), panel.freq) == (12, "h")
    assert 0.01 < share.min() < share.max() < 0.028  # 1.1 to 2.7 % per station
    assert panel.missing()["missing"].sum() == frame.isna().sum().sum()


def test_beijing_as_a_long_frame_without_its_missing_rows_asks_to_fill_the_gaps(read):
    wide = read("beijing_pm25_hourly.csv.gz", nrows=2000, parse_dates=["ds"])
    frame = wide.melt("ds", var_name="station", value_name="pm25")
    names = {"id_col": "station", "target_col": "pm25"}
    whole = read_panel(frame, **names)
    known = frame.dropna()
    with pytest.raises(StructDiffError, match=r"series 'Aotizhongxin': .*missing.*fill_gaps=True"):
        read_panel(known, **names)
    panel = read_panel(known, **names, fill_gaps=True)
    for filled, own in zip(panel.values, whole.values, strict=True):
        known_part = np.flatnonzero(~np.isnan(own))
        np.testing.assert_array_equal(filled, own[known_part[0] : known_part[-1] + 1])


def test_taxi_reads_every_half_hour(read):
    panel = read_panel(read("nyc_taxi_30min.csv.gz"), time_col="time", target_col="#Passengers")
    assert (panel.freq, len(panel.values[0])) == ("30min", 10320)


def test_gasoline_is_sorted_from_its_backward_american_dates(read):
    frame = read("us_gasoline_weekly_unsorted.csv.gz")
    panel = read_panel(frame, time_col="Week", target_col="Gasoline")
    assert (panel.freq, len(panel.values[0])) == ("W-FRI", 1578)
    assert panel.values[0][0] == 6621  # 02/8/1991, the file's last row
    assert panel.times[0][-1] == pd.Timestamp("2021-04-30")
    assert panel.restore({"Gasoline": panel.values})["Gasoline"].dtype == frame["Gasoline"].dtype


def test_milk_names_its_absent_months_and_fills_them(read):
    frame = read("monthly_milk_incomplete.csv")
    names = {"time_col": "Month", "target_col": "Pounds per cow"}
    with pytest.raises(StructDiffError, match=r"the series: 13 timestamps are missing.*'MS'"):
        read_panel(frame, **names)
    panel = read_panel(frame, **names, freq="MS", fill_gaps=True)
    assert (len(panel.values[0]), int(panel.missing()["missing"].iloc[0])) == (168, 13)


def test_air_passengers_reads_months_without_a_day(read):
    frame = read("air_passengers.csv", index_col="Month")
    panel = read_panel(frame)
    assert (panel.freq, panel.ids, len(panel.values[0])) == ("MS", ["#Passengers"], 144)
    forecast = panel.restore({"TSDiff": [np.zeros(2)]}, panel.future(2))
    assert list(forecast.index) == [pd.Timestamp("1961-01-01"), pd.Timestamp("1961-02-01")]
    assert forecast.index.name == "Month"


def test_ilinet_names_its_absent_weeks_and_keeps_every_column(read):
    frame = read("ilinet_weekly_missing.csv.gz", index_col="DATE", parse_dates=True)
    with pytest.raises(StructDiffError, match=r"the time index: 4 timestamps.*2002-01-06.*W-SUN"):
        read_panel(frame)
    panel = read_panel(frame, fill_gaps=True)
    assert (len(panel), panel.freq) == (11, "W-SUN")
    expected = frame.reindex(pd.date_range(frame.index[0], frame.index[-1], freq="W-SUN"))
    assert_frame_equal(
        panel.restore({"TSDiff": panel.values}), expected.astype(float), check_freq=False,
        check_names=False,
    )  # fmt: skip
