"""Train the embedded model ``gdss-qm9`` on the QM9 training split of GDSS.

    python -m structdiff.pretrained.train_gdss_qm9 --out runs/gdss-qm9

Interrupted runs continue with ``--resume``. The data come from the dataset registry
(``structdiff datasets fetch qm9``, or ``STRUCTDIFF_DATA``).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from structdiff.datasets import load_smiles
from structdiff.molecules import MoleculeGenerator


def main() -> None:
    """Train, then write ``config.json`` and ``model.safetensors`` to ``OUT/model``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of the run")
    parser.add_argument("--max-steps", type=int, default=30_000)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--precision", default="bf16-mixed")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resume", action="store_true")
    arguments = parser.parse_args()

    torch.set_num_threads(arguments.threads)
    train, _ = load_smiles("qm9")
    generator = MoleculeGenerator(
        preset="qm9",
        max_steps=arguments.max_steps,
        batch_size=arguments.batch_size,
        learning_rate=arguments.learning_rate,
        precision=arguments.precision,
        compile_network=True,
        random_state=arguments.seed,
    )
    generator.fit(train, out=arguments.out, resume=arguments.resume)
    print(generator.report_)
    generator.save_pretrained(arguments.out / "model", dtype="float16")


if __name__ == "__main__":
    main()
