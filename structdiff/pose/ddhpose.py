"""PoseLifter: 3D poses with uncertainty from 2D keypoints, by diffusion of bones (DDHPose)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from sklearn.base import BaseEstimator
from tqdm import tqdm

from structdiff.arguments import whole, whole_seed
from structdiff.denoisers import Denoiser
from structdiff.devices import sampling_device
from structdiff.errors import StructDiffError
from structdiff.pose.data import PoseDataset
from structdiff.pose.inputs import as_dataset, is_single
from structdiff.pose.lifted import lifted_clip
from structdiff.pose.models import ModelSpec, build_denoiser, new_spec
from structdiff.pose.sampling import PoseSampler, choose_sampler
from structdiff.pose.settings import check_settings, held_out, shortened
from structdiff.pose.skeletons import Skeleton, get_skeleton
from structdiff.pose.spread import calibrate, widened
from structdiff.pose.storage import SavedPoseModel
from structdiff.pose.windows import common_view, network_input

if TYPE_CHECKING:
    import pandas as pd

_CALIBRATION_HYPOTHESES, _CALIBRATION_FRAMES = 8, 1500
"""Enough for two numbers, and a minute of the training's time at most."""


class PoseLifter(SavedPoseModel, BaseEstimator):
    """Lifts 2D keypoints of a person to 3D joints, with several hypotheses.

    2D joints are pixels (origin top left, y down), 3D joints metres in camera axes (x right, y
    down, z forward), both in the order of the skeleton. NaN is a missing 2D joint.

    Parameters
    ----------
    frames
        N of a window, which the network sees at once.
    skeleton
        Of the joints, or its name.
    preset
        ``"paper"``: DDHPose's sizes and training, and no lifter inside.
    width, depth, heads
        Of the transformer.
    layout
        ``"corrected"``, or ``"reference"`` (with the preset): the published network with its
        faults, see :class:`~structdiff.pose.networks.HSTDenoiser`.
    spatial, temporal
        Attention over joints (``"hrst"``, ``"hop-bias"``, ``"plain"``) and over frames (``"hrtt"``,
        ``"plain"``).
    lifter_width, lifter_blocks, dropout
        Of the light lifter inside.
    sampler, steps
        Name of a sampler or a :class:`~structdiff.samplers.Sampler`, and its steps (K); by default
        the model's own: 5 steps of DDPM on the published indices, 1 under the preset.
    n_hypotheses
        H.
    flip
        Average predictions with the mirror image's.
    aggregation
        How hypotheses become one pose, see :func:`~structdiff.pose.aggregation.aggregate`.
    bones
        ``"free"``, or ``"constant"``: one length per bone for the whole clip.
    overlap
        Frames that neighbouring windows of a clip share; None is the model's own.
    turn
        Share of training windows that are turned about the vertical in front of their camera; 0
        where clips have no cameras. The preset turns none.
    direction_weight
        Of the loss of bone directions; 1 under the preset.
    lifter_share
        Of the training steps, at the beginning, that train the lifter alone.
    calibration
        Share of the training clips held out to calibrate the spread of the hypotheses that the
        model's own sampler draws; none under the preset. Views of a motion, named ``motion/view``,
        stay together.
    max_steps, max_minutes, precision
        Of training, which stops after the steps or the minutes, whichever come first.
    batch_size, learning_rate, weight_decay
        None is 16 windows, 1e-3 and 0.01; under the preset ``1024 // frames``, 1e-4 and 0.1 as
        published, at a constant rate.
    checkpoint_every
        Optimiser steps between checkpoints, when ``fit`` is given a folder.
    accelerator
        Where to train and sample: ``"auto"``, ``"cpu"`` or ``"gpu"``.
    random_state
        Seeds weights, data order, noise and, unless a call gives its own, sampling.
    progress
        Show progress bars.

    Attributes
    ----------
    denoiser_ : Denoiser
        The trained model; works with every sampler of :mod:`structdiff.samplers`.
    spec_ : ModelSpec
        What it is made of.
    spread_ : float
        Factor on the hypotheses' spread, from held-out clips; 1 without any.
    temperature_ : float or None
        Of likelihood-weighted aggregation, from held-out clips; None without any.
    training_ : dict
        Record of the training.
    """

    def __init__(
        self,
        frames: int = 27,
        *,
        skeleton: str | Skeleton = "h36m17",
        preset: str | None = None,
        width: int = 48,
        depth: int = 2,
        heads: int = 4,
        layout: str = "corrected",
        spatial: str = "hrst",
        temporal: str = "hrtt",
        lifter_width: int = 160,
        lifter_blocks: int = 3,
        dropout: float = 0.0,
        sampler: Any = None,
        steps: int | None = None,
        n_hypotheses: int = 5,
        flip: bool = True,
        aggregation: str = "p-agg",
        bones: str = "free",
        overlap: int | None = None,
        turn: float = 0.5,
        direction_weight: float = 0.1,
        lifter_share: float = 0.9,
        calibration: float = 0.06,
        batch_size: int | None = None,
        max_steps: int = 4500,
        max_minutes: float | None = None,
        learning_rate: float | None = None,
        weight_decay: float | None = None,
        precision: str = "32-true",
        checkpoint_every: int = 500,
        accelerator: str = "auto",
        random_state: int | None = None,
        progress: bool = True,
    ) -> None:
        self.frames = frames
        self.skeleton = skeleton
        self.preset = preset
        self.width = width
        self.depth = depth
        self.heads = heads
        self.layout = layout
        self.spatial = spatial
        self.temporal = temporal
        self.lifter_width = lifter_width
        self.lifter_blocks = lifter_blocks
        self.dropout = dropout
        self.sampler = sampler
        self.steps = steps
        self.n_hypotheses = n_hypotheses
        self.flip = flip
        self.aggregation = aggregation
        self.bones = bones
        self.overlap = overlap
        self.turn = turn
        self.direction_weight = direction_weight
        self.lifter_share = lifter_share
        self.calibration = calibration
        self.batch_size = batch_size
        self.max_steps = max_steps
        self.max_minutes = max_minutes
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.precision = precision
        self.checkpoint_every = checkpoint_every
        self.accelerator = accelerator
        self.random_state = random_state
        self.progress = progress

    # --- training ----------------------------------------------------------------------------
    def fit(
        self,
        keypoints: Any,
        poses: Any = None,
        *,
        image_size: Any = None,
        confidence: Any = None,
        camera: Any = None,
        out: str | Path | None = None,
        resume: bool = False,
        check: bool = True,
    ) -> PoseLifter:
        """Train on clips with 2D and 3D joints.

        Parameters
        ----------
        keypoints
            A :class:`~structdiff.pose.data.PoseDataset`, or a list of 2D clips (T, J, 2) in pixels.
        poses
            3D clips (T, J, 3) in camera axes, metres, for arrays of keypoints.
        image_size, camera
            One for all clips, or one each.
        confidence
            Not used in training; there for the habits of ``predict``.
        out
            Folder for checkpoints and the log; None keeps neither.
        resume
            Continue the run in ``out``: the same clips and settings give the same model as an
            uninterrupted run.
        check
            Refuse clips whose units, axes or joint order look wrong.

        Raises
        ------
        StructDiffError
            If clips do not fit together or fail a check, or a setting is impossible.
        CheckpointError
            If ``out`` already holds a run and ``resume`` is False.
        """
        from structdiff.pose.training import TrainingBatches, train, training_windows

        check_settings(self)
        skeleton = get_skeleton(self.skeleton)
        data = as_dataset(
            keypoints,
            skeleton,
            poses=poses,
            image_size=image_size,
            confidence=confidence,
            camera=camera,
            check=check,
        )
        # The published sampler takes one step, after which hypotheses are alike.
        share = 0.0 if self.preset == "paper" else float(self.calibration)
        learnt, kept = held_out(data, share, self._seed())
        spec = new_spec(
            skeleton,
            whole("frames", self.frames),
            preset=self.preset,
            width=self.width,
            depth=self.depth,
            heads=self.heads,
            layout=self.layout,
            spatial=self.spatial,
            temporal=self.temporal,
            lifter_width=self.lifter_width,
            lifter_blocks=self.lifter_blocks,
            dropout=self.dropout,
            view=common_view(list(data)),
        )
        batches = TrainingBatches(training_windows(self, learnt, spec), spec, self._seed())
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self._seed())
            denoiser = build_denoiser(spec)
        self.pose_sampler(denoiser, spec)  # an impossible one is an error now, not afterwards
        record = train(self, denoiser, batches, out, resume)
        self.training_ = record | {"clips": len(learnt), "held_out": len(kept)}
        self.spec_, self.denoiser_ = spec, denoiser.eval().requires_grad_(False)
        self.spread_, self.temperature_ = 1.0, None
        if len(kept):
            self._calibrate(kept, skeleton)
        return self

    def _calibrate(self, clips: PoseDataset, skeleton: Skeleton) -> None:
        """Spread and temperature from clips that training did not see."""
        clips = shortened(clips, _CALIBRATION_FRAMES, int(self.frames))
        drawn = self._hypotheses(clips, _CALIBRATION_HYPOTHESES, self._seed(), "calibrating")
        self.spread_, self.temperature_ = calibrate(drawn, clips, skeleton)

    def _seed(self) -> int:
        return 0 if self.random_state is None else int(self.random_state)

    # --- lifting -----------------------------------------------------------------------------
    def pose_sampler(
        self, denoiser: Denoiser | None = None, spec: ModelSpec | None = None
    ) -> PoseSampler:
        """What hypotheses are drawn with; an impossible sampler or number of steps is an error.

        Parameters
        ----------
        denoiser, spec
            The fitted model's own by default.
        """
        denoiser = self.denoiser_ if denoiser is None else denoiser
        spec = self.spec_ if spec is None else spec
        chosen = choose_sampler(spec, denoiser, self.sampler, self.steps)
        return PoseSampler(denoiser, spec, chosen, self.flip, self.overlap)

    def _hypotheses(
        self, data: PoseDataset, count: int, seed: int, what: str
    ) -> list[torch.Tensor]:
        """Root-relative hypotheses (H, T, J, 3) per clip, as the network spreads them."""
        sampler = self.pose_sampler()
        seen = [network_input(clip, self.spec_.view) for clip in data]
        self.denoiser_.to(sampling_device(self.accelerator))
        found = []
        with tqdm(total=data.frames, desc=what, unit="frame", disable=not self.progress) as bar:
            for x in seen:
                found.append(sampler.lift(torch.from_numpy(x).float(), count, seed, bar))
        self.denoiser_.to("cpu")
        return found

    def predict(
        self,
        keypoints_2d: Any,
        image_size: Any = None,
        confidence: Any = None,
        camera: Any = None,
        *,
        n_hypotheses: int | None = None,
        seed: int | None = None,
        check: bool = True,
    ) -> Any:
        """Lift one clip or several.

        Parameters
        ----------
        keypoints_2d
            (T, J, 2) pixels of one clip, a :class:`~structdiff.pose.data.PoseClip`, a list of
            either, of any lengths, or a :class:`~structdiff.pose.data.PoseDataset`.
        image_size
            Width and height in pixels, one pair or one per clip; not needed where a camera has it.
        confidence
            Of the keypoints, (T, J) per clip: joints count as much when the root is found and
            hypotheses are weighed.
        camera
            :class:`~structdiff.pose.cameras.Camera`, one or one per clip: undistorts the keypoints
            and gives a trajectory and world coordinates.
        n_hypotheses
            Instead of the estimator's.
        seed
            Of the noise; None is the estimator's ``random_state``, or fresh noise without one.
        check
            Refuse keypoints whose units, axes or joint order look wrong.

        Returns
        -------
        Lifted or list of Lifted
            One for an array or a clip, else a list in the order of the clips.

        Raises
        ------
        StructDiffError
            If the model is not fitted, parts do not fit together, or a check fails.
        """
        if not hasattr(self, "denoiser_"):
            raise StructDiffError("this PoseLifter is not fitted: fit it, or use from_pretrained")
        check_settings(self)
        count = whole("n_hypotheses", self.n_hypotheses if n_hypotheses is None else n_hypotheses)
        skeleton = Skeleton.from_dict(self.spec_.skeleton)
        data = as_dataset(
            keypoints_2d,
            skeleton,
            image_size=image_size,
            confidence=confidence,
            camera=camera,
            check=check,
        )
        drawn = self._hypotheses(data, count, self._call_seed(seed), "lifting")
        temperature = self.temperature_ if self.aggregation == "j-agg" else None
        lifted = [
            lifted_clip(
                clip,
                widened(h, skeleton, self.spread_),
                skeleton,
                method=self.aggregation,
                temperature=temperature,
                bones=self.bones,
            )
            for clip, h in zip(data, drawn, strict=True)
        ]
        return lifted[0] if is_single(keypoints_2d) else lifted

    def _call_seed(self, seed: int | None) -> int:
        given = whole_seed("seed", self.random_state if seed is None else seed)
        return int(np.random.default_rng().integers(2**62)) if given is None else given

    def evaluate(
        self,
        data: PoseDataset,
        *,
        protocol: str | None = None,
        metrics: Sequence[str] | None = None,
        seed: int | None = None,
    ) -> pd.DataFrame:
        """Lift clips that have 3D poses and score what comes out.

        Parameters
        ----------
        data
            Clips with 2D and 3D joints.
        protocol, metrics
            As for :func:`structdiff.pose.evaluate`; scores of hypotheses come with several.
        seed
            Of the noise.
        """
        from structdiff.pose.evaluation import evaluate

        lifted = self.predict(data, seed=seed)
        several = self.n_hypotheses > 1 and self.aggregation == "p-agg"
        predictions = [pose.hypotheses if several else pose.mean for pose in lifted]
        return evaluate(predictions, data, protocol=protocol, metrics=metrics)
