r"""What stands where in a picture of poses: upright on the floor of a room that holds every frame.

A body is drawn in picture coordinates (x, depth, height), which are :math:`(X, Z, -Y)` of camera
axes and :math:`(X, Y, Z)` of world axes: both are rotations, so a left arm stays a left one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from structdiff.errors import StructDiffError
from structdiff.pose.data import Array, Axes
from structdiff.pose.skeletons import Skeleton

VIEWS: dict[Axes, tuple[float, float]] = {"camera": (12.0, -70.0), "world": (15.0, -60.0)}
"""Elevation and azimuth in degrees that poses are seen from, unless told otherwise."""


@dataclass(frozen=True)
class Staged:
    """A clip in picture coordinates: x, depth and height above the floor, all in metres.

    Parameters
    ----------
    poses, hypotheses, std, target
        (T, J, 3), (H, T, J, 3), (T, J, 3) and (T, J, 3).
    low, high
        Corners of the room that holds every frame, (3,).
    """

    poses: Array
    hypotheses: Array | None
    std: Array | None
    target: Array | None
    low: Array
    high: Array


def stage(
    poses: npt.ArrayLike,
    hypotheses: npt.ArrayLike | None,
    std: npt.ArrayLike | None,
    target: npt.ArrayLike | None,
    *,
    skeleton: Skeleton,
    axes: Axes,
    floor: float | None,
) -> Staged:
    """Check a clip (T, J, 3) and set it upright on its floor.

    Where a body lies is unknown if its root is the origin in every frame: each frame then stands
    on its own lowest joint.
    """
    if axes not in VIEWS:
        raise StructDiffError(f"axes must be 'camera' or 'world', got {axes!r}")
    mean = checked("poses", poses, (None, len(skeleton), 3))
    if (extent := float(np.median(np.ptp(mean, axis=1).max(axis=-1)))) > 10:
        raise StructDiffError(
            f"the bodies are {extent:.0f} m long: they look like millimetres; divide them by 1000"
        )
    relative = _is_relative(mean, skeleton)
    others = []
    for name, value, shape in (
        ("hypotheses", hypotheses, (None, *mean.shape)),
        ("target", target, mean.shape),
    ):
        given = None if value is None else checked(name, value, shape)
        if given is not None and _is_relative(given, skeleton) != relative:
            which = ("", " not") if relative else (" not", "")
            raise StructDiffError(
                f"the poses are{which[0]} relative to the root, {name}{which[1]}: give both alike"
            )
        others.append(None if given is None else _upright(given, axes))
    body, (many, true) = _upright(mean, axes), others
    ground = np.zeros((len(body), 1, 3))
    if floor is not None:
        ground[..., 2] = floor
    elif relative:
        ground[..., 2] = body[..., 2].min(axis=1, keepdims=True)
    elif axes == "camera":
        ground[..., 2] = body[..., 2].min()
    body, many, true = body - ground, *(None if v is None else v - ground for v in (many, true))
    shown = [v.reshape(-1, 3) for v in (body, many, true) if v is not None]
    low, high = _room(np.concatenate(shown), relative)
    size = None if std is None else np.abs(_upright(checked_std(std, mean), axes))
    return Staged(body, many, size, true, low, high)


def checked(
    name: str, value: npt.ArrayLike, shape: Sequence[int | None], *, finite: bool = True
) -> Array:
    """Numbers in this shape (None = any length); the first frame that holds none is named."""
    array = np.asarray(value)
    fits = len(array.shape) == len(shape) and all(
        got == want or (want is None and got > 0)
        for got, want in zip(array.shape, shape, strict=True)
    )
    if not fits:
        wanted = ", ".join("any" if n is None else str(n) for n in shape)
        raise StructDiffError(f"{name} must have the shape ({wanted}), got {array.shape}")
    array = array.astype(np.float64)
    if finite and len(bad := np.argwhere(~np.isfinite(array))):
        frame = f"frame {bad[0][len(shape) - 3]} of " if len(shape) > 2 else ""
        raise StructDiffError(
            f"{frame}{name} holds NaN or infinity; leave it out or interpolate it"
        )
    return array


def checked_std(std: npt.ArrayLike, poses: Array) -> Array:
    """Standard deviations (T, J) or (T, J, 3) as (T, J, 3)."""
    value = np.asarray(std)
    if value.ndim == poses.ndim - 1:
        value = np.repeat(value[..., None], 3, axis=-1)
    value = checked("std", value, poses.shape)
    if (value < 0).any():
        raise StructDiffError("std holds negative numbers: give standard deviations in metres")
    return value


def _is_relative(poses: Array, skeleton: Skeleton) -> bool:
    return bool(np.abs(poses[..., skeleton.root, :]).max() < 1e-6)


def _upright(points: Array, axes: Axes) -> Array:
    """Picture coordinates (x, depth, height above the axes' origin)."""
    return points if axes == "world" else points[..., [0, 2, 1]] * (1.0, 1.0, -1.0)


def _room(points: Array, relative: bool) -> tuple[Array, Array]:
    """Corners in quarters of a metre, about the root where that stays in its place."""
    low, high = points.min(axis=0), points.max(axis=0)
    if relative:
        reach = max(0.75, float(np.abs([low[:2], high[:2]]).max()))
        low[:2], high[:2] = -reach, reach
    else:
        thin = np.maximum(0.0, 1.0 - (high - low)[:2]) / 2
        low[:2], high[:2] = low[:2] - thin, high[:2] + thin
    # A hypothesis may reach a little through the floor, which stays the bottom of the room.
    low[2], high[2] = low[2] if low[2] < -0.25 else 0.0, max(high[2], 1.0)
    return np.floor(low * 4 + 1e-6) / 4, np.ceil(high * 4 - 1e-6) / 4
