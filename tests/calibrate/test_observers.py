"""Every observer keeps the contract; each does what it is for."""

from functools import reduce

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fptq.calibrate.calibrate import weight_params
from fptq.calibrate.observers import OBSERVERS, WEIGHT_OBSERVERS, Lp, Percentile, observer, weight_observer
from fptq.calibrate.states import Reading
from fptq.calibrate.statistics import STATES
from fptq.errors import ConfigError
from fptq.numerics import PerBlock, PerChannel, PerTensor, QuantizerSpec, fake_quantize, lp_error

U8 = QuantizerSpec(signed=False, symmetric=False)
S8 = QuantizerSpec()
SPECS = [
    U8,
    S8,
    QuantizerSpec(symmetric=False),
    QuantizerSpec(narrow=True),
    QuantizerSpec(signed=False),
    QuantizerSpec(bits=4, signed=False, symmetric=False),
    QuantizerSpec(bits=2),
    QuantizerSpec(bits=16, signed=False, symmetric=False),
]


def state_of(name, runs):
    """The merged state that an observer needs."""
    state = STATES[OBSERVERS[name]().needs]
    readings = [Reading(low=x.min(), high=x.max(), sample=x) for x in map(np.float32, runs)]
    return reduce(lambda one, other: one.merged(other), map(state.of, readings))


def params(name, spec, runs):
    return OBSERVERS[name]().params(spec, state_of(name, runs))


DATA = {
    "normal": np.random.default_rng(0).standard_normal((5, 4000)),
    "relu": np.maximum(np.random.default_rng(1).standard_normal((5, 4000)), 0),
    "negative": -np.abs(np.random.default_rng(2).standard_normal((5, 4000))) - 1,
    "heavy": np.random.default_rng(3).standard_t(2, (5, 4000)),
    "constant": np.full((2, 100), 3.7),
    "zeros": np.zeros((2, 100)),
    "one value": np.float32([[-0.3]]),
    "tiny": np.random.default_rng(4).standard_normal((2, 500)) * 1e-38,
    "huge": np.random.default_rng(5).standard_normal((2, 500)) * 1e37,
    "mostly zero": np.where(np.random.default_rng(6).random((3, 4000)) < 0.99, 0, 1.5),
}


@pytest.mark.parametrize("data", DATA.values(), ids=DATA)
@pytest.mark.parametrize("spec", SPECS, ids=str)
@pytest.mark.parametrize("name", OBSERVERS)
def test_contract(name, spec, data):
    found = params(name, spec, data)
    assert found.scale.shape == ()
    assert np.isfinite(found.scale)
    assert found.scale > 0
    assert spec.qmin <= found.zero_point <= spec.qmax
    assert fake_quantize(np.float32([0]), spec, found) == 0
    low, high = found.range(spec)
    # Never wider than the data need: the observed range and 0, and a step where the zero point was rounded.
    if not spec.symmetric and np.ptp([0, *data.flat]) > 1e-20:  # below it, the scale has a floor
        assert low >= min(data.min(), 0) - found.scale * 1.01
        assert high <= max(data.max(), 0) + found.scale * 1.01


@pytest.mark.parametrize("name", OBSERVERS)
@pytest.mark.parametrize("spec", [U8, S8], ids=str)
def test_split_and_merge_change_nothing(name, spec):
    data = DATA["heavy"]
    state = STATES[OBSERVERS[name]().needs]
    readings = [Reading(low=x.min(), high=x.max(), sample=x) for x in np.float32(data)]
    one, two, three, four, five = map(state.of, readings)
    split = five.merged(two).merged(one.merged(four.merged(three)))
    whole, merged = params(name, spec, data), OBSERVERS[name]().params(spec, split)
    assert (whole.scale, whole.zero_point) == (merged.scale, merged.zero_point)


@pytest.mark.parametrize("name", OBSERVERS)
def test_constants_are_represented(name):
    found = params(name, U8, DATA["constant"])
    np.testing.assert_allclose(fake_quantize(np.float32([3.7]), U8, found), 3.7, rtol=0.01)


@pytest.mark.parametrize("name", OBSERVERS)
def test_one_sided_data_use_all_codes(name):
    assert params(name, U8, DATA["relu"]).zero_point == 0
    assert params(name, U8, DATA["negative"]).zero_point == 255
    assert params(name, QuantizerSpec(symmetric=False), DATA["relu"]).zero_point == -128


@pytest.mark.parametrize("name", OBSERVERS)
def test_per_channel(name):
    x = np.float32(np.random.default_rng(0).standard_normal((3, 3000)) * [[1], [10], [0]])
    reading = Reading(
        low=x.min(axis=1), high=x.max(axis=1), sample=x.reshape(-1), channels=np.repeat(np.arange(3), x.shape[1])
    )
    spec = U8.with_granularity(PerChannel(axis=1))
    found = OBSERVERS[name]().params(spec, STATES[OBSERVERS[name]().needs].of(reading))
    assert found.scale.shape == found.zero_point.shape == (3,)
    assert 6 < found.scale[1] / found.scale[0] < 15
    assert found.scale[2] < 1e-20


@pytest.mark.parametrize("name", OBSERVERS)
def test_the_wrong_state_is_a_programming_error(name):
    needs = OBSERVERS[name]().needs
    other = next(state for kind, state in STATES.items() if kind != needs and kind != "sketch")
    if name == "minmax":
        other = STATES["batch_extremes"]
    x = np.float32([1, 2])
    with pytest.raises(TypeError):
        OBSERVERS[name]().params(U8, other.of(Reading(low=x.min(), high=x.max(), sample=x)))


def test_minmax_covers_everything():
    low, high = params("minmax", U8, DATA["heavy"]).range(U8)
    assert low <= DATA["heavy"].min() * 0.98
    assert high >= DATA["heavy"].max() * 0.98


def test_moving_average_is_the_mean_of_each_run():
    found = params("moving_average", U8, [[0, 1], [0, 1], [0, 7]])
    assert found.scale == np.float32(3 / 255)


@pytest.mark.parametrize("percentile", [99.9, 99.0, 90.0])
def test_percentile_is_numpys_on_both_sides(percentile):
    data = DATA["normal"]
    state = state_of("percentile", data)
    low, high = Percentile(percentile=percentile).params(U8, state).range(U8)
    (histogram,) = state.histograms()
    step = histogram.width + (high - low) / 255
    assert abs(high - np.percentile(data, percentile)) <= step
    assert abs(low - np.percentile(data, 100 - percentile)) <= step


def test_percentile_100_leaves_nothing_out():
    data = DATA["heavy"]
    low, high = Percentile(percentile=100).params(U8, state_of("percentile", data)).range(U8)
    assert low <= data.min() * 0.98
    assert high >= data.max() * 0.98


def test_percentile_of_data_on_one_side_of_zero():
    data = DATA["negative"]
    low, _ = Percentile(percentile=99).params(U8, state_of("percentile", data)).range(U8)
    assert low == pytest.approx(np.percentile(data, 1), rel=0.02)


@pytest.mark.parametrize("percentile", [50, 0, 100.1, -1])
def test_percentiles_out_of_range(percentile):
    with pytest.raises(ConfigError, match="above 50"):
        observer("percentile", {"percentile": percentile})


@pytest.mark.parametrize("spec", [S8, U8, QuantizerSpec(bits=4)], ids=str)
def test_entropy_leaves_out_a_far_outlier(spec):
    data = [*DATA["normal"], [60.0, -60.0]]
    low, high = params("entropy", spec, data).range(spec)
    assert 2 < high < 12
    assert -12 < low < -2


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), freedom=st.floats(1.5, 30), spec=st.sampled_from(SPECS))
def test_lp_is_never_worse_than_minmax(seed, freedom, spec):
    data = np.random.default_rng(seed).standard_t(freedom, (4, 2000)).astype(np.float32)
    best, full = (lp_error(data, spec, params(name, spec, data)) for name in ("lp", "minmax"))
    assert best <= full * 1.02  # it judges on the histogram


@pytest.mark.parametrize("spec", [S8, U8, QuantizerSpec(bits=4, signed=False, symmetric=False)], ids=str)
@pytest.mark.parametrize("name", ["normal", "relu", "heavy"])
def test_lp_finds_what_an_exhaustive_search_finds(spec, name):
    from fptq.numerics import params_from_range

    data = np.float32(DATA[name])
    low, high = min(data.min(), 0), max(data.max(), 0)
    shares = np.linspace(0.05, 1, 40)
    pairs = [(s, s) for s in shares] if spec.symmetric or low == 0 else [(s, t) for s in shares for t in shares]
    least = min(lp_error(data, spec, params_from_range(spec, low * s, high * t)) for s, t in pairs)
    assert lp_error(data, spec, params("lp", spec, data)) <= least * 1.05


def test_a_higher_exponent_clips_less():
    state = state_of("lp", DATA["heavy"])
    scales = [Lp(p=p).params(S8, state).scale for p in (1.0, 2.0, 2.4, 4.0)]
    assert scales == sorted(scales)
    assert scales[0] < scales[-1]


@pytest.mark.parametrize("name", WEIGHT_OBSERVERS)
@pytest.mark.parametrize(
    "granularity",
    [PerTensor(), PerChannel(axis=0), PerChannel(axis=1), PerBlock(axis=1, size=4), PerBlock(axis=0, size=3)],
    ids=str,
)
@pytest.mark.parametrize("spec", [S8, QuantizerSpec(bits=4, symmetric=False)], ids=str)
def test_weights_of_any_granularity(name, granularity, spec):
    x = np.random.default_rng(0).standard_normal((5, 10, 3, 3)).astype(np.float32)
    x[2] = 0
    spec = spec.with_granularity(granularity)
    found = weight_params(x, spec, weight_observer(name))
    minmax = weight_params(x, spec, weight_observer("minmax"))
    assert found.scale.shape == minmax.scale.shape
    assert lp_error(x, spec, found) <= lp_error(x, spec, minmax) * 1.0001


def test_four_bit_weights_gain_from_the_search():
    x = np.random.default_rng(0).standard_normal((16, 500)).astype(np.float32)
    spec = QuantizerSpec(bits=4, granularity=PerChannel(axis=0))
    errors = [lp_error(x, spec, weight_params(x, spec, weight_observer(name))) for name in ("lp", "minmax")]
    assert errors[0] < 0.8 * errors[1]


def test_long_rows_are_judged_on_a_sample():
    x = np.random.default_rng(0).standard_t(4, (2, 400_000)).astype(np.float32)
    spec = QuantizerSpec(bits=4, granularity=PerChannel(axis=0))
    errors = [lp_error(x, spec, weight_params(x, spec, weight_observer(name))) for name in ("lp", "minmax")]
    assert errors[0] < 0.5 * errors[1]


def test_unknown_observers_and_settings():
    with pytest.raises(ConfigError, match="Did you mean 'percentile'"):
        observer("percentil")
    with pytest.raises(ConfigError, match="cannot take"):
        observer("minmax", {"percentile": 99})
    with pytest.raises(ConfigError, match="there are minmax, lp"):
        weight_observer("entropy")
    assert observer("lp", {"p": 2}) == Lp(p=2)
