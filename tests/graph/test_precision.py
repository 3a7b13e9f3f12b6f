import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from fptq.graph.load import load
from fptq.graph.parity import run_graph

RNG = np.random.default_rng(2)


def half_model(dtype, onnx_dtype) -> onnx.ModelProto:
    weight = (RNG.standard_normal((4, 3, 3, 3)) / 5).astype(dtype)
    bias = RNG.standard_normal(4).astype(dtype)
    nodes = [
        helper.make_node("Cast", ["x"], ["h"], to=onnx_dtype),
        helper.make_node("Conv", ["h", "w", "b"], ["c"]),
        helper.make_node("Constant", [], ["k"], value=numpy_helper.from_array(np.asarray(2, dtype), "k")),
        helper.make_node("Max", ["c", "k"], ["m"]),
        helper.make_node("Cast", ["m"], ["y"], to=TensorProto.FLOAT),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, (1, 3, 6, 6))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, (1, 4, 4, 4))],
        [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(bias, "b")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


@pytest.mark.parametrize(
    ("dtype", "onnx_dtype", "name"),
    [(np.float16, TensorProto.FLOAT16, "float16"), (ml_dtypes.bfloat16, TensorProto.BFLOAT16, "bfloat16")],
)
def test_half_precision_is_widened_and_noted(dtype, onnx_dtype, name):
    proto = half_model(dtype, onnx_dtype)
    made = load(proto)
    assert any(name in note for note in made.notes)
    assert [node.op_type for node in made.graph] == ["Conv", "Max"]
    stored = made.graph.initializers["w"].const_value.numpy()
    assert stored.dtype == np.float32
    np.testing.assert_array_equal(stored, numpy_helper.to_array(proto.graph.initializer[0]).astype(np.float32))


def test_half_inputs_and_outputs_become_float32():
    proto = half_model(np.float16, TensorProto.FLOAT16)
    del proto.graph.node[0], proto.graph.node[-1]
    proto.graph.node[0].input[0] = "x"
    proto.graph.node[-1].output[0] = "y"
    for info in (proto.graph.input[0], proto.graph.output[0]):
        info.type.tensor_type.elem_type = TensorProto.FLOAT16
    made = load(proto)
    assert made.inputs[0].dtype == np.float32
    assert made.outputs[0].dtype == np.float32
    assert len(made.notes) == 1, "parity with the float16 file was checked"


def test_external_half_weights_are_widened_when_read(tmp_path):
    onnx.save_model(
        half_model(np.float16, TensorProto.FLOAT16),
        tmp_path / "m.onnx",
        save_as_external_data=True,
        location="w.bin",
        size_threshold=0,
    )
    made = load(tmp_path / "m.onnx")
    assert isinstance(made.graph.initializers["w"].const_value, ir.LazyTensor)
    result = run_graph(made.graph_model, {"x": np.ones((1, 3, 6, 6), np.float32)})
    assert np.isfinite(result["y"]).all()
