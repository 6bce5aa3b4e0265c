"""Missing-value scenarios: half of the context, per series, in a copy (method card, 4.3)."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from structdiff.errors import StructDiffError
from structdiff.timeseries.frames import Panel, read_panel
from structdiff.timeseries.missing import SCENARIOS, hidden_points, hide
from structdiff.timeseries.windows import WindowMaker


def panel(lengths: dict[str, int]) -> Panel:
    parts = []
    for k, (name, n) in enumerate(lengths.items()):
        days = pd.date_range("2024-01-01", periods=n, freq="D")
        y = np.random.default_rng(k).standard_normal(n) + 10
        parts.append(pd.DataFrame({"unique_id": name, "ds": days, "y": y}))
    return read_panel(pd.concat(parts), freq="D")


THREE = {"a": 50, "b": 40, "c": 60}


@pytest.mark.parametrize("scenario", SCENARIOS)
@pytest.mark.parametrize(("context", "half"), [(336, 168), (360, 180), (312, 156), (7, 3)])
def test_half_of_the_context_is_hidden(scenario, context: int, half: int) -> None:
    # Hourly 168, Exchange 180, KDDCup 156 (method card, section 4.3).
    masks = hidden_points(panel({"a": 400, "b": 500}), scenario, context)
    assert [int(m.sum()) for m in masks] == [half, half]
    assert not any(m[:-context].any() for m in masks)


def test_bm_b_hides_the_first_half_of_the_context() -> None:
    for values, mask in zip(
        panel(THREE).values, hidden_points(panel(THREE), "BM-B", 20), strict=True
    ):
        start = len(values) - 20
        assert np.flatnonzero(mask).tolist() == list(range(start, start + 10))


def test_bm_e_hides_the_points_next_to_the_horizon() -> None:
    for values, mask in zip(
        panel(THREE).values, hidden_points(panel(THREE), "BM-E", 20), strict=True
    ):
        assert np.flatnonzero(mask).tolist() == list(range(len(values) - 10, len(values)))


def test_rm_hides_every_position_equally_often() -> None:
    # 4000 draws of 5 of 10: each count is binomial(4000, 1/2), sd 31.6; four of them are 127.
    one = panel({"a": 10})
    total = sum(hidden_points(one, "RM", 10, seed=s)[0].astype(int) for s in range(4000))
    assert np.abs(total - 2000).max() < 127


def test_hidden_values_are_missing_and_the_others_untouched() -> None:
    full = panel(THREE)
    hidden = hide(full, "RM", 20, seed=3)
    for old, new, mask in zip(
        full.values, hidden.values, hidden_points(full, "RM", 20, seed=3), strict=True
    ):
        np.testing.assert_array_equal(np.isnan(new), mask)
        np.testing.assert_array_equal(new[~mask], old[~mask])


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_the_callers_panel_is_not_changed(scenario) -> None:
    full = panel(THREE)
    before = [v.copy() for v in full.values]
    hide(full, scenario, 20)
    for old, now in zip(before, full.values, strict=True):
        np.testing.assert_array_equal(old, now)


def test_a_series_draw_does_not_depend_on_the_others_or_their_order() -> None:
    full = panel(THREE)
    together = hidden_points(full, "RM", 30, seed=5)
    alone = hidden_points(full.take(["b"]), "RM", 30, seed=5)
    turned = hidden_points(full.take(["c", "b", "a"]), "RM", 30, seed=5)
    np.testing.assert_array_equal(together[1], alone[0])
    np.testing.assert_array_equal(together[0], turned[2])


def test_series_are_hidden_at_different_points() -> None:
    first, second = hidden_points(panel({"a": 40, "b": 40}), "RM", 40)
    assert (first != second).any()


def test_another_seed_hides_other_points() -> None:
    one = panel({"a": 40})
    assert (
        hidden_points(one, "RM", 40, seed=0)[0] != hidden_points(one, "RM", 40, seed=1)[0]
    ).any()


def test_rm_is_the_same_in_every_process() -> None:
    # Python salts the hash of a text with PYTHONHASHSEED; the draw must not follow it.
    program = (
        "import numpy as np, pandas as pd\n"
        "from structdiff.timeseries.frames import read_panel\n"
        "from structdiff.timeseries.missing import hidden_points\n"
        "index = pd.date_range('2024-01-01', periods=40, freq='D')\n"
        "one = read_panel(pd.DataFrame({'a': np.ones(40)}, index=index))\n"
        "print(np.flatnonzero(hidden_points(one, 'RM', 40, seed=0)[0]).tolist())"
    )
    drawn = [
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": salt},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for salt in ("1", "2")
    ]
    here = np.flatnonzero(hidden_points(panel({"a": 40}), "RM", 40, seed=0)[0]).tolist()
    assert drawn == [str(here)] * 2


def test_hidden_points_are_hidden_as_lags_too() -> None:
    hidden = hide(panel({"a": 60}), "BM-E", 20)
    maker = WindowMaker(hidden.values, context=20, horizon=5, lags=(5,))
    window = maker.batch(maker.lengths.new_zeros(1), maker.lengths, future=False)
    # Position 20 (the first of the horizon) at lag 5 is the point 15 of the context: hidden.
    assert not window.observed[0, 20:, 1].any()
    assert window.observed[0, :10].all()


def test_a_series_shorter_than_the_context_loses_half_of_itself() -> None:
    assert [int(m.sum()) for m in hidden_points(panel({"a": 12, "b": 40}), "RM", 30)] == [6, 15]


def test_count_says_how_many() -> None:
    assert [int(m.sum()) for m in hidden_points(panel(THREE), "RM", 30, count=4)] == [4, 4, 4]


def test_the_frame_comes_back_with_the_gaps() -> None:
    full = panel(THREE)
    hidden = hide(full, "BM-E", 20)
    frame = hidden.restore({hidden.target: hidden.values})
    assert frame.groupby("unique_id")["y"].apply(lambda y: int(y.isna().sum())).tolist() == [10] * 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("XX", 20), "scenario 'XX'"),
        (("RM", 0), "context=0"),
        (("RM", 20, -1), "count=-1"),
        (("RM", 20, 3, -1), "seed=-1"),
        (("RM", 20, 20), "series 'a': hiding 20 of 20"),
    ],
)
def test_a_wrong_request_is_refused(arguments: tuple, message: str) -> None:
    with pytest.raises(StructDiffError, match=message):
        hidden_points(panel(THREE), *arguments)


def test_a_context_that_is_left_empty_is_refused_by_name() -> None:
    frame = pd.DataFrame(
        {"b": [1.0, 2, 3, 4, np.nan, np.nan]}, index=pd.date_range("2024", periods=6, freq="D")
    )
    with pytest.raises(StructDiffError, match=r"series 'b': BM-B with 2 hidden points .*`count`"):
        hide(read_panel(frame), "BM-B", 4)
