"""Integer codes are those of ONNX Runtime's QuantizeLinear, in every type and granularity."""

from functools import cache

import numpy as np
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from fptq.numerics import (
    PerBlock,
    PerChannel,
    PerTensor,
    QuantizerSpec,
    dequantize,
    fake_quantize,
    params_from_range,
    quantize,
    ranges,
    scale_shape,
)

SHAPE = (3, 10, 8)
GRANULARITIES = [
    PerTensor(),
    PerChannel(axis=0),
    PerChannel(axis=1),
    PerChannel(axis=2),
    PerChannel(axis=-1),
    PerBlock(axis=0, size=2),
    PerBlock(axis=1, size=4),
    PerBlock(axis=2, size=8),
]


def onnx_type(spec):
    return getattr(TensorProto, f"{'INT' if spec.signed else 'UINT'}{spec.container_bits}")


@cache
def onnx_runtime(spec):
    """A session x, scale -> codes as floats, dequantized values; the zero point is an i32 input."""
    where = {}
    match spec.granularity:
        case PerChannel(axis=axis):
            where = {"axis": axis}
        case PerBlock(axis=axis, size=size):
            where = {"axis": axis, "block_size": size}
    nodes = [
        helper.make_node("Cast", ["z"], ["zero_point"], to=onnx_type(spec)),
        helper.make_node("QuantizeLinear", ["x", "scale", "zero_point"], ["q"], **where),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero_point"], ["y"], **where),
        helper.make_node("DequantizeLinear", ["q", "one"], ["codes"]),
    ]
    shape = scale_shape(spec.granularity, SHAPE)
    inputs = [("x", TensorProto.FLOAT, SHAPE), ("scale", TensorProto.FLOAT, shape), ("z", TensorProto.INT32, shape)]
    graph = helper.make_graph(
        nodes,
        "quantize",
        [helper.make_tensor_value_info(*i) for i in inputs],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, SHAPE) for name in ("codes", "y")],
        [helper.make_tensor("one", TensorProto.FLOAT, [], [1.0])],
    )
    opset = 25 if spec.container_bits == 2 else 21
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(model.SerializeToString(), options)


def assert_equals_onnx_runtime(x, spec, params):
    feeds = {"x": x, "scale": params.scale, "z": params.zero_point}
    codes, y = onnx_runtime(spec).run(["codes", "y"], feeds)
    np.testing.assert_array_equal(quantize(x, spec, params), codes.astype(np.int32))
    np.testing.assert_array_equal(fake_quantize(x, spec, params), y)
    np.testing.assert_array_equal(dequantize(quantize(x, spec, params), spec, params), y)


def specs(bits=(2, 4, 8, 16)):
    return st.builds(
        QuantizerSpec,
        bits=st.sampled_from(bits),
        signed=st.booleans(),
        symmetric=st.booleans(),
        granularity=st.sampled_from(GRANULARITIES),
    )


@pytest.mark.parametrize("granularity", GRANULARITIES, ids=str)
@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("bits", [2, 4, 8, 16])
def test_codes_of_random_data(bits, signed, granularity):
    spec = QuantizerSpec(bits=bits, signed=signed, symmetric=False, granularity=granularity)
    x = np.random.default_rng(bits).standard_normal(SHAPE).astype(np.float32) * 3
    params = params_from_range(spec, *ranges(x * np.float32(0.8), granularity))  # some values saturate
    assert_equals_onnx_runtime(x, spec, params)


@settings(max_examples=60, deadline=None)
@given(spec=specs(), seed=st.integers(0, 2**32 - 1), exponent=st.integers(-30, 30), shift=st.floats(-2, 2))
def test_codes_of_data_of_any_magnitude(spec, seed, exponent, shift):
    x = (np.random.default_rng(seed).standard_normal(SHAPE) + shift).astype(np.float32) * np.float32(2.0**exponent)
    assert_equals_onnx_runtime(x, spec, params_from_range(spec, *ranges(x, spec.granularity)))


@settings(max_examples=60, deadline=None)
@given(spec=specs(), seed=st.integers(0, 2**32 - 1), steps=st.sampled_from([1, 2, 255, 510, 127]))
def test_codes_of_ties(spec, seed, steps):
    # Multiples of a half step land between two codes; k / 255 is what 8-bit images hold.
    k = np.random.default_rng(seed).integers(-600, 600, SHAPE).astype(np.float32)
    x = k / np.float32(steps)
    low, high = ranges(x, spec.granularity)
    assert_equals_onnx_runtime(x, spec, params_from_range(spec, low, high))
    assert_equals_onnx_runtime(x, spec, params_from_range(spec, np.zeros_like(low), np.ones_like(high)))


def test_odd_zero_points_do_not_move_ties():
    spec = QuantizerSpec(signed=False, symmetric=False)
    x = np.resize(np.arange(-40, 40, dtype=np.float32) / 2, SHAPE)
    for low in np.arange(0, -8, -1, dtype=np.float32):
        params = params_from_range(spec, low, low + 255)  # scale 1: every other value is a tie
        assert params.zero_point == -low
        assert_equals_onnx_runtime(x, spec, params)


@pytest.mark.parametrize("bits", [3, 5, 6, 7, 12])
def test_other_widths_are_their_container_clipped(bits):
    spec = QuantizerSpec(bits=bits, symmetric=False)
    x = np.random.default_rng(bits).standard_normal(SHAPE).astype(np.float32)
    params = params_from_range(spec, *ranges(x * np.float32(0.5), spec.granularity))
    codes = onnx_runtime(spec).run(["codes"], {"x": x, "scale": params.scale, "z": params.zero_point})[0]
    np.testing.assert_array_equal(quantize(x, spec, params), np.clip(codes, spec.qmin, spec.qmax))


def test_narrow_codes_leave_out_the_lowest():
    spec = QuantizerSpec(narrow=True)
    x = np.linspace(-2, 2, np.prod(SHAPE), dtype=np.float32).reshape(SHAPE)
    params = params_from_range(spec, -1, 1)
    codes = onnx_runtime(spec).run(["codes"], {"x": x, "scale": params.scale, "z": params.zero_point})[0]
    np.testing.assert_array_equal(quantize(x, spec, params), np.maximum(codes, -127))
