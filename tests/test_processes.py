"""Closed forms of the processes: their card, sections 2.1 and 10; GDSS card, checks 1 and 2."""

import json
import math
from dataclasses import dataclass

import pytest
import torch

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
from structdiff.processes.serial import process_from_dict, process_to_dict
from structdiff.spaces import Symmetric
from structdiff.state import State

torch.set_num_threads(1)
PROCESSES = [
    *(VP(), SubVP(), VE(), Cosine(), EDM(), RectifiedFlow(), VP(0.1, 1.0)),
    *(Residual(), Residual(mean_ramp="average", noise_ramp="decreased", noise_scale=0.01)),
    *(Residual(mean_ramp="normal", noise_ramp="normal"), Residual("z", "increased", "average", 2)),
    *(GeometricBrownian(), GeometricBrownian(mu=-0.5, volatility=0.8, power=2.0)),
    OrnsteinUhlenbeck(),
]
every_process = pytest.mark.parametrize("process", PROCESSES, ids=repr)


def times(process, count=100):
    generator = torch.Generator().manual_seed(0)
    u = torch.rand(count, generator=generator, dtype=torch.float64)
    return process.t_min + u * (process.t_max - process.t_min)


def derivative(fn, t):
    t = t.clone().requires_grad_(True)
    (slope,) = torch.autograd.grad(fn(t).sum(), t, allow_unused=True)
    return torch.zeros_like(t) if slope is None else slope


@every_process
def test_drift_is_the_logarithmic_derivative_of_alpha(process):
    t = times(process)
    if not process.log_alpha(t).abs().any():
        assert not process.drift(t).any()
        return
    assert torch.allclose(process.drift(t), derivative(process.log_alpha, t), rtol=1e-10)


@every_process
def test_diffusion_is_what_alpha_and_sigma_imply(process):
    t = times(process)
    implied = (
        derivative(lambda t: process.sigma(t) ** 2, t)
        - 2 * process.drift(t) * process.sigma(t) ** 2
    )
    assert torch.allclose(process.diffusion_squared(t), implied, rtol=1e-10, atol=1e-12)


@every_process
def test_sigma_derivative_is_that_of_sigma(process):
    t = times(process)
    assert torch.allclose(process.sigma_derivative(t), derivative(process.sigma, t), rtol=1e-9)


@every_process
def test_time_at_inverts_the_half_log_snr(process):
    t = times(process)
    assert torch.allclose(process.time_at(process.half_log_snr(t)), t, rtol=1e-9, atol=1e-12)


@every_process
def test_half_log_snr_falls_with_time(process):
    t = times(process).sort().values
    assert bool((process.half_log_snr(t).diff() < 0).all())


@every_process
def test_everything_is_float64_whatever_the_time(process):
    t = torch.tensor(0.5, dtype=torch.float32)
    for name in ("alpha", "sigma", "half_log_snr", "drift", "diffusion"):
        assert getattr(process, name)(t).dtype == torch.float64


@every_process
def test_euler_steps_of_the_forward_sde_reach_alpha_and_sigma(process):
    # Card, check 3: 2000 steps, 1 %. The mean and variance that 1e5 paths would estimate, exactly;
    # a tenth of their standard error of the mean, 3e-3, stands for 1 % where alpha is tiny.
    end, steps = 0.9 * process.t_max, 2000
    t = torch.linspace(0, end, steps + 1, dtype=torch.float64)
    pull, noise = process.drift(t) * end / steps, process.diffusion_squared(t) * end / steps
    alpha, sigma = process.alpha(t), process.sigma(t)
    mean, variance = 1.0, float(sigma[0]) ** 2
    for i in range(steps):
        mean *= 1 + float(pull[i])
        variance = variance * (1 + float(pull[i])) ** 2 + float(noise[i])
        if (i + 1) % 200 == 0:
            assert mean == pytest.approx(float(alpha[i + 1]), rel=0.01, abs=3e-4)
            assert math.sqrt(variance) == pytest.approx(float(sigma[i + 1]), rel=0.01)


@every_process
def test_a_process_survives_json(process):
    written = json.loads(json.dumps(process_to_dict(process)))
    assert process_from_dict(written) == process


@pytest.mark.parametrize(
    ("process", "alpha", "sigma"),
    [
        (VP(0.1, 1.0), 0.759572, 0.650423),
        (VP(0.2, 0.8), 0.778801, 0.627271),
        (SubVP(0.1, 1.0), 0.759572, 0.423050),
        (VP(), 6.6e-3, 1.0),
    ],
    ids=repr,
)
def test_published_scales_at_the_end(process, alpha, sigma):
    assert float(process.alpha(1.0)) == pytest.approx(alpha, rel=1e-2 if alpha < 0.1 else 1e-6)
    assert float(process.sigma(1.0)) == pytest.approx(sigma, rel=1e-4 if sigma == 1 else 1e-6)


def test_published_scales_of_the_ornstein_uhlenbeck_process():
    # Deveney et al.: f = -1, g = 1 in their time 10 t, prior N(0, I/2), t_min 1e-5.
    process = OrnsteinUhlenbeck()
    assert float(process.alpha(0.1)) == pytest.approx(math.exp(-1))
    assert float(process.sigma(0.1)) ** 2 == pytest.approx((1 - math.exp(-2)) / 2)
    assert process.prior_std() ** 2 == pytest.approx(0.5)
    assert process.t_min * process.horizon == pytest.approx(1e-5)


def test_published_scales_of_variance_exploding():
    process = VE(0.2, 1.0)
    assert float(process.sigma(0.5)) == pytest.approx(0.447214, abs=1e-6)
    assert float(process.diffusion_squared(0.5)) == pytest.approx(0.643775, abs=1e-6)


def test_sigma_does_not_cancel_at_small_times():
    # sqrt(1 - alpha^2) in float32 loses 0.7 % at 1e-5 (GDSS card, 8.16); sigma^2 = b0 t there.
    assert float(VP(0.1, 1.0).sigma(1e-9)) == pytest.approx(math.sqrt(1e-10), rel=1e-6)
    assert float(Cosine().sigma(0.0)) == 0.0


def test_noise_grows_to_its_value_along_the_chain():
    # Composing the links of the exact transition gives sigma(1), whatever their number.
    for process in (SubVP(), Cosine(), EDM(), Residual(), GeometricBrownian()):
        variance, end = 0.0, process.t_max
        for i in range(1, 21):
            factor, noise = process.discrete_step(end * i / 20, end / 20)
            variance = factor**2 * variance + noise**2
        assert math.sqrt(variance) == pytest.approx(float(process.sigma(end)), rel=1e-9)


def test_the_chain_of_vp_is_that_of_ddpm():
    # beta_i = linspace(1e-4, 0.02, 1000)
    factor, noise = VP().chain_step(1.0, 1000)
    assert noise**2 == pytest.approx(0.02) and factor**2 == pytest.approx(0.98)
    assert VP().chain_step(0.0, 1000)[1] ** 2 == pytest.approx(1e-4)


def test_the_first_link_of_ve_starts_from_clean_data():
    assert VE(0.1, 1.0).chain_step(0.0, 100) == (1.0, pytest.approx(0.1))


def test_a_chain_with_too_few_links_is_refused_with_the_remedy():
    with pytest.raises(StructDiffError, match="at least 21 steps"):
        VP().discrete_step(1.0, 0.1)


@pytest.mark.parametrize("make", [lambda: VP(0.0, 1.0), lambda: VP(2.0, 1.0), lambda: VE(1.0, 0.1)])
def test_impossible_schedules_are_refused(make):
    with pytest.raises(StructDiffError):
        make()


# --- systems -----------------------------------------------------------------------------------
SYSTEM = System({"x": VP(0.1, 1.0), "adj": VE(0.1, 1.0)}, {"adj": Symmetric()})


def graph_state(size, nodes=3):
    off = ~torch.eye(nodes, dtype=torch.bool)
    exists = torch.ones(size, nodes, dtype=torch.bool)
    exists[:, -1] = False
    masks = {"x": exists[:, :, None], "adj": exists[:, :, None] & exists[:, None, :] & off}
    x = {"x": torch.ones(size, nodes, 2), "adj": torch.ones(size, nodes, nodes)}
    return State(x, masks).masked()


def test_perturbation_has_the_mean_and_spread_of_the_process():
    # GDSS card, check 2: within 1 % over 1e5 draws.
    x0 = graph_state(100_000)
    x = SYSTEM.perturb(x0, 1.0, SYSTEM.noise(x0, 0))
    assert float(x["x"][:, 0].mean()) == pytest.approx(0.759572, rel=0.01)
    assert float(x["x"][:, 0].std()) == pytest.approx(0.650423, rel=0.01)
    assert float(x["adj"][:, 0, 1].mean()) == pytest.approx(1.0, rel=0.01)
    assert float(x["adj"][:, 0, 1].std()) == pytest.approx(1.0, rel=0.01)


def test_perturbation_keeps_symmetry_and_masks_exactly():
    x0 = graph_state(50)
    x = SYSTEM.perturb(x0, 0.7, SYSTEM.noise(x0, 0))
    assert torch.equal(x["adj"], x["adj"].transpose(1, 2))
    assert not x["adj"][:, -1].any() and not x["x"][:, -1].any()
    assert not x["adj"].diagonal(dim1=1, dim2=2).any()


def test_times_per_object_scale_every_object_by_its_own():
    x0 = graph_state(2)
    t = torch.tensor([0.2, 0.9], dtype=torch.float64)
    both = SYSTEM.perturb(x0, t, SYSTEM.noise(x0, 0))
    one = SYSTEM.perturb(x0, 0.9, SYSTEM.noise(x0, 0))
    assert torch.allclose(both["adj"][1], one["adj"][1])


def test_a_clock_gives_a_component_its_own_time():
    system = SYSTEM.with_clocks({"adj": lambda t: t**2})
    assert float(system.sigma(0.5)["adj"]) == pytest.approx(float(VE(0.1, 1.0).sigma(0.25)))
    assert float(system.sigma(0.5)["x"]) == pytest.approx(float(VP(0.1, 1.0).sigma(0.5)))


def test_the_prior_keeps_frozen_components():
    system = SYSTEM.with_clocks({"x": FrozenClock()})
    x0 = graph_state(4)
    x = system.prior(x0, 0)
    assert torch.equal(x["x"], x0["x"]) and not torch.equal(x["adj"], x0["adj"])


def test_sampling_times_are_those_of_the_components_that_move():
    system = System({"x": VP(), "a": RectifiedFlow()}, clocks={"a": FrozenClock()})
    assert (system.t_min, system.t_max) == (1e-3, 1.0) and system.moving == ("x",)


def test_a_space_for_an_unknown_component_is_refused():
    with pytest.raises(StructDiffError, match="edges"):
        System({"x": VP()}, {"edges": Symmetric()})


# --- a companion in the mean -------------------------------------------------------------------
@dataclass(frozen=True)
class Pulled(VP):
    """x_t = alpha x0 + t^2 y + sigma eps."""

    companion: str | None = "y"
    shifted = True

    def shift(self, t):
        return torch.as_tensor(t, dtype=torch.float64) ** 2


def pulled_state(batch=3):
    generator = torch.Generator().manual_seed(0)
    return State(
        {k: torch.randn(batch, 2, generator=generator, dtype=torch.float64) for k in ("x", "y")}
    )


def test_the_uncentred_state_has_the_companion_in_its_mean():
    system = System({"x": Pulled(), "y": VE()})
    x0, t = pulled_state(), torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    noise = system.noise(x0, 0)
    x = system.uncentred(system.perturb(x0, t, noise).replace(y=x0["y"]), t)
    process, column = Pulled(), t[:, None]
    expected = (
        process.alpha(column) * x0["x"] + column**2 * x0["y"] + process.sigma(column) * noise["x"]
    )
    assert torch.allclose(x["x"], expected, rtol=1e-14)
    assert x["y"] is x0["y"]


def test_centring_undoes_uncentring():
    system = System({"x": Pulled(), "y": VE()})
    x = pulled_state()
    assert torch.allclose(system.centred(system.uncentred(x, 0.7), 0.7)["x"], x["x"], rtol=1e-14)


def test_a_companion_is_conditioned_on_by_itself():
    system = System({"x": Pulled(), "y": VE()})
    assert system.frozen("y") and system.moving == ("x",)
    assert torch.equal(system.prior(pulled_state(), 0)["y"], pulled_state()["y"])


def test_the_constant_reaches_neither_masked_entries_nor_a_diagonal():
    x0 = graph_state(2)
    constant = System({k: Pulled(companion=None) for k in ("x", "adj")}, {"adj": Symmetric()})
    x = constant.uncentred(x0, 0.5)
    assert torch.allclose(x["adj"], 1.25 * x0["adj"]) and torch.allclose(x["x"], 1.25 * x0["x"])


@pytest.mark.parametrize("companion", ["x", "z"])
def test_a_companion_must_be_another_component(companion):
    with pytest.raises(StructDiffError, match=f"companion of component 'x' is '{companion}'"):
        System({"x": Pulled(companion=companion), "y": VE()})


def test_a_companion_that_moves_is_refused():
    with pytest.raises(StructDiffError, match=r"'y' is the companion of 'x'.*FrozenClock"):
        System({"x": Pulled(), "y": VE()}, clocks={"y": lambda t: t})


def test_a_companion_of_another_shape_is_refused():
    system = System({"x": Pulled(), "y": VE()})
    x = State({"x": torch.zeros(3, 2), "y": torch.zeros(3, 1)})
    for use in (system.check, lambda x: system.uncentred(x, 0.5)):
        with pytest.raises(StructDiffError, match=r"'y' has shape \(3, 1\)"):
            use(x)


def test_a_companion_with_another_mask_is_refused():
    system = System({"x": Pulled(), "y": VE()})
    mask = torch.tensor([[True, False]])
    system.check(pulled_state().with_masks({"x": mask, "y": mask.clone().expand(3, 2)}))
    with pytest.raises(StructDiffError, match="different entries"):
        system.check(pulled_state().with_masks({"x": mask}))
