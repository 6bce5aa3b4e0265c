r"""Search for the time grid on which a sampler does best with N steps.

A fine *teacher* trajectory is recorded at M + 1 candidate times. From each of its states one DDIM
step leads to every later time; how far it lands from the teacher there is the cost

.. math:: c_{ij} = \left( \frac{1}{B} \sum_b \sum_k \frac{\|\Phi^k_{t_i \to t_j}(x_b) - x^k_b(t_j)
          \|^2}{d^k_b\,m_k(t_j)} \right)^{1/2}

with d free coordinates and :math:`m_k(t_j)` the teacher's mean square per coordinate: a nearly
Gaussian flow scales an error as it scales the states, so errors made at different times, in
components of different scale, count by what they do to the end. The grid is the cheapest path of N
steps from ``t_max`` to ``t_min``, found exactly by dynamic programming. No training, and nothing in
it but the denoiser: any system, any process.

Chen et al. 2024, *On the trajectory regularity of ODE-based diffusion sampling* (GITS).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from structdiff.denoisers import BaseDenoiser
from structdiff.errors import StructDiffError
from structdiff.samplers.base import Run, SteppedSampler, schedules
from structdiff.samplers.grids import FixedTimes, GridLike, UniformLogSNR, as_grid
from structdiff.samplers.heun import Heun
from structdiff.state import State


class GridSearch:
    """One teacher trajectory, from which grids of any length are cut.

    Parameters
    ----------
    denoiser
        Estimates E[x0 | xt].
    x
        States at ``system.t_max``, usually ``system.prior(...)``; 256 objects are plenty.
    condition
        Passed to the denoiser.
    teacher_steps
        Steps of the teacher, M; the grids are made of its times.
    candidates
        Its grid; uniform in the log-SNR by default.
    teacher
        The sampler that is trusted on it: a class such as
        :class:`~structdiff.samplers.heun.Heun`, called with (steps, grid, denoise=False).
    progress
        Draw a progress bar.

    Raises
    ------
    StructDiffError
        If the teacher has fewer than 2 steps, or its trajectory is not finite.
    """

    def __init__(
        self,
        denoiser: BaseDenoiser,
        x: State | Tensor,
        condition: Any = None,
        *,
        teacher_steps: int = 60,
        candidates: GridLike | None = None,
        teacher: type[SteppedSampler] = Heun,
        progress: bool = False,
    ) -> None:
        if teacher_steps < 2:
            raise StructDiffError(f"a teacher needs at least 2 steps, got {teacher_steps}")
        grid = UniformLogSNR() if candidates is None else as_grid(candidates)
        sampler = teacher(teacher_steps, grid, denoise=False)
        self.times = sampler.times(denoiser.system)
        """Candidate times, from t_max to t_min, M + 1 of them."""
        self.costs = self._record(sampler, denoiser, x, condition, progress)
        """Cost of one step from time i to time j, float64 (M + 1, M + 1); infinite for j <= i."""

    @torch.no_grad()
    def _record(
        self,
        sampler: SteppedSampler,
        denoiser: BaseDenoiser,
        x: State | Tensor,
        condition: Any,
        progress: bool,
    ) -> Tensor:
        run = Run(denoiser, condition, None)
        start = run.inside(run.system.check(x))
        states = [start, *sampler.trajectory(denoiser, start, condition)]
        if not all(bool(states[-1][k].isfinite().all()) for k in run.moving):
            raise StructDiffError(
                "the teacher's trajectory is not finite: take more teacher_steps, or another grid "
                "of candidates or teacher"
            )
        noises = [
            run.evaluate("noise", state, t)
            for state, t in tqdm(
                list(zip(states, self.times, strict=True))[:-1],
                disable=not progress,
                desc="grid search",
            )
        ]
        self.nfe = sampler.nfe + run.nfe
        """Network evaluations per object that the search took."""
        return _step_costs(run, self.times, states, noises)

    def grid(self, steps: int, *, denoise: bool = True) -> FixedTimes:
        """The best grid for a sampler of ``steps`` steps.

        Parameters
        ----------
        steps, denoise
            Those of the sampler: with ``denoise`` its last step is the prediction of the data at
            ``t_min``, so the grid has ``steps`` points; without it, one more.

        Raises
        ------
        StructDiffError
            If the grid would have fewer than 2 points or more steps than the teacher.
        """
        path = cheapest_path(self.costs, steps - 1 if denoise else steps)
        return FixedTimes([self.times[i] for i in path])


def search_grid(
    denoiser: BaseDenoiser,
    x: State | Tensor,
    steps: int,
    condition: Any = None,
    *,
    denoise: bool = True,
    **settings: Any,
) -> FixedTimes:
    """The best grid for one number of steps; see :class:`GridSearch` for several.

    Parameters
    ----------
    denoiser, x, condition, settings
        As for :class:`GridSearch`.
    steps, denoise
        As for :meth:`GridSearch.grid`.
    """
    return GridSearch(denoiser, x, condition, **settings).grid(steps, denoise=denoise)


def _step_costs(
    run: Run, times: Sequence[float], states: Sequence[State], noises: Iterable[State]
) -> Tensor:
    """Errors of single DDIM steps between all pairs of times, (M + 1, M + 1)."""
    system, count = run.system, len(times)
    plans = schedules(system, times)
    dimensions = system.dimensions(states[0])
    like = states[0].first
    # A moving component side by side at all times, (M + 1, B, d), and its mean square there.
    packed = {k: torch.stack([system.spaces[k].pack(state[k]) for state in states]) for k in plans}
    sizes = {k: dimensions[k].clamp(min=1).to(like) for k in plans}
    scale = {
        k: (v.square().sum(2) / sizes[k]).mean(1).clamp(min=torch.finfo(like.dtype).tiny)
        for k, v in packed.items()
    }
    costs = torch.full((count, count), math.inf, dtype=torch.float64, device=like.device)
    for i, noise in enumerate(noises):
        total = like.new_zeros(count - i - 1)
        for k, plan in plans.items():
            later = range(i + 1, count)
            ratio = torch.tensor(
                [math.exp(plan.log_alpha[j] - plan.log_alpha[i]) for j in later],
                dtype=torch.float64,
            )
            slope = torch.tensor(
                [plan.alpha[j] * (plan.rho(j) - plan.rho(i)) for j in later], dtype=torch.float64
            )
            landed = ratio.to(like)[:, None, None] * packed[k][i] + slope.to(like)[
                :, None, None
            ] * system.spaces[k].pack(noise[k])
            gap = (landed - packed[k][i + 1 :]).square().sum(2) / sizes[k]
            total = total + gap.mean(1) / scale[k][i + 1 :]
        costs[i, i + 1 :] = total.sqrt().double()
    return costs.cpu()


def cheapest_path(costs: Tensor, steps: int) -> list[int]:
    """Cheapest way from the first node to the last with exactly ``steps`` steps forward.

    Parameters
    ----------
    costs
        Cost of a step from i to j > i, (M + 1, M + 1); what lies elsewhere is not read.
    steps
        Number of steps, from 1 to M.

    Returns
    -------
    list of int
        ``steps + 1`` increasing nodes, the first 0 and the last M.

    Raises
    ------
    StructDiffError
        If no such path exists.
    """
    count = len(costs)
    if not 1 <= steps <= count - 1:
        raise StructDiffError(
            f"a path over {count} times has between 1 and {count - 1} steps, got {steps}: a grid "
            "needs at least 2 points and no more steps than the teacher"
        )
    forward = torch.ones_like(costs, dtype=torch.bool).triu(1)
    allowed = torch.where(forward, costs, math.inf)
    best = torch.full((count,), math.inf, dtype=costs.dtype)
    best[0] = 0.0
    parents = []
    for _ in range(steps):
        best, parent = (best[:, None] + allowed).min(0)
        parents.append(parent)
    if not bool(best[-1] < math.inf):
        raise StructDiffError(f"no finite path of {steps} steps leads to the last time")
    path = [count - 1]
    for parent in reversed(parents):
        path.append(int(parent[path[-1]]))
    return path[::-1]
