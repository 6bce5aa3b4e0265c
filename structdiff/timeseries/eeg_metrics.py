r"""How like real EEG other EEG is: rhythms, channels together, evoked responses, and use.

- band power error: mean over channels of :math:`|P'_b - P_b| / P_b`, P the mean Welch power of the
  epochs in a band;
- covariance error: :math:`\|\Sigma' - \Sigma\|_F / \|\Sigma\|_F` of the channels, within epochs;
- evoked correlation: of the mean epochs of one event, over channels and times;
- accuracy: of a linear discriminant between events, trained on the other epochs and tested on the
  real ones ("train on synthetic, test on real"), beside one trained on real epochs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pandas as pd

from structdiff.errors import StructDiffError
from structdiff.timeseries.eeg_data import (
    MICRO,
    Floats,
    check_channels,
    check_finite,
    good_channels,
    loaded,
    voltages,
)

if TYPE_CHECKING:
    import mne

BANDS: dict[str, tuple[float, float]] = {
    "delta": (0.5, 4.0),
    "theta": (4.0, 8.0),
    "alpha": (8.0, 13.0),
    "beta": (13.0, 30.0),
    "gamma": (30.0, 45.0),
}
"""Hz; a frequency belongs to the band that it begins."""
_FOLDS = 5
_TIME_BINS = 8


def band_power(
    data: Floats, sfreq: float, bands: Mapping[str, tuple[float, float]] = BANDS
) -> dict[str, Floats]:
    """Mean Welch power in bands, per epoch and channel (N, C), in squared units of the data.

    Parameters
    ----------
    data
        (N, C, L).
    sfreq
        Hz.
    bands
        Lowest frequency, and the one above the highest. A band without any frequency of the
        epochs' resolution is left out.
    """
    from scipy.signal import welch

    frequency, density = welch(data, fs=sfreq, nperseg=min(data.shape[-1], int(2 * sfreq)), axis=-1)
    step = float(frequency[1] - frequency[0])
    inside = {k: (frequency >= low) & (frequency < high) for k, (low, high) in bands.items()}
    return {k: density[..., at].sum(-1) * step for k, at in inside.items() if at.any()}


def band_power_errors(real: Floats, other: Floats, sfreq: float) -> dict[str, float]:
    """Relative error of the mean power per band, over epochs, then the mean over channels."""
    powers, others = band_power(real, sfreq), band_power(other, sfreq)
    return {
        band: float(np.mean(np.abs(others[band].mean(0) / power.mean(0) - 1)))
        for band, power in powers.items()
    }


def channel_covariance(data: Floats) -> Floats:
    """Covariance of the channels within epochs, (C, C), of data (N, C, L)."""
    gap = data - data.mean(axis=-1, keepdims=True)
    result: Floats = np.einsum("ncl,ndl->cd", gap, gap) / (data.shape[0] * data.shape[2])
    return result


def covariance_error(real: Floats, other: Floats) -> float:
    """Frobenius distance of the channel covariances, relative to the real one's norm."""
    truth = channel_covariance(real)
    return float(np.linalg.norm(channel_covariance(other) - truth) / np.linalg.norm(truth))


def evoked_correlation(real: Floats, other: Floats) -> float:
    """Pearson correlation of mean epochs over channels and times; each channel's level is left out.

    Parameters
    ----------
    real, other
        Epochs of one event, (N, C, L).
    """
    means = [data.mean(0) - data.mean((0, 2))[:, None] for data in (real, other)]
    return float(np.corrcoef(means[0].ravel(), means[1].ravel())[0, 1])


def features(data: Floats, sfreq: float) -> Floats:
    """What tells events apart, per epoch (N, F): log band power and mean amplitudes over time."""
    powers = [np.log(power + 1e-30) for power in band_power(data, sfreq).values()]
    centred = data - data.mean(axis=-1, keepdims=True)
    bins = np.array_split(centred, min(_TIME_BINS, data.shape[-1]), axis=-1)
    return np.concatenate([*powers, *(part.mean(-1) for part in bins)], axis=1)


def classifier_accuracy(
    train: Floats,
    train_events: npt.NDArray[np.int64],
    test: Floats,
    test_events: npt.NDArray[np.int64],
    sfreq: float,
) -> float:
    """Balanced accuracy of a shrunk linear discriminant; chance is 1 / number of events.

    NaN where an event has fewer than two epochs to train on.
    """
    from sklearn.metrics import balanced_accuracy_score

    if int(np.unique(train_events, return_counts=True)[1].min()) < 2:
        return float("nan")
    model = _discriminant().fit(features(train, sfreq), train_events)
    return float(balanced_accuracy_score(test_events, model.predict(features(test, sfreq))))


def cross_validated_accuracy(data: Floats, events: npt.NDArray[np.int64], sfreq: float) -> float:
    """Balanced accuracy within one set: five folds in the order of time, not shuffled.

    NaN where an event has fewer than two epochs.
    """
    from sklearn.metrics import balanced_accuracy_score
    from sklearn.model_selection import StratifiedKFold, cross_val_predict

    rarest = int(np.unique(events, return_counts=True)[1].min())
    if rarest < 2:
        return float("nan")
    folds = StratifiedKFold(min(_FOLDS, rarest))
    guess = cross_val_predict(_discriminant(), features(data, sfreq), events, cv=folds)
    return float(balanced_accuracy_score(events, guess))


def _discriminant():  # type: ignore[no-untyped-def]
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    # Neither shares of the events in the training set, nor the units, decide.
    lda = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto")
    return make_pipeline(StandardScaler(), lda)


def evaluate_eeg(
    real: mne.BaseEpochs,
    other: mne.BaseEpochs,
    train: mne.BaseEpochs | None = None,
    *,
    picks: str | Sequence[str] = "eeg",
) -> pd.Series:
    """Compare other epochs (synthetic, or another part of the recording) with real ones.

    Parameters
    ----------
    real
        The reference, and what classifiers are tested on; best epochs that no model has seen.
    other
        With the same channels, sampling rate and number of times; any order of channels.
    train
        Real epochs to train the reference classifier on; without them it is cross-validated
        within ``real``.
    picks
        Which channels of ``real``: a type or names; its ``info["bads"]`` are left out.

    Returns
    -------
    pandas.Series
        ``band power error delta`` ... ``gamma`` and their mean ``band power error``,
        ``covariance error``, ``evoked correlation EVENT`` for every event that both have,
        and, where both have the same two or more events, ``accuracy trained on other`` and
        ``accuracy trained on real`` (balanced).

    Raises
    ------
    StructDiffError
        If channels, sampling rate or lengths differ, a value is not finite, or a side is empty.
    """
    names, sfreq = good_channels(real, picks), float(real.info["sfreq"])
    sides = {"real": real, "other": other} | ({} if train is None else {"train": train})
    sides = {side: loaded(epochs) for side, epochs in sides.items()}
    data: dict[str, Floats] = {}
    for side, epochs in sides.items():
        check_channels(epochs, names, sfreq)
        data[side] = voltages(epochs, names) * MICRO
        check_finite(data[side], names)
        if not len(data[side]) or data[side].shape[2] != len(real.times):
            raise StructDiffError(
                f"the {side} epochs have shape {data[side].shape}, the real ones "
                f"{data['real'].shape}: both need epochs, of the same number of times"
            )
    bands = band_power_errors(data["real"], data["other"], sfreq)
    scores = {f"band power error {band}": error for band, error in bands.items()}
    scores["band power error"] = float(np.mean(list(bands.values())))
    scores["covariance error"] = covariance_error(data["real"], data["other"])
    labels = {side: event_names(epochs) for side, epochs in sides.items()}
    common = [e for e in dict.fromkeys(labels["real"].tolist()) if e in set(labels["other"])]
    for event in common:
        mine, theirs = (data[s][labels[s] == event] for s in ("real", "other"))
        scores[f"evoked correlation {event}"] = evoked_correlation(mine, theirs)
    if len(common) > 1:
        scores |= _accuracies(data, labels, common, sfreq)
    return pd.Series(scores, name="evaluate_eeg")


def _accuracies(
    data: Mapping[str, Floats],
    labels: Mapping[str, npt.NDArray[np.str_]],
    events: list[str],
    sfreq: float,
) -> dict[str, float]:
    chosen = {s: np.isin(names, events) for s, names in labels.items()}
    x = {s: data[s][keep] for s, keep in chosen.items()}
    y = {s: np.array([events.index(e) for e in labels[s][keep]]) for s, keep in chosen.items()}
    if "train" not in x:
        reference = cross_validated_accuracy(x["real"], y["real"], sfreq)
    else:
        reference = classifier_accuracy(x["train"], y["train"], x["real"], y["real"], sfreq)
    return {
        "accuracy trained on other": classifier_accuracy(
            x["other"], y["other"], x["real"], y["real"], sfreq
        ),
        "accuracy trained on real": reference,
    }


def event_names(epochs: mne.BaseEpochs) -> npt.NDArray[np.str_]:
    """Name of the event of every epoch, (N,)."""
    names = {code: name for name, code in epochs.event_id.items()}
    return np.array([names.get(code, str(code)) for code in epochs.events[:, 2].tolist()])
