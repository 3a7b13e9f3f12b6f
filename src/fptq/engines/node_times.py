"""What an engine's own nodes ran as and took, by the nodes of the network."""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir as ir

from fptq.engines.base import NodeRun
from fptq.graph import query
from fptq.graph.model import Model

_FUSED = 4
"""Nodes that engines fuse behind a layer, at most, itself included."""


def slowest_runs(runs: Iterable[NodeRun]) -> dict[str, NodeRun]:
    """The engine node that computed each ONNX node: the slowest, where several carry its name."""
    found: dict[str, NodeRun] = {}
    for run in runs:
        for name in run.nodes:
            if name not in found or run.time_ms > found[name].time_ms:
                found[name] = run
    return found


def node_times(model: Model, runs: Iterable[NodeRun]) -> dict[str, float]:
    """An engine's times by the nodes of a network [ms].

    Engines call what they fuse by one of its nodes or by the value that leaves it (ONNX Runtime after a change of
    layout): a node without a time of its own has that of the next one behind it that has one.

    Args:
        model: The network.
        runs: A profile of it, or of its Q/DQ form.
    """
    makers = {str(value.name): str(node.name) for node in model.graph for value in node.outputs}
    found = {makers.get(name, name): run.time_ms for name, run in slowest_runs(runs).items()}
    for node in model.graph:
        behind: ir.Node | None = node
        for _ in range(_FUSED):
            if behind is None or str(behind.name) in found:
                break
            behind = query.sole_reader(behind.outputs[0])
        if behind is not None and str(behind.name) in found:
            found.setdefault(str(node.name), found[str(behind.name)])
    return found
