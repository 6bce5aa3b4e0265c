"""EEG: imputation changes only what is missing; forecasts go on where a recording ends."""

from __future__ import annotations

import math

import mne
import numpy as np
import pytest

from structdiff.errors import StructDiffError
from structdiff.timeseries.eeg import evaluate_eeg

SFREQ = 100.0
NAMES = ["Fz", "Cz", "EOG", "Pz", "Oz"]
EEG = ["Fz", "Cz", "Pz", "Oz"]
SPACE = 0.9  # correlation of neighbouring electrodes


# --- imputation ----------------------------------------------------------------------------------
def masked(inst, kind):
    """A recording or epochs, arguments of impute, and which entries are missing."""
    mask = np.zeros(inst.get_data().shape, dtype=bool)
    if kind == "bads":
        inst.info["bads"] = ["Pz", "EOG"]
        mask[..., 3, :] = True
        return inst, {}, mask
    if kind == "channels":
        mask[..., [0, 4], :] = True
        return inst, {"channels": ["Oz", "Fz"]}, mask
    start = inst.annotations.orig_time if isinstance(inst, mne.io.BaseRaw) else None
    notes = mne.Annotations([0.45, 0.5], [0.2, 0.25], ["BAD_a", "bad_b"], orig_time=start)
    inst.set_annotations(notes)
    if isinstance(inst, mne.io.BaseRaw):
        mask[:, 45:75] = True
    else:
        # The first event is at 0.5 s, 0.1 s after the epoch's start, which is at 0.4 s.
        mask[0, :, 5:35] = True
    mask[..., 2, :] = False  # EOG is none of the model's
    return inst, {}, mask


@pytest.mark.parametrize("kind", ["bads", "channels", "annotations"])
@pytest.mark.parametrize("continuous", [False, True])
def test_imputation_changes_what_is_missing_and_nothing_else(
    of_epochs, of_raw, kind, continuous, make_raw, make_epochs, same_info
):
    model = of_raw if continuous else of_epochs
    inst = make_raw(seed=2, seconds=2.0) if continuous else make_epochs(4, seed=2)
    inst, arguments, mask = masked(inst, kind)
    before = inst.copy()
    result = model.impute(inst, **arguments)
    assert type(result) is type(inst) and same_info(result.info, before.info)
    data, old = result.get_data(), before.get_data()
    assert np.array_equal(data[~mask], old[~mask])
    assert (data[mask] != old[mask]).all() and np.isfinite(data).all()
    assert np.array_equal(inst.get_data(), old)  # the caller's is as it was
    if not continuous:
        assert np.array_equal(result.events, before.events) and result.tmin == before.tmin
        assert result.event_id == before.event_id and result.metadata.equals(before.metadata)
    else:
        assert result.annotations == before.annotations and result.first_samp == before.first_samp


def test_channels_in_another_order_are_imputed_alike(of_epochs, make_epochs):
    epochs = make_epochs(3, seed=2)
    moved = epochs.copy().reorder_channels(NAMES[::-1])
    one = of_epochs.impute(epochs, ["Cz"]).get_data(picks=EEG)
    other = of_epochs.impute(moved, ["Cz"]).get_data(picks=EEG)
    assert np.array_equal(one, other)


def test_what_stands_in_missing_entries_has_no_influence(of_epochs, make_epochs):
    epochs = make_epochs(3, seed=2)
    broken = epochs.copy()
    broken.get_data(copy=False)[:, 1] = np.nan
    repaired = of_epochs.impute(broken, ["Cz"]).get_data()
    assert np.array_equal(repaired, of_epochs.impute(epochs, ["Cz"]).get_data())
    with pytest.raises(StructDiffError, match="epoch 0, channel 'Cz'"):
        of_epochs.impute(broken, ["Fz"])


def test_a_dropped_channel_is_imputed_as_well_as_its_neighbours_allow(small_eeg, make_epochs):
    model = small_eeg(steps=15).fit(make_epochs(200, response=0.0))
    epochs = make_epochs(60, seed=3, response=0.0)
    truth = epochs.get_data()[:, 1] / 20e-6
    error = model.impute(epochs, ["Cz"]).get_data()[:, 1] / 20e-6 - truth
    # Given both neighbours: sqrt((1 - phi^2) / (1 + phi^2)) = 0.324; filling in 0 leaves 1. The
    # covariance of 200 windows and its floor of 1 % cost some per cent.
    exact = math.sqrt((1 - SPACE**2) / (1 + SPACE**2))
    assert error.std() < 1.12 * exact
    assert error.std() < 0.4 * truth.std()


def test_draws_are_several_and_spread_around_the_mean(of_epochs, make_epochs):
    epochs = make_epochs(6, seed=2)
    draws = of_epochs.impute(epochs, ["Cz"], draws=3)
    assert len(draws) == 3 and all(isinstance(d, mne.EpochsArray) for d in draws)
    values = np.stack([d.get_data()[:, 1] for d in draws]) / 20e-6
    # The conditional standard deviation is 0.324; a few steps of training move it somewhat.
    assert values.std(axis=0, ddof=1).mean() == pytest.approx(0.29, abs=0.09)
    (first,) = of_epochs.impute(epochs, ["Cz"], draws=1)
    assert np.array_equal(first.get_data(), draws[0].get_data())


def test_an_imputed_segment_goes_on_across_windows(of_raw, make_raw):
    raw = make_raw(seed=4, seconds=4.0)
    filled = of_raw.impute(raw, ["Cz"]).get_data()[1]
    jumps, truth = np.diff(filled).std(), np.diff(raw.get_data()[1]).std()
    assert np.abs(np.diff(filled)).max() < 6 * truth and jumps < 1.2 * truth


def test_nothing_missing_is_a_warning_and_a_copy(of_epochs, make_epochs):
    epochs = make_epochs(2)
    with pytest.warns(UserWarning, match="nothing is missing"):
        result = of_epochs.impute(epochs)
    assert np.array_equal(result.get_data(), epochs.get_data()) and result is not epochs


def test_an_epochs_model_also_repairs_recordings(of_epochs, make_raw):
    raw = make_raw(seed=2, seconds=1.0)
    result = of_epochs.impute(raw, ["Oz"])
    assert np.array_equal(result.get_data()[:4], raw.get_data()[:4])


def test_another_length_rate_or_montage_is_refused_with_the_remedy(
    of_epochs, make_raw, make_epochs
):
    epochs = make_epochs(2)
    with pytest.raises(StructDiffError, match=r"30 samples, the model's 40"):
        of_epochs.impute(epochs.copy().crop(tmax=0.19), ["Cz"])
    with pytest.raises(StructDiffError, match=r"100 Hz.*50 Hz.*resample"):
        of_epochs.impute(epochs.copy().resample(50), ["Cz"])
    with pytest.raises(StructDiffError, match=r"lacks \['Oz'\]"):
        of_epochs.impute(epochs.copy().drop_channels(["Oz"]), ["Cz"])
    with pytest.raises(StructDiffError, match="shorter window"):
        of_epochs.impute(make_raw(seconds=0.3), ["Cz"])
    with pytest.raises(StructDiffError, match="draws"):
        of_epochs.impute(epochs, ["Cz"], draws=0)


def test_an_odd_number_of_paths_is_refused(of_epochs, make_epochs):
    try:
        of_epochs.set_params(n_samples=3)
        with pytest.raises(StructDiffError, match="even"):
            of_epochs.impute(make_epochs(2), ["Cz"])
    finally:
        of_epochs.set_params(n_samples=2)


def test_epochs_that_were_not_read_yet_go_through(of_epochs, make_raw):
    raw = make_raw(seed=2)
    events = np.array([[50, 0, 2], [1990, 0, 7], [300, 0, 7]])  # the second ends too late
    lazy = mne.Epochs(
        raw, events, {"rare": 7, "often": 2}, -0.1, 0.29, baseline=None, verbose="ERROR"
    )
    result = of_epochs.impute(lazy, "Cz")
    assert len(result) == 2 and not lazy.preload
    read = lazy.copy().load_data()
    assert np.array_equal(result.get_data()[:, 0], read.get_data()[:, 0])
    assert evaluate_eeg(lazy, read)["covariance error"] == 0


# --- forecasts -----------------------------------------------------------------------------------
def test_a_forecast_goes_on_where_the_recording_ends(of_raw, make_raw, same_info):
    raw = make_raw().crop(tmin=3.0)
    future = of_raw.forecast(raw, 0.15)
    assert future.n_times == 15 and future.ch_names == EEG
    assert future.first_samp == raw.first_samp + raw.n_times
    assert same_info(future.info, raw.copy().pick(EEG).info)
    assert len(of_raw.forecast(raw, 0.5, draws=2)) == 2


def test_a_rhythm_is_forecast(small_eeg):
    rng = np.random.default_rng(0)
    time = np.arange(3000) / SFREQ
    wave = 2e-5 * np.sin(2 * np.pi * 10 * time) + 2e-6 * rng.normal(size=(4, 3000))
    raw = mne.io.RawArray(wave, mne.create_info(EEG, SFREQ, "eeg"), verbose="ERROR")
    model = small_eeg().fit(raw.copy().crop(tmax=24.99))
    future = model.forecast(raw.copy().crop(tmax=24.99), 0.2).get_data()
    error = (future - wave[:, 2500:2520]).std()
    # Noise of 2 uV on a sine of 14 uV (standard deviation): the rhythm is known, the noise not.
    assert error < 3.5e-6


def test_a_forecast_needs_a_long_enough_raw(of_raw, make_raw, make_epochs):
    with pytest.raises(StructDiffError, match="recording of at least 20 samples"):
        of_raw.forecast(make_raw(seconds=0.15), 0.5)
    with pytest.raises(StructDiffError, match="Epochs"):
        of_raw.forecast(make_epochs(2))
    with pytest.raises(StructDiffError, match="duration"):
        of_raw.forecast(make_raw(), 0.0)
