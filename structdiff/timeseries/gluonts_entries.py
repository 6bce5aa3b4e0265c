"""Entries of a gluonts dataset as series, and the periods that gluonts makes of frequencies."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import pandas as pd

from structdiff.errors import StructDiffError
from structdiff.timeseries.frames import Panel
from structdiff.timeseries.freq import Calendar, parse_frequency
from structdiff.timeseries.layout import Layout

Entry = Mapping[str, Any]


def panel_of_dataset(dataset: Iterable[Entry], freq: str, number: int = 0) -> Panel:
    """Read the entries of a gluonts dataset.

    Parameters
    ----------
    dataset
        Entries with ``start`` (a Period) and ``target`` (T,), and perhaps ``item_id``.
    freq
        Their frequency, under its old or its new name.
    number
        Of the first entry: an entry without ``item_id`` has its number as id.

    Returns
    -------
    Panel
        Series in the order of the entries, over periods; float64.

    Raises
    ------
    StructDiffError
        If there is no entry, or one is no univariate series of finite numbers or NaN, or of
        another frequency.
    """
    offset = period_frequency(freq)
    ids, values, times = [], [], []
    for i, entry in enumerate(dataset, start=number):
        name = entry.get("item_id")
        label = f"entry {i}" if name is None else f"entry {i} ({name!r})"
        series = _target(entry, label)
        ids.append(i if name is None else name)
        values.append(series)
        times.append(_periods(entry, offset, len(series), label))
    if not ids:
        raise StructDiffError("the dataset has no entries")
    longest = max(times, key=len)
    calendar = Calendar.of(parse_frequency(freq), longest)
    layout = Layout("long", "start", "target", "item_id", "column")
    labels = pd.array(np.fromiter(ids, dtype=object, count=len(ids)), dtype=object)
    return Panel(ids, values, times, calendar, layout, labels)


def _target(entry: Entry, label: str) -> np.ndarray:
    if "target" not in entry:
        raise StructDiffError(f"{label} has no target")
    try:
        values = np.array(entry["target"], dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise StructDiffError(f"{label}: the target is not numeric: {error}") from error
    if values.ndim != 1:
        raise StructDiffError(
            f"{label}: the target has shape {values.shape}; TSDiff models univariate series: give "
            "each dimension an entry of its own"
        )
    if not len(values):
        raise StructDiffError(f"{label}: the target is empty; drop the entry")
    infinite = np.isinf(values)
    if infinite.any():
        raise StructDiffError(
            f"{label}: the target is {values[infinite][0]} at position {int(infinite.argmax())} "
            f"({int(infinite.sum())} infinite in all); replace infinite values by numbers or NaN"
        )
    return values


def _periods(entry: Entry, offset: Any, length: int, label: str) -> pd.PeriodIndex:
    start = entry.get("start")
    if not isinstance(start, pd.Period):
        raise StructDiffError(
            f"{label}: start is {start!r}, not a pandas Period; read the data with ListDataset or "
            "PandasDataset, or write pd.Period(start, freq=...)"
        )
    if start.freq != offset:
        raise StructDiffError(
            f"{label} has the frequency {start.freqstr!r}, the model {offset.freqstr!r}: resample "
            "the series, or train a model of their frequency"
        )
    with quietly():
        return pd.period_range(start, periods=length, freq=start.freq)


def period_frequency(freq: str) -> Any:
    """The offset of the periods that gluonts makes of a frequency: months for "MS" and "ME"."""
    offset = parse_frequency(freq)
    if isinstance(offset, int):
        raise StructDiffError(f"freq={freq!r}: gluonts has no integer time; give a frequency")
    with quietly():
        try:
            return pd.date_range("2000-01-01", periods=1, freq=offset).to_period().freq
        except ValueError as error:
            raise StructDiffError(
                f"freq={freq!r} has no period in pandas, so no gluonts dataset: {error}"
            ) from error


@contextmanager
def quietly() -> Iterator[None]:
    """Without pandas' notice that periods of business days are deprecated: gluonts has no other."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"(PeriodDtype\[B\]|Period with BDay freq)")
        yield
