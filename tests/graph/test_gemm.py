import numpy as np
import onnx
import pytest

from fptq.graph.gemm import matmul_add_to_gemm
from fptq.graph.load import load
from fptq.graph.parity import run_graph
from fptq.graph.query import shape

RNG = np.random.default_rng(4)

TEXT = """
<ir_version: 9, opset_import: ["" : 20]>
agraph (float[{dims}] x) => (float[{out}] y)
<float[4, 6] w1 = {{{w1}}}, float[{bias}] b1 = {{{b1}}}, float[6, 3] w2 = {{{w2}}}, float[4, 6] w3 = {{{w3}}}> {{
    m1 = MatMul(x, w1)
    a1 = Add(m1, b1)
    r = Relu(a1)
    m2 = MatMul(r, w2)
    b2 = ReduceMax <keepdims = 1> (m2)
    y1 = Add(m2, b2)
    m3 = MatMul(x, w3)
    a3 = Add(b1, m3)
    y2 = MatMul(a3, w2)
    y = Add(y1, y2)
}}
"""


def network(dims: str, bias: str = "6") -> onnx.ModelProto:
    def numbers(count):
        return ", ".join(f"{v:.3f}" for v in RNG.standard_normal(count))

    out = dims.rsplit(",", 1)[0] + ", 3"
    fields = {"dims": dims, "out": out, "bias": bias, "w1": numbers(24), "b1": numbers(6)}
    proto = onnx.parser.parse_model(TEXT.format(**fields, w2=numbers(18), w3=numbers(24)))
    for node in proto.graph.node:
        node.name = f"n_{node.output[0]}"
    return proto


@pytest.mark.parametrize(
    ("dims", "bias", "gives"),
    [
        ("5, 4", "6", ["Gemm", "Gemm"]),
        ("2, 5, 4", "6", ["Reshape", "Gemm", "Reshape"]),
        ("2, 5, 4", "1, 1, 6", ["Reshape", "Gemm", "Reshape"]),
        ("2, 3, 5, 4", "1, 6", ["Reshape", "Gemm", "Reshape"]),
        ("N, 4", "6", ["Gemm", "Gemm"]),
    ],
)
def test_pairs_with_a_stored_bias_become_gemms(dims, bias, gives):
    model = load(network(dims, bias))
    made = matmul_add_to_gemm(model)
    kinds = [node.op_type for node in made.graph]
    assert kinds.count("Gemm") == 2
    assert kinds.count("MatMul") == 2, "a bias that is computed stays an Add"
    assert [k for k in kinds if k in gives][: len(gives)] == gives
    flat = {node.inputs[0].name for node in made.graph if node.op_type == "Gemm"}
    assert len(flat) == 1, "the input is flattened once for all readers"
    x = RNG.standard_normal([int(d) if d.strip().isdigit() else 3 for d in dims.split(",")]).astype(np.float32)
    expected, found = run_graph(model.graph_model, {"x": x}, ["a1"]), run_graph(made.graph_model, {"x": x}, ["a1"])
    for name in expected:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-4, atol=1e-5)
    assert made.origin["n_m1"] == ("n_m1", "n_a1")
    assert "n_a1" not in made.origin
    assert all(shape(value) is not None for node in made.graph for value in node.outputs)
    onnx.checker.check_model(onnx.load_from_string(_bytes(made)), full_check=True)


@pytest.mark.parametrize("dims", ["N, 5, 4", "N, L, 4", "2, L, 4"])
def test_piles_of_matrices_of_any_height_are_left_alone(dims):
    model = load(network(dims))
    assert matmul_add_to_gemm(model) is model


def _bytes(model):
    from fptq.graph.write import to_bytes

    return to_bytes(model)


def test_a_model_without_pairs_is_returned_as_it_is():
    model = load(
        onnx.parser.parse_model("""
        <ir_version: 9, opset_import: ["" : 20]> agraph (float[2, 4] x) => (float[2, 4] y) { y = Relu(x) }
    """)
    )
    assert matmul_add_to_gemm(model) is model
