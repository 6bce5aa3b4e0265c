r"""Pinhole cameras with lens distortion: projection, rays, world axes.

With camera axes x right, y down, z forward and :math:`(x, y) = (X, Y) / Z`,
:math:`r^2 = x^2 + y^2`,

.. math:: \begin{aligned} R &= 1 + k_1 r^2 + k_2 r^4 + k_3 r^6, \\
          u &= f_x\,(x\,(R + p_1 x + p_2 y) + p_1 r^2) + c_x, \\
          v &= f_y\,(y\,(R + p_1 x + p_2 y) + p_2 r^2) + c_y, \end{aligned}

the form of Human3.6M's calibration. OpenCV's differs in the tangential term,

.. math:: \begin{aligned} u &= f_x\,(x R + 2 p_1 x y + p_2 (r^2 + 2 x^2)) + c_x, \\
          v &= f_y\,(y R + p_1 (r^2 + 2 y^2) + 2 p_2 x y) + c_y, \end{aligned}

so the same p1, p2 mean other lenses: a camera says which form its numbers are for.

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
from typing import Any, Literal, TypeVar, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from structdiff.errors import StructDiffError

Array = npt.NDArray[np.floating]
Distortion = Literal["h36m", "opencv"]
_Values = TypeVar("_Values", Array, Tensor)

DEFAULT_FOCAL = 1.2
"""Focal length of an unknown camera in longer sides of its image (COLMAP's prior)."""
_ITERATIONS, _TOLERANCE = 50, 1e-10
_X_MIRROR = np.diag([-1.0, 1.0, 1.0])


def project(
    points: Tensor, intrinsics: Tensor, *, distortion: Distortion = "h36m", clamp: bool = False
) -> Tensor:
    """Pixels of points, differentiable in both.

    Parameters
    ----------
    points
        In camera axes (..., 3), in any unit.
    intrinsics
        fx, fy, cx, cy, k1, k2, k3, p1, p2 (..., 9), broadcast against the points; in pixels, or
        normalised for normalised results.
    distortion
        Form of the tangential term.
    clamp
        Cut x and y to [-1, 1] before the lens, as the published code does: 45 degrees off the
        axis, where a radial polynomial means nothing any more.

    Returns
    -------
    Tensor
        (..., 2); NaN, with a gradient of 0, for points that are not in front of the camera.
    """
    depth = points[..., 2:]
    ahead = depth > 0
    plane = points[..., :2] / torch.where(ahead, depth, 1.0)
    if clamp:
        plane = plane.clamp(-1, 1)
    focal, centre = intrinsics[..., :2], intrinsics[..., 2:4]
    pixels = focal * _distort(plane, intrinsics, distortion) + centre
    return torch.where(ahead, pixels, torch.nan)


def _lens(intrinsics: Tensor, distortion: Distortion) -> tuple[Tensor, Tensor, float]:
    """Radial k (..., 3), tangential q (..., 2) and a: both forms are x (R + a q.x) + q r^2."""
    radial, tangential = intrinsics[..., 4:7], intrinsics[..., 7:]
    # OpenCV gives p to the other axis and counts the tilt twice.
    return (radial, tangential, 1) if distortion == "h36m" else (radial, tangential.flip(-1), 2)


def _distort(plane: Tensor, intrinsics: Tensor, distortion: Distortion) -> Tensor:
    """What the lens makes of normalised rays (..., 2)."""
    radial, q, a = _lens(intrinsics, distortion)
    squared = plane.square().sum(-1, keepdim=True)
    powers = torch.cat((squared, squared**2, squared**3), -1)
    gain = 1 + (radial * powers).sum(-1, keepdim=True) + a * (q * plane).sum(-1, keepdim=True)
    return plane * gain + q * squared


def _jacobian(plane: Tensor, intrinsics: Tensor, distortion: Distortion) -> Tensor:
    """Of :func:`_distort` for one lens, (..., 2, 2)."""
    (k1, k2, k3), q, a = _lens(intrinsics, distortion)
    squared = plane.square().sum(-1)
    gain = 1 + squared * (k1 + squared * (k2 + squared * k3)) + a * plane @ q
    slope = 2 * (k1 + squared * (2 * k2 + squared * 3 * k3))
    grown = slope[..., None] * plane + a * q
    return (
        gain[..., None, None] * torch.eye(2, dtype=plane.dtype)
        + plane[..., :, None] * grown[..., None, :]
        + 2 * q[:, None] * plane[..., None, :]
    )


def _undistort(seen: Tensor, intrinsics: Tensor, distortion: Distortion) -> tuple[Tensor, Tensor]:
    """Rays that the lens sends to ``seen`` (..., 2), by Newton's method, and where it failed."""
    rays = seen.clone()
    for _ in range(_ITERATIONS):
        missed = _distort(rays, intrinsics, distortion) - seen
        (xx, xy), (yx, yy) = _jacobian(rays, intrinsics, distortion).movedim((-2, -1), (0, 1))
        determinant = xx * yy - xy * yx
        if not (missed.abs() > _TOLERANCE).any():
            break
        x, y = missed.unbind(-1)
        step = torch.stack((yy * x - xy * y, xx * y - yx * x), -1)
        rays = rays - step / determinant[..., None]
    # Where a strong lens folds the picture over, the equation has further roots that are no rays.
    found = (missed.abs() <= _TOLERANCE).all(-1)
    unfolded = (determinant > 0) & ((rays * seen).sum(-1) >= 0)
    return rays, ~(found & unfolded | seen.isnan().any(-1))


def normalise(keypoints: _Values, image_size: tuple[int, int]) -> _Values:
    """Pixels (..., 2) as 2 u / w - 1 and 2 v / w - h / w: both by the width.

    Raises
    ------
    StructDiffError
        If the size is no width and height.
    """
    width, height = check_image_size(image_size)
    return keypoints * (2 / width) - _pair(1.0, height / width, keypoints)


def denormalise(keypoints: _Values, image_size: tuple[int, int]) -> _Values:
    """Inverse of :func:`normalise`."""
    width, height = check_image_size(image_size)
    return (keypoints + _pair(1.0, height / width, keypoints)) * (width / 2)


def _pair(first: float, second: float, like: _Values) -> _Values:
    """In the precision of ``like``, but never whole numbers: the second is a ratio of sides."""
    if isinstance(like, Tensor):
        dtype = like.dtype if like.is_floating_point() else torch.get_default_dtype()
        return torch.tensor([first, second], dtype=dtype, device=like.device)
    kind = like.dtype if np.issubdtype(like.dtype, np.floating) else np.float64
    return np.array([first, second], dtype=kind)


def check_image_size(image_size: Any) -> tuple[int, int]:
    """Width and height as whole numbers of pixels.

    Raises
    ------
    StructDiffError
        If they are not two positive whole numbers.
    """
    try:
        size = [float(v) for v in image_size]
    except TypeError:
        size = []
    if len(size) != 2 or not all(v >= 1 and v.is_integer() for v in size):
        raise StructDiffError(
            f"image_size must be the width and height in pixels, got {image_size!r}"
        )
    return int(size[0]), int(size[1])


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
        """Pixels (..., 2) in normalised coordinates: see :func:`normalise`."""
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
        """Pixels (..., 2) of points (..., 3) in camera axes, in float64: see :func:`project`.

        NaN for points that are not in front of the camera.
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
        rays, lost = _undistort(seen, torch.as_tensor(self.intrinsics), self.distortion)
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
