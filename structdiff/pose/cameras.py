r"""Pinhole cameras with lens distortion: projection, rays, world axes.

With camera axes x right, y down, z forward and :math:`(x, y) = (X, Y) / Z`,
:math:`r^2 = x^2 + y^2`,

.. math:: \begin{aligned} R &= 1 + k_1 r^2 + k_2 r^4 + k_3 r^6, \\
          u &= f_x\,(x\,(R + p_1 x + p_2 y) + p_1 r^2) + c_x, \\
          v &= f_y\,(y\,(R + p_1 x + p_2 y) + p_2 r^2) + c_y, \end{aligned}

the form of Human3.6M's calibration, which is not OpenCV's in its tangential term.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from structdiff.errors import StructDiffError

Array = npt.NDArray[np.floating]


@dataclass(frozen=True, eq=False)
class Camera:
    """One calibrated camera.

    Parameters
    ----------
    focal, centre
        Focal lengths and principal point in pixels, (2,).
    radial, tangential
        Distortion coefficients k1, k2, k3 and p1, p2.
    rotation
        From world to camera axes, (3, 3).
    position
        Camera centre in the world, metres (3,).
    image_size
        Width and height in pixels.

    Raises
    ------
    StructDiffError
        If a part has the wrong number of values, a focal length is not positive, or the rotation
        is none.
    """

    focal: Array
    centre: Array
    radial: Array | Sequence[float] = (0.0, 0.0, 0.0)
    tangential: Array | Sequence[float] = (0.0, 0.0)
    rotation: Array | None = None
    position: Array | Sequence[float] = (0.0, 0.0, 0.0)
    image_size: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        sizes = {"focal": 2, "centre": 2, "radial": 3, "tangential": 2, "position": 3}
        for name, size in sizes.items():
            value = np.asarray(getattr(self, name), dtype=np.float64)
            if value.shape != (size,) or not np.isfinite(value).all():
                raise StructDiffError(
                    f"{name} of a camera must be {size} finite numbers, got {value.tolist()}"
                )
            object.__setattr__(self, name, value)
        if not (np.asarray(self.focal) > 0).all():
            raise StructDiffError(f"focal lengths must be positive, got {self.focal}")
        turn = np.eye(3) if self.rotation is None else np.asarray(self.rotation, dtype=np.float64)
        if (
            turn.shape != (3, 3)
            or np.abs(turn @ turn.T - np.eye(3)).max() > 1e-4
            or np.linalg.det(turn) < 0
        ):
            raise StructDiffError(
                "the rotation of a camera must be a proper rotation matrix (3, 3)"
            )
        object.__setattr__(self, "rotation", turn)

    def to_camera(self, points: Array) -> Array:
        """World points (..., 3) in camera axes."""
        return (points - np.asarray(self.position)) @ np.asarray(self.rotation).T

    def to_world(self, points: Array) -> Array:
        """Camera points (..., 3) in world axes."""
        return points @ np.asarray(self.rotation) + np.asarray(self.position)
