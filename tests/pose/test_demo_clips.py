"""The embedded clips: the script makes them, and they are CMU17's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from structdiff import datasets
from structdiff.pose import load_cmu17
from structdiff.pose.checks import check_dataset
from structdiff.pose.data import load_cmu17_demo
from structdiff.pretrained.make_cmu17_demo import cmu17_demo


def test_the_script_makes_the_file(data_dir: Path) -> None:
    made = cmu17_demo()
    with np.load(datasets.path("cmu17_demo")) as file:
        assert set(file.files) == set(made)
        for key in file.files:
            np.testing.assert_array_equal(file[key], made[key])
            assert file[key].dtype == made[key].dtype


def test_the_file_is_small() -> None:
    assert datasets.path("cmu17_demo").stat().st_size < 250_000


def test_a_demo_clip_is_the_clip_of_that_name_in_cmu17(data_dir: Path) -> None:
    clip, whole = load_cmu17_demo()["walking_01/2"], load_cmu17("test")["walking_01/2"]
    np.testing.assert_array_equal(clip.poses, whole.poses)
    np.testing.assert_array_equal(clip.keypoints, whole.keypoints)
    assert clip.camera.to_dict() == whole.camera.to_dict()
    assert (clip.fps, clip.action, clip.axes) == (whole.fps, whole.action, whole.axes)


@pytest.mark.parametrize("detected", [False, True])
def test_the_demo_clips_pass_every_check_of_units_axes_and_order(detected: bool) -> None:
    clips = load_cmu17_demo(detected=detected)
    assert [len(clip) for clip in clips] == [90] * 8
    check_dataset(clips)


def test_the_exact_keypoints_are_the_projected_poses_and_the_detected_ones_are_not() -> None:
    # The set's README: exact to 1e-3 px; a mean error of 5.5 px when detected.
    def error(detected: bool) -> float:
        apart = [
            np.linalg.norm(clip.camera.project(clip.in_camera()) - clip.keypoints, axis=-1)
            for clip in load_cmu17_demo(detected=detected)
        ]
        return float(np.mean(apart))

    assert error(False) < 1e-3
    assert 3 < error(True) < 8
