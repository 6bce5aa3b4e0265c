r"""Pictures of poses: bodies in space with their spread, keypoints on the image, error charts.

A body is drawn upright in picture coordinates (x, depth, height), which are :math:`(X, Z, -Y)` of
camera axes and :math:`(X, Y, Z)` of world axes: both are rotations, so a left arm stays a left one.
The uncertainty of a joint is its ellipsoid of one standard deviation, whose outline seen along
:math:`d` is :math:`\Sigma n / \sqrt{n^\top \Sigma n}` over the unit :math:`n \perp d`. Everything
is drawn on a matplotlib Axes (extra ``[plots]``), which is returned. Colours tell apart for every
kind of sight (Okabe and Ito 2008).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import comb
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from structdiff.errors import StructDiffError
from structdiff.pose.data import Array, Axes
from structdiff.pose.skeletons import H36M_17, Skeleton, get_skeleton

if TYPE_CHECKING:
    from matplotlib.axes import Axes as PlotAxes
    from mpl_toolkits.mplot3d import Axes3D

__all__ = [
    "plot_hypotheses_curve",
    "plot_joint_errors",
    "plot_keypoints",
    "plot_pose",
    "plot_uncertainty",
]

LEFT, RIGHT, TRUNK = "#D55E00", "#0072B2", "#333333"
GREEN, GREY, FLOOR = "#009E73", "#8c8c8c", "#f0f0f0"
VIEWS: dict[Axes, tuple[float, float]] = {"camera": (12.0, -70.0), "world": (15.0, -60.0)}


def plot_pose(
    pose: npt.ArrayLike,
    *,
    skeleton: str | Skeleton = H36M_17,
    axes: Axes = "camera",
    hypotheses: npt.ArrayLike | None = None,
    std: npt.ArrayLike | None = None,
    target: npt.ArrayLike | None = None,
    floor: float | None = None,
    view: tuple[float, float] | None = None,
    ax: Axes3D | None = None,
) -> Axes3D:
    """One pose in space, upright on the floor, left in orange and right in blue.

    Parameters
    ----------
    pose
        Joints in metres (J, 3), absolute or relative to the root.
    skeleton
        Of the pose, or its name.
    axes
        ``"camera"``: x right, y down, z forward; ``"world"``: z up.
    hypotheses
        Further poses (H, J, 3), drawn thin and translucent.
    std
        Standard deviation of the joints in metres, (J,) or per coordinate (J, 3): a translucent
        ellipsoid of that size around each joint.
    target
        Reference pose (J, 3), drawn thin in green.
    floor
        Height of the floor in metres, upwards along the axes. By default 0 for absolute world
        poses, else the lowest joint.
    view
        Elevation and azimuth in degrees; (0, -90) is the camera's own view.
    ax
        Where to draw, with ``projection="3d"``; a new figure by default.

    Returns
    -------
    Axes3D
        With ``x``, ``depth`` and ``height`` in metres. Line ``j`` is joint ``j`` with its bone, and
        bears the joint's name as its ``gid``.

    Raises
    ------
    StructDiffError
        If an array has the wrong shape, holds NaN, looks like millimetres, or is relative to the
        root where the pose is not; if ``ax`` is flat; or matplotlib is not installed.
    """
    skeleton = get_skeleton(skeleton)
    single = checked("pose", pose, (len(skeleton), 3))
    clip = stage(
        single[None],
        None if hypotheses is None else np.expand_dims(np.asarray(hypotheses), 1),
        None if std is None else np.asarray(std)[None],
        None if target is None else np.asarray(target)[None],
        skeleton=skeleton,
        axes=axes,
        floor=floor,
    )
    if ax is None:
        figure = _pyplot().figure(figsize=(5.4, 5.6))
        ax = figure.add_axes((0.0, 0.1, 1.0, 0.9), projection="3d")
    elif getattr(ax, "name", "") != "3d":
        raise StructDiffError('ax is flat: make it with subplots(subplot_kw={"projection": "3d"})')
    furnish(ax, clip, view or VIEWS[axes])
    Figure(ax, skeleton, clip).show(0)
    key: dict[str, Any] = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.01), "ncols": 3}
    ax.legend(handles=legend_handles(clip), frameon=False, fontsize="small", **key)
    return ax


def plot_keypoints(
    keypoints: npt.ArrayLike,
    *,
    skeleton: str | Skeleton = H36M_17,
    image: npt.ArrayLike | None = None,
    image_size: tuple[int, int] | None = None,
    confidence: npt.ArrayLike | None = None,
    min_confidence: float = 0.3,
    ax: PlotAxes | None = None,
) -> PlotAxes:
    """2D joints over their image, left in orange and right in blue; unsure joints are hollow.

    Parameters
    ----------
    keypoints
        Pixels (J, 2), origin top left, y down; a joint of NaN is not drawn.
    skeleton
        Of the keypoints, or its name.
    image
        Drawn behind, (H, W, 3) or (H, W), uint8 or floats in [0, 1].
    image_size
        Width and height in pixels, where there is no image.
    confidence
        Of the joints (J,).
    min_confidence
        Joints below it are hollow.
    ax
        Where to draw; a new figure by default.

    Returns
    -------
    Axes
        Its limits are the image's, or without one and without its size those of the keypoints.
        Line ``j`` is joint ``j`` with its bone, and bears the joint's name as its ``gid``.

    Raises
    ------
    StructDiffError
        If an array has the wrong shape, the image is not of ``image_size``, or matplotlib is not
        installed.
    """
    skeleton = get_skeleton(skeleton)
    points = checked("keypoints", keypoints, (len(skeleton), 2), finite=False)
    sure = None
    if confidence is not None:
        sure = checked("confidence", confidence, (len(skeleton),), finite=False) >= min_confidence
    picture = None if image is None else np.asarray(image)
    if picture is not None:
        if picture.ndim not in (2, 3):
            raise StructDiffError(f"image must be (H, W, 3) or (H, W), got shape {picture.shape}")
        size = (picture.shape[1], picture.shape[0])
        if image_size is not None and tuple(image_size) != size:
            raise StructDiffError(f"the image is {size} pixels, image_size says {image_size}")
        image_size = size
    if ax is None:
        ax = _axes((5.0, 5.0))
    if picture is not None:
        ax.imshow(picture, extent=(0, picture.shape[1], picture.shape[0], 0), cmap="gray")
    frame_image(ax, points, image_size)
    Body(ax, skeleton).move(points, sure)
    ax.set(xlabel="x (px)", ylabel="y (px)")
    return ax


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
    ax = ax or _axes((7.0, 3.2))
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
        reach = NormalDist().inv_cdf(1 - tail) * _spread(std, mean)[:, j, axis]
        band = np.stack([mean[:, j, axis] - reach, mean[:, j, axis] + reach])
    ax = ax or _axes((6.4, 3.2))
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
    from matplotlib.ticker import MaxNLocator

    ordered = np.sort(checked("errors", errors, (None, None)), axis=0)
    count = len(ordered)
    sizes = range(1, count + 1)
    chance = np.array(
        [[comb(count - i, h - 1) / comb(count, h) for i in sizes] for h in sizes]
    )  # (H, H)
    ax = ax or _axes((4.8, 3.2))
    best = chance @ ordered.mean(axis=1)
    ax.plot(list(sizes), best, color=RIGHT, marker="o", markersize=3, label="best hypothesis")
    styles = ("--", ":", "-.")
    for n, (name, error) in enumerate((aggregates or {}).items()):
        ax.axhline(error, color=GREY, linestyle=styles[n % 3], linewidth=1.2, label=name)
    ax.set(xlabel="hypotheses", ylabel="error (mm)")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    ax.legend(frameon=False, fontsize="small", loc="lower left", bbox_to_anchor=(0, 1), ncols=3)
    return _bare(ax)


# ---------------------------------------------------------------- what stands where


@dataclass(frozen=True)
class Staged:
    """A clip in picture coordinates: x, depth and height above the floor, all in metres.

    Parameters
    ----------
    poses, hypotheses, std, target
        (T, J, 3), (H, T, J, 3), (T, J, 3) and (T, J, 3).
    low, high
        Corners of the room that holds every frame, (3,).
    """

    poses: Array
    hypotheses: Array | None
    std: Array | None
    target: Array | None
    low: Array
    high: Array


def stage(
    poses: npt.ArrayLike,
    hypotheses: npt.ArrayLike | None,
    std: npt.ArrayLike | None,
    target: npt.ArrayLike | None,
    *,
    skeleton: Skeleton,
    axes: Axes,
    floor: float | None,
) -> Staged:
    """Check a clip (T, J, 3) and set it upright on its floor.

    Where a body lies is unknown if its root is the origin in every frame: each frame then stands
    on its own lowest joint.
    """
    if axes not in VIEWS:
        raise StructDiffError(f"axes must be 'camera' or 'world', got {axes!r}")
    mean = checked("poses", poses, (None, len(skeleton), 3))
    if (extent := float(np.median(np.ptp(mean, axis=1).max(axis=-1)))) > 10:
        raise StructDiffError(
            f"the bodies are {extent:.0f} m long: they look like millimetres; divide them by 1000"
        )
    relative = _is_relative(mean, skeleton)
    others = []
    for name, value, shape in (
        ("hypotheses", hypotheses, (None, *mean.shape)),
        ("target", target, mean.shape),
    ):
        given = None if value is None else checked(name, value, shape)
        if given is not None and _is_relative(given, skeleton) != relative:
            which = ("", " not") if relative else (" not", "")
            raise StructDiffError(
                f"the poses are{which[0]} relative to the root, {name}{which[1]}: give both alike"
            )
        others.append(None if given is None else _upright(given, axes))
    body, (many, true) = _upright(mean, axes), others
    ground = np.zeros((len(body), 1, 3))
    if floor is not None:
        ground[..., 2] = floor
    elif relative:
        ground[..., 2] = body[..., 2].min(axis=1, keepdims=True)
    elif axes == "camera":
        ground[..., 2] = body[..., 2].min()
    body, many, true = body - ground, *(None if v is None else v - ground for v in (many, true))
    shown = [v.reshape(-1, 3) for v in (body, many, true) if v is not None]
    low, high = _room(np.concatenate(shown), relative)
    size = None if std is None else np.abs(_upright(_spread(std, mean), axes))
    return Staged(body, many, size, true, low, high)


def checked(
    name: str, value: npt.ArrayLike, shape: Sequence[int | None], *, finite: bool = True
) -> Array:
    """Numbers in this shape (None = any length); the first frame that holds none is named."""
    array = np.asarray(value)
    fits = len(array.shape) == len(shape) and all(
        got == want or (want is None and got > 0)
        for got, want in zip(array.shape, shape, strict=True)
    )
    if not fits:
        wanted = ", ".join("any" if n is None else str(n) for n in shape)
        raise StructDiffError(f"{name} must have the shape ({wanted}), got {array.shape}")
    array = array.astype(np.float64)
    if finite and len(bad := np.argwhere(~np.isfinite(array))):
        frame = f"frame {bad[0][len(shape) - 3]} of " if len(shape) > 2 else ""
        raise StructDiffError(
            f"{frame}{name} holds NaN or infinity; leave it out or interpolate it"
        )
    return array


def _is_relative(poses: Array, skeleton: Skeleton) -> bool:
    return bool(np.abs(poses[..., skeleton.root, :]).max() < 1e-6)


def _spread(std: npt.ArrayLike, poses: Array) -> Array:
    """Standard deviations (T, J) or (T, J, 3) as (T, J, 3)."""
    value = np.asarray(std)
    if value.ndim == poses.ndim - 1:
        value = np.repeat(value[..., None], 3, axis=-1)
    value = checked("std", value, poses.shape)
    if (value < 0).any():
        raise StructDiffError("std holds negative numbers: give standard deviations in metres")
    return value


def _upright(points: Array, axes: Axes) -> Array:
    """Picture coordinates (x, depth, height above the axes' origin)."""
    return points if axes == "world" else points[..., [0, 2, 1]] * (1.0, 1.0, -1.0)


def _room(points: Array, relative: bool) -> tuple[Array, Array]:
    """Corners in quarters of a metre, about the root where that stays in its place."""
    low, high = points.min(axis=0), points.max(axis=0)
    if relative:
        reach = max(0.75, float(np.abs([low[:2], high[:2]]).max()))
        low[:2], high[:2] = -reach, reach
    else:
        thin = np.maximum(0.0, 1.0 - (high - low)[:2]) / 2
        low[:2], high[:2] = low[:2] - thin, high[:2] + thin
    # A hypothesis may reach a little through the floor, which stays the bottom of the room.
    low[2], high[2] = low[2] if low[2] < -0.25 else 0.0, max(high[2], 1.0)
    return np.floor(low * 4 + 1e-6) / 4, np.ceil(high * 4 - 1e-6) / 4


# ---------------------------------------------------------------- what animations draw too


class Body:
    """One skeleton on an Axes, flat or 3D: a line per joint, from its parent, that can move.

    Parameters
    ----------
    ax
        Where.
    skeleton
        Of the joints.
    width
        Of a bone in points.
    """

    def __init__(self, ax: Any, skeleton: Skeleton, width: float = 2.6) -> None:
        ends = [(j if p == -1 else p, j) for j, p in enumerate(skeleton.parents)]
        self._ends = np.array(ends)  # (J, 2): where a bone starts and ends
        self._colours = side_colours(skeleton)
        self._solid = ax.name == "3d"
        self._towards = _towards_viewer(ax) if self._solid else None
        empty: list[list[float]] = [[], [], []] if self._solid else [[], []]
        style: dict[str, Any] = {
            "linewidth": width,
            "marker": "o",
            "markersize": 1.7 * width,
            "markevery": [1],  # the joint, not its parent
            "solid_capstyle": "round",
            "zorder": 10,
            "label": "_",
        }
        self.artists = [
            ax.plot(*empty, color=colour, gid=joint, **style)[0]
            for joint, colour in zip(skeleton.joints, self._colours, strict=True)
        ]

    def move(self, joints: Array, sure: npt.NDArray[np.bool_] | None = None) -> None:
        """To joints (J, 2) or (J, 3); those that are not ``sure`` (J,) are hollow."""
        bones = joints[self._ends]  # (J, 2, D)
        if self._towards is not None:  # what is nearer covers what is farther
            nearness = bones.mean(axis=1) @ self._towards
            for rank, j in enumerate(np.argsort(nearness)):
                self.artists[j].set_zorder(10 + rank / len(joints))
        for line, bone in zip(self.artists, bones, strict=True):
            (line.set_data_3d if self._solid else line.set_data)(*bone.T)
        if sure is not None:
            for line, colour, solid in zip(self.artists, self._colours, sure, strict=True):
                line.set_markerfacecolor(colour if solid else "white")


class Figure:
    """A staged clip on an Axes3D, one frame at a time: body, hypotheses, spread and reference.

    Parameters
    ----------
    ax
        Furnished.
    skeleton
        Of the clip.
    clip
        What to draw; parts that are None are not.
    """

    def __init__(self, ax: Any, skeleton: Skeleton, clip: Staged) -> None:
        from mpl_toolkits.mplot3d.art3d import Line3DCollection

        self._clip, self._bones = clip, list(skeleton.bones)
        self._parents = [skeleton.parents[j] for j in self._bones]
        self._body = Body(ax, skeleton)
        self.artists = list(self._body.artists)
        self._many = self._true = self._size = None
        colours = side_colours(skeleton)
        start = np.zeros((1, 2, 3))
        if clip.hypotheses is not None:
            count = len(clip.hypotheses)
            self._many = Line3DCollection(
                start,
                colors=[colours[j] for j in self._bones] * count,
                linewidths=1.0,
                alpha=float(np.clip(2.0 / count, 0.12, 0.5)),
                zorder=5,
                gid="hypotheses",
            )
        if clip.target is not None:
            self._true = Line3DCollection(
                start, colors=GREEN, linewidths=1.6, zorder=7, gid="target"
            )
        if clip.std is not None:
            self._size = _ellipsoids()(colours)
        for collection in (self._many, self._true, self._size):
            if collection is not None:
                ax.add_collection3d(collection, autolim=False)
                self.artists.append(collection)

    def show(self, frame: int) -> None:
        """Move everything to a frame."""
        self._body.move(self._clip.poses[frame])
        if self._many is not None and self._clip.hypotheses is not None:
            self._many.set_segments(self._segments(self._clip.hypotheses[:, frame]))
        if self._true is not None and self._clip.target is not None:
            self._true.set_segments(self._segments(self._clip.target[frame]))
        if self._size is not None and self._clip.std is not None:
            self._size.move(self._clip.poses[frame], self._clip.std[frame])

    def _segments(self, joints: Array) -> Array:
        """Bones (..., 2, 3) of joints (..., J, 3), in one row."""
        ends = np.stack([joints[..., self._parents, :], joints[..., self._bones, :]], axis=-2)
        return ends.reshape(-1, 2, 3)


def furnish(ax: Any, clip: Staged, view: tuple[float, float]) -> None:
    """A room of equal scale in all directions: floor with a grid, ticks in metres, no walls."""
    from matplotlib.ticker import FixedLocator
    from mpl_toolkits.mplot3d.art3d import Line3DCollection, Poly3DCollection

    low, high = clip.low, clip.high
    ax.computed_zorder = False  # by collection, not by bone
    ax.set_proj_type("ortho")
    ax.view_init(*view)
    ax.grid(False)
    step = 0.5 if (high - low).max() <= 3 else 1.0
    names = ("x (m)", "depth (m)", "height (m)")
    long = (high - low).max() > 2.5  # there the ticks come nearer to their label
    end_on = np.abs(_towards_viewer(ax)) > 0.95
    for i, (axis, name) in enumerate(zip("xyz", names, strict=True)):
        getattr(ax, f"set_{axis}lim")(low[i], high[i])
        drawn = getattr(ax, f"{axis}axis")
        drawn.set_pane_color((1.0, 1.0, 1.0, 0.0))
        drawn.pane.set_edgecolor("none")
        ticks = np.arange(np.ceil(low[i] / step), high[i] / step + 1e-6) * step + 0.0  # no -0
        if axis == "y":  # the corners belong to the ticks of x
            ticks = ticks[(ticks > low[i] + 0.1) & (ticks < high[i] - 0.1)]
        drawn.set_major_locator(FixedLocator([] if end_on[i] else ticks.tolist()))
        drawn.set_major_formatter("{x:g}")
        if not end_on[i]:
            getattr(ax, f"set_{axis}label")(name, fontsize="small", labelpad=5 if long else -4)
        ax.tick_params(axis=axis, labelsize="x-small", pad=-2)
    (x0, y0, _), (x1, y1, _) = low, high
    corners = [[(x0, y0, 0), (x1, y0, 0), (x1, y1, 0), (x0, y1, 0)]]
    ax.add_collection3d(
        Poly3DCollection(corners, facecolors=FLOOR, zorder=0, gid="floor"), autolim=False
    )
    xs, ys = (np.arange(np.ceil(a / step), b / step + 1e-6) * step for a, b in ((x0, x1), (y0, y1)))
    grid = [[(x, y0, 0), (x, y1, 0)] for x in xs] + [[(x0, y, 0), (x1, y, 0)] for y in ys]
    ax.add_collection3d(
        Line3DCollection(grid, colors="#cfcfcf", linewidths=0.7, zorder=1), autolim=False
    )
    _fill_panel(ax, low, high)


def _fill_panel(ax: Any, low: Array, high: Array) -> None:
    """Zoom until the room fills its Axes, but for the ticks and labels."""
    from mpl_toolkits.mplot3d.proj3d import proj_transform

    ax.set_box_aspect(high - low)
    panel = ax.get_position(original=True)
    figure = ax.get_figure()
    space = figure.bbox.size * (panel.width, panel.height)
    margins = np.array([62.0, 84.0]) * figure.dpi / 72  # of both sides together, in points
    ax.apply_aspect()
    corners = np.stack(np.meshgrid(*zip(low, high, strict=True)), axis=-1).reshape(-1, 3)
    x, y, _ = proj_transform(*corners.T, ax.get_proj())
    extent = np.ptp(ax.transData.transform(np.stack([x, y], axis=-1)), axis=0)
    ax.set_box_aspect(high - low, zoom=(np.maximum(space - margins, 0.3 * space) / extent).min())


def frame_image(ax: Any, points: Array, image_size: tuple[int, int] | None) -> None:
    """Limits of an image (or of keypoints with a margin), y down, square pixels."""
    if image_size is None:
        flat = points.reshape(-1, 2)
        if np.isnan(flat).all():
            raise StructDiffError("keypoints: no joint is a number; give keypoints or image_size")
        low, high = np.nanmin(flat, axis=0), np.nanmax(flat, axis=0)
        margin = 0.1 * max(float((high - low).max()), 1.0)
        (left, top), (right, bottom) = low - margin, high + margin
    else:
        left, top, (right, bottom) = 0, 0, image_size
    ax.set(xlim=(left, right), ylim=(bottom, top), aspect="equal")


def side_colours(skeleton: Skeleton) -> list[str]:
    """Of every joint and the bone that ends there."""
    sides = {**dict.fromkeys(skeleton.left, LEFT), **dict.fromkeys(skeleton.right, RIGHT)}
    return [sides.get(j, TRUNK) for j in range(len(skeleton))]


def legend_handles(clip: Staged) -> list[Any]:
    """One entry for all that a figure shows."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    bone: dict[str, Any] = {"marker": "o", "markersize": 4, "linewidth": 2.6}
    handles: list[Any] = [
        Line2D([], [], color=LEFT, label="left", **bone),
        Line2D([], [], color=RIGHT, label="right", **bone),
    ]
    if clip.hypotheses is not None:
        name = f"{len(clip.hypotheses)} hypotheses"
        handles.append(Line2D([], [], color=GREY, alpha=0.6, linewidth=1, label=name))
    if clip.std is not None:
        handles.append(Patch(color=GREY, alpha=0.4, linewidth=0, label="1 standard deviation"))
    if clip.target is not None:
        handles.append(Line2D([], [], color=GREEN, linewidth=1.6, label="reference"))
    return handles


def _towards_viewer(ax: Any) -> Array:
    elevation, azimuth = np.radians([ax.elev, ax.azim])
    flat = np.cos(elevation)
    return np.array([flat * np.cos(azimuth), flat * np.sin(azimuth), np.sin(elevation)])


@lru_cache(maxsize=1)
def _ellipsoids() -> Any:
    """The class of ellipsoids on an Axes3D, made once matplotlib is there."""
    from mpl_toolkits.mplot3d.art3d import Poly3DCollection

    class Ellipsoids(Poly3DCollection):
        """Outlines of ellipsoids, right from wherever they are seen."""

        def __init__(self, colours: list[str]) -> None:
            self._centres: Array = np.zeros((len(colours), 3))
            self._radii: Array = np.zeros((len(colours), 3))
            super().__init__(
                np.zeros((len(colours), 3, 3)),
                facecolors=colours,
                alpha=0.4,
                linewidths=0,
                zorder=6,
                gid="std",
            )

        def move(self, centres: Array, radii: Array) -> None:
            self._centres, self._radii = centres, radii

        def do_3d_projection(self) -> Any:
            towards = _towards_viewer(self.axes)
            across = np.cross(towards, (0.0, 0.0, 1.0))
            across = across / np.linalg.norm(across) if across.any() else np.array([1.0, 0, 0])
            turn = np.linspace(0, 2 * np.pi, 24, endpoint=False)[:, None]
            normals = np.cos(turn) * across + np.sin(turn) * np.cross(towards, across)  # (24, 3)
            reach = self._radii[:, None] ** 2 * normals  # Sigma n
            length = np.sqrt((reach * normals).sum(axis=-1, keepdims=True))
            self.set_verts(self._centres[:, None] + reach / np.maximum(length, 1e-12))
            return super().do_3d_projection()

    return Ellipsoids


# ---------------------------------------------------------------- matplotlib


def _pyplot() -> Any:
    try:
        from matplotlib import pyplot
    except ImportError as error:
        raise StructDiffError("plots need matplotlib: pip install 'structdiff[plots]'") from error
    return pyplot


def _axes(size: tuple[float, float]) -> Any:
    _, made = _pyplot().subplots(figsize=size, layout="constrained")
    return made


def _bare(ax: Any) -> Any:
    ax.spines[["top", "right"]].set_visible(False)
    return ax
