"""Where training looks: quantiles of the laws, and draws stratified over the batch."""

from __future__ import annotations

import pytest
import torch
from scipy import stats

from structdiff.noise import SeededNoise
from structdiff.objectives import LogitNormal, Uniform, draw_times

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
