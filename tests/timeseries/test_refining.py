"""Refinement from frames: which base is read for which series, and what is refused."""

import numpy as np
import pandas as pd
import pytest

from structdiff.errors import StructDiffError
from structdiff.timeseries.refining import Refinement

H = 6  # of the tiny models


@pytest.fixture
def base(model, daily):
    """Last values, long."""
    frame = model.predict(daily)[["unique_id", "ds"]]
    last = daily.groupby("unique_id")["y"].last()
    return frame.assign(naive=frame["unique_id"].map(last))


def test_a_refined_point_forecast_has_the_columns_of_a_forecast(model, daily, base):
    refined = model.refine(daily, base, level=80, quantiles=0.1)
    assert list(refined.columns) == [
        *("unique_id", "ds", "TSDiff", "TSDiff-lo-80", "TSDiff-hi-80", "TSDiff-q0.1")
    ]
    assert (refined[["unique_id", "ds"]] == base[["unique_id", "ds"]]).all().all()
    assert not np.isclose(refined["TSDiff"], base["naive"]).any()


def test_the_training_frame_is_the_default(model, daily, base):
    pd.testing.assert_frame_equal(model.refine(None, base), model.refine(daily, base))


@pytest.mark.parametrize("method", ["langevin", "ml"])
def test_refinement_moves_a_flat_forecast_to_the_mean(gaussian, method):
    # The likelier window of an AR(1) series goes back to its mean; the last value does not.
    model, series = gaussian
    ahead = model.predict(series).index
    far = series.copy()
    far.iloc[-3:] += 6.0
    flat = pd.Series(far.iloc[-1], index=ahead, name="x")
    chosen = Refinement(method, iterations=40, noise_scale=0.1)
    refined = model.refine(far, flat, refinement=chosen)
    assert np.abs(refined.iloc[-1]) < np.abs(flat.iloc[-1])


def test_a_step_of_nothing_leaves_the_base(model, daily, base):
    still = Refinement("ml", "quantile", iterations=1, step=1e-12)
    refined = model.refine(daily, base, refinement=still)
    np.testing.assert_allclose(refined["TSDiff"], base["naive"], rtol=1e-5)


def test_sample_paths_are_a_base(model, daily):
    paths = model.sample_paths(daily, n_samples=7)
    refined = model.refine(daily, paths, level=80)
    assert (refined["TSDiff-lo-80"] < refined["TSDiff-hi-80"]).all()


def test_rows_of_a_base_may_come_in_any_order(model, daily, base):
    mixed = base.sample(frac=1, random_state=0)
    pd.testing.assert_frame_equal(model.refine(daily, mixed), model.refine(daily, base))


def test_a_wide_base_is_refined_for_a_wide_frame(model, wide, daily, base):
    spread = base.pivot(index="ds", columns="unique_id", values="naive")
    refined = model.refine(wide, spread)
    own = model.refine(daily, base).pivot(index="ds", columns="unique_id", values="TSDiff")
    assert np.array_equal(refined[["a", "b", "c"]], own[["a", "b", "c"]])


def test_a_long_base_is_refined_for_a_wide_frame_and_a_two_level_index(model, wide, daily, base):
    own = model.refine(daily, base)["TSDiff"]
    other = model.refine(daily.set_index(["unique_id", "ds"]), base)["TSDiff"]
    assert np.array_equal(own, other)
    spread = model.refine(wide, base)
    assert np.array_equal(spread.to_numpy().T.ravel(), own)


def test_columns_of_two_levels_are_refined(model, wide, daily, base):
    spread = base.pivot(index="ds", columns="unique_id", values="naive")
    frames = (pd.concat({"all": frame}, axis=1) for frame in (wide, spread))
    refined = model.refine(*frames, level=80)
    assert np.isfinite(refined).all().all()
    assert refined.columns[0] == ("all", "b", "TSDiff")


def test_a_refined_forecast_does_not_depend_on_the_other_series(model, daily, base):
    one = daily[daily["unique_id"] == "a"]
    alone = model.refine(one, base[base["unique_id"] == "a"])["TSDiff"]
    assert np.array_equal(alone, model.refine(daily, base).query("unique_id == 'a'")["TSDiff"])


def test_missing_values_of_the_history_are_no_hindrance(model, daily, base):
    daily.loc[[80, 86, 178], "y"] = np.nan
    assert np.isfinite(model.refine(daily, base)["TSDiff"]).all()


def test_the_column_is_chosen_where_there_are_several(model, daily, base):
    both = base.assign(other=0.0)
    with pytest.raises(StructDiffError, match=r"which column is the forecast.*'naive', 'other'"):
        model.refine(daily, both)
    own = model.refine(daily, both, column="naive")
    pd.testing.assert_frame_equal(own, model.refine(daily, base))


def test_a_forecast_frame_of_this_package_needs_no_column(model, daily):
    own = model.predict(daily, level=80)
    assert np.isfinite(model.refine(daily, own)["TSDiff"]).all()


@pytest.mark.parametrize("dtype", ["datetime64[s]", "datetime64[ns]", "str"])
def test_times_of_a_base_may_have_another_resolution(model, daily, base, dtype):
    other = base.assign(ds=base["ds"].astype(dtype))
    pd.testing.assert_frame_equal(model.refine(daily, other), model.refine(daily, base))


# --- what is refused -------------------------------------------------------------------------
def test_a_series_without_a_forecast_is_named(model, daily, wide, base):
    with pytest.raises(StructDiffError, match="series 'a' has no forecast"):
        model.refine(daily, base[base["unique_id"] != "a"])
    spread = base.pivot(index="ds", columns="unique_id", values="naive")
    with pytest.raises(StructDiffError, match="series 'a' has no forecast"):
        model.refine(wide, spread[["b", "c"]])


@pytest.mark.parametrize("rows", [slice(0, 5), slice(1, 7)], ids=["too short", "shifted"])
def test_another_horizon_is_named(model, daily, rows):
    longer = model.predict(daily, h=7)
    part = longer.groupby("unique_id", sort=False).nth(list(range(7))[rows])
    with pytest.raises(StructDiffError, match=r"series 'b': the model refines 6 points from 2020"):
        model.refine(daily, part)


def test_a_base_that_ends_too_late_is_named(model, daily):
    with pytest.raises(StructDiffError, match="series 'b': the model refines 6 points"):
        model.refine(daily, model.predict(daily, h=7))


def test_paths_with_a_hole_in_their_times_are_named(model, daily):
    paths = model.sample_paths(daily, n_samples=2)
    # The second path of "b" is a day late throughout.
    paths.loc[6:11, "ds"] += pd.Timedelta(days=1)
    with pytest.raises(StructDiffError, match="series 'b'"):
        model.refine(daily, paths)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_missing_or_infinite_forecast_is_named(model, daily, base, value):
    base.loc[8, "naive"] = value
    with pytest.raises(
        StructDiffError, match=r"series 'a': the forecast at 2020-04-02.* is missing"
    ):
        model.refine(daily, base)


def test_times_of_another_time_zone_are_refused(model, daily, base):
    with pytest.raises(StructDiffError, match=r"series 'b'.* its times are .*Tokyo"):
        zoned = daily.assign(ds=daily["ds"].dt.tz_localize("Asia/Tokyo"))
        model.refine(zoned, base)


def test_text_for_forecasts_is_refused(model, daily, base):
    with pytest.raises(StructDiffError, match="'naive'"):
        model.refine(daily, base.assign(naive="high"))


def test_what_is_no_frame_is_refused(model, daily):
    with pytest.raises(StructDiffError, match="forecasts must be a frame, got ndarray"):
        model.refine(daily, np.zeros((3, H)))


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ({"method": "magic"}, "method"),
        ({"regularizer": "l1"}, "regularizer"),
        ({"iterations": -1}, "iterations"),
        ({"step": -1.0}, "step"),
        ({"noise_scale": -1.0}, "noise_scale"),
        ({"weight": -1.0}, "weight"),
    ],
)
def test_impossible_refinement_is_refused(model, daily, base, bad, words):
    with pytest.raises(StructDiffError, match=words):
        model.refine(daily, base, refinement=Refinement(**bad))
