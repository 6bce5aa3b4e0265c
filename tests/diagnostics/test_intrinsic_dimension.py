"""Dimensions of surfaces that are known: a sphere in five dimensions, Gaussians, graphs."""

from __future__ import annotations

import math

import pytest
import torch

from structdiff import VE, VP, StructDiffError, System
from structdiff.diagnostics import effective_rank, flipd, flow_spectrum, normal_bundle
from structdiff.testbeds import CorrelatedGaussian, GaussianGraph, GaussianMixture, Sphere

SYSTEM = System(VE(sigma_min=1e-3, sigma_max=10.0))
SPHERE = Sphere()
LEVELS = torch.logspace(math.log10(3), math.log10(0.003), 13, dtype=torch.float64).tolist()
EXACT = SPHERE.denoiser(SYSTEM)


def start(rho, n=4, system=SYSTEM, testbed=SPHERE):
    t = float(system.processes["x"].time_at(-math.log(rho)))
    x = testbed.sample(n, 0)
    return system.perturb(x, t, system.noise(x, 1))


# --- FLIPD --------------------------------------------------------------------------------------
def test_a_sphere_has_two_dimensions_at_small_noise():
    """diagnostics 10 (7): 2.00 +- 0.02 at sigma 0.1."""
    found = flipd(EXACT, SPHERE.sample(20, 0), [0.1])
    assert (found.dimension - 2).abs().max() <= 0.02


def test_the_sphere_at_large_noise_is_the_cards():
    """diagnostics 7.5: 1.9946 at sigma 0.5."""
    found = flipd(EXACT, SPHERE.sample(20, 0), [0.5])
    assert found.value.item() == pytest.approx(1.9946, abs=1e-4)


def test_probes_estimate_the_dimension():
    found = flipd(EXACT, SPHERE.sample(50, 0), [0.1], probes=16, source=0)
    assert found.value.item() == pytest.approx(2.0, abs=4 * float(found.standard_error))
    assert 0 < float(found.standard_error) < 0.1


def test_scale_does_not_matter_under_another_process():
    """Under VP the same noise level says the same: everything is read in v = x / alpha."""
    system = System(VP(t_min=1e-4))
    x = SPHERE.sample(10, 0)
    found = flipd(SPHERE.denoiser(system), x, [0.5, 0.1])
    assert torch.allclose(found.dimension, flipd(EXACT, x, [0.5, 0.1]).dimension, atol=1e-8)


def test_flipd_is_the_slope_of_the_log_density():
    """D + d log p / d ln rho, by differences of the mixture's own density."""
    mixture = GaussianMixture.gmm3()
    denoiser = mixture.denoiser(SYSTEM)
    x = mixture.sample(16, 0)
    step = 1e-4

    def log_density(log_rho):
        return denoiser.log_density(x, float(SYSTEM.processes["x"].time_at(-log_rho)))

    slope = (log_density(math.log(0.3) + step) - log_density(math.log(0.3) - step)) / (2 * step)
    assert torch.allclose(flipd(denoiser, x, [0.3]).dimension[0], 2 + slope, atol=1e-6)


def test_the_plateau_leaves_out_the_levels_that_do_not_resolve():
    found = flipd(EXACT, SPHERE.sample(5, 0), [2.0, 1.0, 0.2, 0.1, 0.05])
    dimension, rho = found.plateau(3)
    assert (dimension - 2).abs().max() <= 1e-6
    assert torch.allclose(rho, torch.full_like(rho, 0.1), rtol=1e-6)


def test_masked_graphs_have_as_many_dimensions_as_free_coordinates():
    """Full-dimensional data; noise well below its scales."""
    graph = GaussianGraph([2, 4, 3])
    system = System({"x": VE(sigma_min=1e-3), "adj": VE(sigma_min=1e-3)}, graph.spaces())
    found = flipd(graph.denoiser(system), graph.sample(0), [0.002])
    assert torch.allclose(found.dimension[0], found.size.double(), atol=0.01)


def test_a_component_alone_has_its_own_dimension():
    testbed = CorrelatedGaussian()
    system = System({"x": VE(sigma_min=1e-3), "a": VE(sigma_min=1e-3)})
    denoiser, x = testbed.denoiser(system), testbed.sample(4, 0)
    for components, expected in (("x", 2), ("a", 3), (None, 5)):
        found = flipd(denoiser, x, [0.002], components=components)
        assert (found.dimension - expected).abs().max() <= 0.01


def test_the_denoisers_trace_is_its_effective_rank():
    """x0 = coth k - 1/k along v, k = |v| / rho^2: two tangents of 1 - rho^2, a radius of rho^2."""
    found = effective_rank(EXACT, SPHERE.sample(5, 0), [0.2, 0.1, 0.01])
    assert torch.allclose(found.value, 2 - found.rho**2, atol=1e-6)


def test_noise_levels_out_of_reach_are_named():
    with pytest.raises(StructDiffError, match="out of reach"):
        flipd(EXACT, SPHERE.sample(2, 0), [100.0])
    with pytest.raises(StructDiffError, match="positive"):
        flipd(EXACT, SPHERE.sample(2, 0), [0.0])


# --- normal bundle ------------------------------------------------------------------------------
@pytest.mark.parametrize("rho", [0.05, 0.01])
def test_scores_around_the_sphere_span_its_normals(rho):
    """diagnostics 10 (7): k = 2 in at least 19 of 20."""
    found = normal_bundle(EXACT, SPHERE.sample(20, 0), rho, source=0)
    assert (found.dimension == 2).sum() >= 19


def test_normal_directions_have_singular_values_near_one():
    """diagnostics 7.5 at sigma 0.01: 1.02 .91 .87 | .012 .008."""
    spectrum = normal_bundle(EXACT, SPHERE.sample(20, 0), 0.01, source=0).singular_values
    assert (spectrum[:, :3] - 1).abs().max() <= 0.25
    assert spectrum[:, 3:].max() <= 0.02


def test_a_point_has_the_same_normals_whatever_its_batch_mates():
    x = SPHERE.sample(3, 0)
    together = normal_bundle(EXACT, x, 0.05, source=[4, 5, 6])
    alone = normal_bundle(EXACT, x.take(slice(1, 2)), 0.05, source=[5])
    assert torch.allclose(together.singular_values[1], alone.singular_values[0])


# --- flow Jacobian ------------------------------------------------------------------------------
def test_the_flow_keeps_tangents_and_shrinks_normals():
    """diagnostics 10 (7): slopes within 0.05 of {0, 0, 1, 1, 1}.

    Over 0.03 to 0.003: at larger noise the tangent's slope is c rho, c the noise along the radius
    in units of rho, which is 0.1 for a 2-sigma draw over the decade from 0.1 to 0.01.
    """
    found = flow_spectrum(EXACT, start(3.0), LEVELS)
    expected = torch.tensor([0.0, 0.0, 1.0, 1.0, 1.0], dtype=torch.float64)
    assert (found.slopes - expected).abs().max() <= 0.05
    assert found.dimension.tolist() == [2] * 4


def test_flat_directions_shrink_exactly_as_the_noise():
    """diagnostics 7.5: .0033 = .01 / 3 in the two directions that hold no data."""
    found = flow_spectrum(EXACT, start(3.0), [3.0, 1.0, 0.1, 0.01])
    flat = found.singular_values[-1, :, 3:]
    assert torch.allclose(flat, torch.full_like(flat, 0.01 / 3), rtol=1e-4)


def test_a_rotation_lets_the_tangents_drift(wrong):
    """diagnostics 7.5: k is still found, but the tangent's slope is no longer 0."""

    def mix(x, t):  # turns a tangent and a normal direction, stronger at small noise
        sigma = float(SYSTEM.sigma(t)["x"])
        turned = torch.zeros_like(x)
        turned[:, 0], turned[:, 4] = -x[:, 4], x[:, 0]
        return 0.3 / sigma**2 * turned

    found = flow_spectrum(wrong(EXACT, 1.0, mix), start(3.0, n=2), LEVELS)
    plain = flow_spectrum(EXACT, start(3.0, n=2), LEVELS)
    assert found.dimension.tolist() == [2, 2]
    assert (found.slopes[:, :2].abs().max(1).values > 2 * plain.slopes[:, :2].abs().max()).all()


def test_a_random_block_wider_than_the_surface_finds_it():
    found = flow_spectrum(EXACT, start(3.0), LEVELS, columns=4, source=0)
    assert found.singular_values.shape[-1] == 4
    assert found.dimension.tolist() == [2] * 4


def test_from_the_prior_down_to_the_end_of_the_process():
    """Default levels of a process that stops before 0.003."""
    system = System(VP())
    prior = system.prior(SPHERE.sample(2, 0), 1)
    found = flow_spectrum(SPHERE.denoiser(system), prior)
    assert found.dimension.tolist() == [2, 2]
    assert found.rho[-1].item() == pytest.approx(0.0105, abs=1e-4)


def test_levels_must_fall_over_a_decade():
    with pytest.raises(StructDiffError, match="decade"):
        flow_spectrum(EXACT, start(3.0), [3.0, 2.0, 1.0])
