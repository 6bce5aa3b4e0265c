"""The training set of a window model, its Gaussian and its loss, which learns from no gap."""

import numpy as np
import pytest
import torch

from structdiff.errors import StructDiffError
from structdiff.objectives import Simple, Uniform
from structdiff.state import State
from structdiff.timeseries.frames import read_panel
from structdiff.timeseries.models import build_denoiser, new_spec
from structdiff.timeseries.training import ObservedScoreMatching, TrainingWindows
from structdiff.timeseries.uses import in_units


def _spec(**changes):
    settings = {"context": 18, "horizon": 6, "lags": (), "points": 270, "preset": None}
    settings |= {"scaling": "standard", "kernel": "s4d", "hidden": 8, "blocks": 1, "state_size": 8}
    return new_spec(**{**settings, "network_settings": {}, **changes})


def test_the_windows_are_all_that_lie_within_the_series(daily):
    # 90 - 24 + 1 cuts of each of 3 series.
    assert len(TrainingWindows(read_panel(daily), _spec(), 0)) == 3 * 67
    assert len(TrainingWindows(read_panel(daily), _spec(lags=(7,)), 0)) == 3 * 60


def test_windows_that_are_mostly_missing_are_left_out(daily):
    daily.loc[20:69, "y"] = np.nan
    windows = TrainingWindows(read_panel(daily), _spec(), 0)
    _, observed = windows.batch(torch.arange(len(windows)))
    share = observed[:, :, 0].double().mean(1)
    assert float(share.min()) >= 0.5
    # Of "b", 12 of 24 points must be seen: ends up to 32 and from 82 of 90 on.
    assert windows.skipped == 67 - len([e for e in range(24, 91) if e <= 32 or e >= 82])


def test_when_every_window_is_mostly_missing_it_is_said(daily):
    daily.loc[daily.index % 3 > 0, "y"] = np.nan
    with pytest.raises(StructDiffError, match="every window of 24 points is more than half"):
        TrainingWindows(read_panel(daily), _spec(), 0)


def test_levels_are_those_of_the_windows(daily):
    levels = TrainingWindows(read_panel(daily), _spec(), 0).levels()
    assert levels.shape == (201, 4)
    assert sorted(levels[:, 0].round(-1).astype(int).tolist()) == [10] * 67 + [20] * 67 + [30] * 67
    assert (levels[:, 1] > 0).all() and (levels[:, 2] < levels[:, 3]).all()


def test_a_window_gets_the_level_of_the_training_window_that_is_shaped_like_it():
    # Two kinds of windows: small swings far above zero, and large ones close to it.
    levels = np.array([[1000.0, 10.0, -1.0, 1.0], [50.0, 5.0, -2.0, 9.0]])
    windows = np.array([[-1.9, 0.0, 8.5], [-0.8, 0.1, 1.2]])
    expected = np.stack([50 + 5 * windows[0], 1000 + 10 * windows[1]])
    assert np.allclose(in_units(windows, levels), expected)


def test_the_gaussian_is_that_of_the_windows(daily):
    windows = TrainingWindows(read_panel(daily), _spec(points=10_000), 0)
    x, _ = windows.batch(torch.arange(len(windows)))
    flat = x["x"].flatten(1).double()
    assert torch.allclose(windows.prior.mean, flat.mean(0), atol=1e-5)
    assert torch.allclose(windows.prior.matrix(), torch.cov(flat.T), atol=1e-4)


def test_series_that_do_not_move_have_a_gaussian_that_can_be_divided_by(daily):
    for value in (0.0, 5.0):
        prior = TrainingWindows(read_panel(daily.assign(y=value)), _spec(), 0).prior
        assert float(prior.values.min()) >= 1e-6 * (1 - 1e-6)


def test_one_window_is_enough(daily):
    panel = read_panel(daily.iloc[:24])
    windows = TrainingWindows(panel, _spec(points=24), 0)
    assert len(windows) == 1
    assert len(windows.prior.values) == 1


@pytest.fixture
def loss(daily):
    """Of the network at its start, for states and what is observed of them."""
    denoiser = build_denoiser(_spec(preset="paper", network_settings={"hidden": 8, "blocks": 1}))
    objective = ObservedScoreMatching(Uniform(), Simple())

    def evaluate(x, observed, noise):
        times = {"x": torch.full((len(x),), 0.5, dtype=torch.float64)}
        clean, drawn = State({"x": x}), State({"x": noise})
        noisy = denoiser.system.perturb(clean, 0.5, drawn)
        return objective.distances(denoiser, clean, noisy, drawn, times, observed)["x"], noisy

    denoiser.requires_grad_(False)
    return evaluate, denoiser


def test_the_loss_is_the_mean_over_what_is_observed(loss):
    evaluate, denoiser = loss
    generator = torch.Generator().manual_seed(0)
    x, noise = (torch.randn(3, 24, 1, generator=generator) for _ in range(2))
    observed = torch.rand(3, 24, 1, generator=generator) < 0.7
    found, noisy = evaluate(x, observed, noise)
    error = (denoiser.noise(noisy, 0.5)["x"] - noise).square()
    for row in range(3):
        assert float(found[row]) == pytest.approx(float(error[row][observed[row]].mean()), rel=1e-5)


def test_a_window_of_which_nothing_is_observed_costs_nothing(loss):
    evaluate, _ = loss
    x = torch.ones(2, 24, 1)
    observed = torch.stack((torch.zeros(24, 1), torch.ones(24, 1))).bool()
    found, _ = evaluate(x, observed, torch.ones(2, 24, 1))
    assert float(found[0]) == 0.0
    assert float(found[1]) > 0.0
