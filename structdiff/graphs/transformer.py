r"""A time-conditioned graph transformer that predicts the class of every node and edge.

Nodes and edges of a graph take finitely many values (atom types, bond orders), so the network gives
class probabilities :math:`p_k` and, as a denoiser, their mean
:math:`E[x_0 \mid x_t] = \sum_k p_k v_k`.
The exact posterior of a site factorises into its own Gaussian likelihood and what the rest of the
graph says about it,

.. math:: \log p(v_k \mid x_t) = \frac{\alpha}{\sigma^2} \langle x_t, v_k \rangle
          - \frac{\alpha^2}{2\sigma^2} |v_k|^2 + c_k(x_t^{\text{others}}, t) + \text{const},

so the likelihood is added in closed form and the network learns only :math:`c_k`. That is EDM's
preconditioning for discrete values: at low noise the input decides, at high noise the network does.

Edges are kept once, as the P = N(N-1)/2 pairs of the upper triangle; only attention and sums over
neighbours see the square matrix. Structural features (random walks on the expected graph, expected
valences) and feature-wise modulation by the log-SNR complete it. Permutation equivariant, and
independent of padding.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from structdiff.errors import StructDiffError
from structdiff.state import State

LOG_SNR_LIMIT = 10.0
"""Half log-SNRs are clipped here: beyond it the input is the data, or noise, to float32."""


def upper_pairs(n: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Pairs i < j and, for every entry of the N x N matrix, the number of its pair.

    Returns
    -------
    i, j
        Ends of the pairs, each (P,).
    index
        (N * N,), with P (one past the last pair) on the diagonal.
    """
    j, i = torch.tril_indices(n, n, offset=-1, device=device)
    index = torch.full((n, n), len(i), dtype=torch.long, device=device)
    index[i, j] = index[j, i] = torch.arange(len(i), device=device)
    return i, j, index.reshape(-1)


def to_matrix(pairs: Tensor, index: Tensor) -> Tensor:
    """(B, P, C) -> (B, N, N, C), zero on the diagonal."""
    n = math.isqrt(len(index))
    padded = functional.pad(pairs, (0, 0, 0, 1))
    return padded.index_select(1, index).reshape(pairs.shape[0], n, n, pairs.shape[2])


class LogSNREmbedding(nn.Module):
    """Fourier features of the half log-SNR of every component, then an MLP.

    Parameters
    ----------
    components
        Number of components (each has its own noise level).
    width
        Output width.
    frequencies
        Sines and cosines per component.
    """

    def __init__(self, components: int, width: int, frequencies: int = 8) -> None:
        super().__init__()
        scales = torch.exp(torch.linspace(math.log(0.1), math.log(3.0), frequencies))
        self.register_buffer("scales", scales, persistent=False)
        self.mlp = nn.Sequential(
            nn.Linear(components * (2 * frequencies + 1), width),
            nn.SiLU(),
            nn.Linear(width, width),
            nn.SiLU(),
        )

    def forward(self, log_snr: Tensor) -> Tensor:
        """(B, K) -> (B, width)."""
        angles = log_snr[..., None] * self.scales
        features = torch.cat((angles.sin(), angles.cos(), log_snr[..., None] / 3), dim=-1)
        return self.mlp(features.flatten(1))


class TransformerLayer(nn.Module):
    """Attention with edge biases, messages along edges, and an update of the edges.

    Parameters
    ----------
    node_width, edge_width, condition_width
        Widths of the node, pair and noise-level vectors.
    heads
        Attention heads.
    """

    def __init__(self, node_width: int, edge_width: int, condition_width: int, heads: int) -> None:
        super().__init__()
        d, e = node_width, edge_width
        self.heads, self.widths = heads, (d, d, d, d, e, e)
        self.modulation = nn.Linear(condition_width, sum(self.widths))
        self.qkv = nn.Linear(d, 3 * d)
        self.edge_in = nn.Linear(e, heads + e)  # attention bias, message gate
        self.message = nn.Linear(d, e)
        self.mix = nn.Linear(d + e, d)
        self.feed_forward = nn.Sequential(nn.Linear(d, 2 * d), nn.GELU("tanh"), nn.Linear(2 * d, d))
        self.ends = nn.Linear(d, 2 * e)
        self.edge_feed_forward = nn.Sequential(
            nn.Linear(e, 2 * e), nn.GELU("tanh"), nn.Linear(2 * e, e)
        )
        for last in (self.mix, self.feed_forward[2], self.edge_feed_forward[2], self.modulation):
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)

    def forward(
        self, nodes: Tensor, pairs: Tensor, condition: Tensor, graph: PairGraph
    ) -> tuple[Tensor, Tensor]:
        """(B, N, d), (B, P, e), (B, c) -> the same shapes."""
        b, n, d = nodes.shape
        modulation = self.modulation(condition)[:, None].split(self.widths, dim=-1)
        scale, shift, scale_ff, shift_ff, scale_e, shift_e = modulation
        bias, gate = self.edge_in(pairs).split((self.heads, pairs.shape[2]), dim=-1)

        h = _normalise(nodes) * (1 + scale) + shift
        query, key, value = self.qkv(h).reshape(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        attention = functional.scaled_dot_product_attention(
            query, key, value, attn_mask=graph.attention_bias(bias)
        )
        # Pairs with an absent end would still carry the layer's bias.
        gate = to_matrix(gate * graph.pair_mask, graph.index)
        messages = (gate * self.message(h)[:, None]).sum(2)
        attended = attention.transpose(1, 2).reshape(b, n, d)
        nodes = nodes + self.mix(torch.cat((attended, messages), dim=-1))
        h = _normalise(nodes) * (1 + scale_ff) + shift_ff
        nodes = nodes + self.feed_forward(h)

        sums, products = self.ends(_normalise(nodes)).chunk(2, dim=-1)
        i, j = graph.i, graph.j
        joint = sums[:, i] + sums[:, j] + products[:, i] * products[:, j]
        h = _normalise(pairs + joint) * (1 + scale_e) + shift_e
        pairs = (pairs + self.edge_feed_forward(h)) * graph.pair_mask
        return nodes * graph.node_mask, pairs


def _normalise(x: Tensor) -> Tensor:
    return functional.layer_norm(x, x.shape[-1:])


class PairGraph:
    """Index tensors and masks of one padded batch.

    Parameters
    ----------
    exists
        Which nodes exist, bool (B, N).
    dtype
        Of the masks that multiply.
    """

    def __init__(self, exists: Tensor, dtype: torch.dtype) -> None:
        n = exists.shape[1]
        self.i, self.j, self.index = upper_pairs(n, exists.device)
        self.node_mask = exists[..., None].to(dtype)  # (B, N, 1)
        self.pair_exists = exists[:, self.i] & exists[:, self.j]  # (B, P)
        self.pair_mask = self.pair_exists[..., None].to(dtype)
        # Absent nodes are no keys; a large finite number keeps rows of absent nodes free of NaN.
        self.key_bias = torch.where(exists, 0.0, -1e4).to(dtype)[:, None, None, :]

    def attention_bias(self, bias: Tensor) -> Tensor:
        """(B, P, H) -> (B, H, N, N), with absent nodes hidden."""
        return to_matrix(bias, self.index).permute(0, 3, 1, 2) + self.key_bias


class GraphTransformer(nn.Module):
    r"""Class probabilities of nodes and edges given a noisy graph; see the module's equation.

    Components: ``x`` (B, N, F) with one-hot node classes, ``adj`` (B, N, N) with the edge values.
    Inputs must be scaled by :math:`1/\sqrt{\alpha^2+\sigma^2}`
    (``Denoiser(..., "data", scale_input=True)``).

    Parameters
    ----------
    node_classes
        F.
    edge_values
        The values an edge may take, the first one meaning "no edge"; bond orders 0, 1, 2, 3.
    node_width, edge_width, condition_width
        Widths of the node, pair and noise-level vectors.
    layers, heads
        Depth, and attention heads per layer.
    walks
        Powers of the random-walk matrix of the expected graph that enter as features.
    """

    def __init__(
        self,
        node_classes: int,
        edge_values: Sequence[float] = (0.0, 1.0, 2.0, 3.0),
        node_width: int = 96,
        edge_width: int = 48,
        condition_width: int = 64,
        layers: int = 6,
        heads: int = 6,
        walks: int = 6,
    ) -> None:
        super().__init__()
        if heads < 1 or node_width % heads:
            raise StructDiffError(
                f"node_width {node_width} must be a multiple of the number of heads {heads}"
            )
        self.config = {
            "node_classes": node_classes,
            "edge_values": list(edge_values),
            "node_width": node_width,
            "edge_width": edge_width,
            "condition_width": condition_width,
            "layers": layers,
            "heads": heads,
            "walks": walks,
        }
        self.walks = walks
        k = len(edge_values)
        self.register_buffer("edge_values", torch.tensor(edge_values, dtype=torch.float32))
        self.node_prior = nn.Parameter(torch.zeros(node_classes))
        self.edge_prior = nn.Parameter(torch.zeros(k))
        self.embed_log_snr = LogSNREmbedding(2, condition_width)
        self.node_in = nn.Linear(2 * node_classes + 1 + k + walks + condition_width, node_width)
        self.pair_in = nn.Linear(1 + k + walks + condition_width, edge_width)
        self.layers = nn.ModuleList(
            TransformerLayer(node_width, edge_width, condition_width, heads) for _ in range(layers)
        )
        self.node_out = nn.Sequential(nn.LayerNorm(node_width), nn.Linear(node_width, node_classes))
        self.pair_out = nn.Sequential(nn.LayerNorm(edge_width), nn.Linear(edge_width, k))

    def set_priors(self, node_frequencies: Tensor, edge_frequencies: Tensor) -> None:
        """Start from the classes' frequencies in the data, (F,) and (K,), which sum to 1."""
        with torch.no_grad():
            self.node_prior.copy_(torch.log(node_frequencies.clamp(min=1e-5)))
            self.edge_prior.copy_(torch.log(edge_frequencies.clamp(min=1e-5)))

    def _site_evidence(self, x: State, log_snr: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Gaussian log-likelihood of every class at every site, plus the classes' prior."""
        scales = {}
        for name in ("x", "adj"):
            half = log_snr[name].clamp(-LOG_SNR_LIMIT, LOG_SNR_LIMIT)
            sigma = torch.sqrt(torch.sigmoid(-2 * half))  # alpha^2 + sigma^2 = 1
            shape = (-1, 1, 1)
            scales[name] = (torch.exp(half) / sigma).view(shape), torch.exp(2 * half).view(shape)
        i, j, _ = upper_pairs(x["adj"].shape[1], x["adj"].device)
        linear, quadratic = scales["x"]
        nodes = linear * x["x"] - quadratic / 2 + self.node_prior
        linear, quadratic = scales["adj"]
        values = self.edge_values
        pairs = linear * x["adj"][:, i, j, None] * values - quadratic / 2 * values**2
        return nodes, pairs + self.edge_prior

    def _structure(self, bonds: Tensor, graph: PairGraph) -> tuple[Tensor, Tensor]:
        """Random-walk features of the expected graph: diagonals (B, N, W), pairs (B, P, W)."""
        adjacency = to_matrix((1 - bonds[..., :1]) * graph.pair_mask, graph.index)[..., 0]
        walk = adjacency / adjacency.sum(-1, keepdim=True).clamp(min=1e-2)
        power, diagonals, pairs = walk, [], []
        for _ in range(self.walks):
            both = (power + power.transpose(1, 2)) / 2
            diagonals.append(power.diagonal(dim1=1, dim2=2))
            pairs.append(both[:, graph.i, graph.j])
            power = power @ walk
        return torch.stack(diagonals, dim=-1), torch.stack(pairs, dim=-1)

    def logits(
        self, x: State, log_snr: dict[str, Tensor], condition: Any = None
    ) -> dict[str, Tensor]:
        """Class logits: ``x`` (B, N, F) and ``adj`` (B, P, K) over the pairs i < j.

        Parameters
        ----------
        x
            Scaled noisy graphs.
        log_snr
            Half log-SNR (B,) per component.
        condition
            Unused: the shipped heads condition through clocks and masks.
        """
        graph = PairGraph(_exists(x), x.dtype)
        node_evidence, pair_evidence = self._site_evidence(x, log_snr)
        atoms = torch.softmax(node_evidence, dim=-1)
        bonds = torch.softmax(pair_evidence, dim=-1)
        both = torch.stack((log_snr["x"], log_snr["adj"]), dim=1)
        level = self.embed_log_snr(both.clamp(-LOG_SNR_LIMIT, LOG_SNR_LIMIT).to(x.dtype))
        diagonals, walks = self._structure(bonds, graph)
        valence = to_matrix(bonds * graph.pair_mask, graph.index).sum(2)  # (B, N, K)
        size = graph.node_mask.sum(1, keepdim=True).expand_as(graph.node_mask) / 10
        nodes = torch.cat((x["x"], atoms, size, valence, diagonals, _spread(level, atoms)), dim=-1)
        i, j = graph.i, graph.j
        pairs = torch.cat((x["adj"][:, i, j, None], bonds, walks, _spread(level, bonds)), dim=-1)
        h, e = self.node_in(nodes) * graph.node_mask, self.pair_in(pairs) * graph.pair_mask
        for layer in self.layers:
            h, e = layer(h, e, level, graph)
        return {
            "x": self.node_out(h) + node_evidence,
            "adj": self.pair_out(e) + pair_evidence,
        }

    def forward(self, x: State, log_snr: dict[str, Tensor], condition: Any = None) -> State:
        """E[x0 | xt]: the mean of the class values, a state like ``x``."""
        logits = self.logits(x, log_snr, condition)
        atoms = torch.softmax(logits["x"].float(), dim=-1)
        orders = torch.softmax(logits["adj"].float(), dim=-1) @ self.edge_values
        _, _, index = upper_pairs(x["adj"].shape[1], x["adj"].device)
        adj = to_matrix(orders[..., None], index)[..., 0]
        return State._trusted({"x": atoms, "adj": adj}, x.masks).masked()

    def sites(self, x0: State) -> dict[str, tuple[Tensor, Tensor]]:
        """Classes and existence of the sites of clean graphs, in the order of :meth:`logits`."""
        i, j, _ = upper_pairs(x0["adj"].shape[1], x0["adj"].device)
        order = x0["adj"][:, i, j]
        classes = (order[..., None] - self.edge_values).abs().argmin(-1)
        exists = _exists(x0)
        return {
            "x": (x0["x"].argmax(-1), exists),
            "adj": (classes, exists[:, i] & exists[:, j]),
        }


def _exists(x: State) -> Tensor:
    """Which nodes exist, bool (B, N); all without a mask."""
    if "x" not in x.masks:
        return x["x"].new_ones(x["x"].shape[:2], dtype=torch.bool)
    return x.masks["x"].expand(*x["x"].shape[:2], 1)[..., 0]


def _spread(level: Tensor, like: Tensor) -> Tensor:
    """(B, C) -> (B, S, C) for the S sites of ``like``."""
    return level[:, None].expand(-1, like.shape[1], -1)
