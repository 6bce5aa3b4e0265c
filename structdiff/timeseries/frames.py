"""From the caller's pandas frame to regular series and back.

``read_panel`` takes a long frame (id, time, value), a wide frame (time by series) or a Series and
checks it once; a ``Panel`` then holds one regular float64 series per id, NaN where a value is
missing, and writes answers back in the shape, index type, time zone, names and id dtype of the
frame that was read. The caller's frame is never changed.
"""

from __future__ import annotations

import warnings
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import pandas as pd

from structdiff.errors import StructDiffError
from structdiff.timeseries.frame_checks import (
    Label,
    align,
    choose_frequency,
    read_numbers,
    read_times,
    refuse_repeats,
)
from structdiff.timeseries.freq import Calendar, show
from structdiff.timeseries.layout import Layout, Source, recognise, write

__all__ = ["Panel", "read_panel"]


@dataclass(frozen=True)
class Panel:
    """Regular series with their times, in the order of their first appearance.

    Attributes
    ----------
    ids
        One per series, as Python values; [None] for a single series without an id.
    values
        Per series, (T_i,) float64; NaN = missing.
    times
        Per series, its T_i timestamps: DatetimeIndex, PeriodIndex or integers.
    calendar
        Which timestamp follows which.
    source
        The shape of the caller's frame.
    labels
        The ids in the caller's dtype.
    """

    ids: list[Any]
    values: list[np.ndarray]
    times: list[pd.Index]
    calendar: Calendar
    source: Layout
    labels: Any

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def freq(self) -> str | int:
        """The frequency under pandas' current name, or the step of integer time."""
        return self.calendar.name

    @property
    def layout(self) -> Literal["long", "wide"]:
        """The shape of the frame that was read."""
        return self.source.kind

    @property
    def target(self) -> Hashable:
        """Name of the value column; in ``restore`` it stands for the values themselves."""
        return self.source.target

    @property
    def unused_columns(self) -> list[Hashable]:
        """Columns of a long frame that were not read."""
        return list(self.source.unused)

    def label(self, i: int) -> str:
        """How messages name series ``i``."""
        return "the series" if self.ids[i] is None else f"series {self.ids[i]!r}"

    def missing(self) -> pd.DataFrame:
        """How much of each series is missing: columns points, missing, share; one row per id."""
        points = [len(v) for v in self.values]
        missing = [int(np.isnan(v).sum()) for v in self.values]
        share = [m / n for m, n in zip(missing, points, strict=True)]
        index = pd.Index(self.ids, tupleize_cols=False, name=self.source.id)
        return pd.DataFrame({"points": points, "missing": missing, "share": share}, index=index)

    def future(self, h: int) -> list[pd.Index]:
        """The ``h`` timestamps after the end of each series."""
        if h < 1:
            raise StructDiffError(f"h={h}: a horizon has at least one step")
        known: dict[int, pd.Index] = {}
        result = []
        for times in self.times:
            last = self.calendar.clock(times[-1:])[0]
            if int(last) not in known:
                index = self.calendar.index(self.calendar.after(last, h))
                if isinstance(times, pd.DatetimeIndex):
                    index = _with_freq(index, times.freq)
                known[int(last)] = index
            result.append(known[int(last)])
        return result

    def restore(
        self,
        columns: Mapping[Hashable, Sequence[np.ndarray]],
        times: list[pd.Index] | None = None,
    ) -> Any:
        """Write arrays in the shape of the frame that was read.

        Parameters
        ----------
        columns
            Per column name, one array per series. The name ``panel.target`` takes the dtype of the
            caller's values where that can hold them.
        times
            Per series, as long as its arrays; the series' own times when left out.

        Returns
        -------
        DataFrame or Series
            Long: the caller's id and time columns (or index levels), then the new columns in place
            of the value. Wide: one column per series; with several names, two column levels
            (series, name). A Series comes back as a Series, with several names as a frame.
        """
        times = self.times if times is None else times
        for name, arrays in columns.items():
            if [len(a) for a in arrays] != [len(t) for t in times]:
                raise StructDiffError(
                    f"column {name!r}: the arrays must have as many entries as the series' times"
                )
        return write(self.source, self.labels, columns, times)

    def tail(self, n: int) -> Panel:
        """The last ``n`` points of each series (all of a shorter one)."""
        if n < 1:
            raise StructDiffError(f"n={n}: at least one point must remain")
        return self._sliced([slice(max(0, len(v) - n), None) for v in self.values])

    def cut(self, h: int) -> Panel:
        """The series without their last ``h`` points.

        Raises
        ------
        StructDiffError
            A series has no more than ``h`` points.
        """
        for i, values in enumerate(self.values):
            if len(values) <= h:
                raise StructDiffError(
                    f"{self.label(i)} has {len(values)} points; nothing is left without "
                    f"the last {h}"
                )
        return self._sliced([slice(0, len(v) - h) for v in self.values])

    def take(self, ids: Iterable[Any]) -> Panel:
        """Some of the series, in the order asked for.

        Raises
        ------
        StructDiffError
            An id that the panel does not hold.
        """
        position = {name: i for i, name in enumerate(self.ids)}
        try:
            chosen = [position[name] for name in ids]
        except KeyError as error:
            some = ", ".join(repr(i) for i in self.ids[:5])
            raise StructDiffError(
                f"there is no series {error.args[0]!r}; the ids begin {some}"
            ) from error
        return self._chosen(chosen)

    def at_least(self, n: int) -> Panel:
        """The series with ``n`` points or more; a warning lists the ones left out.

        Raises
        ------
        StructDiffError
            No series is long enough.
        """
        keep = [i for i, v in enumerate(self.values) if len(v) >= n]
        if len(keep) == len(self):
            return self
        if not keep:
            longest = max(len(v) for v in self.values)
            raise StructDiffError(
                f"no series is long enough: needs >= {n} points, the longest has {longest}; "
                "shorten the context, the lags or the horizon"
            )
        kept = set(keep)
        short = [repr(name) for i, name in enumerate(self.ids) if i not in kept]
        more = f" and {len(short) - 10} more" if len(short) > 10 else ""
        warnings.warn(
            f"{len(short)} of {len(self)} series have fewer than {n} points and are left out: "
            f"{', '.join(short[:10])}{more}",
            stacklevel=2,
        )
        return self._chosen(keep)

    def require_observed(self, n: int) -> None:
        """Refuse a series whose last ``n`` points are all missing.

        Raises
        ------
        StructDiffError
            Naming the series and when it was last observed.
        """
        for i, values in enumerate(self.values):
            if not np.isnan(values[-n:]).all():
                continue
            seen = np.flatnonzero(~np.isnan(values))
            last = f"; its last value is at {show(self.times[i][seen[-1]])}" if len(seen) else ""
            raise StructDiffError(
                f"{self.label(i)}: all of its last {min(n, len(values))} values are missing{last}; "
                "drop the series, or its empty end"
            )

    def _sliced(self, slices: list[slice]) -> Panel:
        return replace(
            self,
            values=[v[s] for v, s in zip(self.values, slices, strict=True)],
            times=[t[s] for t, s in zip(self.times, slices, strict=True)],
        )

    def _chosen(self, chosen: list[int]) -> Panel:
        return replace(
            self,
            ids=[self.ids[i] for i in chosen],
            values=[self.values[i] for i in chosen],
            times=[self.times[i] for i in chosen],
            labels=self.labels.take(chosen),
        )


def read_panel(
    df: Any,
    freq: Any = None,
    id_col: Hashable = "unique_id",
    time_col: Hashable = "ds",
    target_col: Hashable = "y",
    fill_gaps: bool = False,
    snap: bool = False,
) -> Panel:
    """Read and check a frame of time series.

    Parameters
    ----------
    df
        Long: columns (or index levels) for id, time and value; without an id, one series. Wide:
        a DatetimeIndex, PeriodIndex, date strings or the time column, one column per series.
        A Series. Rows may come in any order.
    freq
        Frequency string (old or new name), offset, timedelta, or an integer for integer time;
        inferred when left out.
    id_col, time_col, target_col
        Names of the columns of a long frame.
    fill_gaps
        Insert absent timestamps as missing values.
    snap
        Move timestamps that are off the frequency's grid to its nearest point.

    Returns
    -------
    Panel
        Series in the order in which their ids first appear, each sorted by time. A missing value
        (NaN, NA) is kept as NaN. Date strings become datetimes.

    Raises
    ------
    StructDiffError
        No rows or columns, text for numbers, an infinite value, a missing id or time, a time
        given twice, a gap, a time off the grid, or a frequency that cannot be inferred or does not
        fit; with the series, the first place and the remedy.
    """
    source = recognise(
        df,
        id_col,
        time_col,
        target_col,
        isinstance(freq, (int, np.integer)) and not isinstance(freq, np.timedelta64),
    )
    codes, ids, labels = _series(source)
    label = _labeller(source, ids)
    row_label: Label = lambda row: label(int(codes[row]))  # noqa: E731
    times = read_times(source.time, source.layout.time or "the index", row_label)
    columns = [read_numbers(column, name, row_label) for name, column in source.values]

    key = times.asi8 if hasattr(times, "asi8") else times.to_numpy()
    order = np.lexsort((key, codes))
    moved = bool((order[1:] < order[:-1]).any())
    if moved:
        times, key, codes = times[order], key[order], codes[order]
        columns = [column[order] for column in columns]
    bounds = np.append(np.flatnonzero(np.diff(codes, prepend=-1)), len(codes))
    refuse_repeats(times, key, bounds, label)
    _refuse_infinite(source, ids, columns, times, codes)

    chosen = choose_frequency(freq, times, bounds, label, source.layout.time or "the index")
    calendar = Calendar.of(chosen, times)
    inferred = freq is None and isinstance(times, pd.DatetimeIndex)
    aligned = align(times, bounds, calendar, label, fill_gaps, snap, inferred)
    if aligned.target is not None:
        columns = [_scatter(c, aligned.target, len(aligned.times)) for c in columns]
    if source.layout.kind == "wide":
        regular = aligned.times
        if regular is times and not moved:
            regular = _with_freq(regular, source.layout.index_freq)
        series = [regular] * len(ids)
    else:
        pieces = [slice(a, b) for a, b in pairwise(aligned.bounds)]
        columns = [columns[0][p] for p in pieces]
        series = [aligned.times[p] for p in pieces]
    return Panel(ids, columns, series, calendar, source.layout, labels)


def _with_freq(index: pd.Index, freq: Any) -> pd.Index:
    """The index with the ``freq`` attribute that the caller's own index had."""
    return index if freq is None else pd.DatetimeIndex(index, freq=freq)


def _series(source: Source) -> tuple[np.ndarray, list[Any], Any]:
    """Number of the series of every row, the ids as Python values and in the caller's dtype."""
    rows = len(source.time)
    if source.layout.kind == "wide":
        return np.zeros(rows, dtype=np.intp), source.labels.tolist(), source.labels
    if source.ids is None:
        return np.zeros(rows, dtype=np.intp), [None], pd.array([None], dtype=object)
    codes, _ = pd.factorize(pd.Series(source.ids))
    if (codes < 0).any():
        row = int((codes < 0).argmax())
        raise StructDiffError(
            f"the id in {source.layout.id!r} is missing at row {row} (time "
            f"{show(source.time.iloc[row])}); give the row an id or drop it"
        )
    first = np.unique(codes, return_index=True)[1]
    labels = source.ids.take(first)
    return codes.astype(np.intp), labels.tolist(), labels


def _labeller(source: Source, ids: list[Any]) -> Label:
    if source.layout.kind == "wide":
        return lambda i: "the time index"
    return lambda i: "the series" if ids[i] is None else f"series {ids[i]!r}"


def _refuse_infinite(
    source: Source, ids: list[Any], columns: list[np.ndarray], times: pd.Index, codes: np.ndarray
) -> None:
    for number, ((name, _), values) in enumerate(zip(source.values, columns, strict=True)):
        infinite = np.isinf(values)
        if not infinite.any():
            continue
        row = int(infinite.argmax())
        owner = ids[number] if source.layout.kind == "wide" else ids[codes[row]]
        who = "the series" if owner is None else f"series {owner!r}"
        raise StructDiffError(
            f"{who}: the value at {show(times[row])} in {name!r} is {values[row]} "
            f"({int(infinite.sum())} infinite in all); replace infinite values by numbers or NaN"
        )


def _scatter(values: np.ndarray, target: np.ndarray, length: int) -> np.ndarray:
    filled = np.full(length, np.nan)
    filled[target] = values
    return filled
