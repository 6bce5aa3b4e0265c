"""Generate molecules by a system of SDEs over atoms and bonds (GDSS; Jo, Lee, Hwang, ICML 2022).

>>> from structdiff.molecules import MoleculeGenerator
>>> generator = MoleculeGenerator.from_pretrained("gdss-qm9")
>>> frame = generator.sample_frame(1000, random_state=0)      # smiles, valid, corrected
>>> generator = MoleculeGenerator(max_steps=5000).fit(my_smiles)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from rdkit import Chem
from sklearn.base import BaseEstimator

from structdiff.devices import sampling_device
from structdiff.errors import StructDiffError
from structdiff.molecules import sampling
from structdiff.molecules.correction import BuiltMolecule
from structdiff.molecules.data import MoleculeSet, read_molecules
from structdiff.molecules.models import (
    build_denoiser,
    check_network,
    class_frequencies,
    new_spec,
)
from structdiff.molecules.storage import SavedGenerator, load_gdss
from structdiff.molecules.vocabulary import Vocabulary

if TYPE_CHECKING:
    from structdiff.molecules.report import Report


class MoleculeGenerator(SavedGenerator, BaseEstimator):
    """A generative model of molecules: trains on SMILES, samples molecules.

    Parameters
    ----------
    preset
        ``"qm9"`` or ``"zinc250k"``: the atom types and largest size of that set. None takes both
        from the training molecules.
    network
        ``"transformer"`` (recommended) or ``"gdss"``, the published score networks.
    charges
        Let charged atoms be types of their own. Without them, molecules with formal charges cannot
        be represented and are counted as unusable.
    largest_fragment
        Train on the largest fragment of records with several, instead of rejecting them.
    network_settings
        Constructor arguments of the network that replace its defaults.
    max_steps, batch_size, learning_rate, weight_decay, ema_decay
        Of training; a batch also is how many molecules are sampled at a time.
    bond_weight
        Weight of the bonds' loss against the atoms'.
    accelerator
        Where to train and sample: ``"auto"``, ``"cpu"`` or ``"gpu"``.
    precision, devices, strategy, compile_network
        Of training: Lightning's, and whether to compile the network's layers.
    checkpoint_every
        Optimiser steps between checkpoints, when ``fit`` is given a folder.
    random_state
        Seeds initial weights, data order, noise and, unless a call gives its own, sampling.
    progress
        Show progress bars.

    Attributes
    ----------
    denoiser_ : Denoiser
        The trained model; works with every sampler of :mod:`structdiff.samplers`.
    spec_ : ModelSpec
        What it is made of.
    vocabulary_ : Vocabulary
        Its atom types.
    node_counts_ : numpy.ndarray
        How many training molecules have 0, 1, ... atoms; sizes are drawn from this law.
    report_ : Report
        What became of the training records (after ``fit``).
    """

    report_: Report

    def __init__(
        self,
        *,
        preset: str | None = None,
        network: str = "transformer",
        charges: bool = True,
        largest_fragment: bool = False,
        network_settings: dict[str, Any] | None = None,
        max_steps: int = 10_000,
        batch_size: int = 256,
        learning_rate: float = 1e-3,
        weight_decay: float = 0.0,
        ema_decay: float = 0.999,
        bond_weight: float = 5.0,
        precision: str = "32-true",
        accelerator: str = "auto",
        devices: int | str = 1,
        strategy: str = "auto",
        compile_network: bool = False,
        checkpoint_every: int = 500,
        random_state: int | None = None,
        progress: bool = True,
    ) -> None:
        self.preset = preset
        self.network = network
        self.charges = charges
        self.largest_fragment = largest_fragment
        self.network_settings = network_settings
        self.max_steps = max_steps
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.ema_decay = ema_decay
        self.bond_weight = bond_weight
        self.precision = precision
        self.accelerator = accelerator
        self.devices = devices
        self.strategy = strategy
        self.compile_network = compile_network
        self.checkpoint_every = checkpoint_every
        self.random_state = random_state
        self.progress = progress

    # --- training ----------------------------------------------------------------------------
    def fit(
        self,
        smiles: Iterable[str | Chem.Mol],
        y: None = None,
        *,
        out: str | Path | None = None,
        resume: bool = False,
    ) -> MoleculeGenerator:
        """Train on molecules.

        Parameters
        ----------
        smiles
            SMILES or RDKit Mols. What cannot be used is counted in ``report_``.
        y
            Ignored; there for scikit-learn's habits.
        out
            Folder for checkpoints and the log; None keeps neither.
        resume
            Continue the run in ``out``: the same molecules and settings give the same model as an
            uninterrupted run.

        Raises
        ------
        MoleculeDataError
            If no molecule can be used.
        CheckpointError
            If ``out`` already holds a run and ``resume`` is False.
        """
        from structdiff.molecules.training import train

        check_network(self.network)
        smiles = _as_list(smiles)
        vocabulary = self._vocabulary(smiles)
        molecules = read_molecules(
            smiles,
            vocabulary,
            largest_fragment=self.largest_fragment,
            progress=self.progress,
        )
        self.vocabulary_, self.report_ = vocabulary, molecules.report
        self.node_counts_ = molecules.node_counts
        self.spec_ = new_spec(self.network, vocabulary, self.network_settings or {})
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self._seed())
            self.denoiser_ = build_denoiser(self.spec_)
        self._set_priors(molecules)
        self.training_ = train(self, molecules, out, resume)
        self.denoiser_.eval()
        return self

    def _vocabulary(self, smiles: list[str | Chem.Mol]) -> Vocabulary:
        if self.preset is not None:
            return Vocabulary.preset(self.preset, charges=self.charges)
        return Vocabulary.from_smiles(smiles, charges=self.charges)

    def _set_priors(self, molecules: MoleculeSet) -> None:
        network = self.denoiser_.network
        if self.spec_.categorical:
            frequencies = class_frequencies(
                molecules.atom_types, molecules.bonds, molecules.vocabulary
            )
            network.set_priors(*frequencies)  # type: ignore[operator]

    def _seed(self) -> int:
        return 0 if self.random_state is None else int(self.random_state)

    # --- sampling ----------------------------------------------------------------------------
    def sample_batches(
        self,
        n: int,
        sampler: Any = None,
        steps: int | None = None,
        random_state: int | None = None,
        progress: bool | None = None,
    ) -> Iterator[pd.DataFrame]:
        """Sample molecules and hand them out as they are finished.

        Parameters
        ----------
        n
            How many.
        sampler
            Name of a sampler, or a :class:`~structdiff.samplers.Sampler`; None is the model's own.
        steps
            Sampler steps; None is the model's own number.
        random_state
            Seed; None uses the estimator's, or fresh randomness without one. A seed gives the same
            molecules whatever the batch size, and the first molecules of a larger sample.
        progress
            Show a progress bar; None as the estimator says.

        Yields
        ------
        pandas.DataFrame
            Columns ``smiles``, ``valid`` (the graph passed the valence check before correction) and
            ``corrected`` (bonds had to be lowered), in order.

        Raises
        ------
        StructDiffError
            If n < 1, the sampler is unknown, or the model is not fitted.
        """
        for built in self._built(n, sampler, steps, random_state, progress):
            yield sampling.to_frame(built)

    def _built(
        self,
        n: int,
        sampler: Any,
        steps: int | None,
        random_state: int | None,
        progress: bool | None,
    ) -> Iterator[list[BuiltMolecule]]:
        if not hasattr(self, "denoiser_"):
            raise StructDiffError(
                "this MoleculeGenerator is not fitted: call fit or from_pretrained"
            )
        chosen = sampling.choose_sampler(self.spec_, sampler, steps)
        seed = self.random_state if random_state is None else random_state
        return sampling.sample_built(
            self.denoiser_.to(sampling_device(self.accelerator)),
            chosen,
            n,
            self.vocabulary_,
            self.node_counts_,
            rule="argmax" if self.spec_.categorical else "threshold",
            batch_size=self.batch_size,
            seed=seed,
            progress=self.progress if progress is None else progress,
        )

    def sample_frame(
        self,
        n: int,
        sampler: Any = None,
        steps: int | None = None,
        random_state: int | None = None,
    ) -> pd.DataFrame:
        """Sample ``n`` molecules as a frame; see :meth:`sample_batches`."""
        batches = self.sample_batches(n, sampler, steps, random_state)
        return pd.concat(list(batches), ignore_index=True)

    def sample(
        self,
        n: int,
        sampler: Any = None,
        steps: int | None = None,
        random_state: int | None = None,
    ) -> list[Chem.Mol]:
        """Sample ``n`` molecules as sanitised RDKit Mols; see :meth:`sample_batches`."""
        built = self._built(n, sampler, steps, random_state, None)
        return [m.mol if m.mol is not None else Chem.Mol() for batch in built for m in batch]

    def sample_smiles(
        self,
        n: int,
        sampler: Any = None,
        steps: int | None = None,
        random_state: int | None = None,
    ) -> list[str]:
        """Sample ``n`` molecules as canonical SMILES; see :meth:`sample_batches`."""
        return self.sample_frame(n, sampler, steps, random_state)["smiles"].tolist()

    # --- storage -----------------------------------------------------------------------------
    @classmethod
    def from_gdss(cls, path: str | Path) -> MoleculeGenerator:
        """Load a published GDSS molecule checkpoint, without executing its pickle.

        Parameters
        ----------
        path
            The original ``checkpoint.pth``, or a converted ``.safetensors`` with its ``.json``.

        Raises
        ------
        CheckpointError
            If the file is truncated, hostile, no molecule model, or holds NaN.
        """
        return load_gdss(cls, Path(path))


def _as_list(smiles: Iterable[str | Chem.Mol]) -> list[str | Chem.Mol]:
    if isinstance(smiles, (str, Chem.Mol)):
        raise StructDiffError("fit takes a list of SMILES or Mols, got a single one")
    return list(smiles)
