"""``structdiff samplers``: what there is, and how each does on a model at a budget."""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from structdiff.cli.console import Interrupts, messages, noting_interrupts, print_json, print_table
from structdiff.cli.numbers import check_positive
from structdiff.errors import StructDiffError

if TYPE_CHECKING:
    from structdiff.samplers.comparison import Case, ComparableModel, Measurement
    from structdiff.samplers.comparison_table import ComparisonTable
    from structdiff.samplers.registry import SamplerInfo

app = typer.Typer(help="The samplers: list them, compare them on a model.")

#: Steps of the sampler that is built to read its default grid; every sampler takes them.
_EXAMPLE_STEPS = 8
_PICTURES = (".png", ".svg", ".pdf")

Json = Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")]


@app.callback(invoke_without_command=True)
def _samplers(context: typer.Context, json: Json = False) -> None:
    if context.invoked_subcommand is None:
        list_(json)


@app.command("list")
def list_(json: Json = False) -> None:
    """List the samplers: order, evaluations a step, noise, grid, source."""
    from structdiff.samplers import SAMPLERS

    described = [_description(name, info) for name, info in SAMPLERS.items()]
    if json:
        print_json(described)
        return
    print_table(
        "samplers",
        ["name", "order", "NFE/step", "noise", "grid", "steps", "source"],
        [
            (
                each["name"],
                "—" if each["order"] is None else each["order"],
                "varies" if each["nfe_per_step"] is None else each["nfe_per_step"],
                each["stochastic"],
                each["grid"],
                "any" if each["most_steps"] is None else f"to {each['most_steps']}",
                each["source"],
            )
            for each in described
        ],
    )
    print(
        "order: of convergence to the probability flow, of the weak error where it draws noise;\n"
        "— is a few-step heuristic. NFE: network evaluations. grid: its default. steps: allowed."
    )


@app.command()
def compare(
    model: Annotated[
        str,
        typer.Option(
            help="An embedded model, a folder, owner/name on Hugging Face, a checkpoint, or "
            "testbed:NAME (exact answers known)."
        ),
    ],
    nfe: Annotated[
        str, typer.Option(help="Budgets of network evaluations an object, with commas.")
    ] = "10,20,50",
    out: Annotated[
        Path, typer.Option("--out", "-o", help="CSV, written as it is measured.")
    ] = Path("samplers.csv"),
    plot: Annotated[
        Path | None, typer.Option(help="Picture of quality against evaluations (.png .svg .pdf).")
    ] = None,
    samplers: Annotated[
        str | None, typer.Option(help="Which ones, with commas; all by default.")
    ] = None,
    num: Annotated[
        int | None,
        typer.Option(
            "--num",
            "-n",
            help="Objects per sampler and budget; by default 1,000, and 10,000 on a testbed.",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the noise, the same for every sampler.")] = 0,
    reference: Annotated[
        str | None,
        typer.Option(
            help="Compared with this: a CSV, or an embedded model's; the model's own by default."
        ),
    ] = None,
    batch_size: Annotated[int | None, typer.Option(help="Objects at a time.")] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Measure again what the CSV already holds.")
    ] = False,
    json: Json = False,
) -> None:
    """Measure quality against network evaluations, sampler by sampler.

    A CSV of the same model, count and seed is continued: what it holds is not measured again.
    Ctrl-C keeps what is measured; the same command goes on.
    """
    budgets = _budgets(nfe)
    names = None if samplers is None else [name.strip() for name in samplers.split(",")]
    check_positive(num=num, batch_size=batch_size)
    _check_picture(plot)

    from structdiff.cli.heads import load_comparable
    from structdiff.samplers.comparison import plan
    from structdiff.samplers.comparison_table import ComparisonTable

    loaded = load_comparable(model, reference, batch_size)
    count = loaded.usual_count if num is None else num
    table = ComparisonTable(out, loaded, count, seed, fresh)
    cases = plan(loaded, budgets, names)
    measured, interrupted = _measure(loaded, cases, table, count, seed)
    if not table.finish():
        messages().print("nothing was measured: nothing is written")
        raise typer.Exit(130 if interrupted else 0)
    floors = table.floors
    if plot is not None and any(each.scores for each in measured):
        _draw(measured, loaded, floors, plot)
    if json:
        print_json(_document(loaded, count, seed, floors, measured))
    else:
        _print(loaded, count, floors, measured)
    if interrupted:
        done = sum(bool(each.scores) for each in measured)
        todo = sum(case.steps is not None for case in cases)
        messages().print(
            f"{done} of {todo} cases are measured and written to {out}; the same command goes on",
            soft_wrap=True,
        )
        raise typer.Exit(130)


# --- measuring -------------------------------------------------------------------------------


def _measure(
    model: ComparableModel, cases: Sequence[Case], table: ComparisonTable, count: int, seed: int
) -> tuple[list[Measurement], bool]:
    """Every case, from the table where it holds it; and whether Ctrl-C cut it short.

    The table has the last word on what is measured: Ctrl-C may come when a row is written but not
    yet counted here.
    """
    found: list[Measurement] = []
    try:
        with noting_interrupts() as asked:
            for measurement in _measurements(model, cases, table, count, seed, asked):
                found.append(measurement)
                if asked:
                    return found, True
    except KeyboardInterrupt:
        rest = (table.measured(case) for case in cases[len(found) :])
        return found + [each for each in rest if each is not None], True
    return found, False


def _measurements(
    model: ComparableModel,
    cases: Sequence[Case],
    table: ComparisonTable,
    count: int,
    seed: int,
    asked: Interrupts,
) -> Iterator[Measurement]:
    from tqdm import tqdm

    from structdiff.samplers.comparison import compare as measure

    known = {case: table.measured(case) for case in cases}
    reused = sum(each is not None for each in known.values())
    if reused:
        messages().print(f"{reused} cases are taken from {table.path}", soft_wrap=True)
    work = sum(case.nfe for case in cases if known[case] is None and case.steps is not None)
    with tqdm(total=work, desc="comparing", unit="nfe") as bar:
        for case in cases:
            measurement = known[case]
            if measurement is None:
                bar.set_postfix_str(f"{case.sampler}, {case.nfe}")
                (measurement,) = measure(model, [case], count, seed)
                with asked.held():
                    table.add(measurement)
                bar.update(case.nfe if case.steps is not None else 0)
            yield measurement


# --- printing --------------------------------------------------------------------------------


def _description(name: str, info: SamplerInfo) -> dict[str, Any]:
    return {
        "name": name,
        "order": info.order,
        "nfe_per_step": info.nfe_per_step,
        "stochastic": info.stochastic,
        "grid": _grid(info),
        "most_steps": info.most_steps,
        "couples_batch": info.couples_batch,
        "source": info.source,
    }


def _grid(info: SamplerInfo) -> str:
    """The default grid in a few letters."""
    from structdiff.samplers import Karras, UniformLogSNR, UniformTime

    grid = info.factory(_EXAMPLE_STEPS).grid
    if isinstance(grid, UniformTime):
        return "t" if grid.power == 1 else f"t^{grid.power:g}"
    if isinstance(grid, UniformLogSNR):
        return "log-SNR"
    if isinstance(grid, Karras):
        return f"Karras {grid.rho:g}"
    return str(grid)


def _print(
    model: ComparableModel, count: int, floors: dict[str, float], measured: list[Measurement]
) -> None:
    """The measured cases, best first at every budget; then the others with their reasons."""
    names = [metric.name for metric in model.metrics]
    first = model.metrics[0]
    sign = 1 if first.better == "smaller" else -1

    def place(each: Measurement) -> tuple[int, float]:
        value = sign * each.scores.get(first.name, math.nan)
        return each.case.nfe, math.inf if math.isnan(value) else value

    done = sorted((each for each in measured if each.scores), key=place)
    rows: list[Sequence[object]] = [
        (
            each.case.nfe,
            each.case.sampler,
            each.case.steps,
            each.evaluations,
            *(each.scores.get(name, math.nan) for name in names),
            1000 * (each.seconds or 0.0) / count,
        )
        for each in done
    ]
    if floors:
        values = (floors.get(name, math.nan) for name in names)
        rows.append(("", "real data", "", "", *values, math.nan))
    header = ["NFE", "sampler", "steps", "evaluations", *names, "CPU ms each"]
    print_table(f"{model.name}: {count:,} objects a row", header, rows)
    reasons: dict[str, list[str]] = {}
    for each in measured:
        if not each.scores:
            reasons.setdefault(each.note, []).append(f"{each.case.sampler} ({each.case.nfe})")
    if reasons:
        print_table(
            "not measured",
            ["sampler (NFE)", "why"],
            [(", ".join(which), why) for why, which in reasons.items()],
        )


def _document(
    model: ComparableModel,
    count: int,
    seed: int,
    floors: dict[str, float],
    measured: list[Measurement],
) -> dict[str, Any]:
    return {
        "model": model.name,
        "count": count,
        "seed": seed,
        "metrics": {metric.name: metric.better for metric in model.metrics},
        "floors": floors,
        "rows": [
            {
                "sampler": each.case.sampler,
                "nfe": each.case.nfe,
                "steps": each.case.steps,
                "evaluations": each.evaluations,
                "scores": dict(each.scores),
                "cpu_ms": None if each.seconds is None else 1000 * each.seconds / count,
                "note": each.note,
            }
            for each in measured
        ],
    }


def _draw(
    measured: list[Measurement], model: ComparableModel, floors: dict[str, float], path: Path
) -> None:
    import matplotlib

    matplotlib.use("agg")
    from structdiff.diagnostics.sampler_curves import sampler_curves

    figure = sampler_curves(measured, model.metrics, floors)[0].figure
    figure.suptitle(model.name, fontsize=11)
    figure.savefig(path, dpi=150)


# --- what was asked --------------------------------------------------------------------------


def _budgets(words: str) -> list[int]:
    budgets = []
    for word in words.split(","):
        if not word.strip().isdecimal() or int(word) < 1:
            raise StructDiffError(
                f"--nfe {words}: {word.strip()!r} should be a whole number of at least 1, several "
                "with commas, such as 5,10,20,50"
            )
        budgets.append(int(word))
    return sorted(set(budgets))


def _check_picture(path: Path | None) -> None:
    """Before any work: a picture has a known format, a folder to lie in, and what draws it."""
    if path is None:
        return
    if path.suffix.lower() not in _PICTURES:
        raise StructDiffError(
            f"{path}: cannot draw this format; end the name in {', '.join(_PICTURES)}"
        )
    if not path.parent.is_dir():
        raise StructDiffError(f"{path}: the folder {path.parent} does not exist; make it first")
    importlib.import_module("matplotlib")
