"""MatMul + Add as Gemm: ONNX Runtime has an int8 kernel for Gemm with a bias, and none for the pair."""

from __future__ import annotations

from dataclasses import replace
from types import MappingProxyType

import numpy as np
import onnx_ir as ir

from fptq.graph import query
from fptq.graph.model import Model
from fptq.graph.opset import infer_shapes


def matmul_add_to_gemm(model: Model) -> Model:
    """Turn every MatMul with a stored 2-D weight and a stored bias behind it into a Gemm.

    Inputs of more axes are flattened to `[-1, K]` before, once for all readers, and given their shape back after.
    The Gemm has the MatMul's name; the value behind the pair keeps its name.

    Args:
        model: A canonical model.

    Returns:
        The model with the Gemms; the same model when there is nothing to turn.
    """
    graph_model = model.clone()
    origin = dict(model.origin)
    flattened: dict[ir.Value, ir.Value] = {}
    pairs = [(node, add) for node in graph_model.graph if (add := _bias_add(node)) is not None]
    for node, add in pairs:
        made = _replace(node, add, flattened)
        names = tuple(dict.fromkeys((*origin.get(node.name or "", ()), *origin.pop(add.name or "", ()))))
        origin.update({new.name or "": names for new in made})
    if not pairs:
        return model
    infer_shapes(graph_model)
    return replace(model, graph_model=graph_model, origin=MappingProxyType(origin))


def _bias_add(node: ir.Node) -> ir.Node | None:
    """The Add that gives a MatMul its bias."""
    if node.op_type != "MatMul" or node.domain:
        return None
    weight, width = query.constant(node.inputs[1]), query.rank(node.inputs[0])
    add = query.sole_reader(node.outputs[0])
    if weight is None or weight.ndim != 2 or width is None or width < 2 or add is None or add.op_type != "Add":
        return None
    bias = query.constant(_bias(node, add))
    if bias is None or bias.ndim > width or bias.size != weight.shape[1] or bias.shape[-1:] != weight.shape[1:]:
        return None
    return add


def _bias(node: ir.Node, add: ir.Node) -> ir.Value | None:
    return add.inputs[1] if add.inputs[0] is node.outputs[0] else add.inputs[0]


def _replace(node: ir.Node, add: ir.Node, flattened: dict[ir.Value, ir.Value]) -> list[ir.Node]:
    source, weight, bias, result = node.inputs[0], node.inputs[1], _bias(node, add), add.outputs[0]
    graph = node.graph
    assert source is not None
    assert weight is not None
    assert bias is not None
    assert isinstance(graph, ir.Graph)
    name, made = node.name or "", _Made(graph)
    if query.rank(source) == 2:
        output = made.op("Gemm", [source, weight, _flat_bias(bias, graph)], name=name)
    else:
        if source not in flattened:
            columns = query.constant(weight)
            assert columns is not None
            flat_shape = made.constant([-1, columns.shape[0]])
            flattened[source] = made.op("Reshape", [source, flat_shape], name=f"{source.name}_flatten")
            flattened[source].name = f"{source.name}_flat"
        product = made.op("Gemm", [flattened[source], weight, _flat_bias(bias, graph)], name=name)
        product.name = f"{result.name}_flat"
        output = made.op("Reshape", [product, made.shape_of(source, result)], name=f"{name}_unflatten")
    ir.convenience.replace_nodes_and_values(graph, node, [add, node], made.nodes, [result], [output])
    return made.nodes


def _flat_bias(bias: ir.Value, graph: ir.Graph) -> ir.Value:
    """A bias as a vector, which is what integer kernels take."""
    content = query.constant(bias)
    assert content is not None
    if content.ndim == 1:
        return bias
    name = f"{bias.name}_vector"
    if name not in graph.initializers:
        graph.register_initializer(ir.val(name, const_value=ir.Tensor(content.reshape(-1), name=name)))
    return graph.initializers[name]


class _Made:
    """New nodes for a graph, in order."""

    def __init__(self, graph: ir.Graph) -> None:
        self.nodes: list[ir.Node] = []
        self._graph = graph

    def op(self, op_type: str, inputs: list[ir.Value], *, name: str, **attributes: int) -> ir.Value:
        node = ir.node(op_type, inputs, attributes, name=name)
        self.nodes.append(node)
        return node.outputs[0]

    def constant(self, numbers: list[int]) -> ir.Value:
        name = "shape_" + "_".join(str(number).replace("-", "m") for number in numbers)
        if name not in self._graph.initializers:
            tensor = ir.Tensor(np.array(numbers, np.int64), name=name)
            self._graph.register_initializer(ir.val(name, const_value=tensor))
        return self._graph.initializers[name]

    def shape_of(self, source: ir.Value, result: ir.Value) -> ir.Value:
        """The shape of a product: a constant where at most one size is dynamic, else computed from its input's."""
        dims = query.shape(result)
        if dims is not None and sum(not isinstance(dim, int) for dim in dims) <= 1:
            return self.constant([dim if isinstance(dim, int) else -1 for dim in dims])
        leading = self.op("Shape", [source], name=f"{result.name}_leading", start=0, end=-1)
        leading.name = f"{result.name}_leading_shape"
        last = self.constant([-1])
        whole = self.op("Concat", [leading, last], name=f"{result.name}_shape", axis=0)
        whole.name = f"{result.name}_whole_shape"
        return whole
