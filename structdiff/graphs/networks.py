r"""The score networks of GDSS: one for node features, one for the adjacency, both blind to time.

They follow Jo, Lee, Hwang, "Score-based Generative Modeling of Graphs via the System of Stochastic
Differential Equations", ICML 2022 (arXiv 2202.02514). A network's output is not yet a score:

.. math::

    S(x_t, t) = -\,\text{net}(x_t) / \sigma(t) \;\text{(VP, sub-VP)}, \qquad
    S(x_t, t) = \text{net}(x_t) \;\text{(VE)},

that is, the network of a variance-preserving component predicts the noise and that of a
variance-exploding component the score; :attr:`GDSSNetwork.prediction` says which.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from itertools import pairwise

import torch
from torch import Tensor, nn

from structdiff.graphs.attention import (
    MLP,
    AttentionLayer,
    PairBatch,
    batch_first,
    glorot,
    normalise,
    propagate,
    tanh,
)
from structdiff.state import State

# Without gradients the CPU works on this many attention logits at a time: few enough to stay in its
# cache, enough graphs for long inner loops (measured at 9 to 38 nodes).
LOGITS_PER_CHUNK = 2**19


class DenseGCN(nn.Module):
    r"""Graph convolution on dense noisy adjacencies: :math:`D^{-1/2} \hat A D^{-1/2} X W + b`.

    Parameters
    ----------
    width_in, width_out
        Node features in and out.
    """

    def __init__(self, width_in: int, width_out: int) -> None:
        super().__init__()
        self.weight = glorot(width_in, width_out)
        self.bias = nn.Parameter(torch.zeros(width_out))

    def forward(self, nodes: Tensor, propagation: Tensor) -> Tensor:
        """``(F_in, N, B)`` and the normalised adjacency ``(B, N, N)`` -> ``(F_out, N, B)``."""
        mixed = propagate(nodes, propagation).flatten(1)
        return torch.addmm(self.bias[:, None], self.weight.t(), mixed).view(-1, *nodes.shape[1:])


class ScoreNetwork(nn.Module, ABC):
    """What the three networks share: a batch is arranged with the powers of its adjacency.

    Attributes
    ----------
    powers
        How many powers of the adjacency the network reads.
    """

    powers: int

    def forward(self, x: Tensor, adj: Tensor, mask: Tensor) -> Tensor:
        """Output for features ``(B, N, F)``, a symmetric adjacency ``(B, N, N)`` and ``(B, N)``.

        ``mask`` says which nodes exist.
        """
        return self.evaluate(PairBatch.of(x, adj, mask, self.powers))

    @abstractmethod
    def evaluate(self, batch: PairBatch) -> Tensor:
        """Output for a batch arranged with this network's powers, batch first."""


class ScoreNetworkX(ScoreNetwork):
    """Network of the node features: graph convolutions, then an MLP on all their outputs per node.

    Parameters
    ----------
    max_feat_num
        Node features ``F``.
    depth
        Graph convolutions.
    nhid
        Their width.
    """

    powers = 1

    def __init__(self, max_feat_num: int, depth: int, nhid: int) -> None:
        super().__init__()
        widths = [max_feat_num] + [nhid] * depth
        self.layers = nn.ModuleList(DenseGCN(*pair) for pair in pairwise(widths))
        joint = sum(widths)
        self.final = MLP(3, joint, 2 * joint, max_feat_num)

    def evaluate(self, batch: PairBatch) -> Tensor:
        """``(B, N, F)``, zero where no node exists."""
        outputs = [batch.nodes]
        for layer in self.layers:
            outputs.append(tanh(layer(outputs[-1], batch.propagation)))
        return _node_output(self.final, outputs, batch)


class ScoreNetworkXGMH(ScoreNetwork):
    """Network of the node features with graph multi-head attention (the second ZINC250k model).

    Parameters
    ----------
    max_feat_num, depth, nhid
        As in :class:`ScoreNetworkX`; the layers are attention layers.
    num_linears, c_init, c_hid, c_final, adim, num_heads
        As in :class:`ScoreNetworkA`.
    """

    def __init__(
        self,
        max_feat_num: int,
        depth: int,
        nhid: int,
        num_linears: int,
        c_init: int,
        c_hid: int,
        c_final: int,
        adim: int,
        num_heads: int = 4,
    ) -> None:
        super().__init__()
        self.powers = c_init
        channels = _channels(depth, c_init, c_hid, c_final)
        self.layers = _attention_layers(max_feat_num, nhid, adim, num_linears, channels, num_heads)
        joint = max_feat_num + depth * nhid
        self.final = MLP(3, joint, 2 * joint, max_feat_num)

    def evaluate(self, batch: PairBatch) -> Tensor:
        """``(B, N, F)``, zero where no node exists."""
        outputs = [batch.nodes]
        for layer in self.layers[:-1]:
            nodes, pairs = layer(batch)
            outputs.append(tanh(nodes))  # a second tanh, as published
            batch = _next(batch, outputs[-1], pairs)
        outputs.append(tanh(self.layers[-1].nodes(batch)))
        return _node_output(self.final, outputs, batch)


class ScoreNetworkA(ScoreNetwork):
    """Network of the adjacency: attention layers, then an MLP on all their channels per pair.

    Parameters
    ----------
    max_feat_num
        Node features ``F``.
    max_node_num
        Largest number of nodes; kept for the record, the network takes any.
    nhid
        Width of the node features inside.
    num_layers
        Attention layers.
    num_linears
        Linear layers of each pair MLP.
    c_init, c_hid, c_final
        Adjacency channels: powers of the input, between layers, after the last layer.
    adim
        Width of queries and keys (the first layer uses ``nhid``).
    num_heads
        Attention heads.
    """

    def __init__(
        self,
        max_feat_num: int,
        max_node_num: int,
        nhid: int,
        num_layers: int,
        num_linears: int,
        c_init: int,
        c_hid: int,
        c_final: int,
        adim: int,
        num_heads: int = 4,
    ) -> None:
        super().__init__()
        self.powers = c_init
        self.max_node_num = max_node_num
        channels = _channels(num_layers, c_init, c_hid, c_final)
        self.layers = _attention_layers(max_feat_num, nhid, adim, num_linears, channels, num_heads)
        joint = sum(channels)
        self.final = MLP(3, joint, 2 * joint, 1)

    def evaluate(self, batch: PairBatch) -> Tensor:
        """``(B, N, N)``, symmetric, zero on the diagonal and where a node does not exist."""
        outputs = [batch.pairs]
        for layer in self.layers[:-1]:
            nodes, pairs = layer(batch)
            outputs.append(pairs)
            batch = _next(batch, nodes, pairs)
        outputs.append(self.layers[-1].pairs(batch))
        count = batch.nodes.shape[1]
        strict = batch.pairs.shape[1] - count  # the diagonal comes last and stays zero
        columns = torch.cat([pairs[:, :strict] for pairs in outputs])
        output = self.final(columns.flatten(1)).view(strict, -1) * batch.pair_mask[:strict]
        output = nn.functional.pad(output, (0, 0, 0, count))
        return batch_first(output.index_select(0, batch.pair_index.full), count, count)


class GDSSNetwork(nn.Module):
    """Both score networks as one network over graphs ``{x, adj}``.

    Parameters
    ----------
    x_network, adj_network
        The two networks.
    prediction
        What the output of each component means: ``"noise"`` (VP, sub-VP) or ``"score"`` (VE).
    """

    def __init__(
        self,
        x_network: ScoreNetwork,
        adj_network: ScoreNetwork,
        prediction: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__()
        self.x_network = x_network
        self.adj_network = adj_network
        self.prediction = dict(prediction or {"x": "noise", "adj": "noise"})
        layers = [part for part in adj_network.modules() if isinstance(part, AttentionLayer)]
        self._maps = max((part.maps for part in layers), default=1)

    def forward(
        self,
        state: State,
        log_snr: Mapping[str, Tensor] | None = None,
        condition: object | None = None,
    ) -> State:
        """Outputs for ``x (B, N, F)`` and symmetric ``adj (B, N, N)``.

        ``state.masks["x"] (B, N, 1)`` says which nodes exist; without it all do. The networks are
        blind to time and unconditional: ``log_snr`` and ``condition`` are not read.
        """
        x, adj = state["x"], state["adj"]
        mask = state.masks["x"][..., 0] if "x" in state.masks else x.new_ones(x.shape[:2])
        out_x, out_adj = self.outputs(x, adj, mask)
        return state.replace(x=out_x, adj=out_adj)

    def outputs(self, x: Tensor, adj: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """The same on plain tensors; ``mask`` is ``(B, N)``."""
        size = self._chunk(x)
        if size >= len(x):
            return self._evaluate(x, adj, mask)
        parts = [
            self._evaluate(*part)
            for part in zip(x.split(size), adj.split(size), mask.split(size), strict=True)
        ]
        return torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])

    def _evaluate(self, x: Tensor, adj: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        powers = self.x_network.powers, self.adj_network.powers
        batch = PairBatch.of(x, adj, mask, max(powers))
        return (
            self.x_network.evaluate(batch.first_powers(powers[0])),
            self.adj_network.evaluate(batch.first_powers(powers[1])),
        )

    def _chunk(self, x: Tensor) -> int:
        """Graphs at a time: all, but on a CPU without gradients what the cache holds."""
        if x.device.type != "cpu" or torch.is_grad_enabled() or torch.compiler.is_compiling():
            return len(x)
        return max(1, LOGITS_PER_CHUNK // (self._maps * x.shape[1] ** 2))


def _channels(layers: int, first: int, hidden: int, last: int) -> list[int]:
    """Adjacency channels before, between and after the layers."""
    return [first] + [hidden] * (layers - 1) + [last]


def _attention_layers(
    features: int, nhid: int, adim: int, linears: int, channels: list[int], heads: int
) -> nn.ModuleList:
    layers = [AttentionLayer(linears, features, nhid, nhid, channels[0], channels[1], heads)]
    for before, after in pairwise(channels[1:]):
        layers.append(AttentionLayer(linears, nhid, adim, nhid, before, after, heads))
    return nn.ModuleList(layers)


def _next(batch: PairBatch, nodes: Tensor, pairs: Tensor) -> PairBatch:
    return batch._replace(nodes=nodes, pairs=pairs, propagation=normalise(pairs, batch.pair_index))


def _node_output(final: MLP, outputs: list[Tensor], batch: PairBatch) -> Tensor:
    columns = torch.cat(outputs)  # (F + depth * nhid, N, B)
    output = final(columns.flatten(1)).view(-1, *batch.node_mask.shape) * batch.node_mask
    return batch_first(output, *output.shape[:2]).mT
