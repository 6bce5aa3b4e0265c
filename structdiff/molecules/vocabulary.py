"""The atoms a molecule model can place.

A vocabulary is a list of pairs (element, formal charge); the position in it is the channel of the
component ``x``, so that ``x[i, k] = 1`` means: atom ``i`` is of type ``k``. Published models know
elements only; a vocabulary with charges can also express the third of ZINC250k that carries them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rdkit import Chem, rdBase

from structdiff.errors import StructDiffError

__all__ = [
    "QM9",
    "QM9_CHARGED",
    "ZINC250K",
    "ZINC250K_CHARGED",
    "MoleculeDataError",
    "Vocabulary",
    "parse_smiles",
]


class MoleculeDataError(StructDiffError):
    """Molecule records that cannot be used: the message names the records and the remedy."""


@dataclass(frozen=True)
class Vocabulary:
    """The atoms a model can place: pairs (element symbol, formal charge), and how many at most.

    Parameters
    ----------
    atom_types
        For example ``(("C", 0), ("N", 0), ("N", 1))``; the position is the channel of ``x``.
    max_atoms
        The largest number of heavy atoms, ``N``.

    Raises
    ------
    MoleculeDataError
        If a type is repeated or is not a heavy element, or ``max_atoms < 1``.
    """

    atom_types: tuple[tuple[str, int], ...]
    max_atoms: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "atom_types", tuple((str(s), int(q)) for s, q in self.atom_types))
        if not self.atom_types:
            raise MoleculeDataError("a vocabulary needs at least one atom type, such as ('C', 0)")
        if len(set(self.atom_types)) != len(self.atom_types):
            raise MoleculeDataError(f"an atom type is repeated in the vocabulary {self.atom_types}")
        if self.max_atoms < 1:
            raise MoleculeDataError(f"max_atoms must be at least 1, got {self.max_atoms}")
        for symbol, _ in self.atom_types:
            if symbol not in _ATOMIC_NUMBERS or _ATOMIC_NUMBERS[symbol] < 2:
                raise MoleculeDataError(
                    f"{symbol!r} is not the symbol of a heavy element; use one such as 'C' or 'Cl'"
                )

    def __len__(self) -> int:
        return len(self.atom_types)

    def __str__(self) -> str:
        names = (s + (f"{q:+d}" if q else "") for s, q in self.atom_types)
        return f"{', '.join(names)}; at most {self.max_atoms} atoms"

    @property
    def has_charges(self) -> bool:
        """Whether any atom type is charged."""
        return any(charge for _, charge in self.atom_types)

    @property
    def atomic_numbers(self) -> NDArray[np.int64]:
        """Atomic number per type, shape (F,)."""
        return np.array([_ATOMIC_NUMBERS[symbol] for symbol, _ in self.atom_types])

    @property
    def formal_charges(self) -> NDArray[np.int64]:
        """Formal charge per type, shape (F,)."""
        return np.array([charge for _, charge in self.atom_types])

    @classmethod
    def preset(cls, name: str, *, charges: bool = False) -> Vocabulary:
        """That of ``"qm9"`` or ``"zinc250k"``, with or without the charged atoms that occur there.

        Raises
        ------
        MoleculeDataError
            If there is no such preset; the message lists those that exist.
        """
        presets = {"qm9": (QM9, QM9_CHARGED), "zinc250k": (ZINC250K, ZINC250K_CHARGED)}
        if name not in presets:
            raise MoleculeDataError(f"no preset {name!r}; there are {', '.join(presets)}")
        return presets[name][int(charges)]

    @classmethod
    def from_smiles(
        cls, smiles: Iterable[Any], *, charges: bool = True, max_atoms: int | None = None
    ) -> Vocabulary:
        """The atom types that occur in SMILES or Mols, those in most molecules first.

        Unreadable records are passed over here; ``read_molecules`` counts them.

        Parameters
        ----------
        charges
            Whether charged atoms become types of their own; if not, an element counts once.
        max_atoms
            The largest molecule; by default that of the records.

        Raises
        ------
        MoleculeDataError
            If no record can be read.
        """
        seen: Counter[tuple[str, int]] = Counter()
        largest = 0
        with rdBase.BlockLogs():
            for record in smiles:
                mol = record if isinstance(record, Chem.Mol) else parse_smiles(record)
                if mol is None:
                    continue
                atoms = [a for a in mol.GetAtoms() if a.GetAtomicNum() > 1]
                seen.update({(a.GetSymbol(), a.GetFormalCharge() if charges else 0) for a in atoms})
                largest = max(largest, len(atoms))
        if not seen:
            raise MoleculeDataError(
                "no readable molecule among the records, so no vocabulary; pass a list of SMILES"
            )
        ordered = sorted(seen, key=lambda t: (-seen[t], t))
        return cls(tuple(ordered), largest if max_atoms is None else max_atoms)

    def to_dict(self) -> dict[str, Any]:
        """JSON-serialisable form; :meth:`from_dict` reads it back."""
        return {"atom_types": [list(t) for t in self.atom_types], "max_atoms": self.max_atoms}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Vocabulary:
        """Read what :meth:`to_dict` wrote.

        Raises
        ------
        MoleculeDataError
            If a key is missing or of another form.
        """
        try:
            types = tuple((str(s), int(q)) for s, q in values["atom_types"])
            return cls(types, int(values["max_atoms"]))
        except (KeyError, TypeError) as error:
            raise MoleculeDataError(
                f"not a vocabulary: {dict(values)!r}; "
                "expected {'atom_types': [[symbol, charge], ...], 'max_atoms': n}"
            ) from error


_TABLE = Chem.GetPeriodicTable()
_ATOMIC_NUMBERS = {_TABLE.GetElementSymbol(z): z for z in range(1, 119)}


def _neutral(*symbols: str) -> tuple[tuple[str, int], ...]:
    return tuple((symbol, 0) for symbol in symbols)


# The neutral types stand in the order of the published GDSS checkpoints; the charged ones are all
# those that occur in the data set. With them every row of QM9 and all but one of ZINC250k (a
# phosphorus with two written hydrogens) return to the same SMILES.
QM9 = Vocabulary(_neutral("C", "N", "O", "F"), 9)
QM9_CHARGED = Vocabulary((*QM9.atom_types, ("N", 1), ("O", -1), ("N", -1), ("C", -1)), 9)
ZINC250K = Vocabulary(_neutral("C", "N", "O", "F", "P", "S", "Cl", "Br", "I"), 38)
ZINC250K_CHARGED = Vocabulary(
    (
        *ZINC250K.atom_types,
        ("N", 1),
        ("O", -1),
        ("N", -1),
        ("S", -1),
        ("O", 1),
        ("S", 1),
        ("C", -1),
        ("P", 1),
    ),
    38,
)


def parse_smiles(record: object) -> Chem.Mol | None:
    """The molecule of a SMILES string, or None if it is not one or is empty."""
    if not isinstance(record, str) or not record.strip():
        return None
    mol = Chem.MolFromSmiles(record)
    return mol if mol is not None and mol.GetNumAtoms() else None
