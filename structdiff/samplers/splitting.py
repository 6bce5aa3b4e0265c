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
from structdiff.samplers.base import Run, SteppedSampler, Stepper, Update
from structdiff.samplers.grids import GridLike
from structdiff.samplers.langevin import (
    Compat,
    Norms,
    check_compat,
    exact_shrink,
    langevin,
)
from structdiff.samplers.registry import register
from structdiff.state import State


class _Split(NamedTuple):
    """One step: the halves and the kick per component, and the corrector's step-size factors."""

    first: dict[str, Update]
    kick: dict[str, Update]
    second: dict[str, Update]
    shrink: dict[str, float]
    times: tuple[float, float, float]


def _half(process: GaussianProcess, t: float, m: float, published: bool) -> Update:
    """The backward linear part from t to m < t."""
    ratio = float(process.log_alpha(m) - process.log_alpha(t))
    if published and isinstance(process, VP) and not isinstance(process, SubVP):
        return Update(math.exp(ratio), (), math.sqrt(-math.expm1(-2 * ratio)))
    rho_t = float(process.sigma(t) / process.alpha(t))
    rho_m = float(process.sigma(m) / process.alpha(m))
    spread = math.sqrt(max((rho_t - rho_m) * (rho_t + rho_m), 0.0))
    return Update(math.exp(ratio), (), float(process.alpha(m)) * spread)


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
        "object" or "batch"; None is what ``compat`` says.
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

    def _split(self, run: Run, t: float, u: float, dt: float | None = None) -> _Split:
        """Coefficients from t to u; ``dt`` is the kick's length where it is not t - u."""
        published = dt is not None
        middle = max(t - dt / 2, 0.0) if dt is not None else (t + u) / 2
        own = [{k: float(v) for k, v in run.system.times(w).items()} for w in (t, middle, u)]
        split = _Split({}, {}, {}, {}, (t, middle, u))
        for name in run.moving:
            process = run.system.processes[name]
            start, mid, end = (times[name] for times in own)
            length = start - end if dt is None else dt
            split.first[name] = _half(process, start, mid, published)
            split.kick[name] = Update(1.0, (float(process.diffusion(start)) ** 2 * length,))
            split.second[name] = _half(process, mid, end, published)
        if dt is None:
            split.shrink.update(exact_shrink(run, t, u))
        else:
            split.shrink.update(_published_shrink(run, t, self.steps))
        return split

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
                norms=self.norms,
            )
        x = run.combine(x, split.first, (), (t, middle))
        x = run.combine(x, split.kick, (score,))
        second = {k: v._replace(noise=0.0) for k, v in split.second.items()} if last else None
        return run.combine(x, split.second if second is None else second, (), (middle, u))

    def stepper(self, run: Run, times: Sequence[float]) -> Stepper:
        """Coefficients of all steps, then correction, half, kick, half."""
        splits = [self._split(run, t, u) for t, u in pairwise(times)]
        return lambda x, i: self._step(run, x, splits[i])

    def solve(self, run: Run, x: State) -> Iterator[tuple[float, State]]:
        """Along the grid; with ``compat`` the published N points and steps of 1/N."""
        if self.compat is None:
            yield from super().solve(run, x)
            return
        dt = 1 / self.steps
        points: list[float] = self.grid.times(run.system, self.steps).tolist()
        splits = [self._split(run, t, max(t - dt, 0.0), dt) for t in points]
        for i, split in enumerate(splits):
            x = self._step(run, x, split, last=self.denoise and i + 1 == self.steps)
            yield split.times[-1], x


def _published_shrink(run: Run, t: float, links: int) -> dict[str, float]:
    """S4 multiplies the corrector's step by 1 - beta_i for VP only, not for sub-VP."""
    own, shrink = run.system.times(t), {}
    for name in run.moving:
        process = run.system.processes[name]
        linear = isinstance(process, VP) and not isinstance(process, SubVP)
        shrink[name] = process.chain_alpha(float(own[name]), links) if linear else 1.0
    return shrink


register(
    "s4",
    S4,
    order=1,
    nfe_per_step=1,
    stochastic=True,
    source="Jo, Lee and Hwang 2022 (GDSS), section 3.3",
)
