r"""Windows of a stationary Gaussian process: the exact answers that time series are checked on.

With the Toeplitz covariance :math:`\Sigma_{ij} = \gamma(|i - j|) = Q\,\mathrm{diag}(l)\,Q^\top`
and constant mean m,

.. math:: E[x_0 | x_t] = m + Q\,\mathrm{diag}\!\left(\frac{\alpha l}{\alpha^2 l + \sigma^2}\right)
          Q^\top (x_t - \alpha m).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from structdiff.denoisers import BaseDenoiser
from structdiff.errors import StructDiffError
from structdiff.noise import NoiseSource, as_source
from structdiff.processes.system import System, Time
from structdiff.state import TENSOR, State, as_state


class StationaryGaussian:
    """A window of a stationary Gaussian process.

    Windows are (B, L) or (B, L, ...): the process runs along the second axis, and further axes hold
    independent copies of it.

    Parameters
    ----------
    autocovariance
        Covariance at lags 0, ..., L - 1, (L,).
    mean
        Of every entry.
    component
        Name of the component that holds the window.

    Raises
    ------
    StructDiffError
        If the autocovariance is not that of any process: its matrix has a negative eigenvalue.
    """

    def __init__(
        self,
        autocovariance: Tensor | Sequence[float],
        mean: float = 0.0,
        component: str = TENSOR,
    ) -> None:
        self.autocovariance = torch.as_tensor(autocovariance, dtype=torch.float64)
        if self.autocovariance.dim() != 1 or len(self.autocovariance) == 0:
            raise StructDiffError(
                "an autocovariance is one number per lag 0, ..., L - 1, got shape "
                f"{tuple(self.autocovariance.shape)}"
            )
        self.mean, self.component = float(mean), component
        smallest = float(self.spectrum[0].min())
        if not smallest > -1e-9 * float(self.autocovariance[0].abs()):
            raise StructDiffError(
                f"no stationary process has this autocovariance: its matrix has the eigenvalue "
                f"{smallest:.3g}"
            )

    @classmethod
    def ar1(
        cls, phi: float, length: int, variance: float = 1.0, mean: float = 0.0
    ) -> StationaryGaussian:
        r"""First-order autoregression: :math:`\gamma(k) = v\,\phi^k`.

        Parameters
        ----------
        phi
            Correlation of neighbours, in (-1, 1).
        length
            L.
        variance, mean
            Of every entry.
        """
        if not -1 < phi < 1:
            raise StructDiffError(f"phi of a stationary AR(1) must lie in (-1, 1), got {phi}")
        return cls(variance * phi ** torch.arange(length, dtype=torch.float64), mean)

    @property
    def length(self) -> int:
        """L, the number of points of a window."""
        return len(self.autocovariance)

    def covariance(self) -> Tensor:
        """Covariance of a window, (L, L)."""
        point = torch.arange(self.length)
        return self.autocovariance[(point[:, None] - point).abs()]

    @cached_property
    def spectrum(self) -> tuple[Tensor, Tensor]:
        """Eigenvalues (L,) and eigenvectors (L, L) of the covariance."""
        values, vectors = torch.linalg.eigh(self.covariance())
        return values, vectors

    def sample(self, n: int, source: NoiseSource | int | None = None) -> State:
        """Draw n windows (n, L), float64."""
        values, vectors = self.spectrum
        like = torch.empty(n, self.length, dtype=torch.float64)
        z = as_source(source).normal("testbed", like)
        root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
        return State({self.component: self.mean + z @ root})

    def conditional(
        self, values: Tensor, observed: Tensor, noise: float = 0.0
    ) -> tuple[Tensor, Tensor]:
        """Mean and covariance of the rest of a window given some of its points.

        Parameters
        ----------
        values
            Windows (B, L); only the observed points are read.
        observed
            Which points are known, bool (L,).
        noise
            Variance of the noise that they were observed with.

        Returns
        -------
        tuple of Tensor
            Means (B, M) and covariance (M, M) of the M other points.
        """
        full = self.covariance()
        seen = full[observed][:, observed] + noise * torch.eye(int(observed.sum()))
        gain = torch.linalg.solve(seen, full[observed][:, ~observed])  # (known, M)
        gap = values[:, observed].double() - self.mean
        rest = full[~observed][:, ~observed] - full[~observed][:, observed] @ gain
        return self.mean + gap @ gain, rest

    def denoiser(self, system: System) -> BaseDenoiser:
        """The exact E[x0 | xt] under a system with this component."""
        return _StationaryDenoiser(self, system)


class _StationaryDenoiser(BaseDenoiser):
    def __init__(self, process: StationaryGaussian, system: System) -> None:
        super().__init__(system)
        if set(system.processes) != {process.component}:
            raise StructDiffError(
                f"the testbed has the component {process.component!r}, the system "
                f"{list(system.processes)}"
            )
        self.process = process

    def forward(self, x: State | Tensor, t: Time, condition: Any = None) -> State:
        """E[x0 | xt]; every entry of the window exists."""
        state, process = as_state(x), self.process
        window = state[process.component]
        if window.shape[1:2] != (process.length,) or state.masks:
            raise StructDiffError(
                f"the testbed's windows are ({process.length},) without a mask, got {state}"
            )
        times = self.system.times(t)
        alpha, sigma = (
            scale[process.component].to(window).reshape(-1, 1)
            for scale in (self.system.alpha(times), self.system.sigma(times))
        )
        values, vectors = (part.to(window) for part in process.spectrum)
        gain = alpha * values / (alpha**2 * values + sigma**2)  # (1 or B, L)
        wide = (-1, *[1] * (window.dim() - 1))
        gap = (window - alpha.reshape(wide) * process.mean).movedim(1, -1)
        gain = gain.reshape(-1, *[1] * (window.dim() - 2), process.length)
        data = process.mean + ((gap @ vectors) * gain) @ vectors.T
        return State._trusted({process.component: data.movedim(-1, 1)}, state.masks)
