"""What an evaluation scores against, and the table that it fills."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from structdiff.timeseries._arrays import Array
from structdiff.timeseries.forecasting import cutoffs
from structdiff.timeseries.frames import Panel
from structdiff.timeseries.metrics import evaluate_each_series, evaluate_forecasts
from structdiff.timeseries.synthetic import last_windows

SCORE = "mean_wQuantileLoss"


class Entries:
    """Series up to every cut-off, the earliest first, and what came after: N entries.

    Parameters
    ----------
    panel
        Series with their ends.
    h, n_windows, step_size
        As for :func:`~structdiff.timeseries.forecasting.cutoffs`.
    season
        Points of a season.
    by_series
        Whether scores are of each series.
    """

    def __init__(
        self,
        panel: Panel,
        h: int,
        n_windows: int,
        step_size: int | None,
        season: int,
        by_series: bool,
    ) -> None:
        lefts = list(cutoffs(panel, h, n_windows, step_size))
        self.h, self.season, self.by_series = h, season, by_series
        self.known = [panel.cut(n) for n in lefts]
        self.ends = [panel if n == h else panel.cut(n - h) for n in lefts]
        self.targets = np.stack([y for end in self.ends for y in end.tail(h).values])
        self.history = [y for known in self.known for y in known.values]
        self.ids = [name for known in self.known for name in known.ids]

    def __len__(self) -> int:
        return len(self.history)

    def windows(self, context: int) -> Array:
        """The test windows, (N, context + h)."""
        return np.concatenate([last_windows(end, context, self.h) for end in self.ends])

    def table(self, paths: Array) -> pd.DataFrame:
        """Every score of paths (N, S, h): one row, or one for each series."""
        given = (paths, self.targets, self.history, self.season)
        if self.by_series:
            return evaluate_each_series(*given, ids=self.ids)
        return evaluate_forecasts(*given).to_frame().T

    def crps(self, paths: Array) -> Array:
        """The CRPS of the table's rows."""
        return np.asarray(self.table(paths)[SCORE], dtype=np.float64)


@dataclass
class Row:
    """One line of the table, or one for each series."""

    task: str
    variant: str
    seconds: float = 0.0
    evaluations: float = 0.0
    paths: Array = field(default_factory=lambda: np.empty((0, 0, 0)))


class Rows:
    """The table of an evaluation.

    Parameters
    ----------
    network
        Whose forward passes are counted.
    by_series
        Whether there is a column ``series``.
    progress
        Say what begins.
    """

    def __init__(self, network: torch.nn.Module, by_series: bool, progress: bool) -> None:
        self.network, self.by_series, self.progress = network, by_series, progress
        self._tables: list[pd.DataFrame] = []

    @contextmanager
    def measured(self, task: str, variant: str, windows: int) -> Iterator[Row]:
        """Time what happens inside, and count forward passes for each of so many windows."""
        row, passed = Row(task, variant), 0

        def count(module: torch.nn.Module, arguments: tuple[Any, ...]) -> None:
            nonlocal passed
            passed += int(arguments[0]["x"].shape[0])

        if self.progress:
            tqdm.write(f"{task}: {variant}", file=sys.stderr)  # results alone go to standard output
        start, hook = time.perf_counter(), self.network.register_forward_pre_hook(count)
        try:
            yield row
        finally:
            hook.remove()
        row.seconds, row.evaluations = time.perf_counter() - start, passed / windows

    def add(
        self,
        row: Row,
        scores: pd.DataFrame | Mapping[str, float],
        *,
        ratio: Any = np.nan,
        gain: Any = np.nan,
    ) -> None:
        """Add a measured row: a table of scores by series, or scores over all of them."""
        table = scores if isinstance(scores, pd.DataFrame) else pd.DataFrame([scores])
        own = self.by_series and isinstance(scores, pd.DataFrame)
        names: Sequence[Any] = list(table.index) if own else [None] * len(table)
        table = table.reset_index(drop=True)
        table.insert(0, "task", row.task)
        table.insert(1, "variant", row.variant)
        if self.by_series:
            table.insert(2, "series", pd.Series(names, dtype=object))
        table["ratio"], table["gain"] = ratio, gain
        table["evaluations"], table["seconds"] = row.evaluations, row.seconds
        self._tables.append(table)

    def table(self) -> pd.DataFrame:
        """All rows; scores that a row does not have are NaN."""
        columns = list(self._tables[0].columns)
        filled = [rows.reindex(columns=columns) for rows in self._tables]
        return pd.concat(filled, ignore_index=True)
