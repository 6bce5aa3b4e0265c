"""What a time series must satisfy on its way in; each error names the series and the place.

Rows arrive sorted by series and time. ``bounds`` holds the first row of every series and, last, the
number of rows, so that every check is one array operation over all series.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
from pandas.api.types import (
    infer_dtype,
    is_bool_dtype,
    is_complex_dtype,
    is_datetime64_any_dtype,
    is_integer_dtype,
    is_numeric_dtype,
)

from structdiff.errors import StructDiffError
from structdiff.timeseries.freq import Calendar, Freq, infer_frequency, parse_frequency, show

__all__ = ["Aligned", "align", "choose_frequency", "read_numbers", "read_times", "refuse_repeats"]

Label = Callable[[int], str]  # "series 'H1'" from the number of the series

_MOST_FILLED = 10_000_000  # a gap this long is a wrong date rather than missing data


def read_times(time: pd.Series, name: Any, row_label: Label) -> pd.Index:
    """The time column as datetimes, periods or integers; strings and dates are parsed.

    Raises
    ------
    StructDiffError
        A missing time, a string that is no date, numbers with decimals.
    """
    if isinstance(time.dtype, pd.CategoricalDtype):
        time = time.astype(time.cat.categories.dtype)
    missing = time.isna().to_numpy()
    if missing.any():
        row = int(missing.argmax())
        raise StructDiffError(
            f"{row_label(row)}: the time in {name!r} is missing at row {row}; drop such rows"
        )
    if isinstance(time.dtype, pd.PeriodDtype):
        return pd.PeriodIndex(time)
    if is_datetime64_any_dtype(time.dtype):
        return pd.DatetimeIndex(time, freq=None)
    if is_integer_dtype(time.dtype):
        return pd.Index(time)
    kind = infer_dtype(time, skipna=False)
    if kind == "period":
        return pd.PeriodIndex(time)
    if kind not in ("string", "datetime64", "datetime", "date"):
        raise StructDiffError(
            f"the time in {name!r} holds {kind} values ({time.iloc[0]}); it must hold dates, "
            "date strings, periods or integers"
        )
    return _parse(time, name, row_label)


def _parse(time: pd.Series, name: Any, row_label: Label) -> pd.DatetimeIndex:
    try:
        return _to_datetime(time)
    except (ValueError, TypeError, FutureWarning) as error:
        bad = pd.to_datetime(time, errors="coerce", utc=True).isna().to_numpy()
        if not bad.any():
            raise StructDiffError(
                f"the dates in {name!r} have different offsets from UTC; convert them with "
                f"pd.to_datetime(df[{name!r}], utc=True), and .dt.tz_convert(...) to a time zone"
            ) from error
        try:  # ISO dates with and without a time of day
            return _to_datetime(time, format="ISO8601")
        except (ValueError, TypeError, FutureWarning):
            pass
        row = int(bad.argmax())
        raise StructDiffError(
            f"{row_label(row)}: {time.iloc[row]!r} in {name!r} (row {row}) is not a date of the "
            f"form of the first, {time.iloc[0]!r}; correct it, or convert the column with "
            f"pd.to_datetime(df[{name!r}], format=...)"
        ) from error


def _to_datetime(time: pd.Series, **arguments: Any) -> pd.DatetimeIndex:
    with warnings.catch_warnings():
        # Pandas 2 warns of different offsets in one column, pandas 3 raises.
        warnings.simplefilter("error", FutureWarning)
        return pd.DatetimeIndex(pd.to_datetime(time, **arguments))


def read_numbers(column: pd.Series, name: Any, row_label: Label) -> np.ndarray:
    """A value column as a new float64 array, missing values NaN.

    Raises
    ------
    StructDiffError
        Text, objects, dates or complex numbers.
    """
    dtype = column.dtype
    if is_numeric_dtype(dtype) and not is_complex_dtype(dtype):
        if is_bool_dtype(dtype):
            column = column.astype("Float64" if hasattr(dtype, "na_value") else "float64")
        return column.to_numpy(dtype=np.float64, na_value=np.nan, copy=True)
    numbers = pd.to_numeric(column.astype(object), errors="coerce").isna() & column.notna()
    row = int(numbers.to_numpy().argmax())
    raise StructDiffError(
        f"{row_label(row)}: column {name!r} must be numeric but has dtype {dtype}, for example "
        f"{column.iloc[row]!r} at row {row}; convert it with pd.to_numeric"
    )


def refuse_repeats(times: pd.Index, key: np.ndarray, bounds: np.ndarray, label: Label) -> None:
    """Raise where a series has two rows for one time (``key`` counts time, sorted)."""
    same = key[1:] == key[:-1]
    same[bounds[1:-1] - 1] = False
    if not same.any():
        return
    row = int(same.argmax())
    series = _series_of(row, bounds)
    count = int(same[bounds[series] : bounds[series + 1] - 1].sum())
    raise StructDiffError(
        f"{label(series)}: {show(times[row])} occurs twice{_and_more(count - 1, 'repetition')}; "
        "keep one row per time (drop_duplicates, or groupby and mean), or name the column that "
        "tells the series apart with id_col="
    )


def choose_frequency(
    freq: Any, times: pd.Index, bounds: np.ndarray, label: Label, name: Any
) -> Freq:
    """The caller's frequency checked against the kind of time, or the inferred one.

    Raises
    ------
    StructDiffError
        Frequency and time of different kinds, or none that can be inferred.
    """
    given = None if freq is None else parse_frequency(freq)
    if isinstance(times, pd.PeriodIndex):
        own = times.freq
        if given is not None and not _same_period(given, own):
            raise StructDiffError(
                f"freq={freq!r} does not fit {name!r}, whose periods have the frequency "
                f"{times.freqstr!r}; leave freq out"
            )
        return own
    if not isinstance(times, pd.DatetimeIndex):
        if given is not None and not isinstance(given, int):
            raise StructDiffError(
                f"{name!r} holds integers but freq={freq!r}: pass freq=1 (the step of the "
                f"integers), or make dates of {name!r} with pd.to_datetime first"
            )
        return given if given is not None else _integer_step(times, bounds)
    if isinstance(given, int):
        raise StructDiffError(
            f"{name!r} holds dates but freq={freq!r} is an integer: pass a frequency string such "
            "as 'h', 'D' or 'MS'"
        )
    if given is not None:
        return given
    pieces = [times[a:b] for a, b in pairwise(bounds)]
    inferred = infer_frequency(pieces)
    if inferred is None:
        longest = int(np.diff(bounds).argmax())
        some = pieces[longest]
        steps = f"; it begins {', '.join(show(t) for t in some[:3])}" if len(some) else ""
        raise StructDiffError(
            f"{label(longest)}: no frequency fits its timestamps ({len(some)} in all{steps}). Pass "
            "freq= (for example 'h', 'D', 'MS'), with snap=True if the timestamps are not exact"
        )
    return inferred


def _integer_step(times: pd.Index, bounds: np.ndarray) -> int:
    steps = np.diff(times.to_numpy(dtype=np.int64))
    steps = np.delete(steps, bounds[1:-1] - 1)
    if len(steps) == 0:
        return 1
    values, counts = np.unique(steps, return_counts=True)
    return int(values[counts.argmax()])


def _same_period(given: Freq, own: Any) -> bool:
    if isinstance(given, int):
        return False
    try:
        return bool(pd.date_range("2000-01-01", periods=3, freq=given).to_period().freq == own)
    except (ValueError, TypeError):
        return False


@dataclass(frozen=True)
class Aligned:
    """Where the rows go on the regular grid.

    Attributes
    ----------
    times
        The regular time index of all series, one after the other.
    bounds
        Where each series begins in ``times``, and its length last.
    target
        Position in ``times`` of every row read, or None when nothing moved.
    """

    times: pd.Index
    bounds: np.ndarray
    target: np.ndarray | None = None


def align(
    times: pd.Index,
    bounds: np.ndarray,
    calendar: Calendar,
    label: Label,
    fill_gaps: bool,
    snap: bool,
    inferred: bool,
) -> Aligned:
    """Check that every series is regular; on request close gaps and snap to the grid.

    Raises
    ------
    StructDiffError
        A timestamp off the grid, a gap, or two timestamps that snap to one.
    """
    clock = calendar.clock(times)
    ordinal, phase = calendar.locate(clock)
    counts = np.diff(bounds)
    owner = np.repeat(np.arange(len(counts)), counts)
    common = phase[bounds[:-1]]
    for series in np.unique(owner[phase != common[owner]]):
        common[series] = _common_phase(phase[bounds[series] : bounds[series + 1]])
    off = (phase != common[owner]) & ~_moved_by_the_clock(
        times, calendar, clock, ordinal, common, owner
    )
    if off.any() and not snap:
        raise _off_grid(times, int(off.argmax()), bounds, calendar, label)
    if off.any():
        ordinal = np.where(off, calendar.nearest(clock, common[owner]), ordinal)
        times = calendar.index(calendar.place(ordinal, common[owner]))
    steps = np.diff(ordinal)
    steps[bounds[1:-1] - 1] = calendar.stride
    if (steps < 1).any():
        row = int((steps < 1).argmax())
        raise StructDiffError(
            f"{label(_series_of(row, bounds))}: two timestamps snap to {show(times[row])}; a "
            f"frequency finer than {calendar.name!r} may fit, or aggregate the rows first"
        )
    if (steps % calendar.stride).any():
        row = int((steps % calendar.stride != 0).argmax()) + 1
        raise _off_grid(times, row, bounds, calendar, label)
    missing = steps // calendar.stride - 1
    if not missing.any():
        return Aligned(times, bounds)
    if not fill_gaps or inferred:
        _refuse_gaps(times, missing, bounds, calendar, label, fill_gaps, inferred)
    return _fill(missing, ordinal, common, bounds, calendar, label, len(times))


def _common_phase(phase: np.ndarray) -> int:
    """The phase that most timestamps of a series have; 0, the grid itself, if none has a half."""
    values, counts = np.unique(phase, return_counts=True)
    return int(values[counts.argmax()]) if 2 * counts.max() > len(phase) else 0


def _moved_by_the_clock(
    times: pd.Index,
    calendar: Calendar,
    clock: np.ndarray,
    ordinal: np.ndarray,
    common: np.ndarray,
    owner: np.ndarray,
) -> np.ndarray:
    """Local times that a change to summer time skips, and that are therefore read an hour late."""
    if getattr(times, "tz", None) is None:
        return np.zeros(len(times), dtype=bool)
    expected = calendar.index(calendar.place(ordinal, common[owner]))
    return calendar.clock(expected) == clock


def _off_grid(
    times: pd.Index, row: int, bounds: np.ndarray, calendar: Calendar, label: Label
) -> StructDiffError:
    series = _series_of(row, bounds)
    if not isinstance(times, pd.DatetimeIndex):
        return StructDiffError(
            f"{label(series)}: {times[row]} is not a whole number of steps of {calendar.name} "
            f"after {times[bounds[series]]}; correct it, or pass the right step as freq="
        )
    own = infer_frequency([times[bounds[series] : bounds[series + 1]]])
    hint = f" (its own timestamps look like {own.freqstr!r})" if own is not None else ""
    return StructDiffError(
        f"{label(series)}: {show(times[row])} does not lie on the grid of freq={calendar.name!r} "
        f"that its other timestamps keep{hint}; pass the right freq, or snap=True to move each "
        "timestamp to the nearest point of the grid"
    )


def _refuse_gaps(
    times: pd.Index,
    missing: np.ndarray,
    bounds: np.ndarray,
    calendar: Calendar,
    label: Label,
    fill_gaps: bool,
    inferred: bool,
) -> None:
    gaps = np.flatnonzero(missing)
    owners, firsts = np.unique(np.searchsorted(bounds, gaps, "right") - 1, return_index=True)
    for series, row in zip(owners, gaps[firsts], strict=True):
        own = missing[bounds[series] : bounds[series + 1] - 1]
        if inferred and len(own) > 1 and np.mean(own > 0) > 0.5:
            raise StructDiffError(
                f"{label(series)}: its timestamps do not have the frequency {calendar.name!r} of "
                f"the longest series: {show(times[row])} is followed by {show(times[row + 1])}; "
                "read series of different frequencies separately, or pass freq="
            )
        if not fill_gaps:
            last = calendar.clock(times[row : row + 1])[0]
            first = calendar.index(calendar.after(last, 1))[0]
            total = int(own.sum())
            are = "1 timestamp is" if total == 1 else f"{total} timestamps are"
            raise StructDiffError(
                f"{label(series)}: {are} missing, the first is {show(first)} (frequency "
                f"{calendar.name!r}{_and_more(len(owners) - 1, 'series', '')}); pass "
                "fill_gaps=True to insert them as missing values"
            )


def _fill(
    missing: np.ndarray,
    ordinal: np.ndarray,
    common: np.ndarray,
    bounds: np.ndarray,
    calendar: Calendar,
    label: Label,
    rows: int,
) -> Aligned:
    if missing.sum() > max(_MOST_FILLED, 100 * rows):
        row = int(missing.argmax())
        raise StructDiffError(
            f"{label(_series_of(row, bounds))}: {int(missing[row])} steps of {calendar.name!r} are "
            "missing in one place; one of its dates must be wrong, or the frequency too fine"
        )
    target = np.concatenate([[0], np.cumsum(missing + 1)])
    lengths = np.append(target, target[-1] + 1)
    filled = lengths[bounds]
    sizes = np.diff(filled)
    within = np.arange(filled[-1]) - np.repeat(filled[:-1], sizes)
    grid = np.repeat(ordinal[bounds[:-1]], sizes) + calendar.stride * within
    times = calendar.index(calendar.place(grid, np.repeat(common, sizes)))
    return Aligned(times, filled, target)


def _series_of(row: int, bounds: np.ndarray) -> int:
    return int(np.searchsorted(bounds, row, side="right")) - 1


def _and_more(count: int, what: str, plural: str = "s") -> str:
    return f", and {count} more {what}{plural if count > 1 else ''}" if count > 0 else ""
