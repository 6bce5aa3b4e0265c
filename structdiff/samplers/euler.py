r"""Plain steps of the reverse SDE :math:`dx = (f x - g^2 s)\,dt + g\,d\bar w`.

Euler-Maruyama freezes drift and score over the step; reverse diffusion inverts one link of the
forward chain, :math:`x_{i-1} = x_i - f_i + G_i^2 s + G_i z`. Both are of weak order 1 and need many
steps; they are here because published models are defined by them.
"""

from __future__ import annotations

import math
from typing import ClassVar

from structdiff.samplers.base import LinearSampler, Output, Run, Schedule, Update
from structdiff.samplers.registry import register


class EulerMaruyama(LinearSampler):
    """Euler-Maruyama on the reverse SDE (Song et al. 2021).

    Parameters
    ----------
    steps, grid, denoise, progress
        See :class:`~structdiff.samplers.base.Sampler`.
    """

    output: ClassVar[Output] = "score"

    def coefficients(self, schedule: Schedule, i: int, depth: int) -> Update:
        dt = schedule.time[i] - schedule.time[i + 1]
        g2 = schedule.diffusion[i] ** 2
        return Update(1 - schedule.drift[i] * dt, (g2 * dt,), math.sqrt(g2 * dt))


class ReverseDiffusion(LinearSampler):
    """Reverse diffusion: the forward chain's own links, inverted (Song et al. 2021, app. E).

    Parameters
    ----------
    steps, grid, denoise, progress
        See :class:`~structdiff.samplers.base.Sampler`.

    Raises
    ------
    StructDiffError
        In a run whose steps are too long for the chain of VP (beta dt >= 1).
    """

    output: ClassVar[Output] = "score"

    def coefficients(self, schedule: Schedule, i: int, depth: int) -> Update:
        t, u = schedule.time[i], schedule.time[i + 1]
        factor, noise = schedule.process.discrete_step(t, t - u)
        return Update(2 - factor, (noise**2,), noise)


def published_updates(run: Run, t: float, links: int, *, euler: bool) -> dict[str, Update]:
    """Coefficients of a published predictor at t: always with step 1/N, whatever the grid.

    Parameters
    ----------
    run
        The run, for its system.
    t
        Shared time.
    links
        N, the number of steps.
    euler
        Euler-Maruyama rather than reverse diffusion.
    """
    updates = {}
    own = run.system.times(t)
    for name in run.moving:
        process, time = run.system.processes[name], float(own[name])
        if euler:
            factor = 1 + float(process.drift(time)) / links
            noise = float(process.diffusion(time)) / math.sqrt(links)
        else:
            factor, noise = process.chain_step(time, links)
        updates[name] = Update(2 - factor, (noise**2,), noise)
    return updates


register(
    "euler-maruyama",
    EulerMaruyama,
    order=1,
    nfe_per_step=1,
    stochastic=True,
    source="Song et al. 2021 (score SDE)",
)
register(
    "reverse-diffusion",
    ReverseDiffusion,
    order=1,
    nfe_per_step=1,
    stochastic=True,
    source="Song et al. 2021 (score SDE), app. E",
)
