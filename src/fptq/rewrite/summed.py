"""Several regions for what an engine reads in float: the parts are quantized apart, and their sum is read.

`x ~ q1(clip(x)) + q2(x - clip(x))` is the piecewise-linear quantizer of `fptq.numerics.piecewise`, bit by bit, where no
product with one weight can take the sum upon itself: in front of a LayerNormalization or a Softmax.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

import onnx_ir as ir

from fptq.graph import query
from fptq.graph.placement import Placement
from fptq.numerics import Branch, PerTensor, PiecewiseParams, PiecewiseSpec, QuantizerSpec, branches
from fptq.plan.encoding import Encoding
from fptq.plan.float_inputs import quantized_for_float
from fptq.plan.plan import Plan
from fptq.rewrite.draft import Draft
from fptq.rewrite.parts import PartsWriter


@dataclass(frozen=True, kw_only=True)
class FloatInput:
    """An activation that nodes kept in float read quantized; other readers are none of its business.

    Attributes:
        value: Its name.
        placements: Where they read it.
        spec: The quantizer that they share.
    """

    value: str
    placements: tuple[Placement, ...]
    spec: QuantizerSpec


def float_inputs(plan: Plan) -> tuple[FloatInput, ...]:
    """The activations of a plan that can be cut so: with a scale of their own, in the plan's order."""
    found: dict[str, list[Placement]] = defaultdict(list)
    for placement in quantized_for_float(plan):
        if plan.specs[placement].granularity == PerTensor() and len(plan.tied(placement)) == 1:
            found[placement.value].append(placement)
    return tuple(
        FloatInput(value=value, placements=tuple(placements), spec=plan.specs[placements[0]])
        for value, placements in found.items()
        if len({plan.specs[placement] for placement in placements}) == 1
    )


def sum_regions(draft: Draft, encoding: Encoding, *, cut: FloatInput, params: PiecewiseParams) -> Encoding:
    """Cut an activation into the parts of its regions, with a quantizer for each of them.

    The float network computes the same, but for the rounding of two additions. Names of nodes and values stay.

    Args:
        draft: The float network; changed in place.
        encoding: Its quantizers.
        cut: What is cut, one of `float_inputs`.
        params: Numbers of two regions or more, per tensor.
    """
    parts = PartsWriter(draft=draft, value=cut.value, readers=[str(p.consumer) for p in cut.placements])
    terms = branches(PiecewiseSpec(region=cut.spec, regions=len(params.regions)), params)
    added = _write(parts, cut, terms)
    plan = encoding.plan
    specs = {placement: spec for placement, spec in plan.specs.items() if placement not in cut.placements}
    specs |= dict.fromkeys(added, cut.spec)
    numbers = {**encoding.params, **dict(zip(added, params.regions, strict=True))}
    return replace(
        encoding, plan=replace(plan, specs=specs), params={placement: numbers[placement] for placement in specs}
    )


def _write(parts: PartsWriter, cut: FloatInput, terms: Sequence[Branch]) -> list[Placement]:
    """Cut, add up, let the readers read the sum; where the parts are read, from the centre outwards."""
    rest = query.values(parts.changed)[cut.value]
    pieces: list[ir.Value] = []
    for number, term in enumerate(terms[:-1], 1):
        bounds = parts.bounds(term.low, term.high, f"_region{number}")
        pieces.append(parts.clipped(rest, bounds, f"region{number}"))
        rest = parts.beyond(rest, bounds, f"beyond{number}")
    total, *others = [*pieces, rest]
    places: list[Placement] = []
    for number, part in enumerate(others, 1):
        operands = (total, part)
        total = parts.part("Add", operands, "sum" if number == len(others) else f"sum{number}", like=total)
        adder = str(total.producer().name)  # type: ignore[union-attr]
        first = 0 if number == 1 else 1  # later additions read a sum, which has no quantizer
        places += [Placement(str(operands[at].name), adder, at) for at in range(first, 2)]
    for placement in cut.placements:
        query.node_named(parts.changed, str(placement.consumer)).replace_input_with(placement.index or 0, total)
    return places
