"""Cross-entropy of the classes: the exact posterior, checked by enumerating small graphs."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor, nn

from structdiff.denoisers import Denoiser
from structdiff.errors import StructDiffError
from structdiff.graphs.transformer import GraphTransformer
from structdiff.noise import SeededNoise
from structdiff.objectives import CategoricalCrossEntropy, CategoricalNetwork
from structdiff.processes import VE, VP, RectifiedFlow, System
from structdiff.spaces import Symmetric
from structdiff.state import State

ORDERS = torch.tensor([0.0, 1.0, 2.0, 3.0])


def graph_state(types: Tensor, orders: Tensor, classes: int) -> State:
    """Graphs of n nodes: types (B, n), orders (B, n (n - 1) / 2) in the order of the pairs."""
    b, n = types.shape
    j, i = torch.tril_indices(n, n, -1)
    adj = torch.zeros(b, n, n)
    adj[:, i, j] = adj[:, j, i] = ORDERS[orders]
    masks = {
        "x": torch.ones(b, n, 1, dtype=torch.bool),
        "adj": ~torch.eye(n, dtype=torch.bool).expand(b, n, n),
    }
    return State({"x": nn.functional.one_hot(types, classes).float(), "adj": adj}, masks)


def every_graph(n: int, classes: int) -> tuple[Tensor, Tensor]:
    """All assignments of types and orders: (M, n) and (M, pairs)."""
    pairs = n * (n - 1) // 2
    rows = list(itertools.product(*[range(classes)] * n, *[range(4)] * pairs))
    table = torch.tensor(rows)
    return table[:, :n], table[:, n:]


def log_posterior(
    denoiser: Denoiser, noisy: State, times: dict, graphs: State, log_prior: Tensor
) -> Tensor:
    """log p(graph | noisy), (B, M), from the Gaussian density of the free coordinates."""
    system = denoiser.system
    total = log_prior[None].double()
    for name, space in system.spaces.items():
        alpha = system.alpha(times)[name].reshape(-1, 1, 1)
        sigma = system.sigma(times)[name].reshape(-1, 1)
        observed, clean = space.pack(noisy[name]).double(), space.pack(graphs[name]).double()
        gap = observed[:, None] - alpha * clean[None]
        total = total - gap.square().sum(-1) / (2 * sigma**2)
    return torch.log_softmax(total, dim=1)


SYSTEMS = {
    "VP": System({"x": VP(), "adj": VP(0.1, 5.0)}, spaces={"adj": Symmetric()}),
    "VE": System({"x": VE(0.05, 3.0), "adj": VE(0.1, 8.0)}, spaces={"adj": Symmetric()}),
    "line": System({"x": RectifiedFlow(), "adj": RectifiedFlow()}, spaces={"adj": Symmetric()}),
}


@pytest.mark.parametrize("system", SYSTEMS.values(), ids=SYSTEMS)
def test_site_evidence_is_the_exact_posterior_of_independent_sites(system: System) -> None:
    """Three nodes of two types, three edges of four orders: 512 graphs, each site on its own. Node
    and edge stand at different times, so each must use its own log-SNR.
    """
    torch.manual_seed(0)
    network = GraphTransformer(2, node_width=8, edge_width=8, layers=1, heads=2, walks=2)
    for last in (network.node_out[1], network.pair_out[1]):  # no word from the other sites
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
    atoms, bonds = torch.tensor([0.7, 0.3]), torch.tensor([0.5, 0.3, 0.15, 0.05])
    network.set_priors(atoms, bonds)
    denoiser = Denoiser(network, system, "data", scale_input=True)
    types, orders = every_graph(3, 2)
    graphs = graph_state(types, orders, 2)
    log_prior = atoms.log()[types].sum(1) + bonds.log()[orders].sum(1)
    pick = torch.randint(len(types), (16,))
    x0 = graph_state(types[pick], orders[pick], 2)
    # By name: the two components at times of their own.
    times = {
        "x": torch.linspace(0.1, 0.9, 16, dtype=torch.float64),
        "adj": torch.linspace(0.85, 0.15, 16, dtype=torch.float64),
    }
    noisy = system.perturb(x0, times, system.noise(x0, SeededNoise(1)))
    posterior = log_posterior(denoiser, noisy, times, graphs, log_prior).exp()
    expected = {
        "x": (posterior[:, :, None, None] * graphs["x"].double()).sum(1),
        "adj": (posterior[:, :, None, None] * graphs["adj"].double()).sum(1),
    }
    with torch.no_grad():
        found = denoiser(noisy, times)
        logits = network.logits(*denoiser.network_inputs(noisy, times))
    for name in ("x", "adj"):
        torch.testing.assert_close(found[name].double(), expected[name], atol=2e-5, rtol=0)
    one_bond = (posterior[:, :, None] * (orders[None] == 1)).sum(1)  # (B, pairs)
    probabilities = torch.softmax(logits["adj"], dim=-1)[..., 1].double()
    torch.testing.assert_close(probabilities, one_bond, atol=2e-5, rtol=0)


class Exact(nn.Module):
    """The exact log-posterior of every site of two correlated nodes and their edge, plus
    ``tilt`` times functions of the input: zero tilt is the truth.
    """

    def __init__(self, graphs: State, types: Tensor, orders: Tensor, log_prior: Tensor) -> None:
        super().__init__()
        self.graphs, self.types, self.orders, self.log_prior = graphs, types, orders, log_prior
        self.tilt = nn.Parameter(torch.zeros(4, dtype=torch.float64))
        self.posterior: Tensor | None = None

    def logits(self, x: State, log_snr: dict, condition: object = None) -> dict[str, Tensor]:
        posterior = self.posterior
        nodes = torch.stack(
            [torch.stack([posterior[:, self.types[:, s] == k].sum(1) for k in range(2)], -1)
             for s in range(2)],
            dim=1,
        )  # fmt: skip
        edge = torch.stack([posterior[:, self.orders[:, 0] == k].sum(1) for k in range(4)], -1)
        bond = x["adj"][:, 0, 1].double()
        ramp = torch.arange(4, dtype=torch.float64)
        side = torch.tensor([1.0, -1.0], dtype=torch.float64)
        nodes = nodes.log() + (self.tilt[0] + self.tilt[1] * bond)[:, None, None] * side
        edge = edge.log() + (self.tilt[2] + self.tilt[3] * bond)[:, None] * ramp
        return {"x": nodes, "adj": edge[:, None]}

    def sites(self, x0: State) -> dict[str, tuple[Tensor, Tensor]]:
        exists = torch.ones(x0.batch_size, 2, dtype=torch.bool)
        order = x0["adj"][:, :1, 1].long()
        return {"x": (x0["x"].argmax(-1), exists), "adj": (order, exists[:, :1])}

    def forward(self, x: State, log_snr: dict, condition: object = None) -> State:
        raise AssertionError("cross-entropy needs the logits only")


def correlated(samples: int, time: float) -> tuple[Denoiser, State, State, State, dict, Tensor]:
    """Two nodes whose types and edge depend on one another, noised at one time."""
    types, orders = every_graph(2, 2)
    graphs = graph_state(types, orders, 2)
    generator = torch.Generator().manual_seed(4)
    log_prior = torch.randn(len(types), generator=generator) * 1.5
    pick = torch.multinomial(log_prior.softmax(0), samples, replacement=True, generator=generator)
    x0 = graph_state(types[pick], orders[pick], 2)
    network = Exact(graphs, types, orders, log_prior)
    denoiser = Denoiser(network, SYSTEMS["line"], "data", scale_input=True)
    times = denoiser.system.times(torch.full((samples,), time, dtype=torch.float64))
    noise = denoiser.system.noise(x0, SeededNoise(5))
    noisy = denoiser.system.perturb(x0, times, noise)
    posterior = log_posterior(denoiser, noisy, times, graphs, log_prior).exp()
    network.posterior = posterior
    return denoiser, x0, noisy, noise, times, posterior


def test_exact_posterior_minimises_the_cross_entropy() -> None:
    """The tilt that 40,000 draws prefer is zero within three standard errors (about 0.01)."""
    denoiser, x0, noisy, noise, times, _ = correlated(40_000, 0.5)
    objective = CategoricalCrossEntropy()
    optimizer = torch.optim.LBFGS(denoiser.parameters(), max_iter=60, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = objective.distances(denoiser, x0, noisy, noise, times, None)
        total = value["x"].mean() + value["adj"].mean()
        total.backward()
        return total

    with torch.no_grad():
        denoiser.network.tilt += 0.5
    optimizer.step(loss)
    assert denoiser.network.tilt.abs().max().item() < 0.03


def test_loss_at_the_exact_posterior_is_the_conditional_entropy() -> None:
    denoiser, x0, noisy, noise, times, _ = correlated(40_000, 0.6)
    with torch.no_grad():
        losses = CategoricalCrossEntropy().distances(denoiser, x0, noisy, noise, times, None)
        logits = denoiser.network.logits(noisy, {})
    for name in ("x", "adj"):
        # log_softmax in float32, as the loss takes it, keeps p log p finite at p = 0
        entropy = torch.special.entr(logits[name].float().softmax(-1)).sum(-1).mean()
        assert float(losses[name].mean()) == pytest.approx(float(entropy), rel=0.02)


def test_absent_sites_do_not_count() -> None:
    torch.manual_seed(0)
    network = GraphTransformer(3, node_width=8, edge_width=8, layers=1, heads=2, walks=2)
    denoiser = Denoiser(network, SYSTEMS["line"], "data", scale_input=True)
    objective = CategoricalCrossEntropy()
    x0 = graph_state(torch.tensor([[0, 1, 2]]), torch.tensor([[1, 0, 2]]), 3)
    wide = State(
        {
            "x": nn.functional.pad(x0["x"], (0, 0, 0, 2)),
            "adj": nn.functional.pad(x0["adj"], (0, 2, 0, 2)),
        },
        {
            "x": nn.functional.pad(x0.masks["x"], (0, 0, 0, 2)),
            "adj": nn.functional.pad(x0.masks["adj"], (0, 2, 0, 2)),
        },
    )
    times = denoiser.system.times(torch.tensor([0.4]))
    with torch.no_grad():
        for name, value in objective.distances(denoiser, wide, wide, wide, times, None).items():
            narrow = objective.distances(denoiser, x0, x0, x0, times, None)[name]
            torch.testing.assert_close(value, narrow, atol=1e-5, rtol=0)


def test_certain_and_wrong_costs_its_log_probability() -> None:
    """-log softmax by hand: logits (2, 0) on the second class cost log(1 + e^2)."""

    class Certain(nn.Module):
        def logits(self, x, log_snr, condition=None):
            return {"x": torch.tensor([[[2.0, 0.0]]])}

        def sites(self, x0):
            return {"x": (torch.tensor([[1]]), torch.tensor([[True]]))}

        def forward(self, *arguments):
            raise AssertionError

    denoiser = Denoiser(Certain(), System(VP()), "data")
    x0 = State({"x": torch.zeros(1, 1)})
    times = denoiser.system.times(torch.tensor([0.5]))
    loss = CategoricalCrossEntropy().distances(denoiser, x0, x0, x0, times, None)["x"]
    assert float(loss) == pytest.approx(math.log1p(math.exp(2.0)))


def test_a_network_without_classes_is_refused_with_the_remedy() -> None:
    denoiser = Denoiser(nn.Identity(), System(VP()), "data")
    assert not isinstance(denoiser.network, CategoricalNetwork)
    with pytest.raises(StructDiffError, match="Identity predicts no class probabilities: train it"):
        CategoricalCrossEntropy()(denoiser, State({"x": torch.zeros(2, 1)}), source=0)
