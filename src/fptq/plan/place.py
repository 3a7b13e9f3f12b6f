"""Put quantizers where an engine's integer kernels expect them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase

import onnx_ir as ir

from fptq.errors import ConfigError, ModelError
from fptq.graph import query
from fptq.graph.model import Model
from fptq.graph.placement import Placement
from fptq.numerics import PerChannel, PerTensor, QuantizerSpec
from fptq.plan.hoist import hoisted
from fptq.plan.plan import Plan, Refusal
from fptq.plan.policy import Policy
from fptq.plan.profile import STORED_WEIGHTS, Family, Profile, Rule, Variant, WeightAxis, scale_axis, spared_operand
from fptq.plan.ties import agreed, ties_of


def place(model: Model, profile: Profile, variant: Variant, policy: Policy | None = None) -> Plan:
    """The plan that a variant of a profile makes of a model.

    Raises:
        ModelError: No node of the model can be quantized for this engine.
        ConfigError: A glob of the policy matches no node.
    """
    plan = survey(model, profile, variant, policy)
    if not plan.weights:
        raise _nothing(model, profile, plan.refusals)
    return plan


def survey(model: Model, profile: Profile, variant: Variant, policy: Policy | None = None) -> Plan:
    """The same plan, which may quantize nothing: its refusals say why.

    Raises:
        ConfigError: A glob of the policy matches no node.
    """
    policy = policy or Policy()
    _check_globs(model, policy)
    _check_signs(profile, policy)
    specs: dict[Placement, QuantizerSpec] = {}
    weights: set[Placement] = set()
    biases: set[str] = set()
    refusals: list[Refusal] = []
    for node in model.graph:
        rule = _verdict(model, node, profile, policy, variant)
        if isinstance(rule, Refusal):
            refusals.append(rule)
            continue
        asked = policy.activation(variant.activation)
        specs |= _activation_specs(node, rule, asked, profile if policy.symmetric is None else None)
        if rule.weight is not None:
            placement, spec = _weight_spec(node, rule.weight, profile, policy, rule.weight_axis)
            specs[placement] = spec
            weights.add(placement)
        if rule.int32_bias:
            biases.add(str(node.name))
    plan = Plan(
        engine=profile.engine,
        specs=hoisted(model, specs, profile),
        weights=frozenset(weights),
        int32_bias=frozenset(biases),
        refusals=tuple(refusals),
    )
    ties = tuple(ties_of(model, plan))
    return replace(plan, specs=agreed(plan.specs, ties), ties=ties)


def names_of(model: Model, node: ir.Node) -> tuple[str, ...]:
    """Every name a glob may use for a node: its own, its first output's, and those it had in the user's model."""
    return (str(node.name), str(node.outputs[0].name), *model.origin.get(str(node.name), ()))


def _verdict(model: Model, node: ir.Node, profile: Profile, policy: Policy, variant: Variant) -> Rule | Refusal:
    """The rule that quantizes a node, or the reason why it stays float."""
    name, op = str(node.name), node.op_type
    rule = profile.rule_for(node)
    if rule is None:
        reason = f"{op} is not in the profile of {profile.engine}"
        if op in profile.transparent:
            reason = f"{op} passes codes through; it needs no quantizer of its own"
        return Refusal(node=name, op=op, reason=reason)
    wanted = policy.wants(names_of(model, node))
    if wanted is not None and wanted.startswith("float"):
        return Refusal(node=name, op=op, reason=f"kept {wanted}")
    if rule.quantizes_output and _fused_output(node, rule).is_graph_output():
        reason = f"its result is an output of the network: {profile.engine}'s kernel would have to quantize it"
        return Refusal(node=name, op=op, reason=reason)
    if wanted is None:
        for condition in rule.conditions:
            if (failed := condition(node)) is not None:
                return Refusal(node=name, op=op, reason=failed)
    if rule.family not in variant.families or not _worth_it(node, rule, profile):
        return Refusal(node=name, op=op, reason=f"inputs of {op} stay float in the placement {variant.name!r}")
    return rule


def _worth_it(node: ir.Node, rule: Rule, profile: Profile) -> bool:
    """Element-wise operations are quantized between integer neighbours only: elsewhere Q/DQ is pure cost."""
    if rule.family in (Family.CORE, Family.PRODUCT):
        return True
    neighbours = [reader for output in node.outputs for reader, _ in _readers_through(output, profile.transparent)]
    return any(profile.rule_for(neighbour) is not None for neighbour in neighbours) or rule.family is Family.NORM


def _readers_through(value: ir.Value, transparent: frozenset[str]) -> Iterator[tuple[ir.Node, int]]:
    """Readers of a value, looking through activations and operations that keep codes."""
    for node, index in query.readers(value):
        yield node, index
        if node.op_type in transparent | {"Relu", "LeakyRelu", "PRelu", "Clip"}:
            yield from _readers_through(node.outputs[0], transparent)


def _activation_specs(
    node: ir.Node, rule: Rule, spec: QuantizerSpec, profile: Profile | None
) -> dict[Placement, QuantizerSpec]:
    spared = spared_operand(node, rule)
    specs = {
        Placement(_named(node, index), str(node.name), index): _fitting(node.inputs[index], rule, spec, profile)
        for index in rule.quantized_inputs(node)
        if index != spared
    }
    if rule.quantizes_output:
        specs[Placement(str(_fused_output(node, rule).name))] = spec
    return specs


def _fitting(value: ir.Value | None, rule: Rule, spec: QuantizerSpec, profile: Profile | None) -> QuantizerSpec:
    """The variant's quantizer, with the sign that the value and the kernel ask for; without a profile as it is.

    A value that is never negative wastes half of a signed range, and its unsigned zero point is 0 anyway.
    """
    assert value is not None
    if profile is None or profile.signed_only:
        return spec
    unsigned = replace(spec, signed=False, symmetric=False)
    if _never_negative(value, profile.transparent):
        return unsigned
    if rule.zero_point_free:
        return replace(spec, signed=True, symmetric=True)
    producer = value.producer()
    return unsigned if producer is not None and producer.op_type in profile.unsigned_behind else spec


_NEVER_NEGATIVE = frozenset({"Relu", "Sigmoid", "Softmax", "Abs", "Exp", "Sqrt", "Softplus"})
_KEEP_SIGNS = frozenset({"Add", "Concat", "Mul", "Max", "Min"})


def _never_negative(value: ir.Value | None, transparent: frozenset[str]) -> bool:
    """Whether a value cannot be negative by construction: made by a ReLU, or from such values and constants only."""
    stored = query.constant(value)
    if stored is not None:
        return bool((stored >= 0).all())
    node = value.producer() if value is not None else None
    if node is None:
        return False
    if node.op_type == "Where":  # attention of a row that is masked as a whole: softmax, or 0 where that is NaN
        return all(_never_negative(source, transparent) for source in node.inputs[1:])
    if node.op_type in transparent:
        return _never_negative(node.inputs[0], transparent)
    if node.op_type in _KEEP_SIGNS:
        return all(_never_negative(source, transparent) for source in node.inputs)
    return node.op_type in _NEVER_NEGATIVE


def _named(node: ir.Node, index: int) -> str:
    value = node.inputs[index]
    assert value is not None
    return str(value.name)


def _fused_output(node: ir.Node, rule: Rule) -> ir.Value:
    """The value that leaves the kernel: behind the activation that it absorbs."""
    output = node.outputs[0]
    reader = query.sole_reader(output)
    return reader.outputs[0] if reader is not None and reader.op_type in rule.fused else output


def _weight_spec(
    node: ir.Node, index: int, profile: Profile, policy: Policy, along: WeightAxis = WeightAxis.OUTPUT
) -> tuple[Placement, QuantizerSpec]:
    value = node.inputs[index]
    assert value is not None
    axis = scale_axis(node, query.rank(value) or 0, along)
    granularity = PerChannel(axis=axis) if policy.per_channel else PerTensor()
    spec = profile.weight.with_bits(policy.weight_bits).with_granularity(granularity)
    return Placement(str(value.name), str(node.name), index), spec


def _check_globs(model: Model, policy: Policy) -> None:
    for pattern in policy.precision:
        if not any(fnmatchcase(name, pattern) for node in model.graph for name in names_of(model, node)):
            raise ConfigError(
                f"{pattern!r} matches no node",
                rule="globs run over ONNX node names and PyTorch module paths",
                remedy="`fptq inspect` lists them",
            )


def _check_signs(profile: Profile, policy: Policy) -> None:
    if profile.signed_only and policy.symmetric is False:
        raise ConfigError(
            "symmetric = false asks for activations with a zero point",
            rule=f"{profile.engine} takes signed codes with zero point 0 only",
            remedy="Leave the option out",
        )


def _nothing(model: Model, profile: Profile, refusals: Sequence[Refusal]) -> ModelError:
    ops = sorted({node.op_type for node in model.graph})
    first = next((r for r in refusals if profile.engine not in r.reason), None)
    why = f"{first.node} ({first.op}): {first.reason}" if first else f"its operations are {', '.join(ops)}"
    return ModelError(
        f"nothing in this model can be quantized for {profile.engine}",
        rule=f"{why}",
        remedy="Try another engine, or see `fptq inspect`",
    )


def place_weights(model: Model, profile: Profile, policy: Policy | None = None) -> Plan:
    """A plan that stores weights as integers and computes in float: smaller files where int8 kernels do not pay.

    Layers that the user keeps in float are left out; the requirements of integer kernels do not matter here.
    """
    policy = policy or Policy()
    specs: dict[Placement, QuantizerSpec] = {}
    for node in model.graph:
        index = STORED_WEIGHTS.get(node.op_type)
        asked = policy.wants(names_of(model, node))
        if (
            index is None
            or not query.is_weight(node.inputs[index])
            or (asked is not None and asked.startswith("float"))
        ):
            continue
        placement, spec = _weight_spec(node, index, profile, policy)
        specs[placement] = spec
    return Plan(engine=profile.engine, specs=specs, weights=frozenset(specs))
