r"""The curl of a score: a gradient has a symmetric Jacobian, a network's need not be.

.. math:: |J - J^\top|_F^2 = E_v\,|(J - J^\top)\,v|^2, \qquad J = \partial s / \partial x

with v random signs on the free coordinates: one jvp and one vjp (Chao et al. 2022, QCSBM).
"""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from structdiff.denoisers import BaseDenoiser
from structdiff.errors import StructDiffError
from structdiff.noise import NoiseSource, as_source
from structdiff.objectives.base import Regularizer
from structdiff.objectives.fokker_planck import Score
from structdiff.objectives.free_coordinates import FreeCoordinates, Packed, along, inner
from structdiff.processes.system import System, Time
from structdiff.state import State, as_state

Units: TypeAlias = Literal["noise", "score"]
"""Of a score's Jacobian: per unit of noise, sigma J sigma, or as it is."""


def curl_square(
    score: BaseDenoiser | Score,
    system: System,
    x: State | Tensor,
    t: Time,
    source: NoiseSource | int | None = None,
) -> Tensor:
    """Unbiased estimate of the squared Frobenius norm of J - J^T per object, (B,).

    Exact for two free coordinates; 0 for gradients.

    Parameters
    ----------
    score
        A denoiser, or a function (State, times) -> State; differentiable in x.
    system
        Whose free coordinates are meant.
    x
        Noisy state.
    t
        Shared time () or (B,), or the components' own times by name.
    source
        Randomness of the direction v.
    """
    field = score.score if isinstance(score, BaseDenoiser) else score
    free = FreeCoordinates(system, system.check(as_state(x)), t)
    v = free.rademacher(as_source(source))
    ones = {k: torch.ones_like(rate)[:, None] for k, rate in free.rates.items()}
    return _curl_square(free, field, v, ones)


def _curl_square(free: FreeCoordinates, field: Score, v: Packed, scale: Packed) -> Tensor:
    """|(K S - S K^T) v|^2 with K = d field / dx and S the diagonal ``scale``.

    With S = 1 and the score as field this is the curl itself. With S = sigma and the noise, which
    is -sigma times the score, sigma J sigma = -K S: nothing is divided by a small sigma.
    """

    def packed(points: Packed) -> Packed:
        return free.pack(field(free.to_state(points), free.times))

    scaled = {k: scale[k] * v[k] for k in v}
    _, forward = along(packed, free.points, scaled)
    pull_back: Any = torch.func.vjp(packed, free.points)[1]
    backward: Packed = pull_back(v)[0]
    gap = {k: forward[k] - scale[k] * backward[k] for k in v}
    return inner(gap, gap)


class CurlPenalty(Regularizer):
    r"""Penalty on a score's curl, :math:`E_v |(J - J^\top) v|^2` per free coordinate.

    Parameters
    ----------
    weight
        lambda.
    every
        Training steps between evaluations.
    units
        ``"noise"`` takes :math:`\sigma J \sigma`, of the same size at all noise levels;
        ``"score"`` takes J, which grows like :math:`\sigma^{-2}` near the data.

    Raises
    ------
    StructDiffError
        If ``units`` is unknown.
    """

    def __init__(self, weight: float = 1.0, every: int = 1, units: Units = "noise") -> None:
        super().__init__(weight, every)
        if units not in ("noise", "score"):
            raise StructDiffError(f"unknown units {units!r}: choose 'noise' or 'score'")
        self.units: Units = units

    def penalty(
        self,
        denoiser: BaseDenoiser,
        x0: State,
        noisy: State,
        t: Tensor,
        condition: Any,
        source: NoiseSource,
    ) -> Tensor:
        system = denoiser.system
        read = denoiser.noise if self.units == "noise" else denoiser.score
        free = FreeCoordinates(system, noisy, t)
        scale = (
            free.coefficient("sigma")
            if self.units == "noise"
            else {k: torch.ones_like(rate)[:, None] for k, rate in free.rates.items()}
        )
        v = free.rademacher(source)
        square = _curl_square(free, lambda x, t: read(x, t, condition), v, scale)
        count = torch.stack([e.sum(1) for e in free.exists.values()]).sum(0)
        return square / count.clamp(min=1)
