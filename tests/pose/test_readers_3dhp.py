"""MPI-INF-3DHP's files, of made-up people in exactly their layouts, and how they come in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from scipy.io import savemat

from structdiff.errors import StructDiffError
from structdiff.pose.data import load_cmu17
from structdiff.pose.readers import (
    convert_to_plain_npz,
    read_mpi_inf_3dhp,
    read_mpi_inf_3dhp_activities,
    read_mpi_inf_3dhp_npz,
)
from structdiff.pose.readers.mpi_inf_3dhp import sequence_camera as camera_of
from structdiff.pose.skeletons import H36M_17, MPI_INF_3DHP_17, convert

SEQUENCES = ("TS1", "TS5")


@pytest.fixture(scope="module")
def people(data_dir) -> dict[str, dict[str, np.ndarray]]:
    """Real movements on the set's joints, as its cameras see them; every third frame is invalid."""
    motions = load_cmu17("test")[:8:4]
    found = {}
    for name, motion in zip(SEQUENCES, motions, strict=True):
        poses = convert(motion.in_camera()[:40], H36M_17, MPI_INF_3DHP_17).astype(np.float64)
        poses[..., 0] -= poses[:, :1, 0]  # in the middle of the image
        small = poses[:, 14:15] + 0.8 * (poses - poses[:, 14:15])
        found[name] = {
            "annot2": camera_of(name).project(poses),
            "annot3": 1000 * poses,
            "univ_annot3": 1000 * small,
            "valid_frame": (np.arange(40) % 3 > 0).astype(float),
            "activity_annotation": 1.0 + np.arange(40) // 10,
        }
    return found


def matlab(fields: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """In MATLAB's axes: 3 x 17 x 1 x T joints, T x 1 marks."""
    return {
        k: v[:, None] if v.ndim == 1 else np.moveaxis(v, 0, -1).transpose(1, 0, 2)[:, :, None]
        for k, v in fields.items()
    }


def save_v73(path: Path, fields: dict[str, np.ndarray]) -> None:
    """As HDF5 shows MATLAB's v7.3: joints with reversed axes, marks (T, 1) as in the real files."""
    with h5py.File(path, "w") as file:
        for key, value in matlab(fields).items():
            file[key] = value if value.ndim == 2 else value.T
        file["bb_crop"] = np.zeros((2, 1))
        file.create_group("#refs#")


@pytest.fixture(scope="module", params=["v7.3", "v5"])
def folder(request, people, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("3dhp")
    for name, fields in people.items():
        (folder / name).mkdir()
        path = folder / name / "annot_data.mat"
        save_v73(path, fields) if request.param == "v7.3" else savemat(path, matlab(fields))
    return folder


# ---------------------------------------------------------------- the official files


def test_both_formats_give_the_joints_in_metres(folder, people) -> None:
    read = read_mpi_inf_3dhp(folder)
    assert [c.name for c in read] == list(SEQUENCES) and read.skeleton == MPI_INF_3DHP_17
    for clip in read:
        fields = people[clip.name]
        np.testing.assert_allclose(clip.poses, fields["annot3"] / 1000, atol=1e-12)
        np.testing.assert_allclose(clip.keypoints, fields["annot2"], atol=1e-9)
        np.testing.assert_array_equal(clip.valid, fields["valid_frame"] == 1)
        assert clip.axes == "camera" and clip.image_size == clip.camera.image_size


def test_the_annotation_is_chosen_and_said(folder, people) -> None:
    true, scaled = (read_mpi_inf_3dhp(folder, annotation=a) for a in ("annot3", "univ_annot3"))
    np.testing.assert_allclose(scaled[0].poses, people["TS1"]["univ_annot3"] / 1000, atol=1e-12)
    assert "annot3, bodies of their true size" in true.notes[0]
    assert "univ_annot3, bodies scaled to one size" in scaled.notes[0]
    with pytest.raises(StructDiffError, match="annotation must be one of annot3, univ_annot3"):
        read_mpi_inf_3dhp(folder, annotation="annot2")  # type: ignore[arg-type]


def test_one_sequence_is_read_by_name_folder_or_file(folder) -> None:
    for read in (
        read_mpi_inf_3dhp(folder, sequences=["TS5"]),
        read_mpi_inf_3dhp(folder / "TS5"),
        read_mpi_inf_3dhp(folder / "TS5" / "annot_data.mat"),
    ):
        assert [c.name for c in read] == ["TS5"] and read[0].image_size == (1920, 1080)


def test_activities_come_frame_by_frame(folder, people) -> None:
    found = read_mpi_inf_3dhp_activities(folder)
    assert list(found) == list(SEQUENCES)
    np.testing.assert_array_equal(found["TS5"], people["TS5"]["activity_annotation"])


def test_a_single_frame_is_read(people, tmp_path: Path) -> None:
    """MATLAB drops a last axis of length one."""
    one = {k: v[1:2] for k, v in people["TS1"].items()}
    fields = {k: v[..., 0] if v.ndim == 4 else v for k, v in matlab(one).items()}
    savemat(tmp_path / "TS1.mat", fields)
    assert read_mpi_inf_3dhp(tmp_path / "TS1.mat")[0].poses.shape == (1, 17, 3)


@pytest.mark.parametrize(
    ("sequence", "size", "focal", "centre"),
    [
        ("TS1", (2048, 2048), 1500.17, (1017.39, 1043.03)),
        ("TS6", (1920, 1080), 1683.98, (939.86, 560.14)),
    ],
)
def test_cameras_have_the_calibrated_pixels(sequence, size, focal, centre) -> None:
    """The set's calibration in pixels, to two digits."""
    camera = camera_of(sequence)
    np.testing.assert_allclose(camera.focal, focal, atol=0.005)
    np.testing.assert_allclose(camera.centre, centre, atol=0.005)
    assert camera.image_size == size


def test_other_sequences_have_no_camera() -> None:
    assert camera_of("TS7") is None and camera_of("S1 Seq1") is None


# ---------------------------------------------------------------- P-STMO and D3DP


def save_npz(path: Path, data: dict[str, Any]) -> Path:
    np.savez_compressed(path, data=np.array(data, dtype=object))
    return path


def archived(fields: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {"data_2d": fields["annot2"], "data_3d": fields["annot3"]}


@pytest.mark.parametrize("plain", [False, True])
def test_the_archived_test_set_is_read(people, tmp_path: Path, plain: bool) -> None:
    data = {n: {"valid": f["valid_frame"], **archived(f)} for n, f in people.items()}
    path = save_npz(tmp_path / "data_test_3dhp_ori.npz", data)
    if plain:
        (tmp_path / "plain").mkdir()
        path = convert_to_plain_npz(path, tmp_path / "plain" / path.name)
    read = read_mpi_inf_3dhp_npz(path)
    assert [c.name for c in read] == list(SEQUENCES)
    for clip in read:
        np.testing.assert_allclose(clip.poses, people[clip.name]["annot3"] / 1000)
        np.testing.assert_array_equal(clip.valid, people[clip.name]["valid_frame"] > 0)
        assert clip.image_size == clip.camera.image_size
    assert "annot3, bodies of their true size, as the file's name says" in read.notes[0]


def test_the_archived_training_set_is_read_by_camera(people, tmp_path: Path) -> None:
    """Index 0 of every list is used."""
    data = {
        "S1 Seq1": [{"0": archived(people["TS1"]), "8": archived(people["TS5"])}, {}],
        "S2 Seq2": [{"0": archived(people["TS5"])}],
    }
    read = read_mpi_inf_3dhp_npz(save_npz(tmp_path / "data_train_3dhp.npz", data))
    assert [c.name for c in read] == ["S1 Seq1/0", "S1 Seq1/8", "S2 Seq2/0"]
    assert [c.subject for c in read] == ["S1", "S1", "S2"] and read[0].image_size == (2048, 2048)
    assert "univ_annot3" in read.notes[0] and read[0].camera is None
    some = read_mpi_inf_3dhp_npz(tmp_path / "data_train_3dhp.npz", sequences=["S2 Seq2"])
    assert len(some) == 1


def test_what_is_stated_of_an_archive_goes_before_its_name(people, tmp_path: Path) -> None:
    path = save_npz(tmp_path / "mine.npz", {"TS1": archived(people["TS1"])})
    note = read_mpi_inf_3dhp_npz(path, annotation="annot3").notes[0]
    assert "annot3, bodies of their true size, as was stated" in note


# ---------------------------------------------------------------- what is refused


def test_metres_are_refused(people, tmp_path: Path) -> None:
    fields = {**people["TS1"], "annot3": people["TS1"]["annot3"] / 1000}
    save_v73(tmp_path / "TS1.mat", fields)
    with pytest.raises(StructDiffError, match=r"TS1\.mat.*divided by 1000"):
        read_mpi_inf_3dhp(tmp_path / "TS1.mat")


def test_another_joint_order_is_refused(people, tmp_path: Path) -> None:
    fields = dict(people["TS1"])
    for key in ("annot2", "annot3"):
        fields[key] = convert(fields[key], MPI_INF_3DHP_17, H36M_17)
    save_v73(tmp_path / "TS1.mat", fields)
    with pytest.raises(StructDiffError, match="looks like h36m17"):
        read_mpi_inf_3dhp(tmp_path / "TS1.mat")


def test_a_sequence_under_anothers_name_is_refused(people, tmp_path: Path) -> None:
    """Poses that TS1's camera saw do not lie on the pixels of TS5's, which has fewer."""
    save_v73(tmp_path / "TS5.mat", people["TS1"])
    with pytest.raises(StructDiffError, match=r"pixels away from its keypoints|outside the image"):
        read_mpi_inf_3dhp(tmp_path / "TS5.mat")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda f: f.pop("annot2"), "has no annot2"),
        (lambda f: f.pop("annot3"), "has no annot3"),
        (lambda f: f.update(annot3=f["annot3"][:, :16]), r"shape \(40, 1, 16, 3\)"),
        (lambda f: f.update(annot3=f["annot3"][:30]), "different numbers of frames"),
        (lambda f: f.update(valid_frame=np.ones(3)), "different numbers of frames"),
    ],
)
def test_fields_that_do_not_fit_are_named(people, tmp_path: Path, change: Any, says: str) -> None:
    fields = dict(people["TS1"])
    change(fields)
    save_v73(tmp_path / "TS1.mat", fields)
    with pytest.raises(StructDiffError, match=says) as caught:
        read_mpi_inf_3dhp(tmp_path / "TS1.mat")
    assert "TS1.mat" in str(caught.value)


def test_files_that_are_none_are_told(folder, tmp_path: Path) -> None:
    whole = (folder / "TS1" / "annot_data.mat").read_bytes()
    (tmp_path / "cut.mat").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.mat").write_text("not a file of MATLAB" * 20)
    for name in ("cut.mat", "text.mat"):
        with pytest.raises(StructDiffError, match=f"{name} is no complete MATLAB file"):
            read_mpi_inf_3dhp(tmp_path / name)
    with pytest.raises(StructDiffError, match=r"holds no annot_data\.mat"):
        read_mpi_inf_3dhp(tmp_path / "nowhere")
    with pytest.raises(StructDiffError, match="has no TS9: there are TS1, TS5"):
        read_mpi_inf_3dhp(folder, sequences=["TS9"])


@pytest.mark.parametrize("data", [{}, {"TS1": {"data_2d": 1}}, {"S1 Seq1": [3]}, {"S1": []}])
def test_archives_of_another_layout_are_refused(tmp_path: Path, data: Any) -> None:
    path = save_npz(tmp_path / "a.npz", data)
    with pytest.raises(StructDiffError, match=r"a\.npz"):
        read_mpi_inf_3dhp_npz(path)
