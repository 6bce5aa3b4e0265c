"""Pictures of poses: what they show is where the joints are, upright and with their own sides."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from itertools import combinations
from pathlib import Path
from statistics import NormalDist

import matplotlib
import numpy as np
import pytest
from matplotlib.colors import same_color
from mpl_toolkits.mplot3d import Axes3D
from mpl_toolkits.mplot3d.proj3d import proj_transform

from structdiff.errors import StructDiffError
from structdiff.pose._drawing import LEFT, RIGHT, TRUNK
from structdiff.pose.data import load_cmu17
from structdiff.pose.plots import (
    plot_hypotheses_curve,
    plot_joint_errors,
    plot_keypoints,
    plot_pose,
    plot_uncertainty,
)
from structdiff.pose.skeletons import COCO_17, H36M_17, MPI_INF_3DHP_17

matplotlib.use("Agg")

# Someone who faces the camera, so that the left of the body is the right of the picture; y is down.
HEIGHTS = [0.95, 0.95, 0.5, 0.1, 0.95, 0.5, 0.1, 1.1, 1.4, 1.5, 1.6, 1.4, 1.2, 1.0, 1.4, 1.2, 1.0]
SIDES = [0, -0.1, -0.12, -0.12, 0.1, 0.12, 0.12, 0, 0, 0, 0, 0.2, 0.25, 0.3, -0.2, -0.25, -0.3]
DEPTHS = [5, 5, 4.9, 5, 5, 4.95, 5.1, 5, 5, 4.95, 5, 5, 5, 4.8, 5, 5, 5.2]
POSE = np.stack([SIDES, 1.5 - np.array(HEIGHTS), DEPTHS], axis=-1)  # a camera 1.5 m up
RELATIVE = POSE - POSE[0]
WORLD = np.stack([SIDES, DEPTHS, HEIGHTS], axis=-1)
DRAW = np.random.default_rng(0)
OTHERS = RELATIVE + 0.05 * DRAW.standard_normal((4, 17, 3)) * (np.arange(17) > 0)[:, None]
PIXELS = np.stack([500 + 200 * POSE[:, 0], 500 + 200 * POSE[:, 1]], axis=-1)


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    """No figure outlives its test."""
    yield
    from matplotlib import pyplot

    pyplot.close("all")


def joints(ax) -> np.ndarray:
    """Where the joints are drawn, (J, 3): the ends of their bones."""
    return np.array([np.array(line.get_data_3d())[:, 1] for line in ax.lines])


def part(ax, gid: str):
    """A collection as the drawn figure shows it."""
    ax.figure.canvas.draw()
    return next(each for each in ax.collections if each.get_gid() == gid)


def projected(ax, points: np.ndarray) -> np.ndarray:
    """Points (..., 3) where the view shows them, (..., 2)."""
    x, y, _ = proj_transform(*points.reshape(-1, 3).T, ax.get_proj())
    return np.stack([x, y], axis=-1).reshape(*points.shape[:-1], 2)


def labels(ax) -> list[str]:
    return [text.get_text() for text in ax.get_legend().get_texts()]


# ---------------------------------------------------------------- a pose in space


def test_a_pose_is_drawn_on_an_axes3d_in_metres() -> None:
    ax = plot_pose(POSE)
    assert isinstance(ax, Axes3D)
    names = [ax.get_xlabel(), ax.get_ylabel(), ax.get_zlabel()]
    assert names == ["x (m)", "depth (m)", "height (m)"]


def test_it_draws_where_it_is_told() -> None:
    from matplotlib import pyplot

    _, grid = pyplot.subplots(1, 2, subplot_kw={"projection": "3d"})
    assert plot_pose(POSE, ax=grid[1]) is grid[1]
    assert not grid[0].lines


def test_camera_axes_are_drawn_upright_above_the_lowest_joint() -> None:
    """x stays, depth is z, height is minus y above the ankles at y = 1.4 m."""
    expected = np.stack([POSE[:, 0], POSE[:, 2], 1.4 - POSE[:, 1]], axis=-1)
    np.testing.assert_allclose(joints(plot_pose(POSE)), expected, atol=1e-12)


def test_absolute_world_poses_keep_their_height_above_zero() -> None:
    jump = WORLD + np.array([0, 0, 0.3])
    np.testing.assert_allclose(joints(plot_pose(jump, axes="world")), jump)


def test_a_pose_relative_to_its_root_stands_on_the_floor() -> None:
    for axes, pose in (("camera", RELATIVE), ("world", WORLD - WORLD[0])):
        assert joints(plot_pose(pose, axes=axes))[:, 2].min() == pytest.approx(0)


def test_a_floor_that_is_given_is_the_zero_of_height() -> None:
    ax = plot_pose(POSE, floor=-1.5)  # 1.5 m below the camera
    np.testing.assert_allclose(joints(ax)[:, 2], HEIGHTS)


def test_every_bone_starts_at_the_parent() -> None:
    for skeleton in (H36M_17, MPI_INF_3DHP_17, COCO_17):
        ax = plot_pose(WORLD, axes="world", skeleton=skeleton)
        starts = np.array([np.array(line.get_data_3d())[:, 0] for line in ax.lines])
        parents = [j if p == -1 else p for j, p in enumerate(skeleton.parents)]
        np.testing.assert_allclose(starts, WORLD[parents])


@pytest.mark.parametrize("skeleton", [H36M_17, MPI_INF_3DHP_17, COCO_17], ids=lambda s: s.name)
def test_each_side_has_its_colour(skeleton) -> None:
    for line in plot_pose(WORLD, axes="world", skeleton=skeleton).lines:
        joint = skeleton.index(line.get_gid())
        side = LEFT if joint in skeleton.left else RIGHT if joint in skeleton.right else TRUNK
        assert same_color(line.get_color(), side)


def test_a_metre_is_as_long_in_every_direction() -> None:
    """The view is orthographic: a rotation times one scale."""
    for pose in (POSE, RELATIVE, POSE * (6, 1, 1)):
        linear = plot_pose(pose).get_proj()[:3, :3]
        scale = linear.T @ linear
        np.testing.assert_allclose(scale, scale[0, 0] * np.eye(3), atol=1e-9 * scale[0, 0])


def test_what_is_nearer_covers_what_is_farther() -> None:
    """The left wrist is stretched towards the camera, the right one away from it."""
    drawn = {line.get_gid(): line for line in plot_pose(POSE, view=(0, -90)).lines}
    assert drawn["LWrist"].get_zorder() > drawn["Spine"].get_zorder()
    assert drawn["RWrist"].get_zorder() < drawn["Spine"].get_zorder()


def test_hypotheses_are_drawn_bone_by_bone_on_the_same_ground() -> None:
    ax = plot_pose(RELATIVE, hypotheses=OTHERS)
    drawn = part(ax, "hypotheses")
    lowest = RELATIVE[:, 1].max()
    upright = np.stack([OTHERS[..., 0], OTHERS[..., 2], lowest - OTHERS[..., 1]], axis=-1)
    bones = np.stack([upright[:, list(H36M_17.parents[1:])], upright[:, 1:]], axis=2)
    np.testing.assert_allclose(
        np.array(drawn.get_segments()), projected(ax, bones).reshape(-1, 2, 2), atol=1e-9
    )
    assert "4 hypotheses" in labels(ax)


def test_the_reference_is_drawn_in_its_own_place() -> None:
    ax = plot_pose(WORLD, axes="world", target=WORLD + 0.1)
    drawn = part(ax, "target")
    bones = np.stack([WORLD[list(H36M_17.parents[1:])], WORLD[1:]], axis=1) + 0.1
    np.testing.assert_allclose(np.array(drawn.get_segments()), projected(ax, bones), atol=1e-9)


def outlines(ax) -> np.ndarray:
    """Size (J, 2) of the drawn ellipsoids in metres, across and upwards, in no order."""
    drawn = part(ax, "std")
    view = ax.get_proj()  # orthographic, so its last row is constant
    metre = np.linalg.norm(view[:3, 0]) / view[3, 3]
    return np.array([np.ptp(path.vertices, axis=0) for path in drawn.get_paths()]) / metre


def test_the_deviation_is_a_sphere_of_its_size_in_metres() -> None:
    """The radius is one standard deviation, from wherever it is seen."""
    for view in ((0, -90), (35, 20), (90, -90)):
        sizes = outlines(plot_pose(POSE, std=np.full(17, 0.1), view=view))
        np.testing.assert_allclose(sizes, 0.2, rtol=0.01)  # a polygon of 24 corners


def test_a_deviation_per_coordinate_is_an_ellipsoid_in_the_axes_of_the_pose() -> None:
    """Seen by the camera it is as wide as the deviation of x and as high as that of y."""
    std = np.broadcast_to([0.05, 0.1, 0.3], (17, 3))
    sizes = outlines(plot_pose(POSE, std=std, view=(0, -90)))
    np.testing.assert_allclose(sizes, np.broadcast_to([0.1, 0.2], (17, 2)), rtol=0.01)


@pytest.mark.parametrize("action", ["walking_", "jumping_", "washwindow_"])
def test_in_the_cameras_view_a_real_body_looks_like_its_pixels(data_dir: Path, action: str) -> None:
    """Neither mirrored nor upside down; what stands aside is sheared by perspective, no more."""
    clips = load_cmu17("test").select(lambda clip: clip.name.startswith(action))
    for clip in clips.clips[:4]:
        pose = clip.in_camera()[-1]
        ax = plot_pose(pose - pose[0], view=(0, -90))
        seen, pixels = projected(ax, joints(ax)), clip.keypoints[-1]
        assert np.corrcoef(seen[:, 0], pixels[:, 0])[0, 1] > 0.9
        assert np.corrcoef(seen[:, 1], pixels[:, 1])[0, 1] < -0.98


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"pose": POSE[:16]}, r"pose must have the shape \(17, 3\), got \(16, 3\)"),
        ({"pose": POSE * 1000}, "millimetres"),
        ({"pose": np.where(POSE == 4.8, np.nan, POSE)}, "pose holds NaN"),
        ({"pose": POSE, "axes": "image"}, "'camera' or 'world'"),
        ({"pose": POSE, "hypotheses": OTHERS}, "not relative to the root, hypotheses: give both"),
        ({"pose": RELATIVE, "target": POSE}, "relative to the root, target not"),
        ({"pose": POSE, "std": -np.ones(17)}, "std holds negative"),
        ({"pose": POSE, "std": np.ones(16)}, "std must have the shape"),
        ({"pose": POSE, "skeleton": "h36m"}, "unknown skeleton"),
    ],
)
def test_what_cannot_be_drawn_is_said(arguments: dict, message: str) -> None:
    with pytest.raises(StructDiffError, match=message):
        plot_pose(**arguments)


def test_a_flat_axes_is_refused() -> None:
    from matplotlib import pyplot

    with pytest.raises(StructDiffError, match="ax is flat"):
        plot_pose(POSE, ax=pyplot.subplots()[1])


# ---------------------------------------------------------------- keypoints


def test_keypoints_are_drawn_at_their_pixels_with_their_sides() -> None:
    ax = plot_keypoints(PIXELS, image_size=(1000, 800))
    for j, line in enumerate(ax.lines):
        assert line.get_gid() == H36M_17.joints[j]
        np.testing.assert_allclose(line.get_xydata()[1], PIXELS[j])
        side = LEFT if j in H36M_17.left else RIGHT if j in H36M_17.right else TRUNK
        assert same_color(line.get_color(), side)


def test_the_limits_are_the_image_with_y_down() -> None:
    for given in ({"image_size": (1000, 800)}, {"image": np.zeros((800, 1000, 3), np.uint8)}):
        ax = plot_keypoints(PIXELS, **given)
        assert ax.get_xlim() == (0, 1000) and ax.get_ylim() == (800, 0)
        assert ax.get_aspect() == 1
        assert (ax.get_xlabel(), ax.get_ylabel()) == ("x (px)", "y (px)")


def test_without_a_size_the_limits_hold_all_keypoints_with_y_down() -> None:
    ax = plot_keypoints(PIXELS)
    (left, right), (bottom, top) = ax.get_xlim(), ax.get_ylim()
    assert bottom > top
    assert left < PIXELS[:, 0].min() and PIXELS[:, 0].max() < right
    assert top < PIXELS[:, 1].min() and PIXELS[:, 1].max() < bottom


def test_the_image_lies_behind_from_corner_to_corner() -> None:
    image = DRAW.integers(0, 255, (80, 100, 3), dtype=np.uint8)
    (drawn,) = plot_keypoints(PIXELS / 10, image=image).images
    np.testing.assert_array_equal(drawn.get_array(), image)
    assert drawn.get_extent() == [0, 100, 80, 0]


def test_unsure_joints_are_hollow() -> None:
    confidence = np.linspace(0, 1, 17)
    ax = plot_keypoints(PIXELS, confidence=confidence, min_confidence=0.5)
    hollow = [same_color(line.get_markerfacecolor(), "white") for line in ax.lines]
    assert hollow == list(confidence < 0.5)


def test_a_joint_that_was_not_seen_is_left_out() -> None:
    seen = np.where(np.arange(17)[:, None] == 13, np.nan, PIXELS)
    ax = plot_keypoints(seen)
    assert np.isfinite([ax.get_xlim(), ax.get_ylim()]).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"keypoints": POSE}, "keypoints must have the shape"),
        ({"keypoints": PIXELS, "confidence": np.ones(3)}, "confidence must have the shape"),
        ({"keypoints": PIXELS, "image": np.ones(3)}, "image must be"),
        (
            {"keypoints": PIXELS, "image": np.ones((9, 8, 3)), "image_size": (9, 8)},
            r"the image is \(8, 9\) pixels",
        ),
        ({"keypoints": np.full((17, 2), np.nan)}, "no joint is a number"),
    ],
)
def test_keypoints_that_cannot_be_drawn_are_said(arguments: dict, message: str) -> None:
    with pytest.raises(StructDiffError, match=message):
        plot_keypoints(**arguments)


# ---------------------------------------------------------------- charts


def test_the_bars_are_the_errors_by_joint() -> None:
    ax = plot_joint_errors(np.arange(17.0))
    assert [bar.get_height() for bar in ax.patches] == list(range(17))
    assert [text.get_text() for text in ax.get_xticklabels()] == list(H36M_17.joints)
    assert ax.get_ylabel() == "error (mm)"


def test_bars_of_two_methods_stand_side_by_side() -> None:
    ax = plot_joint_errors({"a": np.ones(17), "b": np.full(17, 2.0)})
    a, b = ax.containers
    assert labels(ax) == ["a", "b"]
    for one, other in zip(a, b, strict=True):
        assert one.get_x() + one.get_width() == pytest.approx(other.get_x())


def band(ax) -> tuple[float, float]:
    y = ax.collections[0].get_paths()[0].vertices[:, 1]
    return y.min(), y.max()


def test_the_band_is_between_the_quantiles_of_the_hypotheses() -> None:
    clip = np.repeat(RELATIVE[None], 3, axis=0)
    many = clip + np.linspace(-0.1, 0.1, 11)[:, None, None, None]
    ax = plot_uncertainty(clip, "LWrist", "y", hypotheses=many, target=clip, fps=30)
    middle = RELATIVE[13, 1]
    assert band(ax) == pytest.approx((middle - 0.08, middle + 0.08))
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("time (s)", "y of LWrist (m)")
    assert labels(ax) == ["80 %", "mean", "reference"]


def test_the_band_of_a_deviation_is_that_of_the_normal_distribution() -> None:
    clip = np.repeat(RELATIVE[None], 3, axis=0)
    std = np.broadcast_to([0.1, 0.2, 0.3], clip.shape)
    ax = plot_uncertainty(clip, 13, "z", std=std, level=90)
    reach = NormalDist(0, 0.3).inv_cdf(0.95)
    assert band(ax) == pytest.approx((RELATIVE[13, 2] - reach, RELATIVE[13, 2] + reach))


def test_the_curve_is_the_mean_over_all_subsets_of_the_hypotheses() -> None:
    errors = DRAW.gamma(4.0, 10.0, (6, 5))
    ax = plot_hypotheses_curve(errors, aggregates={"J-Agg": 30.0})
    expected = [
        np.mean([errors[list(chosen)].min(axis=0) for chosen in combinations(range(6), h)])
        for h in range(1, 7)
    ]
    np.testing.assert_allclose(ax.lines[0].get_ydata(), expected)
    assert set(ax.lines[1].get_ydata()) == {30.0}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: plot_joint_errors(np.ones(3)), "errors must have the shape"),
        (lambda: plot_joint_errors({"a": np.full(17, np.nan)}), "errors a holds NaN"),
        (lambda: plot_uncertainty(RELATIVE[None], "LWrist", "xy"), "coordinate must be"),
        (lambda: plot_uncertainty(RELATIVE[None], "Tail"), "no joint 'Tail'"),
        (lambda: plot_uncertainty(RELATIVE[None], 17), "joint 17"),
        (lambda: plot_uncertainty(RELATIVE[None], 0, level=100), "level must be"),
        (lambda: plot_hypotheses_curve(np.ones(3)), "errors must have the shape"),
    ],
)
def test_charts_say_what_is_wrong(call, message: str) -> None:
    with pytest.raises(StructDiffError, match=message):
        call()


@pytest.mark.parametrize(
    "draw",
    [
        lambda: plot_pose(POSE),
        lambda: plot_keypoints(PIXELS),
        lambda: plot_joint_errors(np.ones(17)),
        lambda: plot_uncertainty(POSE[None], 3),
        lambda: plot_hypotheses_curve(np.ones((3, 4))),
    ],
    ids=["pose", "keypoints", "joint errors", "uncertainty", "hypotheses"],
)
def test_without_matplotlib_every_picture_says_what_to_install(
    draw: Callable[[], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(StructDiffError, match=r"pip install 'structdiff\[plots\]'"):
        draw()
