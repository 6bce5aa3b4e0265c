"""Plain files of poses: what they state comes back, what they do not state must be given."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from structdiff.errors import StructDiffError
from structdiff.pose.cameras import Camera
from structdiff.pose.data import PoseClip, PoseDataset, load_cmu17, load_cmu17_demo
from structdiff.pose.lifted import Lifted
from structdiff.pose.readers import read_hypotheses, read_poses, write_poses
from structdiff.pose.skeletons import COCO_17, H36M_17, MPI_INF_3DHP_17, Skeleton, convert

CAMERA = Camera(
    focal=np.array([1100.0, 1101.0]),
    centre=np.array([500.0, 501.0]),
    radial=(-0.2, 0.1, 0.0),
    rotation=np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]]),
    position=np.array([0.0, -6.0, 1.0]),
    image_size=(1000, 1002),
)
NAMES = H36M_17.joints


def body(frames: int = 6) -> np.ndarray:
    """Somebody who stands in the world and bends knees and elbows, metres (T, 17, 3)."""
    side = {
        "Hip": (0.13, 0.0, 0.95),
        "Knee": (0.14, -0.2, 0.55),
        "Ankle": (0.15, 0.0, 0.1),
        "Shoulder": (0.16, 0.0, 1.38),
        "Elbow": (0.25, 0.05, 1.12),
        "Wrist": (0.27, -0.15, 0.95),
    }
    middle = {"Pelvis": 0.95, "Spine": 1.17, "Thorax": 1.4, "Neck": 1.5, "Head": 1.62}
    places = {j: (0.0, 0.0, h) for j, h in middle.items()}
    places |= {f"L{j}": p for j, p in side.items()}
    places |= {f"R{j}": (-p[0], *p[1:]) for j, p in side.items()}
    pose = np.array([places[j] for j in NAMES])
    walk = np.linspace(0, 0.5, frames)[:, None, None] * np.array([0.0, -1.0, 0.0])
    sway = np.random.default_rng(0).normal(0, 0.005, (frames, 17, 3))
    return pose + walk + sway


def clip(name: str = "a", frames: int = 6) -> PoseClip:
    poses = body(frames)
    confidence = np.random.default_rng(1).random((frames, 17))
    valid = np.arange(frames) > 0
    return PoseClip(
        name=name,
        keypoints=CAMERA.project(CAMERA.to_camera(poses)),
        poses=poses,
        axes="world",
        confidence=confidence,
        camera=CAMERA,
        fps=25.0,
        subject="S1",
        action="Walking",
        valid=valid,
    )


def same(a: PoseClip, b: PoseClip, *, keypoints: bool = True, poses: bool = True) -> None:
    facts = ("name", "image_size", "fps", "subject", "action", "axes")
    assert [getattr(a, f) for f in facts] == [getattr(b, f) for f in facts]
    arrays = ["valid"] + ["keypoints", "confidence"] * keypoints + ["poses"] * poses
    for key in arrays:
        np.testing.assert_allclose(getattr(a, key), getattr(b, key), atol=1e-12, err_msg=key)
    assert a.camera is not None and b.camera is not None
    assert a.camera.to_dict() == b.camera.to_dict()


# ---------------------------------------------------------------- round trips


@pytest.mark.parametrize("count", [1, 3])
def test_an_archive_brings_back_all_that_is_known(tmp_path: Path, count: int) -> None:
    data = PoseDataset(tuple(clip(f"S1/Walking {i}", 5 + i) for i in range(count)))
    read = read_poses(write_poses(tmp_path / "a.npz", data))
    assert read.skeleton == H36M_17 and len(read) == count
    for before, after in zip(data, read, strict=True):
        same(before, after)


@pytest.mark.parametrize("count", [1, 3])
def test_a_table_brings_back_3d_joints(tmp_path: Path, count: int) -> None:
    data = PoseDataset(tuple(clip(f"S1/Walking {i}", 5 + i) for i in range(count)))
    read = read_poses(write_poses(tmp_path / "a.csv", data))
    assert len(read) == count
    for before, after in zip(data, read, strict=True):
        same(before, after, keypoints=False)


def test_a_table_brings_back_keypoints(tmp_path: Path) -> None:
    seen = clip()
    flat = PoseClip(**{**vars(seen), "poses": None, "axes": "camera"})
    read = read_poses(write_poses(tmp_path / "a.csv", flat))
    same(flat, read[0], poses=False)


def test_nothing_is_pickled(tmp_path: Path) -> None:
    path = write_poses(tmp_path / "a.npz", PoseDataset((clip("a"), clip("b"))))
    with np.load(path, allow_pickle=False) as archive:
        assert {archive[key].dtype.kind for key in archive.files} <= set("fiubU")


def test_real_recordings_come_back(tmp_path: Path, data_dir) -> None:
    data = load_cmu17("test", detected=True)[:4]
    for ending in ("npz", "csv"):
        read = read_poses(write_poses(tmp_path / f"a.{ending}", data))
        for before, after in zip(data, read, strict=True):
            np.testing.assert_allclose(after.poses, before.poses, atol=1e-6)
            assert (before.name, before.fps) == (after.name, after.fps)


@pytest.mark.parametrize("ending", ["npz", "csv"])
def test_a_skeleton_of_ones_own_comes_back(tmp_path: Path, ending: str) -> None:
    legs = Skeleton("legs", ("Pelvis", "LHip", "RHip"), (-1, 0, 0), left=(1,), right=(2,))
    poses = body()[:, [0, 4, 1]]
    path = write_poses(tmp_path / f"a.{ending}", poses, skeleton=legs, axes="world")
    read = read_poses(path)
    assert read.skeleton == legs
    np.testing.assert_allclose(read[0].poses, poses, atol=1e-12)


def test_a_lifted_clip_is_written_with_its_hypotheses(tmp_path: Path) -> None:
    seen = clip()
    draw = np.random.default_rng(2)
    relative = seen.in_camera() - seen.in_camera()[:, :1]
    lifted = Lifted(
        mean=relative,
        hypotheses=relative + draw.normal(0, 0.01, (4, *relative.shape)),
        std=np.full_like(relative, 0.01),
        root=seen.in_camera()[:, 0],
        clip=seen,
        skeleton=H36M_17,
        method="mean",
        camera_assumed=False,
    )
    path = lifted.save(tmp_path / "a.npz")
    read = read_poses(path)
    np.testing.assert_allclose(read[0].poses, relative, atol=1e-12)
    assert read[0].axes == "camera" and "relative to their roots" in read.notes[0]
    np.testing.assert_allclose(read_hypotheses(path)["a"], lifted.hypotheses)
    with np.load(path) as archive:
        np.testing.assert_allclose(archive["root"], lifted.root)
        assert str(archive["unit"]) == "m" and str(archive["method"]) == "mean"
    both = write_poses(tmp_path / "b.csv", [lifted])
    np.testing.assert_allclose(read_poses(both)[0].poses, relative, atol=1e-12)


# ---------------------------------------------------------------- files of other people


def test_millimetres_are_stated_and_become_metres(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", poses=1000 * body(), unit="mm", axes="world", skeleton="h36m17")
    np.testing.assert_allclose(read_poses(tmp_path / "a.npz")[0].poses, body(), atol=1e-12)


def test_a_bare_array_is_read_with_statements(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", body())
    read = read_poses(tmp_path / "a.npy", layout="h36m17", unit="m", axes="world", fps=50)
    np.testing.assert_allclose(read[0].poses, body())
    assert read[0].fps == 50 and read[0].name == "a"


def test_joints_named_in_another_order_are_sorted(tmp_path: Path) -> None:
    order = np.random.default_rng(3).permutation(17)
    np.savez(
        tmp_path / "a.npz",
        poses=body()[:, order],
        joints=np.array(NAMES)[order],
        unit="m",
        axes="world",
    )
    read = read_poses(tmp_path / "a.npz")
    assert read.skeleton == H36M_17
    np.testing.assert_allclose(read[0].poses, body())


def test_a_file_is_converted_to_the_skeleton_asked_for(tmp_path: Path) -> None:
    path = write_poses(tmp_path / "a.npz", clip())
    read = read_poses(path, skeleton=MPI_INF_3DHP_17)
    np.testing.assert_allclose(read[0].poses, convert(body(), H36M_17, MPI_INF_3DHP_17))
    assert "converted to 3dhp17" in read.notes[-1]


def test_a_wide_table_is_read(tmp_path: Path) -> None:
    seen = CAMERA.project(CAMERA.to_camera(body()))
    columns = [f"{j}_{a}" for j in reversed(NAMES) for a in ("x", "y", "confidence")]
    rows = np.concatenate([seen, np.full((6, 17, 1), 0.5)], -1)[:, ::-1].reshape(6, -1)
    lines = ["# image_size: 1000 1002", "# fps: 30", ",".join(["frame", *columns])]
    lines += [",".join(map(str, [7 + i, *row])) for i, row in enumerate(rows)]
    (tmp_path / "a.csv").write_text("\n".join(lines))
    read = read_poses(tmp_path / "a.csv")
    np.testing.assert_allclose(read[0].keypoints, seen)
    assert read.skeleton == H36M_17 and (read[0].confidence == 0.5).all()
    assert read[0].fps == 30 and read[0].image_size == (1000, 1002)


def test_rows_that_are_missing_are_nan(tmp_path: Path) -> None:
    path = write_poses(tmp_path / "a.csv", clip(), fps=25)
    lines = path.read_text().splitlines()
    kept = [line for line in lines if ",2," not in line[:9] and ",3,LWrist" not in line]
    (tmp_path / "b.csv").write_text("\n".join(kept))
    poses = read_poses(tmp_path / "b.csv")[0].poses
    expected = body()
    expected[2], expected[3, NAMES.index("LWrist")] = np.nan, np.nan
    np.testing.assert_allclose(poses, expected, atol=1e-12)


def test_numbered_joints_are_taken_in_the_stated_order(tmp_path: Path) -> None:
    flat = PoseClip(
        "a", keypoints=CAMERA.project(CAMERA.to_camera(body())), image_size=(1000, 1002)
    )
    path = write_poses(tmp_path / "a.csv", flat)
    text = path.read_text()
    for number, joint in enumerate(NAMES):
        text = text.replace(f",{joint},", f",{number},")
    (tmp_path / "b.csv").write_text(text)
    np.testing.assert_allclose(read_poses(tmp_path / "b.csv")[0].keypoints, flat.keypoints)


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"poses": body(), "axes": "world", "skeleton": "h36m17"}, "does not state the unit"),
        ({"poses": body(), "unit": "m", "skeleton": "h36m17"}, "does not state the axes"),
        ({"poses": body(), "unit": "m", "axes": "world"}, "does not state the order"),
        (
            {"poses": body(), "unit": "furlong", "axes": "world", "skeleton": "h36m17"},
            "unit 'furlong' of",
        ),
        (
            {"poses": 1000 * body(), "unit": "m", "axes": "world", "skeleton": "h36m17"},
            "looks like millimetres",
        ),
        ({"poses": body(), "unit": "mm", "axes": "world", "skeleton": "h36m17"}, "divided by 1000"),
        ({"poses": body(), "unit": "m", "axes": "camera", "skeleton": "h36m17"}, "z up"),
        ({"poses": body(), "unit": "m", "axes": "world", "skeleton": "coco17"}, "like h36m17"),
        (
            {"poses": body()[:, :16], "unit": "m", "axes": "world", "skeleton": "h36m17"},
            "16 joints, h36m17 has 17",
        ),
        ({"poses": body()[0], "unit": "m", "axes": "world", "skeleton": "h36m17"}, "must be numb"),
        ({"x": body(), "skeleton": "h36m17"}, "neither poses"),
        (
            {"keypoints": CAMERA.project(CAMERA.to_camera(body())) / 1000, "skeleton": "h36m17"},
            "normalised image coordinates",
        ),
        (
            {
                "keypoints": CAMERA.project(CAMERA.to_camera(body())),
                "joints": list("abcdefghijklmnopq"),
            },
            "no known sk",
        ),
    ],
)
def test_an_archive_that_says_too_little_or_wrong_is_refused(
    tmp_path: Path, content: dict, says: str
) -> None:
    np.savez(tmp_path / "a.npz", **content)
    with pytest.raises(StructDiffError, match=says) as caught:
        read_poses(tmp_path / "a.npz")
    assert "a.npz" in str(caught.value)


def test_arguments_may_not_contradict_the_file(tmp_path: Path) -> None:
    path = write_poses(tmp_path / "a.npz", clip())
    for arguments, says in (
        ({"unit": "mm"}, "states unit 'm'"),
        ({"axes": "camera"}, "states axes 'world'"),
        ({"layout": COCO_17}, "states skeleton 'h36m17'"),
    ):
        with pytest.raises(StructDiffError, match=says):
            read_poses(path, **arguments)


def test_another_clips_camera_is_refused(tmp_path: Path) -> None:
    """One that looks from the other side."""
    turned = Camera(
        CAMERA.focal,
        CAMERA.centre,
        rotation=np.array([[-1.0, 0, 0], [0, 0, -1], [0, -1, 0]]),
        position=np.array([1.5, 6.0, 1.0]),
        image_size=(1000, 1002),
    )
    path = write_poses(tmp_path / "a.npz", PoseClip(**{**vars(clip()), "camera": turned}))
    with pytest.raises(StructDiffError, match="pixels away from its keypoints"):
        read_poses(path)
    assert len(read_poses(path, check=False)) == 1


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "no table"),
        ("# unit: m\n", "no table"),
        ("frame,joint,x,y\n", "no rows"),
        ("a,b\n1,2\n", "columns a, b"),
        ("frame,joint,x,y\n0,Head,1,oops\n", "row 1 of .* has 'oops' for y"),
        ("frame,joint,x,y\n0.5,Head,1,2\n", "frames are whole numbers"),
        ("frame,joint,x,y\n0,Head,1,2\n0,Head,3,4\n", "lists joint Head of frame 0 twice"),
        ("frame,joint,x,y\n0,Head,1,2\n9999,Head,3,4\n", "run from 0 to 9999"),
        ("frame,joint,x,y\n0,Head,1,2\n", "no known skeleton"),
        ("frame,LHip_x,LHip_y,RHip_x\n0,1,2,3\n", "no column rhip_y"),
        ("# clip: {oops\nframe,joint,x,y\n0,Head,1,2\n", "line 1 of"),
        ("frame,joint,x,y\n0,Head\n1,2,3,4,5,6\n", "no table"),
    ],
)
def test_a_table_that_is_none_is_refused(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(StructDiffError, match=says) as caught:
        read_poses(tmp_path / "a.csv")
    assert "a.csv" in str(caught.value)


def test_damaged_files_are_told(tmp_path: Path) -> None:
    path = write_poses(tmp_path / "a.npz", clip())
    (tmp_path / "cut.npz").write_bytes(path.read_bytes()[:700])
    (tmp_path / "empty.npz").write_bytes(b"")
    np.savez(tmp_path / "pickled.npz", poses=np.array({"a": 1}, dtype=object))
    for name, says in (
        ("cut.npz", "no complete NumPy archive"),
        ("empty.npz", "no complete NumPy archive"),
        ("pickled.npz", "pickled objects"),
        ("none.npz", "there is no file"),
    ):
        with pytest.raises(StructDiffError, match=f"{name}.*{says}|{says}.*{name}"):
            read_poses(tmp_path / name)


def test_what_cannot_be_written_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StructDiffError, match=r"npz or \.csv"):
        write_poses(tmp_path / "a.txt", clip())
    with pytest.raises(StructDiffError, match="different names"):
        write_poses(tmp_path / "a.npz", PoseDataset((clip(), clip())))
    with pytest.raises(StructDiffError, match="16 joints"):
        write_poses(tmp_path / "a.npz", body()[:, :16])


def lifted(scale: float) -> Lifted:
    """What a model that has learnt nothing makes of a clip."""
    clip = load_cmu17_demo()[0]
    poses = np.random.default_rng(0).normal(scale=scale, size=(1, len(clip), 17, 3))
    poses -= poses[:, :, :1]
    return Lifted(poses[0], poses, np.zeros_like(poses[0]), clip, H36M_17, "p-agg")


def test_lifted_poses_are_read_back_however_wrong_their_proportions(tmp_path: Path) -> None:
    """What a weak model lifts is a result to be scored, not a file with another joint order."""
    weak = lifted(0.3)
    read = read_poses(write_poses(tmp_path / "weak.npz", weak))
    assert np.allclose(read[0].poses, weak.mean)


def test_the_unit_of_lifted_poses_is_checked_all_the_same(tmp_path: Path) -> None:
    with pytest.raises(StructDiffError, match="millimetres"):
        read_poses(write_poses(tmp_path / "mm.npz", lifted(300.0)))


@pytest.mark.parametrize("ending", ["npz", "csv"])
def test_a_file_that_cannot_be_written_leaves_the_former_one(
    ending: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / f"poses.{ending}"
    write_poses(path, np.zeros((2, 17, 3)), skeleton="h36m17")
    before = path.read_bytes()

    def full(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OSError, match="no space"):
        write_poses(path, np.ones((2, 17, 3)), skeleton="h36m17")
    assert path.read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == [path.name]
