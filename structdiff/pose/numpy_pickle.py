r"""Read NumPy archives whose arrays hold Python objects, without executing them.

The files of the pose field keep dictionaries of arrays in ``.npz`` archives as pickled object
arrays. A pickle is a program, and ``numpy.load(..., allow_pickle=True)`` runs whatever it says.
This reader runs it with nothing to call but stand-ins of its own for the four functions that
NumPy's pickles need (an array, a dtype, a scalar, bytes), under the module names of NumPy 1 and 2:

.. math:: \text{allowed} = \{\text{array}, \text{dtype}, \text{scalar}, \text{bytes},
          \text{dict}, \text{set}\},

and refuses every other global by its name, every opcode that such a file does not need, and sizes
that do not fit. Arrays are made from the raw bytes afterwards.
"""

from __future__ import annotations

import pickle
import pickletools
import zipfile
from collections.abc import Collection
from io import BytesIO
from math import prod
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from structdiff.errors import StructDiffError

__all__ = ["read_npz", "unpickle_arrays"]

MAX_BYTES = 8 * 2**30
"""A record that claims to be larger is not read."""

_OPCODES = {
    *("PROTO", "FRAME", "STOP", "MARK", "NONE", "NEWTRUE", "NEWFALSE", "BINFLOAT"),
    *("BININT", "BININT1", "BININT2", "LONG1", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8", "BINSTRING", "SHORT_BINSTRING"),
    *("EMPTY_DICT", "EMPTY_LIST", "EMPTY_TUPLE", "EMPTY_SET", "TUPLE", "TUPLE1", "TUPLE2"),
    *("TUPLE3", "APPEND", "APPENDS", "SETITEM", "SETITEMS", "ADDITEMS", "FROZENSET"),
    *("BINPUT", "LONG_BINPUT", "BINGET", "LONG_BINGET", "MEMOIZE"),
    *("GLOBAL", "STACK_GLOBAL", "REDUCE", "BUILD"),
}
# Of numbers, truth values and text; "O" are Python objects.
_KINDS = "biufcSUO"


class _Frozen:
    """No attribute of an instance can be set by a pickle."""

    __slots__ = ()

    def __setstate__(self, state: object) -> None:
        raise pickle.UnpicklingError("it sets attributes where there are none")


class _Dtype(_Frozen):
    """A dtype as described: built as ``dtype("f4")``, completed with its byte order."""

    __slots__ = ("value",)

    def __init__(self, code: object) -> None:
        text = code.decode("latin1") if isinstance(code, bytes) else code
        if not isinstance(text, str) or text.lstrip("<>=|")[:1] not in _KINDS or "," in text:
            raise pickle.UnpicklingError(f"it asks for the dtype {code!r}")
        self.value = np.dtype(text)

    def __setstate__(self, state: object) -> None:
        match state:
            case (_, str() | bytes() as order, None, None, None, *_):
                text = order.decode("latin1") if isinstance(order, bytes) else order
            case _:
                text = ""
        if text not in ("<", ">", "|", "="):
            raise pickle.UnpicklingError("a dtype is described wrongly")
        self.value = np.dtype(text + self.value.str[1:])


class _Array(_Frozen):
    """An array as described: its elements come with its state."""

    __slots__ = ("dtype", "fortran", "items", "shape")

    def __init__(self) -> None:
        self.shape: tuple[int, ...] | None = None

    def __setstate__(self, state: object) -> None:
        match state:
            case (_, tuple() as shape, _Dtype() as dtype, bool() | int() as fortran, items):
                self.shape, self.dtype = shape, dtype.value
                self.fortran, self.items = bool(fortran), items
            case _:
                raise pickle.UnpicklingError("an array is described wrongly")


class _MakeArray(_Frozen):
    """Stands for ``numpy.core.multiarray._reconstruct``."""

    __slots__ = ()

    def __call__(self, kind: object, *unused: object) -> _Array:
        if not isinstance(kind, _ArrayType):
            raise pickle.UnpicklingError("it builds something that is no plain array")
        return _Array()


class _FromBuffer(_Frozen):
    """Stands for ``numpy.core.numeric._frombuffer``, of protocol 5."""

    __slots__ = ()

    def __call__(self, items: object, dtype: object, shape: object, order: object) -> _Array:
        array = _Array()
        array.__setstate__((1, shape, dtype, order == "F", items))
        return array


class _MakeScalar(_Frozen):
    """Stands for ``numpy.core.multiarray.scalar``."""

    __slots__ = ()

    def __call__(self, dtype: object, item: object) -> Any:
        if not isinstance(dtype, _Dtype):
            raise pickle.UnpicklingError("a scalar is described wrongly")
        return _plain((), dtype.value, False, item)[()]


class _MakeDtype(_Frozen):
    """Stands for ``numpy.dtype``."""

    __slots__ = ()

    def __call__(self, code: object, *unused: object) -> _Dtype:
        return _Dtype(code)


class _ArrayType(_Frozen):
    """Stands for ``numpy.ndarray``."""

    __slots__ = ()


class _MakeBytes(_Frozen):
    """Stands for ``_codecs.encode`` and ``bytes``, by which old protocols spell bytes."""

    __slots__ = ()

    def __call__(self, text: object = "", encoding: object = "latin1") -> bytes:
        if not isinstance(text, str) or encoding != "latin1":
            raise pickle.UnpicklingError("bytes are described wrongly")
        return text.encode("latin1")


class _MakeContainer(_Frozen):
    """Stands for the constructor of a builtin container."""

    __slots__ = ("kind",)

    def __init__(self, kind: type) -> None:
        self.kind = kind

    def __call__(self, *items: object) -> Any:
        if len(items) > 1 or not all(isinstance(i, (list, tuple, dict, set)) for i in items):
            raise pickle.UnpicklingError(f"a {self.kind.__name__} is described wrongly")
        return self.kind(*items)


def _allowed() -> dict[tuple[str, str], Any]:
    table: dict[tuple[str, str], Any] = {
        ("numpy", "ndarray"): _ArrayType(),
        ("numpy", "dtype"): _MakeDtype(),
        ("_codecs", "encode"): _MakeBytes(),
        ("collections", "OrderedDict"): _MakeContainer(dict),
    }
    for core in ("core", "_core"):
        table["numpy." + core + ".multiarray", "_reconstruct"] = _MakeArray()
        table["numpy." + core + ".multiarray", "scalar"] = _MakeScalar()
        table["numpy." + core + ".numeric", "_frombuffer"] = _FromBuffer()
    for builtins in ("builtins", "__builtin__"):
        table[builtins, "bytes"] = _MakeBytes()
        for kind in (dict, list, set, frozenset, tuple):
            table[builtins, kind.__name__] = _MakeContainer(kind)
    return table


_ALLOWED = _allowed()


class _Reader(pickle.Unpickler):
    """An unpickler that knows containers and arrays."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it asks for the forbidden global {module}.{name}")
        return _ALLOWED[module, name]

    def persistent_load(self, pid: Any) -> NoReturn:
        raise pickle.UnpicklingError("it refers to something outside the file")


def unpickle_arrays(program: bytes, name: str = "the pickle") -> Any:
    """What a pickle of arrays and builtin containers describes.

    Parameters
    ----------
    program
        The pickle, of protocol 2 to 5.
    name
        Of the record, for messages.

    Returns
    -------
    Any
        Builtin containers, numbers, text and plain NumPy arrays.

    Raises
    ------
    StructDiffError
        If it asks for any other global (the message names it), is cut off or garbled, or holds
        anything else.
    """
    try:
        _check_opcodes(program)
        found = _Reader(BytesIO(program), encoding="latin1").load()
        return _Builder().finished(found)
    except (StructDiffError, KeyboardInterrupt):
        raise
    except Exception as error:  # a garbled pickle may raise anything
        raise StructDiffError(
            f"{name} is not read: {error}. A pickle may hold arrays and builtin containers only; "
            "get the file from where it was published, or write it as plain arrays"
        ) from error


def _check_opcodes(program: bytes) -> None:
    for count, (opcode, argument, _) in enumerate(pickletools.genops(program)):
        if opcode.name not in _OPCODES:
            raise pickle.UnpicklingError(f"it uses the opcode {opcode.name}")
        if opcode.name == "LONG_BINPUT" and isinstance(argument, int) and argument > count:
            raise pickle.UnpicklingError("it remembers more than it has read")


class _Builder:
    """Puts arrays in the place of what stands for them; what is shared stays shared."""

    def __init__(self) -> None:
        self._done: dict[int, Any] = {}
        self._open: set[int] = set()

    def finished(self, value: Any) -> Any:
        if not isinstance(value, (_Frozen, dict, list, tuple, set, frozenset)):
            return value
        if id(value) in self._open:
            raise pickle.UnpicklingError("a container holds itself")
        if id(value) not in self._done:
            self._open.add(id(value))
            self._done[id(value)] = self._built(value)
            self._open.discard(id(value))
        return self._done[id(value)]

    def _built(self, value: Any) -> Any:
        if isinstance(value, dict):
            return {self.finished(k): self.finished(v) for k, v in value.items()}
        if isinstance(value, _Dtype):
            return value.value
        if not isinstance(value, _Frozen):
            return type(value)(self.finished(v) for v in value)
        if not isinstance(value, _Array):
            raise pickle.UnpicklingError("it holds a function")
        if value.shape is None:
            raise pickle.UnpicklingError("an array has no elements")
        if value.dtype.hasobject:
            return self._objects(value, value.shape)
        return _plain(value.shape, value.dtype, value.fortran, value.items)

    def _objects(self, value: _Array, shape: tuple[int, ...]) -> npt.NDArray[Any]:
        if not isinstance(value.items, list) or len(value.items) != _size(shape):
            raise pickle.UnpicklingError(f"an array of shape {shape} comes with other elements")
        flat = np.empty(len(value.items), dtype=object)
        for at, item in enumerate(value.items):
            flat[at] = self.finished(item)
        return flat.reshape(shape, order="F" if value.fortran else "C")


def _size(shape: tuple[Any, ...]) -> int:
    if any(type(n) is not int or n < 0 for n in shape):
        raise pickle.UnpicklingError(f"an array has the impossible shape {shape}")
    return prod(shape)


def _plain(
    shape: tuple[int, ...], dtype: np.dtype[Any], fortran: bool, items: object
) -> npt.NDArray[Any]:
    """An array from its raw bytes, of its own memory."""
    raw = items.encode("latin1") if isinstance(items, str) else items  # written by Python 2
    if not isinstance(raw, (bytes, bytearray)) or dtype.hasobject:
        raise pickle.UnpicklingError("the elements of an array are no bytes")
    if len(raw) != _size(shape) * dtype.itemsize:
        raise pickle.UnpicklingError(
            f"an array of shape {shape} and dtype {dtype} comes with {len(raw)} bytes"
        )
    if not raw:
        return np.empty(shape, dtype)
    return np.frombuffer(raw, dtype).reshape(shape, order="F" if fortran else "C").copy()


# ---------------------------------------------------------------- archives


def read_npz(path: str | Path, keys: Collection[str] | None = None) -> dict[str, Any]:
    """The arrays of an ``.npz`` archive; those of Python objects through the restricted reader.

    Parameters
    ----------
    path
        The archive.
    keys
        Which arrays to read, where they are there; all if None.

    Returns
    -------
    dict
        Arrays by name. An array of objects without dimensions is handed out as its one object.

    Raises
    ------
    StructDiffError
        If the file is missing, is no archive, is cut off, or holds what may not be read; says
        which record.
    """
    path = Path(path)
    try:
        with zipfile.ZipFile(path) as archive:
            records = {n.removesuffix(".npy"): n for n in archive.namelist() if n.endswith(".npy")}
            wanted = records if keys is None else {k: n for k, n in records.items() if k in keys}
            if not records:
                raise StructDiffError(f"{path} holds no arrays: expected an .npz archive")
            return {key: _read_record(archive, name, path) for key, name in wanted.items()}
    except FileNotFoundError as error:
        raise StructDiffError(f"there is no file {path}") from error
    except (OSError, zipfile.BadZipFile, EOFError, RuntimeError, NotImplementedError) as error:
        raise StructDiffError(
            f"{path} is no complete .npz archive ({error}): copy or download it again"
        ) from error


def _read_record(archive: zipfile.ZipFile, record: str, path: Path) -> Any:
    name = f"{record} of {path}"
    if archive.getinfo(record).file_size > MAX_BYTES:
        raise StructDiffError(f"{name} would have more than {MAX_BYTES >> 30} GiB: it is not read")
    with archive.open(record) as stream:
        content = stream.read()
    try:
        return _read_array(content, name)
    except StructDiffError:
        raise
    except (ValueError, EOFError, TypeError, SyntaxError, MemoryError) as error:
        raise StructDiffError(f"{name} is no array: {error}; write the file again") from error


def _read_array(content: bytes, name: str) -> Any:
    stream = BytesIO(content)
    version = np.lib.format.read_magic(stream)
    read_header = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }.get(version)
    if read_header is None or not read_header(stream)[2].hasobject:
        return np.lib.format.read_array(BytesIO(content), allow_pickle=False)
    found = unpickle_arrays(content[stream.tell() :], name)
    if isinstance(found, np.ndarray) and found.dtype.hasobject and found.ndim == 0:
        return found[()]
    return found
