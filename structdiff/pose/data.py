"""Clips of one person seen by one camera: what readers give, what training and evaluation take.

Everywhere in this package 2D joints are pixels with the origin at the top left and y down, 3D
joints are metres, camera axes are x right, y down, z forward, and world axes have z up. Readers
turn what a file holds into that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from structdiff.errors import StructDiffError
from structdiff.pose.cameras import Camera
from structdiff.pose.skeletons import H36M_17, Skeleton

Array = npt.NDArray[np.floating]
Axes = Literal["camera", "world"]


@dataclass(frozen=True)
class PoseClip:
    """One person, one camera, T frames.

    Parameters
    ----------
    name
        Of the record, for messages and tables.
    keypoints
        2D joints in pixels (T, J, 2), or None.
    poses
        3D joints in metres (T, J, 3), or None.
    axes
        Whether ``poses`` are in the camera's axes or the world's.
    confidence
        Of the 2D joints (T, J), or None.
    camera
        That took the clip, or None.
    image_size
        Width and height in pixels; the camera's where it has one.
    fps
        Frames per second, or None.
    subject, action
        Who does what; empty where unknown.
    valid
        Frames that count in an evaluation, bool (T,); None is all.

    Raises
    ------
    StructDiffError
        If the arrays do not fit one another.
    """

    name: str
    keypoints: Array | None = None
    poses: Array | None = None
    axes: Axes = "camera"
    confidence: Array | None = None
    camera: Camera | None = None
    image_size: tuple[int, int] | None = None
    fps: float | None = None
    subject: str = ""
    action: str = ""
    valid: npt.NDArray[np.bool_] | None = None

    def __post_init__(self) -> None:
        if self.image_size is None and self.camera is not None:
            object.__setattr__(self, "image_size", self.camera.image_size)
        for what, last in (("keypoints", 2), ("poses", 3)):
            value = getattr(self, what)
            if value is not None and (value.ndim != 3 or value.shape[2] != last):
                raise StructDiffError(
                    f"{what} of clip {self.name!r} must have shape (T, J, {last}), "
                    f"got {value.shape}"
                )
        given = {
            what: len(value)
            for what in ("keypoints", "poses", "confidence", "valid")
            if (value := getattr(self, what)) is not None
        }
        if len(set(given.values())) > 1:
            raise StructDiffError(
                f"the parts of clip {self.name!r} have different numbers of frames: {given}"
            )
        if not given:
            raise StructDiffError(f"clip {self.name!r} holds neither keypoints nor poses")

    def __len__(self) -> int:
        value = self.keypoints if self.keypoints is not None else self.poses
        return 0 if value is None else len(value)

    def in_camera(self) -> Array:
        """The 3D joints in the camera's axes, metres (T, J, 3).

        Raises
        ------
        StructDiffError
            If there are none, or they are in world axes and there is no camera.
        """
        if self.poses is None:
            raise StructDiffError(f"clip {self.name!r} has no 3D poses")
        if self.axes == "camera":
            return self.poses
        if self.camera is None:
            raise StructDiffError(
                f"the poses of clip {self.name!r} are in world axes: give the camera that sees them"
            )
        return self.camera.to_camera(self.poses)


@dataclass(frozen=True)
class PoseDataset(Sequence[PoseClip]):
    """Clips on one skeleton.

    Parameters
    ----------
    clips
        In the order of the file.
    skeleton
        Of all of them.
    notes
        What a reader had to do or leave out, one sentence each.

    Raises
    ------
    StructDiffError
        If a clip has another number of joints than the skeleton.
    """

    clips: tuple[PoseClip, ...]
    skeleton: Skeleton = H36M_17
    notes: tuple[str, ...] = field(default=())

    def __post_init__(self) -> None:
        object.__setattr__(self, "clips", tuple(self.clips))
        for clip in self.clips:
            for what in ("keypoints", "poses"):
                value = getattr(clip, what)
                if value is not None and value.shape[1] != len(self.skeleton):
                    raise StructDiffError(
                        f"{what} of clip {clip.name!r} have {value.shape[1]} joints, skeleton "
                        f"{self.skeleton.name} has {len(self.skeleton)}"
                    )

    def __len__(self) -> int:
        return len(self.clips)

    def __iter__(self) -> Iterator[PoseClip]:
        return iter(self.clips)

    def __getitem__(self, index: Any) -> Any:
        """A clip by its number or name, or the clips of a slice."""
        if isinstance(index, str):
            found = [c for c in self.clips if c.name == index]
            if not found:
                raise StructDiffError(f"there is no clip {index!r} among {len(self)} clips")
            return found[0]
        chosen = self.clips[index]
        return replace(self, clips=chosen) if isinstance(index, slice) else chosen

    def select(self, keep: Callable[[PoseClip], bool]) -> PoseDataset:
        """The clips that a condition holds for."""
        return replace(self, clips=tuple(c for c in self.clips if keep(c)))

    @property
    def frames(self) -> int:
        """Number of frames in all clips together."""
        return sum(len(c) for c in self.clips)


def load_cmu17(split: str = "test", *, detected: bool = False) -> PoseDataset:
    """CMU17: real motion capture on Human3.6M's 17 joints, seen by four synthetic cameras.

    Every clip comes once per camera, named ``walking_01/0`` to ``walking_01/3``, at 30 frames/s,
    with its 3D joints in world axes.

    Parameters
    ----------
    split
        ``"train"`` (68 motions, 11,486 frames) or ``"test"`` (26 motions, 5,264 frames).
    detected
        2D with simulated detector noise instead of the exact projection.

    Raises
    ------
    StructDiffError
        If the split is unknown or the files are not on this machine.
    """
    from structdiff.datasets import path

    if split not in ("train", "test"):
        raise StructDiffError(f"CMU17 has the splits train and test, not {split!r}")
    flat = path("cmu17", "2d_det" if detected else "2d_gt")
    with np.load(path("cmu17", "2d_gt")) as calibrated:  # of both kinds
        cameras = _cmu17_cameras(calibrated)
    with np.load(path("cmu17", "3d")) as space, np.load(flat) as plane:
        fps = float(space["meta/fps"])
        names = [str(k) for k in space["meta/clips"] if str(k).startswith(f"{split}/")]
        clips = [
            clip
            for name in names
            for clip in _views(name.split("/")[1], space[name], plane[name], cameras, fps)
        ]
    return PoseDataset(tuple(clips), H36M_17)


def load_cmu17_demo(*, detected: bool = False) -> PoseDataset:
    """Two motions of CMU17's test split, 3 s each, that come with the package.

    Clips ``walking_01/0`` to ``jumping_01/3``, as :func:`load_cmu17` gives them.

    Parameters
    ----------
    detected
        2D with simulated detector noise instead of the exact projection.
    """
    from structdiff.datasets import path

    with np.load(path("cmu17_demo")) as file:
        cameras, fps = _cmu17_cameras(file), float(file["fps"])
        parts = zip(
            file["name"],
            file["poses"],
            file["keypoints_det" if detected else "keypoints_gt"],
            strict=True,
        )
        clips = [
            clip
            for name, poses, views in parts
            for clip in _views(str(name), poses, views, cameras, fps)
        ]
    return PoseDataset(tuple(clips), H36M_17)


def _views(
    name: str, poses: Array, views: Array, cameras: Sequence[Camera], fps: float
) -> list[PoseClip]:
    """A motion (T, J, 3) as each of the cameras sees it, (C, T, J, 2)."""
    return [
        PoseClip(
            name=f"{name}/{view}",
            keypoints=seen,
            poses=poses,
            axes="world",
            camera=camera,
            fps=fps,
            action=name.rpartition("_")[0],
        )
        for view, (seen, camera) in enumerate(zip(views, cameras, strict=True))
    ]


def _cmu17_cameras(file: Any) -> list[Camera]:
    parts = ("f", "c", "k", "p", "R_world_to_cam", "position", "res_wh")
    values = [file[f"cam/{part}"] for part in parts]
    return [
        Camera(
            focal=f,
            centre=c,
            radial=k,
            tangential=p,
            rotation=r,
            position=x,
            image_size=(int(size[0]), int(size[1])),
        )
        for f, c, k, p, r, x, size in zip(*values, strict=True)
    ]
