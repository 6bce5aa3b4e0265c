"""What users hand to the pose head, read as clips."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from structdiff.errors import StructDiffError
from structdiff.pose.cameras import Camera
from structdiff.pose.checks import check_dataset
from structdiff.pose.data import PoseClip, PoseDataset
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
        (T, J, 2) pixels of one clip, a list of those, a :class:`PoseClip` or a
        :class:`PoseDataset`; the latter two bring everything else themselves.
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
        keypoints = PoseDataset((keypoints,), skeleton)
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
    if check:
        check_dataset(data)
    return data


def _from_arrays(
    keypoints: Any, skeleton: Skeleton, poses: Any, image_size: Any, confidence: Any, camera: Any
) -> PoseDataset:
    single = is_single(keypoints)
    flat = [_numbers(k) for k in ([keypoints] if single else keypoints)]
    count = len(flat)

    def each(name: str, value: Any, one: bool) -> list[Any]:
        """One value per clip: ``one`` says that the value given is for a single clip."""
        if value is None:
            return [None] * count
        if one:
            if single or name in ("image_size", "camera"):
                return [value] * count
            raise StructDiffError(f"{name} of {count} clips must be a list of {count}")
        values = list(value)
        if len(values) != count:
            raise StructDiffError(f"{len(values)} {name} for {count} clips: give one each")
        return values

    pairs = image_size is not None and np.ndim(image_size) == 1
    sizes = each("image_size", image_size, pairs)
    cameras = each("camera", camera, isinstance(camera, Camera))
    space = each("poses", poses, poses is not None and is_single(poses))
    sure = each("confidence", confidence, confidence is not None and is_single(confidence))
    clips = []
    for i in range(count):
        clips.append(
            PoseClip(
                name=str(i),
                keypoints=_finite(flat[i], f"clip {i}"),
                poses=None if space[i] is None else _numbers(space[i]),
                confidence=None if sure[i] is None else _numbers(sure[i]),
                camera=cameras[i],
                image_size=None if sizes[i] is None else _size(sizes[i]),
            )
        )
    return PoseDataset(tuple(clips), skeleton)


def _numbers(values: Any) -> Any:
    """An array of floats, from tensors too."""
    if hasattr(values, "detach"):
        values = values.detach().cpu().numpy()
    array = np.asarray(values)
    if array.dtype.kind not in "fiu":
        raise StructDiffError(f"joints must be numbers, got {array.dtype}")
    return array.astype(np.float64) if array.dtype.kind in "iu" else array


def _finite(keypoints: Any, name: str) -> Any:
    if np.isinf(keypoints).any():
        raise StructDiffError(f"{name} has infinite keypoints: mark missing joints by NaN")
    return keypoints


def _size(size: Sequence[Any]) -> tuple[int, int]:
    if len(size) != 2:
        raise StructDiffError(f"image_size must be (width, height), got {tuple(size)}")
    return int(size[0]), int(size[1])
