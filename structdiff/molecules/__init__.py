"""Molecules: SMILES to states and back, generation, and its evaluation suite."""

from structdiff.molecules.gdss import MoleculeGenerator
from structdiff.molecules.metrics import evaluate
from structdiff.molecules.reference import ReferenceStatistics
from structdiff.molecules.vocabulary import Vocabulary

__all__ = ["MoleculeGenerator", "ReferenceStatistics", "Vocabulary", "evaluate"]
