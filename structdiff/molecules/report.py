"""What became of the records that were read: nothing is dropped in silence."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from rdkit import Chem

__all__ = ["Report"]

#: Why a record cannot become a molecule: reason -> (what it means, what to do about it).
REASONS: dict[str, tuple[str, str]] = {
    "empty": ("no SMILES in the record", "remove the row or fill it"),
    "invalid": ("RDKit cannot parse the SMILES", "correct the SMILES"),
    "aromatic": ("the aromatic system cannot be kekulised", "write the hydrogen, as in [nH]"),
    "fragments": ("several fragments", "pass largest_fragment=True, or remove salts and solvents"),
    "element": ("an element outside the vocabulary", "make one with Vocabulary.from_smiles"),
    "charge": (
        "a charged atom outside the vocabulary",
        "use a vocabulary with charges, or pass drop_charges=True",
    ),
    "too_large": ("more heavy atoms than max_atoms", "raise max_atoms"),
    "hydrogens": (
        "a radical or an unusual number of hydrogens, which bonds and charges cannot express",
        "remove the row",
    ),
    "duplicate": ("the same molecule as an earlier row", "none needed"),
    "bond": ("a bond that is not single, double or triple", "remove the row"),
}
#: What was kept, but not unchanged: note -> what it means.
NOTES: dict[str, str] = {
    "duplicate": "the same molecule as an earlier row",
    "stereo": "stereo marks, isotopes or atom maps removed",
    "fragments_dropped": "only the largest fragment kept",
    "charges_dropped": "formal charges dropped",
}


@dataclass
class Report:
    """How many records were read, rejected (by reason) and changed (by note)."""

    total: int = 0
    usable: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    noted: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[tuple[int, str, str]]] = field(default_factory=dict)
    """Reason or note -> first few (row, SMILES, detail); rows are counted from 0."""

    max_examples: int = 3

    def reject(self, reason: str, row: int, record: object, detail: str = "") -> None:
        """Count a record that cannot be used."""
        self.rejected[reason] += 1
        self._remember(reason, row, record, detail)

    def note(self, note: str, row: int, record: object, detail: str = "") -> None:
        """Count a record that is used, but not unchanged."""
        self.noted[note] += 1
        self._remember(note, row, record, detail)

    def _remember(self, key: str, row: int, record: object, detail: str) -> None:
        examples = self.examples.setdefault(key, [])
        if len(examples) < self.max_examples:
            text = Chem.MolToSmiles(record) if isinstance(record, Chem.Mol) else str(record)
            examples.append((row, text, detail))

    def to_dict(self) -> dict[str, Any]:
        """JSON-serialisable form."""
        return {
            "total": self.total,
            "usable": self.usable,
            "rejected": dict(self.rejected),
            "noted": dict(self.noted),
            "examples": {key: [list(e) for e in value] for key, value in self.examples.items()},
        }

    def __str__(self) -> str:
        lines = [f"{self.usable} of {self.total} records usable"]
        for reason, count in self.rejected.most_common():
            meaning, remedy = REASONS[reason]
            lines.append(f"  {count} rejected: {meaning} ({remedy}); {self._first(reason)}")
        for note, count in self.noted.most_common():
            lines.append(f"  {count} kept: {NOTES[note]}; {self._first(note)}")
        return "\n".join(lines)

    def _first(self, key: str) -> str:
        row, smiles, detail = self.examples[key][0]
        return f"first at row {row}: {smiles!r}" + (f" ({detail})" if detail else "")
