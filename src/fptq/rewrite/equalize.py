"""Cross-layer equalization: the ranges of a channel's weights are made equal in the two layers that it joins.

Between two linear layers with `f(s x) = s f(x)` for positive `s`, output channel `c` of the first one can be divided by
`s_c` and input channel `c` of the second one multiplied by it. With ranges `r1, r2` of the two weights,
`s_c = sqrt(r1_c r2_c) / r2_c` makes both `sqrt(r1_c r2_c)`, so that no channel is drowned by the scale of another.
Source: Nagel et al., Data-Free Quantization Through Weight Equalization and Bias Correction, ICCV 2019, section 4.1.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from fptq.graph import query
from fptq.graph.model import Model
from fptq.graph.rest import put_to_rest
from fptq.rewrite.homogeneous import is_homogeneous
from fptq.types import Array

_LAYERS = frozenset({"Conv", "ConvTranspose", "Gemm"})
_BETWEEN = frozenset(
    {
        "Relu",
        "LeakyRelu",
        "PRelu",
        "MaxPool",
        "AveragePool",
        "GlobalMaxPool",
        "GlobalAveragePool",
        "Identity",
        "Dropout",
        "Resize",
        "Flatten",
        "Reshape",
    }
)
"""What leaves channels where they are, of what a positive factor passes through."""

LARGEST = 1e4
"""Channels that need a factor beyond this, or below its inverse, are all but zero in one of the layers: left alone."""
_SWEEPS = 50
_SETTLED = 1e-3
"""Largest |log factor| of a sweep after which chains have converged."""


@dataclass(frozen=True, kw_only=True)
class _Layer:
    """A linear layer whose stored tensors nobody else reads.

    Attributes:
        node: Its name.
        op: Conv, ConvTranspose or Gemm.
        group: Number of groups.
        transposed: Gemm: whether the weight is [C_out, C_in].
        weight: Name of the weight.
        bias: Name of the bias; None where it has none.
        outputs: Number of output channels.
        inputs: Number of input channels.
    """

    node: str
    op: str
    group: int
    transposed: bool
    weight: str
    bias: str | None
    outputs: int
    inputs: int

    def by_channels(self, weight: Array) -> Array:
        """The weight as [group, C_out / group, C_in / group, taps]."""
        parted = weight.reshape(self.group, weight.shape[0] // self.group, weight.shape[1], -1)
        return parted if self._outputs_first else parted.swapaxes(1, 2)

    def as_stored(self, parted: Array, shape: tuple[int, ...]) -> Array:
        """The inverse of `by_channels`."""
        return (parted if self._outputs_first else parted.swapaxes(1, 2)).reshape(shape)

    @property
    def _outputs_first(self) -> bool:
        return self.op == "Conv" or self.transposed


@dataclass(frozen=True, kw_only=True)
class _Ranges:
    """The largest magnitude of a layer's weight by group, output and input channel, and the factors found so far.

    Attributes:
        largest: f64[group, C_out / group, C_in / group], of the weight as it is stored.
        out: f64[C_out], what output channels are divided by.
        into: f64[C_in], what input channels are multiplied by.
    """

    largest: Array
    out: Array
    into: Array

    @classmethod
    def of(cls, layer: _Layer, weight: Array) -> _Ranges:
        largest = np.abs(layer.by_channels(weight)).max(axis=-1).astype(np.float64)
        return cls(largest=largest, out=np.ones(layer.outputs), into=np.ones(layer.inputs))

    @property
    def factors(self) -> Array:
        """What the weight is multiplied by, f64[group, C_out / group, C_in / group]."""
        groups, outputs, inputs = self.largest.shape
        return self.into.reshape(groups, 1, inputs) / self.out.reshape(groups, outputs, 1)

    @property
    def of_outputs(self) -> Array:
        """The range of each output channel, f64[C_out]."""
        return np.asarray((self.largest * self.factors).max(axis=2).reshape(-1))

    @property
    def of_inputs(self) -> Array:
        """The range of each input channel, f64[C_in]."""
        return np.asarray((self.largest * self.factors).max(axis=1).reshape(-1))


def equalized(model: Model) -> Model | None:
    """The model with equal weight ranges across its pairs of layers, exact but for rounding.

    Names of nodes and values stay, so a plan for the model is one for the result. A pair are two of Conv,
    ConvTranspose and Gemm with nothing but activations and poolings between them that pass positive factors on; each
    result has a single reader and is no output of the network, and nobody else reads the weights and biases.
    In chains the pairs are swept until no factor moves any more.

    Returns:
        The model; None where there is no pair, or the ranges are equal already.
    """
    pairs = tuple(_pairs(model))
    if not pairs:
        return None
    layers = {layer.node: layer for pair in pairs for layer in pair}
    ranges = {name: _Ranges.of(layer, _content(model, layer.weight)) for name, layer in layers.items()}
    if not _sweep(ranges, pairs):
        return None
    changed = model.clone()
    for name, layer in layers.items():
        _write(changed, layer, ranges[name])
    put_to_rest(changed)
    return model.with_graph(changed)


def _sweep(ranges: Mapping[str, _Ranges], pairs: Sequence[tuple[_Layer, _Layer]]) -> bool:
    """Find the factors, in place; returns whether any channel gets one that matters."""
    for sweep in range(_SWEEPS):
        furthest = 0.0
        for first, second in pairs:
            before, after = ranges[first.node], ranges[second.node]
            factor = _factors(before.of_outputs, after.of_inputs)
            before.out[:] *= factor
            after.into[:] *= factor
            furthest = max(furthest, float(np.abs(np.log(factor)).max()))
        if furthest < _SETTLED:
            return sweep > 0
    return True


def _factors(first: Array, second: Array) -> Array:
    """sqrt(r1 r2) / r2 for each channel; 1 where one of the ranges is zero or the two are too far apart."""
    alive = (first > 0) & (second > 0)
    factor = np.sqrt(np.divide(first, second, out=np.ones_like(first), where=alive))
    return np.where((factor <= LARGEST) & (factor >= 1 / LARGEST), factor, 1.0)


def _write(changed: ir.Model, layer: _Layer, found: _Ranges) -> None:
    value = changed.graph.initializers[layer.weight]
    old = query.constant(value)
    assert old is not None
    scaled = layer.by_channels(old) * found.factors[..., None]
    value.const_value = ir.tensor(layer.as_stored(scaled, old.shape).astype(old.dtype), name=layer.weight)
    if layer.bias is None:
        return
    value = changed.graph.initializers[layer.bias]
    old = query.constant(value)
    assert old is not None
    divided = old.reshape(-1) / found.out
    value.const_value = ir.tensor(divided.reshape(old.shape).astype(old.dtype), name=layer.bias)


def _pairs(model: Model) -> Iterator[tuple[_Layer, _Layer]]:
    for node in model.graph:
        first = _layer(node)
        reader = _next_layer(node) if first is not None else None
        second = _layer(reader) if reader is not None else None
        if first is not None and second is not None and first.outputs == second.inputs:
            yield first, second


def _layer(node: ir.Node) -> _Layer | None:
    """The node as a layer whose channels can be scaled; None where it cannot be."""
    if node.op_type not in _LAYERS or node.domain or node.attributes.get_int("transA", 0) == 1:
        return None
    weight, bias = (*node.inputs, None)[1:3]
    stored, offset = _owned(weight), _owned(bias)
    if weight is None or stored is None or (bias is not None and offset is None):
        return None
    group = node.attributes.get_int("group", 1) or 1
    transposed = node.attributes.get_int("transB", 0) == 1
    outputs, inputs = stored.shape[:2] if node.op_type == "Conv" or transposed else stored.shape[1::-1]
    if node.op_type == "Conv":
        inputs *= group
    else:
        outputs *= group
    if offset is not None and offset.size != outputs:
        return None  # a Gemm's bias may be one number for all channels, or one for every element
    return _Layer(
        node=str(node.name),
        op=node.op_type,
        group=group,
        transposed=transposed,
        weight=str(weight.name),
        bias=str(bias.name) if bias is not None else None,
        outputs=outputs,
        inputs=inputs,
    )


def _owned(value: ir.Value | None) -> Array | None:
    """The content of a stored floating-point tensor with a single reader."""
    content = query.constant(value)
    if value is None or content is None or content.dtype.kind != "f":
        return None
    return content if len(query.readers(value)) == 1 and not value.is_graph_output() else None


def _content(model: Model, name: str) -> Array:
    content = query.constant(model.graph.initializers[name])
    assert content is not None
    return content


def _next_layer(node: ir.Node) -> ir.Node | None:
    """The layer that alone reads what a node computes, seen through what passes factors on."""
    value = node.outputs[0]
    while (reader := query.sole_reader(value)) is not None:
        if reader.domain or reader.inputs[0] is not value:
            return None
        if reader.op_type in _LAYERS:
            return reader
        if not _passes_factors(reader):
            return None
        value = reader.outputs[0]
    return None


def _passes_factors(node: ir.Node) -> bool:
    """Whether factors of the channels, on axis 1, come out of a node as they go in."""
    before, after = query.shape(node.inputs[0]), query.shape(node.outputs[0])
    if node.op_type not in _BETWEEN or before is None or after is None or len(before) < 2 or len(after) < 2:
        return False
    if not isinstance(before[1], int) or before[1] != after[1] or not is_homogeneous(node):
        return False
    if node.op_type in ("Flatten", "Reshape"):
        return len(after) == 2 and all(size == 1 for size in before[2:])
    return True
