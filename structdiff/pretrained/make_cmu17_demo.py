"""Make the embedded clips ``cmu17_demo``: two motions of CMU17's test split, 3 s each.

    python -m structdiff.pretrained.make_cmu17_demo --out datasets/pose/cmu17_demo.npz

CMU17 itself is not needed to use them: a lifter that was trained on its training split can be shown
on motions that it has not seen.
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from structdiff.datasets import path
from structdiff.storage import write_whole

FRAMES = 90
#: Clip of CMU17 -> its first frame: all of a walk, and a jump on the spot in the midst of others.
CLIPS = {"test/walking_01": 0, "test/jumping_01": 140}


def cmu17_demo() -> dict[str, npt.NDArray[Any]]:
    """Arrays by key, in the types of CMU17.

    ``poses`` (2, T, 17, 3) in world metres, ``keypoints_gt`` and ``keypoints_det`` (2, 4, T, 17, 2)
    in pixels, ``name`` (2,), ``fps``, and CMU17's ``cam/...``.

    Raises
    ------
    DatasetError
        If CMU17 is not on this machine.
    """
    content: dict[str, npt.NDArray[Any]] = {}
    sources = {"poses": "3d", "keypoints_gt": "2d_gt", "keypoints_det": "2d_det"}
    for key, role in sources.items():
        with np.load(path("cmu17", role)) as file:
            cut = [file[name][..., first : first + FRAMES, :, :] for name, first in CLIPS.items()]
            content[key] = np.stack(cut)
            content |= {part: file[part] for part in file.files if part.startswith("cam/")}
            if role == "3d":
                content["fps"] = file["meta/fps"]
    content["name"] = np.array([name.partition("/")[2] for name in CLIPS])
    return content


def main() -> None:
    """Write the file; the same command writes the same arrays."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **cmu17_demo())  # type: ignore[arg-type]
    write_whole(arguments.out, buffer.getvalue())


if __name__ == "__main__":
    main()
