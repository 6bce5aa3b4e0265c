r"""A curriculum over noise levels: from easy denoising tasks (much noise) to hard ones (little).

The noise levels are split into N clusters, :math:`C_1` the hardest (next to the data) to
:math:`C_N` the easiest. In stage n training draws from :math:`C_{N-n+1} \cup \dots \cup C_N` only;
when the loss has not improved for ``patience`` steps the next cluster is added, and in stage N all
of them are there to the end (Kim et al. 2025, Denoising task difficulty-based curriculum). Because
the clusters are neighbours, each stage is the law above one time:

.. math:: F_n^{-1}(u) = F^{-1}(c_n + u (1 - c_n)), \qquad c_n = F(\text{lower end of } C_{N-n+1})
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, TypeAlias, get_args

import torch
from torch import Tensor

from structdiff.errors import CheckpointError, StructDiffError
from structdiff.objectives.time_laws import (
    AnyTimeLaw,
    Importance,
    SystemTimeLaw,
    TimeLaw,
    Uniform,
    bisect,
    law_under,
)
from structdiff.processes.system import System

Clusters: TypeAlias = Literal["quantile", "time", "log-snr"]
"""What the clusters have equal shares of: the law's draws, the time, or the log-SNR."""


class Curriculum:
    """A time law that decorates another: draws above a time that falls as training goes on.

    Training tells it every step's loss through ``Objective.update``. The loss is smoothed and
    compared within a stage only, because its level jumps when a cluster is added.

    Parameters
    ----------
    law
        The law of the last stage; uniform by default.
    clusters
        N; stages are as many.
    patience
        Steps without improvement after which a stage ends.
    split
        ``"quantile"`` gives each cluster an equal share of the law's draws, ``"time"`` of the time
        (the paper's), ``"log-snr"`` of the log-SNR of the moving components.
    smoothing
        Decay of the moving average of the loss; 0 compares the losses as they are.

    Raises
    ------
    StructDiffError
        If a number is out of its range or the split is unknown.
    """

    def __init__(
        self,
        law: AnyTimeLaw | None = None,
        clusters: int = 20,
        patience: int = 200,
        split: Clusters = "quantile",
        smoothing: float = 0.99,
    ) -> None:
        if clusters < 1 or patience < 1:
            raise StructDiffError(
                f"clusters and patience must be at least 1, got {clusters} and {patience}"
            )
        if not 0 <= smoothing < 1:
            raise StructDiffError(f"smoothing must lie in [0, 1), got {smoothing}")
        if split not in get_args(Clusters):
            raise StructDiffError(
                f"unknown split {split!r}: choose one of {', '.join(get_args(Clusters))}"
            )
        self.law: AnyTimeLaw = Uniform() if law is None else law
        self.clusters, self.patience = clusters, patience
        self.split: Clusters = split
        self.smoothing = smoothing
        self.stage = 1
        """Clusters that training draws from: 1 to ``clusters``."""
        self._enter_stage(1)

    def __repr__(self) -> str:
        return f"Curriculum({self.law}, stage {self.stage} of {self.clusters})"

    # --- the law -----------------------------------------------------------------------------
    def under(self, system: System) -> TimeLaw:
        """The curriculum over a system's times; follows the stage as it advances."""
        edges = law_under(Importance(), system) if self.split == "log-snr" else None
        return _Staged(self, law_under(self.law, system), edges)

    def quantile(self, u: Tensor) -> Tensor:
        """The same without a system, where law and split need none."""
        if self.split == "log-snr" or isinstance(self.law, SystemTimeLaw):
            raise StructDiffError(f"{self} needs a system: bind it with law_under(law, system)")
        return _Staged(self, self.law, None).quantile(u)

    # --- pacing ------------------------------------------------------------------------------
    def _enter_stage(self, stage: int) -> None:
        self.stage = stage
        self._best, self._waited = math.inf, 0
        self._smoothed, self._seen = 0.0, 0

    def update(self, loss: float) -> None:
        """Take note of one training step's loss; may open the next stage."""
        if self.stage == self.clusters:
            return
        self._seen += 1
        # The mean of a stage's first losses, and a moving average of a constant is the constant.
        share = (1 - self.smoothing) / (1 - self.smoothing**self._seen)
        self._smoothed += (loss - self._smoothed) * (1.0 if self._seen == 1 else share)
        if self._smoothed < self._best:
            self._best, self._waited = self._smoothed, 0
        else:
            self._waited += 1
        if self._waited >= self.patience:
            self._enter_stage(self.stage + 1)

    # --- checkpoints -------------------------------------------------------------------------
    def _identity(self) -> dict[str, Any]:
        """What must be the same for a stored stage to mean the same times."""
        return {
            "law": repr(self.law),
            "clusters": self.clusters,
            "patience": self.patience,
            "split": self.split,
            "smoothing": self.smoothing,
        }

    def state_dict(self) -> dict[str, Any]:
        """Stage, counters and settings, plain values."""
        return {
            "stage": self.stage,
            "best": self._best,
            "waited": self._waited,
            "smoothed": self._smoothed,
            "seen": self._seen,
            **self._identity(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where :meth:`state_dict` was taken.

        Raises
        ------
        CheckpointError
            If the state is of a curriculum with other settings.
        """
        for name, value in self._identity().items():
            if state[name] != value:
                raise CheckpointError(
                    f"the run was started with a curriculum whose {name} is {state[name]}, not "
                    f"{value}: resume it with the same one, or choose another folder"
                )
        self.stage = state["stage"]
        self._best, self._waited = state["best"], state["waited"]
        self._smoothed, self._seen = state["smoothed"], state["seen"]


class _Staged:
    """The law above the lower end of the present stage."""

    def __init__(self, curriculum: Curriculum, law: TimeLaw, edges: TimeLaw | None) -> None:
        self.curriculum, self.law, self.edges = curriculum, law, edges
        self._below: tuple[int, float] = (0, 0.0)

    def quantile(self, u: Tensor) -> Tensor:
        below = self._share_below()
        return self.law.quantile(below + u * (1 - below))

    def _share_below(self) -> float:
        """Share of the law's draws below the present stage; computed once per stage."""
        stage, clusters = self.curriculum.stage, self.curriculum.clusters
        if self._below[0] != stage:
            place = torch.tensor((clusters - stage) / clusters, dtype=torch.float64)
            if self.curriculum.split != "quantile" and stage < clusters:
                edge = place if self.edges is None else self.edges.quantile(place)
                place = bisect(self.law.quantile, edge)
            self._below = stage, float(place)
        return self._below[1]
