"""3D human pose: lifting 2D keypoints with DDHPose, and the evaluation of poses."""
