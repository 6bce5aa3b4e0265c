r"""Sets of graphs, and their way into a :class:`~structdiff.state.State` and back.

A graph set is one ``.npz`` file: ``num_nodes (G,)``, ``edge_ptr (G + 1,)`` and ``edges (E, 2)``, so
that graph ``g`` has the undirected edges ``edges[edge_ptr[g]:edge_ptr[g + 1]]``, each once. As a
state, ``adj`` is the 0/1 adjacency and ``x`` the one-hot degree, the features of GDSS
(arXiv 2202.02514, section 4); a generated ``adj`` is decoded by

.. math:: (i, j) \in E \iff A_{ij} \ge 1/2 .
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import networkx
import numpy as np
import torch
from numpy.typing import NDArray

from structdiff.errors import StructDiffError
from structdiff.state import State

TEST_SHARE = 0.2
THRESHOLD = 0.5


@dataclass(frozen=True)
class GraphSet(Sequence[networkx.Graph]):
    """Undirected simple graphs in the order of their file; a sequence of networkx graphs.

    Attributes
    ----------
    num_nodes
        ``(G,)`` nodes of each graph.
    edge_ptr
        ``(G + 1,)`` where each graph's edges begin.
    edges
        ``(E, 2)`` node numbers within the graph.
    name
        Name of the set.
    """

    num_nodes: NDArray[np.int64]
    edge_ptr: NDArray[np.int64]
    edges: NDArray[np.int64]
    name: str = "graphs"

    def __len__(self) -> int:
        return len(self.num_nodes)

    def __getitem__(self, index):  # type: ignore[no-untyped-def]
        """Graph number ``index``, or the set of a slice."""
        if isinstance(index, slice):
            return self.take(range(*index.indices(len(self))))
        number = range(len(self))[index]
        graph = networkx.empty_graph(int(self.num_nodes[number]))
        graph.add_edges_from(self.edges_of(number).tolist())
        return graph

    def edges_of(self, number: int) -> NDArray[np.int64]:
        """``(E_g, 2)`` edges of graph ``number``."""
        return self.edges[self.edge_ptr[number] : self.edge_ptr[number + 1]]

    def take(self, numbers: Sequence[int]) -> GraphSet:
        """The graphs of these numbers, in this order."""
        parts = [self.edges_of(number) for number in numbers]
        counts = [len(part) for part in parts]
        return GraphSet(
            num_nodes=self.num_nodes[list(numbers)],
            edge_ptr=np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]),
            edges=np.concatenate([np.empty((0, 2), np.int64), *parts]),
            name=self.name,
        )

    def split(self) -> tuple[GraphSet, GraphSet]:
        """Train and test as GDSS splits them: the first 20 % in file order are the test set."""
        held_out = int(TEST_SHARE * len(self))
        return self[held_out:], self[:held_out]


def load_graphs(path: str | Path) -> GraphSet:
    """Read a graph set.

    Parameters
    ----------
    path
        An ``.npz`` file with ``num_nodes``, ``edge_ptr`` and ``edges``; further arrays are ignored.

    Raises
    ------
    StructDiffError
        If the file is missing or no such archive, an array is missing or of the wrong shape, or an
        edge is a loop, repeated, or leaves its graph; the message names the graph.
    """
    path = Path(path)
    try:
        with np.load(path, allow_pickle=False) as arrays:
            num_nodes, edge_ptr, edges = (
                _integers(path, arrays, name) for name in ("num_nodes", "edge_ptr", "edges")
            )
    except StructDiffError:
        raise
    except (OSError, ValueError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        raise StructDiffError(f"{path}: not a readable .npz file ({error})") from error
    graphs = GraphSet(num_nodes, edge_ptr, edges, name=path.stem)
    _check(path, graphs)
    return graphs


def from_networkx(
    graphs: Sequence[networkx.Graph], max_feat_num: int, max_node_num: int | None = None
) -> State:
    """Graphs as a padded state; nodes keep the order of the networkx graph.

    Parameters
    ----------
    graphs
        Undirected graphs without loops; attributes are ignored.
    max_feat_num
        Classes of the one-hot degree; must exceed the largest degree.
    max_node_num
        Padded size N; by default that of the largest graph.

    Returns
    -------
    State
        ``x (B, N, max_feat_num)``, ``adj (B, N, N)`` of zeros and ones, with masks.

    Raises
    ------
    StructDiffError
        If there is no graph, or a graph is directed, empty, too large, has a loop or a degree
        without a class; the message names the graph.
    """
    matrices = []
    for number, graph in enumerate(graphs):
        if graph.is_directed() or networkx.number_of_selfloops(graph):
            raise StructDiffError(f"graph {number}: directed or with loops; make it simple first")
        matrices.append(networkx.to_numpy_array(graph, weight=None) > 0)
    return _pad(matrices, max_feat_num, max_node_num)


def to_state(graphs: GraphSet, max_feat_num: int, max_node_num: int | None = None) -> State:
    """A graph set as a padded state; parameters, result and errors as :func:`from_networkx`."""
    matrices = []
    for number in range(len(graphs)):
        matrix = np.zeros((graphs.num_nodes[number],) * 2, dtype=bool)
        row, column = graphs.edges_of(number).T
        matrix[row, column] = matrix[column, row] = True
        matrices.append(matrix)
    return _pad(matrices, max_feat_num, max_node_num)


def to_networkx(state: State, *, drop_isolated: bool = True) -> list[networkx.Graph]:
    """Decode generated adjacencies: an edge where ``adj >= 0.5``, no loops.

    Parameters
    ----------
    state
        ``adj (B, N, N)``; only nodes that exist under ``state.masks["x"]`` are kept.
    drop_isolated
        Drop nodes without edges, as GDSS does; a graph without edges becomes one node.
    """
    edge = (state["adj"] >= THRESHOLD).cpu().numpy()
    exists = np.ones(edge.shape[:2], dtype=bool)
    if "x" in state.masks:
        exists = np.broadcast_to(state.masks["x"][..., 0].cpu().numpy(), exists.shape)
    return [_decode(*pair, drop_isolated) for pair in zip(edge, exists, strict=True)]


def _decode(edge: NDArray[np.bool_], exists: NDArray[np.bool_], drop: bool) -> networkx.Graph:
    edge = np.triu(edge, 1)
    edge = (edge | edge.T) & exists & exists[:, None]
    kept = exists & edge.any(0) if drop else exists
    if not kept.any():
        return networkx.empty_graph(1)
    graph = networkx.empty_graph(int(kept.sum()))
    graph.add_edges_from(np.argwhere(np.triu(edge[np.ix_(kept, kept)])).tolist())
    return graph


def _pad(matrices: list[NDArray[np.bool_]], max_feat_num: int, max_node_num: int | None) -> State:
    sizes = [len(matrix) for matrix in matrices]
    if not sizes or not all(sizes):
        where = f"graph {sizes.index(0)} has no nodes" if sizes else "there are no graphs"
        raise StructDiffError(f"{where}; a state needs at least one graph, each with a node")
    width = max_node_num or max(sizes)
    adj = np.zeros((len(sizes), width, width), dtype=np.float32)
    for number, matrix in enumerate(matrices):
        if len(matrix) > width:
            raise StructDiffError(
                f"graph {number}: {len(matrix)} nodes, but max_node_num is {width}"
            )
        degree = int(matrix.sum(0).max())
        if degree >= max_feat_num:
            raise StructDiffError(
                f"graph {number}: degree {degree} has no class; max_feat_num must be at least "
                f"{degree + 1}, got {max_feat_num}"
            )
        adj[number, : len(matrix), : len(matrix)] = matrix
    adjacency = torch.from_numpy(adj)
    exists = torch.arange(width) < torch.tensor(sizes)[:, None]  # (B, N)
    degrees = adjacency.sum(-1).long()
    x = torch.nn.functional.one_hot(degrees, max_feat_num).float() * exists[..., None]
    pairs = exists[:, :, None] & exists[:, None] & ~torch.eye(width, dtype=torch.bool)
    return State({"x": x, "adj": adjacency}, masks={"x": exists[..., None], "adj": pairs})


def _integers(path: Path, arrays: np.lib.npyio.NpzFile, name: str) -> NDArray[np.int64]:
    if name not in arrays:
        raise StructDiffError(f"{path}: array {name!r} is missing; it holds {list(arrays)}")
    array = arrays[name]
    dimensions = 2 if name == "edges" else 1
    if array.dtype.kind not in "iu" or array.ndim != dimensions:
        raise StructDiffError(
            f"{path}: array {name!r} is {array.dtype}{array.shape}, "
            f"expected integers with {dimensions} axes"
        )
    return array.astype(np.int64)


def _check(path: Path, graphs: GraphSet) -> None:
    """Raise unless every graph is simple and its edges lie within it."""
    pointer, edges = graphs.edge_ptr, graphs.edges
    if len(pointer) != len(graphs) + 1 or edges.shape[1] != 2:
        raise StructDiffError(
            f"{path}: {len(graphs)} graphs need edge_ptr of length {len(graphs) + 1} and edges "
            f"(E, 2), got {pointer.shape} and {edges.shape}"
        )
    if pointer[0] != 0 or pointer[-1] != len(edges) or (np.diff(pointer) < 0).any():
        raise StructDiffError(f"{path}: edge_ptr must rise from 0 to the {len(edges)} edges")
    for number, reason in _faults(graphs):
        raise StructDiffError(f"{path}: graph {number} {reason}; edges are u, v once each, u != v")


def _faults(graphs: GraphSet) -> Iterator[tuple[int, str]]:
    for number, count in enumerate(graphs.num_nodes):
        edges = graphs.edges_of(number)
        if count < 1:
            yield number, "has no nodes"
        elif len(edges) and (edges.min() < 0 or edges.max() >= count):
            yield number, f"has an edge outside its {count} nodes"
        elif (edges[:, 0] == edges[:, 1]).any():
            yield number, "has a loop"
        elif len(np.unique(np.sort(edges, axis=1), axis=0)) < len(edges):
            yield number, "repeats an edge"
