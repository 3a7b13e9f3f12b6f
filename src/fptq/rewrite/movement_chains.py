"""Nodes that do nothing but move numbers, from one value that they all stem from to one that is computed with."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from fptq.graph import query

IN_PLACE = frozenset({"Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity"})
"""Engines give the same memory another shape."""
COPYING = frozenset({"Slice", "Transpose", "Concat", "Gather"})


@dataclass(frozen=True, kw_only=True)
class Chain:
    """Nodes that only move numbers, from one value to another.

    Attributes:
        nodes: In order; nobody else reads what they compute, but for the last one's result.
        source: What they read.
        target: What comes out.
    """

    nodes: tuple[ir.Node, ...]
    source: ir.Value
    target: ir.Value

    @property
    def passes(self) -> int:
        """How many of them copy their input."""
        return sum(node.op_type in COPYING for node in self.nodes)


def chains(graph: ir.Graph) -> list[Chain]:
    """The chains that copy at least twice and do more than transpose: engines join Transposes by themselves."""
    moves = _moving_nodes(graph)
    found = []
    for node in graph:
        value = node.outputs[0]
        ends = value.is_graph_output() or any(reader not in moves for reader, _ in query.readers(value))
        chain = _chain_to(node, moves) if node in moves and ends else None
        if chain is not None and chain.passes > 1 and {n.op_type for n in chain.nodes} & (COPYING - {"Transpose"}):
            found.append(chain)
    return found


def _moving_nodes(graph: ir.Graph) -> frozenset[ir.Node]:
    """The nodes that only move the numbers of one value, a Concat among them where all its inputs stem from one."""
    roots: dict[ir.Value, ir.Value] = {}
    moves = set()
    for node in graph:
        data = node.inputs if node.op_type == "Concat" else node.inputs[:1]
        stems = {roots.get(value, value) for value in data if value is not None}
        says_how = all(value is None or query.constant(value) is not None for value in node.inputs[len(data) :])
        if node.op_type in IN_PLACE | COPYING and not node.domain and says_how and len(stems) == 1:
            stem = stems.pop()
            if query.constant(stem) is None:
                moves.add(node)
                roots[node.outputs[0]] = stem
    return frozenset(moves)


def _chain_to(last: ir.Node, moves: frozenset[ir.Node]) -> Chain | None:
    """The chain that ends with a node; None where it starts at several values."""
    members, waiting = {last}, list(last.inputs)
    while waiting:
        value = waiting.pop()
        node = value.producer() if value is not None else None
        if value is None or node not in moves or node in members or value.is_graph_output():
            continue
        if all(reader in members for reader, _ in query.readers(value)):
            members.add(node)
            waiting += node.inputs
    assert last.graph is not None
    nodes = tuple(node for node in last.graph if node in members)
    read = (value for node in nodes for value in node.inputs if value is not None and query.constant(value) is None)
    sources = {value for value in read if value.producer() not in members}
    if len(sources) != 1:
        return None
    return Chain(nodes=nodes, source=sources.pop(), target=last.outputs[0])
