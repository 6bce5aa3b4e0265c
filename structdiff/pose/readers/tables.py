r"""Poses in plain files that say what they hold: NumPy archives and CSV tables.

A number is only a position once the file states its unit, axes and joint order:

=====================  ==============================================================
``format``             ``"structdiff.poses/1"``
``skeleton``           name; ``joints`` (J,) names, ``parents`` (J,), ``left``, ``right``
``unit``, ``axes``     of 3D joints: ``"m"`` or ``"mm"``; ``"camera"`` or ``"world"`` (z up)
``origin``             ``"absolute"``, or ``"root"`` where every pose is relative to its root
``poses``              (T, J, 3);  ``hypotheses`` (H, T, J, 3), ``std`` (T, J, 3), ``root`` (T, 3)
``keypoints``          (T, J, 2) pixels, y down;  ``confidence`` (T, J)
``fps, image_size``    frames per second; (width, height)
``camera``             JSON of :meth:`structdiff.pose.cameras.Camera.to_dict`
``valid``              (T,) frames that count;  ``subject``, ``action`` texts
=====================  ==============================================================

Several clips have their names in ``clips`` and their arrays in ``<name>/<key>``. In CSV the
statements are comment lines ``# unit: m`` at the top; the table is long (``clip, frame, joint, x,
y[, z][, confidence]``) or wide (``frame, LHip_x, LHip_y, ...``). No file holds a pickle.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import numpy.typing as npt

from structdiff.errors import StructDiffError
from structdiff.pose.cameras import Camera
from structdiff.pose.data import Axes, PoseClip, PoseDataset
from structdiff.pose.readers._common import finished
from structdiff.pose.readers._csv import read_csv
from structdiff.pose.skeletons import SKELETONS, Skeleton, get_skeleton, joint_order

Array = npt.NDArray[np.floating]
Unit = Literal["m", "mm"]

_METRES = {"m": 1.0, "mm": 0.001}
_LAST = {"keypoints": 2, "poses": 3}
_SHARED = (
    *("format", "skeleton", "joints", "parents", "left", "right", "unit", "axes", "origin"),
    *("fps", "image_size"),
)


def read_poses(
    path: str | Path,
    *,
    layout: str | Skeleton | None = None,
    skeleton: str | Skeleton | None = None,
    unit: Unit | None = None,
    axes: Axes | None = None,
    fps: float | None = None,
    image_size: tuple[int, int] | None = None,
    check: bool = True,
) -> PoseDataset:
    """Read 2D or 3D joints from ``.npz`` or ``.csv``, or a bare array from ``.npy``.

    What the file states is used; what it does not state must be given. 3D joints come back in
    metres.

    Parameters
    ----------
    path
        A file that :func:`~structdiff.pose.readers.write_poses` made, or one of your own with the
        same keys or columns.
    layout
        Order of the joints in the file.
    skeleton
        To convert the joints to.
    unit, axes
        Of 3D joints: ``"m"`` or ``"mm"``, ``"camera"`` or ``"world"``.
    fps, image_size
        Of all clips.
    check
        Whether units, joint order and axes are checked against the numbers.

    Raises
    ------
    StructDiffError
        If the file is missing, damaged, has no such arrays, does not state what it must, states
        otherwise than the arguments, or fails a check; names the file and the record.
    """
    path = Path(path)
    content, names = _content(path)
    stated = {k: v for k, v in content.items() if k in _SHARED}
    tree, order = _layout(path, stated, layout)
    spatial = any(key.rpartition("/")[2] == "poses" for key in content)
    scale = _metres(path, stated.get("unit"), unit) if spatial else 1.0
    given = {"axes": axes, "fps": fps, "image_size": image_size}
    clips, relative = [], False
    for name in names:
        record = {**stated, **_record(content, name, len(names))}
        try:
            clips.append(_clip(path, name, record, tree, order, scale, given))
        except (TypeError, KeyError, ValueError) as error:
            raise StructDiffError(
                error
                if isinstance(error, StructDiffError) and str(path) in str(error)
                else f"clip {name!r} of {path} is damaged: {error}"
            ) from error
        relative = relative or record.get("origin") == "root"
    notes = ["poses are relative to their roots"] if relative else []
    return finished(
        clips, tree, skeleton=skeleton, notes=notes, check=check, cameras=not relative, source=path
    )


def read_hypotheses(path: str | Path) -> dict[str, Array]:
    """Hypotheses of every clip in a file of lifted clips, metres (H, T, J, 3).

    Raises
    ------
    StructDiffError
        If the file is no such archive or holds none.
    """
    path = Path(path)
    content, names = _content(path)
    found = {name: _record(content, name, len(names)).get("hypotheses") for name in names}
    kept = {name: value for name, value in found.items() if value is not None}
    if not kept:
        raise StructDiffError(
            f"{path} holds no hypotheses: a lifted clip that is saved as .npz brings them"
        )
    scale = _metres(path, content.get("unit"), None)
    return {name: scale * np.asarray(value) for name, value in kept.items()}


def _content(path: Path) -> tuple[dict[str, Any], list[str]]:
    """Arrays and texts of the file by key, and the names of its clips."""
    if not path.is_file():
        raise StructDiffError(f"there is no file {path}")
    if path.suffix == ".csv":
        return read_csv(path)
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            content = {"poses" if loaded.shape[-1:] == (3,) else "keypoints": loaded}
        else:
            with loaded as archive:
                content = {key: archive[key] for key in archive.files}
    except Exception as error:  # whatever a damaged archive makes NumPy raise
        if "allow_pickle" in str(error):
            raise StructDiffError(
                f"{path} holds pickled objects: read_videopose3d and read_mpi_inf_3dhp_npz read "
                "those, convert_to_plain_npz makes a plain archive of them"
            ) from error
        raise StructDiffError(
            f"{path} is no complete NumPy archive ({error}): copy or write it again"
        ) from error
    content = {k: v.item() if v.ndim == 0 else v for k, v in content.items()}
    return content, [str(n) for n in content.get("clips", [path.stem])]


def _record(content: Mapping[str, Any], name: str, count: int) -> dict[str, Any]:
    """The keys of one clip."""
    prefix = f"{name}/"
    record = {k[len(prefix) :]: v for k, v in content.items() if k.startswith(prefix)}
    return record if record or count > 1 else dict(content)


def _layout(
    path: Path, stated: Mapping[str, Any], layout: str | Skeleton | None
) -> tuple[Skeleton, list[int] | None]:
    """The skeleton of the file's joints, and where they stand if the file lists them by name."""
    tree = None if layout is None else get_skeleton(layout)
    if tree is None and "parents" in stated:
        tree = Skeleton.from_dict({**stated, "name": stated.get("skeleton", path.stem)})
    if tree is None and "skeleton" in stated:
        tree = get_skeleton(str(stated["skeleton"]))
    if tree is not None and stated.get("skeleton", tree.name) != tree.name:
        raise StructDiffError(
            f"{path} states skeleton {stated['skeleton']!r}, not {tree.name!r}: leave layout out, "
            "or give skeleton to convert it"
        )
    if "joints" not in stated:
        if tree is None:
            raise StructDiffError(
                f"{path} does not state the order of its joints: give layout, one of "
                f"{', '.join(SKELETONS)}, or a Skeleton"
            )
        return tree, None
    listed = [str(j) for j in stated["joints"]]
    if tree is None:
        lower = {j.lower() for j in listed}
        fitting = [t for t in SKELETONS.values() if {j.lower() for j in t.joints} <= lower]
        if not fitting:
            raise StructDiffError(
                f"the joints of {path} ({', '.join(listed)}) are those of no known skeleton: give "
                "layout, a Skeleton that names them"
            )
        tree = fitting[0]
    return tree, joint_order(listed, tree)


def _metres(path: Path, stated: Any, given: Any) -> float:
    return _METRES[_stated(path, "unit", stated, given, tuple(_METRES))]


def _stated(path: Path, what: str, stated: Any, given: Any, known: tuple[str, ...]) -> str:
    """What the file or the caller says; they may not disagree."""
    value = given if stated is None else str(stated)
    if value is None:
        raise StructDiffError(
            f"{path} does not state the {what} of its 3D joints: give {what}, "
            f"{' or '.join(repr(k) for k in known)}"
        )
    if value not in known:
        raise StructDiffError(
            f"{what} {value!r} of {path} is unknown: it must be {' or '.join(known)}"
        )
    if given is not None and given != value:
        raise StructDiffError(f"{path} states {what} {value!r}, not {given!r}: leave {what} out")
    return value


def _clip(
    path: Path,
    name: str,
    record: Mapping[str, Any],
    tree: Skeleton,
    order: list[int] | None,
    scale: float,
    given: Mapping[str, Any],
) -> PoseClip:
    arrays = {key: _numbers(path, name, key, record[key]) for key in _LAST if key in record}
    if not arrays:
        raise StructDiffError(
            f"clip {name!r} of {path} has neither poses (T, {len(tree)}, 3) nor keypoints "
            f"(T, {len(tree)}, 2), only {', '.join(sorted(record)) or 'nothing'}"
        )
    if "confidence" in record:
        arrays["confidence"] = np.asarray(record["confidence"])[..., None]
    if order is not None:
        arrays = {key: value[:, order] for key, value in arrays.items()}
    for key, value in arrays.items():
        if value.shape[1] != len(tree):
            raise StructDiffError(
                f"{key} of clip {name!r} of {path} has {value.shape[1]} joints, {tree.name} has "
                f"{len(tree)}: give the layout they are in"
            )
    if "poses" in arrays:
        stated = _stated(path, "axes", record.get("axes"), given["axes"], ("camera", "world"))
        arrays["poses"] = scale * arrays["poses"]
    else:
        stated = "camera"
    facts = {k: given[k] if given[k] is not None else record.get(k) for k in ("fps", "image_size")}
    size, fps = facts["image_size"], facts["fps"]
    return PoseClip(
        name=name,
        keypoints=arrays.get("keypoints"),
        poses=arrays.get("poses"),
        axes=cast(Axes, stated),
        confidence=arrays["confidence"][..., 0] if "confidence" in arrays else None,
        camera=Camera.from_dict(json.loads(record["camera"])) if "camera" in record else None,
        image_size=None if size is None else (int(size[0]), int(size[1])),
        fps=None if fps is None else float(fps),
        subject=str(record.get("subject", "")),
        action=str(record.get("action", "")),
        valid=np.asarray(record["valid"], dtype=np.bool_) if "valid" in record else None,
    )


def _numbers(path: Path, name: str, key: str, value: Any) -> Array:
    array = np.asarray(value)
    last = _LAST[key]
    if array.dtype.kind not in "fiu" or array.ndim != 3 or array.shape[-1] != last:
        raise StructDiffError(
            f"{key} of clip {name!r} of {path} must be numbers (T, J, {last}), got shape "
            f"{array.shape} of {array.dtype}"
        )
    if np.isinf(array).any():
        raise StructDiffError(
            f"{key} of clip {name!r} of {path} are infinite in frame "
            f"{int(np.argwhere(np.isinf(array))[0][0])}: mark missing joints by NaN"
        )
    return array if array.dtype.kind == "f" else array.astype(np.float64)
