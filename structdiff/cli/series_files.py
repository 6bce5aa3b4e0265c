"""Files of series: CSV (plain, gzip) and Parquet, long or wide, in and out.

A long file has a row for each series and time; a wide one a column of times and a column for each
series. What is read is text turned into numbers, dates and ids here, so that a complaint can name
the row, an id like ``007`` keeps its digits and a value its last bit. What is written appears whole
or not at all.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from structdiff.cli.console import say
from structdiff.cli.tables import TableError, TextTable, check_destination, read_csv
from structdiff.errors import CheckpointError, StructDiffError
from structdiff.storage import write_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ID, TIME, TARGET = "unique_id", "ds", "y"
_PARQUET = {".parquet", ".pq"}
_TABLES = (".csv", ".csv.gz", ".parquet")
_MISSING = {"", "na", "n/a", "nan", "null", "none", "<na>", "#n/a"}

#: How a message of the library names an argument -> the option that sets it.
_OPTIONS = {
    r"\bfill_gaps=True\b": "--fill-gaps",
    r"\bsnap=True\b": "--snap",
    r"\b(the right|leave) freq\b(?!=)": r"\1 --freq",
    r"\bfreq=(?=[\s,;.)]|$)": "--freq",
    r"\bfreq=": "--freq ",
    r"\b(id|time|target)_col=(?=[\s,;.)]|$)": r"--\1-col",
    r"\b(id|time|target)_col=": r"--\1-col ",
    r"\bpass refine=None, synthetic=0": "leave --refine and --synthetic out",
    r"^synthetic must\b": "--synthetic must",
    r"\bh=(?=\d)": "--horizon ",
    r"\bseed=(?=-?\d)": "--seed ",
    r"^random_state must be None or\b": "--seed must be",
    r"\bguidance_scale\b": "--guidance-scale",
    r"\bguidance='(\w+)'": r"--guidance \1",
}


@dataclass(frozen=True)
class SeriesFile:
    """A frame of series, and how its columns are called."""

    path: Path
    frame: pd.DataFrame
    id_col: str = ID
    time_col: str = TIME
    target_col: str = TARGET

    @property
    def columns(self) -> dict[str, Any]:
        """As arguments of the estimator."""
        return {
            "id_col": self.id_col,
            "time_col": self.time_col,
            "target_col": self.target_col,
        }


# ---------------------------------------------------------------- reading


def read_series(
    path: str | Path,
    id_col: str | None = None,
    time_col: str | None = None,
    target_col: str | None = None,
    *,
    usual: tuple[str, str, str] = (ID, TIME, TARGET),
) -> SeriesFile:
    """Read a file of series.

    Parameters
    ----------
    path
        ``.csv`` (comma, semicolon or tab), ``.csv.gz`` or ``.parquet``.
    id_col, time_col, target_col
        Names of columns; ``unique_id``, ``ds`` and ``y`` by default. In a wide CSV without ``ds``
        the first column is the time.
    usual
        Names that come before those defaults, where the file has such columns.

    Raises
    ------
    TableError
        The file is missing, damaged or lacks a named column, or a cell is no number; with its row.
    StructDiffError
        Parquet without pyarrow.
    """
    path = Path(path)
    given = (id_col, time_col, target_col)
    if path.suffix.lower() in _PARQUET:
        frame = _read_parquet(path)
        known = [*frame.columns, *frame.index.names]
        return SeriesFile(path, frame, *_names(path, known, given, usual))
    table = read_csv(path, "a CSV of series, long (unique_id, ds, y) or wide", "time")
    header = list(table.columns)
    names = _names(path, header, given, usual)
    if names[0] in header or (names[1] in header and names[2] in header):
        return SeriesFile(path, _long(table, *names), *names)
    if names[1] not in header:
        names = (names[0], header[0], names[2])
    return SeriesFile(path, _wide(table, names[1]), *names)


def _names(
    path: Path,
    header: list[Any],
    given: tuple[str | None, str | None, str | None],
    usual: tuple[str, str, str],
) -> tuple[str, str, str]:
    """How the id, the time and the target are called in a file."""
    chosen = []
    for asked, own, default in zip(given, usual, (ID, TIME, TARGET), strict=True):
        if asked is not None and asked not in header:
            option = {ID: "--id-col", TIME: "--time-col", TARGET: "--target-col"}[default]
            has = ", ".join(map(repr, header[:12]))
            raise TableError(f"{path}: no column {asked!r} ({option}); it has {has}")
        chosen.append(asked or (own if own in header else default))
    return chosen[0], chosen[1], chosen[2]


def _long(table: TextTable, id_col: str, time_col: str, target_col: str) -> pd.DataFrame:
    """Columns that are read get their types, the others stay text."""
    parts: dict[str, Any] = {name: np.array(v, object) for name, v in table.columns.items()}
    owners: list[str] | None = None
    if id_col in parts:
        owners = table.columns[id_col]
        parts[id_col] = np.array([name if name.strip() else None for name in owners], object)
    if time_col in parts:
        parts[time_col] = _times(table.columns[time_col])
    if target_col in parts:
        parts[target_col] = _numbers(table, target_col, owners)
    return pd.DataFrame(parts)


def _wide(table: TextTable, time_col: str) -> pd.DataFrame:
    parts: dict[str, Any] = {}
    for name, cells in table.columns.items():
        parts[name] = _times(cells) if name == time_col else _numbers(table, name)
    return pd.DataFrame(parts)


def _times(cells: list[str]) -> Any:
    """Whole numbers as such, 20240131 as a date, other text as it is; empty is missing."""
    text = np.array([cell.strip() or None for cell in cells], object)
    if all(re.fullmatch(r"(19|20)\d{6}", cell or "") for cell in text):
        dates = pd.to_datetime(pd.Series(text), format="%Y%m%d", errors="coerce")
        if not dates.isna().any():
            return dates
    whole = _whole(text)
    return text if whole is None else whole


def _numbers(table: TextTable, name: str, owners: list[str] | None = None) -> np.ndarray:
    """A column as int64, or as float64 with NaN for what is missing.

    Python's ``float`` rounds to the nearest double, pandas' fast parsers need not.
    """
    cells = np.array([cell.strip() for cell in table.columns[name]], object)
    whole = _whole(cells)
    if whole is not None:
        return whole
    cells[[cell.lower() in _MISSING for cell in cells]] = "nan"
    try:
        return cells.astype(np.float64)
    except ValueError as error:
        row = next(i for i, cell in enumerate(cells) if not _is_number(cell))
        series = f"series {owners[row]!r}: " if owners is not None else ""
        layout = (
            ""
            if owners is not None
            else "; a wide file has numbers in every column but the time, for a long one name "
            "--id-col, --time-col and --target-col"
        )
        raise TableError(
            f"{table.path}: row {table.lines[row]}: {series}column {name!r} holds "
            f"{cells[row]!r}, not a number; correct it, or leave it empty if it is missing{layout}"
        ) from error


def _whole(cells: np.ndarray) -> np.ndarray | None:
    """All cells as int64, None if they are not whole numbers."""
    if not all(re.fullmatch(r"[+-]?\d{1,18}", cell or "") for cell in cells):
        return None
    return cells.astype(np.int64)


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _read_parquet(path: Path) -> pd.DataFrame:
    if path.is_dir():
        raise TableError(f"{path}: is a folder; name a Parquet file in it")
    if not path.is_file():
        raise TableError(f"{path}: no such file; name a CSV or a Parquet file of series")
    _require_pyarrow(path)
    from pyarrow import ArrowException

    try:
        return pd.read_parquet(path, engine="pyarrow")
    except (ArrowException, OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise TableError(
            f"{path}: not a complete Parquet file ({reason}); fetch or write it again"
        ) from error


def _require_pyarrow(path: Path) -> None:
    try:
        import pyarrow  # noqa: F401
    except ImportError as error:
        raise StructDiffError(
            f"{path}: Parquet needs pyarrow: pip install 'structdiff[parquet]', or use CSV"
        ) from error


# ---------------------------------------------------------------- writing


def check_table(path: Path | None) -> None:
    """Before any work: a table can be written here, in a known format.

    Raises
    ------
    StructDiffError
        Another format, or one whose library is absent; a folder that does not exist.
    """
    if path is None:
        return
    if not path.name.lower().endswith((*_TABLES, *_PARQUET)):
        raise TableError(
            f"{path}: cannot write this format; end the name in {', '.join(_TABLES[:2])} or "
            f"{_TABLES[2]}"
        )
    if path.suffix.lower() in _PARQUET:
        _require_pyarrow(path)
    check_destination(path)


def write_frame(frame: Any, path: Path, target_col: str = TARGET) -> None:
    """Write a result frame; two column levels become one.

    Parameters
    ----------
    frame
        As an estimator returns it.
    path
        Ends in what :func:`check_table` accepts.
    target_col
        The name that stands for the values themselves.
    """
    flat = flattened(pd.DataFrame(frame), target_col)
    keep = not isinstance(flat.index, pd.RangeIndex)
    if path.suffix.lower() in _PARQUET:
        buffer = io.BytesIO()
        flat.to_parquet(buffer, engine="pyarrow", index=keep)
        write_whole(path, buffer.getvalue())
        return
    text = flat.to_csv(index=keep).encode()
    # Without a date, so that the same frame gives the same file.
    write_whole(path, gzip.compress(text, mtime=0) if path.suffix.lower() == ".gz" else text)


def flattened(frame: pd.DataFrame, target_col: str = TARGET) -> pd.DataFrame:
    """A wide frame with one column level: ``a`` for the median of series a, ``a-lo-80`` ...

    Raises
    ------
    StructDiffError
        If two columns would have one name.
    """
    if not isinstance(frame.columns, pd.MultiIndex):
        return frame
    names = []
    for *series, column in frame.columns:
        kept = [str(part) for part in series if part != ""]
        what = str(column).removeprefix("TSDiff") if column != target_col else ""
        # The time column of a wide frame has no second level.
        names.append("/".join(kept) + what if kept else str(column))
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise StructDiffError(
            f"two columns of the result would be called {twice[0]!r}; rename one of the series"
        )
    return frame.set_axis(names, axis=1)


def check_picture(path: Path | None) -> None:
    """Before any work: a picture has a known format and a folder to lie in."""
    if path is None:
        return
    if path.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise StructDiffError(
            f"{path}: cannot draw this format; end the name in .png, .svg or .pdf"
        )
    check_destination(path)


def write_picture(figure: Figure, path: Path) -> None:
    """Write a figure; the file appears whole or not at all."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format=path.suffix[1:].lower(), dpi=150)
    write_whole(path, buffer.getvalue())


# ---------------------------------------------------------------- messages


@contextlib.contextmanager
def naming(place: Path | str) -> Iterator[None]:
    """Around work on a file: a complaint names it and speaks of options, not of arguments.

    Warnings of the package become messages; those of other packages about themselves are left out.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.filterwarnings("always", category=UserWarning, module=r"structdiff\.")
        warnings.showwarning = lambda text, *_: say(f"{place}: {_as_options(str(text))}")
        try:
            yield
        except (TableError, CheckpointError):
            raise  # these name their own file
        except StructDiffError as error:
            raise type(error)(f"{place}: {_as_options(str(error))}") from error


@contextlib.contextmanager
def speaking_of_options() -> Iterator[None]:
    """Around work on no file: a complaint speaks of options, not of arguments."""
    try:
        yield
    except CheckpointError:
        raise
    except StructDiffError as error:
        raise type(error)(_as_options(str(error))) from error


def _as_options(message: str) -> str:
    for argument, option in _OPTIONS.items():
        message = re.sub(argument, option, message)
    return message
