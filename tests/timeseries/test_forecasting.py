"""Forecasts: reproducible per series, of any horizon, scaled with the series, blind to the hidden;
and cross-validation, which is forecasts from several cut-offs."""

import numpy as np
import pandas as pd
import pytest
import torch

from structdiff.timeseries.frames import read_panel
from structdiff.timeseries.sampling import series_seeds
from structdiff.timeseries.windows import WindowMaker

H = 6  # of the tiny models


def _paths(model, frame, h=None, n_samples=None):
    return np.stack(model.panel_paths(model.panel_of(frame), h, n_samples))


# --- reproducibility -------------------------------------------------------------------------
def test_the_same_seed_gives_the_same_training_and_forecast(tiny, daily):
    first, second = (tiny().fit(daily).predict(level=90) for _ in range(2))
    pd.testing.assert_frame_equal(first, second, check_exact=True)


def test_another_seed_gives_another_forecast(model, daily):
    own = _paths(model, daily)
    other = _paths(model.set_params(random_state=1), daily)
    assert not (own == other).any()


def test_without_a_seed_every_forecast_is_another(model, daily):
    model.set_params(random_state=None)
    assert not np.array_equal(_paths(model, daily), _paths(model, daily))


@pytest.mark.parametrize("guidance", ["covariance", "quantile"])
def test_a_forecast_does_not_depend_on_the_other_series_or_their_order(model, daily, guidance):
    model.set_params(guidance=guidance)
    own = model.predict(daily, level=80).set_index("unique_id")
    for names in (["c"], ["c", "b", "a"], ["a", "c"]):
        frame = pd.concat([daily[daily["unique_id"] == name] for name in names])
        other = model.predict(frame, level=80).set_index("unique_id")
        pd.testing.assert_frame_equal(own.loc[names], other, check_exact=True)


def test_a_forecast_does_not_depend_on_the_batch_size(model, daily):
    own = model.predict(daily, level=80)
    other = model.set_params(batch_size=1).predict(daily, level=80)
    pd.testing.assert_frame_equal(own, other, check_exact=True)


def test_series_of_the_same_values_have_paths_of_their_own(model, daily):
    values = daily.loc[daily["unique_id"] == "b", "y"].to_numpy()
    twins = pd.DataFrame({"x": values, "z": values}, index=daily["ds"].iloc[:90])
    forecast = model.sample_paths(twins)
    assert not np.isclose(forecast["x"], forecast["z"]).any()


def test_the_numbers_of_a_text_are_another_series_than_the_numbers(model, daily):
    values = daily.loc[daily["unique_id"] == "b", "y"].to_numpy()
    twins = pd.DataFrame({1: values, "1": values}, index=daily["ds"].iloc[:90])
    paths = _paths(model, twins)
    assert not np.isclose(paths[0], paths[1]).any()


# --- horizons and numbers of paths -----------------------------------------------------------
def test_a_shorter_horizon_is_the_beginning_of_the_trained_one(model, daily):
    assert np.array_equal(_paths(model, daily, h=2), _paths(model, daily)[:, :, :2])


def test_a_longer_horizon_begins_with_the_trained_one(model, daily):
    assert np.array_equal(_paths(model, daily, h=15)[:, :, :H], _paths(model, daily))


def test_a_rolled_path_goes_on_from_its_own_values(gaussian):
    # Points of the series 1 apart have the correlation 0.9, also across the windows' border.
    model, series = gaussian
    paths = _paths(model, series, h=12, n_samples=128)[0]
    assert np.corrcoef(paths[:, 7], paths[:, 8])[0, 1] > 0.75


def test_windows_of_a_rolled_path_have_noise_of_their_own(gaussian):
    # What is new at the second step of either window: in the windows' own units.
    model, series = gaussian
    paths = _paths(model, series, h=16, n_samples=128)[0]
    first, second = (paths[:, k + 1] - 0.9 * paths[:, k] for k in (0, 8))
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.35  # four standard errors


def test_a_model_of_one_step_forecasts_one_and_rolls(tiny, daily):
    model = tiny(h=1).fit(daily)
    assert len(model.predict()) == 3
    assert np.isfinite(_paths(model, daily, h=4)).all()


@pytest.mark.parametrize("paths", [1, 200])
def test_any_number_of_paths_can_be_asked_for(model, daily, paths):
    # 200 is more than the 128 that are sampled at a time.
    drawn = _paths(model, daily, n_samples=paths)
    assert drawn.shape == (3, paths, H)
    assert np.isfinite(drawn).all()
    assert len(np.unique(drawn[0, :, 0])) == paths


def test_one_path_is_its_own_interval(model, daily):
    forecast = model.set_params(n_samples=1).predict(daily, level=80)
    assert (forecast["TSDiff-lo-80"] == forecast["TSDiff-hi-80"]).all()


@pytest.mark.parametrize("h", [0, -1, 1.5, True, "6"])
def test_a_horizon_that_is_none_is_refused(model, daily, h):
    with pytest.raises(ValueError, match="h must be a whole number of at least 1"):
        model.predict(daily, h=h)


@pytest.mark.parametrize("number", [0, 2.5])
def test_a_number_of_paths_that_is_none_is_refused(model, daily, number):
    with pytest.raises(ValueError, match="n_samples must be a whole number"):
        model.sample_paths(daily, n_samples=number)


# --- level and mask --------------------------------------------------------------------------
@pytest.mark.parametrize("factor", [1e-6, 0.5, 1e9])
@pytest.mark.parametrize("scaling", ["standard", "mean"])
def test_a_factor_on_a_series_is_a_factor_on_its_forecast(tiny, daily, scaling, factor):
    model = tiny(scaling=scaling).fit(daily)
    own = _paths(model, daily)
    scaled = _paths(model, daily.assign(y=daily["y"] * factor)) / factor
    np.testing.assert_allclose(scaled, own, rtol=1e-4)


def test_a_constant_on_a_series_shifts_its_forecast_but_for_the_floor_of_the_scale(model, weekly):
    # scale^2 = var + (0.01 mean|y|)^2: the floor of a level of 20 is 0.2 beside a deviation of
    # 2.1, half a percent of the scale; that of 0 none.
    index = pd.date_range("2020-01-01", periods=90)
    low, high = (pd.DataFrame({"x": weekly(0, level)}, index=index) for level in (0.0, 20.0))
    own, moved = _paths(model, low), _paths(model, high) - 20.0
    spread = own.std()
    assert np.abs(moved - own).max() < 0.02 * spread
    assert np.abs(moved - own).max() > 1e-6 * spread


@pytest.mark.parametrize("guidance", ["covariance", "quantile", "squared"])
def test_what_lies_before_the_window_changes_no_bit(model, daily, guidance):
    model.set_params(guidance=guidance)
    other = daily.copy()
    other.loc[daily["ds"] < "2020-03-13", "y"] = 1e6  # the last 18 of 90 points are the context
    assert np.array_equal(_paths(model, daily), _paths(model, other))


@pytest.mark.parametrize("guidance", ["covariance", "quantile", "squared"])
def test_the_future_of_a_cut_series_changes_no_bit(model, daily, guidance):
    model.set_params(guidance=guidance)
    cut = daily[daily["ds"] < "2020-03-20"]
    own = model.predict(cut, level=80)
    hidden = daily.assign(y=np.where(daily["ds"] < "2020-03-20", daily["y"], 1e6))
    panel = read_panel(hidden).cut(11)
    paths = model.panel_paths(panel)
    assert np.array_equal(own["TSDiff"], np.median(np.stack(paths), axis=1).ravel())


@pytest.mark.parametrize("family", ["model", "paper"])
def test_a_hidden_value_has_no_influence(family, daily, request):
    model = request.getfixturevalue(family)
    sampler, spec = model.window_sampler(), model.spec_
    values = daily["y"].to_numpy()[:90]
    maker = WindowMaker([values], spec.context, spec.horizon, spec.lags, spec.scaling)
    window = maker.batch(torch.tensor([0]), torch.tensor([90]), future=False)
    hidden = window.x.clone()
    hidden[~window.observed] = 1e3
    seeds = series_seeds(0, "b", 4)
    own = sampler.given(window.x, window.observed, seeds)
    assert torch.equal(own, sampler.given(hidden, window.observed, seeds))


def test_a_missing_value_is_not_taken_for_zero(model, daily):
    # One of 18 context points missing moves a forecast by less than its noise; a zero would not.
    gap, zero = daily.copy(), daily.copy()
    gap.loc[gap["ds"] == "2020-03-28", "y"] = np.nan
    zero.loc[gap["ds"] == "2020-03-28", "y"] = 0.0
    own = _paths(model, daily, n_samples=100).mean(1)
    level = np.abs(own).mean(1, keepdims=True)
    assert (np.abs(_paths(model, gap, n_samples=100).mean(1) - own) < 0.1 * level).all()
    assert (np.abs(_paths(model, zero, n_samples=100).mean(1) - own) > 0.1 * level).any()


# --- cross-validation and score --------------------------------------------------------------
def test_cross_validation_has_a_cutoff_and_the_truth_beside_each_forecast(model, daily):
    frame = model.cross_validation(daily, n_windows=2, step_size=3, level=80)
    assert list(frame.columns) == [
        *("unique_id", "ds", "cutoff", "y", "TSDiff", "TSDiff-lo-80", "TSDiff-hi-80")
    ]
    # 90 days end on 30 March: windows of 6 end there and 3 days before.
    assert list(frame["cutoff"].unique()) == [
        pd.Timestamp("2020-03-21"),
        pd.Timestamp("2020-03-24"),
    ]
    ahead = frame["ds"] - frame["cutoff"]
    assert set(ahead.dt.days) == set(range(1, H + 1))
    merged = frame.merge(daily, on=["unique_id", "ds"], suffixes=("", "_known"))
    assert len(merged) == len(frame) == 2 * 3 * H
    assert (merged["y"] == merged["y_known"]).all()


def test_cross_validation_forecasts_from_what_was_known_at_the_cutoff(model, daily):
    frame = model.cross_validation(daily, n_windows=2)
    early = frame[frame["cutoff"] == "2020-03-18"]
    own = model.predict(daily[daily["ds"] <= "2020-03-18"])
    assert np.array_equal(early["TSDiff"], own["TSDiff"])


def test_cross_validation_of_a_wide_frame_has_the_cutoff_as_outer_level(model, wide):
    frame = model.cross_validation(wide.tz_localize("UTC"), n_windows=3, step_size=1)
    assert frame.index.names == ["cutoff", "ds"]
    assert str(frame.index.levels[0].tz) == "UTC"
    assert list(frame["a"].columns) == ["y", "TSDiff"]
    assert len(frame) == 3 * H


@pytest.mark.parametrize("index", ["unique_id", "ds"])
def test_cross_validation_keeps_ids_or_times_on_the_index(model, daily, index):
    frame = model.cross_validation(daily.set_index(index), n_windows=2, step_size=2)
    plain = model.cross_validation(daily, n_windows=2, step_size=2)
    pd.testing.assert_frame_equal(frame.reset_index()[list(plain.columns)], plain)


def test_cross_validation_keeps_the_time_zone(model, daily):
    zoned = daily.assign(ds=daily["ds"].dt.tz_localize("Europe/Berlin"))
    frame = model.cross_validation(zoned)
    assert str(frame["cutoff"].dt.tz) == str(frame["ds"].dt.tz) == "Europe/Berlin"


def test_cross_validation_of_too_many_windows_names_the_series(model, daily):
    short = daily.drop(daily.index[100:180])
    with pytest.raises(ValueError, match="series 'a' has 10 points; 3 windows of 6 points"):
        model.cross_validation(short, n_windows=3)


@pytest.mark.parametrize("bad", [{"n_windows": 0}, {"step_size": 0}, {"n_windows": 1.5}])
def test_numbers_of_windows_that_are_none_are_refused(model, daily, bad):
    with pytest.raises(ValueError, match=f"{next(iter(bad))} must be a whole number"):
        model.cross_validation(daily, **bad)


def test_the_score_is_the_crps_of_the_last_points(model, daily):
    truth = np.stack([g.to_numpy()[-H:] for _, g in daily.groupby("unique_id", sort=False)["y"]])
    paths = _paths(model, daily[daily["ds"] <= "2020-03-24"])
    losses = []
    for q in np.arange(1, 10) / 10:
        guess = np.sort(paths, axis=1)[:, round(11 * q)]
        losses.append(2 * np.abs((guess - truth) * ((truth <= guess) - q)).sum())
    assert model.score(daily) == pytest.approx(np.mean(losses) / np.abs(truth).sum(), rel=1e-9)


def test_the_score_knows_other_metrics_and_names_them(model, daily):
    assert model.score(daily, "ND") > 0
    with pytest.raises(ValueError, match=r"choose crps or one of .*ND"):
        model.score(daily, "accuracy")
