"""Exact denoisers of the testbeds: core card of the processes, section 4."""

import pytest
import torch

from structdiff.errors import StructDiffError
from structdiff.processes import VE, VP, System
from structdiff.spaces import Positive
from structdiff.state import State
from structdiff.testbeds import (
    CorrelatedGaussian,
    GaussianGraph,
    GaussianMixture,
    LogNormalMixture,
    Sphere,
)

torch.set_num_threads(1)


def regression_gain(denoiser, x0, t, source=0):
    """Squared error of E[x0 | xt], and of it scaled and shifted: the exact one is a minimum."""
    system = denoiser.system
    x = system.perturb(x0, t, system.noise(x0, source))
    guess = denoiser(x, t)
    off = {
        "exact": guess,
        "scaled up": guess * 1.05,
        "scaled down": guess * 0.95,
        "towards x": guess * 0.95 + x * 0.05,
    }
    return {k: float((v - x0).square_norm().mean()) for k, v in off.items()}


CASES = {
    "mixture": (GaussianMixture.gmm3(), System(VP())),
    "mixture under VE": (GaussianMixture.gmm3(), System(VE(0.01, 10.0))),
    "two components": (CorrelatedGaussian(), System({"x": VP(), "a": VE(0.01, 10.0)})),
    "sphere": (Sphere(), System(VP())),
}


@pytest.mark.parametrize("t", [0.4, 0.6])
@pytest.mark.parametrize(("testbed", "system"), CASES.values(), ids=CASES)
def test_the_denoiser_minimises_the_squared_error(testbed, system, t):
    errors = regression_gain(testbed.denoiser(system), testbed.sample(20000, 1), t)
    assert min(errors, key=errors.get) == "exact"


@pytest.mark.parametrize("t", [0.4, 0.6])
def test_the_denoiser_of_graphs_minimises_the_squared_error(t):
    testbed = GaussianGraph([1 + i % 4 for i in range(8000)])
    system = System({"x": VP(), "adj": VE(0.05, 5.0)}, testbed.spaces())
    errors = regression_gain(testbed.denoiser(system), testbed.sample(1), t)
    assert min(errors, key=errors.get) == "exact"


def dense_graph_denoiser(testbed, system, x, t):
    """Gaussian conditioning with the full covariance of one graph's free coordinates."""
    layout = system.layout(x)
    y = layout.flatten(x)[0]
    sizes = [int(v) for v in (x["x"].numel(), x["adj"].shape[1] * (x["adj"].shape[1] - 1) // 2)]

    def rows(values):
        return torch.cat(
            [
                torch.full((n,), float(values[k]), dtype=torch.float64)
                for n, k in zip(sizes, x, strict=True)
            ]
        )

    mean, scale, load = rows(testbed.means), rows(testbed.scales), rows(testbed.loadings)
    alpha, sigma = rows(system.alpha(t)), rows(system.sigma(t))
    prior = torch.diag(scale**2) + torch.outer(load, load)
    total = alpha[:, None] * prior * alpha + torch.diag(sigma**2)
    return mean + prior @ (alpha * torch.linalg.solve(total, y - alpha * mean))


def test_the_denoiser_of_graphs_is_dense_gaussian_conditioning():
    testbed = GaussianGraph([4])
    system = System({"x": VP(), "adj": VE(0.05, 5.0)}, testbed.spaces())
    x = system.perturb(testbed.sample(0), 0.3, system.noise(testbed.like, 1))
    exact = dense_graph_denoiser(testbed, system, x, 0.3)
    found = system.layout(x).flatten(testbed.denoiser(system)(x, 0.3))[0]
    assert float((found - exact).abs().max()) < 1e-12


def test_the_denoiser_of_one_gaussian_is_linear_regression():
    # E[x0 | x] = m + alpha c^2 / (alpha^2 c^2 + sigma^2) (x - alpha m)
    process = VP()
    denoiser = GaussianMixture([1.0], [[1.5]], [[[0.25]]]).denoiser(System(process))
    x = torch.tensor([[0.3], [-2.0]]).double()
    a, s = float(process.alpha(0.4)), float(process.sigma(0.4))
    expected = 1.5 + a * 0.25 / (a**2 * 0.25 + s**2) * (x - a * 1.5)
    assert torch.allclose(denoiser(x, 0.4)["x"], expected, rtol=1e-12)


def test_times_per_object_are_those_of_each_object():
    denoiser = GaussianMixture.gmm3().denoiser(System(VP()))
    x = torch.randn(2, 2, generator=torch.Generator().manual_seed(0)).double()
    both = denoiser(x, torch.tensor([0.2, 0.7], dtype=torch.float64))["x"]
    assert torch.allclose(both[1], denoiser(x, 0.7)["x"][1], rtol=1e-12)


def test_without_noise_the_denoiser_returns_its_input():
    x = GaussianMixture.gmm3().sample(10, 0)
    denoiser = GaussianMixture.gmm3().denoiser(System(VP()))
    assert torch.allclose(denoiser(x, 1e-7)["x"], x["x"], atol=1e-3)


MOMENTS = [GaussianMixture.gmm3(), CorrelatedGaussian(), Sphere()]


@pytest.mark.parametrize("testbed", MOMENTS, ids=lambda t: type(t).__name__)
def test_samples_have_the_exact_moments(testbed):
    # 200,000 draws: standard errors below 0.006 of mean and covariance entries
    drawn = torch.cat(list(testbed.sample(200_000, 0).values()), dim=1)
    assert torch.allclose(drawn.mean(0), testbed.mean(), atol=0.02)
    assert torch.allclose(torch.cov(drawn.T), testbed.covariance(), atol=0.05)


def test_graph_samples_have_the_exact_moments():
    drawn = GaussianGraph([3] * 100_000).sample(0)
    assert float(drawn["x"].mean()) == pytest.approx(0.3, abs=0.01)
    assert float(drawn["x"][:, 0, 0].var()) == pytest.approx(0.5**2 + 0.6**2, rel=0.02)
    pair = torch.stack((drawn["x"][:, 0, 0], drawn["adj"][:, 0, 1]))
    assert float(torch.cov(pair)[0, 1]) == pytest.approx(-0.5 * 0.6, rel=0.03)


def test_lognormal_samples_are_the_exponentials_of_the_mixture():
    testbed = LogNormalMixture()
    drawn = testbed.sample(100_000, 0)["x"]
    assert float(drawn.log().mean()) == pytest.approx(float(testbed.mean()), abs=0.01)
    assert torch.allclose(Positive().decode(Positive().encode(drawn)), drawn)


def test_points_on_the_sphere_have_unit_length():
    assert torch.allclose(Sphere().sample(50, 0)["x"].norm(dim=1), torch.ones(50).double())


def test_the_sphere_denoiser_has_no_seam_where_its_series_takes_over():
    system = System(VE(0.5, 5.0))
    denoiser = Sphere().denoiser(system)
    sigma2 = float(system.sigma(0.5)["x"]) ** 2
    x = torch.zeros(2, 5).double()
    x[:, 0] = torch.tensor([0.999e-2, 1.001e-2]).double() * sigma2
    lengths = denoiser(x, 0.5)["x"][:, 0]
    assert torch.allclose(lengths, x[:, 0] / sigma2 / 3, rtol=1e-4)


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(StructDiffError, match="do not fit"):
        GaussianMixture([1.0], [[0.0, 1.0]], [[[1.0]]])


def test_a_system_with_other_components_is_refused():
    with pytest.raises(StructDiffError, match="components"):
        CorrelatedGaussian().denoiser(System(VP()))


def test_a_testbed_state_is_float64():
    assert isinstance(CorrelatedGaussian().sample(2, 0), State)
    assert CorrelatedGaussian().sample(2, 0).dtype == torch.float64
