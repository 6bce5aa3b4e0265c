r"""Read the tensors of a ``torch.save`` archive without executing it.

A ``.pth`` file is a zip archive: ``data.pkl``, a pickle, describes containers and tensors, and
``data/<key>`` holds the raw numbers. A pickle is a program; this reader runs it with nothing to
call but dictionaries and a tensor builder of its own. It refuses every other global, every opcode
that such a file does not need, compressed records, and sizes that do not fit. Where only some
entries are asked for, NumPy's random state may lie among the others; nothing is made of it.
"""

from __future__ import annotations

import pickle
import pickletools
import zipfile
from collections.abc import Collection, Mapping
from io import BytesIO
from math import prod
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

from structdiff.errors import CheckpointError

MAX_BYTES = 2 * 2**30
MAX_PICKLE_BYTES = 64 * 2**20
MAX_ENTRIES = 200_000

_OPCODES = {
    *("PROTO", "FRAME", "STOP", "MARK", "NONE", "NEWTRUE", "NEWFALSE", "BINFLOAT"),
    *("BININT", "BININT1", "BININT2", "LONG1", "BINUNICODE", "SHORT_BINUNICODE"),
    *("EMPTY_DICT", "EMPTY_LIST", "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"),
    *("APPEND", "APPENDS", "SETITEM", "SETITEMS"),
    *("BINPUT", "LONG_BINPUT", "BINGET", "LONG_BINGET", "MEMOIZE"),
    *("GLOBAL", "STACK_GLOBAL", "REDUCE", "NEWOBJ", "BUILD", "BINPERSID"),
}
_STORAGES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "BoolStorage": torch.bool,
}
# What a pickled random state calls; training scripts keep theirs beside the weights.
_RANDOM_STATE = {
    *(("numpy.random._pickle", f"__{kind}_ctor") for kind in ("randomstate", "bit_generator")),
    *(("numpy.random", "__RandomState_ctor"), ("numpy.random._mt19937", "MT19937")),
    *((f"numpy.{core}.multiarray", "_reconstruct") for core in ("core", "_core")),
    *(("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode")),
}


class _Settings(dict):
    """Stands for every dictionary class; forgets the attributes that a pickle wants to set."""

    __slots__ = ()

    def __setstate__(self, state: object) -> None:
        """Ignore ``state``: attributes of a dictionary repeat its items, or are bookkeeping."""


class _Frozen:
    """No attribute of an instance can be set by a pickle."""

    __slots__ = ()

    def __setstate__(self, state: object) -> NoReturn:
        raise pickle.UnpicklingError("it sets attributes of a tensor")


class _Stored(_Frozen):
    """A tensor that was read; hides the methods of a real one from the pickle."""

    __slots__ = ("tensor",)

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


class _Nothing:
    """Stands for what is not read: takes any call and any state, and keeps none."""

    __slots__ = ()

    def __call__(self, *unused: object) -> _Nothing:
        return self

    def __setstate__(self, state: object) -> None:
        """Ignore ``state``."""


class _RebuildTensor(_Frozen):
    """Stands for ``torch._utils._rebuild_tensor_v2``."""

    __slots__ = ()

    def __call__(
        self, storage: _Stored, offset: int, size: tuple, stride: tuple, *unused: object
    ) -> _Stored:
        if not isinstance(storage, _Stored) or not isinstance(size, tuple):
            raise pickle.UnpicklingError("a tensor is described wrongly")
        numbers = (offset, *size, *stride)
        if any(type(n) is not int or n < 0 for n in numbers) or len(size) != len(stride):
            raise pickle.UnpicklingError("a tensor has an impossible shape")
        last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        available = storage.tensor.numel()
        if prod(size) > available - offset or (prod(size) and last >= available):
            raise pickle.UnpicklingError("a tensor reaches beyond its storage")
        return _Stored(storage.tensor.as_strided(size, stride, offset))


class _Reader(pickle.Unpickler):
    """An unpickler that knows dictionaries and tensors."""

    def __init__(
        self, program: bytes, archive: zipfile.ZipFile, folder: str, *, partial: bool
    ) -> None:
        super().__init__(BytesIO(program))
        self._archive = archive
        self._folder = folder
        self._ignored = _RANDOM_STATE if partial else set()
        self._storages: dict[str, _Stored] = {}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in {("collections", "OrderedDict"), ("easydict", "EasyDict")}:
            return _Settings
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _RebuildTensor()
        if module == "torch" and name in _STORAGES:
            return _STORAGES[name]
        if (module, name) in self._ignored:
            return _Nothing()
        raise pickle.UnpicklingError(f"it asks for the forbidden global {module}.{name}")

    def persistent_load(self, pid: Any) -> _Stored:
        match pid:
            case ("storage", torch.dtype() as dtype, str(key), str(), int(count)):
                pass
            case _:
                raise pickle.UnpicklingError("a storage is described wrongly")
        if key not in self._storages:
            name = f"{self._folder}/data/{key}"
            size = self._archive.getinfo(name).file_size
            if size != count * dtype.itemsize:
                raise pickle.UnpicklingError(
                    f"record {name} has {size} bytes, its description says {count} x {dtype}"
                )
            data = bytearray(self._archive.read(name))
            tensor = torch.frombuffer(data, dtype=dtype) if count else torch.empty(0, dtype=dtype)
            self._storages[key] = _Stored(tensor)
        return self._storages[key]


def read_torch_archive(path: str | Path, entries: Collection[str] | None = None) -> dict[str, Any]:
    """The contents of a ``torch.save`` file: dictionaries, lists, numbers, strings and CPU tensors.

    Parameters
    ----------
    path
        A ``.pth`` file in the zip format (torch >= 1.6). Device tags are ignored.
    entries
        Which entries of the outermost dictionary to return, where they are there; the others may
        then also hold a random state of NumPy and keys that are no text, as a training state does.

    Returns
    -------
    dict
        Plain containers. Tensors share memory where they did in the file.

    Raises
    ------
    CheckpointError
        If the file is no such archive, is truncated, compressed or too large, or asks for anything
        but dictionaries and tensors; nothing of it is executed.
    """
    path = Path(path)
    try:
        return _read(path, entries)
    except CheckpointError:
        raise
    except (zipfile.BadZipFile, EOFError) as error:
        reason = _not_an_archive(path) or f"the archive is damaged or truncated ({error})"
    except pickle.UnpicklingError as error:
        reason = f"refused: {error}"
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        reason = f"the pickle inside is malformed ({type(error).__name__}: {error})"
    except (OSError, MemoryError, OverflowError, RuntimeError) as error:
        reason = f"the archive cannot be read ({type(error).__name__}: {error})"
    raise CheckpointError(
        f"{path}: {' '.join(reason.split())}; get the file again, from a source you trust"
    )


def _read(path: Path, names: Collection[str] | None) -> dict[str, Any]:
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        if sum(entry.file_size for entry in entries) > MAX_BYTES:
            raise pickle.UnpicklingError(f"it unpacks to more than {MAX_BYTES / 2**30:g} GiB")
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            raise pickle.UnpicklingError("it has compressed records, torch writes none")
        programs = [entry for entry in entries if entry.filename.endswith("/data.pkl")]
        if len(programs) != 1 or programs[0].filename.count("/") != 1:
            raise pickle.UnpicklingError("it is a zip archive, but not one of torch.save")
        if programs[0].file_size > MAX_PICKLE_BYTES:
            raise pickle.UnpicklingError("its pickle is far larger than that of any model")
        folder = programs[0].filename.split("/")[0]
        order = f"{folder}/byteorder"
        if order in archive.namelist() and archive.read(order) != b"little":
            raise pickle.UnpicklingError("its numbers are not little-endian")
        program = archive.read(programs[0])
        _check_opcodes(program)
        contents = _Reader(program, archive, folder, partial=names is not None).load()
    if not isinstance(contents, dict):
        raise pickle.UnpicklingError("it holds no dictionary")
    if names is not None:
        contents = {name: contents[name] for name in names if name in contents}
    return _plain(contents, [MAX_ENTRIES])


def _check_opcodes(program: bytes) -> None:
    """Refuse opcodes that a saved model does not need, before the first one runs."""
    for opcode, argument, _ in pickletools.genops(program):
        if opcode.name not in _OPCODES:
            raise pickle.UnpicklingError(f"it uses the forbidden pickle opcode {opcode.name}")
        # The memo is an array: a large index alone would allocate gigabytes.
        if opcode.name == "LONG_BINPUT" and int(argument or 0) > len(program):
            raise pickle.UnpicklingError("its pickle numbers more objects than it has")


def _plain(value: Any, budget: list[int]) -> Any:
    """Plain containers and tensors; ``budget`` bounds what repeated references unfold to."""
    budget[0] -= 1
    if budget[0] < 0:
        raise pickle.UnpicklingError(f"it holds more than {MAX_ENTRIES} entries")
    if isinstance(value, _Stored):
        return value.tensor
    if isinstance(value, Mapping):
        return {_key(key): _plain(item, budget) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item, budget) for item in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise pickle.UnpicklingError(f"it holds an object of type {type(value).__name__}")


def _key(key: object) -> str:
    if not isinstance(key, str):
        raise pickle.UnpicklingError(f"it has a key that is no text: {key!r:.40}")
    return key


def _not_an_archive(path: Path) -> str:
    """What a file that is no zip archive is, where that can be told."""
    with path.open("rb") as file:
        start = file.read(64)
    if start.startswith(b"PK"):
        return ""
    if start[:1] == b"\x80" and start[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return (
            "a pickle from before torch 1.6, which can run any code when it is read; ask its "
            "author for a file saved by a newer torch, or for safetensors"
        )
    return "not a torch archive"
