"""Every result draws itself: what it says is in the picture."""

from __future__ import annotations

import matplotlib
import pytest
import torch

from structdiff import VE, VP, System
from structdiff.diagnostics import (
    Circle,
    asymmetry,
    flipd,
    flow_spectrum,
    fokker_planck_map,
    gauge_split,
    gaussian_gap,
    loop_integral,
    normal_bundle,
    ode_sde_gap,
    path_test,
)
from structdiff.testbeds import GaussianMixture, Sphere

matplotlib.use("Agg")

SYSTEM = System(VP())
GMM3 = GaussianMixture.gmm3()
EXACT = GMM3.denoiser(SYSTEM)
X = GMM3.sample(6, 0)
ROUND = System(VE(sigma_min=1e-3, sigma_max=10.0))
SPHERE = Sphere().denoiser(ROUND)
POINTS = Sphere().sample(3, 0)


@pytest.fixture(autouse=True)
def closed():
    from matplotlib import pyplot

    yield
    pyplot.close("all")


def title(ax):
    ax.figure.canvas.draw()
    return ax.get_title()


def test_asymmetry_is_drawn_against_the_noise_level():
    result = asymmetry(EXACT, X, [-1.0, 0.0, 1.0], source=0)
    line = result.plot().lines[0]
    assert line.get_xdata().tolist() == [-1.0, 0.0, 1.0]
    assert line.get_ydata().tolist() == result.value.tolist()


def test_loops_are_drawn_against_their_size():
    result = loop_integral(EXACT, X, 0.0, [Circle(2.0, 16), Circle(1.0, 16)], planes=2, source=0)
    assert result.plot().lines[0].get_xdata().tolist() == [1.0, 2.0]


def test_paths_are_drawn_against_the_flow():
    result = path_test(EXACT, X, GMM3.sample(6, 1), 0.0, rtol=1e-3, atol=1e-3, points=16)
    labels = [t.get_text() for t in result.plot().get_legend().get_texts()]
    assert labels == ["straight", "corner"]


def test_the_gauge_split_is_three_bars():
    result = gauge_split(EXACT, X, 0.0, steps=2, batch=8, width=4, points=16, source=0)
    heights = [bar.get_height() for bar in result.plot().patches]
    assert heights[2] == pytest.approx(float(result.square_remainder.mean()))


def test_dimensions_are_drawn_with_their_plateau():
    ax = flipd(SPHERE, POINTS, [0.5, 0.2, 0.1, 0.05]).plot()
    assert ax.get_legend().get_texts()[1].get_text() == "plateau 2.00"
    assert ax.get_xscale() == "log"


def test_spectra_of_scores_say_the_dimension():
    assert title(normal_bundle(SPHERE, POINTS, 0.05, source=0).plot()).endswith("k = 2")


def test_spectra_of_the_flow_show_their_slopes():
    ax = flow_spectrum(SPHERE, ROUND.prior(POINTS, 1)).plot()
    assert sorted(t.get_text().count(",") + 1 for t in ax.texts) == [2, 3]
    assert len(ax.lines) == 5


def test_the_residual_is_a_map_over_coordinate_and_level():
    result = fokker_planck_map(EXACT, X, [-1.0, 0.0], source=0)
    ax = result.plot(coordinate=1)
    assert ax.collections[0].get_array().shape == (24, 2)
    assert ax.get_ylabel() == "coordinate 1 of x"


def test_the_gap_names_its_distance():
    like = torch.zeros(40, 2, dtype=torch.float64)
    result = ode_sde_gap(EXACT, like, GMM3.sample(40, 0), steps=4, source=0)
    ax = result.plot()
    assert f"= {result.value:.3g} " in title(ax)
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["data", "SDE", "ODE"]


def test_moments_are_drawn_for_every_coordinate():
    normal = GaussianMixture([1.0], [[0.0]], [[[0.25]]]).denoiser(SYSTEM)
    ax = gaussian_gap(normal, torch.zeros(1, 1, dtype=torch.float64)).plot()
    assert "by moments" in title(ax)


def test_given_axes_are_used_and_returned():
    from matplotlib import pyplot

    _, ax = pyplot.subplots()
    assert asymmetry(EXACT, X, [0.0], source=0).plot(ax) is ax
