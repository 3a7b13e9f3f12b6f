"""float32 networks with half-precision arithmetic written into the graph, for engines that take types as they stand.

A strongly typed engine computes every operation in the type that the file gives it: int8 where Q/DQ pairs say so, half
where tensors are float16. Inputs and outputs of the network keep their types; Casts stand behind and before them.

Source: ONNX operator schemas (which inputs may be float16), IEEE 754 binary16.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

from fptq.errors import ModelError
from fptq.graph import query
from fptq.graph.rest import drop_unread
from fptq.types import Array

NORMALISATIONS = frozenset(
    {
        "BatchNormalization",
        "GroupNormalization",
        "InstanceNormalization",
        "LayerNormalization",
        "LpNormalization",
        "MeanVarianceNormalization",
        "RMSNormalization",
        "ReduceMean",
        "ReduceL2",
        "ReduceSum",
        "ReduceSumSquare",
    }
)
"""Sums over many values, whose squares leave the range of half precision early."""

_FLOAT, _HALF = ir.DataType.FLOAT, ir.DataType.FLOAT16
_DTYPE_ATTRIBUTES = ("to", "dtype", "output_dtype")
_LARGEST = float(np.finfo(np.float16).max)
_EXACT_ENOUGH = 2.0**-9
"""Largest relative error of a stored scalar or scale: four times that of normal half-precision numbers."""


def halved(model: ir.Model, *, single: frozenset[str] = NORMALISATIONS) -> ir.Model:
    """A copy of a network that computes in float16 wherever the operation takes it.

    Weights beyond the range of float16 saturate. An operation stays in float32 where its schema has no float16, or
    where a stored scalar or a quantizer's scale is too small to be told in half precision.

    Args:
        model: The network; it is not changed.
        single: Operations that stay in float32.

    Raises:
        ModelError: An operation has subgraphs.
    """
    changed = model.clone()
    if any(output.dtype is None for node in changed.graph for output in node.outputs if output.name):
        changed = ShapeInferencePass()(changed).model
    casts = _Casts(graph=changed.graph)
    for node in list(changed.graph):
        _refuse_subgraphs(node)
        if _stays_single(node, single, changed.opset_imports):
            _read_all(node, casts, _FLOAT)
        else:
            _halve(node, casts, changed.opset_imports)
    _restore_outputs(changed.graph)
    drop_unread(changed.graph)
    return changed


@dataclass(frozen=True, kw_only=True)
class _Casts:
    """Values in the other precision, made once each."""

    graph: ir.Graph
    made: dict[tuple[str, ir.DataType], ir.Value] = field(default_factory=dict)

    def of(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        """The value in a precision: itself, a converted stored tensor, or behind a Cast."""
        if value.dtype == dtype or value.dtype not in (_FLOAT, _HALF):
            return value
        key = (str(value.name), dtype)
        if key not in self.made:
            stored = query.constant(value)
            self.made[key] = self._cast(value, dtype) if stored is None else self._stored(value, stored)
        return self.made[key]

    def _stored(self, value: ir.Value, content: Array) -> ir.Value:
        name = f"{value.name}_half"
        made = ir.val(name, const_value=ir.tensor(_saturated(content), name=name))
        self.graph.register_initializer(made)
        return made

    def _cast(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        kind = "half" if dtype == _HALF else "single"
        node = ir.node("Cast", [value], {"to": int(dtype)}, name=f"{value.name}_to_{kind}")
        producer = value.producer()
        if producer is not None:
            self.graph.insert_after(producer, node)
        else:
            self.graph.insert_before(self.graph[0], node)
        output = node.outputs[0]
        output.name, output.shape, output.dtype = f"{value.name}_{kind}", value.shape, dtype
        return output


def _saturated(content: Array) -> Array:
    """Half-precision numbers; finite ones stay finite."""
    finite = np.isfinite(content)
    clipped = np.where(finite, np.clip(content, -_LARGEST, _LARGEST), content)
    return np.asarray(clipped, dtype=np.float16)


def _refuse_subgraphs(node: ir.Node) -> None:
    if any(attr.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for attr in node.attributes.values()):
        raise ModelError(
            f"node {node.name!r} ({node.op_type}) has a subgraph",
            rule="half precision is written into flat graphs only",
            remedy="Compile it with float_precision='f32'",
        )


def _stays_single(node: ir.Node, single: frozenset[str], opsets: dict[str, int]) -> bool:
    if node.op_type in single:
        return True
    takes_float = [index for index, value in enumerate(node.inputs) if value is not None and value.dtype == _FLOAT]
    if takes_float and not any(_takes_half(node, index, opsets) for index in takes_float):
        return True
    return any(_is_lost(value) for value in node.inputs)


def _is_lost(value: ir.Value | None) -> bool:
    """Whether a stored scalar, or one of a quantizer's scales, is too small for half precision."""
    content = query.constant(value)
    if value is None or content is None or content.dtype != np.float32:
        return False
    quantizes = any(reader.op_type in ("QuantizeLinear", "DequantizeLinear") for reader, _ in query.readers(value))
    if content.size > 1 and not quantizes:
        return False
    there = content[np.isfinite(content) & (content != 0) & (np.abs(content) <= _LARGEST)].astype(np.float64)
    return bool(there.size) and float(np.max(np.abs(_saturated(there) - there) / np.abs(there))) > _EXACT_ENOUGH


def _takes_half(node: ir.Node, index: int, opsets: dict[str, int]) -> bool:
    """Whether the schema of an operation lets an input be float16."""
    schema = onnx.defs.get_schema(node.op_type, opsets.get(node.domain, 1), node.domain)
    formal = schema.inputs[min(index, len(schema.inputs) - 1)]
    return "tensor(float16)" in formal.types


def _read_all(node: ir.Node, casts: _Casts, dtype: ir.DataType) -> None:
    for index, value in enumerate(node.inputs):
        if value is not None:
            node.replace_input_with(index, casts.of(value, dtype))


def _halve(node: ir.Node, casts: _Casts, opsets: dict[str, int]) -> None:
    for index, value in enumerate(node.inputs):
        if value is not None and value.dtype in (_FLOAT, _HALF):
            # Sizes of a Resize, say, are float32 beside a half-precision image.
            node.replace_input_with(index, casts.of(value, _HALF if _takes_half(node, index, opsets) else _FLOAT))
    for name, attribute in list(node.attributes.items()):
        if name in _DTYPE_ATTRIBUTES and attribute.type is ir.AttributeType.INT and attribute.as_int() == int(_FLOAT):
            node.attributes[name] = ir.AttrInt64(name, int(_HALF))
        elif attribute.type is ir.AttributeType.TENSOR and attribute.as_tensor().dtype == _FLOAT:
            tensor = ir.tensor(_saturated(attribute.as_tensor().numpy()), name=attribute.as_tensor().name)
            node.attributes[name] = ir.AttrTensor(name, tensor)
    for output in node.outputs:
        if output.dtype == _FLOAT:
            output.type = ir.TensorType(_HALF)  # a new object: clones share theirs


def _restore_outputs(graph: ir.Graph) -> None:
    """The network's outputs under their names, in float32."""
    for at, output in enumerate(graph.outputs):
        if output.dtype != _HALF:
            continue
        name = str(output.name)
        output.name = f"{name}_half"
        node = ir.node("Cast", [output], {"to": int(_FLOAT)}, name=f"{name}_to_single")
        graph.append(node)
        cast = node.outputs[0]
        cast.name, cast.shape, cast.dtype = name, output.shape, _FLOAT
        graph.outputs[at] = cast
