"""Shared fixtures: where the real data and the published weights lie."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of real data (``STRUCTDIFF_DATA``); missing data fails where it is required."""
    folder = os.environ.get("STRUCTDIFF_DATA")
    if folder and Path(folder).is_dir():
        return Path(folder).resolve()
    message = "set STRUCTDIFF_DATA to a folder that holds the datasets"
    if os.environ.get("STRUCTDIFF_REQUIRE_DATA") == "1":
        pytest.fail(message)
    pytest.skip(message)


@pytest.fixture(scope="session")
def weights_dir(data_dir: Path) -> Path:
    """The published weights that lie beside the data; missing weights fail where required."""
    folder = data_dir.parent / "weights"
    if folder.is_dir():
        return folder
    message = f"no published weights beside the data: expected {folder}"
    if os.environ.get("STRUCTDIFF_REQUIRE_DATA") == "1":
        pytest.fail(message)
    pytest.skip(message)
