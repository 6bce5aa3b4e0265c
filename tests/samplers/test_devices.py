"""What a GPU asks of the loop: no waiting for the device, and a compiler that sees no breaks."""

from contextlib import contextmanager

import pytest
import torch

from structdiff.denoisers import Denoiser
from structdiff.noise import PerObjectNoise
from structdiff.processes import VE, VP, System
from structdiff.samplers import SAMPLERS, get_sampler
from structdiff.state import State
from structdiff.testbeds import GaussianGraph

torch.set_num_threads(1)
SYSTEM = System(
    {"x": VP(beta_max=4.0), "adj": VE(sigma_min=0.05, sigma_max=5.0)}, GaussianGraph.spaces()
)
# What makes Python wait until the device has finished. Times and coefficients are float64 on the
# host and may be read; the states are float32 here, and nothing made of them may.
WAITING = ("item", "tolist", "cpu", "numpy", "nonzero", "__bool__", "__float__", "__int__")
ON_A_GRID = [name for name, info in SAMPLERS.items() if info.nfe_per_step is not None]


class Graph(torch.nn.Module):
    """A network of two components that looks at all of its inputs."""

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(0.3))

    def forward(self, x, log_snr, condition=None):
        return x.map(
            lambda v, level: v * self.scale + 0.01 * level.reshape(-1, *[1] * (v.dim() - 1)),
            log_snr,
        )


@contextmanager
def no_waiting(monkeypatch):
    calls = []

    def forbidden(name, original):
        def method(tensor, *args, **kwargs):
            if tensor.dtype != torch.float64:
                calls.append(name)
            return original(tensor, *args, **kwargs)

        return method

    with monkeypatch.context() as patch:
        for name in WAITING:
            patch.setattr(torch.Tensor, name, forbidden(name, getattr(torch.Tensor, name)))
        yield calls


@pytest.mark.parametrize("name", ON_A_GRID)
def test_no_step_waits_for_the_device(name, monkeypatch):
    denoiser = Denoiser(Graph(), SYSTEM, "noise")
    x = SYSTEM.prior(GaussianGraph([3, 2, 4]).like.to(torch.float32), 0)
    states = get_sampler(name, 8).trajectory(denoiser, x, source=PerObjectNoise([1, 2, 3]))
    next(states)  # masks and shapes are looked at before the first step
    with no_waiting(monkeypatch) as calls:
        for _ in states:
            pass
    assert calls == []


def test_waiting_is_seen(monkeypatch):
    with no_waiting(monkeypatch) as calls:
        float(torch.ones(()))
        bool(torch.ones(()) > 0)
    assert calls == ["__float__", "__bool__"]


@pytest.mark.parametrize("prediction", ["noise", "score", "data", "v", "velocity", "edm"])
@pytest.mark.parametrize("output", ["forward", "noise", "score"])
def test_a_denoiser_is_one_graph_to_the_compiler(output, prediction):
    denoiser = Denoiser(Graph(), SYSTEM, prediction)
    x = SYSTEM.prior(GaussianGraph([3, 2, 4]).like.to(torch.float32), 0)
    t = torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64)
    method = getattr(denoiser, output)
    compiled = torch.compile(method, fullgraph=True, backend="eager")
    expected, got = method(x, t), compiled(x, t)
    assert all(torch.allclose(expected[k], got[k]) for k in expected)
    assert isinstance(got, State)
