"""Predictions beside their targets, clip by clip, checked: what the evaluation scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
from torch import Tensor

from structdiff.arguments import is_number
from structdiff.errors import StructDiffError
from structdiff.pose.checks import check_metres
from structdiff.pose.data import PoseDataset
from structdiff.pose.hypotheses import hypothesis_errors
from structdiff.pose.metrics import root_relative
from structdiff.pose.skeletons import Skeleton

Array: TypeAlias = npt.NDArray[np.floating]
Poses: TypeAlias = "Array | Tensor | Sequence[Array | Tensor] | Mapping[str, Array] | PoseDataset"
"""Of one clip (T, J, 3), or of several as a list, by name, or as a data set."""


@dataclass(frozen=True)
class Record:
    """One clip: what was predicted, what is true, what counts. Metres, double precision.

    Parameters
    ----------
    name, action
        Of the clip; ``action`` may be empty.
    fps
        Frames per second, or None.
    predictions
        Hypotheses (H, T, J, 3), or one prediction (1, T, J, 3).
    target
        (T, J, 3).
    valid
        Frames that count, bool (T,); all others may hold anything.
    """

    name: str
    action: str
    fps: float | None
    predictions: Array
    target: Array
    valid: npt.NDArray[np.bool_]

    @cached_property
    def frames(self) -> int:
        """How many frames count."""
        return int(self.valid.sum())

    @cached_property
    def seen(self) -> Array:
        """Hypotheses in the frames that count, (H, n, J, 3)."""
        return self.predictions[:, self.valid]

    @cached_property
    def truth(self) -> Array:
        """Target in the frames that count, (n, J, 3)."""
        return self.target[self.valid]

    @cached_property
    def mean(self) -> Array:
        """Mean hypothesis in all frames, (T, J, 3)."""
        return np.asarray(self.predictions.mean(axis=0))

    @cached_property
    def errors(self) -> Array:
        """Of every hypothesis in the frames that count, millimetres (H, n, J)."""
        return hypothesis_errors(self.seen, self.truth)[0]

    @cached_property
    def aligned_errors(self) -> Array:
        """The same after a Procrustes alignment of every hypothesis."""
        return hypothesis_errors(self.seen, self.truth, align=True)[0]

    def runs(self, length: int) -> npt.NDArray[np.bool_]:
        """Where so many frames in a row count, (T - length + 1,)."""
        windows = len(self.valid) - length + 1
        if windows < 1:
            return np.zeros(0, dtype=np.bool_)
        rows = [self.valid[start : start + windows] for start in range(length)]
        return np.asarray(np.logical_and.reduce(rows))


def records(
    prediction: Poses,
    target: Poses,
    skeleton: Skeleton,
    *,
    actions: str | Sequence[str] | None,
    valid: Any,
    fps: float | Sequence[float] | None,
    root: Literal["subtract", "keep"],
) -> list[Record]:
    """Pair predictions with targets.

    Raises
    ------
    StructDiffError
        If they do not fit each other or the skeleton, are not metres, or hold values that are not
        finite where they count.
    """
    names, truths, facts = _targets(target)
    guesses = _predictions(prediction, names, one=not _several(target))
    count = len(names)
    given = {
        "action": _spread("actions", actions, count, single=isinstance(actions, str)),
        "fps": _spread("fps", fps, count, single=is_number(fps)),
        "valid": _spread("valid", valid, count, single=not _several_masks(valid)),
    }
    made = []
    for number, (name, guess, truth) in enumerate(zip(names, guesses, truths, strict=True)):
        known = {
            key: facts[number].get(key) if values is None else values[number]
            for key, values in given.items()
        }
        mask = _mask(name, known["valid"], len(truth))
        hypotheses = _checked(name, guess, truth, skeleton, mask)
        if root == "subtract":
            hypotheses, truth = (root_relative(v, skeleton) for v in (hypotheses, truth))
        made.append(Record(name, known["action"] or "", known["fps"], hypotheses, truth, mask))
    counts = {len(record.predictions) for record in made}
    if len(counts) > 1:
        raise StructDiffError(f"clips have different numbers of hypotheses: {sorted(counts)}")
    return made


def _array(values: Any) -> Array:
    if isinstance(values, Tensor):
        values = values.detach().cpu().numpy()
    return np.asarray(values, dtype=np.float64)


def _several(poses: Any) -> bool:
    """Whether targets are of several clips."""
    return isinstance(poses, (list, tuple, Mapping, PoseDataset)) or np.ndim(poses) == 4


def _several_masks(valid: Any) -> bool:
    return isinstance(valid, (list, tuple)) and len(valid) > 0 and np.ndim(valid[0]) > 0


def _targets(target: Poses) -> tuple[list[str], list[Array], list[dict[str, Any]]]:
    """Names, poses and what else is known of the clips."""
    if isinstance(target, PoseDataset):
        known = [{"action": c.action, "fps": c.fps, "valid": c.valid} for c in target]
        names, poses = [c.name for c in target], [_array(c.in_camera()) for c in target]
    elif isinstance(target, Mapping):
        names, poses = list(target), [_array(v) for v in target.values()]
        known = [{} for _ in names]
    else:
        poses = [_array(v) for v in (target if _several(target) else [target])]
        names, known = [str(k) for k in range(len(poses))], [{} for _ in poses]
    if not poses:
        raise StructDiffError("there is no clip to evaluate")
    for name, pose in zip(names, poses, strict=True):
        if pose.ndim != 3:
            raise StructDiffError(
                f"the target of clip {name!r} must be joints (T, J, 3), got {pose.shape}"
            )
    return names, poses, known


def _predictions(prediction: Any, names: list[str], *, one: bool) -> list[Array]:
    """Predictions in the order of the targets: by name where both have names."""
    if isinstance(prediction, PoseDataset):
        _check_names([clip.name for clip in prediction])
        prediction = {clip.name: clip.in_camera() for clip in prediction}
    if isinstance(prediction, Mapping):
        _check_names(names)
        lacking = [name for name in names if name not in prediction]
        if lacking:
            raise StructDiffError(
                f"there is no prediction of clip {lacking[0]!r} ({len(lacking)} of {len(names)} "
                f"are missing): predictions are named {', '.join(map(repr, list(prediction)[:3]))}"
            )
        return [_array(prediction[name]) for name in names]
    alone = one and not isinstance(prediction, (list, tuple))
    listed = [_array(v) for v in ([prediction] if alone else prediction)]
    if len(listed) != len(names):
        raise StructDiffError(f"got predictions of {len(listed)} clips and {len(names)} targets")
    return listed


def _check_names(names: Sequence[str]) -> None:
    twice = [name for number, name in enumerate(names) if name in names[:number]]
    if twice:
        raise StructDiffError(f"two clips are named {twice[0]!r}: names must tell them apart")


def _spread(what: str, values: Any, count: int, *, single: bool) -> list[Any] | None:
    if values is None:
        return None
    spread = [values] * count if single else list(values)
    if len(spread) != count:
        raise StructDiffError(f"{what} must be one for each of {count} clips, got {len(spread)}")
    return spread


def _mask(name: str, valid: Any, frames: int) -> npt.NDArray[np.bool_]:
    if valid is None:
        return np.ones(frames, dtype=np.bool_)
    values = np.asarray(valid)
    if values.size != frames or not np.isin(values, (0, 1)).all():
        raise StructDiffError(
            f"valid of clip {name!r} must say of {frames} frames whether they count (0 or 1), "
            f"got shape {values.shape}"
        )
    mask = values.reshape(-1).astype(np.bool_)
    if not mask.any():
        raise StructDiffError(f"no frame of clip {name!r} counts: leave it out")
    return mask


def _checked(
    name: str, guess: Array, truth: Array, skeleton: Skeleton, mask: npt.NDArray[np.bool_]
) -> Array:
    """Hypotheses (H, T, J, 3) that fit the target."""
    hypotheses = guess[None] if guess.ndim == 3 else guess
    wanted = (len(skeleton), 3)
    if truth.shape[1:] != wanted or not len(truth):
        raise StructDiffError(
            f"the target of clip {name!r} must be (T, {wanted[0]}, 3) joints of {skeleton.name}, "
            f"got {truth.shape}"
        )
    if hypotheses.ndim != 4 or hypotheses.shape[1:] != truth.shape or not len(hypotheses):
        raise StructDiffError(
            f"the prediction of clip {name!r} must have the shape of its target, {truth.shape}, "
            f"or (H, {', '.join(map(str, truth.shape))}), got {guess.shape}"
        )
    for what, poses in (("prediction", hypotheses), ("target", truth[None])):
        _check_finite(what, name, poses, skeleton, mask)
        check_metres(poses[:, mask], f"the {what} of clip {name!r}")
    return hypotheses


def _check_finite(
    what: str, name: str, poses: Array, skeleton: Skeleton, mask: npt.NDArray[np.bool_]
) -> None:
    broken = ~np.isfinite(poses).all(axis=(0, 3)) & mask[:, None]  # (T, J)
    if broken.any():
        frame, joint = (int(k) for k in np.argwhere(broken)[0])
        raise StructDiffError(
            f"the {what} of clip {name!r} is not finite in frame {frame} at joint "
            f"{skeleton.joints[joint]!r} ({int(broken.any(axis=1).sum())} such frames): mark them "
            "as not valid, or mend them"
        )
