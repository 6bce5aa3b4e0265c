"""What a fitted model of windows is good for besides forecasting: the further methods of TSDiff."""

from __future__ import annotations

from collections.abc import Hashable
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from scipy.spatial import cKDTree
from tqdm import tqdm

from structdiff.arguments import whole
from structdiff.errors import StructDiffError
from structdiff.timeseries.forecaster import Forecaster
from structdiff.timeseries.forecasting import (
    MODEL,
    as_long,
    check_levels,
    check_quantiles,
    cutoffs,
    forecast_columns,
    plain,
    with_cutoff,
)
from structdiff.timeseries.frames import Panel
from structdiff.timeseries.imputation import filled_columns, impute_series
from structdiff.timeseries.metrics import evaluate_forecasts
from structdiff.timeseries.refining import Refinement, base_forecasts
from structdiff.timeseries.sampling import ROWS, series_seeds
from structdiff.timeseries.season import seasonality_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Array = npt.NDArray[np.float64]


class SeriesUses(Forecaster):
    """The further methods over a trained model."""

    levels_: Array
    refinement_time_: float

    # --- evaluation --------------------------------------------------------------------------
    def cross_validation(
        self,
        df: Any = None,
        n_windows: int = 1,
        step_size: int | None = None,
        h: int | None = None,
        level: Any = None,
        quantiles: Any = None,
    ) -> pd.DataFrame:
        """Forecasts from several cut-offs beside what came true; the model is not fitted again.

        Parameters
        ----------
        df, h, level, quantiles
            As for :meth:`predict`.
        n_windows
            Cut-offs.
        step_size
            Points between them; None is the horizon.

        Returns
        -------
        DataFrame
            Columns id, time, ``cutoff``, value, ``TSDiff`` ...; a wide frame has the cut-off as an
            outer index level.
        """
        panel, steps, parts = self.panel_of(df), self._horizon(h), []
        for left in cutoffs(panel, steps, n_windows, step_size):
            known = panel.cut(left)
            shown = panel if left == steps else panel.cut(left - steps)
            truth = shown.tail(steps)
            columns = forecast_columns(self.panel_paths(known, steps), level, quantiles)
            frame = panel.restore({panel.target: truth.values, **columns}, truth.times)
            parts.append(with_cutoff(pd.DataFrame(frame), known, self.time_col))
        numbered = isinstance(parts[0].index, pd.RangeIndex)  # else it holds ids or times
        return pd.concat(parts, ignore_index=numbered)

    def score(self, df: Any, metric: str = "crps", h: int | None = None) -> float:
        """Score of forecasts of the last ``h`` points of every series; lower is better.

        Parameters
        ----------
        df
            Series whose ends are known.
        metric
            ``"crps"`` (mean weighted quantile loss), or a name of
            :func:`~structdiff.timeseries.metrics.evaluate_forecasts`.
        h
            None is the model's.
        """
        panel, steps = self.panel_of(df), self._horizon(h)
        known, truth = panel.cut(steps), panel.tail(steps)
        paths = np.stack(self.panel_paths(known, steps))
        season = seasonality_of(panel.freq)
        scores = evaluate_forecasts(paths, np.stack(truth.values), known.values, season)
        name = "mean_wQuantileLoss" if metric == "crps" else metric
        if name not in scores.index:
            raise StructDiffError(
                f"unknown metric {metric!r}: choose crps or one of {', '.join(scores.index)}"
            )
        return float(scores[name])

    # --- filling and synthesis ---------------------------------------------------------------
    def impute(self, df: Any = None, level: Any = None, n_samples: int | None = None) -> Any:
        """Fill missing values; what is observed stays bit for bit.

        Parameters
        ----------
        df
            Series with NaN; absent timestamps are inserted where the model has ``fill_gaps``.
        level
            Percents of central intervals, as further columns; an observed value is its own.
        n_samples
            Paths per gap, of which the median is taken.

        Returns
        -------
        DataFrame or Series
            The series in the shape of the frame, without NaN.
        """
        levels, panel = check_levels(level), self.panel_of(df)
        sampler, paths = self.window_sampler(), self._paths(n_samples)
        seed, columns = self.sampling_seed(), {}
        numbers = tqdm(range(len(panel)), "imputing", unit="series", disable=not self.progress)
        filled = [impute_series(sampler, panel, i, paths, seed) for i in numbers]
        for name, values in filled_columns(panel, filled, levels).items():
            columns[panel.target if name == MODEL else name] = values
        return panel.restore(columns)

    def refine(
        self,
        df: Any,
        forecasts: Any,
        *,
        column: Hashable | None = None,
        refinement: Refinement | None = None,
        level: Any = None,
        quantiles: Any = None,
        n_samples: int | None = None,
    ) -> Any:
        """Polish another model's forecasts by the density that this one has learned.

        Parameters
        ----------
        df
            The series up to the forecasts; None is the training frame.
        forecasts
            The base, for the ``h`` points after each series: a long frame with id, time and one
            value column, with a column ``sample`` besides for sample paths; or a wide frame.
        column
            Which column of a long frame it is, where there are several.
        refinement
            How; None is 20 Langevin steps with the squared regulariser.
        level, quantiles
            As for :meth:`predict`.
        n_samples
            Paths that a point forecast is made into.

        Returns
        -------
        DataFrame
            As of :meth:`predict`.

        Raises
        ------
        StructDiffError
            If a series has no forecast, or one of another horizon or start.
        """
        check_levels(level), check_quantiles(quantiles)
        panel = self.panel_of(df)
        h = self._horizon(None)
        base = base_forecasts(panel, forecasts, h, self, column)
        columns = forecast_columns(
            self.refined_paths(panel, base, refinement, n_samples), level, quantiles
        )
        return panel.restore(columns, panel.future(h))

    def refined_paths(
        self,
        panel: Panel,
        base: list[Array],
        refinement: Refinement | None = None,
        n_samples: int | None = None,
        seed: int | None = None,
    ) -> list[Array]:
        """Refined paths (S, h) of base paths (S, h) or points (h,) per series."""
        sampler, chosen = self.window_sampler(), refinement or Refinement()
        seed, paths = self.sampling_seed(seed), self._paths(n_samples)
        numbers = tqdm(range(len(panel)), "refining", unit="series", disable=not self.progress)
        return [
            chosen(sampler, panel, i, base[i], paths, self.refinement_time_, seed) for i in numbers
        ]

    def synthesize(
        self, n: int, random_state: int | None = None, *, scaled: bool = False
    ) -> pd.DataFrame:
        """Draw new windows of series.

        Parameters
        ----------
        n
            How many.
        random_state
            Seed; None is the estimator's, or fresh randomness without one.
        scaled
            Leave the windows as the network makes them; else each gets the shift and scale of the
            training window whose lowest and highest scaled values are nearest to its own.

        Returns
        -------
        DataFrame
            Long, ``context + h`` points of each series ``synthetic-0``, ``synthetic-1`` ..., at
            integer times from 0.
        """
        count, seed = whole("n", n), self.sampling_seed(random_state)
        windows = self.synthetic_windows(count, seed, scaled=scaled)
        length = windows.shape[1]
        names = [f"synthetic-{i}" for i in range(count)]
        return pd.DataFrame(
            {
                self.id_col: np.repeat(names, length),
                self.time_col: np.tile(np.arange(length), count),
                self.target_col: windows.reshape(-1),
            }
        )

    def synthetic_windows(self, n: int, seed: int | None = None, *, scaled: bool = False) -> Array:
        """The windows of :meth:`synthesize` as an array (n, L)."""
        sampler, chosen = self.window_sampler(), self.sampling_seed(seed)
        seeds = series_seeds(chosen, None, n, "synthesize")
        parts = []
        with tqdm(total=n, desc="sampling", unit="window", disable=not self.progress) as bar:
            for start in range(0, n, ROWS):
                parts.append(sampler.free(seeds[start : start + ROWS])[:, :, 0].double().cpu())
                bar.update(len(parts[-1]))
        windows: Array = torch.cat(parts).numpy()
        if scaled:
            return windows
        return in_units(windows, self.levels_)

    # --- pictures ----------------------------------------------------------------------------
    def plot(
        self,
        forecasts: Any = None,
        df: Any = None,
        truth: Any = None,
        *,
        level: Any = (50, 80, 95),
        **options: Any,
    ) -> Figure:
        """Draw history, median and fans of intervals, one Axes for each series.

        Parameters
        ----------
        forecasts
            Result of :meth:`predict` or :meth:`cross_validation`; None forecasts ``df``.
        df
            The history; None is the training frame.
        truth
            What came true, in the shape of the history or as a long frame.
        level
            Intervals of the forecast that is made where none is given.
        options
            Of :func:`~structdiff.timeseries.plots.plot_panel`: ``ids``, ``last`` ...
        """
        from structdiff.timeseries.plots import plot_panel

        panel = self.panel_of(df)
        frame = self.predict(df, level=level) if forecasts is None else forecasts
        names: dict[str, Any] = {
            "id_col": self.id_col,
            "time_col": self.time_col,
            "target_col": self.target_col,
        }
        history = plain(panel, **names).restore({self.target_col: panel.values})
        if truth is not None and not set(names.values()) <= set(getattr(truth, "columns", ())):
            # A wide frame of values looks like one of medians.
            truth = as_long(panel, truth, **names).rename(columns={MODEL: self.target_col})
        return plot_panel(as_long(panel, frame, **names), history, truth, **names, **options)


def in_units(windows: Array, levels: Array) -> Array:
    """Scaled windows (n, L) in units of the training data.

    Shape and level go together in most data: with levels drawn at random many a synthetic window
    of positive series would be negative.

    Parameters
    ----------
    windows
        As the network makes them.
    levels
        Shift, scale, lowest and highest scaled value of training windows, (N, 4).
    """
    ends = levels[:, 2:]
    width = np.maximum(ends.std(axis=0), 1e-12)
    own = np.stack((windows.min(axis=1), windows.max(axis=1)), axis=1)
    nearest = cKDTree(ends / width).query(own / width)[1]
    shift, scale = levels[nearest, :1], levels[nearest, 1:2]
    return windows * scale + shift
