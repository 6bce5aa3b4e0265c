"""``structdiff datasets``: what the registry knows, and where it is on this machine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from structdiff.cli.console import messages, print_json, print_table

if TYPE_CHECKING:
    from structdiff.datasets import DatasetCard

app = typer.Typer(help="The datasets: list, fetch, find.", no_args_is_help=True)

Json = Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")]
Name = Annotated[str, typer.Argument(help="Name of a dataset; see `structdiff datasets list`.")]


@app.command("list")
def list_(json: Json = False) -> None:
    """List the datasets with their size, licence and whether they are on this machine."""
    from structdiff import datasets

    cards = datasets.list_datasets()
    present = {card.name: _is_present(card) for card in cards}
    if json:
        print_json(
            [
                {
                    "name": card.name,
                    "title": card.title,
                    "present": present[card.name],
                    "licence": card.licence,
                    "citation": card.citation,
                    "splits": card.splits,
                    "files": [
                        {"path": f.path, "sha256": f.sha256, "url": f.url} for f in card.files
                    ],
                }
                for card in cards
            ]
        )
        return
    rows = [
        (
            card.name,
            card.title,
            sum(file.bytes for file in card.files) / 1e6,
            present[card.name],
        )
        for card in cards
    ]
    print_table("datasets", ["name", "title", "MB", "here"], rows)


@app.command()
def fetch(
    name: Name,
    quiet: Annotated[bool, typer.Option("--quiet", help="Draw no progress bar.")] = False,
) -> None:
    """Download a dataset into the cache, verified; an interrupted download is resumed."""
    from structdiff import datasets

    file = datasets.fetch(name, progress=not quiet)
    messages().print(f"{name}: licence: {datasets.card(name).licence}")
    print(file)


@app.command()
def path(
    name: Name,
    role: Annotated[
        str | None,
        typer.Option("--file", help="Which file of the dataset; the main one by default."),
    ] = None,
) -> None:
    """Print where a dataset lies on this machine."""
    from structdiff import datasets

    print(datasets.path(name, role))


def _is_present(card: DatasetCard) -> bool:
    from structdiff import datasets

    try:
        return all(datasets.path(card.name, file.role).is_file() for file in card.files)
    except datasets.DatasetError:
        return False
