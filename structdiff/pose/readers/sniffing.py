"""Keypoints from whatever file they are in: its first bytes and its keys say which."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from structdiff.errors import StructDiffError
from structdiff.pose.data import PoseClip, PoseDataset
from structdiff.pose.readers._common import Mask, converted, gap_notes, with_gaps_filled
from structdiff.pose.readers.keypoint_json import read_keypoint_json
from structdiff.pose.readers.mpi_inf_3dhp import read_mpi_inf_3dhp, read_mpi_inf_3dhp_npz
from structdiff.pose.readers.tables import read_poses
from structdiff.pose.readers.videopose3d import read_videopose3d
from structdiff.pose.skeletons import Skeleton, get_skeleton

_KNOWN = (
    "JSON of a detector (COCO, MMPose, AlphaPose), npz or csv of this package, npz of VideoPose3D "
    "or P-STMO, or annot_data.mat of MPI-INF-3DHP"
)


def read_keypoints(
    path: str | Path,
    *,
    skeleton: str | Skeleton | None = None,
    image_size: tuple[int, int] | None = None,
    person: int | str | None = None,
    layout: str | Skeleton | None = None,
    fps: float | None = None,
    max_gap: int = 15,
    check: bool = True,
) -> PoseDataset:
    """2D keypoints of a file of any known kind.

    Parameters
    ----------
    path
        JSON, npz, npy, csv or mat.
    skeleton
        To convert the joints to; they stay as they are if None.
    image_size
        Width and height in pixels, where the file does not say.
    person
        Track id of the person wanted, in a detector's JSON.
    layout
        Order of the file's joints, where it does not say; COCO's for JSON.
    fps
        Frames per second, where the file does not say.
    max_gap
        Longest run of frames in which a missing joint is interpolated, with confidence 0; longer
        ones are NaN. The notes count both.
    check
        Whether units, joint order and axes are checked against the numbers.

    Raises
    ------
    StructDiffError
        If the file is missing, empty, cut off or of no known kind, holds no keypoints, another
        number of them, or infinite ones, or fails a check; names file, record and remedy.
    """
    path = Path(path)
    kind = kind_of(path)
    if kind == "json":
        return read_keypoint_json(
            path,
            layout=layout,
            skeleton=skeleton,
            image_size=image_size,
            person=person,
            fps=fps,
            max_gap=max_gap,
            check=check,
        )
    if person is not None:
        raise StructDiffError(
            f"{path} has one person in every clip: leave person out, it chooses among those in "
            "a detector's JSON"
        )
    if kind == "table":
        data = read_poses(path, layout=layout, image_size=image_size, fps=fps, check=check)
    else:
        if layout is not None:
            raise StructDiffError(f"{path} states the order of its joints: leave layout out")
        data = _DATASETS[kind](path, image_size, fps, check)
    if all(clip.keypoints is None for clip in data):
        raise StructDiffError(f"{path} holds 3D poses only: give a file of 2D keypoints")
    data = _filled(data, max_gap)
    return data if skeleton is None else converted(data, get_skeleton(skeleton))


def kind_of(path: Path) -> str:
    """What a file holds by its content: json, table, videopose3d, 3dhp or 3dhp npz.

    Raises
    ------
    StructDiffError
        If it is missing, empty or of no known kind.
    """
    try:
        with path.open("rb") as file:
            start = file.read(512)
    except FileNotFoundError as error:
        raise StructDiffError(f"there is no file {path}") from error
    except OSError as error:
        raise StructDiffError(f"{path} cannot be read: {error}") from error
    if not start.strip():
        raise StructDiffError(f"{path} is empty: write it again")
    if start.startswith(b"PK"):
        return _archive_kind(path)
    if start.startswith((b"\x89HDF", b"MATLAB")):
        return "3dhp"
    if start.startswith(b"\x93NUMPY") or path.suffix == ".csv":
        return "table"
    if start.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] in (b"{", b"[") or path.suffix == ".json":
        return "json"
    raise StructDiffError(f"{path} is no file of a known kind: expected {_KNOWN}")


def _archive_kind(path: Path) -> str:
    """What the keys of an archive say; one that is damaged is left to the reader of tables."""
    try:
        with zipfile.ZipFile(path) as archive:
            keys = {name.removesuffix(".npy").split("/")[0] for name in archive.namelist()}
    except zipfile.BadZipFile:
        return "table"
    if keys & {"positions_2d", "positions_3d"}:
        return "videopose3d"
    return "3dhp npz" if "data" in keys else "table"


_Reader = Callable[[Path, tuple[int, int] | None, float | None, bool], PoseDataset]
_DATASETS: dict[str, _Reader] = {
    "videopose3d": lambda path, size, fps, check: read_videopose3d(
        path, image_size=size, fps=fps, check=check
    ),
    "3dhp": lambda path, size, fps, check: _timed(read_mpi_inf_3dhp(path, check=check), fps),
    "3dhp npz": lambda path, size, fps, check: _timed(
        read_mpi_inf_3dhp_npz(path, check=check), fps
    ),
}
"""The sets whose files state what they hold; those of MPI-INF-3DHP state their image size too."""


def _timed(data: PoseDataset, fps: float | None) -> PoseDataset:
    return data if fps is None else replace(data, clips=tuple(replace(c, fps=fps) for c in data))


def _filled(data: PoseDataset, max_gap: int) -> PoseDataset:
    """Missing joints, which are NaN, interpolated where the gap is short."""
    clips: list[PoseClip] = []
    notes: list[str] = []
    for clip in data:
        if clip.keypoints is None or np.isfinite(clip.keypoints).all():
            clips.append(clip)
            continue
        seen: Mask = np.asarray(np.isfinite(clip.keypoints).all(-1))
        values, filled = with_gaps_filled(np.nan_to_num(clip.keypoints), seen, max_gap)
        sure = np.ones(seen.shape) if clip.confidence is None else clip.confidence
        clips.append(replace(clip, keypoints=values, confidence=np.where(seen, sure, 0.0)))
        notes += gap_notes(clip.name, seen, filled, max_gap)
    return PoseDataset(tuple(clips), data.skeleton, (*data.notes, *notes))
