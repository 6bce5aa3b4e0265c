"""Pictures of generated molecules: a grid of structures, and histograms of their properties."""

from __future__ import annotations

from collections.abc import Iterable
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image
from rdkit import Chem, rdBase
from rdkit.Chem.Draw import rdMolDraw2D

from structdiff.molecules.reference import ReferenceStatistics
from structdiff.molecules.statistics import PROPERTIES, molecule_properties
from structdiff.molecules.vocabulary import MoleculeDataError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["molecule_grid", "property_plot"]

LABELS = {
    "qed": "QED (0 poor .. 1 drug-like)",
    "sa": "SA score (1 easy .. 10 hard)",
    "logp": "logP",
    "molecular_weight": "molecular weight (g/mol)",
}
BLUE, GREY = "#1f6fb4", "#8c8c8c"


def molecule_grid(
    molecules: pd.DataFrame | Iterable[str | Chem.Mol],
    path: str | Path | None = None,
    *,
    columns: int = 6,
    max_molecules: int = 36,
    size: int = 220,
) -> Image.Image:
    """Draw molecules in a grid, each with its SMILES; those that were corrected say so.

    Parameters
    ----------
    molecules
        A frame with the columns ``smiles`` and, if known, ``valid`` and ``corrected``; or SMILES,
        or Mols. Records that are not molecules are left out of the picture.
    path
        Where to write the PNG; nowhere by default.
    columns, max_molecules, size
        Pictures per row, in all, and the side of one in pixels.

    Raises
    ------
    MoleculeDataError
        If no record is a molecule, or ``columns``, ``max_molecules`` or ``size`` is not positive.
    """
    if min(columns, max_molecules, size) < 1:
        raise MoleculeDataError(
            "columns, max_molecules and size must be at least 1, "
            f"got {columns}, {max_molecules}, {size}"
        )
    drawn: list[Chem.Mol] = []
    legends: list[str] = []
    for mol, note in _drawable(molecules):
        if len(drawn) == max_molecules:
            break
        smiles = Chem.MolToSmiles(mol)
        shown = smiles if len(smiles) <= 24 else smiles[:23] + "…"
        drawn.append(mol)
        legends.append(f"{shown}\n{note}" if note else shown)
    if not drawn:
        raise MoleculeDataError("no molecule to draw; pass SMILES, Mols or a frame with 'smiles'")
    columns = min(columns, len(drawn))
    rows = -(-len(drawn) // columns)
    canvas = rdMolDraw2D.MolDraw2DCairo(columns * size, rows * size, size, size)
    options: Any = canvas.drawOptions()  # the stubs give its fields the wrong types
    options.legendFontSize = 14
    options.legendFraction = 0.18
    options.padding = 0.12
    canvas.DrawMolecules(drawn, legends=legends)
    canvas.FinishDrawing()
    png = canvas.GetDrawingText()
    if path is not None:
        Path(path).write_bytes(png)
    return Image.open(BytesIO(png))


def _drawable(
    molecules: pd.DataFrame | Iterable[str | Chem.Mol],
) -> Iterable[tuple[Chem.Mol, str]]:
    """Molecules, and what to say of each."""
    if isinstance(molecules, pd.DataFrame):
        if "smiles" not in molecules.columns:
            raise MoleculeDataError(
                f"the frame has no column 'smiles' (it has {list(molecules.columns)})"
            )
        records = molecules["smiles"].tolist()
        corrected = (
            molecules["corrected"].astype(str).str.lower().isin(("true", "1")).tolist()
            if "corrected" in molecules.columns
            else [False] * len(records)
        )
    else:
        records = list(molecules)
        corrected = [False] * len(records)
    with rdBase.BlockLogs():
        for record, was_corrected in zip(records, corrected, strict=True):
            mol = Chem.MolFromSmiles(record) if isinstance(record, str) else record
            if isinstance(mol, Chem.Mol) and mol.GetNumAtoms():
                yield mol, "corrected" if was_corrected else ""


def property_plot(
    generated: pd.DataFrame | Iterable[str | Chem.Mol],
    reference: ReferenceStatistics | Iterable[str | Chem.Mol],
    axes: NDArray[np.object_] | None = None,
) -> NDArray[np.object_]:
    """Histograms of QED, SA, logP and molecular weight, generated over reference.

    Parameters
    ----------
    generated, reference
        As for :func:`structdiff.molecules.metrics.evaluate`.
    axes
        Four matplotlib Axes to draw on; a new figure by default.

    Returns
    -------
    numpy.ndarray
        The four Axes.

    Raises
    ------
    MoleculeDataError
        If there is no molecule on one side.
    """
    import matplotlib.pyplot as plt  # an extra of its own

    if axes is None:
        _, axes = plt.subplots(1, 4, figsize=(13, 3), layout="constrained")
    ours = _properties(generated)
    theirs = (
        reference.statistics.properties
        if isinstance(reference, ReferenceStatistics)
        else _properties(reference)
    )
    for column, name in enumerate(PROPERTIES):
        _histogram(np.ravel(axes)[column], ours[:, column], theirs[:, column], LABELS[name])
    np.ravel(axes)[0].set_ylabel("density")
    np.ravel(axes)[0].legend(frameon=False, loc="upper left", fontsize="small")
    return np.asarray(axes)


def _properties(molecules: pd.DataFrame | Iterable[str | Chem.Mol]) -> NDArray[np.float64]:
    values = [molecule_properties(mol) for mol, _ in _drawable(molecules)]
    if not values:
        raise MoleculeDataError("no molecule to plot; pass SMILES, Mols or a frame with 'smiles'")
    return np.array(values)


def _histogram(
    axis: Axes, ours: NDArray[np.float64], theirs: NDArray[np.float64], label: str
) -> None:
    # The bins span nearly all of both sets; one odd molecule does not squeeze the rest.
    both = np.concatenate([ours, theirs])
    low, high = np.quantile(both, [0.002, 0.998]).tolist()
    bins = np.linspace(low, high, 41).tolist()
    axis.hist(theirs, bins=bins, density=True, color=GREY, alpha=0.45, label="reference")
    axis.hist(ours, bins=bins, density=True, histtype="step", color=BLUE, lw=1.6, label="generated")
    axis.set_xlabel(label)
    axis.set_yticks([])
    axis.spines[["top", "right", "left"]].set_visible(False)
