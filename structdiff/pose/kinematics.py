r"""Poses as lengths and directions of bones, and back.

.. math:: v_c = y_c - y_{p(c)}, \quad l_c = \|v_c\|, \quad d_c = v_c / l_c, \qquad
          y_c = y_{p(c)} + l_c\,d_c

A bone has the slot of its child joint; the root's slot is 0. (DDHPose, arXiv 2403.04444, sec. 3.2.)
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from structdiff.errors import StructDiffError
from structdiff.pose.skeletons import Skeleton
from structdiff.state import State

LENGTH, DIRECTION = "length", "direction"
"""Names of the two components of a pose."""
_SHORTEST = 1e-12
"""Metres; below it a bone has no direction."""


@lru_cache(maxsize=64)
def _parents(skeleton: Skeleton, device: torch.device) -> Tensor:
    """Parent of every joint, the root being its own: so its bone is 0."""
    own = [j if p == -1 else p for j, p in enumerate(skeleton.parents)]
    return torch.tensor(own, device=device)


@lru_cache(maxsize=64)
def _ancestry(skeleton: Skeleton, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Which bones lead to which joint, (J, J): 1 where the second is on the way to the first."""
    matrix = torch.zeros(len(skeleton), len(skeleton), dtype=dtype)
    for chain_end in range(len(skeleton)):
        at = chain_end
        while at != skeleton.root:
            matrix[chain_end, at] = 1
            at = skeleton.parents[at]
    return matrix.to(device)


def bone_mask(skeleton: Skeleton, like: Tensor) -> Tensor:
    """Which slots of (B, ..., J, C) are bones, bool (1, ..., J, 1): all but the root's.

    The mask of both components.
    """
    mask = torch.ones(len(skeleton), 1, dtype=torch.bool, device=like.device)
    mask[skeleton.root] = False
    return mask.reshape((1,) * (like.dim() - 2) + mask.shape)


def bone_vectors(pose: Tensor, skeleton: Skeleton) -> Tensor:
    """Vectors from parent to child, (..., J, 3); 0 in the root's slot."""
    if pose.shape[-2] != len(skeleton):
        raise StructDiffError(
            f"expected (..., {len(skeleton)}, 3) joints of {skeleton.name}, got {tuple(pose.shape)}"
        )
    return pose - pose[..., _parents(skeleton, pose.device), :]


def normalised(vectors: Tensor) -> Tensor:
    """Unit vectors (..., 3); 0, with a gradient of 0, where there is no direction; NaN stays."""
    squared = vectors.square().sum(-1, keepdim=True)
    exists = ~(squared <= _SHORTEST**2)
    # The root of what is not there is never taken: its derivative is infinite.
    return torch.where(exists, vectors * torch.where(exists, squared, 1.0).rsqrt(), 0.0)


def bone_lengths(pose: Tensor, skeleton: Skeleton) -> Tensor:
    """Lengths (..., J, 1) in the unit of the pose; 0 in the root's slot, gradients finite."""
    return _norm(bone_vectors(pose, skeleton))


def _norm(vectors: Tensor) -> Tensor:
    squared = vectors.square().sum(-1, keepdim=True)
    exists = ~(squared <= _SHORTEST**2)  # NaN stays: a joint that is none has no bone of length 0
    return torch.where(exists, torch.where(exists, squared, 1.0).sqrt(), 0.0)


def decompose(pose: Tensor, skeleton: Skeleton) -> State:
    """Take a pose apart into bone lengths and directions.

    A bone shorter than 1e-12 has length 0, direction 0 and gradient 0.

    Parameters
    ----------
    pose
        Joints (B, ..., J, 3); anything that moves all joints of a pose alike drops out.
    skeleton
        Their skeleton.

    Returns
    -------
    State
        ``length`` (B, ..., J, 1) in the unit of the pose and ``direction`` (B, ..., J, 3), both
        masked to bones.
    """
    vectors = bone_vectors(pose, skeleton)
    mask = bone_mask(skeleton, pose)
    return State(
        {LENGTH: _norm(vectors), DIRECTION: normalised(vectors)}, {LENGTH: mask, DIRECTION: mask}
    )


def compose(bones: State, skeleton: Skeleton) -> Tensor:
    """Put a pose together, with its root at 0: inverse of :func:`decompose`.

    Parameters
    ----------
    bones
        ``length`` (B, ..., J, 1) and ``direction`` (B, ..., J, 3); the root's slots are ignored.
    skeleton
        Their skeleton.
    """
    vectors = bones[LENGTH] * bones[DIRECTION]
    # Forward kinematics of all chains at once: the sum of the bones on the way from the root.
    return _ancestry(skeleton, vectors.device, vectors.dtype) @ vectors


def constant_bones(pose: Tensor, skeleton: Skeleton, weights: Tensor | None = None) -> Tensor:
    """The pose with one length per bone for the whole clip; directions stay.

    Parameters
    ----------
    pose
        Joints of one clip or several, (..., T, J, 3).
    skeleton
        Their skeleton.
    weights
        How far a frame's bone counts, (..., T, J); None takes the median over frames.
    """
    bones = decompose(pose, skeleton)
    length = bones[LENGTH]
    if weights is None:
        fixed = length.median(dim=-3, keepdim=True).values
    else:
        share = weights[..., None].to(length.dtype)
        # A joint that never counts has no better length than its mean.
        share = torch.where(share.sum(-3, keepdim=True) > 0, share, 1.0)
        fixed = (length * share).sum(-3, keepdim=True) / share.sum(-3, keepdim=True)
    root = pose[..., skeleton.root : skeleton.root + 1, :]
    return root + compose(bones.replace(length=fixed.expand_as(length)), skeleton)


def mirror_bones(bones: State, skeleton: Skeleton) -> State:
    """The mirror image of lengths and directions: sides change places, x is negated."""
    order = list(skeleton.mirrored)
    sign = bones[DIRECTION].new_tensor([-1.0, 1.0, 1.0])
    return bones.replace(
        length=bones[LENGTH][..., order, :], direction=bones[DIRECTION][..., order, :] * sign
    )
