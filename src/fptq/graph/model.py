"""The one graph: a frozen `onnx_ir.Model` that hands out clones."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from types import MappingProxyType

import numpy as np
import onnx_ir as ir

from fptq.errors import ModelError
from fptq.graph.rest import unmap
from fptq.graph.signature import ModuleSignature

Dim = int | str | None
"""A fixed size, the name of a dynamic one, or unknown."""


@dataclass(frozen=True, kw_only=True)
class TensorInfo:
    """Name, dtype and shape of an input or output."""

    name: str
    dtype: np.dtype
    shape: tuple[Dim, ...] | None

    def __str__(self) -> str:
        shape = "?" if self.shape is None else ", ".join("?" if d is None else str(d) for d in self.shape)
        return f"{self.name}: {self.dtype}[{shape}]"


@dataclass(frozen=True, kw_only=True)
class Model:
    """A network. Treat `graph_model` as read-only; `clone` gives one to change.

    Attributes:
        graph_model: The canonical ONNX graph.
        origin: For each node name, the names it had in the user's model: ONNX names and module paths.
            A node may come from several (folding), several may come from one (decomposition).
        source: What the user named: a path or the class of a module.
        notes: What loading changed or could not check, one sentence each, for the report.
        signature: How the module was called and what it returned; None for ONNX files.
    """

    graph_model: ir.Model
    origin: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: MappingProxyType({}))
    source: str = ""
    notes: tuple[str, ...] = ()
    signature: ModuleSignature | None = None

    @property
    def graph(self) -> ir.Graph:
        """The main graph, read-only."""
        return self.graph_model.graph

    @property
    def opset(self) -> int:
        """The version of the default operator set."""
        return self.graph_model.opset_imports[""]

    def clone(self) -> ir.Model:
        """A copy of the graph to change; the tensors' bytes are shared."""
        return self.graph_model.clone()

    def with_graph(self, graph_model: ir.Model) -> Model:
        """The same network's name and origins around another graph."""
        return replace(self, graph_model=graph_model)

    def module_of(self, node: str) -> str:
        """Where a node is in the user's model: its module path, else its first ONNX name, else nothing."""
        names = self.origin.get(node, ())
        return next((name for name in names if "." in name), names[0] if names else "")

    @cached_property
    def inputs(self) -> tuple[TensorInfo, ...]:
        """What the network takes (initializers that are also inputs left out)."""
        return tuple(_info(v) for v in self.graph.inputs if v.name not in self.graph.initializers)

    @cached_property
    def outputs(self) -> tuple[TensorInfo, ...]:
        """What the network returns."""
        return tuple(_info(v) for v in self.graph.outputs)

    @cached_property
    def parameter_count(self) -> int:
        """Number of stored floating-point values."""
        tensors = (v.const_value for v in self.graph.initializers.values())
        return sum(int(np.prod(t.shape.numpy())) for t in tensors if t is not None and t.dtype.is_floating_point())

    @cached_property
    def sha256(self) -> str:
        """A fingerprint of structure and weights: the key of everything that is cached."""
        digest = hashlib.sha256()
        for value in self.graph.initializers.values():
            digest.update(repr((value.name, value.dtype, value.shape)).encode())
            if value.const_value is not None:
                digest.update(np.ascontiguousarray(value.const_value.numpy()).data)
                unmap(value)
        for node in self.graph:
            attributes = sorted((name, str(attr.value)) for name, attr in node.attributes.items())
            names = [v.name if v else None for v in node.inputs], [v.name for v in node.outputs]
            digest.update(repr((node.domain, node.op_type, names, attributes)).encode())
        digest.update(repr(([str(i) for i in self.inputs], [o.name for o in self.outputs])).encode())
        return digest.hexdigest()


def _info(value: ir.Value) -> TensorInfo:
    if value.name is None or value.dtype is None:
        raise ModelError(f"graph input or output {value.name!r} has no type", rule="inputs and outputs are typed")
    shape = None if value.shape is None else tuple(_dim(d) for d in value.shape)
    return TensorInfo(name=value.name, dtype=value.dtype.numpy(), shape=shape)


def _dim(dim: int | ir.SymbolicDim) -> Dim:
    return dim if isinstance(dim, int) else dim.value
