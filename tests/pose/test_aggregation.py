"""One pose out of several hypotheses: what each rule promises, and what noise does to it.

``shared + own`` are the standard deviations, in centimetres per coordinate, of the error that all
hypotheses of a synthetic set have in common and of the error each has for itself.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from structdiff.errors import StructDiffError
from structdiff.pose.aggregation import TEMPERATURES, aggregate, fit_temperature
from structdiff.pose.cameras import Camera
from structdiff.pose.data import PoseClip, load_cmu17

METHODS = ("p-agg", "j-agg", "softmax", "rpea", "pose-softmax", "median")
COMPARING = tuple(TEMPERATURES)
EYE = Camera(
    focal=np.full(2, 1100.0),
    centre=np.full(2, 500.0),
    radial=(-0.2, 0.2, 0.0),
    image_size=(1000, 1000),
)
every_method = pytest.mark.parametrize("method", METHODS)
every_comparison = pytest.mark.parametrize("method", COMPARING)


def scene(
    own: float = 0.03, shared: float = 0.03, count: int = 5, noise: float = 0.0, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Hypotheses (H, 8, 17, 3), truth, keypoints with ``noise`` in px, and root (8, 3)."""
    draw = np.random.default_rng(seed)
    truth = draw.normal(0, 0.35, (8, 17, 3))
    truth -= truth[:, :1]
    root = np.array([0.3, -0.2, 6.0]) + draw.normal(0, 0.1, (8, 3))
    keypoints = EYE.project(truth + root[:, None]) + draw.normal(0, noise, (8, 17, 2))
    wrong = draw.normal(0, shared, truth.shape) + draw.normal(0, own, (count, *truth.shape))
    wrong[:, :, 0] = 0
    return truth + wrong, truth, keypoints, root


def error(pose: np.ndarray, truth: np.ndarray) -> float:
    """MPJPE in millimetres."""
    return float(1e3 * np.linalg.norm(pose - truth, axis=-1).mean())


@cache
def one_view_each(exact: bool) -> list[PoseClip]:
    """The test clips of CMU17, each from one of its cameras."""
    clips = load_cmu17("test", detected=not exact)
    return [clip for place, clip in enumerate(clips) if place % 4 == (place // 4) % 4]


@cache
def on_cmu17(shared: float, own: float, method: str, temperature: float | None, exact: bool):
    """MPJPE of a rule and of the mean, 5 hypotheses, mm."""
    draw = np.random.default_rng(7)
    found, mean, joints = 0.0, 0.0, 0
    for clip in one_view_each(exact):
        truth = clip.in_camera()
        truth = truth - truth[:, :1]
        wrong = draw.normal(0, shared / 100, truth.shape) + draw.normal(
            0, own / 100, (5, *truth.shape)
        )
        wrong[:, :, 0] = 0
        drawn = truth + wrong
        result = aggregate(
            drawn, clip.keypoints, camera=clip.camera, method=method, temperature=temperature
        )
        found += error(result.pose, truth) * len(truth)
        mean += error(drawn.mean(0), truth) * len(truth)
        joints += len(truth)
    return found / joints, mean / joints


@every_method
def test_one_hypothesis_is_given_back(method: str) -> None:
    drawn, _, keypoints, _ = scene(count=1, noise=5)
    result = aggregate(drawn, keypoints, camera=EYE, method=method)
    np.testing.assert_allclose(result.pose, drawn[0], atol=1e-12)


@every_method
def test_the_order_of_hypotheses_changes_nothing(method: str) -> None:
    drawn, _, keypoints, _ = scene(noise=5)
    order = np.array([3, 0, 4, 1, 2])
    one = aggregate(drawn, keypoints, camera=EYE, method=method)
    two = aggregate(drawn[order], keypoints, camera=EYE, method=method)
    np.testing.assert_allclose(two.pose, one.pose, atol=1e-9)
    np.testing.assert_allclose(two.weights, one.weights[order], atol=1e-6)


@every_method
def test_weights_sum_to_one_and_make_the_pose(method: str) -> None:
    drawn, _, keypoints, _ = scene(noise=5)
    result = aggregate(drawn, keypoints, camera=EYE, method=method)
    np.testing.assert_allclose(result.weights.sum(0), 1, atol=1e-12)
    np.testing.assert_allclose((result.weights[..., None] * drawn).sum(0), result.pose)


@every_method
@pytest.mark.parametrize("missing", ["confidence", "nan"])
def test_a_missing_keypoint_does_not_matter(method: str, missing: str) -> None:
    drawn, _, keypoints, _ = scene(noise=5)
    confidence = np.ones((8, 17))
    moved = keypoints.copy()
    if missing == "nan":
        moved[2, 5] = np.nan
    else:
        moved[2, 5] += 300
    confidence[2, 5] = 0
    result = aggregate(drawn, keypoints, camera=EYE, confidence=confidence, method=method)
    again = aggregate(
        drawn,
        moved,
        camera=EYE,
        confidence=None if missing == "nan" else confidence,
        method=method,
    )
    np.testing.assert_allclose(again.pose, result.pose, atol=1e-12)
    np.testing.assert_allclose(again.root, result.root, atol=1e-9)


@pytest.mark.parametrize("method", ["j-agg", "softmax", "rpea"])
def test_a_joint_that_was_not_seen_is_the_mean(method: str) -> None:
    drawn, _, keypoints, _ = scene(noise=5)
    keypoints[2, 5] = np.nan
    result = aggregate(drawn, keypoints, camera=EYE, method=method, temperature=0)
    np.testing.assert_allclose(result.pose[2, 5], drawn[:, 2, 5].mean(0))


@every_comparison
def test_a_frame_that_was_not_seen_is_the_mean_and_its_root_filled_in(method: str) -> None:
    drawn, _, keypoints, _ = scene()
    keypoints[3] = np.nan
    result = aggregate(drawn, keypoints, camera=EYE, method=method)
    np.testing.assert_allclose(result.pose[3], drawn[:, 3].mean(0))
    np.testing.assert_allclose(result.root[3], result.root[[2, 4]].mean(0))


def test_an_unsure_keypoint_weighs_hypotheses_less_apart() -> None:
    drawn, _, keypoints, root = scene()
    spread = [
        aggregate(drawn, keypoints, camera=EYE, confidence=np.full((8, 17), c), root=root)
        .weights.std(axis=0)
        .mean()
        for c in (1.0, 0.5, 0.1)
    ]
    assert spread[0] > spread[1] > spread[2]


def test_p_agg_is_the_mean_without_any_keypoint() -> None:
    drawn, *_ = scene()
    result = aggregate(drawn, method="p-agg")
    np.testing.assert_allclose(result.pose, drawn.mean(0))
    assert result.root is None and result.root_source is None


def test_the_median_is_scipys_geometric_median() -> None:
    from scipy.optimize import minimize

    drawn, *_ = scene()
    pose = aggregate(drawn, method="median").pose
    for joint in (3, 9):
        points = drawn[:, 0, joint]
        expected = minimize(
            lambda p, at=points: np.linalg.norm(at - p, axis=-1).sum(),
            points.mean(0),
            method="Nelder-Mead",
            options={"xatol": 1e-9, "fatol": 1e-12},
        ).x
        np.testing.assert_allclose(pose[0, joint], expected, atol=1e-4)


def test_the_median_shrugs_off_one_wild_hypothesis() -> None:
    drawn, truth, *_ = scene(shared=0)
    drawn[2] += 1.0
    assert error(aggregate(drawn, method="median").pose, truth) < 70
    assert error(aggregate(drawn, method="p-agg").pose, truth) > 300


@pytest.mark.parametrize("method", ["j-agg", "softmax", "rpea"])
def test_at_temperature_zero_every_joint_is_the_one_that_projects_nearest(method: str) -> None:
    """Card 2.6, with the ground-truth root as published."""
    drawn, _, keypoints, root = scene(noise=5)
    missed = np.linalg.norm(EYE.project(drawn + root[:, None]) - keypoints, axis=-1)
    nearest = missed.argmin(0)
    expected = np.take_along_axis(drawn, nearest[None, ..., None], 0)[0]
    result = aggregate(drawn, keypoints, camera=EYE, root=root, method=method, temperature=0)
    np.testing.assert_allclose(result.pose[:, 1:], expected[:, 1:])


@pytest.mark.parametrize("method", ["j-agg", "softmax", "pose-softmax"])
def test_at_infinite_temperature_every_rule_is_the_mean(method: str) -> None:
    drawn, _, keypoints, _ = scene(noise=5)
    result = aggregate(drawn, keypoints, camera=EYE, method=method, temperature=np.inf)
    np.testing.assert_allclose(result.pose, drawn.mean(0), atol=1e-12)


@pytest.mark.parametrize("method", ["j-agg", "softmax", "pose-softmax", "rpea"])
def test_a_true_hypothesis_is_found_by_exact_keypoints(method: str) -> None:
    """Without the true root: least squares finds it from the true pose."""
    drawn, truth, keypoints, root = scene()
    drawn[3] = truth
    result = aggregate(drawn, keypoints, camera=EYE, method=method, temperature=1e-6)
    assert error(result.pose, truth) < 1e-6
    np.testing.assert_allclose(result.root, root, atol=1e-6)


def test_weights_are_the_formulas_of_their_methods() -> None:
    """Module docstring, card 9 (RPEA: the 3 best, temperature 0.002)."""
    drawn, _, keypoints, root = scene(noise=2)
    missed = np.linalg.norm(EYE.project(drawn + root[:, None]) - keypoints, axis=-1) / 500
    given = {"camera": EYE, "root": root}

    def shares(raw: np.ndarray) -> np.ndarray:
        return raw / raw.sum(0)

    kept = missed <= np.sort(missed, axis=0)[2]
    expected = {
        "j-agg": shares(np.exp(-0.5 * (missed / 0.016) ** 2)),
        "softmax": shares(np.exp(-missed / 0.016)),
        "rpea": shares(kept * np.exp(-missed / 0.002)),
        "pose-softmax": shares(np.exp(-missed.mean(-1, keepdims=True) / 0.008)) + 0 * missed,
    }
    for method, weights in expected.items():
        found = aggregate(drawn, keypoints, method=method, **given).weights
        np.testing.assert_allclose(found[:, :, 1:], weights[:, :, 1:], atol=1e-9, err_msg=method)


def test_joints_of_a_pose_stay_together_under_the_pose_likelihood() -> None:
    drawn, _, keypoints, _ = scene(noise=5)
    weights = aggregate(drawn, keypoints, camera=EYE, method="pose-softmax").weights
    assert np.ptp(weights, axis=-1).max() == 0


def test_selection_beats_the_mean_where_hypotheses_err_alike() -> None:
    """Exact keypoints, true root, shared error twice the own."""
    drawn, truth, keypoints, root = scene(own=0.02, shared=0.04)
    chosen = aggregate(drawn, keypoints, camera=EYE, root=root, temperature=0).pose
    assert error(chosen, truth) < 0.95 * error(drawn.mean(0), truth)


def test_selection_loses_to_the_mean_where_hypotheses_err_apart() -> None:
    """With exact keypoints and the true root still: a mean of 5 cuts independent errors to 45 %."""
    drawn, truth, keypoints, root = scene(own=0.04, shared=0.01)
    chosen = aggregate(drawn, keypoints, camera=EYE, root=root, temperature=0).pose
    assert error(chosen, truth) > 1.05 * error(drawn.mean(0), truth)


SETS = [(2.5, 1.25), (1.25, 2.5), (0.6, 1.9), (3.7, 0.75)]


@pytest.mark.usefixtures("data_dir")
@pytest.mark.parametrize(("shared", "own"), SETS)
@pytest.mark.parametrize("exact", [True, False])
def test_default_j_agg_is_no_worse_than_the_mean_on_cmu17(shared, own, exact) -> None:
    """Card 10 item 14 allows 0.5 mm; root by least squares, H = 5, whichever error leads."""
    found, mean = on_cmu17(shared, own, "j-agg", None, exact)
    assert found < mean


@pytest.mark.usefixtures("data_dir")
def test_the_published_choice_follows_the_noise_of_detections() -> None:
    """Smallest error, root by least squares: 35 mm where the mean has 25 mm."""
    found, mean = on_cmu17(1.25, 2.5, "j-agg", 0.0, False)
    assert found > mean + 5


@pytest.mark.usefixtures("data_dir")
def test_the_published_choice_gains_where_the_error_is_shared() -> None:
    """36 mm where the mean has 39 mm."""
    found, mean = on_cmu17(2.5, 1.25, "j-agg", 0.0, False)
    assert found < mean - 1


def test_a_fitted_temperature_is_the_best_that_was_tried() -> None:
    """Recomputed with aggregate."""
    clips = [scene(noise=5, seed=s) for s in range(3)]
    parts = [list(p) for p in zip(*[c[:3] for c in clips], strict=True)]
    tried = (0.0, 0.004, 0.032, np.inf)
    fit = fit_temperature(*parts, [EYE] * 3, method="softmax", temperatures=tried)
    for heat, found in zip(tried, fit.errors, strict=True):
        expected = [
            error(aggregate(d, k, camera=EYE, method="softmax", temperature=heat).pose, y)
            for d, y, k in zip(*parts, strict=True)
        ]
        assert abs(found - np.mean(expected)) < 1e-9
    assert fit.temperature == tried[int(np.argmin(fit.errors))]


def test_noisier_keypoints_ask_for_a_higher_temperature() -> None:
    fits = []
    for noise in (0.5, 20.0):
        clips = [scene(noise=noise, seed=s)[:3] for s in range(4)]
        parts = [list(p) for p in zip(*clips, strict=True)]
        fits.append(fit_temperature(*parts, [EYE] * 4).temperature)
    assert 0 < fits[0] < 0.5 * fits[1]


def test_results_say_what_they_were_made_with() -> None:
    drawn, _, keypoints, root = scene()
    free = aggregate(drawn, keypoints, camera=EYE)
    held = aggregate(drawn, keypoints, camera=EYE, root=root)
    assert (free.root_source, held.root_source) == ("lstsq", "gt")
    assert held.label == "j-agg (temperature 0.016, root: gt)"
    assert aggregate(drawn, method="median").label == "median"


def test_a_guessed_camera_is_owned_up_to() -> None:
    drawn, _, keypoints, _ = scene()
    guessed = aggregate(drawn, keypoints, image_size=(1000, 1000))
    assert guessed.camera_assumed and not aggregate(drawn, keypoints, camera=EYE).camera_assumed
    # Depth goes with the focal length: 1200 px were assumed of 1100.
    depths = aggregate(drawn, keypoints, camera=EYE).root[:, 2]
    np.testing.assert_allclose(guessed.root[:, 2] / depths, 1200 / 1100, rtol=0.03)


def test_a_camera_without_a_size_takes_the_one_given() -> None:
    drawn, _, keypoints, _ = scene()
    bare = Camera(focal=EYE.focal, centre=EYE.centre, radial=EYE.radial)
    one = aggregate(drawn, keypoints, camera=bare, image_size=(1000, 1000))
    np.testing.assert_array_equal(one.pose, aggregate(drawn, keypoints, camera=EYE).pose)


def test_poses_keep_the_precision_of_the_hypotheses() -> None:
    drawn, _, keypoints, _ = scene()
    result = aggregate(drawn.astype(np.float32), keypoints.astype(np.float32), camera=EYE)
    assert result.pose.dtype == np.float32


def test_a_hypothesis_behind_the_camera_is_left_out() -> None:
    drawn, truth, keypoints, root = scene(own=0.001, shared=0)
    drawn[1, :, 1:, 2] -= 50
    result = aggregate(drawn, keypoints, camera=EYE, root=root)
    assert result.weights[1, :, 1:].max() == 0 and error(result.pose, truth) < 2


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"hypotheses": np.zeros((8, 17, 3))}, r"shape \(H, T, J, 3\)"),
        ({"hypotheses": np.zeros((0, 8, 17, 3))}, "H at least 1"),
        ({"hypotheses": np.full((2, 8, 17, 3), np.nan)}, "hypothesis 0 holds"),
        ({"keypoints": np.zeros((7, 17, 2))}, r"keypoints .* \(8, 17, 2\)"),
        ({"keypoints": None}, "compares with keypoints"),
        ({"camera": None}, "image_size"),
        ({"method": "jpma"}, "one of p-agg, j-agg"),
        ({"method": "median", "temperature": 1.0}, "median has no temperature"),
        ({"temperature": -1.0}, "0 or more"),
        ({"temperature": float("nan")}, "0 or more"),
        ({"root": np.zeros((7, 3))}, r"root must be .* \(8, 3\)"),
        ({"confidence": np.zeros((8, 17))}, "no frame whose keypoints tell a root"),
        ({"confidence": -np.ones((8, 17))}, "confidence must be 0 or more"),
    ],
)
def test_wrong_arguments_are_refused(change: dict, says: str) -> None:
    drawn, _, keypoints, _ = scene()
    with pytest.raises(StructDiffError, match=says):
        aggregate(**({"hypotheses": drawn, "keypoints": keypoints, "camera": EYE} | change))


def test_a_temperature_needs_clips_and_a_method_that_has_one() -> None:
    drawn, truth, keypoints, _ = scene()
    with pytest.raises(StructDiffError, match="p-agg has no temperature"):
        fit_temperature([drawn], [truth], [keypoints], [EYE], method="p-agg")
    with pytest.raises(StructDiffError, match="at least one"):
        fit_temperature([], [], [], [])
    with pytest.raises(StructDiffError, match="target 0 must have shape"):
        fit_temperature([drawn], [truth[1:]], [keypoints], [EYE])
