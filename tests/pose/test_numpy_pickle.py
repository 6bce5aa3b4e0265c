"""Pickled object arrays are read without executing them, and whatever asks for more is refused."""

from __future__ import annotations

import collections
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from structdiff.errors import StructDiffError
from structdiff.pose.numpy_pickle import read_npz, unpickle_arrays

NESTED = {
    "S1": {"Walking 1": [np.arange(24, dtype=np.float32).reshape(2, 4, 3), np.zeros((0, 3))]},
    "meta": {
        "layout": "h36m",
        "pairs": [[4, 5], [1, 2]],
        "count": np.int64(17),
        "rate": np.float32(2.5),
        "seen": np.array([True, False]),
        "names": np.array(["a", "bcd"]),
        "big": np.arange(3, dtype=">i2"),
        "columns": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "bytes": b"\x00\xff",
        "set": {1, 2},
        "none": None,
        "pair": (1, 2.5),
    },
}


def same(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return isinstance(b, dict) and list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and type(a) is type(b) and all(map(same, a, b))
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and a.shape == b.shape and bool((a == b).all())
    return type(a) is type(b) and bool(a == b)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_containers_and_arrays_come_back_as_they_were(protocol: int) -> None:
    assert same(NESTED, unpickle_arrays(pickle.dumps(NESTED, protocol)))


@pytest.mark.parametrize("protocol", [2, 4])
def test_module_names_of_numpy_1_and_2_are_read(protocol: int) -> None:
    """The same pickle under both names of NumPy's core; neither is imported."""
    program = pickle.dumps(NESTED, protocol)
    here, other = (b"numpy._core", b"numpy.core")
    if here not in program:
        here, other = other, here
    change = len(other) - len(here)
    if protocol == 2:
        renamed = program.replace(here, other)
    else:  # the name's length stands before it, and the frame's before everything
        for module in (b".multiarray", b".numeric"):
            name = here + module
            program = program.replace(
                bytes([0x8C, len(name)]) + name, bytes([0x8C, len(name) + change]) + other + module
            )
        frame = int.from_bytes(program[3:11], "little")
        total = len(program) - 11
        renamed = program[:3] + (total if frame else 0).to_bytes(8, "little") + program[11:]
    assert other in renamed and here not in renamed
    assert same(NESTED, unpickle_arrays(renamed))


def test_an_ordered_dictionary_is_a_dictionary() -> None:
    ordered = collections.OrderedDict(a=np.ones(2), b=3)
    assert same({"a": np.ones(2), "b": 3}, unpickle_arrays(pickle.dumps(ordered)))


def test_object_arrays_in_an_archive_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    ragged = np.empty(2, dtype=object)
    ragged[:] = [np.ones(2), np.ones(3)]
    np.savez_compressed(path, whole=np.array(NESTED, dtype=object), ragged=ragged, plain=np.eye(2))
    found = read_npz(path)
    assert same(NESTED, found["whole"])
    assert same(list(ragged), list(found["ragged"]))
    assert same(np.eye(2), found["plain"])


def test_only_the_arrays_asked_for_are_read(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", a=np.eye(2), b=np.array([Evil()], dtype=object))
    assert list(read_npz(tmp_path / "a.npz", keys=["a"])) == ["a"]


def test_arrays_are_their_own(tmp_path: Path) -> None:
    """Writable, and not views of the file's bytes."""
    found = unpickle_arrays(pickle.dumps(np.arange(3)))
    found += 1
    assert list(found) == [1, 2, 3]


# ---------------------------------------------------------------- what is refused


class Evil:
    """Runs a command when it is unpickled in the ordinary way."""

    marker = ""

    def __reduce__(self) -> tuple:
        return (Path.write_text, (Path(self.marker or "evil"), "executed"))


def test_a_malicious_pickle_is_refused_and_not_executed(tmp_path: Path) -> None:
    marker, path = tmp_path / "marker", tmp_path / "evil.npz"
    Evil.marker = str(marker)
    np.savez(path, positions_3d=np.array({"S1": Evil()}, dtype=object))
    with pytest.raises(StructDiffError, match=r"positions_3d.npy of .*forbidden global"):
        read_npz(path)
    assert not marker.exists()
    with np.load(path, allow_pickle=True) as loaded:  # that the file is what it says
        loaded["positions_3d"]
    assert marker.exists()


@pytest.mark.parametrize(
    "name",
    [
        "os system",
        "builtins eval",
        "builtins getattr",
        "numpy load",
        "numpy.core.multiarray fromfile",
        "numpy matrix",
        "numpy.ctypeslib load_library",
        "codecs decode",
        "collections defaultdict",
    ],
)
def test_a_forbidden_global_is_named(name: str) -> None:
    module, function = name.split()
    program = b"\x80\x02c" + f"{module}\n{function}\n".encode() + b"."
    with pytest.raises(StructDiffError, match=f"a.npz .*{module}.{function}"):
        unpickle_arrays(program, "a.npz")


def test_functions_of_the_reader_cannot_be_changed_by_a_pickle() -> None:
    """BUILD with a dictionary, and with slots, on what stands for ndarray."""
    for state in (b"}X\x01\x00\x00\x00aK\x01s", b"N}X\x01\x00\x00\x00aK\x01s\x86"):
        program = b"\x80\x02cnumpy\nndarray\n" + state + b"b."
        with pytest.raises(StructDiffError, match="sets attributes"):
            unpickle_arrays(program)


def reconstruct(shape: bytes, code: bytes, items: bytes) -> bytes:
    """A pickle of one array, by hand: shape, dtype code and elements as given."""
    kind = b"cnumpy\ndtype\n(U" + bytes([len(code)]) + code + b"\x89\x88tR"
    kind += b"(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    head = b"\x80\x02cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85U\x01btR"
    return head + b"(K\x01" + shape + kind + b"\x89" + items + b"tb."


def test_an_array_by_hand_is_read() -> None:
    """The counterpart of the wrong ones below."""
    found = unpickle_arrays(reconstruct(b"K\x02\x85", b"i2", b"U\x04\x01\x00\x02\x00"))
    assert found.tolist() == [1, 2]


@pytest.mark.parametrize(
    ("shape", "code", "items", "says"),
    [
        (b"K\x03\x85", b"i2", b"U\x04\x01\x00\x02\x00", "comes with 4 bytes"),
        (b"J\xff\xff\xff\xff\x85", b"i2", b"U\x00", "impossible shape"),
        (b"K\x02\x85", b"O8", b"U\x04\x01\x00\x02\x00", "other elements"),
        (b"K\x02\x85", b"i2", b"]", "no bytes"),
        (b"K\x02\x85", b"M8", b"U\x04\x01\x00\x02\x00", "dtype 'M8'"),
        (b"K\x02\x85", b"i1,i1", b"U\x04\x01\x00\x02\x00", "dtype 'i1,i1'"),
        (b"K\x02", b"i2", b"U\x04\x01\x00\x02\x00", "described wrongly"),
    ],
)
def test_an_array_that_does_not_fit_its_description_is_refused(shape, code, items, says) -> None:
    with pytest.raises(StructDiffError, match=says):
        unpickle_arrays(reconstruct(shape, code, items))


def test_a_container_that_holds_itself_is_refused() -> None:
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(StructDiffError, match="holds itself"):
        unpickle_arrays(pickle.dumps(loop, 4))


def test_repeated_references_do_not_unfold() -> None:
    """Each list holds the one before twice: 2**60 elements if unfolded."""
    value: list[Any] = [1]
    for _ in range(60):
        value = [value, value]
    found = unpickle_arrays(pickle.dumps(value, 4))
    assert found[0] is found[1]


def test_a_memo_of_impossible_size_is_refused() -> None:
    with pytest.raises(StructDiffError, match="remembers more"):
        unpickle_arrays(b"\x80\x02]r\xff\xff\xff\x7f.")


@pytest.mark.parametrize("opcode", [b"cnumpy\nndarray\n)\x81", b"K\x01Q", b"\x82\x01"])
def test_opcodes_that_no_such_file_needs_are_refused(opcode: bytes) -> None:
    """NEWOBJ, BINPERSID, EXT1."""
    with pytest.raises(StructDiffError, match="opcode"):
        unpickle_arrays(b"\x80\x02" + opcode + b".")


@pytest.mark.parametrize("kept", [0.1, 0.5, 0.9, 0.99])
def test_a_pickle_that_is_cut_off_is_refused_with_its_name(kept: float) -> None:
    program = pickle.dumps(NESTED)
    with pytest.raises(StructDiffError, match=r"x\.npz is not read"):
        unpickle_arrays(program[: int(kept * len(program))], "x.npz")


def test_garbled_pickles_raise_nothing_else() -> None:
    """Two bytes changed at random, 300 times: read or refused, never another error."""
    draw, program = np.random.default_rng(0), pickle.dumps(NESTED)
    refused = 0
    for _ in range(300):
        garbled = bytearray(program)
        for at in draw.integers(2, len(program), 2):
            garbled[at] = draw.integers(256)
        try:
            unpickle_arrays(bytes(garbled))
        except StructDiffError:
            refused += 1
    assert refused > 100


def test_files_that_are_no_archives_are_told(tmp_path: Path) -> None:
    whole, cut, text = (tmp_path / n for n in ("whole.npz", "cut.npz", "text.npz"))
    np.savez(whole, a=np.zeros(1000))
    cut.write_bytes(whole.read_bytes()[:500])
    text.write_text("frame,x,y")
    with zipfile.ZipFile(tmp_path / "empty.npz", "w") as archive:
        archive.writestr("readme.txt", "nothing")
    for path, says in (
        (cut, "no complete .npz archive"),
        (text, "no complete .npz archive"),
        (tmp_path / "none.npz", "there is no file"),
        (tmp_path / "empty.npz", "holds no arrays"),
    ):
        with pytest.raises(StructDiffError, match=says):
            read_npz(path)
