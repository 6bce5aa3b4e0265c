"""From a trained denoiser to finished molecules, in batches packed by size.

Every molecule has its own noise seed and size, both functions of the random state and its number,
so a sample does not depend on batch size, on batch mates, or on how many others were asked for.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from structdiff.arguments import whole, whole_seed
from structdiff.denoisers import Denoiser
from structdiff.errors import StructDiffError
from structdiff.molecules.correction import BuiltMolecule, build_molecules
from structdiff.molecules.data import decode, graph_masks
from structdiff.molecules.models import ModelSpec
from structdiff.molecules.vocabulary import Vocabulary
from structdiff.noise import PerObjectNoise
from structdiff.samplers import SAMPLERS, Sampler, get_sampler
from structdiff.state import State

PUBLISHED = "published"
"""Name of the published GDSS scheme, with the settings of the checkpoint."""
BATCHES_PER_CHUNK = 4
"""Batches among which molecules are sorted by size; a chunk is what an interruption can lose."""


def choose_sampler(spec: ModelSpec, sampler: Any, steps: int | None) -> Sampler:
    """The sampler asked for; the model's recommended one where nothing is.

    Parameters
    ----------
    spec
        Holds the recommendation.
    sampler
        None, a name of :data:`structdiff.samplers.SAMPLERS`, ``"published"``, or a sampler.
    steps
        None is the recommended number.

    Raises
    ------
    StructDiffError
        If the name is unknown, or steps are given together with a sampler object.
    """
    if isinstance(sampler, Sampler):
        if steps is not None:
            raise StructDiffError("steps is part of the sampler object: leave one of them out")
        return sampler
    own = spec.sampler
    if sampler == PUBLISHED:
        return _published(spec, steps)
    name = own["name"] if sampler is None else sampler
    steps = own["steps"] if steps is None else steps
    if name not in SAMPLERS:
        known = [*SAMPLERS, *([PUBLISHED] if spec.network == "gdss" else [])]
        raise StructDiffError(f"unknown sampler {name!r}: choose one of {', '.join(known)}")
    return get_sampler(name, steps, **(own["options"] if is_own_sampler(spec, name) else {}))


def is_own_sampler(spec: ModelSpec, name: str) -> bool:
    """Whether a sampler runs with the model's own settings, which may change what it costs.

    The corrector's settings belong to the network, whichever scheme it corrects.
    """
    return name == spec.sampler["name"] or (spec.network == "gdss" and name in ("pc", "s4"))


def _published(spec: ModelSpec, steps: int | None) -> Sampler:
    """Reverse diffusion with a Langevin corrector, batch norms: 1,000 steps, 2,000 evaluations."""
    if spec.network != "gdss":
        raise StructDiffError(
            f"sampler {PUBLISHED!r} is the published scheme of GDSS networks; this model is a "
            f"{spec.network}: choose another sampler"
        )
    own = spec.sampler["options"]
    options = {"snr": own["snr"], "scale_eps": own["scale_eps"], "compat": "reference"}
    return get_sampler("pc", 1000 if steps is None else steps, **options)


def to_frame(built: list[BuiltMolecule]) -> pd.DataFrame:
    """Columns ``smiles``, ``valid`` (before correction) and ``corrected``."""
    return pd.DataFrame(
        {
            "smiles": pd.Series([m.smiles for m in built], dtype=str),
            "valid": pd.Series([m.valid for m in built], dtype=bool),
            "corrected": pd.Series([m.corrected for m in built], dtype=bool),
        }
    )


def sample_built(
    denoiser: Denoiser,
    sampler: Sampler,
    n: int,
    vocabulary: Vocabulary,
    node_counts: NDArray[np.integer[Any]],
    *,
    rule: str,
    batch_size: int,
    seed: int | None,
    progress: bool,
) -> Iterator[list[BuiltMolecule]]:
    """Yield chunks of built molecules, ``n`` in all, in order.

    Raises
    ------
    StructDiffError
        If n or batch_size is below 1, the seed is negative, or the law of sizes is empty.
    """
    n, batch_size = whole("n", n), whole("batch_size", batch_size)
    seed = whole_seed("random_state", seed)
    sizes, seeds = _plan(n, node_counts, seed)
    return _chunks(denoiser, sampler, sizes, seeds, vocabulary, rule, batch_size, progress)


def _plan(
    n: int, node_counts: NDArray[np.integer[Any]], seed: int | None
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Number of atoms and noise seed of every molecule; the first ones whatever n is."""
    counts = np.asarray(node_counts, dtype=float).copy()
    counts[0] = 0
    if not counts.sum():
        raise StructDiffError("the model's law of molecule sizes is empty: fit it on molecules")
    of_sizes, of_seeds = np.random.SeedSequence(seed).spawn(2)
    cumulative = np.cumsum(counts) / counts.sum()
    sizes = np.searchsorted(cumulative, np.random.default_rng(of_sizes).random(n), side="right")
    return sizes, np.random.default_rng(of_seeds).integers(2**63 - 1, size=n)


def _chunks(
    denoiser: Denoiser,
    sampler: Sampler,
    sizes: NDArray[np.int64],
    seeds: NDArray[np.int64],
    vocabulary: Vocabulary,
    rule: str,
    batch_size: int,
    progress: bool,
) -> Iterator[list[BuiltMolecule]]:
    total = len(sizes)
    with tqdm(total=total, desc="sampling", unit="mol", disable=not progress) as bar:
        for start in range(0, total, BATCHES_PER_CHUNK * batch_size):
            numbers = np.arange(start, min(total, start + BATCHES_PER_CHUNK * batch_size))
            built: dict[int, BuiltMolecule] = {}
            for batch in _packed(numbers, sizes, batch_size):
                state = _sample_batch(denoiser, sampler, sizes[batch], seeds[batch], vocabulary)
                molecules = build_molecules(*decode(state, vocabulary, rule=rule), vocabulary)
                built |= dict(zip(batch.tolist(), molecules, strict=True))
                bar.update(len(batch))
            yield [built[k] for k in numbers.tolist()]


def _packed(
    numbers: NDArray[np.int64], sizes: NDArray[np.int64], batch_size: int
) -> Iterator[NDArray[np.int64]]:
    """Batches of molecules of similar size: less padding to compute."""
    by_size = numbers[np.argsort(sizes[numbers], kind="stable")]
    for start in range(0, len(by_size), batch_size):
        yield by_size[start : start + batch_size]


def _sample_batch(
    denoiser: Denoiser,
    sampler: Sampler,
    sizes: NDArray[np.int64],
    seeds: NDArray[np.int64],
    vocabulary: Vocabulary,
) -> State:
    device = next(denoiser.parameters()).device
    batch, n = len(sizes), int(sizes.max())
    masks = graph_masks(torch.from_numpy(sizes), n)
    empty = State(
        {"x": torch.zeros(batch, n, len(vocabulary)), "adj": torch.zeros(batch, n, n)}, masks
    ).to(device)
    object_seeds = torch.from_numpy(seeds).to(device)
    prior = denoiser.system.prior(empty, PerObjectNoise(object_seeds))
    return sampler(denoiser, prior, source=object_seeds)
