r"""Windows of series: what the network sees, scaled per series and never by its batch mates.

A window holds ``context`` points up to a cut and ``horizon`` points after it. Channel 0 is the
series, channel j the series ``lags[j-1]`` points earlier over the same positions, everything moved
and divided by two numbers of the observed context:

* ``"mean"``: divided by the mean of :math:`|y|` (Kollovieh et al. 2023, TSDiff). A series with a
  level far from zero then uses a small part of the range.
* ``"standard"``: centred, and divided by :math:`\sqrt{\mathrm{var}(y) + (0.01\,\overline{|y|})^2}`.
  The second term keeps a series that hardly moves, such as a pegged rate, from being blown up. A
  Gaussian fitted to such windows forecasts Exchange and, by far, M4 hourly better than one of
  windows divided by their mean size (``benchmarks/tsdiff_choices.py``).

The published code falls back to a scale of the whole batch where a context is all zero, which makes
a forecast depend on its batch mates: here the series' own past is next.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, TypeAlias, get_args

import numpy as np
import torch
from torch import Tensor

from structdiff.errors import StructDiffError

Scaling: TypeAlias = Literal["standard", "mean"]

_STILL = 0.01
"""Of the mean size: what a series that does not move at all is divided by."""

#: Days back that hourly data look at: the week, then the second to the fourth.
_DAYS = (1, 2, 3, 4, 5, 6, 7, 14, 21, 28)


def default_lags(seasonality: int) -> tuple[int, ...]:
    """Lags for a seasonality in points.

    Ten multiples of a day where a day has several points (as published for hourly data), twelve of
    30 points where a point is a day or a business day, twelve of the season elsewhere, and none
    where there is no season.

    Parameters
    ----------
    seasonality
        Points of one season: 24 hourly, 48 half-hourly, 7 daily, 5 on business days, 12 monthly.
    """
    if seasonality >= 24:
        return tuple(seasonality * day for day in _DAYS)
    if seasonality in (5, 7):
        return tuple(30 * k for k in range(1, 13))
    return tuple(seasonality * k for k in range(1, 13)) if seasonality > 1 else ()


class WindowBatch(NamedTuple):
    """Windows of B series at given cuts."""

    x: Tensor
    """Scaled values, float32 (B, L, C); where nothing is observed 0, or the line between the
    neighbours where the maker fills."""
    observed: Tensor
    """Which entries of ``x`` are known, bool (B, L, C)."""
    shift: Tensor
    """What was taken from the values, float64 (B,)."""
    scale: Tensor
    """What they were divided by, float64 (B,)."""

    def unscaled(self, x: Tensor) -> Tensor:
        """Values (B, ...) of these windows in the units of their series, float64."""
        shape = (-1,) + (1,) * (x.dim() - 1)
        return x.double() * self.scale.reshape(shape) + self.shift.reshape(shape)


class WindowMaker:
    """Cuts windows out of many series of different lengths at once.

    Parameters
    ----------
    series
        Values per series, float, NaN = missing.
    context, horizon
        Points before and after the cut.
    lags
        Distances of the further channels, in points.
    scaling
        ``"standard"`` or ``"mean"``.
    fill
        Put a straight line through missing values that lie within a series (its nearest value at
        the ends), for training: they stay marked as not observed.

    Raises
    ------
    StructDiffError
        If there is no series, or context, horizon or a lag is below 1.
    """

    def __init__(
        self,
        series: Sequence[np.ndarray],
        context: int,
        horizon: int,
        lags: Sequence[int] = (),
        scaling: Scaling = "standard",
        fill: bool = False,
    ) -> None:
        if not len(series):
            raise StructDiffError("there is no series to cut windows from")
        if min([context, horizon, *lags]) < 1:
            raise StructDiffError(
                "context, horizon and lags must be at least 1 point, "
                f"got {context}, {horizon} and {tuple(lags)}"
            )
        if scaling not in get_args(Scaling):
            raise StructDiffError(f"unknown scaling {scaling!r}: choose standard or mean")
        self.context, self.horizon, self.lags = int(context), int(horizon), tuple(lags)
        self.scaling, self._fills = scaling, fill
        self.lengths = torch.tensor([len(values) for values in series])
        self._first = torch.cat([torch.zeros(1, dtype=torch.long), self.lengths.cumsum(0)[:-1]])
        # One more entry, for what lies outside of a series.
        flat = torch.from_numpy(np.concatenate([*series, [np.nan]]).astype(np.float64))
        self._observed = flat.isfinite()
        if fill:
            flat = torch.from_numpy(np.concatenate([*map(_filled, series), [np.nan]]))
        self._values = torch.where(flat.isfinite(), flat, 0.0)

    @property
    def channels(self) -> int:
        """The series and its lagged copies."""
        return 1 + len(self.lags)

    @property
    def length(self) -> int:
        """Points of a window."""
        return self.context + self.horizon

    def _places(self, index: Tensor, position: Tensor) -> Tensor:
        """Where position (B, ...) of series (B,) lies; the last entry where it does not exist."""
        shape = (-1,) + (1,) * (position.dim() - 1)
        inside = (position >= 0) & (position < self.lengths[index].reshape(shape))
        places = self._first[index].reshape(shape) + position
        return torch.where(inside, places, len(self._values) - 1)

    def batch(
        self, index: Tensor, cut: Tensor, known: Tensor | None = None, *, future: bool
    ) -> WindowBatch:
        """Windows of the series ``index`` (B,) with ``cut`` (B,) points before the horizon.

        Parameters
        ----------
        index
            Which series.
        cut
            Number of points that come before the horizon, 0 to the series' length; what lies
            before its start or after its end is not observed.
        known
            Bool (B, context): context points that may be looked at; hidden ones are hidden where
            they reappear as lags, too. None is all.
        future
            Whether points after the cut may be looked at: true in training, false in a forecast,
            where the series may go on for the sake of its evaluation.
        """
        start = cut - self.context
        steps = torch.arange(self.length)
        back = torch.tensor((0, *self.lags))
        position = start[:, None, None] + steps[:, None] - back  # (B, L, C)
        places = self._places(index, position)
        values, observed = self._values[places], self._observed[places]
        if not future:
            observed = observed & (position < cut[:, None, None])
            values = torch.where(observed, values, 0.0)
        if known is not None:
            within = position - start[:, None, None]  # place in the context, where it lies there
            inside = (within >= 0) & (within < self.context)
            rows = torch.arange(len(index))[:, None, None]
            observed = observed & (~inside | known[rows, within.clamp(0, self.context - 1)])
            values = torch.where(observed, values, 0.0)
        shift, scale = self._scales(index, start, values, observed)
        moved = (values - shift[:, None, None]) / scale[:, None, None]
        # What is not known holds no trace of the series: 0 is the scaled mean, or zero.
        x = torch.where(observed | self._filled(places, future), moved, 0.0)
        return WindowBatch(x.float(), observed, shift, scale)

    def _filled(self, places: Tensor, future: bool) -> Tensor:
        """Which missing entries hold a line between their neighbours."""
        if not (self._fills and future):
            return torch.zeros_like(places, dtype=torch.bool)
        return places < len(self._values) - 1

    def _scales(
        self, index: Tensor, start: Tensor, values: Tensor, observed: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Shift and scale of the observed context, else of the series before it; (B,) each."""
        context, seen = values[:, : self.context, 0], observed[:, : self.context, 0].clone()
        shift, scale = _affine(context, seen, self.scaling)
        for row in (scale == 0).nonzero()[:, 0].tolist():  # rare: a context of zeros or gaps
            first = int(self._first[index[row]])
            past = slice(first, first + max(int(start[row]), 0))
            # A gap may leave only points after the cut; a forecast has none there.
            for v, known in (
                (values[row, :, 0], observed[row, :, 0]),
                (self._values[past], self._observed[past]),
            ):
                other = _affine(v[None], known[None], self.scaling)
                if not bool(seen[row].any()) and bool(known.any()):
                    shift[row], seen[row, 0] = other[0][0], True
                if scale[row] == 0:
                    scale[row] = other[1][0]
        return shift, torch.where(scale == 0, 1.0, scale)

    def training_cuts(self) -> tuple[Tensor, Tensor]:
        """Every (series, cut) whose window and lags lie within the series, in order.

        Raises
        ------
        StructDiffError
            If no series is long enough; the message says how long one must be.
        """
        needed = self.context + max(self.lags, default=0)
        counts = (self.lengths - needed - self.horizon + 1).clamp(min=0)
        if not int(counts.sum()):
            raise StructDiffError(
                f"training needs series of at least {needed + self.horizon} points (context "
                f"{self.context}, longest lag {max(self.lags, default=0)}, horizon "
                f"{self.horizon}), the longest has {int(self.lengths.max())}: choose a shorter "
                "context or fewer lags"
            )
        index = torch.repeat_interleave(torch.arange(len(counts)), counts)
        order = torch.arange(len(index)) - torch.repeat_interleave(
            counts.cumsum(0) - counts, counts
        )
        return index, needed + order

    def too_short(self) -> list[int]:
        """Numbers of the series that training cannot use."""
        needed = self.length + max(self.lags, default=0)
        return (self.lengths < needed).nonzero()[:, 0].tolist()


def _affine(values: Tensor, observed: Tensor, scaling: Scaling) -> tuple[Tensor, Tensor]:
    """Shift and scale of the observed values (B, T); a scale of 0 where there is none to take."""
    count = observed.sum(1).clamp(min=1)
    size = values.abs().mul(observed).sum(1) / count
    if scaling == "mean":
        return torch.zeros_like(size), size
    mean = values.mul(observed).sum(1) / count
    gap = (values - mean[:, None]).mul(observed)
    return mean, torch.sqrt(gap.square().sum(1) / count + (_STILL * size) ** 2)


def _filled(values: np.ndarray) -> np.ndarray:
    """A series (T,) with a line through its missing values; as it is where all are missing."""
    seen = np.isfinite(values)
    if seen.all() or not seen.any():
        return np.asarray(values, dtype=np.float64)
    places = np.arange(len(values))
    return np.interp(places, places[seen], values[seen])
