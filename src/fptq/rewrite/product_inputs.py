"""The activations that products with stored weights read quantized: where another way to quantize can stand."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from fptq.graph import query
from fptq.graph.model import Model
from fptq.graph.placement import Placement
from fptq.numerics import PerBlock, PerTensor, QuantizerSpec
from fptq.plan.plan import Plan
from fptq.plan.profile import STORED_WEIGHTS, input_axis
from fptq.types import Array

_PRODUCTS = frozenset({"Conv", "Gemm", "MatMul"})


@dataclass(frozen=True, kw_only=True)
class ProductInput:
    """An activation that products with stored weights read quantized; other readers are none of its business.

    Attributes:
        value: Its name.
        axis: Its channel axis, counted from the first.
        channels: How many channels it has.
        readers: Names of the products.
        spec: The quantizer that they share.
        weights: Elements of their stored weights.
    """

    value: str
    axis: int
    channels: int
    readers: tuple[str, ...]
    spec: QuantizerSpec
    weights: int

    @property
    def placements(self) -> tuple[Placement, ...]:
        """Where the products read it."""
        return tuple(Placement(self.value, reader, 0) for reader in self.readers)


def product_inputs(model: Model, plan: Plan) -> tuple[ProductInput, ...]:
    """The activations of a plan that can be cut into regions, in the order of execution.

    Left out are products whose result is quantized too, as ONNX Runtime's convolution asks for: a sum of two rounded
    results loses more than regions gain. So are convolutions of several groups, weights with scales by block or of
    more axes than a matrix, quantizers that moved in front of a Reshape, and activations that share their scale.
    """
    found: dict[str, list[ir.Node]] = {}
    for node in model.graph:
        if _is_product(node, plan):
            found.setdefault(str(node.inputs[0].name), []).append(node)  # type: ignore[union-attr]
    return tuple(one for nodes in found.values() if (one := _product_input(nodes, plan)) is not None)


def _product_input(nodes: Sequence[ir.Node], plan: Plan) -> ProductInput | None:
    """What these readers of one value share; None where they see other channels or other quantizers."""
    value = nodes[0].inputs[0]
    dims = query.shape(value)
    specs = {plan.specs[Placement(str(value.name), str(node.name), 0)] for node in nodes if value is not None}
    if dims is None or value is None or len(specs) > 1:
        return None
    axis = 1 if nodes[0].op_type == "Conv" else len(dims) - 1
    channels = {weight.shape[input_axis(node, weight.ndim)] for node, weight in _weights(nodes)}
    if any((node.op_type == "Conv") != (nodes[0].op_type == "Conv") for node in nodes) or channels != {dims[axis]}:
        return None
    return ProductInput(
        value=str(value.name),
        axis=axis,
        channels=channels.pop(),
        readers=tuple(str(node.name) for node in nodes),
        spec=specs.pop(),
        weights=sum(weight.size for _, weight in _weights(nodes)),
    )


def _weights(nodes: Sequence[ir.Node]) -> Iterator[tuple[ir.Node, Array]]:
    for node in nodes:
        weight = query.constant(node.inputs[STORED_WEIGHTS[node.op_type]])
        assert weight is not None
        yield node, weight


def _is_product(node: ir.Node, plan: Plan) -> bool:
    if node.op_type not in _PRODUCTS or node.domain or len(node.inputs) < 2:
        return False
    source, weight = (Placement(str(v.name), str(node.name), i) for i, v in enumerate(node.inputs[:2]) if v is not None)
    if source not in plan.specs or weight not in plan.weights or len(plan.tied(source)) > 1:
        return False
    if plan.specs[source].granularity != PerTensor() or isinstance(plan.specs[weight].granularity, PerBlock):
        return False
    if node.attributes.get_int("group", 1) != 1 or node.attributes.get_int("transA", 0) == 1:
        return False
    if node.op_type != "Conv" and query.rank(node.inputs[1]) != 2:
        return False
    result = node.outputs[0]
    reader = query.sole_reader(result)
    return not any(
        Placement(str(value.name)) in plan.specs for value in (result, *(reader.outputs if reader is not None else ()))
    )
