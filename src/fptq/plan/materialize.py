"""Write Q/DQ nodes into the graph: the one place where a plan becomes ONNX."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from fptq.errors import ModelError
from fptq.graph import query
from fptq.graph.model import Model
from fptq.graph.placement import Placement
from fptq.graph.rest import Shelf, drop_unread, unmap
from fptq.numerics import PerBlock, PerChannel, PerTensor, QuantizerSpec, UniformParams, quantize
from fptq.plan.encoding import Encoding
from fptq.types import Array

_INT32_MAX = np.iinfo(np.int32).max
_CLIPS = frozenset({"Clip", "Max", "Min"})


def container_dtype(spec: QuantizerSpec) -> np.dtype:
    """The integer type that holds the codes in the file: 8 or 16 bits, which every engine has kernels for.

    Narrower codes keep their range by clipping (activations) or by their own values (weights): emulated.
    """
    return np.dtype(f"{'int' if spec.signed else 'uint'}{_container_bits(spec)}")


def _container_bits(spec: QuantizerSpec) -> int:
    return 8 if spec.bits <= 8 else 16


def materialize(model: Model, encoding: Encoding) -> Model:
    """The model with a QuantizeLinear/DequantizeLinear pair (a DequantizeLinear for a weight) at every placement.

    Placements of one value with equal numbers share a pair. Graph outputs stay float.

    Raises:
        ModelError: The encoding names a value or a node that the model does not have.
    """
    changed = model.clone()
    graph = changed.graph
    values = dict(ir.convenience.create_value_mapping(graph))
    readers = {name: tuple(value.uses()) for name, value in values.items()}
    stored = _Codes(graph=graph)
    for group in groups(encoding):
        if group.value not in values:
            raise _unknown("value", group.value)
        source = values[group.value]
        quantized = (
            _weight(stored, group, source) if source.const_value is not None else _activation(graph, group, source)
        )
        for node, index in readers[group.value]:
            if group.covers(node.name, index):
                node.replace_input_with(index, quantized)
    _write_biases(graph, encoding)
    _drop_unused_clips(graph)
    drop_unread(graph)
    return model.with_graph(changed)


@dataclass(frozen=True, kw_only=True)
class Group:
    """Placements of one value that share one quantizer.

    Attributes:
        value: Name of the value.
        stem: What the names of the group's nodes and tensors begin with.
        placements: Where the value is read.
        spec: The quantizer.
        params: Its numbers.
        codes: Learned codes of a weight.
    """

    value: str
    stem: str
    placements: frozenset[Placement]
    spec: QuantizerSpec
    params: UniformParams
    codes: Array | None

    def covers(self, consumer: str | None, index: int) -> bool:
        return not self.placements.isdisjoint({Placement(self.value), Placement(self.value, consumer, index)})


def groups(encoding: Encoding) -> Iterator[Group]:
    """What becomes one pair of nodes each."""
    shared: dict[tuple[str, QuantizerSpec, bytes], list[Placement]] = defaultdict(list)
    for placement, spec in encoding.plan.specs.items():
        params = encoding.params[placement]
        numbers = params.scale.tobytes() + params.zero_point.tobytes()
        shared[placement.value, spec, numbers].append(placement)
    seen: dict[str, int] = defaultdict(int)
    for (value, spec, _), placements in shared.items():
        seen[value] += 1
        yield Group(
            value=value,
            stem=value if seen[value] == 1 else f"{value}@{seen[value]}",
            placements=frozenset(placements),
            spec=spec,
            params=encoding.params[placements[0]],
            codes=encoding.codes.get(placements[0]),
        )


@dataclass(kw_only=True)
class _Codes:
    """Puts codes into a graph: in memory, or, where their weight rests in a file, into one of their own."""

    graph: ir.Graph
    shelf: Shelf | None = None

    def stored(self, name: str, codes: Array, *, like: ir.Value) -> ir.Value:
        if not isinstance(like.const_value, ir.ExternalTensor) or name in self.graph.initializers:
            return _constant(self.graph, name, codes)
        self.shelf = self.shelf or Shelf()
        self.graph.register_initializer(ir.val(name, const_value=self.shelf.put(codes, name=name)))
        return self.graph.initializers[name]


def _weight(into: _Codes, group: Group, weight: ir.Value) -> ir.Value:
    """Integer codes in the file, dequantized by the engine."""
    assert weight.const_value is not None
    codes = quantize(weight.const_value.numpy(), group.spec, group.params) if group.codes is None else group.codes
    unmap(weight)
    if group.spec.bits < 8:
        group, codes = _counted_from_zero(group, codes)
    stored = into.stored(f"{group.stem}_quantized", codes.astype(container_dtype(group.spec)), like=weight)
    return _linear(into.graph, "DequantizeLinear", group, stored, like=weight)


def _counted_from_zero(group: Group, codes: Array) -> tuple[Group, Array]:
    """The same numbers as int8 codes with zero point 0, as integer kernels want weights.

    Codes of fewer than 8 bits are at most 127 away from their zero point, so that they always fit. OpenVINO 2026.4.1
    runs a convolution whose weights have another zero point in float.
    """
    _, zero_point = group.params.expanded(group.spec, codes.shape)
    params = UniformParams(scale=group.params.scale, zero_point=np.zeros_like(group.params.zero_point))
    spec = QuantizerSpec(granularity=group.spec.granularity)
    return replace(group, spec=spec, params=params), codes - zero_point


def _activation(graph: ir.Graph, group: Group, value: ir.Value) -> ir.Value:
    narrow = group.spec.bits != _container_bits(group.spec)
    source = _before_saturation(group, value)
    source = _clipped(graph, group, source) if narrow else source
    quantized = _linear(graph, "QuantizeLinear", group, source, like=value)
    return _linear(graph, "DequantizeLinear", group, quantized, like=value)


def _before_saturation(group: Group, value: ir.Value) -> ir.Value:
    """What a value is clipped from, where its quantizer saturates at least as early and nobody else reads it.

    The codes are the same, and a pass over the tensor is saved.
    """
    if group.params.scale.size > 1 or not all(group.covers(node.name, at) for node, at in query.readers(value)):
        return value
    low, high = (float(end.astype(np.float32).item()) for end in group.params.range(group.spec))
    while not value.is_graph_output() and (clip := value.producer()) is not None and _is_within(low, high, clip):
        below = clip.inputs[0]
        assert below is not None
        value = below
        if query.sole_reader(value) is None:
            break
    return value


def _is_within(low: float, high: float, clip: ir.Node) -> bool:
    """Whether a node does nothing but clip its first input, to no less than this range."""
    bounds = [query.constant(bound) for bound in clip.inputs[1:]]
    if clip.domain or query.shape(clip.inputs[0]) != query.shape(clip.outputs[0]):
        return False
    match clip.op_type, bounds:
        case "Max", [np.ndarray() as least]:
            return bool((least <= low).all())
        case "Min", [np.ndarray() as most]:
            return bool((most >= high).all())
        case "Clip", [np.ndarray() as least, np.ndarray() as most]:
            return bool((least <= low).all() and (most >= high).all())
    return False


def _clipped(graph: ir.Graph, group: Group, value: ir.Value) -> ir.Value:
    """Codes of an odd width, held in a wider container: the container's own saturation comes too late."""
    low, high = group.params.range(group.spec)
    bounds = [
        _constant(graph, f"{group.stem}_{name}", np.asarray(bound, dtype=np.float32))
        for name, bound in (("low", low), ("high", high))
    ]
    node = ir.node("Clip", [value, *bounds], name=f"{group.stem}_clip")
    return _placed(graph, node, f"{group.stem}_clipped", like=value)


def _linear(graph: ir.Graph, op: str, group: Group, source: ir.Value, *, like: ir.Value) -> ir.Value:
    attributes: dict[str, int] = {}
    match group.spec.granularity:
        case PerTensor():
            pass
        case PerChannel(axis=axis):
            attributes = {"axis": axis}
        case PerBlock(axis=axis, size=size):
            attributes = {"axis": axis, "block_size": size}
    numbers = [
        _constant(graph, f"{group.stem}_scale", group.params.scale),
        _constant(graph, f"{group.stem}_zero_point", group.params.zero_point.astype(container_dtype(group.spec))),
    ]
    node = ir.node(op, [source, *numbers], attributes, name=f"{group.stem}_{op}")
    quantizes = op == "QuantizeLinear"
    result = _placed(graph, node, f"{group.stem}_{'quantized' if quantizes else 'dequantized'}", like=like)
    if quantizes:
        result.dtype = ir.DataType.from_numpy(container_dtype(group.spec))
    return result


def _placed(graph: ir.Graph, node: ir.Node, name: str, *, like: ir.Value) -> ir.Value:
    """Insert a node right behind the producer of its first input, so that the order stays topological."""
    producer = node.inputs[0].producer() if node.inputs[0] is not None else None
    if producer is not None:
        graph.insert_after(producer, node)
    elif len(graph):
        graph.insert_before(graph[0], node)
    output = node.outputs[0]
    output.name, output.shape = name, like.shape
    if like.dtype is not None:
        output.dtype = like.dtype
    return output


def _constant(graph: ir.Graph, name: str, array: Array) -> ir.Value:
    """An initializer, made once for each name."""
    if name not in graph.initializers:
        graph.register_initializer(ir.val(name, const_value=ir.tensor(np.asarray(array), name=name)))
    return graph.initializers[name]


def _write_biases(graph: ir.Graph, encoding: Encoding) -> None:
    """Store biases as int32 codes of scale `activation scale * weight scale`, as integer kernels add them.

    A node whose input or weight stayed float keeps its float bias, and so does one whose weight has several scales
    for an output channel: its products are no integers, and its bias has no scale.
    """
    nodes = {node.name: node for node in graph}
    for name in sorted(encoding.plan.int32_bias):
        if name not in nodes:
            raise _unknown("node", name)
        node = nodes[name]
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        scale = _product_scale(node)
        if bias is None or bias.const_value is None or scale is None:
            continue
        floats = bias.const_value.numpy().astype(np.float64)
        scale = np.broadcast_to(scale, floats.shape).astype(np.float32)
        codes = np.clip(np.rint(floats / scale), -_INT32_MAX, _INT32_MAX).astype(np.int32)
        stem = f"{name}_bias"
        numbers = [_constant(graph, f"{stem}_quantized", codes), _constant(graph, f"{stem}_scale", scale)]
        dequantize = ir.node("DequantizeLinear", numbers, {"axis": 0}, name=f"{stem}_DequantizeLinear")
        node.replace_input_with(2, _placed(graph, dequantize, f"{stem}_dequantized", like=bias))


def _product_scale(node: ir.Node) -> Array | None:
    """The product of the scales of a node's first two inputs, if both are dequantized and neither is per block."""
    scales = []
    for source in node.inputs[:2]:
        dequantize = source.producer() if source is not None else None
        if dequantize is None or dequantize.op_type != "DequantizeLinear":
            return None
        if dequantize.attributes.get_int("block_size", 0):
            return None
        scale = dequantize.inputs[1]
        assert scale is not None
        assert scale.const_value is not None
        scales.append(scale.const_value.numpy())
    return np.asarray(scales[0] * scales[1])


def _drop_unused_clips(graph: ir.Graph) -> None:
    """Drop what `_before_saturation` has passed by."""
    for node in reversed(list(graph)):
        if node.op_type in _CLIPS and not node.outputs[0].uses() and not node.outputs[0].is_graph_output():
            graph.remove(node, safe=True)


def _unknown(kind: str, name: str) -> ModelError:
    return ModelError(
        f"the encoding quantizes the {kind} {name!r}, which the model does not have",
        rule="an encoding belongs to one model",
        remedy="Quantize this model again",
    )
