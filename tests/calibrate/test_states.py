"""States merge exactly: any order and any way of splitting ends in the same arrays."""

from fractions import Fraction
from functools import reduce

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fptq.calibrate.sketch import Sketch
from fptq.calibrate.states import BatchExtremes, Extremes, Reading

F32 = st.floats(width=32, allow_nan=False, allow_infinity=False)
STATES = [Extremes, BatchExtremes, Sketch]


def reading(values):
    x = np.float32(values).reshape(-1)
    return Reading(low=x.min(), high=x.max(), sample=x)


def channel_reading(values):
    x = np.float32(values)
    channels = np.repeat(np.arange(x.shape[0]), x.shape[1])
    return Reading(low=x.min(axis=1), high=x.max(axis=1), sample=x.reshape(-1), channels=channels)


def merge(states):
    return reduce(lambda one, other: one.merged(other), states)


def assert_same(one, other):
    left, right = one.to_arrays(), other.to_arrays()
    assert left.keys() == right.keys()
    for name, array in left.items():
        np.testing.assert_array_equal(array, right[name])


@pytest.mark.parametrize("state", STATES)
@given(runs=st.lists(st.lists(F32, min_size=1, max_size=5), min_size=2, max_size=6), data=st.data())
def test_order_and_splits_do_not_matter(state, runs, data):
    states = [state.of(reading(run)) for run in runs]
    whole = merge(states)
    shuffled = data.draw(st.permutations(states))
    cut = data.draw(st.integers(1, len(states) - 1))
    assert_same(whole, merge(shuffled))
    assert_same(whole, merge([merge(shuffled[cut:]), merge(shuffled[:cut])]))


@pytest.mark.parametrize("state", STATES)
def test_order_and_splits_do_not_matter_per_channel(state):
    rng = np.random.default_rng(0)
    runs = [rng.standard_normal((3, 50)) * 10.0 ** rng.integers(-6, 6, (3, 1)) for _ in range(8)]
    states = [state.of(channel_reading(run)) for run in runs]
    whole = merge(states)
    assert whole.extent == (3,)
    assert_same(whole, merge([merge(states[5:]), merge(states[4::-1])]))


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("make", [reading, channel_reading])
def test_arrays_round_trip(state, make):
    rng = np.random.default_rng(1)
    whole = merge([state.of(make(rng.standard_normal((4, 30)))) for _ in range(3)])
    assert_same(whole, state.from_arrays(whole.to_arrays()))


@given(st.lists(F32, min_size=1, max_size=20))
def test_mean_extremes_are_correctly_rounded(values):
    state = merge([BatchExtremes.of(Reading(low=np.float32(v), high=np.float32(v))) for v in values])
    exact = sum((Fraction(v) for v in values), Fraction(0)) / len(values)
    assert state.mean_low == state.mean_high == np.float32(float(exact))


def test_the_mean_of_extremes_is_over_runs():
    state = merge([BatchExtremes.of(reading(run)) for run in ([-1, 2], [-3, 4, 0], [-2, 12])])
    assert (state.mean_low, state.mean_high) == (-2, 6)


def test_tied_means_keep_the_wider_bound():
    wide = merge([BatchExtremes.of(reading(run)) for run in ([-1, 10], [-1, 20])])
    narrow = merge([BatchExtremes.of(reading(run)) for run in ([-5, 1], [-7, 1], [-6, 1])])
    for joined in (wide.joined(narrow), narrow.joined(wide)):
        assert (joined.mean_low, joined.mean_high) == (-6, 15)


@settings(max_examples=50)
@given(st.lists(F32, min_size=1, max_size=50), st.integers(1, 49))
def test_sketch_counts_what_numpy_counts(values, cut):
    runs = [run for run in (values[:cut], values[cut:]) if run]
    (histogram,) = merge([Sketch.of(reading(run)) for run in runs]).histograms()
    x = np.float64(np.float32(values))
    edges = np.arange(4097) * histogram.width
    assert histogram.zeros == (x == 0).sum()
    np.testing.assert_array_equal(histogram.positive, np.histogram(x[x > 0], edges)[0])
    np.testing.assert_array_equal(histogram.negative, np.histogram(-x[x < 0], edges)[0])
    assert (histogram.low, histogram.high) == (x.min(), x.max())
    assert histogram.total == len(values)


def test_a_wider_value_halves_the_resolution_and_loses_no_count():
    fine, wide = Sketch.of(reading([0.5, 0.25, -0.75])), Sketch.of(reading([3000.0, 0.0]))
    (histogram,) = fine.merged(wide).histograms()
    assert histogram.width == 1.0
    assert histogram.positive[0] == 2
    assert histogram.positive[3000] == 1
    assert histogram.negative[0] == 1
    assert histogram.zeros == 1


def test_points_stand_for_the_values_within_a_bin():
    x = np.random.default_rng(0).standard_normal(3000).astype(np.float32)
    (histogram,) = Sketch.of(reading(x)).histograms()
    values, counts = histogram.points
    assert counts.sum() == x.size
    assert (np.diff(values) > 0).all()
    spread = np.repeat(values, counts)
    assert np.abs(spread - np.sort(x)).max() <= histogram.width


def test_a_sketch_needs_a_sample():
    with pytest.raises(ValueError, match="sample"):
        Sketch.of(Reading(low=np.float32(0), high=np.float32(1)))
