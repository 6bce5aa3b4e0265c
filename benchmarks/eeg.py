"""EEGDiffusion on two real recordings: synthesis, a dropped channel, a bad segment, a forecast.

Both recordings are band-passed and split in the middle: the first half trains, the second is what
everything is measured on. ``python benchmarks/eeg.py [--steps 300]``
"""

from __future__ import annotations

import argparse
import logging
import os
import time
import warnings
from pathlib import Path
from typing import Any

import mne
import numpy as np
import pandas as pd
import torch
from _record import record

from structdiff.errors import StructDiffError
from structdiff.timeseries.eeg import EEGDiffusion, evaluate_eeg
from structdiff.timeseries.eeg_metrics import band_power

SEGMENT = 0.25
"""Seconds of all channels that a bad segment hides, and that a forecast looks ahead."""


def eeglab(folder: Path) -> mne.io.BaseRaw:
    """32 channels without positions; a visual task."""
    return mne.io.read_raw_eeglab(folder / "test_raw.set", preload=True).filter(0.5, 40)


def edf(folder: Path) -> mne.io.BaseRaw:
    """64 channels with positions; movement and imagination."""
    raw = mne.io.read_raw_edf(folder / "eegmmi_128hz_64ch.edf", preload=True)
    mne.datasets.eegbci.standardize(raw)
    name = "colin27_1005" if "colin27_1005" in mne.channels.get_builtin_montages() else None
    return raw.set_montage(name or "standard_1005").filter(1, 40)


def halves(raw: mne.io.BaseRaw) -> tuple[mne.io.BaseRaw, mne.io.BaseRaw]:
    middle = raw.n_times // 2
    return raw.copy().crop(tmax=(middle - 1) / raw.info["sfreq"]), raw.copy().crop(
        raw.times[middle]
    )


def models(steps: int, **settings: Any) -> dict[str, EEGDiffusion]:
    """The Gaussian alone is the network before its first step: the rate is 0."""
    common = {"random_state": 0, "progress": False, **settings}
    return {
        "Gaussian prior alone": EEGDiffusion(max_steps=1, learning_rate=0.0, **common),
        f"EEGDiffusion, {steps} steps": EEGDiffusion(max_steps=steps, **common),
    }


def spread(epochs: mne.BaseEpochs) -> float:
    """Standard deviation over epochs of the logarithm of alpha power, mean over channels."""
    power = band_power(epochs.get_data() * 1e6, epochs.info["sfreq"])["alpha"]
    return float(np.log(power).std(0).mean())


def synthesis_row(
    data: str, method: str, real: Any, other: Any, train: Any, seconds: str
) -> dict[str, object]:
    scores = evaluate_eeg(real, other, train)
    row: dict[str, object] = {"data": data, "epochs": method, "fit CPU-s": seconds}
    row |= {name.removeprefix("band power error "): f"{v:.3f}" for name, v in scores.items()}
    row.pop("evoked correlation 1", None)  # windows of a recording follow no event
    return row | {"alpha spread": f"{spread(other):.3f} (real {spread(real):.3f})"}


def timed_fit(model: EEGDiffusion, inst: Any) -> str:
    start = time.process_time()
    model.fit(inst)
    return f"{time.process_time() - start:.0f}"


def synthesis(folder: Path, steps: int) -> tuple[pd.DataFrame, dict[str, EEGDiffusion]]:
    """Synthetic epochs against the second half, with the first half as what is possible."""
    raw = eeglab(folder)
    events, ids = mne.events_from_annotations(raw)
    epochs = mne.Epochs(raw, events, ids, -0.5, 1.0, baseline=(None, 0), preload=True)
    middle = len(epochs) // 2
    sets = {"EEGLAB, events": (epochs[:middle], epochs[middle:], epochs[:middle])}
    train, test = halves(edf(folder))
    cut = [mne.make_fixed_length_epochs(half, 1.0, preload=True) for half in (train, test)]
    sets["EDF, 1 s windows"] = (train, cut[1], cut[0])
    rows, fitted = [], {}
    for name, (given, real, first) in sets.items():
        rows.append(synthesis_row(name, "real, first half", real, first, first, "-"))
        for label, model in models(steps, window=1.0).items():
            seconds = timed_fit(model, given)
            other = model.synthesize(len(real) * 4, random_state=1)
            rows.append(synthesis_row(name, label, real, other, first, seconds))
            fitted[label] = model
    return pd.DataFrame(rows).fillna("-"), fitted


def relative_error(guess: np.ndarray, truth: np.ndarray) -> float:
    """Root mean square error over the standard deviation of the truth."""
    return float(np.sqrt(np.mean((guess - truth) ** 2)) / truth.std())


def neighbours(raw: mne.io.BaseRaw, channel: str) -> np.ndarray:
    """Mean of the four nearest channels."""
    place = np.array([c["loc"][:3] for c in raw.info["chs"]])
    number = raw.ch_names.index(channel)
    nearest = np.argsort(np.linalg.norm(place - place[number], axis=1))[1:5]
    return raw.get_data()[nearest].mean(0)


def dropped(
    test: mne.io.BaseRaw, fitted: dict[str, EEGDiffusion], names: list[str]
) -> pd.DataFrame:
    """Error of a dropped channel in the second half of the EDF, channel by channel."""
    truth, errors = test.get_data(), {}
    for name in names:
        number = test.ch_names.index(name)
        gone = test.copy()
        gone.info["bads"] = [name]
        guesses = {
            "zeros": np.zeros(test.n_times),
            "mean of the 4 nearest": neighbours(test, name),
            "spherical spline (mne)": gone.copy().interpolate_bads().get_data()[number],
        }
        for label, model in fitted.items():
            guesses[label] = model.impute(gone, random_state=0).get_data()[number]
        for label, guess in guesses.items():
            errors.setdefault(label, {})[name] = relative_error(guess, truth[number])
    table = pd.DataFrame(errors).T
    table.insert(0, "mean", table.mean(axis=1))
    return table.map(lambda v: f"{v:.3f}").reset_index(names="dropped channel, relative error")


def gaps(test: mne.io.BaseRaw, fitted: dict[str, EEGDiffusion], count: int) -> pd.DataFrame:
    """Error of segments that are bad in all channels, and of forecasts, in the second half."""
    rate, width = test.info["sfreq"], round(SEGMENT * test.info["sfreq"])
    starts = np.linspace(2 * rate, test.n_times - 2 * rate, count).astype(int)
    data = test.get_data()
    inside = np.stack([data[:, s : s + width] for s in starts])
    line = np.linspace(0, 1, width + 2)[1:-1]
    ends = [(data[:, s - 1, None], data[:, s + width, None]) for s in starts]
    segment = {
        "zeros": np.zeros_like(inside),
        "straight line": np.stack([a * (1 - line) + b * line for a, b in ends]),
    }
    ahead = {
        "zeros": np.zeros_like(inside),
        "last value": np.stack([np.repeat(a, width, 1) for a, _ in ends]),
    }
    origin = test.annotations.orig_time
    onsets = starts / rate + (test.first_time if origin else 0.0)
    marked = test.copy().set_annotations(mne.Annotations(onsets, SEGMENT, "BAD", origin))
    for label, model in fitted.items():
        filled = model.impute(marked, random_state=0).get_data()
        segment[label] = np.stack([filled[:, s : s + width] for s in starts])
        pasts = [test.copy().crop(tmax=(s - 1) / rate) for s in starts]
        ahead[label] = np.stack(
            [model.forecast(past, SEGMENT, random_state=0).get_data() for past in pasts]
        )
    labels = list(dict.fromkeys([*segment, *ahead]))
    return pd.DataFrame(
        {
            "method": labels,
            f"segment of {SEGMENT} s": [
                f"{relative_error(segment[k], inside):.3f}" if k in segment else "-" for k in labels
            ],
            f"forecast of {SEGMENT} s": [
                f"{relative_error(ahead[k], inside):.3f}" if k in ahead else "-" for k in labels
            ],
        }
    )


def as_text(table: pd.DataFrame) -> str:
    lines = [" | ".join(map(str, table.columns)), " | ".join("---" for _ in table.columns)]
    lines += [" | ".join(map(str, row)) for row in table.itertuples(index=False)]
    return "\n".join(f"| {line} |" for line in lines)


def main() -> None:
    """Measure and keep the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=300, help="training steps")
    parser.add_argument("--gaps", type=int, default=12, help="bad segments and forecasts")
    parser.add_argument(
        "--channels", nargs="+", default=["Cz", "C3", "Oz", "F4", "T7", "Pz"], help="to drop"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    mne.set_log_level("ERROR")
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    root = os.environ.get("STRUCTDIFF_DATA")
    if root is None:
        raise StructDiffError("let STRUCTDIFF_DATA name the folder that holds eeg/")
    folder = Path(root) / "eeg"
    table, fitted = synthesis(folder, arguments.steps)
    test = halves(edf(folder))[1]
    start = time.process_time()
    channel = dropped(test, fitted, arguments.channels)
    each = (time.process_time() - start) / (len(arguments.channels) * len(fitted))
    hidden = gaps(test, fitted, arguments.gaps)
    record(
        "eeg",
        "EEGDiffusion on real recordings",
        table,
        "Synthesis: errors of relative band power, of the channel covariance, evoked correlations "
        "and balanced accuracies against the second half (`evaluate_eeg`); the first half is what "
        "another real recording of the same person reaches. Alpha spread: how much alpha power "
        "varies from epoch to epoch.\n\n"
        f"EDF, second half, {each:.0f} CPU-s per channel of {test.times[-1]:.0f} s:\n\n"
        f"{as_text(channel)}\n\n"
        f"EDF, second half, all 64 channels hidden {arguments.gaps} times, relative error:\n\n"
        f"{as_text(hidden)}",
    )


if __name__ == "__main__":
    main()
