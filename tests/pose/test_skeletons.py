"""Skeletons: trees, levels and chains of the card, conversions, mirror images."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from structdiff.errors import StructDiffError
from structdiff.pose.skeletons import (
    COCO_17,
    H36M_17,
    MPI_INF_3DHP_17,
    SKELETONS,
    Skeleton,
    conversion_matrix,
    convert,
    convert_confidence,
    get_skeleton,
    joint_order,
    mirror,
)

ALL = list(SKELETONS.values())
CONVERSIONS = [
    ("coco17", "h36m17"),
    ("coco17", "3dhp17"),
    ("3dhp17", "h36m17"),
    ("h36m17", "3dhp17"),
]


def joints(frames: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(frames, 17, 3))


def test_levels_of_human36m_are_those_of_the_card() -> None:
    """Card 3, step 2."""
    expected = ((0,), (1, 4, 7), (2, 5, 8), (3, 6, 9, 11, 14), (10, 12, 15), (13, 16))
    assert H36M_17.levels == expected


def test_levels_of_3dhp_are_those_of_the_card() -> None:
    """Card 3, step 2."""
    expected = ((14,), (8, 11, 15), (1, 9, 12), (0, 2, 5, 10, 13, 16), (3, 6), (4, 7))
    assert MPI_INF_3DHP_17.levels == expected


def test_chains_of_human36m_are_those_of_the_card() -> None:
    """Card 3, step 5."""
    expected = {(0, 1, 2, 3), (0, 4, 5, 6), (0, 7, 8, 9, 10), (0, 7, 8, 11, 12, 13)}
    assert set(H36M_17.chains) == expected | {(0, 7, 8, 14, 15, 16)}


def test_bones_of_3dhp_are_those_of_the_card() -> None:
    """Card 2.1, as (parent, child)."""
    expected = {(1, 0), (15, 1), (1, 2), (2, 3), (3, 4), (1, 5), (5, 6), (6, 7), (14, 8), (8, 9)}
    expected |= {(9, 10), (14, 11), (11, 12), (12, 13), (14, 15), (1, 16)}
    assert {(MPI_INF_3DHP_17.parents[c], c) for c in MPI_INF_3DHP_17.bones} == expected


def test_children_of_3dhp_are_those_of_the_card() -> None:
    """Card 3, step 4."""
    children = MPI_INF_3DHP_17.children
    assert (children[14], children[15], children[1]) == ((8, 11, 15), (1,), (0, 2, 5, 16))


def test_symmetric_bones_of_human36m_are_those_of_the_card() -> None:
    """Card 2.1, left first."""
    expected = ((4, 1), (5, 2), (6, 3), (11, 14), (12, 15), (13, 16))
    assert H36M_17.symmetric_bones == expected


def test_bones_whose_parents_do_not_mirror_each_other_are_no_pair() -> None:
    lame = Skeleton("lame", ("a", "b", "c", "d"), (-1, 0, 0, 1), left=(1,), right=(3,))
    assert lame.symmetric_bones == ()


@pytest.mark.parametrize("skeleton", ALL, ids=lambda s: s.name)
def test_hops_are_the_shortest_paths_of_the_tree(skeleton: Skeleton) -> None:
    """Against SciPy's graph distances."""
    from scipy.sparse.csgraph import shortest_path

    graph = np.zeros((17, 17))
    for child in skeleton.bones:
        graph[child, skeleton.parents[child]] = 1
    np.testing.assert_array_equal(skeleton.hops, shortest_path(graph, directed=False))


@pytest.mark.parametrize("skeleton", ALL, ids=lambda s: s.name)
def test_sides_of_every_skeleton_are_named_after_each_other(skeleton: Skeleton) -> None:
    names = [skeleton.joints[j] for j in skeleton.mirrored]
    other = {"L": "R", "R": "L"}
    for joint, name in zip(skeleton.joints, names, strict=True):
        sided = joint[0] in other and joint[1].isupper()
        assert name == (other[joint[0]] + joint[1:] if sided else joint)


@pytest.mark.parametrize("skeleton", ALL, ids=lambda s: s.name)
def test_the_mirror_image_of_a_skeleton_is_its_own_tree(skeleton: Skeleton) -> None:
    for child in skeleton.bones:
        parent = skeleton.parents[skeleton.mirrored[child]]
        assert parent == skeleton.mirrored[skeleton.parents[child]]


@pytest.mark.parametrize("skeleton", ALL, ids=lambda s: s.name)
def test_mirroring_twice_changes_nothing(skeleton: Skeleton) -> None:
    """Card 10 item 5."""
    twice = mirror(mirror(joints(), skeleton, centre=500.0), skeleton, centre=500.0)
    np.testing.assert_allclose(twice, joints(), atol=1e-12)


def test_mirroring_negates_x_and_swaps_the_sides() -> None:
    pose = joints()
    image = mirror(pose, "h36m17")
    np.testing.assert_array_equal(image[:, 13], pose[:, 16] * [-1, 1, 1])
    np.testing.assert_array_equal(image[:, 10], pose[:, 10] * [-1, 1, 1])


def test_mirroring_leaves_its_argument_alone() -> None:
    pose = joints()
    mirror(pose, H36M_17)
    np.testing.assert_array_equal(pose, joints())


@pytest.mark.parametrize(("source", "target"), CONVERSIONS)
def test_converted_joints_move_with_the_person(source: str, target: str) -> None:
    """Weights of a joint sum to 1."""
    shift = np.array([1, 2, 3])
    moved = convert(joints() + shift, source, target)
    np.testing.assert_allclose(moved, convert(joints(), source, target) + shift, atol=1e-12)


@pytest.mark.parametrize(("source", "target"), CONVERSIONS)
def test_converting_and_mirroring_change_places(source: str, target: str) -> None:
    one = mirror(convert(joints(), source, target), target)
    np.testing.assert_allclose(one, convert(mirror(joints(), source), source, target), atol=1e-12)


@pytest.mark.parametrize(("source", "target"), CONVERSIONS)
def test_the_limbs_keep_their_places(source: str, target: str) -> None:
    converted = convert(joints(), source, target)
    for name in ("Knee", "Ankle", "Hip", "Shoulder", "Elbow", "Wrist"):
        for side in "LR":
            there = get_skeleton(target).index(side + name)
            here = get_skeleton(source).index(side + name)
            np.testing.assert_array_equal(converted[:, there], joints()[:, here])


def test_coco_is_converted_by_the_recipe() -> None:
    """Card 4.4: pelvis = mean of hips; thorax = mean of shoulders, a third of the way to the nose;
    spine = mean of shoulders and hips."""
    pose = joints()
    made = convert(pose, COCO_17, H36M_17)
    hips, shoulders = pose[:, [11, 12]].mean(1), pose[:, [5, 6]].mean(1)
    np.testing.assert_allclose(made[:, 0], hips)
    np.testing.assert_allclose(made[:, 8], shoulders + (pose[:, 0] - shoulders) / 3)
    np.testing.assert_allclose(made[:, 7], (hips + shoulders) / 2)


def test_human36m_through_3dhp_comes_back() -> None:
    there = convert(joints(), "h36m17", "3dhp17")
    np.testing.assert_array_equal(convert(there, "3dhp17", "h36m17"), joints())


def test_a_skeleton_converts_to_itself_as_it_is() -> None:
    np.testing.assert_array_equal(convert(joints(), COCO_17, "coco17"), joints())


@pytest.mark.parametrize("source", ["h36m17", "3dhp17"])
def test_faces_cannot_be_made_of_bodies(source: str) -> None:
    with pytest.raises(StructDiffError, match="nothing to make Nose, LEye, REye, LEar, REar"):
        convert(joints(), source, "coco17")


def test_whole_pixels_are_averaged_as_numbers() -> None:
    seen = np.arange(34).reshape(1, 17, 2)
    np.testing.assert_allclose(convert(seen, "coco17", "h36m17")[0, 0], seen[0, [11, 12]].mean(0))


def test_a_missing_joint_spoils_only_what_is_made_of_it() -> None:
    pose = joints()
    pose[1, COCO_17.index("LHip")] = np.nan
    lost = np.isnan(convert(pose, "coco17", "h36m17")).all(-1)
    expected = np.zeros((3, 17), bool)
    expected[1, [H36M_17.index(j) for j in ("LHip", "Pelvis", "Spine")]] = True
    np.testing.assert_array_equal(lost, expected)


def test_converted_joints_keep_their_precision() -> None:
    assert convert(joints().astype(np.float32), "coco17", "h36m17").dtype == np.float32


def test_a_converted_joint_is_as_sure_as_its_least_sure_source() -> None:
    sure = np.linspace(0.1, 0.9, 17)[None]
    made = convert_confidence(sure, "coco17", "h36m17")
    assert made[0, H36M_17.index("Pelvis")] == sure[0, COCO_17.index("LHip")]
    assert made[0, H36M_17.index("Thorax")] == sure[0, COCO_17.index("Nose")]


def test_rows_of_a_conversion_are_of_the_target() -> None:
    assert conversion_matrix(COCO_17, MPI_INF_3DHP_17).shape == (17, 17)


def test_joints_of_another_number_are_refused() -> None:
    with pytest.raises(StructDiffError, match=r"expected \(\.\.\., 17, D\) joints of coco17"):
        convert(joints()[:, :16], "coco17", "h36m17")


def test_joints_are_found_by_name_whatever_the_case() -> None:
    assert H36M_17.index("lwrist") == 13


def test_an_unknown_joint_is_answered_with_those_there_are() -> None:
    with pytest.raises(StructDiffError, match="no joint 'Tail': it has Pelvis, RHip"):
        H36M_17.index("Tail")


def test_an_unknown_skeleton_is_answered_with_those_there_are() -> None:
    with pytest.raises(StructDiffError, match="choose one of h36m17, 3dhp17, coco17"):
        get_skeleton("smpl24")


def test_columns_of_a_file_are_ordered_by_name() -> None:
    shuffled = list(np.random.default_rng(0).permutation(H36M_17.joints))
    order = joint_order([n.upper() for n in shuffled], H36M_17)
    assert tuple(shuffled[i] for i in order) == H36M_17.joints


def test_a_missing_column_is_named() -> None:
    with pytest.raises(StructDiffError, match="no column for Pelvis, Head of h36m17"):
        joint_order([j for j in H36M_17.joints if j not in ("Head", "Pelvis")], H36M_17)


@pytest.mark.parametrize("skeleton", ALL, ids=lambda s: s.name)
def test_skeletons_survive_a_file(skeleton: Skeleton) -> None:
    assert Skeleton.from_dict(skeleton.to_dict()) == skeleton


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"parents": (-1, 0, 1)}, "one parent per named joint"),
        ({"joints": ("a", "a", "c", "d")}, "one parent per named joint"),
        ({"parents": (-1, -1, 1, 2)}, "-1 exactly once"),
        ({"parents": (-1, 0, 1, 7)}, "joint numbers below 4"),
        ({"parents": (-1, 2, 3, 1)}, "in a circle"),
        ({"left": (1, 2)}, "must pair up"),
        ({"right": (1,)}, "must pair up"),
        ({"right": (4,)}, "a joint it has not"),
    ],
)
def test_what_is_no_skeleton_is_refused(change: dict, says: str) -> None:
    fine = Skeleton("s", ("a", "b", "c", "d"), (-1, 0, 1, 2), left=(1,), right=(2,))
    with pytest.raises(StructDiffError, match=says):
        replace(fine, **change)
