"""The protocol of MPI-INF-3DHP: its joints, its thresholds, its sequences and its valid frames.

Published numbers are those of the MATLAB evaluation that lies with DDHPose
(github.com/Andyen512/DDHPose, 3dhp_test/test_util/H20_K10, sequencewise, J_Agg, t1).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from structdiff.pose import evaluate
from structdiff.pose.skeletons import MPI_INF_3DHP_17

Array = npt.NDArray[np.floating]


def standing(frames: int) -> Array:
    """One pose on the skeleton of MPI-INF-3DHP, metres."""
    pose = np.random.default_rng(2).normal(0, 0.3, (17, 3))
    return np.repeat(pose[None] - pose[14], frames, axis=0)


def off_by(target: Array, millimetres: Any) -> Array:
    """A prediction with these errors (..., J), along x."""
    moved = target.copy()
    moved[..., 0] += np.asarray(millimetres) / 1000
    return moved


def test_a_sequence_of_3dhp_averages_17_joints() -> None:
    """TS6's published means per joint, pelvis (14) included as 0, and its published average."""
    per_joint = [
        *(46.3066101772355, 30.6953536228247, 31.4218866664096, 41.4724749297391),
        *(52.3986222114414, 29.003938811828, 44.1217676324003, 70.987043388212),
        *(8.86656269802377, 101.965072174292, 134.786133984008, 8.71342152669368),
        *(115.087027176658, 129.174954209453, 0.0, 15.0089375942217, 35.3352818781012),
    ]
    target = standing(3)
    table = evaluate(off_by(target, per_joint), target, protocol="3dhp")
    assert table.loc["all frames", "MPJPE"] == pytest.approx(52.6673581577378, abs=1e-9)


def test_pck_of_3dhp_weighs_14_joints_alike() -> None:
    """TS6's published shares of 392 valid frames, by pairs of joints, and its published total."""
    missed = np.zeros((392, 17), dtype=bool)
    shares = {
        **{(3, 6): 98.9795918367347, (4, 7): 96.4285714285714, (9, 12): 80.7397959183673},
        (10, 13): 62.1173469387755,
    }
    for pair, share in shares.items():
        count = round((100 - share) / 100 * 2 * 392)
        missed[: (count + 1) // 2, pair[0]] = missed[: count // 2, pair[1]] = True
    missed[:, [15, 16]] = True  # spine and head do not count
    target = standing(392)
    table = evaluate(off_by(target, 200.0 * missed), target, protocol="3dhp")
    assert table.loc["all frames", "PCK"] == pytest.approx(91.1807580174927, abs=1e-9)


def test_auc_of_3dhp_leaves_pelvis_spine_and_head_out() -> None:
    errors = np.full(17, 76.0)
    errors[[14, 15, 16]] = 0
    target = standing(2)
    table = evaluate(off_by(target, errors), target, protocol="3dhp")
    assert table.loc["mean", "AUC"] == pytest.approx(100 * 15 / 31, abs=1e-9)


def test_the_mean_of_sequences_is_plain() -> None:
    """The published sequence averages of J-Agg at its first step."""
    averages = [31.1875974424752, 26.1289266828847, 12.1065907156493, 25.0398406621039]
    averages += [32.0332429318416, 52.6673581577378]
    lengths = (60, 55, 51, 56, 28, 39)
    target = {f"TS{k + 1}": standing(n) for k, n in enumerate(lengths)}
    guess = {
        name: off_by(pose, np.where(np.arange(17) == 14, 0, 17 / 16 * mean))
        for (name, pose), mean in zip(target.items(), averages, strict=True)
    }
    table = evaluate(guess, target, protocol="3dhp")
    assert table.loc["mean", "MPJPE"] == pytest.approx(np.mean(averages), abs=1e-9)
    assert list(table.index) == [*target, "mean", "all frames"]


def test_only_valid_frames_count() -> None:
    target = standing(6)
    valid = np.array([1, 0, 1, 1, 0, 1])
    guess = off_by(target, np.where(valid, 10.0, 1000.0)[:, None] * (np.arange(17) != 14))
    table = evaluate(guess, target, protocol="3dhp", valid=valid[:, None])
    assert table.loc["all frames", ["frames", "MPJPE", "PCK"]].to_list() == pytest.approx(
        [4, 160 / 17, 100]
    )


def test_frames_that_do_not_count_may_hold_anything() -> None:
    target = standing(6)
    guess = target.copy()
    guess[2], target[4] = np.nan, 1e9
    valid = np.array([1, 1, 0, 1, 0, 1], dtype=bool)
    table = evaluate(guess, target, skeleton=MPI_INF_3DHP_17, valid=valid)
    assert table.loc["all frames", "MPJPE"] == pytest.approx(0, abs=1e-9)
    assert np.isfinite(table.loc["all frames", ["MPJVE", "P-MPJPE"]].to_list()).all()
