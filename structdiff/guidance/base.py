r"""What guided denoisers share: observations, and gradients through a network.

Guidance adds an estimate of :math:`\nabla_{x_t} \log p(y \mid x_t)` to the score. By Tweedie's
formula that moves both predictions of the denoiser it wraps,

.. math:: D' = D + \frac{\sigma^2}{\alpha} \nabla \log p(y \mid x_t), \qquad
          \epsilon' = \epsilon - \sigma \nabla \log p(y \mid x_t),

so every sampler follows without knowing.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor

from structdiff.denoisers import BaseDenoiser, Pair
from structdiff.errors import StructDiffError
from structdiff.processes.system import System, Time
from structdiff.state import TENSOR, State, as_state, expand_right

Observed: TypeAlias = "Mapping[str, Tensor] | Tensor"
"""Boolean tensors by component: True where a value is known."""
Read: TypeAlias = Callable[[State], "tuple[State, State | None]"]
"""Evaluates the wrapped denoiser at a state: its data prediction, and its noise if asked for."""


def _check_observed(name: str, value: Tensor, seen: Tensor) -> Tensor:
    if seen.dtype != torch.bool:
        raise StructDiffError(f"observed[{name!r}] must be boolean, got {seen.dtype}")
    try:
        seen = seen.expand_as(value)
    except RuntimeError:
        raise StructDiffError(
            f"observed[{name!r}] has shape {tuple(seen.shape)}, which does not fit the values' "
            f"{tuple(value.shape)}"
        ) from None
    wrong = seen & ~torch.isfinite(value)
    if bool(wrong.any()):
        where = tuple(wrong.nonzero()[0].tolist())
        raise StructDiffError(
            f"values[{name!r}] is not finite at the observed entry {where}: mark it as not observed"
        )
    return seen


class Observations:
    """Known entries of a batch, in the free coordinates of their spaces.

    Parameters
    ----------
    system
        The forward processes.
    values
        What was observed, components (B, ...), in the coordinates that the processes run on
        (:meth:`~structdiff.processes.system.System.encode`), with the masks of the states to
        come. What stands in entries that are not observed has no influence, NaN included.
    observed
        Which entries are known: boolean, broadcastable to the values; by component.

    Raises
    ------
    StructDiffError
        If nothing or something unknown or frozen is observed, a shape does not fit, or an observed
        value is not finite.
    """

    values: dict[str, Tensor]
    """Observed values per component, 0 elsewhere, (B, d)."""
    observed: dict[str, Tensor]
    """Which free coordinates are known, bool (B, d)."""

    def __init__(self, system: System, values: State | Tensor, observed: Observed) -> None:
        state = as_state(values)
        seen = {TENSOR: observed} if isinstance(observed, Tensor) else dict(observed)
        self.batch_size = state.batch_size
        self.values, self.observed = {}, {}
        for name, known in seen.items():
            if name not in system.moving or name not in state:
                raise StructDiffError(
                    f"component {name!r} is observed, but it must be among the values "
                    f"{list(state)} and the components that the system moves {list(system.moving)}"
                )
            value, space = state[name], system.spaces[name]
            known = _check_observed(name, value, known)
            mask = state.masks.get(name)
            known = space.pack(known if mask is None else known & mask)
            self.observed[name] = known
            self.values[name] = torch.where(known, space.pack(value), 0.0)
        if not self.observed:
            raise StructDiffError("no component is observed: there is nothing to guide by")


class GuidedDenoiser(BaseDenoiser):
    """A denoiser that also looks at observations.

    Parameters
    ----------
    denoiser
        Estimates E[x0 | xt]; any other guidance may lie in between.
    values, observed
        See :class:`Observations`.
    """

    def __init__(self, denoiser: BaseDenoiser, values: State | Tensor, observed: Observed) -> None:
        super().__init__(denoiser.system)
        self.denoiser = denoiser
        self.consistent = denoiser.consistent
        self.observations = Observations(self.system, values, observed)

    @abstractmethod
    def _guided(
        self, read: Read, x: State, times: Mapping[str, Tensor]
    ) -> tuple[tuple[State, State | None], dict[str, Tensor]]:
        """What ``read`` gave, and by how much the data prediction moves, per component."""

    def free(self, data: State, name: str) -> Tensor:
        """Free coordinates of a component of a data prediction, (B, d)."""
        space = self.system.spaces[name]
        return space.pack(space.project(data[name], data.masks.get(name)))

    def residuals(self, data: State) -> dict[str, Tensor]:
        """Observed minus predicted, exactly 0 where nothing is known; (B, d) by component.

        Raises
        ------
        StructDiffError
            If the batch is not the one that was observed.
        """
        gaps = {}
        for name, value in self.observations.values.items():
            packed = self.free(data, name)
            if packed.shape != value.shape:
                raise StructDiffError(
                    f"component {name!r} was observed in {tuple(value.shape)} objects x free "
                    f"coordinates, the state has {tuple(packed.shape)}: guide the batch that was "
                    "observed"
                )
            known = self.observations.observed[name].to(packed.device)
            gaps[name] = torch.where(known, value.to(packed) - packed, 0.0)
        return gaps

    def forward(self, x: State | Tensor, t: Time, condition: Any = None) -> State:
        """E[x0 | xt, y], estimated: one network call."""

        def read(at: State) -> tuple[State, None]:
            return self.denoiser(at, t, condition), None

        (data, _), shift = self._guided(read, as_state(x), self.system.times(t))
        return _moved(data, shift)

    def pair(self, x: State | Tensor, t: Time, condition: Any = None) -> Pair:
        """Data and noise given the observations: one network call."""
        times = self.system.times(t)
        (data, noise), shift = self._guided(
            lambda at: self.denoiser.pair(at, t, condition), as_state(x), times
        )
        assert noise is not None
        ratio = {k: -torch.exp(v) for k, v in self.system.half_log_snr(times).items()}
        against = {k: v * expand_right(ratio[k].to(v), v) for k, v in shift.items()}
        return Pair(_moved(data, shift), _moved(noise, against))

    def _pulled_back(
        self, read: Read, x: State, cotangent: Callable[[State], dict[str, Tensor]]
    ) -> tuple[tuple[State, State | None], dict[str, Tensor]]:
        """J^T u for the Jacobian J of the data prediction, (B, ...) per moving component.

        Parameters
        ----------
        read
            Evaluates the wrapped denoiser.
        x
            Where.
        cotangent
            From the data prediction to u, (B, d) in free coordinates by component. The gradient
            too is taken in free coordinates: the two mirrored entries of a symmetric matrix are
            one, whose gradient stands in both.
        """
        if torch.is_inference_mode_enabled():  # whose tensors know no gradient: take copies
            with torch.inference_mode(False), torch.no_grad():
                masks = {k: m.clone() for k, m in x.masks.items()}
                return self._pulled_back(read, x.map(Tensor.clone).with_masks(masks), cotangent)
        spaces = self.system.spaces
        keep = torch.is_grad_enabled() and any(v.requires_grad for v in x.values())
        with torch.enable_grad():
            free = {k: spaces[k].pack(x[k]) for k in self.system.moving}
            free = {
                k: v if keep and v.requires_grad else v.detach().requires_grad_(True)
                for k, v in free.items()
            }
            at = {k: spaces[k].unpack(v, x[k]) for k, v in free.items()}
            data, noise = read(State._trusted({**x, **at}, x.masks))
            u = cotangent(data if keep else data.detach())
            outputs = {k: self.free(data, k) for k in u}
            u = {k: v for k, v in u.items() if outputs[k].requires_grad}
            if not u:
                raise StructDiffError(
                    f"{type(self.denoiser).__name__} gives a prediction that is cut from its "
                    "input, so there is no gradient to guide by: it must be differentiable"
                )
            found = torch.autograd.grad(
                [outputs[k] for k in u],
                list(free.values()),
                [v.to(outputs[k].dtype) for k, v in u.items()],
                allow_unused=True,
                create_graph=keep,
            )
        pulled = {
            k: spaces[k].project(spaces[k].unpack(g, x[k]), x.masks.get(k))
            for k, g in zip(free, found, strict=True)
            if g is not None  # a network need not look at every component
        }
        if not keep:
            data, noise = data.detach(), None if noise is None else noise.detach()
        return (data, noise), pulled

    def _tweedie(self, times: Mapping[str, Tensor], name: str) -> Tensor:
        """Factor sigma^2 / alpha from a gradient of log p to the data prediction, () or (B,)."""
        process = self.system.processes[name]
        return process.sigma(times[name]) ** 2 / process.alpha(times[name])


def _moved(state: State, shift: Mapping[str, Tensor]) -> State:
    return State._trusted({**state, **{k: state[k] + v for k, v in shift.items()}}, state.masks)
