"""Windows of clips: where they lie, how answers are joined, and what the network is shown."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from structdiff.errors import StructDiffError
from structdiff.pose import PoseClip, PoseDataset
from structdiff.pose.cameras import Camera
from structdiff.pose.lenses import normalise as by_width
from structdiff.pose.skeletons import COCO_17
from structdiff.pose.windows import Cuts, TrainingFrames, common_view, filled, normalised
from support.poses import SIZE, arrays, camera, walks

# Shorter than a window, one window, one more frame, two windows, and an awkward rest.
LENGTHS = [1, 4, 9, 10, 18, 41]
every_cut = pytest.mark.parametrize(
    ("length", "overlap"), [(length, overlap) for length in LENGTHS for overlap in (0, 1, 3, 8)]
)


# --- cutting and joining ---------------------------------------------------------------------
@every_cut
def test_windows_cover_every_frame_and_stay_in_order(length, overlap):
    cuts = Cuts(length, 9, overlap)
    assert set(cuts.index.flatten().tolist()) == set(range(length))
    assert bool((cuts.numbers.diff(dim=1) == 1).all())
    assert bool((cuts.numbers[:, 0].diff() > 0).all())
    assert bool((cuts.index == cuts.numbers.clamp(max=length - 1)).all())


@every_cut
def test_the_weights_of_every_frame_sum_to_1(length, overlap):
    cuts = Cuts(length, 9, overlap)
    ones = torch.ones(len(cuts.numbers), 9, 1, 1, dtype=torch.float64)
    assert torch.allclose(cuts.join(ones), torch.ones(length, 1, 1).double(), atol=1e-12)


@every_cut
def test_joining_what_was_cut_gives_the_clip(length, overlap):
    clip = torch.randn(length, 17, 3, generator=torch.Generator().manual_seed(0)).double()
    cuts = Cuts(length, 9, overlap)
    assert torch.allclose(cuts.join(cuts.cut(clip)), clip, atol=1e-12)


@pytest.mark.parametrize(("length", "overlap"), [(4, 0), (10, 3)])
def test_leading_axes_are_joined_alike(length, overlap):
    cuts = Cuts(length, 9, overlap)
    windows = torch.randn(2, len(cuts.numbers), 9, 17, 3)
    apart = torch.stack([cuts.join(part) for part in windows])
    assert torch.equal(cuts.join(windows), apart)


def test_the_last_window_ends_with_the_clip():
    assert Cuts(20, 9).numbers[:, 0].tolist() == [0, 9, 11]
    assert Cuts(20, 9, 3).numbers[:, 0].tolist() == [0, 6, 11]
    assert Cuts(18, 9).numbers[:, 0].tolist() == [0, 9]
    assert Cuts(10, 9, 8).numbers[:, 0].tolist() == [0, 1]


def test_a_short_clip_is_padded_with_its_last_frame():
    assert Cuts(4, 9).index.tolist() == [[0, 1, 2, 3, 3, 3, 3, 3, 3]]


def test_padding_does_not_count():
    windows = torch.zeros(1, 9, 1, 1)
    windows[:, 4:] = 100.0
    assert float(Cuts(4, 9, 3).join(windows).abs().max()) == 0


def test_without_overlap_a_frame_belongs_to_the_first_window_that_has_it():
    cuts = Cuts(10, 9)
    first, second = torch.zeros(1, 9, 1, 1), torch.ones(1, 9, 1, 1)
    assert cuts.join(torch.cat((first, second))).flatten().tolist() == [0.0] * 9 + [1.0]


def test_over_shared_frames_one_window_fades_into_the_next():
    # 15 frames, windows at 0 and 6: shared are 6, 7 and 8, weighed 5 : 1, 3 : 3 and 1 : 5.
    cuts = Cuts(15, 9, 3)
    windows = torch.stack((torch.zeros(9, 1, 1), torch.ones(9, 1, 1)))
    shared = cuts.join(windows.double()).flatten()
    assert shared[:6].tolist() == [0.0] * 6 and shared[9:].tolist() == [1.0] * 6
    assert shared[6:9].tolist() == pytest.approx([1 / 6, 1 / 2, 5 / 6], abs=1e-12)


# --- what the network is shown ---------------------------------------------------------------
def test_pixels_are_normalised_by_the_width():
    pixels = np.array([[[0.0, 0.0], [1000.0, 800.0]]])
    found = normalised(pixels, SIZE, None, None)
    assert found.tolist() == [[[-1.0, -0.8], [1.0, pytest.approx(0.8)]]]


def test_whole_pixels_are_normalised_like_any():
    # The height over the width is no whole number.
    pixels = np.array([[[100, 300], [900, 200]]])
    assert np.allclose(normalised(pixels, SIZE, None, None), by_width(pixels * 1.0, SIZE))
    assert np.allclose(by_width(pixels, SIZE), by_width(pixels * 1.0, SIZE))
    tensor = by_width(torch.from_numpy(pixels), SIZE)
    assert torch.allclose(tensor.double(), torch.from_numpy(by_width(pixels * 1.0, SIZE)))


def test_the_image_of_the_camera_serves_where_no_size_is_given():
    pixels = np.array([[[100.0, 300.0]]])
    assert np.allclose(normalised(pixels, None, camera(), None), by_width(pixels, SIZE))


def test_a_camera_is_replaced_by_the_pinhole_of_the_training():
    lens = camera(0.3, distorted=True)
    points = np.random.default_rng(0).uniform([-1, -1, 4], [1, 1, 6], (5, 17, 3))
    seen = normalised(lens.project(points), SIZE, lens, [2.0, 2.1, 0.1, -0.2])
    assert np.allclose(
        seen, points[..., :2] / points[..., 2:] * [2.0, 2.1] + [0.1, -0.2], atol=1e-9
    )


def test_keypoints_without_a_size_are_told_what_is_missing():
    with pytest.raises(StructDiffError, match=r"image_size=\(width, height\)"):
        normalised(np.ones((1, 17, 2)), None, None, None)
    with pytest.raises(StructDiffError, match=r"image_size=\(width, height\)"):
        normalised(np.ones((1, 17, 2)), None, replace(camera(), image_size=None), None)


def test_the_common_view_is_the_mean_pinhole_of_the_cameras():
    data = walks(2, 5)
    wide = replace(data[0].camera, focal=np.array([900.0, 920.0]))
    clips = [replace(data[0], camera=wide), data[1], replace(data[2], camera=wide)]
    # By the width of 1000 px: focal lengths 2 f / w, centre 2 c / w - 1 and 2 c / w - h / w.
    assert common_view(clips) == pytest.approx([2.0, 2.04, 0.02, -0.01])


def test_there_is_no_common_view_where_a_camera_is_unknown():
    data = walks(1, 5)
    assert common_view([data[0], replace(data[1], camera=None)]) is None


def test_the_image_size_of_a_clip_serves_for_its_camera():
    clip = walks(1, 5, 1)[0]
    blind = replace(clip, camera=replace(clip.camera, image_size=None), image_size=SIZE)
    assert common_view([blind]) == common_view([clip])


def test_a_camera_without_an_image_size_is_named_by_its_clip():
    data = walks(1, 5)
    blind = replace(data[1], camera=replace(data[1].camera, image_size=None), image_size=None)
    with pytest.raises(StructDiffError, match=r"walk_0/1.*image_size"):
        common_view([data[0], blind])


# --- missing joints --------------------------------------------------------------------------
def test_missing_joints_are_interpolated_over_time():
    seen = np.zeros((5, 2, 2))
    seen[:, 0] = np.arange(5)[:, None] * [1.0, 10.0]
    holes = seen.copy()
    holes[[1, 2], 0] = np.nan
    holes[3, 1, 0] = np.nan
    whole, present = filled(holes, "clip 'a'")
    assert np.array_equal(whole, seen)
    assert present.tolist() == [
        [True, True],
        [False, True],
        [False, True],
        [True, False],
        [True, True],
    ]


def test_missing_ends_take_the_nearest_frame_that_is_there():
    holes = np.arange(5.0)[:, None, None] * np.ones((5, 1, 2))
    holes[[0, 4]] = np.nan
    assert filled(holes, "clip 'a'")[0][:, 0, 0].tolist() == [1, 1, 2, 3, 3]


def test_filling_leaves_the_array_that_was_given_alone():
    holes = np.zeros((4, 3, 2))
    holes[1] = np.nan
    before = holes.copy()
    filled(holes, "clip 'a'")
    assert np.array_equal(holes, before, equal_nan=True)


def test_a_joint_that_is_never_seen_is_named():
    holes = np.zeros((4, 3, 2))
    holes[:, 2] = np.nan
    with pytest.raises(StructDiffError, match="joint number 2 of clip 'a' is missing"):
        filled(holes, "clip 'a'")


# --- training windows ------------------------------------------------------------------------
@pytest.mark.parametrize("frames", [1, 4, 9])
def test_there_is_a_window_around_every_frame_of_every_clip(frames):
    data = PoseDataset((*walks(1, 7), *walks(1, 3)))
    windows = TrainingFrames(data, frames, None)
    assert len(windows) == data.frames == 20
    numbers = windows.frame_numbers(torch.arange(20))
    assert numbers[:, frames // 2].tolist() == list(range(20))
    clip = torch.tensor([0] * 7 + [1] * 7 + [2] * 3 + [3] * 3)
    assert bool((clip[numbers] == clip[:, None]).all())
    assert bool((numbers.diff(dim=1) >= 0).all() and (numbers.diff(dim=1) <= 1).all())


@pytest.mark.parametrize(
    ("length", "starts"),
    # ceil(T / N) chunks of 4, centred: 10 frames lack 2, one at either end; 9 lack 3.
    [(10, [-1, 3, 7]), (9, [-1, 3, 7]), (8, [0, 4]), (3, [0]), (1, [-1])],
)
def test_published_chunks_are_centred_and_padded_at_the_ends(length, starts):
    # Card, section 4.2: per sequence ceil(T / N) chunks of N, centred, edge-padded.
    clip = walks(1, length, 1)[0]
    windows = TrainingFrames(PoseDataset((clip,)), 4, None, published=True)
    expected = [[min(max(s + n, 0), length - 1) for n in range(4)] for s in starts]
    assert windows.frame_numbers(torch.arange(len(windows))).tolist() == expected


def test_published_chunks_of_several_clips_stay_apart():
    data = PoseDataset((*walks(1, 5, 1), *walks(1, 9, 1)))
    windows = TrainingFrames(data, 4, None, published=True)
    numbers = windows.frame_numbers(torch.arange(len(windows)))
    assert numbers[:2].unique().tolist() == list(range(5))
    assert numbers[2:].unique().tolist() == list(range(5, 14))


def test_a_window_holds_normalised_keypoints_and_poses_about_their_root():
    data = walks(1, 6)
    windows = TrainingFrames(data, 3, None)
    keypoints, joints = windows.batch(torch.tensor([2, 8]))
    flat = arrays(data)
    for row, (clip, middle) in enumerate(((0, 2), (1, 2))):
        near = slice(middle - 1, middle + 2)
        pose = flat["poses"][clip][near]
        assert np.allclose(joints[row], pose - pose[:, :1], atol=1e-6)
        seen = by_width(flat["keypoints"][clip][near], SIZE)
        assert np.allclose(keypoints[row], seen, atol=1e-6)


def test_training_needs_both_kinds_of_joints_and_names_the_clip():
    clip = walks(1, 5, 1)[0]
    for part, lacking in (("poses", "3D poses"), ("keypoints", "2D keypoints")):
        data = PoseDataset((clip, replace(clip, name="odd", **{part: None})))
        with pytest.raises(StructDiffError, match=f"'odd' has no {lacking}"):
            TrainingFrames(data, 3, None)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_poses_that_are_not_finite_are_named_before_training(value):
    clip = walks(1, 5, 1)[0]
    broken = clip.poses.copy()
    broken[3, 5, 1] = value
    data = PoseDataset((clip, replace(clip, name="odd", poses=broken)))
    with pytest.raises(StructDiffError, match=r"3D poses of clip 'odd'.*frame 3: leave"):
        TrainingFrames(data, 3, None)


def test_another_skeletons_root_is_the_one_that_is_subtracted():
    coco = replace(COCO_17, name="hung from a hip", parents=tuple(_rehung()))
    clip = PoseClip("a", np.ones((2, 17, 2)), np.random.default_rng(0).normal(size=(2, 17, 3)))
    data = PoseDataset((replace(clip, image_size=SIZE),), coco)
    _, joints = TrainingFrames(data, 1, None).batch(torch.arange(2))
    assert coco.root == 11
    assert float(joints[:, :, 11].abs().max()) == 0


def _rehung() -> list[int]:
    """COCO's tree with the left hip as its root."""
    parents = list(COCO_17.parents)
    parents[11], parents[5], parents[0] = -1, 11, 5
    return parents


def test_a_pinhole_camera_changes_nothing_when_it_is_its_own_view():
    lens = Camera.pinhole(SIZE)
    data = PoseDataset(tuple(replace(clip, camera=lens, axes="camera") for clip in walks(1, 4)))
    own = TrainingFrames(data, 1, common_view(list(data)))
    assert torch.allclose(own.keypoints, TrainingFrames(data, 1, None).keypoints, atol=1e-6)
