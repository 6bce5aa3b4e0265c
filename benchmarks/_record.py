"""Write what a benchmark measured, with what is needed to measure it again."""

from __future__ import annotations

import platform
import subprocess
import sys
from datetime import date
from pathlib import Path

import pandas as pd
import torch

RESULTS = Path(__file__).parent / "results"


def _commit() -> str:
    """The commit; dirty if a file differs from it, but for the records, which are being written."""
    name = _git("describe", "--always")
    changed = _git("status", "--porcelain", "--", ":/", ":(exclude,top)benchmarks/results")
    return f"{name or 'unknown'}{'-dirty' if changed else ''}"


def _git(*words: str) -> str:
    asked = subprocess.run(
        ["git", *words], cwd=RESULTS, capture_output=True, text=True, check=False
    )
    return asked.stdout.strip()


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0]}, {len(names)} cores" if names else platform.machine()


def record(name: str, title: str, table: pd.DataFrame, notes: str = "") -> Path:
    """Print a table and keep it as ``results/NAME.md``.

    Parameters
    ----------
    name
        File name without suffix.
    title
        Heading.
    table
        What was measured.
    notes
        What a reader must know to understand the figures.
    """
    RESULTS.mkdir(exist_ok=True)
    script = Path(sys.argv[0]).name
    command = " ".join(["python", f"benchmarks/{script}", *map(_shown, sys.argv[1:])])
    header = [" | ".join(map(str, table.columns)), " | ".join("---" for _ in table.columns)]
    rows = [" | ".join(map(str, row)) for row in table.itertuples(index=False)]
    body = "\n".join(f"| {line} |" for line in header + rows)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    text = (
        f"# {title}\n\n- command: `{command}`\n- commit: {_commit()}, {date.today().isoformat()}\n"
        f"- hardware: {_processor()}, {device}, {torch.get_num_threads()} thread(s); "
        f"Python {platform.python_version()}, torch {torch.__version__}\n\n{body}\n"
    )
    path = RESULTS / f"{name}.md"
    path.write_text(text + (f"\n{notes}\n" if notes else ""), encoding="utf-8")
    print(text)
    return path


def _shown(argument: str) -> str:
    """An argument as it is recorded: paths by their last part, machines differ."""
    return Path(argument).name if "/" in argument else argument
