"""The arithmetic limit of a convolutional network: its multiplications at the processor's peak int8 rate."""

from __future__ import annotations

import tempfile
from math import prod
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from measure import OPENVINO_F32, latencies

SIDE, CHANNELS, LAYERS = 16, 256, 4
"""Of the stack that shows the peak. Of the shapes tried (matrix products of 256 to 4096 rows, 1x1x1 and 3x3x3
convolutions of 64 to 1024 channels) this one ran fastest, close to what the processor's clock allows."""


def convolution_macs(path: Path) -> int:
    """Multiply-accumulate operations of all (transposed) convolutions of a network of fixed shape."""
    model = onnx.shape_inference.infer_shapes(onnx.load(path))
    values = [*model.graph.input, *model.graph.value_info, *model.graph.output]
    shapes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in values}
    shapes |= {weight.name: list(weight.dims) for weight in model.graph.initializer}
    total = 0
    for node in model.graph.node:
        if node.op_type in {"Conv", "ConvTranspose"}:
            # A weight element meets every output position of a convolution, every input position of a transposed one.
            meets = node.output[0] if node.op_type == "Conv" else node.input[0]
            total += prod(shapes[node.input[1]]) * prod(shapes[meets][2:])
    return total


def peak_int8_macs_per_s() -> float:
    """The rate of a stack of large int8 convolutions in OpenVINO [multiply-accumulates / s]."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "stack.onnx"
        onnx.save(_stack(), path)
        session = OPENVINO_F32.compile(path)
        feeds = {"x": np.random.default_rng(0).random((1, CHANNELS, *[SIDE] * 3), dtype=np.float32)}
        found = latencies({"": session}, feeds, rounds=15, seconds=30)[""]
        return convolution_macs(path) / (found.median_ms / 1e3)


def _stack() -> onnx.ModelProto:
    generator = np.random.default_rng(0)
    stored = {"step": np.float32(1 / 255), "zero": np.uint8(0), "small": np.full(CHANNELS, 1e-5, np.float32)}
    nodes, x = [], "x"
    for index in range(LAYERS):
        q, a, w, y = (f"{kind}{index}" for kind in ("q", "a", "w", "y"))
        stored[f"codes{index}"] = generator.integers(-127, 128, (CHANNELS, CHANNELS, 3, 3, 3)).astype(np.int8)
        nodes += [
            helper.make_node("QuantizeLinear", [x, "step", "zero"], [q]),
            helper.make_node("DequantizeLinear", [q, "step", "zero"], [a]),
            helper.make_node("DequantizeLinear", [f"codes{index}", "small"], [w], axis=0),
            helper.make_node("Conv", [a, w], [y], pads=[1] * 6),
        ]
        x = y
    shape = (1, CHANNELS, *[SIDE] * 3)
    graph = helper.make_graph(
        nodes,
        "stack",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(x, TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in stored.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
