"""Curl and loops of exact scores (none) and of rotated ones (known)."""

from __future__ import annotations

import math

import pytest
import torch

from structdiff import VE, VP, SeededNoise, StructDiffError, System
from structdiff.diagnostics import (
    Circle,
    Field,
    Rectangle,
    asymmetry,
    asymmetry_at,
    loop_integral,
    path_test,
    sub_jacobian_asymmetry,
)
from structdiff.testbeds import CorrelatedGaussian, GaussianGraph, GaussianMixture

SYSTEM = System(VE(sigma_min=1e-3, sigma_max=60.0))
GMM3 = GaussianMixture.gmm3()
EXACT = GMM3.denoiser(SYSTEM)
OMEGA = 0.3
ORIGIN = torch.zeros(1, 2, dtype=torch.float64)


# --- asymmetry ----------------------------------------------------------------------------------
def test_exact_scores_have_no_asymmetry():
    """diagnostics 10 (1)."""
    assert asymmetry(EXACT, GMM3.sample(64, 0), source=0).value.max() <= 1e-10


def test_rademacher_probes_are_exact_in_the_plane(rotated):
    """diagnostics 7.3: |J - J^T|_F^2 = 8 omega^2 = 0.72 whatever the probe."""
    found = asymmetry(rotated(EXACT, OMEGA), GMM3.sample(32, 0), [0.0], probes=1, source=0)
    assert torch.allclose(found.numerator, torch.full_like(found.numerator, 8 * OMEGA**2))


def test_gaussian_probes_estimate_the_rotation(rotated):
    """diagnostics 10 (1): within 5 % with 4096 of them."""
    model, x = rotated(EXACT, OMEGA), GMM3.sample(64, 0)
    found = asymmetry(model, x, [0.0], probes=64, law="gaussian", source=0)
    assert found.numerator.mean() == pytest.approx(8 * OMEGA**2, rel=0.05)


def test_the_scale_is_the_jacobians_norm():
    x = GMM3.sample(16, 0)["x"]
    field = Field(EXACT, x)
    t = float(field.time_at(0.0))
    _, square = asymmetry_at(field, x, t, field.probes(4096, SeededNoise(0)))
    expected = field.linearise("score", x, t).matrix().square().sum((1, 2))
    assert torch.allclose(square, expected, rtol=0.1)


def test_masked_symmetric_graphs_are_tested_in_their_free_coordinates():
    """diagnostics 8: seen as N^2 entries a symmetric matrix has an asymmetric Jacobian."""
    graph = GaussianGraph([2, 4, 3])
    system = System({"x": VP(), "adj": VE()}, graph.spaces())
    found = asymmetry(graph.denoiser(system), graph.sample(0), [-1.0, 1.0], source=0)
    assert found.value.max() <= 1e-10
    assert found.denominator.min() > 0


def test_a_component_alone_has_its_own_block():
    testbed = CorrelatedGaussian()
    system = System({"x": VP(), "a": VE()})
    x = testbed.sample(8, 0)
    found = asymmetry(testbed.denoiser(system), x, [0.0], components="a", probes=64, source=0)
    assert found.value.max() <= 1e-10
    joint = asymmetry(testbed.denoiser(system), x, [0.0], probes=64, source=0)
    assert not torch.allclose(found.denominator, joint.denominator)


def test_a_point_does_not_depend_on_its_batch_mates(rotated):
    model, x = rotated(EXACT, OMEGA), GMM3.sample(4, 0)
    together = asymmetry(model, x, [0.0], law="gaussian", source=[5, 6, 7, 8])
    alone = asymmetry(model, x.take(slice(2, 3)), [0.0], law="gaussian", source=[7])
    assert torch.allclose(together.numerator[:, 2], alone.numerator[:, 0])


def test_a_rotation_is_still_seen_in_float32_at_small_noise(rotated):
    """diagnostics 8: |J| = 1e4 at sigma 0.01; the diagonal part stays out of the difference."""
    model, x = rotated(EXACT, OMEGA), GMM3.sample(32, 0).to(torch.float32)
    found = asymmetry(model, x, [-math.log(0.01)], source=0)
    assert found.numerator.mean() == pytest.approx(8 * OMEGA**2, rel=0.1)


def test_a_whole_basis_gives_the_whole_asymmetry(rotated):
    found = sub_jacobian_asymmetry(
        rotated(EXACT, OMEGA), GMM3.sample(8, 0), [0.0], directions=2, source=0
    )
    assert torch.allclose(found.numerator, torch.full_like(found.numerator, 8 * OMEGA**2))


def test_more_directions_than_coordinates_are_refused():
    with pytest.raises(StructDiffError, match="3 independent directions"):
        sub_jacobian_asymmetry(EXACT, GMM3.sample(2, 0), [0.0], directions=3)


def test_levels_out_of_reach_are_named():
    with pytest.raises(StructDiffError, match="half log-SNR 12"):
        asymmetry(EXACT, GMM3.sample(2, 0), [12.0])


# --- loops --------------------------------------------------------------------------------------
@pytest.mark.parametrize(("radius", "expected"), [(1.0, 1.8850), (2.0, 7.5398)])
def test_a_loop_around_a_rotation_is_its_curl_times_its_area(rotated, radius, expected):
    """diagnostics 10 (2) and 7.3: 2 pi r^2 omega to 1e-3 with 256 nodes."""
    loops = [Circle(radius, points=256)]
    plane = torch.eye(2, dtype=torch.float64)[None]
    found = loop_integral(rotated(EXACT, OMEGA), ORIGIN, 0.0, loops, planes=plane)
    assert found.integral.item() == pytest.approx(2 * math.pi * radius**2 * OMEGA, abs=1e-3)
    assert found.integral.item() == pytest.approx(expected, abs=1e-3)


def test_loops_of_an_exact_score_vanish():
    """diagnostics 10 (2): 1e-10."""
    t = float(SYSTEM.processes["x"].time_at(0.0))
    x = GMM3.sample(8, 0)
    centres = SYSTEM.perturb(x, t, SYSTEM.noise(x, 1))
    found = loop_integral(EXACT, centres, 0.0, [Circle(0.5), Circle(1.0)], planes=3, source=0)
    assert found.integral.abs().max() <= 1e-10
    assert found.magnitude.min() > 0.1


def test_a_rectangle_encloses_its_area(rotated):
    found = loop_integral(
        rotated(EXACT, OMEGA),
        ORIGIN,
        0.0,
        [Rectangle(2.0, 0.5)],
        planes=torch.eye(2, dtype=torch.float64)[None],
    )
    assert found.integral.item() == pytest.approx(2 * OMEGA * 1.0, abs=1e-8)


def test_a_conditioned_field_gives_the_same_loops(rotated):
    """With a condition every point is a call of its own; without, they share one."""
    options = {"planes": 2, "source": 3}
    loops = [Circle(1.0, 32)]
    model = rotated(EXACT, OMEGA)
    plain = loop_integral(model, GMM3.sample(3, 0), 0.0, loops, **options)
    given = loop_integral(model, GMM3.sample(3, 0), 0.0, loops, condition=1, **options)
    assert torch.allclose(plain.integral, given.integral, atol=1e-12)


# --- paths --------------------------------------------------------------------------------------
PRESERVING = System(VP())


def _ends():
    t = float(PRESERVING.processes["x"].time_at(0.0))
    x, y = GMM3.sample(6, 0), GMM3.sample(6, 1)
    return tuple(PRESERVING.perturb(v, t, PRESERVING.noise(v, s)) for v, s in ((x, 2), (y, 3)))


def test_both_paths_and_the_flow_agree_on_an_exact_score():
    """Density ratios: the paths to quadrature, the flow to its prior's mismatch."""
    exact = GMM3.denoiser(PRESERVING)
    found = path_test(exact, *_ends(), 0.0)
    t = float(PRESERVING.processes["x"].time_at(0.0))
    start, end = (exact.log_density(x, t) for x in _ends())
    assert torch.allclose(found.straight, end - start, atol=1e-8)
    assert torch.allclose(found.corner, end - start, atol=1e-8)
    assert (found.likelihood - (end - start)).abs().max() <= 1e-2


def test_paths_around_a_rotation_differ_by_the_enclosed_curl(rotated):
    start, end = _ends()
    found = path_test(rotated(GMM3.denoiser(PRESERVING), OMEGA), start, end, 0.0, rtol=1e-3)
    gap = end["x"] - start["x"]
    # straight - corner: half of the rectangle, passed clockwise from start over (x_b, y_a).
    expected = -2 * OMEGA * gap[:, 0] * gap[:, 1] / 2
    assert torch.allclose(found.straight - found.corner, expected, atol=1e-8)
