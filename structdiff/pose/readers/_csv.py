"""Poses as CSV tables, long or wide; what the numbers mean stands in comment lines at the top."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from structdiff.errors import StructDiffError
from structdiff.pose.cameras import Camera
from structdiff.pose.skeletons import SKELETONS, Skeleton
from structdiff.storage import write_whole

Array = npt.NDArray[np.floating]

_WIDE = re.compile(r"(.+)_(x|y|z|confidence|score|likelihood)", re.IGNORECASE)
_SURE = ("confidence", "score", "likelihood")
_NOT_STATED = ("name", "keypoints", "poses", "confidence", "valid", "hypotheses", "std", "root")
_SPARSEST = 50
"""Frame numbers that span so many times the frames there are count something else."""


# ---------------------------------------------------------------- writing


def write_csv(path: Path, records: list[dict[str, Any]], skeleton: Skeleton, form: str) -> None:
    """Write one row per clip, frame and joint: 3D joints where all clips have them, else 2D.

    Raises
    ------
    StructDiffError
        If some clips have only 3D and some only 2D joints.
    """
    import pandas as pd

    kind = next((k for k in ("poses", "keypoints") if all(k in r for r in records)), None)
    if kind is None:
        raise StructDiffError(f"{path} holds 3D or 2D joints of all clips: write two files")
    tree = skeleton.name if SKELETONS.get(skeleton.name) == skeleton else skeleton.to_dict()
    head = {"format": form, "skeleton": tree}
    if kind == "poses":
        head["unit"] = "m"
    lines = [f"# {k}: {v if isinstance(v, str) else json.dumps(v)}" for k, v in head.items()]
    lines += [f"# clip: {json.dumps(_statement(record), default=float)}" for record in records]
    table = pd.concat([_rows(record, kind, skeleton) for record in records], ignore_index=True)
    rows = table.to_csv(index=False, lineterminator="\n")
    write_whole(path, f"{chr(10).join(lines)}\n{rows}".encode())


def _statement(record: dict[str, Any]) -> dict[str, Any]:
    """What holds for the whole clip."""
    told = {"name": record["name"]}
    for key, value in record.items():
        if key not in _NOT_STATED and value not in ("", None):
            told[key] = value.to_dict() if isinstance(value, Camera) else value
    return told


def _rows(record: dict[str, Any], kind: str, skeleton: Skeleton) -> Any:
    import pandas as pd

    values = record[kind]
    frames, joints, dims = values.shape
    columns: dict[str, Any] = {
        "clip": record["name"],
        "frame": np.repeat(np.arange(frames), joints),
        "joint": np.tile(np.array(skeleton.joints), frames),
        **{axis: values[..., i].ravel() for i, axis in zip(range(dims), "xyz", strict=False)},
    }
    if kind == "keypoints" and "confidence" in record:
        columns["confidence"] = record["confidence"].ravel()
    if "valid" in record:
        columns["valid"] = np.repeat(record["valid"].astype(int), joints)
    return pd.DataFrame(columns)


# ---------------------------------------------------------------- reading


def read_csv(path: Path) -> tuple[dict[str, Any], list[str]]:
    """Statements and arrays of a table by key, and the names of its clips.

    Raises
    ------
    StructDiffError
        If it is no such table, or a value, frame or joint in it is wrong; says in which line.
    """
    content, clips = _statements(path)
    table = _table(path)
    names = [str(c).lower() for c in table.columns]
    table.columns = names
    if {"frame", "joint", "x", "y"} <= set(names):
        arrays, order = _long(path, table)
    elif any(_WIDE.fullmatch(n) for n in names):
        arrays, order = _wide(path, table)
    else:
        raise StructDiffError(
            f"{path} has the columns {', '.join(names)}: expected clip, frame, joint, x, y[, z]"
            "[, confidence], or frame and <joint>_x, <joint>_y[, <joint>_z] for every joint"
        )
    if order and "joints" not in content:
        content["joints"] = np.asarray(order)
    for clip, values in arrays.items():
        content |= {f"{clip}/{k}": v for k, v in {**clips.get(clip, {}), **values}.items()}
    return content, list(arrays)


def _statements(path: Path) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """The comment lines: of the file, and of each clip."""
    told: dict[str, Any] = {}
    clips: dict[str, dict[str, Any]] = {}
    with path.open(encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, 1):
            if not line.startswith("#"):
                break
            key, colon, text = line[1:].strip().partition(":")
            if not colon:
                continue
            value: Any = text.strip()
            try:
                if value.startswith("{"):
                    value = json.loads(value)
                if key == "image_size":
                    value = [int(v) for v in re.split(r"[ ,x]+", value)]
                if key == "clip":
                    clip = dict(value)
                    clips[str(clip.pop("name"))] = clip
                elif key == "skeleton" and isinstance(value, dict):
                    told |= {**value, "skeleton": value["name"]}
                else:
                    told[key.strip()] = value
            except (ValueError, KeyError, TypeError) as error:
                raise StructDiffError(
                    f"line {number} of {path} states nothing readable ({error}): {line.strip():.80}"
                ) from error
    for clip in clips.values():
        if "camera" in clip:
            clip["camera"] = json.dumps(clip["camera"])
    return told, clips


def _table(path: Path) -> Any:
    import pandas as pd

    try:
        table = pd.read_csv(path, comment="#", skipinitialspace=True, keep_default_na=True)
    except (ValueError, UnicodeDecodeError) as error:  # pandas' own errors are ValueErrors
        raise StructDiffError(
            f"{path} is no table: {str(error).strip()}; expected CSV with a line of column names"
        ) from error
    if not len(table):
        raise StructDiffError(f"{path} has no rows: nothing was written into it")
    return table


def _long(path: Path, table: Any) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """One row per clip, frame and joint."""
    import pandas as pd

    table["clip"] = table["clip"].astype(str) if "clip" in table else path.stem
    joints = pd.to_numeric(table["joint"], errors="coerce")
    numbered = bool(joints.notna().all())
    if numbered:
        table["joint"] = joints.astype(int)
    order = sorted(table["joint"].unique()) if numbered else list(table["joint"].unique())
    index = {joint: i for i, joint in enumerate(order)}
    at = table["joint"].map(index).to_numpy()
    frames = _frame_numbers(path, table["frame"])
    columns = [c for c in ("x", "y", "z") if c in table]
    sure = [c for c in table.columns if c in _SURE][:1]
    numbers = np.stack([_column(path, table, c) for c in (*columns, *sure)], axis=-1)
    valid = _column(path, table, "valid") > 0 if "valid" in table else None
    clips: dict[str, dict[str, Any]] = {}
    for clip, rows in table.groupby("clip", sort=False).indices.items():
        spot = (frames[rows] - frames[rows].min(), at[rows])
        length = _length(path, str(clip), frames[rows])
        times = np.zeros((length, len(order)), dtype=int)
        np.add.at(times, spot, 1)
        if (times > 1).any():
            frame, joint = np.argwhere(times > 1)[0]
            raise StructDiffError(
                f"clip {clip!r} of {path} lists joint {order[joint]} of frame "
                f"{frame + frames[rows].min()} twice: give one person per clip"
            )
        values = np.full((length, len(order), numbers.shape[1]), np.nan)
        values[spot] = numbers[rows]
        clips[str(clip)] = _named(values, len(columns), bool(sure))
        if valid is not None:
            marks = np.zeros(length, dtype=np.bool_)
            marks[spot[0]] = valid[rows]
            clips[str(clip)]["valid"] = marks
    return clips, [] if numbered else [str(o) for o in order]


def _wide(path: Path, table: Any) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """One row per clip and frame; the columns of a joint have its name."""
    parts = {c: m.groups() for c in table.columns if (m := _WIDE.fullmatch(c))}
    order = list(dict.fromkeys(joint for joint, _ in parts.values()))
    kinds = [k for k in ("x", "y", "z", *_SURE) if any(kind == k for _, kind in parts.values())]
    lacking = [f"{j}_{k}" for j in order for k in kinds if (j, k) not in parts.values()]
    if lacking:
        raise StructDiffError(f"{path} has no column {', '.join(lacking[:5])}")
    sure = kinds[-1] in _SURE
    numbers = np.stack(
        [np.stack([_column(path, table, f"{j}_{k}") for k in kinds], axis=-1) for j in order],
        axis=1,
    )
    frames = _frame_numbers(path, table["frame"]) if "frame" in table else np.arange(len(table))
    owner = table["clip"].astype(str) if "clip" in table else np.full(len(table), path.stem)
    if "frame" not in table and "clip" in table:
        frames = table.groupby("clip").cumcount().to_numpy()
    clips = {}
    for clip in dict.fromkeys(owner):
        rows = np.flatnonzero(np.asarray(owner) == clip)
        own = frames[rows]
        if len(np.unique(own)) < len(own):
            raise StructDiffError(f"clip {clip!r} of {path} lists a frame twice")
        values = np.full((_length(path, str(clip), own), *numbers.shape[1:]), np.nan)
        values[own - own.min()] = numbers[rows]
        clips[str(clip)] = _named(values, len(kinds) - sure, sure)
    return clips, order


def _named(values: Array, dims: int, sure: bool) -> dict[str, Any]:
    found: dict[str, Any] = {"poses" if dims == 3 else "keypoints": values[..., :dims]}
    if sure and dims == 2:
        found["confidence"] = np.nan_to_num(values[..., -1])
    return found


def _length(path: Path, clip: str, frames: Any) -> int:
    length = int(frames.max() - frames.min()) + 1
    if length > _SPARSEST * len(np.unique(frames)):
        raise StructDiffError(
            f"the frames of clip {clip!r} of {path} run from {frames.min()} to {frames.max()}, "
            f"but only {len(np.unique(frames))} are listed: number them one by one"
        )
    return length


def _frame_numbers(path: Path, column: Any) -> Any:
    numbers = _numbers(path, column, "frame")
    whole = np.isfinite(numbers) & (numbers == np.round(numbers))
    if not whole.all():
        raise StructDiffError(
            f"row {int(np.argmin(whole)) + 1} of {path} has the frame "
            f"{column.iloc[int(np.argmin(whole))]!r}: frames are whole numbers"
        )
    return numbers.astype(np.int64)


def _column(path: Path, table: Any, name: str) -> Array:
    return _numbers(path, table[name], name)


def _numbers(path: Path, column: Any, name: str) -> Array:
    """A column of numbers; empty cells are NaN."""
    import pandas as pd

    numbers: Array = pd.to_numeric(column, errors="coerce").to_numpy(np.float64)
    wrong = np.isnan(numbers) & column.notna().to_numpy()
    if wrong.any():
        row = int(np.argmax(wrong))
        raise StructDiffError(
            f"row {row + 1} of {path} has {column.iloc[row]!r} for {name}: expected a number"
        )
    return numbers
