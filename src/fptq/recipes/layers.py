"""One record for each quantized tensor: what was asked, what ran, how much it costs in accuracy."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from fptq.calibrate import Statistic
from fptq.calibrate.probe import probed
from fptq.calibrate.sketch import Sketch
from fptq.calibrate.states import Kind
from fptq.engines import NodeRun
from fptq.engines.node_times import slowest_runs
from fptq.graph import query
from fptq.graph.model import Model
from fptq.graph.placement import Placement
from fptq.graph.rest import settle, unmap
from fptq.graph.write import loadable
from fptq.numerics import UniformParams, fake_quantize, sqnr
from fptq.recipes.prepare import Prepared
from fptq.recipes.problem import Problem
from fptq.report.tensors import Histogram, PlacementRecord, Scale
from fptq.types import Array, Feeds

_BINS = 128


def placement_records(problem: Problem, prepared: Prepared, nodes: tuple[NodeRun, ...]) -> tuple[PlacementRecord, ...]:
    """A record for each placement, in the order of execution."""
    ran = slowest_runs(nodes)
    context = _Context(prepared=prepared, ran=ran, samples=_sampled(problem, prepared))
    position = {str(node.name): i for i, node in enumerate(prepared.float_model.graph)}
    placements = sorted(prepared.encoding.plan.specs, key=lambda p: position.get(p.consumer or "", -1))
    return tuple(context.record(placement) for placement in placements)


@dataclass(frozen=True, kw_only=True)
class _Details:
    """What is known of a tensor's values."""

    range: tuple[float, float] | None = None
    sqnr_local_db: float | None = None
    sqnr_accumulated_db: float | None = None
    histogram: Histogram | None = None


@dataclass(frozen=True, kw_only=True)
class _Context:
    prepared: Prepared
    ran: Mapping[str, NodeRun]
    samples: Mapping[str, tuple[Array, Array]]

    def record(self, placement: Placement) -> PlacementRecord:
        plan = self.prepared.encoding.plan
        params, spec = self.prepared.encoding.params[placement], plan.specs[placement]
        low, high = params.range(spec)
        weight = placement in plan.weights
        ran = self.ran.get(placement.consumer or "")
        details = self._weight(placement) if weight else self._activation(placement)
        node = self._node(placement)
        return PlacementRecord(
            placement=str(placement),
            tensor=placement.value,
            consumers=(placement.consumer,) if placement.consumer else self._readers(placement.value),
            op=node.op_type if node is not None else "",
            module=self.prepared.float_model.module_of(str(node.name)) if node is not None else "",
            kind="weight" if weight else "activation",
            requested=str(spec),
            realized=ran.precision if ran else None,
            kernel=ran.kernel if ran else None,
            scale=_scale(params),
            clipping=(float(low.min()), float(high.max())),
            range=details.range,
            sqnr_local_db=details.sqnr_local_db,
            sqnr_accumulated_db=details.sqnr_accumulated_db,
            histogram=details.histogram,
        )

    def _node(self, placement: Placement) -> ir.Node | None:
        graph_model = self.prepared.float_model.graph_model
        if placement.consumer is not None:
            return query.node_named(graph_model, placement.consumer)
        return query.values(graph_model)[placement.value].producer()

    def _readers(self, value: str) -> tuple[str, ...]:
        found = query.values(self.prepared.float_model.graph_model)[value]
        return tuple(str(node.name) for node, _ in query.readers(found))

    def _weight(self, placement: Placement) -> _Details:
        stored = self.prepared.float_model.graph.initializers[placement.value]
        details = self._of_weight(placement, query.constant(stored))
        unmap(stored)
        return details

    def _of_weight(self, placement: Placement, value: Array | None) -> _Details:
        assert value is not None
        spec, params = self.prepared.encoding.plan.specs[placement], self.prepared.encoding.params[placement]
        counts, edges = np.histogram(value, bins=_BINS)
        return _Details(
            range=(float(value.min()), float(value.max())),
            sqnr_local_db=sqnr(value, fake_quantize(value, spec, params)),
            histogram=_histogram(edges, counts),
        )

    def _activation(self, placement: Placement) -> _Details:
        details = _observed(self.prepared.statistics.states.get(Statistic(placement.value, Kind.SKETCH)))
        if placement.value not in self.samples:
            return details
        exact, simulated = self.samples[placement.value]
        spec, params = self.prepared.encoding.plan.specs[placement], self.prepared.encoding.params[placement]
        local = sqnr(exact, fake_quantize(exact, spec, params)) if not params.scale.shape else None
        return replace(details, sqnr_local_db=local, sqnr_accumulated_db=sqnr(exact, simulated))


def _observed(state: object) -> _Details:
    """Range and histogram from the calibration's sketch; nothing where the observer needed none."""
    if not isinstance(state, Sketch):
        return _Details()
    histogram = state.histograms()[0]
    bins = histogram.positive.size
    edges = np.arange(-bins, bins + 1) * float(histogram.width)
    counts = np.concatenate([histogram.negative[::-1], histogram.positive])
    counts[bins] += histogram.zeros
    return _Details(
        range=(histogram.low, histogram.high),
        histogram=_histogram(*_cut(edges, counts, histogram.low, histogram.high)),
    )


def _sampled(problem: Problem, prepared: Prepared) -> dict[str, tuple[Array, Array]]:
    """The same strided elements of each quantized activation, in the float and in the simulated network."""
    # A value that is only clipped for a quantizer that saturates by itself is not in the quantized network.
    there = query.values(prepared.model.graph_model)
    names = tuple(dict.fromkeys(p.value for p in prepared.encoding.plan.activations if p.value in there))
    if not names:
        return {}
    feeds = problem.held_out[0]
    exact = _samples_of(prepared.float_model, names, feeds)
    settle(prepared.float_model)  # its session is over
    simulated = _samples_of(prepared.model, names, feeds)
    settle(prepared.float_model)
    return {name: (exact[name], simulated[name]) for name in names}


def _samples_of(model: Model, names: Iterable[str], feeds: Feeds) -> dict[str, Array]:
    graph_model, probes = probed(model, [Statistic(name, Kind.SKETCH) for name in names])
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.execution_order = ort.ExecutionOrder.PRIORITY_BASED
    with loadable(graph_model) as source:
        session = ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        outputs = [output.name for output in session.get_outputs()]
        wanted = {i.name for i in session.get_inputs()}
        found = dict(zip(outputs, session.run(outputs, {n: a for n, a in feeds.items() if n in wanted}), strict=True))
    # Copies: the engine's own arrays keep all that it has allocated.
    return {probe.value: np.array(found[f"{probe.name}/sample"]) for probe in probes}


def _scale(params: UniformParams) -> Scale:
    zero_points = np.unique(params.zero_point)
    return Scale(
        count=params.scale.size,
        low=float(params.scale.min()),
        high=float(params.scale.max()),
        zero_point=int(zero_points[0]) if zero_points.size == 1 else None,
    )


def _cut(edges: Array, counts: Array, low: float, high: float) -> tuple[Array, Array]:
    """The bins between the extremes."""
    first = max(int(np.searchsorted(edges, low, "right")) - 1, 0)
    last = min(max(int(np.searchsorted(edges, high, "left")), first + 1), counts.size)
    return edges[first : last + 1], counts[first:last]


def _histogram(edges: Array, counts: Array) -> Histogram | None:
    if not (np.diff(edges) > 0).all():
        return None  # a constant tensor
    return Histogram.of([float(e) for e in edges], [float(c) for c in counts], bins=_BINS)
