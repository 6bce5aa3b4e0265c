r"""Couplings: which noise goes with which data in a training batch.

The velocity of flow matching is :math:`E[\dot\alpha x_0 + \dot\sigma\epsilon \mid x_t]`. Paired at
random, paths cross and the mean bends; paired by optimal transport,

.. math:: \min_\pi \sum_i |x_0^i - \epsilon^{\pi(i)}|^2,

they hardly cross, the flow is nearly straight and few steps follow it (Pooladian et al. 2023; Tong
et al. 2024). With entropic regularisation :math:`4\varepsilon` the pairs are those of the
Schroedinger bridge of noise :math:`\sqrt{2\varepsilon}\,dw`.

Both marginals stay what they are as the batch grows. Objects are paired only with noise of their
own shape: entries that one has and the other lacks cannot be traded. A batch of conditional data
should hold one condition, or the pairing ties noise and condition together.
"""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from structdiff.errors import StructDiffError
from structdiff.noise import NoiseSource
from structdiff.processes.system import System
from structdiff.spaces import Layout
from structdiff.state import State


def _library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise StructDiffError(
            f"this coupling needs {name}: pip install 'structdiff[ot]', or use Independent()"
        ) from error


class Independent:
    """Data and noise as they were drawn."""

    def __call__(self, x0: State, noise: State, source: NoiseSource) -> State:
        """The noise as it is."""
        return noise

    def __repr__(self) -> str:
        return "Independent()"


class TransportCoupling(ABC):
    """Pairs by squared Euclidean distance over the existing free coordinates of whole objects.

    Parameters
    ----------
    system
        Says which coordinates are free (half of a symmetric matrix) and which components are
        conditioned on and take no part; None counts every entry of every component.
    """

    def __init__(self, system: System | None = None) -> None:
        self.system = system

    def __call__(self, x0: State, noise: State, source: NoiseSource) -> State:
        """The noise paired anew: object i of what is returned belongs to object i of ``x0``.

        Parameters
        ----------
        x0
            Data in the processes' coordinates, components (B, ...).
        noise
            Noise, or the base of an interpolant, of the same shapes.
        source
            Randomness of couplings that are not one to one.
        """
        names, data, base, exists = self._flat(x0, noise)
        index = torch.arange(x0.batch_size, device=x0.device)
        for group in (g for g in _alike(exists) if len(g) > 1):
            chosen = self._pair(data[group], base[group], source)
            index[group] = group[chosen.to(group.device)]
        paired = {k: v[index] if k in names else v for k, v in noise.items()}
        return State._trusted(paired, noise.masks)

    def _flat(self, x0: State, noise: State) -> tuple[tuple[str, ...], Tensor, Tensor, Tensor]:
        """Components that take part, both states as vectors (B, D), and what exists."""
        system = self.system
        names = tuple(x0) if system is None else tuple(k for k in x0 if k in system.moving)
        parts = [
            State._trusted(
                {k: x[k] for k in names}, {k: m for k, m in x0.masks.items() if k in names}
            )
            for x in (x0, noise)
        ]
        layout = Layout(parts[0], None if system is None else system.spaces)
        data, base = (torch.where(layout.exists, layout.flatten(p), 0.0) for p in parts)
        return names, data, base, layout.exists

    @abstractmethod
    def _pair(self, data: Tensor, base: Tensor, source: NoiseSource) -> Tensor:
        """Row of ``base`` (n, D) that goes with each row of ``data`` (n, D): int64 (n,)."""

    def cost(self, x0: State, noise: State) -> Tensor:
        """Squared distances between all pairs, (B, B)."""
        _, data, base, _ = self._flat(x0, noise)
        return _squared_distances(data, base)


def _squared_distances(data: Tensor, base: Tensor) -> Tensor:
    # Without the shortcut |a|^2 - 2ab + |b|^2, which cancels between close points.
    return torch.cdist(data, base, compute_mode="donot_use_mm_for_euclid_dist").square()


def _alike(exists: Tensor) -> list[Tensor]:
    """Rows with the same pattern of existing coordinates, as index tensors."""
    if bool(exists.all()):
        return [torch.arange(len(exists), device=exists.device)]
    _, kind = torch.unique(exists, dim=0, return_inverse=True)
    return [(kind == k).nonzero()[:, 0] for k in range(int(kind.max()) + 1)]


def _numpy(x: Tensor) -> Any:
    return x.detach().double().cpu().numpy()


class MinibatchOT(TransportCoupling):
    """The exact optimal pairing of the batch, one to one (OT-CFM).

    Parameters
    ----------
    system
        See :class:`TransportCoupling`.
    """

    def _pair(self, data: Tensor, base: Tensor, source: NoiseSource) -> Tensor:
        assign = _library("scipy.optimize").linear_sum_assignment
        _, chosen = assign(_numpy(_squared_distances(data, base)))
        return torch.from_numpy(chosen)

    def __repr__(self) -> str:
        return "MinibatchOT()"


class Sinkhorn(TransportCoupling):
    r"""Pairs drawn from the entropic plan :math:`\pi \propto e^{(f + g - |x_0-x_1|^2)/reg}`.

    Every object of the data keeps its place and draws its noise from its row of the plan.

    Parameters
    ----------
    reg
        Entropic regularisation in units of the cost: :math:`4\varepsilon` for the bridge of noise
        :math:`\sqrt{2\varepsilon}\,dw`, which is :math:`2\sigma_0^2` of SB-CFM.
    system
        See :class:`TransportCoupling`.
    iterations, tolerance
        When the scaling of the plan stops: at most so many, or so small an error of its marginals
        (Euclidean norm), which a batch's own sampling error hides.

    Raises
    ------
    StructDiffError
        If ``reg`` is not positive.
    """

    def __init__(
        self,
        reg: float,
        system: System | None = None,
        *,
        iterations: int = 1000,
        tolerance: float = 1e-4,
    ) -> None:
        super().__init__(system)
        if not reg > 0:
            raise StructDiffError(f"Sinkhorn needs a positive reg, got {reg}: use MinibatchOT()")
        self.reg, self.iterations, self.tolerance = float(reg), int(iterations), float(tolerance)

    def plan(self, x0: State, noise: State) -> Tensor:
        """The entropic plan of a batch whose objects all exist alike, (B, B), float64."""
        return self._plan(self.cost(x0, noise))

    def _plan(self, cost: Tensor) -> Tensor:
        values = _numpy(cost)
        weights = np.full(len(values), 1 / len(values))
        # In the log domain only where the kernel would underflow: it is ten times slower.
        method = "sinkhorn" if values.max() < 300 * self.reg else "sinkhorn_log"
        plan = _library("ot").sinkhorn(
            weights,
            weights,
            values,
            self.reg,
            method=method,
            numItermax=self.iterations,
            stopThr=self.tolerance,
        )
        return torch.from_numpy(plan)

    def _pair(self, data: Tensor, base: Tensor, source: NoiseSource) -> Tensor:
        plan = self._plan(_squared_distances(data, base))
        normal = source.normal("coupling", torch.empty(len(plan), dtype=torch.float64))
        shares = (plan / plan.sum(1, keepdim=True)).cumsum(1)
        chosen = torch.searchsorted(shares, torch.special.ndtr(normal)[:, None])[:, 0]
        return chosen.clamp(max=len(plan) - 1)

    def __repr__(self) -> str:
        return f"Sinkhorn(reg={self.reg})"
