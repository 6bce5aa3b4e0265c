r"""State-space layers: long convolutions whose kernel is the impulse response of a linear system.

A channel of width one drives N states, :math:`\dot s = A s + B u`, :math:`y = C s`; sampled with
step dt its impulse response is :math:`K_l = C \bar A^l \bar B`, and the layer is

.. math:: y_i = D u_i + \sum_{j \le i} K^{\to}_{i-j} u_j + \sum_{j > i} K^{\leftarrow}_{j-i-1} u_j

by FFT, followed by GELU and a map over the channels. Two kernels, one argument apart:

- ``"s4"`` (Gu et al. 2022, S4): :math:`A = \Lambda - P P^*`, bilinear,
  :math:`\bar A = (I - \tfrac{dt}{2} A)^{-1}(I + \tfrac{dt}{2} A)`. With
  :math:`z = 2 (1 - \omega)/(1 + \omega)` and :math:`\tilde C = C(I - \bar A^L)`, the kernel of
  length L has at the L-th roots of unity the Fourier coefficients

  .. math:: \hat K(\omega) = \frac{2}{1 + \omega}\Bigl[
            r_{\tilde C B} - \frac{r_{\tilde C P}\, r_{P B}}{1 + r_{P P}}\Bigr],\qquad
            r_{uv}(z) = \sum_n \frac{\bar u_n\, dt\, v_n}{z - dt \Lambda_n}.

- ``"s4d"`` (Gu et al. 2022, S4D): A diagonal, zero-order hold,
  :math:`K_l = 2 \mathrm{Re} \sum_n C_n \frac{e^{dt A_n} - 1}{A_n} e^{dt A_n l}`.

States come in conjugate pairs, of which one each is stored; sums run over both.
"""

from __future__ import annotations

import math
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from structdiff.errors import StructDiffError
from structdiff.timeseries.convolution import (
    CircularConvolution,
    restore,
    smooth_length,
    transform,
)

Kernel = Literal["s4", "s4d"]
Initialisation = Literal["legs", "linear"]

DT_RANGE = (1e-3, 0.1)
"""The channels' steps are drawn log-uniformly from here (Gu et al. 2022)."""


def hippo_legs(states: int) -> tuple[Tensor, Tensor, Tensor]:
    r"""HiPPO-LegS in the basis that diagonalises its normal part.

    :math:`A_{nk} = -\sqrt{(2n+1)(2k+1)}` below the diagonal and :math:`-(n+1)` on it,
    :math:`B_n = \sqrt{2n+1}`, :math:`P_n = \sqrt{n + 1/2}`; :math:`A + P P^T` is normal and its
    eigenvalues have real part -1/2 (Gu et al. 2022, theorem 1).

    Parameters
    ----------
    states
        N, even.

    Returns
    -------
    tuple of Tensor
        Eigenvalues with positive imaginary part, by its size, B and P: complex128 (N/2,). The
        phases of the eigenvectors, which are free, are such that B is real and positive.
    """
    n = torch.arange(states, dtype=torch.float64)
    root = torch.sqrt(2 * n + 1)
    a = -(torch.tril(root[:, None] * root, -1) + torch.diag(n + 1))
    p = torch.sqrt(n + 0.5)
    skew = a + p[:, None] * p + 0.5 * torch.eye(states, dtype=torch.float64)
    frequency, vectors = torch.linalg.eigh(torch.complex(torch.zeros_like(skew), -skew))
    frequency, vectors = frequency[states // 2 :], vectors[:, states // 2 :]
    b = vectors.mH @ root.to(vectors.dtype)
    phase = b / b.abs()
    return (
        torch.complex(torch.full_like(frequency, -0.5), frequency),
        b.abs().to(vectors.dtype),
        phase.conj() * (vectors.mH @ p.to(vectors.dtype)),
    )


def diagonal_kernel(dt: Tensor, a: Tensor, c: Tensor, length: int) -> Tensor:
    """Impulse response of diagonal systems under zero-order hold.

    The powers of one step are taken apart, l = i w + j: two tables of about sqrt(L) powers and one
    real batched matmul instead of H N L exponentials.

    Parameters
    ----------
    dt
        Steps (H,).
    a
        Eigenvalues, one of each pair, complex (H, N).
    c
        Output times input coefficients of K kernels, complex (K, H, N).
    length
        L.

    Returns
    -------
    Tensor
        Real kernels (K, H, L).
    """
    step = dt[:, None] * a
    weight = 2 * c * torch.expm1(step) / a
    width = math.isqrt(length - 1) + 1
    rows = -(-length // width)
    index = torch.arange(max(width, rows), device=dt.device, dtype=dt.dtype)
    inner = torch.exp(step[..., None] * index[:width])  # (H, N, w)
    outer = torch.exp(step[..., None] * (width * index[:rows]))  # (H, N, rows)
    left = (weight[..., None] * outer).permute(1, 0, 3, 2)  # (H, K, rows, N)
    left = torch.cat((left.real, -left.imag), dim=-1).flatten(1, 2)
    kernel = left @ torch.cat((inner.real, inner.imag), dim=1)  # (H, K rows, w)
    return kernel.unflatten(1, (len(c), rows)).flatten(2)[..., :length].transpose(0, 1)


def dplr_kernel(
    dt: Tensor, a: Tensor, p: Tensor, b: Tensor, c_tilde: Tensor, length: int
) -> Tensor:
    r"""Impulse response of diagonal-minus-rank-one systems, bilinear, through the frequency domain.

    The two states of a pair together are :math:`2 (z \,\mathrm{Re}\, v - \mathrm{Re}\, v \bar w)
    / (z^2 - 2 z\,\mathrm{Re}\,w + |w|^2)` with real coefficients, so that all sums r are one real
    batched matmul over the table of 1/q.

    Parameters
    ----------
    dt
        Steps (H,).
    a, p, b
        Eigenvalues, rank-one term and input, one of each pair, complex (H, N).
    c_tilde
        :math:`C (I - \bar A^L)` of K kernels, complex (K, H, N).
    length
        L, even.

    Returns
    -------
    Tensor
        Real kernels (K, H, L).
    """
    w = dt[:, None] * a
    left = torch.cat((c_tilde, p.conj()[None]))  # (K + 1, H, N)
    right = dt[:, None] * torch.stack((b, p))  # (2, H, N)
    v = (left[:, None] * right).flatten(0, 1).transpose(0, 1)  # (H, 2 (K + 1), N)
    coefficients = 2 * torch.cat((v.real, (v * w.conj()[:, None]).real), dim=1)
    # z = i y on the unit circle; at the last node, omega = -1, y is infinite: see below.
    angle = torch.arange(length // 2, device=dt.device, dtype=dt.dtype) * (math.pi / length)
    y = 2 * torch.tan(angle)
    modulus, damping = w.real**2 + w.imag**2, -2 * w.real
    q = torch.complex(modulus[..., None] - y**2, damping[..., None] * y)  # (H, N, L / 2)
    table = torch.view_as_real(torch.reciprocal(q)).flatten(2)
    sums = torch.view_as_complex((coefficients @ table).unflatten(2, (-1, 2)))
    iy = torch.complex(torch.zeros_like(y), y)
    on_z, constant = sums.chunk(2, dim=1)
    r = (iy * on_z - constant).unflatten(1, (-1, 2))  # (H, K + 1, 2, L / 2)
    correction = r[:, :-1, 1] * (r[:, -1:, 0] / (1 + r[:, -1:, 1]))
    spectrum = (1 + iy / 2) * (r[:, :-1, 0] - correction)
    # 2 / (1 + omega) = 1 + z / 2 and r -> sum(v) / z: the limit is half the sum over both states.
    last = (c_tilde * right[0]).real.sum(-1).transpose(0, 1)[..., None]
    spectrum = torch.cat((spectrum, torch.complex(last, torch.zeros_like(last))), dim=-1)
    return torch.fft.irfft(spectrum, n=length).transpose(0, 1)


def dplr_advance(dt: Tensor, a: Tensor, p: Tensor, c: Tensor, steps: int) -> Tensor:
    r"""Output rows ``steps`` steps later, :math:`C \bar A^{steps}`, at N operations per step.

    Parameters
    ----------
    dt, a, p
        As in :func:`dplr_kernel`.
    c
        Output rows, complex (K, H, N).
    steps
        How many.
    """
    half = dt[:, None] / 2
    resolvent = 1 / (1 - half * a)
    into = 2 * resolvent * p  # a row's sum over both states of a pair is twice its real part
    gain = half / (1 + half * (into * p.conj()).real.sum(-1, keepdim=True))
    out = 2 * gain * p.conj() * resolvent
    keep = 2 * resolvent - 1
    for _ in range(steps):
        c = c * keep - (c * into).real.sum(-1, keepdim=True) * out
    return c


def _pairs(values: Tensor) -> nn.Parameter:
    """Complex values as a real parameter (..., 2)."""
    return nn.Parameter(torch.view_as_real(values.resolve_conj()).to(torch.get_default_dtype()))


def _wide(like: Tensor) -> torch.dtype:
    """Double precision, where the device has it: powers of a step have large phases."""
    return like.dtype if like.device.type == "mps" else torch.float64


class StateSpaceKernel(nn.Module):
    r"""Both kernels: dt and :math:`A_n = -e^{d_n} + i f_n` per channel, two directions.

    Parameters
    ----------
    channels
        H.
    state_size
        N real states, kept as N/2 pairs; even.
    kernel
        ``"s4"`` (exact: rank-one term, bilinear) or ``"s4d"`` (diagonal, zero-order hold).
    initialisation
        ``"legs"``: HiPPO-LegS (for ``"s4d"``: its normal part, B halved). ``"linear"``:
        :math:`A_n = -1/2 + i \pi n` (S4D-Lin), for ``"s4d"`` only.
    length
        For ``"s4"``, the length L at which its outputs :math:`C(I - \bar A^L)` are parameters, as
        published; give the training window's. Any other window is served exactly: a shorter one at
        the same cost, a longer one by advancing the outputs.

    Raises
    ------
    StructDiffError
        If an argument is out of its range.
    """

    def __init__(
        self,
        channels: int,
        state_size: int = 128,
        kernel: Kernel = "s4d",
        initialisation: Initialisation = "legs",
        length: int = 512,
    ) -> None:
        super().__init__()
        if state_size < 2 or state_size % 2:
            raise StructDiffError(f"state_size must be even and at least 2, got {state_size}")
        if kernel not in get_args(Kernel):
            raise StructDiffError(f"unknown kernel {kernel!r}: choose s4 or s4d")
        if initialisation not in get_args(Initialisation):
            raise StructDiffError(f"unknown initialisation {initialisation!r}: legs or linear")
        if kernel == "s4" and initialisation != "legs":
            raise StructDiffError("S4D-Lin has no rank-one term: use kernel='s4d' with 'linear'")
        if length < 1:
            raise StructDiffError(f"length must be at least 1, got {length}")
        self.kernel = kernel
        self.length = smooth_length(length)
        pairs = state_size // 2
        if initialisation == "legs":
            a, b, p = (value.expand(channels, -1) for value in hippo_legs(state_size))
        else:
            frequency = math.pi * torch.arange(pairs, dtype=torch.float64).expand(channels, -1)
            a = torch.complex(torch.full_like(frequency, -0.5), frequency)
            b = 2 * torch.ones_like(a)
        low, high = map(math.log, DT_RANGE)
        log_dt = low + (high - low) * torch.rand(channels, dtype=torch.float64)
        c = torch.randn(2, channels, pairs, dtype=a.dtype)
        dtype = torch.get_default_dtype()
        self.log_dt = nn.Parameter(log_dt.to(dtype))
        self.log_decay = nn.Parameter((-a.real).log().to(dtype))
        self.frequency = nn.Parameter(a.imag.to(dtype))
        if kernel == "s4":
            self.p, self.b = _pairs(p), _pairs(b)
            self.c = _pairs(c - dplr_advance(log_dt.exp(), a, p, c, self.length))
        else:
            self.c = _pairs(c * b / 2)

    def forward(self, length: int) -> Tensor:
        """Kernels of both directions, (2, H, length)."""
        dtype = self.log_dt.dtype
        # S4D's tables of powers are small; S4's advance is a recurrence over the length.
        advanced = self.kernel == "s4" and length > self.length
        precise = _wide(self.log_dt) if self.kernel == "s4d" or advanced else dtype
        dt = self.log_dt.to(precise).exp()
        a = torch.complex(-self.log_decay.to(precise).exp(), self.frequency.to(precise))
        c = torch.view_as_complex(self.c.to(precise))
        if self.kernel == "s4d":
            return diagonal_kernel(dt, a, c, length).to(dtype)
        p, b = (torch.view_as_complex(value.to(precise)) for value in (self.p, self.b))
        total = self.length
        while total < length:  # C (I - A^2L) = C (I - A^L) (I + A^L)
            c = c + dplr_advance(dt, a, p, c, total)
            total *= 2
        return dplr_kernel(dt, a, p, b, c, total)[..., :length].to(dtype)

    def extra_repr(self) -> str:
        pairs = self.log_decay.shape[1]
        length = f", length={self.length}" if self.kernel == "s4" else ""
        return f"{self.kernel}, {self.log_decay.shape[0]} channels, {pairs} pairs{length}"


class StateSpaceLayer(nn.Module):
    """Two-sided state-space convolution, GELU, map over the channels: (B, L, H) -> (B, L, H).

    The kernel depends on the parameters only. In evaluation mode, where no gradient of its
    parameters is asked for (``no_grad``, or parameters that do not require one: guidance needs the
    gradient of the input alone), its spectrum is kept until a parameter, the length or the mode
    changes. Kernel and FFT stay in single precision under autocast.

    Parameters
    ----------
    channels
        H.
    state_size, kernel, initialisation, length
        As :class:`StateSpaceKernel` says.
    """

    def __init__(
        self,
        channels: int,
        state_size: int = 128,
        kernel: Kernel = "s4d",
        initialisation: Initialisation = "legs",
        length: int = 512,
    ) -> None:
        super().__init__()
        self.response = StateSpaceKernel(channels, state_size, kernel, initialisation, length)
        self.skip = nn.Parameter(torch.randn(channels))
        self.output = nn.Linear(channels, channels)
        self._kept: tuple[int, list[tuple[Tensor, int]], Tensor] | None = None

    def train(self, mode: bool = True) -> StateSpaceLayer:
        """Set the mode; what was kept is dropped."""
        self._kept = None
        return super().train(mode)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": None}

    def spectrum(self, length: int) -> Tensor:
        """Fourier coefficients (H, n/2 + 1) of the two-sided kernel laid out on a circle of n."""
        parameters = [*self.response.parameters(), self.skip]
        if (
            self.training
            or torch.compiler.is_compiling()
            or torch.is_inference_mode_enabled()
            or (torch.is_grad_enabled() and any(p.requires_grad for p in parameters))
        ):
            return self._spectrum(length)
        if self._kept is not None:
            kept_length, versions, spectrum = self._kept
            if kept_length == length and all(
                p is q and p._version == version
                for p, (q, version) in zip(parameters, versions, strict=True)
            ):
                return spectrum
        spectrum = self._spectrum(length)
        self._kept = length, [(p, p._version) for p in parameters], spectrum
        return spectrum

    def _spectrum(self, length: int) -> Tensor:
        forward, backward = self.response(length)
        # The skip D x is a response at lag 0.
        forward = torch.cat((forward[:, :1] + self.skip[:, None], forward[:, 1:]), dim=1)
        circle = smooth_length(2 * length)
        gap = forward.new_zeros(len(forward), circle - 2 * length)
        return torch.fft.rfft(torch.cat((forward, gap, backward.flip(-1)), dim=-1))

    def convolve(self, x: Tensor) -> Tensor:
        """The convolution alone, (B, L, H) -> (B, L, H), in the input's dtype."""
        length = x.shape[1]
        with torch.autocast(x.device.type, enabled=False):
            wide = x if x.dtype == torch.float64 else x.float()
            spectrum, circle = self.spectrum(length), smooth_length(2 * length)
            if torch.compiler.is_compiling():  # a Function with a jvp would break the graph
                y = restore(transform(wide, circle) * spectrum, circle, length)
            else:
                y = CircularConvolution.apply(wide, spectrum, circle)
        return y.to(x.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, H) -> (B, L, H)."""
        return self.output(functional.gelu(self.convolve(x)))
