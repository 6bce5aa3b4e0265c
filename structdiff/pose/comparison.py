"""A pose lifter under every sampler, for :mod:`structdiff.samplers.comparison`.

What is compared are hypotheses of clips with known poses: how far their mean is off, and how well
their spread says so.
"""

from __future__ import annotations

from copy import copy
from hashlib import blake2b

import numpy as np
import numpy.typing as npt

from structdiff.errors import StructDiffError
from structdiff.pose.calibration import energy_score
from structdiff.pose.data import PoseDataset
from structdiff.pose.ddhpose import PoseLifter
from structdiff.pose.metrics import mpjpe, root_relative
from structdiff.pose.sampling import choose_sampler
from structdiff.pose.settings import shortened
from structdiff.samplers import Sampler
from structdiff.samplers.comparison import ComparableModel, Metric

Array = npt.NDArray[np.floating]

_HYPOTHESES = 5


class LifterComparison(ComparableModel):
    """A lifter and the clips it lifts.

    Parameters
    ----------
    model
        Fitted or loaded.
    reference
        Clips with 2D and 3D joints on the model's skeleton. An object that is drawn is a frame with
        five hypotheses; of n of them, the clips' beginnings have an equal share each.
    name
        How the user calls the model.

    Raises
    ------
    StructDiffError
        If the model is not fitted, or a clip lacks 2D or 3D joints.
    """

    metrics = (
        Metric("mpjpe", "MPJPE of the mean of 5 hypotheses, mm", "smaller"),
        Metric("energy", "energy score, mm", "smaller"),
    )
    usual_count = 720

    def __init__(self, model: PoseLifter, reference: PoseDataset, name: str = "poses") -> None:
        if not hasattr(model, "denoiser_"):
            raise StructDiffError("this PoseLifter is not fitted: there is nothing to draw")
        for clip in reference:
            if clip.keypoints is None or clip.poses is None:
                raise StructDiffError(f"clip {clip.name!r} has not both 2D and 3D joints")
        self.name, self.reference = name, reference
        self.model = copy(model)  # the caller's estimator keeps its settings
        self.model.steps, self.model.progress, self.model.bones = None, False, "free"
        self.model.aggregation = "p-agg"
        self.fingerprint = _fingerprint(model, reference)

    def sampler(self, name: str, steps: int) -> Sampler:
        """On the grid that the model runs it on."""
        return choose_sampler(self.model.spec_, self.model.denoiser_, name, steps)

    def _clips(self, n: int) -> PoseDataset:
        return shortened(self.reference, n, 1)

    def draw(self, sampler: Sampler, n: int, seed: int) -> tuple[PoseDataset, list[Array]]:
        """About ``n`` frames, and hypotheses (5, T, J, 3) of every clip they are in."""
        self.model.sampler = sampler
        clips = self._clips(n)
        lifted = self.model.predict(clips, n_hypotheses=_HYPOTHESES, seed=seed)
        return clips, [each.hypotheses for each in lifted]

    def scores(self, drawn: tuple[PoseDataset, list[Array]]) -> dict[str, float]:
        """MPJPE of the mean, and the energy score, each over all frames.

        Taken as they are: a sampler that goes astray has large ones.
        """
        clips, hypotheses = drawn
        truth = [root_relative(clip.in_camera(), clips.skeleton) for clip in clips]
        mean = np.concatenate([each.mean(0) for each in hypotheses])
        bones = clips.skeleton.bones
        return {
            "mpjpe": float(mpjpe(mean, np.concatenate(truth))),
            "energy": float(energy_score(hypotheses, truth, joints=bones)),
        }


def _fingerprint(model: PoseLifter, reference: PoseDataset) -> str:
    """Of the weights and the reference."""
    digest = blake2b(digest_size=6)
    for name, value in sorted(model.denoiser_.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    digest.update(repr((model.spec_.to_dict(), model.spread_)).encode())
    for clip in reference:
        for part in (clip.keypoints, clip.poses):
            digest.update(np.ascontiguousarray(part).tobytes())
    return digest.hexdigest()
