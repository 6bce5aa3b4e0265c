r"""Denoising MCMC: a Markov chain over (state, noise level), denoised from where it is cleanest.

In :math:`v = x/\alpha`, :math:`\rho = \sigma/\alpha` the chain's law is :math:`p_l(v)` with every
level l equally likely; a Langevin-Gibbs step is

.. math:: v \leftarrow v + \tfrac{\eta}{2} \nabla_v \ln p_l(v) + \sqrt{\eta}\,z, \qquad
          l \sim p(l \mid v).

Every few steps each chain's visited state of least noise is denoised by a short integrator that
starts at that chain's *own* noise. A chain that lives at low noise makes this cheap: :math:`\eta`
sets where it lives, and how fast it mixes. The Langevin step is not corrected, so the chain keeps a
bias of the order of :math:`\eta`, and it cannot resolve noise much below :math:`\sqrt{\eta}`.

Kim and Ye, *Denoising MCMC for accelerating diffusion-based generative models*, 2023.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from tqdm import tqdm

from structdiff.denoisers import BaseDenoiser
from structdiff.errors import StructDiffError
from structdiff.samplers.base import Run, Sampler, Source
from structdiff.samplers.grids import Grid, Karras, times_at
from structdiff.samplers.heun import Heun
from structdiff.samplers.noise_levels import NoisePosterior, Place, ScoreNoisePosterior
from structdiff.samplers.registry import register
from structdiff.state import State, expand_right


class DenoisingLangevinGibbs(Sampler):
    r"""Denoising Langevin-Gibbs chains, one per object of the batch.

    A call starts the chains and returns one sample of each; :meth:`sample_chain` lets them run on.

    Parameters
    ----------
    steps, grid, denoise, progress
        See :class:`~structdiff.samplers.base.Sampler`; they are of the integrator that denoises.
        Its points are uniform in :math:`\rho^{1/p}` between a chain's own noise and the end, p
        the exponent of the :class:`~structdiff.samplers.grids.Karras` grid.
    posterior
        p(l | v) and the levels l; None integrates the denoiser's score
        (:class:`~structdiff.samplers.noise_levels.ScoreNoisePosterior`), which needs no training
        and 16 evaluations a step. A trained classifier needs none.
    skip
        Langevin-Gibbs steps from one sample of a chain to its next.
    eta
        Step of the Langevin part, a variance in units of the unscaled data; or one per component.
    burn_in
        Langevin-Gibbs steps before the first ``skip``.
    start_steps
        Steps of the run of Heun's method that gives the chains their first states.
    start_noise
        :math:`\rho` of the first moving component at which the chains start; the other components
        get the noise of the same level.
    order
        Of the integrator: 2 is Heun's method, 1 is DDIM.
    compat
        "published" takes the likeliest level instead of drawing one, which is no Gibbs step.

    Raises
    ------
    StructDiffError
        If an argument is out of range.
    """

    default_grid: ClassVar[Grid] = Karras()

    def __init__(
        self,
        steps: int,
        grid: Karras | None = None,
        *,
        posterior: NoisePosterior | None = None,
        skip: int = 10,
        eta: float | Mapping[str, float] = 0.1,
        burn_in: int = 10,
        start_steps: int = 20,
        start_noise: float = 0.5,
        order: Literal[1, 2] = 2,
        compat: Literal["published"] | None = None,
        denoise: bool = True,
        progress: bool = False,
    ) -> None:
        super().__init__(steps, grid, denoise=denoise, progress=progress)
        if not isinstance(self.grid, Karras):
            raise StructDiffError(
                f"every chain starts at its own noise and has its own grid: give Karras(rho), "
                f"got {self.grid!r}"
            )
        self.exponent, self.reference = self.grid.rho, self.grid.component
        etas = eta.values() if isinstance(eta, Mapping) else (eta,)
        if not all(e > 0 for e in etas) or not start_noise > 0:
            raise StructDiffError(
                f"eta and start_noise must be positive, got {eta} and {start_noise}"
            )
        if skip < 1 or burn_in < 0 or start_steps < 1:
            raise StructDiffError(
                "skip and start_steps must be at least 1 and burn_in at least 0, got "
                f"{skip}, {start_steps} and {burn_in}"
            )
        if order not in (1, 2):
            raise StructDiffError(f"order must be 1 (DDIM) or 2 (Heun), got {order}")
        if compat not in (None, "published"):
            raise StructDiffError(f"compat must be None or 'published', got {compat!r}")
        if posterior is not None and not isinstance(posterior, NoisePosterior):
            raise StructDiffError(
                f"{type(posterior).__name__} is no noise posterior: it needs times, nfe and "
                "log_probabilities(v, condition)"
            )
        self.posterior = posterior
        self.skip, self.burn_in = int(skip), int(burn_in)
        self.eta, self.start_steps, self.start_noise = eta, int(start_steps), float(start_noise)
        self.order, self.compat = order, compat

    # --- public ------------------------------------------------------------------------------
    @torch.no_grad()
    def sample_chain(
        self,
        denoiser: BaseDenoiser,
        x: State | Tensor,
        samples: int,
        condition: Any = None,
        source: Source = None,
    ) -> Iterator[State]:
        """Successive samples of the same chains, lazily; ``nfe`` grows as they come.

        Successive samples are correlated: see :func:`effective_sample_size`.

        Parameters
        ----------
        denoiser, x, condition, source
            As for :meth:`trajectory`: x is a state at ``system.t_max``, one chain per object.
        samples
            Number of states to yield, each one sample per chain, decoded to values (B, ...).
        """
        if samples < 1:
            raise StructDiffError(f"samples must be at least 1, got {samples}")
        run = Run(denoiser, condition, source)
        self.nfe = 0
        start = run.inside(run.system.check(x))
        chain = _Chain(self, run, start.device)
        v, level = chain.start(start)
        for _ in tqdm(range(samples), disable=not self.progress, desc="chain"):
            v, level, cleanest, at = chain.advance(v, level, self.skip)
            *_, (_, last) = self._integrate(run, cleanest, chain.times[at])
            self.nfe = run.nfe
            yield run.system.decode(last).masked()

    @torch.no_grad()
    def joint_chain(
        self,
        denoiser: BaseDenoiser,
        v: State | Tensor,
        level: Tensor,
        condition: Any = None,
        source: Source = None,
    ) -> Iterator[tuple[State, Tensor]]:
        """The Markov chain itself, without end: to look at its mixing and its noise levels.

        Parameters
        ----------
        denoiser, condition, source
            As for :meth:`trajectory`.
        v
            State in the coordinates v = x / alpha, components (B, ...).
        level
            Number of each object's noise level, int64 (B,); 0 is the noisiest.

        Yields
        ------
        tuple of State and Tensor
            v and level after every Langevin-Gibbs step.
        """
        run = Run(denoiser, condition, source)
        self.nfe = 0
        v = run.inside(run.system.check(v))
        chain = _Chain(self, run, v.device)
        level = level.to(v.device)
        while True:
            v, level = chain.step(v, level)
            self.nfe = run.nfe
            yield v, level

    def solve(self, run: Run, x: State) -> Iterator[tuple[float, State]]:
        """Start the chains, run them, and denoise; the integrator's states are reported.

        Objects stand at different times on the way; the time reported is the one of an object that
        started at the noisiest level, which no other exceeds.
        """
        chain = _Chain(self, run, x.device)
        _, _, cleanest, level = chain.advance(*chain.start(x), self.skip)
        yield from self._integrate(run, cleanest, chain.times[level])

    # --- the integrator ----------------------------------------------------------------------
    def _integrate(self, run: Run, v: State, start: Tensor) -> Iterator[tuple[float, State]]:
        """Probability flow dv/drho = eps from every object's own shared time (B,) to t_min."""
        system = run.system
        places = self._places(run, start)
        nominal = self.times(system)
        for i, (here, there) in enumerate(pairwise(places)):
            width = {k: there.rho[k] - here.rho[k] for k in run.moving}
            slope = run.evaluate("noise", here.scaled(v), here.own)
            guess = _move(v, [slope], width)
            if self.order == 2:
                second = run.evaluate("noise", there.scaled(guess), there.own)
                guess = _move(v, [slope, second], {k: w / 2 for k, w in width.items()})
            v = guess
            yield nominal[i + 1], there.scaled(v)
        if self.denoise:
            x = places[-1].scaled(v)
            data = run.evaluate("data", x, places[-1].own)
            yield 0.0, State._trusted({**x, **{k: data[k] for k in run.moving}}, x.masks)

    def _places(self, run: Run, start: Tensor) -> list[Place]:
        """The points of every object's own grid, from its start to t_min."""
        system = run.system
        name = self.reference or run.moving[0]
        points = self.steps if self.denoise else self.steps + 1
        end = torch.full_like(start, system.t_min)
        first, last = (Place(system, t).rho[name] ** (1 / self.exponent) for t in (start, end))
        shares = [i / max(points - 1, 1) for i in range(points)]
        inner = [
            times_at(system, name, -self.exponent * torch.log(torch.lerp(first, last, share)))
            for share in shares[1:-1]
        ]
        ends = [end] if points > 1 else []
        return [Place(system, t) for t in (start, *inner, *ends)]


def _move(v: State, slopes: list[State], width: Mapping[str, Tensor]) -> State:
    """Moving components along the sum of the slopes, each object by its own width."""
    new = dict(v)
    for name, w in width.items():
        total = slopes[0][name]
        for slope in slopes[1:]:
            total = total + slope[name]
        new[name] = v[name] + expand_right(w, v[name]) * total
    return State._trusted(new, v.masks)


class _Chain:
    """The Langevin-Gibbs steps of one run: the levels, and how one is drawn."""

    def __init__(self, sampler: DenoisingLangevinGibbs, run: Run, device: torch.device) -> None:
        self.sampler, self.run = sampler, run
        if sampler.posterior is None:
            self.posterior: NoisePosterior = ScoreNoisePosterior(run.denoiser, source=run.source)
        else:
            self.posterior = sampler.posterior
        times, system = self.posterior.times, run.system
        if times[-1] < system.t_min or times[0] > system.t_max:
            raise StructDiffError(
                f"the posterior's noise levels lie within [{float(times[-1])}, {float(times[0])}], "
                f"the system samples within [{system.t_min}, {system.t_max}]: give it levels of "
                "this system"
            )
        eta = sampler.eta
        missing = [k for k in run.moving if isinstance(eta, Mapping) and k not in eta]
        if missing:
            raise StructDiffError(f"eta names no step for the components {missing}: give one each")
        self.eta = {k: eta[k] if isinstance(eta, Mapping) else eta for k in run.moving}
        self.times = times.to(device)

    def start(self, x: State) -> tuple[State, Tensor]:
        """From the prior to a first state at the level of ``start_noise``, burnt in."""
        sampler, run = self.sampler, self.run
        for _, state in Heun(sampler.start_steps).solve(run, x):
            x = state
        rho = Place(run.system, self.posterior.times).rho
        level = int((rho[run.moving[0]].log() - math.log(sampler.start_noise)).abs().argmin())
        noisy = {k: x[k] + run.draw(k, x) * float(rho[k][level]) for k in run.moving}
        v = State._trusted({**x, **noisy}, x.masks)
        levels = torch.full((x.batch_size,), level, device=x.device)
        for _ in range(sampler.burn_in):
            v, levels = self.step(v, levels)
        return v, levels

    def step(self, v: State, level: Tensor) -> tuple[State, Tensor]:
        """Langevin on v at its level, then a level given v."""
        run = self.run
        place = Place(run.system, self.times[level])
        score = run.evaluate("score", place.scaled(v), place.own)
        new = dict(v)
        for name, eta in self.eta.items():
            drift = expand_right(eta / 2 * place.alpha[name], v[name]) * score[name]
            new[name] = (v[name] + drift).add_(run.draw(name, v), alpha=math.sqrt(eta))
        v = State._trusted(new, v.masks)
        log_probabilities = self.posterior.log_probabilities(v, run.condition)
        run.nfe += self.posterior.nfe
        if self.sampler.compat == "published":
            return v, log_probabilities.argmax(1)
        return v, draw_levels(log_probabilities, run)

    def advance(self, v: State, level: Tensor, steps: int) -> tuple[State, Tensor, State, Tensor]:
        """Take steps; returns where the chain is and its visited state of least noise, (v, l)."""
        v, level = self.step(v, level)
        cleanest, least = v, level
        for _ in range(steps - 1):
            v, level = self.step(v, level)
            cleaner = level > least
            cleanest = _choose(cleaner, v, cleanest)
            least = torch.maximum(level, least)
        return v, level, cleanest, least


def _choose(which: Tensor, new: State, old: State) -> State:
    """The new object where ``which`` (B,) says so; what did not move stays the very tensor."""
    return State._trusted(
        {
            k: v if v is old[k] else torch.where(which.view(-1, *[1] * (v.dim() - 1)), v, old[k])
            for k, v in new.items()
        },
        new.masks,
    )


def draw_levels(log_probabilities: Tensor, run: Run) -> Tensor:
    """One level per object by the inverse of its distribution function, int64 (B,).

    Parameters
    ----------
    log_probabilities
        (B, L).
    run
        For its noise: one normal number per object, turned uniform.
    """
    cumulative = torch.softmax(log_probabilities.double(), dim=1).cumsum(1)
    uniform = torch.special.ndtr(run.source.normal("level", cumulative[:, 0]))
    below = (cumulative < uniform[:, None]).sum(1)
    return below.clamp(max=cumulative.shape[1] - 1)


def effective_sample_size(chain: Tensor) -> Tensor:
    r"""How many independent samples the samples along a chain are worth.

    .. math:: ESS = T / (1 + 2 \sum_{k \geq 1} \varrho_k)

    with the autocorrelations :math:`\varrho_k`, averaged over the chains, summed while the sums of
    neighbours stay positive (Geyer 1992).

    Parameters
    ----------
    chain
        A number per sample and chain, (T, B), such as one coordinate of ``sample_chain``; T >= 4.

    Returns
    -------
    Tensor
        Effective number of samples per chain, at most T, shape ().

    Raises
    ------
    StructDiffError
        If the shape does not fit or the chains do not move.
    """
    if chain.dim() != 2 or len(chain) < 4:
        raise StructDiffError(f"expected (T >= 4, B) numbers, got shape {tuple(chain.shape)}")
    length = len(chain)
    gap = chain.double() - chain.double().mean()
    spectrum = torch.fft.rfft(gap, n=2 * length, dim=0).abs().square()
    covariance = torch.fft.irfft(spectrum, n=2 * length, dim=0)[:length].mean(1) / length
    if not bool(covariance[0] > 0):
        raise StructDiffError("the chains do not move: their effective sample size is undefined")
    pairs = (covariance / covariance[0])[: length // 2 * 2].reshape(-1, 2).sum(1)
    positive = (pairs > 0).cumprod(0)
    # The pairs start with the autocorrelation 1 at lag 0.
    return length / (2 * (pairs * positive).sum() - 1).clamp(min=1)


register(
    "dlg",
    DenoisingLangevinGibbs,
    order=None,
    nfe_per_step=None,
    stochastic=True,
    source="Kim and Ye 2023 (denoising MCMC)",
)
