r"""Quality against network evaluations: every sampler on one model, whatever the model makes.

A head says how its model draws objects and which numbers tell good ones from bad
(:class:`ComparableModel`); :func:`plan` turns budgets of evaluations into steps, sampler by
sampler, and :func:`compare` measures. Models with exact answers are in
:mod:`structdiff.samplers.testbed_models`.
"""

from __future__ import annotations

import difflib
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from structdiff.errors import StructDiffError
from structdiff.samplers.base import Sampler
from structdiff.samplers.registry import SAMPLERS, get_sampler


@dataclass(frozen=True)
class Metric:
    """One number that tells good samples from bad ones."""

    name: str
    """Column of a table."""
    label: str
    """Words for an axis."""
    better: Literal["smaller", "greater"]


@dataclass(frozen=True)
class Case:
    """One sampler at one budget."""

    sampler: str
    nfe: int
    """Network evaluations an object may cost."""
    steps: int | None
    """Steps that fit; None where the sampler cannot be held to the budget."""
    note: str = ""
    """Why it cannot."""


@dataclass(frozen=True)
class Measurement:
    """What one case gave."""

    case: Case
    evaluations: int | None = None
    """Network evaluations, counted; None where nothing was drawn."""
    scores: Mapping[str, float] = field(default_factory=dict)
    """Metric name -> value; empty where nothing was drawn."""
    seconds: float | None = None
    """CPU seconds of drawing, without the scoring."""
    note: str = ""
    """Why nothing was drawn."""


class ComparableModel(ABC):
    """What a head implements to have its models compared under every sampler.

    Attributes
    ----------
    name
        How the user called the model.
    fingerprint
        Short text that changes with anything the scores depend on, such as weights and reference
        data: finished rows of a table are reused only under the same one.
    metrics
        What is measured, the most telling first.
    usual_count
        How many objects are drawn unless told otherwise.
    """

    name: str
    fingerprint: str
    metrics: Sequence[Metric]
    usual_count: int = 1000

    @abstractmethod
    def draw(self, sampler: Sampler, n: int, seed: int) -> Any:
        """Draw ``n`` objects; whatever :meth:`scores` needs. This is what is timed."""

    @abstractmethod
    def scores(self, drawn: Any) -> dict[str, float]:
        """The value of every metric for what :meth:`draw` returned; NaN where it has none."""

    def floors(self, n: int) -> dict[str, float]:
        """What ``n`` real objects score, per metric; without those where it is unknown."""
        return {}

    def sampler_names(self) -> list[str]:
        """Every sampler this model can be asked for."""
        return list(SAMPLERS)

    def sampler(self, name: str, steps: int) -> Sampler:
        """The sampler of this name with the settings this model runs it with."""
        return get_sampler(name, steps)

    def steps_within(self, name: str, nfe: int) -> int | None:
        """The most steps of :meth:`sampler` that cost at most ``nfe`` evaluations."""
        return SAMPLERS[name].steps_within(nfe)


def most_steps(evaluations: Callable[[int], int], nfe: int) -> int | None:
    """The most steps within a budget, where the cost is a function of the steps.

    Parameters
    ----------
    evaluations
        Cost of a number of steps; must not decrease, and is at least one a step.
    nfe
        The budget.
    """
    low, high = 0, nfe  # low fits, high + 1 does not
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if evaluations(middle) <= nfe else (low, middle - 1)
    return low or None


def check_names(names: Iterable[str], known: Sequence[str]) -> list[str]:
    """The names, each once, in the order given.

    Raises
    ------
    StructDiffError
        If a sampler is not known; the message names the most similar one.
    """
    chosen = list(dict.fromkeys(names))
    for name in chosen:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise StructDiffError(f"unknown sampler {name!r}: {hint}choose of {', '.join(known)}")
    return chosen


def plan(
    model: ComparableModel, budgets: Iterable[int], names: Iterable[str] | None = None
) -> list[Case]:
    """Every sampler at every budget, with the steps that fit or the reason why none do.

    Parameters
    ----------
    model
        Knows its samplers and what they cost.
    budgets
        Network evaluations an object may cost, each at least 1.
    names
        Samplers; None is all the model knows.

    Raises
    ------
    StructDiffError
        If a sampler is not known.
    """
    known = model.sampler_names()
    chosen = known if names is None else check_names(names, known)
    return [_case(model, name, nfe) for nfe in dict.fromkeys(budgets) for name in chosen]


def _case(model: ComparableModel, name: str, nfe: int) -> Case:
    try:
        steps = model.steps_within(name, nfe)
        if steps is not None:
            model.sampler(name, steps)  # refused here rather than after minutes
            return Case(name, nfe, steps)
    except StructDiffError as error:
        return Case(name, nfe, None, str(error))
    info = SAMPLERS.get(name)
    if info is None or info.nfe_per_step is None:
        return Case(name, nfe, None, "costs no fixed number of evaluations a step")
    if info.most_steps is not None:
        return Case(name, nfe, None, f"takes at most {info.most_steps} steps")
    return Case(name, nfe, None, "not even one step fits")


def compare(
    model: ComparableModel, cases: Iterable[Case], n: int, seed: int
) -> Iterator[Measurement]:
    """Measure case after case.

    A sampler that cannot run with the model, or whose objects cannot be scored, gives a
    measurement with the reason instead of scores.

    Parameters
    ----------
    model
        What draws and scores.
    cases
        As :func:`plan` makes them.
    n
        Objects per case.
    seed
        Of the noise, the same for all cases.
    """
    for case in cases:
        if case.steps is None:
            yield Measurement(case, note=case.note)
            continue
        try:
            sampler = model.sampler(case.sampler, case.steps)
            started = time.process_time()
            drawn = model.draw(sampler, n, seed)
            seconds = time.process_time() - started
            scores = model.scores(drawn)
        except StructDiffError as error:
            yield Measurement(case, note=" ".join(str(error).split()))
            continue
        yield Measurement(case, sampler.nfe, scores, seconds)


def sliced_wasserstein(a: Tensor, b: Tensor, directions: int = 128) -> float:
    r"""Sliced 2-Wasserstein distance between two samples of one size.

    .. math:: SW_2^2 = E_\theta \int_0^1 (F_{\theta \cdot a}^{-1} - F_{\theta \cdot b}^{-1})^2 dq

    Parameters
    ----------
    a, b
        (B, D) each.
    directions
        Random unit vectors, the same ones in every call.

    Raises
    ------
    StructDiffError
        If the shapes differ.
    """
    if a.shape != b.shape:
        raise StructDiffError(f"samples of one size are compared, got {a.shape} and {b.shape}")
    generator = torch.Generator().manual_seed(0)
    theta = torch.randn(a.shape[1], directions, generator=generator, dtype=torch.float64).to(a)
    theta = theta / theta.norm(dim=0)
    gap = (a @ theta).sort(dim=0).values - (b @ theta).sort(dim=0).values
    return float(gap.square().mean().sqrt())
