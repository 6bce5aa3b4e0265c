"""Films as files: the video behind the keypoints comes in, an mp4 or gif goes out.

A file appears in its place when it is whole. PyAV decodes and encodes videos, Pillow writes gifs.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from structdiff.errors import StructDiffError

Picture = npt.NDArray[np.uint8]
Writer = Callable[[Path, Iterator[Picture], int, tuple[int, int], float], None]
"""Path, frames, their number, width and height, frames per second."""


class Backdrop:
    """The frames of a video file or array, checked against the clip."""

    def __init__(
        self, video: str | Path | npt.ArrayLike, count: int, image_size: tuple[int, int] | None
    ) -> None:
        self._path = Path(video) if isinstance(video, (str, Path)) else None
        self._array = None if self._path is not None else np.asarray(video)
        if self._path is not None:
            length, self.size = _probe(self._path)
        elif self._array is not None:
            shape = self._array.shape
            if len(shape) != 4 or shape[3] != 3 or self._array.dtype != np.uint8:
                raise StructDiffError(
                    f"video must be a file or uint8 frames (T, H, W, 3), got {shape} of "
                    f"{self._array.dtype}"
                )
            length, self.size = shape[0], (shape[2], shape[1])
        if length != count:
            raise StructDiffError(f"the video has {length} frames, the poses {count}")
        if image_size is not None and tuple(image_size) != self.size:
            raise StructDiffError(
                f"the video is {self.size} pixels, image_size says {tuple(image_size)}: keypoints "
                "must be pixels of this video (a phone may have stored it on its side)"
            )
        self._count = count

    def frames(self, every: int, largest: int) -> Iterator[Picture]:
        """Every n-th frame, of at most ``largest`` pixels a side where it comes from a file."""
        if self._array is not None:
            yield from self._array[::every]
            return
        av, n = _av(), -1
        width, height = (
            max(2, round(side * min(1.0, largest / max(self.size)))) for side in self.size
        )
        with av.open(str(self._path)) as container:
            container.streams.video[0].thread_type = "AUTO"
            for n, frame in enumerate(container.decode(video=0)):
                if n % every == 0:
                    yield frame.to_ndarray(format="rgb24", width=width, height=height)
        if n + 1 < self._count:
            raise StructDiffError(f"{self._path}: only {n + 1} of {self._count} frames decode")


def film_writer(out: Path, rate: float, drawn: bool) -> Writer:
    """What writes files of this suffix, once all that it needs is there.

    A film that is all ``drawn`` has the same colours in all frames, so a gif of it does not flicker
    with one palette; a video needs a palette for each.
    """
    suffix = out.suffix.lower()
    if suffix not in (".mp4", ".gif"):
        raise StructDiffError(f"out must end in .mp4 or .gif, got {out.name!r}")
    if out.is_dir() or not out.parent.is_dir():
        raise StructDiffError(f"{out}: is a folder, or lies in one that does not exist")
    if suffix == ".mp4":
        _h264()
        return _write_mp4
    if rate > 50:
        raise StructDiffError(
            f"a gif holds at most 50 frames/s, not {rate:g}: give every= a larger number, or write "
            "an mp4"
        )
    return partial(_write_gif, shared=drawn)


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A file beside its place that moves there when it is whole, and else leaves nothing."""
    part = path.with_name(f"{path.name}.part")
    try:
        yield part
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def _probe(path: Path) -> tuple[int, tuple[int, int]]:
    """Number of frames and (width, height) of a video, without decoding it."""
    av = _av()
    if not path.is_file():
        raise StructDiffError(f"video {path}: there is no such file")
    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            frames = sum(packet.size > 0 for packet in container.demux(stream))
            return frames, (stream.codec_context.width, stream.codec_context.height)
    except (av.error.FFmpegError, IndexError) as error:
        raise StructDiffError(f"video {path}: holds no video that can be read") from error


def _write_mp4(
    path: Path, pictures: Iterator[Picture], count: int, size: tuple[int, int], rate: float
) -> None:
    """H.264 with 4:2:0 colours, which every player decodes, and its index in front."""
    av, exact = _av(), Fraction(rate).limit_denominator(1001)
    with av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"}) as container:
        stream = container.add_stream(_h264(), rate=exact)
        stream.width, stream.height = size
        stream.pix_fmt = "yuv420p"
        stream.options = {"crf": "20", "preset": "veryfast"}
        for n, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = n, 1 / exact
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def _write_gif(
    path: Path,
    pictures: Iterator[Picture],
    count: int,
    size: tuple[int, int],
    rate: float,
    shared: bool,
) -> None:
    """A gif that repeats; all frames have the palette of the first if it is ``shared``."""
    from PIL import Image

    # A gif counts hundredths of a second: each frame ends at the one nearest to its true end.
    ends = np.round(np.arange(1, count + 1) * 100 / rate)
    durations = (10 * np.diff(ends, prepend=0)).astype(int).tolist()
    first = Image.fromarray(next(pictures))
    palette = first.quantize(256, dither=Image.Dither.NONE)
    colours = np.array(palette.getpalette()).reshape(-1, 3)
    colours[(colours >= 248).all(axis=-1)] = 255  # Pillow looks up by rounded colours: white stays
    palette.putpalette(colours.ravel().tolist())

    def reduced(picture: Image.Image) -> Image.Image:
        with_one = palette if shared else None
        return picture.quantize(256, palette=with_one, dither=Image.Dither.NONE)

    others = (reduced(Image.fromarray(picture)) for picture in pictures)
    options: dict[str, Any] = {"save_all": True, "append_images": others, "loop": 0}
    reduced(first).save(path, format="GIF", duration=durations, **options)


def _av() -> Any:
    try:
        import av
    except ImportError as error:
        raise StructDiffError("videos need PyAV: pip install 'structdiff[pose]'") from error
    return av


def _h264() -> str:
    """Name of the encoder; every player shows what it writes, so no other takes its place."""
    av = _av()
    try:
        av.codec.Codec("libx264", "w")
    except ValueError as error:
        raise StructDiffError(
            "this PyAV was built without the H.264 encoder libx264: install the wheel from PyPI "
            "(pip install --force-reinstall av), or write a .gif"
        ) from error
    return "libx264"
