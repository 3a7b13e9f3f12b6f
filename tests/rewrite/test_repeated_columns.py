from __future__ import annotations

import itertools

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx_ir.passes.common import ShapeInferencePass

from fptq.graph.model import Model
from fptq.rewrite.repeated_columns import repeated_columns_gathered

HEADS, SIDE = 3, 6
TOKENS = SIDE**3


def position_bias(seed: int) -> NDArray[np.float32]:
    """A relative position bias of windows of 6^3 tokens, looked up as Liu et al. 2021 (arXiv 2103.14030) do."""
    places = np.array(list(itertools.product(range(SIDE), repeat=3)))
    moves = places[:, None] - places[None] + SIDE - 1
    index = moves @ np.array([(2 * SIDE - 1) ** 2, 2 * SIDE - 1, 1])
    table = np.random.default_rng(seed).standard_normal(((2 * SIDE - 1) ** 3, HEADS)).astype(np.float32)
    return np.ascontiguousarray(table[index].transpose(2, 0, 1)[None])


def network(op: str, *contents: NDArray[np.float32], shape: tuple[int, ...]) -> Model:
    """A network that combines its input with stored tensors, one after the other."""
    x = ir.val("x", dtype=ir.DataType.FLOAT, shape=ir.Shape(shape))
    stored = [ir.val(f"w{at}", const_value=ir.tensor(c, name=f"w{at}")) for at, c in enumerate(contents)]
    nodes: list[ir.Node] = []
    for value in stored:
        nodes.append(ir.node(op, [nodes[-1].outputs[0] if nodes else x, value], name=f"node_{value.name}"))
        nodes[-1].outputs[0].name = f"with_{value.name}"
    outputs = [nodes[-1].outputs[0]]
    outputs[0].dtype = ir.DataType.FLOAT
    graph = ir.Graph([x], outputs, nodes=nodes, initializers=stored, opset_imports={"": 21}, name="g")
    return Model(graph_model=ShapeInferencePass()(ir.Model(graph, ir_version=10)).model)


def added(*contents: NDArray[np.float32]) -> Model:
    return network("Add", *contents, shape=(1, HEADS, TOKENS, TOKENS))


def run(model: Model) -> np.ndarray:
    x = np.random.default_rng(1).standard_normal((1, HEADS, TOKENS, TOKENS)).astype(np.float32)
    proto = ir.to_proto(model.graph_model).SerializeToString()
    return np.asarray(ort.InferenceSession(proto).run(None, {"x": x})[0])


def stored(model: Model) -> dict[str, tuple[int, ...]]:
    return {str(v.name): tuple(v.const_value.shape.numpy()) for v in model.graph.initializers.values() if v.const_value}


def test_a_position_bias_is_its_table_and_one_index_for_all_blocks() -> None:
    model = added(position_bias(0), position_bias(1))
    rewritten = repeated_columns_gathered(model)
    shapes = list(stored(rewritten).values())
    assert shapes.count((TOKENS**2,)) == 1
    assert shapes.count((1, HEADS, (2 * SIDE - 1) ** 3)) == 2
    np.testing.assert_array_equal(run(rewritten), run(model))


def test_signs_of_zeros_are_kept() -> None:
    content = np.zeros((1, HEADS, TOKENS, TOKENS), np.float32)
    content[..., ::2] = -0.0
    rewritten = repeated_columns_gathered(added(content))
    table = next(v for v in rewritten.graph.initializers.values() if str(v.name).endswith("_table")).const_value
    assert table is not None
    assert np.signbit(table.numpy()).reshape(-1, 2).tolist() == [[True, False]] * HEADS * TOKENS


@pytest.mark.parametrize(
    "content",
    [
        np.random.default_rng(0).standard_normal((1, HEADS, TOKENS, TOKENS)).astype(np.float32),
        np.zeros((1, 1, 1, TOKENS), np.float32),
        np.zeros((), np.float32),
    ],
    ids=["no columns repeat", "a small tensor", "a scalar"],
)
def test_leaves_alone(content: NDArray[np.float32]) -> None:
    model = added(content)
    assert repeated_columns_gathered(model) is model


def test_weights_of_products_stay_stored() -> None:
    model = network("MatMul", np.ones((512, 512), np.float32), shape=(1, 512))
    assert repeated_columns_gathered(model) is model
