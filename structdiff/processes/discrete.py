r"""A DDPM chain as a process in continuous time: what networks with integer time steps need.

A chain of N links :math:`x_i = \sqrt{1-\beta_i}\,x_{i-1} + \sqrt{\beta_i}\,z` has at index i =
0, ..., N - 1 the scales :math:`\alpha^2 = \prod_{j \le i} (1 - \beta_j)`,
:math:`\sigma^2 = 1 - \alpha^2`. Index i is put at time

.. math:: t = \frac{i + 1}{N},

the data at 0, and :math:`\ln\alpha` is linear in between, so that at the nodes alpha and sigma are
exactly the chain's and everything else has a closed form: :math:`f` is constant between two nodes,
:math:`g^2 = -2f`, and the exact transition over 1/N is the link itself.

Using a network that was trained on integer steps, say one that predicts the noise::

    process = DiscreteVP(1000, 1e-4, 0.02)

    class OnIntegers(nn.Module):
        def __init__(self, network):
            super().__init__()
            self.network = network

        def forward(self, x, log_snr, condition):
            index = process.index_at(log_snr["x"]).round().long()
            return State({"x": self.network(x["x"], index)})

    denoiser = Denoiser(OnIntegers(network), System(process), prediction="noise")
    x = denoiser.system.prior(State({"x": torch.zeros(16, 3, 32, 32)}), 0)
    get_sampler("unipc2", 20, grid=process.trailing(20))(denoiser, x)

A grid that stays on the nodes, as ``process.trailing(steps)`` does, asks the network only for
indices it knows; on any other grid leave ``round()`` out where it accepts real ones. Give
``betas=scheduler.betas.tolist()`` for a schedule that has no closed form.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

import torch
from torch import Tensor

from structdiff.errors import StructDiffError
from structdiff.processes.gaussian import GaussianProcess

Betas = Literal["linear", "scaled-linear", "cosine"]
_LARGEST_BETA = 0.999
"""Where the cosine schedule is cut, as published; only the last link reaches it."""
_COSINE_OFFSET = 0.008
_EDGE = 1e-9
"""Of a link: how far rounding may move a time off its node."""


@dataclass(frozen=True)
class DiscreteVP(GaussianProcess):
    r"""A DDPM chain, log-linearly interpolated (Ho et al. 2020).

    Parameters
    ----------
    links
        N, the number of links; 1000 almost everywhere.
    beta_start, beta_end
        First and last :math:`\beta`; "cosine" has its own.
    schedule
        How :math:`\beta` runs between them: "linear" (Ho et al. 2020), "scaled-linear", linear in
        :math:`\sqrt\beta` (latent diffusion), or "cosine" (Nichol and Dhariwal 2021, eq. 17),
        whose :math:`\alpha` is a cosine of time.
    betas
        All of them, (N,), instead of the parameters above.
    prior_scale
        Standard deviation of the prior; None is the matched :math:`\sigma(1)`, DDPM starts from 1.

    Raises
    ------
    StructDiffError
        If there is no link, a beta is outside (0, 1), or the schedule is unknown.
    """

    links: int = 1000
    beta_start: float = 1e-4
    beta_end: float = 0.02
    schedule: Betas = "linear"
    betas: tuple[float, ...] | None = None
    prior_scale: float | None = None

    def __post_init__(self) -> None:
        if self.schedule not in get_args(Betas):
            raise StructDiffError(
                f"the schedule of a DDPM chain must be one of {', '.join(get_args(Betas))}, got "
                f"{self.schedule!r}: give the betas of any other"
            )
        if self.betas is not None:
            object.__setattr__(self, "betas", tuple(float(b) for b in self.betas))
            object.__setattr__(self, "links", len(self.betas))
        if isinstance(self.links, bool) or int(self.links) != self.links or self.links < 1:
            raise StructDiffError(f"a DDPM chain needs at least one link, got {self.links}")
        given = (self.beta_start, self.beta_end) if self.betas is None else self.betas
        for beta in given:
            if not 0 < beta < 1:
                raise StructDiffError(f"a beta of a DDPM chain must lie in (0, 1), got {beta}")

    def _betas(self) -> Tensor:
        if self.betas is not None:
            return torch.tensor(self.betas, dtype=torch.float64)
        if self.schedule == "cosine":
            share = torch.linspace(0, 1, self.links + 1, dtype=torch.float64)
            angle = (share + _COSINE_OFFSET) / (1 + _COSINE_OFFSET) * (math.pi / 2)
            kept = torch.cos(angle) ** 2
            return (1 - kept[1:] / kept[:-1]).clamp(max=_LARGEST_BETA)
        power = 1 if self.schedule == "linear" else 2
        start, end = self.beta_start ** (1 / power), self.beta_end ** (1 / power)
        return torch.linspace(start, end, self.links, dtype=torch.float64) ** power

    @cached_property
    def _tables(self) -> dict[torch.device, Tensor]:
        """Logarithm of alpha at 0, 1/N, ..., 1 per device, (N + 1,)."""
        steps = torch.log1p(-self._betas()) / 2
        return {torch.device("cpu"): torch.nn.functional.pad(steps.cumsum(0), (1, 0))}

    def _table(self, like: Tensor) -> Tensor:
        if like.device not in self._tables:
            self._tables[like.device] = self._tables[torch.device("cpu")].to(like.device)
        return self._tables[like.device]

    @property
    def t_min(self) -> float:  # type: ignore[override]
        """Time of index 0, the last that a network of the chain knows."""
        return 1 / self.links

    def _link(self, position: Tensor) -> Tensor:
        """The link of a position in [0, N]; a node is part of the one that ends there."""
        return (torch.ceil(position - _EDGE) - 1).clamp(0, self.links - 1).long()

    def log_alpha(self, t: Tensor | float) -> Tensor:
        position = torch.as_tensor(t, dtype=torch.float64) * self.links
        nodes, link = self._table(position), self._link(position.detach())
        return torch.lerp(nodes[link], nodes[link + 1], position - link)

    def sigma(self, t: Tensor | float) -> Tensor:
        return torch.sqrt(-torch.expm1(2 * self.log_alpha(t)))

    def drift(self, t: Tensor | float) -> Tensor:
        position = torch.as_tensor(t, dtype=torch.float64) * self.links
        nodes, link = self._table(position), self._link(position)
        return (nodes[link + 1] - nodes[link]) * self.links

    def diffusion_squared(self, t: Tensor | float) -> Tensor:
        return -2 * self.drift(t)

    def time_at(self, half_log_snr: Tensor | float) -> Tensor:
        level = torch.as_tensor(half_log_snr, dtype=torch.float64)
        # alpha^2 = sigmoid(2 lambda) when alpha^2 + sigma^2 = 1.
        log_alpha = torch.nn.functional.logsigmoid(2 * level) / 2
        nodes = self._table(level)
        link = (torch.searchsorted(-nodes, -log_alpha) - 1).clamp(0, self.links - 1)
        within = (log_alpha - nodes[link]) / (nodes[link + 1] - nodes[link])
        return (link + within) / self.links

    def prior_std(self) -> float:
        return super().prior_std() if self.prior_scale is None else self.prior_scale

    def time_of(self, index: Tensor | Sequence[int] | int) -> Tensor:
        """Time of a network's integer step: float64 of the index's shape."""
        return (torch.as_tensor(index, dtype=torch.float64) + 1) / self.links

    def index_at(self, half_log_snr: Tensor | float) -> Tensor:
        """The network's time step at a half log-SNR, as a real number, float64 of its shape."""
        return self.time_at(half_log_snr) * self.links - 1

    def trailing(self, steps: int) -> Tensor:
        """Grid of ``steps`` nodes from the last index down, evenly spaced to the data.

        For samplers that predict the data in their last step (the default).

        Raises
        ------
        StructDiffError
            If there are fewer indices than steps.
        """
        if not 1 <= steps <= self.links:
            raise StructDiffError(
                f"a chain of {self.links} links has no grid of {steps} nodes: "
                f"choose 1 to {self.links} steps"
            )
        spaced = torch.arange(steps, 0, -1, dtype=torch.float64) * (self.links / steps)
        return spaced.round() / self.links
