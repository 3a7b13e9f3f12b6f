import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from fptq.errors import ModelError
from fptq.graph.canonical import canonicalize
from fptq.graph.load import load
from fptq.graph.opset import OPSET
from fptq.graph.parity import run_graph

RNG = np.random.default_rng(3)


def constant(name: str, array: np.ndarray) -> TensorProto:
    return numpy_helper.from_array(np.asarray(array), name)


def build(nodes, weights, *, opset, x=(2, 6, 8, 8), domain_opsets=()) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [constant(name, array) for name, array in weights.items()],
    )
    imports = [helper.make_opsetid("", opset), *domain_opsets]
    return helper.make_model(graph, opset_imports=imports, ir_version=min(10, 6 if opset < 14 else 10))


def original_output(proto: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    return ort.InferenceSession(proto.SerializeToString(), options).run(None, {"x": x})[0]


def assert_same(proto: onnx.ModelProto, shape=(2, 6, 8, 8)) -> ir.Model:
    x = RNG.standard_normal(shape).astype(np.float32)
    made = canonicalize(ir.from_proto(proto)).graph_model
    assert made.opset_imports == {"": OPSET}
    onnx.checker.check_model(ir.to_proto(made), full_check=True)
    np.testing.assert_allclose(run_graph(made, {"x": x})["y"], original_output(proto, x), rtol=1e-4, atol=1e-5)
    return made


def network(opset: int) -> onnx.ModelProto:
    """A small network of the operations whose meaning or form changed between opsets 11 and 21."""
    axes_are_inputs = opset >= 13
    squeeze = (
        helper.make_node("Squeeze", ["mean", "axes"], ["flat"])
        if axes_are_inputs
        else helper.make_node("Squeeze", ["mean"], ["flat"], axes=[2, 3])
    )
    total = (
        helper.make_node("ReduceSum", ["soft", "axis1"], ["sum"], keepdims=1)
        if axes_are_inputs
        else helper.make_node("ReduceSum", ["soft"], ["sum"], axes=[1], keepdims=1)
    )
    mean = (
        helper.make_node("ReduceMean", ["pool", "axes"], ["mean"])
        if opset >= 18
        else helper.make_node("ReduceMean", ["pool"], ["mean"], axes=[2, 3])
    )
    drop = (
        helper.make_node("Dropout", ["act"], ["dropped"])
        if opset >= 12
        else helper.make_node("Dropout", ["act"], ["dropped"], ratio=0.5)
    )
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["conv"], kernel_shape=[3, 3], pads=[1, 1, 1, 1], name="first"),
        helper.make_node("BatchNormalization", ["conv", "g", "b", "m", "v"], ["bn"]),
        helper.make_node("Clip", ["bn", "zero", "six"], ["act"]),
        drop,
        helper.make_node("Pad", ["dropped", "pads"], ["padded"]),
        helper.make_node("MaxPool", ["padded"], ["pool"], kernel_shape=[2, 2], strides=[2, 2]),
        # Before opset 13 Softmax flattens everything behind its axis.
        helper.make_node("Softmax", ["pool"], ["soft"], axis=1),
        total,
        mean,
        squeeze,
        helper.make_node("Gemm", ["flat", "w2"], ["logits"]),
        helper.make_node("Unsqueeze", ["logits", "axes"], ["deep"])
        if axes_are_inputs
        else helper.make_node("Unsqueeze", ["logits"], ["deep"], axes=[2, 3]),
        helper.make_node("Add", ["deep", "sum"], ["y"]),
    ]
    weights = {
        "w": RNG.standard_normal((8, 6, 3, 3)).astype(np.float32) / 5,
        "g": RNG.uniform(0.5, 2, 8).astype(np.float32),
        "b": RNG.standard_normal(8).astype(np.float32),
        "m": RNG.standard_normal(8).astype(np.float32),
        "v": RNG.uniform(0.5, 2, 8).astype(np.float32),
        "w2": RNG.standard_normal((8, 5)).astype(np.float32),
        "zero": np.float32(0),
        "six": np.float32(6),
        "pads": np.array([0, 0, 1, 1, 0, 0, 1, 1]),
        "axes": np.array([2, 3]),
        "axis1": np.array([1]),
    }
    return build(nodes, weights, opset=opset)


@pytest.mark.parametrize("opset", range(11, 25))
def test_every_opset_computes_what_it_did(opset):
    made = assert_same(network(opset))
    kinds = [node.op_type for node in made.graph]
    assert "BatchNormalization" not in kinds
    assert "Dropout" not in kinds


def test_group_normalization_18_gets_per_channel_scales():
    nodes = [helper.make_node("GroupNormalization", ["x", "s", "b"], ["y"], num_groups=3)]
    weights = {"s": RNG.uniform(1, 2, 3).astype(np.float32), "b": RNG.standard_normal(3).astype(np.float32)}
    made = assert_same(build(nodes, weights, opset=18))
    assert [node.op_type for node in made.graph] == ["GroupNormalization"]


def test_operations_newer_than_the_canonical_opset_are_expanded():
    nodes = [
        helper.make_node("RMSNormalization", ["x", "s"], ["n"], axis=-1),
        helper.make_node("MatMul", ["n", "w"], ["y"]),
    ]
    weights = {
        "s": RNG.uniform(1, 2, 8).astype(np.float32),
        "w": RNG.standard_normal((8, 80)).astype(np.float32),
    }
    made = assert_same(build(nodes, weights, opset=23))
    assert "RMSNormalization" not in {node.op_type for node in made.graph}
    assert "w" in made.graph.initializers


def test_attention_is_expanded_to_matmul_and_softmax():
    nodes = [helper.make_node("Attention", ["x", "x", "x"], ["y"])]
    made = assert_same(build(nodes, {}, opset=23, x=(2, 3, 4, 8)), shape=(2, 3, 4, 8))
    assert {"MatMul", "Softmax"} <= {node.op_type for node in made.graph}


@pytest.mark.parametrize("opset", [7, 10, 26])
def test_other_opsets_are_refused(opset):
    proto = build([helper.make_node("Relu", ["x"], ["y"])], {}, opset=opset)
    with pytest.raises(ModelError, match=f"opset {opset}.*11 to 25"):
        load(proto)


def test_functions_are_inlined():
    proto = onnx.parser.parse_model("""
        <ir_version: 8, opset_import: ["" : 17, "local" : 1]>
        agraph (float[2, 3] x) => (float[2, 3] y) { y = local.twice(x) }
        <domain: "local", opset_import: ["" : 17]>
        twice (a) => (b) { b = Add(a, a) }
    """)
    made = assert_same(proto, shape=(2, 3))
    assert [node.op_type for node in made.graph] == ["Add"]
