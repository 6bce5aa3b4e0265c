"""Pictures of poses: bodies in space with their spread, keypoints on the image, error charts.

Everything is drawn on a matplotlib Axes (extra ``[plots]``), which is returned. The charts come
from :mod:`structdiff.pose.charts`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from structdiff.errors import StructDiffError
from structdiff.pose._drawing import (
    Body,
    Figure,
    frame_image,
    furnish,
    legend_handles,
    load_pyplot,
    new_axes,
)
from structdiff.pose._stage import VIEWS, checked, stage
from structdiff.pose.charts import plot_hypotheses_curve, plot_joint_errors, plot_uncertainty
from structdiff.pose.data import Axes
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
        figure = load_pyplot().figure(figsize=(5.4, 5.6))
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
        ax = new_axes((5.0, 5.0))
    if picture is not None:
        ax.imshow(picture, extent=(0, picture.shape[1], picture.shape[0], 0), cmap="gray")
    frame_image(ax, points, image_size)
    Body(ax, skeleton).move(points, sure)
    ax.set(xlabel="x (px)", ylabel="y (px)")
    return ax
