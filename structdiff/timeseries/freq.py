"""Frequencies: which timestamp follows which, over any calendar.

A frequency lays a grid of points over time. Every timestamp of a regular series is

    t = point(k) + phase,        k = k_0, k_0 + 1, k_0 + 2, ...

with one phase for the series (the time of day of daily data, the 15th of a month). Steps of less
than a day run on the UTC clock, days and longer on the wall clock, so that daily data keeps its
hour through a change to summer time and hourly data keeps its 23- and 25-hour days.
Pandas' frequency strings are accepted under their old and their new names.
"""

from __future__ import annotations

import datetime
import re
import warnings
from collections import Counter
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
from pandas.tseries.frequencies import to_offset
from pandas.tseries.offsets import BaseOffset, BusinessHour, DateOffset, Day, Tick

from structdiff.errors import StructDiffError

__all__ = ["Calendar", "Freq", "infer_frequency", "parse_frequency", "show"]

Freq: TypeAlias = BaseOffset | int

# Names that pandas 2.2 deprecated and pandas 3 refuses, and what they are called now.
_RENAMED = {
    "H": "h",
    "BH": "bh",
    "CBH": "cbh",
    "T": "min",
    "S": "s",
    "L": "ms",
    "U": "us",
    "N": "ns",
    "M": "ME",
    "BM": "BME",
    "CBM": "CBME",
    "SM": "SME",
    "Q": "QE",
    "BQ": "BQE",
    "A": "YE",
    "Y": "YE",
    "BA": "BYE",
    "BY": "BYE",
    "AS": "YS",
    "BAS": "BYS",
}
_TOKEN = re.compile(r"([A-Za-z]+)(-[A-Za-z0-9]+)?")
_DAY = 86_400_000_000_000
_UNIT = {"s": 1_000_000_000, "ms": 1_000_000, "us": 1_000, "ns": 1}
_EXAMPLES = "'h', '30min', 'D', 'B', 'W-SUN', 'MS', 'ME', 'QS', 'YS'"


def parse_frequency(freq: Any) -> Freq:
    """What the caller means by a frequency.

    Parameters
    ----------
    freq
        A pandas frequency string under its old or new name ("H"/"h", "M"/"ME", "15T"/"15min"),
        a pandas offset, a timedelta, or an integer step for integer time.

    Raises
    ------
    StructDiffError
        A string that pandas does not know, a step that is not positive, or an offset without a
        fixed grid (business hours, ``DateOffset(months=1)``).
    """
    if isinstance(freq, np.timedelta64):  # which NumPy counts among the integers
        freq = pd.Timedelta(freq)
    if isinstance(freq, (int, np.integer)) and not isinstance(freq, bool):
        if freq < 1:
            raise StructDiffError(f"freq={freq} must be a positive step")
        return int(freq)
    if not isinstance(freq, (str, BaseOffset, datetime.timedelta)):
        raise StructDiffError(f"freq={freq!r} is no frequency; examples: {_EXAMPLES}, or an int")
    try:
        offset = to_offset(_TOKEN.sub(_rename, freq) if isinstance(freq, str) else freq)
    except (ValueError, TypeError) as error:
        raise StructDiffError(
            f"freq={freq!r} is not a frequency that pandas knows; examples: {_EXAMPLES}"
        ) from error
    if isinstance(offset, BusinessHour) or type(offset) is DateOffset:
        raise StructDiffError(
            f"freq={freq!r} lays no fixed grid over time; use one of {_EXAMPLES}, or number the "
            "points 0, 1, 2 ... and pass freq=1"
        )
    if offset.n < 1:
        raise StructDiffError(f"freq={freq!r} must be a positive step")
    return offset


def _rename(match: re.Match[str]) -> str:
    return _RENAMED.get(match[1], match[1]) + (match[2] or "")


def infer_frequency(indexes: list[pd.DatetimeIndex]) -> BaseOffset | None:
    """The frequency that most of the longest series keep, or None when none is found.

    A series that is regular throughout decides; failing that, the commonest frequency of short
    stretches between the gaps.

    Parameters
    ----------
    indexes
        The sorted timestamps of each series, without repetitions.
    """
    longest = sorted((i for i in indexes if len(i) >= 3), key=len, reverse=True)[:20]
    for index in longest:
        whole = _infer_regular(index)
        if whole is not None:
            return parse_frequency(whole)
    for index in longest:
        for length in (12, 5):  # long enough for a weekend, else between frequent gaps
            starts = range(0, len(index) - length + 1, max(1, len(index) // 64))
            found = Counter(_infer_regular(index[s : s + length]) for s in starts)
            found.pop(None, None)
            if found and _explains(name := found.most_common(1)[0][0], index):
                return parse_frequency(name)
    return None


def _infer_regular(index: pd.DatetimeIndex) -> Any:
    """Pandas' inference on the wall clock for days and longer, on the UTC clock below.

    A day of the month that pandas has no name for, such as the 15th, counts from the first.
    """
    plain = index if index.tz is None else index.tz_convert(None)
    wall = index.tz_localize(None)
    name = _pandas_infer(wall) if wall.is_unique and wall.is_monotonic_increasing else None
    if name is not None and not _is_short(parse_frequency(name)):
        return name
    name = _pandas_infer(plain)
    day = index.day[0]
    if name is None and day <= 28 and (index.day == day).all() and wall.is_unique:
        name = _pandas_infer(wall - pd.Timedelta(days=int(day) - 1))
    return name


def _pandas_infer(index: pd.DatetimeIndex) -> Any:
    """``pd.infer_freq``: a string, in a later pandas an offset, or None."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="A future version of pandas will return a Base")
        return pd.infer_freq(index)


def _explains(name: Any, index: pd.DatetimeIndex) -> bool:
    """Whether at least half of the steps are one step of the frequency."""
    calendar = Calendar.of(parse_frequency(name), index)
    ordinal, _ = calendar.locate(calendar.clock(index))
    return bool(np.mean(np.diff(ordinal) == calendar.stride) >= 0.5)


def _is_short(freq: Freq) -> bool:
    return isinstance(freq, Tick) and not isinstance(freq, Day)


@dataclass(frozen=True)
class Calendar:
    """The grid of a frequency over one kind of time index.

    ``clock`` turns an index into integers and ``index`` turns them back into the same kind (dtype,
    unit, time zone); ``locate`` gives k and phase of t = point(k) + phase, ``place`` inverts it.

    Attributes
    ----------
    freq
        The offset, or the step of integer time.
    dtype
        Of the time index: datetime64 with or without a time zone, period, or integer.
    step
        Width of a uniform grid in clock units; 0 when the points are listed.
    points
        The listed points of a calendar grid (months, business days ...), ascending.
    stride
        How many points neighbours of a series are apart.
    """

    freq: Freq
    dtype: Any
    unit: str
    step: int
    points: np.ndarray
    stride: int = 1

    @classmethod
    def of(cls, freq: Freq, index: pd.Index) -> Calendar:
        """The calendar of a frequency over the timestamps of an index (not empty)."""
        none = np.empty(0, dtype=np.int64)
        if isinstance(index, pd.PeriodIndex):
            return cls(freq, index.dtype, "", int(index.freq.n), none)
        if not isinstance(index, pd.DatetimeIndex):
            return cls(freq, index.dtype, "", int(freq), none)
        assert not isinstance(freq, int)
        unit = index.unit
        if isinstance(freq, (Tick, Day)):
            nanos = freq.n * _DAY if isinstance(freq, Day) else freq.nanos
            if nanos % _UNIT[unit]:
                unit = "ns"
            return cls(freq, index.dtype, unit, nanos // _UNIT[unit], none)
        wall = index.tz_localize(None)
        points = _points(freq.base, wall.min(), unit, until=wall.max())
        return cls(freq, index.dtype, unit, 0, points, int(freq.n))

    @property
    def name(self) -> str | int:
        """The frequency under pandas' current name, or the integer step."""
        if isinstance(self.dtype, pd.PeriodDtype):
            return str(self.dtype)[len("period[") : -1]
        return self.freq if isinstance(self.freq, int) else self.freq.freqstr

    def clock(self, index: pd.Index) -> np.ndarray:
        """Integers that count time: UTC or wall-clock units, period ordinals, or the integers."""
        if isinstance(index, pd.PeriodIndex):
            return index.asi8
        if not isinstance(index, pd.DatetimeIndex):
            return index.to_numpy(dtype=np.int64)
        if index.tz is not None:
            index = index.tz_convert(None) if _is_short(self.freq) else index.tz_localize(None)
        return index.as_unit(self.unit).asi8

    def index(self, clock: np.ndarray) -> pd.Index:
        """The index of the caller's kind at these clock readings."""
        if isinstance(self.dtype, pd.PeriodDtype):
            return pd.PeriodIndex.from_ordinals(clock, freq=self.dtype.freq)
        if not self.unit:
            return pd.Index(clock).astype(self.dtype)
        index = pd.DatetimeIndex(clock.view(f"M8[{self.unit}]"))
        zone = getattr(self.dtype, "tz", None)
        if zone is None:
            return index
        if _is_short(self.freq):
            return index.tz_localize("UTC").tz_convert(zone)
        # A time of day that a change of clocks skips moves behind the gap; one that it repeats
        # is the first of the two.
        first = np.ones(len(index), dtype=bool)
        return index.tz_localize(zone, ambiguous=first, nonexistent="shift_forward")

    def locate(self, clock: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The grid point at or before each reading, and what is left."""
        if self.step:
            ordinal = clock // self.step
            return ordinal, clock - ordinal * self.step
        ordinal = np.searchsorted(self.points, clock, side="right") - 1
        return ordinal, clock - self.points[ordinal]

    def place(self, ordinal: np.ndarray, phase: np.ndarray | int) -> np.ndarray:
        """The reading at a grid point plus a phase."""
        base = ordinal * self.step if self.step else self.points[ordinal]
        return base + phase

    def nearest(self, clock: np.ndarray, phase: np.ndarray) -> np.ndarray:
        """The ordinal whose point plus phase lies nearest to each reading."""
        ordinal, _ = self.locate(clock)
        near = ordinal + np.array([[-1], [0], [1]])
        if not self.step:
            near = near.clip(0, len(self.points) - 1)
        distance = np.abs(self.place(near, phase) - clock)
        return near[distance.argmin(axis=0), np.arange(len(clock))]

    def after(self, last: np.ndarray, h: int) -> np.ndarray:
        """The ``h`` readings that follow a reading, (h,)."""
        if self.step:
            return last + self.step * np.arange(1, h + 1)
        assert not isinstance(self.freq, int)
        stamp = pd.DatetimeIndex(last.reshape(1).view(f"M8[{self.unit}]"))[0]
        points = _points(self.freq.base, stamp, self.unit, count=h * self.stride)
        start = int(np.searchsorted(points, last, side="right")) - 1
        return points[start + self.stride * np.arange(1, h + 1)] + (last - points[start])


def _points(
    base: BaseOffset,
    first: pd.Timestamp,
    unit: str,
    until: pd.Timestamp | None = None,
    count: int = 0,
) -> np.ndarray:
    """Grid points from two before ``first`` to two after ``until`` (or ``count`` further on)."""
    start = (base.rollback(first.normalize()) - 2 * base).as_unit(unit)
    if until is not None:
        grid = pd.date_range(start, until.normalize() + 3 * base, freq=base, unit=unit)
    else:
        grid = pd.date_range(start, periods=count + 6, freq=base, unit=unit)
    return grid.asi8


def show(time: Any) -> str:
    """A timestamp as a reader would write it: no midnight, no zero seconds."""
    if not isinstance(time, pd.Timestamp):
        return str(time)
    zone = time.strftime("%z") and f" {time.tzinfo}"
    if time == time.normalize():
        return time.strftime("%Y-%m-%d") + zone
    if time.second or time.microsecond or time.nanosecond:
        return str(time)
    return time.strftime("%Y-%m-%d %H:%M%z")
