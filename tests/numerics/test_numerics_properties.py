"""What holds for every quantizer."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fptq.numerics import (
    PerBlock,
    PerChannel,
    PerTensor,
    QuantizerSpec,
    UniformParams,
    fake_quantize,
    lp_error,
    params_from_range,
    quantize,
    ranges,
)

FINITE = st.floats(width=32, allow_nan=False, allow_infinity=False)


@st.composite
def specs(draw):
    signed = draw(st.booleans())
    return QuantizerSpec(
        bits=draw(st.integers(2, 16)),
        signed=signed,
        symmetric=draw(st.booleans()),
        narrow=signed and draw(st.booleans()),
        granularity=draw(
            st.sampled_from([PerTensor(), PerChannel(axis=0), PerChannel(axis=1), PerBlock(axis=1, size=3)])
        ),
    )


def tensors(magnitude=1.0):
    return st.integers(0, 2**32 - 1).map(
        lambda seed: (np.random.default_rng(seed).standard_normal((4, 7)) * magnitude).astype(np.float32)
    )


@given(spec=specs(), x=tensors())
def test_quantizing_twice_changes_nothing(spec, x):
    params = params_from_range(spec, *ranges(x, spec.granularity))
    once = fake_quantize(x, spec, params)
    np.testing.assert_array_equal(fake_quantize(once, spec, params), once)


@given(spec=specs(), low=FINITE, high=FINITE)
def test_zero_is_exact_in_any_range(spec, low, high):
    spec = spec.with_granularity(PerTensor())
    params = params_from_range(spec, min(low, high), max(low, high))
    assert fake_quantize(np.float32([0.0, -0.0]), spec, params).tolist() == [0.0, 0.0]
    assert spec.qmin <= params.zero_point <= spec.qmax
    assert params.scale > 0


@given(spec=specs(), x=tensors(magnitude=5))
def test_codes_stay_in_range_and_order(spec, x):
    spec = spec.with_granularity(PerTensor())
    params = params_from_range(spec, -1, 2)
    codes = quantize(np.sort(x, axis=None), spec, params)
    assert codes.min() >= spec.qmin
    assert codes.max() <= spec.qmax
    assert (np.diff(codes) >= 0).all()


@given(spec=specs(), x=tensors())
def test_error_inside_the_range_is_at_most_one_step(spec, x):
    params = params_from_range(spec, *ranges(x, spec.granularity))
    scale, _ = params.expanded(spec, x.shape)
    # Half a step, and another half at the ends, where rounding the zero point moves an asymmetric range.
    allowed = scale * (0.5 if spec.symmetric else 1.0) * (1 + 1e-5) + np.abs(x) * 1e-6
    assert (np.abs(fake_quantize(x, spec, params) - x) <= allowed).all()


@settings(max_examples=30)
@given(seed=st.integers(0, 2**32 - 1), signed=st.booleans(), symmetric=st.booleans())
def test_more_bits_make_less_error(seed, signed, symmetric):
    x = np.random.default_rng(seed).standard_normal(4000).astype(np.float32)
    errors = []
    for bits in range(2, 17):
        spec = QuantizerSpec(bits=bits, signed=signed, symmetric=symmetric)
        errors.append(lp_error(x, spec, params_from_range(spec, x.min(), x.max())))
    assert (np.diff(errors) < 0).all()


@given(spec=specs(), x=tensors())
def test_finer_granularity_has_smaller_scales(spec, x):
    coarse = spec.with_granularity(PerTensor())
    fine = params_from_range(spec, *ranges(x, spec.granularity)).scale
    assert (fine <= params_from_range(coarse, x.min(), x.max()).scale * (1 + 1e-6)).all()


@pytest.mark.parametrize("bound", [np.nan, np.inf, -np.inf])
def test_ranges_that_are_not_finite_are_refused(bound):
    for low, high in ((bound, 1.0), (-1.0, bound)):
        with pytest.raises(ValueError, match="finite"):
            params_from_range(QuantizerSpec(), low, high)


def test_a_range_that_ends_before_it_starts_is_refused():
    with pytest.raises(ValueError, match="end before"):
        params_from_range(QuantizerSpec(), 1.0, -1.0)


@pytest.mark.parametrize("scale", [0.0, -1.0, np.nan, np.inf])
def test_scales_are_positive_and_finite(scale):
    with pytest.raises(ValueError, match="greater than 0"):
        UniformParams(scale=scale, zero_point=0)


def test_scale_and_zero_point_have_one_shape():
    with pytest.raises(ValueError, match="differ in shape"):
        UniformParams(scale=np.ones(3), zero_point=0)


@pytest.mark.parametrize("bits", [1, 17])
def test_widths_outside_2_to_16_are_refused(bits):
    with pytest.raises(ValueError, match="2 to 16"):
        QuantizerSpec(bits=bits)


def test_narrow_codes_are_signed():
    with pytest.raises(ValueError, match="signed"):
        QuantizerSpec(signed=False, narrow=True)


@pytest.mark.parametrize(
    ("spec", "codes", "container"),
    [
        (QuantizerSpec(), (-128, 127), 8),
        (QuantizerSpec(narrow=True), (-127, 127), 8),
        (QuantizerSpec(signed=False), (0, 255), 8),
        (QuantizerSpec(bits=3, narrow=True), (-3, 3), 4),
        (QuantizerSpec(bits=2, signed=False), (0, 3), 2),
        (QuantizerSpec(bits=12), (-2048, 2047), 16),
    ],
)
def test_code_ranges(spec, codes, container):
    assert (spec.qmin, spec.qmax) == codes
    assert spec.container_bits == container


def test_after_relu_an_unsigned_zero_point_is_the_lowest_code():
    spec = QuantizerSpec(signed=False, symmetric=False)
    assert params_from_range(spec, 0.5, 3.0).zero_point == 0
    assert params_from_range(spec, 0.5, 3.0).scale == pytest.approx(3 / 255)


@pytest.mark.parametrize("magnitude", [1e-44, 3e38])
def test_extreme_magnitudes_keep_a_finite_scale(magnitude):
    x = np.float32([-magnitude, magnitude / 2, magnitude])
    for symmetric in (True, False):
        spec = QuantizerSpec(symmetric=symmetric)
        assert np.isfinite(fake_quantize(x, spec, params_from_range(spec, x.min(), x.max()))).all()
