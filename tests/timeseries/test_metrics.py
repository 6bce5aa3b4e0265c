"""Forecast scores: equal to gluonts', equal to closed forms, honest about what was not observed."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from gluonts.evaluation import Evaluator
from gluonts.model.forecast import SampleForecast

from structdiff.errors import StructDiffError
from structdiff.timeseries.metrics import (
    QUANTILE_LEVELS,
    central_interval,
    energy_score,
    evaluate_each_series,
    evaluate_forecasts,
    mean_weighted_quantile_loss,
    probability_integral_transform,
    quantile_calibration,
    sample_crps,
    sample_quantiles,
    seasonal_error,
    weighted_quantile_loss,
)

HISTORY, HORIZON, SERIES, SEASON = 40, 7, 6, 5


def forecasts(samples: int, missing: float = 0.2) -> tuple[np.ndarray, np.ndarray, list]:
    """Random paths, targets with gaps (one entry without any target) and histories with gaps."""
    draw = np.random.default_rng(samples)
    level = draw.normal(3.0, 5.0, (SERIES, 1, 1))
    paths = level + draw.standard_normal((SERIES, samples, HORIZON))
    targets = level[:, 0] + 1.3 * draw.standard_normal((SERIES, HORIZON))
    targets[draw.random(targets.shape) < missing] = np.nan
    targets[2] = np.nan
    history = level[:, 0] + draw.standard_normal((SERIES, HISTORY))
    history[draw.random(history.shape) < missing / 2] = np.nan
    return paths, targets, list(history)


def gluonts_evaluator(paths, targets, history, quantiles=QUANTILE_LEVELS):
    """gluonts' own aggregate and per-series numbers."""
    start = pd.Period("2020-01-01", freq="D")
    index = pd.period_range(start, periods=HISTORY + HORIZON, freq="D")
    series = [
        pd.Series(np.concatenate([h, y]), index=index)
        for h, y in zip(history, targets, strict=True)
    ]
    made = [SampleForecast(samples=x, start_date=start + HISTORY) for x in paths]
    return Evaluator(quantiles=quantiles, num_workers=0, seasonality=SEASON)(series, made)


# ---------------------------------------------------------------- gluonts (card G7)


@pytest.mark.parametrize("samples", [1, 2, 6, 9, 11, 100])
@pytest.mark.parametrize("missing", [0.0, 0.4])
def test_mean_weighted_quantile_loss_is_that_of_gluonts(samples: int, missing: float) -> None:
    paths, targets, history = forecasts(samples, missing)
    theirs, _ = gluonts_evaluator(paths, targets, history)
    ours = mean_weighted_quantile_loss(paths, targets)
    assert ours == pytest.approx(theirs["mean_wQuantileLoss"], abs=1e-9, rel=0)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("samples", [1, 9, 100])
def test_mean_weighted_quantile_loss_is_that_of_gluonts_ev(samples: int) -> None:
    from gluonts.ev.metrics import MeanWeightedSumQuantileLoss

    paths, targets, _ = forecasts(samples)
    evaluator = MeanWeightedSumQuantileLoss(list(QUANTILE_LEVELS))(axis=None)
    quantile = [
        SampleForecast(samples=x, start_date=pd.Period("2020-01-01", freq="D")) for x in paths
    ]
    data = {str(q): np.stack([f.quantile(q) for f in quantile]) for q in QUANTILE_LEVELS}
    evaluator.update({"label": np.ma.masked_invalid(targets), **data})
    ours = mean_weighted_quantile_loss(paths, targets)
    assert ours == pytest.approx(float(evaluator.get()), abs=1e-9, rel=0)


@pytest.mark.parametrize("name", ["mean_wQuantileLoss", "ND", "NRMSE", "MASE"])
@pytest.mark.parametrize("samples", [1, 9, 100])
def test_evaluate_forecasts_is_gluonts_evaluator(samples: int, name: str) -> None:
    paths, targets, history = forecasts(samples)
    theirs, _ = gluonts_evaluator(paths, targets, history)
    ours = evaluate_forecasts(paths, targets, history, SEASON)
    assert ours[name] == pytest.approx(theirs[name], abs=1e-9, rel=0)


@pytest.mark.parametrize("name", ["ND", "MASE"])
def test_scores_of_each_series_are_those_of_gluonts(name: str) -> None:
    paths, targets, history = forecasts(9)
    _, theirs = gluonts_evaluator(paths, targets, history)
    ours = evaluate_each_series(paths, targets, history, SEASON)
    np.testing.assert_allclose(ours[name], theirs[name], atol=1e-9, rtol=0)


def test_seasonal_error_is_that_of_gluonts_for_a_history_shorter_than_a_season() -> None:
    from gluonts.evaluation.metrics import calculate_seasonal_error

    y = np.array([1.0, 4.0, 2.0])
    assert seasonal_error(y, 24) == calculate_seasonal_error(y, seasonality=24) == 2.5


def test_a_sample_quantile_is_a_sample_with_halves_to_even() -> None:
    # S = 6: (S - 1) q = 2.5 at the median, and numpy rounds 2.5 to 2, 3.5 to 4.
    paths = np.arange(6.0)[None, ::-1, None]
    assert sample_quantiles(paths, (0.5, 0.7, 1.0)).ravel().tolist() == [2.0, 4.0, 5.0]


# ---------------------------------------------------------------- closed forms


def test_of_a_point_forecast_the_crps_of_the_tables_is_nd() -> None:
    paths, targets, _ = forecasts(1)
    scores = evaluate_forecasts(paths, targets)
    nd = np.nansum(np.abs(paths[:, 0] - targets)) / np.nansum(np.abs(targets))
    assert scores["mean_wQuantileLoss"] == pytest.approx(nd, rel=1e-12)
    assert scores["ND"] == pytest.approx(nd, rel=1e-12)


def test_sample_crps_is_the_energy_form_over_all_pairs() -> None:
    paths, targets, _ = forecasts(9)
    pairs = np.abs(paths[:, :, None] - paths[:, None]).sum(axis=(1, 2))
    error = np.abs(paths - targets[:, None]).mean(axis=1)
    np.testing.assert_allclose(sample_crps(paths, targets), error - pairs / 162, atol=1e-13)
    fair = sample_crps(paths, targets, fair=True)
    np.testing.assert_allclose(fair, error - pairs / 144, atol=1e-13)


def test_sample_crps_of_normal_quantiles_is_the_closed_form() -> None:
    # Gneiting and Raftery (2007), eq. 21, at y = 0.7: y (2 Phi(y) - 1) + 2 phi(y) - 1 / sqrt(pi).
    from scipy.stats import norm

    y, samples = 0.7, 20_000
    paths = norm.ppf((np.arange(samples) + 0.5) / samples)[None, :, None]
    closed = y * (2 * norm.cdf(y) - 1) + 2 * norm.pdf(y) - 1 / math.sqrt(math.pi)
    assert sample_crps(paths, [[y]]).item() == pytest.approx(closed, abs=1e-6)


def test_fair_crps_does_not_depend_on_the_number_of_paths_in_expectation() -> None:
    # A perfect standard normal forecast: E CRPS = 1 / sqrt(pi) = 0.5642; plain, S = 3: x (1 + 1/3).
    draw = np.random.default_rng(0)
    paths, targets = draw.standard_normal((40_000, 3, 1)), draw.standard_normal((40_000, 1))
    optimum = 1 / math.sqrt(math.pi)
    assert sample_crps(paths, targets, fair=True).mean() == pytest.approx(optimum, abs=0.01)
    assert sample_crps(paths, targets).mean() == pytest.approx(optimum * 4 / 3, abs=0.01)


def test_sample_crps_keeps_its_digits_far_from_zero() -> None:
    paths, targets, _ = forecasts(9, missing=0.0)
    moved = sample_crps(paths + 2.0**30, targets + 2.0**30)
    np.testing.assert_allclose(moved, sample_crps(paths, targets), atol=1e-6)


def test_wcrps_is_what_the_quantile_loss_tends_to_with_more_levels() -> None:
    paths, targets, _ = forecasts(9)
    levels = (np.arange(20_000) + 0.5) / 20_000
    step = np.floor(levels * 9).astype(int)  # the quantile function of the empirical distribution
    quantiles = np.sort(paths, axis=1)[:, step]
    limit = weighted_quantile_loss(quantiles, targets, levels)
    assert evaluate_forecasts(paths, targets)["wCRPS"] == pytest.approx(limit, rel=1e-3)


def test_energy_score_of_one_step_is_the_sample_crps() -> None:
    paths, targets, _ = forecasts(9, missing=0.0)
    np.testing.assert_allclose(
        energy_score(paths[..., :1], targets[:, :1]),
        sample_crps(paths[..., :1], targets[:, :1])[:, 0],
        atol=1e-13,
    )


def test_energy_score_sees_the_dependence_between_steps_that_crps_does_not() -> None:
    draw = np.random.default_rng(1)
    walk = draw.standard_normal((200, 60, 12)).cumsum(axis=2)
    target = draw.standard_normal((200, 12)).cumsum(axis=1)
    broken = np.stack([draw.permuted(x, axis=0) for x in walk])  # same values at every step
    assert sample_crps(broken, target) == pytest.approx(sample_crps(walk, target), abs=1e-12)
    assert energy_score(broken, target).mean() > 1.01 * energy_score(walk, target).mean()


def test_a_perfect_model_covers_its_levels_in_expectation() -> None:
    # 40,000 exchangeable targets with 39 paths each: standard error below 0.0025.
    draw = np.random.default_rng(2)
    paths, targets = draw.standard_normal((40_000, 39, 1)), draw.standard_normal((40_000, 1))
    scores = evaluate_forecasts(paths, targets)
    for level in (50, 80, 95):
        assert scores[f"coverage_{level}"] == pytest.approx(level / 100, abs=0.008)
    assert scores["calibration_error"] < 0.005


def test_the_interval_of_99_paths_ends_at_order_statistics() -> None:
    paths = np.arange(1.0, 100.0)[None, :, None]
    lower, upper = central_interval(paths, 80)
    assert (lower.item(), upper.item()) == pytest.approx((10.0, 90.0))
    assert evaluate_forecasts(paths, [[50.0]])["width_80"] == pytest.approx(80 / 50)


def test_overconfident_paths_show_in_coverage_and_calibration() -> None:
    # Paths of standard deviation 0.3: the 10 % quantile is -0.384, and Phi(-0.384) = 0.350.
    draw = np.random.default_rng(3)
    paths, targets = 0.3 * draw.standard_normal((5000, 99, 4)), draw.standard_normal((5000, 4))
    assert evaluate_forecasts(paths, targets)["coverage_80"] == pytest.approx(0.3, abs=0.015)
    share = quantile_calibration(paths, targets, (0.1, 0.9))
    assert share == pytest.approx([0.35, 0.65], abs=0.015)


def test_ties_spread_their_rank_so_that_a_pegged_rate_is_calibrated() -> None:
    # Paths and target all equal: every rank is as likely, so P(PIT <= q) = q.
    assert quantile_calibration(np.ones((3, 9, 2)), np.ones((3, 2)), (0.1, 0.5)) == pytest.approx(
        [0.1, 0.5]
    )


def test_the_probability_integral_transform_is_between_the_neighbouring_ranks() -> None:
    paths = np.array([1.0, 2.0, 3.0])[None, :, None]  # y = 2.5: uniform on [2/4, 3/4]
    reached = probability_integral_transform(paths, [[2.5]], (0.4, 0.5, 0.625, 0.75, 0.9))
    assert reached.ravel().tolist() == [0.0, 0.0, 0.5, 1.0, 1.0]


# ---------------------------------------------------------------- what was not observed


def test_paths_at_steps_without_a_target_have_no_influence() -> None:
    paths, targets, history = forecasts(9)
    expected = evaluate_forecasts(paths, targets, history, SEASON)
    hidden = np.isnan(targets)[:, None] & np.ones_like(paths, dtype=bool)
    changed = evaluate_forecasts(np.where(hidden, 1e6, paths), targets, history, SEASON)
    pd.testing.assert_series_equal(changed, expected, rtol=1e-12)


def test_a_series_without_a_target_is_nan_by_itself_and_absent_from_the_total() -> None:
    paths, targets, _ = forecasts(9)
    assert evaluate_each_series(paths, targets).iloc[2].isna().all()
    kept = [0, 1, 3, 4, 5]
    pd.testing.assert_series_equal(
        evaluate_forecasts(paths[kept], targets[kept]), evaluate_forecasts(paths, targets)
    )


def test_windows_of_one_series_are_scored_together_in_order_of_appearance() -> None:
    paths, targets, history = forecasts(9)
    each = evaluate_each_series(paths, targets, history, SEASON, ids=["b", "a", "b", "a", "c", "c"])
    assert each.index.tolist() == ["b", "a", "c"]
    a = evaluate_forecasts(paths[[1, 3]], targets[[1, 3]], [history[1], history[3]], SEASON)
    pd.testing.assert_series_equal(each.loc["a"], a, check_names=False)


def test_a_history_that_never_moves_is_left_out_of_mase() -> None:
    paths, targets, history = forecasts(9)
    flat = [np.ones(HISTORY), *history[1:]]
    kept = slice(1, None)
    assert evaluate_forecasts(paths, targets, flat, SEASON)["MASE"] == pytest.approx(
        evaluate_forecasts(paths[kept], targets[kept], history[kept], SEASON)["MASE"]
    )


def test_scores_have_no_units() -> None:
    paths, targets, history = forecasts(9)
    pd.testing.assert_series_equal(
        evaluate_forecasts(1e3 * paths, 1e3 * targets, [1e3 * h for h in history], SEASON),
        evaluate_forecasts(paths, targets, history, SEASON),
    )


def test_one_path_has_no_fair_crps() -> None:
    paths, targets, _ = forecasts(1)
    assert math.isnan(evaluate_forecasts(paths, targets)["wCRPS_fair"])
    with pytest.raises(StructDiffError, match="at least 2 paths"):
        sample_crps(paths, targets, fair=True)


# ---------------------------------------------------------------- bad input

GOOD = np.zeros((2, 3, 4))


@pytest.mark.parametrize(
    ("paths", "targets", "message"),
    [
        (GOOD[0], np.ones((2, 4)), r"not \(3, 4\)"),
        (GOOD[:, :0], np.ones((2, 4)), r"not \(2, 0, 4\)"),
        (GOOD, np.ones((2, 5)), r"targets have the shape \(2, 5\)"),
        (GOOD, np.full((2, 4), np.nan), "none is observed"),
        (GOOD, np.array([[1, 1, 1, 1], [1, 1, np.inf, 1]]), "entry 1, step 2"),
        (np.where(np.arange(4) == 3, np.nan, GOOD), np.ones((2, 4)), "entry 0, sample 0, step 3"),
    ],
)
def test_bad_arrays_are_named(paths: np.ndarray, targets: np.ndarray, message: str) -> None:
    with pytest.raises(StructDiffError, match=message):
        evaluate_forecasts(paths, targets)


def test_mase_asks_for_what_it_lacks() -> None:
    with pytest.raises(StructDiffError, match="both the history and the seasonality"):
        evaluate_forecasts(GOOD, np.ones((2, 4)), history=[np.ones(9)] * 2)
    with pytest.raises(StructDiffError, match="1 histories for 2 entries"):
        evaluate_forecasts(GOOD, np.ones((2, 4)), [np.ones(9)], 5)
    with pytest.raises(StructDiffError, match="at least 1, not 0"):
        evaluate_forecasts(GOOD, np.ones((2, 4)), [np.ones(9)] * 2, 0)


def test_ids_are_one_for_each_entry() -> None:
    with pytest.raises(StructDiffError, match="3 ids for 2 entries"):
        evaluate_each_series(GOOD, np.ones((2, 4)), ids="abc")


@pytest.mark.parametrize("level", [0, 100, -5])
def test_an_interval_level_is_percent(level: float) -> None:
    with pytest.raises(StructDiffError, match="percent between 0 and 100"):
        central_interval(GOOD, level)


def test_a_quantile_level_lies_between_0_and_1() -> None:
    with pytest.raises(StructDiffError, match="between 0 and 1"):
        sample_quantiles(GOOD, (0.5, 80))


def test_there_is_a_level_for_each_quantile() -> None:
    with pytest.raises(StructDiffError, match="3 quantiles for 9 levels"):
        weighted_quantile_loss(GOOD, np.ones((2, 4)))
