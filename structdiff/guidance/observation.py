r"""Self-guidance by observations: TSDiff-MS and TSDiff-Q (Kollovieh et al. 2023, section 3.1).

The score is moved by :math:`-s \nabla_{x_t} E(D(x_t), y)`, with the energy of the model's own
one-step prediction D over the observed entries,

.. math:: E_{MS} = \sum (D - y)^2, \qquad
          E_Q = \sum \max(\kappa e, (\kappa - 1) e), \quad e = y - D.

MS reads the observations as Gaussian. Q reads them as asymmetric Laplace with one level
:math:`\kappa` per object: give the paths of one series the levels of :func:`path_levels`, and the
ensemble is spread by construction. The energy is a sum, so the scale that works depends on how
much is observed; :class:`~structdiff.guidance.CovarianceGuidance` needs none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor

from structdiff.denoisers import BaseDenoiser
from structdiff.errors import StructDiffError
from structdiff.guidance.base import GuidedDenoiser, Observed, Read
from structdiff.processes.discrete import DiscreteVP
from structdiff.state import State, expand_right

Energy: TypeAlias = Literal["squared", "quantile"]
Scale: TypeAlias = "float | Callable[[Tensor], Tensor]"
"""A number, or a rule from a component's own time, () or (B,), to its scale there."""


def path_levels(paths: int, series: int = 1) -> Tensor:
    """Levels i / (S + 1), i = 1..S, of the S paths of every series: float64 (series * paths,).

    Parameters
    ----------
    paths
        S.
    series
        How many series lie one after another, each with its S paths.
    """
    if paths < 1 or series < 1:
        raise StructDiffError(f"there must be a path and a series, got {paths} and {series}")
    return (torch.arange(1, paths + 1, dtype=torch.float64) / (paths + 1)).repeat(series)


@dataclass(frozen=True)
class PublishedScale:
    r"""The scale that makes an ancestral step the published one: see :func:`published_scale`."""

    chain: DiscreteVP
    scale: float

    def __call__(self, t: Tensor) -> Tensor:
        """Scale at a component's own time, float64 of its shape."""
        chain = self.chain
        before = (t - 1 / chain.links).clamp(min=0)
        target = chain.sigma(before) ** 2 / chain.alpha(before)
        return self.scale * target * chain.alpha(t) / chain.sigma(t) ** 2


def published_scale(chain: DiscreteVP, scale: float) -> PublishedScale:
    r"""The scale s of the paper, for ancestral sampling over every link of a chain.

    The paper moves the mean of the ancestral step to index t - 1 by
    :math:`-s \tilde\beta_t \nabla E`. That step takes the data prediction with the coefficient
    :math:`\sqrt{\bar\alpha_{t-1}}\,\beta_t / (1-\bar\alpha_t)`, and :math:`\tilde\beta_t =
    \beta_t (1-\bar\alpha_{t-1}) / (1-\bar\alpha_t)`: the prediction moves by

    .. math:: -s\,\frac{1 - \bar\alpha_{t-1}}{\sqrt{\bar\alpha_{t-1}}}\,\nabla E.

    The last step is not guided, as :math:`\tilde\beta_0 = 0`. Use the sampler "ddpm" with
    ``grid=chain.trailing(chain.links)``; for DDIM the published scale is the plain number.

    Parameters
    ----------
    chain
        The process; in the paper ``DiscreteVP(100, 1e-4, 0.1, prior_scale=1.0)``.
    scale
        s.
    """
    return PublishedScale(chain, float(scale))


class ObservationGuidance(GuidedDenoiser):
    r"""A denoiser pulled towards observations by the gradient through its network.

    Every call costs one network evaluation and one backward pass.

    Parameters
    ----------
    denoiser
        Estimates E[x0 | xt]; differentiable in the state.
    values
        What was observed, components (B, ...), with the masks of the states to come; in the
        coordinates that the processes run on.
    observed
        Which entries are known: boolean, by component.
    energy
        "squared" (TSDiff-MS) or "quantile" (TSDiff-Q).
    levels
        :math:`\kappa` in (0, 1) per object, (B,); for "quantile" only.
    scale
        Factor s on the gradient in the score: a number (the paper's DDIM form), or a rule such as
        :func:`published_scale` (its DDPM form).

    Raises
    ------
    StructDiffError
        If the observations do not fit the system, the energy is unknown, or levels are missing,
        out of range, or given where none are used.
    """

    def __init__(
        self,
        denoiser: BaseDenoiser,
        values: State | Tensor,
        observed: Observed,
        energy: Energy = "squared",
        levels: Tensor | None = None,
        scale: Scale = 1.0,
    ) -> None:
        super().__init__(denoiser, values, observed)
        if energy not in get_args(Energy):
            raise StructDiffError(f"energy must be 'squared' or 'quantile', got {energy!r}")
        if (levels is None) != (energy == "squared"):
            raise StructDiffError(
                "the quantile energy needs levels, one per object; the squared one takes none"
            )
        if levels is not None:
            size = (self.observations.batch_size,)
            if levels.shape != size or not bool(((levels > 0) & (levels < 1)).all()):
                raise StructDiffError(
                    f"levels must be one number in (0, 1) per object {size}, got shape "
                    f"{tuple(levels.shape)} from {float(levels.min())} to {float(levels.max())}"
                )
        self.levels, self.scale = levels, scale

    def energy(self, data: State) -> Tensor:
        """Energy of a data prediction per object, (B,): the sum over observed entries."""
        parts = []
        for gap in self.residuals(data).values():
            if self.levels is None:
                parts.append(gap.square().sum(1))
            else:
                level = self.levels.to(gap)[:, None]
                parts.append(torch.maximum(level * gap, (level - 1) * gap).sum(1))
        return torch.stack(parts).sum(0)

    def _slopes(self, data: State) -> dict[str, Tensor]:
        """Derivative of the energy by the data prediction, (B, d) by component."""
        gaps = self.residuals(data)
        if self.levels is None:
            return {k: -2 * gap for k, gap in gaps.items()}
        levels = self.levels[:, None]
        # 0 where nothing is known; of the kink at gap = 0 that is a subgradient.
        return {
            k: (gap < 0).to(gap) * (1 - levels.to(gap)) - (gap > 0).to(gap) * levels.to(gap)
            for k, gap in gaps.items()
        }

    def _guided(
        self, read: Read, x: State, times: Mapping[str, Tensor]
    ) -> tuple[tuple[State, State | None], dict[str, Tensor]]:
        output, gradient = self._pulled_back(read, x, self._slopes)
        shift = {}
        for name, slope in gradient.items():
            scale = self.scale(times[name]) if callable(self.scale) else self.scale
            factor = -scale * self._tweedie(times, name)
            shift[name] = slope * expand_right(factor.to(slope), slope)
        return output, shift
