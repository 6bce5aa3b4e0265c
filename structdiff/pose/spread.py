r"""Hypotheses that spread as they err.

A network trained on some motions is surer of others than it should be. On clips that were held out
of training one factor s is found, by which the hypotheses' bones move away from their mean,

.. math:: d_h' = \frac{\bar d + s\,(d_h - \bar d)}{\|\bar d + s\,(d_h - \bar d)\|}, \qquad
          l_h' = \bar l + s\,(l_h - \bar l),

so that 80 % of the true coordinates fall within 1.28 standard deviations of the mean. Every
hypothesis stays a tree.
The temperature of likelihood-weighted aggregation then is that of the widened hypotheses.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import NormalDist

import torch
from torch import Tensor

from structdiff.pose.aggregation import fit_temperature
from structdiff.pose.data import PoseDataset
from structdiff.pose.kinematics import DIRECTION, LENGTH, compose, decompose, normalised
from structdiff.pose.skeletons import Skeleton

LEVEL = 0.8
"""At which coverage is made right."""
_FACTORS = (0.1, 10.0)
_HALVINGS = 20
_LEAST = 1e-6
"""Metres: a smaller standard deviation is none."""


def widened(hypotheses: Tensor, skeleton: Skeleton, factor: float) -> Tensor:
    """Hypotheses (H, T, J, 3) whose bones lie ``factor`` times as far from their mean."""
    if factor == 1 or len(hypotheses) < 2:
        return hypotheses
    bones = decompose(hypotheses, skeleton)
    length, direction = bones[LENGTH], bones[DIRECTION]
    middle, towards = length.mean(0, keepdim=True), direction.mean(0, keepdim=True)
    return compose(
        bones.replace(
            length=(middle + factor * (length - middle)).clamp(min=0),
            direction=normalised(towards + factor * (direction - towards)),
        ),
        skeleton,
    )


def spread_of(hypotheses: Tensor) -> Tensor:
    """Standard deviation (T, J, 3) over centred hypotheses (H, T, J, 3).

    Their noise adds up to 0 and each has its full variance, so that it is divided by H.
    """
    return hypotheses.std(0, correction=0)


def covered(hypotheses: Sequence[Tensor], truth: Sequence[Tensor], skeleton: Skeleton) -> float:
    """Share of the coordinates, without the root's, within 1.28 standard deviations of the mean."""
    reach = NormalDist().inv_cdf((1 + LEVEL) / 2)
    inside, count = 0.0, 0
    bones = list(skeleton.bones)
    for drawn, pose in zip(hypotheses, truth, strict=True):
        off = (pose - drawn.mean(0)).abs()[:, bones]
        hits = off <= reach * spread_of(drawn)[:, bones].clamp(min=_LEAST)
        inside, count = inside + float(hits.sum()), count + hits.numel()
    return inside / count


def calibrated_factor(
    hypotheses: Sequence[Tensor], truth: Sequence[Tensor], skeleton: Skeleton
) -> float:
    """The factor that makes the intervals of held-out clips cover what they promise.

    Parameters
    ----------
    hypotheses, truth
        Per clip (H, T, J, 3) and (T, J, 3), root-relative metres.
    skeleton
        Of the joints.
    """
    low, high = _FACTORS
    for _ in range(_HALVINGS):
        middle = (low * high) ** 0.5
        wide = [widened(h, skeleton, middle) for h in hypotheses]
        if covered(wide, truth, skeleton) < LEVEL:
            low = middle
        else:
            high = middle
    return float((torch.tensor(low) * high).sqrt())


def calibrate(
    hypotheses: Sequence[Tensor], clips: PoseDataset, skeleton: Skeleton
) -> tuple[float, float | None]:
    """Factor of the spread and temperature of J-Agg, from clips that training did not see.

    Parameters
    ----------
    hypotheses
        Of every clip as the network spreads them, root-relative metres (H, T, J, 3).
    clips
        With 2D and 3D joints. Where one has no camera there is no temperature.
    skeleton
        Of the joints.
    """
    truth = [clip.in_camera() for clip in clips]
    root = skeleton.root
    relative = [torch.from_numpy(y - y[:, root : root + 1]).float() for y in truth]
    factor = calibrated_factor(hypotheses, relative, skeleton)
    cameras = [clip.camera for clip in clips if clip.camera is not None]
    if len(cameras) < len(clips):
        return factor, None
    fit = fit_temperature(
        [widened(h, skeleton, factor).numpy() for h in hypotheses],
        [y.numpy() for y in relative],
        [clip.keypoints for clip in clips if clip.keypoints is not None],
        cameras,
        method="j-agg",
    )
    return factor, fit.temperature
