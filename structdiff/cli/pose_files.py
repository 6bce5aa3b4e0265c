"""Files of poses on the command line: what is read, and complaints about it.

2D joints come as JSON of a detector, or as npz and csv that state what they hold; data sets of the
registry go by their names.
"""

from __future__ import annotations

import contextlib
import re
import warnings
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from structdiff.cli.console import say
from structdiff.cli.tables import check_destination
from structdiff.errors import CheckpointError, StructDiffError
from structdiff.pose.cameras import Camera, check_image_size, read_cameras
from structdiff.pose.data import PoseDataset, load_cmu17, load_cmu17_demo
from structdiff.pose.readers.sniffing import kind_of
from structdiff.pose.skeletons import SKELETONS, Skeleton

POSES, FILMS, PICTURES = (".npz", ".csv"), (".mp4", ".gif"), (".png", ".svg", ".pdf")
#: Data sets that are named instead of files.
SETS = ("cmu17", "cmu17_demo")
_SHOWN = 5

#: How a message of the library names an argument -> the option that sets it.
_OPTIONS = {
    r"\(check=False reads it as it is\)": "(--no-check reads it as it is)",
    r", or convert (it|them) with structdiff\.pose\.skeletons\.convert(\([^)]*\))?": "",
    r", or a Skeleton\b": "",
    r", or give skeleton to convert it": "",
    r"\bsay skeleton='(\w+)'": r"say --skeleton \1",
    r"\b(give|leave) (the )?layout\b": r"\1 \2--skeleton",
    r"\bstate the unit where the file is read": "pass the right --unit, where the file states none",
    r"\b(give|leave) (unit|axes|person)\b": r"\1 --\2",
    r"\bimage_size must\b": "--image-size must",
    r"\bimage_size=": "--image-size ",
    r"--image-size \(width, height\)": "--image-size WIDTHxHEIGHT",
    r"\bwith camera= \(or --image-size \)": "with --camera or --image-size",
    r"\bwith camera=": "with --camera",
    r"\bsteps must\b": "--steps must",
    r"\bseed must be None or\b": "--seed must be",
    r"\brandom_state must be None or\b": "--seed must be",
    r"\bpass actions, one for each clip": "write them into the file (key `action`), or leave "
    "--protocol out",
}


# ---------------------------------------------------------------- reading


def read_clips(
    place: str,
    *,
    spatial: bool = False,
    detected: bool = False,
    layout: str | None = None,
    to: Skeleton | None = None,
    image_size: tuple[int, int] | None = None,
    fps: float | None = None,
    unit: Any = None,
    axes: Any = None,
    person: str | None = None,
    check: bool = True,
    prefix: str = "",
) -> PoseDataset:
    """Clips of a file, or of a data set that is named.

    Parameters
    ----------
    place
        A file of any kind that :mod:`structdiff.pose.readers` knows; VideoPose3D's archives with
        plus signs between them (2D, 3D, cameras); or ``cmu17`` (its test clips), ``cmu17_demo``.
    spatial
        3D joints are wanted; otherwise 2D ones.
    detected
        Of a data set: 2D with detector noise.
    layout
        Skeleton of the file, where it does not state it.
    to
        Skeleton to convert to.
    image_size, fps, unit, axes
        What the file does not state.
    person
        Which one of several in a detector's file.
    check
        Whether units, joint order and axes are checked.
    prefix
        Of the options that are about this file, such as ``target-``.

    Raises
    ------
    StructDiffError
        The file is missing, of no known kind, or not what it says; in words of the options.
    """
    from structdiff.pose import readers

    if place in SETS:
        given = {"skeleton": layout, "unit": unit, "axes": axes}
        _refuse(place, {f"{prefix}{k}": v for k, v in given.items()} | {"person": person})
        load = load_cmu17_demo if place == "cmu17_demo" else load_cmu17
        return _converted(load(detected=detected), to)
    if detected:
        raise StructDiffError(f"--detected is for {' and '.join(SETS)}; leave it out")
    parts = [Path(part) for part in place.split("+")]
    for part in parts:
        _check_there(part)
    facts: dict[str, Any] = {"image_size": image_size, "fps": fps, "check": check}
    with naming(place, prefix):
        kind = kind_of(parts[0])
        if kind == "videopose3d":
            return readers.read_videopose3d(**_by_content(parts), skeleton=to, **facts)
        if len(parts) > 1:
            raise StructDiffError(f"{parts[0]} stands by itself: only VideoPose3D's are joined")
        if spatial and kind == "table":
            stated = {"layout": layout, "unit": unit, "axes": axes}
            return readers.read_poses(parts[0], skeleton=to, **stated, **facts)
        return readers.read_keypoints(parts[0], layout=layout, skeleton=to, person=person, **facts)


def _check_there(path: Path) -> None:
    if not path.is_file():
        kind = "is a folder" if path.is_dir() else "no such file"
        raise StructDiffError(
            f"{path}: {kind}; name a file of joints (.json .npz .csv .mat), or {' or '.join(SETS)}"
        )


def _by_content(paths: Sequence[Path]) -> dict[str, Any]:
    """VideoPose3D's archives by what is in them."""
    found: dict[str, Any] = {}
    for path in paths:
        keys: set[str] = set()
        if path.suffix.lower() == ".npz":
            with zipfile.ZipFile(path) as archive:
                keys = {name.split("/")[0].removesuffix(".npy") for name in archive.namelist()}
        part = "poses" if "positions_3d" in keys else "cameras"
        part = "keypoints" if "positions_2d" in keys else part
        if part in found:
            raise StructDiffError(f"{path} and {found[part]} both hold {part}: name one of them")
        found[part] = path
    return found


def _converted(data: PoseDataset, to: Skeleton | None) -> PoseDataset:
    from structdiff.pose.readers import converted

    return data if to is None else converted(data, to)


def _refuse(place: str, options: dict[str, Any]) -> None:
    """A data set says everything itself, and only a detector's file has several people."""
    for name, value in options.items():
        if value is not None:
            why = "states it itself" if place in SETS else "has one person in a clip"
            raise StructDiffError(f"--{name} {value}: {place} {why}; leave it out")


def chosen(data: PoseDataset, names: Sequence[str] | None, place: str) -> PoseDataset:
    """The clips asked for; all where none are."""
    if not names:
        return data
    known = [clip.name for clip in data]
    for name in names:
        if name not in known:
            listed = ", ".join(known[:_SHOWN]) + (", ..." if len(known) > _SHOWN else "")
            raise StructDiffError(f"{place}: no clip {name!r} (--clip); it has {listed}")
    return replace(data, clips=tuple(data[name] for name in dict.fromkeys(names)))


def with_camera(data: PoseDataset, camera: str | None) -> PoseDataset:
    """The clips behind the camera of ``FILE`` or ``FILE:NUMBER``."""
    if camera is None:
        return data
    seen_by = _camera(camera)
    clips = []
    for clip in data:
        if None not in (clip.image_size, seen_by.image_size) and (
            clip.image_size != seen_by.image_size
        ):
            raise StructDiffError(
                f"--camera {camera} has images of {_size(seen_by.image_size)} pixels, clip "
                f"{clip.name!r} is of {_size(clip.image_size)}: it is another camera's"
            )
        behind = seen_by if seen_by.image_size else replace(seen_by, image_size=clip.image_size)
        clips.append(replace(clip, camera=behind, image_size=behind.image_size))
    return replace(data, clips=tuple(clips))


def _camera(given: str) -> Camera:
    place, colon, number = given.rpartition(":")
    if not (colon and number.isdecimal()):
        place, number = given, ""
    if not Path(place).is_file():
        raise StructDiffError(f"{place}: no such file; --camera is a JSON file, or FILE:NUMBER")
    cameras = read_cameras(place)
    if not number and len(cameras) != 1:
        raise StructDiffError(
            f"{place} holds {len(cameras)} cameras: say which one, --camera {place}:0 to "
            f"{place}:{len(cameras) - 1}"
        )
    if int(number or 0) >= len(cameras):
        raise StructDiffError(
            f"--camera {given}: {place} holds {len(cameras)} cameras, numbered from 0"
        )
    return cameras[int(number or 0)]


def _size(size: tuple[int, int] | None) -> str:
    return "x".join(map(str, size or ()))


def image_size_of(text: str | None) -> tuple[int, int] | None:
    """What ``--image-size 1920x1080`` says."""
    if text is None:
        return None
    found = re.fullmatch(r"\s*(\d+)\s*[x,]\s*(\d+)\s*", text)
    if found is None:
        raise StructDiffError(f"--image-size {text}: should be width x height, such as 1920x1080")
    return check_image_size((int(found[1]), int(found[2])))


def check_skeleton(**options: str | None) -> None:
    """Before any work: the names are known."""
    for option, name in options.items():
        if name is not None and name not in SKELETONS:
            raise StructDiffError(
                f"--{option.replace('_', '-')} {name}: choose of {', '.join(SKELETONS)}"
            )


def check_stated(**options: str | None) -> None:
    """Before any work: units and axes are known ones."""
    for option, value in options.items():
        known = ("m", "mm") if option.endswith("unit") else ("camera", "world")
        if value is not None and value not in known:
            raise StructDiffError(
                f"--{option.replace('_', '-')} {value}: should be {' or '.join(known)}"
            )


def hypotheses_of(path: Path, skeleton: Skeleton, to: str | None) -> dict[str, Any]:
    """Hypotheses that the file of lifted clips brings along; none are converted."""
    from structdiff.pose.readers import read_hypotheses

    if path.suffix.lower() != ".npz" or to is not None:
        return {}
    with np.load(path) as archive:
        if not any(key.rpartition("/")[2] == "hypotheses" for key in archive.files):
            return {}
    found = read_hypotheses(path)
    return {name: h for name, h in found.items() if h.shape[2] == len(skeleton)}


def check_output(path: Path | None, endings: tuple[str, ...]) -> None:
    """Before any work: a file of this kind can be written here."""
    if path is None:
        return
    if path.suffix.lower() not in endings:
        *first, last = endings
        raise StructDiffError(
            f"{path}: cannot write this format; end the name in {', '.join(first)} or {last}"
        )
    check_destination(path)


# ---------------------------------------------------------------- messages


@contextlib.contextmanager
def naming(place: str | Path, prefix: str = "") -> Iterator[None]:
    """Around work on a file: a complaint names it and speaks of options, not of arguments.

    Parameters
    ----------
    place
        The file.
    prefix
        Of the options that are about it, such as ``target-``.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.filterwarnings("always", category=UserWarning, module=r"structdiff\.")
        warnings.showwarning = lambda text, *_: say(f"{place}: {as_options(str(text))}")
        try:
            yield
        except CheckpointError:
            raise  # these name their own file
        except StructDiffError as error:
            message = as_options(str(error), prefix)
            if not re.search(rf"(^|\W){re.escape(str(place))}(\W|$)", message):
                message = f"{place}: {message}"
            raise StructDiffError(message) from error


def as_options(message: str, prefix: str = "") -> str:
    """A message of the library in words of the command line."""
    for argument, option in _OPTIONS.items():
        message = re.sub(argument, option, message)
    return re.sub(r"--(skeleton|unit|axes)\b", rf"--{prefix}\1", message) if prefix else message


def tell(notes: Sequence[str], place: str | Path) -> None:
    """What a reader had to do, once each, the first few of many."""
    kept = list(dict.fromkeys(notes))
    for note in kept[:_SHOWN]:
        say(f"{place}: {note}")
    if len(kept) > _SHOWN:
        say(f"{place}: and {len(kept) - _SHOWN} more remarks of this kind")
