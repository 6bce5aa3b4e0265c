"""``structdiff pose`` end to end, with a model of a few steps on the embedded clips."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from structdiff.cli import main, pose_models
from structdiff.cli.pose_files import read_clips
from structdiff.pose import PoseDataset, PoseLifter, evaluate
from structdiff.pose.baselines import MLPLifter
from structdiff.pose.cameras import write_cameras
from structdiff.pose.data import load_cmu17_demo
from structdiff.pose.readers import read_hypotheses, read_poses, write_poses
from structdiff.pose.skeletons import H36M_17

torch.set_num_threads(1)
FRAMES = 36
SMALL = {"width": 16, "depth": 1, "heads": 2, "lifter_width": 32, "lifter_blocks": 1}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Trained on the clips it is shown: what it says is right enough to be scored."""
    settings = {"max_steps": 60, "learning_rate": 3e-3, "calibration": 0, "progress": False}
    lifter = PoseLifter(9, **SMALL, **settings, random_state=0).fit(load_cmu17_demo())
    return str(lifter.save_pretrained(tmp_path_factory.mktemp("model")))


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with two clips of 2D joints as they leave a detector, without cameras."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "160")
    write_poses("seen.npz", flat())
    return tmp_path


def cut(data: PoseDataset, frames: int = FRAMES) -> PoseDataset:
    """The beginnings of clips: enough to tell a movement, quickly lifted."""
    parts = [replace(c, keypoints=c.keypoints[:frames], poses=c.poses[:frames]) for c in data]
    return replace(data, clips=tuple(parts))


def clips(count: int = 2) -> PoseDataset:
    return cut(load_cmu17_demo()[:count])


def flat(**changes: object) -> PoseDataset:
    data = clips()
    return replace(data, clips=tuple(replace(c, poses=None, camera=None, **changes) for c in data))


def predicted(change=lambda poses: poses, noise: float = 0.02) -> PoseDataset:
    """The true poses in camera axes with a model's errors, then ``change``."""
    rng, data = np.random.default_rng(0), clips()
    parts = []
    for clip in data:
        poses = clip.in_camera() + noise * rng.standard_normal(clip.poses.shape)
        parts.append(replace(clip, poses=change(poses), axes="camera", keypoints=None, camera=None))
    return replace(data, clips=tuple(parts))


def run(*words: str) -> int:
    return main(["pose", *words])


def complaint(capsys: pytest.CaptureFixture[str]) -> str:
    printed = capsys.readouterr()
    found = [line for line in printed.err.splitlines() if line.startswith("structdiff: ")]
    assert len(found) == 1 and "Traceback" not in printed.err
    return found[0]


def files(folder: Path) -> set[str]:
    return {file.name for file in folder.iterdir()}


# ---------------------------------------------------------------- lift


def test_what_is_lifted_is_what_the_estimator_lifts(
    model: str, workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--model", model, "--hypotheses", "3", "--steps", "2", "--seed", "1", "--json"]
    assert run("lift", "seen.npz", *words) == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["clips"], answer["frames"], answer["hypotheses"]) == (2, 2 * FRAMES, 3)
    lifter = PoseLifter.from_pretrained(model).set_params(steps=2, progress=False)
    expected = lifter.predict(flat(), n_hypotheses=3, seed=1)
    written, drawn = read_poses("poses.npz", check=False), read_hypotheses("poses.npz")
    for one, clip in zip(expected, written, strict=True):
        np.testing.assert_array_equal(clip.poses, one.mean)
        np.testing.assert_array_equal(drawn[clip.name], one.hypotheses)
    assert files(workplace) == {"seen.npz", "poses.npz"}


def test_the_file_says_units_axes_and_joint_order(model: str, workplace: Path) -> None:
    assert run("lift", "seen.npz", "--model", model, "--out", "poses.csv", "--seed", "0") == 0
    head = [line for line in Path("poses.csv").read_text().splitlines() if line.startswith("#")]
    assert "# skeleton: h36m17" in head and "# unit: m" in head
    assert all('"axes": "camera"' in line and '"origin": "root"' in line for line in head[-2:])
    lifter = PoseLifter.from_pretrained(model).set_params(progress=False)
    np.testing.assert_allclose(
        read_poses("poses.csv", check=False)[0].poses,
        lifter.predict(flat(), seed=0)[0].mean,
        atol=1e-6,
    )


def test_a_camera_brings_the_trajectory(
    model: str, workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_cameras("cameras.json", [clip.camera for clip in clips(4)])
    words = ["--model", model, "--clip", "walking_01/1", "--json", "--seed", "0"]
    assert run("lift", "seen.npz", *words, "--camera", "cameras.json:1") == 0
    printed = capsys.readouterr()
    answer = json.loads(printed.out)
    truth = clips()[1]
    assert answer["distance from the camera (m)"] == pytest.approx(
        float(np.median(truth.in_camera()[:, 0, 2])), abs=1.0
    )
    assert answer["off the keypoints (px)"] < 30
    assert "guessed" not in printed.err
    with np.load("poses.npz") as file:
        assert file["root"].shape == (FRAMES, 3)
        assert json.loads(str(file["camera"])) == truth.camera.to_dict()


def test_without_a_camera_the_distance_is_called_a_guess(
    model: str, workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("lift", "seen.npz", "--model", model) == 0
    printed = capsys.readouterr()
    assert "no --camera: distances from the camera rest on a guessed focal length" in printed.err
    assert "distance from the camera" not in printed.out


def test_json_of_a_detector_is_lifted_with_the_size_and_the_order_that_are_given(
    model: str, workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clip = clips()[0]
    sure = np.full((*clip.keypoints.shape[:2], 1), 0.9)
    records = [
        {
            "image_id": frame,
            "category_id": 1,
            "score": 0.9,
            "keypoints": np.concatenate([joints, s], axis=1).ravel().astype(float).tolist(),
        }
        for frame, (joints, s) in enumerate(zip(clip.keypoints, sure, strict=True))
        if frame != 20
    ]
    Path("people.json").write_text(json.dumps(records))
    words = ["--image-size", "1000x1002", "--skeleton", "h36m17", "--fps", "30", "--model", model]
    assert run("lift", "people.json", *words, "--seed", "0") == 0
    assert f"nobody was found in 1 of {FRAMES} frames" in capsys.readouterr().err
    (lifted,) = read_poses("poses.npz", check=False)
    assert (lifted.fps, lifted.image_size, len(lifted)) == (30.0, (1000, 1002), FRAMES)
    expected = PoseLifter.from_pretrained(model).set_params(progress=False)
    direct = expected.predict(flat()[0], seed=0).mean
    np.testing.assert_allclose(lifted.poses[:12], direct[:12], atol=1e-3)


def test_constant_bones_have_one_length_in_the_file(model: str, workplace: Path) -> None:
    assert run("lift", "seen.npz", "--model", model, "--bones", "constant") == 0
    for clip in read_poses("poses.npz", check=False):
        shin = np.linalg.norm(clip.poses[:, 3] - clip.poses[:, 2], axis=-1)
        assert np.ptp(shin) < 1e-5


def test_a_picture_and_a_film_are_made_of_one_clip(
    model: str, workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    short = flat()
    write_poses(
        "short.npz", replace(short, clips=(replace(short[0], keypoints=short[0].keypoints[:5]),))
    )
    words = ["--model", model, "--plot", "p.png", "--video", "p.gif"]
    assert run("lift", "short.npz", *words) == 0
    assert Path("p.png").read_bytes().startswith(b"\x89PNG")
    assert Path("p.gif").read_bytes().startswith(b"GIF8")
    assert run("lift", "seen.npz", *words) == 2
    assert "p.gif shows one clip, seen.npz holds 2 (walking_01/0, walking_01/1): choose one w" in (
        complaint(capsys)
    )


def test_the_same_seed_writes_the_same_poses(model: str, workplace: Path) -> None:
    for name, seed in (("a.csv", "5"), ("b.csv", "5"), ("c.csv", "6")):
        assert run("lift", "seen.npz", "--model", model, "--out", name, "--seed", seed) == 0
    a, b, c = (Path(name).read_bytes() for name in ("a.csv", "b.csv", "c.csv"))
    assert a == b != c


def test_a_failure_leaves_the_earlier_file(
    model: str, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("poses.npz").write_text("earlier")

    def broken(*_: object) -> None:
        raise OSError(28, "no space", "poses.npz")

    monkeypatch.setattr("structdiff.cli.pose_results.write_poses", broken)
    assert run("lift", "seen.npz", "--model", model) == 2
    assert Path("poses.npz").read_text() == "earlier"
    assert files(workplace) == {"seen.npz", "poses.npz"}


# ---------------------------------------------------------------- evaluate


def test_a_lifted_file_is_scored_like_its_hypotheses(
    model: str, workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = cut(load_cmu17_demo()[::4])
    write_poses("t.npz", data)
    assert run("lift", "t.npz", "--model", model, "--seed", "0", "--out", "p.npz") == 0
    capsys.readouterr()
    words = ["--protocol", "h36m", "--out", "t.csv", "--plot", "e.png", "--json"]
    assert run("evaluate", "p.npz", "t.npz", *words) == 0
    answer = json.loads(capsys.readouterr().out)
    lifter = PoseLifter.from_pretrained(model).set_params(progress=False, random_state=0)
    expected = lifter.evaluate(data, protocol="h36m")
    assert list(answer["rows"]) == ["walking", "jumping", "mean", "all frames"]
    assert answer["hypotheses"] == 5 and answer["units"]["MPJPE"] == "mm"
    for row, column in (("walking", "MPJPE"), ("mean", "P-MPJPE"), ("all frames", "J-Best")):
        assert answer["rows"][row][column] == pytest.approx(expected.loc[row, column], rel=1e-9)
    with open("t.csv", newline="") as file:
        table = {row["action"]: row for row in csv.DictReader(file)}
    assert float(table["mean"]["MPJPE (mm)"]) == answer["rows"]["mean"]["MPJPE"]
    assert table["walking"]["frames"] == str(FRAMES)
    assert "coverage (80 %) (%)" in table["mean"] and "MPJVE (mm/s)" in table["mean"]
    assert Path("e.png").read_bytes().startswith(b"\x89PNG")


def test_evaluate_shows_a_table_with_units(
    workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_poses("p.npz", predicted()), write_poses("t.npz", clips())
    assert run("evaluate", "p.npz", "t.npz") == 0
    printed = capsys.readouterr().out
    assert "p.npz against t.npz" in printed
    assert all(word in printed for word in ("MPJPE", "(mm)", "(mm/frame)", "all frames", "72"))
    assert "mean distance of the joints, roots together" in printed


def test_the_embedded_clips_are_a_target_by_their_name(
    workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = load_cmu17_demo()[5:6]
    write_poses("p.npz", replace(data[0], poses=data[0].poses + np.array([0.1, 0, 0])))
    assert run("evaluate", "p.npz", "cmu17_demo") == 2
    assert "there is no prediction of clip 'walking_01/0' (7 of 8 are missing)" in (
        complaint(capsys)
    )
    assert run("evaluate", "p.npz", "cmu17_demo", "--clip", "jumping_01/1", "--json") == 0
    row = json.loads(capsys.readouterr().out)["rows"]["all frames"]
    assert row["frames"] == 90 and row["MPJPE"] == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize("axes", ["camera", "world"])
def test_poses_in_either_axes_have_the_same_errors(
    axes: str, workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    guess, truth = predicted(), clips()
    if axes == "world":
        turned = [
            replace(g, poses=t.camera.to_world(g.poses), axes="world")
            for g, t in zip(guess, truth, strict=True)
        ]
        guess = replace(guess, clips=tuple(turned))
    write_poses("p.npz", guess), write_poses("t.npz", truth)
    assert run("evaluate", "p.npz", "t.npz", "--json") == 0
    row = json.loads(capsys.readouterr().out)["rows"]["all frames"]
    expected = evaluate(predicted(), truth).loc["all frames"]
    assert row["MPJPE"] == pytest.approx(expected["MPJPE"], rel=1e-5)
    assert row["P-MPJPE"] == pytest.approx(expected["P-MPJPE"], rel=1e-5)


def test_a_bare_array_is_read_with_what_is_said_about_it(
    workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save("p.npy", 1000 * predicted()[0].poses)
    write_poses("t.npz", clips()[0])
    said = ["--skeleton", "h36m17", "--axes", "camera", "--json"]
    assert run("evaluate", "p.npy", "t.npz", *said, "--unit", "mm") == 0
    row = json.loads(capsys.readouterr().out)["rows"]["all frames"]
    expected = evaluate([predicted()[0].poses], clips()[:1]).loc["all frames", "MPJPE"]
    assert row["MPJPE"] == pytest.approx(expected, rel=1e-6)
    assert run("evaluate", "p.npy", "t.npz", *said, "--unit", "m") == 2
    assert (
        "p.npy against t.npz: the bodies in" in (line := complaint(capsys))
        and "like millimetres" in line
    )


def test_both_are_converted_to_the_skeleton_asked_for(
    workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_poses("p.npz", predicted()), write_poses("t.npz", clips())
    assert run("evaluate", "p.npz", "t.npz", "--to", "3dhp17", "--protocol", "3dhp") == 0
    printed = capsys.readouterr()
    assert "PCK" in printed.out and "converted to 3dhp17" in printed.err


NEGATED = {"x": [-1, 1, 1], "y": [1, -1, 1], "z": [1, 1, -1]}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda p: 1000 * p, "which looks like millimetres; poses are in metres"),
        (lambda p: p * NEGATED["y"], "with y negated (one has y up, the other y down): br"),
        (lambda p: p * [1, -1, -1], "with y and z negated (one has y up, the other y down): b"),
        (lambda p: p * NEGATED["z"], " mm with z negated: bring both into the same axes"),
        (lambda p: p[:, list(H36M_17.mirrored)], "with left and right exchanged"),
        (
            lambda p: p[..., [0, 2, 1]] * NEGATED["z"],
            "with their axes read as (x, -z, y): bring both",
        ),
        (
            lambda p: p[:, ::-1],
            "with its joints in another order (RWrist is where Pelvis should be",
        ),
        (
            lambda p: 3.281 * p,
            "times as large as their targets: one of the two is in another unit, such as feet",
        ),
    ],
    ids=["millimetres", "y up", "y up, turned", "z", "sides", "z up", "joint order", "feet"],
)
def test_a_prediction_in_other_units_axes_or_order_is_told_so(
    change, expected: str, workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_poses("p.npz", predicted(change)), write_poses("t.npz", clips())
    assert run("evaluate", "p.npz", "t.npz", "--out", "t.csv") == 2
    line = complaint(capsys)
    assert expected in line and line.startswith("structdiff: p.npz")
    assert files(workplace) == {"seen.npz", "p.npz", "t.npz"}


def test_the_targets_faults_are_told_in_the_targets_options(
    workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save("t.npy", clips()[0].in_camera())
    write_poses("p.npz", predicted()[:1])
    assert run("evaluate", "p.npz", "t.npy") == 2
    assert "t.npy does not state the order of its joints: give --target-skeleton" in (
        complaint(capsys)
    )
    words = ["--target-skeleton", "h36m17", "--target-unit", "m", "--target-axes", "camera"]
    assert run("evaluate", "p.npz", "t.npy", *words) == 0


def test_what_checks_refuse_is_scored_without_them(
    workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_poses("p.npz", predicted(lambda p: p * NEGATED["y"])), write_poses("t.npz", clips())
    assert run("evaluate", "p.npz", "t.npz", "--no-check", "--json") == 0
    row = json.loads(capsys.readouterr().out)["rows"]["all frames"]
    assert row["MPJPE"] > 500 > 100 > row["P-MPJPE"] - row["P-MPJPE"]


def test_archives_of_videopose3d_are_joined_by_plus_signs(workplace: Path) -> None:
    # Human3.6M's 32 joints, of which 17 are kept (the card's list), in world metres.
    first, second = clips()
    kept = [0, 1, 2, 3, 6, 7, 8, 12, 13, 14, 15, 17, 18, 19, 25, 26, 27]
    space = np.zeros((FRAMES, 32, 3))
    space[:, kept] = first.poses
    pairs = [first.keypoints, second.keypoints]
    np.savez("2d.npz", positions_2d={"S1": {"Walking 1": pairs}}, metadata={"layout_name": "h36m"})
    np.savez("3d.npz", positions_3d={"S1": {"Walking 1": space}})
    cameras = [clip.camera.to_dict() for clip in (first, second)]
    for camera in cameras:
        turn = camera.pop("R_world_to_cam")
        camera["orientation"] = (
            Rotation.from_matrix(np.transpose(turn)).as_quat()[[3, 0, 1, 2]].tolist()
        )
        camera |= dict(zip(("res_w", "res_h"), camera.pop("res_wh"), strict=True))
    Path("cameras.json").write_text(json.dumps({"S1": cameras}))
    data = read_clips("3d.npz+cameras.json+2d.npz", spatial=True)
    assert [clip.name for clip in data] == ["S1/Walking 1/0", "S1/Walking 1/1"]
    np.testing.assert_allclose(data[1].in_camera(), second.in_camera(), atol=1e-5)
    np.testing.assert_allclose(data[1].keypoints, second.keypoints)


# ---------------------------------------------------------------- train


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The baseline network is trained for a moment only."""
    monkeypatch.setattr(pose_models, "MLPLifter", lambda: MLPLifter(8, 1, max_steps=5))


TINY = ["--frames", "9", "--width", "16", "--depth", "1", "--batch-size", "8"]


def test_training_keeps_a_model_and_scores_it_beside_one_frame(
    workplace: Path, capsys: pytest.CaptureFixture[str], quick: None
) -> None:
    data = load_cmu17_demo()
    for action in ("walking", "jumping"):
        write_poses(f"{action}.npz", data.select(lambda clip, a=action: clip.action == a))
    words = ["--data", "walking.npz", "--test", "jumping.npz", "--out", "m", "--max-steps", "40"]
    words += [*TINY, "--json"]
    assert run("train", *words, "--learning-rate", "0.003", "--test-frames", "80") == 0
    printed = capsys.readouterr()
    answer = json.loads(printed.out)["scores"]
    assert list(answer) == ["DDHPose, H = 5", "ridge, one frame", "MLP, one frame"]
    assert all(row["MPJPE (mm)"] > 0 for row in answer.values())
    assert answer["ridge, one frame"]["in 80 % interval (%)"] is None
    assert "lift with `structdiff pose lift KEYPOINTS --model m`" in printed.err
    assert PoseLifter.from_pretrained("m").training_["steps"] == 40
    assert {"config.json", "model.safetensors", "scores.csv", "metrics.csv"} <= files(Path("m"))


def test_a_run_is_resumed_and_not_written_over(
    workplace: Path, capsys: pytest.CaptureFixture[str], quick: None
) -> None:
    write_poses("both.npz", load_cmu17_demo())
    words = ["train", "--data", "both.npz", "--out", "m", *TINY, "--test-frames", "80"]
    assert run(*words, "--max-steps", "20") == 0
    capsys.readouterr()
    assert run(*words, "--max-steps", "30") == 2
    assert "resume" in complaint(capsys)
    assert run(*words, "--max-steps", "30", "--resume") == 0
    assert PoseLifter.from_pretrained("m").training_["steps"] == 30


def test_clips_of_a_subject_are_kept_for_the_scores(workplace: Path) -> None:
    data = load_cmu17_demo()
    named = [replace(c, subject="S9" if c.action == "jumping" else "S1") for c in data]
    write_poses("both.npz", replace(data, clips=tuple(named)))
    learnt, test = pose_models.training_clips(["both.npz"], None, "S9,S11", False, 0, {})
    assert {c.action for c in learnt} == {"walking"} and {c.action for c in test} == {"jumping"}


def test_a_folder_of_files_is_all_of_them(workplace: Path) -> None:
    Path("many").mkdir()
    data = load_cmu17_demo()
    for number, clip in enumerate(data):
        write_poses(f"many/{number}.npz", replace(clip, name="clip"))
    Path("many/notes.txt").write_text("not a clip")
    learnt, test = pose_models.training_clips(["many"], None, None, False, 0, {})
    names = sorted(c.name for part in (learnt, test) for c in part)
    assert names == [f"{number}: clip" for number in range(8)]
    assert learnt.frames + test.frames == data.frames and len(test) == 1


def test_ctrl_c_says_how_to_go_on(
    workplace: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    write_poses("both.npz", load_cmu17_demo())
    monkeypatch.setattr(PoseLifter, "fit", interrupted)
    assert run("train", "--data", "both.npz", "--out", "m") == 130
    assert "the same command with --resume goes on in m" in capsys.readouterr().err


# ---------------------------------------------------------------- info, samplers


def test_info_describes_a_model(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("info", model, "--json") == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["config"]["format"] == "structdiff.pose/1"
    assert answer["config"]["model"]["skeleton"]["name"] == "h36m17"


def test_samplers_are_compared_on_clips_with_known_poses(
    model: str, workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--nfe", "1,3", "--samplers", "ddim,ddpm", "-n", "72", "--json"]
    command = ["samplers", "compare", "--model", model, *words]
    assert main([*command, "--reference", "cmu17_demo"]) == 0
    with open("samplers.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {(row["sampler"], row["nfe"]) for row in rows} == {
        (name, nfe) for name in ("ddim", "ddpm") for nfe in ("1", "3")
    }
    assert all(20 < float(row["mpjpe"]) < 300 for row in rows)
    capsys.readouterr()
    assert main(command) == 2
    assert "has no clips to compare with: pass --reference" in complaint(capsys)


# ---------------------------------------------------------------- bad input: code 2, one line


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["lift", "no.json", "--model", "MODEL"], "no.json: no such file; name a file of joints"),
        (["lift", ".", "--model", "MODEL"], ".: is a folder; name a file of joints"),
        (["lift", "seen.npz", "--model", "ddhpose"], "no model 'ddhpose': give one of the embed"),
        (["lift", "seen.npz", "--model", "gdss-qm9"], "it is a molecule model, load it with"),
        (["lift", "seen.npz", "--model", "MODEL", "--out", "p.json"], "p.json: cannot write this"),
        (["lift", "seen.npz", "--model", "MODEL", "--out", "no/p.npz"], "the folder no does no"),
        (["lift", "seen.npz", "--model", "MODEL", "--video", "p.avi"], "end the name in .mp4 or"),
        (["lift", "seen.npz", "--model", "MODEL", "--plot", "p.gif"], "end the name in .png, .sv"),
        (["lift", "seen.npz", "--model", "MODEL", "--hypotheses", "0"], "--hypotheses 0: should b"),
        (["lift", "seen.npz", "--model", "MODEL", "--steps", "0"], "--steps 0: should be a whole"),
        (["lift", "seen.npz", "--model", "MODEL", "--steps", "5000"], "chain of 1000 links has no"),
        (["lift", "seen.npz", "--model", "MODEL", "--seed", "-1"], "--seed must be a whole number"),
        (["lift", "seen.npz", "--model", "MODEL", "--fps", "0"], "--fps 0.0: should be a positive"),
        (["lift", "seen.npz", "--model", "MODEL", "--bones", "stiff"], "--bones stiff: choose of"),
        (["lift", "seen.npz", "--model", "MODEL", "--aggregation", "x"], "choose of p-agg, j-agg"),
        (["lift", "seen.npz", "--model", "MODEL", "--sampler", "eular"], "'eular'"),
        (
            ["lift", "seen.npz", "--model", "MODEL", "--image-size", "big"],
            "width x height, such as",
        ),
        (
            ["lift", "seen.npz", "--model", "MODEL", "--image-size", "400x300"],
            "seen.npz: 100% of the joints of keypoints of clip 'walking_01/0' are far outside",
        ),
        (
            ["lift", "seen.npz", "--model", "MODEL", "--skeleton", "coco"],
            "--skeleton coco: choose of h36m17, 3dhp17, coco17",
        ),
        (
            ["lift", "seen.npz", "--model", "MODEL", "--skeleton", "coco17"],
            "states skeleton 'h36m17', not 'coco17': leave --skeleton out",
        ),
        (["lift", "seen.npz", "--model", "MODEL", "--clip", "run"], "no clip 'run' (--clip); it h"),
        (["lift", "seen.npz", "--model", "MODEL", "--person", "3"], "leave --person out"),
        (["lift", "seen.npz", "--model", "MODEL", "--detected"], "--detected is for cmu17 and cmu"),
        (["lift", "cmu17_demo", "--model", "MODEL", "--person", "3"], "--person 3: cmu17_demo"),
        (
            ["lift", "seen.npz", "--model", "MODEL", "--camera", "c.json"],
            "c.json: no such file; --",
        ),
        (["evaluate", "seen.npz", "seen.npz"], "holds no 3D poses"),
        (["evaluate", "no.npz", "cmu17_demo"], "no.npz: no such file"),
        (["evaluate", "seen.npz", "cmu17_demo", "--protocol", "h37"], "--protocol h37: choose of"),
        (["evaluate", "seen.npz", "cmu17_demo", "--out", "t.xls"], "t.xls: cannot write this for"),
        (["evaluate", "seen.npz", "cmu17_demo", "--unit", "cm"], "--unit cm: should be m or mm"),
        (["evaluate", "seen.npz", "cmu17_demo", "--target-axes", "up"], "--target-axes up: should"),
        (["evaluate", "seen.npz", "cmu17_demo", "--to", "mpii"], "--to mpii: choose of h36m17"),
        (["train", "--data", "seen.npz", "--out", "m"], "has not both 2D and 3D joints; training"),
        (["train", "--data", "seen.npz", "--out", "seen.npz"], "seen.npz: is a file; give the na"),
        (
            ["train", "--data", "seen.npz", "--out", "m", "--preset", "papr"],
            "--preset papr: choose",
        ),
        (["train", "--data", "seen.npz", "--out", "m", "--frames", "0"], "--frames 0: should be a"),
        (
            ["train", "--data", "seen.npz", "--out", "m", "--max-minutes", "0"],
            "should be a positiv",
        ),
        (["train", "--data", "cmu17", "--data", "seen.npz", "--out", "m"], "give nothing else"),
        (["train", "--data", ".", "--out", "m", "--detected"], "training needs both"),
        (["train", "--out", "m"], "Missing option '--data'"),
        (["info", "nothing"], "nothing: no such model; give a folder"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(
    words: list[str],
    expected: str,
    model: str,
    workplace: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    capsys.readouterr()
    assert run(*(model if word == "MODEL" else word for word in words)) == 2
    assert expected in complaint(capsys)
    assert files(workplace) == {"seen.npz"}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda k: (k - 500) / 500, "looks like normalised image coordinates; pixels are needed"),
        (lambda k: 1000 - k, "image axes have y down, this looks like y up; negate y"),
        (lambda k: k[:, ::-1], "are not in the order of h36m17"),
    ],
    ids=["normalised", "y up", "joint order"],
)
def test_keypoints_in_other_units_axes_or_order_are_told_so(
    change, expected: str, model: str, workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = flat()
    wrong = tuple(replace(clip, keypoints=change(clip.keypoints)) for clip in data)
    write_poses("wrong.npz", replace(data, clips=wrong))
    assert run("lift", "wrong.npz", "--model", model) == 2
    line = complaint(capsys)
    assert expected in line and "wrong.npz: " in line and "--no-check reads it as it is" in line
    assert files(workplace) == {"seen.npz", "wrong.npz"}


def test_a_file_of_several_cameras_asks_which_one(
    model: str, workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_cameras("c.json", [clip.camera for clip in clips(4)])
    words = ["lift", "seen.npz", "--model", model, "--camera"]
    assert run(*words, "c.json") == 2
    assert "c.json holds 4 cameras: say which one, --camera c.json:0 to c.json:3" in (
        complaint(capsys)
    )
    assert run(*words, "c.json:4") == 2
    assert "c.json holds 4 cameras, numbered from 0" in complaint(capsys)
    assert run(*words, "c.json:1") == 2
    assert "is of 1000x1002: it is another camera's" in complaint(capsys)
