r"""Where a root-relative pose stands in front of a camera.

With undistorted rays :math:`(x_j, y_j)` the root :math:`t` satisfies, for every joint,

.. math:: X_j + t_x = x_j\,(Z_j + t_z), \qquad Y_j + t_y = y_j\,(Z_j + t_z),

which is linear in three unknowns: weighted least squares has a closed form. Detected joints are
noisy and some lie far off, so :func:`robust_root` goes on from there to the smallest reprojection
error, with Huber's weights.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import conv1d

from structdiff.errors import StructDiffError
from structdiff.pose.cameras import Camera

Array = npt.NDArray[np.floating]
_SPREAD = 1e-10
"""Smallest mean square of rays about their mean that tells a depth: 0.01 px at usual lenses."""
_HUBER = 1.345
"""Residuals beyond so many standard deviations count less (Huber's usual constant)."""
_MEDIAN_LENGTH = math.sqrt(2 * math.log(2))
"""Median length of a 2D normal vector, in standard deviations of a coordinate."""


class NoRootError(StructDiffError):
    """No frame of a clip tells where its person stands."""


def least_squares_root(pose: Tensor, rays: Tensor, weights: Tensor | None = None) -> Tensor:
    """Root position by weighted linear least squares, differentiable in pose, rays and weights.

    Parameters
    ----------
    pose
        Root-relative joints in camera axes (..., J, 3).
    rays
        Undistorted rays of the joints (..., J, 2), as :meth:`Camera.rays` gives; missing ones (NaN)
        do not count.
    weights
        How far a joint counts (..., J), not negative; None counts all alike.

    Returns
    -------
    Tensor
        (..., 3) in the unit of the pose, solved in float64. NaN, with a gradient of 0, where no two
        rays that differ have weight: they tell no depth.

    Raises
    ------
    StructDiffError
        If shapes do not fit or a weight is negative or no number.
    """
    rest, at, share = _prepare(pose, rays, weights)
    return _linear(rest, at, share).to(pose.dtype)


def robust_root(
    pose: Tensor, rays: Tensor, weights: Tensor | None = None, *, steps: int = 5
) -> Tensor:
    """Root position of the smallest reprojection error, far-off joints counting less.

    Gauss-Newton steps on the reprojection from the linear solution on; a joint counts by Huber's
    function of its residual, whose scale is the frame's median residual (and is a constant to the
    gradient).

    Parameters
    ----------
    pose, rays, weights
        As for :func:`least_squares_root`.
    steps
        Number of steps.

    Returns
    -------
    Tensor
        (..., 3); NaN where the linear solution is, or where a joint with weight comes to lie behind
        the camera.

    Raises
    ------
    StructDiffError
        As :func:`least_squares_root`.
    """
    rest, at, share = _prepare(pose, rays, weights)
    root = _linear(rest, at, share)
    fine = torch.isfinite(root).all(-1, keepdim=True)
    root = torch.where(fine, root, 0.0)
    for _ in range(steps):
        placed = rest + root[..., None, :]
        depth = placed[..., 2:]
        fine = fine & ((depth > 0) | (share[..., None] == 0)).all(-2)
        depth = torch.where(depth > 0, depth, 1.0)
        seen = placed[..., :2] / depth
        missed = seen - at
        weight = share * _huber(missed.detach(), share) / depth[..., 0].square()
        root = torch.where(fine, root + _fit(seen, -missed * depth, weight), root)
    return torch.where(fine & torch.isfinite(root), root, torch.nan).to(pose.dtype)


def root_trajectory(
    pose: Array,
    keypoints: Array,
    camera: Camera,
    confidence: Array | None = None,
    *,
    robust: bool = True,
    smooth: float = 0.0,
) -> Array:
    """Where root-relative poses of a clip stand in front of a camera.

    Parameters
    ----------
    pose
        Root-relative joints in camera axes, metres (..., T, J, 3): one pose per frame, or several
        hypotheses.
    keypoints
        2D joints in pixels (T, J, 2); missing ones NaN or of confidence 0.
    camera
        That saw them.
    confidence
        Of the keypoints (T, J), their weight; None counts all alike.
    robust
        Smallest reprojection error with Huber's weights, or plain linear least squares.
    smooth
        Frames to smooth the depth over: see :func:`smooth_depth`.

    Returns
    -------
    Array
        Metres (..., T, 3); frames that tell no root are filled in from those around.

    Raises
    ------
    StructDiffError
        If shapes do not fit, no frame tells a root, or a keypoint has no ray.
    """
    rays, weights = rays_and_weights(keypoints, camera, confidence)
    solve = robust_root if robust else least_squares_root
    found = solve(torch.as_tensor(np.asarray(pose)), rays, weights)
    return smooth_depth(found, smooth).numpy()


def rays_and_weights(
    keypoints: Array, camera: Camera, confidence: Array | None = None
) -> tuple[Tensor, Tensor]:
    """Rays (T, J, 2) and weights (T, J) of keypoints in pixels: missing ones have weight 0.

    Raises
    ------
    StructDiffError
        If the confidence does not fit or is negative, or a keypoint that counts has no ray.
    """
    keypoints = np.asarray(keypoints, dtype=np.float64)
    weights = np.ones(keypoints.shape[:-1]) if confidence is None else np.asarray(confidence)
    if weights.shape != keypoints.shape[:-1] or not (weights >= 0).all():
        raise StructDiffError(
            f"confidence must be 0 or more and have one value per keypoint, "
            f"{keypoints.shape[:-1]}, got shape {weights.shape}"
        )
    counts = np.isfinite(keypoints).all(-1) & (weights > 0)
    rays = camera.rays(np.where(counts[..., None], keypoints, np.nan))
    return torch.as_tensor(rays), torch.as_tensor(np.where(counts, weights, 0.0))


def smooth_depth(root: Tensor, frames: float) -> Tensor:
    """Root trajectories with smooth depths, every root staying on its ray.

    Depth is what a single frame tells least of the root, with an error many times that across the
    ray. Its logarithm is fitted by lines with Gaussian weights around every frame (local linear
    regression, which a steady walk towards the camera leaves as it is).

    Parameters
    ----------
    root
        In camera axes (..., T, 3), NaN where unknown: filled in from the frames around.
    frames
        Standard deviation of the weights, in frames; 0 only fills in.

    Raises
    ------
    StructDiffError
        If ``frames`` is negative or a trajectory has no known root.
    """
    if not frames >= 0:
        raise StructDiffError(f"frames must be 0 or more, got {frames!r}")
    root, kind = fill_gaps(root).double(), root.dtype
    if frames == 0:
        return root.to(kind)
    length = root.shape[-2]
    reach = min(int(4 * frames) + 1, length - 1)
    offset = torch.arange(-reach, reach + 1, dtype=root.dtype, device=root.device)
    kernel = torch.exp(-0.5 * (offset / frames).square())
    moments = torch.stack([kernel, kernel * offset, kernel * offset.square()])[:, None]
    depth = root[..., 2].log()
    flat = depth.reshape(-1, 1, length)
    s0, s1, s2 = conv1d(torch.ones_like(flat), moments, padding=reach).unbind(1)
    d0, d1, _ = conv1d(flat, moments, padding=reach).unbind(1)
    determinant = s0 * s2 - s1 * s1  # 0 with a single frame only, whose line is its value
    line = torch.where(
        determinant > 0, (s2 * d0 - s1 * d1) / determinant.clamp_min(1e-300), flat[:, 0]
    )
    return (root * (line.reshape(depth.shape) - depth).exp()[..., None]).to(kind)


def fill_gaps(root: Tensor) -> Tensor:
    """Unknown (NaN) roots of trajectories (..., T, 3): linear in time, constant at the ends.

    Raises
    ------
    NoRootError
        If a trajectory has no known root.
    """
    known = torch.isfinite(root).all(-1)
    if known.all():
        return root
    if not known.any(-1).all():
        raise NoRootError(
            "a clip has no frame whose keypoints tell a root: give keypoints with confidence "
            "above 0, at least two per frame; where they are there, its poses are not those of a "
            "person who is seen so"
        )
    time = torch.arange(root.shape[-2], device=root.device).expand(known.shape)
    last = root.shape[-2]
    before = torch.where(known, time, -1).cummax(-1).values
    after = torch.where(known, time, last).flip(-1).cummin(-1).values.flip(-1)
    left = torch.where(before < 0, after, before)
    right = torch.where(after == last, before, after)
    share = (time - left).to(root.dtype) / (right - left).clamp_min(1).to(root.dtype)
    values = torch.where(known[..., None], root, 0.0)
    start, end = (values.gather(-2, i[..., None].expand_as(root)) for i in (left, right))
    return torch.where(known[..., None], values, start + share[..., None] * (end - start))


def _prepare(pose: Tensor, rays: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Pose, rays and weights in float64, of one shape; what is missing has weight 0."""
    if weights is None:
        weights = rays.new_ones(rays.shape[:-1])
    if (pose.shape[-1:], rays.shape[-1:]) != ((3,), (2,)) or not (
        pose.shape[-2:-1] == rays.shape[-2:-1] == weights.shape[-1:]
    ):
        raise StructDiffError(
            "expected poses (..., J, 3), rays (..., J, 2) and weights (..., J), got "
            f"{tuple(pose.shape)}, {tuple(rays.shape)} and {tuple(weights.shape)}"
        )
    if not (weights >= 0).all():
        raise StructDiffError("weights must be 0 or more, and numbers")
    shape = torch.broadcast_shapes(pose.shape[:-1], rays.shape[:-1], weights.shape)
    counts = torch.isfinite(rays).all(-1) & (weights > 0)
    share = torch.where(counts, weights, 0.0).double().expand(shape)
    at = torch.where(counts[..., None], rays, 0.0).double().expand(*shape, 2)
    return pose.double().expand(*shape, 3), at, share


def _linear(pose: Tensor, rays: Tensor, weights: Tensor) -> Tensor:
    return _fit(rays, rays * pose[..., 2:] - pose[..., :2], weights)


def _fit(slopes: Tensor, values: Tensor, weights: Tensor) -> Tensor:
    """The t that minimises sum_j w_j |t_xy - slopes_j t_z - values_j|^2, (..., 3).

    The normal equations, solved about the weighted means: what is left is one unknown.
    """
    total = weights.sum(-1, keepdim=True)
    some = total > 0
    share = (weights / torch.where(some, total, 1.0))[..., None]
    slope, value = ((share * v).sum(-2, keepdim=True) for v in (slopes, values))
    centred = slopes - slope
    spread = (share * centred.square()).sum((-2, -1))[..., None]
    tells = some & (spread > _SPREAD)
    product = (share * centred * (values - value)).sum((-2, -1))[..., None]
    depth = -product / torch.where(tells, spread, 1.0)
    found = torch.cat((value[..., 0, :] + slope[..., 0, :] * depth, depth), -1)
    return torch.where(tells, found, torch.nan)


def _huber(missed: Tensor, weights: Tensor) -> Tensor:
    """Huber's weights (..., J) of residuals (..., J, 2), by the median of those that count."""
    size = missed.square().sum(-1).sqrt()
    scale = torch.where(weights > 0, size, torch.nan).nanmedian(-1, keepdim=True).values
    bound = _HUBER * scale.nan_to_num() / _MEDIAN_LENGTH
    return torch.where(size > bound, bound / size.clamp_min(1e-12), 1.0).clamp_min(1e-6)
