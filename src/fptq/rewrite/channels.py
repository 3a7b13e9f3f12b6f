"""What is known of each channel of some tensors, over samples: mean, largest magnitude, both extremes, rows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from fptq.errors import EngineError
from fptq.graph import query
from fptq.graph.model import Model
from fptq.graph.write import loadable
from fptq.types import Array, Feeds

_PREFIX = "fptq.channels/"
ROWS = 512
"""Vectors of channels that are kept of a tensor, for each sample."""


def channel_means(model: Model, axes: Mapping[str, int], feeds: Iterable[Feeds]) -> dict[str, Array]:
    """The mean of each channel over the samples and all other axes, f64[C] by value name.

    Args:
        model: A float network, or one with Q/DQ nodes: that one runs as the simulation, node by node.
        axes: The channel axis of every value that is asked for; each value's rank is known.
        feeds: The samples, each of equal weight. Only what the values depend on is run.

    Raises:
        EngineError: ONNX Runtime failed.
    """
    (found,) = _reduced(model, axes, feeds, [("ReduceMean",)])
    return {name: np.mean(runs, axis=0) for name, runs in found.items()}


def channel_maxima(model: Model, axes: Mapping[str, int], feeds: Iterable[Feeds]) -> dict[str, Array]:
    """The largest magnitude of each channel over the samples, f64[C] by value name; see `channel_means`."""
    (found,) = _reduced(model, axes, feeds, [("Abs", "ReduceMax")])
    return {name: np.max(runs, axis=0) for name, runs in found.items()}


def channel_extremes(model: Model, axes: Mapping[str, int], feeds: Iterable[Feeds]) -> dict[str, tuple[Array, Array]]:
    """The lowest and highest value of each channel over the samples, f64[C] each by value name; see `channel_means`."""
    lows, highs = _reduced(model, axes, feeds, [("ReduceMin",), ("ReduceMax",)])
    return {name: (np.min(lows[name], axis=0), np.max(highs[name], axis=0)) for name in axes}


def channel_rows(model: Model, axes: Mapping[str, int], feeds: Iterable[Feeds]) -> dict[str, Array]:
    """Some vectors of channels, f32[R, C] by value name: at most `ROWS` of each sample, evenly spread."""
    changed = model.clone()
    found = query.values(changed)
    kept = [ir.node("Identity", [found[name]], name=f"{_PREFIX}{name}") for name in axes]
    for name, node in zip(axes, kept, strict=True):
        node.outputs[0].name, node.outputs[0].dtype = f"{_PREFIX}{name}", ir.DataType.FLOAT
    changed.graph.extend(kept)
    changed.graph.outputs[:] = [node.outputs[0] for node in kept]
    RemoveUnusedNodesPass()(changed)
    runs = [
        {name: _spread(np.moveaxis(array, axes[name], -1)) for name, array in zip(axes, run, strict=True)}
        for run in _runs(changed, feeds)
    ]
    return {name: np.concatenate([run[name] for run in runs]) for name in axes}


def _spread(array: Array) -> Array:
    rows = array.reshape(-1, array.shape[-1])
    spread: Array = rows[np.linspace(0, len(rows) - 1, min(ROWS, len(rows))).astype(int)]
    return spread


def _reduced(
    model: Model, axes: Mapping[str, int], feeds: Iterable[Feeds], reductions: Sequence[tuple[str, ...]]
) -> list[dict[str, Array]]:
    """For each reduction, a chain of operations, that of each value by sample: f64[samples, C]."""
    changed = _reducing(model, axes, reductions)
    names, runs = [str(output.name) for output in changed.graph.outputs], list(_runs(changed, feeds))
    found = {name: np.stack([run[at] for run in runs]).astype(np.float64) for at, name in enumerate(names)}
    return [{name: found[_result(name, at)] for name in axes} for at in range(len(reductions))]


def _runs(graph_model: ir.Model, feeds: Iterable[Feeds]) -> Iterator[list[Array]]:
    """The outputs of each sample, in order."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3
    # The default order runs the reductions last, with every activation alive until then.
    options.execution_order = ort.ExecutionOrder.PRIORITY_BASED
    if any(node.op_type == "QuantizeLinear" for node in graph_model.graph):
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    names = [str(output.name) for output in graph_model.graph.outputs]
    try:
        with loadable(graph_model) as source:
            session = ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        taken = {value.name for value in session.get_inputs()}
        for sample in feeds:
            yield session.run(names, {name: sample[name] for name in taken})
    except Exception as error:  # onnxruntime raises a family of unrelated pybind exceptions
        raise EngineError(f"channels could not be measured: {error}") from error


def _result(value: str, reduction: int) -> str:
    return f"{_PREFIX}{reduction}/{value}"


def _reducing(model: Model, axes: Mapping[str, int], reductions: Sequence[tuple[str, ...]]) -> ir.Model:
    """A copy of the network that returns the reductions instead of its outputs."""
    changed = model.clone()
    graph = changed.graph
    graph.outputs.clear()
    found = query.values(changed)
    for name, channel in axes.items():
        rank = query.rank(found[name])
        assert rank is not None
        others = [axis for axis in range(rank) if axis != channel % rank]
        stored = ir.val(f"{_PREFIX}{name}/axes", const_value=ir.tensor(np.asarray(others, np.int64)))
        graph.register_initializer(stored)
        for number, (*before, reduction) in enumerate(reductions):
            source, nodes = found[name], []
            for op in before:
                nodes.append(ir.node(op, [source], name=f"{_result(name, number)}/{op}"))
                source = nodes[-1].outputs[0]
            nodes.append(ir.node(reduction, [source, stored], {"keepdims": 0}, name=_result(name, number)))
            result = nodes[-1].outputs[0]
            result.name, result.dtype = _result(name, number), ir.DataType.FLOAT
            producer = found[name].producer()
            if producer is None:
                graph.insert_before(graph[0], nodes)
            else:
                graph.insert_after(producer, nodes)
            graph.outputs.append(result)
    RemoveUnusedNodesPass()(changed)
    return changed
