"""Regressions of one frame: what they learn exactly, and what they reach on real motion."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from structdiff.errors import StructDiffError
from structdiff.pose import evaluate, load_cmu17
from structdiff.pose.baselines import MLPLifter, RidgeLifter
from structdiff.pose.data import PoseClip, PoseDataset, load_cmu17_demo
from structdiff.pose.skeletons import mirror

torch.set_num_threads(1)


def error(model: RidgeLifter | MLPLifter, data: PoseDataset) -> float:
    table = evaluate(model.predict(data), data, metrics=["MPJPE"])
    return float(table.loc["all frames", "MPJPE"])


@pytest.mark.parametrize(("detected", "expected"), [(False, 56.2), (True, 71.7)])
def test_ridge_reproduces_the_figures_of_cmu17(
    detected: bool, expected: float, data_dir: Path
) -> None:
    # The set's README: all test frames x 4 views, root-relative, camera axes.
    model = RidgeLifter().fit(load_cmu17("train", detected=detected))
    assert error(model, load_cmu17("test", detected=detected)) == pytest.approx(expected, abs=0.2)


def test_ridge_is_the_solution_of_its_normal_equations() -> None:
    # With scikit-learn's Ridge as the independent computation.
    from sklearn.linear_model import Ridge

    data = load_cmu17_demo()
    model = RidgeLifter(penalty=0.3).fit(data)
    x, y = [], []
    for clip in data:
        width, height = clip.image_size
        flat = (clip.keypoints.astype(np.float64) * 2 - [width, height]) / width
        pose = clip.in_camera() - clip.in_camera()[:, :1]
        x += [flat, mirror(flat, "h36m17")]
        y += [pose, mirror(pose, "h36m17")]
    flat, pose = np.concatenate(x), np.concatenate(y)
    around = flat[:, 1:] - flat[:, :1]
    size = np.sqrt((around**2).mean((1, 2)))[:, None]
    u = np.concatenate([around.reshape(len(flat), -1) / size, flat[:, 0], size], axis=1)
    other = Ridge(0.3).fit(u, pose.reshape(len(pose), -1))
    first = len(data[0])
    expected = other.predict(u[:first]).reshape(first, 17, 3)
    np.testing.assert_allclose(
        model.predict(data)[0], expected - expected[:, :1], rtol=0, atol=2e-4
    )


@pytest.mark.parametrize(
    "model", [RidgeLifter(), MLPLifter(8, 1, max_steps=5)], ids=["ridge", "network"]
)
def test_the_mirror_image_of_a_clip_is_lifted_to_the_mirror_image(
    model: RidgeLifter | MLPLifter,
) -> None:
    clips = load_cmu17_demo()[:2]
    model.fit(clips)
    plain, mirrored = (
        [replace(clip, camera=None, keypoints=k) for clip in clips]
        for k in (clips[0].keypoints, mirror(clips[0].keypoints, "h36m17", centre=500.0))
    )
    (a, _), (b, _) = model.predict(plain), model.predict(mirrored)
    np.testing.assert_allclose(b, mirror(a, "h36m17"), atol=1e-4)  # pixels are float32


def test_a_frame_is_lifted_alike_in_every_clip() -> None:
    data = load_cmu17_demo(detected=True)
    model = RidgeLifter().fit(data)
    clip = data[0]
    alone = replace(clip, keypoints=clip.keypoints[40:41], poses=None)
    np.testing.assert_allclose(model.predict([alone])[0], model.predict(data)[0][40:41], atol=1e-6)


def test_the_network_learns_more_than_the_mean_pose() -> None:
    # Trained on one motion and asked about it: a few hundred steps halve the mean pose's error.
    data = load_cmu17_demo().select(lambda clip: clip.action == "walking")
    truth = [clip.in_camera() - clip.in_camera()[:, :1] for clip in data]
    mean = 1000 * np.linalg.norm(np.stack(truth) - np.mean(truth, axis=(0, 1)), axis=-1).mean()
    model = MLPLifter(32, max_steps=300, learning_rate=3e-3).fit(data)
    assert error(model, data) < 0.5 * mean


def test_a_seed_fixes_the_network() -> None:
    data = load_cmu17_demo()[:2]
    a, b, c = (
        MLPLifter(8, 1, max_steps=5, random_state=seed).fit(data).predict(data)[0]
        for seed in (3, 3, 4)
    )
    np.testing.assert_array_equal(a, b)
    assert not np.array_equal(a, c)


def test_what_a_regression_lacks_is_named() -> None:
    clip = load_cmu17_demo()[0]
    with pytest.raises(StructDiffError, match="this RidgeLifter is not fitted: call fit first"):
        RidgeLifter().predict([clip])
    with pytest.raises(StructDiffError, match=r"clip 'walking_01/0' has no 3D poses: training"):
        RidgeLifter().fit(PoseDataset((replace(clip, poses=None),)))
    with pytest.raises(StructDiffError, match=r"clip 'x' has no 2D keypoints of h36m17"):
        model = RidgeLifter().fit(PoseDataset((clip,)))
        model.predict([PoseClip("x", poses=np.zeros((2, 17, 3)))])
    with pytest.raises(StructDiffError, match="penalty must be a number from 0 on, got -1"):
        RidgeLifter(-1)
