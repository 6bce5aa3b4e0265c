"""Data on a surface: the unit sphere of R^3 in R^5, with its exact denoiser."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from structdiff.denoisers import BaseDenoiser
from structdiff.noise import NoiseSource, as_source
from structdiff.processes.system import System, Time
from structdiff.state import TENSOR, State, as_state, expand_right


class Sphere:
    r"""Points uniform on the unit sphere of R^3, in R^5: data on a surface.

    .. math:: E[x_0 | x_t] = \left(\coth\kappa - 1/\kappa\right) \hat x, \qquad
              \kappa = \alpha |x| / \sigma^2

    with x the first three coordinates and :math:`\hat x` their direction; the others are 0.
    """

    width = 5

    def mean(self) -> Tensor:
        """Mean, (5,)."""
        return torch.zeros(5, dtype=torch.float64)

    def covariance(self) -> Tensor:
        """Covariance, (5, 5)."""
        return torch.diag(torch.tensor([1.0, 1.0, 1.0, 0.0, 0.0], dtype=torch.float64)) / 3

    def sample(self, n: int, source: NoiseSource | int | None = None) -> State:
        """Draw n points, (n, 5)."""
        normal = as_source(source).normal("testbed", torch.empty(n, 3, dtype=torch.float64))
        points = normal / normal.norm(dim=1, keepdim=True)
        return State({TENSOR: torch.nn.functional.pad(points, (0, 2))})

    def denoiser(self, system: System) -> BaseDenoiser:
        """The exact E[x0 | xt] under a system with the one component ``"x"``."""
        return _SphereDenoiser(system)


class _SphereDenoiser(BaseDenoiser):
    def forward(self, x: State | Tensor, t: Time, condition: Any = None) -> State:
        """E[x0 | xt]."""
        state = as_state(x)
        point = state[TENSOR][:, :3]
        radius = point.norm(dim=1, keepdim=True).clamp(min=1e-300)
        ratio = self.system.alpha(t)[TENSOR] / self.system.sigma(t)[TENSOR] ** 2
        kappa = expand_right(ratio, point) * radius
        # coth k - 1/k loses its digits near 0, where it is k/3 - k^3/45.
        small = kappa < 1e-2
        safe = torch.where(small, torch.ones_like(kappa), kappa)
        length = torch.where(small, kappa / 3 - kappa**3 / 45, 1 / torch.tanh(safe) - 1 / safe)
        return state.replace(**{TENSOR: torch.nn.functional.pad(length * point / radius, (0, 2))})
