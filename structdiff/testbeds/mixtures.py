r"""Densities whose denoiser is known exactly under any system: check a sampler in seconds.

For a Gaussian mixture :math:`\sum_k w_k N(m_k, C_k)` noised to :math:`x_t = A x_0 + S \epsilon`
with diagonal A and S (a number per component of the system),

.. math:: E[x_0 | x_t] = \sum_k r_k(x_t) \left(m_k + C_k A (A C_k A + S^2)^{-1} (x_t - A m_k)\right)

with the responsibilities :math:`r_k \propto w_k N(x_t; A m_k, A C_k A + S^2)`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from structdiff.denoisers import BaseDenoiser
from structdiff.errors import StructDiffError
from structdiff.noise import NoiseSource, as_source
from structdiff.processes.system import System, Time
from structdiff.state import TENSOR, State, as_state


def _tensor(values: Any) -> Tensor:
    return torch.as_tensor(values, dtype=torch.float64)


class GaussianMixture:
    """A mixture of Gaussians over the joint of one or several vector components.

    Parameters
    ----------
    weights
        (K,), positive; normalised.
    means
        (K, D).
    covariances
        (K, D, D).
    components
        Name and width of every component, in order; None is the one component ``"x"``.

    Raises
    ------
    StructDiffError
        If the shapes do not fit together.
    """

    def __init__(
        self,
        weights: Tensor | Sequence[float],
        means: Tensor | Sequence[Sequence[float]],
        covariances: Tensor | Sequence[Sequence[Sequence[float]]],
        components: Mapping[str, int] | None = None,
    ) -> None:
        self.weights = _tensor(weights) / _tensor(weights).sum()
        self.means, self.covariances = _tensor(means), _tensor(covariances)
        kinds, width = self.means.shape
        self.components = dict(components or {TENSOR: width})
        if (
            self.weights.shape != (kinds,)
            or self.covariances.shape != (kinds, width, width)
            or sum(self.components.values()) != width
        ):
            raise StructDiffError(
                f"weights {tuple(self.weights.shape)}, means {tuple(self.means.shape)}, "
                f"covariances {tuple(self.covariances.shape)} and components {self.components} "
                "do not fit together"
            )

    @classmethod
    def gmm3(cls) -> GaussianMixture:
        """Three anisotropic Gaussians in the plane: what the orders of samplers are measured on."""
        return cls(
            [0.5, 0.3, 0.2],
            [[-2.0, 0.0], [1.5, 1.5], [1.0, -2.0]],
            [
                [[0.30, 0.10], [0.10, 0.20]],
                [[0.15, -0.05], [-0.05, 0.25]],
                [[0.10, 0.0], [0.0, 0.40]],
            ],
        )

    def mean(self) -> Tensor:
        """Mean, (D,)."""
        return self.weights @ self.means

    def covariance(self) -> Tensor:
        """Covariance, (D, D)."""
        spread = self.means - self.mean()
        between = torch.einsum("k,ki,kj->ij", self.weights, spread, spread)
        return torch.einsum("k,kij->ij", self.weights, self.covariances) + between

    def _split(self, vector: Tensor) -> State:
        parts = vector.split(list(self.components.values()), dim=-1)
        return State(dict(zip(self.components, parts, strict=True)))

    def join(self, x: State | Tensor) -> Tensor:
        """The components side by side, (B, D)."""
        state = as_state(x)
        return torch.cat([state[k] for k in self.components], dim=-1)

    def sample(self, n: int, source: NoiseSource | int | None = None) -> State:
        """Draw n objects, float64."""
        drawn = as_source(source)
        width = self.means.shape[1]
        normal = drawn.normal("testbed", torch.empty(n, width + 1, dtype=torch.float64))
        uniform = torch.special.ndtr(normal[:, 0])
        kind = torch.searchsorted(self.weights.cumsum(0), uniform).clamp(max=len(self.weights) - 1)
        factor = torch.linalg.cholesky(self.covariances)[kind]
        return self._split(self.means[kind] + (factor @ normal[:, 1:, None])[..., 0])

    def denoiser(self, system: System) -> BaseDenoiser:
        """The exact E[x0 | xt] under a system with these components."""
        return _MixtureDenoiser(self, system)


class _MixtureDenoiser(BaseDenoiser):
    def __init__(self, mixture: GaussianMixture, system: System) -> None:
        super().__init__(system)
        if set(system.processes) != set(mixture.components):
            raise StructDiffError(
                f"the testbed has the components {list(mixture.components)}, the system "
                f"{list(system.processes)}"
            )
        self.mixture = mixture

    def _scale(self, values: Mapping[str, Tensor], like: Tensor) -> Tensor:
        """A number per component and object as a row per coordinate, (1 or B, D)."""
        rows = [
            values[k].to(like).reshape(-1, 1).expand(-1, width)
            for k, width in self.mixture.components.items()
        ]
        size = max(len(r) for r in rows)
        return torch.cat([r.expand(size, -1) for r in rows], dim=1)

    def _posterior(self, x: State | Tensor, t: Time) -> tuple[Tensor, Tensor]:
        """Data prediction (B, D) and log p_t (B,)."""
        mixture = self.mixture
        joint = mixture.join(x)
        alpha = self._scale(self.system.alpha(t), joint)
        sigma = self._scale(self.system.sigma(t), joint)
        means, covariances = mixture.means.to(joint), mixture.covariances.to(joint)
        scaled = alpha[:, None, :, None] * covariances  # A C: (1 or B, K, D, D)
        total = scaled * alpha[:, None, None] + torch.diag_embed(sigma**2)[:, None]
        factor = torch.linalg.cholesky(total)
        gap = joint[:, None] - alpha[:, None] * means  # (B, K, D)
        solved = torch.cholesky_solve(gap[..., None], factor.expand(len(joint), *factor.shape[1:]))
        logits = (
            mixture.weights.to(joint).log()
            - (gap * solved[..., 0]).sum(-1) / 2
            - factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        )
        data = means + (scaled.transpose(-1, -2) @ solved)[..., 0]
        share = torch.softmax(logits, dim=1)
        log_density = torch.logsumexp(logits, 1) - joint.shape[1] / 2 * math.log(2 * math.pi)
        return (share[..., None] * data).sum(1), log_density

    def forward(self, x: State | Tensor, t: Time, condition: Any = None) -> State:
        """E[x0 | xt]."""
        data, _ = self._posterior(x, t)
        return State._trusted(dict(self.mixture._split(data)), as_state(x).masks)

    def log_density(self, x: State | Tensor, t: Time) -> Tensor:
        """Log density of the noised mixture, (B,)."""
        return self._posterior(x, t)[1]


class CorrelatedGaussian(GaussianMixture):
    """One Gaussian over two coupled components: x in R^2 and a in R^3.

    Parameters
    ----------
    mean
        (5,); None is a fixed one.
    covariance
        (5, 5); None is a fixed one with correlations between the components up to 0.6.
    """

    def __init__(self, mean: Tensor | None = None, covariance: Tensor | None = None) -> None:
        if mean is None:
            mean = _tensor([0.5, -1.0, 1.0, 0.0, -0.5])
        if covariance is None:
            factor = _tensor(
                [
                    [0.8, 0.0, 0.0, 0.0, 0.0],
                    [0.3, 0.6, 0.0, 0.0, 0.0],
                    [0.5, -0.2, 0.7, 0.0, 0.0],
                    [-0.4, 0.3, 0.1, 0.5, 0.0],
                    [0.2, 0.4, -0.3, 0.2, 0.6],
                ]
            )
            covariance = factor @ factor.T
        super().__init__([1.0], mean[None], covariance[None], {"x": 2, "a": 3})


class LogNormalMixture(GaussianMixture):
    """Positive numbers: two log-normals, whose logarithm is a mixture of Gaussians.

    Use a system with the space ``Positive()``: processes and denoiser run on the logarithm,
    samplers return values. ``sample`` returns values; ``mean`` and ``covariance`` are of the
    logarithm.
    """

    def __init__(self) -> None:
        super().__init__([0.6, 0.4], [[-0.5], [0.8]], [[[0.3**2]], [[0.2**2]]])

    def sample(self, n: int, source: NoiseSource | int | None = None) -> State:
        """Draw n positive numbers, (n, 1)."""
        return super().sample(n, source).map(torch.exp)
