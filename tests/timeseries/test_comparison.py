"""A window model under every sampler: what is drawn, and distances that know right from wrong."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from structdiff.errors import StructDiffError
from structdiff.samplers.comparison import compare, plan
from structdiff.timeseries import TSDiff, read_panel
from structdiff.timeseries.comparison import WindowComparison

torch.set_num_threads(1)


def waves(seed: int = 0) -> pd.DataFrame:
    """Noisy waves at integer times."""
    rng = np.random.default_rng(seed)
    times = np.arange(200)
    columns = {f"s{i}": np.sin(times / 3 + i) + 0.3 * rng.standard_normal(200) for i in range(3)}
    return pd.DataFrame({"ds": times, **columns})


@pytest.fixture(scope="module")
def model() -> TSDiff:
    return TSDiff(h=4, context=20, hidden=8, max_steps=2, random_state=0, progress=False).fit(
        waves()
    )


@pytest.fixture(scope="module")
def comparison(model: TSDiff) -> WindowComparison:
    return WindowComparison(model, read_panel(waves(1)), "waves")


def test_what_is_drawn_are_the_models_scaled_windows(
    comparison: WindowComparison, model: TSDiff
) -> None:
    drawn = comparison.draw(comparison.sampler("heun", 5), 3, 7)
    own = model.set_params(sampler="heun", steps=5).synthetic_windows(3, 7, scaled=True)
    model.set_params(sampler=None, steps=None)
    np.testing.assert_array_equal(drawn.numpy(), own)


def test_the_callers_model_keeps_its_settings(model: TSDiff) -> None:
    WindowComparison(model, read_panel(waves(1))).draw(model.window_sampler().sampler, 1, 0)
    assert model.sampler is None


def test_real_windows_are_at_their_floor_and_shuffled_ones_far_above(
    comparison: WindowComparison,
) -> None:
    n = 400
    floors, real = comparison.floors(n), comparison.real(n, 3)
    near = comparison.scores(real)
    far = comparison.scores(real[:, torch.randperm(24, generator=torch.Generator().manual_seed(0))])
    for name in floors:
        assert near[name] < 2 * floors[name] + 0.02
        assert far[name] > 3 * floors[name]


def test_a_trained_gaussian_start_is_near_the_floor_with_many_steps_only(
    comparison: WindowComparison,
) -> None:
    # One step of DDIM gives the mean of all windows: no covariance at all.
    (one, many) = compare(comparison, plan(comparison, [1, 20], ["ddim"]), 200, 0)
    assert one.scores["covariance"] > 0.9
    assert many.scores["covariance"] < 0.4


def test_the_fingerprint_follows_the_reference(comparison: WindowComparison, model: TSDiff) -> None:
    again = WindowComparison(model, read_panel(waves(1)))
    other = WindowComparison(model, read_panel(waves(2)))
    assert again.fingerprint == comparison.fingerprint != other.fingerprint


def test_series_of_another_frequency_are_refused(model: TSDiff) -> None:
    frame = waves()
    frame["ds"] = pd.date_range("2024-01-01", periods=200, freq="h")
    with pytest.raises(StructDiffError, match="frequency 'h', the model was fitted to 1"):
        WindowComparison(model, read_panel(frame))
