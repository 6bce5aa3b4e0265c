r"""Scores of several hypotheses for one motion: the best of them, and their mean.

With errors :math:`e_{hnj}` in millimetres of hypothesis h at frame n and joint j, a P-Best score is

.. math:: \operatorname{mean}_u \min_h \operatorname{mean}_{(n,j) \in u} e_{hnj},

one hypothesis being chosen for every unit u: a joint in a frame (J-Best), a pose, a clip, or
everything at once. Choosing looks at the truth, so these are bounds, never results; P-Agg (the mean
pose) and J-Agg (the choice by the image) can be had without it. Always

    J-Best <= P-Best pose <= clip <= batch <= mean of hypotheses,  J-Best <= J-Agg,
    P-Agg <= mean of hypotheses,

the last without alignment only; all are equal for one hypothesis. A score of ``level="batch"``
depends on which clips are scored together: published ones took batches of 4 x 243 frames.

Hypotheses are arrays (H, T, J, 3) of one clip, or a list of clips of any lengths, in metres;
targets (T, J, 3) likewise. Poses are compared as they are: make them root-relative first. Every
frame counts once. The root of root-relative poses has no error: pass ``joints=skeleton.bones`` to
leave it out. Calibration is in :mod:`structdiff.pose.calibration`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import numpy.typing as npt

from structdiff.errors import StructDiffError
from structdiff.pose.metrics import mpjpe, p_mpjpe

Array: TypeAlias = npt.NDArray[np.floating]
Clips: TypeAlias = "Array | Sequence[Array]"
Level: TypeAlias = Literal["joint", "pose", "clip", "batch"]


# ---------------------------------------------------------------- errors and choices


def hypothesis_errors(
    hypotheses: Clips,
    target: Clips,
    *,
    align: bool = False,
    joints: Sequence[int] | None = None,
) -> list[Array]:
    """Distance of every hypothesis to the truth, millimetres, (H, T, J) for each clip.

    Parameters
    ----------
    hypotheses, target
        One clip or several: see the module.
    align
        Procrustes-align every hypothesis in every frame first (P-MPJPE).
    joints
        That are kept; None is all.

    Raises
    ------
    StructDiffError
        If the clips do not fit each other, or have different numbers of hypotheses.
    """
    metric = p_mpjpe if align else mpjpe
    pairs = paired(hypotheses, target)
    return [np.asarray(metric(h, y, joints=joints, per="point")) for h, y in pairs]


def best_error(errors: Sequence[Array], level: Level = "pose") -> float:
    """Mean over units of the smallest error among the hypotheses.

    Parameters
    ----------
    errors
        (H, T, J) for each clip, of :func:`hypothesis_errors`.
    level
        The unit that one hypothesis is chosen for.

    Raises
    ------
    StructDiffError
        If the level is unknown.
    """
    values, weights = _units(errors, level)
    return float(np.average(values.min(axis=0), weights=weights))


def best_curve(errors: Sequence[Array], level: Level = "joint") -> Array:
    r"""Expected best error against the number of hypotheses, 1 to H; it never rises.

    The mean over all subsets of k of the H hypotheses, whose order therefore does not matter:
    :math:`\sum_i \binom{H - i}{k - 1} / \binom{H}{k}\; e_{(i)}` in order statistics. It starts at
    the mean of hypotheses and ends at :func:`best_error`.

    Parameters
    ----------
    errors, level
        As for :func:`best_error`.

    Returns
    -------
    Array
        (H,), millimetres.
    """
    values, weights = _units(errors, level)
    ordered = np.average(np.sort(values, axis=0), axis=1, weights=weights)  # (H,)
    return _subset_minimum(len(ordered)) @ ordered


def j_best(hypotheses: Clips, target: Clips, **options: Any) -> float:
    """J-Best: for every joint and frame the nearest hypothesis, mm; needs the truth.

    ``options`` are those of :func:`hypothesis_errors`.
    """
    return best_error(hypothesis_errors(hypotheses, target, **options), "joint")


def p_best(hypotheses: Clips, target: Clips, *, level: Level = "pose", **options: Any) -> float:
    """P-Best: for every pose (or clip, or all of them) the nearest hypothesis, mm; needs the truth.

    ``options`` are those of :func:`hypothesis_errors`.
    """
    return best_error(hypothesis_errors(hypotheses, target, **options), level)


def mean_of_hypotheses(hypotheses: Clips, target: Clips, **options: Any) -> float:
    """Mean error of the hypotheses, mm: of one drawn at random.

    ``options`` are those of :func:`hypothesis_errors`.
    """
    return _pooled(hypothesis_errors(hypotheses, target, **options))


def p_agg(
    hypotheses: Clips,
    target: Clips,
    *,
    align: bool = False,
    joints: Sequence[int] | None = None,
) -> float:
    """P-Agg: error of the mean pose, mm. With ``align`` the mean pose is aligned, not its parts.

    Parameters and errors are those of :func:`hypothesis_errors`.
    """
    means = [(h.mean(axis=0)[None], y) for h, y in paired(hypotheses, target)]
    predictions, targets = map(list, zip(*means, strict=True))
    return _pooled(hypothesis_errors(predictions, targets, align=align, joints=joints))


def j_agg(
    hypotheses: Clips,
    target: Clips,
    distance_2d: Clips,
    *,
    align: bool = False,
    joints: Sequence[int] | None = None,
) -> float:
    """J-Agg: for every joint and frame the hypothesis that lies nearest in the image, mm.

    Parameters
    ----------
    hypotheses, target, align, joints
        As for :func:`hypothesis_errors`; hypotheses are aligned first, then chosen.
    distance_2d
        Distances of the projected hypotheses to the 2D joints, (H, T, J) for each clip, in any
        unit. The root they were projected with decides what the number is worth: with the true
        one it is an oracle's too.

    Raises
    ------
    StructDiffError
        If the shapes do not fit each other, or a distance is NaN.
    """
    errors = hypothesis_errors(hypotheses, target, align=align)
    distances = listed(distance_2d, axes=3)
    if len(errors) != len(distances):
        raise StructDiffError(f"got {len(errors)} clips and distance_2d of {len(distances)}")
    for number, (error, distance) in enumerate(zip(errors, distances, strict=True)):
        if error.shape != distance.shape or np.isnan(distance).any():
            raise StructDiffError(
                f"distance_2d of clip {number} must be numbers of shape {error.shape} (inf for a "
                f"joint behind the camera), got {distance.shape}, {np.isnan(distance).sum()} NaN"
            )
    chosen = [
        np.take_along_axis(error, distance.argmin(axis=0)[None], axis=0)
        for error, distance in zip(errors, distances, strict=True)
    ]
    return _pooled(chosen if joints is None else [c[..., list(joints)] for c in chosen])


def hypothesis_scores(
    hypotheses: Clips,
    target: Clips,
    *,
    distance_2d: Clips | None = None,
    aggregated: Mapping[str, Clips] | None = None,
    align: bool = False,
    joints: Sequence[int] | None = None,
) -> dict[str, float]:
    """Every score of a set of hypotheses, millimetres.

    Parameters
    ----------
    hypotheses, target, align, joints
        As for :func:`hypothesis_errors`.
    distance_2d
        As for :func:`j_agg`; None leaves J-Agg out.
    aggregated
        Poses made of the hypotheses in other ways, label -> (T, J, 3) for each clip: scored as
        they are.

    Returns
    -------
    dict
        ``J-Best``, ``P-Best (pose)``, ``P-Best (clip)``, ``P-Best (batch)``, ``P-Agg``,
        ``hypothesis mean``, then ``J-Agg`` and the labels of ``aggregated``.

    Raises
    ------
    StructDiffError
        As :func:`hypothesis_errors` and :func:`j_agg`.
    """
    errors = hypothesis_errors(hypotheses, target, align=align, joints=joints)
    scores = {"J-Best": best_error(errors, "joint")}
    for level in ("pose", "clip", "batch"):
        scores[f"P-Best ({level})"] = best_error(errors, level)
    scores["P-Agg"] = p_agg(hypotheses, target, align=align, joints=joints)
    scores["hypothesis mean"] = _pooled(errors)
    if distance_2d is not None:
        scores["J-Agg"] = j_agg(hypotheses, target, distance_2d, align=align, joints=joints)
    for label, poses in (aggregated or {}).items():
        alone = [pose[None] for pose in listed(poses, axes=3)]
        scores[label] = _pooled(hypothesis_errors(alone, target, align=align, joints=joints))
    return scores


# ---------------------------------------------------------------- inside


def _units(errors: Sequence[Array], level: str) -> tuple[Array, Array]:
    """Errors of the units that a hypothesis is chosen for, (H, U), and frames of each, (U,)."""
    frames = np.array([error.shape[1] for error in errors])
    joined = np.concatenate(list(errors), axis=1)  # (H, N, J)
    if level == "joint":
        values = joined.reshape(len(joined), -1)
    elif level == "pose":
        values = joined.mean(axis=2)
    elif level == "clip":
        starts = np.concatenate([[0], frames[:-1].cumsum()])
        values = np.add.reduceat(joined.mean(axis=2), starts, axis=1) / frames
        return values, frames.astype(np.float64)
    elif level == "batch":
        values = joined.mean(axis=(1, 2))[:, None]
    else:
        raise StructDiffError(f"level must be one of {', '.join(get_args(Level))}, got {level!r}")
    return values, np.ones(values.shape[1])


def _subset_minimum(count: int) -> Array:
    """Weights (k, i) of the i-th smallest of ``count`` in the expected least of k of them."""
    weights = np.zeros((count, count))
    for size in range(1, count + 1):
        weight = size / count  # C(H - 1, k - 1) / C(H, k)
        for place in range(count - size + 1):
            weights[size - 1, place] = weight
            weight *= (count - size - place) / max(count - 1 - place, 1)
    return weights


def _pooled(errors: Sequence[Array]) -> float:
    frames = [error.shape[1] for error in errors]
    return float(np.average([error.mean() for error in errors], weights=frames))


def listed(clips: Clips, axes: int) -> list[Array]:
    """Clips as arrays in double precision; one array of ``axes`` axes is one clip."""
    several = isinstance(clips, (list, tuple)) or np.ndim(clips) == axes + 1
    return [np.asarray(clip, dtype=np.float64) for clip in (clips if several else [clips])]


def paired(hypotheses: Clips, target: Clips) -> list[tuple[Array, Array]]:
    """Hypotheses (H, T, J, 3) and target (T, J, 3) of each clip, in double precision.

    Raises
    ------
    StructDiffError
        If they do not fit each other.
    """
    x, y = listed(hypotheses, axes=4), listed(target, axes=3)
    if len(x) != len(y) or not x:
        raise StructDiffError(f"got hypotheses of {len(x)} clips and targets of {len(y)}")
    for number, (several, one) in enumerate(zip(x, y, strict=True)):
        if several.ndim != 4 or several.shape[1:] != one.shape or 0 in several.shape:
            raise StructDiffError(
                f"hypotheses of clip {number} must be (H, T, J, 3) and its target (T, J, 3), "
                f"got {several.shape} and {one.shape}"
            )
    if len({len(several) for several in x}) > 1:
        raise StructDiffError(
            f"all clips need the same number of hypotheses, got {sorted({len(h) for h in x})}"
        )
    return list(zip(x, y, strict=True))
