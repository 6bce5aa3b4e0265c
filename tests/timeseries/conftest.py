"""Tiny window models, fitted once for all tests of the estimator."""

import numpy as np
import pandas as pd
import pytest

from structdiff.timeseries import TSDiff


@pytest.fixture(scope="session")
def tiny():
    """Makes an estimator that fits in a fraction of a second; arguments replace its settings."""

    def make(**changes):
        settings = {"h": 6, "context": 18, "hidden": 8, "blocks": 1, "state_size": 8}
        settings |= {"max_steps": 3, "batch_size": 16, "n_samples": 12, "random_state": 0}
        settings |= {"progress": False, "accelerator": "cpu"}
        return TSDiff(**{**settings, **changes})

    return make


@pytest.fixture(scope="session")
def weekly():
    """Values (T,) with a season of seven points: by seed, level and number of points."""

    def make(seed, level=10.0, points=90):
        noise = np.random.default_rng(seed).normal(scale=0.3, size=points)
        return level + 3 * np.sin(2 * np.pi * np.arange(points) / 7) + noise

    return make


@pytest.fixture(scope="session")
def _daily(weekly):
    times = pd.date_range("2020-01-01", periods=90, freq="D")
    parts = [
        pd.DataFrame({"unique_id": name, "ds": times, "y": weekly(k, 10.0 * (k + 1))})
        for k, name in enumerate(["b", "a", "c"])
    ]
    return pd.concat(parts, ignore_index=True)


@pytest.fixture
def daily(_daily):
    """Three daily series of 90 points, long, ids in no order; a copy for every test."""
    return _daily.copy()


@pytest.fixture
def wide(daily):
    """The same series, wide."""
    return daily.pivot(index="ds", columns="unique_id", values="y")[["b", "a", "c"]]


@pytest.fixture(scope="session")
def _fitted(tiny, _daily):
    return tiny().fit(_daily)


@pytest.fixture
def model(_fitted):
    """Fitted to ``daily``; its settings are as fitted again for every test."""
    before = _fitted.get_params()
    yield _fitted
    _fitted.set_params(**before)


@pytest.fixture(scope="session")
def _paper(tiny, _daily):
    network = {"hidden": 8, "blocks": 1, "state_size": 8}
    return tiny(preset="paper", lags=(7,), network_settings=network, n_samples=4).fit(_daily)


@pytest.fixture
def paper(_paper):
    """As published but tiny, with a lag of seven; fitted to ``daily``."""
    before = _paper.get_params()
    yield _paper
    _paper.set_params(**before)


@pytest.fixture(scope="session")
def untrained():
    """Makes a model's network say 0: the denoiser is then the exact one of its Gaussian."""

    def zero(model):
        for value in model.denoiser_.network.backbone.head[-1].parameters():
            value.zero_()
        return model

    return zero


@pytest.fixture(scope="session")
def _gaussian(tiny, untrained):
    # AR(1), phi = 0.9, of 3000 points.
    values, noise = np.zeros(3000), np.random.default_rng(4).normal(size=3000)
    for t in range(1, 3000):
        values[t] = 0.9 * values[t - 1] + noise[t]
    series = pd.Series(values, index=pd.date_range("2020-01-01", periods=3000, freq="h"), name="x")
    model = untrained(tiny(h=8, context=24, lags=None, max_steps=1).fit(series))
    return model, series


@pytest.fixture
def gaussian(_gaussian):
    """The exact denoiser of the windows of an AR(1) series, and the series."""
    model, series = _gaussian
    before = model.get_params()
    yield model, series.copy()
    model.set_params(**before)
