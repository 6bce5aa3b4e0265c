r"""Whether hypotheses spread as they err: coverage of intervals, energy score, CRPS.

A set of hypotheses :math:`x_1, \dots, x_H` is calibrated if the truth :math:`y` behaves like one
more of them. Proper scores measure that and sharpness together,

.. math:: \mathrm{ES} = \frac{1}{H} \sum_h \|x_h - y\|
          - \frac{1}{2 H (H - 1)} \sum_{h, h'} \|x_h - x_{h'}\|.

Arguments are those of :mod:`structdiff.pose.hypotheses`: (H, T, J, 3) against (T, J, 3) in metres,
one clip or a list. The root of root-relative poses has no error and no spread and would count as
covered: pass ``joints=skeleton.bones`` to leave it out.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import NormalDist
from typing import Any, Literal, TypeAlias, get_args

import numpy as np

from structdiff.errors import StructDiffError
from structdiff.pose.hypotheses import Array, Clips, listed, paired
from structdiff.pose.metrics import MILLIMETRES

Interval: TypeAlias = Literal["normal", "student", "quantile"]
Per: TypeAlias = Literal["all", "joint", "coordinate"]


def coverage(
    hypotheses: Clips,
    target: Clips,
    level: float = 0.8,
    *,
    interval: Interval = "normal",
    joints: Sequence[int] | None = None,
    per: Per = "all",
) -> Any:
    r"""How often central intervals of the hypotheses hold the truth, percent; ``level`` is ideal.

    Parameters
    ----------
    hypotheses, target
        See the module; at least 2 hypotheses.
    level
        Of the interval, between 0 and 1.
    interval
        Of each coordinate, from the H hypotheses:

        - ``"normal"``: mean +- z std. From few hypotheses too narrow: five normal ones cover 69 %
          at level 0.8.
        - ``"student"``: mean +- t std sqrt(1 + 1/H), with H - 1 degrees of freedom: exact for
          normal hypotheses, however few.
        - ``"quantile"``: between the order statistics at p (H + 1). No interval reaches beyond the
          outermost, which cover (H - 1) / (H + 1): 80 % take 9 hypotheses.
    joints
        That are counted; None is all.
    per
        ``"joint"`` gives (J,), ``"coordinate"`` (J, 3).

    Raises
    ------
    StructDiffError
        As :func:`hypothesis_errors`; or there is one hypothesis, or an option is unknown.
    """
    if not 0 < level < 1:
        raise StructDiffError(f"the level of an interval lies between 0 and 1, got {level!r}")
    x, y = _joined(hypotheses, target, joints, least=2)
    lower, upper = _interval(x, level, interval)
    return _mean(100.0 * ((lower <= y) & (y <= upper)), per)


def spread(hypotheses: Clips, *, joints: Sequence[int] | None = None, per: Per = "all") -> Any:
    """Standard deviation of the hypotheses about their mean, millimetres.

    That of a joint is the root of the summed variances of its coordinates, averaged over frames.

    Parameters and errors are those of :func:`coverage`.
    """
    x, _ = _joined(hypotheses, None, joints, least=2)
    variance = x.var(axis=0, ddof=1)  # (N, J, 3)
    if per != "coordinate":
        variance = variance.sum(axis=-1, keepdims=True)
    return _mean(MILLIMETRES * np.sqrt(variance), per)


def energy_score(
    hypotheses: Clips,
    target: Clips,
    *,
    fair: bool = True,
    joints: Sequence[int] | None = None,
    per: Literal["all", "joint"] = "all",
) -> Any:
    """Energy score of the joints in space, millimetres; smaller is better.

    A proper score of a distribution (Gneiting and Raftery, JASA 2007, eq. 22) for each joint's
    vector, averaged over frames.

    Parameters
    ----------
    hypotheses, target, joints, per
        As for :func:`coverage`.
    fair
        Divide the pairs by H (H - 1): the expectation is then the score of the distribution that
        the hypotheses come from, whatever H (Ferro, QJRMS 2014). False divides by H^2, the score of
        the H hypotheses as a distribution of their own.

    Raises
    ------
    StructDiffError
        As :func:`hypothesis_errors`; or a fair score is asked of one hypothesis.
    """
    x, y = _joined(hypotheses, target, joints, least=2 if fair else 1)
    count = len(x)
    score = np.linalg.norm(x - y, axis=-1).mean(axis=0)  # (N, J)
    for lag in range(1, count):  # each pair once, without an array over all of them
        pairs = np.linalg.norm(x[lag:] - x[:-lag], axis=-1).sum(axis=0)
        score -= pairs / (count * (count - 1) if fair else count**2)
    return _mean(MILLIMETRES * score[..., None], per)


def crps(
    hypotheses: Clips,
    target: Clips,
    *,
    fair: bool = True,
    joints: Sequence[int] | None = None,
    per: Per = "all",
) -> Any:
    """Continuous ranked probability score of the coordinates, millimetres; smaller is better.

    The :func:`energy_score` in one dimension, with its parameters and errors; ``per`` may be
    ``"coordinate"`` too.
    """
    x, y = _joined(hypotheses, target, joints, least=2 if fair else 1)
    count = len(x)
    ordered = np.sort(x - y, axis=0)  # about the truth: nothing cancels far from the origin
    rank = 2.0 * np.arange(1, count + 1) - count - 1  # sum over pairs, by order statistics
    pairs = np.tensordot(rank, ordered, axes=1) / (count * (count - 1) if fair else count**2)
    return _mean(MILLIMETRES * (np.abs(ordered).mean(axis=0) - pairs), per)


# ---------------------------------------------------------------- inside


def _interval(x: Array, level: float, interval: str) -> tuple[Array, Array]:
    if interval == "quantile":
        tails = [(1 - level) / 2, (1 + level) / 2]
        lower, upper = np.quantile(x, tails, axis=0, method="weibull")
        return lower, upper
    if interval == "normal":
        width = NormalDist().inv_cdf((1 + level) / 2)
    elif interval == "student":
        from scipy.stats import t

        width = float(t.ppf((1 + level) / 2, len(x) - 1)) * np.sqrt(1 + 1 / len(x))
    else:
        raise StructDiffError(
            f"interval must be one of {', '.join(get_args(Interval))}, got {interval!r}"
        )
    middle, deviation = x.mean(axis=0), x.std(axis=0, ddof=1)
    return middle - width * deviation, middle + width * deviation


def _mean(values: Array, per: str) -> Any:
    """Mean of values (N, J, C) over frames, and over what ``per`` does not keep."""
    if per == "all":
        return float(values.mean())
    if per == "joint":
        return values.mean(axis=(0, 2))
    if per == "coordinate" and values.shape[-1] > 1:
        return values.mean(axis=0)
    raise StructDiffError(f"per must be one of {', '.join(get_args(Per))}, got {per!r}")


def _joined(
    hypotheses: Clips, target: Clips | None, joints: Sequence[int] | None, least: int
) -> tuple[Array, Array]:
    """All clips along one axis of frames: hypotheses (H, N, J, 3) and target (N, J, 3)."""
    if target is None:
        target = [clip[0] for clip in listed(hypotheses, axes=4)]
    pairs = paired(hypotheses, target)
    x = np.concatenate([h for h, _ in pairs], axis=1)
    y = np.concatenate([t for _, t in pairs], axis=0)
    if len(x) < least:
        raise StructDiffError(f"this score needs at least {least} hypotheses, got {len(x)}")
    return (x, y) if joints is None else (x[:, :, list(joints)], y[:, list(joints)])
