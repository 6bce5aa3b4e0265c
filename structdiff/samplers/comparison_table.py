"""A comparison on disk: one CSV row for each sampler and budget, written as it is measured.

Every row says of which model, how many objects and which seed it is, so a table can be continued,
widened by samplers or budgets, and is never mixed with another. Columns: ``model``,
``fingerprint``, ``count``, ``seed``, ``sampler``, ``nfe``, ``steps``, ``evaluations``, every metric
followed by its ``_floor`` where that is known, ``cpu_ms`` (per object), ``note`` (why a row is
empty).
"""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from structdiff.errors import StructDiffError
from structdiff.samplers.comparison import Case, ComparableModel, Measurement

_FIRST = ("model", "fingerprint", "count", "seed", "sampler", "nfe", "steps", "evaluations")
_LAST = ("cpu_ms", "note")


class ComparisonTable:
    """The measurements of one model, and the file they lie in.

    Until :meth:`finish`, rows lie in ``<name>.part`` beside it, each down to the disk.

    Parameters
    ----------
    path
        CSV; rows that are already there, or in its part, are read.
    model
        What is measured.
    count, seed
        Objects per case, and the seed.
    fresh
        Forget what the file holds.

    Attributes
    ----------
    floors
        What real data scores, per metric.

    Raises
    ------
    StructDiffError
        If the file is no comparison, or of another model, count or seed; or its folder is missing.
    """

    def __init__(
        self, path: str | Path, model: ComparableModel, count: int, seed: int, fresh: bool = False
    ) -> None:
        self.path = Path(path)
        if self.path.is_dir():
            raise StructDiffError(f"{path}: is a folder; give the name of a file in it")
        if not self.path.parent.is_dir():
            raise StructDiffError(
                f"{path}: the folder {self.path.parent} does not exist; make it first"
            )
        self.partial = self.path.with_name(self.path.name + ".part")
        self.count = count
        self._settings = {
            "model": model.name,
            "fingerprint": model.fingerprint,
            "count": str(count),
            "seed": str(seed),
        }
        self._metrics = [metric.name for metric in model.metrics]
        self.floors = model.floors(count)
        self._order = {name: k for k, name in enumerate(model.sampler_names())}
        self._header = [*_FIRST, *self._score_columns(), *_LAST]
        self._rows: dict[tuple[str, int], dict[str, str]] = {}
        if not fresh:
            for file in (self.path, self.partial):
                self._read(file)
        self._started = False

    def measured(self, case: Case) -> Measurement | None:
        """What the table holds of a case; None where it was not measured, or with other steps."""
        row = self._rows.get((case.sampler, case.nfe))
        if row is None or row["note"] or row["steps"] != str(case.steps):
            return None
        return _measurement(row, self._metrics)

    def add(self, measurement: Measurement) -> None:
        """Append a row, down to the disk."""
        row = self._row(measurement)
        self._rows[measurement.case.sampler, measurement.case.nfe] = row
        # The first row takes those from earlier along: a part is a whole table at any time.
        first = not self._started
        # Before anything is written: an interruption in the middle still finishes with all rows.
        self._started = True
        with open(self.partial, "w" if first else "a", encoding="utf-8", newline="") as file:
            self._write(file, self._sorted() if first else [row], header=first)

    def finish(self) -> bool:
        """Show the file under its name, in order; False, and no file, if there is no row."""
        if not self._started:
            return bool(self._rows)
        with open(self.partial, "w", encoding="utf-8", newline="") as file:
            self._write(file, self._sorted(), header=True)
        os.replace(self.partial, self.path)
        return True

    # --- rows ----------------------------------------------------------------------------------
    def _score_columns(self) -> Iterable[str]:
        for name in self._metrics:
            yield name
            if name in self.floors:
                yield f"{name}_floor"

    def _row(self, measurement: Measurement) -> dict[str, str]:
        case, scores = measurement.case, measurement.scores
        values = {name: _text(scores.get(name)) for name in self._metrics}
        floors = {f"{name}_floor": _text(value) for name, value in self.floors.items()}
        seconds = measurement.seconds
        return {
            **self._settings,
            "sampler": case.sampler,
            "nfe": str(case.nfe),
            "steps": "" if case.steps is None else str(case.steps),
            "evaluations": "" if not scores else str(measurement.evaluations),
            **values,
            **floors,
            "cpu_ms": "" if seconds is None else f"{1000 * seconds / self.count:.4g}",
            "note": measurement.note,
        }

    def _sorted(self) -> list[dict[str, str]]:
        last = len(self._order)
        return [
            self._rows[key]
            for key in sorted(self._rows, key=lambda k: (k[1], self._order.get(k[0], last), k[0]))
        ]

    def _write(self, file: IO[Any], rows: Iterable[Mapping[str, str]], *, header: bool) -> None:
        writer = csv.DictWriter(file, self._header, lineterminator="\n")
        if header:
            writer.writeheader()
        writer.writerows(rows)
        file.flush()
        os.fsync(file.fileno())

    # --- what is there -------------------------------------------------------------------------
    def _read(self, file: Path) -> None:
        if not file.is_file():
            return
        header, rows = _rows_of(file)
        if not set(_FIRST + _LAST) <= set(header):
            raise StructDiffError(
                f"{file}: is not a table of this command; choose another name, or --fresh to "
                "write over it"
            )
        for row in rows:
            # A crash may have cut the last line of a part short.
            if None in row.values() or len(row) != len(header):
                continue
            for name, value in self._settings.items():
                if row[name] != value:
                    raise StructDiffError(
                        f"{file}: holds a comparison with {name} {row[name]!r}, this one has "
                        f"{value!r}; choose another name, or --fresh to write over it"
                    )
            if header == self._header:
                self._rows[row["sampler"], int(row["nfe"])] = row


def read_comparison(path: str | Path) -> tuple[list[Measurement], dict[str, float]]:
    """The measurements of a finished table, and its floors, for a picture or a table of one's own.

    Raises
    ------
    StructDiffError
        If the file is no comparison.
    OSError
        If there is no such file.
    """
    header, rows = _rows_of(Path(path))
    if not set(_FIRST + _LAST) <= set(header):
        raise StructDiffError(f"{path}: is not a table of `structdiff samplers compare`")
    columns = [name for name in header if name not in _FIRST + _LAST]
    metrics = [name for name in columns if not name.endswith("_floor")]
    floors = {n: float(rows[0][f"{n}_floor"]) for n in metrics if rows and f"{n}_floor" in columns}
    return [_measurement(row, metrics) for row in rows], floors


def _measurement(row: Mapping[str, str], metrics: Sequence[str]) -> Measurement:
    if row["note"]:
        case = Case(row["sampler"], int(row["nfe"]), None, row["note"])
        return Measurement(case, note=row["note"])
    return Measurement(
        Case(row["sampler"], int(row["nfe"]), int(row["steps"])),
        int(row["evaluations"]),
        {name: float(row[name]) if row[name] else math.nan for name in metrics},
        float(row["cpu_ms"]) * int(row["count"]) / 1000,
    )


def _rows_of(file: Path) -> tuple[list[str], list[dict[str, str]]]:
    try:
        with open(file, encoding="utf-8", newline="") as text:
            reader = csv.DictReader(text)
            return list(reader.fieldnames or ()), list(reader)
    except (UnicodeDecodeError, csv.Error) as error:
        raise StructDiffError(
            f"{file}: is not a table of this command ({error}); choose another name"
        ) from error


def _text(value: float | None) -> str:
    return "" if value is None or math.isnan(value) else f"{value:.6g}"
