"""What every unit costs in every format: stored bytes, bit operations, time on an engine."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray

from fptq.analyze.units import Unit
from fptq.execute import Executor
from fptq.execute.overlay import watching
from fptq.graph import query
from fptq.graph.model import Model
from fptq.graph.placement import Placement
from fptq.numerics import QuantizerSpec, scale_shape
from fptq.plan.plan import Plan
from fptq.types import Feeds

Shapes = Mapping[str, tuple[int, ...]]

FLOAT = "float"
_FLOAT_BITS = 32
_SCALE_BYTES = 4


@dataclass(frozen=True, kw_only=True)
class Costs:
    """Costs by unit and format, "float" first.

    Attributes:
        units: The rows.
        formats: The columns.
        size: f64[units, formats]: stored bytes of the weights with their scales and zero points.
        bops: f64[units, formats]: bit operations of one run: multiplications times the bits of both factors.
        activations: f64[units, formats]: bytes of what the unit reads.
    """

    units: tuple[Unit, ...]
    formats: tuple[str, ...]
    size: NDArray[np.float64]
    bops: NDArray[np.float64]
    activations: NDArray[np.float64]


def costs_of(model: Model, units: Sequence[Unit], plans: Mapping[str, Plan], shapes: Shapes) -> Costs:
    """Costs that follow from shapes and widths; nothing is timed.

    Args:
        model: The network.
        units: What is decided together.
        plans: The plan of each format, "float" not among them.
        shapes: Of every value for the sample that counts; see `shapes_of`.
    """
    columns = [_column(model, units, plan, shapes) for plan in (None, *plans.values())]
    size, bops, activations = (np.array(rows).T for rows in zip(*columns, strict=True))
    return Costs(units=tuple(units), formats=(FLOAT, *plans), size=size, bops=bops, activations=activations)


def shapes_of(executor: Executor, sample: Feeds) -> dict[str, tuple[int, ...]]:
    """The shape of every floating-point value for one sample."""
    found: dict[str, tuple[int, ...]] = {}

    def see(placement: Placement, tensor: torch.Tensor) -> None:
        found[placement.value] = tuple(tensor.shape)

    with torch.no_grad():
        executor.run(sample, hook=watching(see))
    return found


def multiplications(node: ir.Node, shapes: Shapes) -> int:
    """Multiply-accumulate operations of a convolution or matrix product; 0 of anything else.

    Args:
        node: The node.
        shapes: Of its inputs and output.
    """
    if node.op_type not in query.CONVOLUTIONS | {"MatMul", "Gemm"}:
        return 0
    first, second = (shapes[str(value.name)] for value in node.inputs[:2] if value is not None)
    output = shapes[str(node.outputs[0].name)]
    match node.op_type:
        # A weight meets every output position of a convolution, every input position of a transposed one.
        case "Conv":
            return math.prod(second) * output[0] * math.prod(output[2:])
        case "ConvTranspose":
            return math.prod(second) * first[0] * math.prod(first[2:])
        case "Gemm":
            return math.prod(output) * first[0 if node.attributes.get_int("transA", 0) else 1]
        case _:
            return math.prod(output) * first[-1]


def stored_bytes(shape: tuple[int, ...], spec: QuantizerSpec | None) -> float:
    """Bytes of a stored tensor: codes without gaps, scales in f32, zero points as codes; f32 without a quantizer.

    >>> stored_bytes((8, 4), None)
    128.0
    >>> stored_bytes((8, 4), QuantizerSpec(bits=4))
    20.5
    """
    if spec is None:
        return float(math.prod(shape) * _FLOAT_BITS // 8)
    scales = math.prod(scale_shape(spec.granularity, shape))
    return math.prod(shape) * spec.bits / 8 + scales * (_SCALE_BYTES + spec.bits / 8)


def peak_activation_bytes(model: Model, specs: Mapping[Placement, QuantizerSpec], shapes: Shapes) -> float:
    """The most bytes of activations that are alive at one time, in the order of the graph.

    A value is held in the width of its quantizer where all of its readers see it quantized, otherwise in f32. What an
    engine adds (buffers of its kernels, padding, memory that it keeps) is not counted.

    Args:
        model: The network.
        specs: The quantizers; none: the float network.
        shapes: Of every floating-point value; see `shapes_of`.
    """
    values = {name: value for name, value in query.values(model.graph_model).items() if name in shapes}
    width = {n: _held_bits(v, specs) for n, v in values.items() if n not in model.graph.initializers}
    last = {str(value.name): at for at, node in enumerate(model.graph) for value in node.inputs if value is not None}
    last |= {str(value.name): len(model.graph) for value in model.graph.outputs}
    alive = sum(_bytes(str(value.name), width, shapes) for value in model.graph.inputs)
    peak = alive
    for at, node in enumerate(model.graph):
        alive += sum(_bytes(str(value.name), width, shapes) for value in node.outputs)
        peak = max(peak, alive)
        names = {str(value.name) for value in (*node.inputs, *node.outputs) if value is not None}
        alive -= sum(_bytes(name, width, shapes) for name in names if last.get(name, at) <= at)
    return peak


def _bytes(name: str, width: Mapping[str, int], shapes: Shapes) -> float:
    return math.prod(shapes[name]) * width[name] / 8 if name in width else 0.0


def _held_bits(value: ir.Value, specs: Mapping[Placement, QuantizerSpec]) -> int:
    name = str(value.name)
    if value.is_graph_output():
        return _FLOAT_BITS
    seen = [
        specs.get(Placement(name)) or specs.get(Placement(name, str(reader.name), index))
        for reader, index in query.readers(value)
    ]
    return max((_FLOAT_BITS if spec is None else spec.bits for spec in seen), default=_FLOAT_BITS)


def node_latencies(units: Sequence[Unit], times: Mapping[str, Mapping[str, float]]) -> NDArray[np.float64]:
    """f64[units, formats]: time of each unit's nodes on an engine [ms]; NaN where a format was not timed.

    Args:
        units: What is decided together.
        times: For each format the engine's own time of each node [ms].
    """
    rows = [[sum(by_node.get(name, 0.0) for name in _consumers(unit)) for by_node in times.values()] for unit in units]
    return np.array(rows, dtype=np.float64)


def _column(
    model: Model, units: Iterable[Unit], plan: Plan | None, shapes: Shapes
) -> tuple[list[float], list[float], list[float]]:
    specs = {} if plan is None else plan.specs
    nodes = {str(node.name): node for node in model.graph}
    size, bops, activations = [], [], []
    for unit in units:
        size.append(sum(stored_bytes(_stored_shape(model, p), specs.get(p)) for p in unit.weights))
        bops.append(sum(_bit_operations(nodes[name], specs, shapes) for name in _consumers(unit)))
        read = {p.value: specs.get(p) for p in unit.placements - unit.weights}
        bits = ((math.prod(shapes[value]), _FLOAT_BITS if spec is None else spec.bits) for value, spec in read.items())
        activations.append(sum(count * wide / 8 for count, wide in bits))
    return size, bops, activations


def _bit_operations(node: ir.Node, specs: Mapping[Placement, QuantizerSpec], shapes: Shapes) -> float:
    widths = []
    for index in (0, 1):
        value = node.inputs[index] if index < len(node.inputs) else None
        name = "" if value is None else str(value.name)
        spec = specs.get(Placement(name, str(node.name), index)) or specs.get(Placement(name))
        widths.append(_FLOAT_BITS if spec is None else spec.bits)
    return float(multiplications(node, shapes) * widths[0] * widths[1])


def _consumers(unit: Unit) -> tuple[str, ...]:
    return tuple(dict.fromkeys(p.consumer for p in sorted(unit.placements, key=str) if p.consumer is not None))


def _stored_shape(model: Model, placement: Placement) -> tuple[int, ...]:
    tensor = model.graph.initializers[placement.value].const_value
    assert tensor is not None
    return tuple(tensor.shape.numpy())
