"""Several regions for the input of products with a stored weight: a sum of products that integer kernels run.

`x` is cut into what lies between two breakpoints and what exceeds them: `W x + b = (W clip(x) + b) + W (x - clip(x))`.
With a uniform quantizer for either part this is the piecewise-linear quantizer of `fptq.numerics.piecewise` around one
weight: codes of one scale, two products, one sum; a tail that is cut again adds a product. Where only some channels
ever leave the breakpoints, the second product is over those channels alone, and its cost nearly vanishes.
Source: Fang et al., Post-training piecewise linear quantization for deep neural networks, ECCV 2020 (two regions,
non-overlapping); as products here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from fptq.graph import query
from fptq.graph.placement import Placement
from fptq.numerics import Branch, PiecewiseParams, PiecewiseSpec, branches
from fptq.plan.encoding import Encoding
from fptq.plan.profile import input_axis
from fptq.rewrite.draft import Draft
from fptq.rewrite.parts import PartsWriter
from fptq.rewrite.product_inputs import ProductInput

UNBOUNDED = np.finfo(np.float32).max
"""The bound of what is not clipped."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Regions:
    """How an activation is cut.

    Attributes:
        params: Numbers of two regions or more, per tensor.
        channels: The channels that may leave the first region, ascending. The others are quantized by the first
            region alone, and saturate where they leave it all the same.
    """

    params: PiecewiseParams
    channels: tuple[int, ...]


def cut_in_regions(draft: Draft, encoding: Encoding, *, cut: ProductInput, regions: Regions) -> Encoding:
    """Cut an activation into regions, with a quantizer for each.

    The float network computes the same, but for the order of additions, whatever its input. Names of nodes and values
    stay, and every product gains a sibling for each tail. All have one weight with one set of scales: siblings of a
    few channels have a copy of their part, whose codes are those of the whole.

    Args:
        draft: The float network; changed in place.
        encoding: Its quantizers.
        cut: What is cut, one of `product_inputs`.
        regions: Where, and for which channels.
    """
    terms = branches(PiecewiseSpec(region=cut.spec, regions=len(regions.params.regions)), regions.params)
    parts = PartsWriter(draft=draft, value=cut.value, readers=cut.readers)
    siblings = _Writer(parts=parts, cut=cut, channels=regions.channels, terms=terms).write()
    return _cut_encoding(encoding, cut, regions, siblings)


def _cut_encoding(encoding: Encoding, cut: ProductInput, regions: Regions, siblings: Sequence[_Sibling]) -> Encoding:
    """The encoding of the network that was cut."""
    plan = encoding.plan
    specs = {placement: spec for placement, spec in plan.specs.items() if placement not in cut.placements}
    params, codes, ties = dict(encoding.params), dict(encoding.codes), list(plan.ties)
    read = [Placement(_centre_of(cut), reader, 0) for reader in cut.readers]
    specs |= dict.fromkeys(read, cut.spec)
    params |= dict.fromkeys(read, regions.params.regions[0])
    for sibling in siblings:
        tail, weight, copy = sibling.placement, sibling.weight, Placement(sibling.copy, sibling.name, 1)
        specs[tail], params[tail] = cut.spec, regions.params.regions[sibling.region]
        specs[copy], params[copy] = plan.specs[weight], encoding.params[weight]
        if weight in encoding.codes:
            learned = encoding.codes[weight]
            codes[copy] = learned if sibling.axis is None else np.take(learned, regions.channels, axis=sibling.axis)
        # One scale: two would round the weight of a channel in two ways, and the parts would not add up.
        shared = next((tie for tie in ties if weight in tie), frozenset({weight}))
        ties = [*(tie for tie in ties if tie != shared), shared | {copy}]
    weights = plan.weights | {Placement(sibling.copy, sibling.name, 1) for sibling in siblings}
    return replace(
        encoding,
        plan=replace(plan, specs=specs, weights=weights, ties=tuple(ties)),
        params={placement: params[placement] for placement in specs},
        codes=codes,
    )


def _centre_of(cut: ProductInput) -> str:
    return f"{cut.value}_centre"


@dataclass(frozen=True, kw_only=True)
class _Sibling:
    """The product of a tail, beside that of the centre.

    Attributes:
        name: Its node.
        tail: What it reads.
        region: The number of that region, counted from the centre, which is 0.
        weight: The weight of the centre's product.
        copy: The stored tensor that it reads: the same, or its part for some channels.
        axis: Where the part was taken; None: the same.
    """

    name: str
    tail: str
    region: int
    weight: Placement
    copy: str
    axis: int | None

    @property
    def placement(self) -> Placement:
        return Placement(self.tail, self.name, 0)


@dataclass(frozen=True, kw_only=True)
class _Writer:
    """Cuts the input of products in a draft."""

    parts: PartsWriter
    cut: ProductInput
    channels: tuple[int, ...]
    terms: Sequence[Branch]

    @property
    def whole(self) -> bool:
        """Whether the tails have every channel."""
        return len(self.channels) == self.cut.channels

    def write(self) -> list[_Sibling]:
        changed = self.parts.changed
        source = query.values(changed)[self.cut.value]
        centre, tails = self._centre(source), self._tails(source)
        nodes = [query.node_named(changed, name) for name in self.cut.readers]
        return [sibling for node in nodes for sibling in self._beside(node, centre, tails)]

    def _centre(self, source: ir.Value) -> ir.Value:
        """What lies between the breakpoints; all of a channel that has no tail: the sum is `x` for every input."""
        if self.whole:
            return self.parts.clipped(source, self._bounds(0), "centre")
        rank = query.rank(source)
        assert rank is not None
        found, centre = source, self.terms[0]
        for op, end, free in (("Max", centre.low, -UNBOUNDED), ("Min", centre.high, UNBOUNDED)):
            ends = np.full((self.cut.channels, *[1] * (rank - 1 - self.cut.axis)), free, np.float32)
            ends[list(self.channels)] = end
            bounds = self.parts.stored(f"{self.cut.value}_centre_{op.lower()}", ends)
            name = "centre" if op == "Min" else "centre_floored"
            found = self.parts.part(op, [found, bounds], name, like=source)
        return found

    def _tails(self, source: ir.Value) -> list[ir.Value]:
        """What exceeds the breakpoints, of the channels where something does; cut again for more than two regions."""
        rest, name = self.parts.beyond(self._taken(source), self._bounds(0), "tail"), "tail"
        found: list[ir.Value] = []
        for number in range(1, len(self.terms) - 1):
            found.append(self.parts.clipped(rest, self._bounds(number), f"{name}_centre"))
            rest, name = self.parts.beyond(rest, self._bounds(number), f"{name}_tail"), f"{name}_tail"
        return [*found, rest]

    def _taken(self, source: ir.Value) -> ir.Value:
        """The channels that have tails."""
        if self.whole:
            return source
        indices = self.parts.stored(f"{self.cut.value}_tail_channels", np.asarray(self.channels, np.int64))
        taken = self.parts.part("Gather", [source, indices], "tail_gathered", like=source, axis=self.cut.axis)
        if source.shape is not None:
            dims = list(source.shape)
            dims[self.cut.axis] = len(self.channels)
            taken.shape = ir.Shape(dims)
        return taken

    def _beside(self, node: ir.Node, centre: ir.Value, tails: Sequence[ir.Value]) -> list[_Sibling]:
        """Let a product read the centre, and add those of the tails to it."""
        weight = node.inputs[1]
        assert weight is not None
        axis = None if self.whole else input_axis(node, query.rank(weight) or 0)
        copy = weight if axis is None else self._part(node, weight, axis)
        node.replace_input_with(0, centre)
        last, name, found = node, f"{node.name}", []
        for region, tail in enumerate(tails, 1):
            name = f"{name}_tail"
            sibling = ir.Node("", node.op_type, [tail, copy], list(node.attributes.values()), name=name)
            last = self._added(last, sibling, region)
            found.append(
                _Sibling(
                    name=name,
                    tail=str(tail.name),
                    region=region,
                    weight=Placement(str(weight.name), str(node.name), 1),
                    copy=str(copy.name),
                    axis=axis,
                )
            )
        return found

    def _added(self, node: ir.Node, sibling: ir.Node, region: int) -> ir.Node:
        """The sum of the results of two nodes, in place of the first one, whose result's name it takes over."""
        graph, result = self.parts.changed.graph, node.outputs[0]
        total = ir.node("Add", [result, sibling.outputs[0]], name=f"{sibling.name}_sum")
        result.replace_all_uses_with(total.outputs[0], replace_graph_outputs=True)
        total.replace_input_with(0, result)
        graph.insert_after(node, [sibling, total])
        name = str(result.name)
        centre, tail = f"{name}{'_tail' * (region - 1)}_centre", f"{name}{'_tail' * region}"
        for value, label in ((result, centre), (sibling.outputs[0], tail), (total.outputs[0], name)):
            value.name, value.shape = label, result.shape
            if result.dtype is not None:
                value.dtype = result.dtype
        self.parts.trace(sibling, total)
        return total

    def _part(self, node: ir.Node, weight: ir.Value, axis: int) -> ir.Value:
        content = query.constant(weight)
        assert content is not None
        return self.parts.stored(f"{node.name}_tail_weight", np.take(content, self.channels, axis=axis))

    def _bounds(self, region: int) -> list[ir.Value]:
        term = self.terms[region]
        return self.parts.bounds(term.low, term.high, "_tail" * region)
