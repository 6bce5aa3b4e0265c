"""The Gaussian prior inside the network: exact for Gaussian data, EDM where all variances agree."""

import pytest
import torch
from torch import nn

from structdiff.denoisers import Denoiser
from structdiff.errors import StructDiffError
from structdiff.guidance import GaussianCovariance
from structdiff.objectives import EDMWeight
from structdiff.processes import EDM, VP, DiscreteVP, System
from structdiff.timeseries.prior import GaussianSkip, GaussianWeight, fit_prior

torch.set_num_threads(1)
LENGTH, CHANNELS = 6, 2
SIZE = LENGTH * CHANNELS


class Constant(nn.Module):
    """A backbone that returns one value and remembers what it saw."""

    def __init__(self, value):
        super().__init__()
        self.value = value

    def forward(self, x, log_snr, condition=None):
        self.seen, self.condition = x["x"], condition
        return x.map(lambda v: torch.full_like(v, self.value))


def gaussian(rank=SIZE, seed=0):
    generator = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(SIZE, SIZE, generator=generator, dtype=torch.float64))[0]
    values = torch.logspace(1, -2, SIZE, dtype=torch.float64)[:rank]
    mean = torch.randn(SIZE, generator=generator, dtype=torch.float64)
    return GaussianCovariance(mean, basis[:, :rank], values, 0.0 if rank == SIZE else 0.005)


def dense(prior):
    size = len(prior.mean)
    projector = prior.vectors @ prior.vectors.T
    along = prior.vectors @ torch.diag(prior.values) @ prior.vectors.T
    return along + prior.rest * (torch.eye(size, dtype=torch.float64) - projector)


def denoiser(process, prior, value=0.0):
    network = GaussianSkip(Constant(value), (LENGTH, CHANNELS), len(prior.values))
    network.set_covariance(prior)
    return Denoiser(network.double(), System({"x": process}), "data", 1.0, scale_input=True)


@pytest.mark.parametrize("process", [EDM(0.01, 20.0), VP(), DiscreteVP(100, 1e-4, 0.1)])
@pytest.mark.parametrize("rank", [SIZE, 5])
def test_before_training_it_is_the_exact_denoiser_of_the_gaussian(process, rank):
    # E[x0 | x] = m + a S (a^2 S + s^2)^-1 (x - a m), with dense matrices.
    prior = gaussian(rank)
    model, matrix = denoiser(process, prior), dense(prior)
    x = torch.randn(4, LENGTH, CHANNELS, generator=torch.Generator().manual_seed(1)).double() * 3
    for t in (0.03, 0.4, 0.9):
        a, s = (float(f(t)) for f in (process.alpha, process.sigma))
        noisy = a**2 * matrix + s**2 * torch.eye(SIZE, dtype=torch.float64)
        gap = x.flatten(1) - a * prior.mean
        exact = prior.mean + a * torch.linalg.solve(noisy, gap.T).T @ matrix
        assert torch.allclose(model(x, t)["x"].flatten(1), exact, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("rank", [SIZE, 5])
def test_what_the_network_adds_has_the_covariance_of_the_gaussians_error(rank):
    # A network that returns white noise adds V^1/2 of it: the images of the unit vectors are a
    # root of V = S - S (S + rho^2)^-1 S.
    prior = gaussian(rank)
    rho, matrix, eye = 0.7, dense(prior), torch.eye(SIZE, dtype=torch.float64)
    posterior = matrix - matrix @ torch.linalg.solve(matrix + rho**2 * eye, matrix)
    network = denoiser(EDM(0.01, 20.0), prior).network
    root = network.spread(eye, torch.full((SIZE, 1), rho**2, dtype=torch.float64))
    assert torch.allclose(root @ root.T, posterior, atol=1e-7)


def test_the_networks_part_is_added_to_the_gaussians():
    prior, rho = gaussian(5), 0.7
    x, t = torch.randn(3, LENGTH, CHANNELS).double(), 0.7 / 20.0
    model = denoiser(EDM(0.01, 20.0), prior, 1.0)
    ones, variance = torch.ones(3, SIZE).double(), torch.full((3, 1), rho**2).double()
    expected = model.network.spread(ones, variance).unflatten(1, (LENGTH, CHANNELS))
    moved = model(x, t)["x"] - denoiser(EDM(0.01, 20.0), prior, 0.0)(x, t)["x"]
    assert torch.allclose(moved, expected, rtol=1e-6)


def test_with_equal_variances_it_is_the_preconditioning_of_edm():
    # c_skip = s^2 / (s^2 + rho^2), c_out = rho s / sqrt(s^2 + rho^2) (Karras et al. 2022, table 1).
    flat = GaussianCovariance(torch.zeros(SIZE), torch.eye(SIZE, 3), torch.full((3,), 0.25), 0.25)
    x, rho = torch.randn(2, LENGTH, CHANNELS).double(), 0.7
    model = denoiser(EDM(0.01, 20.0), flat, 1.0)
    expected = 0.25 / (0.25 + rho**2) * x + rho * 0.5 / (0.25 + rho**2) ** 0.5
    assert torch.allclose(model(x, rho / 20.0)["x"], expected, rtol=1e-6)


def test_the_network_sees_the_gaussians_noise_and_the_scaled_window():
    prior, rho = gaussian(), 0.5
    model = denoiser(EDM(0.01, 20.0), prior)
    x = torch.randn(2, LENGTH, CHANNELS).double()
    estimate = model(x, rho / 20.0)["x"]
    backbone = model.network.backbone
    assert torch.allclose(backbone.seen, (x - estimate) / rho, atol=1e-6)
    assert torch.allclose(backbone.condition, x / (1 + rho**2) ** 0.5, atol=1e-12)
    features = torch.ones(2, LENGTH, 3).double()
    model(x, rho / 20.0, features)
    assert backbone.condition.shape == (2, LENGTH, CHANNELS + 3)
    assert torch.equal(backbone.condition[:, :, CHANNELS:], features)


def test_the_weight_divides_by_the_gaussians_mean_error():
    # An error of x0 is rho times that of the noise; the Gaussian's mean square is tr V / d.
    prior = gaussian(5)
    matrix, eye = dense(prior), torch.eye(SIZE, dtype=torch.float64)
    level = torch.tensor([-2.0, 0.0, 3.0], dtype=torch.float64)
    for half, weight in zip(level, GaussianWeight(prior)(level), strict=True):
        rho2 = float(torch.exp(-2 * half))
        posterior = matrix - matrix @ torch.linalg.solve(matrix + rho2 * eye, matrix)
        assert float(weight) == pytest.approx(rho2 * SIZE / float(torch.trace(posterior)), rel=1e-9)


def test_with_equal_variances_the_weight_is_that_of_edm():
    size = torch.zeros(SIZE)
    flat = GaussianCovariance(size, torch.eye(SIZE, 3), torch.full((3,), 0.25), 0.25)
    level = torch.linspace(-3, 4, 9, dtype=torch.float64)
    assert torch.allclose(GaussianWeight(flat)(level), EDMWeight(0.5)(level), rtol=1e-12)


def test_ordinary_windows_give_their_plain_covariance():
    windows = torch.randn(400, LENGTH, CHANNELS, generator=torch.Generator().manual_seed(3))
    prior = fit_prior(windows, SIZE)
    plain = torch.cov(windows.flatten(1).double().T)
    assert torch.allclose(dense(prior), plain, atol=1e-10)
    assert torch.allclose(prior.mean, windows.flatten(1).double().mean(0), atol=1e-12)


def test_one_wild_window_does_not_become_the_covariance():
    windows = torch.randn(400, LENGTH, CHANNELS, generator=torch.Generator().manual_seed(3))
    calm = float(torch.trace(dense(fit_prior(windows, SIZE))))
    windows[7] *= 1000
    wild = float(torch.trace(dense(fit_prior(windows, SIZE))))
    # At most 9 times an ordinary window, 1 of 400.
    assert calm < wild < 1.05 * calm


def test_the_prior_is_stored_with_the_network_and_comes_back():
    prior = gaussian(5)
    network = GaussianSkip(Constant(0.0), (LENGTH, CHANNELS), 5)
    network.set_covariance(prior)
    again = GaussianSkip(Constant(0.0), (LENGTH, CHANNELS), 5)
    again.load_state_dict(network.state_dict())
    assert torch.allclose(dense(again.covariance), dense(prior), atol=1e-5)


def test_a_prior_of_another_rank_is_refused():
    network = GaussianSkip(Constant(0.0), (LENGTH, CHANNELS), 4)
    with pytest.raises(StructDiffError, match=r"size and rank \(12, 4\), got \(12, 5\)"):
        network.set_covariance(gaussian(5))
    with pytest.raises(StructDiffError, match="rank 1 to 12, not 13"):
        GaussianSkip(Constant(0.0), (LENGTH, CHANNELS), 13)


def test_the_prior_is_no_parameter():
    network = GaussianSkip(nn.Identity(), (LENGTH, CHANNELS), 5)
    assert not list(network.parameters())
    assert set(network.state_dict()) == {"mean", "vectors", "values", "rest"}
