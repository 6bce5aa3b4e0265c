"""Train on synthetic, test on real: neural forecasters of gluonts, fed with bare windows.

The third party of the published synthesis test (Kollovieh et al. 2023, TSDiff, section 5.3), with
what it prescribes: no scaling inside the forecaster, no time features, lags up to the length of
the context, 100 sample paths.
"""

from __future__ import annotations

import logging
import math
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import numpy.typing as npt
import torch

from structdiff.errors import StructDiffError
from structdiff.timeseries._arrays import Array
from structdiff.timeseries._pairs import check_draw, check_pairs

__all__ = ["Downstream", "downstream_lags", "downstream_paths"]

#: The forecasters that can be trained on windows.
Downstream: TypeAlias = Literal["deepar", "transformer"]

#: Batches that gluonts' trainer calls an epoch; it keeps the weights of the best one.
_EPOCH = 50


def downstream_paths(
    synthetic: npt.ArrayLike,
    test: npt.ArrayLike,
    context: int,
    model: Downstream = "deepar",
    *,
    seasonality: int = 1,
    n_samples: int = 100,
    max_steps: int = 5000,
    batch_size: int = 32,
    learning_rate: float = 1e-3,
    rescale: bool = True,
    seed: int = 0,
    accelerator: str = "auto",
    progress: bool = False,
) -> Array:
    """Sample paths for real windows of a neural forecaster trained on synthetic ones.

    The forecaster scales nothing itself and knows no calendar. It trains on the last ``horizon``
    points of every window with all before as history, which is what it is tested on.

    Parameters
    ----------
    synthetic, test, context
        As in :func:`~structdiff.timeseries.synthetic.linear_predictive_score`; the targets in
        ``test`` are not looked at.
    model
        ``"deepar"``: gluonts' DeepAR (LSTM, 2 layers of 40) with lags up to the context. The paths
        are dependent over time. ``"transformer"``: gluonts' PatchTST (2 layers of 32), the
        transformer among its PyTorch models (the published test used an MXNet one); its paths are
        independent from step to step.
    seasonality
        Points of a season: adds DeepAR's lags around seven seasons back to those of 1 to 7 points.
    n_samples
        Paths for each window.
    max_steps, batch_size, learning_rate
        Of the training; the defaults are gluonts' (100 epochs of 50 batches of 32).
    rescale
        As there.
    seed
        Of the order of the windows, the initial weights and the paths, at least 0.
    accelerator
        Lightning's name of the device to train on.
    progress
        Whether to show a bar.

    Returns
    -------
    Array
        (M, n_samples, horizon), in the units of ``test``.

    Raises
    ------
    StructDiffError
        As there; an unknown model; a number below 1; a negative seed; or gluonts or Lightning is
        not installed.
    """
    train, contexts, _, scale = check_pairs(synthetic, test, context, rescale=rescale)
    for name, value in {
        "seasonality": seasonality,
        "n_samples": n_samples,
        "max_steps": max_steps,
        "batch_size": batch_size,
    }.items():
        if value < 1:
            raise StructDiffError(f"{name}={value}: must be at least 1")
    if not learning_rate > 0:
        raise StructDiffError(f"learning_rate={learning_rate}: must be positive")
    if model not in get_args(Downstream):
        raise StructDiffError(f"model {model!r} is not one of {', '.join(get_args(Downstream))}")
    check_draw(n_samples, seed)
    train = np.random.default_rng(seed).permutation(train)  # gluonts takes them in their order
    with tempfile.TemporaryDirectory() as folder:
        trainer = {
            "max_steps": max_steps,
            "max_epochs": math.ceil(max_steps / _EPOCH),
            "default_root_dir": folder,
            "logger": False,
            "accelerator": accelerator,
            "enable_progress_bar": progress,
            "enable_model_summary": False,
        }
        shared = {
            "prediction_length": train.shape[1] - context,
            "lr": learning_rate,
            "batch_size": batch_size,
            "num_batches_per_epoch": min(_EPOCH, max_steps),
            "trainer_kwargs": trainer,
        }
        # Importing Lightning sets its loggers' levels: gluonts comes first, the silence after it.
        estimator = _estimator(model, context, seasonality, shared)
        with _quiet(), torch.random.fork_rng():
            torch.manual_seed(seed)
            predictor = estimator.train(_dataset(train))
            forecasts = predictor.predict(_dataset(contexts), num_samples=n_samples)
            paths = [_samples(forecast, n_samples) for forecast in forecasts]
    return np.stack(paths).astype(np.float64) * scale[:, None]


def downstream_lags(context: int, horizon: int, seasonality: int) -> tuple[list[int], int]:
    """DeepAR's lags and the number of steps it unrolls before the horizon.

    Together they reach back no further than the context, so that no lag looks into padding: lag
    ``k`` of the first of ``u`` unrolled steps lies ``u - 1 + k`` points back.
    """
    unrolled = min(horizon, max(1, context // 2))
    wanted = {*range(1, 8)}
    if seasonality > 1:
        wanted |= {seasonality * k + d for k in range(1, 8) for d in (-1, 0, 1)}
    return sorted(lag for lag in wanted if 1 <= lag <= context - unrolled + 1), unrolled


def _estimator(model: Downstream, context: int, seasonality: int, shared: dict[str, Any]) -> Any:
    """The forecaster of gluonts, without scaling and without time features."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Using `json`-module")  # a hint on speed
            from gluonts.torch.model.deepar import DeepAREstimator
            from gluonts.torch.model.patch_tst import PatchTSTEstimator
            from gluonts.transform import ValidationSplitSampler
    except ImportError as error:
        raise StructDiffError(
            "training on synthetic windows needs gluonts with PyTorch: "
            "pip install 'structdiff[timeseries]'"
        ) from error
    horizon = shared["prediction_length"]
    # One cut for each window, in front of its horizon.
    shared |= {"train_sampler": ValidationSplitSampler(min_past=context, min_future=horizon)}
    if model == "transformer":
        patch = min(16, context)
        return PatchTSTEstimator(
            context_length=context,
            patch_len=patch,
            stride=max(1, patch // 2),
            scaling=None,
            **shared,
        )
    lags, unrolled = downstream_lags(context, horizon, seasonality)
    return DeepAREstimator(
        freq="D",  # a name is asked for, but there are no time features and the lags are given
        context_length=unrolled,
        lags_seq=lags,
        scaling=False,
        time_features=[],
        **shared,
    )


def _dataset(windows: Array) -> list[dict[str, Any]]:
    """Windows as gluonts' series; a synthetic window has no date, so all get the same one."""
    import pandas as pd

    start = pd.Period("2000-01-01", freq="D")
    return [
        {"item_id": str(i), "start": start, "target": window.astype(np.float32)}
        for i, window in enumerate(windows)
    ]


def _samples(forecast: Any, n_samples: int) -> npt.NDArray[Any]:
    """Paths (S, h) of a forecast, drawn where it is a distribution."""
    if hasattr(forecast, "samples"):
        return np.asarray(forecast.samples)
    return np.asarray(forecast.to_sample_forecast(n_samples).samples)


@contextmanager
def _quiet() -> Iterator[None]:
    """Lightning's notes on devices, workers and checkpoints are not for the caller of a score."""
    names = ("lightning.pytorch", "lightning.fabric", "gluonts")
    loggers = [logging.getLogger(name) for name in names]
    levels = [each.level for each in loggers]
    try:
        for each in loggers:
            each.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for each, level in zip(loggers, levels, strict=True):
            each.setLevel(level)
