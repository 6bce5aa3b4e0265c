"""How the files of the datasets are made from their public sources, byte for byte the same."""

from __future__ import annotations

import csv
import gzip
import io
import json
import tarfile
from collections.abc import Callable, Mapping


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
