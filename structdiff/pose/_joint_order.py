r"""Whether joints are in the order they are said to be in.

With :math:`D_{ij}` the median over frames of the distance of joints i and j, as a fraction of the
body's size, the order is judged by

.. math:: r = \operatorname{corr}_{i<j}\left(D_{ij},\, D^{\text{standing}}_{ij}\right),

which is above 0.85 for every recording of CMU17 in its own order (2D or 3D) and below 0.35 in one
of the other known orders.
"""

from __future__ import annotations

import warnings
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from structdiff.errors import StructDiffError
from structdiff.pose.skeletons import SKELETONS, Skeleton, conversion_matrix, get_skeleton

Array = npt.NDArray[np.floating]

_FRAMES = 2000
"""At most so many frames, evenly spread, are looked at."""
_LONG = 30
"""Frames from which on a recording shows more than one moment of a movement."""
_ALIKE, _CLEARER = {False: 0.15, True: 0.35}, {False: 0.5, True: 0.25}
"""Correlation below which an order is wrong, and lead from which another is right; by being long.

One frame in ten thousand of CMU17, seen end on, agrees to 0.3 only.
"""
_UNSURE, _TANGLED = 0.7, 1.6
"""Correlation and tree length that together mean a wrong order in a long recording."""
_PAIRS = 21
"""So many pairs of joints must be seen (7 joints) to tell a body."""
_UNEQUAL = 1.6
"""Ratio of left to right lengths that no body has."""
_BACKWARDS = {False: 0.3, True: 0.1}
"""Bend of the knees, as a sine, from which on backwards is a mirror image; by being long."""


def check_joint_order(values: Any, skeleton: str | Skeleton, name: str = "poses") -> None:
    """Refuse joints that are not in the order of the skeleton.

    The distances between joints must follow the pattern of a standing body read in that order,
    better than in any other known order. In 3D, symmetric bones must not differ by a factor of
    1.6, and knees must bend forwards: with thigh a, shin b and the hips' line from right to left h,
    (a x b) . h is positive in any pose, and negative when sides are exchanged or an axis negated.

    It cannot see, in 2D, exchanged sides (mirrored joints); in 3D, exchanged sides of straight
    legs, or of the arms alone; or joints exchanged with a neighbour (elbow and wrist, thorax and
    neck). Joints of a skeleton whose names are not those of the known ones are judged less
    sharply: by the length of its tree against the shortest tree over its joints. Recordings of
    fewer than 30 frames are judged more leniently.

    Parameters
    ----------
    values
        2D or 3D joints (..., J, 2 or 3); NaN marks joints that are missing.
    skeleton
        Whose order they are said to have, or its name.
    name
        Of the record, for the message.

    Raises
    ------
    StructDiffError
        If they have another order; the message names the one it looks like.
    """
    claimed = get_skeleton(skeleton)
    frames = finite_frames(values, name, dims=(2, 3))
    if frames.shape[1] != len(claimed):
        raise StructDiffError(
            f"{name} has {frames.shape[1]} joints, {claimed.name} has {len(claimed)}"
        )
    check_pattern(frames, claimed, name)
    if frames.shape[-1] == 3:
        check_sides(frames, claimed, name)


def check_pattern(frames: Array, claimed: Skeleton, name: str) -> None:
    """The part of :func:`check_joint_order` that is about the distances between joints."""
    distances = _distances(frames)
    if not np.nan_to_num(distances).any():
        raise StructDiffError(f"all joints of {name} are at one point: these are no poses")
    long = len(frames) >= _LONG
    own = _likeness(distances, claimed)

    def tangled() -> bool:
        return long and _tree_length(distances, claimed) > _TANGLED

    if own is None:  # joints of other names, or too few of them seen
        if frames.shape[-1] == 3 and tangled():
            raise _another_order(name, claimed, "", "its bones are longer than the joints' ties")
        return
    others = {
        other.name: likeness
        for other in SKELETONS.values()
        if other != claimed
        and len(other) == len(claimed)
        and (likeness := _likeness(distances, other)) is not None
    }
    nearest = max(others, key=lambda other: others[other], default="")
    figures = f"its distances agree with a body's to {own:.2f} in that order"
    if nearest and others[nearest] > own + _CLEARER[long]:
        raise _another_order(
            name, claimed, nearest, f"{figures}, to {others[nearest]:.2f} in the order {nearest}"
        )
    if own < _ALIKE[long] or (own < _UNSURE and tangled()):
        raise _another_order(name, claimed, "", figures)


def _another_order(name: str, claimed: Skeleton, nearest: str, why: str) -> StructDiffError:
    if nearest:
        remedy = f"it looks like {nearest}: say skeleton={nearest!r}"
        if _convertible(nearest, claimed):
            remedy += (
                ", or convert it with structdiff.pose.skeletons.convert"
                f"(..., {nearest!r}, {claimed.name!r})"
            )
    else:
        remedy = f"bring them into the order {', '.join(claimed.joints)}"
    return StructDiffError(
        f"the joints of {name} are not in the order of {claimed.name} ({why}); {remedy}"
    )


def _convertible(source: str, target: Skeleton) -> bool:
    try:
        conversion_matrix(SKELETONS[source], target)
    except StructDiffError:
        return False
    return True


def check_sides(frames: Array, skeleton: Skeleton, name: str) -> None:
    """The part of :func:`check_joint_order` that is about left and right, in 3D."""
    lengths = median_seen(
        np.linalg.norm(frames - frames[:, np.maximum(skeleton.parents, 0)], axis=-1)
    )
    for left, right in skeleton.symmetric_bones:
        short, longer = sorted((lengths[left], lengths[right]))
        if longer > _UNEQUAL * short:
            raise StructDiffError(
                f"the bones to {skeleton.joints[left]} and {skeleton.joints[right]} of {name} "
                f"measure {lengths[left]:.3g} and {lengths[right]:.3g}: the joints are not in the "
                f"order of {skeleton.name}, which is {', '.join(skeleton.joints)}"
            )
    bend = _knee_bend(frames, skeleton)
    if bend is not None and bend < -_BACKWARDS[len(frames) >= _LONG]:
        raise StructDiffError(
            f"the knees in {name} bend backwards: its left and right joints have changed places, "
            "or one axis is negated (y up read as y down is a mirror image); exchange the sides, "
            "or negate that axis again"
        )


def _knee_bend(frames: Array, skeleton: Skeleton) -> float | None:
    """Mean sine of the bend of the knees, forwards positive; None without named legs."""
    legs = [f"{side}{joint}" for side in "LR" for joint in ("Hip", "Knee", "Ankle")]
    if not set(legs) <= set(skeleton.joints):
        return None
    hip, knee, ankle = (
        frames[:, [skeleton.index(f"{side}{joint}") for side in "LR"]]  # (T, 2, 3)
        for joint in ("Hip", "Knee", "Ankle")
    )
    across = (hip[:, 0] - hip[:, 1])[:, None]
    thigh, shin = knee - hip, ankle - knee
    turn = (np.cross(thigh, shin) * across).sum(-1)
    size = np.prod([np.linalg.norm(v, axis=-1) for v in (thigh, shin, across + 0 * thigh)], axis=0)
    seen = np.isfinite(turn)
    total = size[seen].sum()
    return float(turn[seen].sum() / total) if total > 0 else None


def _distances(frames: Array) -> Array:
    """Median over frames of the joints' distances, as fractions of the body's size (J, J)."""
    joints = frames.shape[1]
    first, second = np.triu_indices(joints, 1)
    apart = np.sqrt(np.square(frames[:, first] - frames[:, second]).sum(-1))  # (T, pairs)
    size = np.sqrt(np.nanmean(np.square(apart), axis=1))
    distances = np.zeros((joints, joints))
    if (size > 0).any():
        distances[first, second] = median_seen(apart[size > 0] / size[size > 0, None])
    return distances + distances.T


def median_seen(values: Array) -> Array:
    """Median over the first axis of what is not NaN; NaN where nothing is."""
    if np.isfinite(values).all():
        whole: Array = np.median(values, axis=0)
        return whole
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of a joint that is never seen
        median: Array = np.nanmedian(values, axis=0)
    return median


def _likeness(distances: Array, skeleton: Skeleton) -> float | None:
    """Correlation with the distances in a standing body; None where too little is known or seen."""
    if not set(skeleton.joints) <= set(_STANDING):
        return None
    pairs = np.triu_indices(len(skeleton), 1)
    standing, found = _standing_distances(skeleton.joints)[pairs], distances[pairs]
    seen = np.isfinite(found)
    if seen.sum() < _PAIRS or found[seen].std() == 0:
        return None
    return float(np.corrcoef(found[seen], standing[seen])[0, 1])


@lru_cache(maxsize=16)
def _standing_distances(joints: tuple[str, ...]) -> Array:
    return _distances(np.array([[_STANDING[joint] for joint in joints]]))


def _tree_length(distances: Array, skeleton: Skeleton) -> float:
    """Length of the skeleton's tree over that of the shortest one; 1 if some joints are unseen."""
    from scipy.sparse.csgraph import minimum_spanning_tree

    if not np.isfinite(distances).all():
        return 1.0
    shortest = minimum_spanning_tree(distances + 1e-9).sum()  # a 0 would be no tie at all
    bones = list(skeleton.bones)
    return float(distances[bones, [skeleton.parents[b] for b in bones]].sum() / shortest)


def finite_frames(values: Any, name: str, dims: tuple[int, ...]) -> Array:
    """The frames with joints in them (T, J, D) in float64, at most 2000, evenly spread.

    Joints that are not finite are NaN.

    Raises
    ------
    StructDiffError
        If the array has another shape, or there is no such frame.
    """
    try:
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise StructDiffError(f"{name} must be an array of numbers: {error}") from error
    if array.ndim < 2 or array.shape[-1] not in dims or array.shape[-2] < 2:
        kinds = " or ".join(str(d) for d in dims)
        raise StructDiffError(f"{name} must have shape (..., J, {kinds}), got {array.shape}")
    frames = array.reshape(-1, *array.shape[-2:])
    seen: npt.NDArray[np.bool_] = np.asarray(np.isfinite(frames).all(-1))  # (T, J)
    usable = np.count_nonzero(seen, axis=-1) >= 2
    if not usable.any():
        raise StructDiffError(
            f"{name} holds no frame with two joints in it ({array.shape}, all else is NaN or "
            "infinite): were the joints read?"
        )
    frames = np.where(seen[..., None], frames, np.nan)[usable]
    return frames[np.linspace(0, len(frames) - 1, min(len(frames), _FRAMES)).astype(int)]


_SIDE = {  # metres to the left of the middle, up, and forward
    "Hip": (0.13, 0.95, 0.0),
    "Knee": (0.14, 0.50, 0.02),
    "Ankle": (0.15, 0.08, 0.0),
    "Shoulder": (0.16, 1.38, 0.0),
    "Elbow": (0.24, 1.12, 0.0),
    "Wrist": (0.27, 0.90, 0.10),
    "Eye": (0.03, 1.62, 0.10),
    "Ear": (0.08, 1.60, 0.0),
}
_STANDING = {  # an adult of about 1.75 m, arms down; coarse on purpose
    "Pelvis": (0.0, 0.95, 0.0),
    "Spine": (0.0, 1.17, 0.0),
    "Thorax": (0.0, 1.42, 0.0),
    "Neck": (0.0, 1.50, 0.02),  # of Human3.6M the chin, of MPI-INF-3DHP the thorax
    "Head": (0.0, 1.62, 0.02),
    "HeadTop": (0.0, 1.75, 0.02),
    "Nose": (0.0, 1.58, 0.12),
    **{f"L{joint}": place for joint, place in _SIDE.items()},
    **{f"R{joint}": (-across, *rest) for joint, (across, *rest) in _SIDE.items()},
}
