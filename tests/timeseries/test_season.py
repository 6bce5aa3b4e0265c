"""Points of a season, by the names and multiples that frequencies have."""

import pandas as pd
import pytest

from structdiff.timeseries.season import seasonality_of


@pytest.mark.parametrize(
    ("freq", "points"),
    [
        ("h", 24),
        ("H", 24),
        ("2h", 12),
        ("30min", 48),
        ("T", 1440),
        ("5s", 17280),
        ("D", 7),
        ("24h", 7),
        ("2D", 1),
        ("14D", 1),
        ("B", 5),
        ("C", 5),
        ("W", 52),
        ("W-MON", 52),
        ("7D", 52),
        ("2W", 26),
        ("MS", 12),
        ("M", 12),
        ("BME", 12),
        ("2MS", 6),
        ("SMS", 24),
        ("QS", 4),
        ("QE-DEC", 4),
        ("Y", 1),
        ("YS", 1),
        ("36h", 1),
        ("100D", 1),
        (1, 1),
        (24, 1),
        (pd.Timedelta("15min"), 96),
        (pd.offsets.Hour(6), 4),
    ],
    ids=str,
)
def test_the_season_of_a_frequency(freq, points):
    assert seasonality_of(freq) == points


@pytest.mark.parametrize("freq", ["fortnight", 0, None])
def test_what_is_no_frequency_is_refused(freq):
    with pytest.raises(ValueError, match="freq"):
        seasonality_of(freq)
