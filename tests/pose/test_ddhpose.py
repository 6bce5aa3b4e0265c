"""PoseLifter as a whole: it lifts whatever form a clip has, and says the same twice."""

from __future__ import annotations

import copy
import pickle
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.base import clone

from structdiff.errors import StructDiffError
from structdiff.pose import PoseClip, PoseDataset, PoseLifter
from structdiff.pose.kinematics import bone_lengths
from structdiff.pose.skeletons import H36M_17
from support.poses import (
    SIZE,
    arrays,
    quick,
    relative,
    strangers,
    walks,
)

PARTS = ("mean", "hypotheses", "std", "root")


@pytest.fixture(scope="module")
def model():
    """Trained behind the two cameras of the walks."""
    return quick().fit(walks(3, 30))


@pytest.fixture(scope="module")
def plain():
    """Knows image sizes only."""
    return quick(turn=0.0).fit(**arrays(walks(3, 30)), image_size=SIZE)


@pytest.fixture
def clips():
    return strangers()


def same(one, other) -> bool:
    return all(np.array_equal(getattr(one, part), getattr(other, part)) for part in PARTS)


# --- an estimator of scikit-learn ------------------------------------------------------------
def test_parameters_are_read_set_and_cloned():
    model = quick(width=32, random_state=3)
    twin = clone(model)
    assert twin is not model and twin.get_params() == model.get_params()
    assert twin.set_params(frames=5, bones="constant").get_params()["frames"] == 5
    assert model.frames == 9 and model.bones == "free"
    with pytest.raises(ValueError, match="Invalid parameter 'colour'"):
        model.set_params(colour="red")


def test_the_constructor_only_stores():
    # scikit-learn's rule: nothing is checked or changed before fit.
    model = PoseLifter(-1, sampler=["x"], skeleton="octopus")
    assert (model.frames, model.sampler, model.skeleton) == (-1, ["x"], "octopus")
    assert "frames=-1" in repr(model)


def test_a_clone_of_a_fitted_model_is_not_fitted(model):
    assert not hasattr(clone(model), "denoiser_")


def test_fit_returns_the_estimator_and_leaves_its_parameters():
    model = quick(max_steps=1)
    before = dict(model.get_params())
    assert model.fit(walks(1, 10)) is model
    assert model.get_params() == before


def test_a_copy_and_a_pickle_lift_the_same(model, clips):
    own = model.predict(clips)
    for again in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert all(same(a, b) for a, b in zip(again.predict(clips), own, strict=True))


# --- what is lifted --------------------------------------------------------------------------
def test_thirty_steps_learn_to_lift(model, clips):
    # Joints are 0.4 m from the root; 30 steps bring them within half of that.
    truth = [relative(clip.in_camera()) for clip in clips]
    found = model.predict(clips)
    errors = [np.linalg.norm(p.mean - y, axis=-1).mean() for p, y in zip(found, truth, strict=True)]
    assert np.mean(errors) < 0.2


def test_an_array_gives_one_lifted_clip_of_float32_and_a_list_gives_a_list(plain, clips):
    flat = [clip.keypoints for clip in clips]
    several = plain.predict(flat, image_size=SIZE)
    one = plain.predict(flat[0], image_size=SIZE)
    assert isinstance(several, list) and [len(p) for p in several] == [25, 4, 12]
    assert one.mean.shape == one.std.shape == (25, 17, 3) and one.hypotheses.shape == (3, 25, 17, 3)
    assert {one.mean.dtype, one.std.dtype, one.hypotheses.dtype} == {np.dtype("float32")}
    assert same(one, several[0])


def test_every_form_of_the_same_clip_gives_the_same_pose(plain, clips):
    flat = np.array(clips[0].keypoints)
    own = plain.predict(flat, image_size=SIZE)
    bare = PoseClip("a", flat, image_size=SIZE)
    assert same(own, plain.predict(bare))
    assert same(own, plain.predict([bare, bare])[1])
    assert same(own, plain.predict((flat, flat), image_size=[SIZE, SIZE])[0])
    assert same(own, plain.predict(PoseDataset((bare,)))[0])
    assert same(own, plain.predict(torch.from_numpy(flat), image_size=list(SIZE)))
    assert same(own, plain.predict([torch.from_numpy(flat)], image_size=np.array(SIZE))[0])
    assert np.allclose(own.mean, plain.predict(flat.astype(float), image_size=SIZE).mean, atol=1e-5)


def test_whole_numbers_are_keypoints_too(plain, clips):
    whole = np.round(clips[0].keypoints).astype(np.int64)
    own = plain.predict(whole * 1.0, image_size=SIZE)
    assert same(own, plain.predict(whole, image_size=SIZE))
    assert same(own, plain.predict(PoseClip("a", whole, image_size=SIZE)))


def test_one_frame_is_a_clip(plain, clips):
    found = plain.predict(clips[0].keypoints[:1], image_size=SIZE)
    assert found.mean.shape == (1, 17, 3) and found.root.shape == (1, 3)


def test_a_clip_of_1000_frames_is_lifted(plain):
    clip = walks(1, 1000, 1, first=4)[0]
    found = plain.predict(clip.keypoints, image_size=SIZE, n_hypotheses=1)
    assert found.mean.shape == (1000, 17, 3) and np.isfinite(found.mean).all()


def test_missing_joints_are_lifted_from_the_frames_around(plain, clips):
    holes = np.array(clips[0].keypoints)
    holes[5:8, 3] = np.nan
    holes[0, 10, 1] = np.nan
    found = plain.predict(holes, image_size=SIZE)
    whole = plain.predict(clips[0].keypoints, image_size=SIZE)
    assert np.isfinite(found.mean).all() and np.isfinite(found.root).all()
    assert float(np.abs(found.mean - whole.mean).max()) < 0.1


def test_the_arrays_that_are_handed_over_are_never_changed(clips):
    data = walks(2, 12, noise=1.0)
    parts = arrays(data)
    holes = np.array(clips[0].keypoints)
    holes[3, 4] = np.nan
    sure = np.ones((25, 17))
    given = [*parts["keypoints"], *parts["poses"], holes, sure, *(c.poses for c in data)]
    before = [value.copy() for value in given]
    model = quick(turn=0.0, calibration=0.6).fit(**parts, image_size=SIZE)
    model.set_params(bones="constant", aggregation="j-agg")
    model.predict(holes, image_size=SIZE, confidence=sure)
    quick(max_steps=2).fit(data)
    assert all(np.array_equal(a, b, equal_nan=True) for a, b in zip(given, before, strict=True))


@pytest.mark.filterwarnings("error")
def test_read_only_arrays_are_taken(plain, clips):
    flat = np.array(clips[0].keypoints)
    flat.setflags(write=False)  # as np.load gives a file that is mapped
    assert plain.predict(flat, image_size=SIZE).mean.shape == (25, 17, 3)


# --- chance ----------------------------------------------------------------------------------
def test_neither_fit_nor_predict_touches_the_global_generators(clips):
    def states():
        return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()

    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    before = states()
    model = quick(max_steps=2, dropout=0.2, calibration=0.5).fit(walks(2, 12))
    model.predict(clips, seed=3)
    assert states() == before


def test_a_clip_is_the_same_bits_alone_and_among_others(model, clips):
    several = model.predict(clips)
    assert all(same(model.predict(clip), p) for clip, p in zip(clips, several, strict=True))
    assert same(model.predict(clips[::-1])[-1], several[0])


def test_seeds_of_a_call_go_before_the_estimators(model, clips):
    own, five = model.predict(clips[0]), model.predict(clips[0], seed=5)
    assert same(own, model.predict(clips[0], seed=0))
    assert same(five, model.predict(clips[0], seed=5)) and not same(own, five)


def test_without_a_seed_every_call_draws_anew(model, clips):
    fresh = copy.deepcopy(model).set_params(random_state=None)
    assert not same(fresh.predict(clips[0]), fresh.predict(clips[0]))


# --- what comes out --------------------------------------------------------------------------
def test_the_mean_is_that_of_the_hypotheses_and_the_spread_is_theirs(model, clips):
    found = model.predict(clips[0], n_hypotheses=4)
    assert np.allclose(found.mean, found.hypotheses.mean(0), atol=1e-6)
    assert np.allclose(found.std, found.hypotheses.std(0), atol=1e-6)
    assert found.std[:, 1:].min() > 0 and not found.mean[:, 0].any()
    low, high = found.interval(0.8)
    # Central 80 % of Student's t with three degrees of freedom: 1.6377 standard deviations a side.
    assert np.allclose(high - found.mean, 1.6377 * found.std, atol=1e-5)
    assert np.allclose(low + high, 2 * found.mean, atol=1e-5)


def test_one_hypothesis_is_the_pose_without_a_spread(model, clips):
    found = model.predict(clips[0], n_hypotheses=1)
    assert found.hypotheses.shape == (1, 25, 17, 3)
    assert np.array_equal(found.mean, found.hypotheses[0]) and not found.std.any()


@pytest.mark.parametrize("aggregation", ["p-agg", "j-agg", "median", "rpea", "softmax"])
def test_every_aggregation_gives_a_pose_and_says_which_it_was(model, clips, aggregation):
    chosen = copy.deepcopy(model).set_params(aggregation=aggregation)
    found = chosen.predict(clips[0])
    assert found.method.startswith(aggregation) and found.mean.shape == (25, 17, 3)


def test_constant_bones_have_one_length_per_clip(model, clips):
    firm = copy.deepcopy(model).set_params(bones="constant")
    found, free = firm.predict(clips[0]), model.predict(clips[0])
    for poses in (found.mean, *found.hypotheses):
        lengths = bone_lengths(torch.from_numpy(poses).double(), H36M_17)
        assert float(lengths.std(0).max()) < 1e-6  # metres
    wobbling = bone_lengths(torch.from_numpy(free.mean).double(), H36M_17)
    assert float(wobbling.std(0).max()) > 1e-4
    assert float(np.linalg.norm(found.mean - free.mean, axis=-1).mean()) < 0.05


def test_world_coordinates_are_those_of_the_camera(model, clips):
    clip = clips[0]
    found = model.predict(clip)
    assert np.allclose(found.absolute, found.mean + found.root[:, None])
    assert np.allclose(found.world, clip.camera.to_world(found.absolute))
    # The walker's hips are 1 m above the floor, within 1 m of the middle.
    hips = found.world[:, 0]
    assert abs(hips[:, 2].mean() - 1.0) < 0.5 and not found.camera_assumed


def test_the_root_explains_the_keypoints(model, clips):
    """Of the pose that was found: least squares about it leaves the image within its size."""
    clip = clips[0]
    found = model.predict(clip)
    seen = clip.camera.project(found.absolute)
    assert float(np.linalg.norm(seen - clip.keypoints, axis=-1).mean()) < 100
    assert (found.absolute[..., 2] > 0).all()


def test_without_a_camera_a_trajectory_rests_on_a_guess(plain, clips):
    found = plain.predict(clips[0].keypoints, image_size=SIZE)
    assert found.camera_assumed and found.root.shape == (25, 3)


def test_confidence_weighs_joints_where_they_are_aggregated(plain, clips):
    chosen = copy.deepcopy(plain).set_params(aggregation="j-agg")
    flat, sure = clips[0].keypoints, np.ones((25, 17))
    sure[:, 13] = 0.0
    even, less = (
        chosen.predict(flat, image_size=SIZE, confidence=c) for c in (np.ones((25, 17)), sure)
    )
    assert np.array_equal(even.hypotheses, less.hypotheses)
    assert np.allclose(less.mean[:, 13], less.hypotheses[:, :, 13].mean(0), atol=1e-6)
    assert not np.allclose(even.mean[:, 13], less.mean[:, 13], atol=1e-5)


def test_another_lens_is_no_other_world(model, clips):
    """A camera that is known is undistorted: the same person through another focal length."""
    clip = clips[0]
    wide = replace(clip.camera, focal=np.array([800.0, 800.0]), radial=(-0.1, 0.05, 0.0))
    other = replace(clip, camera=wide, keypoints=wide.project(clip.in_camera()))
    assert np.allclose(model.predict(clip).mean, model.predict(other).mean, atol=1e-3)


def test_without_held_out_motions_the_spread_is_the_networks(model):
    assert (model.spread_, model.temperature_) == (1.0, None)


# --- evaluation ------------------------------------------------------------------------------
def test_an_estimator_is_evaluated_in_millimetres(model, clips):
    table = model.evaluate(clips)
    poses = [p.mean for p in model.predict(clips)]
    truth = [relative(c.in_camera()) for c in clips]
    errors = [np.linalg.norm(p - y, axis=-1) for p, y in zip(poses, truth, strict=True)]
    expected = 1e3 * np.concatenate(errors).mean()
    # Every frame counts once.
    assert table.filter(like="P-Agg").iloc[-1].iloc[0] == pytest.approx(expected, rel=1e-3)


# --- real motions ----------------------------------------------------------------------------
@pytest.mark.usefixtures("data_dir")
def test_real_motions_are_trained_on_and_lifted():
    from structdiff.pose import load_cmu17

    train = load_cmu17("train", detected=True)[:12]
    test = load_cmu17("test", detected=True)
    chosen = PoseDataset((test["walking_01/2"], test["running_01/0"]))
    model = quick(max_steps=40).fit(train)
    for clip, pose in zip(chosen, model.predict(chosen), strict=True):
        error = np.linalg.norm(pose.mean - relative(clip.in_camera()), axis=-1).mean()
        assert error < 0.3 and pose.world.shape == (len(clip), 17, 3)


def test_a_model_without_a_fit_says_so():
    with pytest.raises(StructDiffError, match="from_pretrained"):
        PoseLifter().predict(walks(1, 9))


def test_one_clip_without_a_place_costs_no_other_its_poses(model, clips):
    """Where no frame tells a root, poses come without a trajectory; a warning names the clip."""
    first, second = clips[0], clips[1]
    blind = replace(first, name="blind", confidence=np.zeros(first.keypoints.shape[:2]))
    with pytest.warns(UserWarning, match="clip 'blind' has no trajectory"):
        lost, kept = model.predict([blind, second], seed=0)
    assert lost.root is None and np.isfinite(lost.mean).all()
    assert np.array_equal(kept.root, model.predict(second, seed=0).root)
    with pytest.raises(StructDiffError, match="no trajectory"):
        _ = lost.absolute


def test_a_way_to_one_pose_that_needs_the_root_names_the_clip_without_one(model, clips):
    blind = replace(clips[0], name="blind", confidence=np.zeros(clips[0].keypoints.shape[:2]))
    asked = clone(model).set_params(aggregation="j-agg")
    asked.__dict__.update({k: v for k, v in vars(model).items() if k.endswith("_")})
    with pytest.raises(StructDiffError, match=r"clip 'blind'.*tell a root"):
        asked.predict(blind, seed=0)
