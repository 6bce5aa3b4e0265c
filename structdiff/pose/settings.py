"""Settings of the pose lifter, checked before anything is trained or drawn."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from structdiff.arguments import is_number, whole, whole_seed
from structdiff.errors import StructDiffError
from structdiff.pose.aggregation import Method
from structdiff.pose.data import PoseClip, PoseDataset

if TYPE_CHECKING:
    from structdiff.pose.ddhpose import PoseLifter

BONES = ("free", "constant")
_COUNTS = ("frames", "width", "depth", "heads", "lifter_width", "lifter_blocks", "n_hypotheses")
_TRAINING = ("batch_size", "max_steps", "checkpoint_every")
_RATES = ("learning_rate", "weight_decay")
_CHOSEN = ("batch_size", *_RATES, "max_minutes")
"""Settings that may be None: the model chooses, or there is no limit."""
_SHARES = ("dropout", "turn", "lifter_share", "calibration")
_BELOW_1 = ("dropout", "calibration")


@dataclass(frozen=True)
class Optimisation:
    """Settings of the optimiser, chosen where the model leaves them open."""

    batch_size: int
    learning_rate: float
    weight_decay: float

    @classmethod
    def of(cls, model: PoseLifter) -> Optimisation:
        """The model's own, or those of its preset (DDHPose's code: 1024 frames a batch)."""
        own = cls(16, 1e-3, 0.01)
        if model.preset == "paper":
            own = cls(max(1, 1024 // int(model.frames)), 1e-4, 0.1)
        given = {name: getattr(model, name) for name in ("batch_size", *_RATES)}
        return replace(own, **{name: v for name, v in given.items() if v is not None})


def check_settings(model: PoseLifter) -> None:
    """Raise StructDiffError, naming the setting and what would be right, for an impossible one."""

    def given(*names: str) -> list[tuple[str, Any]]:
        values = [(name, getattr(model, name)) for name in names]
        return [(k, v) for k, v in values if v is not None or k not in _CHOSEN]

    for name, value in given(*_COUNTS, *_TRAINING):
        whole(name, value)
    for name, value in given(*_SHARES):
        if not is_number(value) or not 0 <= value <= 1 or (name in _BELOW_1 and value == 1):
            end = "1 (excluded)" if name in _BELOW_1 else "1"
            raise StructDiffError(f"{name} must lie between 0 and {end}, got {value!r}")
    for name, value in given("learning_rate", "max_minutes"):
        if not is_number(value) or not value > 0:
            raise StructDiffError(f"{name} must be a positive number, got {value!r}")
    for name, value in given("weight_decay", "direction_weight"):
        if not is_number(value) or not value >= 0:
            raise StructDiffError(f"{name} must be a number from 0 on, got {value!r}")
    for name, known in (("bones", BONES), ("aggregation", get_args(Method))):
        if getattr(model, name) not in known:
            raise StructDiffError(
                f"unknown {name} {getattr(model, name)!r}: choose one of {', '.join(known)}"
            )
    whole_seed("overlap", model.overlap)
    whole_seed("random_state", model.random_state)


def held_out(data: PoseDataset, share: float, seed: int) -> tuple[PoseDataset, PoseDataset]:
    """Training clips, and about a share of them kept out; views of a motion stay together.

    Parameters
    ----------
    data
        Clips; ``motion/view`` names the views of a motion.
    share
        Of the frames.
    seed
        Which motions.
    """
    motions: dict[str, int] = {}
    for clip in data:
        motion = clip.name.rpartition("/")[0] or clip.name
        motions[motion] = motions.get(motion, 0) + len(clip)
    names = sorted(motions)
    wanted, kept = share * sum(motions.values()), set[str]()
    for number in np.random.default_rng(seed).permutation(len(names)):
        # What is kept stays below what was asked for, and something is left to train on.
        if sum(motions[n] for n in kept) + motions[names[number]] <= wanted:
            kept.add(names[number])
    inside = [(clip.name.rpartition("/")[0] or clip.name) in kept for clip in data]
    chosen = {id(clip) for clip, yes in zip(data, inside, strict=True) if yes}
    return (
        data.select(lambda clip: id(clip) not in chosen),
        data.select(lambda clip: id(clip) in chosen),
    )


def shortened(data: PoseDataset, frames: int, least: int) -> PoseDataset:
    """The beginnings of all clips, about ``frames`` in all, but ``least`` of each that has them."""
    each = max(least, frames // len(data))

    def begin(clip: PoseClip) -> PoseClip:
        parts = {k: getattr(clip, k) for k in ("keypoints", "poses", "confidence", "valid")}
        cut = {k: v[:each] for k, v in parts.items() if v is not None}
        return replace(clip, **cut)

    return replace(data, clips=tuple(begin(clip) for clip in data))
