"""One person's track out of the people that a detector found in every frame."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import gcd
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from structdiff.errors import StructDiffError
from structdiff.pose.data import PoseClip
from structdiff.pose.readers._common import gap_notes, with_gaps_filled

Array = npt.NDArray[np.floating]

_SPARSEST = 50
"""Frame numbers that span so many times the frames there are count something else."""


@dataclass(frozen=True, eq=False)
class Detection:
    """One person in one frame: joints (J, 2) in pixels, their scores (J,), a score, a track id."""

    record: str
    frame: int
    joints: Array
    scores: Array
    score: float
    track: str | None


def track(
    name: str,
    found: Sequence[Detection],
    frames: Sequence[int],
    *,
    person: int | str | None,
    max_gap: int,
    source: Path,
    image_size: tuple[int, int] | None,
    fps: float | None,
) -> tuple[PoseClip, list[str]]:
    """A clip of one person, and notes on what was chosen and filled.

    Parameters
    ----------
    name
        Of the clip.
    found
        All people in all frames.
    frames
        Numbers of all frames, with people or without.
    person
        Track id; the one with the highest score in every frame if None.
    max_gap
        Longest run of frames that is interpolated.
    source, image_size, fps
        File, for messages; of the clip.

    Raises
    ------
    StructDiffError
        If nobody was found, there is no such track, or the frames are not those of one video.
    """
    if not found:
        raise StructDiffError(f"{source}: nobody was found in any frame of {name!r}")
    crowded = len(found) - len({d.frame for d in found})
    notes = []
    if person is not None:
        found = _of_track(name, found, str(person), source)
    best: dict[int, Detection] = {}
    for detection in found:
        if detection.frame not in best or detection.score > best[detection.frame].score:
            best[detection.frame] = detection
    if person is None and crowded:
        tracks = [best[frame].track for frame in sorted(best)]
        changes = sum(a != b for a, b in pairwise(tracks))
        notes.append(
            f"clip {name!r}: some frames have more than one person ({crowded} detections too "
            "many), the one with the highest score was taken"
            + (f"; its track id changes {changes} times: choose one with person" * bool(changes))
        )
    numbers, step = _grid(name, [*frames, *best], source)
    if step > 1:
        notes.append(f"clip {name!r}: only every {step}th frame is listed, and taken as the next")
    joints = next(iter(best.values())).joints.shape[0]
    values = np.zeros((len(numbers), joints, 2))
    scores = np.zeros((len(numbers), joints))
    at = [(number - numbers[0]) // step for number in best]
    values[at] = np.stack([d.joints for d in best.values()])
    scores[at] = np.stack([d.scores for d in best.values()])
    # A detector puts 0, 0 with score 0 where it sees no joint, and so are frames without anybody.
    seen = (values != 0).any(-1) | (scores > 0)
    filled_values, filled = with_gaps_filled(values, seen, max_gap)
    notes += gap_notes(name, seen, filled, max_gap)
    clip = PoseClip(
        name=name,
        keypoints=filled_values,
        confidence=np.where(seen, scores, 0.0),
        image_size=image_size,
        fps=fps,
    )
    return clip, notes


def _of_track(name: str, found: Sequence[Detection], person: str, source: Path) -> list[Detection]:
    tracks = sorted({d.track for d in found if d.track is not None})
    if person not in tracks:
        told = f"there are {', '.join(tracks)}" if tracks else "its people have no track ids"
        raise StructDiffError(f"{source}: no person {person} in {name!r}: {told}")
    return [d for d in found if d.track == person]


def _grid(name: str, frames: Sequence[int], source: Path) -> tuple[range, int]:
    """All frames from the first to the last, and the step between them."""
    numbers = sorted(set(frames))
    step = gcd(*(b - a for a, b in pairwise(numbers))) or 1
    grid = range(numbers[0], numbers[-1] + 1, step)
    if len(grid) > _SPARSEST * len(numbers):
        raise StructDiffError(
            f"{source}: the frames of {name!r} run from {numbers[0]} to {numbers[-1]} in steps of "
            f"{step}, but only {len(numbers)} are listed: these are no frame numbers of one video; "
            "give image ids, or file names, that count its frames"
        )
    return grid, step


def as_numbers(values: Any, record: str) -> Array:
    """An array of finite numbers.

    Raises
    ------
    StructDiffError
        If it is none; names the record.
    """
    try:
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise StructDiffError(f"{record} has keypoints that are no numbers ({error})") from error
    if not np.isfinite(array).all():
        raise StructDiffError(
            f"{record} has keypoints that are NaN or infinite: write 0, 0 with score 0 for joints "
            "that were not seen, or leave the record out"
        )
    return array
