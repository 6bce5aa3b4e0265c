"""Grids, the registry, and the loop around every sampler."""

import math
import sys

import pytest
import torch

from structdiff.denoisers import BaseDenoiser
from structdiff.errors import StructDiffError
from structdiff.noise import BrownianNoise
from structdiff.processes import EDM, VE, VP, Cosine, RectifiedFlow, SubVP, System
from structdiff.samplers import (
    SAMPLERS,
    FixedTimes,
    Karras,
    Sampler,
    UniformLogSNR,
    UniformTime,
    get_sampler,
)
from structdiff.spaces import Positive
from structdiff.state import State
from structdiff.testbeds import CorrelatedGaussian, GaussianMixture, LogNormalMixture

torch.set_num_threads(1)
PROCESSES = [VP(), SubVP(), VE(), Cosine(), EDM(), RectifiedFlow()]
GRIDS = [UniformTime(), UniformTime(2), UniformLogSNR(), Karras()]
every_process = pytest.mark.parametrize("process", PROCESSES, ids=lambda p: type(p).__name__)


@every_process
@pytest.mark.parametrize("grid", GRIDS, ids=repr)
@pytest.mark.parametrize("points", [2, 7, 60])
def test_a_grid_decreases_from_exactly_t_max_to_exactly_t_min(grid, points, process):
    system = System(process)
    times = grid.times(system, points)
    assert times.dtype == torch.float64 and times.shape == (points,)
    assert times[0] == system.t_max and times[-1] == system.t_min
    assert bool((times.diff() < 0).all())


@pytest.mark.parametrize("grid", GRIDS, ids=repr)
def test_a_grid_of_one_point_is_the_start(grid):
    assert grid.times(System(VP()), 1).tolist() == [1.0]


def test_power_grid_is_its_formula():
    times = UniformTime(3).times(System(VP()), 5)
    expected = [(1 + i / 4 * (1e-3 ** (1 / 3) - 1)) ** 3 for i in range(5)]
    assert times.tolist() == pytest.approx(expected, rel=1e-12)


@every_process
def test_log_snr_grid_is_uniform_in_log_snr(process):
    lam = process.half_log_snr(UniformLogSNR().times(System(process), 9))
    assert float(lam.diff().std() / lam.diff().mean()) < 1e-9


def test_karras_grid_is_the_published_one():
    # (smax^(1/7) + i/(N-1) (smin^(1/7) - smax^(1/7)))^7, N = 18
    process = EDM()
    sigma = process.sigma(Karras().times(System(process), 18))
    a, b = 80 ** (1 / 7), 0.002 ** (1 / 7)
    expected = [(a + i / 17 * (b - a)) ** 7 for i in range(18)]
    assert sigma.tolist() == pytest.approx(expected, rel=1e-10)


def test_a_noise_level_grid_follows_the_component_it_is_given():
    system = System({"x": VP(), "a": VE()}, clocks={"a": lambda t: t**2})
    lam = system.half_log_snr(UniformLogSNR(component="a").times(system, 9))["a"]
    assert float(lam.diff().std() / lam.diff().mean()) < 1e-9


def test_a_grid_that_follows_an_unknown_component_is_refused():
    with pytest.raises(StructDiffError, match=r"'b'.*x"):
        UniformLogSNR(component="b").times(System(VP()), 3)


@pytest.mark.parametrize("times", [[0.1, 0.5], [1.0, 1.0], [1.5, 0.1], []])
def test_times_that_do_not_decrease_within_the_unit_interval_are_refused(times):
    with pytest.raises(StructDiffError):
        FixedTimes(times)


def test_given_times_are_used_as_they_are():
    times = [1.0, 0.4, 0.01]
    sampler = get_sampler("ddim", 2, grid=torch.tensor(times, dtype=torch.float64), denoise=False)
    assert sampler.times(System(VP())) == times


def test_a_grid_that_ends_without_noise_is_stepped_to_first_order():
    times = [1.0, 0.5, 0.1, 0.0]
    denoiser = GaussianMixture.gmm3().denoiser(System(VP()))
    x = torch.randn(4, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for name in ("ddim", "ddpm", "dpm++", "dpm++sde", "heun"):
        y = get_sampler(name, 3, grid=times, denoise=False)(denoiser, x, source=0)["x"]
        assert bool(y.isfinite().all()), name


@pytest.mark.parametrize("steps", [0, -3, 2.5, True])
@pytest.mark.parametrize("name", SAMPLERS)
def test_steps_that_are_no_positive_integer_are_refused(name, steps):
    with pytest.raises(StructDiffError, match="steps"):
        get_sampler(name, steps)


def test_an_unknown_sampler_lists_the_known_ones():
    with pytest.raises(StructDiffError, match=r"euler.*ddim") as error:
        get_sampler("euler", 10)
    assert all(name in str(error.value) for name in SAMPLERS)


def test_an_unknown_option_names_the_sampler():
    with pytest.raises(StructDiffError, match=r"ddim.*snr"):
        get_sampler("ddim", 10, snr=0.1)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("ddpm", {"eta": 1.5}),
        ("dpm++", {"order": 4}),
        ("dpm++", {"form": "euler"}),
        ("pc", {"snr": -1.0}),
        ("pc", {"compat": "published"}),
        ("pc", {"predictor": "ode"}),
        ("pc", {"predictor": "ddim", "compat": "reference"}),
        ("s4", {"norms": "graph"}),
        ("heun", {"churn": -1.0}),
        ("ode", {"rtol": 0.0}),
    ],
)
def test_an_option_out_of_range_is_refused(name, options):
    with pytest.raises(StructDiffError):
        get_sampler(name, 10, **options)


def test_every_registered_sampler_is_a_sampler_with_a_source():
    for name, info in SAMPLERS.items():
        assert isinstance(get_sampler(name, 3), Sampler) and info.source


@pytest.fixture
def mixture():
    denoiser = GaussianMixture.gmm3().denoiser(System(VP()))
    x = torch.randn(6, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return denoiser, x


def test_a_plain_tensor_is_a_state(mixture):
    denoiser, x = mixture
    a, b = (get_sampler("dpm++", 5)(denoiser, start) for start in (x, State({"x": x})))
    assert torch.equal(a["x"], b["x"])


def test_callbacks_see_every_step_its_time_and_its_state(mixture):
    denoiser, x = mixture
    seen = []
    sampler = get_sampler("ddim", 4)
    y = sampler(denoiser, x, callback=lambda *step: seen.append(step))
    assert [number for number, _, _ in seen] == [1, 2, 3, 4]
    assert [t for _, t, _ in seen] == [*sampler.times(denoiser.system)[1:], 0.0]
    assert torch.equal(seen[-1][2]["x"], y["x"])


def test_a_trajectory_is_lazy(mixture):
    denoiser, x = mixture
    sampler = get_sampler("ddim", 50)
    next(sampler.trajectory(denoiser, x))
    assert sampler.nfe == 1


def test_no_gradient_is_recorded(mixture):
    denoiser, x = mixture
    assert not get_sampler("dpm++", 3)(denoiser, x.requires_grad_(True))["x"].requires_grad


def test_the_progress_bar_counts_the_steps(mixture, capsys):
    get_sampler("ddim", 7, progress=True)(*mixture)
    assert "7/7" in capsys.readouterr().err


def test_a_multistep_sampler_starts_afresh_in_every_run(mixture):
    denoiser, x = mixture
    sampler = get_sampler("dpm++", 6)
    first = sampler(denoiser, x)
    sampler(denoiser, 3 * x)
    assert torch.equal(sampler(denoiser, x)["x"], first["x"])


def test_the_state_of_another_system_is_refused(mixture):
    with pytest.raises(StructDiffError, match="components"):
        get_sampler("ddim", 3)(mixture[0], State({"y": mixture[1]}))


def test_samples_are_decoded_to_values():
    testbed = LogNormalMixture()
    system = System({"x": VP()}, {"x": Positive()})
    x = torch.randn(4000, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = get_sampler("dpm++", 40)(testbed.denoiser(system), x)["x"]
    # E[x] = 0.6 exp(-0.5 + 0.045) + 0.4 exp(0.8 + 0.02); standard error 0.013
    mean = 0.6 * math.exp(-0.455) + 0.4 * math.exp(0.82)
    assert bool((y > 0).all()) and float(y.mean()) == pytest.approx(mean, abs=0.05)


def test_the_seed_of_the_prior_may_be_that_of_the_sampler():
    # The first draw of the sampler must not repeat the prior's.
    denoiser = CorrelatedGaussian().denoiser(System({"x": VP(), "a": VE()}))
    like = State({"x": torch.zeros(2000, 2).double(), "a": torch.zeros(2000, 3).double()})
    for seed in (3, list(range(2000))):
        x = denoiser.system.prior(like, seed)
        noisy, silent = (
            next(get_sampler("euler-maruyama", 40).trajectory(denoiser, x, source=source))
            for source in (seed, _Silent())
        )
        drawn = (noisy - silent)["x"][:, 0]
        both = torch.stack((drawn, x["x"][:, 0]))
        assert abs(float(torch.corrcoef(both)[0, 1])) < 0.1  # standard error 0.022


class _Silent:
    def normal(self, name, like, interval=None):
        return torch.zeros_like(like)


@pytest.mark.parametrize("name", ["euler-maruyama", "dpm++sde", "exponential-ito"])
def test_runs_on_one_brownian_path_converge_pathwise(name):
    # Strong order of at least 1/2: eight times the steps, at least 8^0.5 = 2.8 times closer.
    denoiser = CorrelatedGaussian().denoiser(System({"x": VP(), "a": VP()}))
    start = State({"x": torch.zeros(40, 2).double(), "a": torch.zeros(40, 3).double()})
    x = denoiser.system.prior(start, 0)
    grid = UniformTime()

    def run(steps):
        sampler = get_sampler(name, steps, grid=grid, denoise=False)
        return sampler(denoiser, x, source=BrownianNoise(1))["x"]

    fine = run(512)
    near, far = ((run(n) - fine).abs().mean() for n in (128, 16))
    assert float(far / near) > 2.8


def test_an_adaptive_run_that_cannot_go_on_says_why(mixture):
    class Broken(BaseDenoiser):
        def forward(self, x, t, condition=None):
            return State({"x": x["x"] * torch.nan})

    with pytest.raises(StructDiffError, match="adaptive flow failed"):
        get_sampler("ode", 1)(Broken(mixture[0].system), mixture[1])


@pytest.mark.parametrize(("name", "package"), [("ode", "torchdiffeq"), ("sde", "torchsde")])
def test_a_missing_solver_names_the_package_to_install(name, package, mixture, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(StructDiffError, match=rf"{package}.*structdiff\[dynamics\]"):
        get_sampler(name, 1)(*mixture)
