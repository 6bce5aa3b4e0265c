r"""Human3.6M and videos in VideoPose3D's layout, read from the user's own copy.

``data_3d_h36m.npz`` holds ``positions_3d``: {subject: {action: (T, 32, 3)}}, metres, world axes, of
which 17 joints are kept; ``data_2d_*.npz`` hold ``positions_2d``: {subject: {action: one (T, J, 2)
per camera}} in pixels and ``metadata``. Both are pickled and read without executing them; plain
archives made by :func:`~structdiff.pose.readers.convert_to_plain_npz` are read as well. Poses get
into camera axes by :math:`X_c = R\,(X - t)` with the cameras that the user gives.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from structdiff.errors import StructDiffError
from structdiff.pose.cameras import Camera
from structdiff.pose.data import PoseClip, PoseDataset
from structdiff.pose.readers._common import finished
from structdiff.pose.readers.archives import read_archive
from structdiff.pose.readers.h36m_cameras import read_h36m_cameras
from structdiff.pose.skeletons import (
    COCO_17,
    H36M_17,
    Skeleton,
    convert,
    convert_confidence,
    get_skeleton,
)

Array = npt.NDArray[np.floating]

H36M_KEPT = (0, 1, 2, 3, 6, 7, 8, 12, 13, 14, 15, 17, 18, 19, 25, 26, 27)
"""Of Human3.6M's 32 joints."""
_LAYOUTS = {"h36m": H36M_17, "coco": COCO_17}
_FPS = 50.0
"""Of Human3.6M."""


def read_videopose3d(
    keypoints: str | Path | None = None,
    poses: str | Path | None = None,
    cameras: Any = None,
    *,
    subjects: Collection[str] | None = None,
    actions: Collection[str] | None = None,
    skeleton: str | Skeleton | None = None,
    fps: float | None = None,
    image_size: tuple[int, int] | None = None,
    check: bool = True,
) -> PoseDataset:
    """Read 2D keypoints, 3D poses, or both, a clip per take and view.

    Clips are named ``S9/Walking 1/0``: subject, take and view; without keypoints and cameras there
    is one clip per take, ``S9/Walking 1``.

    Parameters
    ----------
    keypoints
        ``data_2d_h36m_gt.npz``, ``data_2d_h36m_cpn_ft_h36m_dbb.npz``,
        ``data_2d_h36m_detectron_pt_coco.npz`` or a ``data_2d_custom_*.npz``.
    poses
        ``data_3d_h36m.npz``. Its poses are in world axes.
    cameras
        Of every subject in the order of the views: a JSON or npz file, or a dictionary, as
        described in :mod:`structdiff.pose.readers.h36m_cameras`.
    subjects, actions
        Those wanted; an action is a take ("Walking 1") or all takes of it ("Walking").
    skeleton
        To convert the joints to. Keypoints in COCO's order are converted only when it is given,
        and must be where there are poses too.
    fps
        Frames per second; 50 for Human3.6M.
    image_size
        Width and height in pixels, where neither cameras nor the file say.
    check
        Whether units, joint order, axes and cameras are checked against the numbers.

    Raises
    ------
    StructDiffError
        If neither file is given, one cannot be read, has another layout, or a pickle in it asks
        for more than arrays; if 2D is shorter than 3D, views and cameras differ in number, or a
        check fails. Names file and take.
    """
    if keypoints is None and poses is None:
        raise StructDiffError("give a file of keypoints, of poses, or both")
    wanted = _Wanted(subjects, actions)
    notes: list[str] = []
    flat, layout, sizes = ({}, H36M_17, {}) if keypoints is None else _read_2d(Path(keypoints))
    space = {} if poses is None else _read_3d(Path(poses))
    target = None if skeleton is None else get_skeleton(skeleton)
    if space and flat and layout != H36M_17:
        if target != H36M_17:
            raise StructDiffError(
                f"the keypoints of {keypoints} are in the order of {layout.name}, the poses in "
                f"that of {H36M_17.name}: give skeleton='h36m17' to convert the keypoints"
            )
        notes.append(f"keypoints of {layout.name} were converted to {H36M_17.name}")
    to_h36m = bool(space) and bool(flat) and layout != H36M_17
    own = H36M_17 if space else layout
    seen_by = {} if cameras is None else read_h36m_cameras(cameras)
    if fps is None and (space or layout == H36M_17 or not sizes):
        fps = _FPS
    facts = {"fps": fps}
    clips = []
    for take, views, pose in _pairs(flat, space, wanted, notes):
        given = seen_by.get(take[0], seen_by.get("*"))
        if seen_by and given is None:
            notes.append(f"{take[0]} has no cameras")
        if views is None and given is None:
            clips.append(_clip(take, None, None, pose, None, None, facts))
            continue
        views = [None] * len(given or ()) if views is None else views
        if given is not None and len(given) != len(views):
            raise StructDiffError(
                f"{'/'.join(take)} of {keypoints} has {len(views)} views, its subject has "
                f"{len(given)} cameras: give one each, in the order of the views"
            )
        for number, view in enumerate(views):
            camera = None if given is None else given[number]
            size = image_size if camera is None else camera.image_size
            size = sizes.get(take[0], size)
            if view is not None and to_h36m:
                view = _as_h36m(view, layout)
            clips.append(_clip(take, number, view, pose, camera, size, facts))
    source = " and ".join(str(p) for p in (keypoints, poses) if p is not None)
    return finished(
        clips, own, skeleton=target, notes=tuple(dict.fromkeys(notes)), check=check, source=source
    )


def _as_h36m(view: Array, layout: Skeleton) -> Array:
    """Joints, and their confidence where it stands in a third column."""
    joints = convert(view[..., :2], layout, H36M_17)
    if view.shape[-1] == 2:
        return joints
    sure = convert_confidence(view[..., 2], layout, H36M_17)
    return np.concatenate([joints, sure[..., None]], axis=-1)


class _Wanted:
    """Which subjects and takes were asked for."""

    def __init__(self, subjects: Collection[str] | None, actions: Collection[str] | None) -> None:
        self.subjects = None if subjects is None else set(_listed("subjects", subjects))
        self.actions = None if actions is None else set(_listed("actions", actions))

    def __call__(self, take: tuple[str, str]) -> bool:
        subject, name = take
        if self.subjects is not None and subject not in self.subjects:
            return False
        return self.actions is None or bool({name, name.split(" ")[0]} & self.actions)


def _listed(name: str, values: Collection[str]) -> list[str]:
    if isinstance(values, str):
        raise StructDiffError(f"{name} must be a list of names, got the text {values!r}")
    return list(values)


def _pairs(
    flat: Mapping[tuple[str, str], list[Any]],
    space: Mapping[tuple[str, str], Array],
    wanted: _Wanted,
    notes: list[str],
) -> Iterator[tuple[tuple[str, str], list[Any] | None, Array | None]]:
    """Takes with their views and poses; what is cut or left out goes into the notes."""
    for take in dict.fromkeys([*flat, *space]):
        if not wanted(take):
            continue
        name = "/".join(take)
        views, pose = flat.get(take), space.get(take)
        if flat and space and pose is None:
            notes.append(f"{take[0]} has no 3D poses of some takes: keypoints only")
        if flat and space and views is None:
            notes.append(f"{name} has no keypoints: poses only")
        if views is not None and pose is not None:
            lengths = [len(v) for v in views]
            if min(lengths) < len(pose):
                raise StructDiffError(
                    f"{name} has {len(pose)} frames in 3D, but {min(lengths)} in 2D: the files do "
                    "not belong together"
                )
            if max(lengths) > len(pose):
                notes.append("keypoints that go on after the poses were cut to their length")
            views = [v[: len(pose)] for v in views]
        yield take, views, pose


def _clip(
    take: tuple[str, str],
    view: int | None,
    keypoints: Array | None,
    poses: Array | None,
    camera: Camera | None,
    size: Any,
    facts: dict[str, Any],
) -> PoseClip:
    scored = keypoints is not None and keypoints.shape[-1] == 3
    return PoseClip(
        name="/".join(take) + ("" if view is None else f"/{view}"),
        keypoints=None if keypoints is None else keypoints[..., :2],
        confidence=keypoints[..., 2] if keypoints is not None and scored else None,
        poses=poses,
        axes="camera" if poses is None else "world",
        camera=camera,
        image_size=None if size is None else (int(size[0]), int(size[1])),
        subject=take[0],
        action=take[1].split(" ")[0],
        **facts,
    )


# ---------------------------------------------------------------- the files


def _read_3d(path: Path) -> dict[tuple[str, str], Array]:
    content = read_archive(path).get("positions_3d")
    takes = {}
    for subject, action, value in _takes(content, path, "positions_3d"):
        name = f"{subject}/{action} of {path}"
        array = np.asarray(value)
        if array.ndim != 3 or array.shape[1:] not in ((32, 3), (17, 3)):
            raise StructDiffError(
                f"{name} has shape {array.shape}: expected (T, 32, 3) or (T, 17, 3) joints of "
                "Human3.6M"
            )
        kept = array[:, list(H36M_KEPT)] if array.shape[1] == 32 else array
        takes[subject, action] = kept
    return takes


def _read_2d(
    path: Path,
) -> tuple[dict[tuple[str, str], list[Array]], Skeleton, dict[str, tuple[int, int]]]:
    """Views of every take, their joint order, and image sizes of videos."""
    content = read_archive(path)
    layout = _layout(content.get("metadata"), path)
    takes = {}
    for subject, action, value in _takes(content.get("positions_2d"), path, "positions_2d"):
        views = [np.asarray(v) for v in (value if isinstance(value, list) else list(value))]
        for number, view in enumerate(views):
            if view.ndim != 3 or view.shape[1] != len(layout) or view.shape[2] not in (2, 3):
                raise StructDiffError(
                    f"view {number} of {subject}/{action} of {path} has shape {view.shape}: "
                    f"expected (T, {len(layout)}, 2) joints of {layout.name}"
                )
        takes[subject, action] = views
    told = content.get("metadata")
    videos = told.get("video_metadata", {}) if isinstance(told, Mapping) else {}
    sizes = {str(v): (int(facts["w"]), int(facts["h"])) for v, facts in videos.items()}
    return takes, layout, sizes


def _takes(content: Any, path: Path, key: str) -> Iterator[tuple[str, str, Any]]:
    if not isinstance(content, Mapping) or not content:
        raise StructDiffError(
            f"{path} has no {key}: expected {{subject: {{action: arrays}}}} in the layout of "
            "VideoPose3D"
        )
    for subject, actions in content.items():
        if not isinstance(actions, Mapping):
            raise StructDiffError(f"{key} of {subject} in {path} must list its actions by name")
        for action, value in actions.items():
            yield str(subject), str(action), value


def _layout(metadata: Any, path: Path) -> Skeleton:
    """The joint order that the metadata state; by its symmetric joints if it has no name."""
    if not isinstance(metadata, Mapping):
        raise StructDiffError(f"{path} has no metadata, which say the order of its joints")
    name = str(metadata.get("layout_name", ""))
    pairs = metadata.get("keypoints_symmetry")
    if not name and pairs is not None:
        sides = [[int(j) for j in side] for side in pairs]
        name = next((k for k, t in _LAYOUTS.items() if sides == [list(t.left), list(t.right)]), "")
    count = metadata.get("num_joints", 17)
    if name not in _LAYOUTS or int(count) != len(_LAYOUTS[name]):
        raise StructDiffError(
            f"{path} has {count} joints of layout {name!r}: read are {', '.join(_LAYOUTS)} with 17"
        )
    return _LAYOUTS[name]
