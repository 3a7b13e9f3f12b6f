"""Small files that try what the TensorRT profile states: axes of weight scales, skip branches, ranks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

SIDE = {2: 32, 3: 16}


def fact_files(folder: Path) -> list[str]:
    """Write the files; their names say what they hold and, last, what float operations run in."""
    names = []
    for rank in (2, 3):
        for op, axes in (("Conv", (0,)), ("ConvTranspose", (0, 1, None))):
            for axis in axes:
                for precision in ("f32", "f16"):
                    name = f"{op} {rank}-D, {'one scale' if axis is None else f'axis {axis}'},{precision}"
                    onnx.save(_product(op, rank, axis), folder / f"{name}.onnx")
                    names.append(name)
    return names


def _product(op: str, rank: int, axis: int | None) -> onnx.ModelProto:
    """A quantized product between quantized convolutions, so that it can write and read codes."""
    rng = np.random.default_rng(rank)
    nodes: list[onnx.NodeProto] = []
    stored: list[onnx.TensorProto] = []
    source = "x"
    for at, (kind, along, size) in enumerate((("Conv", 0, 3), (op, axis, 3 if op == "Conv" else 2), ("Conv", 0, 3))):
        weight = rng.standard_normal((32, 32) + (size,) * rank).astype(np.float32) * 0.5 / size ** (rank / 2) / 5.6
        weight *= rng.uniform(0.2, 2.0, (32, 32) + (1,) * rank).astype(np.float32)
        _quantized(nodes, stored, at, source, weight, along)
        strided = {"strides": [2] * rank} if kind == "ConvTranspose" else {"pads": [1] * 2 * rank}
        nodes.append(helper.make_node(kind, [f"a{at}", f"w{at}"], [f"c{at}"], name=f"{kind}_{at}", **strided))
        nodes.append(helper.make_node("Relu", [f"c{at}"], [f"r{at}"], name=f"Relu_{at}"))
        source = f"r{at}"
    shape = (1, 32) + (SIDE[rank],) * rank
    graph = helper.make_graph(
        nodes,
        "fact",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(source, TensorProto.FLOAT, None)],
        stored,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    return onnx.shape_inference.infer_shapes(model)


def _quantized(
    nodes: list[onnx.NodeProto],
    stored: list[onnx.TensorProto],
    at: int,
    source: str,
    weight: np.ndarray,
    axis: int | None,
) -> None:
    others = tuple(other for other in range(weight.ndim) if other != axis)
    scale = (np.abs(weight).max(axis=others if axis is not None else None) / 127).astype(np.float32)
    along = [1] * weight.ndim
    if axis is not None:
        along[axis] = scale.size
    codes = np.clip(np.rint(weight / scale.reshape(along)), -127, 127).astype(np.int8)
    content = {
        f"w{at}q": codes,
        f"w{at}s": scale,
        f"w{at}z": np.zeros(scale.shape, np.int8),
        f"a{at}s": np.float32(0.03 if at == 0 else 0.01),
        f"a{at}z": np.int8(0),
    }
    stored += [numpy_helper.from_array(np.asarray(array), name) for name, array in content.items()]
    axes = {} if axis is None else {"axis": axis}
    numbers = [f"a{at}s", f"a{at}z"]
    nodes += [
        helper.make_node("DequantizeLinear", [f"w{at}q", f"w{at}s", f"w{at}z"], [f"w{at}"], **axes),
        helper.make_node("QuantizeLinear", [source, *numbers], [f"a{at}q"]),
        helper.make_node("DequantizeLinear", [f"a{at}q", *numbers], [f"a{at}"]),
    ]
