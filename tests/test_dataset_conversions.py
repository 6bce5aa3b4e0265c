"""Files of the datasets are made from their sources as the cards say."""

from __future__ import annotations

import gzip
import json
import tarfile
from io import BytesIO

import pytest

from structdiff.datasets import CONVERSIONS


def test_the_row_lists_of_gdss_become_numbers_in_their_order() -> None:
    # QM9's list holds zero-padded strings under a key, ZINC250k's plain numbers
    for published in ({"valid_idxs": ["007278", "000012"]}, [7278, 12]):
        converted = CONVERSIONS["row_numbers"](json.dumps(published).encode())
        assert json.loads(gzip.decompress(converted)) == [7278, 12]


def test_the_smiles_of_a_tar_archive_get_a_header() -> None:
    buffer = BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        member = tarfile.TarInfo("zinc.txt")
        member.size = 4
        archive.addfile(member, BytesIO(b"C\nO\n"))
    converted = CONVERSIONS["tar_smiles"](buffer.getvalue())
    assert gzip.decompress(converted) == b"smiles\nC\nO\n"


def test_the_rates_get_a_header_and_their_row_numbers() -> None:
    source = gzip.compress(b"0.7855,1.611,0.86,0.63,0.21,0.0068,0.593,0.5254\n1,2,3,4,5,6,7,8\n")
    lines = gzip.decompress(CONVERSIONS["exchange_rate"](source)).decode().splitlines()
    assert lines[0].startswith("t,australia,united_kingdom,") and lines[0].endswith("singapore")
    assert lines[1:] == ["0,0.7855,1.611,0.86,0.63,0.21,0.0068,0.593,0.5254", "1,1,2,3,4,5,6,7,8"]


@pytest.mark.parametrize(("role", "first"), [("train", (1, 1)), ("test", (701, 961))])
def test_the_rows_of_m4_become_long_and_the_test_goes_on(role: str, first: tuple[int, int]) -> None:
    # 700 training points of H1, 960 of H414
    source = b'"V1","V2","V3","V4"\n"H1","605","586",\n"H414","35","41","40.5"\n'
    lines = gzip.decompress(CONVERSIONS[f"m4_{role}"](source)).decode().splitlines()
    a, b = first
    assert lines[:3] == ["unique_id,ds,y", f"H1,{a},605", f"H1,{a + 1},586"]
    assert lines[3:] == [f"H414,{b},35", f"H414,{b + 1},41", f"H414,{b + 2},40.5"]
