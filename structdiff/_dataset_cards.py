"""Dataset cards: what a TOML file of ``datasets/`` says, and whether a file is what it says."""

from __future__ import annotations

import gzip
import hashlib
import sys
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from structdiff.errors import StructDiffError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

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
