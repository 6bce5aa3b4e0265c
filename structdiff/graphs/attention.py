r"""Graph multi-head attention over pairs, all channels at once.

The layer of the GDSS score networks (Jo, Lee, Hwang, ICML 2022, arXiv 2202.02514, after Baek et
al. 2021). With one normalised adjacency ``Ahat_c`` per channel ``c``, queries, keys and values are
graph convolutions,

.. math::

    Q_c = \hat A_c X W^Q_c + b^Q_c, \qquad
    M_c = \operatorname{sym}\Big(\tfrac1H \sum_h \tanh(Q_{ch} K_{ch}^\top / \sqrt{F_o})\Big),

and each pair of nodes updates its channels from ``[M_1 .. M_C, a_1 .. a_C]`` by a small network.

Two facts make it cheap. All outputs are symmetric, so pairs are kept once: ``P = N (N + 1) / 2`` of
them, the strict upper triangle first and the diagonal last. And tensors are kept *batch last* --
nodes ``(F, N, B)``, pairs ``(C, P, B)`` -- so that picking pairs moves contiguous rows, the
networks on pairs are single matrix products ``(out, in) @ (in, P * B)``, and sums over the few
nodes of a small graph run along the batch.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

# Up to this many nodes, and without gradients, the CPU sums products along the batch: matrix
# products of a few rows cost more in calls than in arithmetic.
SMALL_GRAPH = 16


class PairIndex(NamedTuple):
    """Where the unordered pairs of ``N`` nodes lie in a flattened ``(N, N)`` matrix, and back.

    Attributes
    ----------
    upper, lower
        ``(P,)``: position ``i * N + j`` and ``j * N + i`` of every pair, strict upper triangle
        first, then the diagonal.
    full
        ``(N * N,)``: the pair that every matrix entry belongs to.
    """

    upper: Tensor
    lower: Tensor
    full: Tensor

    @classmethod
    def of(cls, nodes: int, device: torch.device) -> PairIndex:
        """Index tensors for graphs of ``nodes`` nodes."""
        row, column = torch.triu_indices(nodes, nodes, offset=1, device=device)
        diagonal = torch.arange(nodes, device=device)
        row, column = torch.cat([row, diagonal]), torch.cat([column, diagonal])
        upper, lower = row * nodes + column, column * nodes + row
        pair = torch.arange(len(row), device=device)
        full = torch.empty(nodes * nodes, dtype=torch.long, device=device)
        return cls(upper, lower, full.scatter(0, upper, pair).scatter(0, lower, pair))


class PairBatch(NamedTuple):
    """A batch of graphs arranged for the score networks, batch last.

    Attributes
    ----------
    nodes
        ``(F, N, B)`` node features.
    pairs
        ``(C, P, B)`` adjacency channels.
    propagation
        ``(B, C * N, N)`` normalised adjacency of every channel, see :func:`normalise`.
    node_mask, pair_mask
        ``(N, B)`` and ``(P, B)``: one where the node, or both nodes of the pair, exist.
    pair_index
        The pair index.
    """

    nodes: Tensor
    pairs: Tensor
    propagation: Tensor
    node_mask: Tensor
    pair_mask: Tensor
    pair_index: PairIndex

    @classmethod
    def of(cls, x: Tensor, adj: Tensor, mask: Tensor, powers: int) -> PairBatch:
        """Arrange ``x (B, N, F)``, symmetric ``adj (B, N, N)`` and ``mask (B, N)``.

        The channels are the matrix powers ``adj^1 .. adj^powers``.
        """
        batch, count, width = x.shape
        index = PairIndex.of(count, x.device)
        channels = [adj]
        for _ in range(powers - 1):
            channels.append(torch.bmm(channels[-1], adj))
        matrices = batch_last(torch.stack(channels, dim=1), powers, count * count)
        pairs = matrices.index_select(1, index.upper)
        node_mask = mask.to(x.dtype).t().contiguous()
        pair_mask = (
            (node_mask[:, None] * node_mask[None]).reshape(-1, batch).index_select(0, index.upper)
        )
        propagation = normalise(pairs, index)
        return cls(batch_last(x.mT, width, count), pairs, propagation, node_mask, pair_mask, index)

    def first_powers(self, powers: int) -> PairBatch:
        """The same batch with the first ``powers`` channels only."""
        count = self.nodes.shape[1]
        return self._replace(
            pairs=self.pairs[:powers], propagation=self.propagation[:, : powers * count]
        )


def batch_last(tensor: Tensor, *shape: int) -> Tensor:
    """``(B, ...)`` as a contiguous ``(*shape, B)``."""
    return tensor.reshape(len(tensor), -1).t().contiguous().view(*shape, -1)


def batch_first(tensor: Tensor, *shape: int) -> Tensor:
    """``(..., B)`` as a contiguous ``(B, *shape)``."""
    return tensor.reshape(-1, tensor.shape[-1]).t().contiguous().view(-1, *shape)


def normalise(pairs: Tensor, index: PairIndex) -> Tensor:
    r"""Propagation matrices :math:`D^{-1/2} \hat A D^{-1/2}`, ``(C, P, B)`` -> ``(B, C * N, N)``.

    :math:`\hat A` is the adjacency with its diagonal overwritten by one; degrees are clamped at
    one, because a noisy adjacency has negative entries (GDSS ``DenseGCNConv``).
    """
    channels, _, batch = pairs.shape
    count = math.isqrt(len(index.full))
    matrices = pairs.index_select(1, index.full).view(channels, count, count, batch)
    matrices.diagonal(dim1=1, dim2=2).fill_(1)
    scale = (
        matrices.sum(1).clamp(min=1).rsqrt()
    )  # (C, N, B); columns = rows, the matrices are symmetric
    matrices = matrices * (scale[:, :, None] * scale[:, None])
    return batch_first(matrices, channels * count, count)


def propagate(nodes: Tensor, propagation: Tensor) -> Tensor:
    """``Ahat_c X`` for every channel: ``(F, N, B)`` and ``(B, C * N, N)`` -> ``(F, C, N, B)``."""
    width, count, _ = nodes.shape
    mixed = torch.bmm(batch_first(nodes, width, count), propagation.mT)  # (B, F, C * N)
    return batch_last(mixed, width, propagation.shape[1] // count, count)


def tanh(x: Tensor) -> Tensor:
    r""":math:`\tanh x = 2 \sigma(2 x) - 1`: on a CPU sigmoid is several times faster than tanh."""
    return torch.sigmoid(2 * x) * 2 - 1


def glorot(*shape: int) -> nn.Parameter:
    r"""Weights of shape ``(..., in, out)``, uniform within :math:`\pm\sqrt{6 / (in + out)}`."""
    bound = math.sqrt(6 / (shape[-2] + shape[-1]))
    return nn.Parameter(torch.empty(*shape).uniform_(-bound, bound))


class MLP(nn.Module):
    """Linear layers with ELU between them, on channels-first columns.

    Parameters
    ----------
    layers
        Number of linear layers, at least one.
    width_in, hidden, width_out
        Widths.
    """

    def __init__(self, layers: int, width_in: int, hidden: int, width_out: int) -> None:
        super().__init__()
        widths = [width_in] + [hidden] * (layers - 1) + [width_out]
        self.linears = nn.ModuleList(nn.Linear(*pair) for pair in pairwise(widths))

    def forward(self, columns: Tensor) -> Tensor:
        """``(in, M)`` -> ``(out, M)``."""
        first = self.linears[0]
        return self.after_first(torch.addmm(first.bias[:, None], first.weight, columns))

    def after_first(self, columns: Tensor) -> Tensor:
        """All that follows the first linear layer, ``(hidden, M)`` -> ``(out, M)``, in place."""
        for linear in self.linears[1:]:
            columns = functional.elu(columns, inplace=True)
            columns = torch.addmm(linear.bias[:, None], linear.weight, columns)
        return columns


class AttentionLayer(nn.Module):
    """One layer of graph multi-head attention on node features and pair channels.

    The graph convolutions of all adjacency channels are stacked, ``(C, in, out)``. State dicts
    under the published names (``attn.{c}.gnn_q.weight`` ...) load as they are;
    :func:`published_state_dict` writes them.

    Parameters
    ----------
    linears
        Linear layers of the pair network.
    width_in, width_attention, width_out
        Node features in, width of queries and keys (all heads), node features out.
    channels_in, channels_out
        Adjacency channels.
    heads
        Attention heads; must divide ``width_attention``.

    Attributes
    ----------
    maps
        Attention maps (heads x channels), each with a logit for every matrix entry.

    Raises
    ------
    ValueError
        If ``heads`` does not divide ``width_attention``.
    """

    def __init__(
        self,
        linears: int,
        width_in: int,
        width_attention: int,
        width_out: int,
        channels_in: int,
        channels_out: int,
        heads: int,
    ) -> None:
        super().__init__()
        if width_attention % heads:
            raise ValueError(
                f"heads={heads} does not divide the attention width {width_attention}; "
                "choose a divisor"
            )
        self.heads = heads
        self.maps = heads * channels_in
        self.width_out = width_out
        self.query_weight = glorot(channels_in, width_in, width_attention)
        self.query_bias = nn.Parameter(torch.zeros(channels_in, width_attention))
        self.key_weight = glorot(channels_in, width_in, width_attention)
        self.key_bias = nn.Parameter(torch.zeros(channels_in, width_attention))
        self.value_weight = glorot(channels_in, width_in, width_out)
        self.value_bias = nn.Parameter(torch.zeros(channels_in, width_out))
        hidden = 2 * max(channels_in, channels_out)
        self.mlp = MLP(linears, 2 * channels_in, hidden, channels_out)
        self.multi_channel = MLP(2, channels_in * width_out, hidden, width_out)

    def forward(self, batch: PairBatch) -> tuple[Tensor, Tensor]:
        """``(F_out, N, B)`` nodes and ``(C_out, P, B)`` symmetric pairs; the diagonal is kept."""
        mixed = propagate(batch.nodes, batch.propagation)
        return self._nodes(mixed, batch), self._pairs(mixed, batch)

    def nodes(self, batch: PairBatch) -> Tensor:
        """The node output alone, for a last layer."""
        return self._nodes(propagate(batch.nodes, batch.propagation), batch)

    def pairs(self, batch: PairBatch) -> Tensor:
        """The pair output alone, for a last layer."""
        return self._pairs(propagate(batch.nodes, batch.propagation), batch)

    def _nodes(self, mixed: Tensor, batch: PairBatch) -> Tensor:
        nodes = self._values(mixed.flatten(0, 1).flatten(1))
        return tanh(nodes.view(self.width_out, *batch.node_mask.shape) * batch.node_mask)

    def _pairs(self, mixed: Tensor, batch: PairBatch) -> Tensor:
        attention = self._attention(mixed, batch.pair_index)
        features = torch.cat([attention, batch.pairs])  # (2 C, P, B)
        pairs = self.mlp(features.flatten(1)).view(-1, *batch.pair_mask.shape)
        return pairs * (2 * batch.pair_mask)  # p + p^T of a symmetric p

    def _values(self, mixed: Tensor) -> Tensor:
        """The values of all channels, joined: ``(F_out, N * B)``.

        The convolution's weights and the first joining layer are linear, so they are one matrix.
        """
        first = self.multi_channel.linears[0]
        joint = first.weight.view(len(first.weight), *self.value_bias.shape)  # (hidden, C, F_out)
        weight = torch.einsum("cfo,hco->hfc", self.value_weight, joint).flatten(1)
        bias = torch.addmv(first.bias, first.weight, self.value_bias.flatten())
        return self.multi_channel.after_first(torch.addmm(bias[:, None], weight, mixed))

    def _attention(self, mixed: Tensor, index: PairIndex) -> Tensor:
        """The symmetrised attention of every channel, ``(C, P, B)``."""
        _, channels, count, batch = mixed.shape
        # tanh(s) = 2 sigmoid(2 s) - 1: of the factor 2 / sqrt(F_out), the queries and the keys
        # carry the square root each.
        root = math.sqrt(2 / math.sqrt(self.width_out))
        weight = torch.cat([self.query_weight, self.key_weight], dim=-1).mT * root
        bias = torch.cat([self.query_bias, self.key_bias], dim=-1)[..., None] * root
        both = torch.baddbmm(bias, weight, mixed.flatten(2).transpose(0, 1))  # (C, 2 D, N * B)
        query, key = both.view(channels, 2, self.heads, -1, count, batch).unbind(
            1
        )  # (C, H, d, N, B)
        if count <= SMALL_GRAPH and query.device.type == "cpu" and not torch.is_grad_enabled():
            logits = _products_along_batch(query, key)
            summed = logits.sigmoid_().sum(1).flatten(1, 2)
        else:
            logits = torch.einsum("chdib,chdjb->bchij", query, key)
            summed = batch_last(logits.sigmoid().sum(2), channels, count * count)
        symmetric = summed.index_select(1, index.upper) + summed.index_select(1, index.lower)
        return symmetric / self.heads - 1

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *rest: Any) -> None:
        _stack_published_names(state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *rest)


def _products_along_batch(query: Tensor, key: Tensor) -> Tensor:
    """``q_i . k_j`` for ``(C, H, d, N, B)`` queries and keys -> ``(C, H, N, N, B)``."""
    total = query[:, :, 0, :, None] * key[:, :, 0, None]
    for feature in range(1, query.shape[2]):
        total.addcmul_(query[:, :, feature, :, None], key[:, :, feature, None])
    return total


_PUBLISHED = {"query": "gnn_q", "key": "gnn_k", "value": "gnn_v"}


def _stack_published_names(state_dict: dict[str, Tensor], prefix: str) -> None:
    """Replace ``{prefix}attn.{c}.gnn_q.weight`` ... by the stacked tensors."""
    for ours, theirs in _PUBLISHED.items():
        for kind in ("weight", "bias"):
            names: list[str] = []
            while f"{prefix}attn.{len(names)}.{theirs}.{kind}" in state_dict:
                names.append(f"{prefix}attn.{len(names)}.{theirs}.{kind}")
            if names:
                state_dict[f"{prefix}{ours}_{kind}"] = torch.stack(
                    [state_dict.pop(name) for name in names]
                )


def published_state_dict(network: nn.Module) -> dict[str, Tensor]:
    """The state dict of a GDSS network under the names and shapes of the published checkpoints."""
    published: dict[str, Tensor] = {}
    stacked = {
        f"{ours}_{kind}": (theirs, kind)
        for ours, theirs in _PUBLISHED.items()
        for kind in ("weight", "bias")
    }
    for name, tensor in network.state_dict().items():
        prefix, _, last = name.rpartition(".")
        if last not in stacked:
            published[name] = tensor
            continue
        theirs, kind = stacked[last]
        for channel, part in enumerate(tensor):
            published[f"{prefix}.attn.{channel}.{theirs}.{kind}"] = part.clone()
    return published
