"""``structdiff timeseries``: fit, forecast, evaluate, impute, synthesize, demo."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from structdiff.cli.console import report, say
from structdiff.cli.numbers import check_positive, check_rates
from structdiff.cli.series_options import (
    Context,
    Data,
    FillGaps,
    Freq,
    Guidance,
    Horizon,
    IdCol,
    Json,
    Level,
    MaxMinutes,
    MaxSteps,
    Model,
    Preset,
    SamplerName,
    Samples,
    Scale,
    Seed,
    Snap,
    Steps,
    TargetCol,
    TimeCol,
)
from structdiff.errors import StructDiffError

app = typer.Typer(
    help="Time series: forecast, fill gaps, synthesize with one model.", no_args_is_help=True
)

DEMO_MODEL, DEMO_SERIES = "tsdiff-demo", "hourly_demand"
#: Of the series, as many as a picture shows.
_DEMO_SITES = 9


@app.command()
def fit(
    data: Data,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the trained model.")],
    horizon: Annotated[int, typer.Option(help="Points ahead that a window holds.")] = 24,
    freq: Freq = None,
    context: Context = None,
    preset: Preset = None,
    max_steps: MaxSteps = None,
    max_minutes: MaxMinutes = None,
    batch_size: Annotated[int | None, typer.Option(help="Windows at a time.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Largest learning rate.")] = None,
    hidden: Annotated[int | None, typer.Option(help="Width of the network.")] = None,
    kernel: Annotated[str | None, typer.Option(help="s4d, or s4: exact, slower.")] = None,
    seed: Annotated[int, typer.Option(help="Seeds weights, noise and data order.")] = 0,
    id_col: IdCol = None,
    time_col: TimeCol = None,
    target_col: TargetCol = None,
    fill_gaps: FillGaps = False,
    snap: Snap = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where training stopped.")] = False,
) -> None:
    """Train a model on the series of a file."""
    from structdiff.cli import series_models as models
    from structdiff.cli.series_files import read_series

    check_positive(
        horizon=horizon,
        context=context,
        max_steps=max_steps,
        batch_size=batch_size,
        hidden=hidden,
    )
    check_rates(max_minutes=max_minutes, learning_rate=learning_rate)
    _check_folder(out)
    series = read_series(data, id_col, time_col, target_col)
    settings = {
        "freq": models.frequency(freq),
        "context": context,
        "preset": preset,
        "max_steps": max_steps,
        "max_minutes": max_minutes,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "hidden": hidden,
        "kernel": kernel,
    }
    model = models.new_model(series, horizon, settings, seed, fill_gaps, snap)
    models.train(model, series, out, resume)
    say(f"forecast with `structdiff timeseries forecast {data} --model {out}`")
    print(out)


@app.command()
def forecast(
    data: Data,
    model: Annotated[
        str | None,
        typer.Option(help="As for `evaluate`; without one, a model is fitted to the file first."),
    ] = None,
    horizon: Horizon = None,
    level: Level = None,
    quantile: Annotated[
        list[float] | None, typer.Option(help="A quantile, such as 0.1; may be repeated.")
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="CSV or Parquet.")] = Path(
        "forecast.csv"
    ),
    plot: Annotated[Path | None, typer.Option(help="Picture of the fans (.png .svg .pdf).")] = None,
    n_samples: Samples = None,
    sampler: SamplerName = None,
    steps: Steps = None,
    guidance: Guidance = None,
    guidance_scale: Scale = None,
    seed: Seed = None,
    id_col: IdCol = None,
    time_col: TimeCol = None,
    target_col: TargetCol = None,
    fill_gaps: FillGaps = False,
    snap: Snap = False,
    save: Annotated[
        Path | None, typer.Option(help="Where to keep the model that was fitted first.")
    ] = None,
    freq: Freq = None,
    context: Context = None,
    preset: Preset = None,
    max_steps: MaxSteps = None,
    max_minutes: MaxMinutes = None,
    json: Json = False,
) -> None:
    """Forecast every series of a file: median, intervals, quantiles, a picture."""
    from structdiff.cli import series_files as files
    from structdiff.cli import series_models as models
    from structdiff.timeseries.forecasting import check_levels, check_quantiles

    check_positive(
        horizon=horizon, n_samples=n_samples, steps=steps, context=context, max_steps=max_steps
    )
    check_rates(max_minutes=max_minutes)
    check_levels(level), check_quantiles(quantile)
    files.check_table(out)
    files.check_picture(plot)
    training = {
        "freq": models.frequency(freq),
        "context": context,
        "preset": preset,
        "max_steps": max_steps,
        "max_minutes": max_minutes,
    }
    sampling = models.sampling_settings(n_samples, sampler, steps, guidance, guidance_scale, seed)
    names = (id_col, time_col, target_col)
    if model is not None:
        models.refuse_training(training | {"save": save})
        fitted = models.load_model(model, sampling)
        series = models.series_for(fitted, data, names, fill_gaps, snap)
    else:
        if save is not None:
            _check_folder(save)
        series = files.read_series(data, *names)
        say(f"no --model: one is fitted to {data} first")
        fitted = models.new_model(series, horizon or 24, training, seed or 0, fill_gaps, snap)
        fitted.set_params(**sampling)
        models.train(fitted, series, save, resume=False)
    started = time.monotonic()
    with files.naming(data):
        frame = fitted.predict(series.frame, horizon, level=level, quantiles=quantile)
        figure = None if plot is None else fitted.plot(frame, series.frame)
    files.write_frame(frame, out, series.target_col)
    if plot is not None and figure is not None:
        files.write_picture(figure, plot)
    report(
        f"{data}: forecast",
        {
            "series": len(fitted.panel_of(series.frame)),
            "points ahead": fitted.spec_.horizon if horizon is None else horizon,
            "paths": fitted.n_samples,
            "seconds": time.monotonic() - started,
            "out": str(out),
            **({} if plot is None else {"plot": str(plot)}),
            **({} if model is not None or save is None else {"model": str(save)}),
        },
        json,
    )


@app.command()
def evaluate(
    data: Data,
    model: Model,
    windows: Annotated[int, typer.Option(help="How many cut-offs.")] = 1,
    step: Annotated[
        int | None, typer.Option(help="Points between cut-offs; the horizon by default.")
    ] = None,
    horizon: Horizon = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="The table as a file.")] = None,
    n_samples: Samples = None,
    sampler: SamplerName = None,
    steps: Steps = None,
    guidance: Guidance = None,
    guidance_scale: Scale = None,
    seed: Annotated[int, typer.Option(help="The same seed gives the same scores.")] = 0,
    missing: Annotated[
        bool, typer.Option("--missing", help="Also with half of the context hidden, three ways.")
    ] = False,
    refine: Annotated[
        bool, typer.Option("--refine", help="Also the seasonal naive forecast, refined.")
    ] = False,
    synthetic: Annotated[
        int, typer.Option(help="Also a ridge regression trained on so many synthetic windows.")
    ] = 0,
    id_col: IdCol = None,
    time_col: TimeCol = None,
    target_col: TargetCol = None,
    fill_gaps: FillGaps = False,
    snap: Snap = False,
    json: Json = False,
) -> None:
    """Score forecasts of the ends of the series, beside the seasonal naive and a random walk."""
    from structdiff.cli import series_models as models
    from structdiff.cli.series_files import check_table, naming, write_frame
    from structdiff.cli.series_scores import print_scores, score_table
    from structdiff.timeseries import evaluation
    from structdiff.timeseries.season import seasonality_of

    check_positive(windows=windows, step=step, horizon=horizon, n_samples=n_samples, steps=steps)
    check_table(out)
    sampling = models.sampling_settings(n_samples, sampler, steps, guidance, guidance_scale, seed)
    fitted = models.load_model(model, sampling)
    series = models.series_for(fitted, data, (id_col, time_col, target_col), fill_gaps, snap)
    h = fitted.spec_.horizon if horizon is None else horizon
    with naming(data):
        panel = fitted.panel_of(series.frame)
        scores = score_table(
            evaluation.evaluate(
                fitted,
                panel,
                h=h,
                n_windows=windows,
                step_size=step,
                scenarios=evaluation.SCENARIOS if missing else (),
                refine=evaluation.BASES if refine else None,
                synthetic=synthetic,
                seed=seed,
            ),
            seasonality_of(panel.freq),
        )
    if out is not None:
        write_frame(scores.reset_index(), out)
    print_scores(f"{data}: {len(panel)} series, {windows} x {h} points", scores, json)


@app.command()
def impute(
    data: Data,
    model: Model,
    out: Annotated[Path, typer.Option("--out", "-o", help="CSV or Parquet.")] = Path("filled.csv"),
    level: Level = None,
    n_samples: Samples = None,
    sampler: SamplerName = None,
    steps: Steps = None,
    guidance: Guidance = None,
    guidance_scale: Scale = None,
    seed: Seed = None,
    id_col: IdCol = None,
    time_col: TimeCol = None,
    target_col: TargetCol = None,
    fill_gaps: FillGaps = False,
    snap: Snap = False,
    json: Json = False,
) -> None:
    """Fill missing values; what is observed stays as it is."""
    from structdiff.cli import series_models as models
    from structdiff.cli.series_files import check_table, naming, write_frame
    from structdiff.timeseries.forecasting import check_levels

    check_positive(n_samples=n_samples, steps=steps)
    check_levels(level)
    check_table(out)
    sampling = models.sampling_settings(n_samples, sampler, steps, guidance, guidance_scale, seed)
    fitted = models.load_model(model, sampling)
    series = models.series_for(fitted, data, (id_col, time_col, target_col), fill_gaps, snap)
    with naming(data):
        missing = fitted.panel_of(series.frame).missing()
        frame = fitted.impute(series.frame, level=level)
    write_frame(frame, out, series.target_col)
    filled = int(missing["missing"].sum())
    report(
        f"{data}: filled",
        {
            "series": len(missing),
            "with gaps": int((missing["missing"] > 0).sum()),
            "values filled": filled,
            "share": filled / max(int(missing["points"].sum()), 1),
            "out": str(out),
        },
        json,
    )


@app.command()
def synthesize(
    model: Model,
    num: Annotated[int, typer.Option("--num", "-n", help="How many windows.")] = 100,
    out: Annotated[Path, typer.Option("--out", "-o", help="CSV or Parquet.")] = Path(
        "synthetic.csv"
    ),
    scaled: Annotated[
        bool, typer.Option("--scaled", help="Leave levels as the network makes them.")
    ] = False,
    sampler: SamplerName = None,
    steps: Steps = None,
    seed: Seed = None,
    json: Json = False,
) -> None:
    """Draw new series like those of training."""
    from structdiff.cli import series_models as models
    from structdiff.cli.series_files import check_table, write_frame

    check_positive(num=num, steps=steps)
    check_table(out)
    fitted = models.load_model(
        model, models.sampling_settings(None, sampler, steps, None, None, seed)
    )
    frame = fitted.synthesize(num, scaled=scaled)
    write_frame(frame, out)
    report(
        f"{model}: synthetic series",
        {"series": num, "points": fitted.spec_.length, "out": str(out)},
        json,
    )


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="The forecasts.")] = Path(
        "demo_forecast.csv"
    ),
    plot: Annotated[Path, typer.Option(help="The picture.")] = Path("demo_forecast.png"),
    seed: Annotated[int, typer.Option(help="The same seed gives the same forecasts.")] = 0,
    json: Json = False,
) -> None:
    """Forecast the last day of the embedded series with the embedded model, at once."""
    from structdiff import datasets
    from structdiff.cli import series_files as files
    from structdiff.cli import series_models as models
    from structdiff.cli.series_scores import demo_scores, print_scores
    from structdiff.timeseries.forecasting import forecast_columns, plain

    files.check_table(out)
    files.check_picture(plot)
    model = models.load_model(DEMO_MODEL, {"random_state": seed})
    names = (None, None, None)
    series = models.series_for(model, datasets.path(DEMO_SERIES), names, False, False)
    panel = model.panel_of(series.frame)
    panel = panel.take(panel.ids[:_DEMO_SITES])
    h = model.spec_.horizon
    known, truth = panel.cut(h), panel.tail(h)
    paths = model.panel_paths(known, seed=seed)
    frame = known.restore(forecast_columns(paths, [80, 95]), truth.times)
    came = plain(truth, **series.columns).restore({series.target_col: truth.values})
    figure = model.plot(frame, known.restore({panel.target: known.values}), truth=came)
    files.write_frame(frame, out)
    files.write_picture(figure, plot)
    scores = demo_scores(panel, h, paths, DEMO_MODEL, 7 * 24)
    print_scores(f"the last {h} hours of {len(panel)} series", scores, json)
    say(f"written: {out}, {plot}")


@app.command()
def info(
    model: Annotated[
        str | None, typer.Argument(help="Name or folder of a model; all by default.")
    ] = None,
    json: Json = False,
) -> None:
    """Describe a model, or list the embedded ones."""
    from structdiff.cli.info import show_models
    from structdiff.storage import TIME_SERIES

    show_models(model, TIME_SERIES, "structdiff timeseries fit --out", json)


def _check_folder(out: Path) -> None:
    """Before any work: a model can be kept here."""
    if out.is_file():
        raise StructDiffError(f"{out}: is a file; give the name of a folder for the model")
