"""Which elements share a scale."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fptq.numerics import (
    PerBlock,
    PerChannel,
    PerTensor,
    QuantizerSpec,
    grouped,
    params_from_range,
    ranges,
    scale_shape,
)

X = np.arange(-12, 12, dtype=np.float32).reshape(2, 3, 4)


def test_per_tensor():
    assert ranges(X, PerTensor()) == (-12, 11)
    assert scale_shape(PerTensor(), X.shape) == ()


@pytest.mark.parametrize("axis", [0, 1, 2, -1])
def test_per_channel(axis):
    others = tuple(a for a in range(3) if a != axis % 3)
    low, high = ranges(X, PerChannel(axis=axis))
    np.testing.assert_array_equal(low, X.min(axis=others))
    np.testing.assert_array_equal(high, X.max(axis=others))


@given(axis=st.integers(-3, 2), size=st.integers(1, 6), shape=st.tuples(*[st.integers(1, 7)] * 3))
def test_every_element_is_in_the_range_of_its_block(axis, size, shape):
    x = np.random.default_rng(size).standard_normal(shape).astype(np.float32)
    granularity = PerBlock(axis=axis, size=size)
    spec = QuantizerSpec(symmetric=False, granularity=granularity)
    low, high = ranges(x, granularity)
    assert low.shape == scale_shape(granularity, shape)
    assert grouped(x, granularity).shape == (low.size, size)
    for block in range(low.shape[axis]):
        of_block = np.take(x, range(block * size, min((block + 1) * size, shape[axis])), axis=axis)
        partial = of_block.shape[axis] < size
        expected = of_block.max(axis=axis)
        found = np.take(high, block, axis=axis)
        np.testing.assert_array_equal(found, np.maximum(expected, 0) if partial else expected)
    scale, zero_point = params_from_range(spec, low, high).expanded(spec, shape)
    assert scale.shape == zero_point.shape == shape
