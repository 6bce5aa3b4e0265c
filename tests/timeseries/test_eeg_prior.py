"""The Gaussian of EEG windows and the imputation that follows from it, against dense algebra."""

from __future__ import annotations

import math

import pytest
import torch

from structdiff.denoisers import Denoiser
from structdiff.errors import StructDiffError
from structdiff.guidance import CovarianceGuidance, GaussianCovariance, posterior_start
from structdiff.processes import EDM, System
from structdiff.samplers import get_sampler
from structdiff.state import State
from structdiff.timeseries.eeg_guidance import MissingGuidance, impute_guidance, precision_block
from structdiff.timeseries.eeg_prior import (
    WindowCovariance,
    WindowSkip,
    WindowWeight,
    fit_covariance,
    limit_bursts,
    shrink_to_neighbours,
)
from structdiff.timeseries.eeg_sampling import SignedNoise, complete, object_seeds, synthesize
from structdiff.timeseries.prior import GaussianSkip, GaussianWeight

SPACE, TIME = 0.9, 0.8


def ar(size, phi):
    place = torch.arange(size, dtype=torch.float64)
    return phi ** (place[:, None] - place).abs()


def known_prior(length=8, channels=5, level=0.0, space=SPACE, time=TIME):
    """Channels and times correlated like autoregressions: the covariance is their product."""
    times = torch.linalg.eigh(ar(length, time))
    space = torch.linalg.eigh(ar(channels, space))
    return WindowCovariance(
        torch.full((channels,), level, dtype=torch.float64),
        times.eigenvectors,
        space.eigenvectors.repeat(length, 1, 1),
        times.eigenvalues[:, None] * space.eigenvalues,
    )


def mixed_prior(length=6, channels=4):
    """Channel patterns that differ from one direction in time to the next."""
    generator = torch.Generator().manual_seed(0)
    square = torch.randn(length, channels, channels, generator=generator, dtype=torch.float64)
    values, patterns = torch.linalg.eigh(square @ square.mT + 0.1 * torch.eye(channels).double())
    times = torch.linalg.qr(torch.randn(length, length, generator=generator).double())[0]
    return WindowCovariance(
        torch.randn(channels, generator=generator).double(), times, patterns, values
    )


def dense(prior):
    """The covariance matrix over l C + c."""
    rows = prior.rows(torch.arange(prior.values.numel()))
    return rows @ torch.diag(prior.values.flatten()) @ rows.T


class Nothing(torch.nn.Module):
    def forward(self, x, log_snr, condition=None):
        return x.map(torch.zeros_like)


def exact_denoiser(prior, dtype=torch.float64):
    skip = WindowSkip(Nothing(), tuple(prior.values.shape)).to(dtype)
    skip.set_windows(prior)
    return Denoiser(skip, System({"x": EDM(0.01, 50.0)}), "data", scale_input=True).to(dtype)


def draws(prior, count, seed=0):
    z = torch.randn(
        count,
        *prior.values.shape,
        generator=torch.Generator().manual_seed(seed),
        dtype=torch.float64,
    )
    return prior.level + prior.windows(z * prior.values.sqrt())


def test_the_rows_are_an_eigenbasis_of_the_product_covariance():
    assert torch.allclose(dense(known_prior()), torch.kron(ar(8, TIME), ar(5, SPACE)), atol=1e-12)


def test_coordinates_go_back_and_forth():
    prior, x = mixed_prior(), torch.randn(3, 6, 4, dtype=torch.float64)
    assert torch.allclose(prior.windows(prior.coordinates(x)), x, atol=1e-12)
    flat = prior.rows(torch.arange(24))
    assert torch.allclose(prior.coordinates(x).flatten(1), x.flatten(1) @ flat, atol=1e-12)


def test_at_full_rank_the_low_rank_covariance_is_the_matrix():
    prior = mixed_prior()
    low = prior.low_rank(24)
    assert torch.allclose(low.matrix(), dense(prior), atol=1e-10)
    assert torch.equal(low.mean, prior.level.repeat(6))
    with pytest.raises(StructDiffError, match="rank"):
        prior.low_rank(0)


def test_a_low_rank_keeps_the_trace_and_the_largest_variances():
    prior = mixed_prior()
    low = prior.low_rank(5)
    assert low.matrix().trace().item() == pytest.approx(prior.values.sum().item())
    assert torch.allclose(low.values, prior.values.flatten().sort(descending=True).values[:5])


def test_the_fit_is_much_nearer_than_a_sample_covariance():
    prior = known_prior(24, 12, space=0.5, time=0.5)
    truth, x = dense(prior), draws(prior, 60)
    # A sample covariance of N windows: E|S' - S|^2 = ((tr S)^2 + tr S^2) / N.
    sampling = math.sqrt((truth.trace() ** 2 + truth.square().sum()).item() / 60)
    error = (dense(fit_covariance(x.float())) - truth).norm().item()
    assert error < 0.35 * sampling


def test_one_burst_does_not_decide_the_covariance():
    prior = known_prior(24, 12)
    x = draws(prior, 100)
    clean = fit_covariance(x).values.sum()
    x[0] *= 50
    # Drawn in to nine times the median power, one window of a hundred adds about 8 %.
    assert (fit_covariance(x).values.sum() / clean).item() == pytest.approx(1.08, abs=0.05)
    assert torch.equal(limit_bursts(x)[1:], x[1:])


def test_channel_patterns_alike_are_averaged_and_patterns_apart_are_kept():
    generator = torch.Generator().manual_seed(0)
    alike = torch.randn(40, 30, 4, generator=generator, dtype=torch.float64)
    raw = alike.mT @ alike / 30
    shrunk = shrink_to_neighbours(raw, 30.0)
    truth = torch.eye(4).double()
    assert (shrunk - truth).norm() < 0.5 * (raw - truth).norm()
    apart = torch.diag_embed(torch.tensor([[9.0, 1.0], [1.0, 9.0]]).double()).repeat(20, 1, 1)
    assert torch.allclose(shrink_to_neighbours(apart, 1e6), apart, rtol=1e-3)


def test_what_was_filtered_out_still_has_an_inverse():
    x = draws(known_prior(), 50)
    x[:, :3] = 0.0
    prior = fit_covariance(x)
    assert prior.values.min() > 0 and torch.linalg.cond(dense(prior)) < 1e9


def test_two_windows_are_needed():
    with pytest.raises(StructDiffError, match="two"):
        fit_covariance(torch.zeros(1, 4, 3))


def test_the_network_around_it_is_the_low_rank_one_at_full_rank():
    prior = mixed_prior()
    low = GaussianSkip(Nothing(), (6, 4), 24).double()
    low.set_covariance(prior.low_rank(24))
    own = WindowSkip(Nothing(), (6, 4)).double()
    own.set_windows(prior)
    x, level = State({"x": draws(prior, 3)}), {"x": torch.tensor([-2.0, 0.0, 2.0]).double()}
    assert torch.allclose(own(x, level)["x"], low(x, level)["x"], atol=1e-10)
    variance = torch.tensor([[0.1], [1.0], [9.0]]).double()
    y = x["x"].flatten(1)
    assert torch.allclose(own.denoise(y, variance), low.denoise(y, variance), atol=1e-10)
    # A square root of V need not be the same one, but V is.
    eye = torch.eye(24, dtype=torch.float64)
    for level_ in variance:
        roots = [m.spread(eye, level_.expand(24, 1)) for m in (own, low)]
        assert torch.allclose(roots[0] @ roots[0].T, roots[1] @ roots[1].T, atol=1e-10)
    weights = WindowWeight(prior.values), GaussianWeight(prior.low_rank(24))
    assert torch.allclose(weights[0](level["x"]), weights[1](level["x"]))


class Anything(torch.nn.Module):
    def forward(self, x, log_snr, condition=None):
        generator = torch.Generator().manual_seed(1)
        return x.map(lambda v: torch.randn(v.shape, generator=generator, dtype=v.dtype))


def filtered_prior():
    """Half of the directions in time hold next to nothing, as after a low-pass filter."""
    prior = known_prior(16, 5)
    scale = torch.ones(16, dtype=torch.float64)
    scale[:8] = 1e-6
    return WindowCovariance(prior.level, prior.times, prior.patterns, prior.values * scale[:, None])


def test_the_network_adds_only_what_the_prior_leaves_open():
    prior = filtered_prior()
    skip = WindowSkip(Anything(), (16, 5)).double()
    skip.set_windows(prior)
    y, level = draws(prior, 200), torch.zeros(200, dtype=torch.float64)
    out = skip(State({"x": y / math.sqrt(2)}), {"x": level})["x"]
    added = prior.coordinates(
        out - skip.denoise(y.flatten(1), torch.ones(200, 1).double()).unflatten(1, (16, 5))
    )
    # At rho = 1 the posterior variance of a direction is l / (l + 1); 200 windows: 10 %.
    expected = prior.values / (prior.values + 1)
    assert torch.allclose(added.square().mean(0) / expected, torch.ones(16, 5).double(), atol=0.5)


def test_an_error_of_the_network_is_not_blown_up_by_what_was_filtered_out():
    prior = filtered_prior()
    denoiser = exact_denoiser(prior)
    denoiser.network.backbone = Anything()
    x, seen = draws(prior, 50), torch.ones(50, 16, 5, dtype=torch.bool)
    seen[:, 8:] = False
    fixed = torch.zeros(50, 16, 0), object_seeds(0, 50, 0)
    settings = {"paths": 2, "rank": 64, "batch_size": 100, "progress": False}
    filled = complete(denoiser, get_sampler("dpm++", 20), prior, x, seen, *fixed, **settings)
    error = (filled - x)[:, 8:].square().mean().sqrt()
    # Wrong by a whole posterior deviation everywhere, the network may spoil the forecast, but not
    # beyond the data's own size; with errors of the same size in all directions this is 185.
    assert error < 2 * x.std()


MASKS = {
    "channel": (slice(None), 1),
    "segment": (slice(2, 4), slice(None)),
    "scattered": ([0, 1, 5, 5], [3, 0, 0, 2]),
}


@pytest.mark.parametrize("mask", MASKS)
def test_blocks_of_the_precision_are_those_of_the_inverse_matrix(mask):
    prior = mixed_prior()
    missing = torch.zeros(6, 4, dtype=torch.bool)
    missing[MASKS[mask]] = True
    entries = missing.flatten().nonzero()[:, 0]
    expected = torch.linalg.inv(dense(prior))[entries[:, None], entries]
    assert torch.allclose(precision_block(prior, entries), expected, atol=1e-9)


@pytest.mark.parametrize("mask", MASKS)
def test_the_update_is_the_dense_one_without_observation_noise(mask):
    prior, alpha, sigma = mixed_prior(), 1.0, 0.7
    seen = torch.ones(2, 6, 4, dtype=torch.bool)
    seen[0][MASKS[mask]] = False
    y = draws(prior, 2)
    denoiser = exact_denoiser(prior)
    guide = MissingGuidance(denoiser, State({"x": y}), {"x": seen}, prior)
    data = torch.randn(2, 6, 4, dtype=torch.float64)
    gap = torch.where(seen, y - data, 0.0).flatten(1)
    move = guide._move(gap, (alpha / sigma) ** 2)
    s = dense(prior)
    v = s - s @ torch.linalg.inv(s + sigma**2 * torch.eye(24).double()) @ s
    for k in range(2):
        a = torch.eye(24).double()[seen[k].flatten()]
        expected = v @ a.T @ torch.linalg.solve(a @ v @ a.T, a @ gap[k])
        assert torch.allclose(move[k], expected, atol=1e-8)


def test_it_agrees_with_the_shared_guidance_at_full_rank():
    prior = mixed_prior()
    seen = torch.ones(3, 6, 4, dtype=torch.bool)
    seen[:, 1:3, 2] = False
    y, denoiser = State({"x": draws(prior, 3)}), exact_denoiser(prior)
    own = MissingGuidance(denoiser, y, {"x": seen}, prior)
    shared = CovarianceGuidance(denoiser, y, {"x": seen}, prior.low_rank(24), noise=1e-9)
    x = torch.randn(3, 6, 4, dtype=torch.float64)
    for t in (0.001, 0.02, 0.5):
        assert torch.allclose(own(x, t)["x"], shared(x, t)["x"], atol=1e-5)
        pairs = own.pair(x, t), shared.pair(x, t)
        assert torch.allclose(pairs[0].noise["x"], pairs[1].noise["x"], atol=1e-4)


def test_windows_at_several_times_are_refused():
    prior = mixed_prior()
    y, seen = State({"x": draws(prior, 2)}), torch.ones(2, 6, 4, dtype=torch.bool)
    seen[:, 0] = False
    guide = MissingGuidance(exact_denoiser(prior), y, {"x": seen}, prior)
    with pytest.raises(StructDiffError, match="shared time"):
        guide(y, torch.tensor([0.1, 0.2]).double())


def test_the_smaller_system_is_solved():
    prior, y = mixed_prior(), State({"x": torch.zeros(1, 6, 4).double()})
    seen = torch.zeros(1, 6, 4, dtype=torch.bool)
    denoiser = exact_denoiser(prior)
    assert isinstance(impute_guidance(denoiser, y, seen, prior, 12), MissingGuidance)
    assert isinstance(impute_guidance(denoiser, y, seen, prior, 11), CovarianceGuidance)


def dropped_channel(paths, count=400, channel=2, prior=None):
    """Imputation of an inner channel by the exact denoiser: truth, filled in, both (N, L)."""
    prior = known_prior() if prior is None else prior
    x = draws(prior, count, seed=1)
    seen = torch.ones_like(x, dtype=torch.bool)
    seen[:, :, channel] = False
    filled = complete(
        exact_denoiser(prior),
        get_sampler("dpm++", 20),
        prior,
        torch.where(seen, x, torch.nan),
        seen,
        torch.zeros(count, 8, 0),
        object_seeds(0, count, 0),
        paths=paths,
        rank=64,
        batch_size=512,
        progress=False,
    )
    assert torch.allclose(filled[seen], x[seen], atol=2e-3)
    return x[:, :, channel], filled[:, :, channel]


def conditional_std():
    """Of an inner point of an AR(1) given both neighbours: sqrt((1 - phi^2) / (1 + phi^2))."""
    return math.sqrt((1 - SPACE**2) / (1 + SPACE**2))


def test_a_dropped_channel_comes_back_as_well_as_the_mathematics_allow():
    truth, filled = dropped_channel(paths=2)
    error = (filled - truth).square().mean().sqrt().item()
    # 0.324 of the standard deviation 1, which filling in zeros or the mean leaves; 3,200 entries
    # of about 800 independent ones: standard error 2.5 %.
    assert error == pytest.approx(conditional_std(), rel=0.06)
    zero = truth.square().mean().sqrt().item()
    assert error < 0.36 * zero


def test_the_mean_of_an_antithetic_pair_is_the_conditional_mean():
    prior = known_prior()
    _, filled = dropped_channel(paths=2, count=20)
    x = draws(prior, 20, seed=1).flatten(1)
    seen = torch.arange(40) % 5 != 2
    s = dense(prior)
    expected = x[:, seen] @ torch.linalg.solve(s[seen][:, seen], s[seen][:, ~seen])
    # Without any Monte Carlo error: what is left is the last noise level's, 0.01.
    assert torch.allclose(filled, expected, atol=0.01)


def test_draws_have_the_conditional_spread():
    truth, filled = dropped_channel(paths=1)
    # Truth and draw are two independent draws of one law around the same mean.
    ratio = (filled - truth).std().item() / (math.sqrt(2) * conditional_std())
    assert ratio == pytest.approx(1.0, rel=0.06)


def test_synthetic_windows_have_the_priors_covariance():
    prior = known_prior(level=0.5)
    x = synthesize(
        exact_denoiser(prior),
        get_sampler("dpm++", 20),
        prior,
        torch.zeros(4000, 8, 0),
        object_seeds(0, 4000, 0),
        1000,
        False,
    )
    s = GaussianCovariance.fit(x.flatten(1)).matrix()
    truth = dense(prior)
    sampling = math.sqrt((truth.trace() ** 2 + truth.square().sum()).item() / 4000)
    assert (s - truth).norm().item() < 2 * sampling
    assert (x.mean((0, 1)) - 0.5).abs().max() < 0.05


def test_windows_do_not_depend_on_the_batch_or_on_how_many_are_asked_for():
    prior = known_prior()

    def drawn(n, batch):
        seeds = object_seeds(3, n, 0)
        parts = prior, torch.zeros(n, 8, 0), seeds, batch, False
        return synthesize(exact_denoiser(prior), get_sampler("dpm++", 5), *parts)

    assert torch.allclose(drawn(7, 3)[:4], drawn(4, 4), atol=1e-6)


def test_signed_noise_is_antithetic():
    like = torch.zeros(2, 3)
    plus = SignedNoise(torch.tensor([5, 6]), torch.ones(2)).normal("x", like)
    minus = SignedNoise(torch.tensor([5, 6]), -torch.ones(2)).normal("x", like)
    assert torch.equal(plus, -minus) and plus.abs().min() > 0


def test_a_start_given_the_observations_keeps_them():
    prior = mixed_prior()
    y, seen = draws(prior, 2), torch.ones(2, 6, 4, dtype=torch.bool)
    seen[:, :, 0] = False
    guide = MissingGuidance(exact_denoiser(prior), State({"x": y}), {"x": seen}, prior)
    z = torch.randn(2, 24, dtype=torch.float64)
    clean = guide.prior_given("x", z, z).unflatten(1, (6, 4))
    assert torch.allclose(clean[seen], y[seen], atol=1e-9)
    start = posterior_start(guide, State({"x": y}), 0)  # type: ignore[arg-type]
    assert start["x"].std().item() == pytest.approx(50.0, rel=0.3)


def test_a_negative_seed_is_refused():
    with pytest.raises(StructDiffError, match="random_state"):
        object_seeds(-1, 2, 0)
