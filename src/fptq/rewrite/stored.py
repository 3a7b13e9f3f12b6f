"""Stored tensors: a new one for a graph, another content for one of the readers."""

from __future__ import annotations

import onnx_ir as ir

from fptq.graph import query
from fptq.types import Array


def stored_once(graph: ir.Graph, name: str, content: Array) -> ir.Value:
    """A stored tensor of a graph, made where none has this name."""
    if name not in graph.initializers:
        graph.register_initializer(ir.val(name, const_value=ir.tensor(content, name=name)))
    return graph.initializers[name]


def write_stored(changed: ir.Model, node: ir.Node, index: int, content: Array, *, label: str) -> None:
    """Give a node another content of a stored input, in the type that it has.

    The node gets a copy where others read the tensor too, as exporters share equal ones.

    Args:
        changed: The network, changed in place.
        node: The reader.
        index: Which of its inputs, a stored one.
        content: In the shape of the old one.
        label: Part of the name of a copy.
    """
    value = node.inputs[index]
    old = query.constant(value)
    assert value is not None
    assert old is not None
    shared = len(query.readers(value)) > 1
    name = f"{node.name}_{label}_{index}" if shared else str(value.name)
    tensor = ir.tensor(content.astype(old.dtype), name=name)
    if not shared:
        value.const_value = tensor
        return
    own = ir.val(name, const_value=tensor)
    changed.graph.register_initializer(own)
    node.replace_input_with(index, own)
