r"""Calibrations in Human3.6M's terms, which the user gives.

A JSON file holds a list of cameras for every subject, in the order of the views (``"*"`` is every
other subject)::

    {"S9": [{"id": "54138969", "focal": [1145.0, 1143.8], "centre": [512.5, 515.5],
             "radial": [-0.207, 0.248, -0.003], "tangential": [-0.0009, -0.0014],
             "orientation": [w, x, y, z], "translation": [x, y, z],
             "res_w": 1000, "res_h": 1002}, ...]}

``orientation`` turns camera into world axes, ``translation`` is the centre of the camera in the
world, in metres or, as in Human3.6M, millimetres: one of a studio is between 0.3 and 100 of the
first, and above 300 of the second. VideoPose3D's names (``focal_length``, ``center``,
``radial_distortion``, ``tangential_distortion``) are taken too. In npz the same values stand in
arrays over the views: ``S9/focal`` (4, 2), ``S9/orientation`` (4, 4), ``S9/res_wh`` (4, 2), ...
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from structdiff.errors import StructDiffError
from structdiff.pose.cameras import Camera
from structdiff.pose.numpy_pickle import read_npz

_NAMES = {
    "focal": ("focal", "focal_length", "f_px"),
    "centre": ("centre", "center", "c_px"),
    "radial": ("radial", "radial_distortion", "k"),
    "tangential": ("tangential", "tangential_distortion", "p"),
    "orientation": ("orientation", "quat_wxyz_cam_to_world"),
    "translation": ("translation", "position_m"),
}
_FURTHEST_METRES, _NEAREST_MILLIMETRES = 100.0, 300.0


def read_h36m_cameras(cameras: Any) -> dict[str, list[Camera]]:
    """Cameras of every subject, in the order of the views.

    Parameters
    ----------
    cameras
        A JSON or npz file, or a dictionary of what it holds; cameras may be :class:`Camera`
        already.

    Raises
    ------
    StructDiffError
        If the file cannot be read or a camera lacks a value or has a wrong one; names the camera.
    """
    source = "cameras"
    if isinstance(cameras, (str, Path)):
        source = str(cameras)
        cameras = _load(Path(cameras))
    if not isinstance(cameras, Mapping) or not cameras:
        raise StructDiffError(
            f"{source} must list cameras by subject, {{'S1': [...]}}; got {type(cameras).__name__}"
        )
    found = {}
    for subject, listed in cameras.items():
        if not isinstance(listed, Sequence) or isinstance(listed, str) or not len(listed):
            raise StructDiffError(f"{source} has no list of cameras for {subject}")
        found[str(subject)] = [
            each
            if isinstance(each, Camera)
            else _camera(each, f"camera {n} of {subject}, {source}")
            for n, each in enumerate(listed)
        ]
    return found


def _load(path: Path) -> Any:
    if path.suffix == ".npz":
        return _from_arrays(read_npz(path), path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise StructDiffError(f"there is no file {path}") from error
    except (OSError, ValueError) as error:
        raise StructDiffError(f"{path} is no JSON file of cameras: {error}") from error


def _from_arrays(content: Mapping[str, Any], path: Path) -> dict[str, list[dict[str, Any]]]:
    subjects: dict[str, dict[str, Any]] = {}
    for key, value in content.items():
        subject, _, name = key.rpartition("/")
        subjects.setdefault(subject, {})[name] = value
    cameras = {}
    for subject, arrays in subjects.items():
        counts = {name: len(np.atleast_1d(value)) for name, value in arrays.items()}
        if not subject or len(set(counts.values())) > 1:
            raise StructDiffError(
                f"{path} must hold arrays over the views named 'S1/focal' ..., got {counts}"
            )
        cameras[subject] = [
            {name: value[view] for name, value in arrays.items()}
            for view in range(next(iter(counts.values())))
        ]
    return cameras


def _camera(values: Any, name: str) -> Camera:
    if not isinstance(values, Mapping):
        raise StructDiffError(f"{name} must be a dictionary, got {values!r:.60}")
    parts = {}
    for part, names in _NAMES.items():
        given = [values[n] for n in names if n in values]
        if given:
            parts[part] = np.asarray(given[0], dtype=np.float64)
        elif part in ("focal", "centre", "orientation", "translation"):
            raise StructDiffError(f"{name} has no {part}")
    size = values.get("res_wh", (values.get("res_w"), values.get("res_h")))
    if any(side is None for side in size):
        raise StructDiffError(f"{name} has no res_w and res_h, the size of its image")
    parts["radial"] = parts.get("radial", np.zeros(3))
    parts["tangential"] = parts.get("tangential", np.zeros(2))
    orientation = parts.pop("orientation")
    try:
        return Camera.from_quaternion(
            orientation,
            position=_metres(parts.pop("translation"), name),
            image_size=(int(size[0]), int(size[1])),
            **parts,
        )
    except StructDiffError as error:
        raise StructDiffError(f"{name}: {error}") from error


def _metres(translation: Any, name: str) -> Any:
    far = float(np.linalg.norm(translation))
    if far > _NEAREST_MILLIMETRES:
        return translation / 1000
    if far > _FURTHEST_METRES:
        raise StructDiffError(
            f"{name} stands {far:.4g} from the origin: neither metres nor millimetres of a studio"
        )
    return translation
