"""Windows of a stationary Gaussian process: their denoiser against textbook conditionals."""

import pytest
import torch

from structdiff.errors import StructDiffError
from structdiff.processes import EDM, VP, System
from structdiff.state import State
from structdiff.testbeds import StationaryGaussian

torch.set_num_threads(1)
PROCESS = StationaryGaussian.ar1(0.7, 5, variance=2.0, mean=1.5)


@pytest.mark.parametrize("process", [VP(), EDM()])
def test_the_denoiser_is_the_gaussian_conditional(process):
    system = System(process)
    x = torch.randn(3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    alpha, sigma = system.alpha(0.3)["x"], system.sigma(0.3)["x"]
    covariance = PROCESS.covariance()
    total = alpha**2 * covariance + sigma**2 * torch.eye(5)
    expected = 1.5 + (x - alpha * 1.5) @ torch.linalg.solve(total, alpha * covariance)
    assert torch.allclose(PROCESS.denoiser(system)(x, 0.3)["x"], expected, atol=1e-10)


def test_channels_are_copies_and_times_are_the_objects_own():
    denoiser = PROCESS.denoiser(System(VP()))
    x, times = torch.randn(3, 5, 2, dtype=torch.float64), torch.tensor([0.2, 0.5, 0.8])
    together = denoiser(x, times)["x"]
    for i in range(3):
        for c in range(2):
            alone = denoiser(x[i : i + 1, :, c], times[i])["x"][0]
            assert torch.allclose(together[i, :, c], alone, atol=1e-12)


def test_samples_have_the_mean_and_covariance():
    # 20000 windows: standard errors 0.01 and 0.02.
    x = PROCESS.sample(20000, 0)["x"]
    assert float((x.mean(0) - 1.5).abs().max()) < 0.05
    assert float((torch.cov(x.T) - PROCESS.covariance()).abs().max()) < 0.1


def test_ar1_forgets_what_lies_before_its_last_value():
    # E[x_{T+k}] = m + phi^k (x_T - m), variance v (1 - phi^2k).
    y = PROCESS.sample(4, 0)["x"]
    mean, covariance = PROCESS.conditional(y, torch.arange(5) < 3)
    power = 0.7 ** torch.tensor([1.0, 2.0], dtype=torch.float64)
    assert torch.allclose(mean, 1.5 + power * (y[:, 2:3] - 1.5), atol=1e-12)
    assert torch.allclose(covariance.diagonal(), 2 * (1 - power**2), atol=1e-12)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: StationaryGaussian([1.0, -1.5]), "no stationary process"),
        (lambda: StationaryGaussian([]), "one number per lag"),
        (lambda: StationaryGaussian.ar1(1.0, 4), r"in \(-1, 1\)"),
        (lambda: PROCESS.denoiser(System({"a": VP()})), "the component 'x'"),
        (lambda: PROCESS.denoiser(System(VP()))(State({"x": torch.zeros(2, 4)}), 0.5), r"\(5,\)"),
    ],
)
def test_what_does_not_fit_is_named(make, message):
    with pytest.raises(StructDiffError, match=message):
        make()
