"""TSDiff as gluonts' estimator and predictor, judged by gluonts' own tools."""

import importlib
import inspect
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from gluonts.core.serde import dump_json, load_json
from gluonts.dataset.common import ListDataset
from gluonts.dataset.pandas import PandasDataset
from gluonts.dataset.split import split
from gluonts.dataset.util import forecast_start
from gluonts.ev.metrics import MSE, MeanWeightedSumQuantileLoss
from gluonts.evaluation import Evaluator, make_evaluation_predictions
from gluonts.model import evaluate_model
from gluonts.model.forecast import SampleForecast
from gluonts.model.predictor import Predictor

from structdiff.errors import CheckpointError, StructDiffError
from structdiff.samplers import get_sampler
from structdiff.timeseries import TSDiff
from structdiff.timeseries.gluonts import (
    TSDiffEstimator,
    TSDiffPredictor,
    panel_of_dataset,
    predictor_of,
)
from structdiff.timeseries.metrics import mean_weighted_quantile_loss

torch.set_num_threads(1)

TINY = {"hidden": 4, "blocks": 1, "state_size": 4, "max_steps": 3, "context": 36, "n_samples": 6}
TINY |= {"random_state": 0, "progress": False, "accelerator": "cpu"}
LEVELS = [k / 10 for k in range(1, 10)]


def entry(name, length, phase, **more):
    hours = np.arange(length)
    target = (10 + np.sin(2 * np.pi * (hours + phase) / 24)).astype(np.float32)
    start = pd.Period("2024-01-01 05:00", freq="h") + phase
    return {"item_id": name, "start": start, "target": target, **more}


@pytest.fixture(scope="module")
def entries():
    return [entry(name, 100 + 7 * i, 3 * i, info={"n": i}) for i, name in enumerate("cab")]


@pytest.fixture(scope="module")
def predictor(entries):
    return TSDiffEstimator("h", 12, **TINY).train(entries)


def samples(predictor, dataset, **options):
    return [forecast.samples for forecast in predictor.predict(dataset, **options)]


# --- forecasts -------------------------------------------------------------------------------


def test_a_forecast_is_of_its_entry(predictor, entries):
    for made, given in zip(predictor.predict(entries), entries, strict=True):
        assert isinstance(made, SampleForecast)
        assert made.samples.shape == (6, 12) and np.isfinite(made.samples).all()
        assert made.start_date == forecast_start(given)
        assert made.start_date.freq == given["start"].freq
        assert (made.item_id, made.info) == (given["item_id"], given["info"])


def test_the_number_of_samples_is_the_callers(predictor, entries):
    assert [s.shape for s in samples(predictor, entries[:1], num_samples=3)] == [(3, 12)]


def test_forecasts_are_made_as_they_are_asked_for(predictor, entries):
    seen = []
    forecasts = predictor.predict(seen.append(e["item_id"]) or e for e in entries)
    assert seen == []
    assert [next(forecasts).item_id for _ in range(2)] == ["c", "a"] == seen


def test_samples_do_not_depend_on_the_other_entries(predictor, entries):
    together = samples(predictor, entries)
    for alone, other in zip(reversed(entries), reversed(together), strict=True):
        np.testing.assert_array_equal(samples(predictor, [alone])[0], other)


def test_entries_without_an_id_have_noise_of_their_own(predictor, entries):
    nameless = [{k: v for k, v in e.items() if k != "item_id"} for e in entries[:2]]
    first, second = samples(predictor, nameless)
    np.testing.assert_array_equal(samples(predictor, nameless[1:])[0], second)
    noise = [s - np.median(s, axis=0) for s in (first, second)]
    assert abs(np.corrcoef(noise[0].ravel(), noise[1].ravel())[0, 1]) < 0.5


def test_the_samples_are_those_of_the_series_in_a_frame(predictor, entries):
    one = entries[1]
    times = pd.period_range(one["start"], periods=107, freq="h").to_timestamp()
    frame = pd.DataFrame({"unique_id": "a", "ds": times, "y": one["target"]})
    paths = predictor.model.sample_paths(frame)["TSDiff"].to_numpy().reshape(6, 12)
    np.testing.assert_array_equal(samples(predictor, [one])[0], paths)


def test_a_predictor_without_a_seed_draws_afresh(predictor, entries):
    free = predictor_of(TSDiff.set_params(predictor.model, random_state=None))
    try:
        assert (samples(free, entries[:1])[0] != samples(free, entries[:1])[0]).any()
    finally:
        predictor.model.set_params(random_state=0)


def test_missing_values_are_guided_around(predictor, entries):
    # The series runs from 9 to 11; zeros in the place of the gap would pull the paths down.
    gap = {**entries[0], "target": entries[0]["target"].copy()}
    gap["target"][-20:-10] = np.nan
    zeros = {**gap, "target": np.nan_to_num(gap["target"])}
    drawn, pulled = (samples(predictor, [e], num_samples=50)[0] for e in (gap, zeros))
    assert np.abs(np.median(drawn, axis=0) - 10).max() < 2
    assert np.abs(np.median(pulled, axis=0) - 10).max() > 4


def test_a_past_shorter_than_the_context_is_enough(predictor):
    short = entry("short", 5, 0)
    made = next(predictor.predict([short]))
    assert made.samples.shape == (6, 12) and np.isfinite(made.samples).all()
    assert made.start_date == short["start"] + 5


def test_a_lead_time_moves_the_forecast(predictor, entries):
    later = predictor_of(predictor.model, lead_time=4)
    assert later.prediction_length == 8
    made, whole = next(later.predict(entries)), samples(predictor, entries)[0]
    np.testing.assert_array_equal(made.samples, whole[:, 4:])
    assert made.start_date == forecast_start(entries[0]) + 4


def test_a_longer_horizon_than_the_models_is_reached(predictor, entries):
    longer = predictor_of(predictor.model, prediction_length=30)
    assert samples(longer, entries[:1])[0].shape == (6, 30)


def test_what_was_given_is_not_changed(predictor, entries):
    before = {k: np.copy(v) if k == "target" else v for k, v in entries[0].items()}
    samples(predictor, entries[:1])
    np.testing.assert_array_equal(entries[0]["target"], before["target"])
    assert entries[0].keys() == before.keys()


# --- gluonts' own evaluation -----------------------------------------------------------------


@pytest.mark.parametrize("paths", [1, 9, 100])
def test_gluonts_evaluator_gives_our_crps(predictor, entries, paths):
    """Both are mean_wQuantileLoss; a NaN target counts in neither."""
    holes = [{**e, "target": e["target"].copy()} for e in entries]
    holes[0]["target"][-3] = np.nan
    made, series = make_evaluation_predictions(holes, predictor, num_samples=paths)
    made, series = list(made), list(series)
    total, _ = Evaluator(quantiles=LEVELS, num_workers=0)(series, made)
    truth = np.stack([s.to_numpy()[-12:, 0] for s in series])
    ours = mean_weighted_quantile_loss(np.stack([f.samples for f in made]), truth)
    assert np.isnan(truth).sum() == 1
    assert abs(total["mean_wQuantileLoss"] - ours) < 1e-9


def test_evaluate_model_gives_our_crps(predictor, entries):
    _, template = split(entries, offset=-24)
    test = template.generate_instances(prediction_length=12, windows=2)
    metrics = [MeanWeightedSumQuantileLoss(LEVELS), MSE()]
    table = evaluate_model(predictor, test_data=test, metrics=metrics)
    paths = np.stack(samples(predictor, test.input))
    truth = np.stack([label["target"] for label in test.label])
    ours = mean_weighted_quantile_loss(paths, truth)
    assert abs(table["mean_weighted_sum_quantile_loss"].item() - ours) < 1e-9


# --- storage ---------------------------------------------------------------------------------


def test_a_predictor_comes_back_equal(predictor, entries, tmp_path):
    predictor.serialize(tmp_path)
    again = Predictor.deserialize(tmp_path)
    assert type(again) is TSDiffPredictor and again == predictor
    for one, other in zip(again.predict(entries), predictor.predict(entries), strict=True):
        np.testing.assert_array_equal(one.samples, other.samples)


def test_a_stored_predictor_holds_json_and_safetensors_only(predictor, tmp_path):
    predictor.serialize(tmp_path)
    files = {f.relative_to(tmp_path).as_posix() for f in tmp_path.rglob("*") if f.is_file()}
    assert files == {
        "gluonts-config.json",
        "predictor.json",
        "model/config.json",
        "model/model.safetensors",
    }


def test_other_weights_are_another_predictor(predictor, entries):
    other = TSDiffEstimator("h", 12, **TINY | {"random_state": 1}).train(entries)
    same = TSDiffPredictor(other.model.set_params(random_state=0), 12)
    assert same._settings() == predictor._settings() and same != predictor


def test_a_damaged_folder_is_named(predictor, tmp_path):
    predictor.serialize(tmp_path)
    (tmp_path / "predictor.json").write_text('{"horizon": 3}')
    with pytest.raises(CheckpointError, match=r"predictor\.json"):
        Predictor.deserialize(tmp_path)


def test_a_sampler_object_is_not_stored_as_another(predictor, tmp_path):
    predictor.model.set_params(sampler=get_sampler("ddim", 5))
    try:
        with pytest.raises(StructDiffError, match="by name"):
            predictor.serialize(tmp_path)
    finally:
        predictor.model.set_params(sampler=None)


# --- the estimator ---------------------------------------------------------------------------


def test_the_estimator_has_the_models_parameters():
    ours = inspect.signature(TSDiff.__init__).parameters
    theirs = inspect.signature(TSDiffEstimator.__init__).parameters
    frames_only = {"h", "freq", "fill_gaps", "snap", "id_col", "time_col", "target_col"}
    own = {"freq", "prediction_length", "lead_time"}
    assert set(ours) - frames_only == set(theirs) - own
    for name in set(theirs) - own - {"self"}:
        assert theirs[name].default == ours[name].default


def test_every_parameter_reaches_the_model():
    changed = {
        **{"context": 5, "lags": [1], "scaling": "mean", "preset": "paper", "kernel": "s4"},
        **{"hidden": 1, "blocks": 2, "state_size": 3, "network_settings": {"init_skip": True}},
        **{"guidance": "quantile", "guidance_scale": 2.0, "sampler": "ddim", "steps": 4},
        **{"n_samples": 5, "batch_size": 6, "max_steps": 7, "max_minutes": 8.0},
        **{"learning_rate": 0.1, "checkpoint_every": 9, "accelerator": "cpu"},
        **{"random_state": 10, "progress": False},
    }
    model = TSDiffEstimator("h", 12, **changed).model
    assert {k: v for k, v in model.get_params().items() if k in changed} == changed


def test_an_estimator_is_one_of_gluonts_components():
    estimator = TSDiffEstimator.from_hyperparameters(freq="H", prediction_length="12", **TINY)
    assert load_json(dump_json(estimator)).__init_args__ == estimator.__init_args__
    assert estimator.prediction_length == 12


def test_validation_data_is_scored(entries):
    predictor = TSDiffEstimator("h", 12, **TINY).train(entries, entries[:2])
    known = [{**e, "target": e["target"][:-12]} for e in entries[:2]]
    truth = np.stack([e["target"][-12:] for e in entries[:2]])
    ours = mean_weighted_quantile_loss(np.stack(samples(predictor, known)), truth)
    assert predictor.model.training_["validation_crps"] == pytest.approx(ours, rel=1e-12)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        *[("H", "h"), ("h", "h"), ("T", "min"), ("15T", "15min"), ("D", "D"), ("B", "B")],
        *[("M", "M"), ("ME", "M"), ("MS", "M"), ("Q", "Q"), ("QE", "Q-DEC"), ("W", "W-SUN")],
        *[("A", "Y-DEC"), ("YE", "Y-DEC")],
    ],
)
def test_old_and_new_frequency_names_are_one(ours, theirs):
    given = {"item_id": "a", "start": pd.Period("2024-01-02", freq=theirs), "target": np.ones(4)}
    panel = panel_of_dataset([given], ours)
    assert len(panel.times[0]) == 4
    assert panel.future(2)[0][0] == forecast_start(given)


def test_gluonts_own_datasets_are_read():
    hours = pd.date_range("2024-01-01", periods=50, freq="h")
    frame = pd.DataFrame({"a": np.arange(50.0), "b": np.ones(50)}, index=hours)
    listed = ListDataset([{"start": "2024-01-01", "target": [1, 2, 3], "item_id": "a"}], freq="h")
    assert panel_of_dataset(PandasDataset(dict(frame)), "h").ids == ["a", "b"]
    assert panel_of_dataset(listed, "H").values[0].tolist() == [1, 2, 3]


# --- bad input -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"target": np.ones((2, 50))}, r"entry 0 \('x'\): the target has shape \(2, 50\)"),
        ({"target": np.array([1.0, np.inf])}, r"entry 0 \('x'\): the target is inf at position 1"),
        ({"target": np.array(["a"])}, r"entry 0 \('x'\): the target is not numeric"),
        ({"target": np.ones(0)}, r"entry 0 \('x'\): the target is empty"),
        ({"target": np.full(90, np.nan)}, "series 'x': all of its last 36 values are missing"),
        ({"start": pd.Timestamp("2024-01-01")}, r"entry 0 \('x'\): start is Timestamp"),
        ({"start": pd.Period("2024-01-01", "D")}, "has the frequency 'D', the model 'h'"),
    ],
)
def test_bad_entries_are_named(predictor, change, message):
    with pytest.raises(StructDiffError, match=message):
        list(predictor.predict([{**entry("x", 90, 0), **change}]))


def test_an_empty_dataset_is_refused():
    with pytest.raises(StructDiffError, match="no entries"):
        TSDiffEstimator("h", 12, **TINY).train([])


def test_short_series_are_listed_and_left_out(entries):
    with pytest.warns(UserWarning, match=r"1 of 4 series .* left out: 'short'"):
        TSDiffEstimator("h", 12, **TINY).train([*entries, entry("short", 20, 0)])


def test_an_unknown_frequency_is_refused_at_once():
    with pytest.raises(StructDiffError, match="is not a frequency that pandas knows"):
        TSDiffEstimator("hourly", 12)


def test_integer_time_has_no_gluonts_frequency():
    frame = pd.DataFrame({"unique_id": "a", "ds": np.arange(80), "y": np.sin(np.arange(80.0))})
    model = TSDiff(h=12, freq=1, **TINY).fit(frame)
    with pytest.raises(StructDiffError, match="integer time"):
        predictor_of(model)


def test_an_unfitted_model_is_no_predictor():
    with pytest.raises(StructDiffError, match="not fitted"):
        predictor_of(TSDiff())


def test_without_gluonts_the_extra_is_named(monkeypatch):
    monkeypatch.delitem(sys.modules, "structdiff.timeseries.gluonts")
    monkeypatch.setitem(sys.modules, "gluonts.core.component", None)
    with pytest.raises(ImportError, match=r"pip install 'structdiff\[timeseries\]'"):
        importlib.import_module("structdiff.timeseries.gluonts")
