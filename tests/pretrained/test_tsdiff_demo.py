"""The embedded time-series model: small, of its series, better than the naive forecasts."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import torch

from structdiff import datasets, pretrained, storage
from structdiff.timeseries import TSDiff
from structdiff.timeseries.evaluation import evaluate

torch.set_num_threads(1)
FOLDER = Path(pretrained.__path__[0]) / "tsdiff-demo"


def test_the_package_ships_it_under_its_name_in_a_megabyte_and_a_half() -> None:
    assert storage.embedded_models(storage.TIME_SERIES) == ["tsdiff-demo"]
    assert sum(file.stat().st_size for file in FOLDER.iterdir()) < 1.5e6


def test_it_beats_yesterdays_values_on_a_day_it_has_not_seen() -> None:
    # On a Sunday: last week's values are harder to beat, the model's card says by how much.
    series = pd.read_csv(datasets.path("hourly_demand"), parse_dates=["ds"]).iloc[:, :5]
    model = TSDiff.from_pretrained("tsdiff-demo").set_params(progress=False)
    options = {"n_samples": 40, "scenarios": (), "refine": None, "synthetic": 0}
    scores = evaluate(model, series, **options)
    crps = scores.set_index("variant")["mean_wQuantileLoss"]
    assert crps["full"] < 0.8 * crps["seasonal naive"]
