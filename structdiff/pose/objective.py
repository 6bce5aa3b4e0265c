r"""What DDHPose minimises: errors of joints, of mean bone lengths, and of bone directions.

.. math:: L = \overline{\|\hat y - y\|}
          + w_l\, \overline{\left(\langle \hat l \rangle_N - \langle l \rangle_N\right)^2}
          + w_d\, \overline{\|\hat d - d\|^2}

with means over frames, joints and bones, and :math:`\langle\cdot\rangle_N` the mean over the frames
of a window (DDHPose, arXiv 2403.04444, sec. 3.4). All in metres, whatever the data set.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from structdiff.denoisers import BaseDenoiser, Denoiser
from structdiff.errors import StructDiffError
from structdiff.objectives import Objective
from structdiff.objectives.time_laws import AnyTimeLaw
from structdiff.pose.denoising import LiftingPoseNetwork, PoseNetwork
from structdiff.pose.kinematics import DIRECTION, LENGTH, compose, decompose
from structdiff.pose.lifter import lifted_bones
from structdiff.state import State

_SURPRISE = 0.01
"""Of the likelihood that teaches the variances. Adam makes up for it; without it, the first steps'
gradients of the variances would be all that clipping leaves."""


@dataclass(frozen=True)
class OftenPureNoise:
    """Uniform times, but a share of the draws at the prior, where the first step is taken.

    Parameters
    ----------
    share
        Of draws at the prior.

    Raises
    ------
    StructDiffError
        If the share is not in [0, 1).
    """

    share: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.share < 1:
            raise StructDiffError(f"the share of pure noise must lie in [0, 1), got {self.share}")

    def quantile(self, u: Tensor) -> Tensor:
        return (u / (1 - self.share)).clamp(max=1.0)


class DisentangledLoss(Objective):
    """DDHPose's loss; with a lifter inside the network, the lifter's own beside it.

    Parameters
    ----------
    time_law
        Where training looks; uniform by default.
    length_weight, direction_weight
        :math:`w_l` and :math:`w_d`.
    lifter_weight
        Of the error of the lifter's joints.
    lifter_steps
        Training steps at the beginning that train the lifter alone. They cost a tenth, and the
        transformer learns nothing about the errors of a lifter that is still finding its feet.

    Raises
    ------
    StructDiffError
        When it is asked for the loss of a denoiser without a pose network.
    """

    def __init__(
        self,
        time_law: AnyTimeLaw | None = None,
        *,
        length_weight: float = 1.0,
        direction_weight: float = 1.0,
        lifter_weight: float = 1.0,
        lifter_steps: int = 0,
    ) -> None:
        super().__init__(time_law)
        self.lifter_steps = lifter_steps
        self.length_weight, self.direction_weight = length_weight, direction_weight
        self.lifter_weight = lifter_weight

    def distances(
        self,
        denoiser: BaseDenoiser,
        x0: State,
        noisy: State,
        noise: State,
        times: dict[str, Tensor],
        condition: Any,
    ) -> dict[str, Tensor]:
        network = denoiser.network if isinstance(denoiser, Denoiser) else None
        if not isinstance(denoiser, Denoiser) or not isinstance(network, PoseNetwork):
            raise StructDiffError("the loss of poses needs a denoiser around a pose network")
        seen, log_snr = denoiser.network_inputs(noisy, times)
        target = compose(x0, network.skeleton)
        if isinstance(network, LiftingPoseNetwork):
            if self.step < self.lifter_steps:
                return self._lifter_alone(network, x0, condition, target)
            joints, lifted, mean = network.with_lifter(seen, log_snr, condition)
            extra = self.lifter_weight * position_error(lifted, target)
            # The variances are learned beside everything else and touch nothing of it.
            extra = extra + _SURPRISE * network.errors.surprise(x0, mean)
        else:
            joints = network.joints(seen, log_snr, condition)
            extra = torch.zeros_like(joints[:, 0, 0, 0])
        bones = decompose(joints, network.skeleton)
        count = len(network.skeleton.bones)
        length = (bones[LENGTH] - x0[LENGTH]).mean(1)[:, list(network.skeleton.bones)]
        direction = (bones[DIRECTION] - x0[DIRECTION]).square().sum((-2, -1)) / count
        return {
            LENGTH: self.length_weight * length.square().flatten(1).mean(1),
            DIRECTION: self.direction_weight * direction.mean(1)
            + position_error(joints, target)
            + extra,
        }

    def _lifter_alone(
        self, network: LiftingPoseNetwork, x0: State, keypoints: Tensor, target: Tensor
    ) -> dict[str, Tensor]:
        lifted, mean = lifted_bones(network.lifter, keypoints, network.skeleton)
        error = self.lifter_weight * position_error(lifted, target)
        return {
            LENGTH: torch.zeros_like(error),
            DIRECTION: error + _SURPRISE * network.errors.surprise(x0, mean),
        }


def position_error(joints: Tensor, target: Tensor) -> Tensor:
    """Mean distance over frames and joints of (B, N, J, 3), metres (B,)."""
    return torch.linalg.vector_norm(joints - target, dim=-1).flatten(1).mean(1)
