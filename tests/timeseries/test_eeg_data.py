"""EEG between mne and the model: masks, scales, windows and the errors that name the place."""

from __future__ import annotations

from datetime import datetime, timezone

import mne
import numpy as np
import pytest
import torch

from structdiff.errors import StructDiffError
from structdiff.timeseries.eeg_data import (
    ChannelScale,
    check_channels,
    check_finite,
    clean_starts,
    covering_windows,
    good_channels,
    is_raw,
    missing_entries,
    picked_info,
    replaced,
    voltages,
)

NAMES = ["Fz", "Cz", "Pz", "Oz"]


def recording(seconds=10.0, sfreq=100.0, dated=True, extra=False):
    rng = np.random.default_rng(0)
    kinds = ["eeg"] * 4 + (["eog"] if extra else [])
    names = [*NAMES, "EOG"][: len(kinds)]
    data = rng.normal(size=(len(names), int(seconds * sfreq))) * 2e-5
    raw = mne.io.RawArray(data, mne.create_info(names, sfreq, kinds), verbose="ERROR")
    if dated:
        raw.set_meas_date(datetime(2020, 1, 1, tzinfo=timezone.utc))
    return raw


def annotated(raw, onset, duration, text, **more):
    start = raw.annotations.orig_time
    notes = mne.Annotations(onset, duration, text, orig_time=start, **more)
    return raw.copy().set_annotations(notes)


OVERLAPPING = ([0.5, 1.0, 1.2, 9.7], [1.0, 0.5, 1.5, 5.0], ["BAD_x", "bad blink", "T1", "BAD"])


@pytest.mark.parametrize("dated", [True, False])
@pytest.mark.parametrize("cropped", [0.0, 0.803])
def test_raw_masks_are_where_mne_itself_rejects(dated, cropped):
    raw = annotated(recording(dated=dated).crop(tmax=9.99), *OVERLAPPING).crop(tmin=cropped)
    rejected = np.isnan(raw.get_data(reject_by_annotation="NaN", verbose="ERROR"))
    assert rejected.any() and not rejected.all()
    assert np.array_equal(missing_entries(raw, NAMES), rejected)


def test_epoch_masks_are_the_recordings_at_the_events():
    raw = annotated(recording(), *OVERLAPPING)
    events = np.array([[100, 0, 1], [150, 0, 1], [400, 0, 1], [905, 0, 1]])
    epochs = mne.Epochs(
        raw, events, tmin=-0.2, tmax=0.79, baseline=None, preload=True, reject_by_annotation=False
    )
    whole = missing_entries(raw, NAMES)
    expected = np.stack([whole[:, k - 20 : k + 80] for k in events[:, 0]])
    assert np.array_equal(missing_entries(epochs, NAMES), expected)


def test_annotations_that_name_channels_concern_those():
    raw = annotated(recording(), [2.0], [1.0], ["BAD"], ch_names=[["Pz"]])
    expected = np.zeros((4, 1000), dtype=bool)
    expected[2, 200:300] = True
    assert np.array_equal(missing_entries(raw, NAMES), expected)
    events = np.array([[150, 0, 1]])
    epochs = mne.Epochs(
        raw, events, tmin=0.0, tmax=0.99, baseline=None, preload=True, reject_by_annotation=False
    )
    assert np.array_equal(missing_entries(epochs, NAMES)[0], expected[:, 150:250])


def test_bads_and_named_channels_are_missing_throughout():
    raw = recording(extra=True)
    raw.info["bads"] = ["Oz", "EOG"]
    mask = missing_entries(raw, NAMES, ["Fz"])
    assert mask[[0, 3]].all() and not mask[[1, 2]].any()


def test_channels_that_the_model_does_not_know_cannot_be_imputed():
    raw = recording()
    raw.info["bads"] = ["Oz"]
    with pytest.raises(StructDiffError, match=r"'Oz'.*interpolate_bads"):
        missing_entries(raw, NAMES[:3])


def test_good_channels_leave_out_bads_and_other_kinds():
    raw = recording(extra=True)
    raw.info["bads"] = ["Cz"]
    assert good_channels(raw, "eeg") == ["Fz", "Pz", "Oz"]
    assert good_channels(raw, ["EOG", "Fz"]) == ["Fz", "EOG"]
    with pytest.raises(StructDiffError, match="'Xx'"):
        good_channels(raw, ["Xx"])
    with pytest.raises(StructDiffError, match="no channel is left"):
        good_channels(raw, "mag")


def test_another_rate_is_refused_with_both_and_the_remedy():
    with pytest.raises(StructDiffError, match=r"128 Hz.*100 Hz.*resample\(128\)"):
        check_channels(recording(), NAMES, 128.0)


def test_other_channels_are_refused_with_both_and_the_remedy():
    with pytest.raises(StructDiffError, match=r"'T7'.*lacks \['T7'\].*rename_channels"):
        check_channels(recording(), ["Fz", "T7"], 100.0)


def test_values_that_are_not_finite_are_named_by_epoch_and_channel():
    data = np.zeros((3, 4, 5))
    data[2, 1, 4] = np.nan
    with pytest.raises(StructDiffError, match=r"epoch 2, channel 'Cz'.*sample 4"):
        check_finite(data, NAMES)
    check_finite(data, NAMES, np.isnan(data))


def test_flat_channels_are_named_with_the_remedy():
    data = np.random.default_rng(0).normal(size=(3, 4, 50)) * 1e-5
    data[:, 2] = 3e-6
    with pytest.raises(StructDiffError, match=r"\['Pz'\] are flat.*info\['bads'\]"):
        ChannelScale.of(data, NAMES)


def test_the_scale_is_the_standard_deviation_of_normal_data_whatever_the_artefacts():
    rng = np.random.default_rng(0)
    data = rng.normal(size=(50, 2, 400)) * 2e-5 + 1e-4
    data[:2] *= 100  # 4 % of the epochs
    scale = ChannelScale.of(data, NAMES[:2])
    # With 4 % outside, the median deviation lies where the normal law has 0.5 / 0.96: 5 % out.
    assert torch.allclose(scale.scale, torch.tensor(20.0).double(), rtol=0.08)
    # The artefacts all lie above: the median is at 0.52 instead of 0.5, 5 % of a deviation up.
    assert torch.allclose(scale.centre, torch.tensor(101.0).double(), rtol=0, atol=0.6)


def test_a_channel_that_rests_for_half_of_the_time_is_scaled_by_its_standard_deviation():
    data = np.random.default_rng(0).normal(size=(4, 1, 100)) * 1e-5
    data[..., :60] = 0.0
    assert ChannelScale.of(data, ["Fz"]).scale.item() == pytest.approx(data.std() * 1e6)


def test_volts_come_back_from_model_units():
    data = np.random.default_rng(0).normal(size=(5, 4, 50)) * 1e-5 + 1e-3
    scale = ChannelScale.of(data, NAMES)
    windows = scale.to_model(data)
    assert windows.shape == (5, 50, 4) and windows.dtype == torch.float32
    # float32 keeps 1e-7 of a standard deviation.
    assert np.allclose(scale.to_volts(windows), data, rtol=0, atol=1e-5 * 1e-6 * 10)


def test_clean_windows_touch_nothing_missing():
    mask = np.zeros((2, 40), dtype=bool)
    mask[1, 12] = True
    assert clean_starts(mask, 10, 1).tolist() == [0, 1, 2, *range(13, 31)]
    with pytest.raises(StructDiffError, match="shorter window"):
        clean_starts(mask, 41, 1)
    with pytest.raises(StructDiffError, match="BAD"):
        clean_starts(np.ones((1, 20), dtype=bool), 5, 1)


@pytest.mark.parametrize("length", [10, 33])
@pytest.mark.parametrize("extra", [0, 1, 7, 20, 33, 500])
def test_covering_windows_cover_and_overlap_only_between_passes(length, extra):
    total = length + extra
    passes = covering_windows(total, length)
    seen = np.zeros(total, dtype=int)
    for starts in passes:
        assert (np.diff(starts) >= length).all()
        for start in starts:
            seen[start : start + length] += 1
    assert seen.min() >= 1
    starts = np.sort(np.concatenate(passes))
    assert (np.diff(starts) <= -(-2 * length // 3)).all()


def test_picked_info_keeps_the_callers_order_and_bads():
    raw = recording(extra=True)
    raw.info["bads"] = ["Cz"]
    info = picked_info(raw, ["Pz", "Cz"])
    assert info["ch_names"] == ["Pz", "Cz"] and info["bads"] == ["Cz"]


def test_voltages_follow_the_order_asked_for():
    raw = recording(extra=True)
    assert is_raw(raw)
    assert np.array_equal(voltages(raw, ["Oz", "Fz"]), raw.get_data()[[3, 0]])
    events = np.array([[100, 0, 1], [300, 0, 1]])
    epochs = mne.Epochs(raw, events, tmin=0, tmax=0.5, baseline=None, preload=True)
    assert np.array_equal(voltages(epochs, ["Oz", "Fz"]), epochs.get_data()[:, [3, 0]])


def test_replacing_changes_nothing_else_and_not_the_callers():
    raw = recording(extra=True)
    before = raw.get_data().copy()
    data = np.zeros((2, raw.n_times))
    result = replaced(raw, ["Oz", "Fz"], data)
    assert np.array_equal(raw.get_data(), before)
    assert np.array_equal(result.get_data()[[1, 2, 4]], before[[1, 2, 4]])
    assert not result.get_data()[[0, 3]].any()
    assert mne.utils.object_diff(result.info, raw.info) == ""


def test_what_is_neither_raw_nor_epochs_is_refused():
    with pytest.raises(StructDiffError, match="ndarray"):
        is_raw(np.zeros((3, 4)))
