"""Two regions for the input of products with a stored weight: a sum of two products that integer kernels run.

`x` is cut into what lies between two breakpoints and what exceeds them: `W x + b = (W clip(x) + b) + W (x - clip(x))`.
With a uniform quantizer for either part this is the piecewise-linear quantizer of `fptq.numerics.piecewise` around one
weight: codes of one scale, two products, one sum. Where only some channels ever leave the breakpoints, the second
product is over those channels alone, and its cost nearly vanishes.
Source: Fang et al., Post-training piecewise linear quantization for deep neural networks, ECCV 2020 (two regions,
non-overlapping); as two products here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from fptq.graph import query
from fptq.graph.model import Model
from fptq.graph.placement import Placement
from fptq.numerics import PiecewiseParams, PiecewiseSpec, UniformParams, branches
from fptq.plan.encoding import Encoding
from fptq.plan.profile import input_axis
from fptq.rewrite.insertion import Insertion
from fptq.rewrite.product_inputs import ProductInput
from fptq.types import Array

UNBOUNDED = np.finfo(np.float32).max
"""The bound of what is not clipped."""


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
    writer = _Writer(model=model, cut=cut, channels=regions.channels, low=centre.low, high=centre.high)
    siblings = writer.write()
    changed = writer.finished()
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


@dataclass(kw_only=True)
class _Writer(Insertion):
    """Cuts one activation of a clone of a model."""

    channels: tuple[int, ...]
    low: Array
    high: Array

    @property
    def whole(self) -> bool:
        """Whether the tail has every channel."""
        return len(self.channels) == self.cut.channels

    def write(self) -> list[_Sibling]:
        source = query.values(self.changed)[self.cut.value]
        centre, tail = self._centre(source), self._tail(source)
        return [self._beside(query.node_named(self.changed, name), centre, tail) for name in self.cut.readers]

    def _centre(self, source: ir.Value) -> ir.Value:
        """What lies between the breakpoints; all of a channel that has no tail: the sum is `x` for every input."""
        name = f"{self.cut.value}_centre"
        if self.whole:
            return self.op("Clip", [source, *self._bounds()], name, like=source)
        rank = query.rank(source)
        assert rank is not None
        found = source
        for op, end, free in (("Max", self.low, -UNBOUNDED), ("Min", self.high, UNBOUNDED)):
            ends = np.full((self.cut.channels, *[1] * (rank - 1 - self.cut.axis)), free, np.float32)
            ends[list(self.channels)] = end
            bounds = self.stored(f"{name}_{op.lower()}", ends)
            found = self.op(op, [found, bounds], name if op == "Min" else f"{name}_floored", like=source)
        return found

    def _tail(self, source: ir.Value) -> ir.Value:
        """What exceeds the breakpoints, of the channels where something does."""
        name, taken = f"{self.cut.value}_tail", source
        if not self.whole:
            indices = self.stored(f"{name}_channels", np.asarray(self.channels, np.int64))
            taken = self.op("Gather", [source, indices], f"{name}_gathered", like=source, axis=self.cut.axis)
            if source.shape is not None:
                dims = list(source.shape)
                dims[self.cut.axis] = len(self.channels)
                taken.shape = ir.Shape(dims)
        within = self.op("Clip", [taken, *self._bounds()], f"{name}_within", like=taken)
        return self.op("Sub", [taken, within], name, like=taken)

    def _beside(self, node: ir.Node, centre: ir.Value, tail: ir.Value) -> _Sibling:
        """Let a product read the centre, and add that of the tail to it."""
        graph, weight, result = self.changed.graph, node.inputs[1], node.outputs[0]
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
        self.trace(sibling, total)
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
        return self.stored(f"{node.name}_tail_weight", np.take(content, self.channels, axis=axis))

    def _bounds(self) -> list[ir.Value]:
        ends = {"low": self.low, "high": self.high}
        return [self.stored(f"{self.cut.value}_{name}", np.asarray(end, np.float32)) for name, end in ends.items()]
