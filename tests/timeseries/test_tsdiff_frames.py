"""What comes out of the estimator has the shape, types and names of what went in."""

import numpy as np
import pandas as pd
import pytest

H = 6  # of the tiny models


def _long(daily):
    return daily


def _zoned(daily):
    return daily.assign(ds=daily["ds"].dt.tz_localize("Europe/Berlin"))


def _integers(daily):
    return daily.assign(ds=daily.groupby("unique_id").cumcount())


def _periods(daily):
    return daily.assign(ds=daily["ds"].dt.to_period("D"))


def _strings(daily):
    return daily.assign(ds=daily["ds"].dt.strftime("%Y-%m-%d"))


def _int_ids(daily):
    return daily.assign(unique_id=daily["unique_id"].map({"a": 1, "b": 2, "c": 10}))


def _categories(daily):
    return daily.assign(unique_id=daily["unique_id"].astype("category"))


def _float32(daily):
    return daily.assign(y=daily["y"].astype(np.float32))


def _unsorted(daily):
    return daily.sample(frac=1, random_state=1).sort_values("unique_id", key=lambda c: c == "b")


LONG = {
    f.__name__[1:]: f
    for f in (_long, _zoned, _integers, _periods, _strings, _int_ids, _categories, _float32)
}


@pytest.mark.parametrize("kind", LONG)
def test_a_long_frame_gets_a_long_forecast_of_its_types(tiny, daily, kind):
    frame = LONG[kind](daily)
    before = frame.copy(deep=True)
    forecast = tiny().fit(frame).predict(level=80)
    pd.testing.assert_frame_equal(frame, before, check_exact=True)
    assert list(forecast.columns) == ["unique_id", "ds", "TSDiff", "TSDiff-lo-80", "TSDiff-hi-80"]
    assert forecast["unique_id"].dtype == frame["unique_id"].dtype
    assert list(forecast["unique_id"]) == list(frame["unique_id"].unique().repeat(H))
    own = pd.to_datetime(frame["ds"]) if kind == "strings" else frame["ds"]
    assert type(forecast["ds"].dtype) is type(own.dtype)
    assert getattr(forecast["ds"].dtype, "tz", None) == getattr(own.dtype, "tz", None)
    last, first = own.iloc[-1], forecast["ds"].iloc[0]
    step = 1 if kind in ("integers", "periods") else pd.Timedelta(days=1)
    assert first == last + step


def test_a_wide_frame_gets_a_wide_forecast(model, wide):
    forecast = model.predict(wide)
    assert isinstance(forecast.index, pd.DatetimeIndex)
    assert forecast.index.name == "ds"
    assert list(forecast.columns) == ["b", "a", "c"]
    assert forecast.columns.name == "unique_id"
    assert forecast.shape == (H, 3)


def test_a_wide_frame_in_a_time_zone_keeps_it(model, wide):
    forecast = model.predict(wide.tz_localize("Asia/Tokyo"), level=90)
    assert str(forecast.index.tz) == "Asia/Tokyo"
    assert list(forecast["a"].columns) == ["TSDiff", "TSDiff-lo-90", "TSDiff-hi-90"]


def test_a_series_gets_a_series(model, wide):
    forecast = model.predict(wide["a"])
    assert isinstance(forecast, pd.Series)
    assert forecast.name == "a"
    assert list(model.predict(wide["a"], level=[80])) == ["TSDiff", "TSDiff-lo-80", "TSDiff-hi-80"]


@pytest.mark.parametrize("order", [["unique_id", "ds"], ["ds", "unique_id"]])
def test_a_two_level_index_comes_back(model, daily, order):
    forecast = model.predict(daily.set_index(order))
    assert forecast.index.names == order
    pd.testing.assert_series_equal(
        forecast["TSDiff"].reset_index(drop=True), model.predict(daily)["TSDiff"]
    )


def test_columns_may_have_other_names(tiny, daily):
    names = {"id_col": "shop", "time_col": "day", "target_col": "sold"}
    renamed = daily.rename(columns={"unique_id": "shop", "ds": "day", "y": "sold"})
    forecast = tiny(**names).fit(renamed).predict()
    assert list(forecast.columns) == ["shop", "day", "TSDiff"]
    own = tiny().fit(daily).predict()
    assert np.array_equal(forecast["TSDiff"], own["TSDiff"])


def test_columns_are_the_median_intervals_from_the_outside_and_quantiles(model, daily):
    forecast = model.predict(daily, level=[80, 95], quantiles=[0.9, 0.1])
    assert list(forecast.columns[2:]) == [
        *("TSDiff", "TSDiff-lo-95", "TSDiff-lo-80", "TSDiff-hi-80", "TSDiff-hi-95"),
        *("TSDiff-q0.1", "TSDiff-q0.9"),
    ]


def test_columns_are_quantiles_of_the_sample_paths(model, daily):
    forecast = model.predict(daily, level=80, quantiles=0.3)
    paths = model.sample_paths(daily)["TSDiff"].to_numpy().reshape(3, 12, H)
    # gluonts: sorted[round((S - 1) q)]
    ordered = np.sort(paths, axis=1)
    assert np.array_equal(forecast["TSDiff-q0.3"], ordered[:, round(11 * 0.3)].ravel())
    assert np.array_equal(forecast["TSDiff"], np.median(paths, axis=1).ravel())
    low, high = forecast["TSDiff-lo-80"].to_numpy(), forecast["TSDiff-hi-80"].to_numpy()
    assert (low <= forecast["TSDiff"]).all()
    assert (forecast["TSDiff"] <= high).all()


def test_intervals_of_numpy_numbers_are_those_of_python_numbers(model, daily):
    own = model.predict(daily, level=[80, 95], quantiles=[0.5])
    other = model.predict(daily, level=np.array([80, 95]), quantiles=np.array([0.5]))
    pd.testing.assert_frame_equal(own, other, check_exact=True)


@pytest.mark.parametrize("level", [0, 100, -5, True, "80", [80, None], float("nan")])
def test_a_level_out_of_range_is_refused(model, daily, level):
    with pytest.raises(ValueError, match="percent between 0 and 100"):
        model.predict(daily, level=level)


@pytest.mark.parametrize("quantile", [0, 1, 80, "0.5"])
def test_a_quantile_out_of_range_is_refused(model, daily, quantile):
    with pytest.raises(ValueError, match="between 0 and 1"):
        model.predict(daily, quantiles=quantile)


@pytest.mark.parametrize("use", ["predict", "sample_paths", "impute", "cross_validation", "score"])
def test_no_use_changes_the_callers_frame(model, daily, use):
    frame = _unsorted(daily)
    frame.iloc[5, 2] = np.nan
    before = frame.copy(deep=True)
    getattr(model, use)(frame)
    pd.testing.assert_frame_equal(frame, before, check_exact=True)


def test_sample_paths_of_a_long_frame_are_numbered_rows(model, daily):
    paths = model.sample_paths(daily, n_samples=5)
    assert list(paths.columns) == ["unique_id", "ds", "sample", "TSDiff"]
    assert len(paths) == 3 * 5 * H
    assert list(paths["sample"].iloc[: 2 * H]) == [0] * H + [1] * H
    counts = paths.groupby(["unique_id", "sample"])["ds"].nunique()
    assert (counts == H).all()


def test_sample_paths_of_a_wide_frame_are_a_column_level(model, wide):
    paths = model.sample_paths(wide, n_samples=5)
    assert paths.shape == (H, 15)
    assert list(paths["a"].columns) == [0, 1, 2, 3, 4]


def test_a_wide_and_a_long_frame_have_the_same_forecast(model, daily, wide):
    long = model.predict(daily).pivot(index="ds", columns="unique_id", values="TSDiff")
    assert np.array_equal(long[["b", "a", "c"]], model.predict(wide))


def test_unsorted_rows_have_the_forecast_of_sorted_ones(model, daily):
    frame = daily.sample(frac=1, random_state=3)
    first = frame["unique_id"].unique()
    forecast = model.predict(frame)
    assert list(forecast["unique_id"].unique()) == list(first)
    own = model.predict(daily).set_index(["unique_id", "ds"])["TSDiff"]
    moved = forecast.set_index(["unique_id", "ds"])["TSDiff"]
    pd.testing.assert_series_equal(moved.reindex(own.index), own, check_exact=True)


def test_series_that_end_at_different_times_go_on_from_their_own_end(model, daily):
    short = daily.drop(daily.index[85:90])
    starts = model.predict(short).groupby("unique_id")["ds"].first()
    assert starts["b"] == pd.Timestamp("2020-03-26")
    assert starts["a"] == pd.Timestamp("2020-03-31")
