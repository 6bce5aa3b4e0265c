"""Scores of forecasts as tables that are read from left to right: a row for each forecast."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd

from structdiff.cli.console import print_json, print_table
from structdiff.timeseries import Panel
from structdiff.timeseries.baselines import random_walk_paths, seasonal_naive
from structdiff.timeseries.metrics import COVERAGE_LEVELS, evaluate_forecasts
from structdiff.timeseries.season import seasonality_of

Array = npt.NDArray[np.float64]

#: Column of a table -> score of :func:`structdiff.timeseries.metrics.evaluate_forecasts`.
SCORES = {
    "CRPS": "mean_wQuantileLoss",
    "ND": "ND",
    "NRMSE": "NRMSE",
    "MASE": "MASE",
    **{f"in {level} %": f"coverage_{level}" for level in COVERAGE_LEVELS},
}
_INTERVALS = [column for column in SCORES if column.startswith("in ")]


def score_table(evaluated: pd.DataFrame, season: int) -> pd.DataFrame:
    """What :func:`structdiff.timeseries.evaluation.evaluate` returned, named and in short.

    Parameters
    ----------
    evaluated
        Its table over all series.
    season
        Of the seasonal naive forecast.
    """
    names = {"full": "TSDiff", "seasonal naive": f"seasonal naive (m={season})"}
    rows = {}
    for _, row in evaluated.iterrows():
        variant, task = str(row["variant"]), str(row["task"])
        name = names.get(variant, variant) if task == "forecast" else f"{task}: {variant}"
        # A naive forecast is a point: it has no intervals to count in.
        point = variant == "seasonal naive" or variant.endswith("naive/before")
        rows[name] = _short(row.to_dict(), point)
    return pd.DataFrame(rows).T.rename_axis("forecast")


def demo_scores(panel: Panel, h: int, paths: Sequence[Array], name: str, week: int) -> pd.DataFrame:
    """Paths of the last ``h`` points beside the naive forecasts of a day and of a week ago.

    Parameters
    ----------
    panel
        Series with their ends.
    h
        Points at the end that were forecast.
    paths
        Per series, (S, h).
    name
        Of the model.
    week
        Points of a week.
    """
    known, targets = panel.cut(h).values, np.stack(panel.tail(h).values)
    day, samples = seasonality_of(panel.freq), len(paths[0])
    forecasts = {
        name: list(paths),
        "a day ago": [seasonal_naive(y, h, day)[None] for y in known],
        "a week ago": [seasonal_naive(y, h, week)[None] for y in known],
        "random walk": [random_walk_paths(y, h, samples, seed=(0, i)) for i, y in enumerate(known)],
    }
    rows = {
        label: _short(
            evaluate_forecasts(np.stack(each), targets, known, day).to_dict(), len(each[0]) == 1
        )
        for label, each in forecasts.items()
    }
    return pd.DataFrame(rows).T.rename_axis("forecast")


def _short(scores: Mapping[str, float], point: bool) -> dict[str, float]:
    short = {column: float(scores[score]) for column, score in SCORES.items()}
    return short | dict.fromkeys(_INTERVALS, float("nan")) if point else short


def print_scores(title: str, scores: pd.DataFrame, json: bool) -> None:
    """The table on standard output, or as JSON."""
    if json:
        print_json({str(name): row.to_dict() for name, row in scores.iterrows()})
        return
    rows = [(name, *map(float, row)) for name, row in zip(scores.index, scores.values, strict=True)]
    print_table(title, ["forecast", *scores.columns], rows)
    print(
        "CRPS: mean weighted quantile loss; ND, NRMSE: errors of median and mean over mean size;\n"
        "MASE: over the error of a season ago; in 80 %: share inside the central interval."
    )
