"""Every row of the card's table of bad input, through ``fit`` and through ``predict``; and series
that are unusual, but no mistake."""

import warnings

import numpy as np
import pandas as pd
import pytest

from structdiff.errors import StructDiffError
from structdiff.training import DiffusionModule

H = 6  # of the tiny models
DAY = pd.Timedelta(days=1)


@pytest.fixture(params=["fit", "predict"])
def use(request, tiny, model):
    """What a user does with a frame: fits an estimator with further settings, or forecasts."""

    def fit(frame, **settings):
        return tiny(max_steps=1, **settings).fit(frame).predict()

    def predict(frame, **settings):
        return model.set_params(**settings).predict(frame)

    return fit if request.param == "fit" else predict


def test_a_gap_names_series_first_place_count_and_remedy(use, daily):
    words = r"series 'a': 2 timestamps are missing, the first is 2020-03-16.*fill_gaps=True"
    with pytest.raises(StructDiffError, match=words):
        use(daily.drop(daily.index[[165, 170]]))


def test_a_gap_is_filled_where_asked_for(use, daily):
    assert np.isfinite(use(daily.drop(daily.index[[165, 170]]), fill_gaps=True)["TSDiff"]).all()


def test_a_repeated_time_names_series_and_time(use, daily):
    twice = pd.concat([daily, daily.iloc[[95]]])
    with pytest.raises(StructDiffError, match=r"series 'a'.*2020-01-06"):
        use(twice)


def test_missing_values_are_guided_around(use, daily):
    daily.loc[[80, 86, 89, 170, 260], "y"] = np.nan
    forecast = use(daily)
    assert np.isfinite(forecast["TSDiff"]).all()
    # Near the levels 10, 20, 30 of the series, not drawn to 0.
    levels = forecast.groupby("unique_id", sort=False)["TSDiff"].mean()
    np.testing.assert_allclose(levels, [10, 20, 30], atol=4)


def test_a_context_that_is_all_missing_names_the_series_and_its_last_value(model, daily):
    daily.loc[160:179, "y"] = np.nan  # the end of "a"
    with pytest.raises(StructDiffError, match=r"series 'a': all of its last 18 .*2020-03-10"):
        model.predict(daily)


def test_a_series_that_is_all_missing_is_named(use, daily):
    daily.loc[90:179, "y"] = np.nan
    with pytest.raises(StructDiffError, match="series 'a': all of its last"):
        use(daily)


@pytest.mark.parametrize("value", [np.inf, -np.inf])
def test_an_infinite_value_names_series_and_place(use, daily, value):
    daily.loc[100, "y"] = value
    with pytest.raises(StructDiffError, match=r"series 'a': the value at 2020-01-11.*inf"):
        use(daily)


def test_a_short_series_is_left_out_of_training_with_a_warning_and_forecast_all_the_same(
    tiny, daily
):
    short = daily.drop(daily.index[100:180])
    with pytest.warns(UserWarning, match="1 of 3 series have fewer than 24 points.*'a'"):
        fitted = tiny(max_steps=1).fit(short)
    assert fitted.training_["left_out"] == 1
    forecast = fitted.predict()
    assert set(forecast["unique_id"]) == {"a", "b", "c"}
    assert np.isfinite(forecast["TSDiff"]).all()


def test_when_no_series_is_long_enough_the_needed_length_is_said(tiny, daily):
    short = daily.groupby("unique_id").head(20)
    with pytest.raises(StructDiffError, match="needs >= 24 points, the longest has 20"):
        tiny(max_steps=1).fit(short)


@pytest.mark.parametrize("points", [1, 2, 17])
def test_a_series_shorter_than_the_context_is_forecast(model, daily, points):
    forecast = model.predict(daily.groupby("unique_id").head(points))
    assert np.isfinite(forecast["TSDiff"]).all()
    assert len(forecast) == 3 * H


def test_unsorted_rows_are_sorted(use, daily):
    mixed = daily.sample(frac=1, random_state=0)
    forecast = use(mixed)
    assert list(forecast["unique_id"].unique()) == list(mixed["unique_id"].unique())
    assert (forecast.groupby("unique_id")["ds"].min() == daily["ds"].max() + DAY).all()


def test_a_time_zone_is_kept(use, daily):
    zoned = daily.assign(ds=daily["ds"].dt.tz_localize("Europe/Berlin"))
    # Summer time begins on 29 March 2020: midnight stays midnight.
    ahead = use(zoned)["ds"]
    assert str(ahead.dt.tz) == "Europe/Berlin"
    assert (ahead.dt.hour == 0).all()


def test_date_strings_are_parsed(use, daily):
    strings = daily.assign(ds=daily["ds"].dt.strftime("%Y-%m-%d"))
    assert use(strings)["ds"].iloc[0] == pd.Timestamp("2020-03-31")


def test_the_first_string_that_is_no_date_is_shown(use, daily):
    strings = daily.assign(ds=daily["ds"].dt.strftime("%Y-%m-%d"))
    strings.loc[100, "ds"] = "yesterday"
    with pytest.raises(StructDiffError, match=r"'a'.*'yesterday'"):
        use(strings)


def test_strings_for_values_are_refused(use, daily):
    with pytest.raises(StructDiffError, match="'y'"):
        use(daily.assign(y=daily["y"].astype(str)))


def test_integer_times_under_a_frequency_of_days_are_refused_with_advice(tiny, model, daily):
    counted = daily.assign(ds=daily.groupby("unique_id").cumcount())
    with pytest.raises(StructDiffError, match="freq=1"):
        tiny(freq="D").fit(counted)
    with pytest.raises(StructDiffError, match="freq=1"):
        model.predict(counted)


def test_jittered_times_are_refused_and_snap(use, daily):
    jitter = daily.assign(ds=daily["ds"])
    jitter.loc[[95, 120], "ds"] += pd.Timedelta(minutes=7)
    with pytest.raises(StructDiffError, match=r"series 'a': 2020-01-06 00:07.*snap=True"):
        use(jitter, freq="D")
    assert use(jitter, freq="D", snap=True)["ds"].iloc[0] == pd.Timestamp("2020-03-31")


def test_an_empty_frame_is_refused(use, daily):
    with pytest.raises(StructDiffError, match="no rows"):
        use(daily.iloc[:0])


@pytest.mark.parametrize("thing", [None, [1.0, 2.0], "data.csv"])
def test_what_is_no_frame_is_refused(tiny, thing):
    with pytest.raises(StructDiffError, match="DataFrame or Series"):
        tiny().fit(thing)


@pytest.mark.parametrize("fill_gaps", [False, True])
@pytest.mark.parametrize("freq", ["MS", "h"])
def test_another_frequency_than_the_models_is_refused(model, daily, freq, fill_gaps):
    daily["ds"] = daily.groupby("unique_id")["ds"].transform(
        lambda times: pd.date_range("2000-01-01", periods=len(times), freq=freq)
    )
    daily = daily.drop(daily.index[[20, 120]])  # whether or not they have gaps themselves
    words = f"the series have frequency '{freq}', and the model was trained on 'D': fit a model to"
    with pytest.raises(StructDiffError, match=words):
        model.set_params(fill_gaps=fill_gaps).predict(daily)


@pytest.mark.parametrize("seed", [-1, 0.5, "one", float("nan")])
def test_a_seed_that_is_none_is_refused_before_forecasting(model, daily, seed):
    with pytest.raises(StructDiffError, match="random_state must be None or a whole number"):
        model.set_params(random_state=seed).predict(daily)


def test_an_unfitted_estimator_says_so(tiny, daily):
    for call in (tiny().predict, tiny().sample_paths, tiny().impute, tiny().plot):
        with pytest.raises(StructDiffError, match="is not fitted: call fit"):
            call(daily)
    with pytest.raises(StructDiffError, match="is not fitted"):
        tiny().synthesize(3)


# --- unusual, but no mistake -----------------------------------------------------------------
def _forecasts(model, frame):
    return model.predict(frame, level=90).set_index("unique_id")


def _frame(daily, values):
    own = daily[daily["unique_id"] == "b"].copy()
    return own.assign(y=np.asarray(values, dtype=float))


def test_a_constant_series_stays_where_it_is(use, daily):
    daily.loc[:89, "y"] = 7.0
    flat = use(daily).set_index("unique_id").loc["b", "TSDiff"]
    # The scale of a series that does not move is a percent of its level.
    np.testing.assert_allclose(flat, 7.0, atol=0.3)


def test_a_model_can_be_trained_on_constants_alone(tiny, daily):
    fitted = tiny(max_steps=1).fit(daily.assign(y=5.0))
    np.testing.assert_allclose(fitted.predict()["TSDiff"], 5.0, atol=0.01)


def test_a_model_can_be_trained_on_zeros_alone(tiny, daily):
    fitted = tiny(max_steps=1).fit(daily.assign(y=0.0))
    np.testing.assert_allclose(fitted.predict()["TSDiff"], 0.0, atol=0.01)


@pytest.mark.parametrize("scaling", ["standard", "mean"])
def test_a_context_of_zeros_has_the_scale_of_its_own_past(tiny, daily, scaling):
    fitted = tiny(scaling=scaling).fit(daily)
    values = np.r_[np.full(60, 50.0) + np.arange(60) % 7, np.zeros(30)]
    small, large = (fitted.predict(_frame(daily, f * values), level=90) for f in (1.0, 1e4))
    np.testing.assert_allclose(large["TSDiff-hi-90"], 1e4 * small["TSDiff-hi-90"], rtol=1e-3)
    assert (small["TSDiff-hi-90"] > small["TSDiff-lo-90"]).all()


def test_a_series_of_zeros_is_forecast(model, daily):
    assert np.isfinite(_forecasts(model, _frame(daily, np.zeros(90)))["TSDiff"]).all()


@pytest.mark.parametrize("scaling", ["standard", "mean"])
def test_negative_values_are_forecast_at_their_level(tiny, daily, scaling):
    fitted = tiny(scaling=scaling).fit(daily.assign(y=-daily["y"]))
    levels = fitted.predict().groupby("unique_id", sort=False)["TSDiff"].mean()
    np.testing.assert_allclose(levels, [-10, -20, -30], atol=6)


def test_intermittent_counts_are_fitted_and_forecast(tiny, daily):
    rng = np.random.default_rng(5)
    counts = rng.poisson(3, size=270) * (rng.random(270) < 0.1)
    frame = daily.assign(y=counts.astype(np.int64))
    forecast = tiny().fit(frame).predict(level=80)
    assert forecast["TSDiff"].dtype == np.float64
    assert np.isfinite(forecast.select_dtypes("number")).all().all()
    assert forecast["TSDiff-hi-80"].max() < 20


def test_a_pegged_rate_is_forecast_near_its_peg(tiny, daily):
    rng = np.random.default_rng(6)
    moves = np.where(rng.random(270) < 0.33, 0, rng.normal(scale=1e-5, size=270))
    pegged = daily.assign(y=8.28 + moves)
    forecast = tiny().fit(pegged).predict(level=95)
    np.testing.assert_allclose(forecast["TSDiff"], 8.28, rtol=1e-3)


def test_a_level_beside_which_the_movement_is_small_is_forecast(model, daily):
    far = daily.assign(y=1e12 + daily["y"])
    np.testing.assert_allclose(model.predict(far)["TSDiff"], 1e12, rtol=0.05)


def test_integers_and_booleans_are_values(model, daily):
    whole = daily.assign(y=daily["y"].round().astype(np.int64))
    assert np.isfinite(model.predict(whole)["TSDiff"]).all()
    assert np.isfinite(model.predict(daily.assign(y=daily["y"] > 10))["TSDiff"]).all()


def test_good_input_warns_of_nothing(tiny, daily):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fitted = tiny(max_steps=1).fit(daily)
        fitted.predict(level=80)
        fitted.impute()


# --- settings --------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"h": 0}, "h must be a whole number"),
        ({"h": 2.5}, "h must be a whole number"),
        ({"context": 0}, "context must be a whole number"),
        ({"context": "long"}, "context must be"),
        ({"lags": "some"}, "lags must be 'auto'"),
        ({"lags": (0,)}, "each of the lags must be a whole number"),
        ({"lags": 7}, "lags"),
        ({"scaling": "robust"}, "unknown scaling 'robust'"),
        ({"preset": "fast"}, "unknown preset 'fast'"),
        ({"kernel": "s5"}, "s5"),
        ({"guidance": "luck"}, "unknown guidance 'luck'"),
        ({"guidance_scale": 2.0}, "covariance has no scale"),
        ({"guidance": "quantile", "guidance_scale": -1.0}, "guidance_scale"),
        ({"sampler": "magic"}, "magic"),
        ({"steps": 0}, "steps must be"),
        ({"n_samples": 0}, "n_samples must be"),
        ({"hidden": 0}, "hidden"),
        ({"blocks": 0}, "blocks"),
        ({"state_size": 0}, "state_size"),
        ({"max_steps": 0}, "max_steps"),
        ({"batch_size": 0}, "batch_size"),
        ({"max_minutes": 0}, "max_minutes"),
        ({"max_minutes": "5"}, "max_minutes"),
        ({"learning_rate": -1e-3}, "learning_rate"),
        ({"checkpoint_every": 0}, "checkpoint_every"),
        ({"accelerator": "abacus"}, "abacus"),
        ({"network_settings": {"colour": 1}}, "colour"),
        ({"freq": "fortnight"}, "fortnight"),
        ({"random_state": "x"}, "random_state"),
        ({"random_state": -1}, "random_state"),
    ],
    ids=str,
)
def test_a_setting_that_cannot_be_is_refused_before_training(
    tiny, daily, settings, words, monkeypatch
):
    def never(*args, **kwargs):
        raise AssertionError("training began")

    monkeypatch.setattr(DiffusionModule, "training_step", never)
    with pytest.raises(StructDiffError, match=words):
        tiny(**settings).fit(daily)
