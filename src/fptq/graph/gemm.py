"""MatMul + Add as Gemm, where ONNX Runtime would make one itself, with a bias that its int8 kernel does not take.

Of inputs of three axes and more, one of them of any size, it makes none; there MatMul has an int8 kernel of its own,
which takes less time than that of Gemm between two Reshapes (AntiBERTy, 16 x 128 tokens: 312 against 335 ms, ONNX
Runtime 1.32).
"""

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

    Inputs of more axes are flattened to `[-1, K]` before, once for all readers, and given their shape back after; those
    with a dynamic axis are left alone.
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
    weight, dims = query.constant(node.inputs[1]), query.shape(node.inputs[0])
    add = query.sole_reader(node.outputs[0])
    if weight is None or weight.ndim != 2 or add is None or add.op_type != "Add" or not _is_matrix(dims):
        return None
    bias = query.constant(_bias(node, add))
    if (
        bias is None
        or dims is None
        or bias.ndim > len(dims)
        or bias.size != weight.shape[1]
        or bias.shape[-1:] != weight.shape[1:]
    ):
        return None
    return add


def _is_matrix(dims: tuple[query.Dim, ...] | None) -> bool:
    """Whether a shape is that of a matrix, or of a pile of them whose height is known."""
    if dims is None or len(dims) < 2:
        return False
    return len(dims) == 2 or all(isinstance(dim, int) for dim in dims[:-1])


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
        content = query.constant(weight)
        assert content is not None
        if source not in flattened:
            flat_shape = made.constant([-1, content.shape[0]])
            flattened[source] = made.op("Reshape", [source, flat_shape], name=f"{source.name}_flatten")
            flattened[source].name = f"{source.name}_flat"
        product = made.op("Gemm", [flattened[source], weight, _flat_bias(bias, graph)], name=name)
        product.name = f"{result.name}_flat"
        output = made.op("Reshape", [product, made.shape_of(source, content.shape[1])], name=f"{name}_unflatten")
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

    def shape_of(self, source: ir.Value, columns: int) -> ir.Value:
        """The shape of a product of a source of known shape."""
        dims = query.shape(source)
        assert dims is not None
        return self.constant([dim for dim in dims[:-1] if isinstance(dim, int)] + [columns])
