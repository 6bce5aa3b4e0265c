"""Predictions beside their targets: which belongs to which, and whether they speak of one body.

A file may be sound by itself and yet not fit the other one: feet beside metres, y up beside y down,
left beside right. Then some exchange of axes or sides explains most of the error, which no model's
mistakes do over all clips:

    error(best exchange) < 0.4 error(as given)   and   error(as given) > 100 mm.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from structdiff.errors import StructDiffError
from structdiff.pose.checks import check_metres, check_up_axis
from structdiff.pose.data import PoseClip, PoseDataset
from structdiff.pose.skeletons import Skeleton

Array = npt.NDArray[np.floating]

_LOOKED_AT = 500
"""Frames of all clips together that are compared."""
_WRONG, _EXPLAINED = 0.1, 0.4
_SIZES = (0.4, 2.5)
"""Ratio of the bodies' sizes that a poor model may reach."""
_UNITS = {"feet": 3.281, "inches": 39.37, "centimetres": 100.0, "millimetres": 1000.0}


@dataclass(frozen=True)
class Pairs:
    """Predictions as the evaluation takes them.

    Parameters
    ----------
    predictions
        Of every target, (T, J, 3) or hypotheses (H, T, J, 3), in the target's axes.
    targets
        Clips in the axes that both have.
    notes
        What was left out or taken for something, one sentence each.
    """

    predictions: list[Array]
    targets: PoseDataset
    notes: tuple[str, ...]


def paired(
    predicted: PoseDataset,
    hypotheses: dict[str, Array],
    targets: PoseDataset,
    names: Sequence[str] | None = None,
) -> Pairs:
    """Every target with its prediction: by name, or the only one with the only one.

    Parameters
    ----------
    predicted
        Poses; of several hypotheses their aggregate.
    hypotheses
        Of the predicted clips that have some, (H, T, J, 3).
    targets
        With 3D poses.
    names
        Which targets; all by default.

    Raises
    ------
    StructDiffError
        If skeletons differ, a clip has no counterpart or no 3D poses, or axes differ and no camera
        says how.
    """
    if predicted.skeleton != targets.skeleton:
        raise StructDiffError(
            f"the predictions are on skeleton {predicted.skeleton.name}, the targets on "
            f"{targets.skeleton.name}: pass --to {targets.skeleton.name} to convert both"
        )
    chosen = targets if names is None else replace(targets, clips=tuple(targets[n] for n in names))
    by_name = {clip.name: clip for clip in predicted}
    if len(by_name) == len(chosen) == 1:
        by_name = {chosen[0].name: predicted[0]}
    lacking = [clip.name for clip in chosen if clip.name not in by_name]
    if lacking:
        raise StructDiffError(
            f"there is no prediction of clip {lacking[0]!r} ({len(lacking)} of {len(chosen)} are "
            f"missing); predictions are named {', '.join(map(repr, list(by_name)[:3]))}: pass "
            "--clip NAME to score some targets only"
        )
    found, clips, aggregated = [], [], False
    for clip in chosen:
        guess, truth = _in_one_system(by_name[clip.name], clip)
        drawn = hypotheses.get(by_name[clip.name].name)
        if drawn is not None and guess.shape == drawn.shape[1:]:
            is_mean = np.allclose(
                _centred(drawn.mean(0), targets.skeleton),
                _centred(guess, targets.skeleton),
                atol=1e-4,
            )
            guess, aggregated = (drawn if is_mean else guess), aggregated or not is_mean
        found.append(guess)
        clips.append(replace(clip, poses=truth, axes="camera"))
    notes = [*targets.notes]
    spare = len(by_name) - len(chosen)
    if spare > 0:
        notes.append(f"{spare} predicted clips have no target and are not scored")
    if aggregated:
        notes.append(
            "the poses are not the mean of their hypotheses (another aggregation, or constant "
            "bones): only the poses are scored"
        )
    return Pairs(found, replace(chosen, clips=tuple(clips)), tuple(notes))


def _in_one_system(guess: PoseClip, truth: PoseClip) -> tuple[Array, Array]:
    """Poses of both in the axes that both can have."""
    for what, clip in (("prediction of", guess), ("target", truth)):
        if clip.poses is None:
            raise StructDiffError(f"the {what} clip {truth.name!r} holds no 3D poses")
    assert guess.poses is not None and truth.poses is not None
    if guess.axes == truth.axes:
        return guess.poses, truth.poses
    camera = truth.camera or guess.camera
    if camera is None:
        raise StructDiffError(
            f"the prediction of clip {truth.name!r} is in {guess.axes} axes, its target in "
            f"{truth.axes} axes, and no camera says how they lie: give both in the same axes"
        )
    (a, b) = (replace(clip, camera=camera).in_camera() for clip in (guess, truth))
    return a, b


def _centred(poses: Array, skeleton: Skeleton) -> Array:
    centred: Array = poses - poses[..., skeleton.root : skeleton.root + 1, :]
    return centred


# ---------------------------------------------------------------- one body or two


def check_predicted(predicted: PoseDataset, pairs: Pairs) -> None:
    """Refuse predictions in other units, axes, sides or joint orders than their targets.

    Bones and knees alone are not judged: a poor model may have unequal ones. It cannot see an
    exchange that changes little, such as sides of people who stand still facing sideways.

    Parameters
    ----------
    predicted
        As they were read.
    pairs
        The same beside their targets.

    Raises
    ------
    StructDiffError
        Names what explains the difference.
    """
    for clip in predicted:
        if clip.poses is not None:
            check_metres(clip.poses, f"poses of clip {clip.name!r}")
    _check_pairs(pairs)
    for clip in predicted:
        if clip.poses is not None:
            check_up_axis(clip.poses, predicted.skeleton, clip.axes, f"poses of clip {clip.name!r}")


def _check_pairs(pairs: Pairs) -> None:
    skeleton = pairs.targets.skeleton
    guess, truth = _sampled(pairs)
    if not len(guess):
        return
    size = _rms(guess) / _rms(truth)
    if not _SIZES[0] <= size <= _SIZES[1]:
        unit = min(_UNITS, key=lambda name: abs(abs(np.log(size)) - np.log(_UNITS[name])))
        raise StructDiffError(
            f"the predicted bodies are {size:.3g} times as large as their targets: one of the two "
            f"is in another unit, such as {unit}; give both in metres"
        )
    given = _error(guess, truth)
    if given <= _WRONG:
        return
    sides = list(skeleton.mirrored)
    explained = [
        (_error(guess[:, order] @ turn, truth), words)
        for turn, axes in _exchanges()
        for order, words in ((slice(None), axes), (sides, _both(axes)))
        if words
    ]
    best, what = min([*explained, _reordered(guess, truth, skeleton)], key=lambda each: each[0])
    if best < _EXPLAINED * given:
        raise StructDiffError(
            f"the predictions are {1000 * given:.0f} mm from their targets, but only "
            f"{1000 * best:.0f} mm {what}: bring both into the same axes and joint order"
        )


def _sampled(pairs: Pairs) -> tuple[Array, Array]:
    """Root-relative frames of all clips, predicted and true, (n, J, 3)."""
    each = max(1, _LOOKED_AT // len(pairs.targets))
    guesses, truths = [], []
    for guess, clip in zip(pairs.predictions, pairs.targets, strict=True):
        mean = guess.mean(0) if guess.ndim == 4 else guess
        if clip.poses is None or mean.shape != clip.poses.shape:
            continue  # the evaluation says so, with both shapes
        counted = np.arange(len(mean)) if clip.valid is None else np.flatnonzero(clip.valid)
        some = counted[np.linspace(0, len(counted) - 1, min(each, len(counted))).astype(int)]
        guesses.append(_centred(mean[some], pairs.targets.skeleton))
        truths.append(_centred(clip.poses[some], pairs.targets.skeleton))
    if not guesses:
        return np.zeros((0, 0, 3)), np.zeros((0, 0, 3))
    guess, truth = np.concatenate(guesses), np.concatenate(truths)
    whole = np.isfinite(guess).all((1, 2)) & np.isfinite(truth).all((1, 2))
    return guess[whole], truth[whole]


def _exchanges() -> list[tuple[Array, str]]:
    """Every exchange and negation of axes, as a matrix and in words; nothing is ''."""
    found: list[tuple[Array, str]] = []
    for order in itertools.permutations(range(3)):
        for signs in itertools.product((1.0, -1.0), repeat=3):
            turn = np.zeros((3, 3))
            turn[list(order), range(3)] = signs
            negated = ["xyz"[i] for i in range(3) if signs[i] < 0]
            if order == (0, 1, 2):
                words = f"with {' and '.join(negated)} negated" if negated else ""
            else:
                read = ", ".join(
                    f"{'-' if signs[i] < 0 else ''}{'xyz'[order[i]]}" for i in range(3)
                )
                words = f"with their axes read as ({read})"
            if words and signs[1] < 0 and order == (0, 1, 2):
                words += " (one has y up, the other y down)"
            found.append((turn, words))
    return found


def _reordered(guess: Array, truth: Array, skeleton: Skeleton) -> tuple[float, str]:
    """Error with the joints in the order that fits best, and what moves, in words."""
    from scipy.optimize import linear_sum_assignment

    # Around the middle of the body: which joint is the root is not known here.
    a, b = (poses - poses.mean(1, keepdims=True) for poses in (guess, truth))
    apart = np.linalg.norm(a[:, :, None] - b[:, None], axis=-1).mean(0)  # (J, J)
    rows, columns = linear_sum_assignment(apart)
    order = np.argsort(columns)
    moved = [
        f"{skeleton.joints[k]} is where {skeleton.joints[j]} should be"
        for j, k in zip(rows, columns, strict=True)
        if j != k
    ]
    words = f"with its joints in another order ({', '.join(moved[:2])}, ...)"
    return _error(_centred(guess[:, order], skeleton), truth), words


def _both(axes: str) -> str:
    return f"{axes} and left and right exchanged" if axes else "with left and right exchanged"


def _error(guess: Array, truth: Array) -> float:
    """Mean distance of the joints, metres."""
    return float(np.linalg.norm(guess - truth, axis=-1).mean())


def _rms(poses: Array) -> float:
    return float(np.sqrt(np.square(poses).sum(-1).mean()))


def joint_errors(pairs: Pairs) -> Any:
    """Mean error of every joint over all frames that count, root-relative, millimetres (J,)."""
    total, frames = np.zeros(len(pairs.targets.skeleton)), 0
    for guess, clip in zip(pairs.predictions, pairs.targets, strict=True):
        mean = guess.mean(0) if guess.ndim == 4 else guess
        counted = np.ones(len(mean), bool) if clip.valid is None else clip.valid
        assert clip.poses is not None
        apart = _centred(mean, pairs.targets.skeleton) - _centred(
            clip.poses, pairs.targets.skeleton
        )
        total += 1000 * np.linalg.norm(apart[counted], axis=-1).sum(0)
        frames += int(counted.sum())
    return total / max(frames, 1)
