"""Distances between samples, where they are known."""

from __future__ import annotations

import math

import pytest
import torch

from structdiff import StructDiffError
from structdiff.diagnostics import (
    energy_distance,
    gaussian_wasserstein,
    histogram_wasserstein,
    sliced_wasserstein,
)


def points(n=500, d=2, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("shift", [(1, 0), (2, -3)])
def test_a_histogram_moved_on_its_grid_is_as_far_as_it_moved(shift):
    """diagnostics 10 (8): 1e-8."""
    width = 8 / 63
    x = points().clamp(-2.5, 2.5)
    moved = x + width * torch.tensor(shift, dtype=torch.float64)
    expected = width * math.hypot(*shift)
    assert histogram_wasserstein(x, moved) == pytest.approx(expected, abs=1e-8)


@pytest.mark.parametrize(("offset", "nodes"), [(0.4, 0), (0.6, 1)])
def test_points_go_to_the_nearest_node(offset, nodes):
    """The rule of Deveney et al."""
    width = 8 / 63
    node = torch.tensor([[-4 + 10 * width, -4 + 20 * width]], dtype=torch.float64)
    moved = node + torch.tensor([[offset * width, 0.0]], dtype=torch.float64)
    assert histogram_wasserstein(node, moved) == pytest.approx(nodes * width, abs=1e-8)


def test_points_outside_the_box_are_left_out():
    """The rule of Deveney et al."""
    x = points().clamp(-2.5, 2.5)
    with_outlier = torch.cat([x, torch.tensor([[100.0, 0.0]], dtype=torch.float64)])
    assert histogram_wasserstein(x, with_outlier) <= 1e-8


def test_a_sample_is_at_no_distance_from_itself():
    """diagnostics 10 (8)."""
    x = points(d=3)
    assert sliced_wasserstein(x, x) <= 1e-12
    assert energy_distance(x, x) <= 1e-6


def test_the_distance_is_exact_in_one_dimension():
    x = points(d=1)
    assert sliced_wasserstein(x, x.flip(0) * 2.0 + 1.0) == pytest.approx(
        math.sqrt(((x + 1.0) ** 2).mean()), rel=1e-9
    )


def test_a_sliced_translation_shrinks_by_the_root_of_the_dimension():
    """E (u . d)^2 = |d|^2 / D over the sphere."""
    x = points(d=4)
    found = sliced_wasserstein(x, x + 1.0, directions=4000)
    assert found == pytest.approx(1.0, rel=0.03)


def test_energy_distance_of_two_far_points_is_the_root_of_twice_their_distance():
    a, b = torch.zeros(3, 1), torch.full((2, 1), 8.0)
    assert energy_distance(a, b) == pytest.approx(4.0)


def test_gaussians_that_share_axes_differ_by_mean_and_deviations():
    means = torch.tensor([0.0, 0.0]), torch.tensor([3.0, 0.0])
    covariances = torch.diag(torch.tensor([1.0, 4.0])), torch.diag(torch.tensor([9.0, 4.0]))
    assert gaussian_wasserstein(means, covariances) == pytest.approx(math.sqrt(9 + 4), rel=1e-6)


def test_samples_that_do_not_fit_are_refused():
    with pytest.raises(StructDiffError, match="one dimension"):
        sliced_wasserstein(points(d=2), points(d=3))
    with pytest.raises(StructDiffError, match="plane"):
        histogram_wasserstein(points(d=3), points(d=3))
    with pytest.raises(StructDiffError, match=r"sample 2 .* not finite"):
        energy_distance(points(), points() / 0)
