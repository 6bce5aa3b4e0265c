r"""Imputation of windows by the exact Gaussian update, solved for what is missing.

:class:`~structdiff.guidance.CovarianceGuidance` solves in the space of a low-rank covariance; a
dropped channel asks for all of its rank, and few entries of a window are missing. With exact
observations (r = 0), :math:`V^{-1} = S^{-1} + (\alpha^2/\sigma^2) I`, and the Kalman update is

.. math:: \Delta_O = y - D_O, \qquad
          \Delta_M = -\big[(S^{-1})_{MM} + \tfrac{\alpha^2}{\sigma^2} I\big]^{-1} (S^{-1})_{MO}
          \Delta_O :

a system of the size of what is missing, M, at the full rank of S.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from structdiff.denoisers import BaseDenoiser
from structdiff.errors import StructDiffError
from structdiff.guidance import CovarianceGuidance, GuidedDenoiser
from structdiff.guidance.base import Observed, Read
from structdiff.state import State
from structdiff.timeseries.eeg_prior import WindowCovariance


class MissingGuidance(GuidedDenoiser):
    """A denoiser of windows {x: (B, L, C)} that keeps to what is observed, without noise.

    Exact for Gaussian data whatever the mask.

    Parameters
    ----------
    denoiser
        Estimates E[x0 | xt].
    values, observed
        As for :class:`~structdiff.guidance.CovarianceGuidance`. Windows with the same mask share
        one factorisation.
    prior
        Of the windows.

    Raises
    ------
    StructDiffError
        If the observations do not fit the system; when called, if the windows' times differ.
    """

    def __init__(
        self,
        denoiser: BaseDenoiser,
        values: State | Tensor,
        observed: Observed,
        prior: WindowCovariance,
    ) -> None:
        super().__init__(denoiser, values, observed)
        (self.name, seen), *_ = self.observations.observed.items()
        self.prior = prior.to(seen.device)
        patterns, self.pattern = torch.unique(seen, dim=0, return_inverse=True)
        self._missing = [(~pattern).nonzero()[:, 0] for pattern in patterns]
        self._systems = []
        """(S^-1)_MM per pattern."""
        for missing in self._missing:
            self._systems.append(precision_block(self.prior, missing))

    def _move(self, gap: Tensor, precision: float) -> Tensor:
        """The update (B, d) for residuals (B, d), 0 where nothing is known, and alpha^2/sigma^2."""
        gap = gap.double()
        shape, prior = (-1, *self.prior.values.shape), self.prior
        weighted = prior.windows(prior.coordinates(gap.reshape(shape)) / prior.values).flatten(1)
        move = gap.clone()
        for number, (missing, system) in enumerate(zip(self._missing, self._systems, strict=True)):
            if not len(missing):
                continue
            rows = (self.pattern == number).nonzero()[:, 0]
            place = (rows[:, None], missing[None])
            inner = system.clone()
            inner.diagonal().add_(precision)
            factor = torch.linalg.cholesky(inner)
            move[place] = -torch.cholesky_solve(weighted[place].T, factor).T
        return move

    def prior_given(self, name: str, normal: Tensor, error: Tensor) -> Tensor:
        """Draw the windows (B, d) from the prior given what is observed.

        Parameters
        ----------
        name
            The component.
        normal
            Standard normal numbers, (B, d).
        error
            Not used: the observations carry no noise.
        """
        prior = self.prior
        z = normal.double().reshape(-1, *prior.values.shape)
        draw = (prior.level + prior.windows(z * prior.values.sqrt())).flatten(1)
        seen, y = self.observations.observed[name], self.observations.values[name]
        gap = torch.where(seen, y.to(draw) - draw, 0.0)
        return (draw + self._move(gap, 0.0)).to(normal)

    def _guided(
        self, read: Read, x: State, times: Mapping[str, Tensor]
    ) -> tuple[tuple[State, State | None], dict[str, Tensor]]:
        output = read(x)
        process, own = self.system.processes[self.name], times[self.name]
        ratios = ((process.alpha(own) / process.sigma(own)) ** 2).reshape(-1).tolist()
        if len(set(ratios)) > 1:
            raise StructDiffError("the windows of a batch must be at one shared time")
        move = self._move(self.residuals(output[0])[self.name], ratios[0])
        space, value = self.system.spaces[self.name], x[self.name]
        return output, {self.name: space.unpack(move.to(value), value)}


def precision_block(prior: WindowCovariance, entries: Tensor) -> Tensor:
    """Rows and columns of :math:`S^{-1}` at entries l C + c, ascending: (M, M)."""
    size = len(prior.level)
    steps, channels = torch.unique(entries // size), torch.unique(entries % size)
    if not len(entries) or len(steps) * len(channels) != len(entries):
        rows = prior.rows(entries) * prior.values.flatten().rsqrt()
        return rows @ rows.T
    # Whole channels, or all channels for a while: the same channel blocks at all pairs of times.
    over = prior.patterns[:, channels]  # (L, K, C)
    blocks = (over / prior.values[:, None]) @ over.mT  # (L, K, K)
    in_time = prior.times[steps]  # (T, L)
    columns = [
        (in_time * blocks[:, a].T[:, None]) @ in_time.T  # (K, T, T)
        for a in range(len(channels))
    ]
    return torch.stack(columns).permute(2, 0, 3, 1).reshape(len(entries), len(entries))


def impute_guidance(
    denoiser: BaseDenoiser, values: State, observed: Tensor, prior: WindowCovariance, rank: int
) -> MissingGuidance | CovarianceGuidance:
    """Guide by the smaller system: of the missing entries, exact, or of ``rank`` directions.

    Parameters
    ----------
    denoiser
        Estimates E[x0 | xt].
    values
        Windows {x: (B, L, C)}.
    observed
        Which of their entries are known, bool (B, L, C).
    prior
        Of the windows.
    rank
        Directions of the low-rank system; it is used where some window misses more than twice as
        many entries.
    """
    widest = int((~observed).flatten(1).sum(1).max())
    if widest <= 2 * rank:
        return MissingGuidance(denoiser, values, {"x": observed}, prior)
    return CovarianceGuidance(denoiser, values, {"x": observed}, prior.low_rank(rank))
