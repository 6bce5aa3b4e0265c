r"""The table of a set of predictions: every metric, every action or sequence, each frame once.

A row r holds the clips of an action or a sequence. With :math:`n_c` valid frames (for velocities:
steps) in clip c and the mean :math:`m_c` of a metric over them,

.. math:: m_r = \frac{\sum_{c \in r} n_c m_c}{\sum_{c \in r} n_c}, \qquad
          m_{\mathrm{mean}} = \operatorname{mean}_r m_r, \qquad
          m_{\mathrm{all\ frames}} = \frac{\sum_c n_c m_c}{\sum_c n_c}.

So nothing depends on how predictions were batched. Which rows, metrics and joints a set asks for
is its :mod:`protocol <structdiff.pose.protocols>`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from structdiff.errors import StructDiffError
from structdiff.pose import calibration, metrics
from structdiff.pose._records import Array, Poses, Record, records
from structdiff.pose.data import PoseDataset
from structdiff.pose.hypotheses import Level, best_error
from structdiff.pose.protocols import Protocol, get_protocol
from structdiff.pose.skeletons import H36M_17, Skeleton, get_skeleton

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["METRICS", "Metric", "evaluate"]

MEAN, ALL_FRAMES = "mean", "all frames"
"""Rows of the table: plain mean over the other rows, and mean over all frames."""
_FPS, _HYPOTHESES, _SPREAD = "fps", "hypotheses", "several hypotheses"


@dataclass(frozen=True)
class _Joints:
    """Which joints are averaged over."""

    skeleton: Skeleton
    errors: tuple[int, ...]
    """In distances."""
    shares: tuple[int, ...]
    """In PCK and AUC."""


Score: TypeAlias = "tuple[Array | float, int]"
"""Of one clip: a mean, or one for each hypothesis of which the least counts; and its weight."""


@dataclass(frozen=True)
class Metric:
    """A column of the table.

    Parameters
    ----------
    unit
        Of the numbers.
    score
        Of one clip.
    needs
        What it cannot do without besides poses; empty for nothing.
    """

    unit: str
    score: Callable[[Record, _Joints], Score]
    needs: Literal["", "fps", "hypotheses", "several hypotheses"] = ""


def evaluate(
    prediction: Poses,
    target: Poses,
    *,
    protocol: str | Protocol | None = None,
    skeleton: str | Skeleton | None = None,
    metrics: Sequence[str] | None = None,
    actions: str | Sequence[str] | None = None,
    valid: Any = None,
    fps: float | Sequence[float] | None = None,
    root: Literal["subtract", "keep"] = "subtract",
    include_root: bool = True,
) -> pd.DataFrame:
    """Score predicted 3D poses.

    Parameters
    ----------
    prediction
        Metres: (T, J, 3) of one clip or hypotheses (H, T, J, 3); a list of those; the same by the
        names of the clips; or a :class:`~structdiff.pose.data.PoseDataset`. Metrics of one pose
        (MPJPE, PCK, ...) are then those of the mean over the hypotheses.
    target
        Metres, in the axes of the predictions: (T, J, 3), a list, by name, or a data set, which
        brings actions, rates and valid frames, and whose poses are taken in camera axes.
    protocol
        ``"h36m"``, ``"3dhp"``, a :class:`~structdiff.pose.protocols.Protocol`, or None for one row
        per clip and the mean over all frames.
    skeleton
        Of both; None is the data set's, else the protocol's, else Human3.6M's.
    metrics
        Columns, of :data:`METRICS`; None is the protocol's, those per second where all rates are
        known, and those of hypotheses where there are any.
    actions
        One per clip (``"h36m"``). What follows a space is the take: "Directions 1" belongs to
        "Directions".
    valid
        Frames that count, 0 or 1 (T,), for each clip.
    fps
        Frames per second, one or one per clip.
    root
        Whether the root joint is subtracted from both first, as both protocols do, or kept.
    include_root
        Whether distances average over the root joint too (17 of 17, the protocols' way, although
        its error is 0 once subtracted), or over the 16 others.

    Returns
    -------
    pandas.DataFrame
        A row for each action or clip; ``mean``, their plain mean (with a protocol); ``all
        frames``. Columns: ``frames`` that were counted, and the metrics, NaN where no frame had
        what it takes (a velocity takes two). ``attrs`` says ``protocol``, ``units``, ``joints`` and
        ``share_joints`` (how many are averaged over), ``root``, ``hypotheses`` and ``notes`` of
        the data.

    Raises
    ------
    StructDiffError
        If predictions do not fit the targets, are not metres or not finite, if an action or a rate
        is missing that is needed, or a name is unknown.
    """
    if root not in ("subtract", "keep"):
        raise StructDiffError(f"root must be 'subtract' or 'keep', got {root!r}")
    rules = get_protocol(protocol)
    tree = _skeleton(skeleton, prediction, target, rules)
    clips = records(prediction, target, tree, actions=actions, valid=valid, fps=fps, root=root)
    counted = tuple(range(len(tree))) if include_root else tree.bones
    joints = _Joints(tree, counted, rules.joints(tree) or counted)
    columns = _columns(metrics, rules, clips)
    scores = [{name: METRICS[name].score(clip, joints) for name in columns} for clip in clips]
    table = _table(clips, scores, columns, rules)
    table.attrs = {
        "protocol": rules.name,
        "units": {name: METRICS[name].unit for name in columns},
        "joints": len(joints.errors),
        "share_joints": len(joints.shares),
        "root": root,
        "hypotheses": len(clips[0].predictions),
        "notes": list(target.notes) if isinstance(target, PoseDataset) else [],
    }
    return table


# ---------------------------------------------------------------- columns


def _position(metric: Callable[..., Any], shares: bool = False) -> Callable[..., Score]:
    def score(clip: Record, joints: _Joints) -> Score:
        counted = joints.shares if shares else joints.errors
        return float(metric(clip.mean[clip.valid], clip.truth, joints=counted)), clip.frames

    return score


def _motion(metric: Callable[..., Any], order: int, per_second: bool) -> Callable[..., Score]:
    """Differences only between frames that follow each other and all count."""

    def score(clip: Record, joints: _Joints) -> Score:
        steps = clip.runs(order + 1)
        if not steps.any():
            return 0.0, 0
        errors = metric(
            clip.mean,
            clip.target,
            joints=joints.errors,
            per="frame",
            fps=clip.fps if per_second else None,
        )
        return float(errors[steps].mean()), int(steps.sum())

    return score


def _shape(metric: Callable[..., Any]) -> Callable[..., Score]:
    def score(clip: Record, joints: _Joints) -> Score:
        return float(metric(clip.mean[clip.valid], joints.skeleton)), clip.frames

    return score


def _choice(level: Level, align: bool) -> Callable[..., Score]:
    def score(clip: Record, joints: _Joints) -> Score:
        errors = _errors(clip, joints, align)
        # One hypothesis for a whole row is chosen when the row is complete.
        value = errors.mean(axis=(1, 2)) if level == "batch" else best_error([errors], level)
        return value, clip.frames

    return score


def _any_choice(align: bool) -> Callable[..., Score]:
    def score(clip: Record, joints: _Joints) -> Score:
        return float(_errors(clip, joints, align).mean()), clip.frames

    return score


def _errors(clip: Record, joints: _Joints, align: bool) -> Array:
    errors = clip.aligned_errors if align else clip.errors
    return errors[:, :, list(joints.errors)]


def _calibration(score_of: Callable[..., Any], *, truth: bool = True) -> Callable[..., Score]:
    """Without the root, which has no spread once it is subtracted."""

    def score(clip: Record, joints: _Joints) -> Score:
        given = (clip.seen, clip.truth) if truth else (clip.seen,)
        return score_of(*given, joints=joints.skeleton.bones), clip.frames

    return score


def _of_hypotheses() -> dict[str, Metric]:
    found: dict[str, Metric] = {}
    for align, suffix in ((False, ""), (True, " aligned")):
        needs: Any = _HYPOTHESES
        aggregated = metrics.p_mpjpe if align else metrics.mpjpe
        found |= {
            f"J-Best{suffix}": Metric("mm", _choice("joint", align), needs),
            f"P-Best (pose){suffix}": Metric("mm", _choice("pose", align), needs),
            f"P-Best (clip){suffix}": Metric("mm", _choice("clip", align), needs),
            f"P-Best (batch){suffix}": Metric("mm", _choice("batch", align), needs),
            f"P-Agg{suffix}": Metric("mm", _position(aggregated), needs),
            f"hypothesis mean{suffix}": Metric("mm", _any_choice(align), needs),
        }
    return found


METRICS: Mapping[str, Metric] = MappingProxyType(
    {
        "MPJPE": Metric("mm", _position(metrics.mpjpe)),
        "P-MPJPE": Metric("mm", _position(metrics.p_mpjpe)),
        "N-MPJPE": Metric("mm", _position(metrics.n_mpjpe)),
        "MPJVE": Metric("mm/frame", _motion(metrics.mpjve, 1, False)),
        "MPJVE (mm/s)": Metric("mm/s", _motion(metrics.mpjve, 1, True), "fps"),
        "acceleration error": Metric("mm/frame^2", _motion(metrics.acceleration_error, 2, False)),
        "acceleration error (mm/s^2)": Metric(
            "mm/s^2", _motion(metrics.acceleration_error, 2, True), "fps"
        ),
        "PCK": Metric("%", _position(metrics.pck, shares=True)),
        "AUC": Metric("%", _position(metrics.auc, shares=True)),
        "bone length deviation": Metric("mm", _shape(metrics.bone_length_deviation)),
        "symmetry gap": Metric("mm", _shape(metrics.symmetry_gap)),
        **_of_hypotheses(),
        "coverage (80 %)": Metric("%", _calibration(calibration.coverage), "several hypotheses"),
        "energy score": Metric("mm", _calibration(calibration.energy_score), "several hypotheses"),
        "CRPS": Metric("mm", _calibration(calibration.crps), "several hypotheses"),
        "spread": Metric("mm", _calibration(calibration.spread, truth=False), "several hypotheses"),
    }
)
"""Every column there is, by name. PCK is at 150 mm. "Aligned" scores compare after a Procrustes
alignment, as P-MPJPE does: of every hypothesis, or of the mean pose for P-Agg. Calibration leaves
the root out and takes normal intervals: see :mod:`structdiff.pose.calibration`."""


def _columns(
    asked: Sequence[str] | None, rules: Protocol, clips: Sequence[Record]
) -> tuple[str, ...]:
    timed = all(clip.fps is not None for clip in clips)
    count = len(clips[0].predictions)
    has = {"": True, _FPS: timed, _HYPOTHESES: count > 1, _SPREAD: count > 1}
    if asked is None:
        per_second = [f"{name} (mm/s)" for name in rules.metrics] + [
            f"{name} (mm/s^2)" for name in rules.metrics
        ]
        wanted = [*rules.metrics, *(name for name in per_second if name in METRICS)]
        wanted += [n for n, m in METRICS.items() if m.needs in (_HYPOTHESES, _SPREAD)]
        return tuple(n for n in wanted if has[METRICS[n].needs] and not n.endswith("aligned"))
    asked = [asked] if isinstance(asked, str) else list(asked)
    for name in asked:
        if name not in METRICS:
            raise StructDiffError(f"unknown metric {name!r}: choose of {', '.join(METRICS)}")
        if METRICS[name].needs == _FPS and not timed:
            lacking = next(clip.name for clip in clips if clip.fps is None)
            raise StructDiffError(f"{name} needs the rate of clip {lacking!r}: pass fps")
        if METRICS[name].needs == _SPREAD and not has[_SPREAD]:
            raise StructDiffError(
                f"{name} needs several hypotheses: pass predictions (H, T, J, 3), not one pose"
            )
    return tuple(asked)


# ---------------------------------------------------------------- rows


def _table(
    clips: Sequence[Record],
    scores: Sequence[Mapping[str, Score]],
    columns: Sequence[str],
    rules: Protocol,
) -> pd.DataFrame:
    import pandas as pd

    groups: dict[str, list[int]] = {}
    for number, clip in enumerate(clips):
        groups.setdefault(_label(clip, rules), []).append(number)

    def row(numbers: Sequence[int]) -> dict[str, float]:
        means = {name: _combined([scores[k][name] for k in numbers]) for name in columns}
        return {"frames": sum(clips[k].frames for k in numbers), **means}

    rows = pd.DataFrame.from_dict({label: row(k) for label, k in groups.items()}, orient="index")
    pooled = pd.DataFrame([row(range(len(clips)))], index=[ALL_FRAMES])
    parts = [rows, pooled]
    if rules.mean_of_rows:
        plain = rows.mean().to_frame(MEAN).T
        plain["frames"] = pooled["frames"].to_numpy()
        parts.insert(1, plain)
    table = pd.concat(parts).astype({"frames": np.int64})
    return table.rename_axis(rules.rows)


def _label(clip: Record, rules: Protocol) -> str:
    if rules.rows == "clip":
        return clip.name
    if not clip.action:
        raise StructDiffError(
            f"clip {clip.name!r} has no action, which protocol {rules.name!r} averages over: pass "
            "actions, one for each clip"
        )
    return clip.action.split(" ")[0]


def _combined(scores: Sequence[Score]) -> float:
    """Mean over clips by weight; of the best hypothesis where there is one for each."""
    weights = np.array([weight for _, weight in scores], dtype=np.float64)
    if not weights.any():
        return float("nan")
    values = np.stack([np.atleast_1d(np.asarray(value, np.float64)) for value, _ in scores])
    return float((weights @ values / weights.sum()).min())


def _skeleton(
    asked: str | Skeleton | None, prediction: Poses, target: Poses, rules: Protocol
) -> Skeleton:
    """The one skeleton that everything is on."""
    said = {
        what: poses.skeleton
        for what, poses in (("target", target), ("prediction", prediction))
        if isinstance(poses, PoseDataset)
    }
    if asked is not None:
        said["argument"] = get_skeleton(asked)
    if not said:
        return rules.skeleton or H36M_17
    first, *others = said.values()
    if any(other != first for other in others):
        names = ", ".join(f"{what}: {tree.name}" for what, tree in said.items())
        raise StructDiffError(
            f"poses must be on one skeleton, got {names}: turn them with "
            "structdiff.pose.skeletons.convert"
        )
    return first
