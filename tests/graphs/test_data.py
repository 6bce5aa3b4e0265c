"""Graph sets: the benchmark files, states and back, and what is refused."""

from __future__ import annotations

import networkx
import numpy as np
import pytest
import torch

from structdiff.errors import StructDiffError
from structdiff.graphs.data import from_networkx, load_graphs, to_networkx, to_state
from structdiff.state import State

# name, graphs, test graphs, largest graph, feature width: README of the data and method card,
# sections 3 and 4.
SETS = [
    ("community_small", 100, 20, 20, 10),
    ("ego_small", 200, 40, 17, 17),
    ("enzymes", 587, 117, 125, 10),
    ("grid", 100, 20, 361, 5),
]


def write(path, num_nodes=(3, 2), edge_ptr=(0, 2, 3), edges=((0, 1), (1, 2), (0, 1)), **more):
    arrays = {"num_nodes": num_nodes, "edge_ptr": edge_ptr, "edges": edges, **more}
    np.savez(path, **{key: np.asarray(value) for key, value in arrays.items() if value is not None})
    return path


@pytest.mark.parametrize(("name", "count", "test", "largest", "features"), SETS)
def test_benchmark_sets_split_as_published(data_dir, name, count, test, largest, features):
    graphs = load_graphs(data_dir / "graphs" / f"{name}.npz")
    train, held_out = graphs.split()
    assert (len(train), len(held_out)) == (count - test, test)


@pytest.mark.parametrize(("name", "count", "test", "largest", "features"), SETS)
def test_benchmark_sets_have_the_published_size(data_dir, name, count, test, largest, features):
    graphs = load_graphs(data_dir / "graphs" / f"{name}.npz")
    assert (len(graphs), graphs.num_nodes.max()) == (count, largest)


def test_the_test_set_is_the_first_fifth_in_file_order(data_dir):
    graphs = load_graphs(data_dir / "graphs" / "ego_small.npz")
    train, held_out = graphs.split()
    assert list(held_out[39].edges) == list(graphs[39].edges)
    assert list(train[0].edges) == list(graphs[40].edges)


def test_mean_numbers_of_nodes_and_edges_are_the_published_ones(data_dir):
    """README of the data: community_small has 15.28 nodes and 35.15 edges on average."""
    graphs = load_graphs(data_dir / "graphs" / "community_small.npz")
    means = np.mean([(g.number_of_nodes(), g.number_of_edges()) for g in graphs], axis=0)
    np.testing.assert_allclose(means, [15.28, 35.15], atol=1e-9)


@pytest.mark.parametrize("name", ["community_small", "ego_small"])
def test_graphs_survive_the_way_into_a_state_and_back(data_dir, name):
    graphs = load_graphs(data_dir / "graphs" / f"{name}.npz")
    back = to_networkx(to_state(graphs, max_feat_num=17))
    assert [set(g.edges) for g in back] == [set(g.edges) for g in graphs]


def test_graph_sets_and_networkx_graphs_give_the_same_state(data_dir):
    graphs = load_graphs(data_dir / "graphs" / "ego_small.npz")
    one, other = to_state(graphs, 17, 18), from_networkx(list(graphs), 17, 18)
    assert all(torch.equal(one[name], other[name]) for name in ("x", "adj"))
    assert all(torch.equal(one.masks[name], other.masks[name]) for name in ("x", "adj"))


def test_features_are_the_one_hot_degree():
    state = from_networkx([networkx.star_graph(3), networkx.path_graph(2)], max_feat_num=5)
    assert state["x"][0].argmax(-1).tolist() == [3, 1, 1, 1]
    assert state["x"].sum(-1).tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]


def test_masks_say_which_nodes_and_pairs_exist():
    state = from_networkx([networkx.path_graph(2)], max_feat_num=3, max_node_num=3)
    assert state.masks["x"].tolist() == [[[True], [True], [False]]]
    assert state.masks["adj"].int().tolist() == [[[0, 1, 0], [1, 0, 0], [0, 0, 0]]]


def test_an_isolated_node_exists():
    """The published flags lose it; ours come from the number of nodes."""
    graph = networkx.path_graph(2)
    graph.add_node("alone")
    state = from_networkx([graph], max_feat_num=3)
    assert state.masks["x"].sum() == 3 and state["x"][0, 2].tolist() == [1, 0, 0]


def generated(matrix, exists=None) -> State:
    adj = torch.tensor([matrix], dtype=torch.float32)
    masks = {} if exists is None else {"x": torch.tensor([exists])[..., None]}
    return State({"x": torch.zeros(1, len(matrix), 2), "adj": adj}, masks=masks)


def test_an_entry_of_one_half_is_an_edge():
    """Decoding rule of the published code: an edge where adj >= 0.5."""
    matrix = [[0.9, 0.5, 0.49], [0.5, 0.9, 1.0], [0.49, 1.0, 0.9]]
    assert set(to_networkx(generated(matrix))[0].edges) == {(0, 1), (1, 2)}


def test_isolated_nodes_are_dropped():
    matrix = [[0, 0, 0], [0, 0, 1], [0, 1, 0]]
    assert to_networkx(generated(matrix))[0].number_of_nodes() == 2


def test_isolated_nodes_are_kept_on_request():
    matrix = [[0, 0, 0], [0, 0, 1], [0, 1, 0]]
    graph = to_networkx(generated(matrix), drop_isolated=False)[0]
    assert (graph.number_of_nodes(), set(graph.edges)) == (3, {(1, 2)})


def test_a_graph_without_edges_becomes_one_node():
    assert to_networkx(generated([[0, 0], [0, 0]]))[0].number_of_nodes() == 1


def test_nodes_that_do_not_exist_are_not_decoded():
    matrix = [[0, 1, 1], [1, 0, 1], [1, 1, 0]]
    graph = to_networkx(generated(matrix, exists=[True, True, False]))[0]
    assert set(graph.edges) == {(0, 1)}


@pytest.mark.parametrize(
    ("arrays", "reason"),
    [
        ({"edges": None}, "array 'edges' is missing"),
        ({"num_nodes": (3.0, 2.0)}, "array 'num_nodes' is float64"),
        ({"edges": (0, 1, 2)}, "expected integers with 2 axes"),
        ({"edges": ((0, 1, 2),) * 3}, r"edges \(E, 2\)"),
        ({"edge_ptr": (0, 3)}, "edge_ptr of length 3"),
        ({"edge_ptr": (0, 4, 3)}, "must rise from 0"),
        ({"edge_ptr": (0, 2, 2)}, "must rise from 0"),
        ({"edges": ((0, 1), (1, 2), (0, 2))}, "graph 1 has an edge outside its 2 nodes"),
        ({"edges": ((0, 1), (1, -1), (0, 1))}, "graph 0 has an edge outside its 3 nodes"),
        ({"edges": ((0, 1), (2, 2), (0, 1))}, "graph 0 has a loop"),
        ({"edges": ((0, 1), (1, 0), (0, 1))}, "graph 0 repeats an edge"),
        ({"num_nodes": (3, 0), "edge_ptr": (0, 3, 3)}, "graph 1 has no nodes|graph 0 repeats"),
    ],
)
def test_malformed_files_are_named(tmp_path, arrays, reason):
    with pytest.raises(StructDiffError, match=reason):
        load_graphs(write(tmp_path / "set.npz", **arrays))


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 nothing", b"num_nodes\n3\n"])
def test_files_that_are_no_archives_are_refused(tmp_path, content):
    path = tmp_path / "set.npz"
    path.write_bytes(content)
    with pytest.raises(StructDiffError, match=r"set\.npz: not a readable \.npz"):
        load_graphs(path)


def test_a_pickled_array_is_refused(tmp_path):
    path = write(tmp_path / "set.npz", edges=np.array([{}, {}], dtype=object))
    with pytest.raises(StructDiffError, match=r"not a readable \.npz"):
        load_graphs(path)


@pytest.mark.parametrize(
    ("graphs", "reason"),
    [
        ([], "there are no graphs"),
        ([networkx.path_graph(2), networkx.empty_graph(0)], "graph 1 has no nodes"),
        ([networkx.path_graph(2), networkx.path_graph(9)], "graph 1: 9 nodes, but max_node_num"),
        ([networkx.star_graph(4)], "graph 0: degree 4 has no class.*at least 5"),
        ([networkx.DiGraph([(0, 1)])], "graph 0: directed or with loops"),
        ([networkx.Graph([(0, 0)])], "graph 0: directed or with loops"),
    ],
)
def test_graphs_that_fit_no_state_are_named(graphs, reason):
    with pytest.raises(StructDiffError, match=reason):
        from_networkx(graphs, max_feat_num=4, max_node_num=6)
