"""``structdiff molecules``: sample, train, evaluate, describe."""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from structdiff.cli.console import messages, noting_interrupts, print_json, print_table
from structdiff.cli.numbers import check_positive
from structdiff.cli.tables import (
    MoleculeWriter,
    check_destination,
    read_generated_csv,
    read_smiles_csv,
)
from structdiff.errors import StructDiffError

if TYPE_CHECKING:
    import pandas as pd

    from structdiff.molecules import MoleculeGenerator, ReferenceStatistics

app = typer.Typer(help="Molecules: sample, train, evaluate.", no_args_is_help=True)

#: Files of weights that are read as published GDSS checkpoints.
_CHECKPOINTS = {".pth", ".pt", ".safetensors"}
#: Name of a model's reference statistics beside its weights.
_REFERENCE = "reference.safetensors"
#: How many molecules a picture shows.
_GRID = 36

Json = Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")]
Column = Annotated[
    str | None, typer.Option(help="Column that holds the SMILES; `smiles` by default.")
]


@app.command()
def sample(
    model: Annotated[
        str,
        typer.Option(
            help="An embedded model, a folder, owner/name on Hugging Face, or a GDSS checkpoint."
        ),
    ] = "gdss-qm9",
    num: Annotated[int, typer.Option("--num", "-n", help="How many molecules.")] = 1000,
    out: Annotated[Path, typer.Option("--out", "-o", help="CSV: smiles, valid, corrected.")] = Path(
        "molecules.csv"
    ),
    seed: Annotated[
        int | None, typer.Option(help="The same seed gives the same molecules.")
    ] = None,
    sampler: Annotated[
        str | None, typer.Option(help="Name of a sampler; the model's own by default.")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Steps of the sampler.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Molecules at a time.")] = None,
    grid: Annotated[
        Path | None,
        typer.Option(help=f"Picture of the first {_GRID} molecules (.png)."),
    ] = None,
    json: Json = False,
) -> None:
    """Draw new molecules and write them as they come; Ctrl-C keeps what is finished."""
    check_positive(num=num, steps=steps, batch_size=batch_size)
    _check_picture(grid, ".png")
    check_destination(out)
    generator = load_model(model)
    generator.set_params(batch_size=batch_size or _prudent_batch(num, generator.batch_size))
    started = time.monotonic()
    drawn, interrupted = _write_batches(
        MoleculeWriter(out),
        generator.sample_batches(num, sampler, steps, seed, progress=True),
    )
    if interrupted and drawn is None:
        messages().print("no batch was finished: nothing is written")
        raise typer.Exit(130)
    assert drawn is not None  # an uninterrupted run of n > 0 molecules writes some
    summary = _summary(drawn, time.monotonic() - started, out)
    if grid is not None:
        _draw_grid(drawn, grid)
        summary["grid"] = str(grid)
    if json:
        print_json(summary)
    else:
        print_table(f"{model}: {len(drawn):,} molecules", ["what", "value"], list(summary.items()))
    if interrupted:
        messages().print(
            f"{len(drawn):,} of {num:,} molecules are finished and written to {out}", soft_wrap=True
        )
        raise typer.Exit(130)


@app.command()
def train(
    smiles: Annotated[Path, typer.Argument(help="CSV with a column `smiles`, or .smi.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the trained model.")],
    resume: Annotated[bool, typer.Option("--resume", help="Go on where training stopped.")] = False,
    column: Column = None,
    preset: Annotated[
        str | None,
        typer.Option(
            help="Atom types and largest size of qm9 or zinc250k; by default of the file."
        ),
    ] = None,
    network: Annotated[str, typer.Option(help="transformer (ours) or gdss (as published).")] = (
        "transformer"
    ),
    charges: Annotated[
        bool, typer.Option("--charges/--no-charges", help="Learn formal charges.")
    ] = True,
    largest_fragment: Annotated[
        bool, typer.Option("--largest-fragment", help="Keep the largest fragment of salts.")
    ] = False,
    max_steps: Annotated[int, typer.Option(help="Training steps.")] = 10_000,
    batch_size: Annotated[int, typer.Option(help="Molecules at a time.")] = 256,
    learning_rate: Annotated[float, typer.Option(help="Largest learning rate.")] = 1e-3,
    precision: Annotated[str, typer.Option(help="32-true, bf16-mixed or 16-mixed.")] = "32-true",
    devices: Annotated[int, typer.Option(help="How many devices.")] = 1,
    strategy: Annotated[str, typer.Option(help="Lightning's, such as ddp.")] = "auto",
    checkpoint_every: Annotated[int, typer.Option(help="Steps between checkpoints.")] = 500,
    seed: Annotated[int, typer.Option(help="Seeds weights, noise and data order.")] = 0,
) -> None:
    """Train on your own SMILES; rows that cannot be used are counted and reported."""
    check_positive(
        max_steps=max_steps,
        batch_size=batch_size,
        devices=devices,
        checkpoint_every=checkpoint_every,
    )
    _check_training(network, precision, learning_rate)
    records = read_smiles_csv(smiles, column)

    from lightning.pytorch.utilities.rank_zero import rank_zero_only

    from structdiff.molecules import MoleculeGenerator

    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    generator = MoleculeGenerator(
        preset=preset,
        network=network,
        charges=charges,
        largest_fragment=largest_fragment,
        max_steps=max_steps,
        batch_size=batch_size,
        learning_rate=learning_rate,
        precision=precision,
        devices=devices,
        strategy=strategy,
        checkpoint_every=checkpoint_every,
        random_state=seed,
    )
    try:
        with _naming(str(smiles)):
            generator.fit(records, out=out, resume=resume)
    except (KeyboardInterrupt, SystemExit):
        messages().print(
            f"training stopped; the same command with --resume goes on in {out}", soft_wrap=True
        )
        raise
    if rank_zero_only.rank != 0:
        return  # the first of several processes speaks and writes for all
    messages().print(str(generator.report_), markup=False, soft_wrap=True)
    generator.save_pretrained(out)
    messages().print(f"sample it with `structdiff molecules sample --model {out}`", soft_wrap=True)
    print(out)


@app.command()
def evaluate(
    molecules: Annotated[Path, typer.Argument(help="CSV of generated molecules.")],
    reference: Annotated[
        str, typer.Option(help="CSV of the test molecules, or an embedded model's statistics.")
    ],
    train: Annotated[
        Path | None, typer.Option("--train", help="CSV of the training molecules, for novelty.")
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(help="Picture of the property distributions.")
    ] = None,
    column: Column = None,
    fcd: Annotated[
        bool, typer.Option("--fcd/--no-fcd", help="FCD is the slow score: 3 s per 1,000 molecules.")
    ] = True,
    json: Json = False,
) -> None:
    """Score generated molecules against a reference, each score beside its noise floor."""
    _check_picture(plot, ".png", ".svg", ".pdf")
    generated = read_generated_csv(molecules, column)
    against = _reference(reference)
    training = None if train is None else read_smiles_csv(train)

    from structdiff.molecules import evaluate as score

    with _naming(f"{molecules} against {reference}"):
        scores = score(generated, against, train=training, fcd=fcd, progress=True)
    if plot is not None:
        _draw_properties(generated, against, plot)
    if json:
        print_json(scores.to_dict())
        return
    print_table(
        f"{molecules} against {reference}",
        ["metric", "value", "noise floor"],
        [
            (name, value, scores.get(f"{name}_floor", math.nan))
            for name, value in scores.items()
            if not str(name).endswith("_floor")
        ],
    )


@app.command()
def info(
    model: Annotated[
        str | None, typer.Argument(help="Name or folder of a model; all by default.")
    ] = None,
    json: Json = False,
) -> None:
    """Describe a model, or list the embedded ones."""
    from structdiff.cli.info import show_models
    from structdiff.storage import MOLECULES

    show_models(model, MOLECULES, "structdiff molecules train --out", json)


def load_model(model: str) -> MoleculeGenerator:
    """A generator by name, folder or Hugging Face repository, or a published GDSS checkpoint."""
    is_checkpoint = Path(model).suffix.lower() in _CHECKPOINTS
    if is_checkpoint and not Path(model).is_file():
        raise StructDiffError(f"{model}: no such checkpoint file; check the name")

    from structdiff.molecules import MoleculeGenerator

    if is_checkpoint:
        return MoleculeGenerator.from_gdss(model)
    return MoleculeGenerator.from_pretrained(model)


def load_reference(reference: str) -> ReferenceStatistics:
    """Statistics to compare with: embedded, saved, or of the molecules of a CSV."""
    from structdiff.molecules.reference import ReferenceStatistics

    found = _reference(reference)
    if isinstance(found, ReferenceStatistics):
        return found
    with _naming(reference):
        return ReferenceStatistics.compute(found, progress=True)


def _write_batches(
    writer: MoleculeWriter, batches: Iterable[pd.DataFrame]
) -> tuple[pd.DataFrame | None, bool]:
    """Write each batch as it comes; what was written, and whether Ctrl-C cut it short."""
    import pandas as pd

    written: list[pd.DataFrame] = []
    interrupted = False
    try:
        with noting_interrupts() as asked:
            for batch in batches:
                with asked.held():
                    writer.write(batch)
                    written.append(batch)
                if asked:
                    interrupted = True
                    break
    except KeyboardInterrupt:
        interrupted = True
    except BaseException:
        writer.abandon()
        raise
    writer.finish()
    return (pd.concat(written, ignore_index=True) if written else None), interrupted


def _summary(drawn: pd.DataFrame, seconds: float, out: Path) -> dict[str, Any]:
    kept = drawn["smiles"][drawn["smiles"] != ""]
    return {
        "molecules": len(drawn),
        "valid before correction": float(drawn["valid"].mean()),
        "corrected": float(drawn["corrected"].mean()),
        "unique": kept.nunique() / max(len(kept), 1),
        "seconds": seconds,
        "out": str(out),
    }


def _reference(reference: str) -> Any:
    """Embedded or saved statistics, or the molecules of a CSV."""
    from structdiff.cli.info import PRETRAINED

    embedded = PRETRAINED / reference / _REFERENCE
    if not embedded.is_file() and Path(reference).suffix.lower() != ".safetensors":
        return read_smiles_csv(reference)

    from structdiff.molecules.reference import ReferenceStatistics

    return ReferenceStatistics.load(embedded if embedded.is_file() else reference)


@contextlib.contextmanager
def _naming(place: str) -> Iterator[None]:
    """Put the file before a complaint about one of its records."""
    try:
        yield
    except StructDiffError as error:
        raise StructDiffError(f"{place}: {error}") from error


def _prudent_batch(num: int, own: int) -> int:
    """Small enough that Ctrl-C half-way through keeps much; the molecules do not depend on it."""
    return min(own, max(32, num // 16))


def _check_training(network: str, precision: str, learning_rate: float) -> None:
    """Before any work: the choices of which the error would come late or in other words."""
    for option, value, known in (
        ("network", network, ("transformer", "gdss")),
        ("precision", precision, ("32-true", "bf16-mixed", "16-mixed")),
    ):
        if value not in known:
            raise StructDiffError(f"--{option} {value}: choose one of {', '.join(known)}")
    if not 0 < learning_rate < math.inf:
        raise StructDiffError(f"--learning-rate {learning_rate}: should be a positive number")


def _check_picture(path: Path | None, *formats: str) -> None:
    """Before any work: a picture has a known format and a folder to lie in."""
    if path is None:
        return
    if path.suffix.lower() not in formats:
        raise StructDiffError(
            f"{path}: cannot draw this format; end the name in {' or '.join(formats)}"
        )
    check_destination(path)


def _draw_grid(drawn: pd.DataFrame, path: Path) -> None:
    from structdiff.molecules.plots import molecule_grid

    molecule_grid(drawn, path, max_molecules=_GRID)


def _draw_properties(generated: pd.DataFrame, reference: Any, path: Path) -> None:
    from structdiff.molecules.plots import property_plot

    property_plot(generated, reference)[0].figure.savefig(path)
