"""Scores of hypotheses: their order, their equalities, and naive loops that give the same numbers.

The inequalities hold for any numbers (a minimum of means is at least the mean of minima; a norm is
convex). Calibration is checked on exchangeable draws, of which the truth is one more.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from structdiff.errors import StructDiffError
from structdiff.pose import calibration, hypotheses, metrics

Array = npt.NDArray[np.floating]
COUNT, LENGTHS = 6, (5, 9, 5)


@pytest.fixture
def clips() -> tuple[list[Array], list[Array]]:
    """Six hypotheses of three clips that each lean their own way, metres."""
    source = np.random.default_rng(3)
    target = [source.normal(0, 0.3, (frames, 17, 3)) for frames in LENGTHS]
    several = [
        y + source.normal(0, 0.05, (COUNT, *y.shape)) + source.normal(0, 0.03, (COUNT, 1, 17, 3))
        for y in target
    ]
    return several, target


@pytest.fixture
def exchangeable() -> Callable[[int], tuple[Array, Array]]:
    """H hypotheses and a truth from one normal law, 4,000 frames of 3 joints."""

    def draw(count: int) -> tuple[Array, Array]:
        all_of_them = np.random.default_rng(5).normal(0.2, 0.05, (count + 1, 4000, 3, 3))
        return all_of_them[1:], all_of_them[0]

    return draw


def naive_errors(hypothesis: Array, target: Array) -> Array:
    """Millimetres (H, T, J) by loops."""
    return np.array(
        [
            [[1000 * np.linalg.norm(p - y) for p, y in zip(a, b, strict=True)] for a, b in frames]
            for frames in ([(h[t], target[t]) for t in range(len(target))] for h in hypothesis)
        ]
    )


def naive_best(clips: tuple[list[Array], list[Array]], level: str) -> float:
    errors = [naive_errors(h, y) for h, y in zip(*clips, strict=True)]
    if level == "joint":
        return float(np.mean(np.concatenate([e.min(0).ravel() for e in errors])))
    if level == "pose":
        return float(np.mean(np.concatenate([e.mean(2).min(0) for e in errors])))
    if level == "clip":
        return sum(e.mean((1, 2)).min() * e.shape[1] for e in errors) / sum(LENGTHS)
    return float(np.concatenate(errors, axis=1).mean((1, 2)).min())


# ---------------------------------------------------------------- against loops


@pytest.mark.parametrize("level", ["joint", "pose", "clip", "batch"])
def test_p_best_is_the_mean_of_minima(clips: tuple[list[Array], list[Array]], level: Any) -> None:
    assert hypotheses.p_best(*clips, level=level) == pytest.approx(
        naive_best(clips, level), abs=1e-6
    )


def test_p_agg_is_the_error_of_the_mean_pose(clips: tuple[list[Array], list[Array]]) -> None:
    joined = [np.concatenate(part, axis=axis) for part, axis in zip(clips, (1, 0), strict=True)]
    expected = metrics.mpjpe(joined[0].mean(0), joined[1])
    assert hypotheses.p_agg(*clips) == pytest.approx(expected, abs=1e-6)


def test_aligned_p_agg_aligns_the_mean_pose(clips: tuple[list[Array], list[Array]]) -> None:
    joined = [np.concatenate(part, axis=axis) for part, axis in zip(clips, (1, 0), strict=True)]
    expected = metrics.p_mpjpe(joined[0].mean(0), joined[1])
    assert hypotheses.p_agg(*clips, align=True) == pytest.approx(expected, abs=1e-6)


def test_aligned_j_best_aligns_every_hypothesis_first(
    clips: tuple[list[Array], list[Array]],
) -> None:
    moved = [
        np.stack([metrics.procrustes_align(each, y) for each in h])
        for h, y in zip(*clips, strict=True)
    ]
    expected = naive_best((moved, clips[1]), "joint")
    assert hypotheses.j_best(*clips, align=True) == pytest.approx(expected, abs=1e-6)


def test_j_agg_takes_the_hypothesis_nearest_in_the_image(
    clips: tuple[list[Array], list[Array]],
) -> None:
    source = np.random.default_rng(8)
    distances = [source.random(h.shape[:3]) for h in clips[0]]
    chosen = [
        1000 * np.linalg.norm(h[d[:, t, j].argmin(), t, j] - y[t, j])
        for h, y, d in zip(*clips, distances, strict=True)
        for t in range(len(y))
        for j in range(17)
    ]
    assert hypotheses.j_agg(*clips, distances) == pytest.approx(np.mean(chosen), abs=1e-6)


def test_curve_is_the_mean_over_all_subsets(clips: tuple[list[Array], list[Array]]) -> None:
    errors = hypotheses.hypothesis_errors(*clips)
    expected = [
        np.mean(
            [
                hypotheses.best_error([e[list(chosen)] for e in errors], "joint")
                for chosen in combinations(range(COUNT), size)
            ]
        )
        for size in range(1, COUNT + 1)
    ]
    np.testing.assert_allclose(hypotheses.best_curve(errors, "joint"), expected, atol=1e-9)


@pytest.mark.parametrize("fair", [True, False])
def test_energy_score_is_that_of_all_pairs(
    clips: tuple[list[Array], list[Array]], fair: bool
) -> None:
    pairs = COUNT * (COUNT - 1) if fair else COUNT**2
    scores = []
    for h, y in zip(*clips, strict=True):
        apart = np.linalg.norm(h[:, None] - h, axis=-1).sum((0, 1))
        scores.append(np.linalg.norm(h - y, axis=-1).mean(0) - apart / (2 * pairs))
    expected = 1000 * np.concatenate(scores).mean(0)
    np.testing.assert_allclose(
        calibration.energy_score(*clips, fair=fair, per="joint"), expected, atol=1e-6
    )


@pytest.mark.parametrize("fair", [True, False])
def test_crps_is_that_of_all_pairs(clips: tuple[list[Array], list[Array]], fair: bool) -> None:
    pairs = COUNT * (COUNT - 1) if fair else COUNT**2
    scores = []
    for h, y in zip(*clips, strict=True):
        apart = np.abs(h[:, None] - h).sum((0, 1))
        scores.append(np.abs(h - y).mean(0) - apart / (2 * pairs))
    expected = 1000 * np.concatenate(scores).mean(0)
    np.testing.assert_allclose(
        calibration.crps(*clips, fair=fair, per="coordinate"), expected, atol=1e-6
    )


# ---------------------------------------------------------------- order


@pytest.mark.parametrize("align", [False, True])
def test_the_coarser_the_choice_the_larger_the_best_error(
    clips: tuple[list[Array], list[Array]], align: bool
) -> None:
    levels = ("joint", "pose", "clip", "batch")
    best = [hypotheses.p_best(*clips, level=level, align=align) for level in levels]
    assert best == sorted(best) and len(set(best)) == 4


@pytest.mark.parametrize("align", [False, True])
def test_j_best_is_at_most_j_agg(clips: tuple[list[Array], list[Array]], align: bool) -> None:
    source = np.random.default_rng(8)
    distances = [source.random(h.shape[:3]) for h in clips[0]]
    chosen = hypotheses.j_agg(*clips, distances, align=align)
    assert hypotheses.j_best(*clips, align=align) < chosen


def test_j_agg_is_j_best_where_the_image_tells_the_truth(
    clips: tuple[list[Array], list[Array]],
) -> None:
    errors = hypotheses.hypothesis_errors(*clips)
    assert hypotheses.j_agg(*clips, errors) == pytest.approx(hypotheses.j_best(*clips))


def test_p_agg_is_at_most_the_mean_of_hypotheses(clips: tuple[list[Array], list[Array]]) -> None:
    assert hypotheses.p_agg(*clips) < hypotheses.mean_of_hypotheses(*clips)


@pytest.mark.parametrize("align", [False, True])
def test_all_scores_of_one_hypothesis_are_equal(
    clips: tuple[list[Array], list[Array]], align: bool
) -> None:
    several, target = clips
    one = [h[:1] for h in several]
    distances = [np.zeros(h.shape[:3]) for h in one]
    scores = hypotheses.hypothesis_scores(
        one,
        target,
        distance_2d=distances,
        aggregated={"itself": [h[0] for h in one]},
        align=align,
    )
    assert list(scores.values()) == pytest.approx([scores["J-Best"]] * len(scores), abs=1e-9)


def test_p_best_of_a_batch_of_one_clip_is_that_of_the_clip(
    clips: tuple[list[Array], list[Array]],
) -> None:
    alone = clips[0][1], clips[1][1]
    assert hypotheses.p_best(*alone, level="batch") == pytest.approx(
        hypotheses.p_best(*alone, level="clip")
    )


@pytest.mark.parametrize("level", ["joint", "pose", "clip"])
def test_best_errors_do_not_depend_on_what_is_scored_together(
    clips: tuple[list[Array], list[Array]], level: Any
) -> None:
    """All but the level "batch", which is defined by it."""
    apart = [hypotheses.p_best(h, y, level=level) for h, y in zip(*clips, strict=True)]
    assert hypotheses.p_best(*clips, level=level) == pytest.approx(
        np.average(apart, weights=LENGTHS)
    )


@pytest.mark.parametrize("level", ["joint", "pose", "clip", "batch"])
def test_curve_never_rises(clips: tuple[list[Array], list[Array]], level: Any) -> None:
    curve = hypotheses.best_curve(hypotheses.hypothesis_errors(*clips), level)
    assert (np.diff(curve) < 0).all()


def test_curve_leads_from_the_mean_to_the_best(clips: tuple[list[Array], list[Array]]) -> None:
    curve = hypotheses.best_curve(hypotheses.hypothesis_errors(*clips), "joint")
    assert curve[[0, -1]] == pytest.approx(
        [hypotheses.mean_of_hypotheses(*clips), hypotheses.j_best(*clips)]
    )


def test_scores_leave_out_joints_that_are_not_asked_for(
    clips: tuple[list[Array], list[Array]],
) -> None:
    some = [2, 5, 16]
    few = [h[:, :, some] for h in clips[0]], [y[:, some] for y in clips[1]]
    assert hypotheses.hypothesis_scores(*clips, joints=some) == pytest.approx(
        hypotheses.hypothesis_scores(*few)
    )


# ---------------------------------------------------------------- calibration


def test_quantile_intervals_of_nine_draws_cover_eighty_percent(
    exchangeable: Callable[[int], tuple[Array, Array]],
) -> None:
    """From the first to the last of nine: 8 of the 10 gaps that the truth may fall in."""
    assert calibration.coverage(*exchangeable(9), 0.8, interval="quantile") == pytest.approx(
        80, abs=1
    )


def test_quantile_intervals_of_four_draws_cover_three_fifths(
    exchangeable: Callable[[int], tuple[Array, Array]],
) -> None:
    assert calibration.coverage(*exchangeable(4), 0.8, interval="quantile") == pytest.approx(
        60, abs=1
    )


@pytest.mark.parametrize("count", [2, 5, 20])
def test_student_intervals_of_normal_draws_cover_their_level(
    exchangeable: Callable[[int], tuple[Array, Array]], count: int
) -> None:
    assert calibration.coverage(*exchangeable(count), 0.8, interval="student") == pytest.approx(
        80, abs=1
    )


def test_normal_intervals_of_five_draws_cover_69_percent(
    exchangeable: Callable[[int], tuple[Array, Array]],
) -> None:
    """P(|t_4| < 1.2816 / sqrt(1.2)), 4 degrees of freedom."""
    from scipy.stats import t

    expected = 100 * (1 - 2 * t.sf(1.2815516 / np.sqrt(1.2), 4))
    assert expected == pytest.approx(69.3, abs=0.1)
    assert calibration.coverage(*exchangeable(5), 0.8) == pytest.approx(expected, abs=1)


def test_coverage_is_told_per_joint_and_coordinate() -> None:
    """Truths of one joint coordinate lie outside, all others on the mean."""
    several = np.random.default_rng(0).normal(0, 0.01, (5, 40, 3, 3))
    target = several.mean(0)
    target[:, 1, 2] += 1.0
    expected = np.full((3, 3), 100.0)
    expected[1, 2] = 0
    covered = calibration.coverage(several, target, per="coordinate")
    np.testing.assert_array_equal(covered, expected)


def test_fair_energy_score_does_not_depend_on_the_number_of_draws(
    exchangeable: Callable[[int], tuple[Array, Array]],
) -> None:
    few, many = (calibration.energy_score(*exchangeable(count)) for count in (2, 24))
    assert few == pytest.approx(many, rel=0.02)


def test_fair_crps_of_normal_draws_is_its_closed_form(
    exchangeable: Callable[[int], tuple[Array, Array]],
) -> None:
    """E CRPS of the truth's own law N(m, s): half the mean distance of two draws, s / sqrt(pi)."""
    assert calibration.crps(*exchangeable(8)) == pytest.approx(50 / np.sqrt(np.pi), rel=0.02)


def test_spread_of_normal_draws_is_their_deviation_in_space(
    exchangeable: Callable[[int], tuple[Array, Array]],
) -> None:
    several, _ = exchangeable(60)
    assert calibration.spread(several) == pytest.approx(50 * np.sqrt(3), rel=0.01)


def test_spread_per_coordinate_is_the_standard_deviation() -> None:
    several = np.random.default_rng(0).normal(0, 0.01, (5, 4, 3, 3))
    expected = 1000 * several.std(0, ddof=1).mean(0)
    np.testing.assert_allclose(calibration.spread(several, per="coordinate"), expected)


# ---------------------------------------------------------------- refusals


def test_clips_with_other_numbers_of_hypotheses_are_refused(
    clips: tuple[list[Array], list[Array]],
) -> None:
    several, target = clips
    with pytest.raises(StructDiffError, match=r"same number of hypotheses, got \[3, 6\]"):
        hypotheses.j_best([several[0][:3], *several[1:]], target)


def test_hypotheses_of_other_frames_than_the_target_are_refused(
    clips: tuple[list[Array], list[Array]],
) -> None:
    with pytest.raises(StructDiffError, match="clip 1 must be"):
        hypotheses.j_best(clips[0], [y[:5] for y in clips[1]])


def test_an_unknown_level_is_refused(clips: tuple[list[Array], list[Array]]) -> None:
    with pytest.raises(StructDiffError, match="one of joint, pose, clip, batch"):
        hypotheses.p_best(*clips, level="frame")  # type: ignore[arg-type]


def test_distances_in_the_image_must_be_numbers(clips: tuple[list[Array], list[Array]]) -> None:
    with pytest.raises(StructDiffError, match="clip 0 must be numbers"):
        hypotheses.j_agg(*clips, [np.full(h.shape[:3], np.nan) for h in clips[0]])


@pytest.mark.parametrize(
    "score", [calibration.coverage, calibration.energy_score, calibration.crps]
)
def test_one_hypothesis_has_no_calibration(
    score: Callable[..., Any], clips: tuple[list[Array], list[Array]]
) -> None:
    with pytest.raises(StructDiffError, match="at least 2 hypotheses, got 1"):
        score(clips[0][0][:1], clips[1][0])


def test_the_level_of_an_interval_is_no_percentage(
    clips: tuple[list[Array], list[Array]],
) -> None:
    with pytest.raises(StructDiffError, match="between 0 and 1, got 80"):
        calibration.coverage(*clips, 80)
