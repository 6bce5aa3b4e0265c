"""Batches in an order that is a function of (seed, epoch), so that training can stop anywhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from structdiff.errors import CheckpointError, StructDiffError
from structdiff.training.module import mix_seed


class ShuffledBatches:
    """An iterable of batches: each epoch a fresh permutation, split over ranks, resumable.

    :func:`~structdiff.training.fit` calls :meth:`share` once the processes know their ranks.

    Parameters
    ----------
    size
        Number of records.
    batch_size
        Records per batch and rank.
    make_batch
        From record numbers (B,) to what the training step takes, e.g. a state.
    seed
        Of the permutations.
    digest
        Of the records' content, where they can be told apart by one: a run is not resumed with as
        many others.
    rank, world_size
        This process among the processes that train together; every epoch all take equally many
        batches, and no record twice.

    Raises
    ------
    StructDiffError
        If there are fewer records than processes, or ``batch_size`` is below 1.
    """

    def __init__(
        self,
        size: int,
        batch_size: int,
        make_batch: Callable[[Tensor], object],
        *,
        seed: int = 0,
        digest: str = "",
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if batch_size < 1:
            raise StructDiffError(f"batch_size must be at least 1, got {batch_size}")
        self.size, self.make_batch, self.seed = size, make_batch, seed
        self._asked, self._digest = batch_size, digest
        self.position = 0
        """Batches this rank has handed out since the beginning of training."""
        self.share(rank, world_size)

    def share(self, rank: int, world_size: int) -> None:
        """Become the part of one process of several; before iteration begins."""
        if self.size < world_size:
            raise StructDiffError(
                f"{self.size} records cannot feed {world_size} processes: use fewer processes"
            )
        self.rank, self.world_size = rank, world_size
        self.batch_size = min(self._asked, self.size // world_size)

    def __len__(self) -> int:
        return self.size // (self.batch_size * self.world_size)

    def __iter__(self) -> Iterator[object]:
        epoch, start = divmod(self.position, len(self))
        generator = torch.Generator().manual_seed(mix_seed(self.seed, epoch))
        order = torch.randperm(self.size, generator=generator)[self.rank :: self.world_size]
        for number in range(start, len(self)):
            self.position += 1
            yield self.make_batch(order[number * self.batch_size :][: self.batch_size])

    def _identity(self) -> dict[str, int | str]:
        """What must be the same for a stored position to mean the same records."""
        return {
            "size": self.size,
            "batch_size": self.batch_size,
            "world_size": self.world_size,
            "seed": self.seed,
            "digest": self._digest,
        }

    def state_dict(self) -> dict[str, Any]:
        """Where the order stands; Lightning stores it with every checkpoint."""
        return {"position": self.position, **self._identity()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue at a stored position.

        Raises
        ------
        CheckpointError
            If the position was stored for other records, batches or processes.
        """
        for name, value in self._identity().items():
            if state.get(name, value) != value:
                raise CheckpointError(
                    f"the run was started with {name} = {state[name]}, not {value}: resume it with "
                    "the same records and settings, or choose another folder"
                )
        self.position = state["position"]
