"""Denoising score matching: its minimiser, its least value, its normalisation, its weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from structdiff.datasets import load_smiles
from structdiff.denoisers import Denoiser
from structdiff.graphs.checkpoints import build_networks, read_gdss
from structdiff.molecules.data import QM9, read_molecules
from structdiff.noise import SeededNoise
from structdiff.objectives import DenoisingScoreMatching, EDMWeight, LogitNormal, Simple
from structdiff.processes import EDM, VE, VP, FrozenClock, RectifiedFlow, System
from structdiff.spaces import Symmetric
from structdiff.state import State
from structdiff.testbeds import GaussianMixture


class Affine(nn.Module):
    """a x + b."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.ones((), dtype=torch.float64))
        self.b = nn.Parameter(torch.zeros((), dtype=torch.float64))

    def forward(self, x: State, log_snr: dict[str, Tensor], condition: object = None) -> State:
        return State({"x": self.a * x["x"] + self.b})


class Fixed(nn.Module):
    """The same output whatever comes in."""

    def __init__(self, **out: Tensor) -> None:
        super().__init__()
        self.out = out

    def forward(self, x: State, log_snr: dict[str, Tensor], condition: object = None) -> State:
        return State({k: v.expand_as(x[k]) for k, v in self.out.items()}, x.masks)


MEAN, STD, N = 0.7, 0.5, 200_000


def gaussian_at(time: float, process: object) -> tuple[System, State, State, State, dict]:
    """Data N(0.7, 0.5^2), its noisy version at one time, and the noise."""
    system = System(process)
    x0 = State({"x": MEAN + STD * SeededNoise(1).normal("x", torch.empty(N, 1).double())})
    times = system.times(torch.full((N,), time, dtype=torch.float64))
    noise = system.noise(x0, SeededNoise(2))
    return system, x0, system.perturb(x0, times, noise), noise, times


@pytest.mark.parametrize("prediction", ["noise", "score", "data", "velocity", "edm"])
def test_minimiser_is_the_exact_denoiser(prediction: str) -> None:
    """For Gaussian data every exact prediction is affine; 200,000 draws leave 1 % of error."""
    system, x0, noisy, noise, times = gaussian_at(0.5, VP())
    denoiser = Denoiser(Affine(), system, prediction, data_std=STD)
    objective = DenoisingScoreMatching()
    optimizer = torch.optim.LBFGS(denoiser.parameters(), max_iter=50, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = objective.distances(denoiser, x0, noisy, noise, times, None)["x"].mean()
        value.backward()
        return value

    optimizer.step(loss)
    exact = GaussianMixture([1.0], [[MEAN]], [[[STD**2]]]).denoiser(system)
    points = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]
    with torch.no_grad():
        found, true = denoiser(points, 0.5)["x"], exact(points, 0.5)["x"]
    assert float((found - true).abs().max()) < 0.01


@pytest.mark.parametrize("time", [0.05, 0.4, 0.9])
@pytest.mark.parametrize("process", [VP(), RectifiedFlow(), VE(0.01, 5.0)])
def test_loss_of_the_exact_denoiser_is_the_irreducible_one(process: object, time: float) -> None:
    """Var(eps | xt) = (alpha s)^2 / ((alpha s)^2 + sigma^2), from Gaussian conditioning."""
    system, x0, noisy, noise, times = gaussian_at(time, process)
    exact = GaussianMixture([1.0], [[MEAN]], [[[STD**2]]]).denoiser(system)
    loss = DenoisingScoreMatching().distances(exact, x0, noisy, noise, times, None)["x"].mean()
    signal = float(system.alpha(time)["x"]) ** 2 * STD**2
    expected = signal / (signal + float(system.sigma(time)["x"]) ** 2)
    assert float(loss) == pytest.approx(expected, rel=0.01)


def graphs() -> State:
    """Two graphs padded to four nodes: three and two of them exist."""
    exists = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0]], dtype=torch.bool)
    pairs = exists[:, :, None] & exists[:, None, :] & ~torch.eye(4, dtype=torch.bool)
    masks = {"x": exists[..., None], "adj": pairs}
    x = torch.ones(2, 4, 5, dtype=torch.float64)
    return State({"x": x, "adj": torch.ones(2, 4, 4, dtype=torch.float64)}, masks).masked()


def graph_system() -> System:
    return System({"x": VE(0.1, 1.0), "adj": VP(0.1, 1.0)}, spaces={"adj": Symmetric()})


def zero_noise_denoiser() -> Denoiser:
    zero = torch.zeros((), dtype=torch.float64)
    return Denoiser(Fixed(x=zero, adj=zero), graph_system(), "noise")


def drawn(source: int) -> tuple[State, State]:
    x0 = graphs()
    return x0, graph_system().noise(x0, SeededNoise(source))


def test_mean_is_over_the_existing_free_coordinates() -> None:
    """A prediction of zero noise leaves the mean square of the noise that was drawn: 3 and 2 nodes
    of 5 features, 3 and 1 pairs counted once.
    """
    x0, noise = drawn(3)
    times = graph_system().times(torch.full((2,), 0.5))
    losses = DenoisingScoreMatching().distances(zero_noise_denoiser(), x0, x0, noise, times, None)
    z, w = noise["x"], noise["adj"]
    for k, n in ((0, 3), (1, 2)):
        pairs = torch.triu_indices(n, n, 1)
        torch.testing.assert_close(losses["x"][k], z[k, :n].square().mean())
        torch.testing.assert_close(losses["adj"][k], w[k, pairs[0], pairs[1]].square().mean())


def test_outputs_at_absent_entries_do_not_count() -> None:
    x0, noise = drawn(3)
    times = graph_system().times(torch.full((2,), 0.5))
    objective = DenoisingScoreMatching()
    wild_x = torch.where(x0.masks["x"], 0.0, 1e6).double().expand(2, 4, 5)
    wild_adj = torch.where(x0.masks["adj"], 0.0, 1e6).double()
    wild = Denoiser(Fixed(x=wild_x, adj=wild_adj), graph_system(), "noise")
    calm = zero_noise_denoiser()
    for name, value in objective.distances(wild, x0, x0, noise, times, None).items():
        expected = objective.distances(calm, x0, x0, noise, times, None)[name]
        torch.testing.assert_close(value, expected)


def test_component_weights_multiply_each_component() -> None:
    x0, _ = drawn(3)
    denoiser = zero_noise_denoiser()
    parts = DenoisingScoreMatching().component_losses(denoiser, x0, None, SeededNoise(4))
    weighted = DenoisingScoreMatching(component_weights={"adj": 5.0})(denoiser, x0, source=4)
    torch.testing.assert_close(weighted, parts["x"] + 5 * parts["adj"])


def test_a_frozen_component_is_conditioned_on_and_has_no_loss() -> None:
    seen = {}

    class Watching(Fixed):
        def forward(self, x: State, log_snr: dict, condition: object = None) -> State:
            seen.update(x)
            return super().forward(x, log_snr)

    x0, _ = drawn(3)
    zero = torch.zeros((), dtype=torch.float64)
    system = graph_system().with_clocks({"x": FrozenClock(0.0)})
    denoiser = Denoiser(Watching(x=zero, adj=zero), system, "noise")
    losses = DenoisingScoreMatching().component_losses(denoiser, x0, None, SeededNoise(4))
    assert list(losses) == ["adj"]
    assert bool(losses["adj"].isfinite().all())
    assert torch.equal(seen["x"], x0["x"])


def test_a_seed_fixes_times_and_noise() -> None:
    x0, _ = drawn(3)
    objective, denoiser = DenoisingScoreMatching(LogitNormal()), zero_noise_denoiser()
    assert torch.equal(objective(denoiser, x0, source=7), objective(denoiser, x0, source=7))
    assert not torch.equal(objective(denoiser, x0, source=7), objective(denoiser, x0, source=8))


def test_unknown_reduction_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match="unknown reduction 'max'; use 'mean' or 'sum'"):
        DenoisingScoreMatching(reduction="max")


# --- weights ---------------------------------------------------------------------------------
def test_simple_weight_is_one() -> None:
    assert Simple()(torch.tensor([-3.0, 2.0])).tolist() == [1.0, 1.0]


def test_edm_weight_is_that_of_the_error_of_the_data() -> None:
    """(rho^2 + s^2) / (rho s)^2 on x0 (Karras et al. 2022, table 1), rho = sigma / alpha, and an
    error of x0 is rho times the error of the noise.
    """
    half_log_snr, s = torch.linspace(-3, 3, 7, dtype=torch.float64), 0.5
    rho = torch.exp(-half_log_snr)
    expected = (rho**2 + s**2) / (rho * s) ** 2 * rho**2
    torch.testing.assert_close(EDMWeight(s)(half_log_snr), expected)


def test_edm_weight_makes_the_loss_that_of_the_bare_network() -> None:
    """With EDM preconditioning the weighted loss is |F - F*|^2 at every noise level (eq. 8)."""
    s = 0.5
    system = System(EDM())
    x0 = State({"x": s * SeededNoise(1).normal("x", torch.empty(64, 3).double())})
    times = system.times(torch.linspace(0.01, 0.99, 64, dtype=torch.float64))
    noise = system.noise(x0, SeededNoise(2))
    noisy = system.perturb(x0, times, noise)
    out = torch.randn(64, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    denoiser = Denoiser(Fixed(x=out), system, "edm", data_std=s)
    losses = DenoisingScoreMatching(weight=EDMWeight(s)).distances(
        denoiser, x0, noisy, noise, times, None
    )
    rho = system.sigma(times)["x"][:, None]
    skip, scale = s**2 / (rho**2 + s**2), rho * s / torch.sqrt(rho**2 + s**2)
    target = (x0["x"] - skip * noisy["x"]) / scale
    torch.testing.assert_close(losses["x"], (out - target).square().mean(1))


# --- the loss of the paper -------------------------------------------------------------------
def gdss_denoiser(path: Path) -> Denoiser:
    checkpoint = read_gdss(path)
    sde = checkpoint.model_config["sde"]
    kinds = {"VP": VP, "VE": VE}
    system = System(
        {k: kinds[v["type"]](v["beta_min"], v["beta_max"]) for k, v in sde.items()},
        spaces={"adj": Symmetric()},
    )
    network = build_networks(checkpoint)
    return Denoiser(network, system, network.prediction)


def test_half_the_sum_over_the_full_matrix_is_the_published_loss(weights_dir: Path) -> None:
    """Card, section 2.3: 0.5 sum_ij (sigma score + z)^2, both triangles; same for x."""
    denoiser = gdss_denoiser(weights_dir / "gdss" / "gdss_qm9.safetensors")
    molecules = read_molecules(["CCO", "C1CC1N", "CC(=O)OC"], QM9)
    x0 = molecules.to_state()
    system = denoiser.system
    times = system.times(torch.tensor([0.1, 0.5, 0.9]))
    noise = system.noise(x0, SeededNoise(5))
    noisy = system.perturb(x0, times, noise)
    objective = DenoisingScoreMatching(reduction="sum")
    with torch.no_grad():
        losses = objective.distances(denoiser, x0, noisy, noise, times, None)
        score = denoiser.score(noisy, times)
    for name, share in (("x", 0.5), ("adj", 1.0)):
        sigma = system.sigma(times)[name].float()[:, None, None]
        published = 0.5 * (sigma * score[name] + noise[name]).square().sum((1, 2))
        torch.testing.assert_close(share * losses[name], published)


def test_published_weights_have_their_measured_loss(data_dir: Path, weights_dir: Path) -> None:
    """Card, section 5, measured with the reference code: 3.59 +- 0.04 and 8.25 +- 0.10 on the first
    500 molecules of the QM9 test split, t ~ U(1e-5, 1).
    """
    denoiser = gdss_denoiser(weights_dir / "gdss" / "gdss_qm9.safetensors")
    _, test = load_smiles("qm9")
    x0 = read_molecules(test[:500], QM9, drop_charges=True).to_state()
    assert denoiser.system.t_min == 1e-5
    objective, sums = DenoisingScoreMatching(reduction="sum"), {"x": 0.0, "adj": 0.0}
    with torch.no_grad():
        for seed in range(8):
            losses = objective.component_losses(denoiser, x0, None, SeededNoise(seed))
            for name, value in losses.items():
                sums[name] += float(value.mean()) / 8
    assert 0.5 * sums["x"] == pytest.approx(3.59, abs=0.04)
    assert sums["adj"] == pytest.approx(8.25, abs=0.10)
