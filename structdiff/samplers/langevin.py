r"""Langevin correction at a fixed time, alone or before any predictor.

.. math:: x \leftarrow x + \gamma s + \sqrt{2\gamma}\,z, \qquad
          \gamma = 2 a \left(r\,\frac{\|z\|}{\|s\|}\right)^2

r is the signal-to-noise ratio, and the norms of the equation come in three readings, all taken per
component and over the entries that exist:

- "level" (default): :math:`\gamma = 2 a (r \sigma)^2`, what the equation is for pure noise. A
  sample does not depend on its batch mates, and p is left invariant up to the step size.
- "object": the object's own score norm, the expected norm of its noise. Independent of batch mates
  too; but a step that depends on the state leaves :math:`p\,\|s\|^2` invariant instead of p: a
  Gaussian in D dimensions is widened by 1 + 2/D in variance, whatever the step, and in one or two
  dimensions, where the score of an object may vanish, single steps are without bound.
- "batch": norms averaged over the batch, as published; a sample depends on its batch mates.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, TypeAlias, cast, get_args

import torch
from torch import Tensor

from structdiff.errors import StructDiffError
from structdiff.samplers.base import Run, Schedule, SteppedSampler, Stepper, schedules
from structdiff.samplers.euler import EulerMaruyama, ReverseDiffusion, published_updates
from structdiff.samplers.grids import GridLike
from structdiff.samplers.registry import get_sampler, register
from structdiff.state import State, expand_right

Norms: TypeAlias = Literal["object", "level", "batch"]
Compat: TypeAlias = Literal["reference"]


def check_compat(compat: str | None, norms: str | None) -> Norms:
    """The norms that a sampler with these options uses."""
    if compat not in (None, "reference"):
        raise StructDiffError(f"compat must be None or 'reference', got {compat!r}")
    if norms is None:
        return "batch" if compat == "reference" else "level"
    if norms not in get_args(Norms):
        raise StructDiffError(f"norms must be 'object', 'level' or 'batch', got {norms!r}")
    return cast(Norms, norms)


def _norm(x: Tensor) -> Tensor:
    """Euclidean norm per object, (B,)."""
    return torch.linalg.vector_norm(x.reshape(len(x), -1), dim=1)


def langevin(
    run: Run,
    x: State,
    score: State,
    *,
    snr: float,
    scale_eps: float = 1.0,
    shrink: Mapping[str, float],
    level: Mapping[str, float],
    norms: Norms = "level",
) -> State:
    """One Langevin correction of every moving component with given scores.

    Parameters
    ----------
    run
        The run, for its noise.
    x, score
        State and score at the same time.
    snr
        r of the module's equation.
    scale_eps
        Factor on the noise (GDSS: 0.7 to 0.9).
    shrink
        a of the module's equation per component: squared scale of the forward chain's link.
    level
        Noise scale sigma per component.
    norms
        How the norms are read, see the module.
    """
    new = dict(x)
    for name in run.moving:
        noise = run.draw(name, x)
        if norms == "level":
            step = 2 * shrink[name] * (snr * level[name]) ** 2
            moved = torch.add(x[name], score[name], alpha=step)
            new[name] = moved.add_(noise, alpha=math.sqrt(2 * step) * scale_eps)
            continue
        slope = _norm(score[name])
        if norms == "batch":
            size, slope = _norm(noise).mean(), slope.mean()
        else:  # noise is nonzero exactly where something exists
            size = torch.count_nonzero(noise.reshape(len(noise), -1), dim=1).to(noise.dtype).sqrt()
        # Where the score vanishes (nothing exists, or a zero score) there is nothing to correct.
        flat = slope == 0
        ratio = torch.where(flat, 0.0, size / torch.where(flat, 1.0, slope))
        gamma = 2 * shrink[name] * (snr * ratio) ** 2
        new[name] = (
            x[name]
            + expand_right(gamma, noise) * score[name]
            + expand_right(torch.sqrt(2 * gamma) * scale_eps, noise) * noise
        )
    return State._trusted(new, x.masks)


def _shrinks(plans: Mapping[str, Schedule], steps: int) -> list[dict[str, float]]:
    """Factor a of every step per moving component: squared signal scale gained over it."""
    return [
        {k: math.exp(2 * (p.log_alpha[i] - p.log_alpha[i + 1])) for k, p in plans.items()}
        for i in range(steps)
    ]


class PredictorCorrector(SteppedSampler):
    r"""Langevin corrections at every grid time, then a predictor to the next (Song et al. 2021).

    Parameters
    ----------
    steps, grid, denoise, progress
        See :class:`~structdiff.samplers.base.Sampler`.
    predictor
        Any non-adaptive sampler by name.
    snr
        Signal-to-noise ratio of the correction; 0 leaves it out.
    scale_eps
        Factor on the corrector's noise.
    corrections
        Langevin steps per grid time.
    between
        Shared times, lower and upper, outside which no correction is made. Where the noise decides
        nothing any more, or nothing yet, corrections cost evaluations and bring little.
    compat
        "reference" is the published scheme of GDSS to the letter: N points from t_max to t_min,
        steps of 1/N on the DDPM and SMLD chains, batch-mean norms, and the last predictor's
        noise-free mean returned. It knows the predictors "reverse-diffusion" and "euler-maruyama",
        and makes (1 + corrections) evaluations a step.
    norms
        "object", "level" or "batch", see the module; None is what ``compat`` says.
    """

    def __init__(
        self,
        steps: int,
        grid: GridLike | None = None,
        *,
        predictor: str = "reverse-diffusion",
        snr: float = 0.16,
        scale_eps: float = 1.0,
        corrections: int = 1,
        between: Sequence[float] = (0.0, 1.0),
        compat: Compat | None = None,
        norms: Norms | None = None,
        denoise: bool = True,
        progress: bool = False,
    ) -> None:
        super().__init__(steps, grid, denoise=denoise, progress=progress)
        if not snr >= 0 or not scale_eps >= 0 or corrections < 0:
            raise StructDiffError(
                "snr, scale_eps and corrections must not be negative, "
                f"got {snr}, {scale_eps} and {corrections}"
            )
        if len(between) != 2 or not between[0] <= between[1]:
            raise StructDiffError(f"between must be a lower and an upper time, got {between}")
        self.between = (float(between[0]), float(between[1]))
        self.norms = check_compat(compat, norms)
        inner = get_sampler(predictor, steps, denoise=denoise)
        if not isinstance(inner, SteppedSampler):
            raise StructDiffError(f"{predictor!r} chooses its own steps and cannot be corrected")
        self.predictor = inner
        published = (EulerMaruyama, ReverseDiffusion)
        if compat == "reference" and not isinstance(self.predictor, published):
            raise StructDiffError(
                f"the reference scheme has no predictor {predictor!r}: "
                "choose reverse-diffusion or euler-maruyama"
            )
        self.snr, self.scale_eps = float(snr), float(scale_eps)
        self.corrections = corrections if snr > 0 else 0
        self.compat = compat

    def _correct(
        self,
        run: Run,
        x: State,
        t: float,
        shrink: Mapping[str, float],
        level: Mapping[str, float],
    ) -> State:
        low, high = self.between
        for _ in range(self.corrections if low <= t <= high else 0):
            x = langevin(
                run,
                x,
                run.evaluate("score", x, t),
                snr=self.snr,
                scale_eps=self.scale_eps,
                shrink=shrink,
                level=level,
                norms=self.norms,
            )
        return x

    def stepper(self, run: Run, times: Sequence[float]) -> Stepper:
        predict = self.predictor.stepper(run, times)
        plans = schedules(run.system, times)
        shrink = _shrinks(plans, len(times) - 1)
        level = [{k: p.sigma[i] for k, p in plans.items()} for i in range(len(times))]

        def step(x: State, i: int) -> State:
            return predict(self._correct(run, x, times[i], shrink[i], level[i]), i)

        return step

    def solve(self, run: Run, x: State) -> Iterator[tuple[float, State]]:
        if self.compat is None:
            yield from super().solve(run, x)
            return
        times: list[float] = self.grid.times(run.system, self.steps).tolist()
        euler = isinstance(self.predictor, EulerMaruyama)
        plan = [published_updates(run, t, self.steps, euler=euler) for t in times]
        plans = schedules(run.system, times)
        for i, t in enumerate(times):
            level = {k: p.sigma[i] for k, p in plans.items()}
            x = self._correct(run, x, t, published_shrink(run, t, self.steps), level)
            score = run.evaluate("score", x, t)
            last = i + 1 == self.steps and self.denoise
            updates = {k: u._replace(noise=0.0) if last else u for k, u in plan[i].items()}
            x = run.combine(x, updates, [score], (t, max(t - 1 / self.steps, 0.0)))
            yield times[min(i + 1, self.steps - 1)], x


def published_shrink(run: Run, t: float, links: int) -> dict[str, float]:
    """The published a of the Langevin step: 1 - beta_i where there is a beta, else 1."""
    own = run.system.times(t)
    return {k: run.system.processes[k].chain_alpha(float(own[k]), links) for k in run.moving}


register(
    "pc",
    PredictorCorrector,
    order=1,
    nfe_per_step=2,
    stochastic=True,
    source="Song et al. 2021 (score SDE), algorithms 2 and 3; Jo et al. 2022 (GDSS)",
)
