"""Graphs of several sizes whose denoiser is known exactly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from structdiff.denoisers import BaseDenoiser
from structdiff.noise import NoiseSource, as_source
from structdiff.processes.system import System, Time
from structdiff.spaces import Euclidean, Symmetric
from structdiff.state import State, as_state, expand_right


class GaussianGraph:
    r"""Graphs of several sizes: node features and symmetric weights tied by one hidden number.

    :math:`x = \mu_x + c_x \epsilon + w_x h` on every node and feature, the same for every pair of
    ``adj``, with one h ~ N(0, 1) per graph: so every entry helps to denoise every other. Posterior
    of h and of the entries in closed form (conditioning of a Gaussian with a rank-one covariance).

    Parameters
    ----------
    sizes
        Number of nodes of every graph, (B,).
    max_nodes
        Nodes to pad to; None is the largest size.
    features
        Width of x.
    """

    means: Mapping[str, float] = {"x": 0.3, "adj": 0.7}
    scales: Mapping[str, float] = {"x": 0.5, "adj": 0.4}
    loadings: Mapping[str, float] = {"x": 0.6, "adj": -0.5}

    def __init__(
        self, sizes: Sequence[int] | Tensor, max_nodes: int | None = None, features: int = 2
    ) -> None:
        count = torch.as_tensor(sizes)
        nodes = int(count.max()) if max_nodes is None else max_nodes
        exists = torch.arange(nodes) < count[:, None]  # (B, N)
        pairs = exists[:, :, None] & exists[:, None, :] & ~torch.eye(nodes, dtype=torch.bool)
        size = len(count)
        self.like = State(
            {
                "x": torch.zeros(size, nodes, features, dtype=torch.float64),
                "adj": torch.zeros(size, nodes, nodes, dtype=torch.float64),
            },
            {"x": exists[:, :, None], "adj": pairs},
        )

    @staticmethod
    def spaces() -> dict[str, Symmetric]:
        """The spaces that a system over these graphs needs."""
        return {"adj": Symmetric()}

    def sample(self, source: NoiseSource | int | None = None) -> State:
        """Draw one graph per size."""
        drawn = as_source(source)
        hidden = drawn.normal("hidden", self.like.first.new_empty(self.like.batch_size, 1))[:, 0]
        spaces = {"x": Euclidean(), "adj": Symmetric()}
        values = {
            k: self.means[k]
            + self.scales[k] * spaces[k].noise(k, v, self.like.masks[k], drawn)
            + self.loadings[k] * expand_right(hidden, v)
            for k, v in self.like.items()
        }
        return self.like.replace(**values).masked()

    def denoiser(self, system: System) -> BaseDenoiser:
        """The exact E[x0 | xt] under a system with components x and adj."""
        return _GraphDenoiser(self, system)


class _GraphDenoiser(BaseDenoiser):
    def __init__(self, graph: GaussianGraph, system: System) -> None:
        super().__init__(system)
        self.graph = graph

    def forward(self, x: State | Tensor, t: Time, condition: Any = None) -> State:
        """E[x0 | xt]."""
        graph, state = self.graph, as_state(x)
        alpha, sigma = self.system.alpha(t), self.system.sigma(t)
        gap = State._trusted(
            {k: v - expand_right(alpha[k], v) * graph.means[k] for k, v in state.items()},
            state.masks,
        ).masked()
        # Posterior mean of the hidden number, each pair counted once.
        precision, weighted = (
            torch.ones_like(state.first[:, 0, 0]),
            torch.zeros_like(state.first[:, 0, 0]),
        )
        counts = self.system.dimensions(state)
        gain = {}
        for k, v in gap.items():
            own = alpha[k] ** 2 * graph.scales[k] ** 2 + sigma[k] ** 2
            load = alpha[k] * graph.loadings[k]
            once = 0.5 if k == "adj" else 1.0
            total = v.reshape(len(v), -1).sum(1) * once
            precision = precision + (load**2 / own).to(v) * counts[k]
            weighted = weighted + (load / own).to(v) * total
            gain[k] = alpha[k] * graph.scales[k] ** 2 / own
        hidden = weighted / precision  # (B,)
        data = {
            k: graph.means[k]
            + graph.loadings[k] * expand_right(hidden, v)
            + expand_right(gain[k], v)
            * (v - expand_right(alpha[k] * graph.loadings[k] * hidden, v))
            for k, v in gap.items()
        }
        return State._trusted(data, state.masks).masked()
