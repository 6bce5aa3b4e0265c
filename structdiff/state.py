r"""A batch of structured objects: named components that are noised and denoised together.

A molecule is ``{x: atoms, adj: bonds}``, a pose ``{length: bones, direction: bones}``, a window of
a series ``{x}``. Every component is a tensor whose first axis is the batch; a boolean mask says
which of its entries exist. Arithmetic acts component by component, so an algorithm written for
tensors,

.. math:: x_u = a\,x_t + \sum_j c_j\,m_j + d\,z,

is written the same way for a molecule.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from structdiff.errors import StructDiffError

Coefficients: TypeAlias = Mapping[str, "Tensor | float"]
"""One number per component and object: shape () or (B,), broadcast over the component's entries."""

TENSOR = "x"
"""Name of the only component when a plain tensor stands for a state."""


def expand_right(coefficient: Tensor, like: Tensor) -> Tensor:
    """Give ``coefficient`` of shape () or (B,) the trailing axes and dtype of ``like`` (B, ...)."""
    coefficient = coefficient.to(like.dtype)
    if coefficient.dim() == 0:
        return coefficient
    return coefficient.reshape(coefficient.shape + (1,) * (like.dim() - coefficient.dim()))


class State(Mapping[str, Tensor]):
    """An immutable batch of structured objects.

    Parameters
    ----------
    components
        Tensors of shape (B, ...), one per component, with a common batch size B.
    masks
        Boolean tensors, broadcastable to their component: ``True`` where an entry exists. A
        component without a mask exists everywhere.

    Raises
    ------
    StructDiffError
        If there is no component, the batch sizes differ, or a mask does not fit its component.
    """

    __slots__ = ("_components", "masks")

    _components: dict[str, Tensor]
    masks: Mapping[str, Tensor]

    def __init__(
        self, components: Mapping[str, Tensor], masks: Mapping[str, Tensor] | None = None
    ) -> None:
        self._components = dict(components)
        self.masks = MappingProxyType(dict(masks or {}))
        self._check()

    def _check(self) -> None:
        if not self._components:
            raise StructDiffError("a State needs at least one component")
        sizes = {name: value.shape[:1] for name, value in self._components.items()}
        if len(set(sizes.values())) > 1 or () in sizes.values():
            raise StructDiffError(f"components must share their first (batch) axis, got {sizes}")
        for name, mask in self.masks.items():
            if name not in self._components:
                raise StructDiffError(f"mask {name!r} has no component; there are {list(self)}")
            shape = self._components[name].shape
            fits = mask.dim() <= len(shape) and all(
                m in (1, s) for m, s in zip(reversed(mask.shape), reversed(shape), strict=False)
            )
            if mask.dtype != torch.bool or not fits:
                raise StructDiffError(
                    f"mask {name!r} must be boolean and broadcastable to {tuple(shape)}, "
                    f"got {mask.dtype} {tuple(mask.shape)}"
                )

    @classmethod
    def _trusted(cls, components: dict[str, Tensor], masks: Mapping[str, Tensor]) -> State:
        """Build without checks: the inner loops come through here."""
        state = object.__new__(cls)
        state._components = components
        state.masks = masks
        return state

    # --- mapping -----------------------------------------------------------------------------
    def __getitem__(self, name: str) -> Tensor:
        return self._components[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._components)

    def __len__(self) -> int:
        return len(self._components)

    def __repr__(self) -> str:
        parts = ", ".join(
            f"{name}: {str(value.dtype).removeprefix('torch.')}{tuple(value.shape)}"
            + (" masked" if name in self.masks else "")
            for name, value in self.items()
        )
        return f"State({parts})"

    @property
    def first(self) -> Tensor:
        """The first component: where device, dtype and batch size are read."""
        return next(iter(self._components.values()))

    @property
    def batch_size(self) -> int:
        return self.first.shape[0]

    @property
    def device(self) -> torch.device:
        return self.first.device

    @property
    def dtype(self) -> torch.dtype:
        return self.first.dtype

    # --- structure ---------------------------------------------------------------------------
    def map(self, fn: Callable[..., Tensor], *others: Mapping[str, Any]) -> State:
        """Apply ``fn(component, *others[name])`` to every component; masks are kept."""
        return State._trusted(
            {k: fn(v, *(other[k] for other in others)) for k, v in self._components.items()},
            self.masks,
        )

    def replace(self, **components: Tensor) -> State:
        """A copy with some components replaced (or added); masks are kept."""
        return State({**self._components, **components}, self.masks)

    def with_masks(self, masks: Mapping[str, Tensor]) -> State:
        """The same components under other masks."""
        return State(self._components, masks)

    def masked(self) -> State:
        """A copy whose non-existing entries are exactly 0."""
        return State._trusted(
            {
                k: torch.where(self.masks[k], v, torch.zeros_like(v)) if k in self.masks else v
                for k, v in self._components.items()
            },
            self.masks,
        )

    def take(self, index: Any) -> State:
        """Select objects: ``index`` is a slice, an index tensor (M,) or a boolean tensor (B,)."""
        b = self.batch_size
        masks = {k: m[index] if m.shape[:1] == (b,) else m for k, m in self.masks.items()}
        return State._trusted({k: v[index] for k, v in self._components.items()}, masks)

    def to(self, *args: Any, **kwargs: Any) -> State:
        """Move or cast the components as ``Tensor.to`` does; masks move but stay boolean."""
        components = {k: v.to(*args, **kwargs) for k, v in self._components.items()}
        masks = {k: m.to(components[k].device) for k, m in self.masks.items()}
        return State._trusted(components, masks)

    def detach(self) -> State:
        """A copy cut from the autograd graph."""
        return self.map(Tensor.detach)

    @staticmethod
    def cat(states: Sequence[State]) -> State:
        """Join batches of the same components along the batch axis."""
        head = states[0]
        full = [
            {k: s.masks[k].expand(s.batch_size, *s.masks[k].shape[1:]) for k in s.masks}
            for s in states
        ]
        return State(
            {k: torch.cat([s[k] for s in states]) for k in head},
            {k: torch.cat([m[k] for m in full]) for k in head.masks},
        )

    # --- arithmetic --------------------------------------------------------------------------
    def _combine(self, other: Any, op: Callable[[Tensor, Any], Tensor]) -> State:
        if isinstance(other, State):
            return self.map(op, other)
        if isinstance(other, Mapping):
            return self.map(
                lambda v, c: op(v, expand_right(c, v) if isinstance(c, Tensor) else c), other
            )
        if isinstance(other, Tensor):
            return self.map(lambda v: op(v, expand_right(other, v)))
        return self.map(lambda v: op(v, other))

    def __add__(self, other: Any) -> State:
        return self._combine(other, torch.add)

    __radd__ = __add__

    def __sub__(self, other: Any) -> State:
        return self._combine(other, torch.sub)

    def __rsub__(self, other: Any) -> State:
        return self._combine(other, lambda a, b: b - a)

    def __mul__(self, other: Any) -> State:
        return self._combine(other, torch.mul)

    __rmul__ = __mul__

    def __truediv__(self, other: Any) -> State:
        return self._combine(other, torch.div)

    def __pow__(self, other: Any) -> State:
        return self._combine(other, torch.pow)

    def __neg__(self) -> State:
        return self.map(torch.neg)

    # --- reductions --------------------------------------------------------------------------
    def dots(self, other: State) -> dict[str, Tensor]:
        """Inner product per component and object over the existing entries, each (B,)."""
        product = self.map(torch.mul, other).masked()
        return {k: v.reshape(v.shape[0], -1).sum(1) for k, v in product.items()}

    def dot(self, other: State) -> Tensor:
        """Inner product per object over all existing entries of all components, (B,)."""
        return torch.stack(list(self.dots(other).values())).sum(0)

    def square_norms(self) -> dict[str, Tensor]:
        """Squared Euclidean norm per component and object, each (B,)."""
        return self.dots(self)

    def square_norm(self) -> Tensor:
        """Squared Euclidean norm per object, (B,)."""
        return self.dot(self)

    # --- flat view ---------------------------------------------------------------------------
    def flatten(self) -> Tensor:
        """All entries that exist in some object, (B, D); see :class:`structdiff.spaces.Layout`.

        Symmetric components count both triangles here; ``system.layout(state)`` knows the spaces
        and keeps the free coordinates only.
        """
        from structdiff.spaces import Layout

        return Layout(self).flatten(self)

    def unflatten(self, vector: Tensor) -> State:
        """Inverse of :meth:`flatten`: put (B, D) back into the shape of this state."""
        from structdiff.spaces import Layout

        return Layout(self).unflatten(vector)


def as_state(x: State | Tensor) -> State:
    """Read a plain tensor (B, ...) as a state with the one component ``"x"``."""
    return x if isinstance(x, State) else State({TENSOR: x})


def _flatten_pytree(state: State) -> tuple[list[Tensor], tuple[tuple[str, ...], tuple[str, ...]]]:
    children = [*state.values(), *state.masks.values()]
    return children, (tuple(state), tuple(state.masks))


def _unflatten_pytree(children: Any, context: tuple[tuple[str, ...], tuple[str, ...]]) -> State:
    names, masks = context
    children = list(children)
    # Unchecked: torch.func puts placeholders where tensors stood.
    return State._trusted(
        dict(zip(names, children[: len(names)], strict=True)),
        dict(zip(masks, children[len(names) :], strict=True)),
    )


pytree.register_pytree_node(
    State, _flatten_pytree, _unflatten_pytree, serialized_type_name="structdiff.State"
)
