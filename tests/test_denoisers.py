"""Exact conversions between what networks predict: core card of the processes, section 2.6."""

from dataclasses import dataclass

import pytest
import torch

from structdiff.denoisers import BaseDenoiser, Denoiser
from structdiff.errors import StructDiffError
from structdiff.processes import (
    EDM,
    VE,
    VP,
    Cosine,
    FrozenClock,
    GeometricBrownian,
    OrnsteinUhlenbeck,
    RectifiedFlow,
    Residual,
    SubVP,
    System,
)
from structdiff.state import State, expand_right
from structdiff.testbeds import CorrelatedGaussian

torch.set_num_threads(1)
KINDS = ["noise", "score", "data", "velocity", "v", "edm"]
PROCESSES = [
    *(VP(), SubVP(), VE(), Cosine(), EDM(), RectifiedFlow()),
    *(Residual("a"), GeometricBrownian(0.3, power=2.0), OrnsteinUhlenbeck()),
]


class Oracle(torch.nn.Module):
    """A perfect network of any kind, built from the true data and noise."""

    def __init__(self, kind, system, x0, eps, t, std):
        super().__init__()
        self.kind, self.system, self.x0, self.eps, self.t, self.std = kind, system, x0, eps, t, std
        self.seen = None

    def forward(self, x, log_snr, condition=None):
        self.seen = (x, log_snr, condition)
        system, t = self.system, self.t
        alpha, sigma = system.alpha(t), system.sigma(t)
        if self.kind == "noise":
            return self.eps
        if self.kind == "score":
            return -self.eps / sigma
        if self.kind == "data":
            return self.x0
        if self.kind == "velocity":
            return self.x0 * system.alpha_derivative(t) + self.eps * system.sigma_derivative(t)
        if self.kind == "v":
            return self.eps * alpha - self.x0 * sigma
        # Karras: x0 = c_skip x + c_out F, with the general scales of the card
        noisy = self.x0 * alpha + self.eps * sigma
        total = {k: alpha[k] ** 2 * self.std**2 + sigma[k] ** 2 for k in alpha}
        skip = {k: alpha[k] * self.std**2 / total[k] for k in alpha}
        out = {k: sigma[k] * self.std / total[k].sqrt() for k in alpha}
        return (self.x0 - noisy * skip) / out


def case(kind, process, t):
    system = System({"x": process, "a": VE()})
    generator = torch.Generator().manual_seed(0)

    def normal():
        return State(
            {k: torch.randn(4, 3, generator=generator, dtype=torch.float64) for k in ("x", "a")}
        )

    x0, eps = normal(), normal()
    x = system.perturb(x0, t, eps)
    network = Oracle(kind, system, x0, eps, t, 0.5)
    return Denoiser(network, system, kind, data_std=0.5), x, x0, eps


@pytest.mark.parametrize("per_object", [False, True], ids=["one time", "a time per object"])
@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("kind", KINDS)
def test_data_noise_score_and_velocity_are_exact(kind, process, per_object):
    for time in (0.05, 0.4, 0.9):
        t = torch.linspace(time, time + 0.05, 4) if per_object else time
        denoiser, x, x0, eps = case(kind, process, t)
        system = denoiser.system
        readings = {
            "data": (denoiser(x, t), x0),
            "noise": (denoiser.noise(x, t), eps),
            "score": (denoiser.score(x, t), -eps / system.sigma(t)),
            "velocity": (
                denoiser.velocity(x, t),
                x0 * system.alpha_derivative(t) + eps * system.sigma_derivative(t),
            ),
        }
        for name, (found, exact) in readings.items():
            for k in exact:
                # x0 / alpha and eps / sigma amplify the rounding of x
                scale = 1 + float(exact[k].abs().max()) + float(x[k].abs().max())
                assert float((found[k] - exact[k]).abs().max()) < 1e-10 * scale, (name, k)


@pytest.mark.parametrize("kind", KINDS)
def test_a_python_time_and_a_tensor_time_read_the_same(kind):
    denoiser, x, _, _ = case(kind, VP(), 0.4)
    t = torch.tensor(0.4, dtype=torch.float64)
    for method in (denoiser, denoiser.noise, denoiser.score):
        for k in x:
            assert torch.allclose(method(x, 0.4)[k], method(x, t)[k], rtol=1e-12, atol=1e-12)


def test_a_change_of_system_forgets_remembered_times():
    denoiser, x, _, _ = case("noise", VP(), 0.4)
    before = denoiser(x, 0.4)["x"]
    denoiser.system = System({"x": SubVP(), "a": VE()})
    assert not torch.allclose(before, denoiser(x, 0.4)["x"])


@pytest.mark.parametrize("kind", KINDS)
def test_one_reading_is_one_network_call_at_the_half_log_snr(kind):
    denoiser, x, _, _ = case(kind, VP(), 0.4)
    denoiser(x, 0.4, condition="given")
    seen, log_snr, condition = denoiser.network.seen
    assert condition == "given"
    assert log_snr["x"].shape == (4,)
    assert float(log_snr["x"][0]) == pytest.approx(float(VP().half_log_snr(0.4)))
    scaled = kind == "edm"
    assert scaled != torch.equal(seen["x"], x["x"])


def test_edm_scales_the_input_to_unit_variance():
    system = System({"x": VP(), "a": VE()})
    x0 = State({k: 0.5 * torch.randn(20000, 1).double() for k in ("x", "a")})
    x = system.perturb(x0, 0.3, system.noise(x0, 0))
    denoiser = Denoiser(torch.nn.Identity(), system, "edm", data_std=0.5)
    scaled, _ = denoiser.network_inputs(x, system.times(0.3))
    for k in scaled:
        assert float(scaled[k].std()) == pytest.approx(1.0, rel=0.03)


def test_the_score_of_any_denoiser_is_the_gradient_of_the_log_density():
    testbed = CorrelatedGaussian()
    system = System({"x": VP(), "a": VE(0.01, 10.0)})
    denoiser = testbed.denoiser(system)
    x = testbed.sample(5, 0).map(lambda v: v.requires_grad_(True))
    gradient = torch.autograd.grad(denoiser.log_density(x, 0.3).sum(), list(x.values()))
    score = denoiser.score(x, 0.3)
    for k, g in zip(x, gradient, strict=True):
        assert torch.allclose(score[k], g, atol=1e-10)


def test_guidance_that_overrides_forward_changes_every_reading():
    denoiser, x, _, _ = case("noise", VP(), 0.4)

    class Shifted(BaseDenoiser):
        def forward(self, x, t, condition=None):
            return denoiser(x, t, condition) + 1.0

    shifted = Shifted(denoiser.system)
    expected = denoiser.noise(x, 0.4)["x"] - expand_right(VP().alpha(0.4) / VP().sigma(0.4), x["x"])
    assert torch.allclose(shifted.noise(x, 0.4)["x"], expected)


def test_the_network_output_is_read_in_the_dtype_of_the_state():
    class Half(torch.nn.Module):
        def forward(self, x, log_snr, condition=None):
            return x.map(lambda v: v.to(torch.bfloat16))

    x = State({"x": torch.randn(2, 3)})
    assert Denoiser(Half(), System({"x": VP()}), "data")(x, 0.5)["x"].dtype == torch.float32


def test_an_unknown_prediction_names_the_component_and_the_choices():
    with pytest.raises(StructDiffError, match=r"'epsilon'.*'x'.*noise, score"):
        Denoiser(torch.nn.Identity(), System({"x": VP()}), "epsilon")


# --- a companion in the mean: x_t = alpha x0 + t^2 y + sigma eps -------------------------------
@dataclass(frozen=True)
class Pulled(VP):
    companion: str | None = "y"
    shifted = True

    def shift(self, t):
        return torch.as_tensor(t, dtype=torch.float64) ** 2


def pulled_case(kind, t, scale_input=False):
    system = System({"x": Pulled(), "y": VE()})
    generator = torch.Generator().manual_seed(0)

    def normal():
        return State(
            {k: torch.randn(4, 3, generator=generator, dtype=torch.float64) for k in ("x", "y")}
        )

    x0, eps = normal(), normal()
    x = system.perturb(x0, t, eps).replace(y=x0["y"])
    denoiser = Denoiser(Oracle(kind, system, x0, eps, t, 0.5), system, kind, 0.5, scale_input)
    return denoiser, x, x0, eps


@pytest.mark.parametrize("t", [0.4, torch.linspace(0.2, 0.8, 4).double()], ids=["float", "tensor"])
def test_the_network_sees_the_companion_in_the_mean(t):
    denoiser, x, x0, _ = pulled_case("data", t)
    denoiser(x, t)
    square = torch.as_tensor(t, dtype=torch.float64)[..., None] ** 2
    seen = denoiser.network.seen[0]
    assert torch.allclose(seen["x"], x["x"] + square * x0["y"], rtol=1e-14)
    assert seen["y"] is x["y"]


def test_the_companion_is_added_before_the_input_is_scaled():
    denoiser, x, x0, _ = pulled_case("data", 0.4, scale_input=True)
    denoiser(x, 0.4)
    alpha, sigma = VP().alpha(0.4), VP().sigma(0.4)
    expected = (x["x"] + 0.16 * x0["y"]) / torch.sqrt(0.25 * alpha**2 + sigma**2)
    assert torch.allclose(denoiser.network.seen[0]["x"], expected, rtol=1e-14)


@pytest.mark.parametrize("kind", KINDS)
def test_readings_are_of_the_centred_state(kind):
    denoiser, x, x0, eps = pulled_case(kind, 0.4)
    assert torch.allclose(denoiser(x, 0.4)["x"], x0["x"], atol=1e-10)
    assert torch.allclose(denoiser.noise(x, 0.4)["x"], eps["x"], atol=1e-10)


def test_a_pair_is_data_and_noise_of_one_call():
    denoiser, x, x0, eps = case("edm", VP(), 0.4)
    calls = []
    denoiser.network.register_forward_hook(lambda *_: calls.append(1))
    data, noise = denoiser.pair(x, 0.4)
    assert len(calls) == 1
    for k in x:
        assert torch.allclose(data[k], x0[k], atol=1e-9)
        assert torch.allclose(noise[k], eps[k], atol=1e-9)


class Halved(torch.nn.Module):
    def forward(self, x, log_snr, condition=None):
        return x * 0.5


@pytest.mark.parametrize("kind", KINDS)
def test_at_time_zero_the_data_are_the_state_or_finite(kind):
    # A component that is conditioned on stands there: sigma = 0, and d sigma/dt is without bound.
    system = System({"x": VP(), "y": VP()}, clocks={"y": FrozenClock()})
    x = State({k: torch.randn(3, 2, dtype=torch.float64) for k in ("x", "y")})
    y = Denoiser(Halved(), system, kind)(x, 0.4)["y"]
    assert bool(y.isfinite().all())
    if kind in ("noise", "score", "velocity", "v"):
        assert torch.allclose(y, x["y"])
