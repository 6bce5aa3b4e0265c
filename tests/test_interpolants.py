"""Interpolants, their systems and one-sided flows: processes card, sections 2.4, 2.5, 8, 10."""

import json
import math

import pytest
import torch

from structdiff.errors import StructDiffError
from structdiff.flows import FlowDenoiser
from structdiff.processes import VP, FrozenClock, RectifiedFlow, System
from structdiff.processes.flow_matching import LipmanFlow, TrigonometricFlow, UnitVarianceFlow
from structdiff.processes.interpolant import Interpolant, InterpolantSystem
from structdiff.processes.paths import (
    Brownian,
    BSquared,
    Constant,
    EncodingDecoding,
    Linear,
    Mirror,
    NoNoise,
    OneSided,
    Sigmoid,
    SinSquared,
    Trigonometric,
)
from structdiff.processes.serial import process_from_dict, process_to_dict
from structdiff.samplers import get_sampler
from structdiff.spaces import Positive
from structdiff.state import State
from structdiff.testbeds import GaussianMixture
from structdiff.testbeds.interpolant import InterpolatedMixtures
from support.interpolants import ENDS, INTERPOLANTS, every_interpolant, times

torch.set_num_threads(1)

FLOWS = [TrigonometricFlow(), LipmanFlow(0.01), LipmanFlow(0.0), UnitVarianceFlow()]
every_flow = pytest.mark.parametrize("process", FLOWS, ids=repr)


def derivative(fn, t):
    t = t.clone().requires_grad_(True)
    value = fn(t)
    if not value.requires_grad:
        return torch.zeros_like(t)
    (slope,) = torch.autograd.grad(value.sum(), t, allow_unused=True)
    return torch.zeros_like(t) if slope is None else slope


# --- closed forms --------------------------------------------------------------------------------
@every_interpolant
@pytest.mark.parametrize("scale", ["data", "base", "noise"])
def test_rates_are_the_derivatives_of_the_scales(interpolant, scale):
    t = times()
    implied = derivative(lambda t: getattr(interpolant.scales(t), scale), t)
    given = getattr(interpolant.scales(t), f"{scale}_rate")
    assert torch.allclose(given, implied, rtol=1e-10, atol=1e-10)


@every_interpolant
def test_scales_are_float64_whatever_the_time(interpolant):
    assert {v.dtype for v in interpolant.scales(torch.tensor(0.3))} == {torch.float64}


@pytest.mark.parametrize(
    "interpolant", [p for p in INTERPOLANTS if p.path.two_sided], ids=lambda p: repr(p)
)
def test_the_ends_are_data_and_base(interpolant):
    start, end = interpolant.scales(0.0), interpolant.scales(1.0)
    left = float(interpolant.noise_scale(0.0))  # the constant one stays at the ends
    full = math.sqrt(1 - left**2) if interpolant.path.keeps_variance else 1.0
    assert float(start.data) == pytest.approx(full, abs=1e-12)
    assert float(end.base) == pytest.approx(full, abs=1e-12)
    assert abs(float(start.base)) + abs(float(end.data)) < 1e-12
    if not isinstance(interpolant.gamma, Constant):
        assert abs(float(start.noise)) + abs(float(end.noise)) < 1e-12


@pytest.mark.parametrize(
    "gamma", [NoNoise(), Brownian(0.5), BSquared(), SinSquared(0.6), Sigmoid()]
)
def test_the_trigonometric_interpolant_keeps_unit_variance(gamma):
    s = Interpolant(Trigonometric(), gamma).scales(times())
    assert torch.allclose(s.data**2 + s.base**2 + s.noise**2, torch.ones(100).double(), rtol=1e-12)


def test_gamma_times_its_rate_is_finite_at_the_ends_of_the_brownian_one():
    # a (1 - 2t) / 2, card 2.4.
    t = torch.tensor([1e-12, 0.25, 1 - 1e-12], dtype=torch.float64)
    product = Brownian(0.8).value(t) * Brownian(0.8).rate(t)
    assert torch.allclose(product, 0.4 * (1 - 2 * t), rtol=1e-9)


@every_flow
def test_drift_and_diffusion_of_a_flow_are_what_its_scales_imply(process):
    t = times()
    assert torch.allclose(process.drift(t), derivative(process.log_alpha, t), rtol=1e-10)
    implied = derivative(lambda t: process.sigma(t) ** 2, t) - 2 * process.drift(t) * (
        process.sigma(t) ** 2
    )
    assert torch.allclose(process.diffusion_squared(t), implied, rtol=1e-10)


@every_flow
def test_time_at_inverts_the_log_snr_of_a_flow(process):
    t = times()
    assert torch.allclose(process.time_at(process.half_log_snr(t)), t, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("process", [*INTERPOLANTS, *FLOWS], ids=repr)
def test_a_process_comes_back_from_json(process):
    assert process_from_dict(json.loads(json.dumps(process_to_dict(process)))) == process


def test_an_unknown_part_of_an_interpolant_is_named():
    written = process_to_dict(Interpolant()) | {"gamma": {"type": "Gaussian"}}
    with pytest.raises(StructDiffError, match=r"unknown process 'Gaussian'.*Brownian"):
        process_from_dict(written)


def test_lipmans_flow_without_noise_at_the_data_is_the_straight_line():
    t = times()
    a, b = LipmanFlow(0.0), RectifiedFlow()
    assert torch.equal(a.sigma(t), b.sigma(t)) and torch.equal(a.alpha(t), b.alpha(t))


@pytest.mark.parametrize("process", [TrigonometricFlow(), UnitVarianceFlow()], ids=repr)
def test_a_unit_variance_flow_is_vp_up_to_its_clock(process):
    # Card 2.4: one-sided with sqrt(1 - t^2) and t is VP after t = e^{-tau}. Equal log-SNR, equal
    # scales, so DDIM on matched grids makes the same trajectory.
    vp, mixture = VP(), GaussianMixture.gmm3()
    grid = torch.linspace(0.99, 0.01, 9, dtype=torch.float64)
    matched = process.time_at(vp.half_log_snr(grid))
    assert torch.allclose(process.alpha(matched), vp.alpha(grid), rtol=1e-9)
    x = torch.randn(16, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ours = get_sampler("ddim", 9, grid=matched)(mixture.denoiser(System(process)), x)["x"]
    theirs = get_sampler("ddim", 9, grid=grid)(mixture.denoiser(System(vp)), x)["x"]
    assert torch.allclose(ours, theirs, rtol=1e-9)


# --- systems -------------------------------------------------------------------------------------
def pair(n=6, source=0):
    return ENDS.sample(n, source)


def test_interpolate_starts_at_the_data_and_ends_at_the_base():
    system = InterpolantSystem(Interpolant())
    (x0, x1), z = pair(), System(VP()).noise(pair()[0], 1)
    assert torch.equal(system.interpolate(x0, x1, 0.0, z)["x"], x0["x"])
    assert torch.equal(system.interpolate(x0, x1, 1.0, z)["x"], x1["x"])


def test_path_velocity_is_the_derivative_of_interpolate_without_noise():
    system = InterpolantSystem(Interpolant(Trigonometric(), BSquared()))
    (x0, x1), h = pair(), 1e-6
    zero = x0 * 0.0
    up, down = (system.interpolate(x0, x1, t, zero) for t in (0.4 + h, 0.4 - h))
    slope = (up - down) / (2 * h)
    assert torch.allclose(system.path_velocity(x0, x1, 0.4)["x"], slope["x"], rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize(
    "reading", ["alpha", "sigma", "half_log_snr", "drift", "diffusion", "log_alpha"]
)
def test_what_only_diffusions_have_is_refused_by_name(reading):
    system = InterpolantSystem(Interpolant())
    with pytest.raises(StructDiffError, match="'flow' or 'interpolant-sde'"):
        getattr(system, reading)(0.5)


@pytest.mark.parametrize("name", ["ddim", "euler-maruyama", "heun", "dpm++", "s4"])
def test_samplers_of_diffusions_refuse_a_two_sided_interpolant(name):
    flow = ENDS.flow(InterpolantSystem(Interpolant()))
    with pytest.raises(StructDiffError, match="'flow' or 'interpolant-sde'"):
        get_sampler(name, 4)(flow, pair()[1], source=0)


@pytest.mark.parametrize("name", ["ddim", "dpm++", "heun", "s4", "euler-maruyama"])
def test_a_one_sided_interpolant_is_served_by_the_samplers_of_diffusions(name):
    # Its flow and the denoiser of the same process are one thing.
    mixture, process = GaussianMixture.gmm3(), TrigonometricFlow()
    start = GaussianMixture([1.0], [[0.0, 0.0]], torch.eye(2)[None])
    flow = InterpolatedMixtures(mixture, start).flow(
        InterpolantSystem(Interpolant.one_sided(process))
    )
    denoiser = mixture.denoiser(System(process))
    x = denoiser.system.prior(State({"x": torch.zeros(8, 2).double()}), 0)
    a, b = (get_sampler(name, 12)(model, x, source=1)["x"] for model in (flow, denoiser))
    assert torch.allclose(a, b, rtol=1e-8, atol=1e-10)


def test_the_prior_of_a_data_base_is_refused():
    system = InterpolantSystem(Interpolant(), base="data")
    with pytest.raises(StructDiffError, match=r"system.start\(samples\)"):
        system.prior(pair()[0], 0)


def test_the_prior_of_a_mirror_is_refused():
    with pytest.raises(StructDiffError, match="mirror"):
        InterpolantSystem(Interpolant(Mirror())).prior(pair()[0], 0)


def test_the_prior_has_the_spread_of_the_interpolant_at_its_start():
    # c^2 + gamma^2 at t_max for a normal base, up to the data's (1 - t_max)^2: 2e4 draws.
    p = Interpolant(Linear(), Brownian(2.0), t_max=0.9)
    x = InterpolantSystem(p).prior(State({"x": torch.zeros(20_000, 1).double()}), 0)["x"]
    expected = math.sqrt(0.9**2 + 2.0 * 0.9 * 0.1)
    assert float(x.std()) == pytest.approx(expected, rel=0.02)


def test_a_base_is_drawn_as_values_and_encoded():
    system = InterpolantSystem(
        Interpolant(Linear(), NoNoise()),
        {"x": Positive()},
        base=lambda like, source: like.map(lambda v: torch.full_like(v, math.e)),
    )
    like = State({"x": torch.ones(2, 1)})
    assert torch.allclose(system.draw_base(like, 0)["x"], torch.ones(2, 1))
    assert torch.allclose(system.prior(like, 0)["x"], torch.full((2, 1), 0.999))


def test_a_frozen_component_keeps_its_data_in_the_prior():
    system = InterpolantSystem({"x": Interpolant(), "y": VP()}, clocks={"y": FrozenClock()})
    like = State({"x": torch.zeros(3, 2), "y": torch.arange(3.0)[:, None]})
    assert torch.equal(system.prior(like, 0)["y"], like["y"])


def test_new_clocks_keep_the_interpolants_and_the_base():
    system = InterpolantSystem(Interpolant(), base="data").with_clocks({"x": FrozenClock()})
    assert isinstance(system, InterpolantSystem) and system.base == "data"


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (lambda: Interpolant(EncodingDecoding(), NoNoise()), "noise in the middle"),
        (lambda: Interpolant(Mirror(), NoNoise()), "noise in the middle"),
        (lambda: Interpolant(Trigonometric(), SinSquared()), "below 1"),
        (lambda: Interpolant(OneSided(VP()), Brownian()), "leave gamma out"),
        (lambda: Brownian(-1.0), "positive a"),
        (lambda: LipmanFlow(1.0), "sigma_0"),
        (lambda: InterpolantSystem(Interpolant(), base="noise"), "'normal', 'data'"),
        (lambda: FlowDenoiser(torch.nn.Identity(), System(VP())), "InterpolantSystem"),
        (lambda: FlowDenoiser(torch.nn.Identity(), InterpolantSystem(VP()), ["u"]), "unknown head"),
    ],
)
def test_what_does_not_go_together_is_named(make, what):
    with pytest.raises(StructDiffError, match=what):
        make()
