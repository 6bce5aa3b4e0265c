"""The flat view of a model: coordinates, derivatives, refusals."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from structdiff import VE, VP, Denoiser, FrozenClock, SeededNoise, StructDiffError, System
from structdiff.diagnostics import Field
from structdiff.state import State
from structdiff.testbeds import CorrelatedGaussian, GaussianGraph, GaussianMixture

GRAPH = GaussianGraph([2, 4, 3])
SYSTEM = System({"x": VP(), "adj": VE()}, GRAPH.spaces())


def graph_field(**options):
    return Field(GRAPH.denoiser(SYSTEM), GRAPH.sample(0), **options)


def differences(field, reading, x, t, direction, step=1e-5):
    up, down = (field.read(reading, x + s * step * direction, t) for s in (1, -1))
    return (up - down) / (2 * step)


def test_vectors_hold_the_free_coordinates_and_come_back():
    """2, 4 and 3 nodes with 2 features: n * 2 + n (n - 1) / 2 numbers each."""
    field = graph_field()
    assert field.size.tolist() == [5, 14, 9]
    x = field.flatten(GRAPH.sample(0))
    assert torch.equal(field.flatten(field.state(x)), x)
    assert torch.all(x[~field.exists] == 0)


@pytest.mark.parametrize("reading", ["data", "noise", "score"])
def test_derivatives_are_those_of_the_field(reading):
    field = graph_field()
    x = field.flatten(GRAPH.sample(1))
    v = field.probes(1, SeededNoise(0), "gaussian")
    local = field.linearise(reading, x, 0.4)
    expected = differences(field, reading, x, 0.4, v[0])
    assert torch.allclose(local.value, field.read(reading, x, 0.4), atol=1e-12)
    assert torch.allclose(local.jvp(v)[0], expected, atol=1e-6)
    matrix = local.matrix()
    assert torch.allclose(torch.einsum("bij,bj->bi", matrix, v[0]), expected, atol=1e-6)
    back = torch.einsum("bij,bi->bj", matrix, v[0])
    assert torch.allclose(local.vjp(v)[0], back, atol=1e-10)
    trace = matrix.diagonal(dim1=1, dim2=2).sum(1)
    assert torch.allclose(local.divergence(), trace)


def test_a_network_of_noise_is_read_as_the_same_score_as_one_of_data():
    class Network(nn.Module):
        def __init__(self, system, prediction):
            super().__init__()
            self.exact = GaussianMixture.gmm3().denoiser(system)
            self.prediction = prediction

        def forward(self, x, log_snr, condition):
            t = self.exact.system.processes["x"].time_at(log_snr["x"].double())
            return self.exact.noise(x, t) if self.prediction == "noise" else self.exact(x, t)

    system = System(VP())
    x = GaussianMixture.gmm3().sample(5, 0)["x"]
    fields = [Field(Denoiser(Network(system, p), system, p), x) for p in ("noise", "data")]
    assert [f.native for f in fields] == ["noise", "data"]
    for quantity in (lambda f: f.score(x, 0.3), lambda f: f.linearise("score", x, 0.3).matrix()):
        assert torch.allclose(quantity(fields[0]), quantity(fields[1]), atol=1e-9)


def test_other_components_are_held():
    testbed = CorrelatedGaussian()
    system = System({"x": VP(), "a": VE()})
    state = testbed.sample(3, 0)
    field = Field(testbed.denoiser(system), state, "a")
    moved = field.state(torch.zeros(3, 3, dtype=torch.float64))
    assert moved["x"] is state["x"]
    assert field.dimension == 3


def test_a_component_conditioned_on_puts_no_nan_into_derivatives():
    testbed = CorrelatedGaussian()
    system = System({"x": VP(), "a": VE()}, clocks={"a": FrozenClock(0.0)})
    field = Field(testbed.denoiser(system), testbed.sample(3, 0))
    x = field.flatten(field.like)
    assert field.names == ("x",)
    assert torch.isfinite(field.linearise("score", x, 0.3).matrix()).all()


def test_fused_attention_is_differentiated_forward():
    """The fused kernels have no forward-mode derivative."""

    class Network(nn.Module):
        def forward(self, x, log_snr, condition):
            def attend(v):
                return nn.functional.scaled_dot_product_attention(v, v, v)

            return x.map(attend)

    like = torch.randn(2, 4, 8, generator=torch.Generator().manual_seed(0)).double()
    field = Field(Denoiser(Network(), System(VP())).double(), like)
    x = field.flatten(field.like)
    v = field.probes(2, SeededNoise(1))
    found = field.linearise("data", x, 0.5).jvp(v)
    assert torch.allclose(found[1], differences(field, "data", x, 0.5, v[1]), atol=1e-6)


def test_condition_and_copies_give_the_same_values():
    field, given = graph_field(), graph_field(condition="anything")
    points = torch.stack([field.flatten(GRAPH.sample(s)) for s in range(3)])
    assert torch.allclose(field.at_many(points, 0.4), given.at_many(points, 0.4), atol=1e-12)
    v = field.probes(3, SeededNoise(0))
    first, second = (f.linearise("score", points[0], 0.4).jvp(v) for f in (field, given))
    assert torch.allclose(first, second, atol=1e-12)


def test_unknown_and_resting_components_are_named():
    with pytest.raises(StructDiffError, match="'bonds'"):
        graph_field(components="bonds")
    resting = SYSTEM.with_clocks({"adj": FrozenClock(0.0)})
    with pytest.raises(StructDiffError, match="'adj'"):
        Field(GRAPH.denoiser(resting), GRAPH.sample(0), "adj")


def test_batch_statistics_are_refused_until_eval():
    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(2)

        def forward(self, x, log_snr, condition):
            return State({"x": self.norm(x["x"])})

    model = Denoiser(Network(), System(VP()))
    with pytest.raises(StructDiffError, match=r"network\.norm.*eval"):
        Field(model, torch.zeros(2, 2))
    assert Field(model.eval(), torch.zeros(2, 2)).dimension == 2
