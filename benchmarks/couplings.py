"""Flow matching in the plane with independent and with optimally coupled noise.

What the coupling is for: straight paths, which one to five Euler steps can follow. The same
network, data, draws and number of training steps for both; one thread.
"""

from __future__ import annotations

import argparse
import itertools
import time
from typing import Any

import ot
import pandas as pd
import torch
from _record import record
from torch import Tensor, nn

from structdiff.denoisers import Denoiser
from structdiff.noise import SeededNoise
from structdiff.objectives import Coupling, FlowMatching, Independent, MinibatchOT
from structdiff.processes import RectifiedFlow, System
from structdiff.samplers import Flow
from structdiff.state import State
from structdiff.testbeds import GaussianMixture

STEPS = (1, 2, 5, 10, 50)


class Velocity(nn.Module):
    """A perceptron over the plane and time."""

    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        widths = [3, *[width] * layers]
        hidden = [
            part for a, b in itertools.pairwise(widths) for part in (nn.Linear(a, b), nn.SiLU())
        ]
        self.layers = nn.Sequential(*hidden, nn.Linear(width, 2))

    def forward(self, x: State, log_snr: dict[str, Tensor], condition: Any) -> State:
        # Of the straight line the half log-SNR is ln((1-t)/t).
        t = torch.sigmoid(-log_snr["x"])[:, None]
        return x.map(lambda v: self.layers(torch.cat((v, t), 1)))


def train(coupling: Coupling, steps: int, batch: int, seed: int) -> tuple[Denoiser, float]:
    """A trained denoiser, and seconds of training."""
    torch.manual_seed(seed)
    mixture = GaussianMixture.gmm3()
    denoiser = Denoiser(Velocity(128, 3), System(RectifiedFlow()), "velocity")
    objective, source = FlowMatching(coupling=coupling), SeededNoise(seed)
    optimizer = torch.optim.Adam(denoiser.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    started = time.process_time()
    for _ in range(steps):
        x0 = mixture.sample(batch, source).to(torch.float32)
        optimizer.zero_grad()
        objective(denoiser, x0, source=source).mean().backward()
        optimizer.step()
        schedule.step()
    return denoiser, time.process_time() - started


def excess_energy(denoiser: Denoiser, start: State, steps: int = 100) -> float:
    """Kinetic energy of the flow's paths over that of straight ones of the same ends, less 1."""
    sampler = Flow(steps, method="euler", denoise=False)
    times = sampler.times(denoiser.system)
    states = [start, *sampler.trajectory(denoiser, start)]
    energy = sum(
        (b - a).square_norm() / (s - t)
        for a, b, s, t in zip(states, states[1:], times, times[1:], strict=False)
    )
    straight = (states[-1] - start).square_norm() / (times[0] - times[-1])
    return float(energy.mean() / straight.mean()) - 1  # type: ignore[union-attr]


@torch.no_grad()
def measure(denoiser: Denoiser, count: int, seeds: int) -> dict[str, float]:
    """Sliced W2 to fresh data by number of Euler steps (mean over seeds), and excess energy."""
    row: dict[str, float] = {}
    like = State({"x": torch.zeros(count, 2)})
    truths = [GaussianMixture.gmm3().sample(count, 1000 + s)["x"].numpy() for s in range(seeds)]
    starts = [denoiser.system.prior(like, 2000 + s) for s in range(seeds)]
    for steps in STEPS:
        sampler = Flow(steps, method="euler", denoise=False)  # down to t = 0.001
        distances = [
            ot.sliced_wasserstein_distance(
                sampler(denoiser, start)["x"].double().numpy(), truth, n_projections=64, seed=0
            )
            for start, truth in zip(starts, truths, strict=True)
        ]
        row[f"{steps} step{'s' if steps > 1 else ''}"] = round(float(sum(distances)) / seeds, 3)
    row["excess energy"] = round(excess_energy(denoiser, starts[0]), 4)
    return row


def floor(count: int, seeds: int) -> float:
    """Mean sliced W2 between two samples of the data."""
    draws = [GaussianMixture.gmm3().sample(count, 3000 + s)["x"].numpy() for s in range(2 * seeds)]
    pairs = zip(draws[::2], draws[1::2], strict=True)
    return sum(ot.sliced_wasserstein_distance(*p, n_projections=64, seed=0) for p in pairs) / seeds


def main() -> None:
    """Measure and write ``results/couplings.md``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--samples", type=int, default=5000)
    parser.add_argument("--seeds", type=int, default=4)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for coupling in (Independent(), MinibatchOT()):
        denoiser, seconds = train(coupling, arguments.steps, arguments.batch, seed=0)
        measured = measure(denoiser, arguments.samples, arguments.seeds)
        rows.append({"coupling": repr(coupling), **measured, "training CPU s": round(seconds)})
        print(rows[-1], flush=True)
    record(
        "couplings",
        "Flow matching: independent noise against minibatch optimal transport",
        pd.DataFrame(rows),
        "Sliced W2 to fresh samples of the three-Gaussian mixture, by number of Euler steps "
        f"(evaluations), mean over {arguments.seeds} samples of {arguments.samples}; two samples "
        f"of the data are {floor(arguments.samples, arguments.seeds):.3f} apart. Excess energy: "
        "kinetic energy of the paths over that of straight ones between the same ends, less 1. "
        f"Perceptron of 3 x 128, {arguments.steps} steps of {arguments.batch}, Adam 2e-3 with "
        "cosine decay.",
    )


if __name__ == "__main__":
    main()
