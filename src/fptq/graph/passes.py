"""The few rewrites that onnx_ir's and onnxscript's passes lack."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from fptq.graph import query

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
