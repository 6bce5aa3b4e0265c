"""Errors of poses: their identities, and the same numbers computed another way.

Numbers in percent and joints are those of the evaluation code of MPI-INF-3DHP (31 thresholds from
0 to 150 mm, strict) and of plain arithmetic; the other computation is a loop over frames with
``scipy.linalg.orthogonal_procrustes``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from structdiff.errors import StructDiffError
from structdiff.pose import metrics
from structdiff.pose.cameras import Camera
from structdiff.pose.data import load_cmu17
from structdiff.pose.skeletons import H36M_17, MPI_INF_3DHP_17, Skeleton

Array = npt.NDArray[np.floating]
CLIPS, FRAMES, JOINTS = 3, 7, 17
DISTANCES: list[Callable[..., Any]] = [
    metrics.mpjpe,
    metrics.p_mpjpe,
    metrics.n_mpjpe,
    metrics.mpjve,
    metrics.acceleration_error,
]


@pytest.fixture
def similarity() -> tuple[float, Array, Array]:
    """A scale, a rotation without mirroring, a shift."""
    turn, _ = np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))
    return 1.7, turn * np.sign(np.linalg.det(turn)), np.array([0.4, -2.0, 5.0])


def errors_of(prediction: Array, target: Array) -> Array:
    """Millimetres by a loop over joints."""
    flat = zip(prediction.reshape(-1, 3), target.reshape(-1, 3), strict=True)
    return np.array([1000 * np.sqrt(((a - b) ** 2).sum()) for a, b in flat]).reshape(
        target.shape[:-1]
    )


def aligned_by_scipy(prediction: Array, target: Array, scale: bool) -> Array:
    """Poses (J, 3) aligned without mirroring, by scipy's orthogonal Procrustes."""
    from scipy.linalg import orthogonal_procrustes

    a, b = prediction - prediction.mean(0), target - target.mean(0)
    turn, _ = orthogonal_procrustes(a, b)
    if np.linalg.det(turn) < 0:
        u, _, vh = np.linalg.svd(a.T @ b)
        turn = u @ np.diag([1, 1, -1]) @ vh
    size = np.trace(turn.T @ a.T @ b) / (a**2).sum() if scale else 1.0
    return size * a @ turn + target.mean(0)


# ---------------------------------------------------------------- against another computation


def test_mpjpe_is_the_mean_distance(poses: tuple[Array, Array]) -> None:
    assert metrics.mpjpe(*poses) == pytest.approx(errors_of(*poses).mean(), abs=1e-6)


@pytest.mark.parametrize("scale", [True, False])
def test_p_mpjpe_agrees_with_scipy_pose_by_pose(poses: tuple[Array, Array], scale: bool) -> None:
    flat = [values.reshape(-1, JOINTS, 3) for values in poses]
    moved = np.stack([aligned_by_scipy(p, y, scale) for p, y in zip(*flat, strict=True)])
    expected = errors_of(moved, flat[1]).mean(1).reshape(CLIPS, FRAMES)
    np.testing.assert_allclose(
        metrics.p_mpjpe(*poses, per="frame", scale=scale), expected, atol=1e-6
    )


def test_p_mpjpe_agrees_with_scipy_on_mirrored_poses(poses: tuple[Array, Array]) -> None:
    prediction, target = poses[0] * [-1, 1, 1], poses[1]
    flat = [values.reshape(-1, JOINTS, 3) for values in (prediction, target)]
    moved = np.stack([aligned_by_scipy(p, y, True) for p, y in zip(*flat, strict=True)])
    expected = errors_of(moved, flat[1]).mean()
    assert metrics.p_mpjpe(prediction, target) == pytest.approx(expected, abs=1e-6)


def test_squared_residual_of_the_alignment_is_scipys_disparity(poses: tuple[Array, Array]) -> None:
    """``scipy.spatial.procrustes`` scales the target to norm 1; no pose here needs a mirror."""
    from scipy.spatial import procrustes

    prediction, target = (values.reshape(-1, JOINTS, 3) for values in poses)
    left = ((metrics.procrustes_align(prediction, target) - target) ** 2).sum((1, 2))
    size = ((target - target.mean(1, keepdims=True)) ** 2).sum((1, 2))
    expected = [procrustes(y, p)[2] for p, y in zip(prediction, target, strict=True)]
    np.testing.assert_allclose(left / size, expected, atol=1e-12)


def test_n_mpjpe_takes_the_scale_of_least_squares(poses: tuple[Array, Array]) -> None:
    prediction, target = (values.reshape(-1, JOINTS, 3) for values in poses)
    scales = [
        np.linalg.lstsq(p.reshape(-1, 1), y.ravel(), rcond=None)[0].item()
        for p, y in zip(prediction, target, strict=True)
    ]
    expected = errors_of(np.array(scales)[:, None, None] * prediction, target).mean()
    assert metrics.n_mpjpe(prediction, target) == pytest.approx(expected, abs=1e-6)


def test_mpjve_is_the_mean_distance_of_steps(poses: tuple[Array, Array]) -> None:
    steps = [values[:, 1:] - values[:, :-1] for values in poses]
    assert metrics.mpjve(*poses) == pytest.approx(errors_of(*steps).mean(), abs=1e-6)


def test_acceleration_error_is_the_mean_distance_of_second_steps(
    poses: tuple[Array, Array],
) -> None:
    bends = [values[:, 2:] - 2 * values[:, 1:-1] + values[:, :-2] for values in poses]
    assert metrics.acceleration_error(*poses) == pytest.approx(errors_of(*bends).mean(), abs=1e-6)


def test_pck_is_the_share_of_errors_below(poses: tuple[Array, Array]) -> None:
    expected = 100 * (errors_of(*poses) < 80).mean()
    assert metrics.pck(*poses, threshold=80) == pytest.approx(expected, abs=1e-9)


def test_auc_is_the_mean_of_pck_over_31_thresholds(poses: tuple[Array, Array]) -> None:
    errors = errors_of(*poses)
    expected = np.mean([100 * (errors < 5 * k).mean() for k in range(31)])
    assert metrics.auc(*poses) == pytest.approx(expected, abs=1e-9)


def test_bone_length_deviation_is_a_standard_deviation_over_time(
    poses: tuple[Array, Array],
) -> None:
    deviations = [
        1000 * np.std([np.linalg.norm(pose[c] - pose[H36M_17.parents[c]]) for pose in clip])
        for clip in poses[0]
        for c in H36M_17.bones
    ]
    assert metrics.bone_length_deviation(poses[0]) == pytest.approx(np.mean(deviations), abs=1e-6)


def test_symmetry_gap_compares_left_and_right_bones(poses: tuple[Array, Array]) -> None:
    parents = H36M_17.parents
    gaps = [
        1000
        * abs(
            np.linalg.norm(pose[left] - pose[parents[left]])
            - np.linalg.norm(pose[right] - pose[parents[right]])
        )
        for pose in poses[0].reshape(-1, JOINTS, 3)
        for left, right in H36M_17.symmetric_bones
    ]
    assert metrics.symmetry_gap(poses[0]) == pytest.approx(np.mean(gaps), abs=1e-6)


# ---------------------------------------------------------------- identities


def test_ten_millimetres_of_one_joint_are_ten_seventeenths(poses: tuple[Array, Array]) -> None:
    moved = poses[1].copy()
    moved[..., 5, 1] += 0.010
    assert metrics.mpjpe(moved, poses[1]) == pytest.approx(10 / 17, abs=1e-9)


def test_without_the_root_they_are_ten_sixteenths(poses: tuple[Array, Array]) -> None:
    moved = poses[1].copy()
    moved[..., 5, 1] += 0.010
    error = metrics.mpjpe(moved, poses[1], joints=H36M_17.bones)
    assert error == pytest.approx(10 / 16, abs=1e-9)


def test_p_mpjpe_of_a_similar_pose_is_zero(
    poses: tuple[Array, Array], similarity: tuple[float, Array, Array]
) -> None:
    scale, turn, shift = similarity
    assert metrics.p_mpjpe(scale * poses[1] @ turn.T + shift, poses[1]) < 1e-4


def test_rigid_p_mpjpe_of_a_turned_pose_is_zero(
    poses: tuple[Array, Array], similarity: tuple[float, Array, Array]
) -> None:
    _, turn, shift = similarity
    assert metrics.p_mpjpe(poses[1] @ turn.T + shift, poses[1], scale=False) < 1e-4


def test_rigid_p_mpjpe_sees_another_size(poses: tuple[Array, Array]) -> None:
    assert metrics.p_mpjpe(1.1 * poses[1], poses[1], scale=False) > 10


def test_p_mpjpe_of_a_mirrored_pose_is_not_zero(poses: tuple[Array, Array]) -> None:
    assert metrics.p_mpjpe(poses[1] * [-1, 1, 1], poses[1]) > 50


def test_p_mpjpe_of_a_flat_pose_is_zero_under_a_turn(
    poses: tuple[Array, Array], similarity: tuple[float, Array, Array]
) -> None:
    """All joints in one plane: the smallest singular value is 0, the sign of det is free."""
    flat = poses[1] * [1, 1, 0]
    assert metrics.p_mpjpe(flat @ similarity[1].T, flat) < 1e-4


def test_n_mpjpe_of_a_scaled_pose_is_zero(poses: tuple[Array, Array]) -> None:
    assert metrics.n_mpjpe(0.3 * poses[1], poses[1]) < 1e-9


def test_alignment_never_raises_the_root_mean_square(poses: tuple[Array, Array]) -> None:
    """MPJPE itself may rise: the alignment minimises squares."""
    moved = metrics.procrustes_align(*poses)
    after, before = (np.sqrt(((p - poses[1]) ** 2).sum((2, 3))) for p in (moved, poses[0]))
    assert (after <= before).all()


def test_perfect_pck_is_100(poses: tuple[Array, Array]) -> None:
    assert metrics.pck(poses[1], poses[1]) == 100


def test_perfect_auc_is_30_of_31(poses: tuple[Array, Array]) -> None:
    assert metrics.auc(poses[1], poses[1]) == pytest.approx(100 * 30 / 31, abs=1e-9)


def shifted(millimetres: float, dtype: str = "float64") -> tuple[Array, Array]:
    target = np.zeros((4, 17, 3), dtype)
    prediction = target.copy()
    prediction[..., 2] = millimetres / 1000
    return prediction, target


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_errors_of_76_mm_are_all_correct(dtype: str) -> None:
    assert metrics.pck(*shifted(76, dtype)) == 100


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_auc_of_76_mm_is_15_of_31(dtype: str) -> None:
    assert metrics.auc(*shifted(76, dtype)) == pytest.approx(48.387, abs=1e-3)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_errors_of_exactly_150_mm_are_none_correct(dtype: str) -> None:
    assert metrics.pck(*shifted(150, dtype)) == 0


def test_pck_of_an_undefined_error_is_undefined(poses: tuple[Array, Array]) -> None:
    broken = poses[0].copy()
    broken[0, 0, 3] = np.nan
    assert np.isnan(metrics.pck(broken, poses[1]))


def test_mpjve_is_unaffected_by_a_constant_offset(poses: tuple[Array, Array]) -> None:
    assert metrics.mpjve(poses[0] + [0.3, -1, 2], poses[1]) == pytest.approx(
        metrics.mpjve(*poses), abs=1e-9
    )


def test_acceleration_error_is_unaffected_by_a_constant_velocity(
    poses: tuple[Array, Array],
) -> None:
    drift = np.arange(FRAMES)[:, None, None] * np.array([0.3, -1, 2])
    assert metrics.acceleration_error(poses[0] + drift, poses[1]) == pytest.approx(
        metrics.acceleration_error(*poses), abs=1e-9
    )


def test_velocity_error_per_second_is_that_per_frame_times_the_rate(
    poses: tuple[Array, Array],
) -> None:
    assert metrics.mpjve(*poses, fps=50) == pytest.approx(50 * metrics.mpjve(*poses))


def test_acceleration_error_per_second_goes_with_the_rate_squared(
    poses: tuple[Array, Array],
) -> None:
    per_frame = metrics.acceleration_error(*poses)
    assert metrics.acceleration_error(*poses, fps=50) == pytest.approx(2500 * per_frame)


def test_no_difference_is_taken_between_clips(poses: tuple[Array, Array]) -> None:
    """Clips a kilometre apart: a step between two would show."""
    apart = poses[0] + 1000.0 * np.arange(CLIPS)[:, None, None, None]
    assert metrics.mpjve(apart, poses[1]) == pytest.approx(metrics.mpjve(*poses), abs=1e-6)


def test_a_rigid_person_has_no_bone_length_deviation(
    poses: tuple[Array, Array], similarity: tuple[float, Array, Array]
) -> None:
    still = np.stack([poses[1][0, 0], poses[1][0, 0] @ similarity[1].T + similarity[2]])
    assert metrics.bone_length_deviation(still) < 1e-9


def test_a_mirror_image_has_the_symmetry_gap_of_the_pose(poses: tuple[Array, Array]) -> None:
    from structdiff.pose.skeletons import mirror

    image = mirror(poses[0], H36M_17)
    assert metrics.symmetry_gap(image) == pytest.approx(metrics.symmetry_gap(poses[0]), abs=1e-9)


def test_root_relative_poses_have_the_root_of_their_skeleton_at_zero(
    poses: tuple[Array, Array],
) -> None:
    centred = metrics.root_relative(poses[0], MPI_INF_3DHP_17)
    assert not centred[..., 14, :].any() and centred[..., 0, :].all()


def test_bones_of_recorded_people_keep_their_lengths(data_dir: Any) -> None:
    """CMU17's note: the largest variation inside any clip is 3.4e-7 m."""
    clip = load_cmu17("test")["walking_01/0"]
    assert metrics.bone_length_deviation(clip.poses.astype(np.float64)) < 3.4e-4


def test_recorded_poses_project_onto_their_keypoints(data_dir: Any) -> None:
    """CMU17's note: the 2D is the exact projection, with lens distortion."""
    clip = load_cmu17("test")["walking_01/2"]
    poses = clip.in_camera().astype(np.float64)
    assert metrics.reprojection_error(poses, clip.keypoints, clip.camera) < 1e-3


# ---------------------------------------------------------------- kinds and shapes


@pytest.mark.parametrize("metric", DISTANCES)
def test_means_per_frame_and_joint_are_those_of_the_points(
    metric: Callable[..., Any], poses: tuple[Array, Array]
) -> None:
    points = metric(*poses, per="point")
    np.testing.assert_allclose(metric(*poses, per="frame"), points.mean(-1), rtol=1e-12)
    np.testing.assert_allclose(metric(*poses, per="joint"), points.mean((0, 1)), rtol=1e-12)


@pytest.mark.parametrize("metric", DISTANCES)
def test_tensors_give_the_numbers_of_arrays(
    metric: Callable[..., Any], poses: tuple[Array, Array]
) -> None:
    result = metric(*map(torch.from_numpy, poses))
    assert isinstance(result, torch.Tensor) and result.item() == metric(*poses)


def test_precision_of_single_arrays_is_kept(poses: tuple[Array, Array]) -> None:
    assert metrics.mpjpe(*(p.astype(np.float32) for p in poses)).dtype == np.float32


def test_hypotheses_are_compared_with_one_target(poses: tuple[Array, Array]) -> None:
    target = poses[1][0]
    expected = np.mean([metrics.p_mpjpe(clip, target) for clip in poses[0]])
    assert metrics.p_mpjpe(poses[0], target) == pytest.approx(expected)


# ---------------------------------------------------------------- refusals


def test_shapes_that_differ_are_refused(poses: tuple[Array, Array]) -> None:
    with pytest.raises(StructDiffError, match=r"got \(3, 7, 17, 3\) and \(3, 6, 17, 3\)"):
        metrics.mpjpe(poses[0], poses[1][:, 1:])


def test_a_clip_of_one_frame_has_no_velocity(poses: tuple[Array, Array]) -> None:
    with pytest.raises(StructDiffError, match="at least 2 frames"):
        metrics.mpjve(poses[0][:, :1], poses[1][:, :1])


def test_nothing_has_no_mean(poses: tuple[Array, Array]) -> None:
    with pytest.raises(StructDiffError, match="nothing to average"):
        metrics.mpjpe(poses[0][:, :0], poses[1][:, :0])


def test_an_unknown_mean_is_refused(poses: tuple[Array, Array]) -> None:
    with pytest.raises(StructDiffError, match="per must be one of all, frame, joint, point"):
        metrics.mpjpe(*poses, per="clip")  # type: ignore[arg-type]


def test_bone_lengths_have_no_deviation_per_frame(poses: tuple[Array, Array]) -> None:
    with pytest.raises(StructDiffError, match="per must be one of all, bone"):
        metrics.bone_length_deviation(poses[0], per="frame")  # type: ignore[arg-type]


def test_poses_that_are_not_finite_are_not_aligned(poses: tuple[Array, Array]) -> None:
    with pytest.raises(StructDiffError, match="not finite"):
        metrics.p_mpjpe(poses[0] * np.inf, poses[1])


def test_root_relative_poses_are_not_projected(poses: tuple[Array, Array]) -> None:
    camera = Camera(focal=np.array([1.0, 1.0]), centre=np.zeros(2))
    with pytest.raises(StructDiffError, match="in front of the camera"):
        metrics.reprojection_error(poses[0], poses[0][..., :2], camera)


def test_poses_of_another_skeleton_are_refused(poses: tuple[Array, Array]) -> None:
    pair = Skeleton("stick", ("a", "b"), (-1, 0), (), ())
    with pytest.raises(StructDiffError, match="2, 3\\) joints of stick"):
        metrics.bone_length_deviation(poses[0], pair)
