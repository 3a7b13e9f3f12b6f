"""Write nodes into a clone of a model, between an activation and the nodes that read it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType

import onnx_ir as ir

from fptq.graph.model import Model
from fptq.graph.rest import put_to_rest
from fptq.types import Array


@dataclass(kw_only=True)
class Insertion:
    """A clone of a model that gets nodes in front of others and behind them.

    Attributes:
        model: What is cloned.
        readers: Names of the nodes that are served: what new nodes come from, for the user.
        changed: The clone.
        origin: What the user calls its nodes.
    """

    model: Model
    readers: Sequence[str]
    changed: ir.Model = field(init=False)
    origin: dict[str, tuple[str, ...]] = field(init=False)

    def __post_init__(self) -> None:
        self.changed = self.model.clone()
        self.origin = dict(self.model.origin)

    def finished(self) -> Model:
        """The model with the new nodes."""
        put_to_rest(self.changed)
        return replace(self.model, graph_model=self.changed, origin=MappingProxyType(self.origin))

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
        initializers = self.changed.graph.initializers
        if name not in initializers:
            self.changed.graph.register_initializer(ir.val(name, const_value=ir.tensor(content, name=name)))
        return initializers[name]

    def trace(self, *nodes: ir.Node) -> None:
        """New nodes come from what the user calls the readers."""
        sources = (name for reader in self.readers for name in self.model.origin.get(reader, ()))
        self.origin.update(dict.fromkeys((str(node.name) for node in nodes), tuple(dict.fromkeys(sources))))
