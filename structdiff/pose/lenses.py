r"""Lenses: the pixel of a ray, the ray of a pixel, and pixels in units of the image's width.

With camera axes x right, y down, z forward and :math:`(x, y) = (X, Y) / Z`,
:math:`r^2 = x^2 + y^2`,

.. math:: \begin{aligned} R &= 1 + k_1 r^2 + k_2 r^4 + k_3 r^6, \\
          u &= f_x\,(x\,(R + p_1 x + p_2 y) + p_1 r^2) + c_x, \\
          v &= f_y\,(y\,(R + p_1 x + p_2 y) + p_2 r^2) + c_y, \end{aligned}

the form of Human3.6M's calibration. OpenCV's differs in the tangential term,

.. math:: \begin{aligned} u &= f_x\,(x R + 2 p_1 x y + p_2 (r^2 + 2 x^2)) + c_x, \\
          v &= f_y\,(y R + p_1 (r^2 + 2 y^2) + 2 p_2 x y) + c_y, \end{aligned}

so the same p1, p2 mean other lenses: ``distortion`` says which form they are for.
"""

from __future__ import annotations

from typing import Any, Literal, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from structdiff.errors import StructDiffError

Array = npt.NDArray[np.floating]
Distortion = Literal["h36m", "opencv"]
_Values = TypeVar("_Values", Array, Tensor)

_ITERATIONS, _TOLERANCE = 50, 1e-10


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


def undistort(seen: Tensor, intrinsics: Tensor, distortion: Distortion) -> tuple[Tensor, Tensor]:
    """Inverse of the lens, by Newton's method.

    Parameters
    ----------
    seen
        Where the distorted rays meet the plane at depth 1, (..., 2): pixels less the centre, by the
        focal lengths; NaN is missing.
    intrinsics
        Of one lens, as for :func:`project` (9,).
    distortion
        Form of the tangential term.

    Returns
    -------
    Tensor
        Rays x, y that the lens sends there (..., 2); NaN where ``seen`` is.
    Tensor
        Where there is no such ray (...).
    """
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


def check_image_size(image_size: Any) -> tuple[int, int]:
    """Width and height as whole numbers of pixels.

    Raises
    ------
    StructDiffError
        If they are not two positive whole numbers.
    """
    try:
        size = [float(v) for v in image_size]
    except (TypeError, ValueError):
        size = []
    if len(size) != 2 or not all(v >= 1 and v.is_integer() for v in size):
        raise StructDiffError(
            f"image_size must be the width and height in pixels, got {image_size!r}"
        )
    return int(size[0]), int(size[1])


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


def _pair(first: float, second: float, like: _Values) -> _Values:
    """In the precision of ``like``, but never whole numbers: the second is a ratio of sides."""
    if isinstance(like, Tensor):
        dtype = like.dtype if like.is_floating_point() else torch.get_default_dtype()
        return torch.tensor([first, second], dtype=dtype, device=like.device)
    kind = like.dtype if np.issubdtype(like.dtype, np.floating) else np.float64
    return np.array([first, second], dtype=kind)
