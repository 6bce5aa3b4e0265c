"""Films of lifted clips: whole files that play, with every frame where it belongs."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from structdiff.errors import StructDiffError
from structdiff.pose import animation
from structdiff.pose._drawing import LEFT
from structdiff.pose._stage import VIEWS, stage
from structdiff.pose.animation import animate
from structdiff.pose.data import load_cmu17
from structdiff.pose.skeletons import H36M_17

SIZE = (480, 240)
DRAW = np.random.default_rng(0)
FRAMES = 7
# Someone who faces the camera and raises the left arm; relative to the root, y down.
HEIGHTS = [0.95, 0.95, 0.5, 0.1, 0.95, 0.5, 0.1, 1.1, 1.4, 1.5, 1.6, 1.4, 1.2, 1.0, 1.4, 1.2, 1.0]
SIDES = [0, -0.1, -0.12, -0.12, 0.1, 0.12, 0.12, 0, 0, 0, 0, 0.2, 0.25, 0.3, -0.2, -0.25, -0.3]
BODY = np.stack([SIDES, 0.95 - np.array(HEIGHTS), np.zeros(17)], axis=-1)
CLIP = np.repeat(BODY[None], FRAMES, axis=0)
CLIP[:, 13, 1] = np.linspace(-0.05, -0.65, FRAMES)
PIXELS = 100 + 60 * CLIP[..., :2]
MANY = CLIP + 0.03 * DRAW.standard_normal((3, *CLIP.shape)) * (np.arange(17) > 0)[:, None]


def film(out: Path, *, keypoints=PIXELS, poses=CLIP, **options) -> Path:
    given = {"size": SIZE, "progress": False, "image_size": (200, 200), **options}
    return animate(keypoints, poses, out=out, **given)


def decoded(path: Path) -> np.ndarray:
    """The frames of an mp4, (T, H, W, 3)."""
    with av.open(str(path)) as container:
        return np.array([f.to_ndarray(format="rgb24") for f in container.decode(video=0)])


def unpacked(path: Path) -> tuple[np.ndarray, list[int]]:
    """The frames of a gif and how long each is shown, in milliseconds."""
    frames, durations = [], []
    with Image.open(path) as picture:
        for n in range(picture.n_frames):
            picture.seek(n)
            frames.append(np.array(picture.convert("RGB")))
            durations.append(picture.info["duration"])
    return np.array(frames), durations


# ---------------------------------------------------------------- what the file is


def test_an_mp4_plays_every_frame_in_real_time_everywhere(tmp_path: Path) -> None:
    """H.264 with 4:2:0 colours, the pair that every browser and player decodes."""
    path = film(tmp_path / "a.mp4", hypotheses=MANY, fps=25)
    assert path == tmp_path / "a.mp4"
    assert decoded(path).shape == (FRAMES, 240, 480, 3)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert stream.average_rate == 25
        assert float(stream.duration * stream.time_base) == pytest.approx(FRAMES / 25)


def test_a_rate_that_is_a_fraction_is_kept(tmp_path: Path) -> None:
    with av.open(str(film(tmp_path / "a.mp4", fps=30000 / 1001))) as container:
        assert container.streams.video[0].average_rate == Fraction(30000, 1001)


def test_an_mp4_can_play_while_it_loads(tmp_path: Path) -> None:
    """The index (moov) lies before the pictures (mdat)."""
    content = film(tmp_path / "a.mp4").read_bytes()
    assert 0 < content.index(b"moov") < content.index(b"mdat")


def test_a_gif_has_every_frame_and_lasts_as_long_as_the_clip(tmp_path: Path) -> None:
    """30 frames/s are no whole hundredths of a second: 7 frames last 0.23 s, not 7 x 0.03."""
    frames, durations = unpacked(film(tmp_path / "a.gif", fps=30))
    assert frames.shape == (FRAMES, 240, 480, 3)
    assert durations == [30, 40, 30, 30, 40, 30, 30]


def test_every_third_frame_takes_as_long_as_all(tmp_path: Path) -> None:
    frames, durations = unpacked(film(tmp_path / "a.gif", every=3, fps=30))
    assert (len(frames), durations) == (3, [100, 100, 100])


def test_a_fast_clip_fits_into_a_gif_with_fewer_frames(tmp_path: Path) -> None:
    """60 frames/s are more than the 50 that a gif can hold, every second one is not."""
    _, durations = unpacked(film(tmp_path / "a.gif", every=2, fps=60))
    assert durations == [30, 40, 30, 30]


def test_odd_sizes_become_even(tmp_path: Path) -> None:
    assert decoded(film(tmp_path / "a.mp4", size=(361, 241))).shape[1:3] == (242, 362)


def test_by_default_each_panel_is_360_wide(tmp_path: Path) -> None:
    path = animate(None, CLIP[:2], hypotheses=MANY[:, :2], out=tmp_path / "a.mp4", progress=False)
    assert decoded(path).shape[1:3] == (480, 720)


# ---------------------------------------------------------------- what it shows


def is_colour(pictures: np.ndarray, colour: str) -> np.ndarray:
    from matplotlib.colors import to_rgb

    return np.abs(pictures / 255 - to_rgb(colour)).max(axis=-1) < 0.15


def test_the_body_moves_and_the_room_does_not(tmp_path: Path) -> None:
    """The left wrist goes up; the side of the picture where the right one hangs stays the same."""
    frames, _ = unpacked(film(tmp_path / "a.gif", keypoints=None, size=(360, 480)))
    left = is_colour(frames, LEFT)[:, 40:400]
    tops = [np.argwhere(each)[:, 0].min() for each in left]
    assert tops[0] - tops[-1] > 20
    changed = (frames[0] != frames[-1]).any(axis=-1)[40:]  # below the clock
    assert changed.any() and not changed[:, :160].any() and not changed[220:].any()


def test_every_frame_of_a_relative_clip_stands_on_the_floor() -> None:
    """Who crouches goes down and does not draw the feet up."""
    crouching = CLIP.copy()
    crouching[3:, [2, 3, 5, 6], 1] -= 0.3
    clip = stage(crouching, MANY, None, None, skeleton=H36M_17, axes="camera", floor=None)
    np.testing.assert_allclose(clip.poses[..., 2].min(axis=1), 0, atol=1e-12)
    assert clip.poses[0, 0, 2] - clip.poses[3, 0, 2] == pytest.approx(0.3)
    np.testing.assert_allclose(clip.hypotheses[0, :, 0], clip.poses[:, 0])  # on the same ground


def test_an_absolute_clip_has_one_floor_for_all_frames() -> None:
    """Who jumps leaves it."""
    jumping = CLIP + (np.arange(FRAMES) == 3)[:, None, None] * np.array([0, -0.4, 0]) + 1.0
    clip = stage(jumping, None, None, None, skeleton=H36M_17, axes="camera", floor=None)
    np.testing.assert_allclose(clip.poses[..., 2].min(axis=1), [0, 0, 0, 0.4, 0, 0, 0], atol=1e-12)


def test_a_frame_leaves_no_trace_on_the_next(tmp_path: Path) -> None:
    order = [0, 6, 0]
    frames, _ = unpacked(
        film(
            tmp_path / "a.gif",
            keypoints=PIXELS[order],
            poses=CLIP[order],
            hypotheses=MANY[:, order],
        )
    )
    np.testing.assert_array_equal(frames[0, 30:], frames[2, 30:])
    assert (frames[0, 30:] != frames[1, 30:]).any()


def test_drawing_over_the_still_picture_is_drawing_it_all() -> None:
    clip = stage(
        CLIP, MANY, np.full(CLIP.shape, 0.05), CLIP, skeleton=H36M_17, axes="camera", floor=None
    )
    made = animation._Film(
        H36M_17, clip, PIXELS, None, False, (200, 200), VIEWS["camera"], (540, 240)
    )
    quick = made.picture(4, 0.5, None)
    for artist in made._moving:
        artist.set_animated(False)
    made._canvas.draw()
    whole = np.asarray(made._canvas.buffer_rgba())[..., :3]
    # What covers what may differ where a line crosses the frame of an Axes, nowhere else.
    assert (np.abs(quick.astype(int) - whole).max(axis=-1) > 8).mean() < 1e-3


def test_what_is_not_given_has_no_panel(tmp_path: Path) -> None:
    def panels(**given) -> int:
        clip = stage(
            CLIP,
            given.get("many"),
            given.get("std"),
            None,
            skeleton=H36M_17,
            axes="camera",
            floor=None,
        )
        keypoints = given.get("keypoints")
        made = animation._Film(H36M_17, clip, keypoints, None, False, None, VIEWS["camera"], None)
        return made.size[0] // 360

    assert panels() == 1
    assert panels(keypoints=PIXELS) == 2
    assert panels(std=np.ones((FRAMES, 17))) == 2
    assert panels(keypoints=PIXELS, many=MANY) == 3


def test_unsure_keypoints_are_hollow_in_their_frame() -> None:
    clip = stage(CLIP, None, None, None, skeleton=H36M_17, axes="camera", floor=None)
    sure = np.ones((FRAMES, 17), bool)
    sure[2, 5] = False
    made = animation._Film(H36M_17, clip, PIXELS, sure, False, (200, 200), VIEWS["camera"], SIZE)
    differ = [
        (made.picture(n, 0, None)[:, :240] != made.picture(0, 0, None)[:, :240]).any()
        for n in (0, 2)
    ]
    assert differ == [False, True]


def test_a_real_clip_is_filmed_with_missing_keypoints(data_dir: Path, tmp_path: Path) -> None:
    clip = load_cmu17("test", detected=True)["jumping_01/0"]
    keypoints = clip.keypoints[:5].copy()
    keypoints[2] = np.nan  # the detector saw nobody
    path = animate(
        keypoints,
        clip.poses[:5],
        axes="world",
        out=tmp_path / "a.mp4",
        image_size=clip.image_size,
        progress=False,
    )
    frames = decoded(path)[:, 60:420, 70:350]  # what the panel of the input shows
    assert [bool(is_colour(each, LEFT).any()) for each in frames] == [True, True, False, True, True]


# ---------------------------------------------------------------- videos behind


def grey_video(path: Path, greys: list[int]) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30)
        stream.width, stream.height, stream.pix_fmt = 200, 100, "yuv420p"
        for grey in greys:
            picture = np.full((100, 200, 3), grey, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path


GREYS = [40, 60, 80, 100, 120, 140, 160]


@pytest.mark.parametrize("every", [1, 2])
def test_each_frame_of_the_video_lies_behind_its_keypoints(tmp_path: Path, every: int) -> None:
    """A file and the same frames as an array; the corner of the image is no one's joint."""
    array = np.repeat(np.array(GREYS, np.uint8), 100 * 200 * 3).reshape(FRAMES, 100, 200, 3)
    for video in (grey_video(tmp_path / "v.mp4", GREYS), array):
        made = film(tmp_path / "a.gif", video=video, image_size=(200, 100), every=every)
        frames, _ = unpacked(made)
        corner = frames[:, 95:98, 55:60].mean(axis=(1, 2, 3))
        np.testing.assert_allclose(corner, GREYS[::every], atol=6)


def test_without_an_image_size_the_video_sets_the_limits(tmp_path: Path) -> None:
    video = np.zeros((FRAMES, 100, 200, 3), np.uint8)
    frames, _ = unpacked(film(tmp_path / "a.gif", video=video, image_size=None))
    dark = (frames[0, :, :240] < 10).all(axis=-1).sum(axis=1)
    assert (dark > 150).sum() == pytest.approx((dark.max()) / 2, abs=4)  # twice as wide as high


# ---------------------------------------------------------------- what goes wrong


@pytest.mark.parametrize("suffix", [".mp4", ".gif"])
def test_an_interrupted_film_leaves_the_former_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(b"former")
    draw = animation._Film.picture

    def interrupted(self, frame, *others):
        if frame == 3:
            raise KeyboardInterrupt
        return draw(self, frame, *others)

    monkeypatch.setattr(animation._Film, "picture", interrupted)
    with pytest.raises(KeyboardInterrupt):
        film(path)
    assert path.read_bytes() == b"former"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("a.avi", {}, r"must end in \.mp4 or \.gif, got 'a\.avi'"),
        ("none/a.mp4", {}, "does not exist"),
        ("a.mp4", {"keypoints": PIXELS[:5]}, r"keypoints must have the shape \(7, 17, 2\)"),
        ("a.mp4", {"hypotheses": MANY[:, :5]}, r"hypotheses must have the shape \(any, 7, 17, 3\)"),
        ("a.mp4", {"target": CLIP[:5]}, "target must have the shape"),
        ("a.mp4", {"std": np.ones((5, 17))}, "std must have the shape"),
        ("a.mp4", {"confidence": np.ones((5, 17))}, "confidence must have the shape"),
        ("a.mp4", {"fps": 0}, "fps must be a positive number"),
        ("a.mp4", {"every": 0}, "every must be a whole number"),
        ("a.mp4", {"size": (60, 60)}, "size must be at least"),
        ("a.gif", {"fps": 60}, "at most 50 frames/s, not 60: give every="),
        ("a.mp4", {"video": np.zeros((5, 200, 200, 3), np.uint8)}, "video has 5 frames, the poses"),
        ("a.mp4", {"video": np.zeros((7, 9, 9, 3), np.uint8)}, r"video is \(9, 9\) pixels"),
        ("a.mp4", {"video": np.zeros((7, 200, 200, 3))}, "uint8 frames"),
        ("a.mp4", {"video": "no.mp4"}, "there is no such file"),
        ("a.mp4", {"video": __file__}, "no video that can be read"),
        (
            "a.mp4",
            {"video": np.zeros((7, 9, 9, 3), np.uint8), "keypoints": None},
            "drawn behind keypoints",
        ),
    ],
)
def test_what_cannot_be_filmed_is_said_and_leaves_no_file(
    tmp_path: Path, name: str, options: dict, message: str
) -> None:
    with pytest.raises(StructDiffError, match=message):
        film(tmp_path / name, **options)
    assert not list(tmp_path.iterdir())


def test_the_first_frame_without_a_pose_is_named(tmp_path: Path) -> None:
    poses, many = CLIP.copy(), MANY.copy()
    poses[4, 2] = many[1, 5, 3] = np.nan
    with pytest.raises(StructDiffError, match="frame 4 of poses holds NaN"):
        film(tmp_path / "a.mp4", poses=poses)
    with pytest.raises(StructDiffError, match="frame 5 of hypotheses holds NaN"):
        film(tmp_path / "a.mp4", hypotheses=many)


def test_a_missing_encoder_is_no_reason_for_another_codec(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(name: str, mode: str) -> None:
        raise av.codec.codec.UnknownCodecError(name)

    monkeypatch.setattr(av.codec, "Codec", unknown)
    with pytest.raises(StructDiffError, match=r"without the H\.264 encoder libx264: install"):
        film(tmp_path / "a.mp4")
    assert film(tmp_path / "a.gif").is_file()
