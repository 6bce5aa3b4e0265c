"""Windows of clips: what a network is trained on, and how a clip of any length is lifted by one.

Networks see 2D joints normalised by the image's width
(:func:`structdiff.pose.lenses.normalise`). A calibrated camera's joints are first undistorted and
brought to the pinhole that the model was trained behind, so that another lens is no other world.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from structdiff.errors import StructDiffError
from structdiff.pose.cameras import Camera
from structdiff.pose.data import PoseClip, PoseDataset
from structdiff.pose.lenses import normalise

Array = npt.NDArray[np.floating]


def common_view(clips: Sequence[PoseClip]) -> list[float] | None:
    """The mean normalised pinhole [fx, fy, cx, cy] of the clips' cameras; None if one has none.

    Raises
    ------
    StructDiffError
        If the size of a camera's image is unknown.
    """
    pinholes = {}
    for clip in clips:
        camera = clip.camera
        if camera is None:
            return None
        if camera.image_size is None:
            if clip.image_size is None:
                raise StructDiffError(
                    f"the camera of clip {clip.name!r} has no image_size: give its width and height"
                )
            camera = replace(camera, image_size=clip.image_size)
        pinholes[id(clip.camera), camera.image_size] = camera.normalised_intrinsics[:4]
    return [float(v) for v in np.mean(list(pinholes.values()), axis=0)]


def normalised(
    keypoints: Array,
    image_size: tuple[int, int] | None,
    camera: Camera | None,
    view: Sequence[float] | None,
) -> Array:
    """Pixels (T, J, 2) as the network sees them.

    Parameters
    ----------
    keypoints
        In pixels.
    image_size
        Width and height; may be None with a camera and a view.
    camera, view
        Where both are there, joints are seen through the view's pinhole instead.

    Raises
    ------
    StructDiffError
        If neither image size nor camera is known.
    """
    if camera is not None and view is not None:
        focal, centre = np.asarray(view[:2]), np.asarray(view[2:])
        through: Array = camera.rays(keypoints) * focal + centre
        return through
    size = image_size if image_size is not None else (camera.image_size if camera else None)
    if size is None:
        raise StructDiffError(
            "keypoints in pixels need the size of their image: give image_size=(width, height), "
            "or the camera"
        )
    return normalise(keypoints, size)


def filled(keypoints: Array, name: str) -> tuple[Array, npt.NDArray[np.bool_]]:
    """Missing joints (NaN) interpolated over time, and which were there, (T, J).

    Raises
    ------
    StructDiffError
        If a joint is missing in every frame.
    """
    present = np.asarray(np.isfinite(keypoints).all(-1))
    if present.all():
        return keypoints, present
    never = ~present.any(0)
    if never.any():
        raise StructDiffError(
            f"joint number {int(np.argmax(never))} of {name} is missing in every frame: lifting "
            "needs to see each joint at least once"
        )
    whole, frames = np.array(keypoints), np.arange(len(keypoints))
    for joint in np.flatnonzero(~present.all(0)):
        seen = present[:, joint]
        for axis in range(2):
            values = keypoints[seen, joint, axis]
            whole[:, joint, axis] = np.interp(frames, frames[seen], values)
    return whole, present


def network_input(clip: PoseClip, view: Sequence[float] | None) -> Array:
    """The 2D joints of a clip as the network sees them (T, J, 2), missing ones filled in.

    Parameters
    ----------
    clip
        With keypoints in pixels.
    view
        See :func:`normalised`.

    Raises
    ------
    StructDiffError
        If the clip has no keypoints, one that is never seen or has no ray, or nothing says how
        large its image is.
    """
    name = f"clip {clip.name!r}"
    if clip.keypoints is None:
        raise StructDiffError(f"{name} has no 2D keypoints")
    seen, _ = filled(clip.keypoints, name)
    try:
        return normalised(seen, clip.image_size, clip.camera, view)
    except StructDiffError as error:
        raise StructDiffError(f"{name}: {error}") from error


class Cuts:
    """Where windows of N frames lie in a clip of T frames, and how their answers become one.

    Consecutive windows share ``overlap`` frames, over which one fades into the other; the last one
    is moved back to end with the clip, and a clip shorter than a window is padded with its last
    frame. Every frame's weights add up to 1.

    Parameters
    ----------
    length
        T.
    frames
        N.
    overlap
        Frames that neighbours share, below N.
    """

    def __init__(self, length: int, frames: int, overlap: int = 0) -> None:
        self.length, self.frames = length, frames
        step = frames - overlap
        starts = list(range(0, max(length - frames, 0) + 1, step))
        if starts[-1] + frames < length:
            starts.append(length - frames)
        at = torch.tensor(starts)[:, None] + torch.arange(frames)
        self.numbers = at
        """Number of every window's frames in the clip, (M, N); beyond it in padding."""
        self.index = at.clamp(max=length - 1)
        self._weights = self._faded(overlap)

    def _faded(self, overlap: int) -> Tensor:
        """Weight of every window's frames (M, N), 0 in padding."""
        edge = (torch.arange(self.frames, dtype=torch.float64) + 0.5) / max(overlap, 1)
        ramp = torch.minimum(edge, edge.flip(0)).clamp(max=1.0)
        if not overlap:
            # Without a fade a frame belongs to the first window that has it.
            ramp = torch.ones(self.frames, dtype=torch.float64)
        weights = torch.where(self.numbers < self.length, ramp, 0.0)
        if not overlap:
            taken = torch.cat((torch.zeros(1), self.numbers[:-1, -1] + 1))
            weights = torch.where(self.numbers >= taken[:, None], weights, 0.0)
        total = torch.zeros(self.length, dtype=torch.float64)
        total.index_add_(0, self.index.flatten(), weights.flatten())
        return weights / total[self.index]

    def cut(self, values: Tensor) -> Tensor:
        """Windows (M, N, ...) of a clip (T, ...)."""
        return values[self.index]

    def join(self, windows: Tensor) -> Tensor:
        """One answer (..., T, J, D) from those of the windows (..., M, N, J, D)."""
        weights = self._weights.to(windows)[..., None, None]
        shape = (*windows.shape[:-4], self.length, *windows.shape[-2:])
        joined = windows.new_zeros(shape)
        flat = (windows * weights).flatten(-4, -3)
        return joined.index_add_(-3, self.index.flatten().to(windows.device), flat)


class TrainingFrames:
    """All frames of a training set, normalised, and the windows around each of them.

    Parameters
    ----------
    data
        Clips with 2D and 3D joints.
    frames
        N of a window; it is padded at the ends of a clip with the first and last frame.
    view
        See :func:`normalised`.
    published
        Windows as DDHPose cuts them: ``ceil(T / N)`` chunks per clip, centred, instead of one
        around every frame.

    Raises
    ------
    StructDiffError
        If a clip lacks 2D or 3D joints, or a 3D one is not finite.
    """

    def __init__(
        self, data: PoseDataset, frames: int, view: Sequence[float] | None, published: bool = False
    ) -> None:
        keypoints, joints, lengths = [], [], []
        for clip in data:
            if clip.keypoints is None or clip.poses is None:
                lacking = "2D keypoints" if clip.keypoints is None else "3D poses"
                raise StructDiffError(f"clip {clip.name!r} has no {lacking}: training needs both")
            keypoints.append(network_input(clip, view))
            pose = clip.in_camera()
            broken = ~np.isfinite(pose).all((1, 2))
            if broken.any():
                raise StructDiffError(
                    f"the 3D poses of clip {clip.name!r} hold joints that are not finite, first in "
                    f"frame {int(np.argmax(broken))}: leave such frames out, training needs every "
                    "joint"
                )
            root = data.skeleton.root
            joints.append(pose - pose[:, root : root + 1])
            lengths.append(len(clip))
        self.keypoints = torch.from_numpy(np.concatenate(keypoints)).float()
        self.joints = torch.from_numpy(np.concatenate(joints)).float()
        self.frames = frames
        ends = torch.tensor(lengths).cumsum(0)
        self._first = torch.repeat_interleave(ends - torch.tensor(lengths), torch.tensor(lengths))
        self._last = torch.repeat_interleave(ends - 1, torch.tensor(lengths))
        if published:
            self.starts, clip_of = _chunks(lengths, frames)
            self.starts += (ends - torch.tensor(lengths))[clip_of]
            self._anchor = (ends - 1)[clip_of]
        else:
            self.starts = torch.arange(int(ends[-1])) - frames // 2
            self._anchor = torch.arange(int(ends[-1]))

    def __len__(self) -> int:
        return len(self.starts)

    def frame_numbers(self, rows: Tensor) -> Tensor:
        """Where the frames of windows lie in the training set, (B, N)."""
        at = self.starts[rows, None] + torch.arange(self.frames)
        clip = self._anchor[rows, None]
        return torch.minimum(torch.maximum(at, self._first[clip]), self._last[clip])

    def batch(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised 2D (B, N, J, 2) and root-relative 3D joints (B, N, J, 3) of windows."""
        at = self.frame_numbers(rows)
        return self.keypoints[at], self.joints[at]


def _chunks(lengths: Sequence[int], frames: int) -> tuple[Tensor, Tensor]:
    """Starts within their clip of ``ceil(T / N)`` chunks each, and the clip of every chunk."""
    starts, clips = [], []
    for number, length in enumerate(lengths):
        count = -(-length // frames)
        offset = (count * frames - length) // 2
        starts += [k * frames - offset for k in range(count)]
        clips += [number] * count
    return torch.tensor(starts), torch.tensor(clips)
