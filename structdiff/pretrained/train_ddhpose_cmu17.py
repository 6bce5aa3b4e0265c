"""Train the embedded model ``ddhpose-cmu17`` on the training clips of CMU17.

    python -m structdiff.pretrained.train_ddhpose_cmu17 --out runs/ddhpose-cmu17

It sees exact projections and simulated detections alike. The test clips of both are lifted and
scored at the end. Interrupted runs continue with ``--resume``.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import pandas as pd
import torch

from structdiff.pose import PoseDataset, PoseLifter, load_cmu17

_SHOWN = ["MPJPE", "P-MPJPE", "MPJVE (mm/s)", "coverage (80 %)"]


def main() -> None:
    """Train, write ``config.json`` and ``model.safetensors`` to ``OUT/model``, print scores."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of the run")
    parser.add_argument("--max-steps", type=int, default=15_000)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resume", action="store_true")
    arguments = parser.parse_args()

    torch.set_num_threads(arguments.threads)
    data = PoseDataset((*load_cmu17("train"), *load_cmu17("train", detected=True)))
    model = PoseLifter(
        27,
        width=48,
        lifter_width=224,
        lifter_blocks=4,
        dropout=0.1,
        turn=0.6,
        batch_size=32,
        calibration=0.06,
        max_steps=arguments.max_steps,
        random_state=arguments.seed,
    )
    started = time.process_time()
    model.fit(data, out=arguments.out, resume=arguments.resume)
    print(f"{time.process_time() - started:.0f} CPU seconds of training and calibration")
    folder = model.save_pretrained(arguments.out / "model", dtype="float16")
    loaded = PoseLifter.from_pretrained(folder)
    rows = {}
    for kind in ("gt", "det"):
        test = load_cmu17("test", detected=kind == "det")
        table = loaded.evaluate(test, metrics=_SHOWN, seed=0)
        rows[kind] = table.loc["all frames"]
    print(pd.DataFrame(rows).T.to_string(float_format="{:.2f}".format))


if __name__ == "__main__":
    main()
