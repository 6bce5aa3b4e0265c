"""A panel is the caller's frame: it goes in and comes out in the same shape."""

import numpy as np
import pandas as pd
import pytest
from pandas.testing import assert_frame_equal, assert_index_equal, assert_series_equal

from structdiff.errors import StructDiffError
from structdiff.timeseries.frames import read_panel
from structdiff.timeseries.freq import parse_frequency

T = 40


def long_frame(times, ids=("b", "a", "c"), dtype="float64", seed=0):
    values = np.random.default_rng(seed).integers(0, 90, (len(ids), len(times)))
    return pd.DataFrame(
        {
            "unique_id": np.repeat(np.array(ids), len(times)),
            "ds": times.append([times] * (len(ids) - 1)),
            "y": values.ravel().astype(dtype),
        }
    )


def wide_frame(times, columns=("b", "a", "c"), dtype="float64", seed=0):
    values = np.random.default_rng(seed).integers(0, 90, (len(times), len(columns)))
    return pd.DataFrame(values.astype(dtype), index=times, columns=list(columns))


def times_of(kind):
    """Time indexes of every kind; the dates with a zone cross a change to or from summer time."""
    zoned = {"tz": "Europe/Berlin"}
    made = {
        "hours": lambda: pd.date_range("2024-03-30", periods=T, freq="h"),
        "half-hours": lambda: pd.date_range("2024-03-30 00:10", periods=T, freq="30min"),
        "hours, spring": lambda: pd.date_range("2024-03-30 12:00", periods=T, freq="h", **zoned),
        "hours, autumn": lambda: pd.date_range("2024-10-26 12:00", periods=T, freq="h", **zoned),
        "days, spring": lambda: pd.date_range("2024-03-20", periods=T, freq="D", **zoned),
        "days at half past nine": lambda: pd.date_range("2024-10-10 9:30", periods=T, **zoned),
        "days, midnight skipped": lambda: pd.date_range(
            "2018-10-20", periods=T, freq="D"
        ).tz_localize("America/Sao_Paulo", nonexistent="shift_forward"),
        "utc": lambda: pd.date_range("2024-03-20", periods=T, freq="15min", tz="UTC"),
        "business days": lambda: pd.date_range("2024-01-01", periods=T, freq="B"),
        "weeks": lambda: pd.date_range("2024-01-01", periods=T, freq="W-FRI"),
        "fortnights": lambda: pd.date_range("2024-01-01", periods=T, freq="2W-WED"),
        "month starts": lambda: pd.date_range("2020-01-01", periods=T, freq="MS"),
        "month ends": lambda: pd.date_range("2020-01-31", periods=T, freq="ME"),
        "month ends, zone": lambda: pd.date_range("2020-01-31", periods=T, freq="ME", **zoned),
        "fifteenths": lambda: (
            pd.date_range("2020-01-01", periods=T, freq="MS") + pd.Timedelta("14D")
        ),
        "quarters": lambda: pd.date_range("2000-01-01", periods=T, freq="QS"),
        "years": lambda: pd.date_range("1960-01-01", periods=T, freq="YS"),
        "seconds unit": lambda: pd.date_range("2024-01-01", periods=T, freq="h").as_unit("s"),
        "old years": lambda: pd.DatetimeIndex(
            (np.arange(T) + 1400 - 1970).astype("M8[Y]").astype("M8[s]")
        ),
        "periods h": lambda: pd.period_range("2024-01-01", periods=T, freq="h"),
        "periods M": lambda: pd.period_range("2024-01", periods=T, freq="M"),
        "periods 2Q": lambda: pd.period_range("2004Q1", periods=T, freq="2Q"),
        "integers": lambda: pd.Index(np.arange(1, T + 1)),
        "integers by five": lambda: pd.Index(np.arange(-20, 5 * T - 20, 5, dtype="int32")),
    }
    return made[kind]() if kind else list(made)


KINDS = times_of(None)


@pytest.mark.parametrize("kind", KINDS)
def test_a_long_frame_comes_back_as_it_was(kind):
    frame = long_frame(times_of(kind))
    panel = read_panel(frame)
    assert_frame_equal(panel.restore({"y": panel.values}), frame)


@pytest.mark.parametrize("kind", KINDS)
def test_a_wide_frame_comes_back_as_it_was(kind):
    times = times_of(kind)
    frame = wide_frame(times)
    panel = read_panel(frame, freq={"integers": 1, "integers by five": 5}.get(kind))
    assert_frame_equal(panel.restore({"y": panel.values}), frame)


@pytest.mark.parametrize("kind", KINDS)
def test_the_future_is_what_the_calendar_goes_on_with(kind):
    times = times_of(kind)
    cut = long_frame(times[:-7])
    for future in read_panel(cut).future(7):
        assert future.dtype == times.dtype
        assert list(future) == list(times[-7:])


@pytest.mark.parametrize("kind", KINDS)
def test_the_future_of_a_wide_frame_keeps_its_index_type(kind):
    times = times_of(kind)
    frame = wide_frame(times)
    panel = read_panel(frame.iloc[:-7], freq={"integers": 1, "integers by five": 5}.get(kind))
    forecast = panel.restore({"TSDiff": [c[-7:] for c in frame.to_numpy().T]}, panel.future(7))
    assert_frame_equal(forecast, frame.iloc[-7:])


@pytest.mark.parametrize("kind", KINDS)
def test_gaps_are_filled_on_the_calendar(kind):
    times = times_of(kind)
    frame = long_frame(times)
    hole = np.isin(np.arange(len(frame)), [T // 2, T // 2 + 1, T + 5])
    panel = read_panel(frame[~hole], fill_gaps=True)
    expected = frame.assign(y=frame["y"].mask(hole))
    assert_frame_equal(panel.restore({"y": panel.values}), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_in_any_order_are_sorted_and_ids_keep_their_first_appearance(kind):
    frame = long_frame(times_of(kind))
    mixed = frame.sample(frac=1, random_state=1)
    panel = read_panel(mixed)
    assert panel.ids == list(dict.fromkeys(mixed["unique_id"]))
    ordered = panel.take(["b", "a", "c"])
    assert_frame_equal(ordered.restore({"y": ordered.values}), frame)


@pytest.mark.parametrize("dtype", ["int64", "int32", "object", "category", "string", "tuple"])
def test_ids_keep_their_dtype(dtype):
    frame = long_frame(times_of("hours"), ids=(30, 4, 5))
    if dtype == "tuple":
        frame["unique_id"] = pd.Series([(i, "x") for i in frame["unique_id"]])
    elif dtype == "category":
        kind = pd.CategoricalDtype([5, 4, 7, 30], ordered=True)  # 7 is not used
        frame["unique_id"] = frame["unique_id"].astype(kind)
    else:
        frame["unique_id"] = frame["unique_id"].astype(dtype)
    panel = read_panel(frame)
    assert_frame_equal(panel.restore({"y": panel.values}), frame)


@pytest.mark.parametrize("dtype", ["float32", "int16", "uint8", "bool", "Int64", "Float64"])
@pytest.mark.parametrize("shape", [long_frame, wide_frame])
def test_values_keep_their_dtype(dtype, shape):
    frame = shape(times_of("hours"), dtype="float64").astype(
        {"y": dtype} if shape is long_frame else dtype
    )
    panel = read_panel(frame)
    assert_frame_equal(panel.restore({"y": panel.values}), frame)


def test_a_nullable_missing_value_comes_back_as_missing():
    frame = long_frame(times_of("hours"))
    frame["y"] = frame["y"].astype("Int64")
    frame.loc[3, "y"] = pd.NA
    panel = read_panel(frame)
    assert np.isnan(panel.values[0][3])
    assert_frame_equal(panel.restore({"y": panel.values}), frame)


def test_integers_become_floats_only_where_the_answer_is_no_integer():
    frame = long_frame(times_of("hours"), dtype="int64")
    panel = read_panel(frame)
    halves = panel.restore({"y": [v + 0.5 for v in panel.values]})
    assert halves["y"].dtype == "float64"
    np.testing.assert_array_equal(halves["y"], frame["y"] + 0.5)


def index_variants():
    frame = long_frame(times_of("hours, spring"))
    one = frame[frame["unique_id"] == "a"].reset_index(drop=True)
    names = {"unique_id": "item_id", "ds": "timestamp", "y": "target"}
    return {
        "ids on the index": (frame.set_index("unique_id"), {}),
        "times on the index": (frame.set_index("ds"), {}),
        "times on a nameless index": (frame.set_index("ds").rename_axis(None), {}),
        "both on the index": (frame.set_index(["unique_id", "ds"]), {}),
        "both, time outside": (frame.set_index(["ds", "unique_id"]), {}),
        "both, other names": (frame.rename(columns=names).set_index(["item_id", "timestamp"]), {}),
        "both, a Series": (frame.set_index(["unique_id", "ds"])["y"], {}),
        "single series": (one[["ds", "y"]], {}),
        "columns in another order": (frame[["y", "ds", "unique_id"]], {}),
        "other names": (
            frame.rename(columns=names),
            {"id_col": "item_id", "time_col": "timestamp", "target_col": "target"},
        ),
        "a Series": (one.set_index("ds")["y"].rename("load"), {}),
        "a nameless Series": (one.set_index("ds")["y"].rename(None), {}),
        "wide, time in a column": (wide_frame(times_of("days, spring"))
                                   .rename_axis("ds").reset_index(), {}),
        "wide, named levels": (wide_frame(times_of("days, spring"))
                               .rename_axis("when").rename_axis("what", axis=1), {}),
        "wide, two column levels": (
            wide_frame(times_of("hours"), pd.MultiIndex.from_product([["a", "b"], [1, 2]])), {}),
        "wide, integer columns": (wide_frame(times_of("hours"), [3, 1, 2]), {}),
    }  # fmt: skip


@pytest.mark.parametrize("variant", list(index_variants()))
def test_every_arrangement_of_the_index_comes_back(variant):
    frame, names = index_variants()[variant]
    panel = read_panel(frame, **names)
    back = panel.restore({panel.target: panel.values})
    same = assert_series_equal if isinstance(frame, pd.Series) else assert_frame_equal
    same(back, frame.to_frame()["y"] if variant == "both, a Series" else frame, check_freq=False)


@pytest.mark.parametrize("variant", list(index_variants()))
def test_reading_leaves_the_frame_as_it_was(variant):
    frame, names = index_variants()[variant]
    before = frame.copy(deep=True)
    panel = read_panel(frame.iloc[::-1], **names, fill_gaps=True, snap=True)
    panel = read_panel(frame, **names)
    for values in panel.values:
        values += 1
    same = assert_series_equal if isinstance(frame, pd.Series) else assert_frame_equal
    same(frame, before)


def test_new_columns_stand_where_the_value_stood():
    frame = long_frame(times_of("hours"))[["ds", "y", "unique_id"]]
    panel = read_panel(frame)
    out = panel.restore({"TSDiff": panel.values, "TSDiff-lo-80": panel.values})
    assert list(out.columns) == ["ds", "TSDiff", "TSDiff-lo-80", "unique_id"]


def test_several_columns_of_a_wide_frame_are_a_second_level():
    panel = read_panel(wide_frame(times_of("hours")).rename_axis("station", axis=1))
    out = panel.restore({"TSDiff": panel.values, "TSDiff-hi-80": [v + 1 for v in panel.values]})
    assert out.columns.names == ["station", None]
    assert list(out.columns[:2]) == [("b", "TSDiff"), ("b", "TSDiff-hi-80")]
    np.testing.assert_array_equal(out["c"]["TSDiff-hi-80"], panel.values[2] + 1)


def test_several_columns_of_a_series_are_a_frame():
    series = wide_frame(times_of("hours"))["a"]
    out = (panel := read_panel(series)).restore({"lo": panel.values, "hi": panel.values})
    assert list(out.columns) == ["lo", "hi"]
    assert_index_equal(out.index, series.index)


@pytest.mark.parametrize(
    ("old", "new"),
    [("H", "h"), ("T", "min"), ("15T", "15min"), ("2H", "2h"), ("S", "s"), ("M", "ME"),
     ("BM", "BME"), ("Q", "QE"), ("Q-NOV", "QE-NOV"), ("A", "YE"), ("Y", "YE"), ("A-JUN", "YE-JUN"),
     ("AS", "YS"), ("AS-JUL", "YS-JUL"), ("1H30T", "90min"), ("L", "ms"), ("D", "D"), ("B", "B"),
     ("W", "W-SUN"), ("MS", "MS"), ("SM", "SME")],
)  # fmt: skip
@pytest.mark.filterwarnings("error")
def test_old_frequency_names_mean_the_new_ones(old, new):
    assert parse_frequency(old) == parse_frequency(new) == pd.tseries.frequencies.to_offset(new)


@pytest.mark.parametrize("freq", ["H", "h", "60T", "60min", pd.Timedelta("1h"),
                                  np.timedelta64(1, "h"), pd.offsets.Hour(1)])  # fmt: skip
def test_a_frequency_may_be_written_in_any_way(freq):
    frame = long_frame(times_of("hours"))
    assert read_panel(frame, freq).future(1)[0][0] == frame["ds"].max() + pd.Timedelta("1h")


def test_periods_accept_the_frequency_of_their_starts():
    assert read_panel(long_frame(times_of("periods M")), "MS").freq == "M"


def test_the_frequency_is_found_between_frequent_gaps():
    frame = long_frame(times_of("hours"), ids=("a",))
    assert read_panel(frame[frame.index % 7 != 3], fill_gaps=True).freq == "h"


def test_series_of_different_start_and_length_are_kept():
    frame = long_frame(times_of("month starts"))
    frame = pd.concat([frame[3:T], frame[T : T + 9], frame[2 * T : 2 * T + 1]], ignore_index=True)
    panel = read_panel(frame)
    assert [len(v) for v in panel.values] == [T - 3, 9, 1]
    assert_frame_equal(panel.restore({"y": panel.values}), frame)
    assert [f[0].strftime("%Y-%m") for f in panel.future(1)] == ["2023-05", "2020-10", "2020-02"]


def test_snapping_moves_jittered_times_to_the_nearest_day():
    exact = long_frame(times_of("days, spring"))
    minutes = np.random.default_rng(3).integers(-300, 300, len(exact))
    jittered = exact.assign(ds=exact["ds"] + pd.to_timedelta(minutes, unit="min"))
    panel = read_panel(jittered, freq="D", snap=True)
    assert_frame_equal(panel.restore({"y": panel.values}), exact)


def test_snapping_keeps_the_hour_that_most_days_have():
    exact = long_frame(times_of("days at half past nine"))
    jittered = exact.copy()
    jittered.loc[[4, 50], "ds"] += pd.Timedelta("7min")
    panel = read_panel(jittered, freq="D", snap=True)
    assert_frame_equal(panel.restore({"y": panel.values}), exact)


def test_date_strings_are_parsed():
    times = times_of("hours")
    frame = long_frame(times)
    panel = read_panel(frame.assign(ds=frame["ds"].astype(str)))
    back = panel.restore({"y": panel.values})
    assert (back["ds"] == frame["ds"]).all()


def test_dates_without_a_time_of_day_are_read():
    frame = long_frame(times_of("business days"))
    panel = read_panel(frame.assign(ds=frame["ds"].dt.date))
    assert panel.freq == "B"
    assert (panel.restore({"y": panel.values})["ds"] == frame["ds"]).all()


def test_missing_values_are_counted_per_series():
    frame = long_frame(times_of("hours"))
    frame.loc[[T, T + 1], "y"] = np.nan
    report = read_panel(frame).missing()
    assert report.loc["a"].to_dict() == {"points": T, "missing": 2, "share": 2 / T}
    assert report["missing"].sum() == 2


def test_tail_cut_and_take_choose_points_and_series():
    frame = long_frame(times_of("weeks"))
    panel = read_panel(frame).cut(5).tail(8).take(["c", "b"])
    expected = pd.concat([frame[2 * T :], frame[:T]]).groupby("unique_id", sort=False)
    expected = pd.concat([g.iloc[-13:-5] for _, g in expected], ignore_index=True)
    assert_frame_equal(panel.restore({"y": panel.values}), expected)


def test_taking_columns_of_a_wide_frame_keeps_their_dtypes():
    frame = wide_frame(times_of("hours")).astype({"a": "int64"})
    panel = read_panel(frame).take(["c", "a"]).tail(6)
    assert_frame_equal(panel.restore({"y": panel.values}), frame[["c", "a"]].iloc[-6:])


def test_short_series_are_left_out_and_named():
    frame = long_frame(times_of("hours"))
    panel = read_panel(frame[: 2 * T + 9])
    with pytest.warns(UserWarning, match=r"1 of 3 series have fewer than 10 points.*'c'"):
        assert panel.at_least(10).ids == ["b", "a"]


def test_restore_refuses_arrays_of_another_length():
    panel = read_panel(long_frame(times_of("hours")))
    with pytest.raises(StructDiffError, match=r"column 'x'.*as many entries"):
        panel.restore({"x": [v[1:] for v in panel.values]})


def test_a_series_may_begin_when_the_one_before_it_ends():
    times = times_of("hours")
    first, second = long_frame(times[:20], ids=("b",)), long_frame(times[19:], ids=("a",))
    frame = pd.concat([first, second], ignore_index=True)
    panel = read_panel(frame)
    assert_frame_equal(panel.restore({"y": panel.values}), frame)
