"""Central intervals of sample paths, and whether they hold what they promise."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from structdiff.errors import StructDiffError
from structdiff.timeseries._arrays import Array, check_levels, check_pair, check_paths
from structdiff.timeseries.scores import QUANTILE_LEVELS

#: The central intervals that are reported, percent.
COVERAGE_LEVELS = (50, 80, 95)


def central_interval(paths: npt.ArrayLike, level: float) -> tuple[Array, Array]:
    """The central interval that holds ``level`` percent, from sample paths.

    Ends lie at the positions q (S + 1) of the sorted paths, linear in between (Weibull's rule): a
    new value that is exchangeable with the S paths then lies below the k-th of them with
    probability k / (S + 1), so the interval of a perfect model covers ``level`` percent. It ends at
    the smallest and largest path where S is too small for the level.

    Parameters
    ----------
    paths
        (N, S, h).
    level
        Percent, in (0, 100).

    Returns
    -------
    lower, upper
        (N, h) each.

    Raises
    ------
    StructDiffError
        The level is outside (0, 100), or the paths have another shape or are not finite.
    """
    if not 0 < level < 100:
        raise StructDiffError(f"an interval's level is percent between 0 and 100, not {level!r}")
    tail = (1 - level / 100) / 2
    lower, upper = np.quantile(check_paths(paths), [tail, 1 - tail], axis=1, method="weibull")
    return lower, upper


def probability_integral_transform(
    paths: npt.ArrayLike, targets: npt.ArrayLike, levels: Sequence[float]
) -> Array:
    """P(PIT <= q) of each target: its rank among the paths, its place between two paths spread out.

    With b paths below y and e equal to it, (b + U (1 + e)) / (S + 1), U uniform on [0, 1], is
    uniform if y is exchangeable with the paths; the probability is taken over U, so nothing is
    drawn (Czado, Gneiting and Held, Biometrics 2009).

    Parameters
    ----------
    paths
        (N, S, h).
    targets
        (N, h); NaN = not observed.
    levels
        Q numbers in [0, 1].

    Returns
    -------
    Array
        (N, Q, h); NaN where nothing was observed.

    Raises
    ------
    StructDiffError
        As :func:`evaluate_forecasts`.
    """
    x, y, observed = check_pair(paths, targets)
    below = (x < y[:, None]).sum(axis=1)[:, None]  # (N, 1, h)
    equal = (x == y[:, None]).sum(axis=1)[:, None]
    place = check_levels(levels)[:, None] * (x.shape[1] + 1)
    reached = np.clip((place - below) / (1 + equal), 0.0, 1.0)
    return np.where(observed[:, None], reached, np.nan)


def quantile_calibration(
    paths: npt.ArrayLike, targets: npt.ArrayLike, levels: Sequence[float] = QUANTILE_LEVELS
) -> Array:
    """Share of the observed targets below the quantile of each level; the levels if calibrated.

    Parameters
    ----------
    paths
        (N, S, h).
    targets
        (N, h); NaN = not observed.
    levels
        Q numbers in [0, 1].

    Returns
    -------
    Array
        (Q,).

    Raises
    ------
    StructDiffError
        As :func:`evaluate_forecasts`.
    """
    return np.nanmean(probability_integral_transform(paths, targets, levels), axis=(0, 2))
