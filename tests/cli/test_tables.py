"""Files of molecules: every complaint names the file, the row and the remedy."""

from __future__ import annotations

import errno
import gzip
from pathlib import Path

import pandas as pd
import pytest

from structdiff.cli.tables import (
    MoleculeWriter,
    TableError,
    read_generated_csv,
    read_smiles_csv,
)

BATCH = pd.DataFrame({"smiles": ["C", ""], "valid": [True, False], "corrected": [False, True]})


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


# ---------------------------------------------------------------- what is read


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", "smiles\nC\nCO\n"),
        ("a.csv", "id,SMILES\n1,C\n2,CO\n"),
        ("a.csv", "\ufeffSmiles;id\r\nC;1\r\nCO;2\r\n"),
        ("a.tsv", "id\tsmiles\n1\tC\n2\tCO\n"),
        ("a.csv", 'smiles,note\nC,"one, two"\nCO,\n'),
        ("a.smi", "C methane\nCO methanol\n"),
        ("a.txt", "smiles\nC\nCO"),
        ("a.csv.gz", gzip.compress(b"smiles\nC\nCO\n", mtime=0)),
        ("a.smi.gz", gzip.compress(b"C\nCO\n", mtime=0)),
    ],
)
def test_smiles_are_read_from_the_formats_of_the_field(
    name: str, content: str | bytes, tmp_path: Path
) -> None:
    assert read_smiles_csv(write(tmp_path / name, content)) == ["C", "CO"]


def test_a_column_can_be_named(tmp_path: Path) -> None:
    file = write(tmp_path / "a.csv", "smiles,product\nC,CO\n")
    assert read_smiles_csv(file, "product") == ["CO"]


def test_empty_rows_are_kept_for_the_count(tmp_path: Path) -> None:
    assert read_smiles_csv(write(tmp_path / "a.csv", "smiles\nC\n\nCO\n")) == ["C", "", "CO"]


def test_generated_molecules_keep_their_flags(tmp_path: Path) -> None:
    frame = read_generated_csv(
        write(tmp_path / "a.csv", "smiles,valid,corrected\nC,True,False\nO,0,1\n")
    )
    assert frame["valid"].tolist() == [True, False]
    assert frame["corrected"].tolist() == [False, True]


def test_a_table_without_flags_is_a_table_of_smiles(tmp_path: Path) -> None:
    frame = read_generated_csv(write(tmp_path / "a.csv", "smiles\nC\n"))
    assert frame.columns.tolist() == ["smiles"]


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("", r"the file is empty; it should be a CSV with a column 'smiles'"),
        ("  \n\n", r"the file is empty"),
        ("smiles\n", r"a header and no rows; write one molecule a row"),
        ("name,formula\nmethane,CH4\n", r"row 1: no column 'smiles'; it has 'name', 'formula'"),
        ("id,smiles\n1,C\n2,CO,extra\n", r"row 3: 3 fields where the header has 2"),
        ("id,smiles\n1,C\n2\n", r"row 3: 1 fields where the header has 2"),
        ("smiles,smiles\nC,C\n", r"row 1: column 'smiles' appears twice"),
        (b"smiles\nC\n\x89PNG\r\n", r"row 3: not a text file \(byte 0x89"),
        (b"smiles\nC\0\n", r"row 2: not a text file \(it holds a zero byte\)"),
        (
            gzip.compress(b"smiles\nC\n", mtime=0)[:-5],
            r"damaged gzip file .* fetch or write it again",
        ),
        ("smiles\n" + "C" * 200_000 + "\n", r"row 2: not a CSV \(field larger than"),
    ],
)
def test_a_file_that_is_no_table_is_refused_with_its_row_and_a_remedy(
    content: str | bytes, complaint: str, tmp_path: Path
) -> None:
    file = write(tmp_path / "mine.csv", content)
    with pytest.raises(TableError, match=rf"mine\.csv: {complaint}"):
        read_smiles_csv(file)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(TableError, match=r"absent\.csv: no such file"):
        read_smiles_csv(tmp_path / "absent.csv")


def test_a_folder_is_not_a_file(tmp_path: Path) -> None:
    with pytest.raises(TableError, match="is a folder"):
        read_smiles_csv(tmp_path)


def test_an_absent_column_is_answered_with_the_present_ones(tmp_path: Path) -> None:
    file = write(tmp_path / "a.csv", "smiles,id\nC,1\n")
    with pytest.raises(TableError, match="no column 'product'; it has 'smiles', 'id'"):
        read_smiles_csv(file, "product")


def test_a_flag_that_is_no_truth_value_is_named_with_its_row(tmp_path: Path) -> None:
    file = write(tmp_path / "a.csv", "smiles,valid\nC,True\nO,maybe\n")
    with pytest.raises(TableError, match="row 3: column 'valid' holds 'maybe'"):
        read_generated_csv(file)


# ---------------------------------------------------------------- writing


def test_batches_become_one_table_with_one_header(tmp_path: Path) -> None:
    writer = MoleculeWriter(tmp_path / "out.csv")
    writer.write(BATCH)
    writer.write(BATCH)
    assert writer.finish()
    frame = read_generated_csv(tmp_path / "out.csv")
    assert frame["smiles"].tolist() == ["C", "", "C", ""]
    assert frame["corrected"].tolist() == [False, True, False, True]


def test_an_earlier_result_stays_until_the_new_one_is_finished(tmp_path: Path) -> None:
    out = write(tmp_path / "out.csv", "earlier")
    writer = MoleculeWriter(out)
    writer.write(BATCH)
    assert out.read_text() == "earlier"
    writer.finish()
    assert out.read_text().startswith("smiles,valid,corrected\n")
    assert [file.name for file in tmp_path.iterdir()] == ["out.csv"]


def test_a_run_without_a_batch_writes_nothing(tmp_path: Path) -> None:
    assert not MoleculeWriter(tmp_path / "out.csv").finish()
    assert list(tmp_path.iterdir()) == []


def test_finished_batches_survive_a_disk_that_becomes_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = MoleculeWriter(tmp_path / "out.csv")
    writer.write(BATCH)

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        writer.write(BATCH)
    writer.abandon()
    assert (tmp_path / "out.csv.part").read_text().startswith("smiles,valid,corrected\nC,True,")


def test_a_folder_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(TableError, match=r"the folder .*absent does not exist; make it first"):
        MoleculeWriter(tmp_path / "absent" / "out.csv")
