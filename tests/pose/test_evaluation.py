"""The table of an evaluation: which frames and joints count, and how often (once).

Published numbers are the figures of CMU17's description.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from structdiff.errors import StructDiffError
from structdiff.pose import evaluate, hypotheses, metrics
from structdiff.pose.data import PoseClip, PoseDataset, load_cmu17
from structdiff.pose.evaluation import METRICS
from structdiff.pose.skeletons import H36M_17, MPI_INF_3DHP_17, mirror

Array = npt.NDArray[np.floating]
LENGTHS = (12, 30, 7, 21)
ACTIONS = ("Walking", "Eating 1", "Walking 2", "Sitting")
POSITIONS = ["MPJPE", "P-MPJPE", "N-MPJPE", "PCK", "AUC", "symmetry gap"]


@pytest.fixture
def clips() -> tuple[list[Array], list[Array]]:
    """Predictions and targets of four clips, metres, roots anywhere."""
    source = np.random.default_rng(11)
    place = np.array([0.1, -0.3, 5])
    target = [place + source.normal(0, 0.25, (n, 17, 3)) for n in LENGTHS]
    size = (0.02, 0.05, 0.08, 0.1)  # clips differ, so that weights show
    return [y + source.normal(0, s, y.shape) for y, s in zip(target, size, strict=True)], target


@pytest.fixture
def several(clips: tuple[list[Array], list[Array]]) -> tuple[list[Array], list[Array]]:
    """Five hypotheses of each clip."""
    source = np.random.default_rng(12)
    return [p + source.normal(0, 0.04, (5, *p.shape)) for p in clips[0]], clips[1]


def centred(poses: Array, root: int = 0) -> Array:
    return poses - poses[..., root : root + 1, :]


# ---------------------------------------------------------------- Human3.6M


def test_an_action_is_the_mean_over_the_frames_of_its_takes(
    clips: tuple[list[Array], list[Array]],
) -> None:
    frames = [
        1000 * np.linalg.norm(centred(p) - centred(y), axis=-1) for p, y in zip(*clips, strict=True)
    ]
    table = evaluate(*clips, protocol="h36m", actions=ACTIONS)
    assert table.loc["Walking", "MPJPE"] == pytest.approx(
        np.concatenate([frames[0], frames[2]]).mean(), abs=1e-9
    )


def test_the_mean_of_actions_is_plain(clips: tuple[list[Array], list[Array]]) -> None:
    table = evaluate(*clips, protocol="h36m", actions=ACTIONS)
    rows = table.loc[["Walking", "Eating", "Sitting"], "MPJPE"]
    assert table.loc["mean", "MPJPE"] == pytest.approx(rows.mean(), abs=1e-9)


def test_the_mean_of_all_frames_goes_by_their_number(
    clips: tuple[list[Array], list[Array]],
) -> None:
    table = evaluate(*clips, protocol="h36m", actions=ACTIONS)
    joined = [centred(np.concatenate(part)) for part in clips]
    assert table.loc["all frames", "MPJPE"] == pytest.approx(metrics.mpjpe(*joined), abs=1e-9)


def test_every_frame_is_counted_once(clips: tuple[list[Array], list[Array]]) -> None:
    table = evaluate(*clips, protocol="h36m", actions=ACTIONS)
    assert table["frames"].to_dict() == {
        "Walking": 19,
        "Eating": 30,
        "Sitting": 21,
        "mean": 70,
        "all frames": 70,
    }


def test_human36m_asks_for_its_three_protocols_and_the_velocity(
    clips: tuple[list[Array], list[Array]],
) -> None:
    table = evaluate(*clips, protocol="h36m", actions=ACTIONS, fps=50)
    names = ["frames", "MPJPE", "P-MPJPE", "N-MPJPE", "MPJVE", "MPJVE (mm/s)"]
    assert list(table.columns) == names


def test_the_mean_pose_of_cmu17_has_its_published_errors(data_dir: Any) -> None:
    """170.5 and 165.9 mm over all frames of all views; 174.0 mm, the plain mean of 9 actions."""
    train = np.concatenate([metrics.root_relative(c.in_camera()) for c in load_cmu17("train")])
    mean = (train + mirror(train, H36M_17)).mean(0) / 2  # of every pose and its mirror image
    test = load_cmu17("test")
    guess = [np.broadcast_to(mean, c.poses.shape) for c in test]
    table = evaluate(guess, test, protocol="h36m", metrics=["MPJPE", "P-MPJPE"])
    found = table.loc[["all frames", "mean"]].round(1)
    assert found["MPJPE"].to_list() == [170.5, 174.0]
    assert found.loc["all frames", "P-MPJPE"] == 165.9


# ---------------------------------------------------------------- frames, clips, batches


def test_the_order_of_the_clips_is_of_no_matter(clips: tuple[list[Array], list[Array]]) -> None:
    back = evaluate(*(part[::-1] for part in clips), protocol="h36m", actions=ACTIONS[::-1])
    table = evaluate(*clips, protocol="h36m", actions=ACTIONS)
    np.testing.assert_allclose(back.loc[table.index], table, rtol=1e-12)


@pytest.mark.parametrize("name", POSITIONS)
def test_scores_of_positions_do_not_depend_on_the_batch(
    name: str, clips: tuple[list[Array], list[Array]]
) -> None:
    """The same frames, cut into pieces of 5 frames and a shorter last one."""
    pieces = [
        [poses[start : start + 5] for poses in part for start in range(0, len(poses), 5)]
        for part in clips
    ]
    whole, cut = (evaluate(*given, metrics=[name]) for given in (clips, pieces))
    assert cut.loc["all frames", name] == pytest.approx(whole.loc["all frames", name], rel=1e-12)


def test_velocities_are_not_taken_between_clips(clips: tuple[list[Array], list[Array]]) -> None:
    steps = [np.diff(centred(p) - centred(y), axis=0) for p, y in zip(*clips, strict=True)]
    expected = 1000 * np.linalg.norm(np.concatenate(steps), axis=-1).mean()
    table = evaluate(*clips, metrics=["MPJVE"])
    assert table.loc["all frames", "MPJVE"] == pytest.approx(expected, abs=1e-9)


def test_accelerations_are_not_taken_over_a_frame_that_does_not_count(
    clips: tuple[list[Array], list[Array]],
) -> None:
    prediction, target = centred(clips[0][0]), centred(clips[1][0])
    valid = np.ones(12, dtype=bool)
    valid[5] = False
    bends = np.diff(prediction - target, n=2, axis=0)
    expected = 1000 * np.linalg.norm(np.delete(bends, [3, 4, 5], axis=0), axis=-1).mean()
    table = evaluate(prediction, target, valid=valid, metrics=["acceleration error"])
    assert table.loc["all frames", "acceleration error"] == pytest.approx(expected, abs=1e-9)


def test_a_clip_too_short_for_a_velocity_has_none(
    clips: tuple[list[Array], list[Array]],
) -> None:
    table = evaluate([clips[0][0], clips[0][1][:1]], [clips[1][0], clips[1][1][:1]])
    assert np.isnan(table.loc["1", "MPJVE"])
    assert table.loc["all frames", "MPJVE"] == table.loc["0", "MPJVE"]


def test_each_clip_has_its_own_rate(clips: tuple[list[Array], list[Array]]) -> None:
    table = evaluate(*clips, fps=[25, 50, 50, 50])
    ratio = table["MPJVE (mm/s)"] / table["MPJVE"]
    assert ratio[["0", "1", "2", "3"]].to_list() == pytest.approx([25, 50, 50, 50])


# ---------------------------------------------------------------- joints and roots


def test_roots_are_subtracted(clips: tuple[list[Array], list[Array]]) -> None:
    moved = [np.array([1.0, 2, 3]) + p for p in clips[0]]
    here, there = (evaluate(p, clips[1], metrics=["MPJPE"]) for p in (clips[0], moved))
    np.testing.assert_allclose(there, here, atol=1e-9)


def test_roots_are_kept_on_request(clips: tuple[list[Array], list[Array]]) -> None:
    table = evaluate(clips[1][0] + [0, 0, 0.25], clips[1][0], root="keep", metrics=["MPJPE"])
    assert table.loc["all frames", "MPJPE"] == pytest.approx(250)


def test_leaving_out_the_root_divides_by_16(clips: tuple[list[Array], list[Array]]) -> None:
    with_root, without = (
        evaluate(*clips, metrics=["MPJPE"], include_root=choice) for choice in (True, False)
    )
    np.testing.assert_allclose(without["MPJPE"], with_root["MPJPE"] * 17 / 16, rtol=1e-12)
    assert (with_root.attrs["joints"], without.attrs["joints"]) == (17, 16)


def test_the_table_says_its_units(clips: tuple[list[Array], list[Array]]) -> None:
    table = evaluate(*clips, fps=50)
    assert table.attrs["units"] == {name: METRICS[name].unit for name in table.columns[1:]}
    assert table.attrs["units"]["MPJVE (mm/s)"] == "mm/s"


# ---------------------------------------------------------------- hypotheses


def test_hypotheses_are_scored_as_they_are_alone(
    several: tuple[list[Array], list[Array]],
) -> None:
    scores = hypotheses.hypothesis_scores(*([centred(v) for v in part] for part in several))
    row = evaluate(*several).loc["all frames"]
    assert {name: row[name] for name in scores} == pytest.approx(scores, abs=1e-9)


def test_aligned_hypotheses_are_scored_as_they_are_alone(
    several: tuple[list[Array], list[Array]],
) -> None:
    scores = hypotheses.hypothesis_scores(*several, align=True)
    names = [f"{name} aligned" for name in scores]
    row = evaluate(*several, metrics=names).loc["all frames"]
    assert row[names].to_list() == pytest.approx(list(scores.values()), abs=1e-9)


def test_poses_of_several_hypotheses_are_their_mean(
    several: tuple[list[Array], list[Array]],
) -> None:
    table = evaluate(*several, metrics=["MPJPE", "P-Agg"])
    alone = evaluate([h.mean(0) for h in several[0]], several[1], metrics=["MPJPE"])
    np.testing.assert_allclose(table["MPJPE"], alone["MPJPE"], rtol=1e-12)
    np.testing.assert_allclose(table["P-Agg"], alone["MPJPE"], rtol=1e-12)


def test_hypothesis_scores_are_in_order_in_every_row(
    several: tuple[list[Array], list[Array]],
) -> None:
    table = evaluate(*several, protocol="h36m", actions=ACTIONS)
    names = ["J-Best", "P-Best (pose)", "P-Best (clip)", "P-Best (batch)", "hypothesis mean"]
    assert (table[names].diff(axis=1).iloc[:, 1:] >= 0).all(axis=None)


def test_one_hypothesis_is_scored_as_one_pose(clips: tuple[list[Array], list[Array]]) -> None:
    one = evaluate([p[None] for p in clips[0]], clips[1])
    assert one.equals(evaluate(*clips))


def test_calibration_leaves_the_root_out(several: tuple[list[Array], list[Array]]) -> None:
    """Wide of the truth everywhere but at the root, where the interval is a point that holds it."""
    source = np.random.default_rng(0)
    shift = 0.05 * (np.arange(17) > 0)[:, None] * np.ones(3)
    wrong = [y + shift + source.normal(0, 1e-6, (5, *y.shape)) for y in several[1]]
    table = evaluate(wrong, several[1], metrics=["coverage (80 %)"])
    assert table.loc["all frames", "coverage (80 %)"] < 1


# ---------------------------------------------------------------- what may be given


def test_tensors_and_arrays_give_one_table(clips: tuple[list[Array], list[Array]]) -> None:
    tensors = ([torch.from_numpy(v) for v in part] for part in clips)
    assert evaluate(*tensors).equals(evaluate(*clips))


def test_one_array_is_one_clip(clips: tuple[list[Array], list[Array]]) -> None:
    assert list(evaluate(clips[0][0], clips[1][0]).index) == ["0", "all frames"]


def test_named_predictions_find_their_targets(clips: tuple[list[Array], list[Array]]) -> None:
    guess, target = ({f"clip {k}": v for k, v in enumerate(part)} for part in clips)
    table = evaluate(dict(reversed(list(guess.items()))), target)
    np.testing.assert_array_equal(table, evaluate(*clips))


def test_a_data_set_brings_actions_rates_and_valid_frames(
    clips: tuple[list[Array], list[Array]],
) -> None:
    data = PoseDataset(
        tuple(
            PoseClip(str(k), poses=y, action=a, fps=50.0, valid=np.arange(len(y)) > 2)
            for k, (y, a) in enumerate(zip(clips[1], ACTIONS, strict=True))
        )
    )
    valid = [np.arange(len(y)) > 2 for y in clips[1]]
    expected = evaluate(*clips, protocol="h36m", actions=ACTIONS, fps=50, valid=valid)
    assert evaluate(clips[0], data, protocol="h36m").equals(expected)


def test_targets_in_world_axes_are_scored_in_the_cameras(data_dir: Any) -> None:
    data = load_cmu17("test").select(lambda clip: clip.name.startswith("running_01"))
    table = evaluate([clip.in_camera() for clip in data], data, metrics=["MPJPE"])
    assert table.loc["all frames", "MPJPE"] == pytest.approx(0, abs=1e-9)


# ---------------------------------------------------------------- refusals


def test_millimetres_are_told_from_metres(clips: tuple[list[Array], list[Array]]) -> None:
    with pytest.raises(StructDiffError, match=r"prediction of clip '1'.*millimetres.*1000"):
        evaluate([clips[0][0], 1000 * clips[0][1]], clips[1][:2])


def test_poses_too_small_for_metres_are_refused(clips: tuple[list[Array], list[Array]]) -> None:
    with pytest.raises(StructDiffError, match=r"target of clip '0'.*too small for metres"):
        evaluate(clips[0][0], clips[1][0] / 1000)


def test_a_prediction_that_is_not_finite_is_named(
    clips: tuple[list[Array], list[Array]],
) -> None:
    clips[0][2][4, 16, 1] = np.nan
    with pytest.raises(StructDiffError, match="clip '2' is not finite in frame 4 at joint 'RWrist"):
        evaluate(*clips)


def test_a_missing_action_is_named(clips: tuple[list[Array], list[Array]]) -> None:
    with pytest.raises(StructDiffError, match="clip '1' has no action"):
        evaluate(*clips, protocol="h36m", actions=["Walking", "", "Eating", "Sitting"])


def test_other_frames_than_the_target_has_are_refused(
    clips: tuple[list[Array], list[Array]],
) -> None:
    with pytest.raises(StructDiffError, match=r"clip '0' must have the shape .*\(12, 17, 3\)"):
        evaluate(clips[0][0][:-1], clips[1][0])


def test_missing_predictions_are_named(clips: tuple[list[Array], list[Array]]) -> None:
    target = {"TS1": clips[1][0], "TS2": clips[1][1]}
    with pytest.raises(StructDiffError, match="no prediction of clip 'TS2'"):
        evaluate({"TS1": clips[0][0]}, target)


def test_poses_on_another_skeleton_are_not_scored_as_3dhp(
    clips: tuple[list[Array], list[Array]],
) -> None:
    data = PoseDataset(tuple(PoseClip(str(k), poses=y) for k, y in enumerate(clips[1])), H36M_17)
    with pytest.raises(StructDiffError, match=r"HeadTop.*convert"):
        evaluate(clips[0], data, protocol="3dhp")


def test_predictions_on_another_skeleton_than_the_targets_are_refused(
    clips: tuple[list[Array], list[Array]],
) -> None:
    target = PoseDataset((PoseClip("a", poses=clips[1][0]),), H36M_17)
    guess = replace(target, skeleton=MPI_INF_3DHP_17)
    with pytest.raises(StructDiffError, match="target: h36m17, prediction: 3dhp17"):
        evaluate(guess, target)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"metrics": ["MPJE"]}, "unknown metric 'MPJE'"),
        ({"metrics": ["MPJVE (mm/s)"]}, "needs the rate of clip '0'"),
        ({"metrics": ["CRPS"]}, "needs several hypotheses"),
        ({"protocol": "human36m"}, "unknown protocol 'human36m'"),
        ({"root": "pelvis"}, "root must be 'subtract' or 'keep'"),
        ({"actions": ["Walking"], "protocol": "h36m"}, "one for each of 4 clips, got 1"),
        ({"valid": np.zeros(3)}, "valid of clip '0' must say of 12 frames"),
        ({"valid": [np.zeros(n) for n in LENGTHS]}, "no frame of clip '0' counts"),
    ],
)
def test_what_cannot_be_scored_is_said(
    wrong: dict[str, Any], message: str, clips: tuple[list[Array], list[Array]]
) -> None:
    with pytest.raises(StructDiffError, match=message):
        evaluate(*clips, **wrong)
