"""Saved pose models: what :mod:`structdiff.storage` stores, with the spread that was calibrated."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from torch import Tensor

from structdiff.estimators import Contents, SavedEstimator
from structdiff.pose.checkpoints import read_published
from structdiff.pose.models import ModelSpec, build_denoiser, published_spec
from structdiff.pose.sampling import choose_sampler
from structdiff.pose.skeletons import H36M_17, Skeleton
from structdiff.samplers import Sampler
from structdiff.storage import POSE, check_widths, expected_tensors

_LONGEST = 100_000
_P = TypeVar("_P", bound="SavedPoseModel")


class SavedPoseModel(SavedEstimator):
    """What is stored of a pose lifter: its network, its spread and its temperature."""

    _FORMAT = POSE
    _PARTS = ("model", "spread", "temperature")

    spec_: ModelSpec
    spread_: float
    temperature_: float | None

    if TYPE_CHECKING:  # the estimator brings it

        def __init__(self, **parameters: Any) -> None: ...

    def _parameters(self) -> dict[str, Any]:
        parameters = self.get_params()
        if isinstance(parameters["sampler"], Sampler):
            parameters["sampler"] = parameters["steps"] = None  # an object of the session
        if isinstance(parameters["skeleton"], Skeleton):
            parameters["skeleton"] = parameters["skeleton"].name  # the model has it whole
        return parameters

    def _contents(self) -> Contents:
        config = {
            "model": self.spec_.to_dict(),
            "spread": self.spread_,
            "temperature": self.temperature_,
        }
        return Contents(config, self.denoiser_.network.state_dict())

    def _describe(self, config: Mapping[str, Any]) -> None:
        self.spec_ = ModelSpec.from_dict(config["model"])
        _check_sizes(self.spec_)
        self.spread_ = float(config["spread"])
        temperature = config["temperature"]
        self.temperature_ = None if temperature is None else float(temperature)
        if not (math.isfinite(self.spread_) and self.spread_ > 0):
            raise ValueError(f"no spread is {self.spread_}")
        if self.temperature_ is not None and not self.temperature_ >= 0:
            raise ValueError(f"no temperature is {self.temperature_}")

    def _expected(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return expected_tensors(lambda: build_denoiser(self.spec_).network)

    def _assemble(self, tensors: Mapping[str, Tensor]) -> None:
        self.denoiser_ = build_denoiser(self.spec_)
        # An impossible one is the file's damage, not an error of the first prediction.
        choose_sampler(self.spec_, self.denoiser_, None, None)
        self.denoiser_.network.load_state_dict(dict(tensors))
        self.denoiser_.requires_grad_(False)

    @classmethod
    def from_published(
        cls: type[_P],
        path: str | Path,
        skeleton: str | Skeleton = H36M_17,
        *,
        heads: int = 8,
        **parameters: Any,
    ) -> _P:
        """Load a checkpoint of DDHPose or D3DP, without executing its pickle.

        It computes what the published code computes, faults included, in one step of DDPM unless
        told otherwise. These weights expect keypoints as their data has them (Human3.6M's joints
        are not CMU17's), and know no camera.

        Parameters
        ----------
        path
            A ``.bin`` or ``.pth``.
        skeleton
            Of the data it was trained on: ``"h36m17"`` or ``"3dhp17"``.
        heads
            Of its attention.
        parameters
            Of the estimator: ``n_hypotheses``, ``steps``, ``aggregation`` and so on.

        Raises
        ------
        CheckpointError
            If the file is missing, damaged, hostile or of another model.
        """
        settings, state = read_published(path, skeleton, heads=heads)
        spec = published_spec(settings)
        model = cls(frames=spec.frames, skeleton=settings["skeleton"], preset="paper", **parameters)
        model.spec_, model.spread_, model.temperature_ = spec, 1.0, None
        model.denoiser_ = build_denoiser(spec)
        network = model.denoiser_.network
        network.load_state_dict({f"network.{name}": tensor for name, tensor in state.items()})
        model.denoiser_.eval().requires_grad_(False)
        model.training_ = {"checkpoint": Path(path).name}
        return model


def _check_sizes(spec: ModelSpec) -> None:
    skeleton = Skeleton.from_dict(spec.skeleton)
    if "layout" not in spec.network:
        raise ValueError("the network does not say its layout")
    named = {k: v for k, v in spec.network.items() if isinstance(v, int)}
    check_widths({**named, **{k: v for k, v in (spec.lifter or {}).items() if k != "dropout"}})
    sizes = (spec.frames, len(skeleton))
    if not all(isinstance(v, int) and 1 <= v <= _LONGEST for v in sizes):
        raise ValueError(f"no window has {spec.frames} frames of {len(skeleton)} joints")
    if not isinstance(spec.overlap, int) or not 0 <= spec.overlap < spec.frames:
        raise ValueError(f"windows of {spec.frames} frames cannot share {spec.overlap}")
    if spec.view is not None and not (
        len(spec.view) == 4 and np.isfinite(spec.view).all() and min(spec.view[:2]) > 0
    ):
        raise ValueError(f"no pinhole is {spec.view}")
