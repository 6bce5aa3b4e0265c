"""Tables in files: read, every complaint naming file and row; molecules written as they come.

Read: CSV (comma, semicolon or tab) with a header, or one SMILES a line (``.smi``, ``.smiles``,
``.txt``); plain or gzip. Written: CSV with the columns ``smiles``, ``valid``, ``corrected``.
"""

from __future__ import annotations

import contextlib
import csv
import gzip
import io
import os
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from structdiff.errors import StructDiffError

if TYPE_CHECKING:
    import pandas as pd

_ONE_PER_LINE = {".smi", ".smiles", ".txt"}
_TRUTH = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


class TableError(StructDiffError):
    """A file that cannot be read as the table that is needed."""


@dataclass(frozen=True)
class TextTable:
    """The cells of a file as text, and the line each row stands on."""

    path: Path
    columns: dict[str, list[str]]
    lines: list[int]

    def column(self, name: str | None) -> list[str]:
        """The cells of a column; ``smiles`` in any case when no name is given.

        Raises
        ------
        TableError
            The file has no such column; the message lists those it has.
        """
        wanted = "smiles" if name is None else name
        for known, cells in self.columns.items():
            if known == wanted or (name is None and known.lower() == "smiles"):
                return cells
        has = ", ".join(repr(each) for each in self.columns)
        raise TableError(
            f"{self.path}: row 1: no column {wanted!r}; it has {has}; pass --column NAME, or "
            "give a file of one SMILES a line the ending .smi"
        )

    def flags(self, name: str) -> list[bool]:
        """The cells of a column as truth values.

        Raises
        ------
        TableError
            A cell is neither true nor false; the message names its row.
        """
        found = []
        for cell, line in zip(self.column(name), self.lines, strict=True):
            if cell.strip().lower() not in _TRUTH:
                raise TableError(
                    f"{self.path}: row {line}: column {name!r} holds {cell!r}; it should be True "
                    "or False"
                )
            found.append(_TRUTH[cell.strip().lower()])
        return found


def read_smiles_csv(path: str | Path, column: str | None = None) -> list[str]:
    """The SMILES of a file, one for each row, empty ones included.

    Parameters
    ----------
    path
        A CSV with a header, or one SMILES a line (``.smi``, ``.smiles``, ``.txt``); also ``.gz``.
    column
        Which column of a CSV; ``smiles`` in any case by default.

    Raises
    ------
    TableError
        The file is missing, empty, binary, damaged, or lacks the column.
    """
    return read_table(path).column(column)


def read_generated_csv(path: str | Path, column: str | None = None) -> pd.DataFrame:
    """Generated molecules: ``smiles``, and ``valid`` and ``corrected`` where the file has them.

    Raises
    ------
    TableError
        As :func:`read_smiles_csv`; or a truth value is not one.
    """
    import pandas as pd

    table = read_table(path)
    columns: dict[str, list[str] | list[bool]] = {"smiles": table.column(column)}
    for name in ("valid", "corrected"):
        if name in table.columns:
            columns[name] = table.flags(name)
    return pd.DataFrame(columns)


def read_table(path: str | Path) -> TextTable:
    """Every cell of a file of molecules as text.

    Raises
    ------
    TableError
        The file is missing, empty, binary or damaged, or a row does not fit its header.
    """
    path = Path(path)
    suffixes = {suffix.lower() for suffix in path.suffixes[-2:]} - {".gz"}
    if suffixes & _ONE_PER_LINE:
        return _one_per_line(path, _read_text(path, "a CSV with a column 'smiles'"))
    return read_csv(path, "a CSV with a column 'smiles'", "molecule")


def read_csv(path: str | Path, wanted: str, record: str) -> TextTable:
    """Every cell of a CSV as text: comma, semicolon or tab; plain or gzip.

    Parameters
    ----------
    path
        Has a header.
    wanted
        In messages, what the file should be.
    record
        In messages, what a row is.

    Raises
    ------
    TableError
        As :func:`read_table`.
    """
    return _comma_separated(Path(path), _read_text(Path(path), wanted), record)


def _read_text(path: Path, wanted: str) -> str:
    if path.is_dir():
        raise TableError(f"{path}: is a folder; name a CSV file in it")
    if not path.is_file():
        raise TableError(f"{path}: no such file; name {wanted}")
    data = path.read_bytes()
    if data[:2] == b"\x1f\x8b":
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error) as error:
            raise TableError(
                f"{path}: damaged gzip file ({error}); fetch or write it again"
            ) from error
    if not data.strip():
        raise TableError(f"{path}: the file is empty; it should be {wanted}")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        row = data.count(b"\n", 0, error.start) + 1
        raise TableError(
            f"{path}: row {row}: not a text file (byte 0x{data[error.start]:02x} is not UTF-8); "
            "save it as a CSV in UTF-8"
        ) from error
    if "\0" in text:
        row = text.count("\n", 0, text.index("\0")) + 1
        raise TableError(
            f"{path}: row {row}: not a text file (it holds a zero byte); save it as a CSV"
        )
    return text


def _one_per_line(path: Path, text: str) -> TextTable:
    """A SMILES, then optionally a name, on each line; a header ``smiles`` is recognised."""
    cells = [(line.split() or [""])[0] for line in text.rstrip().splitlines()]
    first = 1 if cells[0].lower() == "smiles" else 0
    lines = list(range(first + 1, len(cells) + 1))
    if not lines:
        raise TableError(f"{path}: a header and no molecules; write one SMILES a line below it")
    return TextTable(path, {"smiles": cells[first:]}, lines)


def _comma_separated(path: Path, text: str, record: str) -> TextTable:
    reader = csv.reader(
        io.StringIO(text.rstrip("\r\n ") + "\n", newline=""), delimiter=_delimiter(text)
    )
    try:
        header = [name.strip() for name in next(reader)]
        cells: list[list[str]] = []
        lines: list[int] = []
        for row in reader:
            if not row and len(header) == 1:
                row = [""]  # an empty line in a file of one column is an empty cell
            if len(row) != len(header):
                raise TableError(
                    f"{path}: row {reader.line_num}: {len(row)} fields where the header has "
                    f"{len(header)}; add what is missing, or put quotes around a field with a comma"
                )
            cells.append(row)
            lines.append(reader.line_num)
    except csv.Error as error:
        raise TableError(
            f"{path}: row {reader.line_num}: not a CSV ({error}); save it as a CSV with a header"
        ) from error
    if len(set(header)) < len(header):
        twice = next(name for name in header if header.count(name) > 1)
        raise TableError(f"{path}: row 1: column {twice!r} appears twice; rename one of them")
    if not cells:
        raise TableError(f"{path}: a header and no rows; write one {record} a row below it")
    return TextTable(
        path, dict(zip(header, map(list, zip(*cells, strict=True)), strict=True)), lines
    )


def _delimiter(text: str) -> str:
    """Comma, semicolon or tab, whichever the header holds most of; a SMILES holds none."""
    header = text.split("\n", 1)[0]
    return max((",", ";", "\t"), key=header.count)


def check_destination(path: Path) -> None:
    """Before any work: a file can be written here.

    Raises
    ------
    TableError
        The name is that of a folder, or its folder does not exist.
    """
    if path.is_dir():
        raise TableError(f"{path}: is a folder; give the name of a file in it")
    if not path.parent.is_dir():
        raise TableError(f"{path}: the folder {path.parent} does not exist; make it first")


class MoleculeWriter:
    """Writes molecules to a CSV batch by batch; the file appears under its name only when finished.

    Until :meth:`finish`, what is written lies in ``<name>.part`` beside it, so that an earlier
    result of the same name is not lost to a run that fails.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.rows = 0
        check_destination(self.path)
        self.partial = self.path.with_name(self.path.name + ".part")
        self._file = open(self.partial, "w", encoding="utf-8", newline="")  # noqa: SIM115

    def write(self, batch: pd.DataFrame) -> None:
        """Append a batch with the columns smiles, valid, corrected, down to the disk."""
        batch.to_csv(
            self._file,
            columns=["smiles", "valid", "corrected"],
            header=self.rows == 0,
            index=False,
        )
        self._file.flush()
        os.fsync(self._file.fileno())
        self.rows += len(batch)

    def finish(self) -> bool:
        """Show the file under its name; False, and no file, if nothing was written."""
        self._file.close()
        if self.rows == 0:
            self.partial.unlink(missing_ok=True)
            return False
        os.replace(self.partial, self.path)
        return True

    def abandon(self) -> None:
        """Close without showing; finished batches stay in the part, an empty part is removed."""
        with contextlib.suppress(OSError):  # a full disk cannot take the buffer either
            self._file.close()
        if self.rows == 0:
            self.partial.unlink(missing_ok=True)
