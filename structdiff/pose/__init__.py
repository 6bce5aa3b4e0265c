"""3D human pose: lifting 2D keypoints with DDHPose, and the evaluation of poses."""

from structdiff.pose import metrics
from structdiff.pose.evaluation import evaluate

__all__ = ["evaluate", "metrics"]
