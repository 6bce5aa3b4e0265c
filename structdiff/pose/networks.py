r"""DDHPose's network (Cai et al., AAAI 2024): from 2D joints and noisy bones to clean 3D joints.

HSTDenoiser is a transformer whose layers look at the joints of each frame, then at the frames of
each joint:

.. math:: x \leftarrow \mathrm{LN}_s(\mathrm{spatial}_i(x)), \quad
          x \leftarrow \mathrm{LN}_t(\mathrm{temporal}_i(x, x_c)), \quad i = 1 \dots depth,

on tokens (B, N, J, C) that start as a linear map of ``[x, y, dx, dy, dz, l]`` plus embeddings of
the joint's level and number and of the time. What the skeleton adds is in :mod:`.blocks`.
"""

from __future__ import annotations

import math
from typing import Literal, TypeAlias, get_args

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from structdiff.errors import StructDiffError
from structdiff.pose.blocks import (
    EPSILON,
    Block,
    HierarchyUpdate,
    HopBias,
    SpatialAttention,
    TemporalAttention,
    child_mean,
)
from structdiff.pose.inference import PreparedDenoiser
from structdiff.pose.skeletons import H36M_17, Skeleton, get_skeleton

Layout: TypeAlias = Literal["corrected", "reference", "d3dp"]
Spatial: TypeAlias = Literal["hrst", "hop-bias", "plain"]
Temporal: TypeAlias = Literal["hrtt", "plain"]


class TimeEmbedding(nn.Module):
    """Sines, then cosines, of a diffusion time, then an MLP: (B,) -> (B, C)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.inner = nn.Linear(width, 2 * width)
        self.outer = nn.Linear(2 * width, width)

    def forward(self, time: Tensor) -> Tensor:
        """Times 0 to 999, real-valued."""
        half = self.width // 2
        # In float32 whatever the weights are: bfloat16 cannot tell 999 from 1000.
        steps = torch.arange(half, device=time.device, dtype=torch.float32)
        angles = time.float()[:, None] * torch.exp(steps * -(math.log(10000) / (half - 1)))
        waves = torch.cat((angles.sin(), angles.cos()), dim=-1)
        hidden = functional.gelu(self.inner(waves.to(self.inner.weight.dtype)))
        embedded: Tensor = self.outer(hidden)
        return embedded


class HSTDenoiser(nn.Module):
    """Hierarchical spatial and temporal denoiser: (B, N, J, inputs), (B,) -> (B, N, J, 3).

    Parameters
    ----------
    skeleton
        Or its name: levels, chains, children and distances of joints are read off its tree.
    frames
        N.
    width
        C, even and a multiple of ``heads``.
    depth
        Layers, each a spatial and a temporal block; the first ones are plain.
    heads
        Of every attention.
    mlp_ratio
        Width inside an MLP over C.
    inputs
        Numbers per joint: 2D, bone direction and bone length in the published case.
    drop_path
        Rate of the last layer, from 0 at the first, when training.
    layout
        ``"corrected"``: every triple of joints counts once in HRST, HRTT reads a joint's own
        children, no unused weights; commutes with exchanging left and right. ``"reference"``: what
        the published code computes, for its weights. ``"d3dp"``: D3DP's network, that is plain
        blocks and no level embedding.
    spatial
        ``"hrst"``, ``"hop-bias"`` or ``"plain"``; the latter two only with ``"corrected"``.
    temporal
        ``"hrtt"`` or ``"plain"``; the latter only with ``"corrected"``.

    Raises
    ------
    StructDiffError
        If a setting is impossible.
    """

    child_mean: Tensor
    levels: Tensor

    def __init__(
        self,
        skeleton: str | Skeleton = H36M_17,
        frames: int = 27,
        *,
        width: int = 512,
        depth: int = 8,
        heads: int = 8,
        mlp_ratio: float = 2.0,
        inputs: int = 6,
        drop_path: float = 0.1,
        layout: Layout = "corrected",
        spatial: Spatial = "hrst",
        temporal: Temporal = "hrtt",
    ) -> None:
        super().__init__()
        if layout == "d3dp":
            spatial = temporal = "plain"
        self.skeleton = skeleton = get_skeleton(skeleton)
        self.frames, self.width, self.depth, self.heads = frames, width, depth, heads
        self.mlp_ratio, self.inputs, self.layout = mlp_ratio, inputs, layout
        self.spatial_kind, self.temporal_kind = spatial, temporal
        self._check(drop_path)
        self.embedding = nn.Linear(inputs, width)
        self.time = TimeEmbedding(width)
        levels = torch.from_numpy(np.asarray(skeleton.depths))
        self.register_buffer("levels", levels, persistent=False)
        self.level_embedding = (
            None if layout == "d3dp" else nn.Parameter(torch.zeros(len(skeleton.levels), width))
        )
        self.joint_embedding = nn.Parameter(torch.zeros(len(skeleton), width))
        self.frame_embedding = nn.Parameter(torch.zeros(frames, width))
        self.hop_bias = HopBias(skeleton, heads) if spatial == "hop-bias" else None
        means = torch.from_numpy(child_mean(skeleton)).float()
        self.register_buffer("child_mean", means, persistent=False)
        rates = np.linspace(0, drop_path, depth).tolist()
        hidden = round(width * mlp_ratio)
        self.spatial = nn.ModuleList(
            Block(self._spatial_attention(i), width, hidden, rates[i]) for i in range(depth)
        )
        self.temporal = nn.ModuleList(
            Block(self._temporal_attention(i), width, hidden, rates[i]) for i in range(depth)
        )
        self.spatial_norm = nn.LayerNorm(width, eps=EPSILON)
        self.temporal_norm = nn.LayerNorm(width, eps=EPSILON)
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 3))

    def _check(self, drop_path: float) -> None:
        kinds = (
            ("layout", self.layout, get_args(Layout)),
            ("spatial", self.spatial_kind, get_args(Spatial)),
            ("temporal", self.temporal_kind, get_args(Temporal)),
        )
        for name, value, known in kinds:
            if value not in known:
                raise StructDiffError(f"unknown {name} {value!r}: choose {', '.join(known)}")
        if self.layout == "reference" and (self.spatial_kind, self.temporal_kind) != (
            "hrst",
            "hrtt",
        ):
            raise StructDiffError(
                f"layout 'reference' has spatial 'hrst' and temporal 'hrtt', not "
                f"{self.spatial_kind!r} and {self.temporal_kind!r}: choose layout 'corrected'"
            )
        for name in ("frames", "width", "depth", "heads", "inputs"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise StructDiffError(f"{name} must be a positive whole number, got {value!r}")
        if self.width % self.heads or self.width % 2 or self.width < 4:
            raise StructDiffError(
                f"width must be an even multiple of heads, at least 4; got width {self.width} "
                f"with {self.heads} heads"
            )
        if not self.mlp_ratio * self.width >= 1 or not 0 <= drop_path < 1:
            raise StructDiffError(
                f"mlp_ratio must be positive and drop_path in [0, 1); got {self.mlp_ratio} and "
                f"{drop_path}"
            )

    def _spatial_attention(self, layer: int) -> SpatialAttention:
        if layer == 0 or self.spatial_kind != "hrst":
            return SpatialAttention(self.width, self.heads)
        published = self.layout == "reference"
        update = HierarchyUpdate(self.skeleton, in_place=published)
        return SpatialAttention(self.width, self.heads, update, child_keys=published)

    def _temporal_attention(self, layer: int) -> TemporalAttention:
        if layer == 0 or self.temporal_kind != "hrtt":
            return TemporalAttention(self.width, self.heads)
        published = self.layout == "reference"
        # The published code tells joints from frames by their number, and takes these for joints.
        confused = published and self.frames == len(self.skeleton)
        return TemporalAttention(
            self.width,
            self.heads,
            child_keys=True,
            misread=published,
            update=HierarchyUpdate(self.skeleton, in_place=True) if confused else None,
        )

    def forward(self, features: Tensor, time: Tensor) -> Tensor:
        """Clean joints.

        Parameters
        ----------
        features
            (B, N, J, inputs): normalised 2D joints and noisy bones, ``[x, y, dx, dy, dz, l]``.
        time
            (B,), diffusion time on the published scale of 0 to 999, real-valued.

        Returns
        -------
        Tensor
            (B, N, J, 3) in the unit of the training poses.

        Raises
        ------
        StructDiffError
            If the features have another shape.
        """
        self.check_features(features)
        x = self.embedding(features.to(self.embedding.weight.dtype)) + self.places(time)[:, None]
        bias = None if self.hop_bias is None else self.hop_bias()
        children = None
        for layer, (spatial, temporal) in enumerate(zip(self.spatial, self.temporal, strict=True)):
            x = self.spatial_norm(spatial(x, bias))
            if layer == 0:
                x = x + self.frame_embedding[:, None]
            x = self.temporal_norm(temporal(x, children))
            if layer == 0 and self.temporal_kind == "hrtt":
                children = self.child_mean.to(x.dtype) @ x
        return self.head(x).to(features.dtype)

    def check_features(self, features: Tensor) -> None:
        """Raise StructDiffError if the features are not (B, N, J, inputs)."""
        expected = (self.frames, len(self.skeleton), self.inputs)
        if features.ndim != 4 or tuple(features.shape[1:]) != expected:
            raise StructDiffError(
                f"expected features (B, {', '.join(map(str, expected))}), "
                f"got {tuple(features.shape)}"
            )

    def places(self, time: Tensor) -> Tensor:
        """What every frame's tokens get on top of their features, from times (B,): (B, J, C)."""
        joints: Tensor = self.joint_embedding
        if self.level_embedding is not None:
            joints = joints + self.level_embedding[self.levels]
        return joints + self.time(time)[:, None]

    def prepare_for_inference(self) -> PreparedDenoiser:
        """A copy that is faster on a processor, for evaluation only.

        Raises
        ------
        StructDiffError
            If the network is not in float32 on the CPU.
        """
        return PreparedDenoiser(self)
