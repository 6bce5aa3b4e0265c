"""The tree of commands."""

from __future__ import annotations

from typing import Annotated, Any

import typer

import structdiff
from structdiff.cli import datasets, info, molecules, pose, samplers, timeseries

app = typer.Typer(
    name="structdiff",
    help="Diffusion models for structured objects.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)
app.add_typer(molecules.app, name="molecules")
app.add_typer(timeseries.app, name="timeseries")
app.add_typer(pose.app, name="pose")
app.add_typer(datasets.app, name="datasets")
app.add_typer(samplers.app, name="samplers")
app.command("info")(info.info)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(structdiff.__version__)
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    pass


def command() -> Any:
    """The click command that runs the tree."""
    return typer.main.get_command(app)
