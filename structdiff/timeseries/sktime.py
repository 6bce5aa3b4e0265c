"""TSDiff among sktime's forecasters.

>>> from structdiff.timeseries.sktime import TSDiffForecaster
>>> forecaster = TSDiffForecaster(random_state=0).fit(y)
>>> forecaster.predict(fh=range(1, 25))
>>> forecaster.predict_interval(fh=range(1, 25), coverage=[0.8, 0.95])

One series trains a model of its windows. A panel or a hierarchy trains one model on all of its
series, each forecast from its own end; the columns of a multivariate series train one model each.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import pandas as pd

from structdiff.timeseries.frames import Panel, read_panel
from structdiff.timeseries.scores import sample_quantiles
from structdiff.timeseries.tsdiff import TSDiff

try:
    from sktime.datatypes import update_data
    from sktime.forecasting.base import BaseForecaster, ForecastingHorizon
except ImportError as error:
    raise ImportError(
        "structdiff.timeseries.sktime needs sktime: pip install 'structdiff[sktime]'"
    ) from error

__all__ = ["TSDiffForecaster"]

Array = npt.NDArray[np.float64]
_HORIZON = 24
_OWN = ("h", "random_state")


class TSDiffForecaster(BaseForecaster):
    """A generative model of windows of series as an sktime forecaster.

    Point forecasts are medians; quantiles, intervals, variances and distributions are those of the
    sample paths. NaN is a missing value. After ``update`` with ``update_params=False`` forecasts
    start from the new end without training again; with ``update_params=True``, sktime's default,
    the model is trained anew on all it has seen.

    Parameters
    ----------
    h
        Horizon of the model, in points. None is the farthest point of the horizon given to
        ``fit``, 24 without one, and at most a third of the longest series. Farther points are
        reached by windows one after another.
    freq, fill_gaps, snap
        Of a DatetimeIndex, as for :class:`~structdiff.timeseries.TSDiff`; the frequency is that of
        the index, or inferred.
    context, lags, scaling, preset, kernel, hidden, blocks, state_size, network_settings
        Of the model.
    guidance, guidance_scale, sampler, steps, n_samples
        Of its forecasts.
    batch_size, max_steps, max_minutes, learning_rate, checkpoint_every, accelerator
        Of training.
    random_state
        Seeds weights, data order, noise and sample paths. None draws a seed when fitting, so that
        the forecasts, quantiles and intervals of a fitted forecaster agree.
    progress
        Show progress bars.

    Attributes
    ----------
    model_ : TSDiff
        The trained model.

    References
    ----------
    .. [1] Kollovieh et al., "Predict, Refine, Synthesize: Self-Guiding Diffusion Models for
       Probabilistic Time Series Forecasting", NeurIPS 2023.

    Examples
    --------
    >>> from sktime.datasets import load_airline
    >>> from structdiff.timeseries.sktime import TSDiffForecaster
    >>> y = load_airline()
    >>> forecaster = TSDiffForecaster(
    ...     h=12, hidden=8, max_steps=5, n_samples=10, random_state=0, progress=False
    ... )
    >>> y_pred = forecaster.fit(y).predict(fh=[1, 2, 3])
    """

    _tags: ClassVar[dict[str, Any]] = {
        "authors": ["the StructDiff authors"],
        "maintainers": ["the StructDiff authors"],
        "object_type": "forecaster",
        "capability:multivariate": False,
        "capability:exogenous": False,
        "capability:insample": False,
        "capability:pred_int": True,
        "capability:pred_int:insample": False,
        "capability:missing_values": True,
        "capability:unequal_length": True,
        "capability:update": True,
        "capability:random_state": True,
        "property:randomness": "derandomized",
        "requires-fh-in-fit": False,
        "X-y-must-have-same-index": False,
        "enforce_index_type": None,
        "y_inner_mtype": ["pd.DataFrame", "pd-multiindex", "pd_multiindex_hier"],
        "X_inner_mtype": ["pd.DataFrame", "pd-multiindex", "pd_multiindex_hier"],
    }

    # The forecaster keeps the series itself, in ``_cur_y``.
    _config: ClassVar[dict[str, Any]] = {"remember_data": False}
    _y = _X = None

    model_: TSDiff

    def __init__(
        self,
        h: int | None = None,
        freq: Any = None,
        fill_gaps: bool = False,
        snap: bool = False,
        context: int | None = None,
        lags: Any = "auto",
        scaling: str = "standard",
        preset: str | None = None,
        kernel: str = "s4d",
        hidden: int = 64,
        blocks: int = 3,
        state_size: int = 64,
        network_settings: dict[str, Any] | None = None,
        guidance: str | None = None,
        guidance_scale: float | None = None,
        sampler: Any = None,
        steps: int | None = None,
        n_samples: int = 100,
        batch_size: int = 64,
        max_steps: int = 1000,
        max_minutes: float | None = None,
        learning_rate: float = 1e-3,
        checkpoint_every: int = 500,
        accelerator: str = "auto",
        random_state: int | None = None,
        progress: bool = True,
    ) -> None:
        self.h = h
        self.freq = freq
        self.fill_gaps = fill_gaps
        self.snap = snap
        self.context = context
        self.lags = lags
        self.scaling = scaling
        self.preset = preset
        self.kernel = kernel
        self.hidden = hidden
        self.blocks = blocks
        self.state_size = state_size
        self.network_settings = network_settings
        self.guidance = guidance
        self.guidance_scale = guidance_scale
        self.sampler = sampler
        self.steps = steps
        self.n_samples = n_samples
        self.batch_size = batch_size
        self.max_steps = max_steps
        self.max_minutes = max_minutes
        self.learning_rate = learning_rate
        self.checkpoint_every = checkpoint_every
        self.accelerator = accelerator
        self.random_state = random_state
        self.progress = progress
        super().__init__()

    # --- training ----------------------------------------------------------------------------
    def _fit(self, y: pd.DataFrame, X: Any, fh: ForecastingHorizon | None) -> TSDiffForecaster:
        self._cur_y = y
        self._train(fh)
        return self

    def _update(
        self, y: pd.DataFrame, X: Any = None, update_params: bool = True
    ) -> TSDiffForecaster:
        self._cur_y = update_data(self._cur_y, y)
        if update_params:
            self._train(self._fh)
        return self

    def _train(self, fh: ForecastingHorizon | None) -> None:
        panel = self._panel()
        settings = {k: v for k, v in self.get_params(deep=False).items() if k not in _OWN}
        seed = self.random_state
        if seed is None:
            seed = int(np.random.SeedSequence().generate_state(1)[0] >> 1)
        horizon = self.h
        if horizon is None:
            longest = max(len(v) for v in panel.values)
            farthest = _HORIZON if fh is None else max(1, int(_steps(fh, self.cutoff).max()))
            horizon = min(farthest, max(1, longest // 3))
        self.model_ = TSDiff(h=horizon, random_state=seed, **settings).fit_panel(panel)

    def _panel(self) -> Panel:
        """What has been seen up to the cutoff, as series named by instance and column."""
        y = self._cur_y
        times = y.index.get_level_values(-1)
        known = times <= self.cutoff[0]
        column = y.columns[0]
        if y.index.nlevels == 1:
            names, codes = [column], np.zeros(len(y), dtype=int)
        else:
            codes, instances = y.index.droplevel(-1).factorize()
            names = [(*_levels(instance), column) for instance in instances]
        labels = np.empty(len(names), dtype=object)
        labels[:] = names
        frame = pd.DataFrame({"unique_id": labels[codes], "ds": times, "y": y[column].to_numpy()})
        freq = self.freq
        if freq is None:
            freq = getattr(y.index, "freq", None)
        if freq is None and pd.api.types.is_integer_dtype(times.dtype):
            freq = 1
        return read_panel(frame[known], freq, fill_gaps=self.fill_gaps, snap=self.snap)

    # --- forecasts ---------------------------------------------------------------------------
    def _draw(self, fh: ForecastingHorizon) -> tuple[pd.Index, Array]:
        """The rows of a forecast, series by series, and their sample paths (S, rows)."""
        panel = self._panel()
        alone = self._cur_y.index.nlevels == 1
        ends = [self.cutoff if alone else pd.Index([times[-1]]) for times in panel.times]
        steps = [_steps(fh, end) for end in ends]
        farthest = int(max(s.max() for s in steps))
        paths = self.model_.panel_paths(panel, farthest)
        chosen = [p[:, s - 1] for p, s in zip(paths, steps, strict=True)]
        if alone:
            times = [fh.to_absolute_index(self.cutoff)]
        else:  # sktime knows the frequency of a single index only
            future = panel.future(farthest)
            times = [index[s - 1] for index, s in zip(future, steps, strict=True)]
        return self._rows(panel.ids, times), np.concatenate(chosen, axis=1)

    def _rows(self, ids: list[Any], times: list[pd.Index]) -> pd.Index:
        names = self._cur_y.index.names
        if len(names) == 1:
            return times[0].rename(names[0])
        rows = [(*i[:-1], t) for i, own in zip(ids, times, strict=True) for t in own]
        return pd.MultiIndex.from_tuples(rows, names=names)

    def _predict(self, fh: ForecastingHorizon, X: Any) -> pd.DataFrame:
        return self._predict_rows(fh, [0.5], self._cur_y.columns)

    def _predict_quantiles(
        self, fh: ForecastingHorizon, X: Any, alpha: list[float]
    ) -> pd.DataFrame:
        columns = self._get_columns(method="predict_quantiles", alpha=alpha)
        return self._predict_rows(fh, alpha, columns)

    def _predict_rows(
        self, fh: ForecastingHorizon, levels: list[float], columns: pd.Index
    ) -> pd.DataFrame:
        rows, paths = self._draw(fh)
        values = sample_quantiles(paths[None], levels)[0].T
        return pd.DataFrame(values, index=rows, columns=columns)

    def _predict_var(self, fh: ForecastingHorizon, X: Any = None, cov: bool = False) -> Any:
        rows, paths = self._draw(fh)
        return pd.DataFrame(
            paths.var(axis=0)[:, None], index=rows, columns=self._get_columns("predict_var")
        )

    def _predict_proba(self, fh: ForecastingHorizon, X: Any, marginal: bool = True) -> Any:
        """The sample paths as skpro's empirical distribution."""
        from skpro.distributions import Empirical

        rows, paths = self._draw(fh)
        numbers = range(len(paths))
        samples = pd.concat(
            [pd.DataFrame(p[:, None], index=rows, columns=self._get_columns()) for p in paths],
            keys=numbers,
            names=["sample"],
        )
        return Empirical(samples, time_indep=marginal, index=rows, columns=self._get_columns())

    @classmethod
    def get_test_params(cls, parameter_set: str = "default") -> list[dict[str, Any]]:
        """Parameters of the smallest useful models, for sktime's own checks."""
        tiny = {
            "hidden": 4,
            "blocks": 1,
            "state_size": 4,
            "max_steps": 2,
            "n_samples": 4,
            "steps": 3,
            "accelerator": "cpu",
            "random_state": 0,
            "progress": False,
        }
        small = {"h": 2, "context": 4, "scaling": "mean", "guidance": "quantile"}
        return [tiny, {**tiny, **small}]


def _steps(fh: ForecastingHorizon, cutoff: pd.Index) -> npt.NDArray[np.int64]:
    """How many points the horizon lies behind the cutoff; 1 is the first point after it."""
    relative = fh.to_relative(cutoff).to_pandas()
    if isinstance(relative, pd.TimedeltaIndex):
        relative = fh.to_absolute(cutoff).to_relative(cutoff).to_pandas()
    return relative.to_numpy(dtype=np.int64)


def _levels(instance: Any) -> tuple[Any, ...]:
    return instance if isinstance(instance, tuple) else (instance,)
