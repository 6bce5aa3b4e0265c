r"""HSTDenoiser made ready for a processor: the same numbers, sooner.

Nearly all work is products of about a thousand tokens with weights that stay. So the weights are
laid out once as oneDNN wants them, freed memory is kept from layer to layer, and attention reads
its queries, keys and values where they lie. Algebra saves some more, all of it exact:

- Scaling by :math:`1 / \sqrt d` belongs to the weights of the queries, and a layer norm's scale and
  shift to those of the child keys, whose tokens are then normalised once for all layers.
- The first layer's tokens are affine in a few numbers, :math:`x = W u + b`, and a layer norm only
  centres and rescales. So the first queries, keys and values are affine in :math:`u / \sigma`, a
  product with two dozen rows instead of C.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from structdiff.errors import StructDiffError
from structdiff.pose.blocks import EPSILON, Block, SpatialAttention, TemporalAttention

if TYPE_CHECKING:
    from structdiff.pose.networks import HSTDenoiser

PIECE = 2048
"""Tokens that are worked on at once, where a sequence has fewer: they stay in the cache."""

_LAYOUT_FOR = 918
"""Tokens that weights are laid out for: 27 frames of 17 joints, twice. Any number works."""

_ALLOCATOR_LARGEST = 31 * 2**20
"""Bytes; the GNU allocator learns from blocks below 32 MiB."""


class PackedLinear:
    """A Linear with its weights as oneDNN wants them: (R, I) -> (R, O), float32, no gradient."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        self.weight, self.bias = weight.detach(), bias.detach()
        self.packs = _packs()
        if self.packs:
            self.weight = torch.ops.mkldnn._reorder_linear_weight(self.weight, _LAYOUT_FOR)

    def __call__(self, x: Tensor) -> Tensor:
        """(R, I) -> (R, O)."""
        if not self.packs:
            return functional.linear(x, self.weight, self.bias)
        out: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")
        return out


def _packs() -> bool:
    """Whether this build of torch has oneDNN's products with weights laid out before."""
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def _keep_memory() -> None:
    """Have the C library keep freed memory of a layer's size for the next layer.

    The GNU allocator returns a block to the system once it is larger than any it saw freed before,
    and every page then has to be asked for, and cleared, anew: a seventh of the whole time here.
    """
    block = torch.empty(_ALLOCATOR_LARGEST, dtype=torch.uint8)
    del block


def _scaled(attention: SpatialAttention | TemporalAttention) -> tuple[Tensor, Tensor]:
    """Weight and bias of queries, keys and values, with the logits' scale in the queries."""
    width = attention.projection.in_features
    scale = torch.ones(3 * width)
    scale[:width] = (width // attention.heads) ** -0.5
    return attention.qkv.weight.detach() * scale[:, None], attention.qkv.bias.detach() * scale


class PreparedBlock:
    """A block over rows (R, S, C): the joints of a frame, or the frames of a joint."""

    def __init__(self, block: Block) -> None:
        attention = block.attention
        self.heads = attention.heads
        self.update = None if attention.update is None else attention.update.transposed()
        self.norms = [(n.weight.detach(), n.bias.detach()) for n in (block.norm1, block.norm2)]
        (gain, shift), width = self.norms[0], attention.projection.in_features
        weight, bias = _scaled(attention)
        self.child: PackedLinear | None = None
        if attention.child_keys is not None and attention.reads_children:
            child = attention.child_keys.weight.detach()
            self.child = PackedLinear(child * gain, attention.child_keys.bias + child @ shift)
            others = torch.cat((weight[:width], weight[2 * width :]))
            self.key = PackedLinear(weight[width : 2 * width], bias[width : 2 * width])
            self.qkv = PackedLinear(others, torch.cat((bias[:width], bias[2 * width :])))
        else:
            self.qkv = PackedLinear(weight, bias)
        self.projection = PackedLinear(attention.projection.weight, attention.projection.bias)
        self.inner, self.outer = (
            PackedLinear(part.weight, part.bias)
            for part in block.mlp
            if isinstance(part, nn.Linear)
        )

    def __call__(
        self,
        x: Tensor,
        children: Tensor | None = None,
        bias: Tensor | None = None,
        qkv: Tensor | None = None,
    ) -> Tensor:
        """A block's output.

        Parameters
        ----------
        x
            Tokens (R, S, C).
        children
            Child features (R S, C), centred and rescaled.
        bias
            On the logits, (H, S, S).
        qkv
            Queries, keys and values (R S, 3 C), where they are known already.
        """
        rows, tokens, width = x.shape
        x = x.view(-1, width)
        query, key, value = self._projected(x, children) if qkv is None else qkv.chunk(3, dim=-1)
        shape = (rows, tokens, width)
        mixed = self._attended(query.view(shape), key.view(shape), value.view(shape), bias)
        x = self.projection(mixed.view(-1, width)).add_(x)
        normed = functional.layer_norm(x, (width,), *self.norms[1], EPSILON)
        return self.outer(functional.gelu(self.inner(normed))).add_(x).view(shape)

    def _attended(self, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> Tensor:
        """Values (R, S, C) weighed by their logits; head by head, which copies nothing."""
        rows, tokens, width = query.shape
        q, k, v = (part.split(width // self.heads, dim=-1) for part in (query, key, value))
        # Keys first: a softmax down the columns is the faster one where rows are short.
        logits = query.new_empty(self.heads, rows, tokens, tokens)
        for head in range(self.heads):
            torch.bmm(k[head], q[head].mT, out=logits[head])
        if bias is not None:
            logits += bias.mT[:, None]
        if self.update is not None:
            logits = self.update(logits)
        weights = logits.softmax(dim=2).mT
        mixed = torch.empty_like(query, memory_format=torch.contiguous_format)
        for head, part in enumerate(mixed.split(width // self.heads, dim=-1)):
            part.copy_(torch.bmm(weights[head], v[head]))
        return mixed

    def _projected(self, x: Tensor, children: Tensor | None) -> Sequence[Tensor]:
        """Queries, keys and values of tokens (R S, C)."""
        normed = functional.layer_norm(x, x.shape[-1:], *self.norms[0], EPSILON)
        if self.child is None or children is None:
            return self.qkv(normed).chunk(3, dim=-1)
        query, value = self.qkv(normed).chunk(2, dim=-1)
        return query, self.key(normed).add_(self.child(children)), value


class PreparedDenoiser(nn.Module):
    """The same function of features and time as the network it was made from.

    Parameters
    ----------
    network
        In float32 on the CPU. Its weights are copied: training it further changes nothing here.

    Raises
    ------
    StructDiffError
        If the network is elsewhere or of another precision.
    """

    def __init__(self, network: HSTDenoiser) -> None:
        super().__init__()
        if any(p.device.type != "cpu" or p.dtype != torch.float32 for p in network.parameters()):
            raise StructDiffError(
                "only a network in float32 on the CPU can be made ready for inference: call "
                "network.float().cpu() first, or use it as it is"
            )
        self.network = copy.deepcopy(network).eval().requires_grad_(False)
        blocks = [cast(Block, b) for b in (*self.network.spatial, *self.network.temporal)]
        self._spatial = [PreparedBlock(block) for block in blocks[: network.depth]]
        self._temporal = [PreparedBlock(block) for block in blocks[network.depth :]]
        # Their weights are held above, laid out anew.
        self.network.spatial = self.network.temporal = nn.ModuleList()
        # What a layer norm does before it rescales belongs to the first weights.
        gain, shift = blocks[0].norm1.weight, blocks[0].norm1.bias
        weight, bias = _scaled(blocks[0].attention)
        self._constant = bias + weight @ shift
        weight = weight * gain
        self._centred = (weight - weight.mean(dim=1, keepdim=True)).T  # (C, 3 C)
        self._from_features = self.network.embedding.weight.T @ self._centred
        _keep_memory()

    @torch.no_grad()
    def forward(self, features: Tensor, time: Tensor) -> Tensor:
        """As :meth:`HSTDenoiser.forward <structdiff.pose.networks.HSTDenoiser.forward>`."""
        self.network.check_features(features)
        size = max(1, PIECE // (features.shape[1] * features.shape[2]))
        features = features.to(self._centred.dtype)
        pieces = zip(features.split(size), time.split(size), strict=True)
        return torch.cat([self._joints(piece, times) for piece, times in pieces])

    def _joints(self, features: Tensor, time: Tensor) -> Tensor:
        network = self.network
        b, n, j, _ = features.shape
        places = network.places(time)  # (B, J, C)
        x = network.embedding(features) + places[:, None]
        qkv = self._first_projection(features, places, x)
        bias = None if network.hop_bias is None else network.hop_bias()
        children = None
        for layer, (spatial, temporal) in enumerate(
            zip(self._spatial, self._temporal, strict=True)
        ):
            x = spatial(x.reshape(b * n, j, -1), None, bias, qkv if layer == 0 else None)
            x = network.spatial_norm(x.view(b, n, j, -1).transpose(1, 2))
            if layer == 0:
                x = x + network.frame_embedding
            x = temporal(x.reshape(b * j, n, -1), children)
            x = network.temporal_norm(x.view(b, j, n, -1).transpose(1, 2))
            if layer == 0 and network.temporal_kind == "hrtt":
                children = self._children(x)
        joints: Tensor = network.head(x)
        return joints

    def _first_projection(self, features: Tensor, places: Tensor, x: Tensor) -> Tensor:
        """Queries, keys and values (T, 3 C) of the tokens that features and places make."""
        b, n, j, _ = features.shape
        from_places = (places + self.network.embedding.bias) @ self._centred  # (B, J, 3 C)
        table = torch.cat(
            (
                self._from_features.expand(b, -1, -1),
                from_places,
                self._constant.expand(b, 1, -1),
            ),
            dim=1,
        )
        scale = (x.var(dim=-1, correction=0, keepdim=True) + EPSILON).rsqrt()
        which = torch.eye(j).expand(b, n, j, j)
        numbers = torch.cat((features * scale, which * scale, torch.ones_like(scale)), dim=-1)
        return torch.bmm(numbers.flatten(1, 2), table).flatten(0, 1)

    def _children(self, x: Tensor) -> Tensor:
        """Child features (T, C), centred and rescaled, in the order that HRTT reads them."""
        features = self.network.child_mean @ x
        features = functional.layer_norm(features, x.shape[-1:], None, None, EPSILON)
        if self.network.layout != "reference":
            features = features.transpose(1, 2)
        return features.reshape(-1, x.shape[-1])
