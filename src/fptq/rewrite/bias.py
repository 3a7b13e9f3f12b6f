"""Bias correction: the mean error that rounded weights make is taken out of each channel's bias.

With `W_q` in place of `W`, output channel `o` of a product shifts on average by
`sum_i,k (W_q - W)[o, i, k] * E[x_i]`; borders, where a padded kernel sees fewer inputs, are neglected.
Source: Nagel et al., Data-Free Quantization Through Weight Equalization and Bias Correction, ICCV 2019, section 4.2;
here with measured channel means.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from fptq.errors import EngineError
from fptq.graph import query
from fptq.graph.model import Model
from fptq.graph.placement import Placement
from fptq.graph.write import loadable
from fptq.numerics import fake_quantize
from fptq.plan.encoding import Encoding
from fptq.types import Array, Feeds

_MEAN = "fptq.mean/"


@dataclass(frozen=True, kw_only=True)
class _Layer:
    """A product with a stored weight; `bias` is None where it has none yet."""

    node: str
    op: str
    group: int
    source: str
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
    layers = tuple(_layers(model, encoding))
    if not layers:
        return None
    means = _channel_means(model, {layer.source for layer in layers}, feeds)
    changed = model.clone()
    for layer in layers:
        _write(changed, layer, _shift(model, encoding, layer, means))
    return model.with_graph(changed)


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
        if node.op_type not in ("Conv", "ConvTranspose", "Gemm") or _centred(node):
            continue
        source, weight, bias = (*node.inputs, None)[:3]
        if source is None or weight is None or (bias is not None and not _own(bias)):
            continue
        placement = Placement(str(weight.name), str(node.name), 1)
        if placement in encoding.plan.specs:
            group = node.attributes.get_int("group", 1) or 1
            yield _Layer(
                node=str(node.name),
                op=node.op_type,
                group=group,
                source=str(source.name),
                weight=placement,
                bias=str(bias.name) if bias is not None else None,
            )


def _own(bias: ir.Value) -> bool:
    """A stored bias that no other node reads."""
    return query.constant(bias) is not None and len(query.readers(bias)) == 1


def _centred(node: ir.Node) -> bool:
    reader = query.sole_reader(node.outputs[0])
    return reader is not None and reader.op_type == "InstanceNormalization"


def _shift(model: Model, encoding: Encoding, layer: _Layer, means: dict[str, Array]) -> Array:
    """Mean shift of each output channel, f64[C_out]."""
    weight = query.constant(model.graph.initializers[layer.weight.value])
    assert weight is not None
    spec, params = encoding.plan.specs[layer.weight], encoding.params[layer.weight]
    error = (fake_quantize(weight, spec, params) - weight).astype(np.float64)
    mean = means[layer.source].astype(np.float64)
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


def _channel_means(model: Model, values: set[str], feeds: Iterable[Feeds]) -> dict[str, Array]:
    """Mean of each channel (axis 1 of convolutions' inputs, the last axis of matrices) over the samples."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.execution_order = ort.ExecutionOrder.PRIORITY_BASED
    try:
        with loadable(_averaging(model, values)) as source:
            session = ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        names = [output.name for output in session.get_outputs()]
        runs = [session.run(names, dict(sample)) for sample in feeds]
    except Exception as error:  # onnxruntime raises a family of unrelated pybind exceptions
        raise EngineError(f"channel means could not be measured: {error}") from error
    return {name.removeprefix(_MEAN): np.mean([run[i] for run in runs], 0) for i, name in enumerate(names)}


def _averaging(model: Model, values: set[str]) -> ir.Model:
    """A copy of the network that returns channel means of some values instead of its outputs."""
    changed = model.clone()
    graph = changed.graph
    graph.outputs.clear()
    for name, value in query.values(changed).items():
        rank = query.rank(value)
        if name not in values or rank is None:
            continue
        axes = [0] if rank == 2 else [axis for axis in range(rank) if axis != 1]
        stored = ir.val(f"{_MEAN}{name}/axes", const_value=ir.tensor(np.asarray(axes, np.int64)))
        graph.register_initializer(stored)
        mean = ir.node("ReduceMean", [value, stored], {"keepdims": 0}, name=f"{_MEAN}{name}")
        mean.outputs[0].name, mean.outputs[0].dtype = f"{_MEAN}{name}", ir.DataType.FLOAT
        producer = value.producer()
        if producer is None:
            graph.insert_before(graph[0], mean)
        else:
            graph.insert_after(producer, mean)
        graph.outputs.append(mean.outputs[0])
    RemoveUnusedNodesPass()(changed)
    return changed
