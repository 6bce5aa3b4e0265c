"""What users hand to the pose head, read as clips."""

from __future__ import annotations

from typing import Any

import numpy as np

from structdiff.errors import StructDiffError
from structdiff.pose.cameras import Camera
from structdiff.pose.checks import check_dataset
from structdiff.pose.data import PoseClip, PoseDataset
from structdiff.pose.lenses import check_image_size
from structdiff.pose.skeletons import Skeleton


def is_single(keypoints: Any) -> bool:
    """Whether the input is one clip and not a list of them."""
    return isinstance(keypoints, (np.ndarray, PoseClip)) or hasattr(keypoints, "detach")


def as_dataset(
    keypoints: Any,
    skeleton: Skeleton,
    *,
    poses: Any = None,
    image_size: Any = None,
    confidence: Any = None,
    camera: Any = None,
    check: bool = True,
) -> PoseDataset:
    """Clips from arrays, or those of a data set, checked for units, axes and joint order.

    Parameters
    ----------
    keypoints
        (T, J, 2) pixels of one clip, a :class:`PoseClip`, a list of either, or a
        :class:`PoseDataset`; clips bring everything else themselves.
    skeleton
        Of the joints.
    poses
        Root-relative or absolute 3D joints in camera axes, metres, like ``keypoints``; None where
        there are none.
    image_size, camera
        One for all clips, or one each.
    confidence
        (T, J) like ``keypoints``.
    check
        Whether to run the checks.

    Raises
    ------
    StructDiffError
        If parts do not fit together, or a check fails.
    """
    if isinstance(keypoints, PoseClip):
        keypoints = [keypoints]
    listed = isinstance(keypoints, (list, tuple)) and len(keypoints) > 0
    if listed and all(isinstance(k, PoseClip) for k in keypoints):
        keypoints = PoseDataset(tuple(keypoints), skeleton)
    if isinstance(keypoints, PoseDataset):
        given = {
            "poses": poses,
            "image_size": image_size,
            "confidence": confidence,
            "camera": camera,
        }
        double = [name for name, value in given.items() if value is not None]
        if double:
            raise StructDiffError(
                f"the clips bring their own {', '.join(double)}: leave out what they have, or give "
                "arrays"
            )
        data = keypoints
    else:
        data = _from_arrays(keypoints, skeleton, poses, image_size, confidence, camera)
    if data.skeleton.joints != skeleton.joints or data.skeleton.parents != skeleton.parents:
        raise StructDiffError(
            f"the clips are on skeleton {data.skeleton.name}, the model on {skeleton.name}: "
            "convert them (structdiff.pose.skeletons.convert)"
        )
    if not len(data):
        raise StructDiffError("there is no clip: give at least one")
    for clip in data:
        _check_clip(clip)
    if check:
        check_dataset(data)
    return data


def _check_clip(clip: PoseClip) -> None:
    """What no setting makes right."""
    if not len(clip):
        raise StructDiffError(f"clip {clip.name!r} has no frame: leave it out")
    if clip.keypoints is None:
        return
    if np.isinf(clip.keypoints).any():
        raise StructDiffError(
            f"clip {clip.name!r} has infinite keypoints: mark missing joints by NaN"
        )
    sure, shape = clip.confidence, clip.keypoints.shape[:2]
    if sure is not None and (sure.shape != shape or not (sure >= 0).all()):
        raise StructDiffError(
            f"the confidence of clip {clip.name!r} must be 0 or more, one number per keypoint "
            f"{shape}, got shape {sure.shape}"
        )


def _from_arrays(
    keypoints: Any, skeleton: Skeleton, poses: Any, image_size: Any, confidence: Any, camera: Any
) -> PoseDataset:
    single = is_single(keypoints)
    if not single and not isinstance(keypoints, (list, tuple)):
        raise StructDiffError(
            "keypoints must be an array (T, J, 2) of pixels, a PoseClip, a list of either, or a "
            f"PoseDataset, got {type(keypoints).__name__}"
        )
    flat = [keypoints] if single else keypoints
    count = len(flat)

    def each(name: str, value: Any, one: bool) -> list[Any]:
        """One value per clip: ``one`` says that the value given is for a single clip."""
        if value is None:
            return [None] * count
        if one:
            if single or name in ("image_size", "camera"):
                return [value] * count
            raise StructDiffError(f"{name} of {count} clips must be a list of {count}")
        values = list(value) if isinstance(value, (list, tuple, np.ndarray)) else []
        if len(values) != count:
            raise StructDiffError(f"{len(values)} {name} for {count} clips: give one each")
        return values

    several = isinstance(image_size, (list, tuple, np.ndarray)) and any(map(np.ndim, image_size))
    sizes = each("image_size", image_size, not several)
    cameras = each("camera", camera, not isinstance(camera, (list, tuple)))
    space = each("poses", poses, poses is not None and is_single(poses))
    sure = each("confidence", confidence, confidence is not None and is_single(confidence))
    clips = []
    for i in range(count):
        clips.append(
            PoseClip(
                name=str(i),
                keypoints=_numbers(flat[i], f"keypoints of clip '{i}'"),
                poses=None if space[i] is None else _numbers(space[i], f"poses of clip '{i}'"),
                confidence=None if sure[i] is None else _numbers(sure[i], f"confidence of '{i}'"),
                camera=_camera(cameras[i]),
                image_size=None if sizes[i] is None else check_image_size(sizes[i]),
            )
        )
    return PoseDataset(tuple(clips), skeleton)


def _numbers(values: Any, name: str) -> Any:
    """An array of floats, from tensors too."""
    if hasattr(values, "detach"):
        values = values.detach().cpu().numpy()
    try:
        array = np.asarray(values)
    except ValueError as error:
        raise StructDiffError(f"{name} must be numbers in an array: {error}") from error
    if array.dtype.kind not in "fiu":
        raise StructDiffError(f"{name} must be numbers, got {array.dtype}")
    return array.astype(np.float64) if array.dtype.kind in "iu" else array


def _camera(camera: Any) -> Camera | None:
    if camera is None or isinstance(camera, Camera):
        return camera
    raise StructDiffError(
        f"camera must be a structdiff.pose.Camera, or a list with one per clip, got {camera!r} "
        "(structdiff.pose.read_cameras reads files)"
    )
