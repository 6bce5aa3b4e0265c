"""What every reader of poses does at its end: another skeleton where asked, gaps, checks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from structdiff.errors import StructDiffError
from structdiff.pose.checks import check_dataset, check_metres
from structdiff.pose.data import PoseClip, PoseDataset
from structdiff.pose.skeletons import Skeleton, convert, convert_confidence, get_skeleton

Array = npt.NDArray[np.floating]
Mask = npt.NDArray[np.bool_]

_FITS = 0.05
"""Median reprojection error, as a part of the image's width, above which a camera is another."""
_LOOKED_AT = 100


def finished(
    clips: Iterable[PoseClip],
    layout: Skeleton,
    *,
    skeleton: str | Skeleton | None,
    notes: Sequence[str] = (),
    check: bool = True,
    cameras: bool = True,
    source: str | Path,
) -> PoseDataset:
    """The clips that were read, on the skeleton asked for, checked in their own joint order.

    ``cameras`` is for poses that stand where they stood: only these fit their keypoints. Poses
    without a place are lifted ones, whose proportions may be as wrong as their model; of these the
    unit is checked alone.

    Raises
    ------
    StructDiffError
        If there are none, a check fails, or they cannot be converted; names the file.
    """
    data = PoseDataset(tuple(clips), layout, tuple(notes))
    if not len(data):
        raise StructDiffError(f"{source} holds no clip that was asked for")
    if check:
        try:
            check_dataset(data if cameras else _without_poses(data))
            for clip in data:
                if cameras:
                    check_camera(clip)
                elif clip.poses is not None:
                    check_metres(clip.poses, f"poses of clip {clip.name!r}")
        except StructDiffError as error:
            raise StructDiffError(f"{source}: {error}. (check=False reads it as it is)") from error
    return data if skeleton is None else converted(data, get_skeleton(skeleton))


def _without_poses(data: PoseDataset) -> PoseDataset:
    """The clips that have keypoints, with nothing else to look at."""
    seen = [clip for clip in data if clip.keypoints is not None]
    return replace(data, clips=tuple(replace(clip, poses=None) for clip in seen))


def converted(data: PoseDataset, skeleton: Skeleton) -> PoseDataset:
    """A data set on another skeleton, with a note that says so.

    Raises
    ------
    StructDiffError
        If a joint cannot be had.
    """
    if skeleton == data.skeleton:
        return data

    def turned(values: Any) -> Any:
        return None if values is None else convert(values, data.skeleton, skeleton)

    clips = tuple(
        replace(
            clip,
            keypoints=turned(clip.keypoints),
            poses=turned(clip.poses),
            confidence=None
            if clip.confidence is None
            else convert_confidence(clip.confidence, data.skeleton, skeleton),
        )
        for clip in data
    )
    note = f"joints of {data.skeleton.name} were converted to {skeleton.name}"
    return PoseDataset(clips, skeleton, (*data.notes, note))


def check_camera(clip: PoseClip) -> None:
    """Refuse a camera that does not see the keypoints where the poses are.

    Raises
    ------
    StructDiffError
        If the median distance of projected poses from keypoints is above 5 % of the image's width.
    """
    if clip.camera is None or clip.keypoints is None or clip.poses is None:
        return
    if clip.image_size is None or not len(clip):
        return
    some = np.linspace(0, len(clip) - 1, min(len(clip), _LOOKED_AT)).astype(int)
    seen = clip.camera.project(clip.in_camera()[some])
    apart = np.linalg.norm(seen - clip.keypoints[some], axis=-1)
    error = float(np.nanmedian(apart)) if np.isfinite(apart).any() else np.inf
    if error > _FITS * clip.image_size[0]:
        raise StructDiffError(
            f"the camera of clip {clip.name!r} projects its poses {error:.0f} pixels away from its "
            "keypoints (median): it is another clip's, in another order, or in another unit"
        )


def with_gaps_filled(values: Array, seen: Mask, limit: int) -> tuple[Array, Mask]:
    """Joints that are missing for a while, on the straight line between their neighbours in time.

    Parameters
    ----------
    values
        (T, J, D).
    seen
        Which joints were seen, (T, J).
    limit
        Longest run of frames that is filled; before the first and after the last sight of a joint
        its nearest position is kept.

    Returns
    -------
    tuple
        The values, NaN in longer gaps, and which of them were filled (T, J).
    """
    count = len(values)
    frames = np.arange(count)[:, None]
    before = np.maximum.accumulate(np.where(seen, frames, -1), axis=0)
    after = np.minimum.accumulate(np.where(seen, frames, count)[::-1], axis=0)[::-1]
    short = ~seen & (after - before - 1 <= limit) & ((before >= 0) | (after < count))
    first = np.where(before >= 0, before, np.minimum(after, count - 1))
    last = np.where(after < count, after, np.maximum(before, 0))
    share = (frames - first) / np.maximum(last - first, 1)
    joints = np.arange(values.shape[1])
    start, end = values[first, joints], values[last, joints]
    line = start + np.clip(share, 0, 1)[..., None] * (end - start)
    filled = np.where(seen[..., None], values, np.where(short[..., None], line, np.nan))
    return filled.astype(values.dtype), short


def gap_notes(name: str, seen: Mask, filled: Mask, limit: int) -> list[str]:
    """What was filled and what was not, one sentence each."""
    frames = ~seen.any(1)
    joints = ~seen & seen.any(1, keepdims=True)
    notes = []
    if frames.any():
        notes.append(
            f"clip {name!r}: nobody was found in {int(frames.sum())} of {len(seen)} frames, "
            f"{int((frames & filled.any(1)).sum())} of them interpolated with confidence 0"
        )
    if joints.any():
        notes.append(
            f"clip {name!r}: {int(joints.sum())} joints were missing in frames that had others, "
            f"{int((joints & filled).sum())} of them interpolated with confidence 0"
        )
    if (left := ~seen & ~filled).any():
        notes.append(
            f"clip {name!r}: {int(left.sum())} joints in gaps of more than {limit} frames are NaN"
        )
    return notes


def named(skeleton: str | Skeleton | None, default: Skeleton) -> Skeleton:
    """The skeleton stated, or the default."""
    return default if skeleton is None else get_skeleton(skeleton)
