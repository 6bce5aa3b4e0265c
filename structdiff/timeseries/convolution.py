r"""Long convolutions by real FFT: :math:`y = F^{-1}(F x \cdot \hat K)`, in pieces on a CPU."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def smooth_length(length: int) -> int:
    """The smallest even number >= ``length`` whose only prime factors are 2, 3 and 5."""
    candidate = max(length + length % 2, 2)
    while True:
        rest = candidate
        for prime in (2, 3, 5):
            while rest % prime == 0:
                rest //= prime
        if rest == 1:
            return candidate
        candidate += 2


_CACHED_NUMBERS = 2**19
"""On a CPU, transforms go through the batch in pieces of this size: they stay in its cache."""


def _pieces(x: Tensor, circle: int) -> int:
    """How many of the batch (B, L, H) are transformed at once."""
    return max(_CACHED_NUMBERS // (x.shape[2] * circle), 1) if x.device.type == "cpu" else len(x)


def transform(x: Tensor, circle: int) -> Tensor:
    """(B, L, H) -> (B, H, n/2 + 1)."""
    return torch.fft.rfft(x.transpose(1, 2).contiguous(), n=circle)


def restore(coefficients: Tensor, circle: int, length: int) -> Tensor:
    """(B, H, n/2 + 1) -> (B, L, H), in this order in memory: what follows works on channels."""
    return torch.fft.irfft(coefficients, n=circle)[..., :length].transpose(1, 2).contiguous()


class CircularConvolution(torch.autograd.Function):
    """x (B, L, H), spectrum (H, n/2 + 1), n -> x circularly convolved on a circle of n, (B, L, H).

    The same as autograd's, whose gradient of a real FFT is a full complex one: half the work.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, spectrum: Tensor, circle: int) -> Tensor:
        return torch.cat(
            [
                restore(transform(piece, circle) * spectrum, circle, x.shape[1])
                for piece in x.split(_pieces(x, circle))
            ]
        )

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, int], output: Tensor) -> None:
        x, spectrum, circle = inputs
        ctx.save_for_backward(x, spectrum)
        ctx.save_for_forward(x, spectrum)
        ctx.circle = circle

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, spectrum = ctx.saved_tensors
        circle, count = ctx.circle, _pieces(x, ctx.circle)
        mirrored = spectrum.conj().resolve_conj()
        on_x, total = [], torch.zeros_like(spectrum)
        for piece, grad_piece in zip(x.split(count), grad.split(count), strict=True):
            transformed = transform(grad_piece, circle)
            if ctx.needs_input_grad[0]:
                on_x.append(restore(transformed * mirrored, circle, x.shape[1]))
            if ctx.needs_input_grad[1]:
                total = total + (transform(piece, circle).conj() * transformed).sum(0)
        # Every coefficient but the first and the last stands for its conjugate too.
        weight = torch.full_like(total.real, 2 / circle)
        weight[..., 0] = weight[..., -1] = 1 / circle
        return (
            torch.cat(on_x) if on_x else None,
            total * weight if ctx.needs_input_grad[1] else None,
            None,
        )

    @staticmethod
    def jvp(ctx: Any, dx: Tensor | None, dspectrum: Tensor | None, _: None) -> Tensor:
        x, spectrum = ctx.saved_tensors
        circle = ctx.circle
        change = torch.zeros_like(spectrum)
        if dx is not None:
            change = change + transform(dx, circle) * spectrum
        if dspectrum is not None:
            change = change + transform(x, circle) * dspectrum
        return restore(change, circle, x.shape[1])
