r"""Make the embedded series ``hourly_demand``: 20 sites, nine weeks, hour by hour.

    python -m structdiff.pretrained.make_hourly_demand --out datasets/timeseries/hourly_demand.csv

No measurement is in it. The demand of a site at hour t, of the day h and of the week w, is

.. math:: y_t = L\,S_t\,(1 + g\,t/T)\,(1 + D(h) + W(w)) + L\,\sigma(h)\,e_t,
          \qquad e_t = \phi\,e_{t-1} + \sqrt{1 - \phi^2}\,n_t,

with a level L (log-uniform from 20 to 2,000 kW), a trend g, a day D of two harmonics, a week W
whose last two days are lower, noise whose size sigma is larger by day than by night and whose n_t
are Student's t with 6 degrees of freedom, and a factor S_t that is 1 but for level shifts. Six
sites have one shift or two, five sites gaps of 3 to 30 hours. A site's draws depend on the seed and
its number alone.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from structdiff.storage import write_whole

Array = npt.NDArray[np.float64]

SITES, DAYS, SEED = 20, 63, 0
_SHIFTED, _GAPPED = 6, 5
_DAY, _WEEK = 24, 168


def hourly_demand(sites: int = SITES, days: int = DAYS, seed: int = SEED) -> pd.DataFrame:
    """The series: a column ``ds`` and a column for each site, in kW to two decimals, NaN in gaps.

    Parameters
    ----------
    sites
        How many.
    days
        How long each is.
    seed
        Of every draw.
    """
    hours = np.arange(days * _DAY, dtype=np.float64)
    columns: dict[str, object] = {"ds": pd.date_range("2024-01-01", periods=len(hours), freq="h")}
    for site in range(sites):
        # Each third site is shifted, each fourth has gaps, as far as there are any left.
        shifts = site % 3 == 1 and site // 3 < _SHIFTED
        gaps = site % 4 == 2 and site // 4 < _GAPPED
        rng = np.random.default_rng((seed, site))
        demand = _site(rng, hours, shifts, gaps)
        columns[f"site-{site + 1:02d}"] = demand.round(2)
    return pd.DataFrame(columns)


def _site(rng: np.random.Generator, hours: Array, shifts: bool, gaps: bool) -> Array:
    """One series, (T,)."""
    level = np.exp(rng.uniform(np.log(20), np.log(2000)))
    trend = rng.uniform(-0.15, 0.25)
    season = 1 + _day(rng, hours) + _week(rng, hours)
    daylight = np.clip(np.sin(2 * np.pi * (hours % _DAY - 6) / _DAY), 0, None)
    size = rng.uniform(0.02, 0.05) * (1 + 1.5 * daylight)
    noise = size * _autoregression(rng, len(hours))
    step = _shifts(rng, len(hours)) if shifts else np.ones(len(hours))
    y = level * (step * (1 + trend * hours / len(hours)) * season + noise)
    if gaps:
        y[_gaps(rng, len(hours))] = np.nan
    return y


def _day(rng: np.random.Generator, hours: Array) -> Array:
    """Two harmonics of the day; the peak lies in the afternoon or the evening."""
    first, second = rng.uniform(0.15, 0.4), rng.uniform(0.03, 0.15)
    peak, other = rng.uniform(13, 19), rng.uniform(0, 12)
    return np.asarray(
        first * np.cos(2 * np.pi * (hours - peak) / _DAY)
        + second * np.cos(4 * np.pi * (hours - other) / _DAY)
    )


def _week(rng: np.random.Generator, hours: Array) -> Array:
    """Saturday and Sunday are lower; 2024-01-01 is a Monday."""
    depth = rng.uniform(0.05, 0.3)
    day = hours % _WEEK // _DAY
    return np.where(day == 6, -depth, np.where(day == 5, -0.7 * depth, 0.0))


def _autoregression(rng: np.random.Generator, length: int) -> Array:
    """AR(1) of unit variance with heavy-tailed innovations."""
    phi, degrees = rng.uniform(0.5, 0.85), 6
    innovations = rng.standard_t(degrees, length) * np.sqrt((degrees - 2) / degrees)
    noise = np.empty(length)
    noise[0] = innovations[0]
    for t in range(1, length):
        noise[t] = phi * noise[t - 1] + np.sqrt(1 - phi**2) * innovations[t]
    return noise


def _shifts(rng: np.random.Generator, length: int) -> Array:
    """1, and from one hour or two hours on another level."""
    step = np.ones(length)
    for start in rng.integers(length // 6, length - length // 6, size=rng.integers(1, 3)):
        step[start:] *= rng.choice([rng.uniform(0.7, 0.88), rng.uniform(1.12, 1.35)])
    return step


def _gaps(rng: np.random.Generator, length: int) -> npt.NDArray[np.bool_]:
    """Two to four outages of 3 to 30 hours."""
    missing = np.zeros(length, dtype=bool)
    for start in rng.integers(_DAY, length - 4 * _DAY, size=rng.integers(2, 5)):
        missing[start : start + rng.integers(3, 31)] = True
    return missing


def main() -> None:
    """Write the file; the same command writes the same bytes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    write_whole(arguments.out, hourly_demand().to_csv(index=False).encode())


if __name__ == "__main__":
    main()
