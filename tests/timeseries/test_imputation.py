"""Filling gaps: what is observed stays, what is drawn is the conditional, windows go together."""

import numpy as np
import pandas as pd
import pytest

from structdiff.errors import StructDiffError
from structdiff.timeseries.imputation import impute_series, plan
from structdiff.timeseries.sampling import OBSERVATION_NOISE

L = 24  # points of the tiny models' windows


def _holes(daily, *ranges):
    """The long frame with runs of rows missing."""
    frame = daily.copy()
    for first, last in ranges:
        frame.loc[first:last, "y"] = np.nan
    return frame


# --- the plan --------------------------------------------------------------------------------
@pytest.mark.parametrize("points", [5, 23, 24, 25, 100])
@pytest.mark.parametrize("share", [0.05, 0.5, 0.95])
def test_every_missing_point_is_filled_once_in_order_inside_its_window(points, share):
    missing = np.flatnonzero(np.random.default_rng(points).random(points) < share)
    windows = plan(missing, points, L)
    assert [p for _, places in windows for p in places] == list(missing)
    for end, places in windows:
        assert min(places) >= end - L
        assert max(places) < end <= points


def test_a_point_has_a_quarter_of_a_window_on_both_sides_where_the_series_allows():
    missing = np.arange(40, 60)
    for end, places in plan(missing, 100, L):
        assert min(places) - (end - L) >= L // 4
        assert end - 1 - max(places) >= L // 4


# --- what stays ------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "holes",
    [[(40, 42)], [(0, 9)], [(80, 89)], [(30, 44)], [(0, 3), (86, 94), (110, 110), (255, 269)]],
    ids=["inside", "start", "end", "more than half a window", "many"],
)
def test_observed_values_stay_bit_for_bit_and_no_gap_is_left(model, daily, holes):
    frame = _holes(daily, *holes)
    before = frame.copy(deep=True)
    filled = model.impute(frame)
    known = frame["y"].notna()
    assert np.array_equal(filled.loc[known, "y"], frame.loc[known, "y"])
    assert np.isfinite(filled["y"]).all()
    assert list(filled.columns) == list(frame.columns)
    pd.testing.assert_frame_equal(frame, before, check_exact=True)
    # Filled in as the season of amplitude 3 goes, not by zeros.
    assert np.abs(filled["y"] - daily["y"]).max() < 6


def test_a_frame_without_gaps_comes_back_as_it_was(model, daily, wide):
    pd.testing.assert_frame_equal(model.impute(daily), daily, check_exact=True)
    pd.testing.assert_frame_equal(
        model.impute(wide), wide, check_exact=True, check_freq=False, check_column_type=False
    )


def test_a_float32_column_stays_one(model, daily):
    frame = _holes(daily.astype({"y": np.float32}), (40, 42))
    filled = model.impute(frame)
    assert filled["y"].dtype == np.float32
    known = frame["y"].notna()
    assert np.array_equal(filled.loc[known, "y"], frame.loc[known, "y"])


def test_absent_rows_are_inserted_and_filled_where_asked_for(model, daily):
    filled = model.set_params(fill_gaps=True).impute(daily.drop(daily.index[40:43]))
    assert len(filled) == 270
    assert np.isfinite(filled["y"]).all()


def test_every_layout_is_filled_alike(model, daily, wide):
    holes = _holes(daily, (40, 42), (100, 100))
    long = model.impute(holes)
    pivot = holes.pivot(index="ds", columns="unique_id", values="y")[["b", "a", "c"]]
    other = model.impute(pivot)
    own = long.pivot(index="ds", columns="unique_id", values="y")[["b", "a", "c"]]
    assert np.array_equal(own, other)
    series = model.impute(pivot["a"])
    assert isinstance(series, pd.Series)
    assert np.array_equal(series, other["a"])


def test_a_filled_value_does_not_depend_on_the_other_series(model, daily):
    frame = _holes(daily, (40, 60), (100, 104))
    alone = model.impute(frame[frame["unique_id"] == "b"])
    assert np.array_equal(alone["y"], model.impute(frame).iloc[:90]["y"])


def test_intervals_are_around_the_filled_and_on_the_observed(model, daily):
    frame = _holes(daily, (40, 44))
    filled = model.impute(frame, level=[80, 95])
    assert list(filled.columns[2:]) == [
        *("y", "TSDiff-lo-95", "TSDiff-lo-80", "TSDiff-hi-80", "TSDiff-hi-95")
    ]
    known = frame["y"].notna()
    for end in ("TSDiff-lo-95", "TSDiff-hi-80"):
        assert np.array_equal(filled.loc[known, end], frame.loc[known, "y"])
    gap = filled[~known]
    assert (gap["TSDiff-lo-80"] < gap["TSDiff-hi-80"]).all()
    assert (gap["TSDiff-lo-95"] <= gap["TSDiff-lo-80"]).all()


def test_lags_are_conditions_too(tiny, daily):
    model = tiny(lags=(12,)).fit(daily)
    frame = _holes(daily, (40, 44), (0, 3), (86, 89), (120, 138))
    filled = model.impute(frame)
    known = frame["y"].notna()
    assert np.array_equal(filled.loc[known, "y"], frame.loc[known, "y"])
    assert np.abs(filled["y"] - daily["y"]).max() < 8


def test_the_paper_preset_fills_gaps(paper, daily):
    filled = paper.impute(_holes(daily, (40, 44)))
    assert np.isfinite(filled["y"]).all()


def test_a_series_shorter_than_a_window_is_filled(model, daily):
    short = _holes(daily.iloc[:15], (4, 6))
    assert np.isfinite(model.impute(short)["y"]).all()


# --- what cannot be --------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("hole", "words"),
    [
        ((20, 60), r"series 'b': the gap of 41 points from 2020-01-21.* to 2020-03-01"),
        ((0, 40), r"series 'b': the gap of 41 points from 2020-01-01.* to 2020-02-10"),
        ((40, 89), r"series 'b': the gap of 50 points from 2020-02-10.* to 2020-03-30"),
        ((0, 89), r"series 'b': all 90 values are missing"),
    ],
    ids=["inside", "start", "end", "all"],
)
def test_a_gap_longer_than_a_window_is_named(model, daily, hole, words):
    with pytest.raises(StructDiffError, match=words):
        model.impute(_holes(daily, hole))


# --- exact for a Gaussian --------------------------------------------------------------------
def test_a_gap_is_drawn_from_the_conditional_of_the_gaussian(gaussian):
    model, series = gaussian
    series.iloc[100:103] = np.nan
    panel, prior = model.panel_of(series), model.covariance_
    drawn = impute_series(model.window_sampler(), panel, 0, 1024, seed=0)
    (end, _), length = plan(np.arange(100, 103), 3000, 32)[0], 32
    window = series.to_numpy()[end - length : end]
    observed = ~np.isnan(window)
    context = window[:24][observed[:24]]
    shift = context.mean()
    scale = np.sqrt(context.var() + (0.01 * np.abs(context).mean()) ** 2)
    mean, matrix = prior.mean.numpy(), prior.matrix().numpy()
    seen = matrix[np.ix_(observed, observed)] + OBSERVATION_NOISE * np.eye(observed.sum())
    gain = np.linalg.solve(seen, matrix[np.ix_(observed, ~observed)]).T
    exact = mean[~observed] + gain @ ((window[observed] - shift) / scale - mean[observed])
    covariance = matrix[np.ix_(~observed, ~observed)] - gain @ matrix[np.ix_(observed, ~observed)]
    deviation = np.sqrt(np.diag(covariance)) * scale
    z = (drawn.paths.mean(0) - (exact * scale + shift)) / deviation
    assert np.abs(z).max() < 5 / np.sqrt(1024) + 0.02
    assert drawn.paths.std(0) == pytest.approx(deviation, rel=5 / np.sqrt(2048) + 0.02)


def test_a_gap_over_several_windows_is_one_path(gaussian):
    # Points 1 apart have the correlation 0.9, also where one window of 32 leaves off and the next
    # begins: after half a window.
    model, series = gaussian
    series.iloc[200:228] = np.nan
    panel = model.panel_of(series)
    drawn = impute_series(model.window_sampler(), panel, 0, 256, seed=0)
    ends = plan(np.arange(200, 228), 3000, 32)
    assert len(ends) == 2
    seam = len(ends[0][1])
    across = np.corrcoef(drawn.paths[:, seam - 1], drawn.paths[:, seam])[0, 1]
    assert across > 0.7
    assert drawn.paths.std(0).max() < 1.3 * series.std()
