r"""Attention among the joints of a frame and among the frames of a joint.

Tokens are (B, N, J, C): N frames of J joints. Both blocks are the usual pre-norm residual ones,

.. math:: x \leftarrow x + \mathrm{attention}(\mathrm{LN}_1(x)), \quad
          x \leftarrow x + \mathrm{MLP}(\mathrm{LN}_2(x));

they differ in what the skeleton adds to the logits :math:`A = q k^\top / \sqrt d`.

- Hierarchy-related spatial attention (HRST): the attention between a joint c and its parent p takes
  half of that between p and its own parent g, :math:`A'_{pc} = (A_{pc} + A_{gp}) / 2` and
  :math:`A'_{cp} = (A_{cp} + A_{gp}) / 2`, for every triple (g, p, c) of the tree.
- Hierarchy-related temporal attention (HRTT): a joint's frames are sought by keys
  :math:`k + W_c \mathrm{LN}_1(x_c)`, where :math:`x_c` is the mean of the joint and its children.
- Hop bias: a learned number per head and distance on the tree is added to A.
"""

from __future__ import annotations

import copy

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from structdiff.pose.skeletons import Skeleton

EPSILON = 1e-6
"""Of the layer norms inside the network (the head's has the usual 1e-5)."""


def hierarchy_update(skeleton: Skeleton, *, in_place: bool = False) -> npt.NDArray[np.float64]:
    """HRST's linear map on logits: (J * J, J * J), applied to row-major logits.

    Parameters
    ----------
    skeleton
        Whose triples (grandparent, parent, child) are coupled.
    in_place
        Update chain by chain, each step reading what the steps before it wrote, as the published
        code does: triples that chains share are then updated once per chain, and the two sides of
        the body differently. By default every triple counts once and reads the original logits.
    """
    joints = len(skeleton)
    original = np.eye(joints * joints).reshape(joints, joints, -1)
    updated = original.copy()
    source = updated if in_place else original
    triples = [
        triple
        for chain in skeleton.chains
        for triple in zip(chain, chain[1:], chain[2:], strict=False)
    ]
    for g, p, c in triples if in_place else dict.fromkeys(triples):
        updated[p, c] = (source[p, c] + source[g, p]) / 2
        updated[c, p] = (source[c, p] + source[g, p]) / 2
    return updated.reshape(joints * joints, -1)


def child_mean(skeleton: Skeleton) -> npt.NDArray[np.float64]:
    """Weights (J, J) of the mean of every joint and its children; a leaf's is the leaf itself."""
    weights = np.eye(len(skeleton))
    for joint, children in enumerate(skeleton.children):
        weights[joint, list(children)] = 1.0
    mean: npt.NDArray[np.float64] = weights / weights.sum(axis=1, keepdims=True)
    return mean


class HierarchyUpdate(nn.Module):
    """:func:`hierarchy_update` of logits (..., J, J), written for the few entries that it moves."""

    targets: Tensor
    sources: Tensor
    weights: Tensor

    def __init__(self, skeleton: Skeleton, *, in_place: bool = False) -> None:
        super().__init__()
        self.joints = len(skeleton)
        matrix = hierarchy_update(skeleton, in_place=in_place)
        targets = np.flatnonzero((matrix != np.eye(len(matrix))).any(axis=1))
        sources = np.flatnonzero((matrix[targets] != 0).any(axis=0))
        weights = torch.from_numpy(matrix[np.ix_(targets, sources)]).float()
        self.register_buffer("targets", torch.from_numpy(targets), persistent=False)
        self.register_buffer("sources", torch.from_numpy(sources), persistent=False)
        self.register_buffer("weights", weights, persistent=False)

    def forward(self, logits: Tensor) -> Tensor:
        """(..., J, J) -> (..., J, J)."""
        flat = logits.flatten(-2)
        moved = functional.linear(flat.index_select(-1, self.sources), self.weights.to(flat.dtype))
        return flat.index_copy(-1, self.targets, moved.to(flat.dtype)).view_as(logits)

    def transposed(self) -> HierarchyUpdate:
        """The same update for logits with the keys first."""
        other = copy.deepcopy(self)
        for entries in (other.targets, other.sources):
            entries.copy_(entries % self.joints * self.joints + entries // self.joints)
        return other


class HopBias(nn.Module):
    """Strength times a softmax over four distances (1, 2, 3 or more bones), per head: (H, J, J).

    A joint's attention to itself gets no bias. One module serves all layers.
    """

    buckets: Tensor

    def __init__(self, skeleton: Skeleton, heads: int) -> None:
        super().__init__()
        buckets = skeleton.hops.clip(max=4)[..., None] == np.arange(1, 5)
        self.register_buffer("buckets", torch.from_numpy(buckets).float(), persistent=False)
        self.logits = nn.Parameter(torch.zeros(heads, 4))
        self.strength = nn.Parameter(torch.tensor(0.1))

    def forward(self) -> Tensor:
        """Bias on the logits of every head, (H, J, J)."""
        values = self.strength * self.logits.softmax(dim=-1)
        return torch.einsum("hd,ijd->hij", values, self.buckets.to(values.dtype))


class SpatialAttention(nn.Module):
    """Attention among the joints of each frame: (B, N, J, C) -> (B, N, J, C).

    Parameters
    ----------
    width, heads
        C and the number of heads.
    update
        Map of the logits, for HRST.
    child_keys
        Hold the Linear of child keys that the published code builds here and never uses.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        update: HierarchyUpdate | None = None,
        *,
        child_keys: bool = False,
    ) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.child_keys = nn.Linear(width, width) if child_keys else None
        self.projection = nn.Linear(width, width)
        self.reads_children = False
        self.update = update

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """Tokens (B, N, J, C), bias on the logits (H, J, J)."""
        qkv = self.qkv(x).flatten(0, 1).unflatten(-1, (3, self.heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # (B N, H, J, D)
        if self.update is None:
            mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        else:
            logits = self.update((q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1))
            mixed = logits.softmax(dim=-1) @ v
        return self.projection(mixed.transpose(1, 2).reshape(x.shape))


class TemporalAttention(nn.Module):
    """Attention among the frames of each joint: (B, N, J, C) -> (B, N, J, C).

    Parameters
    ----------
    width, heads
        C and the number of heads.
    child_keys
        Whether keys of the child features are added (HRTT).
    misread
        Take the child keys as if they lay (B, J, N), as the published code does: most of them then
        belong to another joint and frame.
    update
        Map of the logits instead of child keys: what the published code does where it takes 17
        frames for 17 joints.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        child_keys: bool = False,
        misread: bool = False,
        update: HierarchyUpdate | None = None,
    ) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.child_keys = nn.Linear(width, width) if child_keys else None
        self.projection = nn.Linear(width, width)
        self.reads_children = child_keys and update is None
        self.misread = misread
        self.update = update

    def forward(self, x: Tensor, children: Tensor | None = None) -> Tensor:
        """Tokens and normalised child features, both (B, N, J, C)."""
        b, _, j, _ = x.shape
        qkv = self.qkv(x).unflatten(-1, (3, self.heads, -1))
        q, k, v = (part.transpose(1, 2).flatten(0, 1) for part in qkv.unbind(3))  # (B J, N, H, D)
        if self.child_keys is not None and children is not None and self.reads_children:
            k = k + self._arranged(self.child_keys(children)).view_as(k)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        if self.update is None:
            mixed = functional.scaled_dot_product_attention(q, k, v)
        else:
            logits = self.update((q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1))
            mixed = logits.softmax(dim=-1) @ v
        mixed = mixed.unflatten(0, (b, j)).permute(0, 3, 1, 2, 4)
        return self.projection(mixed.reshape(x.shape))

    def _arranged(self, keys: Tensor) -> Tensor:
        """Child keys (B, N, J, C) in the order of the others, (B J, N, C)."""
        b, n, j, c = keys.shape
        return keys.reshape(b * j, n, c) if self.misread else keys.transpose(1, 2).flatten(0, 1)


class DropPath(nn.Module):
    """Leave a residual branch out, per frame (spatial) or per joint (temporal), when training.

    Parameters
    ----------
    rate
        Probability; branches that stay are divided by 1 - rate.
    axis
        Token axis that branches are dropped along: 1 frames, 2 joints.
    """

    def __init__(self, rate: float, axis: int) -> None:
        super().__init__()
        self.rate = rate
        self.axis = axis

    def forward(self, branch: Tensor) -> Tensor:
        """(B, N, J, C) -> (B, N, J, C)."""
        if not self.training or self.rate == 0:
            return branch
        shape = [branch.shape[0], 1, 1, 1]
        shape[self.axis] = branch.shape[self.axis]
        kept = torch.rand(shape, device=branch.device, dtype=branch.dtype) >= self.rate
        return branch * (kept.to(branch.dtype) / (1 - self.rate))


class Block(nn.Module):
    """Pre-norm residual attention and MLP: (B, N, J, C) -> (B, N, J, C).

    Parameters
    ----------
    attention
        Spatial or temporal.
    width
        C.
    hidden
        Width inside the MLP.
    drop_path
        Rate of :class:`DropPath`.
    """

    def __init__(
        self,
        attention: SpatialAttention | TemporalAttention,
        width: int,
        hidden: int,
        drop_path: float,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=EPSILON)
        self.attention = attention
        self.norm2 = nn.LayerNorm(width, eps=EPSILON)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))
        self.drop_path = DropPath(drop_path, 1 if isinstance(attention, SpatialAttention) else 2)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Tokens; for spatial blocks the bias (H, J, J), for temporal ones x_c (B, N, J, C)."""
        if context is not None and isinstance(self.attention, TemporalAttention):
            context = self.norm1(context)
        x = x + self.drop_path(self.attention(self.norm1(x), context))
        return x + self.drop_path(self.mlp(self.norm2(x)))
