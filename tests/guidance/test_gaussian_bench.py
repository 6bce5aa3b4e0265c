"""Exact Gaussian forecasts: what each guidance gets right, without training anything.

AR(1) windows with phi = 0.9, unit variance, L = 48, of which 36 points are observed; exact
denoiser; the paper's chain of 100 links. "error" is the root mean square over the horizon of the
ensemble mean minus the exact conditional mean, averaged over series; "spread" the ensemble's
standard deviation over the exact one; "misfit" the root mean square on the observed points. The
figures of the published guidance are a measurement of its code on this bench, for one draw of 40
series. The error depends on the draw, by 7 to 14 %: so does the bias of a forecast, which is
proportional to what was observed.
"""

import pytest
import torch

from structdiff.guidance import (
    CovarianceGuidance,
    GaussianCovariance,
    ObservationGuidance,
    path_levels,
    posterior_start,
    published_scale,
)
from structdiff.processes import DiscreteVP, System
from structdiff.samplers import Karras, get_sampler
from structdiff.state import State
from structdiff.testbeds import StationaryGaussian

torch.set_num_threads(1)
CHAIN = DiscreteVP(100, 1e-4, 0.1, prior_scale=1.0)
SYSTEM = System(CHAIN)
PROCESS = StationaryGaussian.ar1(0.9, 48)
DENOISER = PROCESS.denoiser(SYSTEM)
PRIOR = GaussianCovariance.from_matrix(PROCESS.covariance())
SEEN = torch.arange(48) < 36
PATHS = 100
EVERY_LINK = {"grid": CHAIN.trailing(100)}
KARRAS = {"grid": Karras()}


def bench(guide, sampler, steps, options, series=100, matched=False):
    """Error per series (series,), spread and misfit of forecasts."""
    truth = PROCESS.sample(series, 0)["x"]
    mean, covariance = PROCESS.conditional(truth, SEEN)
    y = truth.repeat_interleave(PATHS, 0)
    guided = guide(y, SEEN.expand_as(y))
    like = State({"x": torch.zeros_like(y)})
    start = posterior_start(guided, like, 1) if matched else SYSTEM.prior(like, 1)
    drawn = get_sampler(sampler, steps, **options)(guided, start, source=2)["x"]
    paths = drawn.unflatten(0, (series, PATHS))
    future = paths[..., ~SEEN]
    error = (future.mean(1) - mean).square().mean(1).sqrt()
    spread = (future.var(1).mean(0) / covariance.diagonal()).sqrt().mean()
    misfit = (paths - truth[:, None])[..., SEEN].square().mean().sqrt()
    return error, float(spread), float(misfit)


def squared(scale):
    return lambda y, seen: ObservationGuidance(DENOISER, y, seen, scale=scale)


def quantile(scale):
    def guide(y, seen):
        levels = path_levels(PATHS, len(y) // PATHS)
        return ObservationGuidance(DENOISER, y, seen, "quantile", levels, scale)

    return guide


def covariance(jacobian="prior"):
    return lambda y, seen: CovarianceGuidance(DENOISER, y, seen, PRIOR, jacobian=jacobian)


def rows(*quick, **slow):
    return [*quick, *(pytest.param(*r, marks=pytest.mark.paper) for r in slow.values())]


@pytest.mark.parametrize(
    ("guide", "figures"),
    [
        (squared(published_scale(CHAIN, 1.0)), (0.211, 0.98, 0.42)),
        (quantile(published_scale(CHAIN, 4.0)), (0.193, 1.08, 0.64)),
    ],
    ids=["MS-1", "Q-4"],
)
def test_published_guidance_lands_within_a_tenth_of_its_figures(guide, figures):
    error, spread, misfit = bench(guide, "ddpm", 100, EVERY_LINK)
    for got, figure in zip((float(error.mean()), spread, misfit), figures, strict=True):
        assert abs(got / figure - 1) < 0.1


@pytest.mark.paper
@pytest.mark.parametrize(
    ("guide", "sampler", "figures"),
    [
        (squared(published_scale(CHAIN, 1.0)), "ddpm", (0.211, 0.98, 0.42)),
        (squared(published_scale(CHAIN, 2.0)), "ddpm", (0.230, 0.94, 0.33)),
        (squared(published_scale(CHAIN, 4.0)), "ddpm", (0.268, 0.92, 0.26)),
        (quantile(published_scale(CHAIN, 4.0)), "ddpm", (0.193, 1.08, 0.64)),
        (quantile(published_scale(CHAIN, 8.0)), "ddpm", (0.200, 1.03, 0.51)),
        (quantile(published_scale(CHAIN, 16.0)), "ddpm", (0.231, 0.99, 0.39)),
        (squared(0.5), "ddim", (0.282, 0.98, 0.46)),
    ],
    ids=["MS-1", "MS-2", "MS-4", "Q-4", "Q-8", "Q-16", "MS-ddim"],
)
def test_published_figures_are_a_draw_of_40_series(guide, sampler, figures):
    error, spread, misfit = bench(guide, sampler, 100, EVERY_LINK, series=400)
    draws = error.unflatten(0, (10, 40)).mean(1)
    # Draws of 40 differ by 14 % (0.24 to 0.36 for MS-4), the mean of 400 by less than 5 %.
    assert float(draws.min()) < figures[0] < float(draws.max())
    assert abs(float(draws.mean()) / figures[0] - 1) < 0.15
    assert abs(spread / figures[1] - 1) < 0.1
    assert abs(misfit / figures[2] - 1) < 0.1


@pytest.mark.paper
def test_published_guidance_diverges_where_it_was_seen_to():
    # s = 8 for the squared energy: error 3.9 and spread 3.2 with the published code.
    error, spread, _ = bench(squared(published_scale(CHAIN, 8.0)), "ddpm", 100, EVERY_LINK)
    assert float(error.mean()) > 1
    assert spread > 2


@pytest.mark.parametrize(
    ("jacobian", "sampler", "steps", "options"),
    rows(
        ("prior", "dpm++", 20, KARRAS),
        ("network", "dpm++", 20, KARRAS),
        ("prior", "ddpm", 100, EVERY_LINK),
        ddim=("prior", "ddim", 100, EVERY_LINK),
        ddim25=("prior", "ddim", 25, KARRAS),
        ddpm=("network", "ddpm", 100, EVERY_LINK),
        quick=("prior", "dpm++", 10, KARRAS),
        deis=("prior", "tab3", 20, KARRAS),
    ),
)
def test_covariance_guidance_forecasts_the_exact_mean_and_spread(jacobian, sampler, steps, options):
    # The floor of the pooled error is 0.082: 100 paths. Required: 0.11, and a spread within 7 %.
    error, spread, _ = bench(covariance(jacobian), sampler, steps, options, matched=True)
    assert float(error.square().mean().sqrt()) <= 0.11  # pooled: not below the mean of the errors
    assert 0.93 <= spread <= 1.07


def test_a_deterministic_run_has_no_bias_left_but_that_of_its_steps():
    # Without random numbers: the mean of the start goes to the mean of the forecast. From a start
    # at 0, which does not know y, the bias is 0.086.
    truth = PROCESS.sample(200, 0)["x"]
    mean, _ = PROCESS.conditional(truth, SEEN, noise=1e-3)
    guided = covariance()(truth, SEEN.expand_as(truth))
    full = torch.where(SEEN, truth, 0.0)
    full[:, ~SEEN] = mean
    start = float(CHAIN.alpha(1.0)) * full
    got = get_sampler("dpm++", 20, **KARRAS)(guided, start)["x"][:, ~SEEN]
    assert float((got - mean).square().mean().sqrt()) < 0.01


# --- windows without observations --------------------------------------------------------------
def covariance_error(phi, sampler, steps, grid, length, matched=True):
    """Relative error of the covariance of samples, exactly: the sampler is a linear map."""
    process = StationaryGaussian.ar1(phi, length)
    exact, eye = process.covariance(), torch.eye(length, dtype=torch.float64)
    alpha, sigma = float(CHAIN.alpha(1.0)), float(CHAIN.sigma(1.0))
    start = alpha**2 * exact + sigma**2 * eye if matched else eye
    moved = get_sampler(sampler, steps, grid=grid)(process.denoiser(SYSTEM), eye)["x"]
    got = moved.T @ start @ moved
    return float((got - exact).norm() / exact.norm())


@pytest.mark.parametrize(
    ("phi", "steps", "figure"),
    [
        (0.99, 20, 0.006),
        (0.99, 10, 0.027),
        (0.9, 20, 0.018),
        pytest.param(0.99, 40, 0.001, marks=pytest.mark.paper),
        pytest.param(0.9, 10, 0.092, marks=pytest.mark.paper),
        pytest.param(0.9, 40, 0.004, marks=pytest.mark.paper),
    ],
)
def test_a_matched_start_and_dpm_solver_keep_the_covariance_of_a_window(phi, steps, figure):
    # AR(1), L = 360, Karras grid of the chain's own noise levels; required 0.03 at 20 steps and
    # phi 0.99. The figures are those of a run in other code, to their last digit.
    assert abs(covariance_error(phi, "dpm++", steps, Karras(), 360) - figure) < 0.0006


def test_a_start_from_white_noise_loses_the_level_of_a_smooth_window():
    # DDIM over the whole chain, phi 0.99, L = 360, start N(0, I): 0.418.
    assert abs(covariance_error(0.99, "ddim", 100, CHAIN.trailing(100), 360, False) - 0.418) < 1e-3
