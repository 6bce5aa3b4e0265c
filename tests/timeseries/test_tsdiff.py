"""The estimator as a whole: it forecasts, trains, resumes, synthesises and draws."""

import copy
import pickle
import signal

import matplotlib
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib import pyplot as plt
from sklearn.base import clone

from structdiff.errors import CheckpointError
from structdiff.timeseries import TSDiff
from structdiff.training import DiffusionModule

matplotlib.use("Agg")


@pytest.fixture(scope="module")
def passengers():
    """Twelve years with a season and a trend."""
    months = np.arange(144)
    season = 1 + 0.25 * np.sin(2 * np.pi * months / 12) + 0.1 * np.cos(2 * np.pi * months / 6)
    times = pd.date_range("1949-01-01", periods=144, freq="MS")
    return pd.DataFrame({"unique_id": "air", "ds": times, "y": (100 + 2.5 * months) * season})


@pytest.fixture(scope="module")
def airline(passengers):
    known = passengers.iloc[:-12]
    return TSDiff(h=12, hidden=16, max_steps=30, random_state=0, progress=False).fit(known)


def test_a_season_and_a_trend_are_forecast(airline, passengers):
    # The seasonal naive forecast is off by a year of trend, 30 passengers of 430.
    truth = passengers["y"].to_numpy()[-12:]
    error = np.abs(airline.predict()["TSDiff"].to_numpy() - truth).mean()
    naive = np.abs(passengers["y"].to_numpy()[-24:-12] - truth).mean()
    assert error < 0.5 * naive


def test_a_loaded_model_forecasts_the_same_bits(airline, passengers, tmp_path):
    airline.save_pretrained(tmp_path)
    again = TSDiff.from_pretrained(tmp_path).set_params(random_state=0, progress=False)
    pd.testing.assert_frame_equal(
        again.predict(passengers.iloc[:-12], level=80), airline.predict(level=80), check_exact=True
    )


# --- an estimator of scikit-learn --------------------------------------------------------------
def test_parameters_are_read_set_and_cloned(tiny):
    model = tiny(lags=(7,), random_state=3)
    twin = clone(model)
    assert twin is not model
    assert twin.get_params() == model.get_params()
    assert twin.set_params(h=3, guidance="quantile").get_params()["h"] == 3
    assert model.h == 6
    with pytest.raises(ValueError, match="Invalid parameter 'colour'"):
        model.set_params(colour="red")


def test_the_constructor_only_stores():
    # scikit-learn's rule: nothing is checked or changed before fit.
    model = TSDiff(h=-1, lags=[3, 2])
    assert (model.h, model.lags) == (-1, [3, 2])
    assert "h=-1" in repr(model)


def test_fit_returns_the_estimator_and_leaves_its_parameters(tiny, daily):
    model = tiny(max_steps=1)
    before = dict(model.get_params())
    assert model.fit(daily) is model
    assert model.get_params() == before


def test_a_fitted_estimator_can_be_fitted_again(tiny, daily):
    model = tiny(max_steps=1).fit(daily)
    other = daily.assign(y=100 + daily["y"])
    model.fit(other)
    fresh = tiny(max_steps=1).fit(other)
    pd.testing.assert_frame_equal(model.predict(), fresh.predict(), check_exact=True)


def test_a_fit_that_fails_leaves_the_fitted_model_as_it_was(tiny, daily):
    model = tiny(max_steps=1).fit(daily)
    before = model.predict()
    with pytest.raises(ValueError, match="no rows"):
        model.fit(daily.iloc[:0])
    pd.testing.assert_frame_equal(model.predict(), before, check_exact=True)


def test_training_leaves_the_global_generators_alone(tiny, daily):
    torch.manual_seed(5)
    np.random.seed(5)
    expected = torch.rand(1), np.random.rand()
    torch.manual_seed(5)
    np.random.seed(5)
    tiny(max_steps=2).fit(daily).predict()
    assert (torch.rand(1), np.random.rand()) == expected


def test_a_copy_and_a_pickle_forecast_the_same(model, daily):
    own = model.predict(daily)
    for again in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        pd.testing.assert_frame_equal(again.predict(daily), own, check_exact=True)


# --- training ----------------------------------------------------------------------------------
def test_the_record_of_the_training_says_what_was_done(tiny, daily):
    record = tiny(max_steps=4).fit(daily).training_
    assert record["steps"] == 4
    assert record["windows"] == 3 * 67
    assert (record["series"], record["left_out"], record["seed"]) == (3, 0, 0)
    assert record["loss"] > 0


def test_training_lowers_the_loss(tiny, daily):
    # Published settings: a network that knows nothing has the loss of the noise, 1, and more.
    settings = {"preset": "paper", "learning_rate": 1e-2, "lags": None}
    settings["network_settings"] = {"hidden": 8, "blocks": 1, "state_size": 8}
    assert tiny(max_steps=1, **settings).fit(daily).training_["loss"] > 0.9
    assert tiny(max_steps=80, **settings).fit(daily).training_["loss"] < 0.6


def test_minutes_end_the_training(tiny, daily):
    model = tiny(max_steps=100_000, max_minutes=0.5 / 60).fit(daily)
    assert 1 <= model.training_["steps"] < 100_000
    assert len(model.predict()) == 18


class _Stop(Exception):
    pass


def _die_at(monkeypatch, number, how):
    step = DiffusionModule.training_step

    def dying(self, batch, batch_idx):
        loss = step(self, batch, batch_idx)
        if self.trainer.global_step == number:
            how()
        return loss

    monkeypatch.setattr(DiffusionModule, "training_step", dying)


def _raise():
    raise _Stop


def test_a_killed_run_that_is_resumed_is_the_uninterrupted_one(tiny, daily, tmp_path, monkeypatch):
    # 201 windows in batches of 32: epochs of 6 steps; checkpoints fall inside them.
    settings = {"max_steps": 14, "batch_size": 32, "checkpoint_every": 4, "learning_rate": 1e-2}
    whole = tiny(**settings).fit(daily)
    with monkeypatch.context() as patch:
        _die_at(patch, 10, _raise)
        with pytest.raises(_Stop):
            tiny(**settings).fit(daily, out=tmp_path)
    stored = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert stored["global_step"] == 8
    resumed = tiny(**settings).fit(daily, out=tmp_path, resume=True)
    expected = whole.denoiser_.network.state_dict()
    for name, value in resumed.denoiser_.network.state_dict().items():
        assert torch.equal(value, expected[name]), name
    assert resumed.refinement_time_ == whole.refinement_time_
    pd.testing.assert_frame_equal(resumed.predict(), whole.predict(), check_exact=True)


def test_ctrl_c_keeps_a_checkpoint_of_the_step_in_progress(tiny, daily, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        _die_at(patch, 5, lambda: signal.raise_signal(signal.SIGINT))
        with pytest.raises(KeyboardInterrupt):
            tiny(max_steps=50).fit(daily, out=tmp_path)
    stored = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert stored["global_step"] == 6
    resumed = tiny(max_steps=50).fit(daily, out=tmp_path, resume=True)
    whole = tiny(max_steps=50).fit(daily)
    pd.testing.assert_frame_equal(resumed.predict(), whole.predict(), check_exact=True)


def test_a_folder_with_a_run_is_not_overwritten(tiny, daily, tmp_path):
    tiny(max_steps=2).fit(daily, out=tmp_path)
    with pytest.raises(CheckpointError, match="already holds a training run"):
        tiny(max_steps=2).fit(daily, out=tmp_path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"hidden": 16}, "run of another model"),
        ({"random_state": 4}, "seed = 0"),
        ({"batch_size": 8}, "batch_size = 16"),
    ],
    ids=str,
)
def test_a_run_is_resumed_with_its_own_settings_alone(tiny, daily, tmp_path, change, words):
    tiny(max_steps=2).fit(daily, out=tmp_path)
    with pytest.raises(CheckpointError, match=words):
        tiny(max_steps=4, **change).fit(daily, out=tmp_path, resume=True)


def test_a_run_is_resumed_with_its_own_series_alone(tiny, daily, tmp_path):
    tiny(max_steps=2).fit(daily, out=tmp_path)
    with pytest.raises(CheckpointError, match="size = 201"):
        tiny(max_steps=4).fit(daily.drop(daily.index[89]), out=tmp_path, resume=True)
    # As many windows, of other values.
    with pytest.raises(CheckpointError, match=r"digest = .*the same records"):
        other = daily.assign(y=daily["y"] + np.arange(270) % 5)
        tiny(max_steps=4).fit(other, out=tmp_path, resume=True)


# --- synthesis ---------------------------------------------------------------------------------
def test_synthetic_series_have_the_length_and_columns_of_windows(model):
    frame = model.synthesize(4)
    assert list(frame.columns) == ["unique_id", "ds", "y"]
    assert list(frame["unique_id"].unique()) == [f"synthetic-{i}" for i in range(4)]
    assert list(frame["ds"].iloc[:24]) == list(range(24))
    assert len(frame) == 4 * 24


def test_synthetic_series_are_in_units_of_the_data(model):
    # Levels 10, 20 and 30, deviations of 2.1; scaled, level 0 and deviation 1.
    windows = model.synthetic_windows(200, seed=1)
    levels = windows.mean(1)
    assert all(np.abs(levels - centre).min() < 0.5 for centre in (10, 20, 30))
    assert 8 < levels.min() < levels.max() < 32
    assert windows.std(1).mean() == pytest.approx(2.1, abs=0.4)
    scaled = model.synthetic_windows(200, seed=1, scaled=True)
    assert np.abs(scaled.mean()) < 0.2
    assert scaled.std() == pytest.approx(1, abs=0.15)


def test_synthetic_series_repeat_by_seed_and_go_on_from_fewer(model):
    own = model.synthesize(5, random_state=3)
    pd.testing.assert_frame_equal(own, model.synthesize(5, random_state=3), check_exact=True)
    assert not np.isclose(own["y"], model.synthesize(5, random_state=4)["y"]).any()
    few, many = (model.synthetic_windows(n, 3, scaled=True) for n in (3, 150))
    np.testing.assert_allclose(few, many[:3], atol=1e-5)  # other batches round differently


def test_synthetic_series_can_train_a_model(model, tiny):
    own = tiny(max_steps=1, context=12).fit(model.synthesize(6))
    assert own.freq_ == 1
    assert len(own.predict()) == 6 * 6


@pytest.mark.parametrize("n", [0, -1, 1.5])
def test_a_number_of_series_that_is_none_is_refused(model, n):
    with pytest.raises(ValueError, match="n must be a whole number"):
        model.synthesize(n)


# --- pictures ----------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "layout",
    [
        *("long", "wide", "wide in a column", "series", "ids on the index", "times on the index"),
        *("two levels", "periods", "integers", "no id", "columns of two levels"),
    ],
)
def test_every_layout_is_drawn(model, tiny, daily, wide, layout):
    frame = {
        "long": daily,
        "wide": wide,
        "wide in a column": wide.reset_index(),
        "series": wide["a"],
        "columns of two levels": pd.concat({"all": wide}, axis=1),
        "ids on the index": daily.set_index("unique_id"),
        "times on the index": daily.set_index("ds").rename_axis(None),
        "two levels": daily.set_index(["ds", "unique_id"]),
        "periods": daily.assign(ds=daily["ds"].dt.to_period("D")),
        "integers": daily.assign(ds=daily.groupby("unique_id").cumcount()),
        "no id": daily.loc[daily["unique_id"] == "a", ["ds", "y"]],
    }[layout]
    if layout == "integers":
        model = tiny(max_steps=1).fit(frame)
    forecast = model.predict(frame, level=[80, 95])
    count = 1 if layout in ("series", "no id") else 3
    for figure in (
        model.plot(forecast, frame),
        model.plot(None, frame, level=80),
        model.plot(model.cross_validation(frame, level=80), frame),
    ):
        drawn = [ax for ax in figure.axes if ax.has_data()]
        assert len(drawn) == count
        lines = {line.get_label(): line for line in drawn[0].lines}
        assert len(lines["forecast"].get_ydata()) == 6
        assert lines["history"].get_ydata().size > 6
        plt.close(figure)
