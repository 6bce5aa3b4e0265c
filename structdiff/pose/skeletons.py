"""Skeletons as values: which joints there are, which bones tie them, and which mirror which.

A pose is an array whose joints lie in the order of its skeleton; nothing in this package assumes
one. A bone is named after its child joint, so tensors over bones have a slot per joint and an empty
one for the root.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from structdiff.errors import StructDiffError


@dataclass(frozen=True)
class Skeleton:
    """A tree of named joints with a plane of symmetry.

    Parameters
    ----------
    name
        Of the skeleton; files state it.
    joints
        Names of the joints, in the order of the arrays.
    parents
        Parent of every joint, -1 for the root.
    left, right
        Joints of the two sides, paired in this order.

    Raises
    ------
    StructDiffError
        If the parents are no tree over the joints, or the sides do not pair up.
    """

    name: str
    joints: tuple[str, ...]
    parents: tuple[int, ...]
    left: tuple[int, ...]
    right: tuple[int, ...]

    def __post_init__(self) -> None:
        for field in ("joints", "parents", "left", "right"):
            values = getattr(self, field)
            kind = str if field == "joints" else int
            object.__setattr__(self, field, tuple(kind(v) for v in values))
        count = len(self.joints)
        if len(self.parents) != count or len(set(self.joints)) != count:
            raise StructDiffError(
                f"skeleton {self.name!r} has {count} joints ({len(set(self.joints))} different "
                f"names) and {len(self.parents)} parents: give one parent per named joint"
            )
        if sum(p == -1 for p in self.parents) != 1 or not all(
            -1 <= p < count for p in self.parents
        ):
            raise StructDiffError(
                f"the parents of skeleton {self.name!r} must be joint numbers below {count}, "
                f"and -1 exactly once, for the root; got {self.parents}"
            )
        self._check_tree()
        self._check_sides()

    def _check_tree(self) -> None:
        for joint in range(len(self.joints)):
            seen, at = set(), joint
            while at != -1:
                if at in seen:
                    raise StructDiffError(
                        f"joint {self.joints[joint]!r} of skeleton {self.name!r} does not lead to "
                        "the root: its parents run in a circle"
                    )
                seen.add(at)
                at = self.parents[at]

    def _check_sides(self) -> None:
        both = self.left + self.right
        if len(self.left) != len(self.right) or len(set(both)) != len(both):
            raise StructDiffError(
                f"left and right of skeleton {self.name!r} must pair up, each joint once; "
                f"got {self.left} and {self.right}"
            )
        if not all(0 <= j < len(self.joints) for j in both):
            raise StructDiffError(f"a side of skeleton {self.name!r} names a joint it has not")

    def __len__(self) -> int:
        return len(self.joints)

    @cached_property
    def root(self) -> int:
        """The joint without a parent."""
        return self.parents.index(-1)

    @cached_property
    def depths(self) -> tuple[int, ...]:
        """Level of every joint: its number of bones from the root."""

        def depth(joint: int) -> int:
            return 0 if self.parents[joint] == -1 else 1 + depth(self.parents[joint])

        return tuple(depth(j) for j in range(len(self)))

    @cached_property
    def levels(self) -> tuple[tuple[int, ...], ...]:
        """The joints of every level, root first."""
        return tuple(
            tuple(j for j in range(len(self)) if self.depths[j] == level)
            for level in range(max(self.depths) + 1)
        )

    @cached_property
    def bones(self) -> tuple[int, ...]:
        """Child joints: one per bone, in joint order."""
        return tuple(j for j in range(len(self)) if j != self.root)

    @cached_property
    def children(self) -> tuple[tuple[int, ...], ...]:
        """Children of every joint."""
        return tuple(
            tuple(c for c in range(len(self)) if self.parents[c] == j) for j in range(len(self))
        )

    @cached_property
    def chains(self) -> tuple[tuple[int, ...], ...]:
        """The paths from the root to the leaves, by leaf."""

        def path(joint: int) -> tuple[int, ...]:
            parent = self.parents[joint]
            return (joint,) if parent == -1 else (*path(parent), joint)

        return tuple(path(j) for j in range(len(self)) if not self.children[j])

    @cached_property
    def mirrored(self) -> tuple[int, ...]:
        """For every joint, the one it changes places with in a mirror image."""
        order = list(range(len(self)))
        for a, b in zip(self.left, self.right, strict=True):
            order[a], order[b] = b, a
        return tuple(order)

    @cached_property
    def symmetric_bones(self) -> tuple[tuple[int, int], ...]:
        """Pairs of bones, (left, right), of which both parents mirror each other too."""
        return tuple(
            (a, b)
            for a, b in zip(self.left, self.right, strict=True)
            if self.parents[a] != -1 and self.mirrored[self.parents[a]] == self.parents[b]
        )

    @cached_property
    def hops(self) -> npt.NDArray[np.int64]:
        """Bones on the way from joint to joint, (J, J)."""
        ancestors = np.zeros((len(self), len(self)), dtype=np.int64)
        for joint in range(len(self)):
            at = joint
            while at != -1:
                ancestors[joint, at] = 1
                at = self.parents[at]
        shared = ancestors @ ancestors.T  # joints on the common part of both ways to the root
        depth = np.asarray(self.depths)
        return depth[:, None] + depth - 2 * (shared - 1)

    def index(self, joint: str) -> int:
        """Number of a joint by its name, whatever the case.

        Raises
        ------
        StructDiffError
            If there is none of that name.
        """
        names = [j.lower() for j in self.joints]
        if joint.lower() not in names:
            raise StructDiffError(
                f"skeleton {self.name!r} has no joint {joint!r}: it has {', '.join(self.joints)}"
            )
        return names.index(joint.lower())

    def to_dict(self) -> dict[str, object]:
        """Plain values, for files."""
        return {
            "name": self.name,
            "joints": list(self.joints),
            "parents": list(self.parents),
            "left": list(self.left),
            "right": list(self.right),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, object]) -> Skeleton:
        """Inverse of :meth:`to_dict`."""
        return cls(**{k: values[k] for k in ("name", "joints", "parents", "left", "right")})  # type: ignore[arg-type]


H36M_17 = Skeleton(
    "h36m17",
    (
        *("Pelvis", "RHip", "RKnee", "RAnkle", "LHip", "LKnee", "LAnkle", "Spine", "Thorax"),
        *("Neck", "Head", "LShoulder", "LElbow", "LWrist", "RShoulder", "RElbow", "RWrist"),
    ),
    (-1, 0, 1, 2, 0, 4, 5, 0, 7, 8, 9, 8, 11, 12, 8, 14, 15),
    left=(4, 5, 6, 11, 12, 13),
    right=(1, 2, 3, 14, 15, 16),
)
"""17 of Human3.6M's 32 joints, the order of VideoPose3D and most lifters."""

MPI_INF_3DHP_17 = Skeleton(
    "3dhp17",
    (
        *("HeadTop", "Neck", "RShoulder", "RElbow", "RWrist", "LShoulder", "LElbow", "LWrist"),
        *("RHip", "RKnee", "RAnkle", "LHip", "LKnee", "LAnkle", "Pelvis", "Spine", "Head"),
    ),
    (1, 15, 1, 2, 3, 1, 5, 6, 14, 8, 9, 14, 11, 12, -1, 14, 1),
    left=(5, 6, 7, 11, 12, 13),
    right=(2, 3, 4, 8, 9, 10),
)
"""The 17 joints of MPI-INF-3DHP's test set."""

COCO_17 = Skeleton(
    "coco17",
    (
        *("Nose", "LEye", "REye", "LEar", "REar", "LShoulder", "RShoulder", "LElbow", "RElbow"),
        *("LWrist", "RWrist", "LHip", "RHip", "LKnee", "RKnee", "LAnkle", "RAnkle"),
    ),
    (-1, 0, 0, 1, 2, 0, 0, 5, 6, 7, 8, 5, 6, 11, 12, 13, 14),
    left=(1, 3, 5, 7, 9, 11, 13, 15),
    right=(2, 4, 6, 8, 10, 12, 14, 16),
)
"""COCO's keypoints, which have no pelvis: the tree hangs from the nose."""

SKELETONS = {s.name: s for s in (H36M_17, MPI_INF_3DHP_17, COCO_17)}
"""By name."""


def get_skeleton(skeleton: str | Skeleton) -> Skeleton:
    """A skeleton by its name; one that is a skeleton already is handed back.

    Raises
    ------
    StructDiffError
        If the name is unknown.
    """
    if isinstance(skeleton, Skeleton):
        return skeleton
    if skeleton not in SKELETONS:
        raise StructDiffError(
            f"unknown skeleton {skeleton!r}: choose one of {', '.join(SKELETONS)}, or give a "
            "Skeleton"
        )
    return SKELETONS[skeleton]


Array: TypeAlias = "npt.NDArray[np.floating]"
_Mix: TypeAlias = "Mapping[str, Mapping[str, float]]"

# A joint of the target as a weighted sum of joints of the source; all others keep their names.
_CONVERSIONS: dict[tuple[str, str], _Mix] = {
    # COCO knows no trunk and no skull: what the face and the limbs say of them, approximately.
    ("coco17", "h36m17"): {
        "Pelvis": {"LHip": 0.5, "RHip": 0.5},
        "Spine": {"LHip": 0.25, "RHip": 0.25, "LShoulder": 0.25, "RShoulder": 0.25},
        "Thorax": {"LShoulder": 1 / 3, "RShoulder": 1 / 3, "Nose": 1 / 3},
        "Neck": {"Nose": 0.75, "LShoulder": 0.125, "RShoulder": 0.125},
        "Head": {"LEye": 0.5, "REye": 0.5, "LEar": 0.5, "REar": 0.5, "Nose": -1.0},
    },
    ("3dhp17", "h36m17"): {
        "Thorax": {"Neck": 1.0},
        "Neck": {"Head": 1.0},
        "Head": {"HeadTop": 1.0},
    },
    ("h36m17", "3dhp17"): {
        "Neck": {"Thorax": 1.0},
        "Head": {"Neck": 1.0},
        "HeadTop": {"Head": 1.0},
    },
}


def conversion_matrix(source: Skeleton, target: Skeleton) -> Array:
    """Weights (J_target, J_source) that make the target's joints out of the source's.

    From COCO the trunk and the head are approximations, with errors of several centimetres; from
    MPI-INF-3DHP to Human3.6M every joint has its counterpart.

    Raises
    ------
    StructDiffError
        If a joint of the target cannot be had from the source.
    """
    if source == target:
        return np.eye(len(source))
    if (source.name, target.name) == ("coco17", "3dhp17"):
        return conversion_matrix(H36M_17, target) @ conversion_matrix(source, H36M_17)
    mixes = _CONVERSIONS.get((source.name, target.name), {})
    matrix = np.zeros((len(target), len(source)))
    lacking = []
    for row, joint in enumerate(target.joints):
        mix = mixes.get(joint, {joint: 1.0})
        if not set(mix) <= set(source.joints):
            lacking.append(joint)
            continue
        for name, weight in mix.items():
            matrix[row, source.index(name)] = weight
    if lacking:
        raise StructDiffError(
            f"{source.name} poses cannot be turned into {target.name}: there is nothing to make "
            f"{', '.join(lacking)} of"
        )
    return matrix


def convert(values: Array, source: str | Skeleton, target: str | Skeleton) -> Array:
    """Joints of one skeleton as those of another.

    Parameters
    ----------
    values
        2D or 3D joints, (..., J, D); what is made of a missing (NaN) joint is missing.
    source, target
        Skeletons or their names.

    Raises
    ------
    StructDiffError
        If the array has another number of joints than the source, or a joint cannot be had.
    """
    source, target = get_skeleton(source), get_skeleton(target)
    values = _floating(values)
    if values.ndim < 2 or values.shape[-2] != len(source):
        raise StructDiffError(
            f"expected (..., {len(source)}, D) joints of {source.name}, got {values.shape}"
        )
    matrix = conversion_matrix(source, target).astype(values.dtype)
    missing = np.isnan(values)  # spoils what is made of it, and nothing else
    lost = (matrix != 0).astype(values.dtype) @ missing.astype(values.dtype) > 0
    return np.where(lost, np.nan, matrix @ np.where(missing, 0, values)).astype(values.dtype)


def _floating(values: npt.ArrayLike) -> Array:
    """Whole numbers as floats: joints are averaged."""
    array = np.asarray(values)
    return array if np.issubdtype(array.dtype, np.floating) else array.astype(np.float64)


def convert_confidence(values: Array, source: str | Skeleton, target: str | Skeleton) -> Array:
    """Confidences (..., J) of converted joints: a joint is as sure as the least of its sources."""
    source, target = get_skeleton(source), get_skeleton(target)
    used = conversion_matrix(source, target) != 0
    values = np.asarray(values)
    spread = np.where(used, values[..., None, :], np.inf)
    least: Array = spread.min(axis=-1).astype(values.dtype)
    return least


def mirror(values: Array, skeleton: str | Skeleton, *, centre: float = 0.0) -> Array:
    """The mirror image: x is negated about ``centre``, the sides change places.

    Parameters
    ----------
    values
        2D or 3D joints (..., J, D), x first.
    skeleton
        Their skeleton.
    centre
        Where x stays: 0 for normalised coordinates, (w - 1) / 2 or w / 2 for pixels.
    """
    order = list(get_skeleton(skeleton).mirrored)
    flipped = np.array(_floating(values)[..., order, :])
    flipped[..., 0] = 2 * centre - flipped[..., 0]
    return flipped


def joint_order(names: Sequence[str], target: Skeleton) -> list[int]:
    """Where the target's joints stand in a file that lists its own, by name.

    Raises
    ------
    StructDiffError
        If a joint of the target is not listed.
    """
    listed = [n.lower() for n in names]
    missing = [j for j in target.joints if j.lower() not in listed]
    if missing:
        raise StructDiffError(
            f"no column for {', '.join(missing)} of {target.name}: there are {', '.join(names)}"
        )
    return [listed.index(j.lower()) for j in target.joints]
