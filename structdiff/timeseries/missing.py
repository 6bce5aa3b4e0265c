"""Missing-value scenarios: which points of the context a forecaster is not shown.

Of the last ``context`` points of every series half are hidden (Kollovieh et al. 2023, TSDiff):

- ``RM``, random missing: positions drawn without replacement,
- ``BM-B``, a block at the beginning: the first half, far from the horizon,
- ``BM-E``, a block at the end: the last half, which touches the horizon.

Hidden values become NaN in a copy of the panel, so that they are also hidden where a model looks
at them as lags. The draw of a series depends on the seed and its id alone: not on its order, nor
on the other series.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import numpy.typing as npt

from structdiff.errors import StructDiffError
from structdiff.timeseries.frames import Panel

__all__ = ["SCENARIOS", "Scenario", "hidden_points", "hide"]

Scenario: TypeAlias = Literal["RM", "BM-B", "BM-E"]

#: The scenarios of the paper.
SCENARIOS: tuple[Scenario, ...] = get_args(Scenario)


def hide(
    panel: Panel, scenario: Scenario, context: int, count: int | None = None, seed: int = 0
) -> Panel:
    """The panel with part of every series' context missing; the caller's panel is not changed.

    Parameters
    ----------
    panel
        Series up to the beginning of the horizon.
    scenario
        ``"RM"``, ``"BM-B"`` or ``"BM-E"``.
    context
        How many last points a forecaster conditions on. Of a series that is shorter, all of it.
    count
        How many points to hide; by default half of them (rounded down).
    seed
        Seed of the random positions, at least 0.

    Returns
    -------
    Panel
        With NaN at the hidden points. A point that was missing before counts like any other.

    Raises
    ------
    StructDiffError
        As :func:`hidden_points`; or what remains of a series' context was missing anyway.
    """
    values = []
    for i, mask in enumerate(hidden_points(panel, scenario, context, count, seed)):
        series = np.where(mask, np.nan, panel.values[i])
        if np.isnan(series[-context:]).all():
            raise StructDiffError(
                f"{panel.label(i)}: {scenario} with {int(mask.sum())} hidden points leaves no "
                f"observed value among the last {min(context, len(series))}; hide fewer "
                "(`count`) or leave the series out"
            )
        values.append(series)
    return replace(panel, values=values)


def hidden_points(
    panel: Panel, scenario: Scenario, context: int, count: int | None = None, seed: int = 0
) -> list[npt.NDArray[np.bool_]]:
    """Which points :func:`hide` takes away.

    Parameters
    ----------
    panel, scenario, context, count, seed
        As there.

    Returns
    -------
    list of arrays
        Per series, (T_i,) bool, True = hidden.

    Raises
    ------
    StructDiffError
        An unknown scenario, a context below 1, a count below 0, a negative seed, or a series whose
        context has no more than ``count`` points.
    """
    if scenario not in SCENARIOS:
        raise StructDiffError(f"scenario {scenario!r} is not one of {', '.join(SCENARIOS)}")
    if context < 1:
        raise StructDiffError(f"context={context}: a context has at least one point")
    if count is not None and count < 0:
        raise StructDiffError(f"count={count}: the number of hidden points is at least 0")
    if seed < 0:
        raise StructDiffError(f"seed={seed}: a seed is at least 0")
    masks = []
    for i, series in enumerate(panel.values):
        shown = min(context, len(series))
        hidden = shown // 2 if count is None else count
        if hidden >= shown:
            raise StructDiffError(
                f"{panel.label(i)}: hiding {hidden} of {shown} context points leaves none; "
                "choose a smaller `count`"
            )
        mask = np.zeros(len(series), dtype=bool)
        positions = _positions(scenario, shown, hidden, seed, panel.ids[i])
        mask[len(series) - shown + positions] = True
        masks.append(mask)
    return masks


def _positions(
    scenario: Scenario, shown: int, hidden: int, seed: int, name: Any
) -> npt.NDArray[np.intp]:
    """Hidden positions of a context of ``shown`` points."""
    if scenario == "BM-B":
        return np.arange(hidden)
    if scenario == "BM-E":
        return np.arange(shown - hidden, shown)
    # Python's own hash of a text changes from run to run.
    key = int.from_bytes(hashlib.sha256(repr(name).encode()).digest()[:8], "little")
    return np.random.default_rng((seed, key)).permutation(shown)[:hidden]
