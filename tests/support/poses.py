"""A walking person of fixed bone lengths, cameras around it, and pose models that train in seconds.

World axes: x forward, y to the left, z up, metres.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from structdiff.denoisers import Denoiser
from structdiff.pose import Camera, PoseClip, PoseDataset, PoseLifter
from structdiff.pose.models import ModelSpec, build_denoiser, new_spec
from structdiff.pose.skeletons import H36M_17, Skeleton

SIZE = (1000, 800)
"""Width and height of the images."""
TINY: dict[str, Any] = {
    "width": 16,
    "depth": 2,
    "heads": 2,
    "lifter_width": 32,
    "lifter_blocks": 1,
}
QUICK: dict[str, Any] = {
    **TINY,
    "frames": 9,
    "batch_size": 8,
    "max_steps": 30,
    "learning_rate": 0.02,
    "calibration": 0.0,
    "n_hypotheses": 3,
    "steps": 2,
    "random_state": 0,
    "accelerator": "cpu",
    "progress": False,
}


def walker(frames: int, seed: int = 0) -> np.ndarray:
    """World joints (T, 17, 3) in Human3.6M's order of a person who walks in a circle."""
    draw = np.random.default_rng(seed)
    time = np.arange(frames) / 30
    stride = 2 * np.pi * (draw.uniform(0.8, 1.1) * time + draw.uniform())
    swing, tall = draw.uniform(0.3, 0.6), draw.uniform(0.9, 1.1)
    still = np.zeros(frames)

    def limb(angle: np.ndarray, length: float) -> np.ndarray:
        """A bone that hangs down, turned forwards by an angle."""
        return length * np.stack((np.sin(angle), still, -np.cos(angle)), axis=-1)

    def fixed(*offset: float) -> np.ndarray:
        return np.broadcast_to(offset, (frames, 3))

    bones = np.zeros((frames, 17, 3))
    for leg, arm, side, phase in (
        ((4, 5, 6), (11, 12, 13), 1, 0.0),
        ((1, 2, 3), (14, 15, 16), -1, np.pi),
    ):
        thigh = swing * np.sin(stride + phase)
        knee = 0.4 + 0.3 * np.cos(stride + phase)
        bones[:, leg[0]] = fixed(0, 0.13 * side, 0)
        bones[:, leg[1]], bones[:, leg[2]] = limb(thigh, 0.45), limb(thigh - knee, 0.44)
        bones[:, arm[0]] = fixed(0, 0.16 * side, -0.04)
        bones[:, arm[1]], bones[:, arm[2]] = limb(-thigh, 0.28), limb(0.5 - thigh, 0.25)
    for joint, length in ((7, 0.23), (8, 0.25), (9, 0.1), (10, 0.12)):
        bones[:, joint] = limb(np.pi - 0.05 * np.sin(stride), length)
    joints = np.zeros_like(bones)
    for joint in H36M_17.bones:
        joints[:, joint] = joints[:, H36M_17.parents[joint]] + bones[:, joint]
    yaw = draw.uniform(0, 2 * np.pi) + 0.4 * time
    cosine, sine = np.cos(yaw)[:, None], np.sin(yaw)[:, None]
    x, y, z = np.moveaxis(joints, -1, 0)
    turned = np.stack((x * cosine - y * sine, x * sine + y * cosine, z), axis=-1)
    centre = np.stack((0.5 * np.cos(yaw), 0.5 * np.sin(yaw), still + 0.95), axis=-1)
    return (tall * turned + centre[:, None]).astype(np.float32)


def camera(azimuth: float = 0.0, *, distorted: bool = False) -> Camera:
    """Calibrated, 5 m from the middle, 1.5 m above the floor, looking at the hips."""
    position = np.array([5 * np.cos(azimuth), 5 * np.sin(azimuth), 1.5])
    forward = np.array([0, 0, 0.95]) - position
    forward /= np.linalg.norm(forward)
    right = np.cross(forward, [0, 0, 1])
    right /= np.linalg.norm(right)
    return Camera(
        focal=np.array([1100.0, 1120.0]),
        centre=np.array([510.0, 395.0]),
        radial=(-0.2, 0.2, 0.0) if distorted else (0.0, 0.0, 0.0),
        rotation=np.stack((right, np.cross(forward, right), forward)),
        position=position,
        image_size=SIZE,
    )


def walks(
    motions: int = 3, frames: int = 40, views: int = 2, noise: float = 0.0, first: int = 0
) -> PoseDataset:
    """Clips ``walk_0/0``, ... of several people, with ``noise`` pixels added to their 2D joints."""
    clips = []
    for number in range(first, first + motions):
        world = walker(frames, number)
        for view in range(views):
            eye = camera(0.5 + 2.0 * view, distorted=bool(view))
            seen = eye.project(eye.to_camera(world))
            seen += np.random.default_rng([number, view]).normal(0, noise, seen.shape)
            clips.append(
                PoseClip(
                    f"walk_{number}/{view}",
                    seen.astype(np.float32),
                    world,
                    axes="world",
                    camera=eye,
                    fps=30.0,
                    action="walk",
                )
            )
    return PoseDataset(tuple(clips), H36M_17)


def strangers() -> PoseDataset:
    """Clips of people that no model is trained on, of 25, 4 and 12 frames."""
    clips = [walks(1, frames, 1, first=7 + i)[0] for i, frames in enumerate((25, 4, 12))]
    return PoseDataset(tuple(replace(clip, name=str(i)) for i, clip in enumerate(clips)))


def arrays(data: PoseDataset) -> dict[str, list[Any]]:
    """The same as lists of arrays: keypoints, and poses in camera axes."""
    return {
        "keypoints": [clip.keypoints for clip in data],
        "poses": [clip.in_camera().astype(np.float32) for clip in data],
    }


def relative(joints: Any, skeleton: Skeleton = H36M_17) -> Any:
    """Joints (..., J, 3) about their root."""
    return joints - joints[..., skeleton.root : skeleton.root + 1, :]


def quick(**changes: Any) -> PoseLifter:
    """An estimator that trains in about a second."""
    return PoseLifter(**{**QUICK, **changes})


def tiny_spec(frames: int = 9, skeleton: Skeleton = H36M_17, **changes: Any) -> ModelSpec:
    """A small model around a lifter."""
    settings: dict[str, Any] = {
        "preset": None,
        "layout": "corrected",
        "spatial": "hrst",
        "temporal": "hrtt",
        "dropout": 0.0,
        **TINY,
    }
    return new_spec(skeleton, frames, **{**settings, **changes})


def narrow_published(frames: int = 9, layout: str = "reference") -> ModelSpec:
    """DDHPose as published, but for its sizes."""
    spec = tiny_spec(frames, preset="paper", layout=layout)
    spec.network.update(width=16, depth=2, heads=2)
    return spec


def random_denoiser(spec: ModelSpec, seed: int = 0, size: float = 0.3) -> Denoiser:
    """With random weights everywhere, the head's too, in evaluation mode."""
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        denoiser = build_denoiser(spec)
    with torch.no_grad():
        for parameter in denoiser.network.network.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=size)
        if spec.lifter is None:  # its answers are joints, in metres
            for parameter in denoiser.network.network.head[-1].parameters():
                parameter.mul_(0.3)
    return denoiser.eval()
