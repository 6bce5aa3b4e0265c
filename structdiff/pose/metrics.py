r"""Errors of 3D poses: metres in, millimetres out, one number or one per frame and joint.

With prediction :math:`p` and target :math:`y` (frames n, joints j) everything rests on

.. math:: e_{nj} = \|p_{nj} - y_{nj}\|, \qquad \mathrm{MPJPE} = \operatorname{mean}_{n,j} e_{nj},

and on what is removed first: nothing, the root (:func:`root_relative`), a scale
(:func:`n_mpjpe`) or a similarity (:func:`p_mpjpe`).

Arguments are NumPy arrays or tensors with any leading axes, and the answer is of the same kind and
precision; the target may lack leading axes of the prediction (hypotheses). Distances have exact,
finite gradients, also where they are 0; :func:`pck` and :func:`auc` count and have none. Nothing is
centred unless a function says so, and the root counts as a joint like any other: pass
``joints=skeleton.bones`` to leave it out (16 of 17 joints). An undefined value (NaN) is never
counted as a miss or a hit: it makes the number NaN.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from structdiff.errors import StructDiffError
from structdiff.pose._arrays import Per, Values, averaged, check_joints, pair, ratio, single
from structdiff.pose.alignment import aligned, procrustes_align, root_relative
from structdiff.pose.cameras import Camera
from structdiff.pose.kinematics import bone_lengths
from structdiff.pose.lenses import project
from structdiff.pose.skeletons import H36M_17, Skeleton, get_skeleton

__all__ = [
    "AUC_THRESHOLDS",
    "PCK_THRESHOLD",
    "acceleration_error",
    "auc",
    "bone_length_deviation",
    "mpjpe",
    "mpjve",
    "n_mpjpe",
    "p_mpjpe",
    "pck",
    "procrustes_align",
    "reprojection_error",
    "root_relative",
    "symmetry_gap",
]

MILLIMETRES = 1000.0
"""In a metre."""
PCK_THRESHOLD = 150.0
"""Millimetres within which a joint of MPI-INF-3DHP counts as found."""
AUC_THRESHOLDS = tuple(5.0 * k for k in range(31))
"""Millimetres: 0, 5, ..., 150, as MPI-INF-3DHP's evaluation has them."""


# ---------------------------------------------------------------- positions


def mpjpe(
    prediction: Values, target: Values, *, joints: Sequence[int] | None = None, per: Per = "all"
) -> Values:
    """Mean per-joint position error, millimetres ("protocol 1" once both are root-relative).

    Parameters
    ----------
    prediction, target
        Joints (..., J, 3) in metres.
    joints
        That are averaged over; None is all of them, the root included.
    per
        See :data:`Per`.

    Raises
    ------
    StructDiffError
        If the shapes differ or are empty, or ``per`` is unknown.
    """
    p, y, back = pair(prediction, target)
    return back(averaged(_distances(p, y), joints, per))


def p_mpjpe(
    prediction: Values,
    target: Values,
    *,
    joints: Sequence[int] | None = None,
    per: Per = "all",
    scale: bool = True,
) -> Values:
    """MPJPE after a Procrustes alignment of every pose, millimetres ("protocol 2").

    All joints are aligned; ``joints`` says which are averaged over. The alignment minimises
    squares, so a single pose may score higher than its MPJPE.

    Parameters
    ----------
    prediction, target, joints, per
        As for :func:`mpjpe`.
    scale
        As for :func:`procrustes_align`.

    Raises
    ------
    StructDiffError
        As :func:`mpjpe`; or a value is not finite.
    """
    p, y, back = pair(prediction, target)
    return back(averaged(_distances(aligned(p, y, scale=scale), y), joints, per))


def n_mpjpe(
    prediction: Values, target: Values, *, joints: Sequence[int] | None = None, per: Per = "all"
) -> Values:
    r"""MPJPE after the best scale :math:`\langle y, p\rangle / \langle p, p\rangle`, millimetres.

    "Protocol 3" (Rhodin et al., CVPR 2018). The scale is about the origin of every pose: make both
    :func:`root_relative` first. Parameters and errors are those of :func:`mpjpe`.
    """
    p, y, back = pair(prediction, target)
    size = p.square().sum((-2, -1), keepdim=True)
    scale = ratio((y * p).sum((-2, -1), keepdim=True), size)
    return back(averaged(_distances(scale * p, y), joints, per))


# ---------------------------------------------------------------- motion


def mpjve(
    prediction: Values,
    target: Values,
    *,
    fps: float | None = None,
    joints: Sequence[int] | None = None,
    per: Per = "all",
) -> Values:
    """Mean per-joint velocity error: mm/frame, or mm/s where the frame rate is given.

    Differences are taken within a clip, which the axis before the joints is; clips of different
    lengths are scored one by one or by :func:`~structdiff.pose.evaluate`. Numbers per frame belong
    to a rate: those of 25 and 50 frames/s cannot be compared, those per second can.

    Parameters
    ----------
    prediction, target
        Joints of clips (..., T, J, 3) in metres, T >= 2.
    fps
        Frames per second.
    joints, per
        As for :func:`mpjpe`; ``"frame"`` gives (..., T - 1).

    Raises
    ------
    StructDiffError
        As :func:`mpjpe`; or a clip is too short, or ``fps`` is not positive.
    """
    return _motion_error(prediction, target, 1, fps, joints, per)


def acceleration_error(
    prediction: Values,
    target: Values,
    *,
    fps: float | None = None,
    joints: Sequence[int] | None = None,
    per: Per = "all",
) -> Values:
    """Mean error of the second difference: mm/frame^2, or mm/s^2 where the rate is given.

    Parameters and errors are those of :func:`mpjve`, with T >= 3; ``"frame"`` gives (..., T - 2).
    """
    return _motion_error(prediction, target, 2, fps, joints, per)


# ---------------------------------------------------------------- shares


def pck(
    prediction: Values,
    target: Values,
    *,
    threshold: float = PCK_THRESHOLD,
    joints: Sequence[int] | None = None,
    per: Per = "all",
) -> Values:
    """Percentage of correct keypoints: errors strictly below a threshold.

    Parameters
    ----------
    prediction, target, joints, per
        As for :func:`mpjpe`. MPI-INF-3DHP counts 14 joints:
        :data:`structdiff.pose.protocols.MPI_INF_3DHP` names them.
    threshold
        Millimetres.

    Raises
    ------
    StructDiffError
        As :func:`mpjpe`.
    """
    p, y, back = pair(prediction, target)
    return back(averaged(_hit_rate(_distances(p, y), (threshold,)), joints, per))


def auc(
    prediction: Values,
    target: Values,
    *,
    thresholds: Sequence[float] = AUC_THRESHOLDS,
    joints: Sequence[int] | None = None,
    per: Per = "all",
) -> Values:
    """Mean of :func:`pck` over thresholds, percent.

    At the first of the standard thresholds, 0 mm, nothing is correct, so a perfect prediction
    scores 30/31 = 96.774. Parameters and errors are those of :func:`pck`.
    """
    p, y, back = pair(prediction, target)
    return back(averaged(_hit_rate(_distances(p, y), thresholds), joints, per))


# ---------------------------------------------------------------- of a prediction alone


def bone_length_deviation(
    poses: Values, skeleton: str | Skeleton = H36M_17, *, per: Literal["all", "bone"] = "all"
) -> Values:
    """Standard deviation over time of the bone lengths of a clip, millimetres: 0 for a person.

    Parameters
    ----------
    poses
        Joints of clips (..., T, J, 3) in metres.
    skeleton
        Their skeleton.
    per
        ``"bone"`` gives one number for each of ``skeleton.bones``.

    Raises
    ------
    StructDiffError
        If the shape does not fit the skeleton or is empty, or ``per`` is unknown.
    """
    skeleton = get_skeleton(skeleton)
    values, back = single(poses)
    check_joints(values, skeleton, axes=3)
    lengths = bone_lengths(values, skeleton)[..., list(skeleton.bones), 0]  # (..., T, bones)
    deviation = lengths.std(-2, correction=0) * MILLIMETRES
    return back(averaged(deviation, None, _chosen(per, {"all": "all", "bone": "joint"})))


def symmetry_gap(
    poses: Values,
    skeleton: str | Skeleton = H36M_17,
    *,
    per: Literal["all", "frame", "bone"] = "all",
) -> Values:
    """Mean difference in length of left and right bones, millimetres.

    Parameters
    ----------
    poses
        Joints (..., J, 3) in metres.
    skeleton
        Their skeleton.
    per
        ``"frame"`` gives (...,), ``"bone"`` one number for each of ``skeleton.symmetric_bones``.

    Raises
    ------
    StructDiffError
        As :func:`bone_length_deviation`; or the skeleton has no symmetric bones.
    """
    skeleton = get_skeleton(skeleton)
    values, back = single(poses)
    check_joints(values, skeleton)
    if not skeleton.symmetric_bones:
        raise StructDiffError(f"skeleton {skeleton.name!r} has no symmetric bones to compare")
    left, right = (list(side) for side in zip(*skeleton.symmetric_bones, strict=True))
    lengths = bone_lengths(values, skeleton)[..., 0] * MILLIMETRES  # (..., J)
    gap = (lengths[..., left] - lengths[..., right]).abs()
    return back(
        averaged(gap, None, _chosen(per, {"all": "all", "frame": "frame", "bone": "joint"}))
    )


def reprojection_error(
    poses: Values,
    keypoints: Values,
    camera: Camera,
    *,
    joints: Sequence[int] | None = None,
    per: Per = "all",
) -> Values:
    """Mean distance in the image between projected poses and 2D joints, pixels.

    Parameters
    ----------
    poses
        Joints (..., J, 3) in camera axes, metres, where they stand: not root-relative.
    keypoints
        2D joints (..., J, 2) in pixels.
    camera
        That sees them.
    joints, per
        As for :func:`mpjpe`.

    Raises
    ------
    StructDiffError
        If the shapes do not fit, or a joint is not in front of the camera.
    """
    p, y, back = pair(poses, keypoints, last=(3, 2))
    if not bool((p[..., 2] > 0).all()):
        raise StructDiffError(
            "poses to project must lie in front of the camera (z > 0): give them in camera axes "
            "with their distance, not root-relative"
        )
    intrinsics = torch.as_tensor(camera.intrinsics).to(p)
    seen = project(p, intrinsics, distortion=camera.distortion)
    return back(averaged(torch.linalg.vector_norm(seen - y, dim=-1), joints, per))


# ---------------------------------------------------------------- inside


def _distances(p: Tensor, y: Tensor) -> Tensor:
    return torch.linalg.vector_norm(p - y, dim=-1) * MILLIMETRES  # (..., J)


def _motion_error(
    prediction: Values,
    target: Values,
    order: int,
    fps: float | None,
    joints: Sequence[int] | None,
    per: Per,
) -> Values:
    p, y, back = pair(prediction, target)
    if y.dim() < 3 or p.shape[-3] <= order:
        raise StructDiffError(
            f"this error needs clips (..., T, J, 3) of at least {order + 1} frames, "
            f"got {tuple(p.shape)} and {tuple(y.shape)}"
        )
    if fps is not None and not fps > 0:
        raise StructDiffError(f"fps must be a positive number of frames per second, got {fps!r}")
    steps = torch.diff(p - y, n=order, dim=-3)
    errors = torch.linalg.vector_norm(steps, dim=-1) * MILLIMETRES * (fps or 1.0) ** order
    return back(averaged(errors, joints, per))


def _hit_rate(errors: Tensor, thresholds: Sequence[float]) -> Tensor:
    """Percent of the thresholds that each error lies strictly below."""
    levels = torch.as_tensor(sorted(thresholds), dtype=errors.dtype, device=errors.device)
    if len(levels) == 0:
        raise StructDiffError("give at least one threshold, in millimetres")
    reached = torch.searchsorted(levels, errors.detach().contiguous(), right=True)  # levels <= e
    share = (len(levels) - reached).to(errors.dtype) * (100.0 / len(levels))
    return share.masked_fill(errors.isnan(), torch.nan)


def _chosen(per: str, choices: Mapping[str, str]) -> str:
    if per not in choices:
        raise StructDiffError(f"per must be one of {', '.join(choices)}, got {per!r}")
    return choices[per]
