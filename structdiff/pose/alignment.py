r"""Poses moved onto each other before they are compared: by their root, or by Procrustes.

.. math:: \min_{s, R, t} \sum_j \|s R^\top p_j + t - y_j\|^2, \qquad R^\top R = 1, \ \det R = 1
"""

from __future__ import annotations

import torch
from torch import Tensor

from structdiff.errors import StructDiffError
from structdiff.pose._arrays import Values, check_joints, pair, ratio
from structdiff.pose.skeletons import H36M_17, Skeleton, get_skeleton


def root_relative(poses: Values, skeleton: str | Skeleton = H36M_17) -> Values:
    """Poses (..., J, 3) with their root joint at the origin.

    Raises
    ------
    StructDiffError
        If the poses have another number of joints than the skeleton.
    """
    skeleton = get_skeleton(skeleton)
    check_joints(poses, skeleton)
    return poses - poses[..., skeleton.root : skeleton.root + 1, :]


def procrustes_align(prediction: Values, target: Values, *, scale: bool = True) -> Values:
    """The prediction moved onto the target, pose by pose, without mirroring it.

    Solved by the singular value decomposition of the 3 x 3 covariance (Umeyama, PAMI 1991).
    Gradients (first derivatives) are those of the optimal rotation, finite wherever it is unique
    and 0 where it is not.

    Parameters
    ----------
    prediction, target
        Joints (..., J, 3), both in one unit.
    scale
        Whether the size may change too (a similarity); False is a rigid motion.

    Raises
    ------
    StructDiffError
        If the shapes differ or a value is not finite.
    """
    p, y, back = pair(prediction, target)
    return back(aligned(p, y, scale=scale))


def aligned(p: Tensor, y: Tensor, *, scale: bool) -> Tensor:
    """:func:`procrustes_align` of tensors that fit each other."""
    middle = y.mean(-2, keepdim=True)
    p, y = p - p.mean(-2, keepdim=True), y - middle
    covariance = p.mT @ y  # (..., 3, 3)
    if not bool(torch.isfinite(covariance).all()):
        raise StructDiffError("poses to align hold values that are not finite: leave them out")
    rotation = _nearest_rotation(covariance)
    turned = p @ rotation
    if scale:
        fit = (rotation * covariance).sum((-2, -1), keepdim=True)
        turned = turned * ratio(fit, p.square().sum((-2, -1), keepdim=True))
    return turned + middle


def _nearest_rotation(covariance: Tensor) -> Tensor:
    r"""Rotation R (..., 3, 3) that maximises :math:`\operatorname{tr} R^\top M`.

    With M = U S V^T it is U D V^T, D = diag(1, 1, +-1). Differentiating through U and V fails
    where singular values meet, while R does not notice: its own derivative is
    :math:`dR = R\,V (K \circ V^\top (R^\top dM - dM^\top R) V) V^\top`,
    :math:`K_{ij} = 1 / (s_i d_i + s_j d_j)`.
    """
    with torch.no_grad():
        u, s, vh = torch.linalg.svd(covariance)
        sign = torch.sign(torch.linalg.det(u @ vh))[..., None]
        d = torch.cat([torch.ones_like(s[..., :2]), sign], dim=-1)
        rotation = (u * d[..., None, :]) @ vh
    if not covariance.requires_grad:
        return rotation
    signed = s * d
    total = signed[..., :, None] + signed[..., None, :]
    unique = total > torch.finfo(s.dtype).eps * s[..., :1, None]
    gain = torch.where(unique, 1 / torch.where(unique, total, 1.0), 0.0)
    symmetric = vh @ (rotation.mT @ covariance) @ vh.mT
    twist = symmetric - symmetric.mT
    twist = twist - twist.detach()  # its value is 0 but for rounding; what counts is its derivative
    return rotation + rotation @ vh.mT @ (gain * twist) @ vh
