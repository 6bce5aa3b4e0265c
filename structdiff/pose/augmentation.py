r"""Other views of the motions at hand: people turned about the vertical in front of the cameras.

.. math:: X' = R\,(R_z(\phi)\,X_{world} - c), \qquad u' = \pi(X') + (u - \pi(X))\,Z / Z'

A motion may face any way, whatever way it faced when it was recorded. What a detector adds to the
exact projection is kept, in proportion to the person's size in the image.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from structdiff.errors import StructDiffError
from structdiff.pose.data import PoseDataset
from structdiff.pose.windows import TrainingFrames

_NEAREST = 1.0
"""Metres: a person turned closer to the camera than this keeps the recorded view."""


class TurnedFrames(TrainingFrames):
    """Training windows of which a share is seen from another side.

    Parameters
    ----------
    data
        Clips with cameras, 2D and 3D joints.
    frames, view, published
        As for :class:`~structdiff.pose.windows.TrainingFrames`.
    share
        Of windows that are turned.

    Raises
    ------
    StructDiffError
        If a clip has no camera, or the share is none.
    """

    def __init__(
        self,
        data: PoseDataset,
        frames: int,
        view: Sequence[float] | None,
        published: bool = False,
        share: float = 0.5,
    ) -> None:
        super().__init__(data, frames, view, published)
        if not 0 <= share <= 1:
            raise StructDiffError(f"the share of turned windows must lie in [0, 1], got {share}")
        self.share = share
        world, where, facing, lens = [], [], [], []
        for clip in data:
            camera = clip.camera
            if camera is None or view is None:
                raise StructDiffError(
                    f"clip {clip.name!r} has no camera: other views need one (turn=0 does without)"
                )
            pose = clip.in_camera()
            world.append(camera.to_world(pose))
            where.append(camera.position)
            facing.append(np.asarray(camera.rotation))
            lens.append(view)
        self._clip = torch.repeat_interleave(
            torch.arange(len(data)), torch.tensor([len(c) for c in data])
        )
        self._world = torch.from_numpy(np.concatenate(world)).float()
        self._where = torch.from_numpy(np.stack(where)).float()
        self._facing = torch.from_numpy(np.stack(facing)).float()
        self._view = torch.tensor(lens[0])
        self._root = data.skeleton.root

    def turned(self, rows: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Windows as :meth:`batch` gives them, a share of them from another side."""
        keypoints, joints = self.batch(rows)
        at, clip = self.frame_numbers(rows), self._clip[self._anchor[rows]]
        angle = 2 * math.pi * torch.rand(len(rows), generator=generator)
        chosen = torch.rand(len(rows), generator=generator) < self.share
        facing, where = self._facing[clip], self._where[clip]
        recorded = self._world[at]
        before = _seen_by(recorded, facing, where)
        after = _seen_by(_turn(recorded, angle), facing, where)
        depth, other = (v[..., self._root, 2][..., None, None] for v in (before, after))
        chosen &= (after[..., 2] > _NEAREST).flatten(1).all(1)
        # A camera's lens is left out of both projections: it drops out of what a detector adds.
        added = (keypoints - self._project(before)) * (depth / other)
        keep = chosen[:, None, None, None]
        return (
            torch.where(keep, self._project(after) + added, keypoints),
            torch.where(keep, after - after[..., self._root, None, :], joints),
        )

    def _project(self, points: Tensor) -> Tensor:
        return points[..., :2] / points[..., 2:] * self._view[:2] + self._view[2:]


def _turn(points: Tensor, angle: Tensor) -> Tensor:
    """World points (B, ..., 3) turned about the vertical through the world's origin."""
    cosine, sine = (f(angle).reshape(-1, 1, 1) for f in (torch.cos, torch.sin))
    x, y, z = points.unbind(-1)
    return torch.stack((x * cosine - y * sine, x * sine + y * cosine, z), dim=-1)


def _seen_by(points: Tensor, rotation: Tensor, position: Tensor) -> Tensor:
    return (points - position[:, None, None]) @ rotation.transpose(1, 2)[:, None]
