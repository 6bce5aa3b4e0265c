"""Readers of the files that people have: each gives a :class:`~structdiff.pose.data.PoseDataset`.

=============================  ===================================================================
:func:`read_poses`             plain npz, npy and csv that state what they hold; :func:`write_poses`
=============================  ===================================================================
"""

from structdiff.pose.readers.tables import read_hypotheses, read_poses
from structdiff.pose.readers.writing import write_poses

__all__ = ["read_hypotheses", "read_poses", "write_poses"]
