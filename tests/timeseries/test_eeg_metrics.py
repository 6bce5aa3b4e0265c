"""Measures of EEG against signals whose value is known."""

from __future__ import annotations

import mne
import numpy as np
import pytest

from structdiff.errors import StructDiffError
from structdiff.timeseries.eeg_metrics import (
    band_power,
    band_power_errors,
    channel_covariance,
    classifier_accuracy,
    covariance_error,
    cross_validated_accuracy,
    evaluate_eeg,
    event_names,
    evoked_correlation,
)

SFREQ = 128.0


def sines(frequency, amplitude, epochs=4, channels=2, length=512, noise=0.0, seed=0):
    rng = np.random.default_rng(seed)
    time = np.arange(length) / SFREQ
    phase = rng.uniform(0, 2 * np.pi, size=(epochs, channels, 1))
    wave = amplitude * np.sin(2 * np.pi * frequency * time + phase)
    return wave + noise * rng.normal(size=wave.shape)


def make(data, codes, names=("a", "b"), info=None):
    info = info or mne.create_info([f"E{k}" for k in range(data.shape[1])], SFREQ, "eeg")
    events = np.stack([np.arange(len(data)) * 1000, np.zeros(len(data), int), codes], 1)
    ids = {name: number for number, name in enumerate(names, start=1)}
    return mne.EpochsArray(
        data * 1e-6, info, events, event_id=ids, on_missing="ignore", verbose="ERROR"
    )


@pytest.mark.parametrize(
    "frequency, band", [(2, "delta"), (6, "theta"), (10, "alpha"), (20, "beta"), (40, "gamma")]
)
def test_a_sine_has_its_power_in_its_band(frequency, band):
    # Mean square of a sine: A^2 / 2; the Hann window leaks less than 1 % past two bins.
    powers = band_power(sines(frequency, 3.0), SFREQ)
    assert np.allclose(powers[band], 4.5, rtol=0.02)
    assert sum(p.max() for k, p in powers.items() if k != band) < 0.05


def test_white_noise_has_power_in_proportion_to_the_bands_width():
    noise = np.random.default_rng(0).normal(size=(400, 1, 512))
    powers = band_power(noise, SFREQ)
    # Density of unit variance over 64 Hz: 1/64 per Hz.
    assert powers["beta"].mean() == pytest.approx(17 / 64, rel=0.03)


def test_twice_the_amplitude_is_an_error_of_three():
    errors = band_power_errors(sines(10, 1.0), sines(10, 2.0), SFREQ)
    assert errors["alpha"] == pytest.approx(3.0, rel=1e-6)


def test_bands_beyond_the_sampling_rate_are_left_out():
    assert set(band_power(np.random.default_rng(0).normal(size=(2, 1, 64)), 32.0)) == {
        *("delta", "theta", "alpha", "beta")
    }


def test_channel_covariance_is_the_known_one():
    rng = np.random.default_rng(0)
    truth = np.array([[2.0, 1.2], [1.2, 1.0]])
    data = np.einsum("cd,ndl->ncl", np.linalg.cholesky(truth), rng.normal(size=(200, 2, 200)))
    # 40,000 samples: standard error below 0.015.
    assert np.allclose(channel_covariance(data), truth, atol=0.05)
    assert covariance_error(data, 2 * data) == pytest.approx(3.0)
    assert covariance_error(data, data + 7.0) == pytest.approx(0.0, abs=1e-12)


def test_evoked_correlation_is_one_for_the_same_response_and_minus_one_for_its_opposite():
    response = np.sin(np.linspace(0, 6, 100)) * np.array([[1.0], [-2.0]])
    one, other = np.stack([response] * 3), np.stack([5 * response + 3.0] * 2)
    assert evoked_correlation(one, other) == pytest.approx(1.0)
    assert evoked_correlation(one, -other) == pytest.approx(-1.0)


def test_events_that_differ_in_rhythm_are_told_apart_and_equal_ones_are_not():
    weak, strong = sines(10, 1.0, 40, noise=1.0), sines(10, 4.0, 40, noise=1.0, seed=1)
    data, events = np.concatenate([weak, strong]), np.repeat([0, 1], 40)
    assert classifier_accuracy(data[::2], events[::2], data[1::2], events[1::2], SFREQ) == 1.0
    assert cross_validated_accuracy(data, events, SFREQ) == 1.0
    none = np.random.default_rng(2).integers(2, size=80)
    # 80 epochs by chance: standard deviation 0.056; within three of them.
    assert abs(cross_validated_accuracy(data[:40].repeat(2, 0), none, SFREQ) - 0.5) < 0.17


def test_training_on_an_event_with_one_epoch_is_nan():
    data, events = sines(10, 1.0, 3), np.array([0, 0, 1])
    assert np.isnan(cross_validated_accuracy(data, events, SFREQ))
    assert np.isnan(classifier_accuracy(data, events, data, events, SFREQ))


def two_events(seed, shift=0.0):
    rng = np.random.default_rng(seed)
    response = np.sin(np.linspace(0, 6, 128))
    data = rng.normal(size=(40, 3, 128))
    data[:20] += response
    data[20:] -= response
    return make(data + shift, np.repeat([1, 2], 20))


def test_equal_epochs_have_no_error():
    real = two_events(0)
    scores = evaluate_eeg(real, real)
    assert scores["band power error"] == 0 and scores["covariance error"] == 0
    assert scores["evoked correlation a"] == pytest.approx(1.0)
    assert scores["accuracy trained on other"] == 1.0


def test_the_order_of_channels_does_not_matter():
    real, other = two_events(0), two_events(1)
    moved = other.copy().reorder_channels(["E2", "E0", "E1"])
    assert evaluate_eeg(real, other).equals(evaluate_eeg(real, moved))


def test_named_channels_alone_are_compared():
    real, other = two_events(0), two_events(1)
    other.get_data(copy=False)[:, 2] *= 10
    apart = evaluate_eeg(real, other, picks=["E0", "E1"])["band power error"]
    assert apart < 0.5 < evaluate_eeg(real, other)["band power error"]


def test_the_reference_is_trained_on_the_real_training_epochs_where_they_are_given():
    real, other = two_events(0), two_events(1)
    swapped = make(two_events(2).get_data() * 1e6, np.repeat([2, 1], 20))
    scores = evaluate_eeg(real, other, train=swapped)
    assert scores["accuracy trained on other"] == 1.0
    assert scores["accuracy trained on real"] == 0.0


def test_one_event_has_no_accuracy():
    real = two_events(0)["a"]
    assert "accuracy trained on other" not in evaluate_eeg(real, two_events(1)["a"])


def test_epochs_that_do_not_fit_are_refused():
    real, other = two_events(0), two_events(1)
    with pytest.raises(StructDiffError, match="number of times"):
        evaluate_eeg(real, other.copy().crop(tmax=0.5))
    broken = other.get_data()
    broken[3, 1, 5] = np.inf
    with pytest.raises(StructDiffError, match="epoch 3, channel 'E1'"):
        evaluate_eeg(real, make(broken * 1e6, np.repeat([1, 2], 20)))


def test_events_have_their_names_and_a_number_without_one():
    epochs = two_events(0)
    assert event_names(epochs)[[0, -1]].tolist() == ["a", "b"]
    epochs.events[0, 2] = 9
    assert event_names(epochs)[0] == "9"
