"""Strided convolutions of few input channels, as unstrided ones over space-to-depth channels.

Integer kernels multiply four input channels at a time; a stem with one channel wastes three quarters of them.
With stride `s`, output `p` reads input `s*p + k - pad`. Write `k - pad = s*q + r` with `0 <= r < s`: tap `k` becomes
tap `q` of channel `r` of an input whose `s^rank` phases are channels. The sums are the same, term by term.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from fptq.graph import query
from fptq.graph.model import Model
from fptq.types import Array

_FEW_CHANNELS = 3


@dataclass(frozen=True, kw_only=True)
class _Stem:
    """What the rewrite of one convolution needs; every tuple has one entry per spatial axis."""

    node: ir.Node
    batch: int
    channels: int
    blocks: tuple[int, ...]
    strides: tuple[int, ...]
    first: tuple[int, ...]
    kernel: tuple[int, ...]
    pads: tuple[int, ...]

    @property
    def phases(self) -> int:
        return int(np.prod(self.strides))


def space_to_depth_stem(model: Model) -> Model:
    """The model with every strided convolution of at most three input channels rewritten; the same if it has none."""
    stems = [stem for node in model.graph if (stem := _stem(node)) is not None]
    if not stems:
        return model
    names = [str(stem.node.name) for stem in stems]
    changed = model.clone()
    phased: dict[tuple[str, tuple[int, ...]], ir.Value] = {}
    for name in names:
        stem = _stem(query.node_named(changed, name))
        assert stem is not None
        _rewrite(changed.graph, stem, phased)
    return model.with_graph(changed)


def _stem(node: ir.Node) -> _Stem | None:
    """The rewrite of a node, if it qualifies: static sizes that the strides divide, one group, no dilation."""
    shape, result = query.static_shape(node.inputs[0] if node.inputs else None), query.static_shape(node.outputs[0])
    if node.op_type != "Conv" or shape is None or result is None or not query.is_weight(node.inputs[1]):
        return None
    conv = query.conv_attributes(node)
    sizes = shape[2:]
    divides = all(size % stride == 0 for size, stride in zip(sizes, conv.strides, strict=True))
    plain = conv.group == 1 and set(conv.dilations) == {1} and conv.pads is not None
    if not (plain and divides and shape[1] <= _FEW_CHANNELS and all(s > 1 for s in conv.strides)):
        return None
    assert conv.pads is not None
    before = conv.pads[: conv.rank]
    first = tuple(-pad // stride for pad, stride in zip(before, conv.strides, strict=True))
    last = tuple((k - 1 - pad) // s for k, pad, s in zip(conv.kernel, before, conv.strides, strict=True))
    kernel = tuple(b - a + 1 for a, b in zip(first, last, strict=True))
    blocks = tuple(size // stride for size, stride in zip(sizes, conv.strides, strict=True))
    after = (out - 1 + k - b + a for out, k, b, a in zip(result[2:], kernel, blocks, first, strict=True))
    pads = (*(-a for a in first), *after)
    if min(pads) < 0:
        return None
    return _Stem(
        node=node,
        batch=shape[0],
        channels=shape[1],
        blocks=blocks,
        strides=conv.strides,
        first=first,
        kernel=kernel,
        pads=pads,
    )


def _rewrite(graph: ir.Graph, stem: _Stem, phased: dict[tuple[str, tuple[int, ...]], ir.Value]) -> None:
    """Replace one convolution; `phased` remembers inputs that are in space-to-depth form already."""
    node = stem.node
    source, old = node.inputs[0], query.constant(node.inputs[1])
    assert source is not None
    assert old is not None
    key = str(source.name), stem.strides
    if key not in phased:
        phased[key] = _space_to_depth(graph, stem, source)
    name = f"{node.name}_space_to_depth"
    weight = ir.val(name, const_value=ir.tensor(_phased(old, stem), name=name))
    graph.register_initializer(weight)
    node.replace_input_with(0, phased[key])
    node.replace_input_with(1, weight)
    node.attributes["strides"] = ir.AttrInt64s("strides", [1] * len(stem.strides))
    node.attributes["pads"] = ir.AttrInt64s("pads", stem.pads)
    node.attributes["kernel_shape"] = ir.AttrInt64s("kernel_shape", stem.kernel)


def _space_to_depth(graph: ir.Graph, stem: _Stem, source: ir.Value) -> ir.Value:
    """The input `[N, C, *S]` as `[N, C * phases, *blocks]`."""
    rank = len(stem.strides)
    split = [size for pair in zip(stem.blocks, stem.strides, strict=True) for size in pair]
    order = [0, 1, *range(3, 3 + 2 * rank, 2), *range(2, 2 + 2 * rank, 2)]
    joined = [stem.batch, stem.channels * stem.phases, *stem.blocks]
    value = source
    for op, argument, shape in (
        ("Reshape", [stem.batch, stem.channels, *split], [stem.batch, stem.channels, *split]),
        ("Transpose", order, [stem.batch, stem.channels, *stem.strides, *stem.blocks]),
        ("Reshape", joined, joined),
    ):
        value = _insert(graph, stem.node, op, value, argument, shape)
    return value


def _insert(
    graph: ir.Graph, before: ir.Node, op: str, value: ir.Value, argument: list[int], shape: list[int]
) -> ir.Value:
    """A Reshape or Transpose in front of a node; returns its result."""
    name = f"{before.name}_{op}_to_{len(shape)}d"
    if op == "Transpose":
        node = ir.node(op, [value], {"perm": argument}, name=name)
    else:
        target = ir.val(f"{name}_shape", const_value=ir.tensor(np.asarray(argument, np.int64), name=f"{name}_shape"))
        graph.register_initializer(target)
        node = ir.node(op, [value, target], name=name)
    output = node.outputs[0]
    output.name, output.shape = f"{name}_output", ir.Shape(shape)
    if value.dtype is not None:
        output.dtype = value.dtype
    graph.insert_before(before, node)
    return output


def _phased(weight: Array, stem: _Stem) -> Array:
    """The weight `[O, C, *K]` as `[O, C * phases, *Q]`, zero where a phase has no tap."""
    out = np.zeros((*weight.shape[:2], *stem.strides, *stem.kernel), dtype=weight.dtype)
    pads = query.conv_attributes(stem.node).pads or ()
    for tap in itertools.product(*map(range, weight.shape[2:])):
        moved = [(k - pad, s) for k, pad, s in zip(tap, pads[: len(tap)], stem.strides, strict=True)]
        phase = [shift % s for shift, s in moved]
        block = [shift // s - a for (shift, s), a in zip(moved, stem.first, strict=True)]
        target: tuple[Any, ...] = (slice(None), slice(None), *phase, *block)
        source: tuple[Any, ...] = (slice(None), slice(None), *tap)
        out[target] = weight[source]
    return out.reshape(weight.shape[0], -1, *stem.kernel)
