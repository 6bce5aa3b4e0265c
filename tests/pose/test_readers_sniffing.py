"""One function reads keypoints from any file: what is in it says which, whatever its name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.io import savemat

from structdiff.errors import StructDiffError
from structdiff.pose.data import PoseClip, load_cmu17
from structdiff.pose.readers import read_keypoints, write_poses
from structdiff.pose.readers.mpi_inf_3dhp import sequence_camera
from structdiff.pose.skeletons import COCO_17, H36M_17, MPI_INF_3DHP_17, convert


@pytest.fixture(scope="module")
def clip(data_dir) -> PoseClip:
    """40 real frames."""
    whole = load_cmu17("test")[0]
    return PoseClip(
        "a",
        keypoints=whole.keypoints[:40].astype(np.float64),
        poses=whole.in_camera()[:40].astype(np.float64),
        image_size=whole.image_size,
        fps=30,
    )


def flat(clip: PoseClip) -> PoseClip:
    return PoseClip("a", keypoints=clip.keypoints, image_size=clip.image_size, fps=clip.fps)


def as_npz(clip: PoseClip, path: Path) -> None:
    write_poses(path.with_suffix(".npz"), flat(clip)).rename(path)


def as_csv(clip: PoseClip, path: Path) -> None:
    write_poses(path.with_suffix(".csv"), flat(clip))


def as_videopose3d(clip: PoseClip, path: Path) -> None:
    told = {"layout_name": "h36m", "num_joints": 17}
    views = {"S1": {"Walking": [clip.keypoints]}}
    with path.open("wb") as file:
        np.savez(
            file,
            positions_2d=np.array(views, dtype=object),
            metadata=np.array(told, dtype=object),
        )


def as_json(clip: PoseClip, path: Path) -> None:
    """MMPose's layout, of a detector trained on Human3.6M."""
    frames = [
        {"frame_id": t, "instances": [{"keypoints": k.tolist()}]}
        for t, k in enumerate(clip.keypoints)
    ]
    path.write_text(json.dumps(frames))


KINDS: dict[str, tuple[Any, str, dict[str, Any]]] = {
    "npz": (as_npz, "a.npz", {}),
    "npz by another name": (as_npz, "a.bin", {}),
    "csv": (as_csv, "a.csv", {}),
    "videopose3d": (as_videopose3d, "a.npz", {"image_size": (1000, 1002), "fps": 30}),
    "json": (as_json, "a.json", {"layout": "h36m17", "image_size": (1000, 1002), "fps": 30}),
    "json by another name": (
        as_json,
        "a.txt",
        {"layout": "h36m17", "image_size": (1000, 1002), "fps": 30},
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_file_is_recognised(clip, tmp_path: Path, kind: str) -> None:
    write, name, stated = KINDS[kind]
    write(clip, tmp_path / name)
    (read,) = read_keypoints(tmp_path / name, **stated)
    np.testing.assert_allclose(read.keypoints, clip.keypoints, atol=1e-9)
    assert (read.image_size, read.fps) == ((1000, 1002), 30)


@pytest.mark.parametrize("archive", ["mat", "npz"])
def test_files_of_mpi_inf_3dhp_are_recognised(clip, tmp_path: Path, archive: str) -> None:
    poses = convert(clip.poses, H36M_17, MPI_INF_3DHP_17)
    poses = poses - [1, 0, 0] * poses[:, :1]
    seen = sequence_camera("TS1").project(poses)
    if archive == "mat":
        fields = {"annot2": seen[:, None].T, "annot3": 1000 * poses[:, None].T}
        savemat(tmp_path / "TS1.mat", fields)
    else:
        data = {"TS1": {"data_2d": seen, "data_3d": 1000 * poses}}
        np.savez(tmp_path / "TS1.npz", data=np.array(data, dtype=object))
    read = read_keypoints(tmp_path / f"TS1.{archive}", fps=25)
    np.testing.assert_allclose(read[0].keypoints, seen, atol=1e-9)
    assert read.skeleton == MPI_INF_3DHP_17 and read[0].fps == 25


def test_joints_are_converted_where_asked(clip, tmp_path: Path) -> None:
    as_npz(clip, tmp_path / "a.npz")
    read = read_keypoints(tmp_path / "a.npz", skeleton=MPI_INF_3DHP_17)
    expected = convert(clip.keypoints, H36M_17, MPI_INF_3DHP_17)
    np.testing.assert_allclose(read[0].keypoints, expected)


def test_missing_joints_of_tables_are_filled_and_counted(clip, tmp_path: Path) -> None:
    seen = clip.keypoints.copy()
    seen[5, 3], seen[10:30] = np.nan, np.nan
    as_csv(PoseClip("a", keypoints=seen, image_size=clip.image_size), tmp_path / "a.csv")
    read = read_keypoints(tmp_path / "a.csv", max_gap=15)
    expected = seen.copy()
    expected[5, 3] = (seen[4, 3] + seen[6, 3]) / 2
    np.testing.assert_allclose(read[0].keypoints, expected, atol=1e-9)
    assert read[0].confidence[5, 3] == 0 and read[0].confidence[5, 2] == 1
    assert any("nobody was found in 20 of 40 frames, 0 of them" in n for n in read.notes)
    assert any("gaps of more than 15 frames are NaN" in n for n in read.notes)


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.json", b"", r"a\.json is empty"),
        ("a.json", b"  \n", r"a\.json is empty"),
        ("a.json", b'[{"image_id": 1,', r"a\.json is no complete JSON"),
        ("a.json", b"oops", r"a\.json is no complete JSON"),
        ("a.npz", b"PK\x03\x04oops", r"a\.npz is no complete NumPy archive"),
        ("a.csv", b"oops\n1\n", r"a\.csv has the columns oops"),
        ("a.png", b"\x89PNG\r\n", r"a\.png is no file of a known kind"),
        ("a.mat", b"MATLAB 5.0 MAT-file", r"a\.mat is no complete MATLAB file"),
    ],
)
def test_files_that_cannot_be_read_are_named(
    tmp_path: Path, name: str, content: bytes, says: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(StructDiffError, match=says):
        read_keypoints(tmp_path / name)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(StructDiffError, match=r"there is no file .*none\.json"):
        read_keypoints(tmp_path / "none.json")
    with pytest.raises(StructDiffError, match="cannot be read"):
        read_keypoints(tmp_path)


def test_poses_without_keypoints_are_told(clip, tmp_path: Path) -> None:
    write_poses(tmp_path / "a.npz", clip.poses)
    with pytest.raises(StructDiffError, match="3D poses only"):
        read_keypoints(tmp_path / "a.npz")


def test_infinite_keypoints_are_told_with_their_frame(clip, tmp_path: Path) -> None:
    seen = clip.keypoints.copy()
    seen[7, 0, 0] = np.inf
    as_npz(PoseClip("a", keypoints=seen, image_size=clip.image_size), tmp_path / "a.npz")
    with pytest.raises(StructDiffError, match="infinite in frame 7"):
        read_keypoints(tmp_path / "a.npz")


def test_arguments_that_a_file_does_not_take_are_refused(clip, tmp_path: Path) -> None:
    as_npz(clip, tmp_path / "a.npz")
    as_videopose3d(clip, tmp_path / "b.npz")
    with pytest.raises(StructDiffError, match="leave person out"):
        read_keypoints(tmp_path / "a.npz", person=1)
    with pytest.raises(StructDiffError, match="leave layout out"):
        read_keypoints(tmp_path / "b.npz", layout=COCO_17)
