"""How the two standard sets are scored: what is averaged over what, and on which joints.

==============  =========================  ===========================================  ==========
set             mean within                then                                         PCK, AUC
==============  =========================  ===========================================  ==========
Human3.6M       frames of an action        plain mean over the actions                  all joints
MPI-INF-3DHP    valid frames of a          plain mean over the sequences                14 joints
                sequence
==============  =========================  ===========================================  ==========

Every frame counts once. Sources: Ionescu et al., PAMI 2014, with the per-action means of
VideoPose3D; Mehta et al., 3DV 2017, with the joint groups of its evaluation code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from structdiff.errors import StructDiffError
from structdiff.pose.skeletons import H36M_17, MPI_INF_3DHP_17, Skeleton


@dataclass(frozen=True)
class Protocol:
    """How a set of clips becomes a table.

    Parameters
    ----------
    name
        Of the protocol.
    skeleton
        Poses are on unless they say otherwise; None leaves it to the data.
    rows
        What a row of the table is: the clips of an action, or one clip (a sequence).
    metrics
        Names of the scores it asks for, of :data:`structdiff.pose.evaluation.METRICS`.
    counted
        Names of the joints that PCK and AUC count; None is those of the distances.
    mean_of_rows
        Whether the plain mean over the rows is a result of its own.
    """

    name: str
    skeleton: Skeleton | None
    rows: Literal["action", "clip"]
    metrics: tuple[str, ...]
    counted: tuple[str, ...] | None = None
    mean_of_rows: bool = True

    def joints(self, skeleton: Skeleton) -> tuple[int, ...] | None:
        """The joints of a skeleton that PCK and AUC count, None for those of the distances.

        Raises
        ------
        StructDiffError
            If it lacks one of them.
        """
        if self.counted is None:
            return None
        lacking = [joint for joint in self.counted if joint not in skeleton.joints]
        if lacking:
            raise StructDiffError(
                f"protocol {self.name!r} counts joints that skeleton {skeleton.name!r} has not: "
                f"{', '.join(lacking)}; turn poses into {self.skeleton and self.skeleton.name} "
                "with structdiff.pose.skeletons.convert"
            )
        return tuple(skeleton.index(joint) for joint in self.counted)


H36M = Protocol("h36m", H36M_17, "action", ("MPJPE", "P-MPJPE", "N-MPJPE", "MPJVE"))
"""Human3.6M: millimetres per action."""

MPI_INF_3DHP = Protocol(
    "3dhp",
    MPI_INF_3DHP_17,
    "clip",
    ("PCK", "AUC", "MPJPE"),
    counted=tuple(j for j in MPI_INF_3DHP_17.joints if j not in ("Pelvis", "Spine", "Head")),
)
"""MPI-INF-3DHP: PCK and AUC over 14 joints (head top, neck, limbs), MPJPE over 17."""

POOLED = Protocol(
    "pooled",
    None,
    "clip",
    (
        *("MPJPE", "P-MPJPE", "N-MPJPE", "MPJVE", "acceleration error", "PCK", "AUC"),
        *("bone length deviation", "symmetry gap"),
    ),
    mean_of_rows=False,
)
"""No set's own: every metric, over all clips."""

PROTOCOLS = {"h36m": H36M, "3dhp": MPI_INF_3DHP}
"""By name."""


def get_protocol(protocol: str | Protocol | None) -> Protocol:
    """A protocol by its name; None is :data:`POOLED`.

    Raises
    ------
    StructDiffError
        If the name is unknown.
    """
    if protocol is None:
        return POOLED
    if isinstance(protocol, Protocol):
        return protocol
    if protocol not in PROTOCOLS:
        raise StructDiffError(
            f"unknown protocol {protocol!r}: choose one of {', '.join(PROTOCOLS)}, or None for "
            "the mean over all clips"
        )
    return PROTOCOLS[protocol]
