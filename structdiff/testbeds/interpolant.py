r"""Interpolants whose fields are known exactly: check a flow, its losses and its samplers.

Between two Gaussian mixtures every pair (i of the data, j of the base) makes a Gaussian of mean
:math:`d m^0_i + c m^1_j` and covariance
:math:`S = d^2 C^0_i + c^2 C^1_j + dc\,(K + K^\top) + \gamma^2`,
K the covariance of the two ends, and

.. math:: E[x_0 | x_t] = m^0_i + (d C^0_i + c K) S^{-1} g, \quad
          E[x_1 | x_t] = m^1_j + (c C^1_j + d K^\top) S^{-1} g, \quad E[z|x_t] = \gamma S^{-1} g

with :math:`g = x_t - d m^0_i - c m^1_j`, mixed by responsibilities.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from structdiff.errors import StructDiffError
from structdiff.flows import BaseFlow, Head
from structdiff.noise import NoiseSource
from structdiff.processes.interpolant import InterpolantSystem
from structdiff.processes.system import Time
from structdiff.state import State, as_state
from structdiff.testbeds.mixtures import GaussianMixture


class InterpolatedMixtures:
    """Two Gaussian mixtures over the same components, coupled or not.

    Parameters
    ----------
    data, base
        The mixtures at time 0 and 1.
    covariance
        Covariance of data and base, (D, D), for two single Gaussians; None: independent ends.

    Raises
    ------
    StructDiffError
        If the mixtures have different components, or a covariance is given for true mixtures.
    """

    def __init__(
        self, data: GaussianMixture, base: GaussianMixture, covariance: Tensor | None = None
    ) -> None:
        if data.components != base.components:
            raise StructDiffError(
                f"data and base must share their components, got {data.components} and "
                f"{base.components}"
            )
        if covariance is not None and (len(data.weights), len(base.weights)) != (1, 1):
            raise StructDiffError(
                "a covariance of the ends needs one Gaussian at each: mixtures are independent"
            )
        self.data, self.base = data, base
        width = data.means.shape[1]
        self.covariance = (
            torch.zeros(width, width, dtype=torch.float64)
            if covariance is None
            else torch.as_tensor(covariance, dtype=torch.float64)
        )

    def sample(self, n: int, source: NoiseSource | int | None = None) -> tuple[State, State]:
        """Draw n pairs (data, base), float64."""
        pairs = [
            (i, j) for i in range(len(self.data.weights)) for j in range(len(self.base.weights))
        ]
        weights = [float(self.data.weights[i] * self.base.weights[j]) for i, j in pairs]
        means = torch.stack([torch.cat((self.data.means[i], self.base.means[j])) for i, j in pairs])
        blocks = [
            torch.cat(
                (
                    torch.cat((self.data.covariances[i], self.covariance), 1),
                    torch.cat((self.covariance.T, self.base.covariances[j]), 1),
                )
            )
            for i, j in pairs
        ]
        both = GaussianMixture(weights, means, torch.stack(blocks)).sample(n, source).first
        x0, x1 = both.chunk(2, dim=1)
        return self.data._split(x0), self.data._split(x1)

    def flow(self, system: InterpolantSystem) -> BaseFlow:
        """The exact fields under a system with these components."""
        return _MixtureFlow(self, system)


class _MixtureFlow(BaseFlow):
    def __init__(self, ends: InterpolatedMixtures, system: InterpolantSystem) -> None:
        super().__init__(system)
        if set(system.processes) != set(ends.data.components):
            raise StructDiffError(
                f"the testbed has the components {list(ends.data.components)}, the system "
                f"{list(system.processes)}"
            )
        self.ends = ends

    def _rows(self, t: Time, like: Tensor) -> list[Tensor]:
        """The six scales as a row per coordinate, each (1 or B, D)."""
        scales, widths = self.system.scales(t), self.ends.data.components
        rows = []
        for number in range(6):
            parts = [
                scales[k][number].to(like).reshape(-1, 1).expand(-1, width)
                for k, width in widths.items()
            ]
            size = max(len(p) for p in parts)
            rows.append(torch.cat([p.expand(size, -1) for p in parts], dim=1))
        return rows

    def _expectations(self, x: State, t: Time) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """E[x0], E[x1] and E[z] given x, (B, D), and log p_t, (B,)."""
        ends, joint = self.ends, self.ends.data.join(x)
        d, c, gamma, *_ = self._rows(t, joint)
        first, second = ends.data, ends.base
        pairs = torch.cartesian_prod(
            torch.arange(len(first.weights)), torch.arange(len(second.weights))
        )
        i, j = pairs[:, 0], pairs[:, 1]
        m0, m1 = first.means.to(joint)[i], second.means.to(joint)[j]  # (P, D)
        c0, c1 = first.covariances.to(joint)[i], second.covariances.to(joint)[j]  # (P, D, D)
        cross = ends.covariance.to(joint)
        left, right = d[:, None, None, :], c[:, None, None, :]
        with_x0 = c0 * left + cross * right  # covariance of x0 and x_t: (1 or B, P, D, D)
        with_x1 = c1 * right + cross.T * left
        total = with_x0 * left.transpose(-1, -2) + with_x1 * right.transpose(-1, -2)
        total = total + torch.diag_embed(gamma**2)[:, None]
        factor = torch.linalg.cholesky(total)
        gap = joint[:, None] - d[:, None] * m0 - c[:, None] * m1  # (B, P, D)
        unit = torch.eye(joint.shape[1]).to(joint).expand_as(factor)
        solved = _each(torch.cholesky_solve(unit, factor), gap)  # (B, P, D)
        logits = (
            (first.weights[i] * second.weights[j]).to(joint).log()
            - (gap * solved).sum(-1) / 2
            - factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        )
        share = torch.softmax(logits, dim=1)[..., None]
        x0 = (share * (m0 + _each(with_x0, solved))).sum(1)
        x1 = (share * (m1 + _each(with_x1, solved))).sum(1)
        z = gamma * (share * solved).sum(1)
        constant = joint.shape[1] / 2 * math.log(2 * math.pi)
        return x0, x1, z, torch.logsumexp(logits, 1) - constant

    def heads(self, x: State, t: Time, condition: Any = None) -> dict[Head, State]:
        """The exact v and eta."""
        x0, x1, z, _ = self._expectations(x, t)
        _, _, _, data_rate, base_rate, _ = self._rows(t, x0)
        v = data_rate * x0 + base_rate * x1
        split = self.ends.data._split
        return {"v": split(v), "eta": split(z)}

    def forward(self, x: State | Tensor, t: Time, condition: Any = None) -> State:
        """E[x0 | xt], at every time of every path."""
        return self.ends.data._split(self._expectations(as_state(x), t)[0])

    def log_density(self, x: State | Tensor, t: Time) -> Tensor:
        """Log density of the interpolant, (B,)."""
        return self._expectations(as_state(x), t)[3]


def _each(matrices: Tensor, vectors: Tensor) -> Tensor:
    """Matrices (1 or B, P, D, D) on vectors (B, P, D); shared ones in one product per pair."""
    if len(matrices) == 1:
        return torch.einsum("pij,bpj->bpi", matrices[0], vectors)
    return torch.einsum("bpij,bpj->bpi", matrices, vectors)


def bridge_covariance(data_std: float, base_std: float, epsilon: float) -> float:
    r"""Covariance of the ends of the Schroedinger bridge between two normal laws.

    .. math:: c = \sqrt{\sigma_0^2\sigma_1^2 + \varepsilon^2} - \varepsilon

    Parameters
    ----------
    data_std, base_std
        Standard deviations of the ends.
    epsilon
        Half the variance rate of the bridge's noise.
    """
    return math.sqrt(data_std**2 * base_std**2 + epsilon**2) - epsilon


def bridge_energy(
    covariance: float, data_std: float, base_std: float, gap: float, epsilon: float
) -> float:
    r"""Kinetic energy :math:`\int_0^1 E|b + \varepsilon s|^2\,dt` of a Gaussian coupling.

    Of the linear interpolant with :math:`\gamma^2 = 2\varepsilon t(1-t)` between
    :math:`N(m, \sigma_0^2)` and :math:`N(m + gap, \sigma_1^2)` of the given covariance; least at
    the Schroedinger bridge (:func:`bridge_covariance`). By Gauss-Legendre quadrature.

    Parameters
    ----------
    covariance
        Of the two ends.
    data_std, base_std
        Standard deviations of the ends.
    gap
        Difference of their means.
    epsilon
        Half the variance rate of the noise.
    """
    import numpy as np

    nodes, weights = np.polynomial.legendre.leggauss(200)
    t = (nodes + 1) / 2
    variance = (
        (1 - t) ** 2 * data_std**2 + t**2 * base_std**2 + 2 * t * (1 - t) * (covariance + epsilon)
    )
    rate = (
        -2 * (1 - t) * data_std**2 + 2 * t * base_std**2 + 2 * (1 - 2 * t) * (covariance + epsilon)
    )
    # b = gap + rate/2 (x - mean)/variance and s = -(x - mean)/variance.
    slope = (rate / 2 - epsilon) ** 2 / variance
    return float(gap**2 + (weights / 2 * slope).sum())
