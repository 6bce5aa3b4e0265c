"""The estimator on a real series: what was seen is forecast, the same bits come again."""

import numpy as np
import pandas as pd
import pytest
import torch

from structdiff.timeseries import TSDiff

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def passengers():
    """Twelve years with a season and a trend."""
    months = np.arange(144)
    season = 1 + 0.25 * np.sin(2 * np.pi * months / 12) + 0.1 * np.cos(2 * np.pi * months / 6)
    times = pd.date_range("1949-01-01", periods=144, freq="MS")
    return pd.DataFrame({"unique_id": "air", "ds": times, "y": (100 + 2.5 * months) * season})


@pytest.fixture(scope="module")
def model(passengers):
    known = passengers.iloc[:-12]
    return TSDiff(h=12, hidden=16, max_steps=30, random_state=0, progress=False).fit(known)


def test_a_season_and_a_trend_are_forecast(model, passengers):
    # The seasonal naive forecast is off by a year of trend, 30 passengers of 430.
    truth = passengers["y"].to_numpy()[-12:]
    error = np.abs(model.predict()["TSDiff"].to_numpy() - truth).mean()
    naive = np.abs(passengers["y"].to_numpy()[-24:-12] - truth).mean()
    assert error < 0.5 * naive


def test_a_loaded_model_forecasts_the_same_bits(model, passengers, tmp_path):
    model.save_pretrained(tmp_path)
    again = TSDiff.from_pretrained(tmp_path).set_params(random_state=0, progress=False)
    pd.testing.assert_frame_equal(
        again.predict(passengers.iloc[:-12], level=80), model.predict(level=80), check_exact=True
    )
