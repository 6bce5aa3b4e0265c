"""Write poses with everything that is known about them, in the layout of :mod:`.tables`."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from structdiff.errors import StructDiffError
from structdiff.pose.cameras import Camera
from structdiff.pose.data import Axes, PoseClip, PoseDataset
from structdiff.pose.readers._csv import write_csv
from structdiff.pose.skeletons import H36M_17, Skeleton, get_skeleton
from structdiff.storage import write_whole

FORMAT = "structdiff.poses/1"


def write_poses(
    path: str | Path,
    poses: Any,
    *,
    keypoints: Any = None,
    skeleton: str | Skeleton | None = None,
    axes: Axes = "camera",
    fps: float | None = None,
    name: str = "",
) -> Path:
    """Write poses with everything that is known about them.

    Parameters
    ----------
    path
        ``.npz`` for everything, ``.csv`` for one of the two: 3D joints where there are any, else
        2D joints. Hypotheses and cameras go into ``.npz`` only.
    poses
        A :class:`PoseDataset`, a :class:`PoseClip`, a lifted clip (or a list of them), or an array
        of 3D joints in metres (T, J, 3); None for keypoints alone.
    keypoints
        2D joints in pixels (T, J, 2), beside an array.
    skeleton
        Of an array or a clip; Human3.6M's if None.
    axes, fps, name
        Of an array; the name is the file's if there is none.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    StructDiffError
        If the file's ending is another, there is nothing to write, or clips have the same name.
    """
    path = Path(path)
    records, skeleton = _as_records(poses, keypoints, skeleton, axes, fps, name or path.stem)
    names = [str(r["name"]) for r in records]
    if not records or len(set(names)) != len(names):
        raise StructDiffError(
            f"{path} needs clips of different names, got {names}: rename or split them"
        )
    if path.suffix == ".csv":
        write_csv(path, records, skeleton, FORMAT)
    elif path.suffix == ".npz":
        _write_npz(path, records, skeleton)
    else:
        raise StructDiffError(f"poses are written to .npz or .csv files, not {path.name!r}")
    return path


def _as_records(
    poses: Any, keypoints: Any, skeleton: Any, axes: Axes, fps: float | None, name: str
) -> tuple[list[dict[str, Any]], Skeleton]:
    """What is to be written, by key, one dictionary for each clip."""
    if isinstance(poses, PoseDataset):
        return [_clip_record(c) for c in poses], poses.skeleton
    if isinstance(poses, Sequence) and poses and all(_is_lifted(p) for p in poses):
        return [_lifted_record(p) for p in poses], poses[0].skeleton
    if _is_lifted(poses):
        return [_lifted_record(poses)], poses.skeleton
    tree = H36M_17 if skeleton is None else get_skeleton(skeleton)
    if isinstance(poses, PoseClip):
        clip = poses
    else:
        arrays = [None if v is None else np.asarray(v) for v in (keypoints, poses)]
        clip = PoseClip(name, arrays[0], arrays[1], axes=axes, fps=fps)
    PoseDataset((clip,), tree)  # checks the number of joints
    return [_clip_record(clip)], tree


def _is_lifted(poses: Any) -> bool:
    return all(hasattr(poses, part) for part in ("mean", "hypotheses", "clip", "skeleton"))


def _clip_record(clip: PoseClip) -> dict[str, Any]:
    keys = ("name", "keypoints", "poses", "confidence", "camera", "image_size", "fps", "valid")
    record = {key: getattr(clip, key) for key in (*keys, "subject", "action")}
    record |= {"axes": clip.axes, "origin": "absolute"}
    return {key: value for key, value in record.items() if value is not None}


def _lifted_record(lifted: Any) -> dict[str, Any]:
    """A lifted clip: its mean are the poses, relative to their roots, in camera axes."""
    record = _clip_record(lifted.clip) | {"poses": lifted.mean, "axes": "camera", "origin": "root"}
    for key in ("hypotheses", "std", "root", "method", "camera_assumed"):
        if (value := getattr(lifted, key, None)) is not None:
            record[key] = value
    return record


def _write_npz(path: Path, records: list[dict[str, Any]], skeleton: Skeleton) -> None:
    content: dict[str, Any] = {"format": FORMAT, "skeleton": skeleton.name, "unit": "m"}
    content |= {k: np.asarray(v) for k, v in skeleton.to_dict().items() if k != "name"}
    content["clips"] = np.asarray([str(r["name"]) for r in records])
    for record in records:
        prefix = f"{record['name']}/" if len(records) > 1 else ""
        for key, value in record.items():
            if isinstance(value, Camera):
                value = json.dumps(value.to_dict())
            if key != "name" and value is not None:
                content[prefix + key] = np.asarray(value)
    packed = io.BytesIO()
    np.savez_compressed(packed, **content)
    write_whole(path, packed.getvalue())
