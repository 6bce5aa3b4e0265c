r"""GDSS's symmetric splitting (S4): one score evaluation pays for corrector and predictor.

From t to u with midpoint m and the score s of the start,

1. a Langevin correction with s;
2. the linear part over half the step, :math:`x \leftarrow \frac{\alpha_m}{\alpha_t} x + \alpha_m
   \sqrt{\rho_t^2 - \rho_m^2}\,z`, exact for any linear process;
3. the kick :math:`x \leftarrow x + (t - u)\,g(t)^2 s`;
4. the linear part over the other half.

Source: Jo, Lee and Hwang 2022, section 3.3. The published kernel of VP has the variance :math:`1 -
(\alpha_t/\alpha_m)^2` in place of :math:`(\alpha_m/\alpha_t)^2 - 1`; ``compat`` keeps it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

from structdiff.errors import StructDiffError
from structdiff.processes.gaussian import VP, GaussianProcess, SubVP
from structdiff.samplers.base import Run, Schedule, SteppedSampler, Stepper, Update, schedules
from structdiff.samplers.grids import GridLike
from structdiff.samplers.langevin import (
    Compat,
    Norms,
    check_compat,
    langevin,
)
from structdiff.samplers.registry import register
from structdiff.state import State


class _Split(NamedTuple):
    """One step per component: the halves, the first with the kick after it, and the corrector's."""

    first: dict[str, Update]
    second: dict[str, Update]
    shrink: dict[str, float]
    level: dict[str, float]
    times: tuple[float, float, float]


def _half(schedule: Schedule, i: int, published: bool) -> Update:
    """The backward linear part from point i to i + 1 of a schedule."""
    ratio = math.exp(schedule.log_alpha[i + 1] - schedule.log_alpha[i])
    if published and _plain_vp(schedule.process):
        return Update(ratio, (), math.sqrt(max(1 - ratio**-2, 0.0)))
    high = schedule.sigma[i] / schedule.alpha[i]
    low = schedule.sigma[i + 1] / schedule.alpha[i + 1]
    return Update(ratio, (), schedule.alpha[i + 1] * math.sqrt(max(high**2 - low**2, 0.0)))


def _plain_vp(process: GaussianProcess) -> bool:
    """Whether the published solver treats the process as VP."""
    return isinstance(process, VP) and not isinstance(process, SubVP)


class S4(SteppedSampler):
    """The symmetric splitting solver of GDSS.

    Parameters
    ----------
    steps, grid, denoise, progress
        See :class:`~structdiff.samplers.base.Sampler`.
    snr
        Signal-to-noise ratio of the correction; 0 leaves it out.
    scale_eps
        Factor on the corrector's noise.
    compat
        "reference" is the published scheme: N points from t_max to t_min with steps of 1/N (the
        last half step clamped at 0), the published variance of VP, batch-mean norms, and the
        noise-free mean of the last half step returned.
    norms
        "object", "level" or "batch", see :mod:`structdiff.samplers.langevin`; None is what
        ``compat`` says.
    """

    def __init__(
        self,
        steps: int,
        grid: GridLike | None = None,
        *,
        snr: float = 0.1,
        scale_eps: float = 1.0,
        compat: Compat | None = None,
        norms: Norms | None = None,
        denoise: bool = True,
        progress: bool = False,
    ) -> None:
        super().__init__(steps, grid, denoise=denoise, progress=progress)
        if not snr >= 0 or not scale_eps >= 0:
            raise StructDiffError(
                f"snr and scale_eps must not be negative, got {snr} and {scale_eps}"
            )
        self.norms = check_compat(compat, norms)
        self.snr, self.scale_eps, self.compat = float(snr), float(scale_eps), compat

    def _splits(self, run: Run, ends: Sequence[tuple[float, float]]) -> list[_Split]:
        """Coefficients of the steps from t to u."""
        published = self.compat is not None
        dt = 1 / self.steps
        # The published half step is 1/(2N) long even where the last one is cut off at 0.
        middles = [max(t - dt / 2, 0.0) if published else (t + u) / 2 for t, u in ends]
        points = [p for (t, u), m in zip(ends, middles, strict=True) for p in (t, m, u)]
        splits = [
            _Split({}, {}, {}, {}, (t, m, u)) for (t, u), m in zip(ends, middles, strict=True)
        ]
        for name, schedule in schedules(run.system, points).items():
            process = schedule.process
            for j, split in enumerate(splits):
                i = 3 * j
                length = dt if published else schedule.time[i] - schedule.time[i + 2]
                split.level[name] = schedule.sigma[i]
                kick = schedule.diffusion[i] ** 2 * length
                split.first[name] = _half(schedule, i, published)._replace(outputs=(kick,))
                split.second[name] = _half(schedule, i + 1, published)
                if not published:
                    gain = schedule.log_alpha[i] - schedule.log_alpha[i + 2]
                    split.shrink[name] = math.exp(2 * gain)
                else:  # 1 - beta_i for VP only, not for sub-VP
                    vp = _plain_vp(process)
                    time = schedule.time[i]
                    split.shrink[name] = process.chain_alpha(time, self.steps) if vp else 1.0
        return splits

    def _merged(self, split: _Split) -> dict[str, Update]:
        """The whole step as one linear update, its three independent draws as one.

        With corrections scaled by the noise level every coefficient is known beforehand.
        """
        updates = {}
        for name, first in split.first.items():
            second = split.second[name]
            gamma = 2 * split.shrink[name] * (self.snr * split.level[name]) ** 2
            factor = first.state * second.state
            variance = (
                (factor * self.scale_eps) ** 2 * 2 * gamma
                + (second.state * first.noise) ** 2
                + second.noise**2
            )
            kick = factor * gamma + second.state * first.outputs[0]
            updates[name] = Update(factor, (kick,), math.sqrt(variance))
        return updates

    def _step(self, run: Run, x: State, split: _Split, last: bool = False) -> State:
        t, middle, u = split.times
        score = run.evaluate("score", x, t)
        if self.snr > 0:
            x = langevin(
                run,
                x,
                score,
                snr=self.snr,
                scale_eps=self.scale_eps,
                shrink=split.shrink,
                level=split.level,
                norms=self.norms,
            )
        x = run.combine(x, split.first, (score,), (t, middle))
        second = split.second
        if last:
            second = {k: v._replace(noise=0.0) for k, v in second.items()}
        return run.combine(x, second, (), (middle, u))

    def stepper(self, run: Run, times: Sequence[float]) -> Stepper:
        """Coefficients of all steps, then correction, half, kick, half."""
        splits = self._splits(run, list(pairwise(times)))
        if self.norms == "level":
            merged = [self._merged(split) for split in splits]

            def step(x: State, i: int) -> State:
                score = run.evaluate("score", x, times[i])
                return run.combine(x, merged[i], (score,), (times[i], times[i + 1]))

            return step
        return lambda x, i: self._step(run, x, splits[i])

    def solve(self, run: Run, x: State) -> Iterator[tuple[float, State]]:
        """Along the grid; with ``compat`` the published N points and steps of 1/N."""
        if self.compat is None:
            yield from super().solve(run, x)
            return
        dt = 1 / self.steps
        points: list[float] = self.grid.times(run.system, self.steps).tolist()
        splits = self._splits(run, [(t, max(t - dt, 0.0)) for t in points])
        for i, split in enumerate(splits):
            x = self._step(run, x, split, last=self.denoise and i + 1 == self.steps)
            yield split.times[-1], x


register(
    "s4",
    S4,
    order=1,
    nfe_per_step=1,
    stochastic=True,
    source="Jo, Lee and Hwang 2022 (GDSS), section 3.3",
)
