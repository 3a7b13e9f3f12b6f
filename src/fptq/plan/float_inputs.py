"""Quantizers in front of what engines compute in float: for a study, and for hardware that has integers alone.

They bring an engine nothing: it dequantizes, and computes as before. What they cost in accuracy is what such hardware
would pay.
Source: the placements of PTQ4Protein (Peng et al. 2023, arXiv 2310.19624): the input of every Linear, LayerNorm,
Softmax, ReLU and Sigmoid.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from types import MappingProxyType

import onnx_ir as ir

from fptq.errors import ConfigError
from fptq.graph import query
from fptq.graph.model import Model
from fptq.graph.placement import Placement
from fptq.numerics import QuantizerSpec
from fptq.plan.place import names_of
from fptq.plan.plan import Plan, Refusal
from fptq.plan.policy import Policy

FLOAT_INPUTS: Mapping[str, frozenset[str]] = MappingProxyType(
    {
        "layernorm": frozenset({"LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization"}),
        "softmax": frozenset({"Softmax", "LogSoftmax"}),
        "activation": frozenset({"Relu", "Gelu", "Sigmoid", "Tanh", "Elu", "HardSwish", "Mish", "Swish"}),
    }
)
"""Operations by the kind that `also_quantize` names."""

_SPEC = QuantizerSpec(signed=False, symmetric=False)
_MASKS = frozenset({"Add", "Where"})


def with_float_inputs(model: Model, plan: Plan, kinds: Iterable[str], *, policy: Policy | None = None) -> Plan:
    """A plan with quantizers in front of nodes that it keeps in float; their refusals say that this is without gain.

    Attention scores are quantized before a mask is added to them: minus infinity has no code. Left out are inputs that
    have a quantizer already, nodes that the policy keeps in float, and activations that the layer before absorbs.

    Args:
        model: The network of the plan.
        plan: What `place` made for it.
        kinds: Keys of `FLOAT_INPUTS`.
        policy: Widths and signs.

    Raises:
        ConfigError: The network has no node of a kind.
    """
    policy, specs, reasons = policy or Policy(), dict(plan.specs), dict[str, Refusal]()
    for kind in kinds:
        found = list(_nodes(model, plan, kind, policy))
        if not found:
            raise ConfigError(
                f"no input of the kind {kind!r} can be quantized",
                rule=f"it stands for inputs of {', '.join(sorted(FLOAT_INPUTS[kind]))} that are float",
                remedy="`fptq inspect` lists the nodes of the network",
            )
        for node, placement in found:
            specs[placement] = policy.activation(_SPEC)
            reader = query.node_named(model.graph_model, str(placement.consumer))
            reasons[str(reader.name)] = _without_gain(reader, node, plan.engine)
    kept = (refusal for refusal in plan.refusals if refusal.node not in reasons)
    return replace(plan, specs=specs, refusals=(*kept, *reasons.values()))


def quantized_for_float(plan: Plan) -> tuple[Placement, ...]:
    """The quantized inputs of nodes that a plan keeps in float, in its order."""
    refused = {refusal.node for refusal in plan.refusals}
    return tuple(placement for placement in plan.activations if placement.consumer in refused)


def _nodes(model: Model, plan: Plan, kind: str, policy: Policy) -> Iterator[tuple[ir.Node, Placement]]:
    for node in model.graph:
        if node.op_type not in FLOAT_INPUTS[kind] or (policy.wants(names_of(model, node)) or "").startswith("float"):
            continue
        placement = _before_mask(node)
        if not _absorbed(node, plan) and placement not in plan.specs and not _is_stored(node.inputs[0]):
            yield node, placement


def _before_mask(node: ir.Node) -> Placement:
    """Where the input of a node is quantized: in front of the mask, where one is added to or put over a product."""
    value = node.inputs[0]
    assert value is not None
    mask = value.producer()
    if mask is not None and mask.op_type in _MASKS:
        for index, operand in enumerate(mask.inputs):
            if operand is not None and query.attention_product(operand) is not None:
                return Placement(str(operand.name), str(mask.name), index)
    return Placement(str(value.name), str(node.name), 0)


def _absorbed(node: ir.Node, plan: Plan) -> bool:
    """Whether an integer kernel computes a node: a layer that quantizes its own result behind it."""
    return node.op_type == "Relu" and Placement(str(node.outputs[0].name)) in plan.specs


def _is_stored(value: ir.Value | None) -> bool:
    return query.constant(value) is not None


def _without_gain(reader: ir.Node, node: ir.Node, engine: str) -> Refusal:
    where = "" if reader is node else f" of {node.op_type}, before the mask,"
    reason = f"its input{where} is quantized without gain: {engine} computes {reader.op_type} in float"
    return Refusal(node=str(reader.name), op=reader.op_type, reason=reason)
