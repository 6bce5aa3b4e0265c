r"""TSDiff's network: three gated residual blocks around state-space layers (Kollovieh et al. 2023).

With e the embedded noise level, per block

.. math:: u = x + W e, \quad o = u + S(\mathrm{LN}(u)), \quad g = \tanh(o)\,\mathrm{sigmoid}(o),
          \quad x \leftarrow x + W_r g, \quad s = W_s g,

and the output is an MLP of the sum of all s. A window is ``{x: (B, L, C)}``: the series and its
lagged copies; L is free.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from structdiff.errors import StructDiffError
from structdiff.processes.discrete import DiscreteVP
from structdiff.state import State
from structdiff.timeseries.s4 import Initialisation, Kernel, StateSpaceLayer

TimeInput = Literal["log_snr", "index"]

PUBLISHED_CHAIN = DiscreteVP(100, 1e-4, 0.1)
"""The published process; with ``time="index"`` the network embeds its integer steps."""

_ON_A_NODE = 1e-2
"""Of a link: how far single precision may move a level off its integer step."""


class NoiseLevelEmbedding(nn.Module):
    """Sines and cosines of the noise level, then an MLP: (B,) -> (B, H).

    Parameters
    ----------
    channels
        H.
    time
        ``"log_snr"``: of the half log-SNR, 0.02 to 10 radians per unit. ``"index"``: of the
        published chain's step, 1 to 1e-4 radians; levels between two steps get real ones.
    width
        Sines and cosines together, even.
    """

    scales: Tensor

    def __init__(self, channels: int, time: TimeInput, width: int = 128) -> None:
        super().__init__()
        if time not in get_args(TimeInput):
            raise StructDiffError(f"unknown time {time!r}: choose log_snr or index")
        self.time = time
        low, high = (0.02, 10.0) if time == "log_snr" else (1e-4, 1.0)
        scales = torch.linspace(math.log(high), math.log(low), width // 2).exp()
        self.register_buffer("scales", scales, persistent=False)
        self.mlp = nn.Sequential(
            nn.Linear(width, channels), nn.SiLU(), nn.Linear(channels, channels), nn.SiLU()
        )

    def forward(self, log_snr: Tensor) -> Tensor:
        """(B,) -> (B, H)."""
        position = log_snr
        if self.time == "index":
            index = PUBLISHED_CHAIN.index_at(log_snr)
            node = index.round()
            position = torch.where((index - node).abs() < _ON_A_NODE, node, index)
        angles = position.to(self.scales.dtype)[:, None] * self.scales
        return self.mlp(torch.cat((angles.sin(), angles.cos()), dim=-1))


class TSDiffBlock(nn.Module):
    """One residual block: (B, L, H), (B, H) -> (B, L, H) and its skip (B, L, H)."""

    def __init__(
        self,
        channels: int,
        state_size: int,
        kernel: Kernel,
        initialisation: Initialisation,
        length: int,
        features: int,
    ) -> None:
        super().__init__()
        self.time = nn.Linear(channels, channels)
        self.norm = nn.LayerNorm(channels)
        self.layer = StateSpaceLayer(channels, state_size, kernel, initialisation, length)
        self.features = nn.Linear(features, channels) if features else None
        # The residual's and the skip's map, one after the other.
        self.outputs = nn.Linear(channels, 2 * channels)

    def forward(
        self, x: Tensor, level: Tensor, condition: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """State (B, L, H), embedded noise level (B, H), features (B, L, F)."""
        shifted = x + self.time(level)[:, None]
        out = shifted + self.layer(self.norm(shifted))
        if self.features is not None and condition is not None:
            out = out + self.features(condition)
        residual, skip = self.outputs(torch.tanh(out) * torch.sigmoid(out)).chunk(2, dim=-1)
        return x + residual, skip


class TSDiffNetwork(nn.Module):
    """The backbone, under the package's contract: (State, half log-SNR, condition) -> State.

    Parameters
    ----------
    channels
        C: the series and its lagged copies.
    hidden
        H.
    blocks
        Residual blocks.
    state_size
        Real states per hidden channel, even.
    kernel
        ``"s4d"`` (diagonal) or ``"s4"`` (exact, as published).
    initialisation
        ``"legs"`` or, for s4d only, ``"linear"``.
    length
        Training window, where exact S4's parameters are defined; any window can be given.
    time
        What is embedded: ``"log_snr"`` or, as published, the chain's ``"index"``.
    init_skip
        Add the network's input to its output.
    features
        F, covariates per time step, given as ``condition`` (B, L, F); 0 is none. Without a
        condition they are left out.

    Raises
    ------
    StructDiffError
        If an argument is out of its range, or the condition does not fit.
    """

    def __init__(
        self,
        channels: int,
        hidden: int = 64,
        blocks: int = 3,
        state_size: int = 128,
        kernel: Kernel = "s4d",
        *,
        initialisation: Initialisation = "legs",
        length: int = 512,
        time: TimeInput = "log_snr",
        init_skip: bool = False,
        features: int = 0,
    ) -> None:
        super().__init__()
        for name, value in (("channels", channels), ("hidden", hidden), ("blocks", blocks)):
            if value < 1:
                raise StructDiffError(f"{name} must be at least 1, got {value}")
        self.features = features
        self.init_skip = init_skip
        self.input = nn.Linear(channels, hidden)
        self.level = NoiseLevelEmbedding(hidden, time)
        self.blocks = nn.ModuleList(
            TSDiffBlock(hidden, state_size, kernel, initialisation, length, features)
            for _ in range(blocks)
        )
        self.head = nn.Sequential(nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, channels))

    def forward(
        self, x: State, log_snr: dict[str, Tensor], condition: Tensor | None = None
    ) -> State:
        """Windows (B, L, C), half log-SNR (B,), features (B, L, F) -> the same shape."""
        window = x["x"]
        if condition is not None and condition.shape != (*window.shape[:2], self.features):
            raise StructDiffError(
                f"condition must hold {self.features} features per time step, shape "
                f"{(*window.shape[:2], self.features)}, got {tuple(condition.shape)}"
            )
        level = self.level(log_snr["x"])
        hidden = functional.relu(self.input(window))
        skips = []
        for block in self.blocks:
            hidden, skip = block(hidden, level, condition)
            skips.append(skip)
        out = self.head(torch.stack(skips).sum(0))
        return x.map(lambda _: out + window if self.init_skip else out)
