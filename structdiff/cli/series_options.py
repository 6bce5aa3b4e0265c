"""Arguments and options that several commands of ``structdiff timeseries`` share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Data = Annotated[
    Path,
    typer.Argument(help="CSV (also .gz) or Parquet: long (unique_id, ds, y), or wide."),
]
Model = Annotated[
    str, typer.Option(help="A folder, an embedded model, or owner/name on Hugging Face.")
]
Horizon = Annotated[int | None, typer.Option(help="Points ahead; the model's own by default.")]
IdCol = Annotated[str | None, typer.Option(help="Column of ids; `unique_id` by default.")]
TimeCol = Annotated[
    str | None, typer.Option(help="Column of times; `ds`, or the first one of a wide file.")
]
TargetCol = Annotated[str | None, typer.Option(help="Column of values; `y` by default.")]
FillGaps = Annotated[
    bool, typer.Option("--fill-gaps", help="Insert absent timestamps as missing values.")
]
Snap = Annotated[bool, typer.Option("--snap", help="Move jittered timestamps to the grid.")]
Freq = Annotated[
    str | None, typer.Option(help="Frequency, such as h, D, MS, or the step of whole numbers.")
]
Context = Annotated[int | None, typer.Option(help="Points of the past that the model sees.")]
Preset = Annotated[str | None, typer.Option(help="paper: as TSDiff was published.")]
MaxSteps = Annotated[int | None, typer.Option(help="Training steps; 1,000 by default.")]
MaxMinutes = Annotated[float | None, typer.Option(help="Stop training after so many minutes.")]
Level = Annotated[
    list[float] | None, typer.Option(help="Percent of a central interval; may be repeated.")
]
Samples = Annotated[int | None, typer.Option(help="Sample paths for each series.")]
SamplerName = Annotated[
    str | None, typer.Option("--sampler", help="Name of a sampler; the model's own by default.")
]
Steps = Annotated[int | None, typer.Option(help="Steps of the sampler.")]
Guidance = Annotated[
    str | None, typer.Option(help="covariance, quantile or squared; the model's own by default.")
]
Scale = Annotated[float | None, typer.Option(help="Strength of quantile and squared guidance.")]
Seed = Annotated[int | None, typer.Option(help="The same seed gives the same file.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")]
