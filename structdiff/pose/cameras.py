"""Pinhole cameras with lens distortion: projection, rays, world axes, files.

A point :math:`X` of the world, z up, lies at :math:`R (X - c)` for a camera at :math:`c` whose axes
are x right, y down, z forward. From there :mod:`structdiff.pose.lenses` leads to pixels and back.

Files list cameras in JSON, lengths in pixels and metres::

    {"cameras": [{"f_px": [fx, fy], "c_px": [cx, cy], "k": [k1, k2, k3], "p": [p1, p2],
                  "res_wh": [width, height], "position_m": [x, y, z],
                  "R_world_to_cam": [[...], [...], [...]],
                  "quat_wxyz_cam_to_world": [w, x, y, z], "distortion": "h36m"}]}

where only ``f_px`` and ``c_px`` are required and one form of the rotation is enough.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch

from structdiff.errors import StructDiffError
from structdiff.pose.lenses import (
    Array,
    Distortion,
    check_image_size,
    denormalise,
    normalise,
    project,
    undistort,
)

DEFAULT_FOCAL = 1.2
"""Focal length of an unknown camera in longer sides of its image (COLMAP's prior)."""
_X_MIRROR = np.diag([-1.0, 1.0, 1.0])


@dataclass(frozen=True, eq=False)
class Camera:
    """One calibrated camera.

    Parameters
    ----------
    focal, centre
        Focal lengths and principal point in pixels, (2,).
    radial, tangential
        Distortion coefficients k1, k2, k3 and p1, p2.
    rotation
        From world to camera axes, (3, 3).
    position
        Camera centre in the world, metres (3,).
    image_size
        Width and height in pixels.
    distortion
        Whose tangential term the coefficients are for: Human3.6M's or OpenCV's.

    Raises
    ------
    StructDiffError
        If a part has the wrong number of values, a focal length is not positive, or the rotation
        is none.
    """

    focal: Array
    centre: Array
    radial: Array | Sequence[float] = (0.0, 0.0, 0.0)
    tangential: Array | Sequence[float] = (0.0, 0.0)
    rotation: Array | None = None
    position: Array | Sequence[float] = (0.0, 0.0, 0.0)
    image_size: tuple[int, int] | None = None
    distortion: Distortion = "h36m"

    def __post_init__(self) -> None:
        sizes = {"focal": 2, "centre": 2, "radial": 3, "tangential": 2, "position": 3}
        for name, size in sizes.items():
            value = np.asarray(getattr(self, name), dtype=np.float64)
            if value.shape != (size,) or not np.isfinite(value).all():
                raise StructDiffError(
                    f"{name} of a camera must be {size} finite numbers, got {value.tolist()}"
                )
            object.__setattr__(self, name, value)
        if not (np.asarray(self.focal) > 0).all():
            raise StructDiffError(f"focal lengths must be positive, got {self.focal}")
        if self.distortion not in get_args(Distortion):
            raise StructDiffError(
                f"distortion must be one of {', '.join(get_args(Distortion))}, "
                f"got {self.distortion!r}"
            )
        if self.image_size is not None:
            object.__setattr__(self, "image_size", check_image_size(self.image_size))
        turn = np.eye(3) if self.rotation is None else np.asarray(self.rotation, dtype=np.float64)
        if (
            turn.shape != (3, 3)
            or not np.isfinite(turn).all()
            or np.abs(turn @ turn.T - np.eye(3)).max() > 1e-4
            or np.linalg.det(turn) < 0
        ):
            raise StructDiffError(
                "the rotation of a camera must be a proper rotation matrix (3, 3)"
            )
        object.__setattr__(self, "rotation", turn)

    @classmethod
    def pinhole(cls, image_size: tuple[int, int], focal: float | None = None) -> Camera:
        """A camera without distortion that looks through the middle of the image.

        Parameters
        ----------
        image_size
            Width and height in pixels.
        focal
            Focal length in pixels; None assumes 1.2 longer sides, which is about 45 degrees of
            view and a guess: depths scale with it.
        """
        width, height = check_image_size(image_size)
        length = DEFAULT_FOCAL * max(width, height) if focal is None else focal
        return cls(
            focal=np.full(2, length),
            centre=np.array([width / 2, height / 2]),
            image_size=(width, height),
        )

    @classmethod
    def from_quaternion(cls, orientation: Array | Sequence[float], **parts: Any) -> Camera:
        """A camera whose rotation is a quaternion.

        Parameters
        ----------
        orientation
            (w, x, y, z) of the rotation from camera to world axes, of length 1.
        **parts
            The other parts of the camera.

        Raises
        ------
        StructDiffError
            If the quaternion has not length 1, or a part is wrong.
        """
        return cls(rotation=_world_to_camera(orientation), **parts)

    @property
    def intrinsics(self) -> Array:
        """fx, fy, cx, cy, k1, k2, k3, p1, p2 in pixels, (9,)."""
        parts = (self.focal, self.centre, self.radial, self.tangential)
        return np.concatenate([np.asarray(part) for part in parts])

    @property
    def normalised_intrinsics(self) -> Array:
        """The intrinsics for normalised coordinates: focal lengths and centre by the width, (9,).

        Raises
        ------
        StructDiffError
            If the camera has no image size.
        """
        focal = np.asarray(self.focal) * 2 / self._size[0]
        return np.concatenate([focal, self.normalise(self.centre), self.intrinsics[4:]])

    @property
    def _size(self) -> tuple[int, int]:
        if self.image_size is None:
            raise StructDiffError("this camera has no image_size: give its width and height")
        return self.image_size

    def normalise(self, keypoints: Array) -> Array:
        """Pixels (..., 2) by the width: see :func:`~structdiff.pose.lenses.normalise`."""
        return normalise(keypoints, self._size)

    def denormalise(self, keypoints: Array) -> Array:
        """Normalised coordinates (..., 2) in pixels."""
        return denormalise(keypoints, self._size)

    def to_camera(self, points: Array) -> Array:
        """World points (..., 3) in camera axes."""
        return (points - np.asarray(self.position)) @ np.asarray(self.rotation).T

    def to_world(self, points: Array) -> Array:
        """Camera points (..., 3) in world axes."""
        return points @ np.asarray(self.rotation) + np.asarray(self.position)

    def project(self, points: Array, *, clamp: bool = False) -> Array:
        """Pixels (..., 2) of points (..., 3) in camera axes, in float64.

        See :func:`~structdiff.pose.lenses.project`; NaN for points that are not in front.
        """
        values = torch.as_tensor(np.asarray(points, dtype=np.float64))
        pixels = project(
            values, torch.as_tensor(self.intrinsics), distortion=self.distortion, clamp=clamp
        )
        return pixels.numpy()

    def rays(self, keypoints: Array) -> Array:
        """Undistorted rays: x, y where depth is 1, such that projecting (x, y, 1) gives the pixels.

        Newton's method on the lens, to 1e-10.

        Parameters
        ----------
        keypoints
            Pixels (..., 2); missing (NaN) ones have no ray (NaN).

        Returns
        -------
        Array
            (..., 2), float64.

        Raises
        ------
        StructDiffError
            If a keypoint lies where the lens sends no ray.
        """
        keypoints = np.asarray(keypoints, dtype=np.float64)
        seen = torch.as_tensor((keypoints - np.asarray(self.centre)) / np.asarray(self.focal))
        rays, lost = undistort(seen, torch.as_tensor(self.intrinsics), self.distortion)
        if not lost.any():
            return rays.numpy()
        raise StructDiffError(
            f"{int(lost.sum())} keypoints lie where this lens sends no ray, the first at "
            f"{keypoints[lost.numpy()][0].tolist()} px: check the distortion coefficients, their "
            f"form ({self.distortion}) and that keypoints are pixels of this camera"
        )

    def mirrored(self) -> Camera:
        """The camera of the mirror image.

        It sees points with x negated, in camera axes and in a world that is mirrored in x alike,
        at ``width - u``.

        Raises
        ------
        StructDiffError
            If the camera has no image size.
        """
        odd = 0 if self.distortion == "h36m" else 1  # the coefficient that pushes along x
        tangential = np.array(self.tangential)
        tangential[odd] *= -1
        return replace(
            self,
            centre=np.asarray(self.centre) * [-1, 1] + [self._size[0], 0],
            tangential=tangential,
            rotation=_X_MIRROR @ np.asarray(self.rotation) @ _X_MIRROR,
            position=_X_MIRROR @ np.asarray(self.position),
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values in the layout of the files."""
        values: dict[str, Any] = {
            "f_px": np.asarray(self.focal).tolist(),
            "c_px": np.asarray(self.centre).tolist(),
            "k": np.asarray(self.radial).tolist(),
            "p": np.asarray(self.tangential).tolist(),
            "position_m": np.asarray(self.position).tolist(),
            "R_world_to_cam": np.asarray(self.rotation).tolist(),
            "distortion": self.distortion,
        }
        return values if self.image_size is None else {**values, "res_wh": list(self.image_size)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Camera:
        """Inverse of :meth:`to_dict`; takes ``quat_wxyz_cam_to_world`` for the matrix too.

        Raises
        ------
        StructDiffError
            If a required value is missing, one is wrong, or quaternion and matrix disagree.
        """
        missing = [key for key in ("f_px", "c_px") if key not in values]
        if missing:
            raise StructDiffError(f"a camera needs {' and '.join(missing)}")
        names = {"f_px": "focal", "c_px": "centre", "k": "radial", "p": "tangential"}
        names |= {"position_m": "position", "R_world_to_cam": "rotation", "res_wh": "image_size"}
        names["distortion"] = "distortion"
        parts = {name: values[key] for key, name in names.items() if key in values}
        if (quaternion := values.get("quat_wxyz_cam_to_world")) is not None:
            turn = _world_to_camera(quaternion)
            given = np.asarray(parts.setdefault("rotation", turn), dtype=np.float64)
            if given.shape != (3, 3) or np.abs(turn - given).max() > 1e-4:
                raise StructDiffError(
                    "R_world_to_cam and quat_wxyz_cam_to_world of a camera are different "
                    "rotations: the quaternion is (w, x, y, z) from camera to world axes"
                )
        return cls(**parts)


def _world_to_camera(quaternion: Array | Sequence[float]) -> Array:
    """Matrix (3, 3) of the inverse of a rotation (w, x, y, z)."""
    values = np.asarray(quaternion, dtype=np.float64)
    if values.shape != (4,) or not abs(np.linalg.norm(values) - 1) < 1e-3:
        raise StructDiffError(
            f"a rotation's quaternion is 4 numbers (w, x, y, z) of length 1, got {values.tolist()}"
        )
    w, *axis = values / np.linalg.norm(values)
    x, y, z = axis
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    forward: Array = np.eye(3) + 2 * w * cross + 2 * cross @ cross
    return forward.T


def read_cameras(path: str | Path) -> list[Camera]:
    """Cameras of a JSON file, in its order; the layout is at the head of this module.

    Raises
    ------
    StructDiffError
        If the file is no JSON of that layout or a camera in it is wrong; says which.
    """
    try:
        listed = json.loads(Path(path).read_text(encoding="utf-8"))
        records = listed["cameras"] if isinstance(listed, dict) else listed
        records = [dict(record) for record in records]
    except (OSError, ValueError, KeyError, TypeError) as problem:
        raise StructDiffError(
            f'{path} is no list of cameras: expected JSON {{"cameras": [{{"f_px": ...}}]}} '
            f"({problem!r})"
        ) from problem
    cameras = []
    for number, record in enumerate(records):
        try:
            cameras.append(Camera.from_dict(record))
        except (StructDiffError, TypeError, ValueError) as problem:
            raise StructDiffError(f"camera {number} of {path}: {problem}") from problem
    return cameras


def write_cameras(path: str | Path, cameras: Sequence[Camera]) -> None:
    """Write cameras in the layout that :func:`read_cameras` reads."""
    content = {"cameras": [camera.to_dict() for camera in cameras]}
    Path(path).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
