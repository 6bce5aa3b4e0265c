"""A molecule model under every sampler, for :mod:`structdiff.samplers.comparison`.

The sampler of a name is the one that ``structdiff molecules sample --sampler NAME`` runs: where the
name is the model's own sampler, with the model's own settings, and its cost is then counted.
"""

from __future__ import annotations

from hashlib import blake2b

import numpy as np
import pandas as pd

from structdiff.errors import StructDiffError
from structdiff.molecules.gdss import MoleculeGenerator
from structdiff.molecules.metrics import evaluate
from structdiff.molecules.reference import ReferenceStatistics
from structdiff.molecules.sampling import PUBLISHED, choose_sampler, is_own_sampler
from structdiff.samplers import SAMPLERS, Sampler
from structdiff.samplers.comparison import ComparableModel, Metric, most_steps

#: Column of a comparison -> score of :func:`structdiff.molecules.evaluate`.
_SCORES = {
    "fcd": "fcd",
    "nspdk": "nspdk_mmd",
    "valid": "validity_without_correction",
    "unique": "uniqueness",
}


class MoleculeComparison(ComparableModel):
    """A molecule generator and what its molecules are compared with.

    Parameters
    ----------
    generator
        Fitted or loaded.
    reference
        Statistics of test molecules.
    name
        How the user calls the model.
    """

    metrics = (
        Metric("fcd", "FCD", "smaller"),
        Metric("nspdk", "NSPDK MMD", "smaller"),
        Metric("valid", "valid without correction", "greater"),
        Metric("unique", "unique", "greater"),
    )

    def __init__(
        self, generator: MoleculeGenerator, reference: ReferenceStatistics, name: str = "molecules"
    ) -> None:
        if not hasattr(generator, "denoiser_"):
            raise StructDiffError("this MoleculeGenerator is not fitted: there is nothing to draw")
        self.name = name
        self.generator, self.reference = generator, reference
        self.fingerprint = _fingerprint(generator, reference)

    def sampler_names(self) -> list[str]:
        """Those of the registry, and the published scheme for GDSS networks."""
        published = [PUBLISHED] if self.generator.spec_.network == "gdss" else []
        return [*SAMPLERS, *published]

    def sampler(self, name: str, steps: int) -> Sampler:
        """With the model's own settings where the name is its own sampler."""
        return choose_sampler(self.generator.spec_, name, steps)

    def steps_within(self, name: str, nfe: int) -> int | None:
        """By the registry; settings of the model's own are counted on one molecule."""
        if name != PUBLISHED and not is_own_sampler(self.generator.spec_, name):
            return super().steps_within(name, nfe)

        def evaluations(steps: int) -> int:
            sampler = self.sampler(name, steps)
            self.draw(sampler, 1, 0)
            return sampler.nfe

        return most_steps(evaluations, nfe)

    def draw(self, sampler: Sampler, n: int, seed: int) -> pd.DataFrame:
        """Columns ``smiles``, ``valid``, ``corrected``."""
        batches = self.generator.sample_batches(n, sampler, random_state=seed, progress=False)
        return pd.concat(list(batches), ignore_index=True)

    def scores(self, drawn: pd.DataFrame) -> dict[str, float]:
        """Shares of 1 and distances to the reference."""
        found = evaluate(drawn, self.reference, floor=False)
        return {column: float(found[score]) for column, score in _SCORES.items()}

    def floors(self, n: int) -> dict[str, float]:
        """What ``n`` training molecules score; nothing where the reference does not know them."""
        known = {column: self.reference.floor(score, n) for column, score in _SCORES.items()}
        return {column: value for column, value in known.items() if not np.isnan(value)}


def _fingerprint(generator: MoleculeGenerator, reference: ReferenceStatistics) -> str:
    """Of the weights and the reference."""
    digest = blake2b(digest_size=6)
    for name, value in sorted(generator.denoiser_.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    digest.update(repr(generator.spec_.to_dict()).encode())
    digest.update(np.ascontiguousarray(reference.statistics.nspdk_mean, np.float32).tobytes())
    digest.update(np.ascontiguousarray(reference.statistics.properties, np.float32).tobytes())
    return digest.hexdigest()
