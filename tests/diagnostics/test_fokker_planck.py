"""The residual of exact densities (none), perturbed ones and scaled ones (known)."""

from __future__ import annotations

import pytest
import torch

from structdiff import VE, VP, StructDiffError, System
from structdiff.diagnostics import fokker_planck_map
from structdiff.testbeds import GaussianGraph, GaussianMixture

SYSTEM = System(VP())
GMM3 = GaussianMixture.gmm3()
EXACT = GMM3.denoiser(SYSTEM)


@pytest.mark.parametrize("form", ["score", "log_density"])
def test_the_exact_mixture_has_no_residual(form):
    """diagnostics 10 (5): 1e-9, over noise levels -4 to 4."""
    found = fokker_planck_map(EXACT, GMM3.sample(32, 0), form=form, source=0)
    assert found.residual.abs().max() <= 1e-9


def test_the_residual_grows_in_proportion_to_a_perturbation(wrong):
    """core_processes 10 (9): a factor of 10 +- 0.2 per decade."""

    def value(size):
        def wave(x, t):
            phase = torch.cos(x[:, :1] + 2 * x[:, 1:])
            return size * torch.cat((phase, 2 * phase), dim=1)

        model = wrong(EXACT, 1.0, wave)
        return fokker_planck_map(model, GMM3.sample(64, 0), [0.0], source=0).value.item()

    assert value(1e-3) / value(1e-4) == pytest.approx(10, abs=0.2)


@pytest.mark.parametrize(("d", "expected"), [(0.05, 0.452), (0.10, 0.948)])
def test_a_scaled_score_has_the_cards_residual(wrong, d, expected):
    """diagnostics 7.4: rms over p_t and t ~ U for N(0, .25) under VP."""
    gaussian = GaussianMixture([1.0], [[0.0]], [[[0.25]]])
    model = wrong(gaussian.denoiser(SYSTEM), 1 + d)
    times = torch.linspace(0, 1, 41, dtype=torch.float64)
    middle = (times[1:] + times[:-1]) / 2
    found = fokker_planck_map(
        model,
        gaussian.sample(1000, 0),
        SYSTEM.half_log_snr(middle)["x"],
        form="log_density",
        source=1,
    )
    assert found.value.square().mean().sqrt() == pytest.approx(expected, rel=0.05)


def test_masked_graphs_with_two_processes_have_no_residual():
    graph = GaussianGraph([2, 3])
    system = System({"x": VP(), "adj": VE()}, graph.spaces())
    found = fokker_planck_map(graph.denoiser(system), graph.sample(0), [0.0], source=0)
    assert found.residual.abs().max() <= 1e-9


def test_directions_estimate_the_size_of_the_gradient(wrong):
    """E (q . R)^2 = |R|^2 along random signs."""
    model, x = wrong(EXACT, 1.1), GMM3.sample(64, 0)
    exact = fokker_planck_map(model, x, [0.0], source=0)
    projected = fokker_planck_map(model, x, [0.0], directions=16, source=0)
    assert projected.value.item() == pytest.approx(exact.value.item(), rel=0.1)


def test_a_model_without_log_density_is_told_to_take_the_score_form():
    graph = GaussianGraph([2])
    system = System({"x": VP(), "adj": VE()}, graph.spaces())
    with pytest.raises(StructDiffError, match="form='score'"):
        fokker_planck_map(graph.denoiser(system), graph.sample(0), [0.0], form="log_density")
