"""The embedded model ``gdss-qm9``: 10,000 molecules against the QM9 test set, one thread."""

from __future__ import annotations

import argparse
import time

import pandas as pd
import torch
from _record import record

from structdiff.molecules import MoleculeGenerator, ReferenceStatistics, evaluate
from structdiff.molecules.sampling import choose_sampler


def main() -> None:
    """Sample, evaluate, and write ``results/gdss_qm9.md``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="gdss-qm9")
    parser.add_argument("--num", type=int, default=10_000)
    parser.add_argument("--sampler", default=None)
    parser.add_argument("--steps", type=int, default=None)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    generator = MoleculeGenerator.from_pretrained(arguments.model)
    sampler = choose_sampler(generator.spec_, arguments.sampler, arguments.steps)
    started, cpu = time.perf_counter(), time.process_time()
    frame = generator.sample_frame(arguments.num, sampler=sampler, random_state=arguments.seed)
    wall, cpu = time.perf_counter() - started, time.process_time() - cpu
    scores = evaluate(frame, ReferenceStatistics.from_pretrained("gdss-qm9"), progress=True)
    scores["evaluations"] = sampler.nfe
    scores["seconds"] = wall
    scores["CPU ms per molecule"] = 1000 * cpu / arguments.num
    table = pd.DataFrame({"score": scores.index, "value": [f"{v:.5g}" for v in scores]})
    record("gdss_qm9", f"Embedded model, {arguments.num} QM9 molecules, {sampler}", table)


if __name__ == "__main__":
    main()
