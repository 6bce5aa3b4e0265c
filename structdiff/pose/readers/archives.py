"""Archives of nested dictionaries, pickled as the field keeps them or plain.

In a plain archive the way to an array is its name: ``positions_2d/S1/Walking 1/[0]`` is entry 0 of
a list; a ``/`` in a name is ``%2F``. Such a file loads without pickles, anywhere.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from structdiff.errors import StructDiffError
from structdiff.pose.numpy_pickle import read_npz

_NOTHING = "%None"


def read_archive(path: str | Path) -> dict[str, Any]:
    """Nested dictionaries and lists of an archive, pickled or plain.

    Raises
    ------
    StructDiffError
        If the file is no archive, or a pickle in it asks for more than arrays and containers.
    """
    content: dict[str, Any] = {}
    for key, value in read_npz(path).items():
        at = content
        *way, last = key.split("/")
        for step in way:
            at = at.setdefault(_name(step), {})
            if not isinstance(at, dict):
                raise StructDiffError(
                    f"{path} has arrays both at and below {key!r}: write it again"
                )
        at[_name(last)] = _scalar(value)
    return {key: _lists(value) for key, value in content.items()}


def convert_to_plain_npz(source: str | Path, out: str | Path) -> Path:
    """Write an archive of pickled objects as one that needs no pickles.

    The readers of this package take either.

    Parameters
    ----------
    source
        An archive such as ``data_3d_h36m.npz`` or ``data_2d_h36m_gt.npz``; its pickles are read
        without being executed.
    out
        The new ``.npz`` file.

    Returns
    -------
    Path
        The new file.

    Raises
    ------
    StructDiffError
        If the source cannot be read, holds something that is no array, number or text, or the
        two are the same file.
    """
    source, out = Path(source), Path(out)
    if out.suffix != ".npz":
        raise StructDiffError(f"plain archives end in .npz, not {out.name!r}")
    if out.resolve() == source.resolve():
        raise StructDiffError(f"{source} would be written over itself: give another file")
    flat = dict(_flattened(read_archive(source), (), source))
    with out.open("wb") as file:
        np.savez_compressed(file, **flat)
    return out


def _flattened(value: Any, way: tuple[str, ...], source: Path) -> Iterator[tuple[str, Any]]:
    if isinstance(value, np.ndarray) and value.dtype.hasobject:
        value = list(value)
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _flattened(
                item, (*way, str(key).replace("%", "%25").replace("/", "%2F")), source
            )
    elif isinstance(value, (list, tuple)) and any(isinstance(v, np.ndarray) for v in value):
        for number, item in enumerate(value):
            yield from _flattened(item, (*way, f"[{number}]"), source)
    else:
        array = np.asarray(_NOTHING if value is None else value)
        if array.dtype.kind not in "biufcSU":
            raise StructDiffError(f"{'/'.join(way)} of {source} is no array, number or text")
        yield "/".join(way), array


def _name(step: str) -> str:
    return step.replace("%2F", "/").replace("%25", "%")


def _scalar(value: Any) -> Any:
    if isinstance(value, np.ndarray) and value.ndim == 0:
        value = value.item()
    return None if isinstance(value, str) and value == _NOTHING else value


def _lists(value: Any) -> Any:
    """Dictionaries of ``[0]``, ``[1]``, ... as lists."""
    if not isinstance(value, dict):
        return value
    inner = {key: _lists(item) for key, item in value.items()}
    numbers = [f"[{n}]" for n in range(len(inner))]
    return [inner[n] for n in numbers] if inner and set(inner) == set(numbers) else inner
