"""Stored tensors that repeat the same few columns, as the columns and an index.

Exporters fold what a network looks up by constants: the relative position bias of a window of 343 tokens, 2197 rows of
a table, becomes 117649 of them for every block. A file of int8 weights is half again as large by that. Engines look
up once, when they load the file.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from fptq.graph import query
from fptq.graph.model import Model
from fptq.rewrite.stored import stored_once
from fptq.types import Array

_LEAST_SIZE = 1 << 16
"""Smaller tensors [elements] are not worth two nodes."""
_LEAST_GAIN = 8
"""At least so many columns for each different one."""
_READERS = frozenset({"Add", "Sub", "Mul", "Div"})
"""Weights of products are none of this: they are stored as integers."""


@dataclass(frozen=True, kw_only=True)
class _Columns:
    """A stored tensor as its different columns.

    Attributes:
        value: The tensor.
        table: f32[*lead, count], the different columns in the order in which they first appear.
        index: i32[columns].
    """

    value: ir.Value
    table: Array
    index: Array


def repeated_columns_gathered(model: Model) -> Model:
    """The model with every large stored operand that repeats its columns as a Gather from the different ones.

    The result is equal bit by bit.

    Args:
        model: A canonical model.

    Returns:
        The rewritten model; the same model when no stored tensor repeats itself so much.
    """
    changed = model.clone()
    stored = list(changed.graph.initializers.values())
    found = [columns for value in stored if (columns := _columns(value)) is not None]
    if not found:
        return model
    indices: dict[bytes, ir.Value] = {}
    for columns in found:
        _rewrite(changed.graph, columns, indices)
    return model.with_graph(changed)


def _columns(value: ir.Value) -> _Columns | None:
    dims = query.static_shape(value)
    read = {node.op_type for node, _ in query.readers(value)}
    if dims is None or math.prod(dims) < _LEAST_SIZE or not read or not read <= _READERS or value.is_graph_output():
        return None
    content = query.constant(value)
    if content is None or content.dtype != np.float32:
        return None
    for axis in range(len(dims) - 1, 0, -1):
        columns = content.reshape(math.prod(dims[:axis]), -1)
        limit = columns.shape[1] // _LEAST_GAIN
        if limit == 0 or len(np.unique(columns[0])) > limit:
            continue
        table, index = _different(columns)
        if table.shape[1] <= limit:
            return _Columns(value=value, table=table.reshape(*dims[:axis], -1), index=index)
    return None


def _different(columns: Array) -> tuple[Array, Array]:
    """The different columns in the order of their first appearance, and which of them stands where.

    Columns are told apart by their bits, so that 0 and -0 are two.
    """
    bits = np.ascontiguousarray(columns.T).view(np.uint32)
    _, first, inverse = np.unique(bits, axis=0, return_index=True, return_inverse=True)
    order = np.argsort(first)
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    return columns[:, first[order]], rank[inverse.reshape(-1)].astype(np.int32)


def _rewrite(graph: ir.Graph, columns: _Columns, indices: dict[bytes, ir.Value]) -> None:
    """Store the table and the index, once for all tensors that repeat alike, and look up in front of the readers."""
    value, name = columns.value, str(columns.value.name)
    dims = query.static_shape(value)
    assert dims is not None
    key = columns.index.tobytes()
    if key not in indices:
        indices[key] = stored_once(graph, f"{name}_columns", columns.index)
    table = stored_once(graph, f"{name}_table", columns.table)
    shape = stored_once(graph, f"{name}_shape", np.asarray(dims, np.int64))
    gather = ir.node("Gather", [table, indices[key]], {"axis": columns.table.ndim - 1}, name=f"{name}_gather")
    reshape = ir.node("Reshape", [gather.outputs[0], shape], name=f"{name}_reshape")
    gather.outputs[0].name, reshape.outputs[0].name = f"{name}_gathered", f"{name}_repeated"
    gather.outputs[0].shape = ir.Shape((*columns.table.shape[:-1], columns.index.size))
    reshape.outputs[0].shape = ir.Shape(dims)
    gather.outputs[0].dtype = reshape.outputs[0].dtype = ir.DataType.FLOAT
    graph.insert_before(graph[0], [gather, reshape])
    value.replace_all_uses_with(reshape.outputs[0])
    del graph.initializers[name]
