"""What is known of each channel of some tensors, measured over samples: mean, largest magnitude, or both extremes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from fptq.errors import EngineError
from fptq.graph import query
from fptq.graph.model import Model
from fptq.graph.write import loadable
from fptq.types import Array, Feeds

_PREFIX = "fptq.channels/"


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


def _reduced(
    model: Model, axes: Mapping[str, int], feeds: Iterable[Feeds], reductions: Sequence[tuple[str, ...]]
) -> list[dict[str, Array]]:
    """For each reduction, a chain of operations, that of each value by sample: f64[samples, C]."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3
    # The default order runs the reductions last, with every activation alive until then.
    options.execution_order = ort.ExecutionOrder.PRIORITY_BASED
    if any(node.op_type == "QuantizeLinear" for node in model.graph):
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        with loadable(_reducing(model, axes, reductions)) as source:
            session = ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        names = [output.name for output in session.get_outputs()]
        taken = {value.name for value in session.get_inputs()}
        runs = [session.run(names, {name: sample[name] for name in taken}) for sample in feeds]
    except Exception as error:  # onnxruntime raises a family of unrelated pybind exceptions
        raise EngineError(f"channels could not be measured: {error}") from error
    found = {name: np.stack([run[at] for run in runs]).astype(np.float64) for at, name in enumerate(names)}
    return [{name: found[_result(name, at)] for name in axes} for at in range(len(reductions))]


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
