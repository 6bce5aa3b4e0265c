"""A hostile pickle in a torch archive is refused, and nothing that it asks for happens."""

from __future__ import annotations

import builtins
import os
import pickle
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from structdiff.errors import CheckpointError
from structdiff.graphs.checkpoints import read_gdss
from structdiff.torch_archive import read_torch_archive


def archive_of(program: bytes, path: Path) -> Path:
    """A torch archive whose pickle is ``program``."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", program)
        archive.writestr("archive/data/0", bytes(16))
    return path


class Call:
    """Pickles as a call of ``function``."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (os.system, f"{os.system.__module__}.system"),
        (builtins.eval, "__builtin__.eval"),
        (builtins.getattr, "__builtin__.getattr"),
        (shutil.rmtree, "shutil.rmtree"),
        (torch.load, "torch.serialization.load"),
        (torch.hub.load, "torch.hub.load"),
    ],
)
def test_a_call_in_the_pickle_is_refused_and_not_made(tmp_path, function, name):
    sentinel = tmp_path / "sentinel"
    sentinel.mkdir()
    argument = {
        os.system: f"rmdir {sentinel}",
        builtins.eval: f"__import__('os').rmdir({str(sentinel)!r})",
    }.get(function, str(sentinel))
    program = pickle.dumps({"model_config": Call(function, argument)}, 2)
    with pytest.raises(CheckpointError, match=f"forbidden global {name}"):
        read_gdss(archive_of(program, tmp_path / "hostile.pth"))
    assert sentinel.is_dir()


# Programs written by hand: GLOBAL is "c", REDUCE "R", BUILD "b", NEWOBJ "\x81", STOP ".".
REBUILD = b"ctorch._utils\n_rebuild_tensor_v2\n"
STORAGE = (
    b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x04tQ"
)


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        (b"\x80\x02ctorch._utils\n_rebuild_tensor\n.", "forbidden global"),
        (b"\x80\x02cstructdiff.torch_archive\n_read\n.", "forbidden global"),
        (b"\x80\x02(ios\nsystem\n.", "opcode INST"),
        (b"\x80\x02\x82\x01.", "opcode EXT1"),
        (b"\x80\x02}r\xff\xff\xff\x7f.", "more objects than it has"),
        (b"\x80\x02" + REBUILD + b"}b.", "sets attributes"),
        (b"\x80\x02ctorch\nFloatStorage\n)R.", "malformed"),
        (b"\x80\x02ccollections\nOrderedDict\n}b.", "malformed"),
        (b"\x80\x02ctorch\nFloatStorage\n.", "holds no dictionary"),
        (b"\x80\x02}K\x01K\x02s.", "no text"),
        (b"\x80\x02}X\x01\x00\x00\x00actorch\nFloatStorage\ns.", "type dtype"),
        (b"\x80\x02" + STORAGE + b"}b.", "sets attributes"),
        (b"\x80\x02" + STORAGE.replace(b"K\x04", b"K\x05") + b".", "16 bytes"),
        (b"\x80\x02" + STORAGE.replace(b"\x000X", b"\x009X") + b".", "malformed"),
        (b"\x80\x02" + REBUILD + b"(" + STORAGE + b"K\x01K\x04\x85K\x01\x85tR.", "beyond"),
        (b"\x80\x02" + REBUILD + b"(" + STORAGE + b"K\x00K\xff\x85K\x00\x85tR.", "beyond"),
        (
            b"\x80\x02" + REBUILD + b"(" + STORAGE + b"K\x00J\xff\xff\xff\xff\x85K\x01\x85tR.",
            "shape",
        ),
        (b"\x80\x02" + REBUILD + b"(K\x00K\x00K\x00\x85K\x01\x85tR.", "described wrongly"),
        (b"\x80\x02}", "damaged|malformed|refused"),
        (b"", "damaged|malformed|refused"),
    ],
)
def test_a_crafted_pickle_is_refused(tmp_path, program, reason):
    with pytest.raises(CheckpointError, match=reason):
        read_torch_archive(archive_of(program, tmp_path / "crafted.pth"))


def test_attributes_that_the_pickle_wants_to_set_are_ignored(tmp_path):
    """BUILD of ``{"items": 1}`` on a dictionary class would replace its method."""
    build = b"}X\x05\x00\x00\x00itemsK\x01sb"
    program = b"\x80\x02ccollections\nOrderedDict\n)R" + build + b"X\x01\x00\x00\x00aK\x07s."
    assert read_torch_archive(archive_of(program, tmp_path / "file.pth")) == {"a": 7}


TRAINING_STATE = {
    "model": {"weight": 1.5},
    "random_state": np.random.RandomState(1),
    "optimizer": {"state": {0: {"step": 3}}},
}


def test_a_random_state_beside_the_entry_asked_for_is_passed_over(tmp_path):
    path = archive_of(pickle.dumps(TRAINING_STATE, 2), tmp_path / "training.pth")
    assert read_torch_archive(path, ["model", "absent"]) == {"model": {"weight": 1.5}}


def test_a_random_state_is_refused_where_everything_is_asked_for(tmp_path):
    path = archive_of(pickle.dumps(TRAINING_STATE, 2), tmp_path / "training.pth")
    with pytest.raises(CheckpointError, match="forbidden global numpy"):
        read_torch_archive(path)


def test_nothing_is_made_of_a_random_state_that_is_asked_for(tmp_path):
    path = archive_of(pickle.dumps(TRAINING_STATE, 2), tmp_path / "training.pth")
    with pytest.raises(CheckpointError, match="object of type _Nothing"):
        read_torch_archive(path, ["random_state"])


def test_a_call_beside_the_entry_asked_for_is_refused(tmp_path):
    program = pickle.dumps({"model": 1, "other": Call(os.system, "true")}, 2)
    with pytest.raises(CheckpointError, match="forbidden global"):
        read_torch_archive(archive_of(program, tmp_path / "hostile.pth"), ["model"])


def test_references_that_unfold_without_end_are_refused(tmp_path):
    """A few hundred bytes that would unfold to 10^40 entries."""
    nested: list = []
    for _ in range(40):
        nested = [nested] * 10
    path = archive_of(pickle.dumps({"a": nested}, 2), tmp_path / "laughs.pth")
    with pytest.raises(CheckpointError, match="more than 200000 entries"):
        read_torch_archive(path)


def test_a_dictionary_that_holds_itself_is_refused(tmp_path):
    loop: dict = {}
    loop["a"] = loop
    with pytest.raises(CheckpointError, match="RecursionError"):
        read_torch_archive(archive_of(pickle.dumps(loop, 2), tmp_path / "loop.pth"))


def test_an_archive_that_promises_gigabytes_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("structdiff.torch_archive.MAX_BYTES", 16)
    with pytest.raises(CheckpointError, match="unpacks to more than"):
        read_torch_archive(archive_of(pickle.dumps({}, 2), tmp_path / "large.pth"))
