"""Batches in an order that is a function of (seed, epoch), so that training can stop anywhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from structdiff.errors import StructDiffError
from structdiff.training.module import mix_seed


class ShuffledBatches:
    """An iterable of batches: each epoch a fresh permutation, split over ranks, resumable.

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
    rank, world_size
        This process among the processes that train together; every epoch all take equally many
        batches, and no record twice.

    Raises
    ------
    StructDiffError
        If there are fewer records than one batch per rank.
    """

    def __init__(
        self,
        size: int,
        batch_size: int,
        make_batch: Callable[[Tensor], object],
        *,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.size, self.make_batch, self.seed = size, make_batch, seed
        self.batch_size = min(batch_size, max(1, size // world_size))
        self.rank, self.world_size = rank, world_size
        self.position = 0
        """Batches this rank has handed out since the beginning of training."""
        if len(self) < 1:
            raise StructDiffError(
                f"{size} records cannot feed {world_size} processes: use fewer processes"
            )

    def __len__(self) -> int:
        return self.size // (self.batch_size * self.world_size)

    def __iter__(self) -> Iterator[object]:
        epoch, start = divmod(self.position, len(self))
        generator = torch.Generator().manual_seed(mix_seed(self.seed, epoch))
        order = torch.randperm(self.size, generator=generator)[self.rank :: self.world_size]
        for number in range(start, len(self)):
            self.position += 1
            yield self.make_batch(order[number * self.batch_size :][: self.batch_size])

    def state_dict(self) -> dict[str, int]:
        """Where the order stands; Lightning stores it with every checkpoint."""
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue at a stored position."""
        self.position = state["position"]
