"""What TensorRT is given: a file whose float operations have the precision asked for, and what that file takes."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from fptq.errors import EngineError

if TYPE_CHECKING:
    import onnx

Shape: TypeAlias = list[int | str | None]
"""Sizes; open ones by name, or None."""

HALF = frozenset({"default", "f16"})
"""Requests that half precision is written into the graph for; TensorRT chooses no type by itself."""

_INT8 = 3
"""`TensorProto.INT8`."""


@contextmanager
def typed(file: Path, float_precision: str) -> Iterator[Path]:
    """The file, or one beside it whose float operations compute in half precision."""
    if float_precision not in HALF:
        yield file
        return
    # The graph library takes a second to import, which a file of float32 does not need.
    from fptq.graph.half import halved
    from fptq.graph.load import read_onnx
    from fptq.graph.write import save

    with tempfile.TemporaryDirectory(prefix="fptq-") as folder:
        path = Path(folder) / file.name
        save(halved(read_onnx(file)), path)
        yield path


def inputs_of(model: Path) -> tuple[dict[str, Shape], frozenset[str]]:
    """Shapes by input, and the inputs of sizes that the file leaves open.

    Raises:
        EngineError: It is no ONNX file, or quantizes to unsigned codes.
    """
    import onnx

    try:
        graph = onnx.load(model, load_external_data=False).graph
    except Exception as error:  # protobuf's errors share no base class but Exception
        raise EngineError(f"TensorRT refuses {model.name}: it is no ONNX file") from error
    _refuse_unsigned(graph, model.name)
    weights = {tensor.name for tensor in graph.initializer}
    inputs: dict[str, Shape] = {}
    for value in graph.input:
        if value.name not in weights:
            sizes = value.type.tensor_type.shape.dim
            inputs[value.name] = [d.dim_value if d.HasField("dim_value") else d.dim_param or None for d in sizes]
    dynamic = frozenset(name for name, shape in inputs.items() if not all(isinstance(size, int) for size in shape))
    return inputs, dynamic


def _refuse_unsigned(graph: onnx.GraphProto, name: str) -> None:
    """TensorRT reads unsigned codes as signed ones, with a warning, and saturates half of their range."""
    types = {tensor.name: tensor.data_type for tensor in graph.initializer}
    for node in graph.node:
        zero_point = node.input[2] if len(node.input) > 2 else ""
        if node.op_type == "QuantizeLinear" and types.get(zero_point) != _INT8:
            raise EngineError(
                f"{name}: {node.name or node.output[0]!r} quantizes to codes that are not signed 8-bit ones",
                rule="TensorRT takes int8 with zero point 0",
                remedy="Quantize for it with --engine tensorrt",
            )
