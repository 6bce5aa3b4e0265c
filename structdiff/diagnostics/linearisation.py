r"""A flat field and its Jacobian at one point per object: products, matrix and divergence.

With the model's own output G every reading is :math:`F = c \circ G + e \circ x`, so

.. math:: \frac{\partial F}{\partial x} = \mathrm{diag}(c)\,\frac{\partial G}{\partial x}
          + \mathrm{diag}(e)

and the diagonal part, as large as :math:`1/\sigma^2` for a score, never enters a difference of two
derivatives, where in float32 its rounding would show as asymmetry. Backward products serve all
models; forward ones and second derivatives need attention without fused kernels.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel

if TYPE_CHECKING:
    from structdiff.diagnostics.field import Field, Reading

ROWS = 16384
"""At most this many objects in one call where points or directions share calls."""


def differentiable_attention() -> AbstractContextManager[None]:
    """Attention kernels that have forward-mode and second derivatives; the fused ones do not."""
    return sdpa_kernel(SDPBackend.MATH)


class Linearisation:
    """A field and its Jacobian J at one flat point per object.

    Parameters
    ----------
    field
        The field.
    reading
        Which prediction.
    x
        Points, (B, D).
    t
        Shared time () or (B,).
    """

    value: Tensor
    """The field, (B, D)."""

    def __init__(self, field: Field, reading: Reading, x: Tensor, t: Tensor | float) -> None:
        self.field, self.t = field, t
        self.on_output, self.on_x = field.coefficients(reading, t, x)
        self.on_x = self.on_x * field.exists
        with torch.enable_grad(), differentiable_attention():
            self._point = x.detach().clone().requires_grad_(True)
            self._output = field.output(self._point, t)
        self.value = self.on_output * self._output.detach() + self.on_x * x

    def _transposed(self, directions: Tensor) -> Tensor:
        """G's transposed Jacobian applied to (n, B, D), without the diagonal part."""
        with differentiable_attention():
            (product,) = torch.autograd.grad(
                self._output,
                self._point,
                directions,
                is_grads_batched=True,
                retain_graph=True,
                materialize_grads=True,
            )
        return product * self.field.exists

    def _forward(self, directions: Tensor) -> Tensor:
        """G's Jacobian applied to (n, B, D), without the diagonal part.

        The directions share calls over copies of the objects; with a condition, one call each.
        """
        point = self._point.detach()
        n, b, d = directions.shape
        if self.field.condition is not None:
            return torch.stack([self._tangent(self.field, point, v, self.t) for v in directions])
        tangents = []
        for part in directions.split(max(1, ROWS // b)):
            count = len(part)
            field = self.field if count == 1 else self.field.repeated(count)
            t = self.t.repeat(count) if isinstance(self.t, Tensor) and self.t.dim() else self.t
            tangents.append(self._tangent(field, point.repeat(count, 1), part.reshape(-1, d), t))
        return torch.cat(tangents).reshape(n, b, d)

    @staticmethod
    def _tangent(field: Field, point: Tensor, direction: Tensor, t: Tensor | float) -> Tensor:
        """Derivative of G at points (N, D) along (N, D), in forward mode."""
        with torch.no_grad(), differentiable_attention(), forward_ad.dual_level():
            dual = forward_ad.make_dual(point, direction * field.exists)
            tangent = forward_ad.unpack_dual(field.output(dual, t)).tangent
            return torch.zeros_like(direction) if tangent is None else tangent.clone()

    def vjp(self, directions: Tensor) -> Tensor:
        """J^T v for (n, B, D)."""
        return self._transposed(directions * self.on_output) + directions * self.on_x

    def jvp(self, directions: Tensor) -> Tensor:
        """J v for (n, B, D)."""
        return self.on_output * self._forward(directions) + self.on_x * directions

    def skew(self, directions: Tensor) -> tuple[Tensor, Tensor]:
        """(J - J^T) v and J v for (n, B, D); the diagonal part is left out of the difference."""
        forward = self.on_output * self._forward(directions)
        back = self._transposed(directions * self.on_output)
        return forward - back, forward + self.on_x * directions

    def matrix(self) -> Tensor:
        """J, (B, D, D)."""
        basis = torch.eye(self.field.dimension).to(self._point)
        rows = self.vjp(basis[:, None].expand(-1, len(self._point), -1))
        return rows.transpose(0, 1)

    def divergence(self, probes: Tensor | None = None, weights: Tensor | None = None) -> Tensor:
        r""":math:`\sum_i w_i\,\partial F_i/\partial x_i` per object, (B,).

        Parameters
        ----------
        probes
            Directions of unit covariance (n, B, D): Hutchinson's estimate, the mean of
            :math:`p \cdot w J p`. None: exact, with D of them.
        weights
            w, (1 or B, D); None is 1.
        """
        on_output = self.on_output if weights is None else self.on_output * weights
        on_x = self.on_x if weights is None else self.on_x * weights
        if probes is None:
            b, d = self._point.shape
            basis = torch.eye(d).to(self._point)[:, None].expand(-1, b, -1)
            diagonal = self._transposed(basis).diagonal(dim1=0, dim2=2)  # (B, D)
            trace = (diagonal * on_output).sum(1)
        else:
            trace = (self._transposed(probes * on_output) * probes).sum(2).mean(0)
        return trace + (on_x * self.field.exists).sum(1)
