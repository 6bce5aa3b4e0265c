"""The Levenberg-Marquardt-Langevin correction: what it is in exact arithmetic, and what is not.

Numbers: samplers card, section 2.11.
"""

from functools import partial

import pytest
import torch

from structdiff.errors import StructDiffError
from structdiff.noise import PerObjectNoise
from structdiff.processes import VE, VP, System
from structdiff.samplers import DPMSolver, UniformTime, get_sampler
from structdiff.samplers.lml import LML, damped_direction
from structdiff.state import State
from structdiff.testbeds import CorrelatedGaussian, GaussianGraph, GaussianMixture

torch.set_num_threads(1)


def rms(a, b):
    return float((a - b).square_norm().mean().sqrt())


@pytest.fixture(scope="module")
def mixture():
    denoiser = GaussianMixture.gmm3().denoiser(System(VP()))
    x = denoiser.system.prior(State({"x": torch.zeros(512, 2, dtype=torch.float64)}), 0)
    return denoiser, x, get_sampler("ode", 1, denoise=False, rtol=1e-8, atol=1e-8)(denoiser, x)


LINEAR = ["ddim", "dpm++", "tab3", "ipndm", "unipc3", "dpm++3m"]


@pytest.mark.parametrize("damping", [8e-4, 1.0, 1e4])
@pytest.mark.parametrize("base", LINEAR)
def test_as_published_it_is_the_base_solver(base, damping, mixture):
    denoiser, x, _ = mixture
    plain = get_sampler(base, 12)(denoiser, x)
    corrected = LML(12, base=base, damping=damping, kappa=0.0)(denoiser, x)
    assert rms(corrected, plain) < 1e-8 * float(plain.square_norm().mean().sqrt())


@pytest.mark.parametrize("base", ["ddpm", "dpm++sde"])
def test_a_stochastic_base_keeps_its_noise(base, mixture):
    denoiser, x, _ = mixture
    plain = get_sampler(base, 12)(denoiser, x, source=3)
    corrected = LML(12, base=base)(denoiser, x, source=3)
    assert rms(corrected, plain) < 1e-8 * float(plain.square_norm().mean().sqrt())


# D, damping, |n_i|, relative change of n
ROUNDING = [(3072, 8e-4, 1.0, 0.15), (3072, 8e-4, 0.3, 0.012), (3072, 8e-4, 0.1, 0.0014)]
ROUNDING += [(16384, 5e-3, 1.0, 0.11)]


@pytest.mark.parametrize(("size", "damping", "scale", "change"), ROUNDING)
def test_the_published_effect_is_the_rounding_of_float32(size, damping, scale, change):
    n = scale * torch.randn(16, size, generator=torch.Generator().manual_seed(0))
    moved = damped_direction(n, damping=damping) - n
    relative = float((moved.norm(dim=1) / n.norm(dim=1)).mean())
    assert relative == pytest.approx(change, rel=0.1)


@pytest.mark.parametrize(("size", "damping", "scale"), [row[:3] for row in ROUNDING])
def test_float64_has_none_of_it(size, damping, scale):
    n = scale * torch.randn(16, size, generator=torch.Generator().manual_seed(0)).double()
    moved = damped_direction(n, damping=damping) - n
    assert float((moved.norm(dim=1) / n.norm(dim=1)).max()) < 3e-10


def test_float32_states_are_corrected_in_float64():
    system = System(VP())
    mixture = GaussianMixture([1.0], torch.zeros(1, 512), 0.25 * torch.eye(512)[None])
    x = system.prior(State({"x": torch.zeros(4, 512)}), 0)
    plain = get_sampler("ddim", 10)(mixture.denoiser(system), x)
    corrected = LML(10, damping=8e-4)(mixture.denoiser(system), x)
    assert corrected["x"].dtype == torch.float32
    assert rms(corrected, plain) < 1e-6 * float(plain.square_norm().mean().sqrt())


@pytest.mark.parametrize(
    ("kappa", "damping", "error"),
    [(0.0, 8e-4, 0.258), (0.1, 8e-4, 3.5), (0.1, 1.0, 0.289), (0.1, 1e4, 0.258)],
)
def test_error_of_ten_ddim_steps_is_the_published_figure(kappa, damping, error, mixture):
    denoiser, x, exact = mixture
    sampler = LML(10, UniformTime(2), kappa=kappa, damping=damping, denoise=False)
    assert rms(sampler(denoiser, x), exact) == pytest.approx(error, rel=0.05)


def test_the_true_damped_step_shrinks_the_direction():
    # Sherman and Morrison: (lambda I + n n^T)^-1 n = n / (lambda + |n|^2).
    n = torch.randn(8, 5, generator=torch.Generator().manual_seed(0)).double()
    damping = 0.3
    hessian = damping * torch.eye(5).double() + n[:, :, None] * n[:, None]
    newton = torch.linalg.solve(hessian, n[..., None])[..., 0]
    shrunk = damped_direction(n, damping=damping, rescale=False)
    assert float((shrunk - damping * newton).abs().max()) < 1e-12
    length = n.square().sum(1, keepdim=True)
    assert float((shrunk - n * damping / (damping + length)).abs().max()) < 1e-12


def test_with_a_predecessor_it_is_the_inverse_of_the_damped_rank_one_matrix():
    generator = torch.Generator().manual_seed(0)
    n, before = torch.randn(2, 8, 5, generator=generator, dtype=torch.float64)
    damping, kappa = 0.3, 0.4
    e = kappa * before + (1 - kappa) * n
    hessian = damping * torch.eye(5).double() + e[:, :, None] * e[:, None]
    newton = damping * torch.linalg.solve(hessian, n[..., None])[..., 0]
    plain = damped_direction(n, before, damping=damping, kappa=kappa, rescale=False)
    assert float((plain - newton).abs().max()) < 1e-12
    scaled = damped_direction(n, before, damping=damping, kappa=kappa)
    ratio = n.norm(dim=1, keepdim=True) / newton.norm(dim=1, keepdim=True)
    assert float((scaled - ratio * newton).abs().max()) < 1e-12


def test_the_noise_is_corrected_where_it_points_and_not_in_the_data():
    # DDIM as published: x_u = alpha_u x0 + sigma_u v, v of the second step from both noises.
    denoiser = GaussianMixture.gmm3().denoiser(System(VP()))
    system = denoiser.system
    x = system.prior(State({"x": torch.zeros(4, 2, dtype=torch.float64)}), 0)
    sampler = LML(4, UniformTime(2), kappa=0.3, damping=0.5, denoise=False)
    times = sampler.times(system)
    noises, state = [], x
    for t, u, reached in zip(times, times[1:], sampler.trajectory(denoiser, x), strict=False):
        noises.append(denoiser.noise(state, t)["x"])
        before = noises[-2] if len(noises) > 1 else None
        v = damped_direction(noises[-1], before, damping=0.5, kappa=0.3)
        expected = denoiser(state, t)["x"] * system.alpha(u)["x"] + v * system.sigma(u)["x"]
        assert float((reached["x"] - expected).abs().max()) < 1e-10
        state = reached


SYSTEM = {"x": VP(), "a": VE(sigma_min=0.01, sigma_max=10.0)}


def test_a_component_that_waits_keeps_its_tensor_and_forgets_its_direction():
    # a rests in the middle third of the shared time.
    def rests(t):
        return torch.where(t > 2 / 3, 1.5 * t - 0.5, torch.where(t > 1 / 3, 0.5, 1.5 * t))

    system = System(SYSTEM, clocks={"a": rests})
    denoiser = CorrelatedGaussian().denoiser(system)
    x = system.prior(State({"x": torch.zeros(4, 2).double(), "a": torch.zeros(4, 3).double()}), 0)
    # Times in [1/3, 2/3] between steps 4 and 8 of 12; a starts anew at step 8.
    grid = torch.linspace(1, 0.01, 13, dtype=torch.float64)
    sampler = LML(12, grid, kappa=0.3, damping=0.5, denoise=False)
    states = [x, *sampler.trajectory(denoiser, x)]
    still = [i for i in range(12) if states[i + 1]["a"] is states[i]["a"]]
    assert len(still) >= 3 and not any(states[i + 1]["x"] is states[i]["x"] for i in range(12))
    i = still[-1] + 1
    plain = get_sampler("ddim", 1, grid=grid[i : i + 2], denoise=False)
    ddim = next(plain.trajectory(denoiser, states[i]))
    assert float((states[i + 1]["a"] - ddim["a"]).abs().max()) < 1e-10
    assert float((states[i + 1]["x"] - ddim["x"]).abs().max()) > 1e-4


def test_an_object_does_not_depend_on_its_batch_mates_or_padding():
    system = System({"x": VP(beta_max=4.0), "adj": VE(0.05, 5.0)}, GaussianGraph.spaces())

    def sample(sizes, seeds, nodes):
        testbed = GaussianGraph(sizes, nodes)
        source = PerObjectNoise(seeds)
        x = system.prior(testbed.like, source)
        sampler = LML(8, base="ddpm", kappa=0.3, damping=1.0)
        return sampler(testbed.denoiser(system), x, source=source)

    alone, together = sample([3], [7], 3), sample([4, 3, 0], [3, 7, 9], 5)
    assert float((alone["x"][0] - together["x"][1, :3]).abs().max()) < 1e-10
    assert float((alone["adj"][0] - together["adj"][1, :3, :3]).abs().max()) < 1e-10
    assert float(together["x"][2].abs().max()) == float(together["adj"][2].abs().max()) == 0.0
    assert torch.equal(together["adj"], together["adj"].transpose(1, 2))


def test_a_base_may_be_given_with_its_options(mixture):
    denoiser, x, _ = mixture
    sampler = LML(10, base=partial(DPMSolver, order=1))
    assert rms(sampler(denoiser, x), DPMSolver(10, order=1)(denoiser, x)) < 1e-8
    assert sampler.nfe == 10


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"base": "heun"}, "one linear combination, not Heun"),
        ({"base": "nonsense"}, "unknown sampler 'nonsense'"),
        ({"damping": 0.0}, "damping must be positive, got 0.0"),
        ({"kappa": 1.5}, r"kappa must lie in \[0, 1\], got 1.5"),
        ({"direction": "velocity"}, "direction must be 'noise' or 'increment'"),
        ({"base": "tab3", "direction": "noise"}, "combines the noise: use direction='increment'"),
    ],
)
def test_impossible_settings_are_named(options, message):
    with pytest.raises(StructDiffError, match=message):
        LML(5, **options)
