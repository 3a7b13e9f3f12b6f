"""What an engine runs in integers, as data: rules by operation, variants of placement, facts with their source."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType

import onnx_ir as ir

from fptq.graph import query
from fptq.numerics import QuantizerSpec

Condition = Callable[[ir.Node], str | None]
"""Why a node does not qualify for an integer kernel, or None when it does."""


class Family(StrEnum):
    """Groups of operations that a variant quantizes together."""

    CORE = "core"  # products with a stored weight
    PRODUCT = "product"  # products of two activations (attention)
    NORM = "norm"  # inputs of normalisations
    ADD = "add"  # inputs of residual additions
    CONCAT = "concat"  # inputs of concatenations


@dataclass(frozen=True, kw_only=True)
class Fact:
    """Something that was learned about an engine, and where."""

    says: str
    source: str
    version: str


class WeightAxis(StrEnum):
    """Along which channels the stored weights of an operation have their scales."""

    OUTPUT = "output"
    INPUT = "input"


@dataclass(frozen=True, kw_only=True)
class Rule:
    """How one operation is quantized.

    Attributes:
        op: The ONNX operation.
        family: Which variants quantize it.
        activations: Indices of the inputs that get a quantizer.
        weight: Index of the stored weight; None for operations without one.
        weight_axis: Along which channels that weight has its scales, where it has several.
        spares: Operations one of whose results is read in float, where nobody else reads it: the kernel that makes it
            adds the other operands before it rounds.
        quantizes_output: The integer kernel exists only when the result is quantized too.
        fused: Operations that the kernel absorbs before it quantizes its result.
        int32_bias: The kernel wants its bias as int32 codes.
        zero_point_free: The integer kernel exists only for activations whose zero point is code 0.
        conditions: What a node must satisfy; the first reason given refuses it.
    """

    op: str
    family: Family
    activations: tuple[int, ...] = (0,)
    weight: int | None = None
    weight_axis: WeightAxis = WeightAxis.OUTPUT
    spares: frozenset[str] = frozenset()
    quantizes_output: bool = False
    fused: frozenset[str] = frozenset()
    int32_bias: bool = False
    zero_point_free: bool = False
    conditions: tuple[Condition, ...] = ()

    def quantized_inputs(self, node: ir.Node) -> Sequence[int]:
        """Indices of the inputs of a node that get a quantizer: of a Concat all, however many it has."""
        return range(len(node.inputs)) if self.family is Family.CONCAT else self.activations


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One way to place quantizers; which one is fastest depends on the network and the machine."""

    name: str
    families: frozenset[Family]
    activation: QuantizerSpec


@dataclass(frozen=True, kw_only=True)
class PolicyCost:
    """A way to quantize an activation that one scale does not fit, and what it costs on an engine.

    Attributes:
        policy: Its name (see `fptq.recipes.policies`).
        overhead: Time that a product takes more with it, as a share, apart from the multiplications that it gains:
            a guess that saves trials; what is kept has been timed.
        source: How that was found.
    """

    policy: str
    overhead: float
    source: str


STORED_WEIGHTS: Mapping[str, int] = MappingProxyType({"Conv": 1, "ConvTranspose": 1, "Gemm": 1, "MatMul": 1})
"""Operations whose weight every engine takes behind a DequantizeLinear, and the index of that input."""


@dataclass(frozen=True, kw_only=True)
class Profile:
    """An engine on a kind of processor.

    Attributes:
        engine: Name of the engine.
        weight: Quantizer of stored weights; its granularity says per tensor or per output channel.
        rules: One for each operation that has an integer kernel.
        variants: Placements worth measuring, the most accurate first.
        unsigned_behind: Operations behind which a signed quantizer must not stand.
        signed_only: Activations have signed codes with zero point 0, whatever their values are.
        transparent: Operations that pass codes through unchanged: a quantizer behind them moves in front of them.
        writes_float: Operations whose float kernel cannot write codes: no quantizer moves to their result.
        passes: Names of the rewrites that the engine gains by (see `fptq.rewrite`).
        policies: What is offered for activations that one scale does not fit.
        facts: Why the rules are what they are.
    """

    engine: str
    weight: QuantizerSpec
    rules: tuple[Rule, ...]
    variants: tuple[Variant, ...]
    transparent: frozenset[str] = frozenset()
    writes_float: frozenset[str] = frozenset()
    unsigned_behind: frozenset[str] = frozenset()
    signed_only: bool = False
    passes: tuple[str, ...] = ()
    policies: tuple[PolicyCost, ...] = ()
    facts: tuple[Fact, ...] = ()

    def rule_for(self, node: ir.Node) -> Rule | None:
        """The rule whose shape fits a node: with a stored weight, or with activations only."""
        for rule in self.rules:
            if rule.op == node.op_type and _fits(rule, node):
                return rule
        return None


def _fits(rule: Rule, node: ir.Node) -> bool:
    needed = max((*rule.activations, rule.weight or 0))
    if len(node.inputs) <= needed:
        return False
    computed = all(_is_computed(node.inputs[index]) for index in rule.quantized_inputs(node))
    return computed and (rule.weight is None or query.is_weight(node.inputs[rule.weight]))


def _is_computed(value: ir.Value | None) -> bool:
    """Whether a value is an activation: real numbers that the network computes, not a stored tensor or a shape."""
    if value is None or query.is_weight(value):
        return False
    return value.dtype is None or value.dtype.is_floating_point()


def channel_axis(node: ir.Node, rank: int) -> int:
    """The axis of a weight that runs over output channels.

    A ConvTranspose stores `[C_in, C_out / group, *S]`: groups share the scales of axis 1.
    """
    match node.op_type:
        case "ConvTranspose":
            return 1
        case "MatMul":
            return rank - 1
        case "Gemm":
            return 0 if node.attributes.get_int("transB", 0) else 1
        case _:
            return 0


def scale_axis(node: ir.Node, rank: int, along: WeightAxis) -> int:
    """The axis of a weight that has a scale for every entry."""
    return input_axis(node, rank) if along is WeightAxis.INPUT else channel_axis(node, rank)


def input_axis(node: ir.Node, rank: int) -> int:
    """The axis of a weight that runs over input channels (of one group)."""
    match node.op_type:
        case "ConvTranspose":
            return 0
        case "MatMul":
            return rank - 2
        case "Gemm":
            return 1 - channel_axis(node, rank)
        case _:
            return 1


def spared_operand(node: ir.Node, rule: Rule) -> int | None:
    """The index of the operand that the kernel which computes it adds to the others; of several the one made last."""
    made = {index: _sole_maker(node, index) for index in rule.activations}
    products = {index: maker for index, maker in made.items() if maker is not None and maker.op_type in rule.spares}
    if not products or node.graph is None:
        return None
    order = {other: at for at, other in enumerate(node.graph)}
    return max(products, key=lambda index: order[products[index]])


def _sole_maker(node: ir.Node, index: int) -> ir.Node | None:
    """What computes an operand that nobody else reads."""
    value = node.inputs[index]
    return value.producer() if value is not None and query.sole_reader(value) is node else None
