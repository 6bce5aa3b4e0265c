r"""Where sampling starts: the distribution of :math:`x_T` is not always the prior's.

A schedule that ends at a finite noise level leaves :math:`\alpha_T x_0` in the state. Where the
data are smooth (a level that lasts for the whole window, say) that is most of their variance, and a
start from :math:`N(0, I)` loses it. The starts here put it back:

.. math:: x_T = \alpha_T x_{ref} + \sigma_T \epsilon \qquad \text{or} \qquad
          x_T \sim N(\alpha_T m,\ \alpha_T^2 S + \sigma_T^2 I).

Given observations, m and S are those of the prior given y: deterministic samplers keep what the
start got wrong, so that this matters for the mean of a forecast.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from structdiff.errors import StructDiffError
from structdiff.guidance.covariance import (
    CovarianceGuidance,
    GaussianCovariance,
    by_component,
)
from structdiff.noise import NoiseSource, as_source
from structdiff.processes.system import System
from structdiff.state import State

Source: TypeAlias = "NoiseSource | int | Sequence[int] | Tensor | None"


def noised_start(system: System, reference: State | Tensor, source: Source = None) -> State:
    """Noise a reference, such as a training window, to the time that sampling starts from.

    Parameters
    ----------
    system
        The forward processes.
    reference
        Clean objects in the coordinates that the processes run on, components (B, ...).
    source
        Noise source, a seed, a seed per object (B,), or None for torch's global generator.

    Raises
    ------
    StructDiffError
        If an existing entry of the reference is not finite.
    """
    clean = system.check(reference).masked()
    for name, value in clean.items():
        if not bool(torch.isfinite(value).all()):
            raise StructDiffError(
                f"component {name!r} of the reference has entries that are not finite"
            )
    noised = system.perturb(clean, system.t_max, system.noise(clean, as_source(source)))
    return _moving(system, clean, noised)


def gaussian_start(
    system: System,
    like: State | Tensor,
    covariance: GaussianCovariance | Mapping[str, GaussianCovariance],
    source: Source = None,
) -> State:
    """Draw from a Gaussian fit of the data, noised to the time that sampling starts from.

    Parameters
    ----------
    system
        The forward processes.
    like
        State whose shapes and masks the draw takes; frozen components are kept.
    covariance
        Mean and covariance of the free coordinates per component, or of the only one that moves;
        components without one start from the prior.
    source
        Noise source, a seed, a seed per object (B,), or None for torch's global generator.

    Raises
    ------
    StructDiffError
        If a covariance is given for what does not move, or has another size.
    """
    state, drawn = system.check(like), as_source(source)
    priors = by_component(covariance, system.moving[0])
    unknown = sorted(set(priors) - set(system.moving))
    if unknown:
        raise StructDiffError(
            f"covariance for {unknown}, but the components that move are {list(system.moving)}"
        )
    times = system.times(system.t_max)
    started = {}
    for name in system.moving:
        value, space, process = state[name], system.spaces[name], system.processes[name]
        mask, prior = state.masks.get(name), priors.get(name)
        # Entries that do not exist are drawn too: what exists then has its marginal.
        normal = space.noise(name, value, None, drawn)
        if prior is None:
            started[name] = space.project(normal * process.prior_std(), mask)
            continue
        packed = space.pack(normal)
        if packed.shape[1:] != prior.mean.shape:
            raise StructDiffError(
                f"component {name!r} has {packed.shape[1]} free coordinates, its covariance "
                f"{len(prior.mean)}"
            )
        alpha, sigma = process.alpha(times[name]), process.sigma(times[name])
        values = prior.to(packed.device).noised(packed, alpha, sigma)
        started[name] = space.project(space.unpack(values, value), mask)
    return _moving(system, state, started)


def posterior_start(
    guidance: CovarianceGuidance, like: State | Tensor, source: Source = None
) -> State:
    r"""Draw from the Gaussian prior given the observations, noised to the start of sampling.

    A draw of the prior is corrected by what it misses of the observations (Matheron's rule),
    :math:`x_0 + S A^\top (A S A^\top + r)^{-1} (y + \sqrt r\,z - A x_0)`, and noised.

    Parameters
    ----------
    guidance
        Holds the observations, the prior and r.
    like
        State whose shapes and masks the draw takes; frozen components are kept.
    source
        Noise source, a seed, a seed per object (B,), or None for torch's global generator.
    """
    system, drawn = guidance.system, as_source(source)
    state = system.check(like)
    times = system.times(system.t_max)
    started = {}
    for name in system.moving:
        value, space, process = state[name], system.spaces[name], system.processes[name]
        mask = state.masks.get(name)
        if name not in guidance.observations.observed:
            normal = space.noise(name, value, mask, drawn)
            started[name] = normal * process.prior_std()
            continue
        # Entries that do not exist are drawn too: what exists then has its marginal.
        prior, error, noise = (space.pack(space.noise(name, value, None, drawn)) for _ in range(3))
        clean = guidance.prior_given(name, prior, error)
        alpha, sigma = process.alpha(times[name]), process.sigma(times[name])
        noised = clean * alpha.to(clean) + noise * sigma.to(clean)
        started[name] = space.project(space.unpack(noised, value), mask)
    return _moving(system, state, started)


def _moving(system: System, kept: State, new: Mapping[str, Tensor]) -> State:
    """The new moving components and the others as they are."""
    return State._trusted({**kept, **{k: new[k] for k in system.moving}}, kept.masks)
