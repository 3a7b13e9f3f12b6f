"""Placements that share one quantizer, so that joining codes needs no arithmetic."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

from fptq.graph.model import Model
from fptq.graph.placement import Placement
from fptq.numerics import QuantizerSpec
from fptq.plan.plan import Plan


def ties_of(model: Model, plan: Plan) -> Iterator[frozenset[Placement]]:
    """Inputs and result of a Concat share a scale, so that joining codes needs no arithmetic."""
    by_value: dict[str, set[Placement]] = defaultdict(set)
    by_consumer: dict[str, set[Placement]] = defaultdict(set)
    for placement in plan.activations:
        by_value[placement.value].add(placement)
        if placement.consumer is not None:
            by_consumer[placement.consumer].add(placement)
    groups: list[set[Placement]] = []
    for node in model.graph:
        joined = by_consumer.get(str(node.name), set())
        if node.op_type != "Concat" or len(joined) < 2:
            continue
        group = set(joined)
        for value in (*(p.value for p in joined), str(node.outputs[0].name)):
            group |= by_value[value]
        groups.append(group)
    yield from (frozenset(group) for group in _merged(groups) if len(group) > 1)


def agreed(
    specs: Mapping[Placement, QuantizerSpec], ties: Sequence[frozenset[Placement]]
) -> dict[Placement, QuantizerSpec]:
    """One quantizer for each tie: an unsigned one if any member asks for it, for it covers every range."""
    agreed = dict(specs)
    for tie in ties:
        asked = [specs[placement] for placement in sorted(tie)]
        chosen = next((spec for spec in asked if not spec.signed), asked[0])
        agreed |= dict.fromkeys(tie, chosen)
    return agreed


def _merged(groups: Sequence[set[Placement]]) -> list[set[Placement]]:
    """Unions of the groups that overlap."""
    merged: list[set[Placement]] = []
    for group in groups:
        touching = [other for other in merged if other & group]
        merged = [other for other in merged if not other & group]
        merged.append(group.union(*touching))
    return merged
