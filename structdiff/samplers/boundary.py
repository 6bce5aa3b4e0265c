r"""Search for one start of a deterministic sampler that suits every condition.

A deterministic sampler is a map :math:`F(x_T, c)` from noise and condition to data. Given reference
pairs :math:`(c_i, y_i)` and candidates :math:`x_T`, the search keeps

.. math:: x_T^* = \arg\min_{x_T} \frac{1}{R} \sum_{i=1}^{R} M(F(x_T, c_i), y_i)

and uses it for every new condition (Ma et al. 2024, *The surprising effectiveness of diffusion
models for inverse problems and restoration: optimal boundary conditions*, arXiv 2305.15357).

It seeks a mode. Under squared error on :math:`y \mid c \sim N(Ac, s^2)` the best start is 0 and
halves the error of a random one, since every c then gets its conditional mean: right for a point
estimate (restoration, forecasting), wrong for generation, whose diversity it removes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from tqdm import tqdm

from structdiff.denoisers import BaseDenoiser
from structdiff.errors import StructDiffError
from structdiff.noise import Interval, as_source
from structdiff.processes.system import System
from structdiff.samplers.base import Sampler, Source
from structdiff.state import State, as_state

Distance: TypeAlias = Callable[[State, State], Tensor]
"""How far samples lie from their references, both of values: (B,) per object."""


@dataclass(frozen=True)
class BoundarySearch:
    """What :func:`search_boundary` found."""

    system: System
    best: State
    """The best candidate, one object without masks; components that are conditioned on left out."""
    index: Tensor
    """Its number among the candidates, shape ()."""
    scores: Tensor
    """Mean distance to the references per candidate, (K,)."""
    nfe: int
    """Network evaluations per object, times the objects sampled: what the search cost."""

    def start(self, like: State | Tensor) -> State:
        """The best start for a batch, as :meth:`System.prior` draws a random one.

        Parameters
        ----------
        like
            State with the shapes, masks and frozen components of the batch.
        """
        state = self.system.check(like)
        first = torch.zeros(state.batch_size, dtype=torch.long, device=state.device)
        return _started(self.system, self.best, first, state)


def search_boundary(
    sampler: Sampler,
    denoiser: BaseDenoiser,
    references: State | Tensor,
    candidates: State | Tensor | int,
    conditions: Any = None,
    *,
    distance: Distance | None = None,
    batch_size: int = 1024,
    source: Source = None,
    progress: bool = False,
) -> BoundarySearch:
    """The candidate start whose samples lie nearest to the references, on average.

    Every candidate meets every reference. Candidates are compared under the masks of each
    reference, and components that the system freezes are taken from the reference.

    Parameters
    ----------
    sampler
        Deterministic; called on the pairs.
    denoiser
        Estimates E[x0 | xt].
    references
        Values that should come out, R objects.
    candidates
        K states at ``system.t_max``, or how many to draw from the prior.
    conditions
        What the denoiser is given for each reference: a tensor, state, or any nest of tensors with
        the first axis R; None is no condition.
    distance
        (samples, references) -> (B,); the mean squared error over the free coordinates that exist
        in the moving components by default.
    batch_size
        Pairs that are sampled together.
    source
        Where drawn candidates come from.
    progress
        Draw a progress bar.

    Raises
    ------
    StructDiffError
        If there is no candidate or reference, shapes or conditions do not fit, the distance is not
        one finite number per object, or the sampler draws noise.
    """
    system = denoiser.system
    wanted = system.check(references)
    starts = _candidates(system, wanted, candidates, source)
    count, objects = starts.batch_size, wanted.batch_size
    if count < 1 or objects < 1 or batch_size < 1:
        raise StructDiffError(
            "the search needs at least one candidate, reference and pair per batch, got "
            f"{count}, {objects} and {batch_size}"
        )
    measure = mean_squared_error(system) if distance is None else distance
    totals = torch.zeros(count, dtype=torch.float64, device=wanted.device)
    nfe = 0
    with torch.no_grad():
        for first in tqdm(
            range(0, count * objects, batch_size), disable=not progress, desc="boundary"
        ):
            pairs = torch.arange(
                first, min(first + batch_size, count * objects), device=wanted.device
            )
            candidate, reference = pairs // objects, pairs % objects
            target = wanted.take(reference)
            samples = sampler(
                denoiser,
                _started(system, starts, candidate, _encoded(system, target)),
                take_condition(conditions, reference, objects),
                source=_Silent(),
            )
            gaps = measure(samples, target)
            if gaps.shape != pairs.shape:
                raise StructDiffError(
                    f"the distance must give one number per object, got {tuple(gaps.shape)} for "
                    f"{len(pairs)} objects"
                )
            totals.index_add_(0, candidate, gaps.to(totals))
            nfe += sampler.nfe * len(pairs)
    if not bool(totals.isfinite().all()):
        raise StructDiffError(
            f"{int((~totals.isfinite()).sum())} of {count} candidates have a distance that is not "
            "finite: the sampler diverged there, or the distance is undefined"
        )
    index = totals.argmin()
    return BoundarySearch(system, starts.take(index[None]), index, totals / objects, nfe)


def mean_squared_error(system: System) -> Distance:
    """Squared error per free coordinate that exists in the moving components."""

    def distance(samples: State, references: State) -> Tensor:
        counts = system.dimensions(references)
        error = (samples - references).masked()
        total = torch.stack(
            [system.spaces[k].pack(error[k]).square().sum(1) for k in system.moving]
        ).sum(0)
        size = torch.stack([counts[k] for k in system.moving]).sum(0)
        return total / size.clamp(min=1)

    return distance


class _Silent:
    """A noise source for samplers that must not ask."""

    def normal(self, name: str, like: Tensor, interval: Interval | None = None) -> Tensor:
        raise StructDiffError(
            f"the sampler draws noise for component {name!r}: the search needs a deterministic one"
        )


def _candidates(
    system: System, wanted: State, candidates: State | Tensor | int, source: Source
) -> State:
    """The candidates as a state without masks, of the references' shapes."""
    if isinstance(candidates, int):
        # Without masks: every entry may exist in one reference or another.
        shapes = {k: v.new_zeros(max(candidates, 0), *v.shape[1:]) for k, v in wanted.items()}
        drawn = system.prior(State(shapes), as_source(source))
        return State({k: v for k, v in drawn.items() if not system.frozen(k)})
    given = as_state(candidates)
    free = [k for k in wanted if not system.frozen(k)]
    for name in free:
        if name not in given or given[name].shape[1:] != wanted[name].shape[1:]:
            shape = tuple(given[name].shape[1:]) if name in given else None
            raise StructDiffError(
                f"candidates for component {name!r} have the shape {shape} per object, the "
                f"references {tuple(wanted[name].shape[1:])}"
            )
    return State({k: given[k] for k in free})


def _encoded(system: System, x: State) -> State:
    """Frozen components in the coordinates the processes run on; the others are replaced."""
    new = dict(x)
    for name in x:
        if system.frozen(name):
            space = system.spaces[name]
            new[name] = space.project(space.encode(x[name]), x.masks.get(name))
    return State(new, x.masks)


def _started(system: System, starts: State, candidate: Tensor, like: State) -> State:
    """Everything but frozen components from the candidates; those and the masks of ``like``."""
    new = dict(like)
    for name, value in starts.items():
        drawn = value.to(like[name])[candidate]
        new[name] = system.spaces[name].project(drawn, like.masks.get(name))
    return State(new, like.masks)


def take_condition(conditions: Any, index: Tensor, objects: int) -> Any:
    """The conditions of some objects, from any nest of tensors and states.

    Parameters
    ----------
    conditions
        Tensors with a first axis of ``objects``, states, or nests of them; None stays None.
    index
        Which objects, int64 (M,).
    objects
        How many there are.

    Raises
    ------
    StructDiffError
        If a tensor has another first axis.
    """

    def take(part: Any) -> Any:
        if isinstance(part, State):
            return part.take(index)
        if not isinstance(part, Tensor):
            return part
        if part.shape[:1] != (objects,):
            raise StructDiffError(
                f"conditions need one entry per reference: got {tuple(part.shape)} for {objects}"
            )
        return part[index]

    return pytree.tree_map(take, conditions, is_leaf=lambda part: isinstance(part, State))
