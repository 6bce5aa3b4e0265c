"""Poses that move: the 2D input, the mean body and its spread side by side, as mp4 or gif.

Ground, limits and view are those of the whole clip, so that only the body moves. What stays the
same in all frames is drawn once; each frame is drawn over a copy of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from structdiff.arguments import is_number, whole
from structdiff.errors import StructDiffError
from structdiff.pose._drawing import Body, Figure, frame_image, furnish, legend_handles
from structdiff.pose._film import Backdrop, Picture, film_writer, whole_file
from structdiff.pose._stage import VIEWS, Staged, checked, stage
from structdiff.pose.data import Array, Axes
from structdiff.pose.skeletons import H36M_17, Skeleton, get_skeleton

__all__ = ["animate"]


def animate(
    keypoints: npt.ArrayLike | None,
    poses: npt.ArrayLike,
    *,
    hypotheses: npt.ArrayLike | None = None,
    std: npt.ArrayLike | None = None,
    target: npt.ArrayLike | None = None,
    confidence: npt.ArrayLike | None = None,
    skeleton: str | Skeleton = H36M_17,
    axes: Axes = "camera",
    floor: float | None = None,
    fps: float = 30.0,
    image_size: tuple[int, int] | None = None,
    video: str | Path | npt.ArrayLike | None = None,
    out: str | Path = "poses.mp4",
    progress: bool = True,
    every: int = 1,
    view: tuple[float, float] | None = None,
    size: tuple[int, int] | None = None,
) -> Path:
    """Film a clip: the 2D input, the mean pose, and the mean with its spread, as far as given.

    Parameters
    ----------
    keypoints
        2D joints in pixels (T, J, 2); a joint of NaN is not drawn. None leaves their panel out.
    poses
        Mean poses in metres (T, J, 3), absolute or relative to the root. Relative ones stand on
        the floor with their lowest joint.
    hypotheses
        (H, T, J, 3). Without hypotheses and ``std`` there is no third panel.
    std
        Standard deviation in metres (T, J) or (T, J, 3).
    target
        Reference poses (T, J, 3), in the panel of the mean.
    confidence
        Of the keypoints (T, J); those below 0.3 are hollow.
    skeleton, axes, floor, view
        As for :func:`~structdiff.pose.plots.plot_pose`.
    fps
        Frames per second of the clip; the film plays in real time.
    image_size
        Width and height of the image in pixels; the video's by default.
    video
        Behind the keypoints: a file, or frames (T, H, W, 3) in uint8.
    out
        ``.mp4`` (H.264) or ``.gif``; appears when it is whole. For long clips mp4: a gif is put
        together in memory.
    progress
        Draw a progress bar if it takes more than 2 s.
    every
        Film every n-th frame only.
    size
        Width and height of the film in pixels, rounded up to even numbers; by default 480 high and
        360 wide for each panel.

    Returns
    -------
    Path
        ``out``.

    Raises
    ------
    StructDiffError
        If ``out`` has another suffix or no folder; an array has the wrong shape or another length
        than the poses; the poses hold NaN (the frame is named); the video has another size or
        number of frames; or matplotlib, PyAV or its H.264 encoder is missing.
    """
    out, skeleton = Path(out), get_skeleton(skeleton)
    every, fps = whole("every", every), _positive("fps", fps)
    writer = film_writer(out, fps / every, drawn=video is None)
    clip = stage(poses, hypotheses, std, target, skeleton=skeleton, axes=axes, floor=floor)
    count = len(clip.poses)
    flat, sure = None, None
    if keypoints is not None:
        shape = (count, len(skeleton), 2)
        flat = checked("keypoints", keypoints, shape, finite=False)
        if confidence is not None:
            sure = checked("confidence", confidence, shape[:2], finite=False) >= 0.3
    elif video is not None:
        raise StructDiffError("a video is drawn behind keypoints: give them too, or leave it out")
    backdrop = None if video is None else Backdrop(video, count, image_size)
    film = _Film(
        skeleton,
        clip,
        flat,
        sure,
        backdrop is not None,
        image_size if backdrop is None else backdrop.size,
        view or VIEWS[axes],
        size,
    )
    frames = range(0, count, every)
    behind = iter(()) if backdrop is None else backdrop.frames(every, film.size[1])
    with tqdm(total=len(frames), desc=out.name, unit="frame", delay=2, disable=not progress) as bar:

        def pictures() -> Iterator[Picture]:
            for frame in frames:
                yield film.picture(frame, frame / fps, next(behind, None))
                bar.update()

        with whole_file(out) as part:
            writer(part, pictures(), len(frames), film.size, fps / every)
    return out


# ---------------------------------------------------------------- one frame


class _Film:
    """The panels, drawn once; :meth:`picture` moves what moves."""

    def __init__(
        self,
        skeleton: Skeleton,
        clip: Staged,
        keypoints: Array | None,
        sure: npt.NDArray[np.bool_] | None,
        behind: bool,
        image_size: tuple[int, int] | None,
        view: tuple[float, float],
        size: tuple[int, int] | None,
    ) -> None:
        figure_class, canvas_class = _matplotlib()
        spread = clip.hypotheses is not None or clip.std is not None
        titles = ["input"] * (keypoints is not None) + ["mean pose"] + ["spread"] * spread
        self.size = _even(size or (360 * len(titles), 480))
        dpi = self.size[1] / 4.8  # letters grow with the film
        # A hundredth of a pixel more, for matplotlib cuts what is behind the point.
        figure = figure_class(figsize=tuple((n + 0.01) / dpi for n in self.size), dpi=dpi)
        self._canvas = canvas_class(figure)
        self._keypoints, self._sure = keypoints, sure
        self._moving: list[Any] = []
        self._image: Any = None
        self._input: Body | None = None
        self._bodies: list[Figure] = []
        width = 1 / len(titles)
        for n, title in enumerate(titles):
            figure.text((n + 0.5) * width, 0.97, title, ha="center", va="top", fontsize="medium")
            if title == "input" and keypoints is not None:
                ax = figure.add_axes((n * width + 0.17 * width, 0.16, 0.78 * width, 0.72))
                self._furnish_input(ax, skeleton, keypoints, image_size, behind)
                continue
            ax = figure.add_axes(((n - 0.06) * width, 0.07, width, 0.86), projection="3d")
            ax.patch.set_visible(False)
            furnish(ax, clip, view)
            if title == "spread":
                shown = replace(clip, target=None)
            else:
                shown = replace(clip, hypotheses=None, std=None)
            body = Figure(ax, skeleton, shown)
            self._bodies.append(body)
            self._moving += body.artists
        figure.legend(
            handles=legend_handles(clip),
            loc="lower center",
            ncols=5,
            frameon=False,
            fontsize="small",
            columnspacing=1.2,
        )
        self._time = figure.text(0.012, 0.97, "", va="top", fontsize="small", color="#555555")
        self._moving.append(self._time)
        for artist in self._moving:
            artist.set_animated(True)
        self._canvas.draw()
        self._still = self._canvas.copy_from_bbox(figure.bbox)

    def _furnish_input(
        self,
        ax: Any,
        skeleton: Skeleton,
        keypoints: Array,
        image_size: tuple[int, int] | None,
        behind: bool,
    ) -> None:
        if behind and image_size is not None:
            extent = (0, image_size[0], image_size[1], 0)
            blank = np.full((2, 2, 3), 255, np.uint8)
            self._image = ax.imshow(blank, extent=extent, interpolation="nearest")
            self._moving.append(self._image)
        frame_image(ax, keypoints, image_size)
        ax.set_xlabel("x (px)", fontsize="small")
        ax.set_ylabel("y (px)", fontsize="small")
        ax.tick_params(labelsize="x-small")
        ax.locator_params(nbins=5)
        self._input = Body(ax, skeleton, width=2.0)
        self._moving += self._input.artists

    def picture(self, frame: int, seconds: float, image: Picture | None) -> Picture:
        """One frame as RGB (height, width, 3)."""
        if self._image is not None and image is not None:
            self._image.set_data(image)
        if self._input is not None and self._keypoints is not None:
            sure = None if self._sure is None else self._sure[frame]
            self._input.move(self._keypoints[frame], sure)
        for body in self._bodies:
            body.show(frame)
        self._time.set_text(f"{seconds:.2f} s")
        self._canvas.restore_region(self._still)
        renderer = self._canvas.get_renderer()
        for artist in sorted(self._moving, key=lambda artist: float(artist.get_zorder())):
            if hasattr(artist, "do_3d_projection"):  # else done by drawing the whole Axes
                artist.do_3d_projection()
            artist.draw(renderer)
        return np.array(self._canvas.buffer_rgba())[..., :3]


def _matplotlib() -> tuple[Any, Any]:
    """The figure and canvas classes; no window and no pyplot state are involved."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure as MatplotlibFigure
    except ImportError as error:
        raise StructDiffError(
            "animations need matplotlib: pip install 'structdiff[plots]'"
        ) from error
    return MatplotlibFigure, FigureCanvasAgg


def _even(size: tuple[int, int]) -> tuple[int, int]:
    """Rounded up to even numbers: 4:2:0 colours lie on every second pixel."""
    width, height = (whole("size", n) for n in size)
    if min(width, height) < 120:
        raise StructDiffError(f"size must be at least 120 pixels each way, got {size}")
    return width + width % 2, height + height % 2


def _positive(name: str, value: float) -> float:
    if not is_number(value) or not 0 < value < float("inf"):
        raise StructDiffError(f"{name} must be a positive number, got {value!r}")
    return float(value)
