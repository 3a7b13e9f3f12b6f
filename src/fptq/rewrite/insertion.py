"""Write nodes into a draft, between an activation and the nodes that read it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from fptq.rewrite.draft import Draft
from fptq.rewrite.stored import stored_once
from fptq.types import Array


@dataclass(kw_only=True)
class Insertion:
    """A draft that gets nodes in front of others and behind them.

    Attributes:
        draft: The network.
        readers: Names of the nodes that are served: what new nodes come from, for the user.
    """

    draft: Draft
    readers: Sequence[str]

    @property
    def changed(self) -> ir.Model:
        """The graph that is written into."""
        return self.draft.changed

    def op(self, op: str, inputs: Sequence[ir.Value], name: str, *, like: ir.Value, **attributes: int) -> ir.Value:
        """The result of a new node, right behind the last of what it works on; of the type and shape of `like`."""
        node = ir.node(op, inputs, attributes, name=f"{name}_{op}")
        makers, graph = {value.producer() for value in inputs}, self.changed.graph
        last = next((before for before in reversed(list(graph)) if before in makers), None)
        if last is not None:
            graph.insert_after(last, node)
        else:
            graph.insert_before(graph[0], node)
        found = node.outputs[0]
        found.name, found.shape = name, like.shape
        if like.dtype is not None:
            found.dtype = like.dtype
        self.trace(node)
        return found

    def stored(self, name: str, content: Array) -> ir.Value:
        """A stored tensor, made once for each name."""
        return stored_once(self.changed.graph, name, content)

    def trace(self, *nodes: ir.Node) -> None:
        """New nodes come from what the user calls the readers."""
        origin = self.draft.origin
        sources = (name for reader in self.readers for name in origin.get(reader, ()))
        origin.update(dict.fromkeys((str(node.name) for node in nodes), tuple(dict.fromkeys(sources))))
