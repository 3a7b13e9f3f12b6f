from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx_ir.passes.common import ShapeInferencePass

from fptq.graph.model import Model
from fptq.rewrite.reshaped_arithmetic import arithmetic_without_reshapes

WINDOWS, HEADS, TOKENS = 6, 2, 5


def masked(
    *,
    inner: tuple[int, ...],
    operand: tuple[int, ...],
    op: str = "Add",
    computed: bool = False,
    first: int | str = WINDOWS,
) -> Model:
    """Scores `[windows, heads, T, T]`, reshaped, masked by an operand of some shape, reshaped back."""
    sizes = (WINDOWS, HEADS, TOKENS, TOKENS)
    x = ir.val("x", dtype=ir.DataType.FLOAT, shape=ir.Shape((first, *sizes[1:])))
    content = np.random.default_rng(0).uniform(1, 2, operand).astype(np.float32)
    stored = {"mask": content, "inner": np.array(inner), "back": np.array((-1, *sizes[1:]))}
    mask, split, back = (ir.val(name, const_value=ir.tensor(array, name=name)) for name, array in stored.items())
    nodes = [ir.node("Sqrt", [x], name="scores")]
    nodes += [ir.node("Sqrt", [mask], name="made")] if computed else []
    nodes += [ir.node("Reshape", [nodes[0].outputs[0], split], name="before")]
    other = nodes[1].outputs[0] if computed else mask
    nodes += [ir.node(op, [nodes[-1].outputs[0], other], name="arithmetic")]
    nodes += [ir.node("Reshape", [nodes[-1].outputs[0], back], name="after")]
    nodes += [ir.node("Softmax", [nodes[-1].outputs[0]], {"axis": -1}, name="softmax")]
    for node in nodes:
        node.outputs[0].name = f"{node.name}_output"
    outputs = [nodes[-1].outputs[0]]
    outputs[0].dtype = ir.DataType.FLOAT
    graph = ir.Graph([x], outputs, nodes=nodes, initializers=[mask, split, back], opset_imports={"": 21}, name="g")
    return Model(graph_model=ShapeInferencePass()(ir.Model(graph, ir_version=10)).model)


def run(model: Model, x: np.ndarray) -> np.ndarray:
    proto = ir.to_proto(model.graph_model).SerializeToString()
    return np.asarray(ort.InferenceSession(proto).run(None, {"x": x})[0])


INNER = (1, WINDOWS, HEADS, TOKENS, TOKENS)


@pytest.mark.parametrize("op", ["Add", "Sub", "Mul", "Div"])
@pytest.mark.parametrize(
    ("inner", "operand"),
    [
        (INNER, (1, WINDOWS, 1, TOKENS, TOKENS)),
        (INNER, (WINDOWS, 1, 1, TOKENS)),
        (INNER, (TOKENS,)),
        ((WINDOWS, HEADS, 1, TOKENS, 1, TOKENS), (WINDOWS, 1, 1, TOKENS, 1, 1)),
    ],
)
@pytest.mark.parametrize("computed", [False, True])
def test_computes_the_same_bits(op: str, inner: tuple[int, ...], operand: tuple[int, ...], computed: bool) -> None:
    model = masked(inner=inner, operand=operand, op=op, computed=computed)
    rewritten = arithmetic_without_reshapes(model)
    assert [n.op_type for n in rewritten.graph if n.name in {"before", "after"}] == []
    assert [n.op_type for n in rewritten.graph].count("Reshape") == computed  # of the operand alone
    x = np.random.default_rng(1).uniform(1, 2, (WINDOWS, HEADS, TOKENS, TOKENS)).astype(np.float32)
    np.testing.assert_array_equal(run(rewritten, x), run(model, x))


@pytest.mark.parametrize(
    "model",
    [
        masked(inner=(2, 3, HEADS, TOKENS, TOKENS), operand=(1, 3, 1, TOKENS, TOKENS)),
        masked(inner=INNER, operand=(4, WINDOWS, HEADS, TOKENS, TOKENS)),
        masked(inner=(-1, WINDOWS, HEADS, TOKENS, TOKENS), operand=(1, WINDOWS, 1, TOKENS, TOKENS), first="n"),
        masked(inner=(WINDOWS, HEADS * TOKENS, TOKENS), operand=(HEADS * TOKENS, TOKENS)),
    ],
    ids=["several images", "the operand has images of its own", "images of any number", "axes are joined"],
)
def test_leaves_alone(model: Model) -> None:
    assert arithmetic_without_reshapes(model) is model
