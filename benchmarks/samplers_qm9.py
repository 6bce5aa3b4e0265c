"""The embedded model ``gdss-qm9`` under every sampler at 10, 20 and 50 evaluations, one thread.

Measures with ``structdiff samplers compare``, so it can be stopped and started again: the rows that
``results/samplers_qm9.csv`` holds are not measured twice.
"""

from __future__ import annotations

import argparse
import sys

import pandas as pd
import torch
from _record import RESULTS, record

from structdiff.cli import main as structdiff

CSV = RESULTS / "samplers_qm9.csv"
BUDGETS = (10, 20, 50)
#: Column -> heading, factor, digits.
SHOWN = {"valid": ("valid %", 100, 1), "nspdk": ("NSPDK", 1, 4), "fcd": ("FCD", 1, 2)}


def table(rows: pd.DataFrame) -> pd.DataFrame:
    """One row per sampler, best mean rank first; a dash where it could not be measured."""
    shown = pd.DataFrame(index=pd.Index(rows["sampler"].unique(), name="sampler"))
    ranks = pd.DataFrame(index=shown.index)
    for name, (heading, factor, digits) in SHOWN.items():
        wide = rows.pivot(index="sampler", columns="nfe", values=name)
        for nfe in BUDGETS:
            values = wide[nfe].reindex(shown.index)
            ranks[name, nfe] = values.rank(ascending=name != "valid", pct=True)
            text = (factor * values).map(lambda value, d=digits: f"{value:.{d}f}")
            shown[f"{heading}, {nfe}"] = text.where(values.notna(), "-")
    cost = rows.pivot(index="sampler", columns="nfe", values="cpu_ms")[max(BUDGETS)]
    shown["CPU ms"] = cost.reindex(shown.index).map("{:.1f}".format).where(cost.notna(), "-")
    measured = rows[rows["note"].isna()]["sampler"].unique()
    order = ranks.fillna(1.0).mean(axis=1).sort_values(kind="stable").index
    return shown.loc[[name for name in order if name in measured]].reset_index()


def notes(rows: pd.DataFrame) -> str:
    """Floors, and why what is missing is missing."""
    first = rows.iloc[0]
    missing = rows[rows["note"].notna()].groupby("note", sort=False)
    reasons = [
        f"{', '.join(f'`{s}` ({n})' for s, n in zip(part['sampler'], part['nfe'], strict=True))}: "
        f"{note}"
        for note, part in missing
    ]
    return (
        f"Real training molecules at this size: NSPDK {first['nspdk_floor']:.4f}, FCD "
        f"{first['fcd_floor']:.2f}. Valid is before correction. The number after a score is the "
        "budget of network evaluations; CPU time is per molecule at the largest. Each sampler has "
        "its default settings and grid, `pc` those of the model.\n\nNot measured (budget): "
        + "; ".join(reasons)
        + "."
    )


def main() -> int:
    """Measure what is missing, and write ``results/samplers_qm9.md``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--num", type=int, default=1000)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    words = ["samplers", "compare", "--model", "gdss-qm9", "--num", str(arguments.num)]
    words += ["--nfe", ",".join(map(str, BUDGETS)), "--out", str(CSV)]
    code = structdiff([*words, "--plot", str(RESULTS / "samplers_qm9.png")])
    if code:
        return code
    rows = pd.read_csv(CSV)
    title = f"Every sampler on gdss-qm9, {arguments.num} molecules each"
    record("samplers_qm9", title, table(rows), notes(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
