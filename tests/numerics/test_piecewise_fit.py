"""What the ways to find breakpoints promise, on data."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fptq.numerics import (
    GAUSSIAN,
    LAPLACE,
    PerBlock,
    PerChannel,
    PerTensor,
    PiecewiseSpec,
    QuantizerSpec,
    Values,
    branches,
    closed_form,
    fake_quantize,
    fake_quantize_piecewise,
    lp_error,
    params_from_breakpoints,
    params_from_density,
    params_from_range,
    params_from_tensor,
    searched_params,
)

NARROW = QuantizerSpec(narrow=True)
U8 = QuantizerSpec(signed=False, symmetric=False)
REGIONS = [
    NARROW,
    QuantizerSpec(),
    U8,
    QuantizerSpec(symmetric=False),
    QuantizerSpec(bits=4, narrow=True),
    QuantizerSpec(bits=4, signed=False, symmetric=False),
    QuantizerSpec(bits=2, narrow=True),
]


def drawn(name, count=20_000, seed=0):
    rng = np.random.default_rng(seed)
    z = rng.standard_normal(count)
    return np.float32(
        {
            "gaussian": z,
            "laplace": rng.laplace(size=count) / np.sqrt(2),
            "heavy": rng.standard_t(2, count),
            "relu": np.maximum(z, 0),
            "gelu": z / (1 + np.exp(-1.702 * z)),
            "outliers": z + 300 * (rng.random(count) < 1e-3),
            "shifted": z - 5 + 40 * (rng.random(count) < 1e-2),
        }[name]
    )


NAMES = ["gaussian", "laplace", "heavy", "relu", "gelu", "outliers", "shifted"]


def error(x, spec, params, p=2.0):
    return float(np.mean(np.abs(x - fake_quantize_piecewise(x, spec, params)).astype(np.float64) ** p))


def searched(x, spec, **settings):
    return searched_params(spec, Values(rows=x.reshape(1, -1)), **settings).reshaped(())


def fits(x, spec, density):
    return (
        params_from_tensor(x, spec, density=density),
        params_from_tensor(x, spec, density=density, solve=closed_form),
        searched(x, spec),
    )


@pytest.mark.parametrize("density", [GAUSSIAN, LAPLACE], ids=lambda density: density.name)
@pytest.mark.parametrize("bits", range(2, 9))
def test_at_most_9_16_of_uniform_on_bell_shapes(bits, density):
    """Uniform is the paper's: 2^bits levels over the same range."""
    x = drawn(density.name)
    top = float(np.abs(x).max())
    uniform = (2 * top / (2**bits - 1)) ** 2 / 12
    region = QuantizerSpec(bits=bits, signed=False, symmetric=False)
    measured = lp_error(x, region, params_from_range(region, -top, top), p=2)
    spec = PiecewiseSpec(region=QuantizerSpec(bits=bits, narrow=True))
    for params in fits(x, spec, density):
        assert error(x, spec, params) <= 9 / 16 * min(uniform, measured)


@pytest.mark.parametrize("p", [1.0, 2.0, 2.4])
@pytest.mark.parametrize("region", REGIONS, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_never_worse_than_uniform_at_its_own_optimum(name, region, p):
    x = drawn(name, count=4000)
    low, high = min(float(x.min()), 0.0), max(float(x.max()), 0.0)
    ranges = [(low * share, high * share) for share in np.linspace(0.05, 1, 60)]
    uniform, best = min((lp_error(x, region, params_from_range(region, *r), p=p), r) for r in ranges)
    spec = PiecewiseSpec(region=region)
    clip = tuple(np.float32([end]) for end in best)
    assert error(x, spec, searched(x, spec, clips=[clip], p=p), p) <= uniform * 1.0001


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), share=st.floats(0.1, 1), bits=st.integers(2, 8), signed=st.booleans())
def test_codes_at_the_middle_contain_those_of_uniform(seed, share, bits, signed):
    x = np.random.default_rng(seed).standard_t(3, 300).astype(np.float32)
    x, top = (x if signed else np.abs(x)), share * float(np.abs(x).max())
    region = QuantizerSpec(bits=bits, signed=signed, symmetric=signed, narrow=signed)
    uniform = np.abs(x - fake_quantize(x, region, params_from_range(region, -top * signed, top)))
    spec = PiecewiseSpec(region=region)
    params = params_from_breakpoints(spec, -top * signed, top, [(-top / 2 * signed, top / 2)])
    assert (np.abs(x - fake_quantize_piecewise(x, spec, params)) <= uniform + 1e-6 * top).all()


@pytest.mark.parametrize("region", REGIONS[:-1], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_the_search_is_at_least_as_good_as_a_density(name, region):
    x = drawn(name)
    spec = PiecewiseSpec(region=region)
    least = error(x, spec, searched(x, spec))
    for density in (GAUSSIAN, LAPLACE):
        assert least <= error(x, spec, params_from_tensor(x, spec, density=density)) * 1.02


@pytest.mark.parametrize("name", ["gaussian", "relu", "gelu", "shifted"])
def test_the_search_finds_what_an_exhaustive_search_finds(name):
    x = drawn(name, count=3000)
    spec = PiecewiseSpec(region=U8.with_bits(6))
    low, high = min(x.min(), 0), max(x.max(), 0)
    shares = np.linspace(0, 1, 41)
    pairs = [(s, t) for s in shares for t in shares] if low < 0 else [(0, t) for t in shares]
    least = min(error(x, spec, params_from_breakpoints(spec, low, high, [(low * s, high * t)])) for s, t in pairs)
    assert error(x, spec, searched(x, spec)) <= least * 1.1  # with two zero points the error is jagged


@pytest.mark.parametrize("regions", [3, 4])
@pytest.mark.parametrize("name", NAMES)
def test_more_regions_make_less_error(name, regions):
    x = drawn(name)
    fewer, more = PiecewiseSpec(region=NARROW, regions=regions - 1), PiecewiseSpec(region=NARROW, regions=regions)
    assert error(x, more, searched(x, more)) < error(x, fewer, searched(x, fewer))
    if name in ("gaussian", "laplace"):
        density = GAUSSIAN if name == "gaussian" else LAPLACE
        errors = [error(x, spec, params_from_tensor(x, spec, density=density)) for spec in (more, fewer)]
        assert errors[0] < errors[1]


@pytest.mark.parametrize("name", ["gaussian", "laplace", "heavy"])
def test_three_regions_are_near_the_best_of_a_grid(name):
    x = drawn(name, count=4000)
    spec, full = PiecewiseSpec(region=NARROW, regions=3), float(np.abs(x).max())
    shares = 0.8 ** np.arange(0.0, 25)
    grids = [[(-full * a, full * a), (-full * b, full * b)] for b in shares for a in shares if a < b]
    least = min(error(x, spec, params_from_breakpoints(spec, -full, full, inner)) for inner in grids)
    assert error(x, spec, searched(x, spec)) <= least * 1.02


def test_sides_have_breakpoints_of_their_own():
    spec = PiecewiseSpec(region=U8)
    for x, (below, above) in ((drawn("gelu"), (0.17, 1.4)), (-drawn("gelu"), (1.4, 0.17)), (drawn("relu"), (0, 1.5))):
        first = branches(spec, searched(x, spec))[0]
        assert -first.low == pytest.approx(below, rel=0.4)
        assert first.high == pytest.approx(above, rel=0.4)


def test_a_short_side_lies_in_the_first_region_whole():
    spec = PiecewiseSpec(region=U8)
    params = params_from_density(spec, (np.float32(-0.17), np.float32(5)), 1.0, density=GAUSSIAN)
    centre, tail = branches(spec, params)
    assert centre.low == pytest.approx(-0.17, abs=0.01)
    assert tail.low == 0


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_per_channel_is_per_tensor_channel_by_channel(axis):
    x = np.moveaxis(drawn("heavy", 6 * 200).reshape(6, 200) * np.float32([[1], [2], [30], [0], [-1], [0.1]]), 0, axis)
    spec = PiecewiseSpec(region=U8, regions=3).with_granularity(PerChannel(axis=axis))
    whole = PiecewiseSpec(region=U8, regions=3)
    params = params_from_tensor(x, spec, density=LAPLACE)
    found = np.moveaxis(fake_quantize_piecewise(x, spec, params), axis, 0)
    rows = np.moveaxis(x, axis, 0)
    each = [fake_quantize_piecewise(r, whole, params_from_tensor(r, whole, density=LAPLACE)) for r in rows]
    np.testing.assert_array_equal(found, each)


def test_searched_per_channel_is_per_tensor_channel_by_channel():
    x = drawn("heavy", 4 * 500).reshape(4, 500) * np.float32([[1], [0], [30], [-0.1]])
    spec = PiecewiseSpec(region=U8)
    together = searched_params(spec, Values(rows=x))
    for row, numbers in enumerate(x):
        alone = searched(numbers, spec)
        for one, other in zip(alone.regions, together.regions, strict=True):
            assert (one.scale, one.zero_point) == (other.scale[row], other.zero_point[row])


def test_per_token_has_numbers_for_each_token():
    x = drawn("heavy", 2 * 5 * 64).reshape(2, 5, 64)
    x[1, 3] *= 1000
    spec = PiecewiseSpec().with_granularity(PerBlock(axis=-1, size=64))
    params = params_from_tensor(x, spec, density=LAPLACE)
    assert params.regions[0].scale.shape == (2, 5, 1)
    whole = PiecewiseSpec().with_granularity(PerTensor())
    for batch, token in np.ndindex(2, 5):
        alone = params_from_tensor(x[batch, token], whole, density=LAPLACE)
        np.testing.assert_array_equal(
            fake_quantize_piecewise(x, spec, params)[batch, token],
            fake_quantize_piecewise(x[batch, token], whole, alone),
        )


def test_a_short_last_block_does_not_count_what_it_lacks():
    x = drawn("gaussian", 10).reshape(1, 10)
    blocks = PiecewiseSpec().with_granularity(PerBlock(axis=1, size=8))
    last = params_from_tensor(x, blocks, density=GAUSSIAN).reshaped((2,)).regions[0].scale[1]
    assert last == params_from_tensor(x[:, 8:], PiecewiseSpec(), density=GAUSSIAN).regions[0].scale


@pytest.mark.parametrize("region", REGIONS, ids=str)
@pytest.mark.parametrize(
    "x", [[0.0, 0.0], [3.7, 3.7, 3.7], [-2.0] * 3, [5.0], [-1e-42], [1e-38, -2e-38], [3e38, -3e38]], ids=str
)
def test_degenerate_values(x, region):
    x, spec = np.float32(x), PiecewiseSpec(region=region)
    full = float(np.abs(x).max())
    for params in fits(x, spec, GAUSSIAN):
        seen = fake_quantize_piecewise(x, spec, params)
        assert np.isfinite(seen).all()
        coarse = 2 * full / (2**region.bits - 2)
        assert (np.abs(seen.astype(np.float64) - x) <= coarse * 1.01 + 1e-29).all()
    if full == 0:
        assert not seen.any()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused(bad):
    x, spec = np.float32([1, bad, 2]), PiecewiseSpec()
    for call in (lambda: params_from_tensor(x, spec, density=GAUSSIAN), lambda: searched(x, spec)):
        with pytest.raises(ValueError, match="finite"):
            call()
    with pytest.raises(ValueError, match="finite"):
        params_from_breakpoints(spec, -1.0, 1.0, [(-bad, abs(bad))])


def test_regions_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="end before"):
        params_from_breakpoints(PiecewiseSpec(), 1.0, -1.0, [(-0.5, 0.5)])
    with pytest.raises(ValueError, match="2 regions have 1 breakpoints a side, not 2"):
        params_from_breakpoints(PiecewiseSpec(), -1.0, 1.0, [(-0.5, 0.5), (-0.7, 0.7)])
