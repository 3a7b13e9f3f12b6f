"""Arithmetic between two Reshapes that only insert axes of size 1, without the Reshapes.

A mask that differs between the windows of an image is added to scores `[N * windows, heads, T, T]` as
`[N, windows, heads, T, T]`. For one image both are the same numbers in the same order. The Reshapes cost nothing by
themselves, but engines look for MatMul - Add - Softmax - MatMul, which one kernel computes without storing the scores.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

import numpy as np
import onnx_ir as ir

from fptq.graph import query
from fptq.graph.model import Model
from fptq.graph.rest import drop_unread
from fptq.rewrite.stored import stored_once

_ARITHMETIC = frozenset({"Add", "Sub", "Mul", "Div"})


@dataclass(frozen=True, kw_only=True)
class _Between:
    """An operation between two Reshapes.

    Attributes:
        before: The Reshape in front of it.
        node: The operation.
        after: The Reshape behind it.
        index: Which of its inputs is the other operand.
        shape: What the other operand looks like without the inserted axes.
    """

    before: ir.Node
    node: ir.Node
    after: ir.Node
    index: int
    shape: tuple[int, ...]


def arithmetic_without_reshapes(model: Model) -> Model:
    """The model with every element-wise operation between a Reshape and its inverse at the shape of the source.

    Only where all sizes are known and the Reshapes insert and remove axes of size 1. The result is equal bit by bit.

    Args:
        model: A canonical model.

    Returns:
        The rewritten model; the same model when there is no such operation.
    """
    changed = model.clone()
    origin = dict(model.origin)
    found = [between for node in changed.graph if (between := _between(node)) is not None]
    for between in found:
        reshapes = (str(between.before.name), str(between.after.name))
        names = dict.fromkeys(old for name in reshapes for old in origin.pop(name, ()))
        origin |= {str(new.name): tuple(names) for new in _rewrite(changed.graph, between)[:-1]}
    if not found:
        return model
    drop_unread(changed.graph)
    return replace(model, graph_model=changed, origin=MappingProxyType(origin))


def _between(node: ir.Node) -> _Between | None:
    """The operation between Reshapes that a node is, if it is one."""
    if node.op_type not in _ARITHMETIC or node.domain:
        return None
    after = query.sole_reader(node.outputs[0])
    for index, value in enumerate(node.inputs):
        before = value.producer() if value is not None and query.sole_reader(value) is node else None
        if before is None or after is None or before.op_type != "Reshape" or after.op_type != "Reshape":
            continue
        source, inner = query.static_shape(before.inputs[0]), query.static_shape(value)
        result, back = query.static_shape(node.outputs[0]), query.static_shape(after.outputs[0])
        other = query.static_shape(node.inputs[1 - index])
        if source is None or inner is None or other is None or result != inner or back != source:
            continue
        shape = _without_inserted(other, inner, source)
        if shape is not None:
            return _Between(before=before, node=node, after=after, index=1 - index, shape=shape)
    return None


def _without_inserted(other: Sequence[int], inner: Sequence[int], source: Sequence[int]) -> tuple[int, ...] | None:
    """An operand's shape without the axes of size 1 that `inner` has beyond `source`; None where it has others."""
    aligned = (*(1,) * (len(inner) - len(other)), *other)
    kept: list[int] = []
    for size, own in zip(inner, aligned, strict=True):
        if len(kept) < len(source) and size == source[len(kept)]:
            kept.append(own)
        elif size != 1:
            return None
    return tuple(kept) if len(kept) == len(source) else None


def _rewrite(graph: ir.Graph, between: _Between) -> list[ir.Node]:
    """Take the two Reshapes out, and give the other operand the shape that it now meets; the result keeps its name."""
    node, result = between.node, between.after.outputs[0]
    operand, made = _operand(graph, between)
    inputs = [between.before.inputs[0]] * 2
    inputs[between.index] = operand
    same = ir.node(node.op_type, inputs, name=node.name)
    old, new = [between.after, node, between.before], [*made, same]
    ir.convenience.replace_nodes_and_values(graph, between.after, old, new, [result], same.outputs)
    return new


def _operand(graph: ir.Graph, between: _Between) -> tuple[ir.Value, list[ir.Node]]:
    """The other operand without the inserted axes: stored so, or behind a Reshape."""
    other = between.node.inputs[between.index]
    assert other is not None
    name = f"{other.name}_at_{'x'.join(map(str, between.shape))}"
    content = query.constant(other)
    if content is not None:
        return stored_once(graph, name, content.reshape(between.shape)), []
    shape = stored_once(graph, f"{name}_shape", np.asarray(between.shape, np.int64))
    reshape = ir.node("Reshape", [other, shape], name=f"{between.node.name}_operand")
    moved = reshape.outputs[0]
    moved.name, moved.shape = f"{between.node.name}_operand", ir.Shape(between.shape)
    if other.dtype is not None:
        moved.dtype = other.dtype
    return moved, [reshape]
