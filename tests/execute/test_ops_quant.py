"""Codes equal to those of ONNX Runtime."""

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from fptq.errors import ModelError
from fptq.execute.ops.call import Call
from fptq.execute.ops.quant import OPS

RNG = np.random.default_rng(7)
X = (RNG.standard_normal((4, 6, 5)) * 9).astype(np.float32)
SCALES = {
    "tensor": (np.float32(0.5), {}),
    "axis": (RNG.uniform(0.05, 0.5, 6).astype(np.float32), {"axis": 1}),
    "last axis": (RNG.uniform(0.05, 0.5, 5).astype(np.float32), {"axis": -1}),
    "blocks": (RNG.uniform(0.05, 0.5, (4, 3, 5)).astype(np.float32), {"axis": 1, "block_size": 2}),
}
CODES = [np.int8, np.uint8, np.int16, np.uint16]


def apply(op, *inputs, **attributes):
    return OPS[op](Call(ir.node(op, [ir.val(None)] * len(inputs), attributes), 21), *inputs)


def of_onnxruntime(x, scale, zero_point, attributes):
    stored = {"scale": np.asarray(scale), "zero": zero_point}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["codes"], **attributes),
        helper.make_node("DequantizeLinear", ["codes", "scale", "zero"], ["y"], **attributes),
    ]
    kind = helper.np_dtype_to_tensor_dtype(zero_point.dtype)
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x.shape)],
        [helper.make_tensor_value_info("codes", kind, None), helper.make_tensor_value_info("y", 1, None)],
        [numpy_helper.from_array(array, name) for name, array in stored.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})


@pytest.mark.engine("onnxruntime")
@pytest.mark.parametrize("dtype", CODES)
@pytest.mark.parametrize("kind", SCALES)
def test_codes_and_values_are_those_of_onnxruntime(kind, dtype):
    scale, attributes = SCALES[kind]
    limits = np.iinfo(dtype)
    zero = RNG.integers(max(limits.min, -90), min(limits.max, 90), np.shape(scale)).astype(dtype)
    codes, values = of_onnxruntime(X, scale, np.asarray(zero), attributes)
    given = [torch.from_numpy(np.asarray(array)) for array in (scale, zero)]
    mine = apply("QuantizeLinear", torch.from_numpy(X), *given, **attributes)
    assert np.array_equal(mine.numpy(), codes)
    assert np.array_equal(apply("DequantizeLinear", mine, *given, **attributes).numpy(), values)


def test_a_short_last_block():
    scale = torch.tensor([[1.0, 2.0], [0.5, 4.0]])
    x = torch.full((2, 3), 8.0)
    codes = apply("QuantizeLinear", x, scale, axis=1, block_size=2)
    assert codes.tolist() == [[8, 8, 4], [16, 16, 2]]


def test_four_bits_saturate_in_eight():
    x = torch.tensor([-99.0, -2.5, 0.5, 99.0])
    codes = apply("QuantizeLinear", x, torch.tensor(1.0), output_dtype=int(ir.DataType.INT4))
    assert (codes.dtype, codes.tolist()) == (torch.int8, [-8, -2, 0, 7])


def test_the_declared_type_of_a_zero_point_counts():
    zero = ir.val("zero", dtype=ir.DataType.UINT4, shape=())
    node = ir.node("QuantizeLinear", [ir.val("x"), ir.val("scale"), zero])
    codes = OPS["QuantizeLinear"](
        Call(node, 21), torch.tensor([-9.0, 99.0]), torch.tensor(1.0), torch.tensor(8, dtype=torch.uint8)
    )
    assert codes.tolist() == [0, 15]


def test_codes_wider_than_half_precision():
    codes = apply("QuantizeLinear", torch.tensor([3.0]).half(), torch.tensor(1.0).half(), torch.tensor([30000]).short())
    assert codes.tolist() == [30003]


def test_a_bias_of_32_bits():
    codes = torch.tensor([2**24 + 2, -3], dtype=torch.int32)
    assert apply("DequantizeLinear", codes, torch.tensor(0.5)).tolist() == [2.0**23 + 1, -1.5]


def test_a_float_is_no_code():
    with pytest.raises(ModelError, match="FLOAT8E4M3FN"):
        apply("QuantizeLinear", torch.ones(2), torch.tensor(1.0), output_dtype=int(ir.DataType.FLOAT8E4M3FN))


def test_a_scale_has_a_gradient():
    codes = torch.tensor([[3, -5], [7, 1]], dtype=torch.int8)
    scale = torch.tensor([0.5, 2.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda s: apply("DequantizeLinear", codes, s, axis=0), (scale,))


def test_parameters_follow_the_data():
    x = torch.ones(2, 3, device="meta")
    scale, zero = torch.ones(3), torch.zeros(3, dtype=torch.int8)
    codes = apply("QuantizeLinear", x, scale, zero)
    assert apply("DequantizeLinear", codes, scale, zero).device.type == "meta"


def test_stored_codes_follow_their_scale():
    codes = torch.ones(2, 3, dtype=torch.int8)
    assert apply("DequantizeLinear", codes, torch.ones(3, device="meta")).device.type == "meta"
    assert apply("DequantizeLinear", codes, torch.ones((), device="meta")).device.type == "meta"
