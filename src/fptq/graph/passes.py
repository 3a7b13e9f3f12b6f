"""The few rewrites that onnx_ir's and onnxscript's passes lack."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from fptq.graph import query
from fptq.types import Array

_FOLDED_INTO = frozenset({"Conv", "ConvTranspose", "Gemm"})


class NoEffectPass(ir.passes.InPlacePass):
    """Turns every Pad that adds nothing and every Reshape to the same shape into Identity."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        idle = [node for node in model.graph if _pads_nothing(node) or _keeps_shape(node)]
        for node in idle:
            node.op_type = "Identity"
            node.resize_inputs(1)
            node.attributes.clear()
        return ir.passes.PassResult(model, modified=bool(idle))


def channel_arithmetic_as_batch_norm(model: ir.Model) -> None:
    """Write a stored factor or offset per channel behind a convolution or Gemm as a BatchNormalization, in place.

    Exporters of other frameworks write biases and folded norms as Add and Mul; so they fold into the weights too.
    """
    for node in list(model.graph):
        found = _channel_arithmetic(node)
        if found is None:
            continue
        source, factor, offset = found
        parts = (factor, offset, np.zeros_like(factor), np.ones_like(factor))
        inputs = [source]
        for part, content in zip(("factor", "offset", "mean", "variance"), parts, strict=True):
            value = ir.val(f"{node.name}_{part}", const_value=ir.Tensor(content, name=f"{node.name}_{part}"))
            model.graph.register_initializer(value)
            inputs.append(value)
        norm = ir.node("BatchNormalization", inputs, {"epsilon": 0.0}, name=node.name)
        ir.convenience.replace_nodes_and_values(model.graph, node, [node], [norm], node.outputs, norm.outputs)


def _channel_arithmetic(node: ir.Node) -> tuple[ir.Value, Array, Array] | None:
    """What an Add, Sub, Mul or Div does to the channels of the layer before it: source, factor, offset."""
    if node.op_type not in {"Add", "Sub", "Mul", "Div"} or node.domain:
        return None
    first, second = node.inputs
    swapped = query.constant(first) is not None
    source, stored = (second, first) if swapped else (first, second)
    layer = None if source is None else _layer_behind(source, node)
    if source is None or layer is None or not _foldable(layer):
        return None
    channels, rank = _channels(layer), query.rank(source)
    content = query.constant(stored)
    if content is None or content.dtype != np.float32 or channels is None or rank is None or content.ndim > rank:
        return None
    per_axis = (1,) * (rank - content.ndim) + content.shape
    if any(size != 1 for axis, size in enumerate(per_axis) if axis != 1) or per_axis[1] not in {1, channels}:
        return None
    vector, ones = np.broadcast_to(content.reshape(-1), channels).copy(), np.ones(channels, np.float32)
    match node.op_type, swapped:
        case "Add", _:
            return source, ones, vector
        case "Sub", False:
            return source, ones, -vector
        case "Sub", True:
            return source, -ones, vector
        case "Mul", _:
            return source, vector, 0 * ones
        case "Div", False if vector.all():
            return source, ones / vector, 0 * ones
    return None


def _layer_behind(source: ir.Value, reader: ir.Node) -> ir.Node | None:
    """The node that computes a value only for this reader, seen through BatchNormalizations."""
    maker = source.producer()
    if maker is None or query.sole_reader(source) is not reader:
        return None
    if maker.op_type == "BatchNormalization" and maker.inputs[0] is not None:
        return _layer_behind(maker.inputs[0], maker)
    return maker


def _foldable(layer: ir.Node) -> bool:
    if layer.op_type not in _FOLDED_INTO or layer.domain:
        return False
    return all(value is None or query.constant(value) is not None for value in layer.inputs[1:])


def _channels(layer: ir.Node) -> int | None:
    weight = query.static_shape(layer.inputs[1])
    if weight is None:
        return None
    match layer.op_type:
        case "Conv":
            return weight[0]
        case "ConvTranspose":
            return weight[1] * (layer.attributes.get_int("group", 1) or 1)
        case _:
            return weight[0 if layer.attributes.get_int("transB", 0) else 1]


def unshare_folded_weights(model: ir.Model) -> Mapping[str, tuple[str, ...]]:
    """Give every convolution that a BatchNormalization follows weights of its own, in place.

    Folding leaves alone weights that several nodes read. The copies share their bytes until they are folded.

    Returns:
        The names of the copies by the name of what they are copies of, itself included.
    """
    copies: dict[str, tuple[str, ...]] = {}
    for node in model.graph:
        reader = query.sole_reader(node.outputs[0]) if node.op_type in _FOLDED_INTO and not node.domain else None
        if reader is None or reader.op_type != "BatchNormalization":
            continue
        for index, value in enumerate(node.inputs):
            if index == 0 or value is None or query.constant(value) is None or len(value.uses()) == 1:
                continue
            name = f"{value.name}_{len(copies.get(value.name or '', ())) + 1}"
            copy = ir.val(name, const_value=value.const_value)
            model.graph.register_initializer(copy)
            node.replace_input_with(index, copy)
            copies[value.name or ""] = (*copies.get(value.name or "", (value.name or "",)), name)
    return copies


def share_equal_weights(model: ir.Model, copies: Mapping[str, tuple[str, ...]]) -> None:
    """Undo the copies that turned out equal: a module called twice keeps one weight."""
    initializers = model.graph.initializers
    for names in copies.values():
        kept: list[ir.Value] = []
        for value in (initializers[name] for name in names if name in initializers):
            content = query.constant(value)
            twin = next((k for k in kept if np.array_equal(query.constant(k), content)), None)  # type: ignore[arg-type]
            if twin is None:
                kept.append(value)
            else:
                value.replace_all_uses_with(twin)
                del initializers[value.name or ""]


def _pads_nothing(node: ir.Node) -> bool:
    if node.op_type != "Pad" or node.domain:
        return False
    pads = query.constant(node.inputs[1])
    return pads is not None and not pads.any()


def _keeps_shape(node: ir.Node) -> bool:
    if node.op_type != "Reshape" or node.domain:
        return False
    before, after = query.shape(node.inputs[0]), query.shape(node.outputs[0])
    if before is None or after is None or len(before) != len(after):
        return False
    # The number of elements stays, so one axis follows from the others.
    same = sum(a is not None and a == b for a, b in zip(before, after, strict=True))
    return same >= len(before) - 1
