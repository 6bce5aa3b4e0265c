"""Errors of poses as training losses: their gradients are right, and finite where a pose is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from structdiff.pose import metrics
from structdiff.pose.cameras import Camera
from structdiff.pose.skeletons import H36M_17

Array = npt.NDArray[np.floating]
DISTANCES: list[Callable[..., Any]] = [
    metrics.mpjpe,
    metrics.p_mpjpe,
    metrics.n_mpjpe,
    metrics.mpjve,
    metrics.acceleration_error,
]


@pytest.mark.parametrize("metric", DISTANCES)
def test_gradient_is_that_of_finite_differences(
    metric: Callable[..., Any], poses: tuple[Array, Array]
) -> None:
    prediction, target = (torch.from_numpy(p[0, :3, :6]) for p in poses)
    prediction.requires_grad_(), target.requires_grad_()
    assert torch.autograd.gradcheck(metric, (prediction, target), eps=1e-7, atol=1e-3, rtol=1e-5)


def test_gradient_of_a_rigid_alignment_is_that_of_finite_differences(
    poses: tuple[Array, Array],
) -> None:
    """Mirrored on purpose: the smallest singular value counts negatively."""
    prediction, target = (torch.from_numpy(p[0, :3, :6]) for p in poses)
    prediction = (prediction * torch.tensor([-1.0, 1, 1])).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda p: metrics.procrustes_align(p, target, scale=False), (prediction,)
    )


def test_gradient_of_an_alignment_is_right_where_singular_values_meet() -> None:
    """A regular octahedron: all three are equal, and their vectors have no derivative."""
    target = torch.cat([torch.eye(3), -torch.eye(3)]).double()
    prediction = (1.3 * target).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda p: metrics.procrustes_align(p, target), (prediction,), eps=1e-7, atol=1e-6
    )


@pytest.mark.parametrize("metric", DISTANCES)
def test_gradient_of_a_perfect_prediction_is_finite(
    metric: Callable[..., Any], poses: tuple[Array, Array]
) -> None:
    prediction = torch.from_numpy(poses[1]).requires_grad_()
    metric(prediction, torch.from_numpy(poses[1])).backward()
    assert prediction.grad is not None and torch.isfinite(prediction.grad).all()


@pytest.mark.parametrize("collapse", [0.0, 1.0])
def test_gradient_of_aligning_a_point_or_a_line_is_finite(
    collapse: float, poses: tuple[Array, Array]
) -> None:
    prediction = torch.from_numpy(poses[0] * [collapse, 0, 0]).requires_grad_()
    metrics.p_mpjpe(prediction, torch.from_numpy(poses[1])).backward()
    assert prediction.grad is not None and torch.isfinite(prediction.grad).all()


@pytest.mark.parametrize("metric", [metrics.bone_length_deviation, metrics.symmetry_gap])
def test_gradient_of_a_still_symmetric_clip_is_finite(metric: Callable[..., Any]) -> None:
    still = torch.zeros(4, 17, 3, dtype=torch.float64)
    still[..., 1] = torch.tensor(H36M_17.depths, dtype=torch.float64)
    still.requires_grad_()
    metric(still).backward()
    assert torch.isfinite(still.grad).all()


def test_gradient_of_the_reprojection_error_is_that_of_finite_differences(
    poses: tuple[Array, Array],
) -> None:
    camera = Camera(
        focal=np.array([1147.0, 1143.0]),
        centre=np.array([512.0, 508.0]),
        radial=(-0.2, 0.24, 0.0),
        tangential=(-0.0009, -0.0015),
    )
    points = torch.from_numpy(poses[0][0, :2, :4] + [0, 0, 5]).requires_grad_()
    keypoints = torch.full((2, 4, 2), 500.0, dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda p: metrics.reprojection_error(p, keypoints, camera), (points,), atol=1e-3
    )
