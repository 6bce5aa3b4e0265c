"""What TSDiff's benchmarks share: a fit within a budget, every test on one model, one table."""

from __future__ import annotations

import argparse
import ast
import time
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from _record import record

from structdiff.datasets import data_folder
from structdiff.errors import StructDiffError
from structdiff.timeseries import Panel, Refinement, TSDiff, evaluate, read_panel

Array = npt.NDArray[np.float64]
CRPS = "mean_wQuantileLoss"
SHOWN = ["ratio", "gain", "ND", "wCRPS_fair", "wEnergyScore", "coverage_80", "coverage_95"]


def arguments(doc: str | None, **defaults: Any) -> argparse.ArgumentParser:
    """The arguments that both data sets have; ``defaults`` are the data set's own."""
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--steps", type=int, help="optimiser steps of the fit, fewer if --minutes are over")
    add("--minutes", type=float, help="time limit of the training")
    add("--context", type=int, help="points of a context")
    add("--threads", type=int, help="CPU threads")
    add("--seed", type=int, help="of weights, data order and sampling")
    add("--paths", type=int, help="sample paths of a forecast")
    add("--few", type=int, help="sample paths where values are missing and of refinements")
    add("--entries", type=int, help="how many test entries, all by default")
    add("--some", type=int, help="test entries, evenly spread, for all but the forecast")
    add("--synthetic", type=int, help="windows for the linear predictive score, 0 for none")
    add("--refine-step", type=float, help="step of the refinement, the package's by default")
    add(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="further argument of TSDiff, such as hidden=32 or preset='paper'; may be repeated",
    )
    add(
        "--gaussian",
        action=argparse.BooleanOptionalAction,
        help="score the model's Gaussian without the network, too: as long as a forecast",
    )
    add("--model", type=Path, help="folder of a saved model, in place of the fit")
    add("--save", type=Path, help="folder to save the fitted model in")
    add("--name", help="of the file in results/")
    parser.set_defaults(**{"threads": 2, "seed": 0, "paths": 100, "gaussian": True, **defaults})
    return parser


def data() -> Path:
    """The folder of real data."""
    folder = data_folder()
    if folder is None:
        raise StructDiffError("let STRUCTDIFF_DATA name the folder that holds timeseries/")
    return folder


def panel_of(series: Mapping[str, Array], freq: str, start: str = "1990-01-01") -> Panel:
    """Regular series that begin on the same day."""
    longest = max(map(len, series.values()))
    times = pd.date_range(start, periods=longest, freq=freq)
    frame = pd.DataFrame(
        {
            "unique_id": np.repeat(list(series), [len(y) for y in series.values()]),
            "ds": np.concatenate([times[: len(y)].to_numpy() for y in series.values()]),
            "y": np.concatenate(list(series.values())),
        }
    )
    return read_panel(frame, freq)


# --- one model --------------------------------------------------------------------------------
@dataclass
class Fitted:
    """A model and what it cost."""

    model: TSDiff
    wall: float
    cpu: float
    steps: int

    @property
    def budget(self) -> list[tuple[str, float, float]]:
        """Its time against the limit; nothing where it was loaded."""
        return [("minutes of the fit", self.wall / 60, 10)] if self.wall else []

    @property
    def says(self) -> str:
        """For the notes."""
        spec = self.model.spec_
        made = (
            f"context {spec.context}, {len(spec.lags)} lags, {spec.scaling} scaling, Gaussian of "
            f"rank {spec.rank}, network {spec.network}, sampler {spec.sampler}, guidance "
            f"{spec.guidance}"
        )
        if not self.wall:
            return f"Model loaded, {self.steps} training steps; {made}."
        return (
            f"Fitted in {self.wall / 60:.1f} min of wall time, {self.cpu / 60:.1f} CPU-min "
            f"(everything from the series to the model), {self.steps} steps; {made}."
        )


def fitted(asked: argparse.Namespace, train: Panel, horizon: int) -> Fitted:
    """Fit on the training panel, or load what was fitted before."""
    torch.set_num_threads(asked.threads)
    if asked.model is not None:
        model = TSDiff.from_pretrained(asked.model)
        model.set_params(random_state=asked.seed, accelerator="cpu")
        model.panel_ = train  # real windows for the reference are those of the training series
        return Fitted(model, 0.0, 0.0, int(model.training_["steps"]))
    settings: dict[str, Any] = {
        "context": asked.context,
        "max_steps": asked.steps,
        "max_minutes": asked.minutes,
        "random_state": asked.seed,
        "accelerator": "cpu",
        **_settings(asked.set),
    }
    model = TSDiff(h=horizon, freq=train.freq, **settings)
    wall, cpu = time.perf_counter(), time.process_time()
    model.fit_panel(train)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    if asked.save is not None:
        model.save_pretrained(asked.save)
    return Fitted(model, wall, cpu, int(model.training_["steps"]))


def _settings(pairs: Sequence[str]) -> dict[str, Any]:
    settings = {}
    for pair in pairs:
        name, _, value = pair.partition("=")
        try:
            settings[name] = ast.literal_eval(value)
        except (SyntaxError, ValueError):
            settings[name] = value  # a word
    return settings


def gaussian_alone(model: TSDiff) -> TSDiff | None:
    """The same model with a network that adds nothing; None where there is no Gaussian in it."""
    if not model.spec_.skip:
        return None
    plain = deepcopy(model)
    network: Any = plain.denoiser_.network
    with torch.no_grad():
        for parameter in network.backbone.head[-1].parameters():
            parameter.zero_()
    return plain


# --- every test on it -------------------------------------------------------------------------
def variants(step: float | None) -> dict[str, Refinement]:
    """The four refinements of the paper: Langevin or maximum likelihood, squares or quantiles."""
    return {
        f"{method}-{term}": Refinement(
            "langevin" if method == "LMC" else "ml",
            "squared" if term == "MS" else "quantile",
            step=step,
        )
        for method in ("LMC", "ML")
        for term in ("MS", "Q")
    }


def study(
    asked: argparse.Namespace, fit: Fitted, panel: Panel, hidden: int | None = None, **trains: Any
) -> pd.DataFrame:
    """Forecasts, missing values, refinement and synthesis on the test entries.

    Parameters
    ----------
    asked
        The arguments.
    fit
        The model.
    panel
        Test entries, each with its end.
    hidden
        Points of a context that are hidden.
    **trains
        ``downstream`` of the evaluation.
    """
    panel = panel.take(panel.ids[: asked.entries])
    own: dict[str, Any] = {"scenarios": (), "refine": None, "synthetic": 0, "seed": asked.seed}
    parts = [
        evaluate(
            fit.model,
            panel,
            n_samples=asked.paths,
            **{**own, "synthetic": asked.synthetic},
            **trains,
        )
    ]
    plain = gaussian_alone(fit.model) if asked.gaussian else None
    if plain is not None:
        alone = evaluate(plain, panel, n_samples=asked.paths, **own).iloc[:1]
        full = parts[0].loc[0, CRPS]
        parts.append(alone.assign(variant="its Gaussian alone", ratio=alone[CRPS] / full))
    some = panel.take(panel.ids[:: max(1, len(panel) // (asked.some or len(panel)))])
    rest = evaluate(
        fit.model,
        some,
        n_samples=asked.few,
        hidden=hidden,
        refinements=variants(asked.refine_step),
        synthetic=0,
        seed=asked.seed,
    )
    if asked.few == asked.paths and len(some) == len(panel):
        rest = rest[rest["task"] != "forecast"]
    else:
        rest = rest[~rest["variant"].isin(["seasonal naive", "random walk"])]
        label = f"full, {asked.few} paths, {len(some)} entries"
        rest = rest.replace({"variant": {"full": label}})
    return pd.concat([*parts, rest], ignore_index=True)


def crps_of(table: pd.DataFrame, task: str, variant: str, column: str = CRPS) -> float:
    """One figure of the table."""
    chosen = table[(table["task"] == task) & (table["variant"] == variant)]
    return float(chosen[column].iloc[0])


def shown(table: pd.DataFrame, paper: Mapping[tuple[str, str], str]) -> pd.DataFrame:
    """The table as it is printed, the published figures beside ours."""
    rows = []
    for _, row in table.iterrows():
        key = (row["task"], row["variant"])
        figures = {k: "-" if np.isnan(row[k]) else f"{row[k]:.4f}" for k in SHOWN}
        rows.append(
            {
                "task": key[0],
                "variant": key[1],
                "CRPS": f"{row[CRPS]:.5f}",
                "paper": paper.get(key, "-"),
                **figures,
                "evaluations": f"{row['evaluations']:g}",
                "seconds": f"{row['seconds']:.1f}",
            }
        )
    return pd.DataFrame(rows)


def verdicts(checks: Sequence[tuple[str, float, float]]) -> str:
    """Each figure against its bound, as Markdown."""
    lines = ["| asked | bound | measured | |", "| --- | --- | --- | --- |"]
    for what, value, bound in checks:
        met = "met" if value <= bound else "NOT met"
        lines.append(f"| {what} | <= {bound:g} | {value:.5g} | {met} |")
    return "\n".join(lines)


def keep(name: str, title: str, table: pd.DataFrame, notes: str, checks: str) -> None:
    """Print and write down."""
    record(name, title, table, f"{checks}\n\n{notes}")
