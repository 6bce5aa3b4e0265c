"""Records <-> :class:`~structdiff.state.State`: what a molecule is to a diffusion model.

A molecule with ``n`` heavy atoms is the pair ``(x, adj)``: ``x`` the one-hot rows of the atom
types, ``adj`` the symmetric matrix of bond orders 0, 1, 2, 3 as real numbers, both padded to ``N``
atoms, with masks that say which atoms exist. The order of the atoms is that of the canonical
SMILES without stereo, parsed again and kekulised; hydrogens are implicit. Back again,

    order = [a >= 0.5] + [a >= 1.5] + [a >= 2.5],    type = the first k with x_k > 0.5

(Jo, Lee, Hwang 2022, arXiv 2202.02514, and its published sampler). Every record either becomes a
molecule that returns to the same SMILES, or is counted in a :class:`Report` with the reason.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rdkit import Chem, rdBase
from torch import Tensor
from tqdm import tqdm

from structdiff.errors import StructDiffError
from structdiff.molecules.chemistry import (
    BOND_ORDERS,
    assemble,
    canonical_smiles,
    clean_copy,
    flat_smiles,
    keep_largest_fragment,
)
from structdiff.molecules.report import Report
from structdiff.molecules.vocabulary import (
    QM9,
    QM9_CHARGED,
    ZINC250K,
    ZINC250K_CHARGED,
    MoleculeDataError,
    Vocabulary,
    parse_smiles,
)
from structdiff.state import State

__all__ = [
    "QM9",
    "QM9_CHARGED",
    "ZINC250K",
    "ZINC250K_CHARGED",
    "MoleculeDataError",
    "MoleculeSet",
    "Report",
    "Vocabulary",
    "assemble",
    "canonical_smiles",
    "decode",
    "graph_masks",
    "keep_largest_fragment",
    "read_molecules",
]

NO_ATOM = -1


@dataclass(frozen=True)
class MoleculeSet:
    """Molecules as compact arrays, in the order of the records they came from.

    Attributes
    ----------
    atom_types
        int8, shape (M, N): index into the vocabulary, -1 where there is no atom.
    bonds
        uint8, shape (M, N, N): bond order 0..3, symmetric.
    num_atoms
        int16, shape (M,).
    smiles
        Canonical SMILES without stereo, M of them.
    rows
        int64, shape (M,): the record each molecule came from, counted from 0.
    vocabulary, report
        The atom types, and what became of the records.
    """

    atom_types: NDArray[np.int8]
    bonds: NDArray[np.uint8]
    num_atoms: NDArray[np.int16]
    smiles: list[str]
    rows: NDArray[np.int64]
    vocabulary: Vocabulary
    report: Report

    def __len__(self) -> int:
        return len(self.smiles)

    @property
    def max_atoms(self) -> int:
        """``N``, the padded number of atoms."""
        return self.atom_types.shape[1]

    @property
    def node_counts(self) -> NDArray[np.int64]:
        """How many molecules have 0, 1, ..., N atoms, shape (N + 1,): the law of sizes."""
        return np.bincount(self.num_atoms, minlength=self.max_atoms + 1)

    def to_state(
        self,
        indices: Sequence[int] | NDArray[np.integer[Any]] | Tensor | slice | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> State:
        """The molecules at ``indices`` (default all): ``x`` (B, N, F), ``adj`` (B, N, N), masks."""
        where = slice(None) if indices is None else indices
        if isinstance(where, Tensor):
            where = where.cpu().numpy()
        types = torch.from_numpy(self.atom_types[where].astype(np.int64))
        channels = torch.arange(len(self.vocabulary))
        x = (types.unsqueeze(-1) == channels).to(dtype)
        adj = torch.from_numpy(self.bonds[where]).to(dtype)
        counts = torch.from_numpy(self.num_atoms[where].astype(np.int64))
        return State({"x": x, "adj": adj}, graph_masks(counts, self.max_atoms))


def graph_masks(num_atoms: Tensor, max_atoms: int) -> dict[str, Tensor]:
    """Masks of graphs with the node counts (B,): ``x`` (B, N, 1), node exists; ``adj`` (B, N, N),
    both nodes exist and differ.

    Because the counts are explicit, single atoms and unbonded atoms exist like any other.
    """
    node = torch.arange(max_atoms, device=num_atoms.device) < num_atoms.unsqueeze(-1)  # (B, N)
    off_diagonal = ~torch.eye(max_atoms, dtype=torch.bool, device=num_atoms.device)
    return {"x": node.unsqueeze(-1), "adj": node.unsqueeze(-1) & node.unsqueeze(-2) & off_diagonal}


def decode(
    state: State, vocabulary: Vocabulary, rule: str = "threshold"
) -> tuple[NDArray[np.int8], NDArray[np.uint8]]:
    """Real ``x`` and ``adj`` -> atom types (B, N), -1 for no atom, and bond orders (B, N, N).

    Parameters
    ----------
    rule
        ``"threshold"``: the first type with ``x > 0.5``, no atom if there is none (the published
        rule). ``"argmax"``: the largest entry at every node that exists. Bond orders are by the
        thresholds 0.5, 1.5, 2.5 under both.

    Raises
    ------
    StructDiffError
        If the values are not finite, or ``x`` has another number of channels than the vocabulary.
    ValueError
        If the rule is unknown.
    """
    if rule not in ("threshold", "argmax"):
        raise ValueError(f"unknown decoding rule {rule!r}; use 'threshold' or 'argmax'")
    x, adj = state["x"].detach(), state["adj"].detach()
    if x.shape[-1] != len(vocabulary):
        raise MoleculeDataError(
            f"x has {x.shape[-1]} channels, the vocabulary {len(vocabulary)} types ({vocabulary})"
        )
    finite = x.isfinite().flatten(1).all(1) & adj.isfinite().flatten(1).all(1)
    if not bool(finite.all()):
        raise StructDiffError(
            f"{int((~finite).sum())} of {len(finite)} sampled molecules hold NaN or infinity; "
            "use more steps, another sampler, or check the weights"
        )
    if rule == "threshold":
        above = x > 0.5
        types = torch.where(above.any(-1), above.to(torch.uint8).argmax(-1), NO_ATOM)
    else:
        types = x.argmax(-1)
    node_mask = state.masks.get("x") if state.masks is not None else None
    if node_mask is not None:
        types = types.masked_fill(~node_mask.expand_as(x)[..., 0], NO_ATOM)
    exists = types >= 0
    order = (
        (adj >= 0.5).to(torch.uint8) + (adj >= 1.5).to(torch.uint8) + (adj >= 2.5).to(torch.uint8)
    )
    order = order.tril(-1) * (exists.unsqueeze(-1) & exists.unsqueeze(-2))
    order = order + order.transpose(-1, -2)
    return types.to(torch.int8).cpu().numpy(), order.cpu().numpy()


def read_molecules(
    records: Iterable[Any],
    vocabulary: Vocabulary,
    max_atoms: int | None = None,
    *,
    largest_fragment: bool = False,
    drop_charges: bool = False,
    drop_duplicates: bool = False,
    progress: bool = False,
) -> MoleculeSet:
    """Read SMILES or Mols into arrays; what cannot be used is counted in the report, by reason.

    Parameters
    ----------
    records
        SMILES strings or RDKit Mols; None and NaN count as empty.
    vocabulary
        The atom types the model knows.
    max_atoms
        Molecules with more heavy atoms are rejected; by default the vocabulary's limit. Also
        the padding ``N``.
    largest_fragment
        Keep the largest fragment of a record with several, instead of rejecting it.
    drop_charges
        Read a charged atom as the neutral one of its element, as published GDSS does; such a
        molecule changes, and is counted.
    drop_duplicates
        Keep only the first of equal molecules. Either way they are counted.
    progress
        Show a progress bar.

    Raises
    ------
    MoleculeDataError
        If no record can be used; the message is the report.
    """
    size = vocabulary.max_atoms if max_atoms is None else max_atoms
    if size < 1:
        raise MoleculeDataError(f"max_atoms must be at least 1, got {size}")
    read = _Reader(vocabulary, size, largest_fragment, drop_charges)
    report = Report()
    graphs: list[_Graph] = []
    rows: list[int] = []
    seen: set[str] = set()
    with rdBase.BlockLogs():
        for row, record in enumerate(tqdm(records, "reading molecules", disable=not progress)):
            report.total += 1
            try:
                graph = read(record)
            except _Rejected as rejected:
                report.reject(rejected.reason, row, record, rejected.detail)
                continue
            if graph.smiles in seen:
                if drop_duplicates:
                    report.reject("duplicate", row, record)
                    continue
                report.note("duplicate", row, record)
            for note in graph.notes:
                report.note(note, row, record)
            seen.add(graph.smiles)
            graphs.append(graph)
            rows.append(row)
    report.usable = len(graphs)
    if not graphs:
        raise MoleculeDataError(f"no usable molecule among the records: {report}")
    return _stack(graphs, rows, size, vocabulary, report)


class _Rejected(Exception):
    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason)
        self.reason, self.detail = reason, detail


@dataclass(frozen=True)
class _Graph:
    smiles: str
    types: list[int]
    bonds: NDArray[np.uint8]  # (n, n)
    notes: list[str]


class _Reader:
    """Turns one record into a graph, or raises why not."""

    def __init__(
        self, vocabulary: Vocabulary, max_atoms: int, largest_fragment: bool, drop_charges: bool
    ) -> None:
        self.vocabulary = vocabulary
        self.max_atoms = max_atoms
        self.largest_fragment = largest_fragment
        self.drop_charges = drop_charges
        numbers, charges = vocabulary.atomic_numbers.tolist(), vocabulary.formal_charges.tolist()
        self.index = {pair: k for k, pair in enumerate(zip(numbers, charges, strict=True))}
        self.elements = set(numbers)

    def __call__(self, record: Any) -> _Graph:
        mol, notes = self._one_fragment(_parse_record(record))
        written = Chem.MolToSmiles(mol)
        smiles = flat_smiles(mol)
        if smiles != written:
            notes.append("stereo")
        flat = Chem.MolFromSmiles(smiles)  # fixes the order of the atoms
        if flat is None:
            raise _Rejected("aromatic", smiles)
        if flat.GetNumAtoms() > self.max_atoms:
            detail = f"{flat.GetNumAtoms()} atoms, the limit is {self.max_atoms}"
            raise _Rejected("too_large", detail)
        Chem.Kekulize(flat, clearAromaticFlags=True)
        types = self._types(flat, notes)
        if any(bond.GetBondType() not in BOND_ORDERS for bond in flat.GetBonds()):
            raise _Rejected("bond", smiles)
        bonds = Chem.GetAdjacencyMatrix(flat, useBO=True).astype(np.uint8)
        if "[" in smiles and "charges_dropped" not in notes:
            self._check_hydrogens(types, bonds, smiles)
        return _Graph(smiles, types, bonds, notes)

    def _one_fragment(self, mol: Chem.Mol) -> tuple[Chem.Mol, list[str]]:
        count = len(Chem.GetMolFrags(mol))
        if count == 1:
            return mol, []
        if not self.largest_fragment:
            raise _Rejected("fragments", f"{count} fragments")
        return keep_largest_fragment(mol), ["fragments_dropped"]

    def _types(self, mol: Chem.Mol, notes: list[str]) -> list[int]:
        types = []
        for atom in mol.GetAtoms():
            number, charge = atom.GetAtomicNum(), atom.GetFormalCharge()
            kind = self.index.get((number, charge))
            if kind is None and charge and self.drop_charges:
                kind = self.index.get((number, 0))
                if "charges_dropped" not in notes:
                    notes.append("charges_dropped")
            if kind is None:
                reason = "charge" if number in self.elements else "element"
                raise _Rejected(reason, atom.GetSymbol() + (f"{charge:+d}" if charge else ""))
            types.append(kind)
        return types

    def _check_hydrogens(self, types: list[int], bonds: NDArray[np.uint8], smiles: str) -> None:
        # Only atoms in brackets can hold hydrogens or electrons that types and bonds do not imply.
        again = assemble(np.array(types), bonds, self.vocabulary)
        if Chem.SanitizeMol(again, catchErrors=True) or Chem.MolToSmiles(again) != smiles:
            raise _Rejected("hydrogens", smiles)


def _parse_record(record: Any) -> Chem.Mol:
    if isinstance(record, Chem.Mol):
        if not record.GetNumAtoms():
            raise _Rejected("empty")
        copy = clean_copy(record)
        if copy is None:
            raise _Rejected("invalid", "the Mol cannot be sanitised")
        return copy
    if record is None or record != record or (isinstance(record, str) and not record.strip()):
        raise _Rejected("empty")
    if not isinstance(record, str):
        raise _Rejected("invalid", f"a {type(record).__name__}, not a string")
    mol = parse_smiles(record)
    if mol is not None:
        return mol
    loose = Chem.MolFromSmiles(record, sanitize=False)
    if loose is None:
        raise _Rejected("invalid", "not SMILES")
    problems = Chem.DetectChemistryProblems(loose)
    kinds = {problem.GetType() for problem in problems}
    if kinds and kinds <= {"KekulizeException", "AtomKekulizeException"}:
        raise _Rejected("aromatic")
    raise _Rejected("invalid", ", ".join(sorted(kinds)))


def _stack(
    graphs: list[_Graph], rows: list[int], size: int, vocabulary: Vocabulary, report: Report
) -> MoleculeSet:
    """Pad to ``size`` atoms and stack."""
    atom_types = np.full((len(graphs), size), NO_ATOM, dtype=np.int8)
    bonds = np.zeros((len(graphs), size, size), dtype=np.uint8)
    for k, graph in enumerate(graphs):
        n = len(graph.types)
        atom_types[k, :n] = graph.types
        bonds[k, :n, :n] = graph.bonds
    return MoleculeSet(
        atom_types=atom_types,
        bonds=bonds,
        num_atoms=(atom_types >= 0).sum(1).astype(np.int16),
        smiles=[graph.smiles for graph in graphs],
        rows=np.array(rows, dtype=np.int64),
        vocabulary=vocabulary,
        report=report,
    )
