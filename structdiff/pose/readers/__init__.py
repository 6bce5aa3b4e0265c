"""Readers of the files that people have: each gives a :class:`~structdiff.pose.data.PoseDataset`.

=============================  ===================================================================
:func:`read_poses`             plain npz, npy and csv that state what they hold; :func:`write_poses`
=============================  ===================================================================
"""

from structdiff.pose.readers.archives import convert_to_plain_npz
from structdiff.pose.readers.keypoint_json import read_keypoint_json
from structdiff.pose.readers.tables import read_hypotheses, read_poses
from structdiff.pose.readers.videopose3d import read_videopose3d
from structdiff.pose.readers.writing import write_poses

__all__ = [
    "convert_to_plain_npz",
    "read_hypotheses",
    "read_keypoint_json",
    "read_poses",
    "read_videopose3d",
    "write_poses",
]
