"""Which shape a frame has, and how to write an answer in that same shape.

- long: one row per series and time; id, time and value are columns or levels of the index;
- wide: one row per time and one column per series; time is the index or a column.

A Series is a wide frame of one column, or a long one if its index is (id, time).
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pandas as pd
from pandas.api.types import is_bool_dtype, is_integer_dtype, is_numeric_dtype

from structdiff.errors import StructDiffError

__all__ = ["Layout", "Source", "recognise", "write"]

Place = Literal["column", "index"]


@dataclass(frozen=True)
class Layout:
    """What has to be remembered of a frame to answer in its shape.

    Attributes
    ----------
    kind
        "long" or "wide".
    time, target, id
        Names of the columns or index levels; ``id`` is None where ``id_place`` is None.
    id_place, time_place
        Where they stand; ``id_place`` None = a single series without an id, or a wide frame.
    order
        The caller's columns in their order, as far as they are read.
    dtypes
        Of the values: one of the target in a long frame, else one per column label.
    index_names, time_first
        Names of the levels of a two-level index, in its order, and whether time is the outer one.
    column_names
        Names of the levels of a wide frame's columns.
    index_freq
        The ``freq`` attribute of a wide frame's DatetimeIndex, if it has one.
    is_series
        Whether the caller gave a Series.
    unused
        Columns that are neither id, time nor target.
    """

    kind: Literal["long", "wide"]
    time: Hashable
    target: Hashable
    id: Hashable = None
    id_place: Place | None = None
    time_place: Place = "column"
    order: list[Hashable] = field(default_factory=list)
    dtypes: Mapping[Hashable, Any] = field(default_factory=dict)
    index_names: list[Hashable] = field(default_factory=list)
    time_first: bool = False
    column_names: list[Hashable] = field(default_factory=list)
    index_freq: Any = None
    is_series: bool = False
    unused: list[Hashable] = field(default_factory=list)


@dataclass(frozen=True)
class Source:
    """The parts of a frame: ids (N rows) or None, time (N rows), value columns by label."""

    layout: Layout
    ids: Any
    time: pd.Series
    values: list[tuple[Hashable, pd.Series]]
    labels: Any  # one per series of a wide frame, in the caller's dtype


def recognise(
    df: Any, id_col: Hashable, time_col: Hashable, target_col: Hashable, integer_time: bool
) -> Source:
    """Take a frame apart.

    Parameters
    ----------
    integer_time
        Whether the caller gave an integer frequency: only then is a frame without a time column
        and with a plain integer index read as a wide one.

    Raises
    ------
    StructDiffError
        Not a pandas object, no rows, or no such columns; the message lists what was found.
    """
    is_series = isinstance(df, pd.Series)
    if not is_series and not isinstance(df, pd.DataFrame):
        raise StructDiffError(
            f"expected a pandas DataFrame or Series, got {type(df).__name__}; convert it first, "
            "for example with .to_pandas() or pd.DataFrame(...)"
        )
    if len(df) == 0:
        raise StructDiffError("the frame has no rows")
    if is_series:
        many = isinstance(df.index, pd.MultiIndex)
        df = df.to_frame(target_col if many and df.name is None else df.name)
    if df.shape[1] == 0:
        raise StructDiffError("the frame has no columns")
    if not df.columns.is_unique:
        twice = df.columns[df.columns.duplicated()][0]
        raise StructDiffError(f"two columns are called {twice!r}; rename or drop one")
    if isinstance(df.index, pd.MultiIndex):
        return _two_levels(df, id_col, time_col, target_col, is_series)
    index_name = df.index.name
    has_id = id_col in df.columns or (index_name is not None and index_name == id_col)
    has_time = time_col in df.columns or (index_name is not None and index_name == time_col)
    if has_id or (target_col in df.columns and time_col in df.columns):
        return _long(df, id_col, time_col, target_col, has_id, has_time)
    return _wide(df, time_col, target_col, is_series, integer_time)


def _two_levels(
    df: pd.DataFrame, id_col: Hashable, time_col: Hashable, target: Hashable, is_series: bool
) -> Source:
    names = list(df.index.names)
    if len(names) != 2:
        raise StructDiffError(
            f"the index has {len(names)} levels {names}; expected two, the series' id and the time"
        )
    time_level = names.index(time_col) if time_col in names else 1 - _position(names, id_col, 0)
    if target not in df.columns:
        if df.shape[1] != 1:
            raise _no_column(df, target, "target_col")
        target = df.columns[0]
    layout = Layout(
        "long",
        time=names[time_level],
        target=target,
        id=names[1 - time_level],
        id_place="index",
        time_place="index",
        order=[target],
        dtypes={target: df[target].dtype},
        index_names=names,
        time_first=time_level == 0,
        is_series=is_series,
        unused=[c for c in df.columns if c != target],
    )
    ids = df.index.get_level_values(1 - time_level)
    time = pd.Series(df.index.get_level_values(time_level))
    return Source(layout, ids.array, time, [(target, df[target])], None)


def _position(names: list[Hashable], name: Hashable, default: int) -> int:
    return names.index(name) if name in names else default


def _long(
    df: pd.DataFrame,
    id_col: Hashable,
    time_col: Hashable,
    target: Hashable,
    has_id: bool,
    has_time: bool,
) -> Source:
    if target not in df.columns:
        raise _no_column(df, target, "target_col")
    id_place: Place | None = None
    if has_id:
        id_place = "column" if id_col in df.columns else "index"
    time_place: Place = "column" if time_col in df.columns else "index"
    on_index = isinstance(df.index, (pd.DatetimeIndex, pd.PeriodIndex)) and id_place == "column"
    if not has_time and not on_index:
        raise _no_column(df, time_col, "time_col")
    read = {target, id_col if id_place == "column" else target}
    read |= {time_col} if time_place == "column" else set()
    layout = Layout(
        "long",
        time=time_col if time_place == "column" else df.index.name,
        target=target,
        id=id_col if has_id else None,
        id_place=id_place,
        time_place=time_place,
        order=[c for c in df.columns if c in read],
        dtypes={target: df[target].dtype},
        unused=[c for c in df.columns if c not in read],
    )
    ids = None
    if id_place is not None:
        ids = (df[id_col] if id_place == "column" else df.index).array
    time = df[time_col] if time_place == "column" else pd.Series(df.index)
    return Source(layout, ids, time, [(target, df[target])], None)


def _wide(
    df: pd.DataFrame, time_col: Hashable, target: Hashable, is_series: bool, integer_time: bool
) -> Source:
    in_column = time_col in df.columns
    labels = df.columns.drop(time_col) if in_column else df.columns
    if len(labels) == 0:
        raise _no_column(df, target, "target_col")
    text = [c for c in labels if not is_numeric_dtype(df[c])]
    is_time = isinstance(df.index, (pd.DatetimeIndex, pd.PeriodIndex))
    if text and not is_time and not in_column and not is_series:
        raise _no_column(df, time_col, "time_col")
    counts = is_integer_dtype(df.index.dtype)
    if counts and not in_column and not is_series and not integer_time:
        raise StructDiffError(
            f"found neither a column {time_col!r} nor dates on the index; the columns are "
            f"{list(df.columns)[:8]}. Name the time column with time_col= (and id_col=, "
            "target_col=), or pass freq=1 if each column is a series over an integer index"
        )
    layout = Layout(
        "wide",
        time=time_col if in_column else df.index.name,
        target=target,
        time_place="column" if in_column else "index",
        order=list(df.columns),
        dtypes={c: df[c].dtype for c in labels},
        column_names=list(df.columns.names),
        index_freq=df.index.freq if isinstance(df.index, pd.DatetimeIndex) else None,
        is_series=is_series,
    )
    time = df[time_col] if in_column else pd.Series(df.index)
    return Source(layout, None, time, [(c, df[c]) for c in labels], labels)


def _no_column(df: pd.DataFrame, name: Hashable, argument: str) -> StructDiffError:
    index = f" and an index {df.index.names[0]!r}" if df.index.name is not None else ""
    return StructDiffError(
        f"the frame has no column {name!r}; it has {list(df.columns)[:12]}{index}. Name the right "
        f"one with {argument}=, or give a wide frame: dates on the index, one column per series"
    )


def write(
    layout: Layout, labels: Any, columns: Mapping[Hashable, Sequence[Any]], times: list[pd.Index]
) -> Any:
    """Write arrays per series in the caller's shape; see ``Panel.restore``."""
    if layout.kind == "wide":
        return _write_wide(layout, labels, columns, times[0])
    repeats = np.repeat(np.arange(len(times)), [len(t) for t in times])
    time = times[0].append(list(times[1:])) if len(times) > 1 else times[0]
    parts: dict[Hashable, Any] = {}
    if layout.id_place is not None:
        parts[layout.id] = pd.Series(labels.take(repeats))
    written = {n: _cast(np.concatenate(list(a)), layout, n) for n, a in columns.items()}
    for name in layout.order:
        if name == layout.target:
            parts.update(written)
        elif name == layout.time and layout.time_place == "column":
            parts[name] = pd.Series(time)
        elif name == layout.id:
            parts[name] = parts.pop(name)
    if layout.index_names:
        levels = [pd.Series(labels.take(repeats)), time][:: -1 if layout.time_first else 1]
        index = pd.MultiIndex.from_arrays(levels, names=layout.index_names)
        frame = pd.DataFrame({n: pd.Series(v).array for n, v in written.items()}, index=index)
        return frame[layout.target] if layout.is_series and len(written) == 1 else frame
    index_of_ids = parts.pop(layout.id) if layout.id_place == "index" else None
    frame = pd.DataFrame(parts)
    if layout.time_place == "index":
        frame.index = time.rename(layout.time)
    elif index_of_ids is not None:
        frame.index = pd.Index(index_of_ids.array, name=layout.id)
    return frame


def _write_wide(
    layout: Layout, labels: Any, columns: Mapping[Hashable, Sequence[Any]], time: pd.Index
) -> Any:
    if layout.time_place == "index":
        time = time.rename(layout.time)
    if layout.is_series:
        data = {n: _cast(np.asarray(a[0]), layout, n, labels[0]) for n, a in columns.items()}
        series = {n: pd.Series(v, index=time, name=labels[0]) for n, v in data.items()}
        return next(iter(series.values())) if len(series) == 1 else pd.DataFrame(series)
    parts = [
        pd.Series(_cast(np.asarray(a[i]), layout, name, label))
        for i, label in enumerate(labels)
        for name, a in columns.items()
    ]
    frame = pd.concat(parts, axis=1)
    if len(columns) == 1:
        frame.columns = labels
    else:
        keys = [
            (*(label if isinstance(label, tuple) else (label,)), name)
            for label in labels
            for name in columns
        ]
        frame.columns = pd.MultiIndex.from_tuples(keys, names=[*layout.column_names, None])
    if layout.time_place == "index":
        frame.index = time
    else:
        before = layout.order.index(layout.time) * len(columns)
        frame.insert(min(before, frame.shape[1]), layout.time, pd.Series(time))
    return frame


def _cast(values: np.ndarray, layout: Layout, name: Hashable, label: Hashable = None) -> Any:
    """The caller's own dtype for the target, where it can hold the values; others as they are."""
    if name != layout.target:
        return values
    dtype = layout.dtypes[label if layout.kind == "wide" else name]
    whole = is_integer_dtype(dtype) or is_bool_dtype(dtype)
    known = values[~np.isnan(values)]
    if isinstance(dtype, np.dtype):
        fits = not whole or (len(known) == len(values) and _survives(values, dtype))
        return values.astype(dtype) if fits else values
    nullable = pd.array(values, dtype="Float64")
    return nullable.astype(dtype) if not whole or bool((known % 1 == 0).all()) else nullable


def _survives(values: np.ndarray, dtype: np.dtype) -> bool:
    with np.errstate(invalid="ignore"):
        return bool((values.astype(dtype).astype(np.float64) == values).all())
