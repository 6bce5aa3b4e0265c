"""Pictures of real EEG beside other EEG: spectra, evoked responses, channel covariances."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from structdiff.errors import StructDiffError
from structdiff.timeseries.eeg_data import MICRO, check_channels, good_channels, loaded, voltages
from structdiff.timeseries.eeg_metrics import channel_covariance, event_names
from structdiff.timeseries.plots import BLUE, GREY, INK, ORANGE

if TYPE_CHECKING:
    import mne
    from matplotlib.figure import Figure

_MOST_EVENTS = 4


def plot_eeg(
    real: mne.BaseEpochs,
    other: mne.BaseEpochs,
    label: str = "synthetic",
    *,
    picks: str | Sequence[str] = "eeg",
) -> Figure:
    """Real beside other epochs: mean spectrum, evoked responses, channel covariances.

    The spectra show the median over channels and their middle half; the evoked responses the
    channel in which the real ones vary most.

    Parameters
    ----------
    real, other
        Epochs with the same channels and sampling rate.
    label
        What the other ones are.
    picks
        Which channels of ``real``: a type or names; its ``info["bads"]`` are left out.

    Raises
    ------
    StructDiffError
        If matplotlib is missing, or the epochs do not fit together.
    """
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise StructDiffError("plots need matplotlib: pip install 'structdiff[plots]'") from error
    from scipy.signal import welch

    real, other = loaded(real), loaded(other)
    names, sfreq = good_channels(real, picks), float(real.info["sfreq"])
    check_channels(other, names, sfreq)
    sides = {"real": real, label: other}
    data = {side: voltages(epochs, names) * MICRO for side, epochs in sides.items()}
    labels = {side: event_names(epochs) for side, epochs in sides.items()}
    events = [e for e in dict.fromkeys(labels["real"].tolist()) if e in set(labels[label])]
    events = events[:_MOST_EVENTS]
    figure, axes = plt.subplots(1, 3 + len(events), figsize=(3.2 * (3 + len(events)), 3.0))
    figure.set_layout_engine("constrained")
    for (side, values), colour in zip(data.items(), (BLUE, ORANGE), strict=True):
        frequency, power = welch(
            values, fs=sfreq, nperseg=min(values.shape[-1], int(2 * sfreq)), axis=-1
        )
        low, middle, high = np.quantile(power.mean(0), [0.25, 0.5, 0.75], axis=0)
        axes[0].plot(frequency[1:], middle[1:], color=colour, label=side)
        axes[0].fill_between(frequency[1:], low[1:], high[1:], color=colour, alpha=0.2, lw=0)
    axes[0].set(xlabel="frequency (Hz)", ylabel="power (uV$^2$/Hz)", yscale="log", title="spectrum")
    axes[0].legend(frameon=False)
    if events:
        means = [data["real"][labels["real"] == e].mean(0) for e in events]
        shown = int(np.argmax(np.mean([mean.var(-1) for mean in means], axis=0)))
    for axis, event in zip(axes[1:], events, strict=False):
        for (side, values), colour in zip(data.items(), (BLUE, ORANGE), strict=True):
            mean = values[labels[side] == event].mean(0)[shown]
            axis.plot(sides[side].times, mean, color=colour)
        axis.axvline(0, color=GREY, lw=0.8)
        axis.set(xlabel="time (s)", ylabel="uV", title=f"{event}, {names[shown]}")
    covariances = {side: channel_covariance(values) for side, values in data.items()}
    limit = float(np.abs(covariances["real"]).max())
    for axis, (side, matrix) in zip(axes[-2:], covariances.items(), strict=True):
        image = axis.imshow(matrix, cmap="RdBu_r", vmin=-limit, vmax=limit)
        axis.set(title=f"covariance, {side}", xlabel="channel")
        axis.tick_params(colors=INK)
    figure.colorbar(image, ax=axes[-1], label="uV$^2$", shrink=0.8)
    return figure
