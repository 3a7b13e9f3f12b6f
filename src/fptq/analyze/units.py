"""What is decided together: a layer's weights and inputs, and everything that shares a scale with them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import onnx_ir as ir

from fptq.graph import query
from fptq.graph.model import Model
from fptq.graph.placement import Placement
from fptq.plan.plan import Plan


@dataclass(frozen=True, kw_only=True)
class Site:
    """Where the error of some placements first shows.

    Attributes:
        placements: The quantizers.
        inputs: Values that the site is computed from; the quantized value itself where no node reads it alone.
        output: The value in which the error is measured.
        channels: Its channel axis: the last one of matrix products and sequences, otherwise 1.
    """

    placements: frozenset[Placement]
    inputs: tuple[str, ...]
    output: str
    channels: int = 1


@dataclass(frozen=True, kw_only=True)
class Unit:
    """Placements that take one precision together.

    Attributes:
        name: The first of its nodes, or values.
        sites: Where its errors show.
        weights: Stored bytes are counted for these.
    """

    name: str
    sites: tuple[Site, ...]
    weights: frozenset[Placement]

    @property
    def placements(self) -> frozenset[Placement]:
        """All quantizers of the unit."""
        return frozenset(placement for site in self.sites for placement in site.placements)


def units_of(model: Model, plan: Plan) -> tuple[Unit, ...]:
    """The units of a plan, in the order of the graph."""
    sites = _sites(model, plan)
    groups = _tied(sites, [*plan.ties, *_kernels(model, plan)])
    return tuple(_unit(group, plan) for group in groups)


def split(units: Iterable[Unit]) -> tuple[Unit, ...]:
    """The units with weights and activations apart, for what only one of them does."""
    parts: list[Unit] = []
    for unit in units:
        for kind, chosen in (("weights", unit.weights), ("activations", unit.placements - unit.weights)):
            touched = (site for site in unit.sites if site.placements & chosen)
            sites = tuple(replace(site, placements=site.placements & chosen) for site in touched)
            if sites:
                parts.append(Unit(name=f"{unit.name} {kind}", sites=sites, weights=unit.weights & chosen))
    return tuple(parts)


def _sites(model: Model, plan: Plan) -> list[Site]:
    by_consumer: dict[str | None, list[Placement]] = defaultdict(list)
    for placement in plan.specs:
        by_consumer[placement.consumer].append(placement)
    order = {value.name: place for place, node in enumerate(model.graph) for value in node.outputs}
    sites = [(order.get(p.value, -1), _site(model, [p], (p.value,), p.value)) for p in by_consumer[None]]
    for place, node in enumerate(model.graph):
        if mine := by_consumer.get(str(node.name)):
            output = str(node.outputs[0].name)
            sites.append((place, _site(model, mine, _dynamic(model, node), output)))
    return [site for _, site in sorted(sites, key=lambda pair: pair[0])]


_ABSORBED = frozenset({"Relu", "Clip"})
_LAST, _FIRST = frozenset({"MatMul", "Gemm", "LayerNormalization"}), frozenset({"InstanceNormalization", "MaxPool"})


def _site(model: Model, placements: Iterable[Placement], inputs: tuple[str, ...], output: str) -> Site:
    value = query.values(model.graph_model)[output]
    producer = value.producer()
    op = producer.op_type if producer is not None else ""
    sequence = query.rank(value) == 3 and op not in query.CONVOLUTIONS | _FIRST
    channels = -1 if op in _LAST or sequence else 1
    return Site(placements=frozenset(placements), inputs=inputs, output=output, channels=channels)


def _dynamic(model: Model, node: ir.Node) -> tuple[str, ...]:
    """What a node reads that is not stored."""
    names = (str(value.name) for value in node.inputs if value is not None)
    return tuple(dict.fromkeys(name for name in names if name not in model.graph.initializers))


def _kernels(model: Model, plan: Plan) -> Iterator[frozenset[Placement]]:
    """A layer's quantizers and that of its result, where the kernel asks for one: it is an integer kernel with all."""
    for placement in plan.activations:
        node = query.values(model.graph_model)[placement.value].producer() if placement.consumer is None else None
        if node is not None and node.op_type in _ABSORBED and node.inputs[0] is not None:
            node = node.inputs[0].producer() or node
        if node is not None and (mine := [p for p in plan.specs if p.consumer == node.name]):
            yield frozenset({placement, *mine})


def _tied(sites: list[Site], ties: Sequence[frozenset[Placement]]) -> list[list[Site]]:
    """Sites merged that a tie connects, each group at the place of its first site."""
    groups: list[list[Site]] = []
    for site in sites:
        tied = site.placements.union(*(tie for tie in ties if tie & site.placements))
        joined = [group for group in groups if any(other.placements & tied for other in group)]
        merged = [other for group in joined for other in group] + [site]
        if joined:
            groups[groups.index(joined[0])] = merged
            groups = [group for group in groups if not any(group is other for other in joined)]
        else:
            groups.append(merged)
    return groups


def _unit(sites: list[Site], plan: Plan) -> Unit:
    placements = frozenset(placement for site in sites for placement in site.placements)
    names = (min(site.placements) for site in sites)
    first = next((p.consumer for p in names if p.consumer is not None), sites[0].output)
    return Unit(name=first, sites=tuple(sites), weights=placements & plan.weights)
