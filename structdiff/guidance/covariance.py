r"""Guidance by observations with the covariance of what is not yet known: no scale to choose.

If :math:`x_0 | x_t \sim N(D, V)` and :math:`y = A x_0 + \sqrt r\,z` are some of its entries, then

.. math:: \nabla_{x_t} \log p(y | x_t) = J^\top A^\top (A V A^\top + r I)^{-1} (y - A D),
          \qquad J = \partial D / \partial x_t,

exactly (Song et al. 2023, PiGDM, with the covariance of the data in place of an isotropic one). V
comes from a Gaussian prior :math:`S`, :math:`V = S - \alpha^2 S (\alpha^2 S + \sigma^2)^{-1} S`;
so may J, :math:`J = \alpha V / \sigma^2`: then nothing is sent back through the network and the
data prediction moves by :math:`V A^\top (A V A^\top + r I)^{-1} (y - A D)`, the Kalman update.

With :math:`S = U \mathrm{diag}(l)\,U^\top + \lambda (I - U U^\top)`, V has the same eigenvectors,
so everything is algebra in the k columns of U; a full matrix is k = d.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias, get_args

import torch
from torch import Tensor

from structdiff.denoisers import BaseDenoiser
from structdiff.errors import StructDiffError
from structdiff.guidance.base import GuidedDenoiser, Observed, Read
from structdiff.state import TENSOR, State

Jacobian: TypeAlias = Literal["prior", "network"]


@dataclass(frozen=True)
class GaussianCovariance:
    """A Gaussian over the free coordinates of a component: all of it, or a few directions.

    Parameters
    ----------
    mean
        (d,).
    vectors
        Orthonormal columns, (d, k).
    values
        Variances along them, (k,).
    rest
        Variance in every other direction, at most the smallest of ``values``; unused if k = d.

    Raises
    ------
    StructDiffError
        If the shapes do not fit, the columns are not orthonormal, or a variance is negative or
        below ``rest``.
    """

    mean: Tensor
    vectors: Tensor
    values: Tensor
    rest: float = 0.0

    def __post_init__(self) -> None:
        for name in ("mean", "vectors", "values"):
            object.__setattr__(self, name, getattr(self, name).detach().double())
        size, rank = self.vectors.shape
        if self.mean.shape != (size,) or self.values.shape != (rank,):
            raise StructDiffError(
                f"mean {tuple(self.mean.shape)}, vectors {tuple(self.vectors.shape)} and values "
                f"{tuple(self.values.shape)} do not fit together"
            )
        if rank == size:
            object.__setattr__(self, "rest", 0.0)
        if not self.rest >= 0 or (rank > 0 and not float(self.values.min()) >= self.rest):
            raise StructDiffError(
                f"the variances must be at least rest = {self.rest}, which must not be negative"
            )
        gram = self.vectors.T @ self.vectors
        # float32 vectors, read from a file, are orthonormal to 1e-6.
        if rank and float((gram - torch.eye(rank).to(gram)).abs().max()) > 1e-4:
            raise StructDiffError("the vectors of a covariance must be orthonormal columns")

    @classmethod
    def from_matrix(cls, matrix: Tensor, mean: Tensor | None = None) -> GaussianCovariance:
        """All of a covariance matrix (d, d); mean (d,), 0 where none is given.

        Raises
        ------
        StructDiffError
            If the matrix is not symmetric positive semi-definite.
        """
        matrix = matrix.detach().double()
        square = matrix.dim() == 2 and matrix.shape[0] == matrix.shape[1]
        if not square or not torch.allclose(matrix, matrix.T, rtol=1e-6, atol=1e-12):
            raise StructDiffError(
                f"a covariance must be a symmetric matrix, got shape {tuple(matrix.shape)}"
            )
        values, vectors = torch.linalg.eigh(matrix)
        if float(values[0]) < -1e-6 * float(values[-1].abs()):
            raise StructDiffError(f"a covariance has no eigenvalue {float(values[0]):.3g}")
        mean = torch.zeros(len(matrix)).to(matrix) if mean is None else mean
        return cls(mean, vectors, values.clamp(min=0))

    @classmethod
    def fit(cls, samples: Tensor, rank: int | None = None) -> GaussianCovariance:
        """The covariance of samples (N, ...), flattened to (N, d).

        Parameters
        ----------
        samples
            At least two objects, in the free coordinates of their space.
        rank
            Keep this many principal directions and the mean variance of the others (probabilistic
            principal components, Tipping and Bishop 1999); None keeps all that N samples span.

        Raises
        ------
        StructDiffError
            If there are fewer than two samples, one is not finite, or the rank does not fit.
        """
        flat = samples.detach().flatten(1).double()
        count, size = flat.shape
        most = min(size, count - 1)
        if count < 2 or not bool(torch.isfinite(flat).all()):
            raise StructDiffError(f"a covariance needs two or more finite samples, got {count}")
        rank = most if rank is None else rank
        if not 1 <= rank <= most:
            raise StructDiffError(
                f"{count} samples of {size} numbers have a covariance of rank 1 to {most}, "
                f"not {rank}"
            )
        mean = flat.mean(0)
        gap = flat - mean
        if size <= count:
            values, vectors = torch.linalg.eigh(gap.T @ gap / (count - 1))
            values, vectors = values.flip(0).clamp(min=0), vectors.flip(1)
        else:
            _, singular, transposed = torch.linalg.svd(gap, full_matrices=False)
            values, vectors = singular**2 / (count - 1), transposed.T
        total = gap.square().sum() / (count - 1)
        left = float(total - values[:rank].sum()) / max(size - rank, 1)
        rest = min(max(left, 0.0), float(values[rank - 1]))
        return cls(mean, vectors[:, :rank].clone(), values[:rank].clone(), rest)

    def matrix(self) -> Tensor:
        """The covariance itself, float64 (d, d)."""
        above = self.vectors * (self.values - self.rest)
        return above @ self.vectors.T + self.rest * torch.eye(len(self.mean)).to(above)

    def to(self, device: torch.device) -> GaussianCovariance:
        """On another device; the precision is float64 everywhere."""
        if self.mean.device == device:
            return self
        parts = (self.mean.to(device), self.vectors.to(device), self.values.to(device))
        return GaussianCovariance(*parts, self.rest)

    def posterior(self, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """Of x0 given xt: variances along the vectors (T, k) and in the rest (T,).

        Parameters
        ----------
        alpha, sigma
            Signal and noise scale, () or (T,).
        """
        a, s = (v.to(self.values).reshape(-1, 1) ** 2 for v in (alpha, sigma))
        rest = self.rest * s[:, 0] / (a[:, 0] * self.rest + s[:, 0])
        return self.values * s / (a * self.values + s), rest

    def noised(self, normal: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        r"""Turn standard normal numbers (B, d) into draws of N(alpha m, alpha^2 S + sigma^2)."""
        a, s = alpha.to(self.mean), sigma.to(self.mean)
        rest = torch.sqrt(a**2 * self.rest + s**2)
        along = torch.sqrt(a**2 * self.values + s**2) - rest
        z = normal.double()
        drawn = a * self.mean + rest * z + ((z @ self.vectors) * along) @ self.vectors.T
        return drawn.to(normal)


class _Move(NamedTuple):
    """Solution of one component, both (B, d): of the data prediction, and what J^T acts on."""

    kalman: Tensor
    """V A^T u."""
    pull: Tensor
    """A^T u, u = (A V A^T + r)^-1 (y - A D)."""


class _Solver:
    """The linear systems of one component: a Cholesky factor per mask pattern and time."""

    def __init__(self, prior: GaussianCovariance, observed: Tensor, noise: float) -> None:
        self.prior, self.noise = prior.to(observed.device), noise
        self.observed = observed.double()
        patterns, self.pattern = torch.unique(observed, dim=0, return_inverse=True)
        # Objects of one pattern are solved for together: their place among them.
        order = torch.argsort(self.pattern, stable=True)
        counts = torch.bincount(self.pattern, minlength=len(patterns))
        starts = counts.cumsum(0) - counts
        self.place = torch.empty_like(order)
        self.place[order] = (
            torch.arange(len(order), device=order.device) - starts[self.pattern[order]]
        )
        self.widest = int(counts.max())
        u = self.prior.vectors
        self.gram = torch.stack([u[seen].T @ u[seen] for seen in patterns])
        """U^T A^T A U per pattern, (P, k, k); no time in it."""

    def _solve(self, gram: Tensor, root: Tensor, level: Tensor, right: Tensor) -> Tensor:
        """(I + W^1/2 G W^1/2 / level)^-1 right for (P, G, k), root (1 or P, k), level (1 or P,)."""
        inner = gram * root[:, :, None] * root[:, None, :] / level[:, None, None]
        inner.diagonal(dim1=-2, dim2=-1).add_(1.0)
        return torch.cholesky_solve(right.mT, torch.linalg.cholesky(inner)).mT

    def __call__(self, gap: Tensor, alpha: Tensor, sigma: Tensor) -> _Move:
        """Solve for the residuals (B, d), 0 where nothing is known."""
        gap = gap.double()
        values, rest = self.prior.posterior(alpha, sigma)
        root = torch.sqrt((values - rest[:, None]).clamp(min=0))  # (1 or B, k)
        level = rest + self.noise  # (1 or B,)
        right = (gap @ self.prior.vectors) * root
        if len(root) == 1:
            groups = right.new_zeros(len(self.gram), self.widest, right.shape[1])
            groups = groups.index_put((self.pattern, self.place), right)
            solved = self._solve(self.gram, root, level, groups)[self.pattern, self.place]
        else:  # every object at a time of its own
            solved = self._solve(self.gram[self.pattern], root, level, right[:, None])[:, 0]
        along = (solved * root) @ self.prior.vectors.T / level[:, None]
        pull = (gap - self.observed * along) / level[:, None]
        return _Move(along + rest[:, None] * pull, pull)


class CovarianceGuidance(GuidedDenoiser):
    r"""A denoiser updated by observations under the covariance of a Gaussian prior.

    Exact for Gaussian data, whatever the mask; for other data V is an approximation that the noise
    level makes smaller and smaller on the way. Coordinates are solved for in float64.

    Parameters
    ----------
    denoiser
        Estimates E[x0 | xt].
    values, observed
        As for :class:`~structdiff.guidance.ObservationGuidance`. Objects with the same observed
        entries share one factorisation.
    covariance
        Of the free coordinates of every observed component, or of the one that is observed.
    noise
        r, variance of the noise of the observations; in squared units of the data.
    jacobian
        "prior" is the closed form, without a backward pass; "network" the network's own, one
        backward pass a call.

    Raises
    ------
    StructDiffError
        If the observations do not fit the system, a component has no covariance or one of another
        size, the noise is not positive, or the jacobian is unknown.
    """

    def __init__(
        self,
        denoiser: BaseDenoiser,
        values: State | Tensor,
        observed: Observed,
        covariance: GaussianCovariance | Mapping[str, GaussianCovariance],
        noise: float = 1e-3,
        jacobian: Jacobian = "prior",
    ) -> None:
        super().__init__(denoiser, values, observed)
        if jacobian not in get_args(Jacobian):
            raise StructDiffError(f"jacobian must be 'prior' or 'network', got {jacobian!r}")
        if not noise > 0:
            raise StructDiffError(
                f"the noise of the observations must be positive, got {noise}: take a small "
                "fraction of their variance where they are exact"
            )
        self.jacobian, self.noise_variance = jacobian, float(noise)
        known = self.observations.observed
        priors = by_component(covariance, next(iter(known)))
        self._solvers = {}
        for name, seen in known.items():
            prior = priors.get(name)
            if prior is None or len(prior.mean) != seen.shape[1]:
                size = "none" if prior is None else f"one of {len(prior.mean)}"
                raise StructDiffError(
                    f"component {name!r} needs the covariance of its {seen.shape[1]} free "
                    f"coordinates, got {size}"
                )
            self._solvers[name] = _Solver(prior, seen, self.noise_variance)

    def prior_given(self, name: str, normal: Tensor, error: Tensor) -> Tensor:
        """Draw a component's free coordinates from the prior given its observations.

        Parameters
        ----------
        name
            An observed component.
        normal, error
            Standard normal numbers, (B, d): for the prior and for the observations' noise.
        """
        solver, one = self._solvers[name], torch.ones((), dtype=torch.float64)
        draw = solver.prior.noised(normal.double(), one, 0 * one)
        seen = self.observations.observed[name].to(draw.device)
        y = self.observations.values[name].to(draw) + self.noise_variance**0.5 * error.double()
        gap = torch.where(seen, y - draw, 0.0)
        return (draw + solver(gap, 0 * one, one).kalman).to(normal)

    def _moves(self, data: State, times: Mapping[str, Tensor]) -> dict[str, _Move]:
        gaps, process = self.residuals(data), self.system.processes
        return {
            k: solver(gaps[k], process[k].alpha(times[k]), process[k].sigma(times[k]))
            for k, solver in self._solvers.items()
        }

    def _guided(
        self, read: Read, x: State, times: Mapping[str, Tensor]
    ) -> tuple[tuple[State, State | None], dict[str, Tensor]]:
        spaces = self.system.spaces
        if self.jacobian == "prior":
            output = read(x)
            moves = self._moves(output[0], times)
            return output, {
                k: spaces[k].project(spaces[k].unpack(move.kalman.to(x[k]), x[k]), x.masks.get(k))
                for k, move in moves.items()
            }

        def pull(data: State) -> dict[str, Tensor]:
            return {k: move.pull for k, move in self._moves(data, times).items()}

        output, gradient = self._pulled_back(read, x, pull)
        return output, {
            k: slope * _column(self._tweedie(times, k), slope) for k, slope in gradient.items()
        }


def _column(factor: Tensor, like: Tensor) -> Tensor:
    return factor.to(like).reshape(-1, *[1] * (like.dim() - 1))


def by_component(
    covariance: GaussianCovariance | Mapping[str, GaussianCovariance], name: str = TENSOR
) -> dict[str, GaussianCovariance]:
    """Read one covariance as that of the component ``name``."""
    if isinstance(covariance, GaussianCovariance):
        return {name: covariance}
    return dict(covariance)
