"""The graph transformer: symmetries, padding, masks, noise levels, and other processes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from structdiff.denoisers import Denoiser
from structdiff.errors import StructDiffError
from structdiff.graphs.transformer import GraphTransformer, to_matrix, upper_pairs
from structdiff.processes import VE, VP, RectifiedFlow, System
from structdiff.spaces import Symmetric
from structdiff.state import State

SMALL = {
    "node_width": 24,
    "edge_width": 12,
    "condition_width": 16,
    "layers": 3,
    "heads": 4,
    "walks": 4,
}


def network(classes: int = 4, **changes: object) -> GraphTransformer:
    """Random weights everywhere: fresh ones have zero branches that would hide a mistake."""
    torch.manual_seed(1)
    made = GraphTransformer(classes, **{**SMALL, **changes})
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3)
    return made.eval()


def graphs(sizes: tuple[int, ...] = (5, 7, 3), width: int = 7, classes: int = 4) -> State:
    exists = torch.arange(width) < torch.tensor(sizes)[:, None]
    pairs = exists[:, :, None] & exists[:, None, :] & ~torch.eye(width, dtype=torch.bool)
    generator = torch.Generator().manual_seed(2)
    adj = torch.randn(len(sizes), width, width, generator=generator)
    x = torch.randn(len(sizes), width, classes, generator=generator)
    state = State({"x": x, "adj": adj + adj.mT}, {"x": exists[..., None], "adj": pairs})
    return state.masked()


def levels(batch: int = 3) -> dict[str, Tensor]:
    return {"x": torch.linspace(-1.5, 2, batch), "adj": torch.linspace(1, -2, batch)}


def assert_close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_permuting_the_nodes_permutes_the_output() -> None:
    order = torch.tensor([3, 0, 6, 2, 5, 1, 4])
    x, made = graphs((7, 7, 7)), network()
    permuted = State(
        {"x": x["x"][:, order], "adj": x["adj"][:, order][:, :, order]},
        {"x": x.masks["x"][:, order], "adj": x.masks["adj"][:, order][:, :, order]},
    )
    with torch.no_grad():
        out, again = made(x, levels()), made(permuted, levels())
    assert_close(again["x"], out["x"][:, order])
    assert_close(again["adj"], out["adj"][:, order][:, :, order])


def test_padding_changes_nothing() -> None:
    x, made = graphs(), network()
    pad = nn.functional.pad
    wide = State(
        {"x": pad(x["x"], (0, 0, 0, 5)), "adj": pad(x["adj"], (0, 5, 0, 5))},
        {"x": pad(x.masks["x"], (0, 0, 0, 5)), "adj": pad(x.masks["adj"], (0, 5, 0, 5))},
    )
    with torch.no_grad():
        out, padded = made(x, levels()), made(wide, levels())
    assert_close(padded["x"][:, :7], out["x"])
    assert_close(padded["adj"][:, :7, :7], out["adj"])


def test_batch_mates_change_nothing() -> None:
    x, made = graphs(), network()
    with torch.no_grad():
        together = made(x, levels())
        alone = made(x.take(torch.tensor([1])), {k: v[1:2] for k, v in levels().items()})
    assert_close(alone["x"][0], together["x"][1])
    assert_close(alone["adj"][0], together["adj"][1])


def test_absent_entries_are_exactly_zero() -> None:
    x = graphs()
    with torch.no_grad():
        out = network()(x, levels())
    for name in ("x", "adj"):
        absent = ~x.masks[name].expand_as(out[name])
        assert bool((out[name][absent] == 0).all())
        assert bool((out[name][~absent] != 0).any())


def test_adjacency_is_exactly_symmetric_with_zero_diagonal() -> None:
    with torch.no_grad():
        adj = network()(graphs(), levels())["adj"]
    assert torch.equal(adj, adj.mT)
    assert bool((adj.diagonal(dim1=1, dim2=2) == 0).all())


def test_nodes_are_probabilities_and_edges_means_of_their_values() -> None:
    x = graphs((7, 7, 7))
    with torch.no_grad():
        out = network()(x, levels())
    assert_close(out["x"].sum(-1), torch.ones(3, 7))
    assert bool(((out["adj"] >= 0) & (out["adj"] <= 3)).all())


def test_nodes_feel_the_edges_and_edges_the_nodes() -> None:
    x, made = graphs((7, 7, 7)), network()
    other = graphs((7, 7, 7))
    adj = other["adj"].clone()
    adj[:, 0, 1] += 1
    adj[:, 1, 0] += 1
    features = other["x"].clone()
    features[:, 4] += 1
    with torch.no_grad():
        out = made(x, levels())
        by_edge = made(x.replace(adj=adj), levels())
        by_node = made(x.replace(x=features), levels())
    assert float((by_edge["x"] - out["x"]).abs().max()) > 1e-3
    assert float((by_node["adj"][:, :4, :4] - out["adj"][:, :4, :4]).abs().max()) > 1e-4


@pytest.mark.parametrize("half_log_snr", [-1e4, -30.0, 30.0, 1e4])
def test_extreme_noise_levels_stay_finite(half_log_snr: float) -> None:
    level = torch.full((3,), half_log_snr)
    x, made = graphs(), network()
    out = made(x, {"x": level, "adj": level})
    (out["x"].sum() + out["adj"].sum()).backward()
    assert all(bool(v.isfinite().all()) for v in out.values())
    gradients = [p.grad for p in made.parameters() if p.grad is not None]
    assert all(bool(g.isfinite().all()) for g in gradients)


def test_at_low_noise_the_input_decides() -> None:
    x = graphs((7, 7, 7))
    classes = torch.randint(4, (3, 7), generator=torch.Generator().manual_seed(3))
    clean = x.replace(x=nn.functional.one_hot(classes, 4).float(), adj=x["adj"].round().clamp(0, 3))
    level = torch.full((3,), 6.0)
    with torch.no_grad():
        out = network()(clean, {"x": level, "adj": level})
    torch.testing.assert_close(out["x"], clean["x"], atol=1e-4, rtol=0)
    torch.testing.assert_close(out["adj"], clean["adj"], atol=1e-4, rtol=0)


def test_without_masks_every_node_exists() -> None:
    x, made = graphs((7, 7, 7)), network()
    with torch.no_grad():
        masked, bare = made(x, levels()), made(State(dict(x)), levels())
    assert torch.equal(bare["x"], masked["x"])
    assert torch.equal(bare["adj"], masked["adj"])


def test_single_nodes_have_no_edges() -> None:
    with torch.no_grad():
        out = network()(graphs((1, 1), width=1), levels(2))
    assert_close(out["x"].sum(-1), torch.ones(2, 1))
    assert out["adj"].tolist() == [[[0.0]], [[0.0]]]


def test_fresh_network_predicts_from_the_priors_alone_at_pure_noise() -> None:
    """Zero evidence and zeroed last layers leave the class frequencies."""
    torch.manual_seed(0)
    made = GraphTransformer(4, **SMALL)
    atoms, bonds = torch.tensor([0.4, 0.3, 0.2, 0.1]), torch.tensor([0.6, 0.2, 0.15, 0.05])
    made.set_priors(atoms, bonds)
    for last in (made.node_out[1], made.pair_out[1]):
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
    level = torch.full((3,), -9.0)
    with torch.no_grad():
        out = made(graphs((7, 7, 7)), {"x": level, "adj": level})
    torch.testing.assert_close(out["x"], atoms.expand(3, 7, 4), atol=1e-3, rtol=0)
    expected = float(bonds @ torch.arange(4.0))
    off = ~torch.eye(7, dtype=torch.bool)
    torch.testing.assert_close(out["adj"][:, off], torch.full((3, 42), expected), atol=1e-3, rtol=0)


def test_configuration_rebuilds_the_network() -> None:
    made = network(edge_values=(0.0, 1.0))
    again = GraphTransformer(**made.config)
    again.load_state_dict(made.state_dict())
    x = graphs((7, 7, 7))
    with torch.no_grad():
        assert torch.equal(made(x, levels())["adj"], again(x, levels())["adj"])


def test_every_parameter_gets_a_gradient() -> None:
    """Data-parallel training needs no search for unused parameters."""
    made = network()
    logits = made.logits(graphs(), levels())
    (logits["x"].square().sum() + logits["adj"].square().sum()).backward()
    assert [name for name, p in made.named_parameters() if p.grad is None] == []


def test_width_must_be_a_multiple_of_the_heads() -> None:
    with pytest.raises(StructDiffError, match="node_width 10 must be a multiple of the number of"):
        GraphTransformer(4, node_width=10, heads=4)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compiled_layers_give_the_same_output() -> None:
    made, x = network(), graphs()
    with torch.no_grad():
        expected = made(x, levels())
        for layer in made.layers:
            layer.compile(backend="aot_eager")
        found = made(x, levels())
    assert_close(found["x"], expected["x"])
    assert_close(found["adj"], expected["adj"])


def test_compiling_leaves_the_names_of_the_weights() -> None:
    made = network()
    names = list(made.state_dict())
    for layer in made.layers:
        layer.compile(backend="eager")
    assert list(made.state_dict()) == names


@pytest.mark.parametrize("other", [VP(), VP(0.1, 1.0), VE(0.01, 20.0)])
def test_network_of_one_process_serves_another_at_equal_log_snr(other: object) -> None:
    """x_t scaled to alpha^2 + sigma^2 = 1 is the same input, so E[x0 | xt] is the same."""
    made, line = network(), RectifiedFlow()
    space = {"adj": Symmetric()}
    trained = Denoiser(made, System({"x": line, "adj": line}, space), "data", scale_input=True)
    under = Denoiser(made, System({"x": other, "adj": other}, space), "data", scale_input=True)
    t = torch.tensor([0.3, 0.5, 0.7], dtype=torch.float64)
    there = other.time_at(line.half_log_snr(t))
    x = graphs((7, 7, 7))
    moved = x * (other.sigma(there) / line.sigma(t))
    with torch.no_grad():
        expected, found = trained(x, t), under(moved, there)
    assert_close(found["x"], expected["x"])
    assert_close(found["adj"], expected["adj"])


def test_pairs_fill_the_matrix_and_leave_its_diagonal() -> None:
    i, j, index = upper_pairs(4, torch.device("cpu"))
    values = torch.arange(1.0, 7.0)[None, :, None]
    matrix = to_matrix(values, index)[0, ..., 0]
    assert torch.equal(matrix[i, j], values[0, :, 0])
    assert torch.equal(matrix, matrix.T)
    assert bool((i < j).all())
    assert matrix.diagonal().tolist() == [0.0] * 4
