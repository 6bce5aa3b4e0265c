r"""Distances between samples: of the two laws that one score gives, or of either from the data.

The 2-Wasserstein distance :math:`W_2^2 = \min_\pi E|x - y|^2` is exact on a histogram in the plane,
sliced in more dimensions; the energy distance :math:`2E|x-y| - E|x-x'| - E|y-y'|` needs no plan.
Transport is POT's.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from structdiff.diagnostics.field import optional
from structdiff.errors import StructDiffError
from structdiff.noise import as_source
from structdiff.samplers.base import Source


def _pair(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Both as float64 (n, D) and (m, D)."""
    a, b = (v.detach().cpu().reshape(len(v), -1).double() for v in (first, second))
    if a.shape[1] != b.shape[1] or not len(a) or not len(b):
        raise StructDiffError(
            f"samples must be points of one dimension, got {tuple(first.shape)} and "
            f"{tuple(second.shape)}"
        )
    for number, values in enumerate((a, b), start=1):
        if not bool(torch.isfinite(values).all()):
            raise StructDiffError(f"sample {number} of the two holds values that are not finite")
    return a, b


def sliced_wasserstein(
    first: Tensor, second: Tensor, directions: int = 128, source: Source = 0
) -> float:
    """Sliced 2-Wasserstein distance; in one dimension the exact one.

    Parameters
    ----------
    first, second
        Samples, (n, D) and (m, D).
    directions
        Random directions to project on.
    source
        Randomness of the directions; fixed by default, so that two distances compare.

    Raises
    ------
    StructDiffError
        If the samples do not fit together, are not finite, or POT is missing.
    """
    a, b = _pair(first, second)
    ot = optional("ot", "POT", "ot")
    if a.shape[1] == 1:
        square = ot.wasserstein_1d(a[:, 0].numpy(), b[:, 0].numpy(), p=2)
        return math.sqrt(max(float(square), 0.0))
    drawn = as_source(source).normal("directions", a.new_empty(directions, a.shape[1]))
    unit = drawn / drawn.norm(dim=1, keepdim=True)
    projections = unit.T.numpy()
    return float(ot.sliced_wasserstein_distance(a.numpy(), b.numpy(), projections=projections, p=2))


def histogram_wasserstein(
    first: Tensor, second: Tensor, bins: int = 64, box: tuple[float, float] = (-4.0, 4.0)
) -> float:
    """Exact 2-Wasserstein distance of two samples in the plane, binned to the nodes of a grid.

    The rule of Deveney et al. 2023: every point goes to the nearest of ``bins`` x ``bins`` nodes
    over the box, points outside are left out, transport is exact on the occupied nodes.

    Parameters
    ----------
    first, second
        Samples, (n, 2) and (m, 2).
    bins
        Nodes per axis.
    box
        Ends of both axes.

    Raises
    ------
    StructDiffError
        If the samples are not in the plane, a sample has no point in the box, or POT is missing.
    """
    a, b = _pair(first, second)
    if a.shape[1] != 2:
        raise StructDiffError(
            f"the histogram distance is for points in the plane, got {a.shape[1]} dimensions: use "
            "sliced_wasserstein"
        )
    ot = optional("ot", "POT", "ot")
    (nodes_a, mass_a), (nodes_b, mass_b) = (_histogram(v, bins, box) for v in (a, b))
    cost = torch.cdist(nodes_a, nodes_b, compute_mode="donot_use_mm_for_euclid_dist") ** 2
    square = ot.emd2(mass_a.numpy(), mass_b.numpy(), cost.numpy(), numItermax=10_000_000)
    return math.sqrt(max(float(square), 0.0))


def _histogram(points: Tensor, bins: int, box: tuple[float, float]) -> tuple[Tensor, Tensor]:
    """Occupied nodes (K, 2) and their mass (K,), float64."""
    low, high = box
    width = (high - low) / (bins - 1)
    index = torch.round((points - low) / width).long()
    index = index[((index >= 0) & (index < bins)).all(1)]
    if not len(index):
        raise StructDiffError(f"no point of a sample lies in the box {box}: give a larger one")
    occupied, count = torch.unique(index[:, 0] * bins + index[:, 1], return_counts=True)
    nodes = torch.stack((occupied // bins, occupied % bins), dim=1).double() * width + low
    return nodes, count.double() / count.sum()


def energy_distance(first: Tensor, second: Tensor) -> float:
    """Energy distance: the root of 2 E|x - y| - E|x - x'| - E|y - y'| over all pairs.

    Parameters
    ----------
    first, second
        Samples, (n, D) and (m, D).
    """
    a, b = _pair(first, second)
    square = 2 * _mean_distance(a, b) - _mean_distance(a, a) - _mean_distance(b, b)
    return math.sqrt(max(square, 0.0))


def _mean_distance(a: Tensor, b: Tensor) -> float:
    """Mean distance of all pairs, in pieces that fit in memory."""
    rows = max(1, 2**24 // len(b))
    total = sum(float(torch.cdist(part, b).sum()) for part in a.split(rows))
    return total / (len(a) * len(b))


def gaussian_wasserstein(means: tuple[Tensor, Tensor], covariances: tuple[Tensor, Tensor]) -> float:
    r"""Exact 2-Wasserstein distance of two Gaussians.

    :math:`W_2^2 = |m_1 - m_2|^2 + \mathrm{tr}(C_1 + C_2 - 2(C_1^{1/2} C_2 C_1^{1/2})^{1/2})`.

    Parameters
    ----------
    means
        Two of (D,).
    covariances
        Two of (D, D).
    """
    ot = optional("ot", "POT", "ot")
    (m1, m2), (c1, c2) = (
        (v.detach().cpu().double().numpy() for v in pair) for pair in (means, covariances)
    )
    return float(ot.gaussian.bures_wasserstein_distance(m1, m2, c1, c2))
