"""Windows: every entry is where the definition puts it, and nothing depends on batch mates."""

import numpy as np
import pytest
import torch

from structdiff.errors import StructDiffError
from structdiff.timeseries.windows import WindowMaker, default_lags

torch.set_num_threads(1)
CONTEXT, HORIZON, LAGS = 6, 3, (2, 5)


def series(seed=0, lengths=(30, 14, 21)):
    generator = np.random.default_rng(seed)
    return [generator.normal(size=n) + 3 for n in lengths]


def cut_by_hand(values, cut, hidden=()):
    """The definition, point by point; scaling apart."""
    x = np.zeros((CONTEXT + HORIZON, 1 + len(LAGS)))
    observed = np.zeros_like(x, dtype=bool)
    start = cut - CONTEXT
    for step in range(CONTEXT + HORIZON):
        for channel, lag in enumerate((0, *LAGS)):
            place = start + step - lag
            inside = 0 <= place < len(values) and place - start not in hidden
            if inside and np.isfinite(values[place]):
                x[step, channel], observed[step, channel] = values[place], True
    return x, observed


@pytest.mark.parametrize("cut", [0, 1, 6, 11, 13, 14])
def test_entries_are_those_of_the_definition(cut):
    data = series()
    data[1][[3, 9]] = np.nan
    batch = WindowMaker(data, CONTEXT, HORIZON, LAGS).batch(
        torch.tensor([1]), torch.tensor([cut]), future=True
    )
    x, observed = cut_by_hand(data[1], cut)
    assert np.array_equal(batch.observed[0].numpy(), observed)
    values = batch.unscaled(batch.x).numpy()[0]
    assert np.allclose(values[observed], x[observed], atol=1e-6)
    assert not batch.x[0].numpy()[~observed].any()


def test_hidden_context_is_hidden_where_it_reappears_as_a_lag():
    data = series()
    known = torch.ones(1, CONTEXT, dtype=torch.bool)
    known[0, [1, 4]] = False
    maker = WindowMaker(data, CONTEXT, HORIZON, LAGS)
    batch = maker.batch(torch.tensor([0]), torch.tensor([20]), known, future=True)
    _, observed = cut_by_hand(data[0], 20, hidden=(1, 4))
    assert np.array_equal(batch.observed[0].numpy(), observed)
    changed = [values.copy() for values in data]
    changed[0][[15, 18]] = 1e6  # the two hidden points
    again = WindowMaker(changed, CONTEXT, HORIZON, LAGS).batch(
        torch.tensor([0]), torch.tensor([20]), known, future=True
    )
    assert torch.equal(batch.x, again.x)


def test_a_forecast_sees_nothing_after_the_cut():
    data = series()
    changed = [values.copy() for values in data]
    changed[0][20:] = np.nan
    index, cut = torch.tensor([0]), torch.tensor([20])
    a = WindowMaker(data, CONTEXT, HORIZON, LAGS).batch(index, cut, future=False)
    b = WindowMaker(changed, CONTEXT, HORIZON, LAGS).batch(index, cut, future=True)
    assert all(torch.equal(u, v) for u, v in zip(a, b, strict=True))
    assert not a.observed[0, CONTEXT:, 0].any() and a.observed[0, CONTEXT:, 2].all()


def test_the_scale_is_the_mean_size_of_the_observed_context():
    data = series()
    data[0][10] = np.nan
    batch = WindowMaker(data, CONTEXT, HORIZON, scaling="mean").batch(
        torch.tensor([0]), torch.tensor([14]), future=True
    )
    assert float(batch.scale[0]) == pytest.approx(np.nanmean(np.abs(data[0][8:14])), rel=1e-12)
    assert float(batch.shift[0]) == 0.0


def test_standard_scaling_is_mean_and_deviation_with_a_floor_of_the_level():
    data = series()
    data[0][10] = np.nan
    batch = WindowMaker(data, CONTEXT, HORIZON).batch(
        torch.tensor([0]), torch.tensor([14]), future=True
    )
    past = data[0][8:14]
    floor = 0.01 * np.nanmean(np.abs(past))
    assert float(batch.shift[0]) == pytest.approx(np.nanmean(past), rel=1e-12)
    assert float(batch.scale[0]) == pytest.approx(np.hypot(np.nanstd(past), floor), rel=1e-12)


def test_a_series_that_does_not_move_is_not_blown_up():
    values = np.full(22, 100.0)
    values[20] = 101.0
    batch = WindowMaker([values], CONTEXT, HORIZON).batch(
        torch.tensor([0]), torch.tensor([18]), future=True
    )
    assert batch.x[0, :, 0].tolist() == pytest.approx([0.0] * 8 + [1.0])  # one percent is 1


def test_training_windows_hold_lines_through_gaps_that_stay_marked_as_missing():
    values = np.arange(30.0)
    values[[0, 15, 16]] = np.nan
    batch = WindowMaker([values], CONTEXT, HORIZON, fill=True).batch(
        torch.tensor([0, 0]), torch.tensor([14, 6]), future=True
    )
    restored = batch.unscaled(batch.x)[:, :, 0]
    assert restored[0].tolist() == pytest.approx(list(range(8, 17)), abs=1e-5)
    assert batch.observed[0, :, 0].tolist() == [True] * 7 + [False] * 2
    assert restored[1].tolist() == pytest.approx([1.0, *range(1, 9)], abs=1e-5)
    assert not batch.observed[1, 0, 0]


def test_a_factor_on_a_series_changes_the_scale_alone():
    data = series()
    a = WindowMaker(data, CONTEXT, HORIZON, LAGS).batch(
        torch.tensor([0]), torch.tensor([20]), future=True
    )
    b = WindowMaker([64 * v for v in data], CONTEXT, HORIZON, LAGS).batch(
        torch.tensor([0]), torch.tensor([20]), future=True
    )
    assert torch.equal(a.x, b.x) and torch.equal(64 * a.scale, b.scale)


def test_a_window_does_not_depend_on_its_batch_mates():
    data = [*series(), np.zeros(40)]
    maker = WindowMaker(data, CONTEXT, HORIZON, LAGS)
    together = maker.batch(torch.tensor([0, 3, 2]), torch.tensor([20, 30, 15]), future=True)
    alone = WindowMaker([data[2]], CONTEXT, HORIZON, LAGS).batch(
        torch.tensor([0]), torch.tensor([15]), future=True
    )
    assert torch.equal(together.x[2], alone.x[0]) and together.scale[2] == alone.scale[0]


def test_a_context_of_zeros_is_scaled_by_the_past_of_its_own_series():
    values = np.concatenate([np.full(10, 4.0), np.zeros(12)])
    maker = WindowMaker([values, np.zeros(22)], CONTEXT, HORIZON, scaling="mean")
    batch = maker.batch(torch.tensor([0, 1]), torch.tensor([18, 18]), future=True)
    assert float(batch.scale[0]) == pytest.approx(40 / 12)
    assert float(batch.scale[1]) == 1.0  # nothing but zeros: they stay zeros


def test_training_windows_are_all_that_lie_within_a_series():
    maker = WindowMaker(series(), CONTEXT, HORIZON, LAGS)
    index, cut = maker.training_cuts()
    # 30, 14 and 21 points; 6 + 5 before the cut and 3 after it.
    expected = [(0, c) for c in range(11, 28)] + [(1, 11)] + [(2, c) for c in range(11, 19)]
    assert list(zip(index.tolist(), cut.tolist(), strict=True)) == expected
    assert bool(maker.batch(index, cut, future=True).observed.all())
    assert maker.too_short() == []


def test_series_too_short_for_training_are_counted_and_named_by_number():
    assert WindowMaker(series(lengths=(30, 13, 21)), CONTEXT, HORIZON, LAGS).too_short() == [1]


def test_no_series_long_enough_says_how_long_one_must_be():
    maker = WindowMaker(series(lengths=(9, 13)), CONTEXT, HORIZON, LAGS)
    with pytest.raises(StructDiffError, match=r"at least 14 points .* the longest has 13"):
        maker.training_cuts()


def test_unknown_scaling_is_refused():
    with pytest.raises(StructDiffError, match="choose standard or mean"):
        WindowMaker(series(), CONTEXT, HORIZON, scaling="minmax")


@pytest.mark.parametrize("bad", [{"context": 0}, {"horizon": 0}, {"lags": (0,)}])
def test_lengths_below_one_are_refused(bad):
    with pytest.raises(StructDiffError, match="at least 1 point"):
        WindowMaker(series(), **({"context": 6, "horizon": 3, "lags": ()} | bad))


def test_lags_are_the_published_ones_for_hourly_and_business_days():
    # Card, section 4.1.
    assert default_lags(24) == (24, 48, 72, 96, 120, 144, 168, 336, 504, 672)
    assert default_lags(5) == tuple(range(30, 361, 30))
    assert default_lags(12)[:2] == (12, 24) and default_lags(1) == ()
