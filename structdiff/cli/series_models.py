"""Models of series for the command line: made, trained, loaded, their options checked."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from structdiff.cli.console import say
from structdiff.cli.series_files import SeriesFile, naming, read_series, speaking_of_options
from structdiff.errors import StructDiffError
from structdiff.timeseries import TSDiff
from structdiff.timeseries.models import PRESETS

Settings = Mapping[str, Any]
_KERNELS = ("s4d", "s4")


def frequency(freq: str | None) -> str | int | None:
    """What ``--freq`` says: a name, or the step of whole numbers."""
    return int(freq) if freq is not None and freq.isdecimal() else freq


def new_model(
    series: SeriesFile, horizon: int, settings: Settings, seed: int, fill_gaps: bool, snap: bool
) -> TSDiff:
    """A model to fit to a file; a setting that is None is the estimator's default."""
    given = {name: value for name, value in settings.items() if value is not None}
    for option, known in (("preset", PRESETS), ("kernel", _KERNELS)):
        if option in given and given[option] not in known:
            raise StructDiffError(f"--{option} {given[option]}: choose {' or '.join(known)}")
    return TSDiff(
        horizon,
        **given,
        **series.columns,
        random_state=seed,
        fill_gaps=fill_gaps,
        snap=snap,
        progress=True,
    )


def train(model: TSDiff, series: SeriesFile, out: Path | None, resume: bool) -> None:
    """Fit a model to the file, and keep it and its checkpoints in ``out``."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    try:
        with naming(series.path):
            model.fit(series.frame, out=out, resume=resume)
    except (KeyboardInterrupt, SystemExit):
        if out is not None:
            say(f"training stopped; `structdiff timeseries fit` with --out {out} --resume goes on")
        raise
    record = model.training_
    left_out = f" ({record['left_out']} too short)" if record["left_out"] else ""
    say(
        f"trained {record['steps']:,} steps on {record['windows']:,} windows of "
        f"{model.spec_.context} + {model.spec_.horizon} points from {record['series']:,} "
        f"series{left_out}, frequency {model.freq_}"
    )
    if out is not None:
        model.save_pretrained(out)


def load_model(name: str, sampling: Settings) -> TSDiff:
    """A trained model with settings of sampling; wrong ones are refused before any work."""
    model = TSDiff.from_pretrained(name)
    model.set_params(**sampling, progress=True)
    with speaking_of_options():
        model.window_sampler()
    return model


def series_for(
    model: TSDiff,
    path: Path,
    names: tuple[str | None, str | None, str | None],
    fill_gaps: bool,
    snap: bool,
) -> SeriesFile:
    """A file of series, read as the model's own were where no option says otherwise."""
    usual = (model.id_col, model.time_col, model.target_col)
    texts = [str(name) for name in usual]
    series = read_series(path, *names, usual=(texts[0], texts[1], texts[2]))
    model.set_params(
        **series.columns,
        fill_gaps=fill_gaps or model.fill_gaps,
        snap=snap or model.snap,
    )
    return series


def sampling_settings(
    n_samples: int | None,
    sampler: str | None,
    steps: int | None,
    guidance: str | None,
    guidance_scale: float | None,
    seed: int | None,
) -> dict[str, Any]:
    """The options of sampling that were given, as parameters of the estimator."""
    given = {
        "n_samples": n_samples,
        "sampler": sampler,
        "steps": steps,
        "guidance": guidance,
        "guidance_scale": guidance_scale,
        "random_state": seed,
    }
    return {name: value for name, value in given.items() if value is not None}


def refuse_training(options: Settings) -> None:
    """Beside ``--model`` no option of training."""
    for name, value in options.items():
        if value is not None:
            raise StructDiffError(
                f"--{name.replace('_', '-')} {value}: is for fitting, but --model names a fitted "
                "model; leave one of the two out"
            )
