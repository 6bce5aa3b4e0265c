"""A lifted clip: hypotheses, the pose they add up to, and where it stands."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from structdiff.errors import StructDiffError
from structdiff.pose.aggregation import aggregate
from structdiff.pose.cameras import Camera
from structdiff.pose.data import PoseClip
from structdiff.pose.kinematics import constant_bones
from structdiff.pose.roots import NoRootError
from structdiff.pose.skeletons import Skeleton
from structdiff.pose.spread import spread_of

Array = npt.NDArray[np.floating]
_WITHOUT_ROOT = ("p-agg", "median")
"""Ways to one pose that need no keypoints."""
_SMOOTHED = 5.0
"""Frames that the depth of a trajectory is smoothed over."""


@dataclass(frozen=True, eq=False)
class Lifted:
    """3D poses of one clip, in metres and camera axes (x right, y down, z forward).

    Parameters
    ----------
    mean
        The aggregated pose, relative to its root (T, J, 3).
    hypotheses
        What the model takes for possible, relative to their roots (H, T, J, 3).
    std
        Calibrated standard deviation of every coordinate (T, J, 3); 0 with one hypothesis.
    clip
        The 2D clip that was lifted.
    skeleton
        Of the joints.
    method
        How the hypotheses became one pose, and with which root.
    root
        Where the root stands in camera axes (T, 3); None where neither camera nor image size is
        known, or no frame tells (a warning then says so).
    camera_assumed
        Whether ``root`` rests on a guessed camera: its depth is then a guess too.
    """

    mean: Array
    hypotheses: Array
    std: Array
    clip: PoseClip
    skeleton: Skeleton
    method: str
    root: Array | None = None
    camera_assumed: bool = False

    def __len__(self) -> int:
        return len(self.mean)

    @property
    def camera(self) -> Camera | None:
        """That took the clip, if it is known."""
        return self.clip.camera

    @property
    def absolute(self) -> Array:
        """The mean pose with its trajectory, camera axes (T, J, 3).

        Raises
        ------
        StructDiffError
            If there is no root.
        """
        if self.root is None:
            raise StructDiffError(
                "this clip has no trajectory: predict with camera= (or image_size=)"
            )
        return self.mean + self.root[:, None]

    @property
    def world(self) -> Array:
        """The mean pose with its trajectory in world axes, z up (T, J, 3).

        Raises
        ------
        StructDiffError
            If no camera was given.
        """
        if self.camera is None:
            raise StructDiffError(
                "world coordinates need to know where the camera stands: predict with camera="
            )
        return self.camera.to_world(self.absolute)

    def interval(self, level: float = 0.8) -> tuple[Array, Array]:
        """Central interval of every coordinate of the mean, each (T, J, 3).

        By Student's t with H - 1 degrees of freedom: of a few hypotheses the standard deviation is
        itself uncertain.

        Raises
        ------
        StructDiffError
            If the level is not between 0 and 1, or there is only one hypothesis.
        """
        if not 0 < level < 1:
            raise StructDiffError(f"the level of an interval lies between 0 and 1, got {level}")
        if len(self.hypotheses) < 2:
            raise StructDiffError("one hypothesis has no spread: predict with n_hypotheses >= 2")
        from scipy.stats import t

        reach = float(t.ppf((1 + level) / 2, len(self.hypotheses) - 1)) * self.std
        return self.mean - reach, self.mean + reach

    def save(self, path: str | Path) -> Path:
        """Write poses, hypotheses, root and what they mean to a plain npz file."""
        from structdiff.pose.readers import write_poses

        return write_poses(path, self)

    def plot(self, frame: int = 0, ax: Any = None, **options: Any) -> Any:
        """The pose of one frame with its hypotheses; returns Axes3D.

        Options are those of :func:`structdiff.pose.plots.plot_pose`.
        """
        from structdiff.pose.plots import plot_pose

        some = self.hypotheses[:, frame] if len(self.hypotheses) > 1 else None
        chosen = {"hypotheses": some, "skeleton": self.skeleton, **options}
        return plot_pose(self.mean[frame], ax=ax, **chosen)

    def animate(self, out: str | Path, **options: Any) -> Path:
        """Input, mean and spread side by side, as mp4 or gif.

        Options are those of :func:`structdiff.pose.animation.animate`.
        """
        from structdiff.pose.animation import animate

        chosen: dict[str, Any] = {
            "hypotheses": self.hypotheses if len(self.hypotheses) > 1 else None,
            "skeleton": self.skeleton,
            "fps": self.clip.fps or 30,
            "image_size": self.clip.image_size,
            **options,
        }
        return animate(self.clip.keypoints, self.mean, out=out, **chosen)


def lifted_clip(
    clip: PoseClip,
    drawn: Tensor,
    skeleton: Skeleton,
    *,
    method: str,
    temperature: float | None,
    bones: str,
) -> Lifted:
    """Aggregate hypotheses and put them in front of the camera.

    Parameters
    ----------
    clip
        The 2D clip; without a camera and an image size there is no trajectory.
    drawn
        Its hypotheses, root-relative metres (H, T, J, 3).
    skeleton
        Of the joints.
    method, temperature
        As for :func:`~structdiff.pose.aggregation.aggregate`.
    bones
        ``"constant"`` gives every bone one length for the whole clip, ``"free"`` does not.

    Raises
    ------
    StructDiffError
        If the method lacks keypoints, or needs a root that no frame tells.
    """
    if bones == "constant":
        drawn = constant_bones(drawn, skeleton)
    placed = clip.camera is not None or clip.image_size is not None
    seen: dict[str, Any] = {
        "camera": clip.camera,
        "image_size": clip.image_size,
        "confidence": clip.confidence,
        "smooth": _SMOOTHED,
    }
    how: dict[str, Any] = {"method": method, "temperature": temperature}
    try:
        result = aggregate(drawn.numpy(), clip.keypoints if placed else None, **how, **seen)
    except NoRootError as error:
        if method not in _WITHOUT_ROOT:
            raise StructDiffError(f"clip {clip.name!r}: {error}") from error
        # One clip without a place is no reason to lose the poses of all.
        warnings.warn(f"clip {clip.name!r} has no trajectory: {error}", stacklevel=2)
        result = aggregate(drawn.numpy(), **how)
    except StructDiffError as error:
        raise StructDiffError(f"clip {clip.name!r}: {error}") from error
    mean = result.pose
    if bones == "constant":
        mean = constant_bones(torch.from_numpy(mean), skeleton).numpy()
    return Lifted(
        mean=mean,
        hypotheses=drawn.numpy(),
        std=spread_of(drawn).numpy(),
        clip=clip,
        skeleton=skeleton,
        method=result.label,
        root=result.root,
        camera_assumed=result.camera_assumed,
    )
