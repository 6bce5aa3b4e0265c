"""The project keeps its own rules: layers, lint, types, packaging.

The architecture is a contract: an import may only point down, and the core knows no head.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import structdiff

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
EXTRAS: dict[str, list[str]] = PROJECT["project"]["optional-dependencies"]


def run(*words: str, folder: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *words], cwd=folder, capture_output=True, text=True, check=False
    )


def lint_imports(folder: Path) -> subprocess.CompletedProcess[str]:
    program = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    return subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, '.'); {program}", "--no-cache"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )


# ---------------------------------------------------------------- contracts, lint, types


def test_imports_point_down_through_the_layers() -> None:
    result = lint_imports(ROOT)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("state.py", "import structdiff.molecules"),
        ("processes/system.py", "import structdiff.denoisers"),
        ("graphs/__init__.py", "import structdiff.molecules"),
        ("denoisers.py", "import pandas"),
        ("objectives/__init__.py", "import lightning"),
    ],
)
def test_an_import_that_points_up_breaks_the_contract(
    module: str, line: str, tmp_path: Path
) -> None:
    shutil.copytree(
        ROOT / "structdiff",
        tmp_path / "structdiff",
        ignore=shutil.ignore_patterns("__pycache__", "pretrained"),
    )
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    with open(tmp_path / "structdiff" / module, "a", encoding="utf-8") as file:
        file.write(f"\n{line}\n")
    result = lint_imports(tmp_path)
    assert result.returncode == 1
    assert "BROKEN" in result.stdout


def test_the_code_is_formatted() -> None:
    result = run("ruff", "format", "--check", ".")
    assert result.returncode == 0, result.stdout + result.stderr


def test_the_code_passes_the_linter() -> None:
    result = run("ruff", "check", ".")
    assert result.returncode == 0, result.stdout + result.stderr


def test_the_types_of_the_public_core_are_sound() -> None:
    result = run("mypy")
    assert result.returncode == 0, result.stdout + result.stderr


# ---------------------------------------------------------------- packaging


def test_the_version_is_one() -> None:
    assert PROJECT["project"]["version"] == structdiff.__version__


def test_the_extra_all_has_every_head() -> None:
    (everything,) = EXTRAS["all"]
    listed = re.findall(r"\w+", everything.split("[")[1])
    assert set(listed) == set(EXTRAS) - {"all", "test", "dev", "datasets"}


def test_what_the_tests_install_is_pinned() -> None:
    pins = re.findall(r"^([\w.-]+)==", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    pinned = {_normal(name) for name in pins}
    makefile = (ROOT / "Makefile").read_text()
    installed = re.search(r"^EXTRAS := (.*)$", makefile, re.MULTILINE)
    assert installed is not None
    wanted = list(PROJECT["project"]["dependencies"])
    for extra in [*installed[1].split(","), "datasets"]:
        wanted += EXTRAS[extra]
    names = {_normal(re.split(r"[<>=;\[ ]", need)[0]) for need in wanted}
    assert names - {"structdiff", "tomli"} <= pinned


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_the_wheel_holds_the_types_the_cards_and_the_weights(tmp_path: Path) -> None:
    result = run("hatchling", "build", "-t", "wheel", "-d", str(tmp_path))
    assert result.returncode == 0, result.stderr
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    expected = {
        f"structdiff/_datasets/{file.relative_to(ROOT / 'datasets')}"
        for file in (ROOT / "datasets").rglob("*")
        if file.is_file()
    }
    expected |= {
        str(file.relative_to(ROOT))
        for file in (ROOT / "structdiff").rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }
    assert expected <= names
    roots = {name.split("/")[0] for name in names}
    assert roots == {"structdiff", f"structdiff-{structdiff.__version__}.dist-info"}


def test_the_source_archive_holds_no_data_but_the_cards_and_what_the_project_made(
    tmp_path: Path,
) -> None:
    result = run("hatchling", "build", "-t", "sdist", "-d", str(tmp_path))
    assert result.returncode == 0, result.stderr
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as files:
        names = [name.split("/", 1)[1] for name in files.getnames()]
    assert "structdiff/py.typed" in names and "datasets/qm9.toml" in names
    assert not [name for name in names if name.endswith((".csv.gz", ".pkl", ".ckpt", ".pth"))]
    tables = {name for name in names if name.endswith(".csv") and name.startswith("datasets/")}
    assert tables == {"datasets/timeseries/hourly_demand.csv"}
    assert not [name for name in names if name.startswith(("shared", ".venv", "demo_output"))]


def test_the_command_is_installed_under_its_name() -> None:
    assert PROJECT["project"]["scripts"] == {"structdiff": "structdiff.cli:main"}
