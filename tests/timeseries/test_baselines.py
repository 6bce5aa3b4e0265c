"""Baselines: gluonts' naive forecasts, the random walk's closed form, the figures on real data.

Figures: the method card, section 7.1 (Exchange, 40 entries, horizon 30), and seasonal naive on M4
hourly (0.048, Kollovieh et al. 2023, table of CRPS).
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from gluonts.model.seasonal_naive import SeasonalNaivePredictor

from structdiff.errors import StructDiffError
from structdiff.timeseries.baselines import (
    increments,
    last_value,
    random_walk_bootstrap,
    random_walk_paths,
    random_walk_quantiles,
    seasonal_naive,
)
from structdiff.timeseries.metrics import (
    evaluate_forecasts,
    mean_weighted_quantile_loss,
    weighted_quantile_loss,
)

Entries = tuple[list[np.ndarray], np.ndarray]


@pytest.fixture(scope="module")
def loaders():
    """The benchmark's readers of the two splits."""
    folder = str(Path(__file__).parents[2] / "benchmarks")
    sys.path.insert(0, folder)
    import timeseries_baselines

    sys.path.remove(folder)
    return timeseries_baselines


@pytest.fixture(scope="module")
def exchange(loaders, data_dir: Path) -> Entries:
    return loaders.exchange(data_dir)


@pytest.fixture(scope="module")
def m4_hourly(loaders, data_dir: Path) -> Entries:
    return loaders.m4_hourly(data_dir)


def stacked(forecast, histories: list[np.ndarray]) -> np.ndarray:
    return np.stack([forecast(y) for y in histories])


def walk(n: int = 300, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(n).cumsum() + 5


# ---------------------------------------------------------------- figures on real data


def test_exchange_is_the_split_of_the_paper(exchange: Entries) -> None:
    # Window-major: entry k is series k % 8, lengths 6101 + 30 (k // 8) with the target.
    histories, targets = exchange
    assert targets.shape == (40, 30)
    assert [len(y) + 30 for y in histories] == [6101 + 30 * (k // 8) for k in range(40)]
    np.testing.assert_array_equal(histories[8][-30:], targets[0])


def test_seasonal_naive_on_exchange(exchange: Entries) -> None:
    histories, targets = exchange
    points = stacked(lambda y: seasonal_naive(y, 30, 5), histories)
    crps = mean_weighted_quantile_loss(points[:, None], targets)
    assert crps == pytest.approx(0.01075, abs=1e-5)


def test_last_value_on_exchange(exchange: Entries) -> None:
    histories, targets = exchange
    points = stacked(lambda y: last_value(y, 30), histories)
    crps = mean_weighted_quantile_loss(points[:, None], targets)
    assert crps == pytest.approx(0.00931, abs=1e-5)


@pytest.mark.parametrize(("window", "figure"), [(None, 0.00773), (250, 0.00714)])
def test_random_walk_on_exchange(exchange: Entries, window: int | None, figure: float) -> None:
    histories, targets = exchange
    quantiles = stacked(lambda y: random_walk_quantiles(y, 30, window=window), histories)
    assert weighted_quantile_loss(quantiles, targets) == pytest.approx(figure, abs=1e-5)


def test_bootstrapped_random_walk_on_exchange(exchange: Entries) -> None:
    # 0.00717; one standard deviation over seeds with 100 paths is 0.00006, so 3 of them.
    histories, targets = exchange
    paths = np.stack(
        [
            random_walk_bootstrap(y, 30, 100, window=251, seed=(0, i))
            for i, y in enumerate(histories)
        ]
    )
    assert mean_weighted_quantile_loss(paths, targets) == pytest.approx(0.00717, abs=1.8e-4)


def test_seasonal_naive_on_m4_hourly(m4_hourly: Entries) -> None:
    histories, targets = m4_hourly
    assert (len(histories), targets.shape) == (414, (414, 48))
    points = stacked(lambda y: seasonal_naive(y, 48, 24), histories)
    assert mean_weighted_quantile_loss(points[:, None], targets) == pytest.approx(0.048, abs=5e-4)


def test_mase_of_seasonal_naive_on_m4_hourly(m4_hourly: Entries) -> None:
    # The M4 competition's organisers report 1.193 for sNaive on hourly series.
    histories, targets = m4_hourly
    points = stacked(lambda y: seasonal_naive(y, 48, 24), histories)
    scores = evaluate_forecasts(points[:, None], targets, histories, 24)
    assert scores["MASE"] == pytest.approx(1.193, abs=1e-3)


# ---------------------------------------------------------------- naive forecasts


@pytest.mark.parametrize("n", [3, 24, 100])
@pytest.mark.parametrize("h", [1, 7, 60])
def test_seasonal_naive_is_that_of_gluonts(n: int, h: int) -> None:
    y = walk(n)
    entry = {"target": y, "start": pd.Period("2020-01-01", freq="h")}
    theirs = SeasonalNaivePredictor(prediction_length=h, season_length=24).predict_item(entry)
    np.testing.assert_allclose(seasonal_naive(y, h, 24), theirs.samples[0], rtol=1e-6)


def test_a_missing_phase_comes_from_the_season_before() -> None:
    y = [1.0, 2.0, 3.0, 4.0, np.nan, 6.0]
    assert seasonal_naive(y, 4, 3).tolist() == [4.0, 2.0, 6.0, 4.0]


def test_a_phase_that_was_never_observed_is_the_mean() -> None:
    assert seasonal_naive([1.0, np.nan, 5.0, np.nan], 2, 2).tolist() == [5.0, 3.0]


def test_the_last_value_is_the_last_observed_one() -> None:
    assert last_value([1.0, 7.0, np.nan], 2).tolist() == [7.0, 7.0]


# ---------------------------------------------------------------- random walks


def test_random_walk_quantiles_are_normal_with_variance_k() -> None:
    # Increments of +-2: s = 2. Phi^-1(0.975) = 1.959964.
    y = np.resize([0.0, 2.0], 101)
    lower, median, upper = random_walk_quantiles(y, 4, (0.025, 0.5, 0.975))
    assert median.tolist() == [0.0] * 4
    assert upper.tolist() == pytest.approx((2 * 1.959964 * np.sqrt([1, 2, 3, 4])).tolist())
    np.testing.assert_allclose(lower, -upper)


@pytest.mark.parametrize("forecast", [random_walk_paths, random_walk_bootstrap])
def test_paths_have_the_mean_and_covariance_of_a_driftless_walk(forecast) -> None:
    # Cov(step j, step k) = s^2 min(j, k); 40,000 paths, 4 standard errors of a variance: 0.03.
    y = walk(400) + 0.3 * np.arange(400)  # a drift that must not go on
    steps = increments(y)
    spread = (steps**2).mean() if forecast is random_walk_paths else steps.var()
    paths = forecast(y, 3, 40_000, seed=1)
    np.testing.assert_allclose(paths.mean(axis=0), y[-1], atol=0.05)
    expected = spread * np.minimum.outer([1, 2, 3], [1, 2, 3])
    np.testing.assert_allclose(np.cov(paths.T), expected, rtol=0.03)


def test_a_window_forgets_what_lies_before_it() -> None:
    calm = walk(50)
    wild = np.concatenate([100 * walk(50, seed=1), calm])
    expected = random_walk_quantiles(calm, 3)
    np.testing.assert_array_equal(random_walk_quantiles(wild, 3, window=50), expected)


def test_increments_do_not_reach_across_a_gap() -> None:
    assert increments([1.0, 2.0, np.nan, 10.0, 14.0]).tolist() == [1.0, 4.0]


@pytest.mark.parametrize("forecast", [random_walk_paths, random_walk_bootstrap])
def test_the_same_seed_gives_the_same_paths_and_another_gives_others(forecast) -> None:
    y = walk()
    np.testing.assert_array_equal(forecast(y, 3, 5, seed=(0, 1)), forecast(y, 3, 5, seed=(0, 1)))
    assert (forecast(y, 3, 5, seed=(0, 1)) != forecast(y, 3, 5, seed=(0, 2))).any()


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("forecast", "message"),
    [
        (lambda: last_value([np.nan, np.nan], 3), "no value is observed"),
        (lambda: last_value([1.0, -np.inf], 3), "infinite at position 1"),
        (lambda: last_value([[1.0, 2.0]], 3), r"shape \(n,\), not \(1, 2\)"),
        (lambda: last_value([1.0], 0), "at least 1, not 0"),
        (lambda: seasonal_naive([1.0], 3, 0), "at least 1, not 0"),
        (lambda: random_walk_quantiles([1.0, np.nan, 2.0], 3), "no two neighbouring points"),
        (lambda: random_walk_quantiles(walk(), 3, (0.5, 1.0)), "between 0 and 1"),
        (lambda: random_walk_bootstrap(walk(), 3, window=1), "at least 2, not 1"),
    ],
)
def test_bad_input_is_refused(forecast, message: str) -> None:
    with pytest.raises(StructDiffError, match=message):
        forecast()
