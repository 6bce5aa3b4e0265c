"""TSDiff as an sktime forecaster, judged by sktime's own checks."""

import importlib
import inspect
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from sktime.forecasting.base import ForecastingHorizon
from sktime.utils.estimator_checks import check_estimator

from structdiff.errors import StructDiffError
from structdiff.timeseries import TSDiff
from structdiff.timeseries.sktime import TSDiffForecaster

torch.set_num_threads(1)

TINY = TSDiffForecaster.get_test_params()[0] | {"n_samples": 9, "context": 24, "h": 6}
FH = [1, 2, 5]


def series(length=80, phase=0, name="sales"):
    days = np.arange(length)
    values = 10 + np.sin(2 * np.pi * (days + phase) / 7)
    return pd.Series(values, pd.date_range("2024-01-01", periods=length, freq="D"), name=name)


def panel(*lengths):
    parts = {f"shop{i}": series(n, 2 * i).to_frame() for i, n in enumerate(lengths)}
    return pd.concat(parts, names=["shop", "day"])


@pytest.fixture(scope="module")
def fitted():
    return TSDiffForecaster(**TINY).fit(series())


# --- sktime's own checks ---------------------------------------------------------------------

CORE = [
    *["test_constructor", "test_clone", "test_deepcopy", "test_get_test_params_coverage"],
    *["test_valid_object_class_tags", "test_has_common_interface", "test_set_params_sklearn"],
    *["test_class_has_doctest_example", "test_raises_not_fitted_error", "test_pred_int_tag"],
    *[
        "test_update_tag",
        "test_hierarchical_with_exogenous",
        "test__y_remember_data",
        "test_fit_predict",
    ],
    *["test_predict_series_name_preserved", "test_unequal_length_hierarchical_fit_predict"],
    *["test_predict_proba", "test_score", "test_fit_does_not_overwrite_hyper_params"],
]


def test_sktimes_checks_of_the_interface_pass():
    results = check_estimator(TSDiffForecaster, raise_exceptions=True, tests_to_run=CORE, verbose=0)
    assert len(results) > len(CORE) and set(results.values()) == {"PASSED"}


@pytest.mark.paper
def test_all_of_sktimes_checks_pass():
    """890 checks in sktime 1.2: every index, horizon, panel, update and persistence."""
    results = check_estimator(TSDiffForecaster, raise_exceptions=True, verbose=0)
    assert len(results) > 500 and set(results.values()) == {"PASSED"}


# --- forecasts -------------------------------------------------------------------------------


def test_forecasts_are_those_of_the_model_on_a_frame(fitted):
    y = series()
    frame = pd.DataFrame({"unique_id": "sales", "ds": y.index, "y": y.to_numpy()})
    model = TSDiff(**TINY).fit(frame)
    np.testing.assert_array_equal(fitted.predict(range(1, 7)), model.predict()["TSDiff"])


def test_quantiles_are_those_of_the_model_on_a_frame(fitted):
    y = series()
    frame = pd.DataFrame({"unique_id": "sales", "ds": y.index, "y": y.to_numpy()})
    expected = fitted.model_.predict(frame, quantiles=[0.1, 0.8])
    made = fitted.predict_quantiles(range(1, 7), alpha=[0.1, 0.8])
    assert list(made.columns) == [("sales", 0.1), ("sales", 0.8)]
    np.testing.assert_array_equal(made["sales"], expected[["TSDiff-q0.1", "TSDiff-q0.8"]])


def test_an_interval_lies_between_its_quantiles(fitted):
    quantiles = fitted.predict_quantiles(FH, alpha=[0.1, 0.9])
    interval = fitted.predict_interval(FH, coverage=0.8)
    np.testing.assert_array_equal(interval, quantiles)


def test_a_variance_is_that_of_the_paths(fitted):
    paths = fitted.model_.panel_paths(fitted._panel(), 6)[0]
    made = fitted.predict_var(FH)
    np.testing.assert_allclose(made["sales"], paths[:, [0, 1, 4]].var(axis=0), rtol=1e-12)


def test_a_distribution_is_the_sample_paths(fitted):
    paths = fitted.model_.panel_paths(fitted._panel(), 6)[0][:, [0, 1, 4]]
    drawn = fitted.predict_proba(FH)
    np.testing.assert_allclose(drawn.mean()["sales"], paths.mean(axis=0), rtol=1e-12)
    assert list(drawn.index) == list(fitted.predict(FH).index)


def test_a_horizon_names_the_same_days_however_it_is_given(fitted):
    days = pd.DatetimeIndex(["2024-03-21", "2024-03-22", "2024-03-25"])
    spans = pd.TimedeltaIndex(["1D", "2D", "5D"])
    expected = fitted.predict(FH)
    assert list(expected.index) == list(days)
    for fh in (
        ForecastingHorizon(days, is_relative=False),
        ForecastingHorizon(spans, is_relative=True),
    ):
        np.testing.assert_array_equal(fitted.predict(fh), expected)


def test_a_horizon_beyond_the_models_is_reached(fitted):
    made = fitted.predict([3, 20])
    assert np.isfinite(made).all() and list(made.index.day) == [23, 9]


def test_missing_values_are_guided_around():
    # The series runs from 9 to 11; zeros in the place of the gap would pull the paths down.
    y = series()
    y.iloc[-20:-5] = np.nan
    made = [TSDiffForecaster(**TINY).fit(v).predict(FH) for v in (y, y.fillna(0))]
    assert np.abs(made[0] - 10).max() < 2.5 < np.abs(made[1] - 10).max()


def test_without_a_seed_a_fitted_forecaster_agrees_with_itself():
    first, second = (
        TSDiffForecaster(**TINY | {"random_state": None}).fit(series()) for _ in range(2)
    )
    np.testing.assert_array_equal(first.predict(FH), first.predict(FH))
    assert (first.predict(FH) != second.predict(FH)).any()


def test_a_point_of_the_past_is_no_forecast(fitted):
    with pytest.raises(NotImplementedError, match="in-sample"):
        fitted.predict([-1, 2])


# --- several series --------------------------------------------------------------------------


def test_columns_are_forecast_each_by_a_model():
    both = pd.DataFrame({"a": series(), "b": series()})
    forecaster = TSDiffForecaster(**TINY).fit(both)
    made = forecaster.predict(FH)
    assert list(made.columns) == ["a", "b"] and forecaster.forecasters_.shape == (1, 2)
    assert (made["a"] != made["b"]).any()  # noise of their own


def test_a_panel_trains_one_model():
    y = panel(80, 60, 70)
    forecaster = TSDiffForecaster(**TINY).fit(y)
    assert forecaster.model_.training_["series"] == 3
    assert forecaster.model_.panel_.ids == [(f"shop{i}", "sales") for i in range(3)]


def test_every_series_of_a_panel_goes_on_from_its_own_end():
    y = panel(80, 60)
    made = TSDiffForecaster(**TINY).fit(y).predict(FH)
    assert made.index.names == ["shop", "day"] and list(made.columns) == ["sales"]
    for shop in ("shop0", "shop1"):
        gaps = made.loc[shop].index - y.loc[shop].index[-1]
        assert list(gaps.days) == FH


def test_one_day_is_forecast_for_every_series_of_a_panel():
    day = ForecastingHorizon(pd.DatetimeIndex(["2024-03-22"]), is_relative=False, freq="D")
    forecaster = TSDiffForecaster(**TINY).fit(panel(80, 60))
    made = forecaster.predict(day)
    assert list(made.index.get_level_values("day")) == [pd.Timestamp("2024-03-22")] * 2
    ends = forecaster.model_.panel_paths(forecaster._panel(), 22)
    expected = [np.median(p[:, k - 1]) for p, k in zip(ends, (2, 22), strict=True)]
    np.testing.assert_array_equal(made["sales"], expected)


def test_a_distribution_of_a_panel_has_its_rows():
    forecaster = TSDiffForecaster(**TINY).fit(panel(60, 60))
    drawn, points = forecaster.predict_proba(FH), forecaster.predict(FH)
    assert list(drawn.index) == list(points.index)
    assert drawn.spl.shape == (9 * 6, 1)


# --- updates ---------------------------------------------------------------------------------


def test_an_update_without_parameters_forecasts_from_the_new_end():
    y = series()
    forecaster = TSDiffForecaster(**TINY).fit(y[:70])
    model = forecaster.model_
    forecaster.update(y[70:], update_params=False)
    made = forecaster.predict(FH)
    assert forecaster.model_ is model
    frame = pd.DataFrame({"unique_id": "sales", "ds": y.index, "y": y.to_numpy()})
    expected = model.predict(frame)["TSDiff"].to_numpy()
    np.testing.assert_array_equal(made, expected[[0, 1, 4]])


def test_an_update_with_parameters_trains_on_all_it_has_seen():
    y = series()
    forecaster = TSDiffForecaster(**TINY).fit(y[:70]).update(y[70:])
    again = TSDiffForecaster(**TINY).fit(y)
    np.testing.assert_array_equal(forecaster.predict(FH), again.predict(FH))


def test_a_replay_of_the_past_does_not_look_ahead():
    y = series()
    early = TSDiffForecaster(**TINY).fit(y)
    early.update(y[50:60], update_params=False)
    other = y.copy()
    other[60:] = 1000.0
    fooled = TSDiffForecaster(**TINY).fit(y)
    fooled._cur_y = other.to_frame()
    fooled.update(y[50:60], update_params=False)
    np.testing.assert_array_equal(early.predict(FH), fooled.predict(FH))


# --- parameters and bad input ----------------------------------------------------------------


def test_the_forecaster_has_the_models_parameters():
    ours = inspect.signature(TSDiff.__init__).parameters
    theirs = inspect.signature(TSDiffForecaster.__init__).parameters
    assert set(ours) - {"id_col", "time_col", "target_col"} == set(theirs)
    for name in set(theirs) - {"self", "h"}:  # None is the horizon's farthest point
        assert theirs[name].default == ours[name].default


@pytest.mark.parametrize(("fh", "length", "h"), [([1, 9], 80, 9), (None, 80, 24), (None, 30, 10)])
def test_the_models_horizon_follows_the_forecasts(fh, length, h):
    tiny = TINY | {"h": None, "context": 5}
    assert TSDiffForecaster(**tiny).fit(series(length), fh=fh).model_.spec_.horizon == h


def test_parameters_reach_the_model():
    changed = {"scaling": "mean", "kernel": "s4", "batch_size": 7, "learning_rate": 0.1}
    changed |= {"guidance": "quantile", "guidance_scale": 2.0, "sampler": "ddim"}
    model = TSDiffForecaster(**TINY | changed).fit(series()).model_
    assert {k: v for k, v in model.get_params().items() if k in changed} == changed


def test_an_infinite_value_is_named():
    y = series()
    y.iloc[3] = np.inf
    with pytest.raises(StructDiffError, match="series 'sales': the value at 2024-01-04"):
        TSDiffForecaster(**TINY).fit(y)


def test_gaps_of_an_index_are_filled_when_asked_for():
    y = series().drop(pd.Timestamp("2024-02-10"))
    with pytest.raises(StructDiffError, match="2024-02-10"):
        TSDiffForecaster(**TINY, freq="D").fit(y)
    made = TSDiffForecaster(**TINY, freq="D", fill_gaps=True).fit(y)
    assert len(made.model_.panel_.values[0]) == 80


def test_without_sktime_the_extra_is_named(monkeypatch):
    monkeypatch.delitem(sys.modules, "structdiff.timeseries.sktime")
    monkeypatch.setitem(sys.modules, "sktime.forecasting.base", None)
    with pytest.raises(ImportError, match=r"pip install 'structdiff\[sktime\]'"):
        importlib.import_module("structdiff.timeseries.sktime")
