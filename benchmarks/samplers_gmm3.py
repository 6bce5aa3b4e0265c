"""Every sampler on three Gaussians with exact answers, at 5 to 100 evaluations, one thread.

``error`` is the RMS distance to the exact probability flow from the same start, for samplers that
draw no noise; ``W2`` the sliced 2-Wasserstein distance to fresh draws, for all.
"""

from __future__ import annotations

import sys

import pandas as pd
import torch
from _record import RESULTS, record

from structdiff.cli import main as structdiff
from structdiff.samplers.comparison_table import read_comparison

CSV = RESULTS / "samplers_gmm3.csv"
BUDGETS = (5, 10, 20, 50, 100)


def main() -> int:
    """Measure all anew, and write ``results/samplers_gmm3.md``."""
    torch.set_num_threads(1)
    words = ["samplers", "compare", "--model", "testbed:gmm3", "--out", str(CSV), "--fresh"]
    words += ["--nfe", ",".join(map(str, BUDGETS))]
    code = structdiff([*words, "--plot", str(RESULTS / "samplers_gmm3.png")])
    if code:
        return code
    found, floors = read_comparison(CSV)
    scores = {(m.case.sampler, m.case.nfe): m.scores for m in found if m.scores}
    names = list(dict.fromkeys(name for name, _ in scores))
    table = pd.DataFrame({"sampler": names})
    for metric, heading in (("error", "error"), ("sliced_w2", "W2")):
        for nfe in BUDGETS:
            values = [scores.get((name, nfe), {}).get(metric, float("nan")) for name in names]
            table[f"{heading}, {nfe}"] = ["-" if v != v else f"{v:.2g}" for v in values]
    key = [scores.get((name, 20), {}) for name in names]
    order = sorted(range(len(names)), key=lambda k: key[k].get("sliced_w2", float("inf")))
    order.sort(key=lambda k: nan_last(key[k].get("error", float("nan"))))
    reasons = "; ".join(
        dict.fromkeys(f"`{m.case.sampler}` ({m.case.nfe}): {m.note}" for m in found if m.note)
    )
    record(
        "samplers_gmm3",
        "Every sampler on the mixture of three Gaussians, VP, 10,000 objects",
        table.iloc[order],
        f"W2 between two sets of fresh draws: {floors['sliced_w2']:.3f}; differences well below "
        f"that say nothing. A dash in the error: the sampler draws noise.\n\nNot measured "
        f"(budget): {reasons}.",
    )
    return 0


def nan_last(value: float) -> float:
    """A key that sorts NaN last."""
    return float("inf") if value != value else value


if __name__ == "__main__":
    sys.exit(main())
