"""Half-precision models become float32: what is analysed and calibrated is the exact network, not its rounding."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx_ir as ir

HALF = frozenset({ir.DataType.FLOAT16, ir.DataType.BFLOAT16})

_DTYPE_ATTRIBUTES = ("to", "dtype", "stash_type", "softmax_precision")


def widen(model: ir.Model) -> frozenset[str]:
    """Turn every float16 and bfloat16 tensor into float32, in place.

    Casts between the two become casts from float32 to float32, which canonicalisation removes. Weights in external
    files are widened when they are read.

    Returns:
        The names of the dtypes that were there.
    """
    found: set[ir.DataType] = set()
    for graph in model.graphs():
        for value in _values(graph):
            if value.dtype in HALF:
                found.add(value.dtype)
                # A new type object: clones share theirs.
                value.type = ir.TensorType(ir.DataType.FLOAT)
            if value.const_value is not None and value.const_value.dtype in HALF:
                found.add(value.const_value.dtype)
                value.const_value = _widened(value.const_value)
                value.type = ir.TensorType(ir.DataType.FLOAT)
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        found.update(_widen_attributes(node))
    return frozenset(dtype.name.lower() for dtype in found)


def _values(graph: ir.Graph) -> Iterable[ir.Value]:
    yield from graph.inputs
    yield from graph.initializers.values()
    for node in graph:
        yield from node.outputs


def _widen_attributes(node: ir.Node) -> Iterable[ir.DataType]:
    for name, attribute in list(node.attributes.items()):
        if attribute.type is ir.AttributeType.TENSOR and attribute.as_tensor().dtype in HALF:
            tensor = attribute.as_tensor()
            node.attributes[name] = ir.AttrTensor(name, _widened(tensor))
            yield tensor.dtype
        elif name in _DTYPE_ATTRIBUTES and attribute.type is ir.AttributeType.INT:
            dtype = ir.DataType(attribute.as_int())
            if dtype in HALF:
                node.attributes[name] = ir.AttrInt64(name, ir.DataType.FLOAT)
                yield dtype


def _widened(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    def read() -> ir.TensorProtocol:
        return ir.Tensor(tensor.numpy().astype(np.float32), name=tensor.name)

    if not isinstance(tensor, ir.ExternalTensor):
        return read()
    return ir.LazyTensor(read, dtype=ir.DataType.FLOAT, shape=tensor.shape, name=tensor.name)
