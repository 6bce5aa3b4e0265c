"""EEGDiffusion: mne objects in, mne objects with the same info, order, times and events out."""

from __future__ import annotations

import json
import math
from datetime import datetime, timezone

import mne
import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone

from structdiff.errors import CheckpointError, StructDiffError
from structdiff.timeseries import eeg_model
from structdiff.timeseries.eeg import EEGDiffusion, evaluate_eeg

SFREQ, LENGTH = 100.0, 40
NAMES = ["Fz", "Cz", "EOG", "Pz", "Oz"]
EEG = ["Fz", "Cz", "Pz", "Oz"]
SPACE = 0.9
# Sampling starts at 50 standard deviations of some 20 uV, in single precision (6e-8 of it): volts.
ROUNDING = 4 * 50 * 20e-6 * 6e-8


def small(**settings):
    defaults = {"hidden": 8, "blocks": 1, "state_size": 4, "max_steps": 3, "steps": 6}
    defaults |= {"progress": False, "random_state": 0, "n_samples": 2, "window": 0.4}
    return EEGDiffusion(**defaults | settings)


def make_info():
    info = mne.create_info(NAMES, SFREQ, ["eeg", "eeg", "eog", "eeg", "eeg"])
    places = {name: (0.0, 0.09 - 0.045 * k, 0.09) for k, name in enumerate(EEG)}
    ears = {"nasion": (0, 0.1, 0), "lpa": (-0.08, 0, 0), "rpa": (0.08, 0, 0)}
    info.set_montage(mne.channels.make_dig_montage(places, coord_frame="head", **ears))
    info["subject_info"] = {"last_name": "Somebody"}
    info["description"] = "of Somebody"
    return info


def signals(count, length, seed):
    """Channels correlated like an AR(1) in space, an AR(1) in time, in volts; EOG apart."""
    rng = np.random.default_rng(seed)
    place = np.arange(4)
    factor = np.linalg.cholesky(SPACE ** np.abs(place[:, None] - place))
    z = rng.normal(size=(count, 5, length))
    for t in range(1, length):
        z[..., t] = 0.8 * z[..., t - 1] + 0.6 * z[..., t]
    z[:, [0, 1, 3, 4]] = np.einsum("cd,ndl->ncl", factor, z[:, [0, 1, 3, 4]])
    return z * np.array([10, 20, 50, 15, 5])[:, None] * 1e-6


def make_raw(seed=0, seconds=20.0):
    raw = mne.io.RawArray(signals(1, int(seconds * SFREQ), seed)[0], make_info(), verbose="ERROR")
    return raw.set_meas_date(datetime(2020, 1, 1, tzinfo=timezone.utc))


def make_epochs(count=60, seed=0, response=20e-6):
    data = signals(count, LENGTH, seed)
    codes = np.where(np.arange(count) % 3 == 0, 7, 2)
    bump = response * np.exp(-0.5 * ((np.arange(LENGTH) - 25) / 3) ** 2)
    data[codes == 7] += bump
    events = np.stack([np.arange(count) * 100 + 50, np.zeros(count, int), codes], 1)
    return mne.EpochsArray(
        data,
        make_info(),
        events,
        tmin=-0.1,
        event_id={"rare": 7, "often": 2},
        metadata=pd.DataFrame({"trial": np.arange(count)}),
        verbose="ERROR",
    )


@pytest.fixture(scope="module")
def fitted():
    return small().fit(make_epochs())


@pytest.fixture(scope="module")
def of_raw():
    return small().fit(make_raw())


def same_info(one, other):
    return mne.utils.object_diff(one, other) == ""


# --- synthesis ---------------------------------------------------------------------------------
def test_synthetic_epochs_have_the_callers_info_order_times_and_events(fitted):
    epochs = make_epochs()
    drawn = fitted.synthesize(8)
    assert isinstance(drawn, mne.EpochsArray) and drawn.get_data().shape == (8, 4, LENGTH)
    assert same_info(drawn.info, epochs.copy().pick(EEG).info)
    assert drawn.tmin == epochs.tmin and np.array_equal(drawn.times, epochs.times)
    assert drawn.event_id == epochs.event_id and drawn.baseline == epochs.baseline
    assert set(drawn.events[:, 2]) <= {2, 7}


def test_synthetic_epochs_of_an_event_are_all_of_it(fitted):
    assert (fitted.synthesize(5, event="rare").events[:, 2] == 7).all()
    assert len(fitted.synthesize(5)["often"]) > 0


def test_events_are_drawn_in_the_training_proportions(fitted):
    from structdiff.timeseries.eeg_sampling import draw_events

    share = (draw_events(np.array([20, 40]), 3000, 0) == 0).mean()
    assert share == pytest.approx(1 / 3, abs=0.03)  # standard error 0.009
    assert fitted.spec_.counts == (20, 40)


def test_a_seed_gives_the_same_epochs_and_the_first_of_more(fitted):
    few, more = fitted.synthesize(3, random_state=5), fitted.synthesize(6, random_state=5)
    again = clone(fitted).set_params(batch_size=2)
    assert np.allclose(few.get_data(), more.get_data()[:3], rtol=0, atol=ROUNDING)
    assert np.array_equal(few.events[:, 2], more.events[:3, 2])
    assert again.get_params()["batch_size"] == 2 and not hasattr(again, "spec_")
    other = fitted.synthesize(3, random_state=6)
    assert not np.allclose(few.get_data(), other.get_data(), atol=1e-7)


def test_synthetic_epochs_carry_the_events_responses(fitted):
    scores = evaluate_eeg(make_epochs(60, seed=1).pick("eeg"), fitted.synthesize(60))
    # A response of 20 uV, standard error of a mean of 20 epochs at most 4.5 uV.
    assert scores["evoked correlation rare"] > 0.8
    assert scores["accuracy trained on other"] > 0.8


def test_the_baseline_correction_is_the_training_epochs():
    epochs = make_epochs().apply_baseline((None, 0), verbose="ERROR")
    drawn = small().fit(epochs).synthesize(3)
    assert drawn.baseline == epochs.baseline
    assert np.allclose(drawn.get_data()[..., :11].mean(-1), 0, atol=1e-20)


def test_a_model_of_a_recording_synthesizes_windows(of_raw):
    drawn = of_raw.synthesize(3)
    assert drawn.get_data().shape == (3, 4, LENGTH) and drawn.tmin == 0
    with pytest.raises(StructDiffError, match="none"):
        of_raw.synthesize(3, event="rare")


@pytest.mark.parametrize("n", [0, 1.5, True])
def test_a_number_of_epochs_below_one_is_refused(fitted, n):
    with pytest.raises(StructDiffError, match="n must be"):
        fitted.synthesize(n)


def test_an_unknown_event_is_refused_with_the_known_ones(fitted):
    with pytest.raises(StructDiffError, match=r"'xx'.*'rare', 'often'"):
        fitted.synthesize(2, event="xx")


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
def test_imputation_changes_what_is_missing_and_nothing_else(fitted, of_raw, kind, continuous):
    model = of_raw if continuous else fitted
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


def test_channels_in_another_order_are_imputed_alike(fitted):
    epochs = make_epochs(3, seed=2)
    moved = epochs.copy().reorder_channels(NAMES[::-1])
    one = fitted.impute(epochs, ["Cz"]).get_data(picks=EEG)
    other = fitted.impute(moved, ["Cz"]).get_data(picks=EEG)
    assert np.array_equal(one, other)


def test_what_stands_in_missing_entries_has_no_influence(fitted):
    epochs = make_epochs(3, seed=2)
    broken = epochs.copy()
    broken.get_data(copy=False)[:, 1] = np.nan
    repaired = fitted.impute(broken, ["Cz"]).get_data()
    assert np.array_equal(repaired, fitted.impute(epochs, ["Cz"]).get_data())
    with pytest.raises(StructDiffError, match="epoch 0, channel 'Cz'"):
        fitted.impute(broken, ["Fz"])


def test_a_dropped_channel_is_imputed_as_well_as_its_neighbours_allow():
    model = small(steps=15).fit(make_epochs(200, response=0.0))
    epochs = make_epochs(60, seed=3, response=0.0)
    truth = epochs.get_data()[:, 1] / 20e-6
    error = model.impute(epochs, ["Cz"]).get_data()[:, 1] / 20e-6 - truth
    # Given both neighbours: sqrt((1 - phi^2) / (1 + phi^2)) = 0.324; filling in 0 leaves 1. The
    # covariance of 200 windows and its floor of 1 % cost some per cent.
    exact = math.sqrt((1 - SPACE**2) / (1 + SPACE**2))
    assert error.std() < 1.12 * exact
    assert error.std() < 0.4 * truth.std()


def test_draws_are_several_and_spread_around_the_mean(fitted):
    epochs = make_epochs(6, seed=2)
    draws = fitted.impute(epochs, ["Cz"], draws=3)
    assert len(draws) == 3 and all(isinstance(d, mne.EpochsArray) for d in draws)
    values = np.stack([d.get_data()[:, 1] for d in draws]) / 20e-6
    # The conditional standard deviation is 0.324; a few steps of training move it somewhat.
    assert values.std(axis=0, ddof=1).mean() == pytest.approx(0.29, abs=0.09)
    assert np.array_equal(fitted.impute(epochs, ["Cz"], draws=1)[0].get_data(), draws[0].get_data())


def test_an_imputed_segment_goes_on_across_windows(of_raw):
    raw = make_raw(seed=4, seconds=4.0)
    filled = of_raw.impute(raw, ["Cz"]).get_data()[1]
    jumps, truth = np.diff(filled).std(), np.diff(raw.get_data()[1]).std()
    assert np.abs(np.diff(filled)).max() < 6 * truth and jumps < 1.2 * truth


def test_nothing_missing_is_a_warning_and_a_copy(fitted):
    epochs = make_epochs(2)
    with pytest.warns(UserWarning, match="nothing is missing"):
        result = fitted.impute(epochs)
    assert np.array_equal(result.get_data(), epochs.get_data()) and result is not epochs


def test_an_epochs_model_also_repairs_recordings(fitted):
    raw = make_raw(seed=2, seconds=1.0)
    result = fitted.impute(raw, ["Oz"])
    assert np.array_equal(result.get_data()[:4], raw.get_data()[:4])


def test_another_length_rate_or_montage_is_refused_with_the_remedy(fitted):
    epochs = make_epochs(2)
    with pytest.raises(StructDiffError, match=r"30 samples, the model's 40"):
        fitted.impute(epochs.copy().crop(tmax=0.19), ["Cz"])
    with pytest.raises(StructDiffError, match=r"100 Hz.*50 Hz.*resample"):
        fitted.impute(epochs.copy().resample(50), ["Cz"])
    with pytest.raises(StructDiffError, match=r"lacks \['Oz'\]"):
        fitted.impute(epochs.copy().drop_channels(["Oz"]), ["Cz"])
    with pytest.raises(StructDiffError, match="shorter window"):
        fitted.impute(make_raw(seconds=0.3), ["Cz"])
    with pytest.raises(StructDiffError, match="draws"):
        fitted.impute(epochs, ["Cz"], draws=0)


def test_an_odd_number_of_paths_is_refused(fitted):
    try:
        fitted.set_params(n_samples=3)
        with pytest.raises(StructDiffError, match="even"):
            fitted.impute(make_epochs(2), ["Cz"])
    finally:
        fitted.set_params(n_samples=2)


def test_epochs_that_were_not_read_yet_go_through(fitted):
    raw = make_raw(seed=2)
    events = np.array([[50, 0, 2], [1990, 0, 7], [300, 0, 7]])  # the second ends too late
    lazy = mne.Epochs(
        raw, events, {"rare": 7, "often": 2}, -0.1, 0.29, baseline=None, verbose="ERROR"
    )
    result = fitted.impute(lazy, "Cz")
    assert len(result) == 2 and not lazy.preload
    read = lazy.copy().load_data()
    assert np.array_equal(result.get_data()[:, 0], read.get_data()[:, 0])
    assert evaluate_eeg(lazy, read)["covariance error"] == 0


# --- forecasts -----------------------------------------------------------------------------------
def test_a_forecast_goes_on_where_the_recording_ends(of_raw):
    raw = make_raw().crop(tmin=3.0)
    future = of_raw.forecast(raw, 0.15)
    assert future.n_times == 15 and future.ch_names == EEG
    assert future.first_samp == raw.first_samp + raw.n_times
    assert same_info(future.info, raw.copy().pick(EEG).info)
    assert len(of_raw.forecast(raw, 0.5, draws=2)) == 2


def test_a_rhythm_is_forecast():
    rng = np.random.default_rng(0)
    time = np.arange(3000) / SFREQ
    wave = 2e-5 * np.sin(2 * np.pi * 10 * time) + 2e-6 * rng.normal(size=(4, 3000))
    raw = mne.io.RawArray(wave, mne.create_info(EEG, SFREQ, "eeg"), verbose="ERROR")
    model = small().fit(raw.copy().crop(tmax=24.99))
    future = model.forecast(raw.copy().crop(tmax=24.99), 0.2).get_data()
    error = (future - wave[:, 2500:2520]).std()
    # Noise of 2 uV on a sine of 14 uV (standard deviation): the rhythm is known, the noise not.
    assert error < 3.5e-6


def test_a_forecast_needs_a_long_enough_raw(of_raw):
    with pytest.raises(StructDiffError, match="recording of at least 20 samples"):
        of_raw.forecast(make_raw(seconds=0.15), 0.5)
    with pytest.raises(StructDiffError, match="Epochs"):
        of_raw.forecast(make_epochs(2))
    with pytest.raises(StructDiffError, match="duration"):
        of_raw.forecast(make_raw(), 0.0)


# --- training ------------------------------------------------------------------------------------
def test_bad_channels_stay_out_of_the_training():
    epochs = make_epochs()
    epochs.info["bads"] = ["Cz"]
    model = small().fit(epochs)
    assert model.spec_.channels == ("Fz", "Pz", "Oz")
    with pytest.raises(StructDiffError, match=r"'Cz'.*interpolate_bads"):
        model.impute(epochs)


def test_epochs_touched_by_bad_annotations_are_left_out_with_a_warning():
    epochs = make_epochs()
    epochs.set_annotations(mne.Annotations([0.45], [0.2], ["BAD"]))
    with pytest.warns(UserWarning, match="1 of 60 epochs.*epoch 0"):
        model = small().fit(epochs)
    assert model.training_["windows"] == 59


def test_windows_touched_by_bad_annotations_are_left_out():
    raw = make_raw()
    raw.set_annotations(mne.Annotations([0.0], [19.5], ["BAD"], orig_time=raw.info["meas_date"]))
    data = raw.get_data()
    data[:, :1950] = np.nan
    raw[:, :] = data
    # 50 clean samples, windows of 40 at every second: the last six.
    assert small().fit(raw).training_["windows"] == 6


def test_bad_input_is_named():
    epochs = make_epochs(4)
    flat, broken = epochs.copy(), epochs.copy()
    flat.get_data(copy=False)[:, 3] = 1e-6
    broken.get_data(copy=False)[2, 4, 7] = np.inf
    with pytest.raises(StructDiffError, match=r"\['Pz'\] are flat"):
        small().fit(flat)
    with pytest.raises(StructDiffError, match="epoch 2, channel 'Oz'"):
        small().fit(broken)
    with pytest.raises(StructDiffError, match="two or more"):
        small().fit(epochs[:1])
    with pytest.raises(StructDiffError, match="choose a longer"):
        small(window=0.01).fit(make_raw())
    with pytest.raises(StructDiffError, match="not fitted"):
        small().synthesize(1)


def test_windows_of_very_many_samples_are_a_warning_with_the_remedy(monkeypatch):
    assert eeg_model.LONGEST == 1024
    monkeypatch.setattr(eeg_model, "LONGEST", 39)
    with pytest.warns(UserWarning, match=r"40 samples at 100 Hz.*resample\(128\)"):
        small(max_steps=1).fit(make_epochs(10))


def test_the_callers_epochs_are_as_they_were():
    epochs = make_epochs()
    before = epochs.get_data().copy()
    small().fit(epochs)
    assert np.array_equal(epochs.get_data(), before)


def test_training_twice_gives_the_same_model():
    one, other = (small().fit(make_epochs()) for _ in range(2))
    assert one.training_ == other.training_
    assert np.allclose(
        one.synthesize(2).get_data(), other.synthesize(2).get_data(), rtol=0, atol=ROUNDING
    )


def test_the_response_of_an_event_is_kept_and_noise_is_not(fitted):
    rare, often = fitted.means_
    # 20 uV over a scale of about 10, 20, 15 and 5 uV: clear; the other event has none.
    assert rare[25].mean() > 1.0 and often.abs().max() < 0.5


# --- storage -------------------------------------------------------------------------------------
def test_a_saved_model_comes_back(fitted, tmp_path):
    fitted.save_pretrained(tmp_path)
    loaded = EEGDiffusion.from_pretrained(tmp_path).set_params(progress=False)
    assert loaded.spec_ == fitted.spec_ and loaded.training_ == fitted.training_
    one, other = (m.synthesize(3, random_state=0) for m in (fitted, loaded))
    assert np.allclose(one.get_data(), other.get_data(), rtol=0, atol=ROUNDING)
    assert np.array_equal(one.events, other.events) and one.event_id == other.event_id
    places = [[c["loc"] for c in epochs.info["chs"]] for epochs in (one, other)]
    assert np.array_equal(*places, equal_nan=True)
    positions = [epochs.get_montage().get_positions() for epochs in (one, other)]
    assert positions[0]["coord_frame"] == positions[1]["coord_frame"]
    assert np.allclose(positions[0]["nasion"], positions[1]["nasion"])


def test_a_model_at_half_the_size_keeps_its_gaussian(fitted, tmp_path):
    fitted.save_pretrained(tmp_path, dtype="float16")
    loaded = EEGDiffusion.from_pretrained(tmp_path)
    for name, value in fitted.denoiser_.network.state_dict().items():
        kept = value if not name.startswith("backbone.") else value.half().to(value.dtype)
        assert loaded.denoiser_.network.state_dict()[name].equal(kept), name


def test_a_saved_model_says_nothing_about_the_subject(of_raw, tmp_path):
    of_raw.save_pretrained(tmp_path)
    content = b"".join(f.read_bytes() for f in tmp_path.iterdir())
    assert b"Somebody" in str(of_raw.info_.get("subject_info")).encode()
    assert b"Somebody" not in content and b"2020" not in content


@pytest.mark.parametrize(
    "part, value",
    [("model", {}), ("info", {}), ("parameters", {"unheard": 1}), ("format", "structdiff.other/1")],
)
def test_a_damaged_description_is_refused(fitted, tmp_path, part, value):
    fitted.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    config[part] = value
    path.write_text(json.dumps(config))
    with pytest.raises(CheckpointError):
        EEGDiffusion.from_pretrained(tmp_path)


def test_a_model_of_another_head_says_what_loads_it(fitted, tmp_path):
    from structdiff.timeseries import TSDiff

    fitted.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"eeg\.EEGDiffusion\.from_pretrained"):
        TSDiff.from_pretrained(tmp_path)


def test_an_unknown_accelerator_is_refused():
    model = small().fit(make_epochs()).set_params(accelerator="abacus")
    with pytest.raises(StructDiffError, match="abacus"):
        model.synthesize(1)


def test_weights_of_another_size_are_refused(fitted, of_raw, tmp_path):
    fitted.save_pretrained(tmp_path / "a")
    of_raw.save_pretrained(tmp_path / "b")
    (tmp_path / "a" / "config.json").replace(tmp_path / "b" / "config.json")
    with pytest.raises(CheckpointError, match="another network"):
        EEGDiffusion.from_pretrained(tmp_path / "b")


# --- real recordings -----------------------------------------------------------------------------
def test_the_edf_with_overlapping_annotations_goes_through(data_dir):
    path = data_dir / "eeg" / "eegmmi_128hz_64ch.edf"
    raw = mne.io.read_raw_edf(path, preload=True, verbose="ERROR")
    notes = raw.annotations
    starts = notes.onset[1:] < (notes.onset + notes.duration)[:-1] - 1e-6
    assert starts.any()  # they do overlap
    raw.annotations.description[notes.description == "T0"] = "BAD_rest"
    events, ids = mne.events_from_annotations(raw, regexp="T[12]", verbose="ERROR")
    settings = {"baseline": None, "preload": True, "verbose": "ERROR"}
    model = small(max_steps=1).fit(mne.Epochs(raw, events, ids, 1.0, 1.49, **settings))
    epochs = mne.Epochs(raw, events, ids, 0.0, 0.49, reject_by_annotation=False, **settings)
    result = model.impute(epochs, ["Cz.."])
    assert len(result) == len(epochs) == len(events) and same_info(result.info, epochs.info)


def test_an_eeglab_set_without_positions_goes_through(data_dir, tmp_path):
    path = data_dir / "eeg" / "test_raw.set"
    raw = mne.io.read_raw_eeglab(path, preload=True, verbose="ERROR").crop(tmax=30)
    assert raw.get_montage() is None
    model = small(max_steps=1).fit(raw)
    raw.info["bads"] = ["EEG 003"]
    short = raw.copy().crop(tmax=2)
    assert same_info(model.impute(short).info, short.info)
    model.save_pretrained(tmp_path)
    loaded = EEGDiffusion.from_pretrained(tmp_path).set_params(progress=False)
    assert loaded.synthesize(1).ch_names == raw.ch_names


def test_a_plot_has_a_panel_per_comparison(fitted):
    import matplotlib.pyplot as plt

    figure = fitted.plot(make_epochs(30, seed=1), n=10)
    titles = [axis.get_title() for axis in figure.axes]
    assert titles[0] == "spectrum" and titles[1].startswith("rare")
    assert titles[-3:-1] == ["covariance, real", "covariance, synthetic"]
    plt.close(figure)
