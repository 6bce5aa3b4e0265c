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
import json
import os
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from structdiff._dataset_cards import (
    EMBEDDED,
    DatasetCard,
    DatasetError,
    DatasetFile,
    read_card,
)
from structdiff._dataset_conversions import CONVERSIONS
from structdiff._download import DownloadError, download

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
