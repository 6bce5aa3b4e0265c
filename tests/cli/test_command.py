"""The command ``structdiff``: exit codes, one line for bad input, JSON for machines."""

from __future__ import annotations

import errno
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest

import structdiff
from structdiff.cli import main
from structdiff.cli.failures import EXTRAS, explain
from structdiff.cli.molecules import _write_batches
from structdiff.cli.tables import MoleculeWriter, read_generated_csv

ROOT = Path(structdiff.__file__).resolve().parents[1]


def complaint(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line on standard error; nothing on standard output."""
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("structdiff: ")
    assert printed.err.count("\n") == 1 and printed.err.endswith("\n")
    return printed.err


# ---------------------------------------------------------------- bad input: code 2, one line


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["molecule"], "No such command 'molecule'"),
        (["molecules", "sample", "--nmu", "3"], "No such option: --nmu"),
        (["molecules", "sample", "--num", "three"], "'--num'"),
        (["molecules", "sample", "--num", "0"], "--num 0: should be a whole number of at least 1"),
        (["molecules", "sample", "--num", "-5"], "--num -5: should be"),
        (["molecules", "sample", "--steps", "0"], "--steps 0: should be"),
        (["molecules", "sample", "--batch-size", "0"], "--batch-size 0: should be"),
        (["molecules", "sample", "--model", "gdss-qm8"], "no model 'gdss-qm8': give one of"),
        (["molecules", "sample", "--model", "no.pth"], "no.pth: no such checkpoint file"),
        (["molecules", "sample", "--out", "no/m.csv"], "no/m.csv: the folder no does not exist"),
        (["molecules", "sample", "--out", "."], ".: is a folder"),
        (["molecules", "sample", "--grid", "g.gif"], "g.gif: cannot draw this format; end"),
        (["molecules", "sample", "--grid", "no/g.png"], "no/g.png: the folder no does not exist"),
        (["molecules", "train", "no.csv", "--out", "model"], "no.csv: no such file"),
        (["molecules", "train"], "Missing"),
        (
            ["molecules", "train", "s.csv", "--out", "m", "--network", "gnn"],
            "--network gnn: choose",
        ),
        (
            ["molecules", "train", "s.csv", "--out", "m", "--precision", "8"],
            "--precision 8: choose",
        ),
        (
            ["molecules", "train", "s.csv", "--out", "m", "--learning-rate", "0"],
            "a positive number",
        ),
        (
            ["molecules", "train", "s.csv", "--out", "m", "--max-steps", "0"],
            "--max-steps 0: should",
        ),
        (["molecules", "evaluate", "no.csv", "--reference", "gdss-qm9"], "no.csv: no such file"),
        (["molecules", "info", "nothing"], "nothing: no such model"),
        (["datasets", "fetch", "qm8"], "unknown dataset 'qm8' (did you mean 'qm9'?); known: cmu1"),
        (["datasets", "path", "qm9", "--file", "validation"], "has no file 'validation'; it has"),
    ],
)
def test_bad_input_is_one_line_and_code_2(
    words: list[str],
    expected: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    assert expected in complaint(capsys)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("empty.csv", b"", "empty.csv: the file is empty"),
        ("no_rows.csv", b"smiles\n", "no_rows.csv: a header and no rows"),
        (
            "columns.csv",
            b"name,formula\na,CH4\n",
            "row 1: no column 'smiles'; it has 'name', 'form",
        ),
        ("picture.csv", b"\x89PNG\r\n\x1a\n\0\0", "picture.csv: row 1: not a text file (byte 0x89"),
        ("ragged.csv", b"id,smiles\n1,C\n2,C,O\n", "ragged.csv: row 3: 3 fields where the header"),
    ],
)
def test_a_file_that_cannot_be_read_is_named_with_row_and_remedy(
    name: str,
    content: bytes,
    expected: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(name).write_bytes(content)
    assert main(["molecules", "train", name, "--out", "model"]) == 2
    assert expected in complaint(capsys)


def test_a_folder_without_a_model_is_named(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["molecules", "sample", "--model", str(tmp_path)]) == 2
    assert f"{tmp_path} holds no config.json: it is not a saved model" in complaint(capsys)


def test_a_folder_with_broken_weights_is_named(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{")
    assert main(["molecules", "info", str(tmp_path)]) == 2
    assert "model.safetensors: not a complete safetensors file" in complaint(capsys)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (FileNotFoundError(errno.ENOENT, "", "a.csv"), "a.csv: no such file or folder"),
        (PermissionError(errno.EACCES, "", "a.csv"), "a.csv: no permission; choose a place"),
        (IsADirectoryError(errno.EISDIR, "", "a.csv"), "a.csv: is a folder, not a file"),
        (OSError(errno.ENOSPC, "", "a.csv"), "a.csv: no space left on the disk; free some"),
        (OSError(errno.ENOSPC, ""), "no space left on the disk"),
        (OSError(errno.EROFS, "", "a.csv"), "a.csv: the disk is read-only"),
        (ModuleNotFoundError("", name="rdkit.Chem"), "pip install 'structdiff[molecules]'"),
    ],
)
def test_errors_of_the_machine_are_told_with_a_remedy(error: OSError, expected: str) -> None:
    assert expected in str(explain(error))


def test_every_extra_that_is_named_brings_the_package() -> None:
    project = (Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8")
    for package, extras in EXTRAS.items():
        name = {"sklearn": "scikit-learn"}.get(package, package)
        for extra in extras:
            assert name in brought(project, extra), (package, extra)


def brought(project: str, extra: str) -> set[str]:
    """Names of what an extra of the project installs, those of its own extras included."""
    (listed,) = re.findall(rf"^{extra} = \[(.*)\]$", project, re.MULTILINE)
    found = set()
    for name, inner in re.findall(r'"([\w-]+)(?:\[([\w,]+)\])?[^"]*"', listed):
        own = [brought(project, each) for each in inner.split(",")] if name == "structdiff" else []
        found |= {name}.union(*own)
    return found


@pytest.mark.parametrize(
    ("words", "package", "extra"),
    [
        (["timeseries", "forecast", "a.csv"], "pandas", "timeseries"),
        (["timeseries", "fit", "a.csv", "--out", "m", "--max-steps", "1"], "scipy", "timeseries"),
        (["timeseries", "synthesize", "--model", "tsdiff-demo"], "sklearn", "timeseries"),
        (["samplers", "compare", "--model", "tsdiff-demo"], "pandas", "timeseries"),
        (["pose", "lift", "a.csv"], "sklearn", "pose"),
        (["pose", "evaluate", "a.csv", "a.csv"], "pandas", "pose"),
        (["molecules", "sample"], "pandas", "molecules"),
        (["molecules", "sample"], "rdkit", "molecules"),
        (["samplers", "compare", "--model", "gdss-qm9"], "pandas", "molecules"),
    ],
)
def test_a_missing_package_names_the_extra_of_the_head_that_was_asked_for(
    words: list[str], package: str, extra: str, tmp_path: Path
) -> None:
    (tmp_path / "a.csv").write_text("ds,y\n2024-01-01,1\n2024-01-02,2\n")
    program = (
        f"import sys; sys.modules[{package!r}] = None; from structdiff.cli import main; "
        f"sys.exit(main({words!r}))"
    )
    result = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert result.returncode == 2, result.stderr
    told = f"structdiff: this needs {package}: pip install 'structdiff[{extra}]'"
    assert told in result.stderr.splitlines()


@pytest.mark.parametrize("error", [RuntimeError("x"), ValueError("x"), KeyError("x"), OSError("x")])
def test_a_defect_of_ours_is_not_explained_away(error: Exception) -> None:
    assert explain(error) is None


def test_a_defect_of_ours_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise RuntimeError("a defect")

    monkeypatch.setattr("structdiff.datasets.list_datasets", broken)
    with pytest.raises(RuntimeError, match="a defect"):
        main(["datasets", "list"])


# ---------------------------------------------------------------- Ctrl-C


def test_ctrl_c_is_code_130(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("structdiff.datasets.list_datasets", interrupted)
    assert main(["datasets", "list"]) == 130
    assert complaint(capsys) == "structdiff: interrupted\n"


def test_the_exit_that_lightning_makes_of_ctrl_c_is_code_130(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # lightning.pytorch.trainer.call: `except KeyboardInterrupt: ... exit(1)`
    def interrupted() -> None:
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            sys.exit(1)

    monkeypatch.setattr("structdiff.datasets.list_datasets", interrupted)
    assert main(["datasets", "list"]) == 130


def test_finished_batches_are_written_when_ctrl_c_comes(tmp_path: Path) -> None:
    batch = pd.DataFrame({"smiles": ["C"] * 3, "valid": [True] * 3, "corrected": [False] * 3})

    def interrupted() -> Iterator[pd.DataFrame]:
        yield batch
        yield batch
        raise KeyboardInterrupt

    drawn, stopped = _write_batches(MoleculeWriter(tmp_path / "m.csv"), interrupted())
    assert stopped and drawn is not None and len(drawn) == 6
    assert len(read_generated_csv(tmp_path / "m.csv")) == 6


# ---------------------------------------------------------------- what is printed


def test_help_is_given_without_loading_a_head() -> None:
    heavy = {"rdkit", "pandas", "lightning", "matplotlib", "fcd", "scipy"}
    program = (
        "import sys; from structdiff.cli import main; code = main(['molecules', '--help']); "
        f"loaded = {heavy!r} & set(sys.modules); sys.exit(f'{{code}} {{loaded}}' if code or loaded "
        "else 0)"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert {"sample", "train", "evaluate", "info"} <= set(result.stdout.split())


def test_without_a_command_the_help_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "Usage: structdiff" in capsys.readouterr().err


def test_the_list_of_datasets_is_json_for_machines(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["datasets", "list", "--json"]) == 0
    listed = {entry["name"]: entry for entry in json.loads(capsys.readouterr().out)}
    assert listed["qm9"]["splits"]["test"].startswith("the 13,082 rows")


def test_the_list_of_datasets_is_a_table_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["datasets", "list"]) == 0
    assert "zinc250k" in capsys.readouterr().out


def test_the_path_of_a_dataset_is_printed_alone(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("STRUCTDIFF_DATA", str(data_dir))
    assert main(["datasets", "path", "grid"]) == 0
    assert capsys.readouterr().out == f"{data_dir / 'graphs' / 'grid.npz'}\n"


def test_fetch_prints_the_path_and_tells_the_licence(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("STRUCTDIFF_DATA", str(data_dir))
    assert main(["datasets", "fetch", "qm9"]) == 0
    printed = capsys.readouterr()
    assert printed.out == f"{data_dir / 'molecules' / 'qm9_smiles.csv.gz'}\n"
    assert "CC0" in printed.err


def test_info_names_versions_devices_and_folders(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("STRUCTDIFF_CACHE", str(tmp_path))
    assert main(["info", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["versions"]["torch"] and facts["devices"][0].startswith("cpu")
    assert facts["cache_folder"] == str(tmp_path)
