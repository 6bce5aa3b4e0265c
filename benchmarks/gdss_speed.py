"""Cost of one joint evaluation of the GDSS networks, and of sampling beyond it; one thread.

With ``--published FOLDER`` (a clone of the published repository) its networks are timed side by
side, in turn, in the same process, on the same inputs and weights' shapes.
"""

from __future__ import annotations

import argparse
import importlib
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from _record import record

from structdiff.graphs.networks import GDSSNetwork, ScoreNetworkA, ScoreNetworkX
from structdiff.molecules import MoleculeGenerator
from structdiff.molecules.sampling import choose_sampler
from structdiff.noise import PerObjectNoise
from structdiff.state import State

X: dict[str, dict[str, int]] = {
    "QM9": {"max_feat_num": 4, "depth": 2, "nhid": 16},
    "community_small": {"max_feat_num": 10, "depth": 3, "nhid": 32},
    "ZINC250k": {"max_feat_num": 9, "depth": 2, "nhid": 16},
}
SHARED = {"c_init": 2, "c_hid": 8, "c_final": 4, "num_heads": 4}
A: dict[str, dict[str, int]] = {
    "QM9": {"max_node_num": 9, "nhid": 16, "num_layers": 3, "num_linears": 3, "adim": 16},
    "community_small": {
        "max_node_num": 20,
        "nhid": 32,
        "num_layers": 5,
        "num_linears": 2,
        "adim": 32,
    },
    "ZINC250k": {"max_node_num": 38, "nhid": 16, "num_layers": 6, "num_linears": 3, "adim": 16},
}
CASES = (("QM9", 256), ("QM9", 1000), ("community_small", 128), ("ZINC250k", 64))


def inputs(name: str, batch: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Noisy graphs of random sizes, as both implementations take them."""
    n = A[name]["max_node_num"]
    generator = torch.Generator().manual_seed(0)
    sizes = torch.randint(max(2, (2 * n) // 3), n + 1, (batch,), generator=generator)
    flags = (torch.arange(n)[None] < sizes[:, None]).float()
    x = torch.randn(batch, n, X[name]["max_feat_num"], generator=generator) * flags[..., None]
    adj = torch.randn(batch, n, n, generator=generator).triu(1)
    adj = (adj + adj.transpose(1, 2)) * flags[:, :, None] * flags[:, None, :]
    return x, adj, flags


def ours(name: str) -> GDSSNetwork:
    """Both networks with fresh weights."""
    adj = {**A[name], **SHARED, "max_feat_num": X[name]["max_feat_num"]}
    return GDSSNetwork(ScoreNetworkX(**X[name]), ScoreNetworkA(**adj)).eval()


def published(folder: Path, name: str) -> Callable[..., Any]:
    """The published networks, called one after the other as its sampler does."""
    sys.path.insert(0, str(folder))
    x = importlib.import_module("models.ScoreNetwork_X").ScoreNetworkX(**X[name]).eval()
    settings = {**A[name], **SHARED, "max_feat_num": X[name]["max_feat_num"]}
    adj = importlib.import_module("models.ScoreNetwork_A").ScoreNetworkA(**settings).eval()
    return lambda *graph: (x(*graph), adj(*graph))


def seconds(call: Callable[[], Any]) -> float:
    """Duration of one call."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


@torch.no_grad()
def networks(folder: Path | None, rounds: int) -> list[dict[str, object]]:
    """Time per evaluation, the two implementations in turn."""
    rows = []
    for name, batch in CASES:
        graph = inputs(name, batch)
        network = ours(name)
        theirs = None if folder is None else published(folder, name)
        own, other = [], []
        for number in range(rounds + 2):
            a = seconds(lambda: network.outputs(*graph))  # noqa: B023 - called at once
            b = float("nan") if theirs is None else seconds(lambda: theirs(*graph))  # noqa: B023
            if number >= 2:
                own.append(a)
                other.append(b)
        ratio = statistics.median(a / b for a, b in zip(own, other, strict=True))
        rows.append(
            {
                "what": f"{name}, batch {batch}: one evaluation",
                "ours ms": round(1e3 * statistics.median(own), 2),
                "published ms": round(1e3 * statistics.median(other), 2),
                "ratio": round(ratio, 3),
            }
        )
        print(rows[-1], flush=True)
    return rows


class _Timed(torch.nn.Module):
    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network, self.spent = network, 0.0

    def forward(self, *arguments: Any) -> State:
        started = time.perf_counter()
        out: State = self.network(*arguments)
        self.spent += time.perf_counter() - started
        return out


@torch.no_grad()
def overhead(model: str, steps: int, batch: int = 256) -> dict[str, object]:
    """Wall time of a sampler run against the network's own share of it."""
    generator = (
        MoleculeGenerator.from_gdss(model)
        if Path(model).suffix
        else MoleculeGenerator.from_pretrained(model)
    )
    denoiser = generator.denoiser_
    denoiser.network = timed = _Timed(denoiser.network)
    sampler = choose_sampler(generator.spec_, None, steps)
    n, width = generator.vocabulary_.max_atoms, len(generator.vocabulary_)
    exists = torch.ones(batch, n, dtype=torch.bool)
    off = ~torch.eye(n, dtype=torch.bool)
    masks = {"x": exists[..., None], "adj": (exists[:, :, None] & exists[:, None, :]) & off}
    like = State({"x": torch.zeros(batch, n, width), "adj": torch.zeros(batch, n, n)}, masks)
    seeds = torch.arange(batch)
    totals, shares = [], []
    for _ in range(6):
        timed.spent = 0.0
        total = seconds(
            lambda: sampler(
                denoiser, denoiser.system.prior(like, PerObjectNoise(seeds)), source=seeds
            )
        )
        totals.append(total)
        shares.append(1 - timed.spent / total)
    return {
        "what": f"{Path(model).stem}: {sampler}, batch {batch}, share beyond the network",
        "ours ms": round(1e3 * statistics.median(totals[1:]), 1),
        "published ms": "-",
        "ratio": round(statistics.median(shares[1:]), 3),
    }


def main() -> None:
    """Measure and write ``results/gdss_speed.md``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--published", type=Path, default=None)
    parser.add_argument("--models", nargs="*", default=["gdss-qm9"])
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = networks(arguments.published, arguments.rounds)
    rows += [overhead(model, 50) for model in arguments.models]
    record(
        "gdss_speed",
        "Cost of the networks and of the sampling loop",
        pd.DataFrame(rows),
        "Medians; the two implementations take turns in one process. In the rows on sampling, the "
        "ratio is the share of wall time spent outside the network's forward calls.",
    )


if __name__ == "__main__":
    main()
