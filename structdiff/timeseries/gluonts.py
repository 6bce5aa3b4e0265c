"""TSDiff among gluonts' models: an estimator that trains a predictor of sample forecasts.

>>> from structdiff.timeseries.gluonts import TSDiffEstimator
>>> predictor = TSDiffEstimator(freq="h", prediction_length=24).train(dataset)
>>> forecasts, series = make_evaluation_predictions(dataset, predictor, num_samples=100)

An entry's paths are the bits that :meth:`TSDiff.sample_paths <structdiff.timeseries.TSDiff>` gives
for the series in a frame, under its ``item_id`` as id: a function of seed, id and values alone.
"""

# Annotations stay objects here: gluonts' ``validated`` reads them when the class is made.

import copy
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from structdiff.arguments import whole
from structdiff.errors import CheckpointError, StructDiffError
from structdiff.timeseries.frames import Panel
from structdiff.timeseries.gluonts_entries import panel_of_dataset, period_frequency, quietly
from structdiff.timeseries.scores import mean_weighted_quantile_loss
from structdiff.timeseries.tsdiff import TSDiff

try:
    from gluonts.core.component import validated
    from gluonts.dataset.common import DataEntry, Dataset
    from gluonts.dataset.util import forecast_start
    from gluonts.model.estimator import Estimator
    from gluonts.model.forecast import SampleForecast
    from gluonts.model.predictor import Predictor, RepresentablePredictor
except ImportError as error:
    raise ImportError(
        "structdiff.timeseries.gluonts needs gluonts: pip install 'structdiff[timeseries]'"
    ) from error

__all__ = ["TSDiffEstimator", "TSDiffPredictor", "panel_of_dataset", "predictor_of"]

VALIDATION_PATHS = 16
"""Sample paths per series of the validation score (as in Kollovieh et al. 2023)."""
_SETTINGS, _MODEL = "predictor.json", "model"


class TSDiffEstimator(Estimator):
    """Trains a :class:`~structdiff.timeseries.TSDiff` on a gluonts dataset.

    Parameters
    ----------
    freq
        Frequency of the dataset, under its old or its new name ("H" or "h", "M" or "ME").
    prediction_length
        Points that are forecast.
    lead_time
        Points between the end of a series and its forecast.
    context, lags, scaling, preset, kernel, hidden, blocks, state_size, network_settings
        Of the model, as for :class:`~structdiff.timeseries.TSDiff`.
    guidance, guidance_scale, sampler, steps, n_samples
        Of its forecasts.
    batch_size, max_steps, max_minutes, learning_rate, checkpoint_every, accelerator
        Of training.
    random_state
        Seeds weights, data order, noise, and the predictor's sample paths.
    progress
        Show a progress bar while training.
    """

    @validated()
    def __init__(
        self,
        freq: str,
        prediction_length: int,
        lead_time: int = 0,
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
        super().__init__(lead_time=lead_time)
        self.freq = freq
        self.prediction_length = whole("prediction_length", prediction_length)
        period_frequency(freq)
        self.model = TSDiff(
            h=prediction_length + lead_time,
            context=context,
            lags=lags,
            scaling=scaling,
            preset=preset,
            kernel=kernel,
            hidden=hidden,
            blocks=blocks,
            state_size=state_size,
            network_settings=network_settings,
            guidance=guidance,
            guidance_scale=guidance_scale,
            sampler=sampler,
            steps=steps,
            n_samples=n_samples,
            batch_size=batch_size,
            max_steps=max_steps,
            max_minutes=max_minutes,
            learning_rate=learning_rate,
            checkpoint_every=checkpoint_every,
            accelerator=accelerator,
            random_state=random_state,
            progress=progress,
        )

    def train(
        self,
        training_data: Dataset,
        validation_data: Dataset | None = None,
        *,
        out: str | Path | None = None,
        resume: bool = False,
    ) -> "TSDiffPredictor":
        """Train on every entry that is long enough; a warning lists the others.

        Parameters
        ----------
        training_data
            Entries with univariate targets; NaN is a missing value.
        validation_data
            Entries whose last points are forecast after training. Their mean weighted quantile
            loss is ``predictor.model.training_["validation_crps"]``; it chooses nothing, because
            the weights are averaged over the steps.
        out, resume
            As for :meth:`TSDiff.fit <structdiff.timeseries.TSDiff>`.

        Raises
        ------
        StructDiffError
            If the dataset is empty, an entry is no univariate series of finite numbers or of
            another frequency, or none is long enough.
        """
        model = copy.copy(self.model)
        model.fit_panel(panel_of_dataset(training_data, self.freq), out=out, resume=resume)
        if validation_data is not None:
            panel = panel_of_dataset(validation_data, self.freq)
            model.training_["validation_crps"] = _validation_score(model, panel)
        return TSDiffPredictor(model, self.prediction_length, lead_time=self.lead_time)


class TSDiffPredictor(RepresentablePredictor):
    """Forecasts the entries of a gluonts dataset, one after another, in their order.

    Short pasts are padded and NaN targets are guided around. Of an entry without ``item_id`` the
    values stand for the id.

    Parameters
    ----------
    model
        A fitted model.
    prediction_length
        Points that are forecast; None is the model's horizon without the lead time.
    lead_time
        Points between the end of a series and its forecast.
    n_samples
        Paths of a forecast, where ``predict`` is given no number; None is the model's.
    random_state
        Seed of the paths; None is the model's, or fresh randomness for every call without one.

    Raises
    ------
    StructDiffError
        If the model is not fitted, or was trained on integer time.
    """

    def __init__(
        self,
        model: TSDiff,
        prediction_length: int | None = None,
        *,
        lead_time: int = 0,
        n_samples: int | None = None,
        random_state: int | None = None,
    ) -> None:
        if not hasattr(model, "spec_"):
            raise StructDiffError("this TSDiff is not fitted: call fit or from_pretrained")
        if isinstance(model.freq_, int):
            raise StructDiffError(
                "the model was trained on integer time, for which gluonts has no frequency: fit it "
                "on timestamps"
            )
        if prediction_length is None:
            prediction_length = model.spec_.horizon - lead_time
        super().__init__(whole("prediction_length", prediction_length), lead_time)
        self.model = model
        self.freq = str(model.freq_)
        self.n_samples = whole("n_samples", model.n_samples if n_samples is None else n_samples)
        self.random_state = model.random_state if random_state is None else random_state

    def predict(
        self, dataset: Dataset, num_samples: int | None = None, **kwargs: Any
    ) -> Iterator[SampleForecast]:
        """Forecasts of the entries, made one by one as they are asked for.

        Parameters
        ----------
        dataset
            Entries, of the frequency that the model was trained on.
        num_samples
            S; None is ``n_samples``.

        Yields
        ------
        SampleForecast
            Samples (S, prediction_length) in float64, ``item_id`` and ``info`` as in the entry.

        Raises
        ------
        StructDiffError
            If an entry is no univariate series of finite numbers, of another frequency, or all
            missing where the model looks.
        """
        if kwargs:
            raise TypeError(f"predict has no argument {next(iter(kwargs))!r}")
        paths = self.n_samples if num_samples is None else whole("num_samples", num_samples)
        seed = self.model.sampling_seed(self.random_state)
        return (self._forecast(entry, i, paths, seed) for i, entry in enumerate(dataset))

    def predict_item(self, item: DataEntry) -> SampleForecast:
        return next(self.predict([item]))

    def _forecast(self, entry: DataEntry, number: int, paths: int, seed: int) -> SampleForecast:
        panel = panel_of_dataset([entry], self.freq, number)
        panel.require_observed(self.model.spec_.context)
        if entry.get("item_id") is None:  # its number would make the paths depend on the others
            panel.ids[0] = hashlib.blake2b(panel.values[0].tobytes(), digest_size=8).hexdigest()
        model = copy.copy(self.model)
        model.progress = False  # a bar per entry would be noise; gluonts has its own
        h = self.lead_time + self.prediction_length
        drawn = model.panel_paths(panel, h, paths, seed)[0]
        with quietly():
            start = forecast_start(entry) + self.lead_time
        return SampleForecast(
            samples=np.ascontiguousarray(drawn[:, self.lead_time :]),
            start_date=start,
            item_id=entry.get("item_id"),
            info=entry.get("info"),
        )

    # --- storage -----------------------------------------------------------------------------
    def serialize(self, path: Path) -> None:
        """Write the predictor into the folder ``path``, the model as ``save_pretrained`` does.

        Raises
        ------
        StructDiffError
            If the model's sampler is an object, which no file holds.
        """
        path = Path(path)
        if not (self.model.sampler is None or isinstance(self.model.sampler, str)):
            raise StructDiffError(
                "a sampler object cannot be stored: give the model's sampler by name"
            )
        path.mkdir(parents=True, exist_ok=True)
        Predictor.serialize(self, path)
        (path / _SETTINGS).write_text(json.dumps(self._settings(), indent=2) + "\n")
        self.model.save_pretrained(path / _MODEL)

    @classmethod
    def deserialize(cls, path: Path, device: str = "auto") -> "TSDiffPredictor":
        """Read what :meth:`serialize` wrote.

        Parameters
        ----------
        path
            The folder.
        device
            Where to sample: ``"auto"``, ``"cpu"`` or ``"gpu"``.

        Raises
        ------
        CheckpointError
            If a file is missing, damaged or of another model.
        """
        file = Path(path) / _SETTINGS
        model = TSDiff.from_pretrained(Path(path) / _MODEL)
        try:
            settings = json.loads(file.read_text())
            predictor = cls(model.set_params(accelerator=device), **settings)
        except (OSError, ValueError, TypeError) as error:
            raise CheckpointError(
                f"{file} holds no settings of a TSDiffPredictor: {error}"
            ) from error
        return predictor

    def _settings(self) -> dict[str, Any]:
        seed = self.random_state
        return {
            "prediction_length": self.prediction_length,
            "lead_time": self.lead_time,
            "n_samples": self.n_samples,
            "random_state": None if seed is None else int(seed),
        }

    def __eq__(self, that: object) -> bool:
        """Whether both forecast the same: the settings, the model and its weights, bit for bit."""
        if type(that) is not type(self):
            return False
        assert isinstance(that, TSDiffPredictor)
        if self._settings() != that._settings() or self.freq != that.freq:
            return False
        return _same_model(self.model, that.model)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        settings = ", ".join(f"{k}={v!r}" for k, v in self._settings().items())
        return f"TSDiffPredictor(freq={self.freq!r}, {settings})"


def predictor_of(
    model: TSDiff, prediction_length: int | None = None, *, lead_time: int = 0
) -> TSDiffPredictor:
    """A fitted model as a gluonts predictor; the arguments as for :class:`TSDiffPredictor`."""
    return TSDiffPredictor(model, prediction_length, lead_time=lead_time)


def _validation_score(model: TSDiff, panel: Panel) -> float:
    h = model.spec_.horizon
    known, truth = panel.cut(h), panel.tail(h)
    paths = model.panel_paths(known, h, min(model.n_samples, VALIDATION_PATHS))
    return float(mean_weighted_quantile_loss(np.stack(paths), np.stack(truth.values)))


def _same_model(one: TSDiff, other: TSDiff) -> bool:
    """Whether two models forecast alike; seed, device and progress bars are not the model's."""
    session = {"random_state", "accelerator", "progress", "freq"}
    mine, theirs = (
        {k: v for k, v in m.get_params().items() if k not in session} for m in (one, other)
    )
    if mine != theirs or one.spec_ != other.spec_ or one.freq_ != other.freq_:
        return False
    states = [m.denoiser_.network.state_dict() for m in (one, other)]
    if states[0].keys() != states[1].keys():
        return False
    pairs = [(states[0][k], states[1][k]) for k in states[0]]
    pairs += [
        (getattr(one.covariance_, k), getattr(other.covariance_, k))
        for k in ("mean", "vectors", "values")
    ]
    alike = all(torch.equal(a.cpu(), b.cpu()) for a, b in pairs)
    return alike and float(one.covariance_.rest) == float(other.covariance_.rest)
