"""EEGDiffusion: mne objects in, mne objects with the same info, order, times and events out."""

from __future__ import annotations

import json

import mne
import numpy as np
import pytest
from sklearn.base import clone

from structdiff.errors import CheckpointError, StructDiffError
from structdiff.timeseries import eeg_model
from structdiff.timeseries.eeg import EEGDiffusion, evaluate_eeg

LENGTH = 40
EEG = ["Fz", "Cz", "Pz", "Oz"]
# Sampling starts at 50 standard deviations of some 20 uV, in single precision (6e-8 of it): volts.
ROUNDING = 4 * 50 * 20e-6 * 6e-8


# --- synthesis ---------------------------------------------------------------------------------
def test_synthetic_epochs_have_the_callers_info_order_times_and_events(
    of_epochs, make_epochs, same_info
):
    epochs = make_epochs()
    drawn = of_epochs.synthesize(8)
    assert isinstance(drawn, mne.EpochsArray) and drawn.get_data().shape == (8, 4, LENGTH)
    assert same_info(drawn.info, epochs.copy().pick(EEG).info)
    assert drawn.tmin == epochs.tmin and np.array_equal(drawn.times, epochs.times)
    assert drawn.event_id == epochs.event_id and drawn.baseline == epochs.baseline
    assert set(drawn.events[:, 2]) <= {2, 7}


def test_synthetic_epochs_of_an_event_are_all_of_it(of_epochs):
    assert (of_epochs.synthesize(5, event="rare").events[:, 2] == 7).all()
    assert len(of_epochs.synthesize(5)["often"]) > 0


def test_events_are_drawn_in_the_training_proportions(of_epochs):
    from structdiff.timeseries.eeg_sampling import draw_events

    share = (draw_events(np.array([20, 40]), 3000, 0) == 0).mean()
    assert share == pytest.approx(1 / 3, abs=0.03)  # standard error 0.009
    assert of_epochs.spec_.counts == (20, 40)


def test_a_seed_gives_the_same_epochs_and_the_first_of_more(of_epochs):
    few, more = of_epochs.synthesize(3, random_state=5), of_epochs.synthesize(6, random_state=5)
    again = clone(of_epochs).set_params(batch_size=2)
    assert np.allclose(few.get_data(), more.get_data()[:3], rtol=0, atol=ROUNDING)
    assert np.array_equal(few.events[:, 2], more.events[:3, 2])
    assert again.get_params()["batch_size"] == 2 and not hasattr(again, "spec_")
    other = of_epochs.synthesize(3, random_state=6)
    assert not np.allclose(few.get_data(), other.get_data(), atol=1e-7)


def test_synthetic_epochs_carry_the_events_responses(of_epochs, make_epochs):
    scores = evaluate_eeg(make_epochs(60, seed=1).pick("eeg"), of_epochs.synthesize(60))
    # A response of 20 uV, standard error of a mean of 20 epochs at most 4.5 uV.
    assert scores["evoked correlation rare"] > 0.8
    assert scores["accuracy trained on other"] > 0.8


def test_the_baseline_correction_is_the_training_epochs(small_eeg, make_epochs):
    epochs = make_epochs().apply_baseline((None, 0), verbose="ERROR")
    drawn = small_eeg().fit(epochs).synthesize(3)
    assert drawn.baseline == epochs.baseline
    assert np.allclose(drawn.get_data()[..., :11].mean(-1), 0, atol=1e-20)


def test_a_model_of_a_recording_synthesizes_windows(of_raw):
    drawn = of_raw.synthesize(3)
    assert drawn.get_data().shape == (3, 4, LENGTH) and drawn.tmin == 0
    with pytest.raises(StructDiffError, match="none"):
        of_raw.synthesize(3, event="rare")


@pytest.mark.parametrize("n", [0, 1.5, True])
def test_a_number_of_epochs_below_one_is_refused(of_epochs, n):
    with pytest.raises(StructDiffError, match="n must be"):
        of_epochs.synthesize(n)


def test_an_unknown_event_is_refused_with_the_known_ones(of_epochs):
    with pytest.raises(StructDiffError, match=r"'xx'.*'rare', 'often'"):
        of_epochs.synthesize(2, event="xx")


# --- training ------------------------------------------------------------------------------------
def test_bad_channels_stay_out_of_the_training(small_eeg, make_epochs):
    epochs = make_epochs()
    epochs.info["bads"] = ["Cz"]
    model = small_eeg().fit(epochs)
    assert model.spec_.channels == ("Fz", "Pz", "Oz")
    with pytest.raises(StructDiffError, match=r"'Cz'.*interpolate_bads"):
        model.impute(epochs)


def test_epochs_touched_by_bad_annotations_are_left_out_with_a_warning(small_eeg, make_epochs):
    epochs = make_epochs()
    epochs.set_annotations(mne.Annotations([0.45], [0.2], ["BAD"]))
    with pytest.warns(UserWarning, match="1 of 60 epochs.*epoch 0"):
        model = small_eeg().fit(epochs)
    assert model.training_["windows"] == 59


def test_windows_touched_by_bad_annotations_are_left_out(small_eeg, make_raw):
    raw = make_raw()
    raw.set_annotations(mne.Annotations([0.0], [19.5], ["BAD"], orig_time=raw.info["meas_date"]))
    data = raw.get_data()
    data[:, :1950] = np.nan
    raw[:, :] = data
    # 50 clean samples, windows of 40 at every second: the last six.
    assert small_eeg().fit(raw).training_["windows"] == 6


def test_bad_input_is_named(small_eeg, make_raw, make_epochs):
    epochs = make_epochs(4)
    flat, broken = epochs.copy(), epochs.copy()
    flat.get_data(copy=False)[:, 3] = 1e-6
    broken.get_data(copy=False)[2, 4, 7] = np.inf
    with pytest.raises(StructDiffError, match=r"\['Pz'\] are flat"):
        small_eeg().fit(flat)
    with pytest.raises(StructDiffError, match="epoch 2, channel 'Oz'"):
        small_eeg().fit(broken)
    with pytest.raises(StructDiffError, match="two or more"):
        small_eeg().fit(epochs[:1])
    with pytest.raises(StructDiffError, match="choose a longer"):
        small_eeg(window=0.01).fit(make_raw())
    with pytest.raises(StructDiffError, match="not fitted"):
        small_eeg().synthesize(1)


def test_windows_of_very_many_samples_are_a_warning_with_the_remedy(
    monkeypatch, small_eeg, make_epochs
):
    assert eeg_model.LONGEST == 1024
    monkeypatch.setattr(eeg_model, "LONGEST", 39)
    with pytest.warns(UserWarning, match=r"40 samples at 100 Hz.*resample\(128\)"):
        small_eeg(max_steps=1).fit(make_epochs(10))


def test_the_callers_epochs_are_as_they_were(small_eeg, make_epochs):
    epochs = make_epochs()
    before = epochs.get_data().copy()
    small_eeg().fit(epochs)
    assert np.array_equal(epochs.get_data(), before)


def test_training_twice_gives_the_same_model(small_eeg, make_epochs):
    one, other = (small_eeg().fit(make_epochs()) for _ in range(2))
    assert one.training_ == other.training_
    assert np.allclose(
        one.synthesize(2).get_data(), other.synthesize(2).get_data(), rtol=0, atol=ROUNDING
    )


def test_the_response_of_an_event_is_kept_and_noise_is_not(of_epochs):
    rare, often = of_epochs.means_
    # 20 uV over a scale of about 10, 20, 15 and 5 uV: clear; the other event has none.
    assert rare[25].mean() > 1.0 and often.abs().max() < 0.5


# --- storage -------------------------------------------------------------------------------------
def test_a_saved_model_comes_back(of_epochs, tmp_path):
    of_epochs.save_pretrained(tmp_path)
    loaded = EEGDiffusion.from_pretrained(tmp_path).set_params(progress=False)
    assert loaded.spec_ == of_epochs.spec_ and loaded.training_ == of_epochs.training_
    one, other = (m.synthesize(3, random_state=0) for m in (of_epochs, loaded))
    assert np.allclose(one.get_data(), other.get_data(), rtol=0, atol=ROUNDING)
    assert np.array_equal(one.events, other.events) and one.event_id == other.event_id
    places = [[c["loc"] for c in epochs.info["chs"]] for epochs in (one, other)]
    assert np.array_equal(*places, equal_nan=True)
    positions = [epochs.get_montage().get_positions() for epochs in (one, other)]
    assert positions[0]["coord_frame"] == positions[1]["coord_frame"]
    assert np.allclose(positions[0]["nasion"], positions[1]["nasion"])


def test_a_model_at_half_the_size_keeps_its_gaussian(of_epochs, tmp_path):
    of_epochs.save_pretrained(tmp_path, dtype="float16")
    loaded = EEGDiffusion.from_pretrained(tmp_path)
    for name, value in of_epochs.denoiser_.network.state_dict().items():
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
def test_a_damaged_description_is_refused(of_epochs, tmp_path, part, value):
    of_epochs.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    config[part] = value
    path.write_text(json.dumps(config))
    with pytest.raises(CheckpointError):
        EEGDiffusion.from_pretrained(tmp_path)


def test_a_model_of_another_head_says_what_loads_it(of_epochs, tmp_path):
    from structdiff.timeseries import TSDiff

    of_epochs.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"eeg\.EEGDiffusion\.from_pretrained"):
        TSDiff.from_pretrained(tmp_path)


def test_an_unknown_accelerator_is_refused(small_eeg, make_epochs):
    model = small_eeg().fit(make_epochs()).set_params(accelerator="abacus")
    with pytest.raises(StructDiffError, match="abacus"):
        model.synthesize(1)


def test_weights_of_another_size_are_refused(of_epochs, of_raw, tmp_path):
    of_epochs.save_pretrained(tmp_path / "a")
    of_raw.save_pretrained(tmp_path / "b")
    (tmp_path / "a" / "config.json").replace(tmp_path / "b" / "config.json")
    with pytest.raises(CheckpointError, match="another network"):
        EEGDiffusion.from_pretrained(tmp_path / "b")


# --- real recordings -----------------------------------------------------------------------------
def test_the_edf_with_overlapping_annotations_goes_through(data_dir, small_eeg, same_info):
    path = data_dir / "eeg" / "eegmmi_128hz_64ch.edf"
    raw = mne.io.read_raw_edf(path, preload=True, verbose="ERROR")
    notes = raw.annotations
    starts = notes.onset[1:] < (notes.onset + notes.duration)[:-1] - 1e-6
    assert starts.any()  # they do overlap
    raw.annotations.description[notes.description == "T0"] = "BAD_rest"
    events, ids = mne.events_from_annotations(raw, regexp="T[12]", verbose="ERROR")
    settings = {"baseline": None, "preload": True, "verbose": "ERROR"}
    model = small_eeg(max_steps=1).fit(mne.Epochs(raw, events, ids, 1.0, 1.49, **settings))
    epochs = mne.Epochs(raw, events, ids, 0.0, 0.49, reject_by_annotation=False, **settings)
    result = model.impute(epochs, ["Cz.."])
    assert len(result) == len(epochs) == len(events) and same_info(result.info, epochs.info)


def test_an_eeglab_set_without_positions_goes_through(data_dir, tmp_path, small_eeg, same_info):
    path = data_dir / "eeg" / "test_raw.set"
    raw = mne.io.read_raw_eeglab(path, preload=True, verbose="ERROR").crop(tmax=30)
    assert raw.get_montage() is None
    model = small_eeg(max_steps=1).fit(raw)
    raw.info["bads"] = ["EEG 003"]
    short = raw.copy().crop(tmax=2)
    assert same_info(model.impute(short).info, short.info)
    model.save_pretrained(tmp_path)
    loaded = EEGDiffusion.from_pretrained(tmp_path).set_params(progress=False)
    assert loaded.synthesize(1).ch_names == raw.ch_names


def test_a_plot_has_a_panel_per_comparison(of_epochs, make_epochs):
    import matplotlib.pyplot as plt

    figure = of_epochs.plot(make_epochs(30, seed=1), n=10)
    titles = [axis.get_title() for axis in figure.axes]
    assert titles[0] == "spectrum" and titles[1].startswith("rare")
    assert titles[-3:-1] == ["covariance, real", "covariance, synthetic"]
    plt.close(figure)
