"""Why TSDiff's defaults are what they are: scaling, scales of guidance, noise of refinement.

    STRUCTDIFF_DATA=FOLDER python benchmarks/tsdiff_choices.py

1. Scaling: one Gaussian fitted to scaled training windows, conditioned exactly (no network).
2. Guidance: the embedded model on the last day of eight embedded series, 50 paths.
3. Refinement: seasonal naive by Langevin steps on a model of one training step, which is the
   Gaussian of its windows: the first 8 entries of Exchange, 12 series of M4 hourly, 50 paths.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import torch
from _record import record
from _timeseries import Array, data, panel_of
from timeseries_baselines import exchange, m4_hourly

from structdiff import datasets
from structdiff.timeseries import Refinement, TSDiff, read_panel
from structdiff.timeseries.baselines import seasonal_naive
from structdiff.timeseries.metrics import mean_weighted_quantile_loss as crps
from structdiff.timeseries.windows import WindowMaker

PATHS, WINDOWS = 100, 20_000


def conditioned(
    train: list[Array], histories: list[Array], h: int, context: int, scaling: Any
) -> Array:
    """Paths (N, S, h) of one Gaussian of scaled windows, given the context."""
    maker = WindowMaker(train, context, h, (), scaling)
    index, cut = maker.training_cuts()
    chosen = torch.randperm(len(index), generator=torch.Generator().manual_seed(0))[:WINDOWS]
    windows = maker.batch(index[chosen], cut[chosen], future=True).x[:, :, 0].double()
    mean, covariance = windows.mean(0), torch.cov(windows.T)
    known = covariance[:context, :context]
    known = known + 1e-4 * known.diagonal().mean() * torch.eye(context, dtype=torch.float64)
    gain = torch.linalg.solve(known, covariance[:context, context:]).T
    rest = covariance[context:, context:] - gain @ covariance[:context, context:]
    values, vectors = torch.linalg.eigh((rest + rest.T) / 2)
    root = vectors * values.clamp(min=0).sqrt()
    ends = torch.tensor([len(y) for y in histories])
    test = WindowMaker(histories, context, h, (), scaling).batch(
        torch.arange(len(histories)), ends, future=False
    )
    ahead = mean[context:] + (test.x[:, :context, 0].double() - mean[:context]) @ gain.T
    noise = torch.randn(
        len(ahead), PATHS, h, generator=torch.Generator().manual_seed(1), dtype=torch.float64
    )
    return np.asarray(test.unscaled(ahead[:, None] + noise @ root.T))


def scalings() -> list[dict[str, str]]:
    """Job 1."""
    rows = []
    for name, load, context in (("Exchange", exchange, 360), ("M4 hourly", m4_hourly, 336)):
        histories, targets = load(data())
        train = [y[:6071] for y in histories[:8]] if name == "Exchange" else histories
        for scaling in ("standard", "mean"):
            paths = conditioned(train, histories, targets.shape[1], context, scaling)
            rows.append(row("one Gaussian", name, f"{scaling} scaling", crps(paths, targets)))
    return rows


def guidances() -> list[dict[str, str]]:
    """Job 2."""
    series = read_panel(pd.read_csv(datasets.path("hourly_demand"), parse_dates=["ds"]))
    series, rows = series.take(series.ids[:8]), []
    known, truth = series.cut(24), np.stack(series.tail(24).values)
    scales = [("quantile", s) for s in (0.25, 0.5, 1.0, 2.0)]
    for kind, scale in [("covariance", None), *scales, ("squared", 0.1), ("squared", 0.2)]:
        model = TSDiff.from_pretrained("tsdiff-demo").set_params(
            guidance=kind, guidance_scale=scale, random_state=0, progress=False, n_samples=50
        )
        says = kind if scale is None else f"{kind}, scale {scale:g}"
        score = crps(np.stack(model.panel_paths(known)), truth)
        rows.append(row("guidance", "hourly_demand", says, score))
    return rows


def refinements() -> list[dict[str, str]]:
    """Job 3."""
    rows = []
    for name, load, context in (("Exchange", exchange, 360), ("M4 hourly", m4_hourly, 312)):
        histories, targets = load(data())
        train = [y[:6071] for y in histories[:8]] if name == "Exchange" else histories
        chosen = range(8) if name == "Exchange" else range(0, 408, 34)
        freq, season = ("B", 5) if name == "Exchange" else ("h", 24)
        h = targets.shape[1]
        model = TSDiff(
            h, context=context, max_steps=1, n_samples=50, random_state=0, progress=False
        ).fit_panel(panel_of({f"s{k}": y for k, y in enumerate(train)}, freq))
        known = panel_of({f"s{k}": histories[k] for k in chosen}, freq)
        base = [seasonal_naive(histories[k], h, season) for k in chosen]
        truth = targets[list(chosen)]
        rows.append(row("refinement", name, "seasonal naive", crps(np.stack(base)[:, None], truth)))
        for noise in (0.1, 0.5, 1.0):
            paths = model.refined_paths(known, base, Refinement(noise_scale=noise))
            score = crps(np.stack(paths), truth)
            rows.append(row("refinement", name, f"Langevin noise {noise:g}", score))
    return rows


def row(job: str, series: str, choice: str, score: float) -> dict[str, str]:
    """One line of the table."""
    return {"job": job, "data": series, "choice": choice, "CRPS": f"{score:.5f}"}


def main() -> None:
    """Measure and record."""
    torch.set_num_threads(1)
    table = pd.DataFrame([*scalings(), *guidances(), *refinements()])
    record(
        "tsdiff_choices",
        "TSDiff's defaults",
        table,
        "CRPS is mean_wQuantileLoss. The Gaussian: 20,000 windows, context 360 and 336, 100 paths.",
    )


if __name__ == "__main__":
    main()
