"""Pictures: what is drawn, and what is refused."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from rdkit import Chem

from structdiff.molecules.plots import molecule_grid, property_plot
from structdiff.molecules.vocabulary import MoleculeDataError

mpl.use("Agg")

SMILES = ["CCO", "CCN", "c1ccccc1", "CC(C)=O", "C1CCOC1", "CC#N", "CF"]


def test_the_grid_is_a_png_of_the_asked_shape(tmp_path):
    molecule_grid(SMILES, tmp_path / "grid.png", columns=3, size=100)
    with Image.open(tmp_path / "grid.png") as picture:
        assert (picture.format, picture.size) == ("PNG", (300, 300))


def test_the_grid_holds_at_most_so_many_molecules():
    assert molecule_grid(SMILES, columns=2, max_molecules=3, size=100).size == (200, 200)


def test_the_grid_leaves_out_what_is_no_molecule():
    assert molecule_grid(["CCO", "", "x", None], columns=4, size=100).size == (100, 100)


def test_every_molecule_is_drawn():
    picture = np.asarray(molecule_grid(SMILES[:4], columns=4, size=100).convert("L"))
    assert [(tile < 128).any() for tile in np.split(picture, 4, axis=1)] == [True] * 4


def test_a_corrected_molecule_is_marked():
    frame = pd.DataFrame({"smiles": ["CCO", "CCO"], "corrected": [False, True]})
    plain, marked = np.split(np.asarray(molecule_grid(frame, columns=2).convert("L")), 2, axis=1)
    assert (marked[160:] < 128).sum() > (plain[160:] < 128).sum()


def test_mols_are_drawn_like_smiles():
    a = molecule_grid(SMILES[:2])
    b = molecule_grid([Chem.MolFromSmiles(s) for s in SMILES[:2]])
    assert np.array_equal(np.asarray(a), np.asarray(b))


def test_nothing_to_draw_is_an_error():
    with pytest.raises(MoleculeDataError, match="no molecule to draw"):
        molecule_grid(["x"])


def test_a_frame_without_smiles_is_an_error():
    with pytest.raises(MoleculeDataError, match="no column 'smiles'"):
        molecule_grid(pd.DataFrame({"mol": ["C"]}))


@pytest.mark.parametrize("name", ["columns", "max_molecules", "size"])
def test_an_empty_layout_is_an_error(name):
    with pytest.raises(MoleculeDataError, match="at least 1"):
        molecule_grid(SMILES, **{name: 0})


def test_the_properties_are_four_densities():
    axes = property_plot(SMILES, SMILES)
    assert [axis.get_xlabel() for axis in axes][2:] == ["logP", "molecular weight (g/mol)"]
    assert all(len(axis.patches) == 41 for axis in axes)  # 40 bars and one outline


def test_no_molecules_to_plot_is_an_error():
    with pytest.raises(MoleculeDataError, match="no molecule to plot"):
        property_plot([], SMILES)
