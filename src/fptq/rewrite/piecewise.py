"""Two regions for the input of products with a stored weight: a sum of two products that integer kernels run.

`x` is cut into what lies between two breakpoints and what exceeds them: `W x + b = (W clip(x) + b) + W (x - clip(x))`.
With a uniform quantizer for either part this is the piecewise-linear quantizer of `fptq.numerics.piecewise` around one
weight: codes of one scale, two products, one sum. Where only some channels ever leave the breakpoints, the second
product is over those channels alone, and its cost nearly vanishes.
Source: Fang et al., Post-training piecewise linear quantization for deep neural networks, ECCV 2020 (two regions,
non-overlapping); as two products here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from fptq.graph import query
from fptq.graph.model import Model
from fptq.graph.placement import Placement
from fptq.numerics import PerBlock, PerTensor, PiecewiseParams, PiecewiseSpec, QuantizerSpec, UniformParams, branches
from fptq.numerics.piecewise import Branch
from fptq.plan.encoding import Encoding
from fptq.plan.plan import Plan
from fptq.plan.profile import STORED_WEIGHTS, input_axis
from fptq.rewrite.parts import PartsWriter
from fptq.types import Array

_PRODUCTS = frozenset({"Conv", "Gemm", "MatMul"})
_UNBOUNDED = np.finfo(np.float32).max


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


@dataclass(frozen=True, kw_only=True, eq=False)
class TwoRegions:
    """How an activation is cut.

    Attributes:
        params: Numbers of two regions, per tensor.
        channels: The channels that may leave the first region, ascending. The others are quantized by the first
            region alone, and saturate where they leave it all the same.
    """

    params: PiecewiseParams
    channels: tuple[int, ...]


def product_inputs(model: Model, plan: Plan) -> tuple[ProductInput, ...]:
    """The activations of a plan that can be cut in two, in the order of execution.

    Left out are products whose result is quantized too, as ONNX Runtime's convolution asks for: a sum of two rounded
    results loses more than two regions gain. So are convolutions of several groups, weights with scales by block or of
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


def branched(model: Model, encoding: Encoding, *, cut: ProductInput, regions: TwoRegions) -> tuple[Model, Encoding]:
    """The model with an activation cut in two, and the encoding with a quantizer for either part.

    The float network computes the same, but for the order of additions, whatever its input. Names of nodes and values
    stay, and every product gains a sibling that reads the tail. Both have one weight with one set of scales: the
    sibling of a few channels has a copy of their part, whose codes are those of the whole.

    Args:
        model: The float network.
        encoding: Its quantizers.
        cut: What is cut, one of `product_inputs`.
        regions: Where, and for which channels.
    """
    centre, tail = branches(PiecewiseSpec(region=cut.spec), regions.params)
    parts = PartsWriter(model=model, value=cut.value, readers=cut.readers)
    siblings = _Writer(parts=parts, cut=cut, channels=regions.channels, centre=centre).write()
    changed = parts.finished()
    return changed, _cut_encoding(encoding, changed, cut, (centre.params, tail.params), siblings, regions.channels)


def _cut_encoding(
    encoding: Encoding,
    changed: Model,
    cut: ProductInput,
    numbers: tuple[UniformParams, UniformParams],
    siblings: Sequence[_Sibling],
    channels: Sequence[int],
) -> Encoding:
    """The encoding of the network that was cut."""
    plan = encoding.plan
    specs = {placement: spec for placement, spec in plan.specs.items() if placement not in cut.placements}
    params, codes, ties = dict(encoding.params), dict(encoding.codes), list(plan.ties)
    for sibling in siblings:
        for value, reader, found in zip(
            (sibling.centre, sibling.tail), (sibling.node, sibling.name), numbers, strict=True
        ):
            specs[Placement(value, reader, 0)] = cut.spec
            params[Placement(value, reader, 0)] = found
        weight, copy = sibling.weight, Placement(sibling.copy, sibling.name, 1)
        specs[copy], params[copy] = plan.specs[weight], encoding.params[weight]
        if weight in encoding.codes:
            learned = encoding.codes[weight]
            codes[copy] = learned if sibling.axis is None else np.take(learned, channels, axis=sibling.axis)
        # One scale: two would round the weight of a channel in two ways, and the parts would not add up.
        shared = next((tie for tie in ties if weight in tie), frozenset({weight}))
        ties = [*(tie for tie in ties if tie != shared), shared | {copy}]
    weights = plan.weights | {Placement(sibling.copy, sibling.name, 1) for sibling in siblings}
    return replace(
        encoding,
        plan=replace(plan, specs=specs, weights=weights, ties=tuple(ties)),
        params={placement: params[placement] for placement in specs},
        codes=codes,
        model_sha256=changed.sha256,
    )


@dataclass(frozen=True, kw_only=True)
class _Sibling:
    """The product of a tail, beside that of its centre.

    Attributes:
        node: The product of the centre, as before.
        name: The product of the tail.
        centre: What the first reads.
        tail: What the second reads.
        weight: The first one's weight.
        copy: The stored tensor that the second reads: the same, or its part for some channels.
        axis: Where the part was taken; None: the same.
    """

    node: str
    name: str
    centre: str
    tail: str
    weight: Placement
    copy: str
    axis: int | None


@dataclass(frozen=True, kw_only=True)
class _Writer:
    """Cuts the input of products in a clone of a model."""

    parts: PartsWriter
    cut: ProductInput
    channels: tuple[int, ...]
    centre: Branch

    @property
    def whole(self) -> bool:
        """Whether the tail has every channel."""
        return len(self.channels) == self.cut.channels

    def write(self) -> list[_Sibling]:
        changed = self.parts.changed
        source = query.values(changed)[self.cut.value]
        centre, tail = self._centre(source), self._tail(source)
        return [self._beside(query.node_named(changed, name), centre, tail) for name in self.cut.readers]

    def _centre(self, source: ir.Value) -> ir.Value:
        """What lies between the breakpoints; all of a channel that has no tail: the sum is `x` for every input."""
        if self.whole:
            return self.parts.clipped(source, self._bounds(), "centre")
        rank = query.rank(source)
        assert rank is not None
        found = source
        for op, end, free in (("Max", self.centre.low, -_UNBOUNDED), ("Min", self.centre.high, _UNBOUNDED)):
            ends = np.full((self.cut.channels, *[1] * (rank - 1 - self.cut.axis)), free, np.float32)
            ends[list(self.channels)] = end
            bounds = self.parts.stored(f"{self.cut.value}_centre_{op.lower()}", ends)
            name = "centre" if op == "Min" else "centre_floored"
            found = self.parts.op(op, [found, bounds], name, like=source)
        return found

    def _tail(self, source: ir.Value) -> ir.Value:
        """What exceeds the breakpoints, of the channels where something does."""
        if self.whole:
            return self.parts.beyond(source, self._bounds(), "tail")
        indices = self.parts.stored(f"{self.cut.value}_tail_channels", np.asarray(self.channels, np.int64))
        taken = self.parts.op("Gather", [source, indices], "tail_gathered", like=source, axis=self.cut.axis)
        if source.shape is not None:
            dims = list(source.shape)
            dims[self.cut.axis] = len(self.channels)
            taken.shape = ir.Shape(dims)
        return self.parts.beyond(taken, self._bounds(), "tail")

    def _beside(self, node: ir.Node, centre: ir.Value, tail: ir.Value) -> _Sibling:
        """Let a product read the centre, and add that of the tail to it."""
        graph, weight, result = self.parts.changed.graph, node.inputs[1], node.outputs[0]
        assert weight is not None
        axis = None if self.whole else input_axis(node, query.rank(weight) or 0)
        copy = weight if axis is None else self._part(node, weight, axis)
        node.replace_input_with(0, centre)
        attributes = list(node.attributes.values())
        sibling = ir.Node("", node.op_type, [tail, copy], attributes, name=f"{node.name}_tail")
        total = ir.node("Add", [result, sibling.outputs[0]], name=f"{node.name}_sum")
        result.replace_all_uses_with(total.outputs[0], replace_graph_outputs=True)
        total.replace_input_with(0, result)
        graph.insert_after(node, [sibling, total])
        name = str(result.name)
        for value, label in (
            (result, f"{name}_centre"),
            (sibling.outputs[0], f"{name}_tail"),
            (total.outputs[0], name),
        ):
            value.name, value.shape = label, result.shape
            if result.dtype is not None:
                value.dtype = result.dtype
        self.parts.trace(sibling, total)
        return _Sibling(
            node=str(node.name),
            name=str(sibling.name),
            centre=str(centre.name),
            tail=str(tail.name),
            weight=Placement(str(weight.name), str(node.name), 1),
            copy=str(copy.name),
            axis=axis,
        )

    def _part(self, node: ir.Node, weight: ir.Value, axis: int) -> ir.Value:
        content = query.constant(weight)
        assert content is not None
        return self.parts.stored(f"{node.name}_tail_weight", np.take(content, self.channels, axis=axis))

    def _bounds(self) -> list[ir.Value]:
        return self.parts.bounds(self.centre.low, self.centre.high)
