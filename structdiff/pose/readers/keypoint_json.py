r"""2D keypoints from detectors' JSON: COCO results and annotations, MMPose, AlphaPose.

====================================  ============================================================
COCO results, AlphaPose               ``[{image_id, category_id, keypoints: [x1, y1, s1, ...],
                                      score}, ...]``, a track in ``track_id`` or ``idx``
COCO annotations                      ``{images: [{id, file_name, width, height}], annotations:
                                      [{image_id, keypoints: [x1, y1, v1, ...]}]}``
MMPose, image                         ``[{keypoints: [[x, y], ...], keypoint_scores}, ...]``
MMPose, images                        a list of such lists
MMPose, video                         ``[{frame_id, instances: [...]}, ...]``
MMPose, demo scripts                  ``{meta_info, instance_info: ...}``
====================================  ============================================================

An ``image_id`` is a frame number, or a name whose last digits are one and whose rest is the video.
In frame n the person is the one of the highest score, or of a track; between the sights at
:math:`a < n < b` a joint lies on :math:`x_a + \frac{n - a}{b - a}(x_b - x_a)`, confidence 0.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from structdiff.errors import StructDiffError
from structdiff.pose.data import PoseDataset
from structdiff.pose.readers._common import finished
from structdiff.pose.readers._people import Detection, as_numbers, track
from structdiff.pose.skeletons import COCO_17, SKELETONS, Skeleton, get_skeleton

_TRACKS = ("track_id", "tracking_id", "instance_id", "person_id", "idx")
_SIDES = {"left": "L", "right": "R"}
_Videos = dict[str, tuple[list[int], list[Detection]]]
"""Frame numbers and people, by video."""


def read_keypoint_json(
    path: str | Path,
    *,
    layout: str | Skeleton | None = None,
    skeleton: str | Skeleton | None = None,
    image_size: tuple[int, int] | None = None,
    person: int | str | None = None,
    fps: float | None = None,
    max_gap: int = 15,
    check: bool = True,
) -> PoseDataset:
    """Read one person's keypoints, a clip per video.

    Parameters
    ----------
    path
        The file.
    layout
        Order of its joints, where it does not say; COCO's if None.
    skeleton
        To convert the joints to; they stay as they are if None.
    image_size
        Width and height in pixels, where the file does not say.
    person
        Track id of the person wanted; if None, the highest score in every frame.
    fps
        Frames per second.
    max_gap
        Longest run of frames without the person, or a joint, that is interpolated; longer ones
        are NaN. The notes count both.
    check
        Whether pixels, joint order and axes are checked.

    Raises
    ------
    StructDiffError
        If the file is missing, cut off, empty, of another kind, has another number of keypoints or
        some that are no finite numbers; names file, record and remedy.
    """
    path = Path(path)
    content = _load(path)
    tree = _layout(content, layout, path)
    size = image_size
    if isinstance(content, Mapping) and {"images", "annotations"} <= set(content):
        videos, stated = _annotations(content, tree, path)
        size = stated if size is None else size
    elif isinstance(content, list) and content and _is_result(content[0]):
        videos = _results(content, tree, path)
    else:
        videos = {"": _mmpose(content, tree, path)}
    clips, notes = [], []
    for name, (frames, found) in videos.items():
        clip, told = track(
            name or path.stem,
            found,
            frames,
            person=person,
            max_gap=max_gap,
            source=path,
            image_size=size,
            fps=fps,
        )
        clips.append(clip)
        notes += told
    return finished(clips, tree, skeleton=skeleton, notes=notes, check=check, source=path)


def _load(path: Path) -> Any:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise StructDiffError(f"there is no file {path}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise StructDiffError(f"{path} is no text file: {error}") from error
    if not text.strip():
        raise StructDiffError(f"{path} is empty: run the detector again")
    try:
        return json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise StructDiffError(
            f"{path} is no complete JSON ({error}): it was cut off or edited, write it again"
        ) from error


def _layout(content: Any, layout: str | Skeleton | None, path: Path) -> Skeleton:
    """The skeleton that was stated, or that the file names, or COCO's."""
    if layout is not None:
        return get_skeleton(layout)
    names = _joint_names(content)
    if not names:
        return COCO_17
    for tree in SKELETONS.values():
        if names == [j.lower() for j in tree.joints]:
            return tree
    raise StructDiffError(
        f"{path} names its keypoints {', '.join(names)}, which is the order of no known skeleton: "
        "give layout, a Skeleton with these joints"
    )


def _joint_names(content: Any) -> list[str]:
    """Names of the keypoints in the file's own description, as this package spells them."""
    names: Any = ()
    if isinstance(content, Mapping):
        meta = content.get("meta_info") or {}
        by_number = meta.get("keypoint_id2name") if isinstance(meta, Mapping) else None
        if isinstance(by_number, Mapping):
            names = [name for _, name in sorted(by_number.items(), key=lambda kv: int(kv[0]))]
        kinds = content.get("categories")
        if isinstance(kinds, list) and kinds and isinstance(kinds[0], Mapping):
            names = kinds[0].get("keypoints", ())
    spelt = []
    for name in names:
        parts = re.split(r"[_ ]", str(name).lower())
        sides = "".join(_SIDES[p] for p in parts if p in _SIDES)
        spelt.append((sides + "".join(p for p in parts if p not in _SIDES)).lower())
    return spelt


# ---------------------------------------------------------------- COCO


def _is_result(record: Any) -> bool:
    return isinstance(record, Mapping) and "image_id" in record


def _results(content: list[Any], tree: Skeleton, path: Path) -> _Videos:
    videos: _Videos = {}
    for number, record in enumerate(content):
        where = f"record {number} of {path}"
        if not _is_result(record) or "keypoints" not in record:
            raise StructDiffError(f"{where} has no image_id or no keypoints: {record!s:.80}")
        where = f"record {number} (image_id {record['image_id']!r}) of {path}"
        video, frame = _frame(record["image_id"], where)
        frames, found = videos.setdefault(video, ([], []))
        frames.append(frame)
        found.append(_triples(record, frame, tree, where))
    return videos


def _annotations(
    content: Mapping[str, Any], tree: Skeleton, path: Path
) -> tuple[_Videos, tuple[int, int] | None]:
    """Annotations, and the size of the images if they all have one."""
    images, sizes = {}, set()
    for number, image in enumerate(content["images"]):
        where = f"image {number} of {path}"
        if not isinstance(image, Mapping) or "id" not in image:
            raise StructDiffError(f"{where} has no id: {image!s:.80}")
        images[image["id"]] = _frame(image.get("file_name", image["id"]), where)
        if "width" in image and "height" in image:
            sizes.add((int(image["width"]), int(image["height"])))
    videos: _Videos = {}
    for video, frame in images.values():
        videos.setdefault(video, ([], []))[0].append(frame)
    for number, record in enumerate(content["annotations"]):
        where = f"annotation {number} of {path}"
        if not _is_result(record) or record["image_id"] not in images:
            raise StructDiffError(f"{where} belongs to none of its images: {record!s:.80}")
        if not record.get("keypoints") or record.get("num_keypoints") == 0:
            continue  # a crowd, or a person without keypoints
        video, frame = images[record["image_id"]]
        found = _triples(record, frame, tree, where)
        visible = (found.scores > 0).astype(np.float64)  # 1 occluded, 2 visible: both annotated
        joints = np.where(visible[:, None] > 0, found.joints, 0.0)
        videos[video][1].append(Detection(where, frame, joints, visible, found.score, found.track))
    return videos, sizes.pop() if len(sizes) == 1 else None


def _triples(record: Mapping[str, Any], frame: int, tree: Skeleton, where: str) -> Detection:
    """A person whose keypoints are x1, y1, s1, x2, ..."""
    values = as_numbers(record["keypoints"], where)
    if values.size != 3 * len(tree):
        raise _another_number(where, values.size / 3, tree)
    values = values.reshape(-1, 3)
    score = _score(record, ("score", "bbox_score"), values[:, 2], where)
    return Detection(where, frame, values[:, :2], values[:, 2], score, _track_id(record))


def _another_number(where: str, count: float, tree: Skeleton) -> StructDiffError:
    return StructDiffError(
        f"{where} has {count:g} keypoints, {tree.name} has {len(tree)}: give the layout they are "
        "in, or a detector of that layout"
    )


def _frame(image_id: Any, where: str) -> tuple[str, int]:
    """Video and frame number of an image."""
    if isinstance(image_id, int):
        return "", image_id
    stem = re.sub(r"\.[A-Za-z]\w*$", "", str(image_id))
    digits = re.search(r"(\d+)\D*$", stem)
    if digits is None:
        raise StructDiffError(
            f"{where} is of image {image_id!r}, which has no number: frames are counted by image "
            "ids, or by the digits in file names"
        )
    return stem[: digits.start()].rstrip("/\\_-. "), int(digits[1])


# ---------------------------------------------------------------- MMPose


def _mmpose(content: Any, tree: Skeleton, path: Path) -> tuple[list[int], list[Detection]]:
    if isinstance(content, Mapping) and "instance_info" in content:
        content = content["instance_info"]
    if isinstance(content, Mapping) and "instances" in content:
        content = [content]
    if not isinstance(content, list) or not content:
        raise StructDiffError(
            f"{path} holds no keypoints of a known kind: expected a list of COCO results "
            "({image_id, keypoints, score}), COCO annotations ({images, annotations}) or MMPose "
            f"instances ({{keypoints, keypoint_scores}}), got {content!s:.60}"
        )
    if all(isinstance(item, Mapping) and "keypoints" in item for item in content):
        content = [content]  # the people in one image
    frames, found = [], []
    for number, item in enumerate(content):
        where = f"frame {number} of {path}"
        frame, people = number, item
        if isinstance(item, Mapping):
            frame, people = item.get("frame_id", number), item.get("instances")
        if not isinstance(people, Sequence) or isinstance(people, str):
            raise StructDiffError(f"{where} has no list of instances: {item!s:.80}")
        if not isinstance(frame, int):
            raise StructDiffError(f"{where} has the frame_id {frame!r}: it must be a whole number")
        frames.append(frame)
        for which, person in enumerate(people):
            found.append(_instance(person, frame, tree, f"instance {which} in {where}"))
    return frames, found


def _instance(person: Any, frame: int, tree: Skeleton, where: str) -> Detection:
    if not isinstance(person, Mapping) or "keypoints" not in person:
        raise StructDiffError(f"{where} has no keypoints: {person!s:.80}")
    joints = as_numbers(person["keypoints"], where)
    if joints.ndim != 2 or joints.shape[-1] < 2:
        raise StructDiffError(f"{where} has keypoints of shape {joints.shape}, expected (J, 2)")
    if len(joints) != len(tree):
        raise _another_number(where, len(joints), tree)
    given = person.get("keypoint_scores", person.get("keypoints_visible"))
    scores = np.ones(len(tree)) if given is None else as_numbers(given, where).ravel()
    if scores.shape != (len(tree),):
        raise StructDiffError(f"{where} has {scores.size} scores for {len(tree)} keypoints")
    score = _score(person, ("bbox_score", "score"), scores, where)
    return Detection(where, frame, joints[:, :2], scores, score, _track_id(person))


def _score(record: Mapping[str, Any], keys: Sequence[str], scores: Any, where: str) -> float:
    """How sure the person is: as stated, else the mean of the joints."""
    for key in keys:
        if record.get(key) is not None:
            return float(as_numbers(record[key], where).ravel()[:1].sum())
    return float(scores.mean())


def _track_id(record: Mapping[str, Any]) -> str | None:
    return next((str(record[k]) for k in _TRACKS if record.get(k) is not None), None)
