"""Lengths and directions of bones: exact round trips, finite gradients, constant bones."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from structdiff.errors import StructDiffError
from structdiff.pose.kinematics import (
    bone_lengths,
    bone_mask,
    bone_vectors,
    compose,
    constant_bones,
    decompose,
    mirror_bones,
)
from structdiff.pose.skeletons import COCO_17, H36M_17, MPI_INF_3DHP_17, Skeleton, mirror


def random_tree(joints: int, seed: int) -> Skeleton:
    """Joints in any order: parents may come after their children."""
    draw = np.random.default_rng(seed)
    order = draw.permutation(joints)
    parents = np.full(joints, -1)
    for place in range(1, joints):
        parents[order[place]] = order[draw.integers(place)]
    return Skeleton(f"tree{seed}", tuple(f"j{i}" for i in range(joints)), tuple(parents), (), ())


TREES = [
    H36M_17,
    MPI_INF_3DHP_17,
    COCO_17,
    random_tree(9, 0),
    random_tree(30, 1),
    random_tree(2, 2),
]
trees = pytest.mark.parametrize("tree", TREES, ids=lambda s: s.name)


def poses(tree: Skeleton, *batch: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Of the size of people, root at 0."""
    seed = torch.Generator().manual_seed(0)
    pose = 0.5 * torch.randn(*batch, len(tree), 3, generator=seed, dtype=torch.float64)
    return (pose - pose[..., tree.root : tree.root + 1, :]).to(dtype)


@trees
@pytest.mark.parametrize("batch", [(1,), (3, 4), (2, 3, 4)])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-6), (torch.float64, 1e-12)])
def test_a_pose_taken_apart_is_put_together_again(tree, batch, dtype, bound) -> None:
    """Card 10 item 1."""
    pose = poses(tree, *batch, dtype=dtype)
    assert (compose(decompose(pose, tree), tree) - pose).abs().max() < bound


@trees
def test_similar_poses_differ_in_scaled_lengths_and_turned_directions(tree) -> None:
    """Card 10 item 1: decompose(s R y + t) = (s l, R d)."""
    turn = torch.linalg.qr(torch.randn(3, 3, generator=torch.manual_seed(1)).double()).Q
    pose, shift = poses(tree, 2, 5), torch.tensor([1.0, -2.0, 3.0])
    bones = decompose(pose, tree)
    moved = decompose(2.5 * pose @ turn.T + shift, tree)
    torch.testing.assert_close(moved["length"], 2.5 * bones["length"], atol=1e-12, rtol=0)
    torch.testing.assert_close(moved["direction"], bones["direction"] @ turn.T, atol=1e-12, rtol=0)


@trees
def test_directions_have_length_one_and_the_root_slot_is_empty(tree) -> None:
    bones = decompose(poses(tree, 3), tree)
    norms = bones["direction"].norm(dim=-1)
    assert (norms[:, list(tree.bones)] - 1).abs().max() < 1e-12
    assert norms[:, tree.root].eq(0).all() and bones["length"][:, tree.root].eq(0).all()


def test_lengths_are_distances_from_parent_to_child() -> None:
    pose = poses(H36M_17, 3)
    lengths = bone_lengths(pose, H36M_17)[..., 0]
    for child in H36M_17.bones:
        expected = (pose[:, child] - pose[:, H36M_17.parents[child]]).norm(dim=-1)
        torch.testing.assert_close(lengths[:, child], expected)


def test_a_bone_without_length_has_direction_zero() -> None:
    pose = poses(H36M_17, 2)
    pose[:, 3] = pose[:, 2]
    bones = decompose(pose, H36M_17)
    assert bones["length"][:, 3].eq(0).all() and bones["direction"][:, 3].eq(0).all()
    torch.testing.assert_close(compose(bones, H36M_17), pose)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_bone_without_length_has_a_finite_gradient(dtype) -> None:
    pose = poses(H36M_17, 2, dtype=dtype)
    pose[:, 3] = pose[:, 2]
    pose.requires_grad_()
    bones = decompose(pose, H36M_17)
    (bones["length"].sum() + bones["direction"].sum()).backward()
    assert torch.isfinite(pose.grad).all() and pose.grad[:, 3].eq(0).all()


def test_gradients_are_those_of_differences() -> None:
    pose = poses(random_tree(5, 4), 2).requires_grad_()

    def both(p: Tensor) -> Tensor:
        bones = decompose(p, random_tree(5, 4))
        return torch.cat((bones["length"], bones["direction"]), -1)

    assert torch.autograd.gradcheck(both, (pose,))


def test_what_is_in_the_roots_slot_does_not_matter() -> None:
    bones = decompose(poses(MPI_INF_3DHP_17, 2), MPI_INF_3DHP_17)
    length, direction = bones["length"].clone(), bones["direction"].clone()
    length[:, 14], direction[:, 14] = 7, 7
    pose = compose(bones.replace(length=length, direction=direction), MPI_INF_3DHP_17)
    torch.testing.assert_close(pose, compose(bones, MPI_INF_3DHP_17))


def test_both_components_are_masked_to_bones() -> None:
    bones = decompose(poses(MPI_INF_3DHP_17, 2, 3), MPI_INF_3DHP_17)
    for mask in bones.masks.values():
        assert mask.shape == (1, 1, 17, 1)
        assert [i for i, m in enumerate(mask.flatten().tolist()) if not m] == [14]


def test_the_mask_fits_batches_of_any_depth() -> None:
    assert bone_mask(H36M_17, torch.zeros(2, 3, 4, 17, 1)).shape == (1, 1, 1, 17, 1)


def test_joints_of_another_number_are_refused() -> None:
    with pytest.raises(StructDiffError, match=r"expected \(\.\.\., 17, 3\) joints of h36m17"):
        bone_vectors(torch.zeros(2, 16, 3), H36M_17)


@pytest.mark.parametrize("weighted", [False, True])
def test_constant_bones_have_no_spread(weighted: bool) -> None:
    """Card 10 item 13: standard deviation over time 0 to 1e-6 m, in float32."""
    pose = poses(H36M_17, 2, 20, dtype=torch.float32)
    weights = torch.rand(2, 20, 17, generator=torch.manual_seed(0)) if weighted else None
    fixed = constant_bones(pose, H36M_17, weights)
    assert bone_lengths(fixed, H36M_17).std(dim=1).max() < 1e-6


def test_constant_bones_keep_directions_and_root() -> None:
    pose = poses(H36M_17, 20) + torch.tensor([0.1, 0.2, 5.0])
    fixed = constant_bones(pose, H36M_17)
    torch.testing.assert_close(fixed[:, 0], pose[:, 0])
    expected = decompose(pose, H36M_17)["direction"]
    torch.testing.assert_close(decompose(fixed, H36M_17)["direction"], expected)


def test_constant_bones_have_the_median_length() -> None:
    pose = poses(H36M_17, 21)
    expected = bone_lengths(pose, H36M_17).median(dim=0).values
    torch.testing.assert_close(bone_lengths(constant_bones(pose, H36M_17), H36M_17)[3], expected)


def test_frames_of_weight_zero_do_not_bear_on_constant_bones() -> None:
    pose, weights = poses(H36M_17, 20), torch.ones(20, 17)
    weights[5:] = 0
    expected = bone_lengths(pose[:5], H36M_17).mean(0)
    fixed = constant_bones(pose, H36M_17, weights)
    torch.testing.assert_close(bone_lengths(fixed, H36M_17)[7], expected)


def test_a_joint_that_never_counts_keeps_its_mean_length() -> None:
    pose, weights = poses(H36M_17, 20), torch.ones(20, 17)
    weights[:, 3] = 0
    fixed = bone_lengths(constant_bones(pose, H36M_17, weights), H36M_17)
    torch.testing.assert_close(fixed[0], bone_lengths(pose, H36M_17).mean(0))


def test_a_joint_that_is_nan_has_nan_bones_and_is_no_bone_of_length_0() -> None:
    pose = poses(H36M_17, 2)
    pose[0, 5] = torch.nan
    bones = decompose(pose, H36M_17)
    touched = [5, 6]  # the bone that ends in the knee, and the one that starts there
    for value in (*bones.values(), bone_lengths(pose, H36M_17)):
        lost = value.isnan().any(-1)
        assert lost[0].nonzero().flatten().tolist() == touched and not bool(lost[1].any())


def test_clips_keep_bones_of_their_own() -> None:
    pose = poses(H36M_17, 2, 20)
    alone = torch.stack([constant_bones(p, H36M_17) for p in pose])
    torch.testing.assert_close(constant_bones(pose, H36M_17), alone)


def test_mirrored_bones_are_the_bones_of_the_mirrored_pose() -> None:
    """Card 10 item 5."""
    pose = poses(H36M_17, 3)
    image = decompose(torch.as_tensor(mirror(pose.numpy(), H36M_17)), H36M_17)
    bones = mirror_bones(decompose(pose, H36M_17), H36M_17)
    for name in ("length", "direction"):
        torch.testing.assert_close(bones[name], image[name])


def test_mirroring_bones_twice_changes_nothing() -> None:
    bones = decompose(poses(MPI_INF_3DHP_17, 3), MPI_INF_3DHP_17)
    twice = mirror_bones(mirror_bones(bones, MPI_INF_3DHP_17), MPI_INF_3DHP_17)
    for name in ("length", "direction"):
        torch.testing.assert_close(twice[name], bones[name], atol=0, rtol=0)


@pytest.mark.usefixtures("data_dir")
def test_clips_of_cmu17_have_rigid_bones() -> None:
    """README of CMU17: the largest variation inside any clip is 3.4e-7 m."""
    from structdiff.pose.data import load_cmu17

    for clip in load_cmu17("test")[::4]:
        lengths = bone_lengths(torch.as_tensor(clip.poses).double(), H36M_17)
        assert (lengths.amax(0) - lengths.amin(0)).max() < 1e-6, clip.name
