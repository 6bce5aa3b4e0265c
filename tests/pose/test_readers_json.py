"""Keypoints from detectors' JSON: the same person whatever the layout, gaps filled and counted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from structdiff.errors import StructDiffError
from structdiff.pose.readers import read_keypoint_json
from structdiff.pose.skeletons import COCO_17, convert, convert_confidence

SIZE = (640, 480)
COCO_NAMES = [
    *("nose", "left_eye", "right_eye", "left_ear", "right_ear", "left_shoulder"),
    *("right_shoulder", "left_elbow", "right_elbow", "left_wrist", "right_wrist", "left_hip"),
    *("right_hip", "left_knee", "right_knee", "left_ankle", "right_ankle"),
]


def people(frames: int = 8, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Somebody seen from the front who walks to the right: (T, 17, 2) pixels, (T, 17) scores."""
    half = {
        "Eye": (5, 70),
        "Ear": (12, 73),
        "Shoulder": (26, 110),
        "Elbow": (38, 155),
        "Wrist": (42, 195),
        "Hip": (20, 190),
        "Knee": (22, 265),
        "Ankle": (23, 335),
    }
    places = {"Nose": (0, 78)}
    places |= {f"L{j}": (x, y) for j, (x, y) in half.items()}
    places |= {f"R{j}": (-x, y) for j, (x, y) in half.items()}
    still = np.array([places[j] for j in COCO_17.joints], dtype=float)
    draw = np.random.default_rng(seed)
    walk = np.arange(frames)[:, None, None] * np.array([3.0, 0.5]) + [300, 60]
    joints = still + walk + draw.normal(0, 0.5, (frames, 17, 2))
    return joints.round(3), draw.uniform(0.3, 1, (frames, 17)).round(3)


JOINTS, SCORES = people()
OTHER, OTHER_SCORES = JOINTS - [150, 20], SCORES * 0.9


def triples(joints: np.ndarray, scores: np.ndarray) -> list[float]:
    return np.concatenate([joints, scores[:, None]], -1).ravel().tolist()


def coco(name: str = "{}", two: bool = True, **more: Any) -> list[dict]:
    """COCO results; in every frame a second person of a lower score comes first."""
    out = []
    for t in range(len(JOINTS)):
        image = name.format(t) if "{" in name and name != "{}" else t
        base = {"image_id": image, "category_id": 1, **more}
        if two:
            seen = {"keypoints": triples(OTHER[t], OTHER_SCORES[t]), "score": 0.5, "track_id": 7}
            out.append({**base, **seen})
        out.append(
            {**base, "keypoints": triples(JOINTS[t], SCORES[t]), "score": 0.9, "track_id": 3}
        )
    return out


def instance(t: int, joints: np.ndarray = JOINTS, score: float = 0.9, track: int = 3) -> dict:
    return {
        "keypoints": joints[t].tolist(),
        "keypoint_scores": (SCORES if joints is JOINTS else OTHER_SCORES)[t].tolist(),
        "bbox": [[0, 0, 10, 10]],
        "bbox_score": score,
        "track_id": track,
    }


def mmpose_images() -> list[list[dict]]:
    return [[instance(t, OTHER, 0.5, 7), instance(t)] for t in range(len(JOINTS))]


def mmpose_video() -> list[dict]:
    return [{"frame_id": t, "instances": i} for t, i in enumerate(mmpose_images())]


def annotations() -> dict:
    """Visibility stands in the place of scores."""
    records = coco()
    for record in records:
        record["keypoints"][2::3] = [2] * 17
    images = [
        {"id": 900 - t, "file_name": f"img_{t:04d}.jpg", "width": SIZE[0], "height": SIZE[1]}
        for t in range(len(JOINTS))
    ]
    for record in records:
        record["image_id"] = 900 - record["image_id"]
    kinds = [{"id": 1, "name": "person", "keypoints": COCO_NAMES}]
    return {"images": images, "annotations": records, "categories": kinds}


def meta() -> dict:
    return {
        "dataset_name": "coco",
        "keypoint_id2name": {str(i): n for i, n in enumerate(COCO_NAMES)},
    }


LAYOUTS = {
    "coco results": coco(),
    "coco results, shuffled": [coco()[i] for i in np.random.default_rng(0).permutation(16)],
    "coco results, file names": coco("clip/frame_{:06d}.jpg"),
    "alphapose": [
        {**{k: v for k, v in r.items() if k != "track_id"}, "idx": r["track_id"]}
        for r in coco("{}.png")
    ],
    "coco annotations": annotations(),
    "mmpose images": mmpose_images(),
    "mmpose video": mmpose_video(),
    "mmpose demo": {"meta_info": meta(), "instance_info": mmpose_video()},
    "mmpose scores in lists": [
        [{**i, "bbox_score": [i["bbox_score"]]} for i in frame] for frame in mmpose_images()
    ],
}


def saved(folder: Path, content: Any, name: str = "a.json") -> Path:
    (folder / name).write_text(json.dumps(content))
    return folder / name


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_person(tmp_path: Path, layout: str) -> None:
    read = read_keypoint_json(saved(tmp_path, LAYOUTS[layout]), image_size=SIZE)
    assert len(read) == 1 and read.skeleton == COCO_17 and read[0].image_size == SIZE
    np.testing.assert_array_equal(read[0].keypoints, JOINTS)
    sure = np.ones_like(SCORES) if layout == "coco annotations" else SCORES
    np.testing.assert_array_equal(read[0].confidence, sure)
    assert "more than one person" in read.notes[0]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_track_id_chooses_another_person(tmp_path: Path, layout: str) -> None:
    read = read_keypoint_json(saved(tmp_path, LAYOUTS[layout]), image_size=SIZE, person=7)
    np.testing.assert_array_equal(read[0].keypoints, OTHER)


def test_a_change_of_person_is_noted(tmp_path: Path) -> None:
    records = coco()
    records[0]["score"] = 0.95  # the second person is surer in the first frame
    read = read_keypoint_json(saved(tmp_path, records), check=False)
    np.testing.assert_array_equal(read[0].keypoints[0], OTHER[0])
    assert "its track id changes 1 times" in read.notes[0]


def test_the_size_of_annotated_images_is_taken(tmp_path: Path) -> None:
    assert read_keypoint_json(saved(tmp_path, annotations()))[0].image_size == SIZE


def test_the_people_in_one_image_are_one_frame(tmp_path: Path) -> None:
    read = read_keypoint_json(saved(tmp_path, mmpose_images()[0]))
    np.testing.assert_array_equal(read[0].keypoints, JOINTS[:1])


def test_every_video_is_a_clip(tmp_path: Path) -> None:
    both = coco("a/{:03d}.jpg", two=False) + coco("b/{:03d}.jpg", two=False)[:4]
    read = read_keypoint_json(saved(tmp_path, both), fps=30)
    assert [(c.name, len(c), c.fps) for c in read] == [("a", 8, 30), ("b", 4, 30)]


def test_joints_are_converted_where_asked(tmp_path: Path) -> None:
    read = read_keypoint_json(saved(tmp_path, coco(two=False)), skeleton="h36m17")
    np.testing.assert_allclose(read[0].keypoints, convert(JOINTS, "coco17", "h36m17"))
    np.testing.assert_allclose(read[0].confidence, convert_confidence(SCORES, "coco17", "h36m17"))


# ---------------------------------------------------------------- gaps


def test_frames_without_a_person_lie_between_their_neighbours(tmp_path: Path) -> None:
    records = [r for r in coco(two=False) if r["image_id"] not in (2, 3)]
    read = read_keypoint_json(saved(tmp_path, records))[0]
    expected = JOINTS.copy()
    expected[2] = JOINTS[1] + (JOINTS[4] - JOINTS[1]) / 3
    expected[3] = JOINTS[1] + 2 * (JOINTS[4] - JOINTS[1]) / 3
    np.testing.assert_allclose(read.keypoints, expected, atol=1e-9)
    assert (read.confidence[2:4] == 0).all() and (read.confidence[[1, 4]] > 0).all()


def test_gaps_are_counted_in_notes(tmp_path: Path) -> None:
    records = [r for r in coco(two=False) if r["image_id"] not in (2, 3)]
    (note,) = read_keypoint_json(saved(tmp_path, records)).notes
    assert "nobody was found in 2 of 8 frames, 2 of them interpolated with confidence 0" in note


def test_longer_gaps_stay_open(tmp_path: Path) -> None:
    records = [r for r in coco(two=False) if r["image_id"] not in (2, 3, 4)]
    read = read_keypoint_json(saved(tmp_path, records), max_gap=2)
    assert np.isnan(read[0].keypoints[2:5]).all() and np.isfinite(read[0].keypoints[[1, 5]]).all()
    assert "51 joints in gaps of more than 2 frames are NaN" in read.notes[-1]


def test_empty_frames_at_the_ends_keep_the_nearest_position(tmp_path: Path) -> None:
    video = mmpose_video()
    video[0]["instances"], video[7]["instances"] = [], []
    read = read_keypoint_json(saved(tmp_path, video))[0]
    assert len(read) == 8
    np.testing.assert_array_equal(read.keypoints[0], JOINTS[1])
    np.testing.assert_array_equal(read.keypoints[7], JOINTS[6])


def test_a_joint_that_is_not_seen_is_interpolated_alone(tmp_path: Path) -> None:
    records = coco(two=False)
    records[3]["keypoints"][27:30] = [0, 0, 0]  # the left wrist
    read = read_keypoint_json(saved(tmp_path, records))
    expected = JOINTS.copy()
    expected[3, 9] = (JOINTS[2, 9] + JOINTS[4, 9]) / 2
    np.testing.assert_allclose(read[0].keypoints, expected, atol=1e-9)
    assert read[0].confidence[3, 9] == 0 and "1 joints were missing" in read.notes[0]


def test_every_fifth_frame_is_the_next(tmp_path: Path) -> None:
    records = [{**r, "image_id": 100 + 5 * r["image_id"]} for r in coco(two=False)]
    read = read_keypoint_json(saved(tmp_path, records))
    np.testing.assert_array_equal(read[0].keypoints, JOINTS)
    assert "only every 5th frame" in read.notes[0]


# ---------------------------------------------------------------- what is refused


def spoilt(change: Any) -> list[dict]:
    records = coco(two=False)
    change(records[5])
    return records


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ([], "no keypoints of a known kind"),
        ({"a": 1}, "no keypoints of a known kind"),
        ([1, 2], "frame 0 of .* has no list of instances"),
        (
            spoilt(lambda r: r.update(keypoints=r["keypoints"][:48])),
            "record 5 .*16 keypoints, coco",
        ),
        (spoilt(lambda r: r.update(keypoints=[None] * 51)), "record 5 .*NaN or infinite|record 5"),
        (spoilt(lambda r: r["keypoints"].__setitem__(4, float("nan"))), "record 5 .*NaN or inf"),
        (spoilt(lambda r: r["keypoints"].__setitem__(4, "x")), "record 5 .*no numbers"),
        (spoilt(lambda r: r.pop("keypoints")), "record 5 of .* no keypoints"),
        (spoilt(lambda r: r.update(image_id="last.jpg")), "record 5 .*has no number"),
        (spoilt(lambda r: r.update(image_id=123457)), "no frame numbers of one video"),
        ([{"frame_id": 0, "instances": []}], "nobody was found"),
        ([{"frame_id": "x", "instances": []}], "frame_id 'x'"),
        ([[{**instance(0), "keypoints": JOINTS[0, :14].tolist()}]], "instance 0 .*14 keypoints"),
        ([[{**instance(0), "keypoint_scores": [1.0]}]], "1 scores for 17"),
        ([[{"bbox": [1]}]], "instance 0 in frame 0 of .* no keypoints"),
        ({"images": [{"id": 1}], "annotations": [{"image_id": 2}]}, "none of its images"),
        (
            {"meta_info": {"keypoint_id2name": {"0": "paw"}}, "instance_info": []},
            "names its keypoints paw",
        ),
    ],
)
def test_bad_records_are_named(tmp_path: Path, content: Any, says: str) -> None:
    with pytest.raises(StructDiffError, match=says) as caught:
        read_keypoint_json(saved(tmp_path, content))
    assert "a.json" in str(caught.value)


def test_normalised_keypoints_are_refused(tmp_path: Path) -> None:
    records = coco(two=False)
    for record in records:
        xy = np.array(record["keypoints"]).reshape(17, 3) / [*SIZE, 1]
        record["keypoints"] = xy.ravel().tolist()
    with pytest.raises(StructDiffError, match="normalised"):
        read_keypoint_json(saved(tmp_path, records), image_size=SIZE)


def test_keypoints_in_another_order_are_refused(tmp_path: Path) -> None:
    with pytest.raises(StructDiffError, match="looks like coco17"):
        read_keypoint_json(saved(tmp_path, coco(two=False)), layout="h36m17")


def test_a_person_who_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StructDiffError, match=r"no person 9 .*there are 3, 7"):
        read_keypoint_json(saved(tmp_path, coco()), person=9)


@pytest.mark.parametrize("kept", [0, 1, 100, 2000])
def test_files_that_are_cut_off_are_told(tmp_path: Path, kept: int) -> None:
    whole = saved(tmp_path, coco()).read_bytes()
    (tmp_path / "cut.json").write_bytes(whole[:kept])
    with pytest.raises(StructDiffError, match=r"cut\.json is (no complete JSON|empty)"):
        read_keypoint_json(tmp_path / "cut.json")


def test_files_that_are_no_text_are_told(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b"\x89PNG\xff\xfe")
    with pytest.raises(StructDiffError, match="no text file"):
        read_keypoint_json(tmp_path / "a.json")
    with pytest.raises(StructDiffError, match="there is no file"):
        read_keypoint_json(tmp_path / "none.json")
