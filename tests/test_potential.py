"""A potential's denoiser: exact for an exact log-density, in every space, under every mode."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from structdiff.errors import StructDiffError
from structdiff.noise import SeededNoise
from structdiff.potential import PotentialDenoiser
from structdiff.processes import VE, VP, System
from structdiff.samplers import DDIM
from structdiff.spaces import Symmetric
from structdiff.state import State
from structdiff.testbeds import CorrelatedGaussian, GaussianMixture

TIME = torch.tensor([0.1, 0.4, 0.9], dtype=torch.float64)


class Exact(nn.Module):
    """The log-density of a testbed as a network: own times are read from the log-SNR."""

    def __init__(self, testbed: GaussianMixture, system: System) -> None:
        super().__init__()
        self.exact = testbed.denoiser(system)

    def forward(self, x: State, log_snr: dict[str, Tensor], condition: object = None) -> Tensor:
        processes = self.exact.system.processes
        times = {k: processes[k].time_at(v) for k, v in log_snr.items()}
        return self.exact.log_density(x, times) + 7.0


class Pairs(nn.Module):
    """sum over nodes of w x^2 and over pairs i < j of c_ij a_ij^2 / 2, existing entries only."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor(1.5, dtype=torch.float64))
        self.c = torch.arange(9.0, dtype=torch.float64).reshape(3, 3)

    def forward(self, x: State, log_snr: dict[str, Tensor], condition: object = None) -> Tensor:
        upper = torch.triu(self.c * x["adj"] ** 2 * x.masks["adj"], 1).sum((1, 2)) / 2
        return upper + (self.w * x["x"] ** 2 * x.masks["x"]).sum((1, 2))


def two_components() -> tuple[CorrelatedGaussian, System, State]:
    testbed = CorrelatedGaussian()
    system = System({"x": VP(), "a": VE(0.01, 10.0)})
    return testbed, system, testbed.sample(3, 0)


@pytest.mark.parametrize("output", ["score", "noise", "forward", "velocity"])
def test_the_exact_potential_gives_the_exact_denoiser(output: str) -> None:
    testbed, system, x = two_components()
    potential = PotentialDenoiser(Exact(testbed, system), system)
    found = getattr(potential, output)(x, TIME)
    true = getattr(testbed.denoiser(system), output)(x, TIME)
    for name in x:
        torch.testing.assert_close(found[name], true[name], rtol=1e-9, atol=1e-9)


def graph() -> tuple[System, State]:
    system = System({"x": VP(), "adj": VP()}, spaces={"adj": Symmetric()})
    exists = torch.tensor([[True, True, True], [True, True, False]])
    pairs = exists[:, :, None] & exists[:, None, :] & ~torch.eye(3, dtype=torch.bool)
    like = State(
        {"x": torch.zeros(2, 3, 1).double(), "adj": torch.zeros(2, 3, 3).double()},
        {"x": exists[:, :, None], "adj": pairs},
    )
    return system, system.noise(like, SeededNoise(3))


def test_a_pair_of_a_symmetric_matrix_is_differentiated_once_and_mirrored() -> None:
    """d/da_ij of c_ij a_ij^2 / 2, with c_ij from the upper triangle, in both triangles."""
    system, x = graph()
    score = PotentialDenoiser(Pairs(), system).score(x, 0.5)
    upper = torch.triu(torch.arange(9.0).reshape(3, 3), 1).double()
    torch.testing.assert_close(score["adj"], (upper + upper.T) * x["adj"])


def test_absent_entries_have_no_score() -> None:
    system, x = graph()
    score = PotentialDenoiser(Pairs(), system).score(x, 0.5)
    assert not score["x"][1, 2].any() and not score["adj"][1, 2].any()
    torch.testing.assert_close(score["x"], 3.0 * x["x"])


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_sampling_without_gradients_gives_the_same_sample(mode: type) -> None:
    testbed, system, _ = two_components()
    potential, exact = PotentialDenoiser(Exact(testbed, system), system), testbed.denoiser(system)
    with mode():
        start = system.prior(testbed.sample(4, 0), 1)
        found, true = DDIM(8)(potential, start), DDIM(8)(exact, start)
    assert not found["x"].requires_grad
    for name in start:
        torch.testing.assert_close(found[name], true[name], rtol=1e-8, atol=1e-8)


def test_training_reaches_the_parameters_through_the_score() -> None:
    """d/dw of sum (2 w x)^2 is 8 w sum x^2."""
    system, x = graph()
    network = Pairs()
    PotentialDenoiser(network, system).score(x, 0.5)["x"].square().sum().backward()
    torch.testing.assert_close(network.w.grad, 8 * 1.5 * x["x"].square().sum())


def test_the_score_can_be_differentiated_by_torch_func() -> None:
    """Its Jacobian along v is the Hessian of the potential: 2 w v."""
    system, x = graph()
    denoiser = PotentialDenoiser(Pairs(), system)

    def score(nodes: Tensor) -> Tensor:
        return denoiser.score(x.replace(x=nodes), 0.5)["x"]

    v = torch.ones_like(x["x"])
    _, along = torch.func.jvp(score, (x["x"],), (v,))
    torch.testing.assert_close(along, 3.0 * v * x.masks["x"])


def test_a_network_that_returns_no_number_per_object_is_named() -> None:
    class Wide(nn.Module):
        def forward(self, x: State, log_snr: dict, condition: object = None) -> Tensor:
            return x["x"]

    denoiser = PotentialDenoiser(Wide(), System(VP()))
    with pytest.raises(StructDiffError, match=r"shape \(2,\), but Wide returned \(2, 3\)"):
        denoiser.log_density(torch.zeros(2, 3), 0.5)
