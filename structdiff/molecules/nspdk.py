"""The neighbourhood subgraph pairwise distance kernel (NSPDK) and the MMD of sets of molecules.

A molecule becomes a sparse unit vector that counts pairs of balls (all atoms and bonds within
radius R of an atom) whose centres are a distance D apart; the kernel is the inner product. For a
linear kernel the biased maximum mean discrepancy needs only the two mean vectors,

    MMD^2 = mean k(a, a') + mean k(b, b') - 2 mean k(a, b) = |mean(a) - mean(b)|^2.

Costa & De Grave, ICML 2010, with the conventions of the EDeN package at complexity 4 that published
molecule generators report: every bond becomes a vertex between its atoms, so distances double and
R, D are 0, 2, 4, 6, 8; atoms are labelled by element, bonds by the whole part of their order (an
aromatic bond is 1); each (R, D) block is scaled to unit norm, then the vector. Hashes here are
integer mixing, the same in every process, where EDeN used Python's randomised hash.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray
from rdkit import Chem
from tqdm import tqdm

from structdiff.molecules.vocabulary import MoleculeDataError

__all__ = ["BUCKETS", "nspdk_features", "nspdk_mean", "nspdk_mmd"]

BUCKETS = 1 << 16
LEVELS = 5  # R/2 and D/2 are 0..4: complexity 4
_FAR = 127
_BATCH = 512

Uint64 = NDArray[np.uint64]


def nspdk_features(mol: Chem.Mol) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The non-zero entries of a molecule's vector: bucket numbers, ascending, and values of norm 1.

    Raises
    ------
    MoleculeDataError
        If the molecule has no atom.
    """
    _, buckets, values = _features([mol])
    return buckets, values


def nspdk_mean(molecules: Iterable[Chem.Mol], *, progress: bool = False) -> NDArray[np.float64]:
    """The mean vector of molecules, shape (65536,): all that the MMD needs of a set.

    Raises
    ------
    MoleculeDataError
        If there is no molecule, or one has no atom.
    """
    total = np.zeros(BUCKETS)
    mols = list(molecules)
    if not mols:
        raise MoleculeDataError("no molecules, so no mean; pass at least one")
    with tqdm(total=len(mols), desc="NSPDK", disable=not progress) as bar:
        for start in range(0, len(mols), _BATCH):
            batch = mols[start : start + _BATCH]
            _, buckets, values = _features(batch)
            total += np.bincount(buckets, weights=values, minlength=BUCKETS)
            bar.update(len(batch))
    return total / len(mols)


def nspdk_mmd(
    a: Iterable[Chem.Mol] | NDArray[np.float64], b: Iterable[Chem.Mol] | NDArray[np.float64]
) -> float:
    """MMD^2 between two sets, each given as molecules or as its mean vector (65536,).

    The biased V-statistic, without a square root, as the published tables have it: two samples of
    n molecules of one distribution differ by about 2 (1 - mean k) / n.
    """
    mean_a, mean_b = (x if isinstance(x, np.ndarray) else nspdk_mean(x) for x in (a, b))
    return float(np.sum((mean_a - mean_b) ** 2))


# --- hashing ---------------------------------------------------------------------------------


@cache
def _label(text: str) -> int:
    """A stable 64-bit number for a label."""
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little")


def _mix(x: Uint64) -> Uint64:
    """The finaliser of splitmix64 (Steele, Lea, Flood 2014): scatters every bit of the input."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _combine(first: Uint64, *rest: Uint64 | int) -> Uint64:
    """Hash of a sequence, order-dependent, element by element."""
    code = _mix(first)
    for part in rest:
        # The odd factor keeps a part that equals the one before it from cancelling it.
        scattered = _mix(np.atleast_1d(np.asarray(part, dtype=np.uint64)))
        code = _mix(code * np.uint64(0xD6E8FEB86659FD93) + scattered)
    return code


# --- vectors ---------------------------------------------------------------------------------


def _features(
    mols: Sequence[Chem.Mol],
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """The non-zero entries of a batch: molecule, bucket, value."""
    distance, atom, bond, bond_distance = _graphs(mols)
    codes, exists = _balls(distance, atom, bond, bond_distance)
    molecule, block, bucket = _pairs(distance, codes, exists)
    return _normalised(molecule, block, bucket, len(mols))


def _graphs(
    mols: Sequence[Chem.Mol],
) -> tuple[NDArray[np.int64], Uint64, Uint64, NDArray[np.int64]]:
    """Padded arrays of a batch.

    Returns the distance between atoms in bonds (B, N, N), codes of the atoms (B, N) and of the
    bonds (B, E), and the distance of every bond's nearer end from every atom (B, N, E). What does
    not exist is far away.
    """
    if not all(mol.GetNumAtoms() for mol in mols):
        raise MoleculeDataError("a molecule without atoms has no NSPDK vector; leave it out")
    n = max(mol.GetNumAtoms() for mol in mols)
    e = max(1, *(mol.GetNumBonds() for mol in mols))
    distance = np.full((len(mols), n, n), _FAR)
    label = np.zeros((len(mols), n), dtype=np.uint64)
    degree = np.zeros((len(mols), n), dtype=np.uint64)
    order = np.zeros((len(mols), e), dtype=np.uint64)
    bond_distance = np.full((len(mols), n, e), _FAR)
    for k, mol in enumerate(mols):
        m = mol.GetNumAtoms()
        between = np.minimum(Chem.GetDistanceMatrix(mol), _FAR).astype(np.int64)
        distance[k, :m, :m] = between
        label[k, :m] = [_label(atom.GetSymbol()) for atom in mol.GetAtoms()]
        degree[k, :m] = (between == 1).sum(1)
        bonds = [
            (bond.GetBeginAtomIdx(), bond.GetEndAtomIdx(), int(bond.GetBondTypeAsDouble()))
            for bond in mol.GetBonds()
        ]
        if bonds:
            start, end, orders = np.array(bonds).T
            order[k, : len(bonds)] = [_label(f"bond {o}") for o in orders.tolist()]
            bond_distance[k, :m, : len(bonds)] = np.minimum(between[:, start], between[:, end])
    return distance, _combine(label, degree), _combine(order, 2), bond_distance


def _balls(
    distance: NDArray[np.int64], atom: Uint64, bond: Uint64, bond_distance: NDArray[np.int64]
) -> tuple[Uint64, NDArray[np.bool_]]:
    """Codes of the balls of radius R = 0, 2, 4, 6, 8 around every atom (B, N, 5), and which exist.

    A level's code is that of the multiset of its vertices (a sum of scattered hashes); a ball's
    code is that of the sequence of levels 0..R: atoms on the even levels, bonds on the odd.
    """
    code = np.zeros(distance.shape[:2], dtype=np.uint64)
    codes, exists = [], []
    for level in range(LEVELS):
        here = distance == level
        members = np.where(here, _mix(atom)[:, None, :], np.uint64(0)).sum(-1, dtype=np.uint64)
        code = _combine(code, members, 2 * level)
        codes.append(code)
        exists.append(here.any(-1))
        between = bond_distance == level
        members = np.where(between, _mix(bond)[:, None, :], np.uint64(0)).sum(-1, dtype=np.uint64)
        code = _combine(code, members, 2 * level + 1)
    return np.stack(codes, -1), np.stack(exists, -1)


def _pairs(
    distance: NDArray[np.int64], codes: Uint64, exists: NDArray[np.bool_]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Every feature of every ordered pair of atoms: molecule, block (D, R) and bucket."""
    molecule, v, u = np.nonzero(distance < LEVELS)
    apart = distance[molecule, v, u]
    found = []
    for radius in range(LEVELS):
        both = exists[molecule, v, radius] & exists[molecule, u, radius]
        mol, d = molecule[both], apart[both]
        a, b = codes[mol, v[both], radius], codes[mol, u[both], radius]
        block = d * LEVELS + radius
        where = block.astype(np.uint64)
        pair = _combine(np.minimum(a, b), np.maximum(a, b), where, 4)
        half = _combine(b, where, 3)  # the neighbour alone, whatever stands at the centre
        for feature in (pair, half):
            found.append((mol, block, (feature % np.uint64(BUCKETS)).astype(np.int64)))
    return tuple(np.concatenate(column) for column in zip(*found, strict=True))  # type: ignore[return-value]


def _normalised(
    molecule: NDArray[np.int64], block: NDArray[np.int64], bucket: NDArray[np.int64], count: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Count, scale each block to unit norm, merge the blocks, scale each vector to unit norm."""
    blocks = LEVELS * LEVELS
    # Sorted by molecule, bucket, block, so that in a shared bucket the last block comes last.
    key, counts = np.unique((molecule * BUCKETS + bucket) * blocks + block, return_counts=True)
    owner = key // (BUCKETS * blocks) * blocks + key % blocks
    norm = np.sqrt(np.bincount(owner, weights=counts.astype(float) ** 2, minlength=count * blocks))
    value = counts / norm[owner]
    place = key // blocks
    last = np.append(place[1:] != place[:-1], True)  # a collision between blocks overwrites
    place, value = place[last], value[last]
    molecule, bucket = place // BUCKETS, place % BUCKETS
    length = np.sqrt(np.bincount(molecule, weights=value**2, minlength=count))
    return molecule, bucket, value / length[molecule]
