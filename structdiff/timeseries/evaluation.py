"""Every use of one trained model, scored on series whose ends are known.

The four tests of the TSDiff paper (Kollovieh et al. 2023, section 5) from one call and one model:
forecasting beside what is free, forecasting with half of the context hidden, refinement of other
forecasts, and forecasters trained on its synthetic windows. The score throughout is the field's
CRPS, :func:`~structdiff.timeseries.metrics.mean_weighted_quantile_loss`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import copy
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeAlias, get_args

import numpy as np
import pandas as pd

from structdiff.arguments import whole
from structdiff.errors import StructDiffError
from structdiff.timeseries._arrays import Array
from structdiff.timeseries._scored import SCORE, Entries, Rows
from structdiff.timeseries.baselines import last_value, random_walk_paths, seasonal_naive
from structdiff.timeseries.downstream import Downstream, downstream_paths
from structdiff.timeseries.frames import Panel
from structdiff.timeseries.metrics import evaluate_forecasts
from structdiff.timeseries.missing import SCENARIOS, Scenario, hide
from structdiff.timeseries.refining import Refinement, base_forecasts
from structdiff.timeseries.sampling import series_seeds
from structdiff.timeseries.season import seasonality_of
from structdiff.timeseries.synthetic import linear_predictive_score, real_windows

if TYPE_CHECKING:
    from structdiff.timeseries.tsdiff import TSDiff

__all__ = ["BASES", "REFINEMENTS", "Base", "evaluate"]

Base: TypeAlias = "str | pd.DataFrame | Callable[[Array, int], Any]"
"""A forecast to refine: a name of :data:`BASE_FORECASTERS`, a frame of forecasts as
:meth:`TSDiff.refine` takes it, or a function of a history (T,) and a horizon that gives points (h,)
or paths (S, h)."""

#: What refinement starts from by default: label -> base.
BASES: Mapping[str, Base] = MappingProxyType({"seasonal naive": "seasonal_naive"})
BASE_FORECASTERS = ("seasonal_naive", "last_value")
#: How by default: label -> refinement.
REFINEMENTS: Mapping[str, Refinement] = MappingProxyType({"after": Refinement()})

_WALK = 250
"""Last points whose increments the random walk takes: a year of business days."""
_DRAWS = 3
"""Sets of real windows that the reference is averaged over; one scatters by a few percent."""


def evaluate(
    model: TSDiff,
    df: Any,
    *,
    h: int | None = None,
    n_windows: int = 1,
    step_size: int | None = None,
    n_samples: int | None = None,
    scenarios: Sequence[Scenario] = SCENARIOS,
    hidden: int | None = None,
    refine: Mapping[str, Base] | None = BASES,
    refinements: Mapping[str, Refinement] = REFINEMENTS,
    synthetic: int = 10_000,
    downstream: Sequence[Downstream] | Mapping[Downstream, Mapping[str, Any]] = (),
    seasonality: int | None = None,
    seed: int = 0,
    by_series: bool = False,
    progress: bool = True,
) -> pd.DataFrame:
    """Score forecasts, missing values, refinement and synthesis of a fitted model.

    Parameters
    ----------
    model
        A fitted model. Nothing is fitted again, so the last ``h + (n_windows - 1) * step_size``
        points of the series should not have been in its training frame.
    df
        Series with their ends: a frame as for :meth:`TSDiff.predict`, or a
        :class:`~structdiff.timeseries.Panel`.
    h
        Points ahead; None is the model's. Refinement and synthesis know no other.
    n_windows, step_size
        Cut-offs and the points between them (None is the horizon); the scores are over all.
    n_samples
        Sample paths; None is the model's.
    scenarios
        Which of the missing-value scenarios; see :mod:`structdiff.timeseries.missing`.
    hidden
        Points hidden in each context; None is half of the model's context.
    refine
        What to refine, label -> base; None or an empty mapping leaves refinement out.
    refinements
        How, label -> :class:`~structdiff.timeseries.Refinement`.
    synthetic
        Windows to draw for the synthesis tests; 0 leaves them out.
    downstream
        Neural forecasters to train on them besides the ridge (minutes each): names, or name ->
        settings of :func:`~structdiff.timeseries.downstream.downstream_paths`.
    seasonality
        Points of a season; None follows from the frequency (1 for integer time).
    seed
        Of everything that is drawn.
    by_series
        Rows for each series, in a column ``series``, in place of one over all of them. A
        forecaster trained on windows has no series of its own: synthesis stays one row.
    progress
        Show progress bars.

    Returns
    -------
    pandas.DataFrame
        Columns ``task``, ``variant``; the scores of
        :func:`~structdiff.timeseries.metrics.evaluate_forecasts`; ``ratio``, ``gain``,
        ``evaluations`` and ``seconds``. Rows:

        - ``forecast``: ``full`` (the model), ``seasonal naive`` and ``random walk`` (normal, the
          last 250 increments). ``ratio`` is the CRPS over that of ``full``.
        - ``missing``: a row for each scenario, ``ratio`` likewise.
        - ``refine``: ``<base>/before`` and a row ``<base>/<refinement>`` for each; ``gain`` is the
          share of the base's CRPS that refinement takes away, negative where it adds to it.
        - ``synthesis``: ``ridge`` (the linear predictive score) and ``ridge-real``, the same
          trained on as many real windows (mean over three draws of them), then ``deepar`` ... with
          theirs. ``ratio`` is the CRPS over that of the real windows.

        ``evaluations`` counts forward passes of the network for each path, gradients not counted;
        ``seconds`` is the wall time of the row.

    Raises
    ------
    StructDiffError
        If the model is not fitted, no series or another frequency is given, a series is too short,
        an option is unknown, or ``h`` is not the model's while refinement or synthesis is asked
        for.
    """
    if df is None:
        raise StructDiffError(
            "evaluation needs series with ends that the model was not fitted to: pass them as df "
            "(the training frame itself, if that is meant)"
        )
    model = copy(model)  # shares what is trained; the caller's estimator keeps its settings
    model.progress = progress
    steps, paths = model._horizon(h), model._paths(n_samples)
    panel = df if isinstance(df, Panel) else model.panel_of(df)
    trained = downstream if isinstance(downstream, Mapping) else {name: {} for name in downstream}
    bases = dict(refine or {})
    _check_names(scenarios, bases, refinements, trained)
    _check_numbers(model, panel, steps, bool(bases), synthetic, bool(trained), seed)
    season = (
        seasonality_of(panel.freq) if seasonality is None else whole("seasonality", seasonality)
    )
    entries = Entries(panel, steps, n_windows, step_size, season, by_series)
    rows = Rows(model.denoiser_.network, by_series, progress)
    tests = _Tests(model, entries, rows, paths, int(seed))
    tests.forecasts()
    for scenario in scenarios:
        tests.missing(scenario, hidden)
    for label, base in bases.items():
        tests.refinement(label, base, refinements)
    if synthetic:
        tests.synthesis(int(synthetic), trained)
    return rows.table()


class _Tests:
    """The tests of one evaluation: a model, what it is scored against, and the rows so far."""

    def __init__(self, model: TSDiff, entries: Entries, rows: Rows, paths: int, seed: int) -> None:
        self.model, self.entries, self.rows = model, entries, rows
        self.paths, self.seed = paths, seed
        self.drawn = len(entries) * paths
        self.full: Array = np.full(1, np.nan)

    def forecasts(self) -> None:
        """The model with the whole context, and what costs nothing."""
        entries, rows = self.entries, self.rows
        with rows.measured("forecast", "full", self.drawn) as row:
            row.paths = self._sampled(entries.known)
        self.full = entries.crps(row.paths)
        rows.add(row, entries.table(row.paths), ratio=1.0)

        def naive(history: Array, entry: int) -> Array:
            return seasonal_naive(history, entries.h, entries.season)[None]

        def walk(history: Array, entry: int) -> Array:
            own = self._key(entry)
            return random_walk_paths(history, entries.h, self.paths, window=_WALK, seed=own)

        for name, method in {"seasonal naive": naive, "random walk": walk}.items():
            with rows.measured("forecast", name, self.drawn) as row:
                row.paths = np.stack([method(y, i) for i, y in enumerate(entries.history)])
            rows.add(row, entries.table(row.paths), ratio=self._ratio(row.paths))

    def missing(self, scenario: Scenario, hidden: int | None) -> None:
        """The model with part of the context hidden."""
        context, known = self.model.spec_.context, self.entries.known
        with self.rows.measured("missing", scenario, self.drawn) as row:
            row.paths = self._sampled(
                [hide(panel, scenario, context, hidden, self.seed) for panel in known]
            )
        self.rows.add(row, self.entries.table(row.paths), ratio=self._ratio(row.paths))

    def refinement(self, label: str, base: Base, refinements: Mapping[str, Refinement]) -> None:
        """A base forecast before and after each refinement."""
        entries, rows = self.entries, self.rows
        with rows.measured("refine", f"{label}/before", self.drawn) as row:
            starts = [self._base(label, base, known) for known in entries.known]
            row.paths = np.stack([np.atleast_2d(y) for part in starts for y in part])
        before = entries.crps(row.paths)
        rows.add(row, entries.table(row.paths))
        for name, how in refinements.items():
            with rows.measured("refine", f"{label}/{name}", self.drawn) as row:
                refined = [
                    self.model.refined_paths(known, start, how, self.paths, self.seed + number)
                    for number, (known, start) in enumerate(zip(entries.known, starts, strict=True))
                ]
                row.paths = np.stack([y for part in refined for y in part])
            with np.errstate(divide="ignore", invalid="ignore"):
                gain = 1 - entries.crps(row.paths) / before
            rows.add(row, entries.table(row.paths), gain=gain)

    def synthesis(self, n: int, trained: Mapping[Downstream, Mapping[str, Any]]) -> None:
        """Forecasters trained on drawn windows and, as the reference, on real ones."""
        spec, entries, rows = self.model.spec_, self.entries, self.rows
        tests = entries.windows(spec.context)
        # Real windows come from where the model learned; else from before the first cut-off.
        source = getattr(self.model, "panel_", entries.known[0])
        real = [
            real_windows(source, spec.context, spec.horizon, n, self.seed + k)
            for k in range(_DRAWS)
        ]
        with rows.measured("synthesis", "ridge", n) as row:
            drawn = self.model.synthetic_windows(n, self.seed)
            score = linear_predictive_score(drawn, tests, spec.context)
        with rows.measured("synthesis", "ridge-real", n) as other:
            each = [linear_predictive_score(windows, tests, spec.context) for windows in real]
        reference = float(np.mean(each))
        # The ridge gives points: of a point the CRPS is ND.
        for one, value in ((row, score), (other, reference)):
            rows.add(one, {SCORE: value, "ND": value}, ratio=value / reference)
        shared = {
            "seasonality": entries.season,
            "n_samples": self.paths,
            "seed": self.seed,
            "progress": self.model.progress,
        }
        for name, settings in trained.items():
            options: dict[str, Any] = {**shared, **settings}
            scored = []
            for label, windows in ((str(name), drawn), (f"{name}-real", real[0])):
                with rows.measured("synthesis", label, n) as row:
                    row.paths = downstream_paths(windows, tests, spec.context, name, **options)
                given = (row.paths, entries.targets, entries.history, entries.season)
                scored.append(
                    (row, {str(k): float(v) for k, v in evaluate_forecasts(*given).items()})
                )
            for row, scores in scored:
                rows.add(row, scores, ratio=scores[SCORE] / scored[1][1][SCORE])

    def _sampled(self, panels: Sequence[Panel]) -> Array:
        """Forecasts from every cut-off, (N, S, h); each has randomness of its own."""
        drawn = [
            self.model.panel_paths(panel, self.entries.h, self.paths, self.seed + number)
            for number, panel in enumerate(panels)
        ]
        return np.stack([y for part in drawn for y in part])

    def _ratio(self, paths: Array) -> Array:
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio: Array = self.entries.crps(paths) / self.full
        return ratio

    def _key(self, entry: int) -> int:
        """A seed that follows the series and the cut-off, not their order."""
        number = entry // len(self.entries.known[0])
        return int(series_seeds(self.seed + number, self.entries.ids[entry], 1, "random walk"))

    def _base(self, label: str, base: Base, known: Panel) -> list[Array]:
        """Points or paths of every series that a refinement begins with."""
        h = self.entries.h
        if isinstance(base, pd.DataFrame):
            if len(self.entries.known) > 1:
                raise StructDiffError(
                    f"base {label!r}: a frame holds forecasts from one cut-off, n_windows is "
                    f"{len(self.entries.known)}; pass a function of history and horizon"
                )
            return base_forecasts(known, base, h, self.model, None)
        if base == "seasonal_naive":
            return [seasonal_naive(y, h, self.entries.season) for y in known.values]
        if base == "last_value":
            return [last_value(y, h) for y in known.values]
        if not callable(base):
            raise StructDiffError(
                f"base {label!r} is {type(base).__name__}; it is a name, a frame of forecasts, or "
                "a function of history and horizon"
            )
        made = [np.asarray(base(y.copy(), h), dtype=np.float64) for y in known.values]
        for i, y in enumerate(made):
            if y.ndim not in (1, 2) or y.shape[-1] != h or not np.isfinite(y).all():
                raise StructDiffError(
                    f"base {label!r}, {known.label(i)}: finite points ({h},) or paths (S, {h}) "
                    f"are needed, got the shape {y.shape}"
                )
        return made


def _check_names(
    scenarios: Sequence[str],
    bases: Mapping[str, Base],
    refinements: Mapping[str, Refinement],
    trained: Mapping[Downstream, Any],
) -> None:
    """Refuse before the first minute is spent."""
    known: tuple[tuple[str, Sequence[str], tuple[str, ...]], ...] = (
        ("scenario", scenarios, SCENARIOS),
        ("base", [base for base in bases.values() if isinstance(base, str)], BASE_FORECASTERS),
        ("downstream forecaster", list(trained), get_args(Downstream)),
    )
    for what, asked, allowed in known:
        for name in asked:
            if name not in allowed:
                raise StructDiffError(f"{what} {name!r} is not one of {', '.join(allowed)}")
    if bases and (not refinements or "before" in refinements):
        raise StructDiffError(
            "refinements maps labels (not 'before', which is the base itself) to Refinement "
            "objects; refine=None leaves refinement out"
        )


def _check_numbers(
    model: TSDiff,
    panel: Panel,
    h: int,
    refines: bool,
    synthetic: int,
    trains: bool,
    seed: int,
) -> None:
    if panel.freq != model.freq_:
        raise StructDiffError(
            f"the series have the frequency {panel.freq!r}, the model was fitted to {model.freq_!r}"
        )
    if isinstance(seed, bool) or int(seed) != seed or seed < 0:
        raise StructDiffError(f"seed={seed}: a seed is a whole number of at least 0")
    if synthetic:
        whole("synthetic", synthetic)
    elif trains:
        raise StructDiffError("downstream forecasters need windows to train on: synthetic is 0")
    own = model.spec_.horizon
    if (refines or synthetic) and h != own:
        raise StructDiffError(
            f"refinement and synthesis are of the model's own horizon, {own}, not h={h}: pass "
            "refine=None, synthetic=0"
        )
