r"""MPI-INF-3DHP, read from the user's own copy: the official test set, and the archives made of it.

``TS1/annot_data.mat`` to ``TS6/annot_data.mat`` hold, for T frames, ``annot2`` (pixels), ``annot3``
and ``univ_annot3`` (millimetres, camera axes), ``valid_frame`` and ``activity_annotation``, in
MATLAB's v7.3 (HDF5, axes reversed) or an older format. ``univ_annot3`` are the same poses with
every body scaled about its pelvis to one size. Errors on the two differ, so a reader gives one of
them and says which. The cameras are pinholes without distortion,

.. math:: f = \frac{f_{mm}}{s_{mm}}\,w, \qquad c = \left(\frac{o_{mm}}{s_{mm}}
          + \frac12\right) w,

with sensor size s, offset o and image size w of each axis (from the set's calibration file); they
project annot3 on annot2 with a mean error of 1.57 px (TS5) and 1.37 px (TS6).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from structdiff.errors import StructDiffError
from structdiff.pose.cameras import Camera
from structdiff.pose.data import PoseClip, PoseDataset
from structdiff.pose.readers._common import finished
from structdiff.pose.readers.archives import read_archive
from structdiff.pose.skeletons import MPI_INF_3DHP_17, Skeleton

Array = npt.NDArray[np.floating]
Annotation = Literal["annot3", "univ_annot3"]

_FILE = "annot_data.mat"
_MEANT = {
    "annot3": "annot3, bodies of their true size",
    "univ_annot3": "univ_annot3, bodies scaled to one size",
}
_MARKED = ("valid_frame", "activity_annotation")


def sequence_camera(sequence: str) -> Camera | None:
    """Camera of a test sequence ``"TS1"`` ... ``"TS6"``; None for other names."""
    number = re.fullmatch(r"TS([1-6])", sequence)
    if number is None:
        return None
    if int(number[1]) <= 4:
        size, sensor, focal = (2048, 2048), (10.0, 10.0), 7.32506
        offset = (-0.0322884, 0.0929296)
    else:
        size, sensor, focal = (1920, 1080), (10.0, 5.625), 8.770747185
        offset = (-0.104908645, 0.104899704)
    pixels = np.array(size) / np.array(sensor)
    return Camera(
        focal=focal * pixels,
        centre=(np.array(offset) + np.array(sensor) / 2) * pixels,
        image_size=size,
    )


def read_mpi_inf_3dhp(
    source: str | Path,
    *,
    annotation: Annotation = "annot3",
    sequences: Collection[str] | None = None,
    skeleton: str | Skeleton | None = None,
    check: bool = True,
) -> PoseDataset:
    """Read the official test set, a clip per sequence, metres in camera axes.

    ``valid`` of a clip marks the frames that count. MPI-INF-3DHP's 17 joints have their root in the
    pelvis, number 14.

    Parameters
    ----------
    source
        The folder of ``TS1`` to ``TS6``, one of these, or one ``annot_data.mat``.
    annotation
        ``"annot3"`` or ``"univ_annot3"``; the notes say which it was.
    sequences
        Those wanted, ``["TS5", "TS6"]``; all that are there if None.
    skeleton
        To convert the joints to.
    check
        Whether units, joint order, axes and cameras are checked against the numbers.

    Raises
    ------
    StructDiffError
        If there is no such file, it is damaged, lacks a field, or fails a check; names it.
    """
    annotation = _known(annotation)
    clips = []
    for name, path in _files(Path(source), sequences):
        fields = _mat(path, ("annot2", annotation, "valid_frame"))
        keypoints = _joints(fields, "annot2", 2, path)
        poses = _joints(fields, annotation, 3, path)
        clips.append(_clip(name, keypoints, poses, fields.get("valid_frame"), str(path)))
    return finished(
        clips,
        MPI_INF_3DHP_17,
        skeleton=skeleton,
        notes=[f"3D joints are {_MEANT[annotation]}"],
        check=check,
        source=source,
    )


def read_mpi_inf_3dhp_activities(
    source: str | Path, *, sequences: Collection[str] | None = None
) -> dict[str, npt.NDArray[np.int64]]:
    """Activity of every frame of the test set, 1 to 7, by sequence.

    Raises
    ------
    StructDiffError
        As :func:`read_mpi_inf_3dhp`.
    """
    found = {}
    for name, path in _files(Path(source), sequences):
        fields = _mat(path, ("activity_annotation",))
        if "activity_annotation" not in fields:
            raise StructDiffError(f"{path} has no activity_annotation")
        found[name] = np.asarray(fields["activity_annotation"]).ravel().astype(np.int64)
    return found


def read_mpi_inf_3dhp_npz(
    path: str | Path,
    *,
    annotation: Annotation | None = None,
    sequences: Collection[str] | None = None,
    skeleton: str | Skeleton | None = None,
    check: bool = True,
) -> PoseDataset:
    """Read ``data_train_3dhp[_ori].npz`` or ``data_test_3dhp[_ori].npz`` of P-STMO and D3DP.

    Clips of the training set are named ``S1 Seq1/0``, by camera, and have no calibration.

    Parameters
    ----------
    path
        The archive; its pickle is read without being executed.
    annotation
        Which of the two annotations it holds. If None its name tells: ``_ori`` is ``annot3``, else
        ``univ_annot3``; the notes say which.
    sequences
        Those wanted, ``["TS5"]`` or ``["S1 Seq1"]``.
    skeleton
        To convert the joints to.
    check
        Whether units, joint order, axes and cameras are checked against the numbers.

    Raises
    ------
    StructDiffError
        If the file cannot be read, has another layout, or fails a check; names the record.
    """
    path = Path(path)
    by_name: Annotation = "annot3" if path.stem.endswith("_ori") else "univ_annot3"
    kind = by_name if annotation is None else _known(annotation)
    told = "as the file's name says" if annotation is None else "as was stated"
    content = read_archive(path).get("data")
    if not isinstance(content, Mapping) or not content:
        raise StructDiffError(
            f"{path} has no data: expected {{'TS1': {{valid, data_2d, data_3d}}}} or {{'S1 Seq1': "
            "[{camera: {data_2d, data_3d}}]}"
        )
    wanted = _wanted(content, sequences, path)
    clips = []
    for name, record in _records(content, wanted, path):
        where = f"{name} of {path}"
        keypoints = _joints(record, "data_2d", 2, where)
        poses = _joints(record, "data_3d", 3, where)
        clips.append(_clip(name, keypoints, poses, record.get("valid"), where))
    return finished(
        clips,
        MPI_INF_3DHP_17,
        skeleton=skeleton,
        notes=[f"3D joints are {_MEANT[kind]}, {told}"],
        check=check,
        source=path,
    )


def _known(annotation: str) -> Annotation:
    if annotation not in get_args(Annotation):
        raise StructDiffError(
            f"annotation must be one of {', '.join(get_args(Annotation))}, got {annotation!r}"
        )
    return annotation  # type: ignore[return-value]


def _wanted(
    there: Collection[str], sequences: Collection[str] | None, source: str | Path
) -> list[str]:
    if sequences is None:
        return list(there)
    chosen = [sequences] if isinstance(sequences, str) else list(sequences)
    if missing := [s for s in chosen if s not in there]:
        raise StructDiffError(f"{source} has no {', '.join(missing)}: there are {', '.join(there)}")
    return chosen


def _clip(name: str, keypoints: Array, poses: Array, valid: Any, where: str) -> PoseClip:
    lengths = {"2D": len(keypoints), "3D": len(poses)}
    mask = None
    if valid is not None:
        mask = np.asarray(valid).ravel() > 0
        lengths["valid"] = len(mask)
    if len(set(lengths.values())) > 1:
        raise StructDiffError(f"{where} has different numbers of frames: {lengths}")
    camera = sequence_camera(name)
    subject = "" if camera is not None else name.split(" ")[0]
    return PoseClip(
        name=name,
        keypoints=keypoints,
        poses=poses / 1000,
        camera=camera,
        image_size=(2048, 2048) if camera is None else camera.image_size,
        subject=subject,
        action=name if camera is not None else name.split("/")[0],
        valid=mask,
    )


def _joints(fields: Mapping[str, Any], key: str, last: int, where: str | Path) -> Array:
    """Joints (T, 17, D), whatever axes of length one lie between."""
    if key not in fields:
        raise StructDiffError(f"{where} has no {key}, only {', '.join(fields) or 'nothing'}")
    array = np.asarray(fields[key])
    count = len(MPI_INF_3DHP_17)
    inner = 1 if array.ndim <= 3 else int(np.prod(array.shape[1:-2]))
    if array.dtype.kind not in "fiu" or array.shape[-2:] != (count, last) or inner != 1:
        raise StructDiffError(
            f"{key} of {where} has shape {array.shape}: expected {count} joints of {last} numbers"
        )
    return array.reshape(-1, count, last).astype(np.float64)


# ---------------------------------------------------------------- MATLAB files


def _files(source: Path, sequences: Collection[str] | None) -> list[tuple[str, Path]]:
    """Names and files of the sequences."""
    if source.is_file():
        found = {_name(source): source}
    elif (source / _FILE).is_file():
        found = {source.resolve().name: source / _FILE}
    else:
        found = {p.parent.name: p for p in sorted(source.glob(f"*/{_FILE}"))}
    if not found:
        raise StructDiffError(
            f"{source} holds no {_FILE}: give the folder of TS1 to TS6 "
            "(mpi_inf_3dhp_test_set) or one of its files"
        )
    return [(name, found[name]) for name in _wanted(found, sequences, source)]


def _name(path: Path) -> str:
    """TS5 for TS5/annot_data.mat and for TS5.mat."""
    path = path.resolve()
    return path.parent.name if path.name == _FILE else path.stem


def _mat(path: Path, wanted: tuple[str, ...]) -> dict[str, Any]:
    """Fields of a MATLAB file, axes in the order frame, person, joint, coordinate."""
    import h5py
    from scipy.io import loadmat

    try:
        if h5py.is_hdf5(path):
            with h5py.File(path, "r") as file:
                there = {k: file[k] for k in wanted if isinstance(file.get(k), h5py.Dataset)}
                return {key: value[()] for key, value in there.items()}
        content = loadmat(str(path), variable_names=list(wanted))
    except Exception as error:  # whatever a damaged file makes these libraries raise
        raise StructDiffError(
            f"{path} is no complete MATLAB file ({error}): copy it again"
        ) from error
    return {k: v if k in _MARKED else v.T for k, v in content.items() if k in wanted}


# ---------------------------------------------------------------- archives


def _records(
    content: Mapping[str, Any], wanted: list[str], path: Path
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Clips of an archive: of the test set by sequence, of the training set by camera too."""
    for sequence in wanted:
        value = content[sequence]
        if isinstance(value, Mapping) and "data_3d" in value:
            yield sequence, value
            continue
        first = value[0] if isinstance(value, (list, tuple, np.ndarray)) and len(value) else value
        if not isinstance(first, Mapping) or not all(
            isinstance(v, Mapping) for v in first.values()
        ):
            raise StructDiffError(f"{sequence} of {path} is no list of {{camera: joints}}")
        for camera, record in first.items():
            yield f"{sequence}/{camera}", record
