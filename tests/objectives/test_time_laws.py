"""Where training looks: quantiles of the laws, and draws stratified over the batch."""

from __future__ import annotations

import pytest
import torch
from scipy import stats

from structdiff.errors import StructDiffError
from structdiff.noise import PerObjectNoise, SeededNoise
from structdiff.objectives import (
    EDMLaw,
    Importance,
    LogitNormal,
    Uniform,
    draw_times,
    independent,
    law_under,
    low_discrepancy,
    stratified,
)
from structdiff.objectives.time_laws import bisect
from structdiff.processes import EDM, VE, VP, Cosine, FrozenClock, RectifiedFlow, SubVP, System
from structdiff.processes.system import identity_clock

LIKE = torch.empty(1000, 2)


def test_uniform_quantile_is_the_identity() -> None:
    u = torch.linspace(0.01, 0.99, 9, dtype=torch.float64)
    assert torch.equal(Uniform().quantile(u), u)


def test_logit_normal_quantiles_have_a_normal_logit() -> None:
    u = torch.linspace(0.01, 0.99, 9, dtype=torch.float64)
    logits = torch.logit(LogitNormal(0.4, 1.3).quantile(u))
    expected = torch.from_numpy(stats.norm.ppf(u.numpy(), 0.4, 1.3))
    torch.testing.assert_close(logits, expected)


def test_every_stratum_of_the_batch_gets_one_draw() -> None:
    times = draw_times(Uniform(), LIKE, 0.0, 1.0, SeededNoise(0))
    assert torch.equal((times * 1000).long(), torch.arange(1000))


@pytest.mark.parametrize(
    ("law", "cumulative"),
    [
        (Uniform(), stats.uniform.cdf),
        (LogitNormal(0.4, 1.3), lambda t: stats.norm.cdf(torch.logit(torch.tensor(t)), 0.4, 1.3)),
    ],
)
def test_draws_follow_the_law(law: object, cumulative: object) -> None:
    """Within a stratum too: the place inside each of 4 strata over 2,000 batches, by the
    Kolmogorov-Smirnov test.
    """
    like = torch.empty(4, 1)
    times = torch.stack([draw_times(law, like, 0.0, 1.0, SeededNoise(s)) for s in range(2000)])
    assert stats.kstest(times.flatten().numpy(), cumulative).pvalue > 0.01
    inside = torch.tensor(cumulative(times[:, 2].numpy())) * 4 - 2
    assert stats.kstest(inside.numpy(), "uniform").pvalue > 0.01


def test_times_are_stretched_over_the_system() -> None:
    times = draw_times(Uniform(), LIKE, 0.2, 0.6, SeededNoise(0))
    assert times.dtype == torch.float64
    assert 0.2 <= float(times.min()) < 0.201
    assert 0.599 < float(times.max()) <= 0.6


def test_extreme_draws_stay_inside() -> None:
    class Extreme:
        def normal(self, name, like, interval=None):
            return torch.full_like(like, 40.0)

    times = draw_times(LogitNormal(), torch.empty(3, 1), 1e-3, 0.999, Extreme())
    assert bool(((times > 1e-3) & (times < 0.999)).all())


# --- laws of the noise level -----------------------------------------------------------------
def two_components(**clocks: object) -> System:
    return System({"x": VP(), "a": VE()}, clocks=clocks)


@pytest.mark.parametrize("process", [VP(), VE(), Cosine(), EDM()], ids=lambda p: type(p).__name__)
def test_edm_law_is_the_truncated_log_normal(process: object) -> None:
    """ln(sigma/alpha) of the draws against scipy's truncated normal (Kolmogorov-Smirnov)."""
    system = System(process)
    law = law_under(EDMLaw(-0.8, 1.5), system)
    t = draw_times(law, LIKE, system.t_min, system.t_max, SeededNoise(0), independent)
    level = -process.half_log_snr(t).numpy()
    ends = [-float(process.half_log_snr(e)) for e in (system.t_min, system.t_max)]
    low, high = ((e + 0.8) / 1.5 for e in ends)
    assert stats.kstest(level, stats.truncnorm(low, high, -0.8, 1.5).cdf).pvalue > 0.01
    assert ends[0] <= level.min() and level.max() <= ends[1]


@pytest.mark.parametrize("process", [VP(), SubVP(), VE(), Cosine(), EDM(), RectifiedFlow()])
def test_density_of_importance_is_proportional_to_its_weight(process: object) -> None:
    """p(t) = 1 / Q'(u) by autograd; p sigma^2 / g^2 is one number, 1 over the integral."""
    system = System(process)
    u = torch.linspace(0.01, 0.99, 50, dtype=torch.float64, requires_grad=True)
    place = law_under(Importance(), system).quantile(u)
    (slope,) = torch.autograd.grad(place.sum(), u)
    t = system.t_min + (system.t_max - system.t_min) * place.detach()
    weight = process.diffusion_squared(t) / process.sigma(t) ** 2
    ratio = 1 / (slope * (system.t_max - system.t_min)) / weight
    span = process.half_log_snr(system.t_min) - process.half_log_snr(system.t_max)
    torch.testing.assert_close(ratio, torch.full_like(ratio, 1 / (2 * float(span))))


@pytest.mark.parametrize("clock", [identity_clock, lambda t: t**2], ids=["shared", "own"])
def test_importance_of_a_system_adds_the_rates_of_its_components(clock: object) -> None:
    """The sum of the half log-SNRs is uniform, whatever the clocks."""
    system = two_components(a=clock)
    u = torch.linspace(0, 1, 11, dtype=torch.float64)
    t = system.t_min + (1 - system.t_min) * law_under(Importance(), system).quantile(u)
    total = sum(system.half_log_snr(t).values())
    torch.testing.assert_close(total, total[0] + (total[-1] - total[0]) * u)
    assert float(t[0]) == pytest.approx(system.t_min) and float(t[-1]) == pytest.approx(1.0)


def test_a_named_component_decides_alone() -> None:
    system = two_components(a=lambda t: t**2)
    u = torch.linspace(0.1, 0.9, 9, dtype=torch.float64)
    t = system.t_min + (1 - system.t_min) * law_under(Importance("a"), system).quantile(u)
    level = system.half_log_snr(t)["a"].diff()
    torch.testing.assert_close(level, level[:1].expand(8))


def test_edm_law_over_several_components_asks_for_one() -> None:
    with pytest.raises(StructDiffError, match=r"one of \['x', 'a'\]"):
        law_under(EDMLaw(), two_components())


def test_an_unknown_or_frozen_component_is_named() -> None:
    with pytest.raises(StructDiffError, match=r"\['a'\] cannot be drawn.*\['x'\]"):
        law_under(Importance("a"), two_components(a=FrozenClock(0.0)))


def test_a_law_beside_the_systems_noise_levels_is_refused() -> None:
    with pytest.raises(StructDiffError, match="never falls on the system's noise levels"):
        law_under(EDMLaw(-40.0, 1.0), System(VP()))


def test_an_unbound_law_of_the_noise_level_is_refused_with_the_remedy() -> None:
    with pytest.raises(StructDiffError, match="law_under"):
        draw_times(EDMLaw(), LIKE, 0.0, 1.0, SeededNoise(0))


def test_bisection_inverts_an_increasing_function() -> None:
    value = torch.tensor([0.001, 0.3, 0.9], dtype=torch.float64)
    torch.testing.assert_close(bisect(lambda t: t**3, value), value ** (1 / 3))


# --- draws -----------------------------------------------------------------------------------
@pytest.mark.parametrize("draws", [stratified, independent, low_discrepancy])
def test_every_draw_of_a_batch_is_uniform_over_batches(draws: object) -> None:
    """Object 2 of 5 over 2,000 batches (stratified: within its stratum)."""
    like = torch.empty(5, 1)
    times = torch.stack(
        [draw_times(Uniform(), like, 0.0, 1.0, SeededNoise(s), draws)[2] for s in range(2000)]
    )
    values = times * 5 - 2 if draws is stratified else times
    assert stats.kstest(values.numpy(), "uniform").pvalue > 0.01


@pytest.mark.parametrize(
    ("draws", "expected"),
    [
        (independent, 4 / 45 / 64),
        (stratified, 4 / 36 / 64**3),
        (low_discrepancy, 1 / 12 / 64**2),
    ],
)
def test_variance_of_the_batch_mean_is_that_of_the_spread(draws: object, expected: float) -> None:
    """Of t^2 over batches of B = 64: Var(t^2)/B; E[(2 t)^2]/(12 B^3) with strata of width 1/B; and
    for a shared shift d in [0, 1/B) the variance of d (1^2 - 0^2).
    """
    like = torch.empty(64, 1)
    means = [
        draw_times(Uniform(), like, 0.0, 1.0, SeededNoise(s), draws).square().mean()
        for s in range(1000)
    ]
    assert float(torch.stack(means).var()) == pytest.approx(expected, rel=0.15)


def test_low_discrepancy_spreads_every_prefix() -> None:
    """Any first n points of van der Corput, shifted round the circle, have every arc of 2^-k
    entered n 2^-k times, give or take one, for the arcs that start at the shift.
    """
    u = torch.rand(64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    places = (low_discrepancy(u) - u[0]) % 1.0
    for n in range(1, 65):
        counts = torch.histc((places[:n] + 1e-12) % 1.0, bins=8, min=0, max=1)
        assert float((counts - n / 8).abs().max()) <= 1


def test_independent_times_of_an_object_do_not_depend_on_its_batch_mates() -> None:
    seeds = torch.arange(6)
    both = [
        draw_times(Uniform(), torch.empty(len(s), 1), 0.0, 1.0, PerObjectNoise(s), independent)
        for s in (seeds, seeds[2:])
    ]
    assert torch.equal(both[0][2:], both[1])
