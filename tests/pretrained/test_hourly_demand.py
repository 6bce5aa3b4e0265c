"""The embedded series: the script makes the file, and the file is what its card says."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from structdiff import datasets
from structdiff.pretrained.make_hourly_demand import hourly_demand
from structdiff.timeseries import read_panel
from structdiff.timeseries.baselines import seasonal_naive


@pytest.fixture(scope="module")
def series() -> pd.DataFrame:
    return pd.read_csv(datasets.path("hourly_demand"), parse_dates=["ds"])


def test_the_script_makes_the_file(series: pd.DataFrame) -> None:
    # Two decimals: another machine's last bits do not show.
    pd.testing.assert_frame_equal(hourly_demand(), series, check_exact=True)


def test_fewer_sites_are_the_same_sites(series: pd.DataFrame) -> None:
    pd.testing.assert_frame_equal(hourly_demand(sites=3), series.iloc[:, :4], check_exact=True)


def test_five_of_twenty_sites_have_gaps_and_all_are_regular(series: pd.DataFrame) -> None:
    panel = read_panel(series)
    assert (len(panel), panel.freq, panel.layout) == (20, "h", "wide")
    assert [len(values) for values in panel.values] == [63 * 24] * 20
    missing = panel.missing()["missing"]
    assert (missing > 0).sum() == 5 and missing.max() < 100


def test_a_week_ago_is_a_better_forecast_than_a_day_ago(series: pd.DataFrame) -> None:
    # Saturdays follow Fridays: the season is the week.
    panel = read_panel(series)
    saturday = slice(-48, -24)
    error = {m: 0.0 for m in (24, 168)}
    for values in panel.values:
        for m in error:
            gap = values[saturday] - seasonal_naive(values[:-48], 24, m)
            error[m] += float(np.nanmean(np.abs(gap)) / np.nanmean(values))
    assert error[168] < error[24]
