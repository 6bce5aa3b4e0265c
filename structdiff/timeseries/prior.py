r"""A Gaussian prior inside the network: it learns only what a Gaussian does not know.

With :math:`y = x_0 + \rho\epsilon` and a Gaussian :math:`N(m, S)` fitted to the training windows,
the best linear denoiser and the covariance of its error are closed forms,

.. math:: G(y) = m + S (S + \rho^2)^{-1} (y - m), \qquad V = \rho^2 S (S + \rho^2)^{-1}.

The denoiser is :math:`D = G(y) + V^{1/2} F`: the preconditioning of Karras et al. 2022 (EDM, table
1) with the covariance of the data in place of one variance, to which it reduces for
:math:`S = s^2 I`. Before the first step of training it already is the exact denoiser of a Gaussian
with the correlations of the data; and an error of the network is never where the data cannot be,
which guidance by what is observed would have to explain by something enormous in what is not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from structdiff.errors import StructDiffError
from structdiff.guidance import GaussianCovariance
from structdiff.state import State

PRIOR_TENSORS = ("mean", "vectors", "values", "rest")
"""Buffers of :class:`GaussianSkip` that are the prior."""
_LEAST_VARIANCE = 1e-6
"""Of a direction of scaled windows: a hundredth of what an observation's noise is taken for."""


class GaussianSkip(nn.Module):
    r"""A network around a Gaussian prior, under the package's contract.

    To be used with ``Denoiser(..., prediction="data", data_std=1.0, scale_input=True)``, which
    hands over :math:`y / \sqrt{1 + \rho^2}` whatever the process.

    Parameters
    ----------
    backbone
        ``(State, log_snr, condition) -> State``. It sees what the Gaussian takes for noise,
        :math:`(y - G)/\rho`, and as ``condition`` (B, L, C + F) the scaled window and the F
        features of the caller.
    shape
        (L, C) of a window.
    rank
        Directions that the prior holds.
    """

    mean: Tensor
    vectors: Tensor
    values: Tensor
    rest: Tensor

    def __init__(self, backbone: nn.Module, shape: tuple[int, int], rank: int) -> None:
        super().__init__()
        self.backbone, self.shape = backbone, tuple(shape)
        size = shape[0] * shape[1]
        if not 1 <= rank <= size:
            raise StructDiffError(f"a window of {size} numbers has rank 1 to {size}, not {rank}")
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("vectors", torch.eye(size, rank))
        self.register_buffer("values", torch.ones(rank))
        self.register_buffer("rest", torch.ones(()))

    @property
    def covariance(self) -> GaussianCovariance:
        """The prior, of the coordinates (L C,)."""
        return GaussianCovariance(
            self.mean.cpu(), self.vectors.cpu(), self.values.cpu(), float(self.rest)
        )

    def set_covariance(self, prior: GaussianCovariance) -> None:
        """Take over a prior of the same size and rank.

        Raises
        ------
        StructDiffError
            If it has another size or rank.
        """
        if prior.vectors.shape != self.vectors.shape:
            raise StructDiffError(
                f"the network holds a prior of size and rank {tuple(self.vectors.shape)}, "
                f"got {tuple(prior.vectors.shape)}"
            )
        for name in ("mean", "vectors", "values"):
            getattr(self, name).copy_(getattr(prior, name))
        self.rest.fill_(prior.rest)

    def denoise(self, window: Tensor, variance: Tensor) -> Tensor:
        r"""The Gaussian's G(y), (B, d).

        Parameters
        ----------
        window
            :math:`y = x_0 + \rho\epsilon`, (B, d).
        variance
            :math:`\rho^2`, (B, 1).
        """
        gain = self.values / (self.values + variance)  # (B, k)
        gap = window - self.mean
        return self.mean + self._scaled(gap, gain, self.rest / (self.rest + variance))

    def spread(self, out: Tensor, variance: Tensor) -> Tensor:
        r""":math:`V^{1/2} F` for what the network returns, (B, d).

        Parameters
        ----------
        out
            F, (B, d).
        variance
            :math:`\rho^2`, (B, 1).
        """
        along = torch.sqrt(self.values * variance / (self.values + variance))
        return self._scaled(out, along, torch.sqrt(self.rest * variance / (self.rest + variance)))

    def _scaled(self, flat: Tensor, along: Tensor, rest: Tensor) -> Tensor:
        """Factors (B, k) along the prior's directions and (B, 1) in all others."""
        return rest * flat + ((flat @ self.vectors) * (along - rest)) @ self.vectors.T

    def forward(
        self, x: State, log_snr: Mapping[str, Tensor], condition: Tensor | None = None
    ) -> State:
        """Scaled windows (B, L, C), half log-SNR (B,), features (B, L, F) -> E[x0 | y]."""
        scaled = x["x"]
        level = log_snr["x"].to(scaled.dtype)[:, None]
        variance = torch.exp(-2 * level)
        window = (scaled * torch.sqrt(1 + variance)[:, :, None]).flatten(1)
        estimate = self.denoise(window, variance)
        noise = ((window - estimate) * torch.exp(level)).unflatten(1, scaled.shape[1:])
        features = scaled if condition is None else torch.cat((scaled, condition), dim=2)
        out = self.backbone(State({"x": noise}), log_snr, features)["x"]
        moved = estimate + self.spread(out.flatten(1), variance)
        return x.map(lambda _: moved.unflatten(1, scaled.shape[1:]))


@dataclass(frozen=True)
class GaussianWeight:
    r"""The squared error of x0 over its mean under the prior: :math:`\rho^2 d/\mathrm{tr} V` on the
    noise.

    Parameters
    ----------
    prior
        Whose posterior covariance V is. With all eigenvalues equal this is
        :class:`~structdiff.objectives.EDMWeight`.
    """

    prior: GaussianCovariance

    def __call__(self, half_log_snr: Tensor) -> Tensor:
        values = self.prior.values.to(half_log_snr.device)
        size, rank = self.prior.vectors.shape
        variance = torch.exp(-2 * half_log_snr.double())[:, None]
        known = (values / (values + variance)).sum(1)
        known = known + (size - rank) * self.prior.rest / (self.prior.rest + variance[:, 0])
        return (size / known).to(half_log_snr.dtype)


def fit_prior(windows: Tensor, rank: int) -> GaussianCovariance:
    """The Gaussian of training windows (N, L, C), with its mean and at most ``rank`` directions.

    Windows of a bursty series may lie many standard deviations out, and a covariance follows its
    largest samples: a window whose mean square is above nine times the median one is drawn in to
    that, as in a Huber estimate of scale.
    """
    size = windows.flatten(1).double()
    square = size.square().mean(1)
    limit = 9 * square.median()
    drawn = size * torch.sqrt((limit / square.clamp(min=1e-30)).clamp(max=1.0))[:, None]
    fitted = GaussianCovariance.fit(drawn, min(rank, size.shape[1], len(size) - 1))
    # Windows that do not move at all would leave the network nothing to scale its answer by.
    values = fitted.values.clamp(min=_LEAST_VARIANCE)
    rest = max(fitted.rest, _LEAST_VARIANCE)
    return GaussianCovariance(fitted.mean, fitted.vectors, values, rest)
