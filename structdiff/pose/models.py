"""What a pose model is made of, as plain data: the content of its ``config.json``.

Two families. Ours is a small HSTDenoiser around a light lifter. ``preset="paper"`` is DDHPose as
published: 512 channels, eight layers, nothing but the noisy bones and the 2D joints at its input
(arXiv 2403.04444; its faults are mended unless ``layout="reference"``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from structdiff.denoisers import Denoiser
from structdiff.errors import CheckpointError, StructDiffError
from structdiff.pose.denoising import (
    JOINTS,
    LiftingPoseNetwork,
    PoseNetwork,
    PublishedJointsNetwork,
    PublishedPoseNetwork,
)
from structdiff.pose.lifter import LightLifter
from structdiff.pose.networks import HSTDenoiser
from structdiff.pose.process import cosine_chain, pose_system
from structdiff.pose.skeletons import Skeleton
from structdiff.processes import DiscreteVP, System
from structdiff.processes.serial import process_from_dict, process_to_dict

PRESETS = ("paper",)


@dataclass(frozen=True)
class ModelSpec:
    """Everything about a model but its numbers.

    Parameters
    ----------
    skeleton
        Of its poses, as :meth:`Skeleton.to_dict` says.
    frames
        N of a window.
    network
        Constructor arguments of :class:`~structdiff.pose.networks.HSTDenoiser`.
    lifter
        Constructor arguments of :class:`~structdiff.pose.lifter.LightLifter`; None without one.
    process
        Of both components, as :func:`~structdiff.processes.serial.process_to_dict` says.
    sampler
        Recommended sampler: ``name`` and ``steps``.
    overlap
        Frames that neighbouring windows share when a clip is lifted.
    view
        The normalised pinhole of the training cameras, [fx, fy, cx, cy]: what a calibrated camera's
        joints are brought to. None where training saw no cameras.
    """

    skeleton: dict[str, Any]
    frames: int
    network: dict[str, Any]
    lifter: dict[str, Any] | None
    process: dict[str, Any]
    sampler: dict[str, Any] = field(default_factory=dict)
    overlap: int = 0
    view: list[float] | None = None

    @property
    def root_slot(self) -> bool:
        """Whether the root's slot is noised along, as the published weights expect."""
        return self.network["layout"] != "corrected"

    def to_dict(self) -> dict[str, Any]:
        """JSON-serialisable form."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ModelSpec:
        """Read :meth:`to_dict`'s form; raises CheckpointError when a field is missing."""
        try:
            return cls(**{k: values[k] for k in cls.__dataclass_fields__})
        except KeyError as error:
            raise CheckpointError(f"the model's config.json has no {error}") from error


def new_spec(
    skeleton: Skeleton,
    frames: int,
    *,
    preset: str | None,
    width: int,
    depth: int,
    heads: int,
    layout: str,
    spatial: str,
    temporal: str,
    lifter_width: int,
    lifter_blocks: int,
    dropout: float,
    view: list[float] | None = None,
) -> ModelSpec:
    """The model that ``fit`` trains.

    Parameters
    ----------
    skeleton, frames
        Of the windows.
    preset
        ``"paper"`` replaces the sizes by the published ones and leaves the lifter out.
    width, depth, heads, layout, spatial, temporal
        Of the transformer.
    lifter_width, lifter_blocks, dropout
        Of the lifter.
    view
        See :class:`ModelSpec`.

    Raises
    ------
    StructDiffError
        If the preset is unknown, or a published layout cannot be trained so.
    """
    if layout == "d3dp":
        raise StructDiffError(
            "layout 'd3dp' is that of published weights, which noise joints: load them "
            "(PoseLifter.from_published), or train another layout"
        )
    if preset not in (None, *PRESETS):
        raise StructDiffError(f"unknown preset {preset!r}: choose {', '.join(PRESETS)} or None")
    common: dict[str, Any] = {
        "mlp_ratio": 2.0,
        "layout": layout,
        "spatial": spatial,
        "temporal": temporal,
    }
    described: dict[str, Any] = {
        "skeleton": skeleton.to_dict(),
        "frames": frames,
        "process": process_to_dict(cosine_chain()),
    }
    if preset == "paper":
        published = {"width": 512, "depth": 8, "heads": 8, "inputs": 6, "drop_path": 0.1}
        return ModelSpec(
            **described,
            network=published | common,
            lifter=None,
            sampler={"name": "ddpm", "steps": 1},
        )
    if layout != "corrected":
        raise StructDiffError(
            f"layout {layout!r} is that of published weights, which have no lifter: give "
            "preset='paper' with it"
        )
    sizes = {"width": width, "depth": depth, "heads": heads, "drop_path": 0.0}
    return ModelSpec(
        **described,
        network={**sizes, "inputs": LiftingPoseNetwork.FEATURES, **common},
        lifter={"width": lifter_width, "blocks": lifter_blocks, "dropout": dropout},
        sampler={"name": "ddpm", "steps": 5},
        overlap=frames // 3,
        view=view,
    )


def published_spec(settings: Mapping[str, Any]) -> ModelSpec:
    """The model of published weights.

    Parameters
    ----------
    settings
        As :func:`~structdiff.pose.checkpoints.read_published` gives them.
    """
    rest = {k: v for k, v in settings.items() if k not in ("skeleton", "frames")}
    return ModelSpec(
        skeleton=settings["skeleton"].to_dict(),
        frames=settings["frames"],
        network=rest,
        lifter=None,
        process=process_to_dict(cosine_chain()),
        sampler={"name": "ddpm", "steps": 1},
    )


def build_denoiser(spec: ModelSpec) -> Denoiser:
    """The denoiser of a spec, with fresh weights."""
    skeleton = Skeleton.from_dict(spec.skeleton)
    process = process_from_dict(spec.process)
    if not isinstance(process, DiscreteVP):
        raise StructDiffError(f"a pose model needs a DDPM chain, not {spec.process['type']}")
    try:
        backbone = HSTDenoiser(skeleton, spec.frames, **spec.network)
        lifter = None if spec.lifter is None else LightLifter(skeleton, **spec.lifter)
    except TypeError as error:  # an argument that the network does not have
        raise StructDiffError(f"no network can be built of {spec.to_dict()}: {error}") from error
    network: PoseNetwork
    if backbone.layout == "d3dp":
        network = PublishedJointsNetwork(backbone, process)
        return Denoiser(network, System({JOINTS: process}), "data")
    if lifter is None:
        network = PublishedPoseNetwork(backbone, process)
    else:
        # Zero at first: training starts from the lifter.
        for parameter in backbone.head[-1].parameters():
            torch.nn.init.zeros_(parameter)
        network = LiftingPoseNetwork(backbone, lifter, process, spec.frames)
    return Denoiser(network, pose_system(process), "data")
