"""Arguments and options that several commands of ``structdiff pose`` share."""

from __future__ import annotations

from typing import Annotated

import typer

Model = Annotated[
    str, typer.Option(help="A folder, an embedded model, or owner/name on Hugging Face.")
]
Clip = Annotated[
    list[str] | None, typer.Option(help="Name of a clip; may be repeated; all by default.")
]
Detected = Annotated[
    bool, typer.Option("--detected", help="Of cmu17: 2D with simulated detector noise.")
]
SkeletonName = Annotated[
    str | None,
    typer.Option("--skeleton", help="Joint order of the file, where it does not state it."),
]
ImageSize = Annotated[str | None, typer.Option(help="Width x height in pixels, as 1920x1080.")]
Fps = Annotated[float | None, typer.Option(help="Frames per second of the file.")]
Check = Annotated[
    bool, typer.Option("--check/--no-check", help="Refuse wrong units, axes and joint orders.")
]
Hypotheses = Annotated[int | None, typer.Option(help="Poses drawn; the model's own by default.")]
SamplerName = Annotated[
    str | None, typer.Option("--sampler", help="Name of a sampler; the model's own by default.")
]
Steps = Annotated[int | None, typer.Option(help="Steps of the sampler.")]
Seed = Annotated[int | None, typer.Option(help="The same seed gives the same file.")]
Accelerator = Annotated[str, typer.Option(help="auto, cpu or gpu.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")]
