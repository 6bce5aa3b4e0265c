r"""Charts of poses: error of every joint, a coordinate over time, the best of several hypotheses.

The best of :math:`h` hypotheses has, over all subsets of :math:`h` of the :math:`H`, the mean error
:math:`\sum_i \binom{H - i}{h - 1} \binom{H}{h}^{-1} e_{(i)}`, where :math:`e_{(i)}` is the i-th
smallest.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import comb
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from structdiff.errors import StructDiffError
from structdiff.pose._drawing import GREEN, GREY, LEFT, RIGHT, TRUNK, new_axes, side_colours
from structdiff.pose._stage import checked, checked_std
from structdiff.pose.skeletons import H36M_17, Skeleton, get_skeleton

if TYPE_CHECKING:
    from matplotlib.axes import Axes as PlotAxes

__all__ = ["plot_hypotheses_curve", "plot_joint_errors", "plot_uncertainty"]


def plot_joint_errors(
    errors: npt.ArrayLike | Mapping[str, npt.ArrayLike],
    *,
    skeleton: str | Skeleton = H36M_17,
    ax: PlotAxes | None = None,
) -> PlotAxes:
    """Error of every joint as a bar, in millimetres; several methods stand side by side.

    Parameters
    ----------
    errors
        Of the joints (J,) in millimetres, or those of several methods by their names.
    skeleton
        Whose joints they are.
    ax
        Where to draw; a new figure by default.

    Raises
    ------
    StructDiffError
        If there is not one finite error per joint, or matplotlib is not installed.
    """
    skeleton = get_skeleton(skeleton)
    methods = errors if isinstance(errors, Mapping) else {"": errors}
    bars = {m: checked(f"errors {m}".strip(), e, (len(skeleton),)) for m, e in methods.items()}
    ax = ax or new_axes((7.0, 3.2))
    width = 0.8 / len(bars)
    shades = (RIGHT, LEFT, GREEN, GREY, TRUNK)
    for n, (method, heights) in enumerate(bars.items()):
        colours: Any = shades[n % len(shades)] if len(bars) > 1 else side_colours(skeleton)
        at = np.arange(len(skeleton)) + (n - (len(bars) - 1) / 2) * width
        ax.bar(at, heights, width, color=colours, label=method or "_")
    ax.set_xticks(range(len(skeleton)), skeleton.joints, rotation=60, ha="right")
    ax.set_ylabel("error (mm)")
    if len(bars) > 1:  # above the bars, for it may not cover one
        ax.legend(frameon=False, fontsize="small", loc="lower left", bbox_to_anchor=(0, 1), ncols=3)
    return _bare(ax)


def plot_uncertainty(
    poses: npt.ArrayLike,
    joint: str | int,
    coordinate: str = "z",
    *,
    hypotheses: npt.ArrayLike | None = None,
    std: npt.ArrayLike | None = None,
    target: npt.ArrayLike | None = None,
    skeleton: str | Skeleton = H36M_17,
    level: float = 80.0,
    fps: float | None = None,
    ax: PlotAxes | None = None,
) -> PlotAxes:
    """One coordinate of one joint over time, with the band that holds it at ``level`` percent.

    Parameters
    ----------
    poses
        Mean poses in metres (T, J, 3).
    joint
        Name or number.
    coordinate
        ``"x"``, ``"y"`` or ``"z"`` of the axes that the poses are in.
    hypotheses
        (H, T, J, 3): the band is between their quantiles.
    std
        (T, J) or (T, J, 3), where there are no hypotheses: the band of the normal distribution.
    target
        What was true (T, J, 3).
    skeleton
        Of the poses, or its name.
    level
        Percent of the band.
    fps
        Frames per second; without it time is counted in frames.
    ax
        Where to draw; a new figure by default.

    Raises
    ------
    StructDiffError
        If a shape, the joint, the coordinate or the level is wrong, or matplotlib is not installed.
    """
    skeleton = get_skeleton(skeleton)
    count = len(skeleton)
    if coordinate not in ("x", "y", "z"):
        raise StructDiffError(f"coordinate must be 'x', 'y' or 'z', got {coordinate!r}")
    if not 0 < level < 100:
        raise StructDiffError(f"level must be a percentage between 0 and 100, got {level}")
    j, axis = skeleton.index(joint) if isinstance(joint, str) else joint, "xyz".index(coordinate)
    if not 0 <= j < count:
        raise StructDiffError(f"there is no joint {j}: {skeleton.name} has 0 to {count - 1}")
    mean = checked("poses", poses, (None, count, 3))
    times = np.arange(len(mean)) / (fps or 1.0)
    tail = (100 - level) / 200
    band = None
    if hypotheses is not None:
        many = checked("hypotheses", hypotheses, (None, len(mean), count, 3))[..., j, axis]
        band = np.quantile(many, [tail, 1 - tail], axis=0)
    elif std is not None:
        reach = NormalDist().inv_cdf(1 - tail) * checked_std(std, mean)[:, j, axis]
        band = np.stack([mean[:, j, axis] - reach, mean[:, j, axis] + reach])
    ax = ax or new_axes((6.4, 3.2))
    if band is not None:
        ax.fill_between(times, *band, color=RIGHT, alpha=0.25, linewidth=0, label=f"{level:g} %")
    ax.plot(times, mean[:, j, axis], color=RIGHT, label="mean")
    if target is not None:
        true = checked("target", target, mean.shape)
        ax.plot(times, true[:, j, axis], color=LEFT, linewidth=1.2, label="reference")
    ax.set_xlabel("time (s)" if fps else "frame")
    ax.set_ylabel(f"{coordinate} of {skeleton.joints[j]} (m)")
    ax.margins(x=0)
    ax.legend(frameon=False, fontsize="small", loc="lower left", bbox_to_anchor=(0, 1), ncols=3)
    return _bare(ax)


def plot_hypotheses_curve(
    errors: npt.ArrayLike,
    *,
    aggregates: Mapping[str, float] | None = None,
    ax: PlotAxes | None = None,
) -> PlotAxes:
    """Mean error of the best of h hypotheses, for h from 1 to H.

    The mean over all subsets of h of the H hypotheses, exactly: with the errors of a pose in
    ascending order, the i-th is a subset's smallest with probability C(H - i, h - 1) / C(H, h).

    Parameters
    ----------
    errors
        Of every hypothesis of every pose, millimetres (H, N).
    aggregates
        Errors of aggregated poses by name, millimetres: horizontal lines.
    ax
        Where to draw; a new figure by default.

    Raises
    ------
    StructDiffError
        If the errors are not (H, N) finite numbers, or matplotlib is not installed.
    """
    ordered = np.sort(checked("errors", errors, (None, None)), axis=0)
    count = len(ordered)
    sizes = range(1, count + 1)
    chance = np.array(
        [[comb(count - i, h - 1) / comb(count, h) for i in sizes] for h in sizes]
    )  # (H, H)
    ax = ax or new_axes((4.8, 3.2))  # which says what to install, before the next line needs it
    from matplotlib.ticker import MaxNLocator

    best = chance @ ordered.mean(axis=1)
    ax.plot(list(sizes), best, color=RIGHT, marker="o", markersize=3, label="best hypothesis")
    styles = ("--", ":", "-.")
    for n, (name, error) in enumerate((aggregates or {}).items()):
        ax.axhline(error, color=GREY, linestyle=styles[n % 3], linewidth=1.2, label=name)
    ax.set(xlabel="hypotheses", ylabel="error (mm)")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    ax.legend(frameon=False, fontsize="small", loc="lower left", bbox_to_anchor=(0, 1), ncols=3)
    return _bare(ax)


def _bare(ax: Any) -> Any:
    ax.spines[["top", "right"]].set_visible(False)
    return ax
