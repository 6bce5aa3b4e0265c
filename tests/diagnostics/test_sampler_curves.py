"""The picture of a comparison: who is coloured, what the axes show, where real data lies."""

from __future__ import annotations

import math
from collections.abc import Iterator

import matplotlib
import pytest

from structdiff.diagnostics.sampler_curves import sampler_curves
from structdiff.errors import StructDiffError
from structdiff.samplers.comparison import Case, Measurement, Metric

matplotlib.use("agg")
GAP, SHARE = Metric("gap", "the gap", "smaller"), Metric("share", "the share", "greater")


@pytest.fixture(autouse=True)
def _closed() -> Iterator[None]:
    yield
    import matplotlib.pyplot as plt

    plt.close("all")


def measurement(name: str, nfe: int, gap: float, share: float = 0.5) -> Measurement:
    return Measurement(Case(name, nfe, nfe), nfe, {"gap": gap, "share": share}, 1.0)


FOUND = [
    measurement(f"s{k}", nfe, (k + 1) / nfe, 1 - k / 20) for k in range(9) for nfe in (5, 10, 50)
]


def legend(panel: object) -> list[str]:
    return [text.get_text() for text in panel.figure.legends[0].get_texts()]  # type: ignore[attr-defined]


def test_the_best_are_named_in_order_and_the_others_grey() -> None:
    panel, _ = sampler_curves(FOUND, [GAP, SHARE], highlight=3)
    assert legend(panel) == ["s0", "s1", "s2", "others"]
    assert len({line.get_color() for line in panel.lines}) == 4 and len(panel.lines) == 9


def test_the_best_at_one_budget_is_named_though_it_is_bad_at_another() -> None:
    late = [measurement("late", 5, 1e3, 0.0), measurement("late", 50, 1e-3, 0.0)]
    panel, _ = sampler_curves([*FOUND, *late], [GAP, SHARE], highlight=3)
    assert legend(panel) == ["s0", "late", "s1", "others"]


def test_a_greater_share_is_better_where_the_metric_says_so() -> None:
    found = [measurement("few", 5, 1.0, 0.2), measurement("most", 5, 1.0, 0.9)]
    assert legend(sampler_curves(found, [SHARE], highlight=1)[0])[0] == "most"


def test_named_samplers_are_the_ones_coloured() -> None:
    (panel,) = sampler_curves(FOUND, [GAP], highlight=["s7", "s2"])
    assert legend(panel) == ["s7", "s2", "others"]


def test_points_stand_at_the_counted_evaluations() -> None:
    found = [Measurement(Case("heun", 10, 5), 9, {"gap": 1.0}, 1.0)]
    (panel,) = sampler_curves(found, [GAP])
    assert panel.lines[0].get_xydata().tolist() == [[9.0, 1.0]]
    assert panel.get_xscale() == "log"


def test_real_data_is_a_dashed_line_where_it_is_known() -> None:
    first, second = sampler_curves(FOUND, [GAP, SHARE], {"gap": 0.01})
    (floor,) = [line for line in first.lines if line.get_linestyle() == "--"]
    assert floor.get_ydata()[0] == 0.01 and "real data" in legend(first)
    assert first.get_ylim()[0] < 0.01
    assert not [line for line in second.lines if line.get_linestyle() == "--"]


def test_a_sampler_that_failed_does_not_squeeze_the_others() -> None:
    (panel,) = sampler_curves([*FOUND, measurement("lost", 5, 1e30)], [GAP])
    assert panel.get_ylim()[1] < 10


def test_scores_that_are_missing_are_left_out() -> None:
    found = [*FOUND, measurement("sde", 5, math.nan, 0.99), Measurement(Case("ode", 5, None))]
    gap, share = sampler_curves(found, [GAP, SHARE])
    assert len(gap.lines) == 9 and len(share.lines) == 10


def test_nothing_measured_is_no_picture() -> None:
    with pytest.raises(StructDiffError, match="nothing was measured"):
        sampler_curves([Measurement(Case("ode", 5, None))], [GAP])
