"""What every layer would lose and cost in every format: the table that a search chooses from."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

import fptq
from fptq.cache import CacheEntry, cache_key
from fptq.engines import CompileOptions, Engine
from fptq.engines.cpu import detect
from fptq.engines.node_times import node_times
from fptq.errors import EngineError
from fptq.graph.model import Model
from fptq.graph.write import save
from fptq.plan import Plan, materialize
from fptq.recipes.study import Study
from fptq.search import Options
from fptq.search.table import monotone
from fptq.types import Progress

if TYPE_CHECKING:
    from fptq.analyze import Sensitivity

REST = "(everything else)"
"""The row of what is never quantized."""
_KIND, _VERSION = "latency", 2
_RUNS = 9

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, kw_only=True)
class Target:
    """Where latencies are measured.

    Attributes:
        engine: The engine.
        threads: CPU threads for one run.
    """

    engine: Engine
    threads: int

    @property
    def options(self) -> CompileOptions:
        """How networks are compiled for it: as they will run."""
        return CompileOptions(threads=self.threads, float_precision="default")


def cost_table(
    study: Study, found: Sensitivity, shapes: Shapes, *, target: Target | None, progress: Progress
) -> Options:
    """Losses and costs of every unit in every format, and a last row for what is never quantized.

    Args:
        study: The network in all formats.
        found: Its sensitivities.
        shapes: Of every value for one sample.
        target: Where latencies are measured; None: they do not matter.
        progress: Told about every format that is timed.
    """
    from fptq.analyze.cost import FLOAT, costs_of

    plans = {name: encoding.plan for name, encoding in study.encodings.items()}
    known = costs_of(study.model, found.units, plans, shapes)
    tables = {"size": known.size, "bops": known.bops}
    whole = {"size": 4.0 * study.model.parameter_count, "bops": _all_bops(study.model, shapes)}
    loss = np.hstack([np.zeros((len(found.units), 1)), found.loss])
    if target is not None:
        tables["latency"], whole["latency"] = _latencies(study, found, shapes, target, progress)
        loss = np.where(np.isnan(tables["latency"]), np.nan, loss)  # what the engine refuses is no choice
    rest = {name: [whole[name] - values[:, 0].sum()] * (1 + len(plans)) for name, values in tables.items()}
    return Options(
        items=(*(unit.name for unit in found.units), REST),
        formats=(FLOAT, *plans),
        loss=np.vstack([monotone(loss), [0.0, *[np.nan] * len(plans)]]),
        costs={name: np.vstack([np.nan_to_num(values), rest[name]]) for name, values in tables.items()},
    )


def _all_bops(model: Model, shapes: Shapes) -> float:
    from fptq.analyze.cost import multiplications

    return 32.0 * 32.0 * sum(multiplications(node, shapes) for node in model.graph)


def _latencies(
    study: Study, found: Sensitivity, shapes: Shapes, target: Target, progress: Progress
) -> tuple[NDArray[np.float64], float]:
    """Time of every unit in every format, NaN in those that the engine refuses, and of the float network [ms].

    Profiling slows an engine down; the times are scaled to what the float network takes without it.
    """
    from fptq.analyze.cost import node_latencies

    names = ("float", *study.encodings)
    times: dict[str, Mapping[str, float]] = {}
    total, scale = 0.0, 1.0
    for done, name in enumerate(names):
        progress(done, len(names), "latency of every layer")
        plan = None if name == "float" else study.encodings[name].plan
        entry = _timed(study, name, plan, shapes, target)
        times[name] = dict(zip(entry.meta["nodes"], map(float, entry.arrays["ms"]), strict=True))
        if name == "float":
            total = float(entry.meta["whole_ms"])
            scale = total / float(entry.meta["profiled_ms"])
    progress(len(names), len(names), "latency of every layer")
    table = node_latencies(found.units, times) * scale
    for column, name in enumerate(names):
        if not times[name]:
            table[:, column] = np.nan
    return table, total


def _timed(study: Study, name: str, plan: Plan | None, shapes: Shapes, target: Target) -> CacheEntry:
    """The engine's time of every node in one format, from the store or measured and stored."""
    key = _key(study.model, plan, shapes, target)
    entry = study.store.get(_KIND, key)
    if entry is None:
        entry = _measured(study, name, target)
        study.store.put(_KIND, key, entry)
    return entry


def _measured(study: Study, name: str, target: Target) -> CacheEntry:
    network = study.model if name == "float" else materialize(study.model, study.encodings[name])
    sample = study.samples[0]
    with tempfile.TemporaryDirectory(prefix="fptq-") as folder:
        path = Path(folder) / "timed.onnx"
        save(network, path)
        try:
            session = target.engine.compile(path, target.options)
            whole = sorted(session.time(sample) for _ in range(_RUNS))[_RUNS // 2] * 1e3
            runs = session.profile(sample, runs=_RUNS)
        except EngineError:
            if name == "float":
                raise
            return CacheEntry(arrays={"ms": np.zeros(0)}, meta={"nodes": [], "whole_ms": 0.0, "profiled_ms": 0.0})
    spent = node_times(study.model, runs)
    meta = {"nodes": list(spent), "whole_ms": whole, "profiled_ms": sum(run.time_ms for run in runs)}
    return CacheEntry(arrays={"ms": np.array(list(spent.values()))}, meta=meta)


def _key(model: Model, plan: Plan | None, shapes: Shapes, target: Target) -> str:
    """What decides about times: engine, processor, and every node with its shapes and quantizers; no weight."""
    cpu = detect()
    where = (target.engine.name, target.engine.version(), cpu.name, sorted(cpu.features), target.threads)
    specs = sorted((str(placement), str(spec)) for placement, spec in (plan.specs if plan else {}).items())
    nodes = [_signature(node, shapes) for node in model.graph]
    return cache_key(_VERSION, fptq.__version__, where, specs, nodes)


def _signature(node: ir.Node, shapes: Shapes) -> tuple[object, ...]:
    names = [str(value.name) for value in (*node.inputs, *node.outputs) if value is not None]
    attributes = sorted((name, str(attribute.value)) for name, attribute in node.attributes.items())
    return (str(node.name), node.op_type, attributes, [(name, shapes.get(name)) for name in names])
