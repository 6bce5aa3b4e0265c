"""VideoPose3D's archives, of made-up people in exactly its layout, and how they come in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from structdiff.errors import StructDiffError
from structdiff.pose.cameras import Camera
from structdiff.pose.data import load_cmu17
from structdiff.pose.readers import convert_to_plain_npz, read_videopose3d
from structdiff.pose.skeletons import COCO_17, H36M_17, MPI_INF_3DHP_17, convert, convert_confidence

KEPT = [0, 1, 2, 3, 6, 7, 8, 12, 13, 14, 15, 17, 18, 19, 25, 26, 27]
SYMMETRY = [[4, 5, 6, 11, 12, 13], [1, 2, 3, 14, 15, 16]]
TAKES = {"S1": ["Directions", "Directions 1", "WalkDog"], "S9": ["Walking"]}


@pytest.fixture(scope="module")
def motions(data_dir) -> list[Any]:
    """Real movements, to put into files of Human3.6M's layout."""
    return list(load_cmu17("test"))


def take(motions: list[Any], subject: str, action: str) -> list[Any]:
    """The four views of one of the movements, the same for the same take."""
    number = [(s, a) for s, actions in TAKES.items() for a in actions].index((subject, action))
    return motions[4 * number : 4 * number + 4]


def with_32_joints(poses: np.ndarray) -> np.ndarray:
    """Human3.6M's full skeleton; what is dropped are copies and would be seen if kept."""
    full = np.full((len(poses), 32, 3), 77.0, dtype=np.float32)
    full[:, KEPT] = poses
    return full


def save(path: Path, **objects: Any) -> Path:
    """Pickled object arrays, as ``numpy.savez_compressed(path, positions_3d=dictionary)`` does."""
    np.savez_compressed(path, **{k: np.array(v, dtype=object) for k, v in objects.items()})
    return path


@pytest.fixture(scope="module")
def folder(motions, tmp_path_factory) -> Path:
    """data_3d_h36m.npz, the three kinds of 2D, and cameras in both formats."""
    folder = tmp_path_factory.mktemp("h36m")
    space = {
        s: {a: with_32_joints(take(motions, s, a)[0].poses[:30]) for a in actions}
        for s, actions in TAKES.items()
    }
    flat = {  # some tracks go on after the 3D ends
        s: {
            a: [c.keypoints[: 30 + v].astype(np.float32) for v, c in enumerate(take(motions, s, a))]
            for a in actions
        }
        for s, actions in TAKES.items()
    }
    told = {"layout_name": "h36m", "num_joints": 17, "keypoints_symmetry": SYMMETRY}
    save(folder / "data_3d_h36m.npz", positions_3d=space)
    save(folder / "data_2d_h36m_gt.npz", positions_2d=flat, metadata=told)
    more = {**flat, "S2": {"Walking": flat["S9"]["Walking"]}}  # CPN's file has S2, S3, S4 too
    nameless = {"num_joints": 17, "keypoints_symmetry": SYMMETRY}
    save(folder / "data_2d_h36m_cpn_ft_h36m_dbb.npz", positions_2d=more, metadata=nameless)
    face = {s: {a: [coco(v) for v in views] for a, views in t.items()} for s, t in flat.items()}
    sides = [[1, 3, 5, 7, 9, 11, 13, 15], [2, 4, 6, 8, 10, 12, 14, 16]]
    told = {"layout_name": "coco", "num_joints": 17, "keypoints_symmetry": sides}
    save(folder / "data_2d_h36m_detectron_pt_coco.npz", positions_2d=face, metadata=told)
    rig = [camera_values(c.camera, n) for n, c in enumerate(motions[:4])]
    (folder / "cameras.json").write_text(json.dumps({"S1": rig, "S9": rig}))
    stacked = {
        f"{s}/{k}": np.array([v[k] for v in rig]) for s in TAKES for k in rig[0] if k != "id"
    }
    np.savez(folder / "cameras.npz", **stacked)
    return folder


def coco(seen: np.ndarray) -> np.ndarray:
    """COCO's joints; a small face at the head."""
    joint = {name: seen[:, i] for i, name in enumerate(H36M_17.joints)}
    face = {"Nose": (0, 0), "LEye": (3, -3), "REye": (-3, -3), "LEar": (7, -2), "REar": (-7, -2)}
    joint |= {name: joint["Head"] + np.array(at, dtype=np.float32) for name, at in face.items()}
    return np.stack([joint[name] for name in COCO_17.joints], axis=1)


def camera_values(camera: Camera, number: int) -> dict[str, Any]:
    """In VideoPose3D's terms, the translation in millimetres."""
    trace = np.trace(camera.rotation.T)
    w = np.sqrt(1 + trace) / 2
    r = camera.rotation.T
    xyz = np.array([r[2, 1] - r[1, 2], r[0, 2] - r[2, 0], r[1, 0] - r[0, 1]]) / (4 * w)
    return {
        "id": str(number),
        "center": camera.centre.tolist(),
        "focal_length": camera.focal.tolist(),
        "radial_distortion": list(camera.radial),
        "tangential_distortion": list(camera.tangential),
        "res_w": camera.image_size[0],
        "res_h": camera.image_size[1],
        "orientation": [w, *xyz],
        "translation": (1000 * camera.position).tolist(),
    }


# ---------------------------------------------------------------- 3D


def test_17_of_32_joints_are_kept(folder, motions) -> None:
    read = read_videopose3d(poses=folder / "data_3d_h36m.npz")
    assert [c.name for c in read] == [f"{s}/{a}" for s in TAKES for a in TAKES[s]]
    for clip in read:
        truth = take(motions, *clip.name.split("/"))[0].poses[:30]
        np.testing.assert_array_equal(clip.poses, truth)
        assert (clip.axes, clip.fps, clip.subject) == ("world", 50, clip.name.split("/")[0])
    assert [c.action for c in read] == ["Directions", "Directions", "WalkDog", "Walking"]


def test_subjects_and_actions_are_chosen(folder) -> None:
    path = folder / "data_3d_h36m.npz"
    assert len(read_videopose3d(poses=path, subjects=["S1"])) == 3
    assert len(read_videopose3d(poses=path, actions=["Directions"])) == 2
    assert len(read_videopose3d(poses=path, actions=["Directions 1", "Walking"])) == 2
    with pytest.raises(StructDiffError, match="no clip that was asked for"):
        read_videopose3d(poses=path, subjects=["S11"])
    with pytest.raises(StructDiffError, match="a list of names"):
        read_videopose3d(poses=path, subjects="S1")


# ---------------------------------------------------------------- 2D, and both


def test_every_view_is_a_clip(folder, motions) -> None:
    read = read_videopose3d(folder / "data_2d_h36m_gt.npz", image_size=(1000, 1002))
    assert len(read) == 16 and read.skeleton == H36M_17
    for clip in read:
        *name, view = clip.name.split("/")
        truth = take(motions, *name)[int(view)].keypoints[: 30 + int(view)]
        np.testing.assert_array_equal(clip.keypoints, truth.astype(np.float32))


def test_keypoints_that_go_on_are_cut_to_the_poses(folder) -> None:
    read = read_videopose3d(folder / "data_2d_h36m_gt.npz", folder / "data_3d_h36m.npz")
    assert {len(c) for c in read} == {30} and {c.poses.shape for c in read} == {(30, 17, 3)}
    assert read.notes == ("keypoints that go on after the poses were cut to their length",)


@pytest.mark.parametrize("ending", ["json", "npz"])
def test_poses_are_where_the_cameras_see_them(folder, ending: str) -> None:
    """Exact 2D: the cameras' numbers come through to 0.01 px, as float32 keypoints allow."""
    read = read_videopose3d(
        folder / "data_2d_h36m_gt.npz",
        folder / "data_3d_h36m.npz",
        folder / f"cameras.{ending}",
    )
    assert len(read) == 16
    for clip in read:
        seen = clip.camera.project(clip.in_camera())
        np.testing.assert_allclose(seen, clip.keypoints, atol=1e-2)
        assert clip.image_size == clip.camera.image_size


def test_poses_alone_come_once_per_camera(folder) -> None:
    read = read_videopose3d(poses=folder / "data_3d_h36m.npz", cameras=folder / "cameras.json")
    assert [c.name for c in read][:5] == [
        *(f"S1/Directions/{v}" for v in range(4)),
        "S1/Directions 1/0",
    ]
    assert all(c.camera is not None and c.keypoints is None for c in read)


def test_subjects_without_poses_keep_their_keypoints(folder) -> None:
    read = read_videopose3d(
        folder / "data_2d_h36m_cpn_ft_h36m_dbb.npz", folder / "data_3d_h36m.npz"
    )
    alone = read.select(lambda c: c.subject == "S2")
    assert len(alone) == 4 and all(c.poses is None for c in alone)
    assert "S2 has no 3D poses of some takes: keypoints only" in read.notes


def test_coco_keypoints_stay_as_they_are_unless_asked(folder) -> None:
    path = folder / "data_2d_h36m_detectron_pt_coco.npz"
    plain = read_videopose3d(path)
    assert plain.skeleton == COCO_17
    turned = read_videopose3d(path, skeleton="h36m17")
    assert turned.skeleton == H36M_17
    np.testing.assert_allclose(
        turned[0].keypoints, convert(plain[0].keypoints, COCO_17, H36M_17), atol=1e-3
    )


def test_coco_keypoints_go_with_poses_only_when_converted(folder) -> None:
    paths = folder / "data_2d_h36m_detectron_pt_coco.npz", folder / "data_3d_h36m.npz"
    with pytest.raises(StructDiffError, match="give skeleton='h36m17'"):
        read_videopose3d(*paths)
    read = read_videopose3d(*paths, skeleton=H36M_17)
    assert read.skeleton == H36M_17 and "coco17 were converted" in read.notes[0]


def test_confidence_in_a_third_column_is_converted_too(folder, tmp_path: Path, motions) -> None:
    sides = [list(COCO_17.left), list(COCO_17.right)]
    told = {"layout_name": "coco", "num_joints": 17, "keypoints_symmetry": sides}
    view = coco(take(motions, "S1", "Directions")[0].keypoints[:30])
    sure = np.random.default_rng(0).random((30, 17, 1))
    views = [np.concatenate([view, sure], -1)] * 4
    path = save(tmp_path / "a.npz", positions_2d={"S1": {"Directions": views}}, metadata=told)
    read = read_videopose3d(
        path, folder / "data_3d_h36m.npz", actions=["Directions"], skeleton=H36M_17
    )
    np.testing.assert_allclose(
        read["S1/Directions/0"].confidence, convert_confidence(sure[..., 0], COCO_17, H36M_17)
    )


def test_another_skeleton_is_had_by_its_name(folder) -> None:
    read = read_videopose3d(poses=folder / "data_3d_h36m.npz", skeleton="3dhp17")
    assert read.skeleton == MPI_INF_3DHP_17


def test_custom_videos_bring_their_image_size(tmp_path: Path, motions) -> None:
    told = {
        "layout_name": "coco",
        "num_joints": 17,
        "keypoints_symmetry": [list(COCO_17.left), list(COCO_17.right)],
        "video_metadata": {"dance.mp4": {"w": 1000, "h": 1002}},
    }
    seen = coco(motions[0].keypoints[:20].astype(np.float32))
    path = save(
        tmp_path / "data_2d_custom_mine.npz",
        positions_2d={"dance.mp4": {"custom": [seen]}},
        metadata=told,
    )
    (clip,) = read_videopose3d(path)
    np.testing.assert_array_equal(clip.keypoints, seen)
    assert clip.image_size == (1000, 1002) and clip.fps is None and clip.subject == "dance.mp4"


# ---------------------------------------------------------------- plain archives


@pytest.mark.parametrize(
    "name", ["data_3d_h36m", "data_2d_h36m_gt", "data_2d_h36m_detectron_pt_coco"]
)
def test_a_plain_archive_reads_the_same(folder, tmp_path: Path, name: str) -> None:
    plain = convert_to_plain_npz(folder / f"{name}.npz", tmp_path / f"{name}.npz")
    with np.load(plain, allow_pickle=False) as archive:
        assert all(archive[key].dtype.kind in "fiU" for key in archive.files)
    key = "poses" if "3d" in name else "keypoints"
    before = read_videopose3d(**{key: folder / f"{name}.npz"})
    after = read_videopose3d(**{key: plain})
    assert [c.name for c in before] == [c.name for c in after] and before.skeleton == after.skeleton
    for a, b in zip(before, after, strict=True):
        np.testing.assert_array_equal(getattr(a, key), getattr(b, key))


def test_names_with_slashes_survive(tmp_path: Path, motions) -> None:
    views = [motions[0].keypoints[:5].astype(np.float32)]
    told = {"layout_name": "h36m", "num_joints": 17, "keypoints_symmetry": SYMMETRY}
    path = save(tmp_path / "a.npz", positions_2d={"a/b%2F": {"custom": views}}, metadata=told)
    (clip,) = read_videopose3d(convert_to_plain_npz(path, tmp_path / "b.npz"))
    assert clip.subject == "a/b%2F"


def test_a_file_is_not_written_over_itself(folder) -> None:
    with pytest.raises(StructDiffError, match="over itself"):
        convert_to_plain_npz(folder / "data_3d_h36m.npz", folder / "data_3d_h36m.npz")


# ---------------------------------------------------------------- what is refused


def body_file(path: Path, motions: list[Any], factor: float = 1.0, **more: Any) -> Path:
    poses = with_32_joints(motions[0].poses[:30]) * factor
    return save(path, positions_3d={"S1": {"Walking": poses, **more}})


def test_millimetres_are_refused(tmp_path: Path, motions) -> None:
    with pytest.raises(StructDiffError, match=r"S1/Walking.*looks like millimetres"):
        read_videopose3d(poses=body_file(tmp_path / "a.npz", motions, 1000))


def test_2d_that_is_shorter_than_3d_is_refused(folder, tmp_path: Path, motions) -> None:
    views = [c.keypoints[:29] for c in motions[:4]]
    told = {"layout_name": "h36m", "num_joints": 17, "keypoints_symmetry": SYMMETRY}
    path = save(tmp_path / "a.npz", positions_2d={"S1": {"Directions": views}}, metadata=told)
    with pytest.raises(StructDiffError, match="S1/Directions has 30 frames in 3D, but 29 in 2D"):
        read_videopose3d(path, folder / "data_3d_h36m.npz")


def test_cameras_in_another_order_are_refused(folder) -> None:
    rig = json.loads((folder / "cameras.json").read_text())
    wrong = {s: cameras[::-1] for s, cameras in rig.items()}
    with pytest.raises(StructDiffError, match="pixels away from its keypoints"):
        read_videopose3d(folder / "data_2d_h36m_gt.npz", folder / "data_3d_h36m.npz", cameras=wrong)


def test_metres_and_millimetres_of_cameras_are_told_apart(folder) -> None:
    rig = json.loads((folder / "cameras.json").read_text())
    metres = {
        s: [{**c, "translation": [x / 1000 for x in c["translation"]]} for c in cameras]
        for s, cameras in rig.items()
    }
    files = folder / "data_2d_h36m_gt.npz", folder / "data_3d_h36m.npz"
    a, b = (read_videopose3d(*files, cameras=c)[0].camera.position for c in (rig, metres))
    np.testing.assert_allclose(a, b)
    metres["S1"][0]["translation"] = [200, 0, 0]
    with pytest.raises(StructDiffError, match=r"camera 0 of S1, .*neither metres nor millimetres"):
        read_videopose3d(*files, cameras=metres)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda c: c.pop("orientation"), "camera 2 of S1.* has no orientation"),
        (lambda c: c.update(orientation=[1, 1, 0, 0]), "camera 2 of S1.*length 1"),
        (lambda c: c.update(focal_length=[0, 1]), "camera 2 of S1.*focal"),
        (lambda c: c.pop("res_w"), "camera 2 of S1.* no res_w"),
    ],
)
def test_a_wrong_camera_is_named(folder, change: Any, says: str) -> None:
    rig = json.loads((folder / "cameras.json").read_text())
    change(rig["S1"][2])
    with pytest.raises(StructDiffError, match=says):
        read_videopose3d(poses=folder / "data_3d_h36m.npz", cameras=rig)


def test_too_few_cameras_are_told(folder) -> None:
    rig = json.loads((folder / "cameras.json").read_text())
    rig["S1"].pop()
    with pytest.raises(StructDiffError, match="has 4 views, its subject has 3 cameras"):
        read_videopose3d(folder / "data_2d_h36m_gt.npz", cameras=rig)


@pytest.mark.parametrize(
    ("metadata", "says"),
    [
        (None, "no metadata"),
        ({"layout_name": "humaneva15", "num_joints": 15}, "15 joints of layout 'humaneva15'"),
        ({"num_joints": 17, "keypoints_symmetry": [[1], [2]]}, "layout ''"),
        ({"layout_name": "h36m", "num_joints": 17}, r"has shape \(4, 16, 2\)"),
    ],
)
def test_other_layouts_are_refused(tmp_path: Path, metadata: Any, says: str) -> None:
    path = save(
        tmp_path / "a.npz",
        positions_2d={"S1": {"Walking": [np.ones((4, 16, 2))]}},
        metadata=metadata,
    )
    with pytest.raises(StructDiffError, match=says):
        read_videopose3d(path)


def test_files_of_something_else_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.eye(3))
    with pytest.raises(StructDiffError, match=r"a\.npz has no positions_3d"):
        read_videopose3d(poses=tmp_path / "a.npz")
    with pytest.raises(StructDiffError, match="give a file"):
        read_videopose3d()


class Evil:
    def __reduce__(self) -> tuple:
        return (eval, ("1 + 1",))


def test_a_malicious_file_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "a.npz", positions_3d={"S1": {"Walking": Evil()}})
    for call in (
        lambda: read_videopose3d(poses=path),
        lambda: convert_to_plain_npz(path, tmp_path / "b.npz"),
    ):
        with pytest.raises(StructDiffError, match=r"forbidden global builtins\.eval"):
            call()
    assert not (tmp_path / "b.npz").exists()
