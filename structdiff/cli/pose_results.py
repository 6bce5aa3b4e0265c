"""What lifting leaves behind: poses in a file, a picture, a summary.

A file appears whole or not at all.
"""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from structdiff.pose.data import PoseClip
from structdiff.pose.lifted import Lifted
from structdiff.pose.readers import write_poses
from structdiff.pose.skeletons import Skeleton
from structdiff.storage import write_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def summary(lifted: Sequence[Lifted]) -> dict[str, Any]:
    """What was lifted, how sure it is, and how well it fits the keypoints."""
    first = lifted[0]
    facts: dict[str, Any] = {
        "clips": len(lifted),
        "frames": sum(map(len, lifted)),
        "hypotheses": len(first.hypotheses),
        "made one by": first.method,
    }
    if len(first.hypotheses) > 1:
        spread = np.concatenate([each.std.reshape(-1) for each in lifted])
        facts["standard deviation (mm)"] = 1000 * float(spread.mean())
    if all(each.root is not None and each.camera is not None for each in lifted):
        apart = [
            np.linalg.norm(_seen_again(each) - each.clip.keypoints, axis=-1) for each in lifted
        ]
        facts["off the keypoints (px)"] = float(np.nanmedian(np.concatenate(apart)))
        depths = np.concatenate([np.asarray(each.root)[:, 2] for each in lifted])
        facts["distance from the camera (m)"] = float(np.nanmedian(depths))
    return facts


def _seen_again(lifted: Lifted) -> Any:
    """Where the camera sees the lifted joints, (T, J, 2)."""
    assert lifted.camera is not None
    return lifted.camera.project(lifted.absolute)


def write_lifted(lifted: Sequence[Lifted], path: Path) -> None:
    """Poses of all clips in one file."""
    part = path.with_name(f".{path.stem}.part{path.suffix.lower()}")
    try:
        write_poses(part, list(lifted))
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def write_picture(figure: Figure, path: Path) -> None:
    """Write a figure and close it."""
    from matplotlib import pyplot

    buffer = io.BytesIO()
    figure.savefig(buffer, format=path.suffix[1:].lower(), dpi=150, bbox_inches="tight")
    pyplot.close(figure)
    write_whole(path, buffer.getvalue())


def moments(lifted: Lifted, count: int = 4, target: Any = None) -> Figure:
    """Moments of a clip: 2D joints above the poses lifted from them.

    Parameters
    ----------
    lifted
        One clip.
    count
        Moments, evenly spread.
    target
        Reference poses (T, J, 3) relative to their roots, drawn along.
    """
    from matplotlib import pyplot

    from structdiff.pose.plots import plot_keypoints

    frames = np.linspace(0, len(lifted) - 1, min(count, len(lifted))).round().astype(int)
    seen, sure = lifted.clip.keypoints, lifted.clip.confidence
    assert seen is not None
    figure = pyplot.figure(figsize=(3.3 * len(frames), 6.8))
    width, half = 1 / len(frames), _half_side(seen)
    for number, frame in enumerate(frames.tolist()):
        left = number * width
        flat = figure.add_axes((left + 0.22 * width, 0.62, 0.7 * width, 0.33))
        plot_keypoints(
            seen[frame],
            skeleton=lifted.skeleton,
            confidence=None if sure is None else sure[frame],
            ax=flat,
        )
        x, y = _middle(seen[frame])
        flat.set(xlim=(x - half, x + half), ylim=(y + half, y - half))
        flat.set_title(_moment(frame, lifted.clip.fps), fontsize="medium")
        space: Any = figure.add_axes((left, 0.06, width, 0.48), projection="3d")
        lifted.plot(frame, ax=space, **({} if target is None else {"target": target[frame]}))
        legend = space.get_legend()
        if number:
            flat.set_ylabel("")
        if legend is not None:
            handles = legend.legend_handles
            legend.remove()
    figure.legend(handles=handles, frameon=False, loc="lower center", ncols=len(handles))
    return figure


def _middle(joints: Any) -> Any:
    """Of the box around the joints of a frame (J, 2)."""
    there = joints[np.isfinite(joints).all(-1)]
    return (there.min(0) + there.max(0)) / 2 if len(there) else np.zeros(2)


def _half_side(seen: Any) -> float:
    """Of a square that holds the body in every frame, pixels."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of frames without joints
        size = np.nanmax(seen, axis=1) - np.nanmin(seen, axis=1)
    return 0.62 * float(np.nanmax(size))


def _moment(frame: int, fps: float | None) -> str:
    return f"frame {frame}" if fps is None else f"{frame / fps:.2f} s"


def relative(clip: PoseClip, skeleton: Skeleton) -> Any:
    """True poses in camera axes, relative to their roots."""
    poses = clip.in_camera()
    return poses - poses[:, skeleton.root : skeleton.root + 1]
