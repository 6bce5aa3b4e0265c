"""Scores of poses as tables: on the screen, in a file with units, as JSON, as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from structdiff.cli.console import print_json, print_table
from structdiff.cli.pose_pairs import Pairs, joint_errors
from structdiff.storage import write_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_WORDS = {
    "MPJPE": "mean distance of the joints, roots together",
    "P-MPJPE": "after the best similarity",
    "N-MPJPE": "after the best scale",
    "MPJVE": "error of the velocities",
    "PCK": "joints within 150 mm",
    "AUC": "area under PCK from 0 to 150 mm",
    "J-Best": "best hypothesis of every joint",
    "P-Best (pose)": "of every pose",
    "coverage (80 %)": "coordinates inside their 80 % interval",
}
"""What the short names mean."""
_LINE = 96
#: Of what an evaluation has, as much as a screen shows.
_SHOWN = ("frames", *_WORDS)


def with_units(table: pd.DataFrame, space: str = " ") -> pd.DataFrame:
    """The columns of an evaluation with their units in their names, after ``space``."""
    units = table.attrs["units"]

    def named(column: str) -> str:
        unit = units.get(column)
        plain = unit is None or f"({unit})" in column
        return column if plain else f"{column}{space}({unit})"

    return table.rename(columns=named)


def write_scores(table: pd.DataFrame, path: Path) -> None:
    """As CSV, whole or not at all; a row for each row of the table."""
    write_whole(path, table.to_csv(lineterminator="\n").encode())


def print_evaluation(title: str, table: pd.DataFrame, json: bool) -> None:
    """What :func:`structdiff.pose.evaluate` returned, on standard output."""
    if json:
        print_json(
            {
                **{k: table.attrs[k] for k in ("protocol", "joints", "share_joints", "hypotheses")},
                "units": table.attrs["units"],
                "rows": table.to_dict("index"),
            }
        )
        return
    shown = table[[column for column in _SHOWN if column in table]]
    shown.attrs = table.attrs
    print_scores(title, with_units(shown, "\n"))
    print(_explained([column for column in shown if column in _WORDS]))


def print_scores(title: str, table: pd.DataFrame) -> None:
    """Any table of scores; whole numbers stay whole."""
    whole = [pd.api.types.is_integer_dtype(kind) for kind in table.dtypes]
    rows = [
        (str(name), *(int(v) if i else float(v) for i, v in zip(whole, row, strict=True)))
        for name, row in zip(table.index, table.values, strict=True)
    ]
    print_table(title, [str(table.index.name or ""), *map(str, table.columns)], rows)


def _explained(columns: Sequence[str]) -> str:
    """The short names in words, in lines that fit."""
    lines = [""]
    for number, column in enumerate(columns):
        words = f"{column}: {_WORDS[column]}" + (";" if number < len(columns) - 1 else ".")
        if len(lines[-1]) + len(words) > _LINE:
            lines.append("")
        lines[-1] += f"{' ' if lines[-1] else ''}{words}"
    return "\n".join(lines)


def error_picture(pairs: Pairs) -> Figure:
    """Mean error of every joint as bars."""
    from structdiff.pose.plots import plot_joint_errors

    ax: Any = plot_joint_errors(joint_errors(pairs), skeleton=pairs.targets.skeleton)
    found: Figure = ax.figure
    return found
