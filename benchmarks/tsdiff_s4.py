"""What TSDiff's backbone costs on one thread: exact S4 and S4D, training and evaluation.

CPU seconds (user and system) of the process, best of several rounds taken in turn, at the published
width (64 channels, 3 blocks, state 128) and the published Exchange window (390 steps, 13 channels).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import pandas as pd
import torch
from _record import record

from structdiff import State
from structdiff.timeseries.networks import TSDiffNetwork

LENGTH, CHANNELS = 390, 13


def jobs(kernel: str, batch: int) -> dict[str, Callable[[], object]]:
    """The calls that are timed."""
    torch.manual_seed(0)
    trained, frozen = (
        TSDiffNetwork(CHANNELS, kernel=kernel, length=LENGTH)  # type: ignore[arg-type]
        for _ in range(2)
    )
    frozen.eval().requires_grad_(False)
    optimiser = torch.optim.Adam(trained.parameters(), lr=1e-3)
    x, noise = torch.randn(batch, LENGTH, CHANNELS), torch.randn(batch, LENGTH, CHANNELS)
    level = {"x": torch.randn(batch)}

    def train() -> None:
        optimiser.zero_grad()
        (trained(State({"x": x}), level)["x"] - noise).square().mean().backward()
        optimiser.step()

    def forward(windows: int, keep: bool) -> None:
        frozen.train(not keep) if frozen.training == keep else None
        with torch.no_grad():
            frozen(State({"x": x[:windows]}), {"x": level["x"][:windows]})

    def guided() -> None:
        frozen.eval() if frozen.training else None
        given = x.clone().requires_grad_()
        torch.autograd.grad(frozen(State({"x": given}), level)["x"].square().sum(), given)

    return {
        f"training step, {batch} windows": train,
        f"forward, {batch} windows, kernel kept": lambda: forward(batch, True),
        f"forward, {batch} windows, kernel computed": lambda: forward(batch, False),
        "forward, 1 window, kernel kept": lambda: forward(1, True),
        "forward, 1 window, kernel computed": lambda: forward(1, False),
        f"forward and gradient of the input, {batch} windows, kernel kept": guided,
    }


def seconds(job: Callable[[], object], calls: int = 3) -> float:
    """CPU seconds per call, after one that is not timed."""
    job()
    start = time.process_time()
    for _ in range(calls):
        job()
    return (time.process_time() - start) / calls


def main() -> None:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    both = {kernel: jobs(kernel, arguments.batch) for kernel in ("s4", "s4d")}
    best: dict[tuple[str, str], float] = {}
    for _ in range(arguments.rounds):
        for kernel, named in both.items():
            for name, job in named.items():
                best[kernel, name] = min(best.get((kernel, name), 1e9), seconds(job))
    rows = [
        {"CPU s": name, "exact S4": f"{best['s4', name]:.4f}", "S4D": f"{best['s4d', name]:.4f}"}
        for name in both["s4"]
    ]
    record(
        "tsdiff_s4",
        "TSDiff's backbone on one thread",
        pd.DataFrame(rows),
        f"Windows of {LENGTH} steps and {CHANNELS} channels, 3 blocks of 64 channels, state 128, "
        f"float32; best of {arguments.rounds} rounds of 3 calls. A training step is forward, "
        "backward and Adam.",
    )


if __name__ == "__main__":
    main()
