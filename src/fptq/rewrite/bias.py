"""Bias correction: the mean error that quantization makes is taken out of each channel's bias.

Fast: with `W_q` in place of `W`, output channel `o` of a product shifts on average by
`sum_i,k (W_q - W)[o, i, k] * E[x_i]`; borders, where a padded kernel sees fewer inputs, are neglected, and so is what
quantized activations do. Full: the shift is measured in the simulated network, layer by layer.
Source: Nagel et al., Data-Free Quantization Through Weight Equalization and Bias Correction, ICCV 2019, section 4.2
(here with measured channel means), and its empirical variant.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import onnx_ir as ir

from fptq.graph import query
from fptq.graph.model import Model
from fptq.graph.placement import Placement
from fptq.graph.rest import unmap
from fptq.numerics import fake_quantize
from fptq.plan.conditions import PlainGemm
from fptq.plan.encoding import Encoding
from fptq.plan.materialize import materialize
from fptq.rewrite.channels import channel_means
from fptq.types import Array, Feeds, FeedSource, Progress, silent

MOST_RUNS = 48
"""Cuts of the network that full correction runs at most."""


@dataclass(frozen=True, kw_only=True)
class _Layer:
    """A product with a stored weight; `bias` is None where it has none yet."""

    node: str
    op: str
    group: int
    source: str
    result: str
    weight: Placement
    bias: str | None


def corrected_biases(model: Model, encoding: Encoding, feeds: Iterable[Feeds]) -> Model | None:
    """The model with biases that cancel the mean error of the encoding's weights; None where there is nothing to do.

    Layers whose result an InstanceNormalization centres are left out: it removes every shift of a channel.

    Args:
        model: The float network of the encoding.
        encoding: Gives the weights' codes.
        feeds: A few samples, for the mean of each input channel.
    """
    return shifted_biases(model, encoding, input_means(model, encoding, feeds))


def input_means(model: Model, encoding: Encoding, feeds: Iterable[Feeds]) -> Mapping[str, Array]:
    """The mean of each channel of what the layers read whose biases can be corrected, f64[C] by value name.

    It belongs to the float network: encodings of fewer layers or other widths need no other one.
    """
    axes = {layer.source: 1 for layer in _layers(model, encoding)}
    return channel_means(model, axes, feeds) if axes else {}


def shifted_biases(model: Model, encoding: Encoding, means: Mapping[str, Array]) -> Model | None:
    """What `corrected_biases` gives, from means that are known.

    Args:
        model: The float network of the encoding.
        encoding: Gives the weights' codes.
        means: Of at least what the encoding's layers read; see `input_means`.
    """
    layers = tuple(_layers(model, encoding))
    if not layers:
        return None
    changed = model.clone()
    for layer in layers:
        _write(changed, layer, _shift(model, encoding, layer, means))
        unmap(model.graph.initializers[layer.weight.value])
    return model.with_graph(changed)


def measured_biases(
    model: Model,
    encoding: Encoding,
    feeds: FeedSource,
    *,
    reference: Model | None = None,
    progress: Progress = silent,
) -> Model | None:
    """The model with biases that bring each layer's channel means to the float ones; None where there is no layer.

    In the order of execution, the quantized network is cut behind a layer and run with all layers before it corrected.
    Layers that do not depend on each other share a run; beyond `MOST_RUNS` cuts neighbours share one too, and a layer
    then sees what its neighbour loses a second time: correct by `corrected_biases` first, which leaves little of it.
    Layers whose result an InstanceNormalization centres are left out.

    Args:
        model: The float network of the encoding, its biases corrected already or not.
        encoding: The quantizers.
        feeds: A few samples; every cut is run on all of them.
        reference: Where the means come from: the network before any bias was corrected; None: `model`.
        progress: Told after every cut.
    """
    cuts = _cuts(model, tuple(_layers(model, encoding)))
    if not cuts:
        return None
    float_means = channel_means(reference or model, {layer.result: 1 for cut in cuts for layer in cut}, feeds)
    corrected = model
    for number, cut in enumerate(cuts, start=1):
        means = channel_means(materialize(corrected, encoding), {layer.result: 1 for layer in cut}, feeds)
        changed = corrected.clone()
        for layer in cut:
            _write(changed, layer, means[layer.result] - float_means[layer.result])
        corrected = corrected.with_graph(changed)
        progress(number, len(cuts), "bias correction")
    return corrected


def _cuts(model: Model, layers: Sequence[_Layer]) -> list[list[_Layer]]:
    """The layers in groups that one run measures, in the order of execution."""
    by_node = {layer.node: layer for layer in layers}
    depths: dict[str, int] = {}  # of nodes: how many layers lie on the longest way to their results
    groups: dict[int, list[_Layer]] = {}
    for node in model.graph:
        makers = (value.producer() for value in node.inputs if value is not None)
        name = str(node.name)
        depths[name] = max((depths[str(maker.name)] for maker in makers if maker is not None), default=0)
        if name in by_node:
            depths[name] += 1
            groups.setdefault(depths[name], []).append(by_node[name])
    levels = [groups[depth] for depth in sorted(groups)]
    bounds = np.linspace(0, len(levels), min(MOST_RUNS, len(levels)) + 1).astype(int)
    return [[layer for level in levels[a:b] for layer in level] for a, b in pairwise(bounds)]


def _write(changed: ir.Model, layer: _Layer, shift: Array) -> None:
    """Subtract a shift from the bias of a layer, or give it the bias that does."""
    name = layer.bias or f"{layer.node}_bias_correction"
    if layer.bias is None:
        node = query.node_named(changed, layer.node)
        added = ir.val(name, const_value=ir.tensor((-shift).astype(np.float32), name=name))
        changed.graph.register_initializer(added)
        node.resize_inputs(3)
        node.replace_input_with(2, added)
        return
    value = changed.graph.initializers[name]
    assert value.const_value is not None
    old = value.const_value.numpy()
    value.const_value = ir.tensor((old - shift).astype(old.dtype), name=name)


def _layers(model: Model, encoding: Encoding) -> Iterator[_Layer]:
    for node in model.graph:
        if node.op_type not in ("Conv", "ConvTranspose", "Gemm") or _centred(node) or PlainGemm()(node) is not None:
            continue
        source, weight, bias = (*node.inputs, None)[:3]
        if source is None or weight is None or (bias is not None and not _own(bias)):
            continue
        if query.rank(source) is None or query.rank(node.outputs[0]) is None:
            continue
        placement = Placement(str(weight.name), str(node.name), 1)
        if placement in encoding.plan.specs:
            group = node.attributes.get_int("group", 1) or 1
            yield _Layer(
                node=str(node.name),
                op=node.op_type,
                group=group,
                source=str(source.name),
                result=str(node.outputs[0].name),
                weight=placement,
                bias=str(bias.name) if bias is not None else None,
            )


def _own(bias: ir.Value) -> bool:
    """A stored bias that no other node reads."""
    return query.constant(bias) is not None and len(query.readers(bias)) == 1


def _centred(node: ir.Node) -> bool:
    reader = query.sole_reader(node.outputs[0])
    return reader is not None and reader.op_type == "InstanceNormalization"


def _shift(model: Model, encoding: Encoding, layer: _Layer, means: Mapping[str, Array]) -> Array:
    """Mean shift of each output channel, f64[C_out]."""
    weight = query.constant(model.graph.initializers[layer.weight.value])
    assert weight is not None
    spec, params = encoding.plan.specs[layer.weight], encoding.params[layer.weight]
    error = (fake_quantize(weight, spec, params) - weight).astype(np.float64)
    mean = means[layer.source]
    if layer.op == "Gemm":
        transposed = query.node_named(model.graph_model, layer.node).attributes.get_int("transB", 0)
        return np.asarray((error if transposed else error.T) @ mean)
    taps = error.reshape(*error.shape[:2], -1).sum(-1)
    blocks = mean.reshape(layer.group, -1)
    if layer.op == "Conv":  # [C_out, C_in / group]
        per_group = taps.reshape(layer.group, -1, taps.shape[1])
        return np.concatenate([block @ x for block, x in zip(per_group, blocks, strict=True)])
    # ConvTranspose stores [C_in, C_out / group]; each output sees one tap in `strides` of each input.
    strides = query.conv_attributes(query.node_named(model.graph_model, layer.node)).strides
    per_group = taps.reshape(layer.group, -1, taps.shape[1])
    summed = np.concatenate([block.T @ x for block, x in zip(per_group, blocks, strict=True)])
    return np.asarray(summed / np.prod(strides))
