"""Nodes that cut an activation into what each region of a piecewise-linear quantizer holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType

import numpy as np
import onnx_ir as ir

from fptq.graph.model import Model
from fptq.graph.rest import put_to_rest
from fptq.types import Array


@dataclass(kw_only=True)
class PartsWriter:
    """Adds nodes for one activation to a clone of a model.

    Attributes:
        model: The float network; it stays as it is.
        value: Name of the activation; the new values and tensors begin with it.
        readers: The nodes that read it: what new nodes come from, for the user.
    """

    model: Model
    value: str
    readers: Sequence[str]
    changed: ir.Model = field(init=False)
    _origin: dict[str, tuple[str, ...]] = field(init=False)

    def __post_init__(self) -> None:
        self.changed = self.model.clone()
        self._origin = dict(self.model.origin)

    def bounds(self, low: Array, high: Array, region: str = "") -> list[ir.Value]:
        """The stored ends of a region, for `clipped` and `beyond`; `region` tells it from others."""
        ends = {f"{self.value}{region}_low": low, f"{self.value}{region}_high": high}
        return [self.stored(name, np.asarray(end, np.float32)) for name, end in ends.items()]

    def clipped(self, source: ir.Value, bounds: Sequence[ir.Value], name: str) -> ir.Value:
        """What lies between the bounds, or the nearer one; the result is called `name` behind the activation's name."""
        return self.op("Clip", [source, *bounds], name, like=source)

    def beyond(self, source: ir.Value, bounds: Sequence[ir.Value], name: str) -> ir.Value:
        """What exceeds the bounds: `x - clip(x)`; arguments as in `clipped`."""
        # A clip of its own: one that the next quantizer alone reads is dropped where that saturates anyway.
        within = self.clipped(source, bounds, f"{name}_within")
        return self.op("Sub", [source, within], name, like=source)

    def op(self, op: str, inputs: Sequence[ir.Value], name: str, *, like: ir.Value, **attributes: int) -> ir.Value:
        """The result of a new node, right behind the last of what it works on; of the type and shape of `like`."""
        node = ir.node(op, inputs, attributes, name=f"{self.value}_{name}_{op}")
        makers, graph = {value.producer() for value in inputs}, self.changed.graph
        last = next((before for before in reversed(list(graph)) if before in makers), None)
        if last is not None:
            graph.insert_after(last, node)
        else:
            graph.insert_before(graph[0], node)
        found = node.outputs[0]
        found.name, found.shape = f"{self.value}_{name}", like.shape
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
        self._origin.update(dict.fromkeys((str(node.name) for node in nodes), tuple(dict.fromkeys(sources))))

    def finished(self) -> Model:
        """The model with the nodes that were added."""
        put_to_rest(self.changed)
        return replace(self.model, graph_model=self.changed, origin=MappingProxyType(self._origin))
