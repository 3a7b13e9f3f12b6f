import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from fptq.graph import query
from fptq.graph.canonical import canonicalize
from fptq.graph.parity import run_graph

RNG = np.random.default_rng(5)


def floats(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def norm(name: str, channels: int) -> dict[str, np.ndarray]:
    return {
        f"{name}.g": RNG.uniform(0.5, 2, channels).astype(np.float32),
        f"{name}.b": floats(channels),
        f"{name}.m": floats(channels),
        f"{name}.v": RNG.uniform(0.5, 2, channels).astype(np.float32),
    }


def batch_norm(name: str, source: str, result: str):
    inputs = [source, *(f"{name}.{part}" for part in "gbmv")]
    return helper.make_node("BatchNormalization", inputs, [result], name=name, epsilon=1e-3)


def build(nodes, weights, *, x, outputs=("y",), opset=20) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)


def canonical(proto: onnx.ModelProto, x: np.ndarray):
    """The canonical form, after a check that it computes the same."""
    made = canonicalize(ir.from_proto(proto))
    session = ort.InferenceSession(proto.SerializeToString())
    expected = dict(zip([o.name for o in session.get_outputs()], session.run(None, {"x": x}), strict=True))
    found = run_graph(made.graph_model, {"x": x})
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, rtol=2e-4, atol=2e-5)
    return made


def kinds(made) -> list[str]:
    return [node.op_type for node in made.graph_model.graph]


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("group", [1, 2])
@pytest.mark.parametrize("op_type", ["Conv", "ConvTranspose"])
@pytest.mark.parametrize("bias", ["bias", "no bias"])
def test_batch_norm_folds_into_convolutions(rank, group, op_type, bias):
    first, second = (8, 4 // group) if op_type == "Conv" else (4, 8 // group)
    weights = {"conv.weight": floats(first, second, *[3] * rank), **norm("bn", 8)}
    inputs = ["x", "conv.weight"]
    if bias == "bias":
        weights["conv.bias"] = floats(8)
        inputs.append("conv.bias")
    nodes = [
        helper.make_node(op_type, inputs, ["c"], name="conv", group=group, strides=[2] * rank),
        batch_norm("bn", "c", "n"),
        helper.make_node("Relu", ["n"], ["y"], name="relu"),
    ]
    made = canonical(build(nodes, weights, x=(2, 4, *[7] * rank)), floats(2, 4, *[7] * rank))
    assert kinds(made) == [op_type, "Relu"]
    assert "conv.weight" in made.graph_model.graph.initializers
    assert made.graph_model.graph[0].outputs[0].name == "n"
    assert made.origin == {"conv": ("conv", "bn"), "relu": ("relu",)}


@pytest.mark.parametrize("trans_b", [0, 1])
def test_batch_norm_folds_into_gemm_with_its_factors(trans_b):
    nodes = [
        helper.make_node("Gemm", ["x", "w", "c"], ["h"], transB=trans_b, alpha=0.5, beta=2.0),
        batch_norm("bn", "h", "y"),
    ]
    weights = {"w": floats(6, 4) if trans_b else floats(4, 6), "c": floats(6), **norm("bn", 6)}
    assert kinds(canonical(build(nodes, weights, x=(3, 4)), floats(3, 4))) == ["Gemm"]


def test_batch_norm_stays_where_something_else_reads_the_convolution():
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"]),
        batch_norm("bn", "c", "n"),
        helper.make_node("Add", ["c", "n"], ["y"]),
    ]
    made = canonical(build(nodes, {"w": floats(4, 4, 1, 1), **norm("bn", 4)}, x=(1, 4, 5, 5)), floats(1, 4, 5, 5))
    assert "BatchNormalization" in kinds(made)


def test_convolutions_that_share_a_weight_fold_their_own_batch_norms():
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c1"], name="c1"),
        batch_norm("bn1", "c1", "n1"),
        helper.make_node("Conv", ["n1", "w"], ["c2"], name="c2"),
        batch_norm("bn2", "c2", "n2"),
        helper.make_node("Conv", ["n2", "w"], ["c3"], name="c3"),
        batch_norm("bn1", "c3", "y"),
    ]
    weights = {"w": floats(4, 4, 3, 3), **norm("bn1", 4), **norm("bn2", 4)}
    nodes[5].name = "bn3"
    made = canonical(build(nodes, weights, x=(1, 4, 9, 9)), floats(1, 4, 9, 9))
    assert kinds(made) == ["Conv"] * 3
    first, second, third = (node.inputs[1] for node in made.graph_model.graph)
    assert first is third, "the same module called twice keeps one weight"
    assert first is not second


@pytest.mark.parametrize("op_type", ["Conv", "ConvTranspose"])
def test_factors_and_offsets_per_channel_fold_into_the_layer(op_type):
    nodes = [
        helper.make_node(op_type, ["x", "w"], ["c"], name="conv", group=2),
        helper.make_node("Add", ["b", "c"], ["d"], name="bias"),
        helper.make_node("Mul", ["d", "k"], ["e"], name="scale"),
        helper.make_node("Sub", ["s", "e"], ["f"], name="minus"),
        helper.make_node("Div", ["f", "k"], ["g"], name="over"),
        helper.make_node("Add", ["g", "wide"], ["y"], name="position"),
    ]
    weights = {
        "w": floats(6, 2, 3, 3) if op_type == "Conv" else floats(4, 3, 3, 3),
        "b": floats(6, 1, 1),
        "k": RNG.uniform(0.5, 2, (1, 6, 1, 1)).astype(np.float32),
        "s": np.float32(0.7),
        "wide": floats(1, 6, 1, 4) if op_type == "Conv" else floats(1, 6, 1, 8),
    }
    made = canonical(build(nodes, weights, x=(2, 4, 6, 6)), floats(2, 4, 6, 6))
    assert kinds(made) == [op_type, "Add"]
    assert made.origin["conv"] == ("conv", "over", "minus", "scale", "bias")


def test_zero_pads_and_identities_vanish_and_others_fold_into_the_convolution():
    nodes = [
        helper.make_node("Pad", ["x", "none"], ["p"]),
        helper.make_node("Identity", ["p"], ["i"], name="id"),
        helper.make_node("Pad", ["i", "some"], ["q"]),
        helper.make_node("Conv", ["q", "w"], ["c"], name="conv"),
        helper.make_node("Pad", ["c", "none"], ["y"], name="last"),
    ]
    weights = {
        "none": np.zeros(8, np.int64),
        "some": np.array([0, 0, 1, 2, 0, 0, 3, 0]),
        "w": floats(4, 3, 3, 3),
    }
    made = canonical(build(nodes, weights, x=(1, 3, 6, 6)), floats(1, 3, 6, 6))
    assert kinds(made) == ["Conv"]
    assert query.conv_attributes(made.graph_model.graph[0]).pads == (1, 2, 3, 0)
    assert made.graph_model.graph.outputs[0].name == "y"


def test_shape_arithmetic_folds_also_behind_a_dynamic_batch():
    proto = onnx.parser.parse_model("""
        <ir_version: 9, opset_import: ["" : 20]>
        agraph (float[N, 4, 6, 6] x) => (float[N, 4, 6, 6] y)
        <float one = {1}, int64[1] minus = {-1}> {
            s = Shape <start = 1, end = 2> (x)
            scale = Expand(one, s)
            like = CastLike(scale, x)
            n = InstanceNormalization(x, like, like)
            b = Shape <start = 0, end = 1> (n)
            whole = Concat <axis = 0> (b, minus)
            flat = Reshape(n, whole)
            back = Shape(x)
            y = Reshape(flat, back)
        }
    """)
    made = canonical(proto, floats(2, 4, 6, 6))
    assert kinds(made) == ["InstanceNormalization"]


def test_weights_that_are_computed_become_one_stored_tensor_with_the_users_name():
    proto = onnx.parser.parse_model("""
        <ir_version: 9, opset_import: ["" : 20]>
        agraph (float[2, 3] x) => (float[2, 5] y)
        <float[5, 3] lin_weight = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}> {
            t = Transpose <perm = [1, 0]> (lin_weight)
            y = MatMul(x, t)
        }
    """)
    made = canonical(proto, floats(2, 3))
    (node,) = made.graph_model.graph
    assert node.inputs[1].name == "lin_weight"
    assert query.constant(node.inputs[1]).shape == (3, 5)


def test_every_node_gets_a_unique_name_and_unused_weights_go():
    nodes = [
        helper.make_node("Relu", ["x"], ["a"]),
        helper.make_node("Relu", ["a"], ["b"], name="twice"),
        helper.make_node("Sigmoid", ["b"], ["y"], name="twice"),
        helper.make_node("Exp", ["x"], ["dead"]),
    ]
    made = canonicalize(ir.from_proto(build(nodes, {"unused": floats(4)}, x=(2, 2))))
    names = [node.name for node in made.graph_model.graph]
    assert names == ["Relu_a", "twice", "twice_1"]
    assert set(made.origin) == set(names)
    assert not made.graph_model.graph.initializers


def test_the_same_value_returned_twice_stays_two_outputs():
    nodes = [helper.make_node("Relu", ["x"], ["y"]), helper.make_node("Identity", ["y"], ["z"])]
    made = canonical(build(nodes, {}, x=(2, 2), outputs=("y", "z")), floats(2, 2))
    assert [value.name for value in made.graph_model.graph.outputs] == ["y", "z"]


def test_module_paths_come_from_both_of_torchs_exporters():
    nodes = [helper.make_node("Conv", ["x", "w"], ["c"], name="/down/down.0/conv/Conv")]
    nodes.append(helper.make_node("Relu", ["c"], ["y"], name="relu"))
    proto = build(nodes, {"w": floats(2, 2, 1, 1)}, x=(1, 2, 3, 3))
    entry = proto.graph.node[1].metadata_props.add()
    entry.key, entry.value = "pkg.torch.onnx.name_scopes", "['', 'up', 'up.act', 'relu']"
    made = canonical(proto, floats(1, 2, 3, 3))
    assert made.origin["/down/down.0/conv/Conv"] == ("/down/down.0/conv/Conv", "down.0.conv")
    assert made.origin["relu"] == ("relu", "up.act")


def test_big_constants_are_not_made_from_small_ones():
    proto = onnx.parser.parse_model("""
        <ir_version: 9, opset_import: ["" : 20]>
        agraph (float[3000, 3000] x) => (float[3000, 3000] y)
        <float one = {1}, int64[2] size = {3000, 3000}> { m = Expand(one, size)  t = Tanh(m)  y = Add(x, t) }
    """)
    made = canonicalize(ir.from_proto(proto))
    assert sum(v.const_value.nbytes for v in made.graph_model.graph.initializers.values()) < 100


def test_the_users_model_is_left_alone():
    nodes = [helper.make_node("Conv", ["x", "w"], ["c"]), batch_norm("bn", "c", "y")]
    proto = build(nodes, {"w": floats(4, 4, 1, 1), **norm("bn", 4)}, x=(1, 4, 5, 5))
    entry = proto.graph.node[0].metadata_props.add()
    entry.key, entry.value = "stack", "secret/path.py"
    model = ir.from_proto(proto)
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    made = canonicalize(model)
    assert b"secret" not in ir.to_proto(made.graph_model).SerializeToString()
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before


@pytest.mark.parametrize(
    ("equation", "shapes", "expected"),
    [
        ("blxd,blyd->blxy", [(2, 3, 5, 4), (2, 3, 6, 4)], ["Transpose", "MatMul"]),
        ("bhxy,bhyd->bhxd", [(2, 3, 5, 6), (2, 3, 6, 4)], ["MatMul"]),
        ("ik,kj->ji", [(5, 4), (4, 6)], ["Transpose", "Transpose", "MatMul"]),
        ("bxhd,byhd->bhxy", [(2, 5, 3, 4), (2, 6, 3, 4)], ["Transpose", "Transpose", "MatMul"]),
        ("bhxy,bhyd->bxhd", [(2, 3, 5, 6), (2, 3, 6, 4)], ["Einsum"]),  # would be named no more
        ("bij,bjk->bk", [(2, 5, 4), (2, 4, 6)], ["Einsum"]),  # sums rows too
        ("bi,bj->bij", [(2, 5), (2, 4)], ["Einsum"]),  # no sum at all
        ("bii,bij->bij", [(2, 4, 4), (2, 4, 4)], ["Einsum"]),  # a diagonal
        ("bijk,bjkl->bil", [(2, 5, 3, 4), (2, 3, 4, 6)], ["Einsum"]),  # two sums
        ("...ij,...jk->...ik", [(2, 5, 4), (2, 4, 6)], ["Einsum"]),
    ],
)
def test_an_einsum_that_multiplies_matrices_becomes_matmul(equation, shapes, expected):
    first, second = shapes
    # Both computed: a Transpose of a stored operand would be folded into it.
    size = int(np.prod(second))
    nodes = [
        helper.make_node("MatMul", ["x2", "w"], ["flat"], name="second"),
        helper.make_node("Reshape", ["flat", "shape"], ["z"], name="shaped"),
        helper.make_node("Reshape", ["x", "row"], ["x2"], name="row"),
        helper.make_node("Einsum", ["x", "z"], ["y"], name="product", equation=equation),
    ]
    weights = {
        "w": floats(int(np.prod(first)), size) / 4,
        "shape": np.array(second, np.int64),
        "row": np.array([1, -1], np.int64),
    }
    made = canonical(build([nodes[2], *nodes[:2], nodes[3]], weights, x=first), floats(*first))
    assert kinds(made)[3:] == expected
    assert "product" in {node.name for node in made.graph_model.graph}
