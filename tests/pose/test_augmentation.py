"""People turned in front of their cameras: still the same people, seen by the same cameras."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from structdiff.errors import StructDiffError
from structdiff.pose import PoseDataset
from structdiff.pose.augmentation import TurnedFrames
from structdiff.pose.kinematics import bone_lengths
from structdiff.pose.skeletons import H36M_17
from structdiff.pose.windows import TrainingFrames, common_view
from support.poses import camera, walks

ROWS = torch.arange(0, 80, 3)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def turned_frames(share: float = 1.0, noise: float = 0.0, **changes) -> TurnedFrames:
    data = walks(2, 20, noise=noise)
    data = PoseDataset(tuple(replace(clip, **changes) for clip in data))
    return TurnedFrames(data, 5, common_view(list(data)), share=share)


def placed(windows: TurnedFrames, joints: torch.Tensor, keypoints: torch.Tensor) -> torch.Tensor:
    """Where root-relative joints (B, N, J, 3) stand, from exact normalised 2D: its least squares.

    X + tx = x (Z + tz) and Y + ty = y (Z + tz) for every joint (card, section 2.6).
    """
    view = torch.tensor(windows._view.tolist(), dtype=torch.float64)
    rays = (keypoints.double() - view[2:]) / view[:2]
    pose = joints.double()
    one, zero = torch.ones_like(rays[..., 0]), torch.zeros_like(rays[..., 0])
    rows = torch.cat(
        (
            torch.stack((one, zero, -rays[..., 0]), -1),
            torch.stack((zero, one, -rays[..., 1]), -1),
        ),
        dim=-2,
    )
    values = rays * pose[..., 2:] - pose[..., :2]
    known = torch.cat((values[..., 0], values[..., 1]), dim=-1)
    return torch.linalg.lstsq(rows, known[..., None]).solution[..., 0]


# --- what stays ------------------------------------------------------------------------------
def test_a_share_of_0_leaves_every_window_as_it_is():
    windows = turned_frames(0.0)
    for given, plain in zip(windows.turned(ROWS, seeded()), windows.batch(ROWS), strict=True):
        assert torch.equal(given, plain)


def test_bones_keep_their_lengths():
    windows = turned_frames()
    _, joints = windows.turned(ROWS, seeded())
    before, after = (bone_lengths(y, H36M_17) for y in (windows.batch(ROWS)[1], joints))
    assert float((before - after).abs().max()) < 1e-5
    assert float((windows.batch(ROWS)[1] - joints).norm(dim=-1).mean()) > 0.1


def test_a_window_is_a_rotation_about_the_vertical_seen_by_the_same_camera():
    windows = turned_frames()
    _, joints = windows.turned(ROWS, seeded())
    recorded = windows.batch(ROWS)[1]
    up = windows._facing[windows._clip[ROWS]] @ torch.tensor([0.0, 0.0, 1.0])
    height = [torch.einsum("bnjc,bc->bnj", y, up) for y in (recorded, joints)]
    assert torch.allclose(*height, atol=1e-5)
    # One rotation for the whole window: the inner products of any two of its joints are kept.
    products = [y.flatten(1, 2) @ y.flatten(1, 2).mT for y in (recorded, joints)]
    assert torch.allclose(*products, atol=1e-5)


def test_the_left_stays_on_the_left():
    """A rotation is no mirror image: triple products of body axes keep their sign and size."""
    windows = turned_frames()
    bodies = [windows.batch(ROWS)[1], windows.turned(ROWS, seeded())[1]]
    volumes = [
        torch.linalg.det(torch.stack((y[..., 4, :], y[..., 10, :], y[..., 5, :]), -1))
        for y in bodies
    ]
    assert torch.allclose(*volumes, atol=1e-6) and float(volumes[0].abs().mean()) > 1e-3


# --- what is seen ----------------------------------------------------------------------------
def test_keypoints_are_the_exact_projection_of_the_turned_body():
    windows = turned_frames()
    keypoints, joints = windows.turned(ROWS, seeded())
    root = placed(windows, joints, keypoints)
    there = joints.double() + root[..., None, :]
    view = windows._view.double()
    seen = there[..., :2] / there[..., 2:] * view[:2] + view[2:]
    # 1e-5 of the half width is 0.005 px.
    assert float((seen - keypoints).abs().max()) < 2e-5


def test_the_turned_root_goes_around_the_worlds_vertical():
    windows = turned_frames()
    rows = ROWS
    keypoints, joints = windows.turned(rows, seeded())
    root = placed(windows, joints, keypoints)
    facing = windows._facing[windows._clip[rows]].double()
    where = windows._where[windows._clip[rows]].double()
    world = torch.einsum("bij,bni->bnj", facing, root) + where[:, None]
    recorded = windows._world[windows.frame_numbers(rows)][..., 0, :].double()
    assert torch.allclose(world[..., 2], recorded[..., 2], atol=2e-3)
    assert torch.allclose(world[..., :2].norm(dim=-1), recorded[..., :2].norm(dim=-1), atol=2e-3)


def test_the_detectors_error_is_kept_in_proportion_to_the_distance():
    exact, noisy = turned_frames(), turned_frames(noise=3.0)
    (clean, joints), (seen, same) = (w.turned(ROWS, seeded()) for w in (exact, noisy))
    assert torch.equal(joints, same)
    before = (noisy.batch(ROWS)[0] - exact.batch(ROWS)[0])[..., 0, :]
    depth = exact._world[exact.frame_numbers(ROWS)][..., 0, :]
    clip = exact._clip[ROWS]
    depth = ((depth - exact._where[clip][:, None]) @ exact._facing[clip].transpose(1, 2))[..., 2]
    other = placed(exact, joints, clean)[..., 2]
    expected = before * (depth / other)[..., None]
    assert torch.allclose((seen - clean)[..., 0, :].double(), expected.double(), atol=2e-5)
    assert float(before.abs().mean()) > 1e-3


def test_a_person_who_would_stand_before_the_lens_keeps_the_recorded_view():
    near = replace(camera(0.5), position=np.array([0.4, 0.2, 0.9]))
    windows = turned_frames(camera=near)
    keypoints, joints = windows.turned(ROWS, seeded())
    plain = windows.batch(ROWS)
    assert torch.equal(keypoints, plain[0]) and torch.equal(joints, plain[1])


# --- chance ----------------------------------------------------------------------------------
def test_the_share_of_turned_windows_is_what_was_asked_for():
    windows = turned_frames(0.3)
    rows = torch.arange(80).repeat(20)
    moved = (windows.turned(rows, seeded())[1] != windows.batch(rows)[1]).flatten(1).any(1)
    # Standard error over 1600 draws: 0.011.
    assert float(moved.double().mean()) == pytest.approx(0.3, abs=0.04)


def test_angles_are_spread_over_the_whole_circle():
    windows = turned_frames()
    rows = torch.full((2000,), 7)
    _, joints = windows.turned(rows, seeded())
    facing = windows._facing[windows._clip[7]]
    across = (joints[:, 2, 4] - joints[:, 2, 1]) @ facing  # hip to hip, in world axes
    angle = torch.atan2(across[:, 1], across[:, 0])
    mean = torch.stack((angle.cos(), angle.sin())).mean(1)
    assert float(mean.norm()) < 4 / math.sqrt(2 * 2000)
    counts = torch.histc(angle, 8, -math.pi, math.pi)
    assert float((counts / 2000 - 1 / 8).abs().max()) < 0.03


def test_the_same_generator_gives_the_same_windows():
    windows = turned_frames(0.5, noise=2.0)
    one, same, other = (windows.turned(ROWS, seeded(seed)) for seed in (3, 3, 4))
    assert all(torch.equal(a, b) for a, b in zip(one, same, strict=True))
    assert not torch.equal(one[0], other[0])


# --- bad input -------------------------------------------------------------------------------
def test_clips_without_a_camera_are_named_with_the_remedy():
    data = walks(1, 5)
    data = PoseDataset(
        (data[0], replace(data[1], poses=data[1].in_camera(), axes="camera", camera=None))
    )
    with pytest.raises(StructDiffError, match=r"'walk_0/1' has no camera.*turn=0"):
        TurnedFrames(data, 5, [2.0, 2.0, 0.0, 0.0])


@pytest.mark.parametrize("share", [-0.1, 1.5])
def test_an_impossible_share_is_refused(share):
    with pytest.raises(StructDiffError, match="share of turned windows"):
        turned_frames(share)


def test_published_windows_are_turned_too():
    data = walks(2, 20)
    view = common_view(list(data))
    windows = TurnedFrames(data, 8, view, published=True, share=1.0)
    rows = torch.arange(len(windows))
    assert len(windows) == len(TrainingFrames(data, 8, view, published=True)) == 4 * 3
    _, joints = windows.turned(rows, seeded())
    before, after = (bone_lengths(y, H36M_17) for y in (windows.batch(rows)[1], joints))
    assert float((before - after).abs().max()) < 1e-5
