"""Piecewise-linear codes: exact, ordered, and the sum of what integer branches compute."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fptq.numerics import (
    LAPLACE,
    PerBlock,
    PerChannel,
    PerTensor,
    PiecewiseCodes,
    PiecewiseParams,
    PiecewiseSpec,
    QuantizerSpec,
    UniformParams,
    branch_codes,
    branch_inputs,
    branches,
    dequantize,
    dequantize_piecewise,
    fake_quantize_piecewise,
    params_from_breakpoints,
    params_from_tensor,
    quantize,
    quantize_piecewise,
)

PER_TOKEN = PerBlock(axis=-1, size=7)  # of f32[..., 7]


@st.composite
def specs(draw):
    signed = draw(st.booleans())
    region = QuantizerSpec(
        bits=draw(st.integers(2, 12)),
        signed=signed,
        symmetric=draw(st.booleans()),
        narrow=signed and draw(st.booleans()),
        granularity=draw(st.sampled_from([PerTensor(), PerChannel(axis=0), PerChannel(axis=1), PER_TOKEN])),
    )
    return PiecewiseSpec(region=region, regions=draw(st.integers(2, 5)))


def heavy(seed, shape=(4, 3, 7)):
    """Heavy tails, shifted and one-sided at times."""
    rng = np.random.default_rng(seed)
    x = rng.standard_t(2, shape) * 10.0 ** rng.integers(-3, 4) + rng.integers(-1, 2)
    return np.float32(np.maximum(x, 0) if seed % 3 == 0 else x)


TENSORS = st.integers(0, 2**32 - 1).map(heavy)


@given(spec=specs(), x=TENSORS)
def test_codes_round_trip(spec, x):
    params = params_from_tensor(x, spec, density=LAPLACE)
    codes = quantize_piecewise(2 * x, spec, params)
    seen = dequantize_piecewise(codes, spec, params)
    np.testing.assert_array_equal(seen, fake_quantize_piecewise(2 * x, spec, params))
    again = quantize_piecewise(seen, spec, params)
    np.testing.assert_array_equal(again.region, codes.region)
    np.testing.assert_array_equal(again.code, codes.code)
    assert codes.region.max() < spec.regions
    assert spec.region.qmin <= codes.code.min()
    assert codes.code.max() <= spec.region.qmax


def test_a_region_whose_steps_vanish_holds_no_value():
    spec = PiecewiseSpec(region=QuantizerSpec(bits=2, signed=True, symmetric=True, granularity=PerTensor()), regions=2)
    numbers = [UniformParams(scale=np.float32(scale), zero_point=np.int32(0)) for scale in (0.5, 1e-30)]
    codes = quantize_piecewise(np.float32([-3, 3]), spec, PiecewiseParams(regions=tuple(numbers)))
    assert codes.region.tolist() == [0, 0]
    assert codes.code.tolist() == [-2, 1]


@given(spec=specs(), x=TENSORS)
def test_zero_is_exact(spec, x):
    params = params_from_tensor(x, spec, density=LAPLACE)
    seen = fake_quantize_piecewise(np.full_like(x, -0.0), spec, params)
    assert not seen.any()
    assert not np.signbit(seen).any()
    codes = quantize_piecewise(np.zeros_like(x), spec, params)
    assert not codes.region.any()
    np.testing.assert_array_equal(
        codes.code, np.broadcast_to(params.regions[0].expanded(spec.region, x.shape)[1], x.shape)
    )


@given(spec=specs(), x=TENSORS)
def test_order_is_kept_within_the_range(spec, x):
    spec = spec.with_granularity(PerTensor())
    params = params_from_tensor(x, spec, density=LAPLACE)
    seen = fake_quantize_piecewise(np.sort(2 * x, axis=None), spec, params)
    assert (np.diff(seen) >= 0).all()
    low, high = params.range(spec)
    assert low <= seen.min()
    assert seen.max() <= high


@given(spec=specs(), x=TENSORS)
def test_the_error_is_at_most_one_step_of_the_own_region(spec, x):
    spec = spec.with_granularity(PerTensor())
    params = params_from_tensor(x, spec, density=LAPLACE)
    step = np.float32([region.scale for region in params.regions])[quantize_piecewise(x, spec, params).region]
    # A value within half an outer step of the breakpoint is represented by it; the zero point moves the far ends.
    outer = np.float32([region.scale for region in (*params.regions[1:], params.regions[-1])])
    allowed = np.maximum(step, outer[quantize_piecewise(x, spec, params).region])
    assert (np.abs(fake_quantize_piecewise(x, spec, params) - x) <= allowed * 1.00001 + np.abs(x) * 1e-6).all()


@given(spec=specs(), x=TENSORS)
def test_branches_take_the_tensor_apart(spec, x):
    params = params_from_tensor(x, spec, density=LAPLACE)
    parts = branch_inputs(2 * x, spec, params)
    np.testing.assert_allclose(sum(parts), 2 * x, rtol=1e-6, atol=1e-6 * np.abs(x).max())
    rest = 2 * x
    for branch, part in zip(branches(spec, params)[:-1], parts, strict=False):
        if isinstance(spec.region.granularity, PerTensor):
            np.testing.assert_array_equal(part, np.clip(rest, branch.low, branch.high))
            # Without the clip the quantizer saturates at the same code, so an engine may leave it out.
            np.testing.assert_array_equal(
                quantize(rest, branch.spec, branch.params), quantize(part, branch.spec, branch.params)
            )
        rest = rest - part


@given(spec=specs(), x=TENSORS)
def test_branch_codes_are_the_codes(spec, x):
    params = params_from_tensor(x, spec, density=LAPLACE)
    summed = np.zeros_like(x)
    for codes, region in zip(branch_codes(x, spec, params), params.regions, strict=True):
        summed += dequantize(codes, spec.region, region)
    np.testing.assert_array_equal(summed, dequantize_piecewise(quantize_piecewise(x, spec, params), spec, params))


@pytest.mark.parametrize(
    "region",
    [
        QuantizerSpec(),
        QuantizerSpec(narrow=True),
        QuantizerSpec(symmetric=False),
        QuantizerSpec(signed=False, symmetric=False),
    ],
    ids=str,
)
@pytest.mark.parametrize("regions", [2, 3])
def test_integer_branches_through_one_weight_are_the_simulation(region, regions):
    """`W.q1 + W.q2` in integers: i8 weight, 8-bit activations, i32 accumulators."""
    rng = np.random.default_rng(0)
    x = heavy(1, (64, 32))
    weight = rng.integers(-127, 128, (32, 16)).astype(np.int8)
    spec = PiecewiseSpec(region=region, regions=regions)
    found = params_from_tensor(x, spec, density=LAPLACE)
    # Scales that are powers of two make every product and sum exact in f64, on both sides.
    params = PiecewiseParams(
        regions=tuple(
            UniformParams(scale=np.exp2(np.round(np.log2(r.scale))), zero_point=r.zero_point) for r in found.regions
        )
    )
    total = np.zeros((64, 16))
    for codes, numbers in zip(branch_codes(x, spec, params), params.regions, strict=True):
        eight = codes.astype(np.int8 if region.signed else np.uint8)
        np.testing.assert_array_equal(eight, codes)
        accumulator = (eight.astype(np.int32) - numbers.zero_point) @ weight.astype(np.int32)
        total += accumulator * np.float64(numbers.scale)
    simulated = fake_quantize_piecewise(x, spec, params).astype(np.float64) @ weight.astype(np.float64)
    np.testing.assert_array_equal(total, simulated)


def test_the_tail_branch_is_zero_inside_the_breakpoint():
    spec = PiecewiseSpec()
    params = params_from_breakpoints(spec, -10.0, 10.0, [(-1.0, 1.0)])
    centre, tail = branch_codes(np.float32([-5, -1, -0.4, 0, 0.4, 1, 5]), spec, params)
    assert tail[1:6].tolist() == [0, 0, 0, 0, 0]
    assert centre[[0, 1, 5, 6]].tolist() == [-127, -127, 127, 127]


def test_equation_of_the_paper():
    """`sign(x) uni(|x|)` with step p / N in the centre, and from p with step (m - p) / N, N = 2^(b-1) - 1."""
    spec = PiecewiseSpec(region=QuantizerSpec(bits=4, narrow=True))
    x, p, m, n = np.linspace(-8, 8, 1001).astype(np.float32), 2.0, 8.0, 7
    seen = fake_quantize_piecewise(x, spec, params_from_breakpoints(spec, -m, m, [(-p, p)]))
    magnitude = np.abs(x.astype(np.float64))
    centre = np.rint(magnitude * n / p) * p / n
    tail = p + np.rint((magnitude - p) * n / (m - p)) * (m - p) / n
    np.testing.assert_allclose(seen, np.sign(x) * np.where(magnitude <= p, centre, tail), rtol=1e-5)


@pytest.mark.parametrize(("regions", "bits"), [(2, 9), (3, 10), (4, 10), (5, 11)])
def test_the_number_of_the_region_is_counted(regions, bits):
    assert PiecewiseSpec(regions=regions).bits == bits


def test_values_beyond_the_range_saturate():
    spec = PiecewiseSpec(region=QuantizerSpec(signed=False, symmetric=False))
    params = params_from_breakpoints(spec, -1.0, 10.0, [(-1.0, 2.0)])
    seen = fake_quantize_piecewise(np.float32([-np.inf, np.inf]), spec, params)
    np.testing.assert_array_equal(seen, np.concatenate([end[None] for end in params.range(spec)]))
    np.testing.assert_allclose(seen, [-1, 10], atol=0.02)


def test_nan_has_no_code():
    spec = PiecewiseSpec()
    params = params_from_breakpoints(spec, -1.0, 1.0, [(-0.5, 0.5)])
    with pytest.raises(ValueError, match="NaN"):
        quantize_piecewise(np.float32([0, np.nan]), spec, params)


def test_numbers_and_quantizer_belong_together():
    params = params_from_breakpoints(PiecewiseSpec(), -1.0, 1.0, [(-0.5, 0.5)])
    three = PiecewiseSpec(regions=3)
    codes = PiecewiseCodes(region=np.uint8([0]), code=np.int32([0]))
    for call in (
        branches,
        lambda s, p: branch_inputs(np.float32([1]), s, p),
        lambda s, p: dequantize_piecewise(codes, s, p),
    ):
        with pytest.raises(ValueError, match="2 regions do not fit"):
            call(three, params)
    with pytest.raises(ValueError, match="differ in shape"):
        PiecewiseParams(regions=(params.regions[0], UniformParams(scale=np.ones(2), zero_point=np.zeros(2))))
    with pytest.raises(ValueError, match="2 to 16"):
        PiecewiseSpec(regions=1)
