"""The dataset registry: where every dataset comes from, and the verified copy on this machine.

One card (a TOML file in ``datasets/``) describes one dataset: the public address of each file, the
SHA-256 of the source and of the copy we keep, how one is made from the other, licence, citation and
splits. Small sets that the project made itself lie beside their cards and come with the package.
Another file is looked for in two places, in this order:

1. the folder named by ``STRUCTDIFF_DATA``, read only, laid out as ``<group>/<file>``;
2. the cache (``STRUCTDIFF_CACHE``, else the user cache of the platform), laid out the same way,
   where :func:`fetch` puts it.

A file becomes visible in the cache only when it is complete and its hash is right, so that
``visible  =>  sha256(content) = sha256(card)``; an interrupted download resumes where it stopped.
"""

from __future__ import annotations

import contextlib
import csv
import difflib
import errno
import gzip
import hashlib
import io
import json
import os
import sys
import tarfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from structdiff._download import DownloadError, download
from structdiff.errors import StructDiffError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = [
    "DatasetCard",
    "DatasetError",
    "DatasetFile",
    "cache_folder",
    "card",
    "data_folder",
    "fetch",
    "list_datasets",
    "load_smiles",
    "path",
    "read_card",
]


#: ``convert`` of a file that comes with the package.
EMBEDDED = "embedded"


class DatasetError(StructDiffError):
    """A dataset that is unknown, absent, unreachable or damaged."""


@dataclass(frozen=True)
class DatasetFile:
    """One file of a dataset.

    Attributes
    ----------
    role
        What the file holds, e.g. ``"smiles"``; unique within a card.
    path
        Place below the data folder or the cache, ``<group>/<file>``.
    sha256
        Of the file as first published by us.
    bytes
        Size of that file.
    content_sha256
        Of the decompressed content, for gzip files: two compressors may write other bytes for the
        same content, so either hash identifies the file.
    url, source_sha256
        The public source, and its own hash; the script of a file that the project made, and the
        file's hash.
    convert
        How the file is made from its source: the name of a function in :data:`CONVERSIONS`,
        ``"as_is"``, ``"by_hand"`` where it cannot be made automatically, or ``"embedded"`` where it
        comes with the package.
    """

    role: str
    path: str
    sha256: str
    bytes: int
    url: str
    source_sha256: str
    convert: str = "as_is"
    content_sha256: str | None = None

    def matches(self, file: Path) -> bool:
        """Whether ``file`` holds what the card says, compressed by whichever gzip."""
        data = file.read_bytes()
        if hashlib.sha256(data).hexdigest() == self.sha256:
            return True
        if self.content_sha256 is None:
            return False
        try:
            content = gzip.decompress(data)
        except (OSError, EOFError, zlib.error):
            return False
        return hashlib.sha256(content).hexdigest() == self.content_sha256


@dataclass(frozen=True)
class DatasetCard:
    """What is known about one dataset; the first file is the main one."""

    name: str
    title: str
    group: str
    format: str
    licence: str
    citation: tuple[str, ...]
    conversion: str
    files: tuple[DatasetFile, ...]
    splits: Mapping[str, str] = field(default_factory=dict)

    def file(self, role: str | None = None) -> DatasetFile:
        """The file with this role; the main file without one.

        Raises
        ------
        DatasetError
            No file has this role.
        """
        if role is None:
            return self.files[0]
        for candidate in self.files:
            if candidate.role == role:
                return candidate
        roles = ", ".join(f.role for f in self.files)
        raise DatasetError(f"dataset {self.name!r} has no file {role!r}; it has: {roles}")


# ---------------------------------------------------------------- where things are


def data_folder() -> Path | None:
    """The read-only folder named by ``STRUCTDIFF_DATA``, or None."""
    folder = os.environ.get("STRUCTDIFF_DATA")
    return Path(folder).expanduser() if folder else None


def cache_folder() -> Path:
    """Where fetched files are kept: ``STRUCTDIFF_CACHE``, else the user cache of the platform."""
    folder = os.environ.get("STRUCTDIFF_CACHE")
    if folder:
        return Path(folder).expanduser()
    import pooch

    return Path(pooch.os_cache("structdiff"))


def _registry_folder() -> Path:
    """``structdiff/_datasets`` in an installed wheel, ``datasets`` in a checkout."""
    package = Path(__file__).resolve().parent
    installed = package / "_datasets"
    return installed if installed.is_dir() else package.parent / "datasets"


# ---------------------------------------------------------------- cards


def read_card(file: str | Path) -> DatasetCard:
    """Read one TOML card.

    Raises
    ------
    DatasetError
        The file is not TOML or lacks an entry; the message names both.
    """
    file = Path(file)
    try:
        entries: dict[str, Any] = tomllib.loads(file.read_text(encoding="utf-8"))
        files = tuple(
            DatasetFile(
                role=item["role"],
                path=item["path"],
                sha256=item["sha256"],
                bytes=item["bytes"],
                url=item["source"]["url"],
                source_sha256=item["source"]["sha256"],
                convert=item["source"].get("convert", "as_is"),
                content_sha256=item.get("content_sha256"),
            )
            for item in entries["files"]
        )
        return DatasetCard(
            name=entries["name"],
            title=entries["title"],
            group=entries["group"],
            format=entries["format"],
            licence=entries["licence"],
            citation=tuple(entries["citation"]),
            conversion=entries["conversion"],
            files=files,
            splits=entries.get("splits", {}),
        )
    except tomllib.TOMLDecodeError as error:
        raise DatasetError(f"{file}: not a TOML card: {error}") from error
    except KeyError as error:
        raise DatasetError(f"{file}: the dataset card lacks the entry {error}") from error


@lru_cache(maxsize=1)
def _cards() -> dict[str, DatasetCard]:
    cards = (read_card(file) for file in sorted(_registry_folder().glob("*.toml")))
    return {each.name: each for each in cards}


def list_datasets() -> list[DatasetCard]:
    """Every dataset of the registry, by name."""
    return [_cards()[name] for name in sorted(_cards())]


def card(name: str) -> DatasetCard:
    """The card of one dataset.

    Raises
    ------
    DatasetError
        The name is unknown; the message lists the known ones and the closest.
    """
    if name in _cards():
        return _cards()[name]
    close = difflib.get_close_matches(name, _cards(), n=1, cutoff=0.5)
    hint = f" (did you mean {close[0]!r}?)" if close else ""
    raise DatasetError(f"unknown dataset {name!r}{hint}; known: {', '.join(sorted(_cards()))}")


# ---------------------------------------------------------------- looking up and fetching


def path(name: str, role: str | None = None) -> Path:
    """The file of a dataset on this machine; nothing is downloaded.

    Parameters
    ----------
    name
        Of the dataset.
    role
        Which of its files; the main one by default.

    Raises
    ------
    DatasetError
        The dataset is unknown or not on this machine.
    """
    wanted = card(name).file(role)
    for place in _places(wanted):
        if place.is_file():
            return place
    looked = " and ".join(str(place) for place in _places(wanted))
    raise DatasetError(
        f"dataset {name!r} is not on this machine (looked for {looked}); "
        f"run `structdiff datasets fetch {name}`, or let STRUCTDIFF_DATA name a folder that has it"
    )


def fetch(name: str | DatasetCard, *, progress: bool = True) -> Path:
    """Bring every file of a dataset to this machine, verified, and return the main one.

    Safe to call from several processes at once: one downloads, the others wait and find the file.

    Parameters
    ----------
    name
        Of a dataset, or a card of your own.
    progress
        Whether to draw a progress bar on standard error.

    Returns
    -------
    Path
        The main file, in the data folder or in the cache.

    Raises
    ------
    DatasetError
        The dataset is unknown, cannot be made automatically, cannot be reached, arrived with the
        wrong hash, or does not fit on the disk. What was downloaded before an interruption is kept
        and resumed; what has the wrong hash is deleted.
    """
    wanted = name if isinstance(name, DatasetCard) else card(name)
    main, *_ = [_fetch_file(wanted, file, progress) for file in wanted.files]
    return main


def load_smiles(name: str, *, progress: bool = True) -> tuple[list[str], list[str]]:
    """The training and the test molecules of a dataset, in the split of GDSS.

    Parameters
    ----------
    name
        ``"qm9"`` or ``"zinc250k"``; fetched if it is not on this machine.
    progress
        Whether a download draws a progress bar.

    Returns
    -------
    train, test
        SMILES; training rows in file order, test rows in the order of the published list.

    Raises
    ------
    DatasetError
        As :func:`fetch`; or the dataset holds no SMILES.
    """
    wanted = card(name)
    if wanted.group != "molecules":
        known = ", ".join(each.name for each in list_datasets() if each.group == "molecules")
        raise DatasetError(f"dataset {name!r} holds no SMILES; these do: {known}")
    fetch(wanted, progress=progress)
    with gzip.open(path(name, "smiles"), "rt", encoding="utf-8", newline="") as lines:
        smiles = [row["smiles"] for row in csv.DictReader(lines)]
    with gzip.open(path(name, "test_rows"), "rt", encoding="utf-8") as numbers:
        test_rows: list[int] = json.load(numbers)
    held_out = set(test_rows)
    train = [molecule for row, molecule in enumerate(smiles) if row not in held_out]
    return train, [smiles[row] for row in test_rows]


def _places(file: DatasetFile) -> list[Path]:
    if file.convert == EMBEDDED:
        return [_registry_folder() / file.path]
    folder = data_folder()
    read_only = [folder / file.path] if folder is not None else []
    return [*read_only, cache_folder() / file.path]


def _fetch_file(wanted: DatasetCard, file: DatasetFile, progress: bool) -> Path:
    if file.convert == EMBEDDED:
        return _embedded_file(wanted, file)
    folder = data_folder()
    if folder is not None and (folder / file.path).is_file():
        if file.matches(folder / file.path):
            return folder / file.path
        raise DatasetError(
            f"{folder / file.path}: not the file that the card of {wanted.name!r} describes "
            f"(sha256 should be {file.sha256}); replace it, or unset STRUCTDIFF_DATA to fetch it"
        )
    destination = cache_folder() / file.path
    with _full_disk_explained(destination, file.bytes):
        destination.parent.mkdir(parents=True, exist_ok=True)
        with _one_at_a_time(destination):
            if destination.is_file() and file.matches(destination):
                return destination
            if file.convert == "by_hand":
                raise DatasetError(
                    f"dataset {wanted.name!r} cannot be fetched automatically. {wanted.conversion} "
                    f"Source: {file.url}. Let STRUCTDIFF_DATA name a folder that has {file.path} "
                    f"(sha256 {file.sha256})"
                )
            source = _download(wanted, file, progress)
            try:
                _convert(wanted, file, source, destination)
            finally:
                source.unlink(missing_ok=True)
    return destination


def _embedded_file(wanted: DatasetCard, file: DatasetFile) -> Path:
    (place,) = _places(file)
    if place.is_file() and file.matches(place):
        return place
    raise DatasetError(
        f"{place}: not the file of {wanted.name!r} that comes with structdiff (sha256 should be "
        f"{file.sha256}); install the package again"
    )


def _one_at_a_time(destination: Path) -> contextlib.AbstractContextManager[Any]:
    """Let one process work on a file; the others wait for it."""
    import filelock

    return filelock.FileLock(destination.parent / f".{destination.name}.lock")


@contextlib.contextmanager
def _full_disk_explained(destination: Path, size: int) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise DatasetError(
            f"no space left for {destination} ({size:,} bytes); free some, or let STRUCTDIFF_CACHE "
            "name a folder on another disk"
        ) from error


def _download(wanted: DatasetCard, file: DatasetFile, progress: bool) -> Path:
    try:
        return download(
            file.url, file.source_sha256, cache_folder() / "downloads", progress=progress
        )
    except DownloadError as error:
        raise DatasetError(
            f"dataset {wanted.name!r}: {error}; try again, or let STRUCTDIFF_DATA name "
            f"a folder that has {file.path}"
        ) from error


# ---------------------------------------------------------------- source -> file


def _convert(wanted: DatasetCard, file: DatasetFile, source: Path, destination: Path) -> None:
    """Make the file from its verified source, and show it only when its hash is right."""
    partial = destination.with_name(f".{destination.name}.new")
    try:
        partial.write_bytes(CONVERSIONS[file.convert](source.read_bytes()))
        if not file.matches(partial):
            raise DatasetError(
                f"dataset {wanted.name!r}: {file.path} as made from {file.url} has the wrong hash "
                f"(sha256 should be {file.sha256}); nothing was kept"
            )
        os.replace(partial, destination)
    finally:
        partial.unlink(missing_ok=True)


def _gzip(content: bytes) -> bytes:
    """Compressed without a date, so that the same content gives the same file."""
    return gzip.compress(content, compresslevel=9, mtime=0)


def _row_numbers(content: bytes) -> bytes:
    """GDSS's test lists (zero-padded strings under a key, or numbers) as numbers, order kept."""
    listed = json.loads(content)
    rows = listed["valid_idxs"] if isinstance(listed, dict) else listed
    return _gzip(json.dumps([int(row) for row in rows], separators=(",", ":")).encode())


def _tar_smiles(content: bytes) -> bytes:
    """The one text file in a tar archive, one SMILES a line, with a header."""
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        member = next(each for each in archive if each.isfile())
        lines = archive.extractfile(member)
        assert lines is not None  # a member that is a file has content
        return _gzip(b"smiles\n" + lines.read())


_CURRENCIES = "australia united_kingdom canada switzerland china japan new_zealand singapore"


def _exchange_rate(content: bytes) -> bytes:
    """The rates with a header and a column ``t``, 0 for the first day."""
    lines = gzip.decompress(content).decode().splitlines()
    rows = [",".join(["t", *_CURRENCIES.split()]), *(f"{t},{line}" for t, line in enumerate(lines))]
    return _gzip(("\n".join(rows) + "\n").encode())


def _m4_lengths(number: int) -> int:
    """Training points of the M4 hourly series of this number, from 1."""
    return 700 if number <= 169 else 960


def _m4_train(content: bytes) -> bytes:
    """M4's table, a series in each row, as rows of unique_id, ds, y with ds from 1."""
    return _gzip(_m4_long(content, lambda number: 1))


def _m4_test(content: bytes) -> bytes:
    """The same of the values that follow; ds goes on."""
    return _gzip(_m4_long(content, lambda number: 1 + _m4_lengths(number)))


def _m4_long(content: bytes, first: Callable[[int], int]) -> bytes:
    lines = ["unique_id,ds,y"]
    for name, *cells in list(csv.reader(io.StringIO(content.decode())))[1:]:
        values = [cell for cell in cells if cell]
        start = first(int(name.removeprefix("H")))
        lines += [f"{name},{start + k},{value}" for k, value in enumerate(values)]
    return ("\n".join(lines) + "\n").encode()


CONVERSIONS: Mapping[str, Callable[[bytes], bytes]] = {
    "as_is": bytes,
    "gzip": _gzip,
    "row_numbers": _row_numbers,
    "tar_smiles": _tar_smiles,
    "exchange_rate": _exchange_rate,
    "m4_train": _m4_train,
    "m4_test": _m4_test,
}
