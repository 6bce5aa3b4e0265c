"""The samplers by name: what the command line offers and what the tests run over.

A sampler enrols itself by calling :func:`register` in the module that defines it; from then on the
parametrised tests of order, invariants, evaluation counts and per-object seeds cover it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from structdiff.errors import StructDiffError
from structdiff.samplers.base import Sampler


@dataclass(frozen=True)
class SamplerInfo:
    """What is claimed of a sampler, and checked."""

    factory: Callable[..., Sampler]
    """``factory(steps, **options)``."""
    order: int | None
    """Order of convergence: to the probability flow, or of the weak error where stochastic. None:
    a few-step heuristic that does not converge as the steps get many."""
    nfe_per_step: int | None
    """Network evaluations a step; predicting the data at the end costs one. None: it varies."""
    stochastic: bool
    """Whether it draws noise after the start."""
    source: str
    """Where it was published."""
    couples_batch: bool = False
    """Whether an object's sample depends on its batch mates (one step size for the whole batch)."""
    most_steps: int | None = None
    """Beyond this many steps the sampler refuses; None: any number."""

    def steps_within(self, nfe: int) -> int | None:
        """The most steps that cost at most ``nfe`` evaluations, the final prediction included.

        None where the cost is not known beforehand, or not even one step fits.
        """
        if self.nfe_per_step is None or nfe < 1:
            return None
        steps = 1 + (nfe - 1) // self.nfe_per_step
        return None if self.most_steps is not None and steps > self.most_steps else steps


SAMPLERS: dict[str, SamplerInfo] = {}


def register(
    name: str,
    factory: Callable[..., Sampler],
    *,
    order: int | None,
    nfe_per_step: int | None,
    stochastic: bool,
    source: str,
    couples_batch: bool = False,
    most_steps: int | None = None,
) -> None:
    """Enrol a sampler under a name."""
    if name in SAMPLERS:
        raise StructDiffError(f"a sampler is already called {name!r}")
    SAMPLERS[name] = SamplerInfo(
        factory, order, nfe_per_step, stochastic, source, couples_batch, most_steps
    )


def get_sampler(name: str, steps: int, **options: Any) -> Sampler:
    """Make a sampler by name.

    Parameters
    ----------
    name
        One of :data:`SAMPLERS`.
    steps
        Number of steps.
    options
        Further arguments of the sampler, such as ``grid``, ``eta`` or ``progress``.

    Raises
    ------
    StructDiffError
        If the name is unknown (the message lists the known ones) or an option does not exist.
    """
    info = SAMPLERS.get(name)
    if info is None:
        raise StructDiffError(f"unknown sampler {name!r}: choose one of {', '.join(SAMPLERS)}")
    try:
        return info.factory(steps, **options)
    except TypeError as error:
        raise StructDiffError(f"sampler {name!r}: {error}") from error
