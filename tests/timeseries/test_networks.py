"""The TSDiff backbone: sizes, contract, noise level, learning (Kollovieh et al. 2023)."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from structdiff import VP, Denoiser, State, System
from structdiff.errors import StructDiffError
from structdiff.samplers import get_sampler
from structdiff.timeseries.networks import PUBLISHED_CHAIN, NoiseLevelEmbedding, TSDiffNetwork


def size(network: nn.Module) -> int:
    """Number of real parameters."""
    return sum(p.numel() for p in network.parameters())


def small(kernel: str = "s4d", **arguments: object) -> TSDiffNetwork:
    """A network of three channels that a test can afford."""
    torch.manual_seed(0)
    return TSDiffNetwork(3, 16, 2, 16, kernel, length=40, **arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("channels", "features", "parameters"),
    [
        (1, 0, 190_337),
        (11, 0, 191_627),
        (13, 0, 191_885),
        (1, 8, 192_065),
        (11, 8, 193_355),
        (13, 7, 193_421),
    ],
)
def test_exact_s4_has_the_published_size(channels: int, features: int, parameters: int) -> None:
    """Counted in the published code, without and with its unused feature encoder."""
    assert size(TSDiffNetwork(channels, kernel="s4", features=features)) == parameters


def test_s4d_has_28_864_parameters_per_layer() -> None:
    """H (dt, D) + H N/2 (A) 2 + 2 H N/2 (C) 2 + the map; 141,185 in all for one channel."""
    network = TSDiffNetwork(1, kernel="s4d")
    assert size(network.blocks[0].layer) == 28_864  # type: ignore[arg-type]
    assert size(network) == 141_185


@pytest.mark.parametrize("kernel", ["s4", "s4d"])
@pytest.mark.parametrize("length", [1, 24, 40, 97])
def test_one_network_serves_every_length(kernel: str, length: int) -> None:
    """As the network of a Denoiser under a sampler: finite windows of the asked shape."""
    system = System(VP())
    denoiser = Denoiser(small(kernel).eval(), system, "noise")
    like = State({"x": torch.zeros(2, length, 3)})
    with torch.no_grad():
        window = get_sampler("ddim", 3)(denoiser, system.prior(like, 0))["x"]
    assert window.shape == (2, length, 3) and window.isfinite().all()


def test_cached_kernels_give_identical_samples() -> None:
    """Sampling in evaluation mode (cached) and in training mode (uncached)."""
    system = System(VP())
    network = small("s4")
    start = system.prior(State({"x": torch.zeros(2, 40, 3)}), 0)
    sampler, denoiser = get_sampler("ddim", 4), Denoiser(network, system, "noise")
    with torch.no_grad():
        network.train()
        uncached = sampler(denoiser, start)["x"]
        network.eval()
        assert torch.equal(sampler(denoiser, start)["x"], uncached)


def test_window_does_not_depend_on_its_batch_mates() -> None:
    """Each window is transformed on its own; the remainder is the rounding of batched products."""
    network = small("s4").eval()
    x, level = torch.randn(4, 40, 3), torch.randn(4)
    with torch.no_grad():
        together = network(State({"x": x}), {"x": level})["x"]
        alone = network(State({"x": x[2:3]}), {"x": level[2:3]})["x"]
    torch.testing.assert_close(together[2:3], alone, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_published_step_is_embedded_as_its_integer(dtype: torch.dtype) -> None:
    """From the half log-SNR of each step back to sin and cos of t exp(-j ln(1e4) / 63)."""
    embedding = NoiseLevelEmbedding(8, "index").to(dtype)
    embedding.mlp = nn.Sequential()
    t = torch.arange(100)
    level = PUBLISHED_CHAIN.half_log_snr(PUBLISHED_CHAIN.time_of(t)).to(dtype)
    angles = t[:, None].to(dtype) * embedding.scales
    assert torch.equal(embedding(level), torch.cat((angles.sin(), angles.cos()), dim=-1))
    rates = torch.exp(-torch.arange(64) * torch.log(torch.tensor(1e4)) / 63)
    torch.testing.assert_close(embedding.scales, rates.to(dtype), rtol=1e-4, atol=0)


def test_published_chain_has_its_noise_levels() -> None:
    """Beta linear from 1e-4 to 0.1 in 100 steps: alpha squared at t = 0, 9, 19, 49, 74, 99."""
    t = PUBLISHED_CHAIN.time_of([0, 9, 19, 49, 74, 99])
    expected = [0.9999, 0.95451, 0.82282, 0.28298, 0.05608, 0.005619]
    torch.testing.assert_close(
        PUBLISHED_CHAIN.alpha(t) ** 2,
        torch.tensor(expected, dtype=torch.float64),
        atol=1e-5,
        rtol=0,
    )


def test_backbone_is_the_published_one_block_by_block() -> None:
    """Both gates see one tensor, the residual starts after the time shift, skips are summed."""
    network = small("s4")
    x, level = torch.randn(2, 40, 3), torch.randn(2)
    embedded = network.level(level)
    hidden, total = torch.relu(network.input(x)), torch.zeros(2, 40, 16)
    for block in network.blocks:
        u = hidden + block.time(embedded)[:, None]
        out = u + block.layer(block.norm(u))
        gated = torch.tanh(out) * torch.sigmoid(out)
        weight, bias = block.outputs.weight, block.outputs.bias
        hidden = hidden + gated @ weight[:16].T + bias[:16]
        total = total + gated @ weight[16:].T + bias[16:]
    expected = network.head[2](torch.relu(network.head[0](total)))
    torch.testing.assert_close(network(State({"x": x}), {"x": level})["x"], expected)


def test_init_skip_adds_the_networks_input() -> None:
    """Same weights, with and without."""
    with_skip, without = small(init_skip=True), small()
    x = State({"x": torch.randn(2, 40, 3)})
    level = {"x": torch.zeros(2)}
    torch.testing.assert_close(with_skip(x, level)["x"], without(x, level)["x"] + x["x"])


def test_features_change_the_output_and_may_be_left_out() -> None:
    """Covariates enter every block; without a condition the published behaviour."""
    network = small(features=2)
    x, level = State({"x": torch.randn(2, 40, 3)}), {"x": torch.zeros(2)}
    plain = network(x, level)["x"]
    assert not torch.allclose(network(x, level, torch.randn(2, 40, 2))["x"], plain)
    with pytest.raises(StructDiffError, match="2 features per time step"):
        network(x, level, torch.randn(2, 39, 2))


@pytest.mark.parametrize("kernel", ["s4", "s4d"])
def test_gradient_of_every_parameter_is_finite_and_not_zero(kernel: str) -> None:
    """At the published width, both ends of the step range."""
    torch.manual_seed(0)
    network = TSDiffNetwork(2, 64, 2, 128, kernel, length=60)  # type: ignore[arg-type]
    out = network(State({"x": torch.randn(2, 60, 2)}), {"x": torch.tensor([-4.0, 4.0])})["x"]
    out.square().mean().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all() and parameter.grad.abs().sum() > 0, name


def windows(count: int, length: int) -> Tensor:
    """Stationary AR(1), phi 0.95, unit variance."""
    x = [torch.randn(count)]
    for _ in range(length - 1):
        x.append(0.95 * x[-1] + (1 - 0.95**2) ** 0.5 * torch.randn(count))
    return torch.stack(x, dim=1)[..., None]


@pytest.mark.parametrize("kernel", ["s4", "s4d"])
def test_noise_is_learnt_on_an_autoregression(kernel: str) -> None:
    """The noise at half log-SNR 0 is seen beside a smooth series: the loss falls far below 1/2.

    1/2 is the error of the best predictor that does not look at an entry's neighbours.
    """
    torch.manual_seed(0)
    network = TSDiffNetwork(1, 16, 2, 16, kernel, length=48)  # type: ignore[arg-type]
    optimiser = torch.optim.Adam(network.parameters(), lr=5e-3)
    losses = []
    for _ in range(120):
        data, noise = windows(32, 48), torch.randn(32, 48, 1)
        x = State({"x": (data + noise) / 2**0.5})
        loss = (network(x, {"x": torch.zeros(32)})["x"] - noise).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    means = [sum(losses[i : i + 20]) / 20 for i in (0, 50, 100)]
    assert all(late < early for early, late in pairwise(means))
    assert means[-1] < 0.3


def test_impossible_arguments_are_refused() -> None:
    """Errors name the argument."""
    with pytest.raises(StructDiffError, match="channels must be at least 1"):
        TSDiffNetwork(0)
    with pytest.raises(StructDiffError, match="unknown time"):
        TSDiffNetwork(1, time="step")  # type: ignore[arg-type]
