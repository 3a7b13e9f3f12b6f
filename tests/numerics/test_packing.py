"""Codes that share a byte, equal to what ONNX itself stores."""

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fptq.numerics import pack, unpack

STORED = {(4, True): "INT4", (4, False): "UINT4", (2, True): "INT2", (2, False): "UINT2"}


@st.composite
def codes(draw):
    bits, signed = draw(st.sampled_from(list(STORED)))
    low = -(1 << (bits - 1)) if signed else 0
    shape = tuple(draw(st.lists(st.integers(0, 5), max_size=3)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    return rng.integers(low, low + (1 << bits), shape), bits, signed


@given(codes())
def test_unpacking_gives_back_what_was_packed(made):
    array, bits, signed = made
    packed = pack(array, bits=bits, signed=signed)
    assert packed.dtype == np.uint8
    assert packed.size == -(-array.size * bits // 8)
    found = unpack(packed, bits=bits, signed=signed, shape=array.shape)
    assert found.dtype == np.int8
    np.testing.assert_array_equal(found, array)


@given(codes())
def test_the_bytes_are_those_of_onnx(made):
    array, bits, signed = made
    kind = onnx.TensorProto.DataType.Value(STORED[bits, signed])
    raw = pack(array, bits=bits, signed=signed).tobytes()
    tensor = onnx.helper.make_tensor("t", kind, array.shape, raw, raw=True)
    np.testing.assert_array_equal(onnx.numpy_helper.to_array(tensor).astype(np.int64), array)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="4 bits hold -8 to 7"):
        pack(np.array([8]), bits=4, signed=True)
    with pytest.raises(ValueError, match="2 or 4 bits"):
        pack(np.array([1]), bits=3, signed=True)
    with pytest.raises(ValueError, match="do not hold 3 codes"):
        unpack(np.zeros(1, np.uint8), bits=4, signed=False, shape=(3,))
