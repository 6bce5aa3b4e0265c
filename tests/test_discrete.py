"""A DDPM chain as a process: exact at its nodes, consistent in between."""

import copy
import itertools
import json
import math

import pytest
import torch
from torch import nn

from structdiff.denoisers import Denoiser
from structdiff.errors import StructDiffError
from structdiff.processes import VP, DiscreteVP, System
from structdiff.processes.serial import process_from_dict, process_to_dict
from structdiff.samplers import get_sampler
from structdiff.state import State
from structdiff.testbeds import GaussianMixture

torch.set_num_threads(1)
CHAINS = [
    DiscreteVP(),
    DiscreteVP(1000, 0.00085, 0.012, "scaled-linear"),
    DiscreteVP(betas=(0.1, 0.3, 0.2, 0.6)),
    DiscreteVP(1, 0.5, 0.5),
    DiscreteVP(1000, schedule="cosine"),
    DiscreteVP(25, schedule="cosine"),
]
every_chain = pytest.mark.parametrize("chain", CHAINS, ids=lambda c: f"{c.links} {c.schedule}")


def betas_of(chain):
    if chain.betas is not None:
        return list(chain.betas)
    if chain.schedule == "cosine":
        # Nichol and Dhariwal 2021, eq. 17, whose last beta is cut.
        kept = [
            math.cos((u / chain.links + 0.008) / 1.008 * math.pi / 2) ** 2
            for u in range(chain.links + 1)
        ]
        return [min(0.999, 1 - b / a) for a, b in itertools.pairwise(kept)]
    n, a, b = chain.links, chain.beta_start, chain.beta_end
    power = 1 if chain.schedule == "linear" else 2
    root = [x ** (1 / power) for x in (a, b)]
    steps = max(n - 1, 1)
    return [(root[0] + (root[1] - root[0]) * i / steps) ** power for i in range(n)]


def random_times(chain, count=200):
    generator = torch.Generator().manual_seed(0)
    return torch.rand(count, generator=generator, dtype=torch.float64) * 0.999 + 1e-4


@every_chain
def test_the_scales_at_the_nodes_are_the_chains(chain):
    kept = 1.0
    alpha, sigma = [], []
    for beta in betas_of(chain):
        kept *= 1 - beta
        alpha.append(math.sqrt(kept))
        sigma.append(math.sqrt(1 - kept))
    t = chain.time_of(torch.arange(chain.links))
    assert chain.alpha(t).tolist() == pytest.approx(alpha, rel=1e-12)
    assert chain.sigma(t).tolist() == pytest.approx(sigma, rel=1e-9)  # 1 - kept cancels at index 0


@every_chain
def test_the_data_are_at_zero(chain):
    assert float(chain.alpha(0.0)) == 1 and float(chain.sigma(0.0)) == 0


@every_chain
def test_one_link_is_the_exact_transition_over_its_length(chain):
    for i, beta in list(enumerate(betas_of(chain)))[:: max(chain.links // 7, 1)]:
        factor, noise = chain.discrete_step((i + 1) / chain.links, 1 / chain.links)
        assert factor == pytest.approx(math.sqrt(1 - beta), rel=1e-12)
        assert noise == pytest.approx(math.sqrt(beta), rel=1e-9)


@every_chain
def test_drift_is_the_logarithmic_derivative_of_alpha(chain):
    t = random_times(chain).requires_grad_(True)
    (slope,) = torch.autograd.grad(chain.log_alpha(t).sum(), t)
    assert torch.allclose(chain.drift(t), slope, rtol=1e-10)


@every_chain
def test_drift_at_a_node_is_that_of_the_link_that_ends_there(chain):
    t = chain.time_of(torch.arange(chain.links))
    expected = [chain.links * math.log(1 - beta) / 2 for beta in betas_of(chain)]
    assert chain.drift(t).tolist() == pytest.approx(expected, rel=1e-9)


@every_chain
def test_diffusion_is_what_alpha_and_sigma_imply(chain):
    t = random_times(chain).requires_grad_(True)
    (growth,) = torch.autograd.grad((chain.sigma(t) ** 2).sum(), t)
    implied = growth - 2 * chain.drift(t) * chain.sigma(t) ** 2
    assert torch.allclose(chain.diffusion_squared(t), implied, rtol=1e-9)


@every_chain
def test_time_at_inverts_the_half_log_snr(chain):
    t = torch.cat((random_times(chain), chain.time_of(torch.arange(chain.links))))
    assert torch.allclose(chain.time_at(chain.half_log_snr(t)), t, rtol=1e-10, atol=0)


def test_time_without_noise_is_zero():
    assert float(DiscreteVP().time_at(math.inf)) == 0


@every_chain
def test_half_log_snr_falls_with_time(chain):
    lam = chain.half_log_snr(torch.linspace(1e-6, 1, 5001, dtype=torch.float64))
    assert bool((lam.diff() < 0).all())


@every_chain
def test_the_index_is_the_inverse_of_its_time_even_in_float32(chain):
    index = torch.arange(chain.links)
    lam = chain.half_log_snr(chain.time_of(index)).float()
    assert torch.equal(chain.index_at(lam).round().long(), index)


def test_sampling_stops_at_index_0():
    assert DiscreteVP(50).t_min == float(DiscreteVP(50).time_of(0)) == 1 / 50


def test_a_chain_of_many_links_is_the_continuous_process_up_to_its_squared_betas():
    # beta_i = beta((i + 1/2)/N)/N of VP(0.1, 20): ln(1 - beta)/2 = -beta/2 - beta^2/4 - ...
    n, vp = 1000, VP()
    betas = vp.beta((torch.arange(n) + 0.5) / n) / n
    t = torch.linspace(0.1, 1, 10, dtype=torch.float64)
    gap = DiscreteVP(betas=tuple(betas.tolist())).log_alpha(t) - vp.log_alpha(t)
    expected = -(betas**2).cumsum(0)[(t * n).round().long() - 1] / 4
    assert torch.allclose(gap, expected, rtol=0.02)  # of order beta: at most 0.02 2/3


def test_any_shape_and_dtype_of_time_gives_float64():
    t = torch.rand(2, 3, dtype=torch.float32)
    for name in ("log_alpha", "alpha", "sigma", "half_log_snr", "drift", "diffusion"):
        value = getattr(DiscreteVP(), name)(t)
        assert value.dtype == torch.float64 and value.shape == (2, 3)


@every_chain
def test_json_and_back(chain):
    written = json.loads(json.dumps(process_to_dict(chain)))
    assert process_from_dict(written) == chain


def test_the_cosine_chain_has_the_published_scales():
    # DDHPose's code, in float64: printed to 8 decimals, the last to 3 digits.
    chain = DiscreteVP(1000, schedule="cosine")
    index = [0, 199, 399, 599, 799, 999]
    published = [0.99995872, 0.89870592, 0.64747821, 0.34080964, 0.09404561, 2.43e-9]
    kept = chain.alpha(chain.time_of(index)) ** 2
    assert kept.tolist() == pytest.approx(published, abs=1e-7)
    assert float(kept[-1]) == pytest.approx(2.43e-9, rel=2e-3)


@pytest.mark.parametrize("links", [4, 25, 1000])
def test_only_the_last_beta_of_a_cosine_chain_is_cut(links):
    chain = DiscreteVP(links, schedule="cosine")
    kept = chain.alpha(torch.arange(links + 1).double() / links) ** 2
    betas = 1 - kept[1:] / kept[:-1]
    assert float(betas[-1]) == pytest.approx(0.999, rel=1e-12)
    assert bool((betas[:-1] < 0.999).all())


def test_the_cosine_chain_of_many_links_is_the_squared_cosine():
    chain = DiscreteVP(1000, schedule="cosine")
    t = chain.time_of(torch.arange(0, 999, 37))
    angle = (t + 0.008) / 1.008 * math.pi / 2
    expected = torch.cos(angle) / math.cos(0.008 / 1.008 * math.pi / 2)
    assert torch.allclose(chain.alpha(t), expected, rtol=1e-9)


def test_a_cosine_chain_takes_no_betas_of_its_own():
    one, other = DiscreteVP(50, 1e-4, 0.02, "cosine"), DiscreteVP(50, 0.3, 0.4, "cosine")
    t = torch.linspace(0, 1, 11)
    assert torch.equal(one.alpha(t), other.alpha(t))


def test_chains_are_values():
    a, b = DiscreteVP(betas=[0.1, 0.2]), DiscreteVP(betas=(0.1, 0.2))
    a.alpha(0.5)  # what is remembered is no part of the value
    assert a == b and hash(a) == hash(b) and copy.deepcopy(a) == b
    assert a.links == 2


@pytest.mark.parametrize(
    "options",
    [
        {"links": 0},
        {"links": 2.5},
        {"beta_start": 0.0},
        {"beta_end": 1.0},
        {"schedule": "sigmoid"},
        {"betas": ()},
        {"betas": (0.1, 1.2)},
        {"betas": (0.1, -0.1)},
    ],
)
def test_what_is_no_chain_is_refused(options):
    with pytest.raises(StructDiffError, match=r"chain"):
        DiscreteVP(**options)


@pytest.mark.parametrize("steps", [0, 1001])
def test_a_grid_of_more_nodes_than_there_are_is_refused(steps):
    with pytest.raises(StructDiffError, match=r"1 to 1000"):
        DiscreteVP().trailing(steps)


def test_a_trailing_grid_starts_at_the_last_index_and_repeats_none():
    for steps in (1, 7, 999, 1000):
        times = DiscreteVP().trailing(steps)
        assert len(times) == steps and float(times[0]) == 1
        assert bool((times.diff() < 0).all()) and float(times[-1]) >= 1e-3


def test_the_prior_may_have_unit_variance():
    assert DiscreteVP(prior_scale=1.0).prior_std() == 1
    assert DiscreteVP().prior_std() == pytest.approx(float(DiscreteVP().sigma(1.0)))


def test_the_recipe_for_networks_with_integer_steps_samples():
    process = DiscreteVP()
    testbed = GaussianMixture.gmm3()
    exact = testbed.denoiser(System(process))
    asked = []

    class Trained(nn.Module):
        """Stands for a network of integer steps: the exact noise prediction at an index."""

        def forward(self, x, index):
            asked.append(index.tolist())
            return exact.noise(x, process.time_of(index))["x"]

    class OnIntegers(nn.Module):
        def __init__(self, network):
            super().__init__()
            self.network = network

        def forward(self, x, log_snr, condition):
            index = process.index_at(log_snr["x"]).round().long()
            return State({"x": self.network(x["x"], index)})

    denoiser = Denoiser(OnIntegers(Trained()), System(process), prediction="noise")
    x = denoiser.system.prior(State({"x": torch.zeros(2000, 2).double()}), 0)
    y = get_sampler("unipc2", 20, grid=process.trailing(20))(denoiser, x)["x"]
    assert [set(index) for index in asked] == [{i} for i in range(999, 0, -50)]
    # Standard errors 0.035 and 3 %; the distribution itself is sampled.
    assert torch.allclose(y.mean(0), testbed.mean(), atol=0.15)
    assert torch.allclose(y.T.cov(), testbed.covariance(), atol=0.25)


@pytest.mark.parametrize("name", ["tab3", "dpm++3m", "dpm++2s", "unipc3", "heun", "dpm++sde"])
def test_every_kind_of_sampler_runs_off_the_nodes_too(name):
    system = System(DiscreteVP(100, 1e-3, 0.2))
    testbed = GaussianMixture.gmm3()
    x = system.perturb(testbed.sample(1000, 0), 1.0, system.noise(testbed.sample(1000, 1), 2))
    y = get_sampler(name, 30)(testbed.denoiser(system), x, source=3)["x"]
    assert torch.allclose(y.mean(0), testbed.mean(), atol=0.2)
