"""What goes wrong with the pose estimator is named before anything is trained, with the remedy."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from structdiff.errors import StructDiffError
from structdiff.pose import PoseClip, PoseDataset, PoseLifter
from structdiff.pose.skeletons import COCO_17, H36M_17, MPI_INF_3DHP_17, conversion_matrix
from support.poses import SIZE, arrays, camera, quick, walks


@pytest.fixture(scope="module")
def model():
    """Knows no camera: keypoints need an image size."""
    return quick(turn=0.0).fit(**arrays(walks(2, 20)), image_size=SIZE)


@pytest.fixture
def clip() -> np.ndarray:
    return np.array(walks(1, 40, 1, first=7)[0].keypoints)


def coco(clip: np.ndarray) -> np.ndarray:
    """Human3.6M's limbs in COCO's order, with a face around the head."""
    found = np.zeros((len(clip), 17, 2))
    for joint, name in enumerate(COCO_17.joints):
        known = name if name in H36M_17.joints else "Head"
        found[:, joint] = clip[:, H36M_17.index(known)]
    found[:, :5] += np.array([[0, 4], [3, 0], [-3, 0], [6, 2], [-6, 2]])
    return found


# --- keypoints -------------------------------------------------------------------------------
def test_pixels_need_the_size_of_their_image(model, clip):
    with pytest.raises(StructDiffError, match=r"clip '0'.*give image_size=\(width, height\)"):
        model.predict(clip)


def test_the_clip_that_lacks_its_size_is_named(model, clip):
    sized = PoseClip("known", clip, image_size=SIZE)
    data = PoseDataset((sized, PoseClip("odd", clip)))
    with pytest.raises(StructDiffError, match=r"clip 'odd'.*image_size"):
        model.predict(data)


def test_training_names_the_clip_without_a_size_too():
    data = walks(1, 8)
    bare = [
        replace(c, camera=None, image_size=None, axes="camera", poses=c.in_camera()) for c in data
    ]
    with pytest.raises(StructDiffError, match=r"clip 'walk_0/0'.*image_size"):
        quick(turn=0.0).fit(PoseDataset(tuple(bare)))


def test_normalised_keypoints_are_told_apart_from_pixels(model, clip):
    with pytest.raises(StructDiffError, match=r"clip '0'.*normalised image coordinates; pixels"):
        model.predict(2 * clip / 1000 - 1, image_size=SIZE)


def test_keypoints_in_cocos_order_are_told_by_their_name(model, clip):
    with pytest.raises(StructDiffError, match=r"clip '1'.*looks like coco17.*convert"):
        model.predict([clip, coco(clip)], image_size=SIZE)


def test_converted_coco_keypoints_are_taken(model, clip):
    converted = np.einsum("ij,tjd->tid", conversion_matrix(COCO_17, H36M_17), coco(clip))
    assert model.predict(converted, image_size=SIZE).mean.shape == (40, 17, 3)


def test_another_number_of_joints_is_named(model, clip):
    with pytest.raises(StructDiffError, match=r"keypoints of clip '0' have 16 joints.*17"):
        model.predict(clip[:, :16], image_size=SIZE)


def test_keypoints_that_are_upside_down_are_told(model, clip):
    with pytest.raises(StructDiffError, match=r"heads in keypoints of clip '0' are below"):
        model.predict(np.array([0, SIZE[1]]) + clip * [1, -1], image_size=SIZE)


def test_keypoints_of_another_image_are_told(model, clip):
    with pytest.raises(StructDiffError, match=r"clip '0'.*outside the image of 500 x 400"):
        model.predict(clip, image_size=(500, 400))


def test_checks_can_be_left_out(model, clip):
    assert model.predict(clip, image_size=(500, 400), check=False).mean.shape == (40, 17, 3)


@pytest.mark.parametrize("check", [True, False])
def test_a_clip_without_frames_is_named(model, clip, check):
    with pytest.raises(StructDiffError, match=r"clip '1'.*no frame"):
        model.predict([clip, clip[:0]], image_size=SIZE, check=check)


def test_infinite_keypoints_are_named(model, clip):
    clip[3, 4, 0] = np.inf
    with pytest.raises(StructDiffError, match="clip '0' has infinite keypoints: mark missing"):
        model.predict(clip, image_size=SIZE)


@pytest.mark.parametrize("check", [True, False])
def test_infinite_keypoints_of_a_clip_are_named_too(model, clip, check):
    clip[3, 4, 0] = np.inf
    with pytest.raises(StructDiffError, match="clip 'odd' has infinite keypoints: mark missing"):
        model.predict(PoseClip("odd", clip, image_size=SIZE), check=check)


def test_a_joint_that_is_never_seen_is_named(model, clip):
    clip[:, 5] = np.nan
    with pytest.raises(
        StructDiffError, match="joint number 5 of clip '0' is missing in every frame"
    ):
        model.predict(clip, image_size=SIZE)


@pytest.mark.parametrize(
    "given",
    [
        None,
        5,
        "clip.npz",
        {"a": 1},
        np.zeros((3, 2)),
        np.zeros((2, 3, 17, 2)),
        np.zeros((5, 17, 3)),
    ],
    ids=["None", "number", "path", "dict", "2 axes", "4 axes", "3D"],
)
def test_what_is_no_clip_is_refused(model, given):
    with pytest.raises(StructDiffError, match=r"\(T, J, 2\)"):
        model.predict(given, image_size=SIZE)


@pytest.mark.parametrize("given", [[], ()])
def test_no_clip_at_all_is_refused(model, given):
    with pytest.raises(StructDiffError, match="there is no clip"):
        model.predict(given, image_size=SIZE)


@pytest.mark.parametrize(
    "given",
    [
        np.full((3, 17, 2), "a"),
        np.zeros((3, 17, 2), complex),
        np.zeros((3, 17, 2), bool),
        [[1], [1, 2]],
    ],
    ids=["text", "complex", "truth", "ragged"],
)
def test_what_is_no_number_is_refused(model, given):
    with pytest.raises(StructDiffError, match="keypoints of clip '0' must be numbers"):
        model.predict([given], image_size=SIZE)


def test_a_clip_of_another_skeleton_is_told_how_to_convert(model, clip):
    data = PoseDataset((PoseClip("a", clip, image_size=SIZE),), MPI_INF_3DHP_17)
    with pytest.raises(StructDiffError, match=r"skeleton 3dhp17, the model on h36m17: convert"):
        model.predict(data)


def test_a_clip_without_keypoints_is_named(model, clip):
    data = PoseDataset((PoseClip("deep", poses=walks(1, 9, 1)[0].in_camera()),))
    with pytest.raises(StructDiffError, match="clip 'deep' has no 2D keypoints"):
        model.predict(data)


# --- what goes with them ---------------------------------------------------------------------
@pytest.mark.parametrize("name", ["image_size", "confidence", "camera"])
def test_lists_of_other_lengths_are_named(model, clip, name):
    one = {"image_size": SIZE, "confidence": np.ones((40, 17)), "camera": camera()}[name]
    given = {"image_size": SIZE, name: [one] * 3}
    with pytest.raises(StructDiffError, match=f"3 {name} for 2 clips"):
        model.predict([clip, clip], **given)


def test_lists_of_poses_of_other_lengths_are_named():
    parts = arrays(walks(2, 9))
    with pytest.raises(StructDiffError, match="3 poses for 4 clips"):
        quick().fit(parts["keypoints"], parts["poses"][:3], image_size=SIZE)


def test_poses_of_other_frames_are_named():
    parts = arrays(walks(2, 9))
    parts["poses"][2] = parts["poses"][2][:5]
    with pytest.raises(StructDiffError, match=r"clip '2' have different numbers of frames"):
        quick().fit(**parts, image_size=SIZE)


def test_confidence_of_several_clips_is_a_list(model, clip):
    with pytest.raises(StructDiffError, match="confidence of 2 clips must be a list of 2"):
        model.predict([clip, clip], image_size=SIZE, confidence=np.ones((40, 17)))


@pytest.mark.parametrize(
    "given",
    [np.ones((40, 16)), np.ones(40), -np.ones((40, 17)), np.full((40, 17), np.nan)],
    ids=["joints", "frames", "negative", "NaN"],
)
def test_confidence_that_does_not_fit_is_named(model, clip, given):
    with pytest.raises(StructDiffError, match=r"confidence of clip '0'.*\(40, 17\)"):
        model.predict(clip, image_size=SIZE, confidence=given)


@pytest.mark.parametrize(
    "size",
    [1000, (1000,), (1000, 0), (0.5, 3), (1000, np.nan), ("w", "h"), (1000, 800, 3), "1000x800"],
    ids=str,
)
def test_what_is_no_image_size_is_refused(model, clip, size):
    with pytest.raises(StructDiffError, match="image_size"):
        model.predict(clip, image_size=size)


@pytest.mark.parametrize("lens", [5, "camera.json", {"f_px": [1, 1]}, [3]], ids=str)
def test_what_is_no_camera_is_refused(model, clip, lens):
    with pytest.raises(StructDiffError, match=r"camera.*structdiff\.pose\.Camera"):
        model.predict(clip, camera=lens)


def test_clips_bring_their_own_parts(model, clip):
    with pytest.raises(StructDiffError, match="bring their own camera: leave out"):
        model.predict(PoseClip("a", clip, image_size=SIZE), camera=camera())


def test_keypoints_that_no_lens_can_have_made_name_the_clip():
    data = walks(2, 12)
    fitted = quick(turn=0.0).fit(data)
    folding = replace(camera(), radial=(-4.0, 0.0, 0.0))
    with pytest.raises(StructDiffError, match=r"clip '0'.*lens sends no ray"):
        fitted.predict(np.array(data[0].keypoints), camera=folding)


# --- training --------------------------------------------------------------------------------
def test_training_needs_poses():
    with pytest.raises(StructDiffError, match="clip '0' has no 3D poses: training needs both"):
        quick(turn=0.0).fit(arrays(walks(1, 9))["keypoints"], image_size=SIZE)


def test_millimetres_are_told():
    parts = arrays(walks(1, 9))
    with pytest.raises(StructDiffError, match=r"poses of clip '0'.*millimetres"):
        quick().fit(parts["keypoints"], [1000 * y for y in parts["poses"]], image_size=SIZE)


def test_poses_with_y_up_are_told():
    parts = arrays(walks(1, 9))
    with pytest.raises(StructDiffError, match=r"poses of clip '0'.*y up"):
        quick().fit(parts["keypoints"], [y * [1, -1, 1] for y in parts["poses"]], image_size=SIZE)


def test_turning_needs_cameras():
    with pytest.raises(StructDiffError, match=r"clip '0' has no camera.*turn=0"):
        quick(turn=0.5).fit(**arrays(walks(1, 9)), image_size=SIZE)


def test_a_nan_pose_is_found_before_training():
    data = walks(1, 9)
    broken = np.array(data[1].poses)
    broken[4, 9] = np.nan
    data = PoseDataset((data[0], replace(data[1], poses=broken)))
    with pytest.raises(StructDiffError, match=r"3D poses of clip 'walk_0/1'.*frame 4"):
        quick().fit(data)


def test_no_clip_is_left_to_train_on_when_all_are_held_out():
    with pytest.raises(StructDiffError, match=r"calibration must lie between 0 and 1 \(excluded\)"):
        quick(calibration=1.0).fit(walks(1, 9))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("frames", 0),
        ("frames", 2.5),
        ("width", "wide"),
        ("depth", -1),
        ("heads", None),
        ("lifter_width", 0),
        ("n_hypotheses", 0),
        ("batch_size", 0),
        ("max_steps", 0),
        ("checkpoint_every", 0),
        ("dropout", 1.0),
        ("turn", -0.1),
        ("lifter_share", 1.1),
        ("calibration", np.nan),
        ("learning_rate", 0),
        ("learning_rate", np.nan),
        ("weight_decay", -1),
        ("direction_weight", "much"),
        ("max_minutes", -1),
        ("bones", "rubber"),
        ("aggregation", "vote"),
        ("random_state", -1),
        ("random_state", 1.5),
        ("overlap", -1),
        ("overlap", 9),
        ("overlap", 2.5),
        ("overlap", "half"),
        ("sampler", "magic"),
        ("steps", 0),
        ("preset", "large"),
        ("layout", "reference"),
        ("layout", "wild"),
        ("spatial", "wild"),
        ("temporal", "wild"),
        ("precision", "8-bit"),
        ("skeleton", "octopus"),
    ],
)
def test_an_impossible_setting_is_named_before_training(name, value, monkeypatch):
    from structdiff.pose import training

    begun = []
    monkeypatch.setattr(training, "DiffusionModule", lambda *a, **k: begun.append(1))
    with pytest.raises(StructDiffError, match=name):
        quick(**{name: value}).fit(walks(1, 9))
    assert not begun


def test_an_unknown_accelerator_is_named_with_lightnings_words():
    with pytest.raises(StructDiffError, match=r"training cannot start.*abacus"):
        quick(accelerator="abacus").fit(walks(1, 9))


def test_heads_must_divide_the_width():
    with pytest.raises(StructDiffError, match="even multiple of heads"):
        quick(width=10, heads=4).fit(walks(1, 9))


def test_the_published_joint_network_is_loaded_and_not_trained():
    with pytest.raises(StructDiffError, match=r"layout 'd3dp'.*from_published"):
        quick(preset="paper", layout="d3dp").fit(walks(1, 9))


def test_a_fit_that_fails_leaves_the_fitted_model_as_it_was(clip):
    fitted = quick(turn=0.0).fit(**arrays(walks(2, 20)), image_size=SIZE)
    before = fitted.predict(clip, image_size=SIZE).mean
    fitted.set_params(sampler="magic")
    with pytest.raises(StructDiffError, match="unknown sampler"):
        fitted.fit(**arrays(walks(1, 12)), image_size=SIZE)
    fitted.set_params(sampler=None)
    assert np.array_equal(fitted.predict(clip, image_size=SIZE).mean, before)


def test_a_first_fit_that_fails_leaves_no_model():
    unfitted = quick(sampler="magic")
    with pytest.raises(StructDiffError, match="unknown sampler"):
        unfitted.fit(walks(1, 9))
    with pytest.raises(StructDiffError, match="not fitted"):
        unfitted.predict(walks(1, 9))


# --- lifting ---------------------------------------------------------------------------------
@pytest.mark.parametrize("what", ["predict", "save_pretrained"])
def test_an_unfitted_model_says_so(what, tmp_path):
    call = {
        "predict": lambda m: m.predict(walks(1, 9)),
        "save_pretrained": lambda m: m.save_pretrained(tmp_path),
    }
    with pytest.raises(ValueError, match="PoseLifter is not fitted"):
        call[what](PoseLifter())


@pytest.mark.parametrize(("name", "value"), [("n_hypotheses", 0), ("seed", -1), ("seed", 0.5)])
def test_impossible_options_of_a_call_are_named(model, clip, name, value):
    with pytest.raises(StructDiffError, match=name):
        model.predict(clip, image_size=SIZE, **{name: value})


def test_there_is_no_trajectory_without_a_camera_or_an_image(clip):
    data = walks(2, 12)
    fitted = quick().fit(data)
    found = fitted.predict(PoseClip("a", clip, image_size=SIZE))
    assert found.root is not None and found.camera_assumed
    with pytest.raises(StructDiffError, match=r"world coordinates need.*camera"):
        _ = found.world
    with pytest.raises(StructDiffError, match="image_size"):
        fitted.predict(PoseClip("a", clip, camera=replace(camera(), image_size=None)))


def test_one_hypothesis_has_no_interval(model, clip):
    found = model.predict(clip, image_size=SIZE, n_hypotheses=1)
    with pytest.raises(StructDiffError, match="n_hypotheses >= 2"):
        found.interval()


@pytest.mark.parametrize("level", [0, 1, 80, float("nan")])
def test_an_impossible_level_is_refused(model, clip, level):
    with pytest.raises(StructDiffError, match="level of an interval"):
        model.predict(clip, image_size=SIZE).interval(level)


def test_a_clip_whose_poses_fit_no_keypoints_is_named(model, clip):
    """A clip that a model cannot lift: no frame of it can be put in front of the camera."""
    point = np.full((2, 17, 2), 500.0)
    with pytest.warns(UserWarning, match=r"clip '1'.*tell a root.*seen so"):
        model.predict([clip, point], image_size=SIZE, check=False)
