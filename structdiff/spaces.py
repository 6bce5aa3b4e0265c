r"""Which values a component may take, and how its noise lies in them.

A space draws standard normal noise *in its free coordinates* and embeds it: a symmetric matrix with
zero diagonal has N(N-1)/2 of them, so its noise is an upper triangle mirrored (every off-diagonal
entry has variance 1), not :math:`(Z + Z^\top)/2`, which has half the variance. Masks and symmetry
live here and in no sampler: updates that are linear in (state, model output, noise) stay inside.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn import functional

from structdiff.errors import StructDiffError
from structdiff.noise import Interval, NoiseSource
from structdiff.state import State


@runtime_checkable
class Space(Protocol):
    """What the core asks of a component's space."""

    def pack(self, x: Tensor) -> Tensor:
        """(B, ...) -> (B, d): the free coordinates, existing or not."""
        ...

    def unpack(self, vector: Tensor, like: Tensor) -> Tensor:
        """(B, d) -> the shape of ``like`` (B, ...)."""
        ...

    def project(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """The nearest member of the space; exactly 0 where ``mask`` is False."""
        ...

    def noise(
        self,
        name: str,
        like: Tensor,
        mask: Tensor | None,
        source: NoiseSource,
        interval: Interval | None = None,
    ) -> Tensor:
        """Standard normal noise in the free coordinates, embedded in the shape of ``like``."""
        ...

    def dimension(self, like: Tensor, mask: Tensor | None = None) -> Tensor:
        """Number of free coordinates that exist per object, (B,)."""
        ...

    def encode(self, x: Tensor) -> Tensor:
        """From values to the unconstrained coordinate the process runs on."""
        ...

    def decode(self, y: Tensor) -> Tensor:
        """Inverse of :meth:`encode`."""
        ...


def _where(mask: Tensor | None, x: Tensor) -> Tensor:
    """Exactly 0 where the mask is False, whatever x holds there."""
    return x if mask is None else torch.where(mask, x, 0.0)


class Euclidean:
    """Real numbers; with a mask, a padded set."""

    def _width(self, like: Tensor) -> int:
        """Number of free coordinates, existing or not: the second axis of ``pack``."""
        return math.prod(like.shape[1:])

    def pack(self, x: Tensor) -> Tensor:
        return x.flatten(1) if x.dim() > 1 else x[:, None]

    def unpack(self, vector: Tensor, like: Tensor) -> Tensor:
        return vector.reshape(like.shape)

    def project(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return _where(mask, x)

    def noise(
        self,
        name: str,
        like: Tensor,
        mask: Tensor | None,
        source: NoiseSource,
        interval: Interval | None = None,
    ) -> Tensor:
        if getattr(source, "takes_components", False):
            return self.project(source.normal(name, like, interval), mask)
        free = like.new_empty(like.shape[0], self._width(like))
        # What is unpacked lies in the space: only the mask is left to apply.
        return _where(mask, self.unpack(source.normal(name, free, interval), like))

    def dimension(self, like: Tensor, mask: Tensor | None = None) -> Tensor:
        exists = torch.ones_like(like, dtype=torch.bool) if mask is None else mask.expand_as(like)
        return self.pack(exists).sum(1)

    def encode(self, x: Tensor) -> Tensor:
        return x

    def decode(self, y: Tensor) -> Tensor:
        return y

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


@lru_cache(maxsize=256)
def _off_diagonal(n: int, device: torch.device) -> Tensor:
    return ~torch.eye(n, dtype=torch.bool, device=device)


@lru_cache(maxsize=256)
def _pair_numbers(n: int, device: torch.device) -> Tensor:
    """Where the entries of a matrix lie in its packed pairs, (N, N).

    Pair (i < j) has the number j (j - 1) / 2 + i; the diagonal reads one entry past the pairs.
    """
    node = torch.arange(n, device=device)
    larger = torch.maximum(node[:, None], node)
    number = larger * (larger - 1) // 2 + torch.minimum(node[:, None], node)
    return torch.where(node[:, None] == node, n * (n - 1) // 2, number)


class Symmetric(Euclidean):
    """Symmetric matrices (B, N, N) or (B, N, N, C) over pairs, with zero diagonal."""

    @staticmethod
    def _pairs(n: int, device: torch.device) -> tuple[Tensor, Tensor]:
        # Ordered by the larger node, so that padding to more nodes does not move a pair.
        larger, smaller = torch.tril_indices(n, n, offset=-1, device=device)
        return smaller, larger

    @staticmethod
    def _off_diagonal(like: Tensor) -> Tensor:
        """True off the diagonal, (N, N) with the trailing axes of ``like`` (B, N, N, ...)."""
        off = _off_diagonal(like.shape[1], like.device)
        return off.reshape(off.shape + (1,) * (like.dim() - 3))

    def _width(self, like: Tensor) -> int:
        n = like.shape[1]
        return n * (n - 1) // 2 * math.prod(like.shape[3:])

    def pack(self, x: Tensor) -> Tensor:
        i, j = self._pairs(x.shape[1], x.device)
        return x[:, i, j].flatten(1)

    def unpack(self, vector: Tensor, like: Tensor) -> Tensor:
        n = like.shape[1]
        pairs = vector.reshape(vector.shape[0], n * (n - 1) // 2, *like.shape[3:])
        zero = pairs.new_zeros(len(pairs), 1, *like.shape[3:])
        return torch.cat((pairs, zero), dim=1)[:, _pair_numbers(n, vector.device)]

    def project(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        # Addition commutes bit for bit, so the mean with the transpose is exactly symmetric.
        off = self._off_diagonal(x)
        return super().project((x + x.transpose(1, 2)) / 2, off if mask is None else mask & off)


class Bijection(Protocol):
    """A smooth increasing map between a constrained value and the real line, entry by entry."""

    def forward(self, x: Tensor) -> Tensor: ...

    def inverse(self, y: Tensor) -> Tensor: ...

    def log_derivative(self, y: Tensor) -> Tensor:
        """Log dx/dy at y: the term that densities and scores pick up on the way back."""
        ...


class Log:
    """Positive numbers: y = log x."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.log(x)

    def inverse(self, y: Tensor) -> Tensor:
        return torch.exp(y)

    def log_derivative(self, y: Tensor) -> Tensor:
        return y


class Softplus:
    """Positive numbers, linear at large values: x = log(1 + exp y)."""

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.log(-torch.expm1(-x))

    def inverse(self, y: Tensor) -> Tensor:
        return torch.logaddexp(y, torch.zeros_like(y))

    def log_derivative(self, y: Tensor) -> Tensor:
        return functional.logsigmoid(y)


class Logit:
    """Numbers in (0, 1): y = log(x / (1 - x))."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.logit(x)

    def inverse(self, y: Tensor) -> Tensor:
        return torch.sigmoid(y)

    def log_derivative(self, y: Tensor) -> Tensor:
        return functional.logsigmoid(y) + functional.logsigmoid(-y)


class Arcsinh:
    """Heavy tails on the whole line: y = arcsinh x."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.arcsinh(x)

    def inverse(self, y: Tensor) -> Tensor:
        return torch.sinh(y)

    def log_derivative(self, y: Tensor) -> Tensor:
        return torch.logaddexp(y, -y) - torch.log(torch.tensor(2.0, dtype=y.dtype))


@dataclass(frozen=True, repr=False)
class Transformed(Euclidean):
    """Values reached through a bijection; the process runs on the unconstrained coordinate.

    Parameters
    ----------
    bijection
        From the value to the real line, entry by entry.
    """

    bijection: Bijection = field(default_factory=Log)

    def encode(self, x: Tensor) -> Tensor:
        return self.bijection.forward(x)

    def decode(self, y: Tensor) -> Tensor:
        return self.bijection.inverse(y)

    def score(self, score: Tensor, y: Tensor) -> Tensor:
        r"""Score of the value from the score of its coordinate.

        :math:`\nabla_x \log p(x) = (dx/dy)^{-1} (\nabla_y \log p(y) - d/dy \log |dx/dy|)`.

        Parameters
        ----------
        score, y
            Score of the coordinate and the coordinate, both (B, ...).
        """
        with torch.enable_grad():
            point = y.detach().requires_grad_(True)
            log_derivative = self.bijection.log_derivative(point)
            (slope,) = torch.autograd.grad(log_derivative.sum(), point)
        return (score - slope) * torch.exp(-log_derivative.detach())

    def __repr__(self) -> str:
        return f"Transformed({type(self.bijection).__name__}())"


class Positive(Transformed):
    """Positive numbers through their logarithm."""


class Layout:
    """The flat view of a state: (B, D) over the free coordinates that exist in some object.

    Made once per state shape; objects that lack a coordinate hold 0 there (``exists`` says which).

    Parameters
    ----------
    like
        State whose shapes and masks define the layout.
    spaces
        Space per component; components without one are Euclidean.
    """

    exists: Tensor
    """Which coordinates exist in which object, bool (B, D)."""

    def __init__(self, like: State, spaces: Mapping[str, Space] | None = None) -> None:
        self._like = like
        self._spaces = {k: (spaces or {}).get(k, Euclidean()) for k in like}
        self._columns: dict[str, Tensor] = {}
        exists = []
        for name, value in like.items():
            mask = like.masks.get(name)
            full = torch.ones_like(value, dtype=torch.bool) if mask is None else mask
            packed = self._spaces[name].pack(full.expand_as(value))
            self._columns[name] = packed.any(0).nonzero()[:, 0]
            exists.append(packed[:, self._columns[name]])
        self.exists = torch.cat(exists, dim=1)

    def flatten(self, state: State) -> Tensor:
        """State -> (B, D)."""
        return torch.cat(
            [self._spaces[k].pack(v)[:, self._columns[k]] for k, v in state.items()], dim=1
        )

    def unflatten(self, vector: Tensor) -> State:
        """(B, D) -> State with the masks of the layout; non-existing entries are exactly 0."""
        if vector.shape[1:] != self.exists.shape[1:]:
            raise StructDiffError(
                f"expected {self.exists.shape[1]} coordinates, got {tuple(vector.shape)}"
            )
        vector = torch.where(self.exists, vector, torch.zeros_like(vector))
        sizes = [len(c) for c in self._columns.values()]
        parts = {}
        for (name, like), values in zip(
            self._like.items(), vector.split(sizes, dim=1), strict=True
        ):
            width = self._spaces[name].pack(like).shape[1]
            full = torch.zeros(len(values), width, dtype=values.dtype, device=values.device)
            full[:, self._columns[name]] = values
            parts[name] = self._spaces[name].unpack(full, like)
        return State._trusted(parts, self._like.masks)
