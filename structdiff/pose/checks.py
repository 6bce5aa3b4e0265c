"""What goes wrong before any model does: units, joint order, axes, and what each looks like.

A person is between half a metre and 2.3 m, the distances between the joints of a body keep a
pattern through all poses, heads are above feet and knees bend forwards. Each check measures one of
these with medians over the frames, so that single bad frames do not matter, and raises an error
that says what the numbers look like instead.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from structdiff.errors import StructDiffError
from structdiff.pose._joint_order import (
    check_joint_order,
    check_pattern,
    check_sides,
    finite_frames,
    median_seen,
)
from structdiff.pose.data import PoseDataset
from structdiff.pose.skeletons import Skeleton, get_skeleton

__all__ = [
    "check_dataset",
    "check_joint_order",
    "check_metres",
    "check_pixels",
    "check_up_axis",
]

Array = npt.NDArray[np.floating]

_EXTENT = (0.1, 5.0)
"""Metres between opposite corners of a body's box: a crouching infant, a giant leaping."""
_CENTIMETRES = 220.0
"""Of a box in an unknown unit, what tells centimetres from millimetres."""
_NORMALISED = 1.5
"""Normalised image coordinates of joints in sight lie within this."""
_MARGIN, _OUTSIDE = 0.1, 0.2
"""A joint is far outside beyond this part of the image; so many of the joints may be."""
_UPRIGHT, _ALONG = 0.5, 0.9
"""Part of the way from feet to head that is along an axis."""
_HEAD = ("Head", "HeadTop", "Nose", "LEye", "REye", "LEar", "REar")


# ---------------------------------------------------------------- units


def check_metres(poses: Any, name: str = "poses") -> None:
    """Refuse 3D poses that are not in metres.

    The median over frames of the diagonal of the body's bounding box must lie in 0.1-5 m, which
    holds for people of 0.5-2.3 m in any posture.

    It cannot see errors of less than a factor of about three (feet, yards, a skeleton scaled to
    unit size), nor a wrong unit of the root's trajectory alone.

    Parameters
    ----------
    poses
        (..., J, 3); NaN marks joints that are missing.
    name
        Of the record, for the message.

    Raises
    ------
    StructDiffError
        If the array is no set of 3D poses, has no finite frame, or its size says millimetres,
        centimetres, or metres that were divided by 1000.
    """
    frames = finite_frames(poses, name, dims=(3,))
    corners = np.nanmax(frames, axis=1) - np.nanmin(frames, axis=1)
    extent = float(np.median(np.linalg.norm(corners, axis=-1)))
    low, high = _EXTENT
    if low <= extent <= high:
        return
    measured = f"the bodies in {name} measure {extent:.3g} from corner to corner"
    if extent > high:
        unit, factor = ("millimetres", 1000) if extent > _CENTIMETRES else ("centimetres", 100)
        raise StructDiffError(
            f"{measured}, which looks like {unit}; poses are in metres: divide by {factor}, or "
            "state the unit where the file is read"
        )
    if extent == 0:
        raise StructDiffError(f"all joints of {name} are at one point: these are no poses")
    raise StructDiffError(
        f"{measured}, too small for metres: were metres taken for millimetres and divided by 1000? "
        "Give metres as they are"
    )


def check_pixels(
    keypoints: Any, image_size: tuple[int, int] | None = None, name: str = "keypoints"
) -> None:
    """Refuse 2D joints that are not pixels of the image.

    Normalised coordinates lie within [-1.5, 1.5]; nobody is seen that small. Pixels measured from
    the image's centre are negative. Pixels of another image lie outside this one: more than a fifth
    of the joints by more than a tenth of its size.

    It cannot see an image size that is too large, pixels of a somewhat larger image, or x and y
    exchanged where both fit.

    Parameters
    ----------
    keypoints
        (..., J, 2); NaN marks joints that are missing.
    image_size
        Width and height in pixels; None leaves the second check out.
    name
        Of the record, for the message.

    Raises
    ------
    StructDiffError
        If the array is no set of 2D joints, the size is none, the coordinates are normalised, or
        too many joints are outside the image.
    """
    points = finite_frames(keypoints, name, dims=(2,)).reshape(-1, 2)
    seen = points[(np.nan_to_num(points) != 0).any(-1)]  # detectors put 0, 0 where they see nothing
    if not len(seen):
        raise StructDiffError(f"all joints of {name} are at 0, 0: nobody was detected")
    if (np.abs(seen) <= _NORMALISED).all(-1).mean() > 0.95:
        raise StructDiffError(
            f"the joints of {name} lie between {seen.min():.3g} and {seen.max():.3g}, which looks "
            "like normalised image coordinates; pixels are needed: undo it, for the form divided "
            "by the width with x = (x' + 1) w / 2 and y = (y' + h / w) w / 2"
        )
    if (seen < 0).any(-1).mean() > 0.5:
        raise StructDiffError(
            f"most joints of {name} have a negative coordinate (x from {seen[:, 0].min():.4g}, y "
            f"from {seen[:, 1].min():.4g}); pixels count from the top left corner: add the "
            "coordinates of the point they were measured from"
        )
    if image_size is None:
        return
    size = _checked_size(image_size, name)
    if (outside := _outside(seen, size)) <= _OUTSIDE:
        return
    if _outside(seen, size[::-1]) < 0.01:
        remedy = "they fit an image of that size turned over: give (width, height) in this order"
    else:
        remedy = "give the size of the image in which they were detected"
    raise StructDiffError(
        f"{outside:.0%} of the joints of {name} are far outside the image of {size[0]:g} x "
        f"{size[1]:g} pixels (x from {seen[:, 0].min():.4g} to {seen[:, 0].max():.4g}, y from "
        f"{seen[:, 1].min():.4g} to {seen[:, 1].max():.4g}): {remedy}"
    )


def _checked_size(image_size: Any, name: str) -> Array:
    size = np.asarray(image_size, dtype=np.float64)
    if size.shape != (2,) or not (np.isfinite(size) & (size >= 1)).all():
        raise StructDiffError(
            f"the image size of {name} must be (width, height) in pixels, got {image_size!r}"
        )
    return size


def _outside(points: Array, size: Array) -> float:
    """Share of the points that are outside the image by more than the margin."""
    beyond = (points < -_MARGIN * size) | (points > (1 + _MARGIN) * size)
    return float(beyond.any(-1).mean())


# ---------------------------------------------------------------- which way is up


def check_up_axis(
    poses: Any,
    skeleton: str | Skeleton,
    axes: Literal["camera", "world", "image"] = "camera",
    name: str = "poses",
) -> None:
    """Refuse bodies that stand on their heads, or along the wrong axis.

    Camera and image axes have y down, world axes z up. The median over frames of the direction
    from the ankles to the head tells which way the bodies stand.

    It cannot tell a recording of handstands from one upside down, or of somebody lying along an
    axis all the time from one with other axes, and takes both for wrong. A camera that looks down
    from overhead is let pass. Bodies that lie or crouch for most of the frames are not judged, nor
    is a skeleton that names no head or no ankles.

    Parameters
    ----------
    poses
        (..., J, 3), or (..., J, 2) for the image; NaN marks missing joints.
    skeleton
        Of the joints, or its name.
    axes
        ``"camera"``, ``"world"`` or ``"image"``.
    name
        Of the record, for the message.

    Raises
    ------
    StructDiffError
        If the heads are below the feet, or the bodies stand along another axis.
    """
    skeleton = get_skeleton(skeleton)
    if axes not in _UP:
        raise StructDiffError(f"axes of {name} must be one of {', '.join(_UP)}, got {axes!r}")
    up, stated = _UP[axes]
    frames = finite_frames(poses, name, dims=(len(up),))
    standing = _standing(frames, skeleton)
    if standing is None:
        return
    along = float(standing @ np.asarray(up))
    if along < -_UPRIGHT:
        turned = "y" if axes != "world" else "z"
        both = "" if axes == "image" else ", and a second axis with it if that mirrors the bodies"
        raise StructDiffError(
            f"the heads in {name} are below the feet: {axes} axes have {stated}, this looks like "
            f"{turned} {'up' if turned == 'y' else 'down'}; negate {turned}{both}"
        )
    strongest = int(np.abs(standing).argmax())
    overhead = axes == "camera" and strongest == 2 and standing[2] < 0
    if abs(along) < _UPRIGHT and abs(standing[strongest]) > _ALONG and not overhead:
        letter = "xyz"[strongest]
        way = "up" if standing[strongest] > 0 else "down"
        raise StructDiffError(
            f"the bodies in {name} stand along {letter} ({letter} {way}): {axes} axes have "
            f"{stated}; turn the poses, or say which axes they are in"
        )


_UP = {
    "camera": ((0.0, -1.0, 0.0), "y down"),
    "world": ((0.0, 0.0, 1.0), "z up"),
    "image": ((0.0, -1.0), "y down"),
}


def _standing(frames: Array, skeleton: Skeleton) -> Array | None:
    """Median direction from the ankles to the head (D,), or None where these are not named."""
    head = [i for i, joint in enumerate(skeleton.joints) if joint in _HEAD]
    feet = [i for i, joint in enumerate(skeleton.joints) if joint in ("LAnkle", "RAnkle")]
    if not head or not feet:
        return None
    way = _middle(frames[:, head]) - _middle(frames[:, feet])
    length = np.linalg.norm(way, axis=-1)
    seen = length > 0  # which NaN is not
    if not seen.any():
        return None
    median: Array = np.median(way[seen] / length[seen, None], axis=0)
    return median


def _middle(joints: Array) -> Array:
    """Median (T, D) of the joints that are seen of (T, J, D); NaN where none is."""
    return median_seen(np.moveaxis(joints, 1, 0))


# ---------------------------------------------------------------- all of it


def check_dataset(dataset: PoseDataset) -> None:
    """Every check that applies, on every clip.

    Raises
    ------
    StructDiffError
        Of the first clip that fails one.
    """
    tree = dataset.skeleton
    for clip in dataset:
        # In the order in which one fault looks like another: a wrong joint order turns bodies over,
        # and a wrong axis mirrors them.
        if clip.keypoints is not None:
            record = f"keypoints of clip {clip.name!r}"
            check_pixels(clip.keypoints, clip.image_size, record)
            check_joint_order(clip.keypoints, tree, record)
            check_up_axis(clip.keypoints, tree, "image", record)
        if clip.poses is not None:
            record = f"poses of clip {clip.name!r}"
            check_metres(clip.poses, record)
            frames = finite_frames(clip.poses, record, dims=(3,))
            check_pattern(frames, tree, record)
            check_up_axis(clip.poses, tree, clip.axes, record)
            check_sides(frames, tree, record)
