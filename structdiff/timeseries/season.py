"""How many points one season of a frequency has."""

from __future__ import annotations

from typing import Any

from pandas.tseries.offsets import Tick

from structdiff.timeseries.freq import parse_frequency

_DAY = 86_400_000_000_000
# By the first part of the name of a calendar offset: W-SUN, MS, QE-DEC ...
_SEASONS = {"D": 7, "B": 5, "C": 5, "W": 52, "SMS": 24, "SME": 24}
_SEASONS |= {name: 12 for name in ("MS", "ME", "BMS", "BME")}
_SEASONS |= {name: 4 for name in ("QS", "QE", "BQS", "BQE")}


def seasonality_of(freq: Any) -> int:
    """Points of one season: of a day below a day, else of a week or a year; 1 where there is none.

    Parameters
    ----------
    freq
        As for :func:`~structdiff.timeseries.freq.parse_frequency`; integer time has no season.
    """
    offset = parse_frequency(freq)
    if isinstance(offset, int):
        return 1
    if isinstance(offset, Tick) and offset.nanos < _DAY:
        return max(1, round(_DAY / offset.nanos))
    if isinstance(offset, Tick):
        days = offset.nanos / _DAY
        return 7 if days == 1 else 52 if days == 7 else 1
    name = str(offset.name).split("-")[0]
    return max(1, round(_SEASONS.get(name, 1) / offset.n))
