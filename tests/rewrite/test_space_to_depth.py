from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from fptq.graph.model import Model
from fptq.rewrite.space_to_depth import space_to_depth_stem


def conv_model(*, channels: int, size: tuple[int, ...], kernel: int, stride: int, pad: int) -> Model:
    rank = len(size)
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((5, channels, *[kernel] * rank)).astype(np.float32)
    bias = rng.standard_normal(5).astype(np.float32)
    x = ir.val("x", dtype=ir.DataType.FLOAT, shape=(2, channels, *size))
    w, b = (ir.val(n, const_value=ir.tensor(a, name=n)) for n, a in (("w", weight), ("b", bias)))
    node = ir.node(
        "Conv",
        [x, w, b],
        {"strides": [stride] * rank, "pads": [pad] * 2 * rank, "kernel_shape": [kernel] * rank},
        name="c",
    )
    result = [(n + 2 * pad - kernel) // stride + 1 for n in size]
    node.outputs[0].name, node.outputs[0].dtype = "y", ir.DataType.FLOAT
    node.outputs[0].shape = ir.Shape((2, 5, *result))
    graph = ir.Graph([x], node.outputs, nodes=[node], initializers=[w, b], opset_imports={"": 21}, name="g")
    return Model(graph_model=ir.Model(graph, ir_version=10))


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize(
    ("kernel", "stride", "pad"), [(7, 2, 3), (3, 2, 1), (4, 4, 0), (5, 3, 2), (2, 2, 0), (3, 2, 0)]
)
@pytest.mark.parametrize("channels", [1, 3])
def test_computes_the_same_sums(rank: int, kernel: int, stride: int, pad: int, channels: int, run) -> None:
    size = (12, 24, 12)[:rank]
    model = conv_model(channels=channels, size=size, kernel=kernel, stride=stride, pad=pad)
    rewritten = space_to_depth_stem(model)
    x = np.random.default_rng(1).standard_normal((2, channels, *size)).astype(np.float32)
    if rewritten is not model:
        assert [n.op_type for n in rewritten.graph] == ["Reshape", "Transpose", "Reshape", "Conv"]
        np.testing.assert_allclose(run(rewritten, x), run(model, x), rtol=1e-4, atol=1e-4)
    else:
        assert pad == 0
        assert kernel == 3  # the last rows are never read: the result would need a negative pad


@pytest.mark.parametrize(
    "options",
    [
        {"channels": 4, "size": (8, 8), "kernel": 3, "stride": 2, "pad": 1},
        {"channels": 1, "size": (9, 9), "kernel": 3, "stride": 2, "pad": 1},
        {"channels": 1, "size": (8, 8), "kernel": 3, "stride": 1, "pad": 1},
    ],
)
def test_leaves_alone_what_does_not_qualify(options: dict[str, object]) -> None:
    model = conv_model(**options)  # type: ignore[arg-type]
    assert space_to_depth_stem(model) is model


def test_two_convolutions_of_one_input_share_the_rearrangement(run) -> None:
    one = conv_model(channels=1, size=(8, 8), kernel=3, stride=2, pad=1)
    graph_model = one.clone()
    first = graph_model.graph.node(0)
    second = ir.node("Conv", list(first.inputs), dict(first.attributes), name="d")
    second.outputs[0].name, second.outputs[0].dtype, second.outputs[0].shape = (
        "z",
        ir.DataType.FLOAT,
        first.outputs[0].shape,
    )
    graph_model.graph.append(second)
    graph_model.graph.outputs.append(second.outputs[0])
    rewritten = space_to_depth_stem(one.with_graph(graph_model))
    assert [n.op_type for n in rewritten.graph] == ["Reshape", "Transpose", "Reshape", "Conv", "Conv"]
    x = np.random.default_rng(1).standard_normal((2, 1, 8, 8)).astype(np.float32)
    np.testing.assert_allclose(run(rewritten, x), run(one, x), rtol=1e-4, atol=1e-4)
