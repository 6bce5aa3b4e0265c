"""Readers of the files that people have: each gives a :class:`~structdiff.pose.data.PoseDataset`.

================================  ================================================================
:func:`read_keypoints`            2D joints of any file below; its content says which it is
:func:`read_keypoint_json`        detectors' JSON: COCO results and annotations, MMPose, AlphaPose
:func:`read_poses`                plain npz, npy and csv that state what they hold, as
                                  :func:`write_poses` makes them; :func:`read_hypotheses`
:func:`read_videopose3d`          Human3.6M and own videos in VideoPose3D's archives
:func:`read_mpi_inf_3dhp`         MPI-INF-3DHP's test set; :func:`read_mpi_inf_3dhp_activities`
:func:`read_mpi_inf_3dhp_npz`     MPI-INF-3DHP in the archives of P-STMO and D3DP
:func:`read_h36m_cameras`         calibrations in Human3.6M's terms
:func:`convert_to_plain_npz`      pickled archives as plain ones
:func:`converted`                 a data set on another skeleton
================================  ================================================================

No reader executes a pickle. Every one checks units, joint order and axes
(:mod:`structdiff.pose.checks`) and says in ``notes`` what it had to do.
"""

from structdiff.pose.readers._common import converted
from structdiff.pose.readers.archives import convert_to_plain_npz
from structdiff.pose.readers.h36m_cameras import read_h36m_cameras
from structdiff.pose.readers.keypoint_json import read_keypoint_json
from structdiff.pose.readers.mpi_inf_3dhp import (
    read_mpi_inf_3dhp,
    read_mpi_inf_3dhp_activities,
    read_mpi_inf_3dhp_npz,
)
from structdiff.pose.readers.sniffing import read_keypoints
from structdiff.pose.readers.tables import read_hypotheses, read_poses
from structdiff.pose.readers.videopose3d import read_videopose3d
from structdiff.pose.readers.writing import write_poses

__all__ = [
    "convert_to_plain_npz",
    "converted",
    "read_h36m_cameras",
    "read_hypotheses",
    "read_keypoint_json",
    "read_keypoints",
    "read_mpi_inf_3dhp",
    "read_mpi_inf_3dhp_activities",
    "read_mpi_inf_3dhp_npz",
    "read_poses",
    "read_videopose3d",
    "write_poses",
]
