"""Train the embedded model ``tsdiff-demo`` on the first eight weeks of ``hourly_demand``.

    python -m structdiff.pretrained.train_tsdiff_demo --out runs/tsdiff-demo

The ninth week is held out; its seven days are forecast one by one and scored at the end, beside
seasonal naive forecasts (of a day ago, and of a week ago) and a random walk. Interrupted runs
continue with ``--resume``.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from structdiff import datasets
from structdiff.timeseries import TSDiff, read_panel
from structdiff.timeseries.baselines import seasonal_naive
from structdiff.timeseries.evaluation import evaluate
from structdiff.timeseries.forecasting import cutoffs
from structdiff.timeseries.metrics import evaluate_forecasts

HELD_OUT = 168
"""Hours at the end of every series that training does not see."""
_SHOWN = ["variant", "mean_wQuantileLoss", "ND", "NRMSE", "MASE"]
_SHOWN += ["coverage_50", "coverage_80", "coverage_95"]


def main() -> None:
    """Train, write ``config.json`` and ``model.safetensors`` to ``OUT/model``, print scores."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of the run")
    parser.add_argument("--max-steps", type=int, default=3000)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resume", action="store_true")
    arguments = parser.parse_args()

    torch.set_num_threads(arguments.threads)
    series = pd.read_csv(datasets.path("hourly_demand"), parse_dates=["ds"])
    model = TSDiff(
        24,
        context=168,
        hidden=32,
        blocks=2,
        state_size=32,
        max_steps=arguments.max_steps,
        random_state=arguments.seed,
    )
    started = time.process_time()
    model.fit(series.iloc[:-HELD_OUT], out=arguments.out, resume=arguments.resume)
    print(f"{time.process_time() - started:.0f} CPU seconds of training")
    folder = model.save_pretrained(arguments.out / "model", dtype="float16")
    loaded = TSDiff.from_pretrained(folder)
    scores = evaluate(
        loaded, series, n_windows=7, step_size=24, scenarios=(), refine=None, synthetic=0
    )
    scores.loc[len(scores)] = {"variant": "a week ago", **_week_ago(series)}
    print(scores[_SHOWN].to_string(index=False, float_format="{:.4f}".format))


def _week_ago(series: pd.DataFrame) -> dict[str, float]:
    """Scores of last week's values as the forecast; MASE by the day, as in the other rows."""
    panel = read_panel(series)
    known, targets = [], []
    for left in cutoffs(panel, 24, 7, 24):
        known += panel.cut(left).values
        targets += (panel if left == 24 else panel.cut(left - 24)).tail(24).values
    paths = np.stack([seasonal_naive(values, 24, 168)[None] for values in known])
    return evaluate_forecasts(paths, np.stack(targets), known, 24).to_dict()


if __name__ == "__main__":
    main()
