"""Quality against network evaluations: the picture of a comparison of samplers.

One panel per metric, evaluations on a logarithmic axis, one line per sampler. The best few are
coloured and named, the others grey; a dashed line is what real data scores.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from structdiff.errors import StructDiffError
from structdiff.samplers.comparison import Measurement, Metric

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Colours that people with every kind of sight tell apart (Okabe and Ito 2008), and their marks.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKS = "os^Dvph"
_GREY = "#c4c4c4"

Points = list[tuple[int, float]]


def sampler_curves(
    measurements: Iterable[Measurement],
    metrics: Sequence[Metric],
    floors: Mapping[str, float] | None = None,
    *,
    highlight: int | Sequence[str] = 6,
    axes: Sequence[Axes] | None = None,
) -> NDArray[np.object_]:
    """Draw every metric against the evaluations.

    Parameters
    ----------
    measurements
        What :func:`structdiff.samplers.comparison.compare` gave; those without scores are left out.
    metrics
        One panel each.
    floors
        What real data scores, per metric.
    highlight
        Which samplers are coloured, or how many: the best of the first metric at every budget, then
        those of the best mean rank over budgets and metrics. At most seven.
    axes
        One matplotlib Axes per metric; a new figure by default.

    Returns
    -------
    numpy.ndarray
        The Axes.

    Raises
    ------
    StructDiffError
        If nothing was measured.
    """
    import matplotlib.pyplot as plt  # an extra of its own

    found = [each for each in measurements if each.scores]
    if not found:
        raise StructDiffError("nothing was measured: there is no curve to draw")
    panels: list[Any] = [] if axes is None else list(axes)
    if not panels:
        size = (1.2 + 3.6 * len(metrics), 3.4)
        _, drawn = plt.subplots(1, len(metrics), figsize=size, squeeze=False, layout="constrained")
        panels = drawn.ravel().tolist()
    chosen = _best(found, metrics, highlight) if isinstance(highlight, int) else list(highlight)
    chosen = chosen[: len(_COLOURS)]
    handles: dict[str, Any] = {}
    for panel, metric in zip(panels, metrics, strict=True):
        lines = _lines(found, metric)
        floor = (floors or {}).get(metric.name)
        handles |= _draw(panel, metric, lines, chosen, floor)
    names = [name for name in (*chosen, "others", "real data") if name in handles]
    figure: Any = panels[0].figure
    figure.legend([handles[n] for n in names], names, loc="outside right center", frameon=False)
    return np.asarray(panels, dtype=object)


def _lines(found: Sequence[Measurement], metric: Metric) -> dict[str, Points]:
    """Sampler -> its points in order of evaluations, finite ones."""
    lines: dict[str, Points] = {}
    for each in found:
        value = each.scores.get(metric.name, math.nan)
        if math.isfinite(value) and each.evaluations:
            lines.setdefault(each.case.sampler, []).append((each.evaluations, value))
    return {name: sorted(points) for name, points in lines.items()}


def _best(found: Sequence[Measurement], metrics: Sequence[Metric], count: int) -> list[str]:
    """The first at every budget, then those of the best mean rank over all they have."""
    ranks: dict[str, list[float]] = {}
    winners: dict[str, None] = {}
    for metric in metrics:
        sign = 1 if metric.better == "smaller" else -1
        for nfe in sorted({each.case.nfe for each in found}):
            cell = [
                (sign * each.scores[metric.name], each.case.sampler)
                for each in found
                if each.case.nfe == nfe and math.isfinite(each.scores.get(metric.name, math.nan))
            ]
            ordered = sorted(cell)
            if metric is metrics[0] and ordered:
                winners[ordered[0][1]] = None
            for rank, (_, name) in enumerate(ordered):
                ranks.setdefault(name, []).append(rank / len(cell))
    by_rank = sorted(ranks, key=lambda name: float(np.mean(ranks[name])))
    return list(dict.fromkeys([*winners, *by_rank]))[:count]


def _draw(
    panel: Axes,
    metric: Metric,
    lines: Mapping[str, Points],
    chosen: Sequence[str],
    floor: float | None,
) -> dict[str, Any]:
    handles: dict[str, Any] = {}
    for name, points in lines.items():
        if name not in chosen:
            x, y = zip(*points, strict=True)
            (handles["others"],) = panel.plot(x, y, color=_GREY, lw=0.9, marker=".", ms=3, zorder=1)
    for name, colour, mark in zip(chosen, _COLOURS, _MARKS, strict=False):
        if name in lines:
            x, y = zip(*lines[name], strict=True)
            (handles[name],) = panel.plot(x, y, color=colour, lw=1.7, marker=mark, ms=5, zorder=3)
    if floor is not None:
        handles["real data"] = panel.axhline(floor, color="#444444", lw=1, ls="--", zorder=2)
    _scale(panel, metric, lines, chosen, floor)
    return handles


def _scale(
    panel: Axes,
    metric: Metric,
    lines: Mapping[str, Points],
    chosen: Sequence[str],
    floor: float | None,
) -> None:
    """Logarithmic evaluations; limits by the good samplers: one that failed does not squeeze."""
    values = np.array([y for points in lines.values() for _, y in points])
    good = np.array([y for name in chosen for _, y in lines.get(name, [])])
    places = sorted({x for points in lines.values() for x, _ in points})
    panel.set_xscale("log")
    panel.minorticks_off()
    panel.set_xticks(_spaced(places), [str(x) for x in _spaced(places)])
    panel.set_xlabel("network evaluations")
    arrow = "lower is better" if metric.better == "smaller" else "higher is better"
    panel.set_title(f"{metric.label}\n({arrow})", fontsize=10)
    panel.spines[["top", "right"]].set_visible(False)
    panel.grid(axis="y", lw=0.4, alpha=0.5)
    if not len(values):
        return
    seen = np.concatenate([good, values]) if len(good) else values
    if metric.better == "smaller" and values.min() > 0:
        panel.set_yscale("log")
        top = max(good.max() if len(good) else 0, float(np.quantile(values, 0.85)))
        low = min(float(seen.min()), floor if floor is not None else math.inf)
        panel.set_ylim(low / 1.3, top * 1.3)
        return
    bottom = min(good.min() if len(good) else math.inf, float(np.quantile(values, 0.15)))
    room = 0.04 * max(float(seen.max()) - bottom, 1e-3)
    panel.set_ylim(bottom - room, float(seen.max()) + room)


def _spaced(places: Sequence[int]) -> list[int]:
    """Ticks at the evaluations, without those that would touch (9 beside 10, 49 beside 50)."""
    kept: list[int] = []
    for place in sorted(places, reverse=True):
        if not kept or kept[-1] / place > 1.25:
            kept.append(place)
    return kept[::-1]
