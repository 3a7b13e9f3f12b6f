"""Graph fragments that compute statistics where the tensors are, so that no tensor leaves the engine."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from fptq.calibrate.states import Kind, Reading
from fptq.calibrate.statistics import Statistic
from fptq.errors import DataError, ModelError
from fptq.graph.model import Model
from fptq.types import Array, Feeds

_FEWEST, _MOST = 8192, 65536  # elements of a sample of a tensor that has as many
_SPARSEST = 512
_PREFIX = "fptq.probe/"


@dataclass(frozen=True, kw_only=True)
class Probe:
    """Where the statistics of one tensor come out.

    Attributes:
        value: Name of the tensor.
        axis: The channel axis, or None.
        sampled: Whether a sample is taken.
    """

    value: str
    axis: int | None
    sampled: bool

    @property
    def name(self) -> str:
        """Start of the names of the outputs."""
        return f"{_PREFIX}{self.value}" if self.axis is None else f"{_PREFIX}{self.value}[{self.axis}]"

    def read(self, outputs: Feeds, number: int) -> Reading:
        """What one run told.

        Args:
            outputs: What the run returned.
            number: The sample's place in the walk, from 1, for the message.

        Raises:
            DataError: The tensor holds NaN or an infinity.
        """
        low, high = outputs[f"{self.name}/low"], outputs[f"{self.name}/high"]
        # Reductions to the extremes skip NaN in ONNX Runtime, sums do not.
        if np.isnan(outputs[f"{self.name}/sum"]).any() or not (np.isfinite(low).all() and np.isfinite(high).all()):
            raise DataError(
                f"sample {number}: tensor {self.value!r} holds NaN or an infinity",
                rule="statistics are of finite values",
                remedy="Look for a division by zero or an overflow in front of it",
            )
        if not self.sampled:
            return Reading(low=low, high=high)
        sample = outputs[f"{self.name}/sample"]
        if self.axis is None:
            return Reading(low=low, high=high, sample=sample)
        shape = tuple(int(d) for d in outputs[f"{self.name}/shape"])
        return Reading(low=low, high=high, sample=sample, channels=_channels(shape, self.axis))


def probed(model: Model, statistics: Iterable[Statistic]) -> tuple[ir.Model, tuple[Probe, ...]]:
    """A copy of the network that returns statistics instead of its outputs.

    Args:
        model: The network, opset 18 or newer.
        statistics: What to know.

    Returns:
        The copy, cut behind the last tensor that is asked about, and where to read the answers.

    Raises:
        ModelError: A tensor does not exist, or its rank is needed and unknown.
    """
    if model.opset < 18:
        raise ModelError(f"opset {model.opset}", rule="statistics are computed in opset 18 or newer")
    sampled: dict[tuple[str, int | None], bool] = {}
    for statistic in statistics:
        place = statistic.value, statistic.axis
        sampled[place] = sampled.get(place, False) or statistic.kind is Kind.SKETCH
    probes = tuple(Probe(value=value, axis=axis, sampled=on) for (value, axis), on in sampled.items())
    graph_model = model.clone()
    graph = graph_model.graph
    values = {v.name: v for v in (*graph.inputs, *(out for node in graph for out in node.outputs))}
    outputs: list[ir.Value] = []
    for probe in probes:
        if probe.value not in values:
            raise ModelError(f"the network has no tensor {probe.value!r}", rule="a plan belongs to one network")
        outputs += _attached(graph, values[probe.value], probe)
    graph.outputs.clear()
    graph.outputs.extend(outputs)
    RemoveUnusedNodesPass()(graph_model)
    return graph_model, probes


def sample_stride(shape: tuple[int, ...]) -> int:
    """Distance between sampled elements of a flattened tensor.

    A stride that shares a factor with the size of an axis visits a fraction of that axis only, so it is a prime
    that does not divide the number of elements.
    """
    size = math.prod(shape)
    target = min(size // _FEWEST, max(_SPARSEST, size // _MOST))
    return max((p for p in _primes() if p <= target and size % p), default=1)


@cache
def _primes() -> tuple[int, ...]:
    """Primes up to 10^6, each about 5 % above the one before."""
    found = [2]
    while found[-1] < 1_000_000:
        candidate = max(found[-1] + 1, int(found[-1] * 1.05))
        while any(candidate % d == 0 for d in range(2, math.isqrt(candidate) + 1)):
            candidate += 1
        found.append(candidate)
    return tuple(found)


def _channels(shape: tuple[int, ...], axis: int) -> Array:
    """Channel of each sampled element."""
    axis %= len(shape)
    flat = np.arange(0, math.prod(shape), sample_stride(shape))
    return np.asarray(flat // math.prod(shape[axis + 1 :]) % shape[axis])


def _attached(graph: ir.Graph, value: ir.Value, probe: Probe) -> list[ir.Value]:
    """Add the nodes behind `value`; returns their outputs."""
    fragment = _Fragment(graph, probe.name)
    axes = () if probe.axis is None else (fragment.constant("axes", _other_axes(value, probe.axis)),)
    results = {
        name: fragment.add(op, value, *axes, keepdims=0)
        for name, op in (("low", "ReduceMin"), ("high", "ReduceMax"), ("sum", "ReduceSum"))
    }
    if probe.sampled:
        results["sample"] = _sample(fragment, value)
    outputs = results
    if value.dtype is not ir.DataType.FLOAT:  # f16 and bf16 networks: the states are f32
        outputs = {name: fragment.add("Cast", result, to=ir.DataType.FLOAT) for name, result in results.items()}
    for output in outputs.values():
        output.type = ir.TensorType(ir.DataType.FLOAT)
    if probe.sampled and probe.axis is not None:
        outputs["shape"] = fragment.add("Shape", value)
        outputs["shape"].type = ir.TensorType(ir.DataType.INT64)
    for name, output in outputs.items():
        output.name = f"{probe.name}/{name}"
    producer = value.producer()
    if producer is None:
        graph.insert_before(graph[0], fragment.nodes)
    else:
        graph.insert_after(producer, fragment.nodes)
    return list(outputs.values())


def _other_axes(value: ir.Value, axis: int) -> list[int]:
    if value.shape is None:
        raise ModelError(
            f"the rank of tensor {value.name!r} is not known", rule="a quantizer per channel needs it to be"
        )
    rank = len(value.shape)
    return [a for a in range(rank) if a != axis % rank]


def _sample(fragment: _Fragment, value: ir.Value) -> ir.Value:
    """Every `sample_stride`-th element."""
    flat = fragment.add("Reshape", value, fragment.constant("flat", [-1]))
    zero, end = fragment.constant("zero", [0]), fragment.constant("end", [np.iinfo(np.int64).max])
    if value.shape is not None and all(isinstance(d, int) for d in value.shape):
        shape = tuple(d for d in value.shape if isinstance(d, int))
        stride = fragment.constant("stride", [sample_stride(shape)])
    else:
        stride = _dynamic_stride(fragment, value)
    return fragment.add("Slice", flat, zero, end, zero, stride)


def _dynamic_stride(fragment: _Fragment, value: ir.Value) -> ir.Value:
    """`sample_stride` in the graph, for shapes that are known only when it runs."""
    size = fragment.add("Size", value)
    sparse = fragment.add("Div", size, fragment.constant("most", [_MOST]))
    sparse = fragment.add("Max", sparse, fragment.constant("sparsest", [_SPARSEST]))
    target = fragment.add("Min", fragment.add("Div", size, fragment.constant("fewest", [_FEWEST])), sparse)
    primes, zero, one = fragment.constant("primes", _primes()), fragment.constant("no", 0), fragment.constant("one", 1)
    small = fragment.add("LessOrEqual", primes, target)
    coprime = fragment.add("Greater", fragment.add("Mod", size, primes), zero)
    candidates = fragment.add("Where", fragment.add("And", small, coprime), primes, one)
    return fragment.add("ReduceMax", candidates, fragment.constant("all", [0]), keepdims=1)


class _Fragment:
    """Nodes to be inserted together, under names of their own."""

    def __init__(self, graph: ir.Graph, name: str) -> None:
        self.graph, self.name, self.nodes = graph, name, list[ir.Node]()

    def add(self, op: str, *inputs: ir.Value, **attributes: int) -> ir.Value:
        """A node with one output."""
        name = f"{self.name}/{op}.{len(self.nodes)}"
        node = ir.node(op, inputs, attributes, name=name)
        node.outputs[0].name = name
        self.nodes.append(node)
        return node.outputs[0]

    def constant(self, name: str, numbers: object) -> ir.Value:
        """An i64 initializer."""
        array = np.array(numbers, dtype=np.int64)
        tensor = ir.tensor(array, name=f"{self.name}/{name}")
        value = ir.Value(
            name=tensor.name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape), const_value=tensor
        )
        self.graph.register_initializer(value)
        return value
