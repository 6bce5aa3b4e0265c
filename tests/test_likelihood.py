"""The likelihood by the probability flow, against densities known in closed form."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import nn

from structdiff import VE, VP, Denoiser, FrozenClock, Positive, State, StructDiffError, System
from structdiff.likelihood import likelihood, log_likelihood
from structdiff.processes import RectifiedFlow
from structdiff.testbeds import CorrelatedGaussian, GaussianGraph, GaussianMixture, LogNormalMixture

SYSTEM = System(VP(t_min=1e-5))
FAR = VP(beta_max=40.0)
"""alpha(1) = 4e-5: its prior forgets the data, so that only the solver's error is left."""
GMM3 = GaussianMixture.gmm3()


def smoothed_log_density(mixture, system, x):
    """log p of x0 + rho(t_min) noise: the density that the flow is asked for."""
    alpha = {k: float(v) for k, v in system.alpha(system.t_min).items()}
    volume = sum(width * math.log(alpha[k]) for k, width in mixture.components.items())
    return mixture.denoiser(system).log_density(x * alpha, system.t_min) + volume


def gaussian_log_density(x, mean, covariance):
    return torch.distributions.MultivariateNormal(mean, covariance).log_prob(x)


# --- one component ------------------------------------------------------------------------------
def test_exact_divergence_gives_the_mixtures_density_to_a_hundredth():
    """core_processes 2.8 and 10 (10): 7e-3 at worst, all of it the prior's mismatch."""
    x = GMM3.sample(64, 0)
    found = log_likelihood(GMM3.denoiser(SYSTEM), x)
    assert (found - smoothed_log_density(GMM3, SYSTEM, x)).abs().max() <= 1e-2


def test_what_is_left_is_the_priors_mismatch():
    """core_processes 2.8: unchanged at a tolerance a thousand times smaller."""
    x, denoiser = GMM3.sample(64, 0), GMM3.denoiser(SYSTEM)
    loose, tight = (log_likelihood(denoiser, x, rtol=r, atol=r) for r in (1e-5, 1e-8))
    assert (loose - tight).abs().max() <= 5e-4


def test_integrating_over_time_gives_the_same_density():
    x, denoiser = GMM3.sample(16, 0), GMM3.denoiser(SYSTEM)
    over_time = log_likelihood(denoiser, x, variable="time")
    assert (over_time - log_likelihood(denoiser, x)).abs().max() <= 5e-4


def test_four_times_the_probes_halve_the_error():
    """core_processes 10 (10): a factor 1.5 to 2.7; sqrt(4) in expectation."""
    x, denoiser = GMM3.sample(64, 0), GMM3.denoiser(SYSTEM)
    exact = log_likelihood(denoiser, x, rtol=1e-4, atol=1e-4)

    def error(probes):
        estimates = [
            log_likelihood(
                denoiser, x, source=list(range(o, o + 64)), probes=probes, rtol=1e-4, atol=1e-4
            )
            for o in (0, 100, 200)
        ]
        return (torch.cat(estimates) - exact.repeat(3)).square().mean().sqrt()

    errors = [error(k) for k in (1, 4, 16)]
    assert all(1.5 <= a / b <= 2.7 for a, b in pairwise(errors))


def test_gaussian_probes_are_unbiased_with_a_larger_variance_than_rademacher_ones():
    """Var = 2 |J|_F^2 / K against 2 (|J|_F^2 - sum J_ii^2) / K."""
    x, denoiser = GMM3.sample(64, 0), GMM3.denoiser(SYSTEM)
    options = {"source": 3, "probes": 16, "rtol": 1e-4, "atol": 1e-4}
    exact = log_likelihood(denoiser, x, rtol=1e-4, atol=1e-4)
    gaussian = log_likelihood(denoiser, x, law="gaussian", **options) - exact
    rademacher = log_likelihood(denoiser, x, **options) - exact
    assert gaussian.mean().abs() <= 4 * gaussian.std() / 8
    assert gaussian.std() > 2 * rademacher.std()


def test_singular_process_is_integrated_between_its_own_ends():
    system = System(RectifiedFlow())
    x = GMM3.sample(16, 0)
    found = log_likelihood(GMM3.denoiser(system), x)
    assert (found - smoothed_log_density(GMM3, system, x)).abs().max() <= 2e-3


def test_a_later_end_asks_for_a_smoother_density():
    x, denoiser = GMM3.sample(16, 0), GMM3.denoiser(SYSTEM)
    found = log_likelihood(denoiser, x, t_min=0.3)
    alpha = float(SYSTEM.alpha(0.3)["x"])
    expected = denoiser.log_density(x * alpha, 0.3) + 2 * math.log(alpha)
    assert (found - expected).abs().max() <= 1e-2


def test_float32_data_is_integrated_in_float64():
    x, denoiser = GMM3.sample(16, 0), GMM3.denoiser(SYSTEM)
    found = log_likelihood(denoiser, x.to(torch.float32), rtol=1e-4, atol=1e-4)
    assert found.dtype == torch.float64
    assert (found - log_likelihood(denoiser, x)).abs().max() <= 1e-2


# --- systems ------------------------------------------------------------------------------------
def graph_density(graph, x, rho, given=()):
    """Log-density of every graph's free entries plus noise, perhaps given some components."""
    values = []
    for i in range(x.batch_size):
        parts, means, loads, variances, known = [], [], [], [], []
        for name in ("x", "adj"):
            mask = graph.like.masks[name][i].expand_as(x[name][i])
            if name == "adj":
                mask = mask & torch.ones_like(mask).triu(1)
            entries = x[name][i][mask]
            parts.append(entries)
            means.append(torch.full_like(entries, graph.means[name]))
            loads.append(torch.full_like(entries, graph.loadings[name]))
            noise = 0.0 if name in given else rho[name]
            variances.append(torch.full_like(entries, graph.scales[name] ** 2 + noise**2))
            known.append(torch.full_like(entries, float(name in given)))
        point, mean, load = torch.cat(parts), torch.cat(means), torch.cat(loads)
        covariance = torch.diag(torch.cat(variances)) + torch.outer(load, load)
        value = gaussian_log_density(point, mean, covariance)
        held = torch.cat(known).bool()
        if held.any():
            value = value - gaussian_log_density(point[held], mean[held], covariance[held][:, held])
        values.append(value)
    return torch.stack(values)


def rho_at_end(system):
    return {
        k: float(system.sigma(system.t_min)[k] / system.alpha(system.t_min)[k])
        for k in system.processes
    }


@pytest.mark.parametrize("clocks", [None, {"adj": lambda t: t**2}], ids=["one-clock", "two-clocks"])
def test_masked_graphs_have_their_joint_gaussian_density(clocks):
    """Free coordinates only: absent nodes and mirrored pairs do not count."""
    graph = GaussianGraph([2, 4, 3])
    processes = {"x": FAR, "adj": VE(sigma_max=1e4)}
    system = System(processes, graph.spaces(), clocks)
    x = graph.sample(1)
    found = log_likelihood(graph.denoiser(system), x)
    assert (found - graph_density(graph, x, rho_at_end(system))).abs().max() <= 1e-3


def test_a_component_that_is_conditioned_on_gives_the_conditional_density():
    graph = GaussianGraph([2, 4, 3])
    clocks = {"adj": FrozenClock(0.0)}
    system = System({"x": FAR, "adj": VE()}, graph.spaces(), clocks)
    x = graph.sample(1)
    found = likelihood(graph.denoiser(system), x)
    expected = graph_density(graph, x, rho_at_end(system), given=("adj",))
    assert (found.log_likelihood - expected).abs().max() <= 1e-3
    assert found.dimension.tolist() == [4, 8, 6]


def test_two_components_under_different_processes_have_their_joint_density():
    testbed = CorrelatedGaussian()
    system = System({"x": FAR, "a": VE(sigma_max=1e4)})
    x = testbed.sample(16, 2)
    found = log_likelihood(testbed.denoiser(system), x)
    assert (found - smoothed_log_density(testbed, system, x)).abs().max() <= 1e-3


def test_positive_values_pay_for_their_logarithm():
    """Log-normal mixture: log p(x) = log p(ln x) - ln x."""
    testbed = LogNormalMixture()
    system = System(VP(t_min=1e-5), {"x": Positive()})
    x = testbed.sample(32, 0)
    found = likelihood(testbed.denoiser(system), x)
    logs = x["x"].log()
    expected = smoothed_log_density(testbed, system, State({"x": logs})) - logs[:, 0]
    assert (found.log_likelihood - expected).abs().max() <= 1e-2
    assert torch.equal(found.change_of_variables, -logs[:, 0])


def test_an_object_does_not_depend_on_its_batch_mates_beyond_the_tolerance():
    """Probes by object; the common step size moves the answer within the solver's error only."""
    graph = GaussianGraph([2, 4, 3])
    system = System({"x": VP(), "adj": VE()}, graph.spaces())
    denoiser, x = graph.denoiser(system), graph.sample(1)
    together = log_likelihood(denoiser, x, source=[7, 8, 9], probes=2)
    lonely = GaussianGraph([3])
    part = State({k: v[2:, :3, :3] if k == "adj" else v[2:, :3] for k, v in x.items()})
    part = part.with_masks(lonely.like.masks)
    alone = log_likelihood(lonely.denoiser(system), part, source=[9], probes=2)
    assert (together[2] - alone[0]).abs() <= 1e-3


def test_the_terms_add_up_and_evaluations_are_counted():
    calls = []

    class Network(nn.Module):
        def forward(self, x, log_snr, condition):
            calls.append(1)
            return x * 0.5

    x = GMM3.sample(4, 0)
    found = likelihood(Denoiser(Network(), SYSTEM, "data"), x, exact=True)
    total = found.prior + found.divergence + found.change_of_variables
    assert torch.equal(found.log_likelihood, total)
    assert found.nfe == len(calls)


def test_an_ignored_component_is_drawn_from_its_prior():
    """A clock frozen at 1: what x says there must not matter."""
    testbed = CorrelatedGaussian()
    system = System({"x": VP(), "a": VE()}, clocks={"a": FrozenClock(1.0)})
    x = testbed.sample(4, 2)
    other = x.replace(a=x["a"] + 3.0)
    first, second = (log_likelihood(testbed.denoiser(system), s, source=5) for s in (x, other))
    assert torch.equal(first, second)


# --- bits ---------------------------------------------------------------------------------------
def test_bytes_in_the_unit_interval_pay_eight_bits():
    """Song et al. 2021, score_sde: offset 8 for [0, 1], 7 for [-1, 1]."""
    found = likelihood(GMM3.denoiser(SYSTEM), GMM3.sample(4, 0))
    plain = found.bits_per_dimension()
    assert torch.allclose(plain, -found.log_likelihood / (2 * math.log(2)))
    assert torch.allclose(found.bits_per_dimension(1 / 256), plain + 8)
    assert torch.allclose(found.bits_per_dimension(2 / 256), plain + 7)


# --- errors -------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"probes": 0}, "probes"),
        ({"probes": 2, "exact": True}, "not for both"),
        ({"t_min": 0.0}, "t_min"),
        ({"rtol": 0.0}, "tolerances"),
        ({"variable": "rho"}, "variable"),
        ({"probes": 2, "law": "cauchy"}, "rademacher"),
    ],
)
def test_bad_arguments_are_named(options, words):
    with pytest.raises(StructDiffError, match=words):
        log_likelihood(GMM3.denoiser(SYSTEM), GMM3.sample(2, 0), **options)


def test_values_outside_their_space_are_named_by_object():
    testbed = LogNormalMixture()
    system = System(VP(), {"x": Positive()})
    with pytest.raises(StructDiffError, match=r"object 1 .*'x'"):
        log_likelihood(testbed.denoiser(system), torch.tensor([[1.0], [-1.0]]))


def test_active_dropout_is_refused():
    class Network(nn.Sequential):
        def forward(self, x, log_snr, condition):
            return x.map(super().forward)

    denoiser = Denoiser(Network(nn.Linear(2, 2), nn.Dropout(0.5)), SYSTEM)
    x = GMM3.sample(2, 0).to(torch.float32)
    with pytest.raises(StructDiffError, match="eval"):
        log_likelihood(denoiser, x)
    assert log_likelihood(denoiser.eval(), x).shape == (2,)
