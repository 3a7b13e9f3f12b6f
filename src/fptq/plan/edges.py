"""The first and the last layers of a network, which low-bit settings leave at eight bits.

Published tables name two settings that differ by three points for a ResNet-18 at W2A2, so that a number without its
setting says little:

- "qdrop" (Wei et al. 2022, arXiv 2203.05740): weights of the first and the last layer, and the input of the last one.
- "brecq" (Li et al. 2021, arXiv 2102.05426): the same, and the output of the first layer.

The network's own inputs keep eight bits in both.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import onnx_ir as ir

from fptq.graph import query
from fptq.graph.model import Model
from fptq.graph.placement import Placement
from fptq.plan.plan import Plan
from fptq.plan.profile import STORED_WEIGHTS

Setting = Literal["qdrop", "brecq"]
WIDE = 8


@dataclass(frozen=True, kw_only=True)
class Edges:
    """Placements at the two ends of a network.

    Attributes:
        inputs: Activations that no weight has touched.
        first: Weights of layers that no other layer feeds.
        after_first: Activations that nothing but first layers feed.
        last: Weights of layers that feed no other layer, and what these read.
    """

    inputs: frozenset[Placement]
    first: frozenset[Placement]
    after_first: frozenset[Placement]
    last: frozenset[Placement]

    def wide(self, setting: Setting) -> frozenset[Placement]:
        """What keeps eight bits."""
        always = self.inputs | self.first | self.last
        return always | self.after_first if setting == "brecq" else always


def edges_of(model: Model, plan: Plan) -> Edges:
    """The ends of a network, among a plan's placements: a layer that stays float can be its last one, too."""
    weighted = {str(node.name) for node in model.graph if _has_weight(node)}
    nearest = _nearest(model, weighted)
    fed = {name: _sources(node, nearest) for node in model.graph if (name := str(node.name)) in weighted}
    first = {name for name, sources in fed.items() if not sources}
    last = weighted - set().union(*fed.values())
    inputs = frozenset(p for p in plan.activations if not nearest[p.value])
    return Edges(
        inputs=inputs,
        first=frozenset(p for p in plan.weights if p.consumer in first),
        after_first=frozenset(p for p in plan.activations if nearest[p.value] and nearest[p.value] <= first),
        last=frozenset(p for p in plan.specs if p.consumer in last),
    )


def _has_weight(node: ir.Node) -> bool:
    index = STORED_WEIGHTS.get(node.op_type)
    return index is not None and query.is_weight(node.inputs[index])


def _nearest(model: Model, weighted: set[str]) -> dict[str, frozenset[str]]:
    """For every value the layers from which it is computed with no other layer in between."""
    nearest: dict[str, frozenset[str]] = dict.fromkeys(query.values(model.graph_model), frozenset())
    for node in model.graph:
        name = str(node.name)
        found = frozenset({name}) if name in weighted else _sources(node, nearest)
        nearest |= {str(value.name): found for value in node.outputs}
    return nearest


def _sources(node: ir.Node, nearest: dict[str, frozenset[str]]) -> frozenset[str]:
    return frozenset().union(*(nearest[str(value.name)] for value in node.inputs if value is not None))
