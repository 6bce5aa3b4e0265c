"""The root from least squares: exact from exact keypoints, robust and smooth from detected ones."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from structdiff.errors import StructDiffError
from structdiff.pose.cameras import Camera
from structdiff.pose.data import load_cmu17
from structdiff.pose.roots import (
    fill_gaps,
    least_squares_root,
    rays_and_weights,
    robust_root,
    root_trajectory,
    smooth_depth,
)

SOLVERS = [least_squares_root, robust_root]


def scene(frames: int = 4, noise: float = 0.0, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Root-relative poses (T, 17, 3), roots (T, 3) and rays (T, 17, 2)."""
    draw = np.random.default_rng(seed)
    pose = draw.normal(0, 0.4, (frames, 17, 3))
    pose -= pose[:, :1]
    root = np.array([0.3, -0.2, 5.0]) + draw.normal(0, 0.3, (frames, 3))
    placed = pose + root[:, None]
    rays = placed[..., :2] / placed[..., 2:] + draw.normal(0, noise, (frames, 17, 2))
    return torch.as_tensor(pose), torch.as_tensor(root), torch.as_tensor(rays)


@pytest.fixture(scope="module")
def errors(data_dir) -> dict[str, Tensor]:
    """Estimated less true root on the test clips of CMU17, millimetres (frames, 3)."""
    found: dict[str, list[Tensor]] = {}
    for detected in (False, True):
        for clip in load_cmu17("test", detected=detected):
            points = torch.as_tensor(clip.in_camera())
            pose, root = points - points[:, :1], points[:, 0]
            rays, weights = rays_and_weights(clip.keypoints, clip.camera)
            robust = robust_root(pose, rays, weights)
            estimates = {
                "linear": least_squares_root(pose, rays, weights),
                "robust": robust,
                "smooth": smooth_depth(robust, 5),
            }
            for name, estimate in estimates.items():
                kind = f"{name} {'detected' if detected else 'exact'}"
                found.setdefault(kind, []).append(1e3 * (estimate - root))
    return {name: torch.cat(parts) for name, parts in found.items()}


@pytest.mark.parametrize("solver", ["linear", "robust"])
def test_exact_keypoints_of_cmu17_give_the_root_to_a_tenth_of_a_millimetre(solver, errors) -> None:
    """Card 10 item 8: 1e-4 m; measured 2e-6 mm."""
    assert errors[f"{solver} exact"].norm(dim=-1).max() < 0.1


def test_depth_from_detected_keypoints_is_off_by_centimetres(errors) -> None:
    """Median depth error with the simulated detections, true poses: 82, 66 and 44 mm."""
    medians = {k: errors[f"{k} detected"][:, 2].abs().median() for k in ("linear", "robust")}
    assert 70 < medians["linear"] < 95
    assert 55 < medians["robust"] < 75


def test_robust_roots_lose_the_bias_of_noisy_regressors(errors) -> None:
    """Noise in the rays, the regressors, pulls linear depths towards the camera: -85 mm; +5 mm."""
    assert errors["linear detected"][:, 2].mean() < -60
    assert errors["robust detected"][:, 2].mean().abs() < 15


def test_robust_roots_halve_the_large_depth_errors(errors) -> None:
    """95th percentile 410 mm against 204 mm."""
    large = {k: errors[f"{k} detected"][:, 2].abs().quantile(0.95) for k in ("linear", "robust")}
    assert large["robust"] < 0.6 * large["linear"]


def test_smoothing_the_depth_over_a_third_of_a_second_helps(errors) -> None:
    """Mean error of the depth 81 mm, smooth 55 mm."""
    before, after = (errors[f"{k} detected"][:, 2].abs().mean() for k in ("robust", "smooth"))
    assert after < 0.8 * before


def test_the_linear_root_is_numpys_least_squares() -> None:
    """34 equations in 3 unknowns, card 2.6, weighted."""
    pose, _, rays = scene(noise=0.01)
    weights = torch.as_tensor(np.random.default_rng(1).uniform(0.1, 2, (4, 17)))
    found = least_squares_root(pose, rays, weights)
    for f in range(4):
        ray, scale = rays[f].numpy(), np.sqrt(weights[f].numpy())[:, None]
        left = np.zeros((17, 2, 3))
        left[:, 0, 0] = left[:, 1, 1] = 1
        left[:, :, 2] = -ray
        right = ray * pose[f, :, 2:].numpy() - pose[f, :, :2].numpy()
        expected = np.linalg.lstsq(
            (left * scale[..., None]).reshape(34, 3), (right * scale).reshape(34), rcond=None
        )[0]
        np.testing.assert_allclose(found[f], expected, atol=1e-10)


def test_the_robust_root_minimises_the_reprojection_with_its_own_huber_weights() -> None:
    """SciPy agrees; bound 1.345 sigma, where the median length is sqrt(2 ln 2) sigma."""
    from scipy.optimize import least_squares

    pose, _, rays = scene(frames=1, noise=0.005)
    found = robust_root(pose, rays, steps=60)[0].numpy()

    def missed(t: np.ndarray) -> np.ndarray:
        placed = pose[0].numpy() + t
        return placed[:, :2] / placed[:, 2:] - rays[0].numpy()

    size = np.linalg.norm(missed(found), axis=-1)
    bound = 1.345 * np.median(size) / np.sqrt(2 * np.log(2))
    weights = np.minimum(1, bound / size)[:, None]
    expected = least_squares(
        lambda t: (np.sqrt(weights) * missed(t)).ravel(), found + 0.1, xtol=1e-15, ftol=1e-15
    )
    assert (weights < 0.9).any()
    np.testing.assert_allclose(found, expected.x, atol=1e-5)


def test_a_joint_far_off_moves_the_robust_root_little() -> None:
    pose, root, rays = scene(noise=0.001)
    wrong = rays.clone()
    wrong[:, 5, 0] += 0.1
    far = {
        solver: (solver(pose, wrong) - root)[:, 2].abs().mean()
        for solver in (least_squares_root, robust_root)
    }
    assert far[robust_root] < 0.2 * far[least_squares_root]


@pytest.mark.parametrize("solver", SOLVERS)
def test_joints_of_weight_zero_do_not_matter(solver) -> None:
    pose, root, rays = scene()
    weights = torch.ones(4, 17, dtype=torch.float64)
    weights[:, 3] = 0
    rays[:, 3] = torch.tensor([7.0, torch.nan])
    torch.testing.assert_close(solver(pose, rays, weights), root, atol=1e-9, rtol=0)


@pytest.mark.parametrize("solver", SOLVERS)
def test_scaling_all_weights_changes_nothing(solver) -> None:
    pose, _, rays = scene(noise=0.01)
    weights = torch.rand(4, 17, generator=torch.manual_seed(0), dtype=torch.float64)
    expected = solver(pose, rays, weights)
    torch.testing.assert_close(solver(pose, rays, 1e-3 * weights), expected)


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_frame_without_two_rays_has_no_root_and_gradient_zero(solver) -> None:
    pose, _, rays = scene()
    pose.requires_grad_()
    weights = torch.ones(4, 17, dtype=torch.float64)
    weights[1] = 0
    weights[2, 1:] = 0
    found = solver(pose, rays, weights)
    assert torch.isfinite(found).all(-1).tolist() == [True, False, False, True]
    found[[0, 3]].sum().backward()
    assert torch.isfinite(pose.grad).all() and pose.grad[1:3].eq(0).all()


@pytest.mark.parametrize("solver", SOLVERS)
def test_equal_rays_tell_no_depth(solver) -> None:
    pose, _, rays = scene()
    assert solver(pose, rays[:, :1].expand(-1, 17, -1)).isnan().all()


def test_a_pose_seen_from_within_has_no_robust_root() -> None:
    """Joints on both sides of the camera."""
    pose, _, _ = scene(frames=1)
    placed = pose + torch.tensor([0.0, 0.0, 0.05], dtype=torch.float64)
    assert robust_root(pose, placed[..., :2] / placed[..., 2:]).isnan().all()


def test_gradients_are_those_of_differences() -> None:
    pose, _, rays = scene(frames=2, noise=0.01)
    weights = torch.rand(2, 17, generator=torch.manual_seed(0), dtype=torch.float64) + 0.1
    inputs = [v.requires_grad_() for v in (pose, rays, weights)]
    assert torch.autograd.gradcheck(least_squares_root, inputs)


@pytest.mark.parametrize("solver", SOLVERS)
def test_hypotheses_are_solved_like_each_alone(solver) -> None:
    pose, _, rays = scene(noise=0.01)
    several = pose + 0.02 * torch.randn(3, 4, 17, 3, generator=torch.manual_seed(0)).double()
    together = solver(several, rays)
    for one, alone in zip(several, together, strict=True):
        torch.testing.assert_close(solver(one, rays), alone)


def test_float32_poses_give_float32_roots_of_float64_accuracy() -> None:
    pose, root, rays = scene()
    found = least_squares_root(pose.float(), rays)
    assert found.dtype == torch.float32 and (found - root).abs().max() < 1e-5


def test_a_steady_walk_is_left_as_it_is_by_smoothing() -> None:
    """Local lines fit exp(linear) depths exactly, at the ends as well."""
    depth = torch.exp(torch.linspace(1.0, 2.0, 40, dtype=torch.float64))
    root = depth[:, None] * torch.tensor([0.1, -0.2, 1.0], dtype=torch.float64)
    torch.testing.assert_close(smooth_depth(root, 5), root)


def test_smoothing_keeps_every_root_on_its_ray() -> None:
    _, root, _ = scene(frames=30)
    smooth = smooth_depth(root, 3)
    torch.testing.assert_close(smooth[:, :2] / smooth[:, 2:], root[:, :2] / root[:, 2:])
    assert smooth[:, 2].diff().abs().mean() < 0.5 * root[:, 2].diff().abs().mean()


@pytest.mark.parametrize("frames", [1, 2, 3])
def test_clips_shorter_than_the_window_are_smoothed(frames: int) -> None:
    _, root, _ = scene(frames=frames)
    assert torch.isfinite(smooth_depth(root, 10)).all()


def test_gaps_are_filled_in_linearly_and_ends_held() -> None:
    nan = torch.nan
    line = torch.tensor([nan, 1.0, nan, nan, 4.0, nan])
    expected = torch.tensor([1.0, 1.0, 2.0, 3.0, 4.0, 4.0])
    filled = fill_gaps(line[:, None].expand(-1, 3))
    torch.testing.assert_close(filled, expected[:, None].expand(-1, 3))


def test_a_clip_without_any_root_is_refused() -> None:
    with pytest.raises(StructDiffError, match="no frame whose keypoints tell a root"):
        fill_gaps(torch.full((2, 5, 3), torch.nan))


def test_a_clips_trajectory_is_found_through_its_camera() -> None:
    """Pixels, a distorting lens, a frame that is missing and a keypoint that was not found."""
    pose, _, _ = scene(frames=5)
    root = torch.linspace(0, 1, 5)[:, None] * torch.tensor([0.5, 0.1, 1.0]) + torch.tensor(
        [0, 0, 5]
    )
    camera = Camera(
        focal=np.full(2, 1100.0),
        centre=np.full(2, 500.0),
        radial=(-0.2, 0.2, 0),
        image_size=(1000, 1000),
    )
    keypoints = camera.project(pose.numpy() + root.numpy()[:, None])
    confidence = np.ones((5, 17))
    confidence[2], keypoints[2] = 0, 1e6
    keypoints[3, 4] = np.nan
    found = root_trajectory(pose.numpy(), keypoints, camera, confidence)
    np.testing.assert_allclose(found, root, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"pose": torch.zeros(4, 16, 3)}, r"expected poses \(..., J, 3\)"),
        ({"rays": torch.zeros(4, 17, 3)}, r"expected poses \(..., J, 3\)"),
        ({"weights": -torch.ones(4, 17)}, "0 or more"),
        ({"weights": torch.full((4, 17), torch.nan)}, "0 or more"),
    ],
)
def test_wrong_arguments_are_refused(change: dict, says: str) -> None:
    pose, _, rays = scene()
    with pytest.raises(StructDiffError, match=says):
        least_squares_root(**({"pose": pose, "rays": rays} | change))


def test_confidences_of_another_shape_are_refused() -> None:
    with pytest.raises(StructDiffError, match="one value per keypoint"):
        rays_and_weights(np.zeros((4, 17, 2)), Camera.pinhole((100, 100)), np.ones((4, 16)))


def test_negative_smoothing_is_refused() -> None:
    with pytest.raises(StructDiffError, match="0 or more"):
        smooth_depth(torch.ones(3, 3), -1)
