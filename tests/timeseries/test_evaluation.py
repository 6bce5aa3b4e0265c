"""The evaluation suite: every row is what its part says by itself, and bad calls are named."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from structdiff.errors import StructDiffError
from structdiff.timeseries import Panel, Refinement, TSDiff, evaluate
from structdiff.timeseries.baselines import last_value, seasonal_naive
from structdiff.timeseries.metrics import evaluate_forecasts, mean_weighted_quantile_loss
from structdiff.timeseries.missing import SCENARIOS, hide
from structdiff.timeseries.synthetic import (
    last_windows,
    linear_predictive_score,
    real_windows,
)

H, CONTEXT, PATHS = 4, 12, 8
OFF = {"refine": None, "synthetic": 0, "scenarios": (), "progress": False}


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    """Three series with a week: 90, 80 and 70 days."""
    parts = []
    for k, n in enumerate((90, 80, 70)):
        days = np.arange(n)
        noise = np.random.default_rng(k).standard_normal(n)
        y = 20 + 5 * k + 4 * np.sin(2 * np.pi * days / 7) + noise
        times = pd.date_range("2024-01-01", periods=n, freq="D")
        parts.append(pd.DataFrame({"unique_id": "abc"[k], "ds": times, "y": y}))
    return pd.concat(parts, ignore_index=True)


def known(frame: pd.DataFrame) -> pd.DataFrame:
    """The training part: without the last three horizons."""
    return frame.groupby("unique_id", sort=False).head(60).reset_index(drop=True)


@pytest.fixture(scope="module")
def model(frame) -> TSDiff:
    settings = {"hidden": 8, "blocks": 1, "state_size": 8, "max_steps": 3, "steps": 3}
    made = TSDiff(H, context=CONTEXT, n_samples=PATHS, random_state=0, progress=False, **settings)
    return made.fit(known(frame))


@pytest.fixture(scope="module")
def panel(model, frame) -> Panel:
    return model.panel_of(frame)


@pytest.fixture(scope="module")
def table(model, frame) -> pd.DataFrame:
    return evaluate(model, frame, synthetic=40, progress=False)


def row(table: pd.DataFrame, task: str, variant: str) -> pd.Series:
    chosen = table[(table["task"] == task) & (table["variant"] == variant)]
    assert len(chosen) == 1
    return chosen.iloc[0]


def stacked(values: list[np.ndarray]) -> np.ndarray:
    return np.stack(values)


# --- what the rows say ------------------------------------------------------------------------
def test_there_is_a_row_for_every_test_of_the_paper(table) -> None:
    assert list(zip(table["task"], table["variant"], strict=True)) == [
        ("forecast", "full"),
        ("forecast", "seasonal naive"),
        ("forecast", "random walk"),
        *(("missing", scenario) for scenario in SCENARIOS),
        ("refine", "seasonal naive/before"),
        ("refine", "seasonal naive/after"),
        ("synthesis", "ridge"),
        ("synthesis", "ridge-real"),
    ]


def test_the_scores_are_those_of_the_metrics(model, panel, table) -> None:
    cut = panel.cut(H)
    paths = stacked(model.panel_paths(cut, H, PATHS, 0))
    wanted = evaluate_forecasts(paths, stacked(panel.tail(H).values), cut.values, 7)
    np.testing.assert_array_equal(
        row(table, "forecast", "full")[wanted.index].to_numpy(float), wanted.to_numpy()
    )


def test_the_crps_of_the_forecast_is_the_models_own_score(model, frame, table) -> None:
    # The model's random_state and the default seed are both 0.
    assert row(table, "forecast", "full")["mean_wQuantileLoss"] == model.score(frame)


def test_seasonal_naive_repeats_the_last_week(panel, table) -> None:
    points = stacked([y[-H - 7 : -H - 7 + H] for y in panel.values])  # H < 7
    wanted = mean_weighted_quantile_loss(points[:, None], stacked(panel.tail(H).values))
    assert row(table, "forecast", "seasonal naive")["mean_wQuantileLoss"] == pytest.approx(wanted)


def test_a_random_walk_forecasts_a_random_walk_best(model, frame) -> None:
    # 40 walks of unit steps: the interval that the walk itself predicts holds 80 % of the ends,
    # up to 4 binomial deviations of 160 dependent points counted as 40.
    steps = np.random.default_rng(1).standard_normal((40, 60)).cumsum(1) + 100
    days = pd.date_range("2024-01-01", periods=60, freq="D")
    walks = pd.DataFrame(steps.T, index=days, columns=[f"w{i}" for i in range(40)])
    scores = evaluate(model, walks, n_samples=100, **OFF)
    found = row(scores, "forecast", "random walk")
    assert found["mean_wQuantileLoss"] < row(scores, "forecast", "full")["mean_wQuantileLoss"]
    assert abs(found["coverage_80"] - 0.8) < 4 * np.sqrt(0.8 * 0.2 / 40)


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_missing_values_are_hidden_from_the_model_and_not_from_the_score(
    model, panel, table, scenario
) -> None:
    hidden = hide(panel.cut(H), scenario, CONTEXT, None, 0)
    paths = stacked(model.panel_paths(hidden, H, PATHS, 0))
    wanted = mean_weighted_quantile_loss(paths, stacked(panel.tail(H).values))
    # Sums over entries in another order.
    found = row(table, "missing", scenario)["mean_wQuantileLoss"]
    assert found == pytest.approx(wanted, rel=1e-12)


def test_the_number_of_hidden_points_is_the_callers(model, panel, frame) -> None:
    asked = evaluate(model, frame, **{**OFF, "scenarios": ["BM-E"]}, hidden=3)
    paths = stacked(model.panel_paths(hide(panel.cut(H), "BM-E", CONTEXT, 3), H, PATHS, 0))
    wanted = mean_weighted_quantile_loss(paths, stacked(panel.tail(H).values))
    found = row(asked, "missing", "BM-E")["mean_wQuantileLoss"]
    assert found == pytest.approx(wanted, rel=1e-12)


def test_ratios_are_to_the_forecast_from_the_whole_context(table) -> None:
    full = row(table, "forecast", "full")["mean_wQuantileLoss"]
    some = table[table["task"].isin(["forecast", "missing"])]
    np.testing.assert_allclose(some["ratio"], some["mean_wQuantileLoss"] / full, rtol=1e-12)


def test_gain_is_the_share_that_refinement_takes_away(model, panel, table) -> None:
    cut = panel.cut(H)
    base = [seasonal_naive(y, H, 7) for y in cut.values]
    paths = stacked(model.refined_paths(cut, base, Refinement(), PATHS, 0))
    after = mean_weighted_quantile_loss(paths, stacked(panel.tail(H).values))
    before = row(table, "refine", "seasonal naive/before")["mean_wQuantileLoss"]
    found = row(table, "refine", "seasonal naive/after")
    assert found["mean_wQuantileLoss"] == pytest.approx(after, rel=1e-12)
    assert found["gain"] == pytest.approx(1 - after / before)
    assert table["gain"].notna().sum() == 1


def test_the_ridge_is_trained_on_the_models_windows(model, panel, table) -> None:
    windows = model.synthetic_windows(40, 0)
    wanted = linear_predictive_score(windows, last_windows(panel, CONTEXT, H), CONTEXT)
    assert row(table, "synthesis", "ridge")["mean_wQuantileLoss"] == wanted


def test_the_reference_ridge_sees_the_training_frame_alone(model, panel, table) -> None:
    tests = last_windows(panel, CONTEXT, H)
    each = [
        linear_predictive_score(real_windows(model.panel_, CONTEXT, H, 40, seed), tests, CONTEXT)
        for seed in range(3)
    ]
    assert row(table, "synthesis", "ridge-real")["mean_wQuantileLoss"] == pytest.approx(
        np.mean(each)
    )


def test_a_model_without_a_training_frame_is_compared_with_what_came_before(
    model, panel, frame, tmp_path
) -> None:
    model.save_pretrained(tmp_path)
    loaded = TSDiff.from_pretrained(tmp_path)
    found = evaluate(loaded, frame, refine=None, scenarios=(), synthetic=20, progress=False)
    tests = last_windows(panel, CONTEXT, H)
    each = [
        linear_predictive_score(real_windows(panel.cut(H), CONTEXT, H, 20, seed), tests, CONTEXT)
        for seed in range(3)
    ]
    assert row(found, "synthesis", "ridge-real")["mean_wQuantileLoss"] == pytest.approx(
        np.mean(each)
    )


def test_evaluations_are_counted_for_each_path(table) -> None:
    # 3 steps of DPM-Solver++, one evaluation each; 20 iterations of refinement.
    sampled = table[table["task"].isin(["forecast", "missing"])].set_index("variant")
    assert sampled["evaluations"].drop(["seasonal naive", "random walk"]).tolist() == [3.0] * 4
    assert sampled["evaluations"][["seasonal naive", "random walk"]].tolist() == [0.0, 0.0]
    assert row(table, "refine", "seasonal naive/after")["evaluations"] == 20
    assert row(table, "synthesis", "ridge")["evaluations"] == 3


def test_counting_leaves_no_hook_behind(model, table) -> None:
    assert not model.denoiser_.network._forward_pre_hooks


def test_every_row_was_timed(table) -> None:
    assert (table["seconds"] > 0).all()


# --- cut-offs and series ----------------------------------------------------------------------
def test_two_windows_are_scored_together(model, panel, frame) -> None:
    found = evaluate(model, frame, n_windows=2, step_size=3, **OFF)
    first, last = panel.cut(3 + H), panel.cut(H)
    targets = stacked([*panel.cut(3).tail(H).values, *panel.tail(H).values])
    points = stacked([seasonal_naive(y, H, 7) for y in [*first.values, *last.values]])
    wanted = mean_weighted_quantile_loss(points[:, None], targets)
    score = row(found, "forecast", "seasonal naive")["mean_wQuantileLoss"]
    assert score == pytest.approx(wanted, rel=1e-12)


def test_rows_by_series_are_those_of_each_series_alone(model, frame) -> None:
    settings = {**OFF, "scenarios": ["RM"], "refine": {"last": "last_value"}, "synthetic": 20}
    found = evaluate(model, frame, by_series=True, **settings)
    alone = evaluate(model, frame[frame["unique_id"] == "b"], by_series=True, **settings)
    pick = found[found["series"] == "b"].drop(columns="seconds").reset_index(drop=True)
    same = alone[alone["series"] == "b"].drop(columns="seconds").reset_index(drop=True)
    pd.testing.assert_frame_equal(pick, same)
    assert found["series"].isna().sum() == 2  # the two ridges have no series


def test_a_panel_is_scored_as_its_frame(model, panel, frame) -> None:
    one, other = (evaluate(model, df, **OFF).drop(columns="seconds") for df in (panel, frame))
    pd.testing.assert_frame_equal(one, other)


def test_the_same_seed_gives_the_same_table_and_another_seed_another(model, frame, table) -> None:
    again = evaluate(model, frame, synthetic=40, progress=False).drop(columns="seconds")
    pd.testing.assert_frame_equal(again, table.drop(columns="seconds"))
    other = evaluate(model, frame, seed=1, **OFF)
    assert (
        row(other, "forecast", "random walk")["mean_wQuantileLoss"]
        != row(table, "forecast", "random walk")["mean_wQuantileLoss"]
    )


def test_the_caller_keeps_frame_and_model_as_they_were(model, frame) -> None:
    before, parameters = frame.copy(), model.get_params()
    evaluate(model, frame, **OFF)
    pd.testing.assert_frame_equal(frame, before)
    assert model.get_params() == parameters


# --- bases ------------------------------------------------------------------------------------
def test_a_base_may_be_a_name_a_function_or_a_frame(model, panel, frame) -> None:
    cut = panel.cut(H)
    points = cut.restore({"theirs": [last_value(y, H) for y in cut.values]}, cut.future(H))
    bases = {"name": "last_value", "function": last_value, "frame": points}
    found = evaluate(model, frame, **{**OFF, "refine": bases})
    each = [row(found, "refine", f"{label}/after") for label in bases]
    assert len({one["mean_wQuantileLoss"] for one in each}) == 1


def test_several_refinements_share_one_base(model, frame) -> None:
    two = {"still": Refinement(iterations=0), "ml": Refinement(method="ml", iterations=2)}
    found = evaluate(model, frame, **{**OFF, "refine": {"last": "last_value"}}, refinements=two)
    assert found["variant"].tolist()[3:] == ["last/before", "last/still", "last/ml"]
    # Without a step nothing changes but by the rounding of scaling to and fro.
    assert row(found, "refine", "last/still")["gain"] == pytest.approx(0, abs=1e-5)


# --- train on synthetic -----------------------------------------------------------------------
def test_downstream_forecasters_stand_beside_their_reference(model, frame) -> None:
    tiny = {"deepar": {"max_steps": 2}}
    found = evaluate(model, frame, **{**OFF, "synthetic": 40}, downstream=tiny, n_samples=5)
    one, other = row(found, "synthesis", "deepar"), row(found, "synthesis", "deepar-real")
    assert one["ratio"] == one["mean_wQuantileLoss"] / other["mean_wQuantileLoss"]
    assert np.isfinite(one["wEnergyScore"]) and other["ratio"] == 1


# --- what is refused --------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"scenarios": ["BM"]}, "scenario 'BM' is not one of RM, BM-B, BM-E"),
        ({"refine": {"x": "arima"}}, "base 'arima' is not one of seasonal_naive, last_value"),
        ({"refine": {"x": 3}}, "base 'x' is int"),
        ({"refine": {"x": lambda y, h: y[:2]}}, r"base 'x', series 'a': .* got the shape \(2,\)"),
        ({"refine": {"x": "last_value"}, "refinements": {}}, "refine=None leaves refinement out"),
        ({"downstream": ["lstm"], "synthetic": 9}, "'lstm' is not one of deepar, transformer"),
        ({"downstream": ["deepar"]}, "synthetic is 0"),
        ({"synthetic": -2}, "synthetic must be a whole number"),
        ({"h": 2, "synthetic": 5}, "the model's own horizon, 4, not h=2"),
        ({"h": 2, "refine": {"x": "last_value"}}, "pass refine=None, synthetic=0"),
        ({"seed": -1}, "seed=-1"),
        ({"n_windows": 30}, "take fewer windows"),
        ({"seasonality": 0}, "seasonality must be a whole number"),
    ],
)
def test_a_wrong_option_is_named(model, frame, settings, message) -> None:
    with pytest.raises(StructDiffError, match=message):
        evaluate(model, frame, **{**OFF, **settings})


def test_series_of_another_frequency_are_refused(model) -> None:
    hours = pd.date_range("2024-01-01", periods=60, freq="h")
    other = TSDiff(H, freq="h").set_params(progress=False)
    panel = other._read(pd.DataFrame({"unique_id": "a", "ds": hours, "y": 1.0}), "h")
    with pytest.raises(StructDiffError, match=r"frequency 'h', the model was fitted to 'D'"):
        evaluate(model, panel, **OFF)


def test_evaluation_needs_series(model) -> None:
    with pytest.raises(StructDiffError, match="not fitted to: pass them as df"):
        evaluate(model, None, **OFF)


def test_a_shorter_horizon_is_scored_where_only_forecasts_are_asked_for(model, frame) -> None:
    found = evaluate(model, frame, h=2, **{**OFF, "scenarios": ["RM"]})
    assert len(found) == 4 and np.isfinite(found["mean_wQuantileLoss"]).all()
