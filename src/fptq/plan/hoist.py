"""Quantizers move in front of operations that keep codes, and back where one of several readers is float."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from fptq.graph import query
from fptq.graph.model import Model
from fptq.graph.placement import Placement
from fptq.numerics import QuantizerSpec
from fptq.plan.plan import Plan
from fptq.plan.profile import Profile


def hoisted(model: Model, specs: Mapping[Placement, QuantizerSpec], profile: Profile) -> dict[Placement, QuantizerSpec]:
    """Quantizers moved in front of operations that keep codes, which then run on integers too.

    Only where every reader behind the operation asks for the same quantizer, and no float kernel would have to write
    codes that cannot; and not a signed one: ONNX Runtime 1.32 spreads moved pairs, makes signed ones unsigned, and then
    refuses what it wrote (opset 21). OpenVINO and TensorRT move quantizers themselves.
    """
    moved = dict(specs)
    integer = {placement.consumer for placement in specs}
    for node in reversed(list(model.graph)):
        if node.op_type not in profile.transparent or node.outputs[0].is_graph_output():
            continue
        maker = _maker(node, profile.transparent)
        if maker is not None and maker.op_type in profile.writes_float and maker.name not in integer:
            continue
        behind = _behind(node)
        asked = {moved.get(placement) for placement in behind}
        if len(asked) == 1 and (spec := asked.pop()) is not None and not spec.signed:
            for placement in behind:
                del moved[placement]
            moved[_in_front(node)] = spec
    return moved


def if_readers_leave(model: Model, plan: Plan, profile: Profile) -> Plan:
    """The quantizers behind operations that keep codes, where they move back to when one of several readers is float.

    Args:
        model: The network of the plan.
        plan: What `place` made for it.
        profile: The engine.
    """
    specs: dict[Placement, QuantizerSpec] = {}
    moved = {p: s for p, s in plan.specs.items() if p not in plan.weights}
    for node in model.graph:
        spec = moved.get(_in_front(node)) if node.op_type in profile.transparent else None
        if spec is None:
            continue
        behind = _behind(node)
        moved |= dict.fromkeys(behind, spec)
        specs |= dict.fromkeys(behind if len(behind) > 1 else (), spec)
    return Plan(engine=plan.engine, specs=specs)


def _maker(node: ir.Node, transparent: frozenset[str]) -> ir.Node | None:
    """What computed the values that a node and others in front of it only hand on; None for an input."""
    before = node.inputs[0].producer() if node.inputs[0] is not None else None
    return _maker(before, transparent) if before is not None and before.op_type in transparent else before


def _in_front(node: ir.Node) -> Placement:
    """Where a node reads its first input."""
    value = node.inputs[0]
    assert value is not None
    return Placement(str(value.name), str(node.name), 0)


def _behind(node: ir.Node) -> list[Placement]:
    """Where its result is read."""
    value = node.outputs[0]
    return [Placement(str(value.name), str(reader.name), index) for reader, index in query.readers(value)]
