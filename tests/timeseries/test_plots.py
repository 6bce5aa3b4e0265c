"""Pictures of forecasts: what they show is what the frame says."""

from __future__ import annotations

from collections.abc import Iterator

import matplotlib
import numpy as np
import pandas as pd
import pytest

from structdiff.errors import StructDiffError
from structdiff.timeseries.metrics import central_interval
from structdiff.timeseries.plots import plot_calibration, plot_forecast, plot_panel, plot_pit

matplotlib.use("Agg")

DRAW = np.random.default_rng(0)
PATHS = DRAW.standard_normal((99, 6)).cumsum(axis=1)
HISTORY = pd.Series(
    DRAW.standard_normal(40).cumsum(), index=pd.date_range("2024-01-01", periods=40, freq="h")
)


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    """No figure outlives its test."""
    yield
    from matplotlib import pyplot

    pyplot.close("all")


def lines(ax) -> dict:
    return {line.get_label(): line for line in ax.lines}


def bands(ax) -> dict:
    return {band.get_label(): band for band in ax.collections}


def ends(band) -> tuple[float, float]:
    y = band.get_paths()[0].vertices[:, 1]
    return y.min(), y.max()


def frame(ids: list, steps: int = 6) -> pd.DataFrame:
    """A result in the convention of the estimator."""
    one = pd.DataFrame(
        {
            "ds": pd.date_range("2024-01-02 16:00", periods=steps, freq="h"),
            "TSDiff": np.arange(steps),
            "TSDiff-lo-80": np.arange(steps) - 1.0,
            "TSDiff-hi-80": np.arange(steps) + 1.0,
            "TSDiff-q0.025": np.arange(steps) - 2.0,
            "TSDiff-q0.975": np.arange(steps) + 2.0,
            "TSDiff-q0.5": np.arange(steps),
            "TSDiff-q0.3": np.arange(steps) - 0.5,  # no partner: no interval
        }
    )
    return pd.concat([one.assign(unique_id=each) for each in ids], ignore_index=True)


def long(ids: list) -> pd.DataFrame:
    one = HISTORY.rename("y").rename_axis("ds").reset_index()
    return pd.concat([one.assign(unique_id=each) for each in ids], ignore_index=True)


# ---------------------------------------------------------------- one forecast


def test_the_median_and_intervals_of_the_paths_are_drawn_after_the_history() -> None:
    ax = plot_forecast(HISTORY, PATHS)
    np.testing.assert_allclose(lines(ax)["forecast"].get_ydata(), np.median(PATHS, axis=0))
    assert list(bands(ax)) == ["95 %", "80 %", "50 %"]
    lower, upper = central_interval(PATHS[None], 80)
    assert ends(bands(ax)["80 %"]) == pytest.approx((lower.min(), upper.max()))
    following = pd.date_range("2024-01-02 16:00", periods=6, freq="h")
    assert list(pd.DatetimeIndex(lines(ax)["forecast"].get_xdata())) == list(following)


def test_the_truth_is_drawn_where_it_was_observed() -> None:
    truth = np.array([1.0, 2.0, np.nan, 4.0, 5.0, 6.0])
    ax = plot_forecast(HISTORY, PATHS, truth)
    np.testing.assert_array_equal(lines(ax)["truth"].get_ydata(), truth)
    assert "truth" not in lines(plot_forecast(HISTORY, PATHS))


def test_narrower_intervals_are_darker() -> None:
    light = [
        band.get_facecolor()[0, :3].sum() for band in plot_forecast(HISTORY, PATHS).collections
    ]
    assert light == sorted(light, reverse=True)
    assert len(set(light)) == 3


def test_a_frame_draws_its_intervals_and_the_symmetric_quantiles() -> None:
    ax = plot_forecast(HISTORY, frame(["a"]).set_index("ds"))
    assert list(bands(ax)) == ["95 %", "80 %"]
    assert ends(bands(ax)["95 %"]) == (-2.0, 7.0)
    assert ends(bands(ax)["80 %"]) == (-1.0, 6.0)


def test_chosen_levels_are_the_only_ones() -> None:
    assert list(bands(plot_forecast(HISTORY, PATHS, levels=(90,)))) == ["90 %"]


@pytest.mark.parametrize(
    ("index", "first"),
    [
        (pd.RangeIndex(40), 40),
        (pd.RangeIndex(5, 205, 5), 205),
        (pd.date_range("2024-01-31", periods=40, freq="D", tz="Europe/Paris"), "2024-03-11 00:00"),
        (pd.period_range("2024-01", periods=40, freq="M"), "2027-05-01"),
    ],
)
def test_times_go_on_from_the_history(index: pd.Index, first: object) -> None:
    ax = plot_forecast(pd.Series(HISTORY.to_numpy(), index=index), PATHS)
    start = lines(ax)["forecast"].get_xdata()[0]
    if isinstance(first, str):
        zone = getattr(index, "tz", None)
        assert pd.Timestamp(start).tz_localize(None) in {
            pd.Timestamp(first),
            pd.Timestamp(first, tz=zone).tz_convert("UTC").tz_localize(None) if zone else None,
        }
    else:
        assert start == first


def test_given_axes_are_drawn_on_and_returned() -> None:
    from matplotlib import pyplot

    _, ax = pyplot.subplots()
    assert plot_forecast(HISTORY, PATHS, ax=ax) is ax


def test_a_forecast_of_one_step_is_a_visible_point() -> None:
    assert lines(plot_forecast(HISTORY, PATHS[:, :1]))["forecast"].get_marker() == "o"


# ---------------------------------------------------------------- many series


def test_a_panel_has_one_axes_for_each_series_with_its_past() -> None:
    figure = plot_panel(frame([3, 1, 2, 7]), long([1, 2, 3, 7]))
    assert [ax.get_title() for ax in figure.axes] == ["3", "1", "2", "7"]
    assert len(lines(figure.axes[1])["history"].get_ydata()) == 30  # five horizons


def test_a_panel_has_one_legend_beside_the_axes() -> None:
    figure = plot_panel(frame([3, 1]), long([1, 3]))
    (legend,) = figure.legends
    names = [text.get_text() for text in legend.get_texts()]
    assert names == ["history", "95 %", "80 %", "forecast"]
    assert all(ax.get_legend() is None for ax in figure.axes)


def test_the_past_of_a_panel_ends_before_the_forecast_starts() -> None:
    early = frame(["a"]).assign(ds=HISTORY.index[20:26])
    (ax,) = plot_panel(early, long(["a"]), last=3).axes
    expected = HISTORY.to_numpy()[17:20]
    np.testing.assert_array_equal(lines(ax)["history"].get_ydata(), expected)


def test_a_panel_without_history_shows_the_forecasts() -> None:
    (ax,) = plot_panel(frame(["a"])).axes
    assert len(lines(ax)["history"].get_ydata()) == 0
    assert len(lines(ax)["forecast"].get_ydata()) == 6


def test_a_cross_validation_frame_brings_its_truth() -> None:
    (ax,) = plot_panel(frame(["a"]).assign(y=4.0), long(["a"])).axes
    assert lines(ax)["truth"].get_ydata().tolist() == [4.0] * 6


def test_truth_is_matched_by_time() -> None:
    known = pd.DataFrame({"unique_id": "a", "ds": frame(["a"])["ds"][[4, 2]], "y": [40.0, 20.0]})
    (ax,) = plot_panel(frame(["a"]), long(["a"]), known).axes
    expected = [np.nan, np.nan, 20, np.nan, 40, np.nan]
    np.testing.assert_array_equal(lines(ax)["truth"].get_ydata(), expected)


def test_columns_have_the_names_the_caller_says() -> None:
    names = {"unique_id": "shop", "ds": "day", "y": "sales"}
    renamed = frame(["a"]).rename(columns=lambda c: names.get(c, c.replace("TSDiff", "Naive")))
    keywords = {"id_col": "shop", "time_col": "day", "target_col": "sales", "model": "Naive"}
    (ax,) = plot_panel(renamed, long(["a"]).rename(columns=names), **keywords).axes
    assert list(bands(ax)) == ["95 %", "80 %"]


def test_drawing_leaves_the_frames_as_they_are() -> None:
    result, past = frame(["a", "b"]), long(["a", "b"])
    before = result.copy(), past.copy()
    plot_panel(result, past)
    pd.testing.assert_frame_equal(result, before[0])
    pd.testing.assert_frame_equal(past, before[1])


# ---------------------------------------------------------------- calibration


def test_the_calibration_curve_of_an_overconfident_model_is_flat() -> None:
    # Paths of standard deviation 0.3: 35 % of standard normal targets lie below the 10 % quantile.
    draw = np.random.default_rng(3)
    paths, targets = 0.3 * draw.standard_normal((5000, 99, 1)), draw.standard_normal((5000, 1))
    curve = plot_calibration(paths, targets, bins=10).lines[1]
    assert curve.get_ydata()[[0, 1, 10]] == pytest.approx([0.0, 0.35, 1.0], abs=0.03)


def test_the_histogram_of_ranks_has_area_one_and_horns_where_paths_are_too_narrow() -> None:
    draw = np.random.default_rng(3)
    paths, targets = 0.3 * draw.standard_normal((5000, 99, 1)), draw.standard_normal((5000, 1))
    heights = [bar.get_height() for bar in plot_pit(paths, targets).patches]
    assert sum(heights) / 10 == pytest.approx(1.0)
    assert heights[0] == pytest.approx(3.5, abs=0.3)


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: plot_forecast(HISTORY, PATHS[0]), r"shape \(S, h\), not \(6,\)"),
        (lambda: plot_forecast(HISTORY, PATHS, [1.0]), "truth has 1 values, the forecast 6"),
        (lambda: plot_forecast(HISTORY, PATHS, times=[1]), "1 times for a forecast of 6"),
        (lambda: plot_forecast(HISTORY.iloc[[0, 1, 5]], PATHS), "give `times`"),
        (lambda: plot_forecast(HISTORY, frame(["a"]).set_index("ds"), levels=(60,)), "60 %"),
        (lambda: plot_forecast(HISTORY, frame(["a"]), model="Naive"), "no column 'Naive'"),
        (lambda: plot_panel(frame(["a"]), ids=["b"]), "no forecast for 'b'"),
        (lambda: plot_panel(frame(["a", "a"])), "'a' has two rows for 2024-01-02 16:00"),
        (lambda: plot_panel(frame(["a"]).iloc[:0]), "no series to draw"),
        (lambda: plot_panel(frame(["a"]), frame(["a"])), "history: no column 'y'"),
    ],
)
def test_bad_input_is_refused(draw, message: str) -> None:
    with pytest.raises(StructDiffError, match=message):
        draw()
