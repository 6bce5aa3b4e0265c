"""What a model is made of: the published one to the letter, ours by the size of the data."""

import json

import pytest
import torch

from structdiff.errors import CheckpointError, StructDiffError
from structdiff.processes import EDM, DiscreteVP
from structdiff.timeseries.models import (
    ModelSpec,
    build_denoiser,
    check_guidance,
    choose_context,
    choose_lags,
    new_spec,
)


def _spec(**changes):
    settings = {"context": 24, "horizon": 6, "lags": (), "points": 1000, "preset": None}
    settings |= {"scaling": "standard", "kernel": "s4d", "hidden": 8, "blocks": 1, "state_size": 8}
    return new_spec(**{**settings, "network_settings": {}, **changes})


# --- as published ----------------------------------------------------------------------------
def test_the_paper_preset_is_the_published_network():
    # Card, section 3: 190,337 parameters for one channel, 191,885 for thirteen.
    for lags, count in (((), 190_337), (tuple(range(30, 361, 30)), 191_885)):
        denoiser = build_denoiser(_spec(preset="paper", lags=lags, context=360, horizon=30))
        assert sum(p.numel() for p in denoiser.parameters()) == count


def test_the_paper_preset_is_the_published_chain():
    # Card, 2.1: abar[0] = 0.9999, [49] = 0.28298, [99] = 0.005619.
    process = build_denoiser(_spec(preset="paper")).system.processes["x"]
    assert isinstance(process, DiscreteVP)
    bar = process.alpha(torch.tensor([0.01, 0.5, 1.0], dtype=torch.float64)) ** 2
    assert bar.tolist() == pytest.approx([0.9999, 0.28298, 0.005619], abs=1e-5)


def test_the_paper_preset_replaces_what_was_published_and_no_more():
    spec = _spec(preset="paper", scaling="standard", kernel="s4d", hidden=16)
    assert (spec.scaling, spec.prediction, spec.skip) == ("mean", "noise", False)
    assert spec.sampler == {"name": "ddpm", "steps": 100}
    assert spec.guidance["kind"] == "quantile"
    assert spec.network["hidden"] == 64
    assert (spec.context, spec.horizon) == (24, 6)


def test_network_settings_have_the_last_word():
    spec = _spec(preset="paper", network_settings={"hidden": 8})
    assert spec.network["hidden"] == 8


# --- ours ------------------------------------------------------------------------------------
def test_our_preset_predicts_data_around_a_gaussian():
    spec = _spec()
    assert isinstance(build_denoiser(spec).system.processes["x"], EDM)
    assert (spec.prediction, spec.skip) == ("data", True)
    assert spec.sampler == {"name": "dpm++", "steps": 20}


@pytest.mark.parametrize(
    ("points", "size", "lags", "rank"),
    [
        (10_000, 30, (), 30),  # all of it
        (160, 30, (), 20),  # an eighth of the points
        (5, 30, (), 8),  # at least eight
        (5, 4, (), 4),  # but no more than there are
        (10**6, 720, (7, 14), 256),  # wide windows: a few directions
    ],
)
def test_few_points_fix_few_directions(points, size, lags, rank):
    spec = _spec(points=points, context=size - 1, horizon=1, lags=lags)
    assert spec.rank == rank


def test_a_spec_comes_back_from_json():
    for preset in (None, "paper"):
        spec = _spec(lags=(7, 14), preset=preset)
        assert ModelSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


def test_a_spec_without_a_field_is_damaged():
    values = _spec().to_dict()
    del values["process"]
    with pytest.raises(CheckpointError, match="'process'"):
        ModelSpec.from_dict(values)


def test_a_fresh_network_says_nothing():
    network = build_denoiser(_spec()).network.backbone
    assert not any(bool(p.any()) for p in network.head[-1].parameters())


# --- choices ---------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("horizon", "season", "longest", "points", "context"),
    [
        (24, 24, 10_000, 10_000, 336),  # fourteen days of hours
        (30, 7, 10_000, 10_000, 360),  # twelve horizons
        (1, 12, 10_000, 10_000, 24),  # two years of months
        (12, 12, 132, 100 * 132, 60),  # half of every series is left to train on
        (24, 24, 60, 100 * 60, 20),  # a third of series hardly longer than two windows
        (6, 7, 3, 3, 1),
        (24, 24, 2000, 2000, 226),  # one series: eight windows of 226 + 24 points
        (12, 12, 132, 132, 12),  # but never under one season
    ],
)
def test_the_context_by_default(horizon, season, longest, points, context):
    assert choose_context(None, horizon, season, longest, points) == context


def test_a_context_that_is_given_is_taken():
    assert choose_context(7, 24, 24, 10_000, 10_000) == 7


@pytest.mark.parametrize("context", [0, -3, 2.5, True, "long"])
def test_a_context_that_is_none_is_refused(context):
    with pytest.raises(StructDiffError, match="context must be a whole number"):
        choose_context(context, 24, 24, 1000, 1000)


def test_lags_are_the_published_ones_under_the_preset_alone():
    assert choose_lags("auto", 24, None) == ()
    assert choose_lags("auto", 24, "paper")[:3] == (24, 48, 72)
    assert choose_lags(None, 24, "paper") == ()
    assert choose_lags([7, 14.0], 24, None) == (7, 14)


@pytest.mark.parametrize("lags", ["some", 7, [0], [-1], [1.5], [True], ["7"]])
def test_lags_that_are_none_are_refused(lags):
    with pytest.raises(StructDiffError, match="lags"):
        choose_lags(lags, 24, None)


def test_an_unknown_preset_is_refused_with_the_known_one():
    with pytest.raises(StructDiffError, match="unknown preset 'quick': choose paper"):
        _spec(preset="quick")


def test_an_unknown_guidance_is_refused_with_the_known_ones():
    with pytest.raises(StructDiffError, match="covariance, quantile, squared"):
        check_guidance(None)
