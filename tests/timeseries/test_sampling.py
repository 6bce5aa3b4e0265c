"""Sampling of windows: exact where the exact answer is known, and under every sampler."""

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from structdiff.noise import PerObjectNoise
from structdiff.samplers import get_sampler
from structdiff.state import State
from structdiff.timeseries.prior import GaussianSkip
from structdiff.timeseries.sampling import OBSERVATION_NOISE, choose_sampler, series_seeds
from structdiff.timeseries.windows import WindowMaker

H = 6  # of the tiny models
SAMPLERS = ["ddpm", "ddim", "dpm++", "tab3", "heun", "euler-maruyama"]
KINDS = ["covariance", "quantile", "squared"]


def _conditional(model, x, observed):
    """Mean (L,) and covariance (L, L) of the model's Gaussian given the observed of x (L,)."""
    prior = model.covariance_
    mean, matrix = prior.mean.numpy(), prior.matrix().numpy()
    seen = matrix[np.ix_(observed, observed)] + OBSERVATION_NOISE * np.eye(observed.sum())
    gain = np.linalg.solve(seen, matrix[observed]).T
    return mean + gain @ (x[observed] - mean[observed]), matrix - gain @ matrix[observed]


def _window(model, series, *missing):
    """The last window of a series, its horizon and the places ``missing`` unknown."""
    spec = model.spec_
    values = series.to_numpy(copy=True)
    values[list(missing)] = np.nan
    maker = WindowMaker([values], spec.context, spec.horizon, spec.lags, spec.scaling)
    return maker.batch(torch.tensor([0]), torch.tensor([len(values)]), future=False)


def _check(drawn, mean, covariance, free):
    """Mean and spread (S, L) within five standard errors and 2 % of the exact ones."""
    deviation = np.sqrt(np.diag(covariance))[free]
    z = (drawn.mean(0) - mean)[free] / deviation
    assert np.abs(z).max() < 5 / np.sqrt(len(drawn)) + 0.02
    ratio = drawn.std(0)[free] / deviation
    assert np.abs(ratio - 1).max() < 5 / np.sqrt(2 * len(drawn)) + 0.02


# --- exact for a Gaussian --------------------------------------------------------------------
@pytest.mark.parametrize("sampler", [None, "ddim", "ddpm", "tab3"])
def test_a_forecast_is_the_conditional_of_the_gaussian(gaussian, sampler):
    model, series = gaussian
    model.set_params(sampler=sampler, steps=None if sampler != "ddpm" else 60)
    window = _window(model, series)
    observed = window.observed[0, :, 0].numpy()
    mean, covariance = _conditional(model, window.x[0, :, 0].double().numpy(), observed)
    drawn = (
        model.window_sampler()
        .given(window.x, window.observed, series_seeds(0, "x", 1024))[:, :, 0]
        .double()
        .numpy()
    )
    _check(drawn, mean, covariance, ~observed)
    # Not the spread alone: the points of a path belong together.
    exact = covariance[-1, -2] / np.sqrt(covariance[-1, -1] * covariance[-2, -2])
    assert np.corrcoef(drawn[:, -1], drawn[:, -2])[0, 1] == pytest.approx(exact, abs=0.03)


def test_without_noise_a_forecast_is_the_conditional_mean(gaussian, monkeypatch):
    # No Monte Carlo error: a start from anything but the conditional is off by 0.1 deviations.
    model, series = gaussian
    window = _window(model, series)
    observed = window.observed[0, :, 0].numpy()
    mean, covariance = _conditional(model, window.x[0, :, 0].double().numpy(), observed)
    monkeypatch.setattr(PerObjectNoise, "normal", lambda self, name, like, interval=None: 0 * like)
    drawn = model.window_sampler().given(window.x, window.observed, series_seeds(0, "x", 1))
    error = (drawn[0, :, 0].double().numpy() - mean)[~observed]
    assert np.abs(error / np.sqrt(np.diag(covariance))[~observed]).max() < 0.01


def test_a_forecast_around_gaps_is_the_conditional_of_the_gaussian(gaussian):
    model, series = gaussian
    window = _window(model, series, -1, -2, -9, -10, -11)
    observed = window.observed[0, :, 0].numpy()
    assert observed.sum() == 24 - 5
    mean, covariance = _conditional(model, window.x[0, :, 0].double().numpy(), observed)
    drawn = model.window_sampler().given(window.x, window.observed, series_seeds(1, "x", 1024))[
        :, :, 0
    ]
    _check(drawn.double().numpy(), mean, covariance, ~observed)


def test_the_estimators_forecast_is_that_window_in_units_of_the_series(gaussian):
    model, series = gaussian
    window = _window(model, series)
    drawn = model.window_sampler().given(window.x, window.observed, series_seeds(0, "x", 12))
    own = window.scale * drawn[:, 24:, 0].double() + window.shift
    assert np.array_equal(model.panel_paths(model.panel_of(series))[0], own.numpy())


def test_free_windows_are_draws_of_the_gaussian(gaussian):
    model, _ = gaussian
    drawn = model.synthetic_windows(1024, seed=0, scaled=True)
    prior = model.covariance_
    mean, covariance = prior.mean.numpy(), prior.matrix().numpy()
    _check(drawn, mean, covariance, np.ones(32, dtype=bool))
    assert np.abs(np.cov(drawn.T) - covariance).max() < 6 * covariance.max() / np.sqrt(1024)


# --- as published ----------------------------------------------------------------------------
def test_the_paper_preset_is_ancestral_sampling_with_the_published_guidance(paper, daily):
    # Ho et al. 2020, algorithm 2, with the mean moved by -s beta~ times the gradient of the
    # quantile energy (Kollovieh et al. 2023, algorithm 1), written out for indices 99 to 0.
    values, spec, s = daily["y"].to_numpy()[:90], paper.spec_, 3.0
    maker = WindowMaker([values], spec.context, spec.horizon, spec.lags, spec.scaling)
    window = maker.batch(torch.tensor([0]), torch.tensor([90]), future=False)
    seeds, system = series_seeds(0, "b", 4), paper.denoiser_.system
    own = paper.set_params(guidance_scale=s).window_sampler()
    own = own.given(window.x, window.observed, seeds)

    beta = torch.linspace(1e-4, 0.1, 100, dtype=torch.float64)
    bar = torch.cumprod(1 - beta, 0)
    before = torch.cat((torch.ones(1, dtype=torch.float64), bar[:-1]))
    posterior = beta * (1 - before) / (1 - bar)
    levels = (torch.arange(1, 5) / 5)[:, None, None]
    shape = State({"x": torch.zeros(4, spec.length, spec.channels)})
    x = system.prior(shape, PerObjectNoise(seeds))["x"]
    noise = PerObjectNoise(seeds, stream=1)
    for t in range(99, -1, -1):
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            half_log_snr = 0.5 * torch.log(bar[t] / (1 - bar[t]))
            log_snr = {"x": half_log_snr.expand(4)}
            eps = paper.denoiser_.network(State({"x": x}), log_snr, None)["x"]
            clean = (x - (1 - bar[t]).sqrt() * eps) / bar[t].sqrt()
            e = window.x - clean
            pinball = torch.maximum(levels * e, (levels - 1) * e) * window.observed
            (gradient,) = torch.autograd.grad(pinball.sum(), x)
        mean = (x - beta[t] * eps / (1 - bar[t]).sqrt()) / (1 - beta[t]).sqrt()
        x = (mean - s * posterior[t] * gradient).detach().float()
        if t:
            drawn = system.spaces["x"].noise("x", x, None, noise, None)
            x = x + posterior[t].sqrt() * drawn
    assert float((own - x).abs().max()) < 1e-4 * float(x.abs().max())


def test_the_paper_preset_takes_a_hundred_evaluations(paper, daily, monkeypatch):
    assert _evaluations(paper, daily, monkeypatch) == 100


# --- every sampler ---------------------------------------------------------------------------
def _evaluations(model, daily, monkeypatch):
    network, count = type(model.denoiser_.network), [0]
    forward = network.forward

    def counted(self, *args, **kwargs):
        count[0] += 1
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(network, "forward", counted)
    model.panel_paths(model.panel_of(daily[daily["unique_id"] == "a"]))
    return count[0]


def test_a_forecast_takes_twenty_evaluations(model, daily, monkeypatch):
    assert _evaluations(model, daily, monkeypatch) == 20


def test_steps_are_what_was_asked_for(model, daily, monkeypatch):
    assert _evaluations(model.set_params(steps=7), daily, monkeypatch) == 7


class _Ideal(nn.Module):
    """The noise in states of the Gaussian of a model: what its network would learn at best."""

    def __init__(self, model):
        super().__init__()
        prior = model.covariance_
        shape = (model.spec_.length, model.spec_.channels)
        self.gaussian = GaussianSkip(nn.Identity(), shape, len(prior.values))
        self.gaussian.set_covariance(prior)

    def forward(self, x, log_snr, condition=None):
        variance = torch.exp(-2 * log_snr["x"].float())[:, None]
        window = x["x"].flatten(1) * torch.sqrt(1 + variance)
        noise = (window - self.gaussian.denoise(window, variance)) / torch.sqrt(variance)
        return State({"x": noise.reshape(x["x"].shape)})


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("family", ["model", "paper"])
def test_every_guidance_runs_under_every_sampler(family, name, kind, daily, request, monkeypatch):
    model = request.getfixturevalue(family)
    if family == "paper":
        ideal, network = _Ideal(model), type(model.denoiser_.network)
        monkeypatch.setattr(network, "forward", lambda self, *given: ideal(*given))
    # The published scales are for a hundred steps.
    steps = {"ddpm": 100, "euler-maruyama": 40}.get(name, 20)
    scale = {"covariance": None, "quantile": 1.0, "squared": 0.1}[kind]
    model.set_params(sampler=name, steps=steps, guidance=kind, guidance_scale=scale, n_samples=8)
    paths = model.panel_paths(model.panel_of(daily[daily["unique_id"] == "b"]))[0]
    # The series lies between 6 and 14, its noise is 0.3.
    assert np.abs(paths - 10).max() < 8
    assert 0.02 < paths.std(0).mean() < 4


def test_guidance_that_is_too_strong_is_an_error(model, daily):
    model.set_params(guidance="squared", guidance_scale=1e20)
    with pytest.raises(ValueError, match=r"diverged: lower guidance_scale than 1e\+20"):
        model.predict(daily)


def test_finite_nonsense_is_an_error_as_well(model, daily):
    # Far more than twenty steps bear: values of 6e9 where the series has 30.
    model.set_params(guidance="squared", guidance_scale=10.0)
    with pytest.raises(ValueError, match="lower guidance_scale than 10,"):
        model.predict(daily)


def test_the_scale_suits_the_model_where_none_is_given(model, paper):
    for kind, own, published in (("quantile", 0.5, 4.0), ("squared", 0.2, 1.0)):
        assert model.set_params(guidance=kind).window_sampler().scale == own
        assert paper.set_params(guidance=kind).window_sampler().scale == published


@pytest.mark.parametrize("kind", KINDS)
def test_guidance_pulls_the_context_to_what_was_observed(model, daily, kind):
    window = _window(model, daily.set_index("unique_id").loc["b", "y"])
    model.set_params(guidance=kind)
    sampler, seeds = model.window_sampler(), series_seeds(0, "b", 16)
    given = sampler.given(window.x, window.observed, seeds)
    nothing = sampler.given(window.x, torch.zeros_like(window.observed), seeds)
    seen = window.observed.expand_as(given)

    def misfit(x):
        return float((x - window.x)[seen].square().mean().sqrt())

    # Covariance guidance holds the observations to their noise of 0.01.
    assert misfit(given) < (0.05 if kind == "covariance" else 0.8 * misfit(nothing))


def test_a_window_of_which_nothing_is_observed_is_a_free_one(gaussian):
    model, _ = gaussian
    empty = torch.zeros(1, 32, 1)
    drawn = model.window_sampler().given(empty, empty.bool(), series_seeds(0, "x", 512))
    matrix = model.covariance_.matrix().numpy()
    _check(drawn[:, :, 0].double().numpy(), model.covariance_.mean.numpy(), matrix, slice(None))


def test_paths_of_a_chunk_are_those_of_a_smaller_call(model, daily):
    # 130 paths are sampled as 128 and 2; each follows from its own seed.
    window = _window(model, daily.set_index("unique_id").loc["b", "y"])
    sampler, seeds = model.window_sampler(), series_seeds(0, "b", 130)
    whole = sampler.given(window.x, window.observed, seeds)
    last = sampler.given(window.x, window.observed, seeds[128:])
    assert torch.equal(whole[128:], last)


# --- choices ---------------------------------------------------------------------------------
def test_a_sampler_object_is_used_as_it_is(model):
    own = get_sampler("ddim", 5)
    assert choose_sampler(model.spec_, model.denoiser_, own, None) is own


def test_steps_beside_a_sampler_object_are_refused(model):
    with pytest.raises(ValueError, match="steps is part of the sampler object"):
        choose_sampler(model.spec_, model.denoiser_, get_sampler("ddim", 5), 7)


@pytest.mark.parametrize("steps", [0, -1, 2.5, True])
def test_steps_that_are_none_are_refused(model, steps):
    with pytest.raises(ValueError, match="steps must be a whole number of at least 1"):
        choose_sampler(model.spec_, model.denoiser_, None, steps)


def test_an_unknown_sampler_is_refused_with_the_known_ones(model, daily):
    with pytest.raises(ValueError, match="dpm"):
        model.set_params(sampler="magic").predict(daily)


def test_a_scale_beside_guidance_by_covariance_is_refused(model, daily):
    with pytest.raises(ValueError, match="covariance has no scale"):
        model.set_params(guidance_scale=2.0).predict(daily)


def test_an_unknown_guidance_is_refused_with_the_known_ones(model, daily):
    with pytest.raises(ValueError, match="covariance, quantile, squared"):
        model.set_params(guidance="prayer").predict(daily)


def test_seeds_differ_by_series_path_stream_and_call():
    seeds = [
        series_seeds(0, "a", 3),
        series_seeds(1, "a", 3),
        series_seeds(0, "b", 3),
        series_seeds(0, None, 3),
        series_seeds(0, "a", 3, "refine"),
        series_seeds(0, pd.Timestamp("2020-01-01"), 3),
    ]
    assert len(torch.cat(seeds).unique()) == 18
    assert bool((torch.cat(seeds) >= 0).all())


def test_more_paths_keep_the_seeds_of_the_first():
    assert torch.equal(series_seeds(0, "a", 100)[:7], series_seeds(0, "a", 7))
