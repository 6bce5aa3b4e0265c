"""What the time-series head has to beat: simple baselines on Exchange and on M4 hourly.

    STRUCTDIFF_DATA=FOLDER python benchmarks/timeseries_baselines.py

Exchange is the split that gluonts calls exchange_rate_nips: 40 test entries, window-major, entry k
is series k % 8 up to day 6071 + 30 (k // 8 + 1), the last 30 days of which are the target.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from _record import record

from structdiff.datasets import data_folder
from structdiff.errors import StructDiffError
from structdiff.timeseries.baselines import (
    last_value,
    random_walk_bootstrap,
    random_walk_paths,
    random_walk_quantiles,
    seasonal_naive,
)
from structdiff.timeseries.metrics import (
    QUANTILE_LEVELS,
    evaluate_forecasts,
    weighted_quantile_loss,
)

Array = npt.NDArray[np.float64]
SHOWN = ["mean_wQuantileLoss", "ND", "MASE", "wCRPS_fair", "wEnergyScore", "coverage_80"]


def exchange(folder: Path) -> tuple[list[Array], Array]:
    """The 40 histories (6071 to 6191 values) and targets (40, 30) of exchange_rate_nips."""
    split = json.loads((folder / "timeseries/exchange_rate_nips.json").read_text(encoding="utf-8"))
    values = pd.read_csv(folder / "timeseries" / split["file"], index_col="t").to_numpy(float)
    h, ends = split["prediction_length"], split["test_lengths"]
    entries = [values[:end, series] for end in ends for series in range(values.shape[1])]
    return [y[:-h] for y in entries], np.stack([y[-h:] for y in entries])


def m4_hourly(folder: Path) -> tuple[list[Array], Array]:
    """The 414 histories (700 or 960 values) and targets (414, 48) of M4 hourly."""
    parts = []
    for part in ("train", "test"):
        frame = pd.read_csv(folder / f"timeseries/m4_hourly_{part}.csv.gz")
        by = frame.sort_values("ds", kind="stable").groupby("unique_id", sort=False)["y"]
        parts.append({name: y.to_numpy(float) for name, y in by})
    train, test = parts
    return list(train.values()), np.stack([test[name] for name in train])


#: How a row's paths (S, h) come from a history, a horizon and the number of the entry.
Forecaster = Callable[[Array, int, int], Array]


def point(forecast: Callable[[Array, int], Array]) -> Forecaster:
    """A point forecast is one path."""
    return lambda y, h, i: forecast(y, h)[None]


def rows(
    histories: list[Array], targets: Array, season: int, windows: dict[str, int | None], paths: int
) -> list[dict[str, object]]:
    """Every baseline on one data set."""
    h = targets.shape[1]
    methods: dict[str, Forecaster] = {
        f"seasonal naive, m={season}": point(lambda y, h: seasonal_naive(y, h, season)),
        "last value": point(last_value),
    }
    table = []
    for label, window in windows.items():
        quantiles = np.stack([random_walk_quantiles(y, h, window=window) for y in histories])
        crps = weighted_quantile_loss(quantiles, targets, QUANTILE_LEVELS)
        table.append(
            {
                "method": f"random walk, normal quantiles, {label}",
                "paths": "-",
                "mean_wQuantileLoss": f"{crps:.5f}",
            }
        )
        methods |= {
            f"random walk, normal paths, {label}": lambda y, h, i, w=window: random_walk_paths(
                y, h, paths, window=w, seed=(0, i)
            ),
            f"random walk, bootstrap, {label}": lambda y, h, i, w=window: random_walk_bootstrap(
                y, h, paths, window=w, seed=(0, i)
            ),
        }
    scored = []
    for name, method in methods.items():
        drawn = np.stack([method(y, h, i) for i, y in enumerate(histories)])
        scores = evaluate_forecasts(drawn, targets, histories, season)
        figures = {k: "-" if np.isnan(scores[k]) else f"{scores[k]:.5f}" for k in SHOWN}
        scored.append({"method": name, "paths": drawn.shape[1], **figures})
    return scored + table


def main() -> None:
    """Score every baseline and keep the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--paths", type=int, default=100, help="sample paths for each entry")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    folder = data_folder()
    if folder is None:
        raise StructDiffError("let STRUCTDIFF_DATA name the folder that holds timeseries/")
    sets = {
        "Exchange": (*exchange(folder), 5, {"whole history": None, "last 250 points": 250}),
        "M4 hourly": (*m4_hourly(folder), 24, {"whole history": None}),
    }
    table = pd.DataFrame(
        {"data": name, **row}
        for name, (histories, targets, season, windows) in sets.items()
        for row in rows(histories, targets, season, windows, arguments.paths)
    ).fillna("-")
    record(
        "timeseries_baselines",
        "Baselines that a forecast has to beat",
        table,
        "Exchange: exchange_rate_nips, 40 entries, 30 business days ahead (published TSDiff: CRPS "
        "0.011). M4 hourly: 414 series, 48 hours ahead (published TSDiff: 0.036, seasonal naive "
        "0.048). mean_wQuantileLoss is the CRPS of the published tables; wCRPS_fair is the exact "
        "CRPS, unbiased in the number of paths, over sum |y|; a calibrated forecast has a "
        "coverage_80 of 0.8. The bootstrap draws increments less their mean. MASE leaves out "
        "series that never change over a season.",
    )


if __name__ == "__main__":
    main()
