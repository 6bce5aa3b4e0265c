"""Cameras: projection, rays, mirror images, files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from structdiff.errors import StructDiffError
from structdiff.pose.cameras import Camera, read_cameras, write_cameras
from structdiff.pose.data import load_cmu17
from structdiff.pose.lenses import denormalise, normalise, project
from structdiff.pose.skeletons import H36M_17, mirror

FORMS = ("h36m", "opencv")


def camera(distortion: str = "h36m") -> Camera:
    """Made up, with every coefficient large enough to matter."""
    return Camera.from_quaternion(
        np.array([0.5, -0.5, 0.5, 0.5]),
        focal=np.array([1145.0, 1120.0]),
        centre=np.array([512.5, 480.5]),
        radial=(-0.2, 0.24, -0.03),
        tangential=(-0.01, 0.02),
        position=(1.0, -2.0, 1.5),
        image_size=(1000, 900),
        distortion=distortion,
    )


def people(seed: int = 0) -> np.ndarray:
    """Points in camera axes, metres, up to 15 degrees off the axis."""
    draw = np.random.default_rng(seed)
    return draw.uniform([-1, -1, 4], [1, 1, 8], size=(5, 17, 3))


@pytest.mark.usefixtures("data_dir")
@pytest.mark.parametrize("split", ["train", "test"])
def test_cmu17_keypoints_are_reproduced_to_a_thousandth_of_a_pixel(split: str) -> None:
    """Card 10 item 9."""
    for clip in load_cmu17(split):
        seen = clip.camera.project(clip.in_camera())
        assert np.abs(seen - clip.keypoints).max() < 1e-3, clip.name


@pytest.mark.usefixtures("data_dir")
def test_the_check_vector_of_the_data_is_reproduced() -> None:
    """README of CMU17: walking_01, frame 0, joint 10, camera 2."""
    clip = load_cmu17("test")["walking_01/2"]
    world = np.array([-1.8234997, -0.47126403, 1.4260328])
    seen = clip.camera.project(clip.camera.to_camera(world))
    np.testing.assert_allclose(seen, [844.82306, 421.31256], atol=1e-4)


@pytest.mark.usefixtures("data_dir")
def test_rays_of_cmu17_are_the_points_at_depth_one() -> None:
    for clip in load_cmu17("test")[:12]:
        points = clip.in_camera()
        rays = clip.camera.rays(clip.camera.project(points))
        assert np.abs(rays - points[..., :2] / points[..., 2:]).max() < 1e-10, clip.name


def test_cameras_of_the_data_file_agree_in_quaternion_and_matrix(data_dir: Path) -> None:
    """Card 10 item 9; each form alone gives the same camera."""
    path = data_dir / "pose" / "cameras.json"
    records = json.loads(path.read_text())["cameras"]
    for record, whole in zip(records, read_cameras(path), strict=True):
        turned = Camera.from_dict({k: v for k, v in record.items() if k != "R_world_to_cam"})
        assert np.abs(turned.rotation - whole.rotation).max() < 1e-12


def test_quaternion_and_matrix_of_scipy_agree() -> None:
    from scipy.spatial.transform import Rotation

    turn = Rotation.random(random_state=3)
    quaternion = turn.as_quat()[[3, 0, 1, 2]]
    mine = Camera.from_quaternion(quaternion, focal=np.ones(2), centre=np.zeros(2))
    np.testing.assert_allclose(mine.rotation, turn.as_matrix().T, atol=1e-14)


@pytest.mark.parametrize("form", FORMS)
def test_projection_is_the_formula_written_out(form: str) -> None:
    """Card 2.7; OpenCV's documentation of its camera model."""
    eye = camera(form)
    points = people()
    x, y = points[..., 0] / points[..., 2], points[..., 1] / points[..., 2]
    r2 = x**2 + y**2
    radial = 1 - 0.2 * r2 + 0.24 * r2**2 - 0.03 * r2**3
    p1, p2 = -0.01, 0.02
    if form == "h36m":
        u, v = (x * (radial + p1 * x + p2 * y) + p1 * r2, y * (radial + p1 * x + p2 * y) + p2 * r2)
    else:
        u = x * radial + 2 * p1 * x * y + p2 * (r2 + 2 * x**2)
        v = y * radial + p1 * (r2 + 2 * y**2) + 2 * p2 * x * y
    expected = np.stack([1145 * u + 512.5, 1120 * v + 480.5], -1)
    np.testing.assert_allclose(eye.project(points), expected, rtol=0, atol=1e-9)


def test_the_two_forms_of_distortion_differ_by_pixels() -> None:
    apart = camera("h36m").project(people()) - camera("opencv").project(people())
    assert np.abs(apart).max() > 1


@pytest.mark.parametrize("form", FORMS)
def test_rays_invert_the_projection(form: str) -> None:
    points = people(1)
    rays = camera(form).rays(camera(form).project(points))
    np.testing.assert_allclose(rays, points[..., :2] / points[..., 2:], rtol=0, atol=1e-10)


def test_rays_of_missing_keypoints_are_missing_and_touch_no_others() -> None:
    seen = camera().project(people())
    expected = camera().rays(seen)
    seen[2, 3] = np.nan
    expected[2, 3] = np.nan
    np.testing.assert_array_equal(camera().rays(seen), expected)


def test_keypoints_that_no_ray_reaches_are_refused() -> None:
    """x (1 - r^2) has its largest value, 0.385, at x = 0.577: no ray reaches 0.5."""
    fold = Camera(focal=np.ones(2) * 1000, centre=np.zeros(2), radial=(-1.0, 0, 0))
    with pytest.raises(StructDiffError, match=r"1 keypoints.*no ray.*\[500.0"):
        fold.rays(np.array([[100.0, 0.0], [500.0, 0.0]]))


def test_points_that_are_not_ahead_have_no_pixel() -> None:
    points = np.array([[0.1, 0.1, 2.0], [0.1, 0.1, 0.0], [0.1, 0.1, -2.0]])
    assert np.isnan(camera().project(points)).all(-1).tolist() == [False, True, True]


def test_projection_has_the_gradient_of_its_differences() -> None:
    points = torch.as_tensor(people()[0, :3]).requires_grad_()
    lens = torch.as_tensor(camera().intrinsics).requires_grad_()
    assert torch.autograd.gradcheck(lambda p, c: project(p, c), (points, lens))


def test_a_point_behind_the_camera_leaves_the_gradient_finite() -> None:
    points = torch.tensor([[0.1, 0.1, 2.0], [0.1, 0.1, 0.0]], requires_grad=True)
    seen = project(points, torch.as_tensor(camera().intrinsics).float())
    seen[0].sum().backward()
    assert torch.isfinite(points.grad).all() and points.grad[1].eq(0).all()


def test_a_batch_of_cameras_projects_as_each_of_them() -> None:
    other = Camera.pinhole((640, 480), 500.0)
    lenses = torch.as_tensor(np.stack([camera().intrinsics, other.intrinsics]))[:, None]
    points = people()[:2]
    both = project(torch.as_tensor(points), lenses).numpy()
    np.testing.assert_allclose(both[0], camera().project(points[0]), atol=1e-10)
    np.testing.assert_allclose(both[1], other.project(points[1]), atol=1e-10)


def test_the_clamp_acts_beyond_45_degrees_only() -> None:
    """Card 2.7."""
    eye = Camera.pinhole((1000, 1000), 500.0)
    points = np.array([[1.0, 0.5, 2.0], [4.0, -6.0, 2.0]])
    np.testing.assert_allclose(eye.project(points, clamp=True), [[750, 625], [1000, 0]])
    np.testing.assert_allclose(eye.project(points), [[750, 625], [1500, -1000]])


@pytest.mark.parametrize("form", FORMS)
def test_a_mirrored_pose_projects_to_the_mirrored_picture(form: str) -> None:
    """Card 10 item 5, 1e-4 px."""
    eye = camera(form)
    poses = people()
    seen = eye.mirrored().project(mirror(poses, H36M_17))
    expected = mirror(eye.project(poses), H36M_17, centre=500.0)
    np.testing.assert_allclose(seen, expected, rtol=0, atol=1e-4)


def test_the_mirrored_camera_sees_the_mirrored_world() -> None:
    eye = camera()
    world = np.random.default_rng(1).normal(size=(4, 3))
    there = eye.mirrored().to_camera(world * [-1, 1, 1])
    np.testing.assert_allclose(there, eye.to_camera(world) * [-1, 1, 1], atol=1e-12)


@pytest.mark.parametrize("form", FORMS)
def test_mirroring_twice_gives_the_camera_back(form: str) -> None:
    twice = camera(form).mirrored().mirrored()
    assert twice.to_dict() == camera(form).to_dict()


def test_mirroring_negates_cx_and_p1_of_the_normalised_intrinsics() -> None:
    """Card 2.7: of [fx, fy, cx, cy, k1, k2, k3, p1, p2] the numbers 2 and 7."""
    sign = np.array([1, 1, -1, 1, 1, 1, 1, -1, 1])
    mirrored = camera().mirrored().normalised_intrinsics
    np.testing.assert_allclose(mirrored, sign * camera().normalised_intrinsics, atol=1e-15)


def test_normalised_intrinsics_project_to_normalised_coordinates() -> None:
    eye, points = camera(), people()
    seen = project(torch.as_tensor(points), torch.as_tensor(eye.normalised_intrinsics)).numpy()
    np.testing.assert_allclose(seen, eye.normalise(eye.project(points)), atol=1e-12)


def test_both_axes_are_normalised_by_the_width() -> None:
    """Card 2.7: corners of a 1000 x 500 image are (-1, -1/2) and (1, 1/2)."""
    corners = np.array([[0.0, 0.0], [1000.0, 500.0]])
    np.testing.assert_allclose(normalise(corners, (1000, 500)), [[-1, -0.5], [1, 0.5]])


@pytest.mark.parametrize("kind", [np.asarray, torch.as_tensor])
def test_denormalising_inverts_normalising(kind) -> None:
    seen = kind(people()[..., :2] * 100)
    back = denormalise(normalise(seen, (1000, 1002)), (1000, 1002))
    assert type(back) is type(seen) and np.abs(np.asarray(back - seen)).max() < 1e-12


def test_world_and_camera_axes_invert_each_other() -> None:
    points = people()
    np.testing.assert_allclose(camera().to_world(camera().to_camera(points)), points, atol=1e-12)


def test_an_unknown_camera_looks_through_the_middle_with_1_2_longer_sides() -> None:
    assert Camera.pinhole((640, 480)).intrinsics[:4].tolist() == [768, 768, 320, 240]


@pytest.mark.parametrize("form", FORMS)
def test_cameras_are_read_as_they_were_written(form: str, tmp_path: Path) -> None:
    listed = [camera(form), Camera(focal=np.ones(2), centre=np.zeros(2))]
    write_cameras(tmp_path / "c.json", listed)
    again = read_cameras(tmp_path / "c.json")
    assert [c.to_dict() for c in again] == [c.to_dict() for c in listed]


def test_a_wrong_camera_of_a_file_is_named(tmp_path: Path) -> None:
    records = [camera().to_dict(), {**camera().to_dict(), "f_px": [-1, 1]}]
    (tmp_path / "c.json").write_text(json.dumps({"cameras": records}))
    with pytest.raises(StructDiffError, match=r"camera 1 of .*c\.json.*positive"):
        read_cameras(tmp_path / "c.json")


@pytest.mark.parametrize("content", ["[1, 2", "{}", "3", '{"cameras": [4]}'])
def test_a_file_that_lists_no_cameras_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text(content)
    with pytest.raises(StructDiffError, match="no list of cameras"):
        read_cameras(tmp_path / "c.json")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"quat_wxyz_cam_to_world": [1, 0, 0, 0]}, "different rotations"),
        ({"quat_wxyz_cam_to_world": [2, 0, 0, 0]}, "of length 1"),
        ({"c_px": [1.0]}, "centre of a camera must be 2"),
        ({"R_world_to_cam": [[1, 0, 0], [0, 1, 0], [0, 0, -1]]}, "proper rotation"),
        ({"res_wh": [1000.5, 2]}, "width and height"),
        ({"distortion": "fisheye"}, "one of h36m, opencv"),
    ],
)
def test_wrong_parts_of_a_camera_are_refused(change: dict, says: str) -> None:
    with pytest.raises(StructDiffError, match=says):
        Camera.from_dict({**camera().to_dict(), **change})


def test_a_camera_without_focal_length_is_refused() -> None:
    with pytest.raises(StructDiffError, match="needs f_px"):
        Camera.from_dict({"c_px": [0, 0]})


def test_normalising_without_an_image_size_asks_for_it() -> None:
    with pytest.raises(StructDiffError, match="image_size"):
        Camera(focal=np.ones(2), centre=np.zeros(2)).normalise(np.zeros((1, 2)))
