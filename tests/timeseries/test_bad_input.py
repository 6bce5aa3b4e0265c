"""Every row of the table of bad input: the message names the series, the place and the remedy."""

import numpy as np
import pandas as pd
import pytest

from structdiff.errors import StructDiffError
from structdiff.timeseries.frames import read_panel

TIMES = pd.date_range("2014-07-01", periods=48, freq="h")


@pytest.fixture
def frame():
    return pd.DataFrame(
        {
            "unique_id": np.repeat(["H2", "H1"], len(TIMES)),
            "ds": TIMES.append(TIMES),
            "y": np.arange(2.0 * len(TIMES)),
        }
    )


@pytest.fixture
def wide(frame):
    return frame.pivot(index="ds", columns="unique_id", values="y")


def refused(df, pattern, **arguments):
    with pytest.raises(StructDiffError, match=pattern):
        read_panel(df, **arguments)


def test_a_gap_names_series_count_first_place_and_remedy(frame):
    refused(
        frame.drop([73, 74, 80]),
        r"series 'H1': 3 timestamps are missing, the first is 2014-07-02 01:00 \(frequency 'h'\); "
        "pass fill_gaps=True to insert them as missing values",
    )


def test_a_gap_counts_the_other_series_that_have_one(frame):
    refused(frame.drop([5, 73]), r"series 'H2': 1 timestamp is missing.*and 1 more series")


def test_a_gap_in_a_wide_frame_names_the_index(wide):
    refused(wide.drop(TIMES[5]), r"the time index: 1 timestamp is missing.*2014-07-01 05:00.*fill")


def test_a_gap_in_integers_is_named(frame):
    numbers = frame.assign(ds=[*range(48), *range(48)]).drop(50)
    refused(numbers, "series 'H1': 1 timestamp is missing, the first is 2 ")


def test_a_gap_in_periods_is_named(frame):
    refused(frame.assign(ds=frame["ds"].dt.to_period("h")).drop(50), "'H1'.* 2014-07-01 02:00")


def test_a_wrong_year_is_not_filled_with_ages_of_missing_values(frame):
    frame.loc[95, "ds"] = pd.Timestamp("2204-07-01")
    pattern = r"series 'H1': \d{8} steps of 'min' are missing in one place; .* must be wrong"
    refused(frame, pattern, freq="min", fill_gaps=True)


def test_a_repeated_time_names_series_and_time(frame):
    frame.loc[50, "ds"] = TIMES[1]
    refused(frame, r"series 'H1': 2014-07-01 01:00 occurs twice; keep one row per time")


def test_two_series_without_their_id_are_taken_for_repetitions(frame):
    refused(
        frame[["ds", "y"]], "the series: 2014-07-01 occurs twice, and 47 more repetitions.*id_col="
    )


def test_missing_values_are_allowed_and_reported(frame):
    frame.loc[[1, 50], "y"] = np.nan
    assert read_panel(frame).missing()["missing"].tolist() == [1, 1]


def test_a_context_without_a_value_is_refused(frame):
    frame.loc[frame.index >= 60, "y"] = np.nan
    panel = read_panel(frame)
    panel.require_observed(40)
    with pytest.raises(StructDiffError, match=r"'H1': all of its last 24 .* at 2014-07-01 11:00"):
        panel.require_observed(24)


@pytest.mark.parametrize("value", [np.inf, -np.inf])
def test_infinite_values_are_refused(frame, wide, value):
    frame.loc[50, "y"] = value
    refused(frame, "series 'H1': the value at 2014-07-01 02:00 in 'y' is -?inf")
    wide.loc[TIMES[3], "H1"] = value
    refused(wide, "series 'H1': the value at 2014-07-01 03:00")


def test_series_that_are_all_too_short_are_refused(frame):
    with pytest.raises(StructDiffError, match="needs >= 100 points, the longest has 48"):
        read_panel(frame).at_least(100)


def test_cutting_a_whole_series_is_refused(frame):
    with pytest.raises(StructDiffError, match="series 'H2' has 48 points; nothing is left"):
        read_panel(frame).cut(48)


def test_an_unknown_id_is_refused(frame):
    with pytest.raises(StructDiffError, match="no series 'H7'; the ids begin 'H2', 'H1'"):
        read_panel(frame).take(["H7"])


def test_the_first_string_that_is_no_date_is_shown(frame):
    text = frame.assign(ds=frame["ds"].dt.strftime("%Y-%m-%d %H:%M"))
    text.loc[60, "ds"] = "soon"
    refused(text, r"series 'H1': 'soon' in 'ds' \(row 60\).*pd.to_datetime\(df\['ds'\], format=")


def test_strings_for_values_are_refused(frame):
    text = frame.assign(y=frame["y"].astype(str))
    text.loc[50, "y"] = "high"
    refused(text, "series 'H1': column 'y' must be numeric.*'high' at row 50.*pd.to_numeric")


def test_strings_for_values_of_a_wide_frame_are_refused(wide):
    refused(wide.astype({"H1": str}), "column 'H1' must be numeric.*pd.to_numeric")


@pytest.mark.parametrize("freq", ["D", "h", pd.Timedelta("1h")])
def test_integer_times_want_an_integer_frequency(frame, freq):
    refused(frame.assign(ds=[*range(48)] * 2), "'ds' holds integers.*pass freq=1", freq=freq)


def test_dates_want_a_frequency_of_dates(frame):
    refused(frame, "'ds' holds dates but freq=1 is an integer", freq=1)


def test_periods_want_their_own_frequency(frame):
    periods = frame.assign(ds=frame["ds"].dt.to_period("h"))
    refused(periods, "freq='D' does not fit 'ds', whose periods have the frequency 'h'", freq="D")


def test_jittered_times_want_snapping(frame):
    days = frame.assign(ds=list(pd.date_range("2020-01-01", periods=48)) * 2)
    days.loc[50, "ds"] += pd.Timedelta("3min")
    refused(days, "series 'H1': 2020-01-03 00:03 does not lie on .*freq='D'.*snap=True", freq="D")


def test_the_wrong_frequency_is_answered_with_the_right_one(frame):
    ends = frame.assign(ds=list(pd.date_range("2020-01-31", periods=48, freq="ME")) * 2)
    refused(ends, "series 'H2': 2020.* freq='MS'.*look like 'ME'", freq="MS")


def test_two_times_that_snap_to_one_are_refused(frame):
    refused(frame, "series 'H2': two timestamps snap to 2014-07-0", freq="D", snap=True)


def test_times_without_a_frequency_are_refused(frame):
    random = np.random.default_rng(0).integers(1, 10**6, 48).cumsum()
    frame["ds"] = list(pd.Timestamp("2020-01-01") + pd.to_timedelta(random, unit="s")) * 2
    refused(
        frame,
        "series 'H2': no frequency fits its timestamps .48 in all; it begins 2020-.*Pass freq=",
    )


@pytest.mark.parametrize("fill_gaps", [False, True])
def test_series_of_different_frequencies_are_refused(frame, fill_gaps):
    few = pd.DataFrame({"unique_id": "D1", "ds": pd.date_range("2014-07-01", periods=9), "y": 1.0})
    refused(
        pd.concat([few, frame]),
        "series 'D1': its timestamps do not have the frequency 'h' of the longest series: "
        "2014-07-01 is followed by 2014-07-02",
        fill_gaps=fill_gaps,
    )


@pytest.mark.parametrize("shape", ["frame", "wide"])
def test_an_empty_frame_is_refused(shape, request):
    refused(request.getfixturevalue(shape).iloc[:0], "no rows")


def test_a_missing_id_names_its_row(frame):
    frame.loc[50, "unique_id"] = None
    refused(frame, r"the id in 'unique_id' is missing at row 50 \(time 2014-07-01 02:00\)")


def test_a_missing_time_names_its_row(frame):
    frame.loc[50, "ds"] = pd.NaT
    refused(frame, "series 'H1': the time in 'ds' is missing at row 50")


@pytest.mark.parametrize("column", ["unique_id", "ds", "y"])
def test_a_misnamed_column_is_answered_with_the_names_there_are(frame, column):
    other = frame.rename(columns={column: "other"})
    pattern = {"unique_id": "occurs twice.*id_col=", "ds": r"no column 'ds'.*'other'.*time_col=",
               "y": r"no column 'y'.*'other'.*target_col="}[column]  # fmt: skip
    refused(other, pattern)


def test_a_long_frame_with_unknown_names_is_not_taken_for_a_wide_one():
    frame = pd.DataFrame({"shop": [1, 1], "day": [1, 2], "sold": [3.0, 4.0]})
    refused(frame, r"neither a column 'ds' nor dates.*'shop', 'day', 'sold'.*time_col=.*freq=1")


@pytest.mark.parametrize("freq", ["fortnight", "", 0, -2, "-1h", 1.5, True, [1], "bh",
                                  pd.DateOffset(months=1)])  # fmt: skip
def test_what_is_no_frequency_is_refused(frame, freq):
    refused(frame, "freq=", freq=freq)


@pytest.mark.parametrize("thing", [None, [1, 2], np.zeros(3), {"y": [1]}])
def test_what_is_no_frame_is_refused(thing):
    refused(thing, "expected a pandas DataFrame or Series")


def test_two_columns_of_one_name_are_refused(frame):
    refused(pd.concat([frame, frame[["y"]]], axis=1), "two columns are called 'y'")


def test_decimal_times_are_refused(frame):
    refused(frame.assign(ds=np.arange(96) / 2), "'ds' holds floating values")


def test_dates_of_different_offsets_are_refused(frame):
    mixed = ["2014-07-01T00:00+02:00", "2014-07-01T01:00+01:00"] * 48
    refused(frame.assign(ds=mixed), "dates in 'ds' have different offsets from UTC.*utc=True")


def test_a_three_level_index_is_refused(frame):
    three = frame.assign(k=0).set_index(["k", "unique_id", "ds"])
    refused(three, "the index has 3 levels")


def test_a_horizon_of_nothing_is_refused(frame):
    with pytest.raises(StructDiffError, match="h=0"):
        read_panel(frame).future(0)
