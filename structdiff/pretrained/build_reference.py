"""Compute the reference statistics that are shipped beside the pretrained weights.

    python -m structdiff.pretrained.build_reference --dataset qm9 --out reference.safetensors

reads the dataset's SMILES and test rows (from ``STRUCTDIFF_DATA`` or the cache), measures the test
set, hashes the training set, and scores training slices for the noise floors: about three minutes
for QM9 on one CPU core.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from structdiff.datasets import card, load_smiles
from structdiff.molecules.reference import ReferenceStatistics


def build(dataset: str, out: Path, random_state: int = 0) -> ReferenceStatistics:
    """Compute and save the statistics of a registered molecule dataset."""
    train, test = load_smiles(dataset)
    described = card(dataset)
    about = {
        "dataset": described.title,
        "test": f"{len(test)} molecules: {described.splits['test']}",
        "train": f"{len(train)} molecules: {described.splits['train']}",
        "citation": " ".join(described.citation),
        "random_state": str(random_state),
    }
    reference = ReferenceStatistics.compute(
        test, train, random_state=random_state, about=about, progress=True
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    reference.save(out)
    return reference


def main() -> None:
    """Command line of this module."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", default="qm9")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--random-state", type=int, default=0)
    arguments = parser.parse_args()
    reference = build(arguments.dataset, arguments.out, arguments.random_state)
    for score, values in reference.floors.items():
        print(score, {n: float(f"{value:.4g}") for n, value in values.items()})
    print(f"{arguments.out}: {arguments.out.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
