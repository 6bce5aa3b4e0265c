"""The checks of units, joint order and axes: silent on real recordings, loud on wrong ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from structdiff.errors import StructDiffError
from structdiff.pose.checks import (
    check_dataset,
    check_joint_order,
    check_metres,
    check_pixels,
    check_up_axis,
)
from structdiff.pose.data import PoseClip, PoseDataset, load_cmu17
from structdiff.pose.skeletons import COCO_17, H36M_17, MPI_INF_3DHP_17, Skeleton, convert

ORDERS = {s.name: s for s in (H36M_17, MPI_INF_3DHP_17, COCO_17)}


@pytest.fixture(scope="module")
def clips(data_dir) -> list[PoseClip]:
    """All of CMU17, in all views, with exact 2D and with simulated detections: 752 clips."""
    return [
        clip
        for split in ("train", "test")
        for detected in (False, True)
        for clip in load_cmu17(split, detected=detected)
    ]


@pytest.fixture(scope="module")
def seen(clips) -> list[PoseClip]:
    """Every motion twice, exact and detected, each by another camera than the last: 188 clips."""
    return [c for i, c in enumerate(clips) if i % 4 == (i // 4) % 4]


@pytest.fixture(scope="module")
def views(clips) -> list[PoseClip]:
    """Every motion once, each seen by another camera than the last: 94 clips."""
    return [c for i, c in enumerate(clips[:272] + clips[544:648]) if i % 4 == (i // 4) % 4]


def alarms(check: Callable[..., None], arguments: list[tuple]) -> list[str]:
    found = []
    for each in arguments:
        try:
            check(*each)
        except StructDiffError as error:
            found.append(str(error))
    return found


def with_face(poses: np.ndarray) -> np.ndarray:
    """Human3.6M joints (T, 17, 3) as COCO's, the face put in front of the head."""
    joint = {name: poses[:, i] for i, name in enumerate(H36M_17.joints)}
    up = joint["Head"] - joint["Neck"]
    up /= np.linalg.norm(up, axis=-1, keepdims=True)
    left = joint["LShoulder"] - joint["RShoulder"]
    left -= (left * up).sum(-1, keepdims=True) * up
    left /= np.linalg.norm(left, axis=-1, keepdims=True)
    front, head = np.cross(left, up), joint["Head"] + 0.08 * up
    joint["Nose"] = head + 0.11 * front
    for side, sign in (("L", 1), ("R", -1)):
        joint[f"{side}Eye"] = head + 0.09 * front + 0.035 * up + sign * 0.03 * left
        joint[f"{side}Ear"] = head + sign * 0.075 * left
    return np.stack([joint[name] for name in COCO_17.joints], axis=1)


def pinhole(clip: PoseClip, points: np.ndarray) -> np.ndarray:
    seen = clip.camera.to_camera(points)
    return clip.camera.focal * seen[..., :2] / seen[..., 2:] + clip.camera.centre


def in_order(clip: PoseClip, skeleton: Skeleton, dims: int) -> np.ndarray:
    """2D or 3D joints of a clip, in the order of a skeleton."""
    if skeleton == COCO_17:
        face = with_face(clip.poses)
        return face if dims == 3 else pinhole(clip, face)
    return convert(clip.poses if dims == 3 else clip.keypoints, H36M_17, skeleton)


# ---------------------------------------------------------------- no false alarm


def test_no_keypoints_of_cmu17_raise_an_alarm(clips) -> None:
    """All motions, from all sides, exact and detected."""
    flat = [(PoseDataset((replace(c, poses=None),)),) for c in clips]
    assert alarms(check_dataset, flat) == []


@pytest.mark.parametrize("axes", ["world", "camera"])
def test_no_poses_of_cmu17_raise_an_alarm(views, axes) -> None:
    poses = [c.poses if axes == "world" else c.in_camera() for c in views]
    placed = [(PoseDataset((PoseClip("a", poses=p, axes=axes),)),) for p in poses]
    assert alarms(check_dataset, placed) == []


@pytest.mark.parametrize("factor", [0.5 / 1.75, 2.3 / 1.75])
def test_children_and_giants_are_metres(views, factor: float) -> None:
    """People are 0.5 m to 2.3 m tall."""
    assert alarms(check_metres, [(c.poses * factor,) for c in views]) == []


def test_root_relative_poses_raise_no_alarm(views) -> None:
    relative = [
        (PoseDataset((replace(c, poses=c.in_camera() - c.in_camera()[:, :1], axes="camera"),)),)
        for c in views
    ]
    assert alarms(check_dataset, relative) == []


@pytest.mark.parametrize("dims", [2, 3])
def test_single_frames_raise_no_alarm(seen, dims: int) -> None:
    draw = np.random.default_rng(0)
    frames = []
    for clip in seen:
        values = clip.keypoints if dims == 2 else clip.in_camera()
        frames.append((values[draw.integers(len(clip))], H36M_17))
    assert alarms(check_joint_order, frames) == []


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("skeleton", [MPI_INF_3DHP_17, COCO_17], ids=lambda s: s.name)
def test_other_orders_are_right_where_they_are_stated(views, skeleton, dims: int) -> None:
    given = [(in_order(c, skeleton, dims), skeleton) for c in views]
    assert alarms(check_joint_order, given) == []


def test_missing_joints_and_bad_frames_raise_no_alarm(views) -> None:
    """A tenth of the frames lost, a tenth of the joints at 0, 0 as detectors put them."""
    draw = np.random.default_rng(1)
    spoilt = []
    for clip in views:
        seen = clip.keypoints.copy()
        seen[draw.random(seen.shape[:2]) < 0.1] = 0
        seen[draw.random(len(seen)) < 0.1] = np.nan
        seen[:, [3, 6]] = np.nan  # feet that the image never shows
        spoilt.append((PoseDataset((replace(clip, keypoints=seen, poses=None),)),))
    assert alarms(check_dataset, spoilt) == []


# ---------------------------------------------------------------- every fault is caught


@pytest.mark.parametrize(
    ("factor", "says"), [(1000, "millimetres"), (100, "centimetres"), (0.001, "divided by 1000")]
)
@pytest.mark.parametrize("size", [0.5 / 1.75, 1.0, 2.2 / 1.75])
def test_another_unit_is_named(views, factor: float, says: str, size: float) -> None:
    if size < 1 and factor == 1000:
        size = 0.7 / 1.75  # a crouching infant in millimetres looks like a giant in centimetres
    found = alarms(check_metres, [(c.poses * size * factor,) for c in views])
    assert len(found) == len(views) and all(says in message for message in found)


@pytest.mark.parametrize("shift", [0.0, 1.0])
def test_normalised_keypoints_are_told_from_pixels(seen, shift: float) -> None:
    """x' = 2 x / w - 1, in [-1, 1], and its half, in [0, 1]."""
    given = []
    for clip in seen:
        width, height = clip.image_size
        flat = 2 * clip.keypoints / width - [1, height / width]
        given.append(((flat + shift) / (1 + shift), clip.image_size))
    found = alarms(check_pixels, given)
    assert len(found) == len(seen) and all("normalised" in message for message in found)


def test_pixels_of_a_larger_image_are_outside(seen) -> None:
    found = alarms(check_pixels, [(c.keypoints * 2, c.image_size) for c in seen])
    assert len(found) == len(seen) and all("far outside the image" in m for m in found)


def test_pixels_counted_from_the_middle_are_negative(seen) -> None:
    given = [(c.keypoints - np.asarray(c.image_size) / 2, c.image_size) for c in seen]
    found = alarms(check_pixels, given)
    assert len(found) == len(seen) and all("top left corner" in m for m in found)


def test_width_and_height_exchanged_are_told() -> None:
    """Somebody at the right of a wide image."""
    seen = np.random.default_rng(0).uniform([1500, 200], [1800, 900], (40, 17, 2))
    with pytest.raises(StructDiffError, match=r"give \(width, height\) in this order"):
        check_pixels(seen, (1080, 1920))
    check_pixels(seen, (1920, 1080))


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("stated", ORDERS.values(), ids=lambda s: s.name)
@pytest.mark.parametrize("true", ORDERS.values(), ids=lambda s: s.name)
def test_another_order_is_named(views, true, stated, dims: int) -> None:
    if true == stated:  # what is right is let pass: the counterpart of the eight faults
        assert alarms(check_joint_order, [(in_order(c, true, dims), stated) for c in views]) == []
        return
    found = alarms(check_joint_order, [(in_order(c, true, dims), stated) for c in views])
    assert len(found) == len(views)
    assert all(f"it looks like {true.name}" in message for message in found)


@pytest.mark.parametrize("dims", [2, 3])
def test_shuffled_joints_are_refused(views, dims: int) -> None:
    draw = np.random.default_rng(2)
    given = [(in_order(c, H36M_17, dims)[:, draw.permutation(17)], H36M_17) for c in views]
    found = alarms(check_joint_order, given)
    assert len(found) == len(views) and all("not in the order of h36m17" in m for m in found)


def test_exchanged_sides_and_mirrored_axes_bend_the_knees_backwards(views) -> None:
    exchanged = [(c.poses[:, list(H36M_17.mirrored)], H36M_17) for c in views]
    negated = [(c.in_camera() * [1, -1, 1], H36M_17) for c in views]
    found = alarms(check_joint_order, exchanged + negated)
    assert len(found) == 2 * len(views) and all("bend backwards" in m for m in found)


def test_unequal_sides_are_refused(views) -> None:
    """A left knee that stands where the left ankle does."""
    wrong = views[0].poses.copy()
    wrong[:, H36M_17.index("LKnee")] = wrong[:, H36M_17.index("LAnkle")]
    with pytest.raises(StructDiffError, match="bones to LKnee and RKnee"):
        check_joint_order(wrong, H36M_17)


@pytest.mark.parametrize("signs", [(1, -1, 1), (1, -1, -1)], ids=["mirrored", "turned"])
def test_y_up_in_camera_axes_is_told(views, signs) -> None:
    found = alarms(check_up_axis, [(c.in_camera() * signs, H36M_17, "camera") for c in views])
    assert len(found) == len(views) and all("looks like y up; negate y" in m for m in found)


def test_y_up_in_the_image_is_told(seen) -> None:
    given = [([0, c.image_size[1]] + c.keypoints * [1, -1], H36M_17, "image") for c in seen]
    found = alarms(check_up_axis, given)
    assert len(found) == len(seen) and all("looks like y up; negate y" in m for m in found)


def test_world_and_camera_axes_are_told_apart(views) -> None:
    world = alarms(check_up_axis, [(c.poses, H36M_17, "camera") for c in views])
    camera = alarms(check_up_axis, [(c.in_camera(), H36M_17, "world") for c in views])
    assert len(world) == len(camera) == len(views)
    assert all("(z up): camera axes" in m for m in world)
    assert all("(y down): world axes" in m for m in camera)


def test_a_camera_overhead_is_let_pass(views) -> None:
    """Seen from above, heads are nearer to the camera than feet."""
    overhead = views[0].poses * [1, -1, -1] + [0, 0, 6]
    check_up_axis(overhead, H36M_17, "camera")


# ---------------------------------------------------------------- what is no input at all


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (
            lambda: check_metres(np.full((3, 17, 3), np.nan), "a.npz"),
            "a.npz holds no frame with two joints",
        ),
        (lambda: check_metres(np.zeros((3, 17, 2)), "a.npz"), r"shape \(..., J, 3\)"),
        (lambda: check_metres(np.zeros((3, 17, 3)), "a.npz"), "at one point"),
        (lambda: check_metres([["x"]], "a.npz"), "array of numbers"),
        (lambda: check_pixels(np.zeros((3, 17, 2)), (10, 10), "a.json"), "nobody was detected"),
        (lambda: check_pixels(np.ones((3, 17, 2)) * 9, (0, 10), "a.json"), "image size of a.json"),
        (lambda: check_joint_order(np.ones((3, 16, 2)), H36M_17, "b"), "16 joints, h36m17 has 17"),
        (lambda: check_joint_order(np.ones((3, 17, 2)), H36M_17, "b"), "at one point"),
        (lambda: check_up_axis(np.ones((3, 17, 3)), H36M_17, "sky"), "must be one of camera"),  # type: ignore[arg-type]
    ],
)
def test_what_is_no_pose_is_refused_with_its_name(call, says: str) -> None:
    with pytest.raises(StructDiffError, match=says):
        call()
