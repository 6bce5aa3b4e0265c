r"""Parts of pictures of poses, which films move from frame to frame: bodies, spread, room, legend.

The uncertainty of a joint is its ellipsoid of one standard deviation, whose outline seen along
:math:`d` is :math:`\Sigma n / \sqrt{n^\top \Sigma n}` over the unit :math:`n \perp d`. Colours
tell apart for every kind of sight (Okabe and Ito 2008).
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from structdiff.errors import StructDiffError
from structdiff.pose._stage import Staged
from structdiff.pose.data import Array
from structdiff.pose.skeletons import Skeleton

LEFT, RIGHT, TRUNK = "#D55E00", "#0072B2", "#333333"
GREEN, GREY, FLOOR = "#009E73", "#8c8c8c", "#f0f0f0"


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


def load_pyplot() -> Any:
    """matplotlib.pyplot, or what to install."""
    try:
        from matplotlib import pyplot
    except ImportError as error:
        raise StructDiffError("plots need matplotlib: pip install 'structdiff[plots]'") from error
    return pyplot


def new_axes(size: tuple[float, float]) -> Any:
    """Of a new figure of this size in inches."""
    _, made = load_pyplot().subplots(figsize=size, layout="constrained")
    return made
