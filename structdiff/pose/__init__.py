"""3D human pose: lifting 2D keypoints with DDHPose, and the evaluation of poses."""

from structdiff.pose import metrics
from structdiff.pose.aggregation import aggregate, fit_temperature
from structdiff.pose.cameras import Camera, read_cameras
from structdiff.pose.data import PoseClip, PoseDataset, load_cmu17, load_cmu17_demo
from structdiff.pose.ddhpose import PoseLifter
from structdiff.pose.evaluation import evaluate
from structdiff.pose.kinematics import compose, decompose
from structdiff.pose.lifted import Lifted
from structdiff.pose.skeletons import COCO_17, H36M_17, MPI_INF_3DHP_17, Skeleton, convert

__all__ = [
    "COCO_17",
    "H36M_17",
    "MPI_INF_3DHP_17",
    "Camera",
    "Lifted",
    "PoseClip",
    "PoseDataset",
    "PoseLifter",
    "Skeleton",
    "aggregate",
    "compose",
    "convert",
    "decompose",
    "evaluate",
    "fit_temperature",
    "load_cmu17",
    "load_cmu17_demo",
    "metrics",
    "read_cameras",
]
