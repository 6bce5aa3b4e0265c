r"""One pose out of several hypotheses.

.. math:: \hat y_j = \sum_h w_{hj}\,y_{hj}, \qquad \sum_h w_{hj} = 1

with equal weights (P-Agg), or weights that fall with the reprojection error :math:`e_{hj}` of a
joint, which needs a root in front of the camera. The published J-Agg takes the ground truth's; here
least squares finds one for every hypothesis and frame (:mod:`structdiff.pose.roots`), and results
say which it was.

The published J-Agg gives all weight to the smallest error. Where hypotheses err independently that
is worse than their mean, even with exact keypoints and the true root, and with detected keypoints
it follows the detector's noise. So J-Agg here is the mean under the likelihood of the keypoint,
:math:`w_{hj} \propto \exp(-e_{hj}^2 / 2 \tau^2)`, and the published rule its limit
:math:`\tau = 0`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from structdiff.errors import StructDiffError
from structdiff.pose.cameras import Camera
from structdiff.pose.lenses import project
from structdiff.pose.roots import rays_and_weights, robust_root, root_trajectory

Array = npt.NDArray[np.floating]
Method = Literal["p-agg", "j-agg", "softmax", "rpea", "pose-softmax", "median"]
RootSource = Literal["lstsq", "gt"]

TEMPERATURES = {"j-agg": 0.016, "softmax": 0.016, "rpea": 0.002, "pose-softmax": 0.008}
"""Errors by chance, in normalised coordinates: 0.016 are 8 px of a width of 1000.

RPEA's is the published one; the others are wide enough for detected keypoints.
"""
RPEA_BEST = 3
_GRID = (0.0, *np.geomspace(0.001, 0.256, 17).tolist(), float("inf"))
_WEISZFELD_STEPS, _COINCIDENT = 60, 1e-9


@dataclass(frozen=True, eq=False)
class Aggregated:
    """A pose per frame, and what it was made with.

    Parameters
    ----------
    pose
        Root-relative joints, metres (T, J, 3).
    weights
        Of the hypotheses, (H, T, J); they sum to 1.
    root
        Root of the pose in camera axes, metres (T, 3): by least squares or as given; None where no
        keypoints were given.
    method, temperature
        How the weights came about; the temperature is None where there is none.
    root_source
        Where the root comes from: ``"lstsq"``, or ``"gt"`` if it was handed in; None without one.
    camera_assumed
        Whether the camera was a guess from the image size.
    """

    pose: Array
    weights: Array
    root: Array | None
    method: Method
    temperature: float | None
    root_source: RootSource | None
    camera_assumed: bool

    @property
    def label(self) -> str:
        """For tables: the method, its temperature and the root it used."""
        parts = [] if self.temperature is None else [f"temperature {self.temperature:g}"]
        if self.root_source is not None and self.temperature is not None:
            parts.append(f"root: {self.root_source}")
        return self.method + (f" ({', '.join(parts)})" if parts else "")


def aggregate(
    hypotheses: Array,
    keypoints: Array | None = None,
    *,
    method: Method = "j-agg",
    camera: Camera | None = None,
    image_size: tuple[int, int] | None = None,
    confidence: Array | None = None,
    root: Array | None = None,
    temperature: float | None = None,
    smooth: float = 0.0,
) -> Aggregated:
    """One pose per frame out of hypotheses.

    Parameters
    ----------
    hypotheses
        Root-relative joints in camera axes, metres (H, T, J, 3).
    keypoints
        2D joints in pixels (T, J, 2), missing ones NaN; ``"p-agg"`` and ``"median"`` do without,
        and use them for the root only.
    method
        ``"p-agg"``: the mean. ``"median"``: the geometric median of every joint. ``"j-agg"``: every
        joint by its likelihood under Gaussian keypoints. ``"softmax"``: by
        softmax(-error / temperature). ``"rpea"``: that over the 3 best hypotheses of a joint
        (FMPose3D). ``"pose-softmax"``: by the mean error of the whole pose, so a pose's joints stay
        together.
    camera
        That saw the keypoints; None assumes a pinhole from ``image_size``
        (:meth:`Camera.pinhole`).
    image_size
        Width and height in pixels, where the camera does not say.
    confidence
        Of the keypoints (T, J), 0 to 1: multiplies their errors. Joints of confidence 0, and frames
        without a root, get equal weights.
    root
        Root trajectory (T, 3) in camera axes, metres, used instead of least squares; the result is
        then labelled ``gt``.
    temperature
        Size of an error by chance, in normalised coordinates (pixels times 2 / width); 0 gives all
        weight to the smallest error, infinity equal weights. None takes :data:`TEMPERATURES`, and
        :func:`fit_temperature` finds it.
    smooth
        Frames to smooth the depth of the resulting root over.

    Raises
    ------
    StructDiffError
        If shapes do not fit, a hypothesis holds NaN, the method or temperature is none, or what the
        method needs is missing.
    """
    drawn = _check_hypotheses(hypotheses)
    heat = _check_method(method, temperature)
    assumed = camera is None
    if keypoints is None and heat is not None:
        raise StructDiffError(f"{method} compares with keypoints: give them, or take 'p-agg'")
    place = None if root is None else _check_root(root, drawn.shape[1])
    scene = None
    if keypoints is not None:
        scene = _Scene.of(drawn, keypoints, camera, image_size, confidence)
    if heat is not None and scene is not None:
        weights = _weights(scene.errors(drawn, place), scene.confidence, method, heat)
    elif method == "median":
        weights = _median_weights(drawn)
    else:
        weights = drawn.new_full(drawn.shape[:-1], 1 / len(drawn))
    pose = (weights[..., None] * drawn).sum(0).numpy()
    if scene is not None and place is None:
        place = root_trajectory(
            pose, scene.keypoints.numpy(), scene.camera, scene.confidence.numpy(), smooth=smooth
        )
    return Aggregated(
        pose=pose.astype(np.asarray(hypotheses).dtype),
        weights=weights.numpy(),
        root=place,
        method=method,
        temperature=heat,
        root_source="gt" if root is not None else None if place is None else "lstsq",
        camera_assumed=scene is not None and assumed,
    )


@dataclass(frozen=True)
class TemperatureFit:
    """A temperature and the errors it was chosen by.

    Parameters
    ----------
    temperature
        Of the smallest error.
    temperatures
        That were tried; infinity stands for equal weights.
    errors
        Mean joint error of each, millimetres.
    method
        They are for.
    """

    temperature: float
    temperatures: tuple[float, ...]
    errors: tuple[float, ...]
    method: Method


def fit_temperature(
    hypotheses: Sequence[Array],
    targets: Sequence[Array],
    keypoints: Sequence[Array],
    cameras: Sequence[Camera],
    *,
    method: Method = "j-agg",
    confidences: Sequence[Array] | None = None,
    temperatures: Sequence[float] = _GRID,
) -> TemperatureFit:
    """The temperature of the smallest mean joint error on training clips.

    Parameters
    ----------
    hypotheses, targets, keypoints, cameras, confidences
        Per clip, as for :func:`aggregate`; targets are root-relative poses in camera axes, metres
        (T, J, 3). Use keypoints of the kind that will be lifted: exact ones give a temperature that
        is too small for detected ones.
    method
        One that has a temperature.
    temperatures
        To choose from, by default from 0 to infinity.

    Raises
    ------
    StructDiffError
        If there is no clip, numbers of clips differ, a target does not fit, or the method has no
        temperature.
    """
    if _check_method(method, None) is None:
        raise StructDiffError(f"{method} has no temperature: choose {', '.join(TEMPERATURES)}")
    for heat in temperatures:
        _check_method(method, heat)
    sure: Sequence[Any] = [None] * len(hypotheses) if confidences is None else confidences
    parts = (hypotheses, targets, keypoints, cameras, sure)
    if len({len(part) for part in parts}) > 1 or not len(hypotheses) or not len(temperatures):
        raise StructDiffError(
            "give the hypotheses, targets, keypoints and cameras of the same clips, at least one; "
            f"got {[len(part) for part in parts[:4]]}"
        )
    totals, joints = np.zeros(len(temperatures)), 0
    for clip, (drawn, target, seen, camera, share) in enumerate(zip(*parts, strict=True)):
        draws, truth = _check_hypotheses(drawn), torch.as_tensor(np.asarray(target)).double()
        if truth.shape != draws.shape[1:]:
            raise StructDiffError(
                f"target {clip} must have shape {tuple(draws.shape[1:])}, got {tuple(truth.shape)}"
            )
        scene = _Scene.of(draws, seen, camera, None, share)
        errors = scene.errors(draws)
        for place, heat in enumerate(temperatures):
            weights = _weights(errors, scene.confidence, method, heat)
            pose = (weights[..., None] * draws).sum(0)
            totals[place] += float((pose - truth).norm(dim=-1).sum())
        joints += truth[..., 0].numel()
    means = 1e3 * totals / joints
    return TemperatureFit(
        float(temperatures[int(means.argmin())]), tuple(temperatures), tuple(means.tolist()), method
    )


@dataclass(frozen=True, eq=False)
class _Scene:
    """What was seen of a clip, checked, missing keypoints having confidence 0."""

    camera: Camera
    keypoints: Tensor  # (T, J, 2)
    rays: Tensor  # (T, J, 2)
    confidence: Tensor  # (T, J)
    width: int

    @classmethod
    def of(
        cls,
        hypotheses: Tensor,
        keypoints: Array,
        camera: Camera | None,
        image_size: tuple[int, int] | None,
        confidence: Array | None,
    ) -> _Scene:
        size = image_size if camera is None or camera.image_size is None else camera.image_size
        if size is None:
            raise StructDiffError(
                "give a camera with its image size, or image_size=(width, height)"
            )
        camera = Camera.pinhole(size) if camera is None else replace(camera, image_size=size)
        seen = torch.from_numpy(np.array(keypoints, dtype=np.float64))
        frames, joints = hypotheses.shape[1:3]
        if seen.shape != (frames, joints, 2):
            raise StructDiffError(
                f"keypoints of these hypotheses must have shape {(frames, joints, 2)}, "
                f"got {tuple(seen.shape)}"
            )
        rays, share = rays_and_weights(seen.numpy(), camera, confidence)
        return cls(camera, seen, rays, share.double(), size[0])

    def errors(self, hypotheses: Tensor, given: Array | None = None) -> Tensor:
        """Reprojection errors (H, T, J) in normalised coordinates, NaN where there is none."""
        if given is None:
            root = robust_root(hypotheses, self.rays, self.confidence)
        else:
            root = torch.as_tensor(given)
        lens = torch.as_tensor(self.camera.intrinsics)
        placed = hypotheses + root[..., None, :]
        seen = project(placed, lens, distortion=self.camera.distortion)
        return (seen - self.keypoints).norm(dim=-1) * (2 / self.width)


def _weights(errors: Tensor, confidence: Tensor, method: Method, temperature: float) -> Tensor:
    """Weights (H, T, J) from errors (H, T, J); equal where no hypothesis has one."""
    counts = confidence > 0
    # Errors of joints that do not count say nothing, and must not spoil those of the pose.
    scaled = torch.where(counts, confidence * torch.where(counts, errors, 0.0), 0.0)
    if method == "pose-softmax":
        total = confidence.sum(-1, keepdim=True)
        scaled = (scaled.sum(-1, keepdim=True) / torch.where(total > 0, total, 1.0)).expand_as(
            errors
        )
    exists = torch.isfinite(scaled)
    scaled = torch.where(exists, scaled, torch.inf)
    if method == "rpea":
        last = scaled.sort(dim=0).values[min(RPEA_BEST, len(scaled)) - 1]
        exists = exists & (scaled <= last)
    badness = scaled.square() / 2 if method == "j-agg" else scaled
    scale = temperature**2 if method == "j-agg" else temperature
    gap = torch.where(exists, badness - badness.amin(0), 0.0)  # 0 for the best
    if temperature == 0:
        raw = (exists & (gap == 0)).to(errors.dtype)
    else:
        raw = torch.where(exists, torch.exp(-gap / scale), 0.0)
    some = exists.any(0)
    return torch.where(some, raw / torch.where(some, raw.sum(0), 1.0), 1 / len(errors))


def _median_weights(hypotheses: Tensor) -> Tensor:
    """Weights (H, T, J) that make the geometric median: Weiszfeld's iteration from the mean."""
    weights = hypotheses.new_full(hypotheses.shape[:-1], 1 / len(hypotheses))
    for _ in range(_WEISZFELD_STEPS):
        centre = (weights[..., None] * hypotheses).sum(0)
        closeness = 1 / (hypotheses - centre).norm(dim=-1).clamp_min(_COINCIDENT)
        weights = closeness / closeness.sum(0)
    return weights


def _check_hypotheses(hypotheses: Array) -> Tensor:
    drawn = torch.as_tensor(np.asarray(hypotheses)).double()
    if drawn.dim() != 4 or drawn.shape[-1] != 3 or not drawn.shape[0]:
        raise StructDiffError(
            f"hypotheses must have shape (H, T, J, 3) with H at least 1, got {tuple(drawn.shape)}"
        )
    if not drawn.isfinite().all():
        which = (~drawn.isfinite()).flatten(1).any(1).nonzero()[0].item()
        raise StructDiffError(f"hypothesis {which} holds values that are no finite numbers")
    return drawn


def _check_root(root: Array, frames: int) -> Array:
    given = np.asarray(root, dtype=np.float64)
    if given.shape != (frames, 3) or not np.isfinite(given).all():
        raise StructDiffError(
            f"root must be finite numbers of shape {(frames, 3)}, got shape {given.shape}"
        )
    return given


def _check_method(method: str, temperature: float | None) -> float | None:
    """The temperature of a method, None if it has none."""
    if method not in get_args(Method):
        raise StructDiffError(
            f"method must be one of {', '.join(get_args(Method))}, got {method!r}"
        )
    if temperature is None:
        return TEMPERATURES.get(method)
    if method not in TEMPERATURES:
        raise StructDiffError(f"{method} has no temperature: leave it out")
    if not temperature >= 0:
        raise StructDiffError(f"temperature must be 0 or more, got {temperature!r}")
    return float(temperature)
