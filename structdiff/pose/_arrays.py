"""What metrics of poses take and give: arrays or tensors, of one kind and precision."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, TypeAlias, TypeVar, cast, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from structdiff.errors import StructDiffError
from structdiff.pose.skeletons import Skeleton

Values = TypeVar("Values", npt.NDArray[np.floating], Tensor)
Per: TypeAlias = Literal["all", "frame", "joint", "point"]
"""What one number stands for: everything (), a frame (...,), a joint (J,), or one joint in one
frame (..., J); all but the last are means."""


def averaged(errors: Tensor, joints: Sequence[int] | None, per: str) -> Tensor:
    """Means of errors (..., J), over some of the joints.

    Raises
    ------
    StructDiffError
        If there are none, or ``per`` is unknown.
    """
    if joints is not None:
        errors = errors[..., list(joints)]
    if errors.numel() == 0:
        raise StructDiffError(f"there is nothing to average: {tuple(errors.shape)} frames x joints")
    if per == "all":
        return errors.mean()
    if per == "frame":
        return errors.mean(-1)
    if per == "joint":
        return errors.flatten(0, -2).mean(0) if errors.dim() > 1 else errors
    if per == "point":
        return errors
    raise StructDiffError(f"per must be one of {', '.join(get_args(Per))}, got {per!r}")


def check_joints(
    poses: npt.NDArray[np.floating] | Tensor, skeleton: Skeleton, axes: int = 2
) -> None:
    """Whether poses are (..., J, 3) of a skeleton, or (..., T, J, 3) with 3 axes.

    Raises
    ------
    StructDiffError
        If not.
    """
    shape = tuple(poses.shape)
    if len(shape) < axes or shape[-2:] != (len(skeleton), 3):
        time = "T, " if axes == 3 else ""
        raise StructDiffError(
            f"expected (..., {time}{len(skeleton)}, 3) joints of {skeleton.name}, got {shape}"
        )


def single(poses: Values) -> tuple[Tensor, Callable[[Tensor], Values]]:
    """As a floating tensor, and the way back to what was given."""
    given = isinstance(poses, Tensor)
    values = poses if isinstance(poses, Tensor) else torch.from_numpy(np.array(poses))
    if not values.dtype.is_floating_point:
        values = values.to(torch.float64)

    def back(result: Tensor) -> Values:
        return cast(Values, result if given else result.numpy()[()])

    return values, back


def pair(
    prediction: Values, target: Values, last: tuple[int, int] = (3, 3)
) -> tuple[Tensor, Tensor, Callable[[Tensor], Values]]:
    """Prediction and target in one precision, and the way back to what was given.

    The target may lack leading axes. A tensor comes back where either is one.

    Raises
    ------
    StructDiffError
        If the shapes do not fit, ``last`` being those of the last axes.
    """
    p, back = single(prediction)
    y, back_of_target = single(target)
    if isinstance(target, Tensor) and not isinstance(prediction, Tensor):
        p, back = p.to(y.device), back_of_target
    shapes = tuple(p.shape), tuple(y.shape)
    count = len(shapes[1])
    fits = (
        count >= 2
        and shapes[0][-1:] == last[:1]
        and shapes[1][-1:] == last[1:]
        and shapes[0][:-1][-(count - 1) :] == shapes[1][:-1]
    )
    if not fits:
        raise StructDiffError(
            f"expected joints (..., J, {last[0]}) and as many (..., J, {last[1]}), "
            f"got {shapes[0]} and {shapes[1]}"
        )
    dtype = torch.promote_types(p.dtype, y.dtype)
    return p.to(dtype), y.to(device=p.device, dtype=dtype), back


def ratio(above: Tensor, below: Tensor) -> Tensor:
    """Quotient; 0, with a finite gradient, where the divisor is 0."""
    exists = below > 0
    return torch.where(exists, above / torch.where(exists, below, 1.0), 0.0)
