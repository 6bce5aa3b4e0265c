"""Tiny window models and recordings, fitted and made once for all tests of the estimators."""

from datetime import datetime, timezone

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


# --- EEG -----------------------------------------------------------------------------------------
@pytest.fixture(scope="session")
def small_eeg():
    """Makes an EEG model that fits in a fraction of a second; arguments replace its settings."""
    from structdiff.timeseries.eeg import EEGDiffusion

    def make(**changes):
        settings = {"hidden": 8, "blocks": 1, "state_size": 4, "max_steps": 3, "steps": 6}
        settings |= {"progress": False, "random_state": 0, "n_samples": 2, "window": 0.4}
        return EEGDiffusion(**settings | changes)

    return make


def _eeg_info():
    """Four EEG channels and one EOG at 100 Hz, with places and with personal data."""
    import mne

    names = ["Fz", "Cz", "EOG", "Pz", "Oz"]
    info = mne.create_info(names, 100.0, ["eeg", "eeg", "eog", "eeg", "eeg"])
    electrodes = [name for name in names if name != "EOG"]
    places = {name: (0.0, 0.09 - 0.045 * k, 0.09) for k, name in enumerate(electrodes)}
    ears = {"nasion": (0, 0.1, 0), "lpa": (-0.08, 0, 0), "rpa": (0.08, 0, 0)}
    info.set_montage(mne.channels.make_dig_montage(places, coord_frame="head", **ears))
    info["subject_info"] = {"last_name": "Somebody"}
    info["description"] = "of Somebody"
    return info


def _eeg_signals(count, length, seed):
    """Volts, correlated as 0.9 ** distance along the electrodes, an AR(1) in time; EOG apart."""
    rng = np.random.default_rng(seed)
    place = np.arange(4)
    factor = np.linalg.cholesky(0.9 ** np.abs(place[:, None] - place))
    z = rng.normal(size=(count, 5, length))
    for t in range(1, length):
        z[..., t] = 0.8 * z[..., t - 1] + 0.6 * z[..., t]
    z[:, [0, 1, 3, 4]] = np.einsum("cd,ndl->ncl", factor, z[:, [0, 1, 3, 4]])
    return z * np.array([10, 20, 50, 15, 5])[:, None] * 1e-6


@pytest.fixture(scope="session")
def make_raw():
    """Makes a continuous recording: by seed and seconds."""
    import mne

    def make(seed=0, seconds=20.0):
        data = _eeg_signals(1, int(seconds * 100), seed)[0]
        raw = mne.io.RawArray(data, _eeg_info(), verbose="ERROR")
        return raw.set_meas_date(datetime(2020, 1, 1, tzinfo=timezone.utc))

    return make


@pytest.fixture(scope="session")
def make_epochs():
    """Makes epochs of 40 samples: every third is "rare", with a response in volts."""
    import mne

    def make(count=60, seed=0, response=20e-6):
        data = _eeg_signals(count, 40, seed)
        codes = np.where(np.arange(count) % 3 == 0, 7, 2)
        data[codes == 7] += response * np.exp(-0.5 * ((np.arange(40) - 25) / 3) ** 2)
        events = np.stack([np.arange(count) * 100 + 50, np.zeros(count, int), codes], 1)
        return mne.EpochsArray(
            data,
            _eeg_info(),
            events,
            tmin=-0.1,
            event_id={"rare": 7, "often": 2},
            metadata=pd.DataFrame({"trial": np.arange(count)}),
            verbose="ERROR",
        )

    return make


@pytest.fixture(scope="module")
def of_epochs(small_eeg, make_epochs):
    """An EEG model fitted to epochs."""
    return small_eeg().fit(make_epochs())


@pytest.fixture(scope="module")
def of_raw(small_eeg, make_raw):
    """An EEG model fitted to a recording."""
    return small_eeg().fit(make_raw())


@pytest.fixture(scope="session")
def same_info():
    """Says whether two infos are equal in everything."""
    import mne

    return lambda one, other: mne.utils.object_diff(one, other) == ""
