"""What would be quantized, and how files compare: nothing is calibrated or written here."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

from fptq.config import Recipe
from fptq.engines import CompileOptions, Session, engine_named
from fptq.engines.benchmark import interleaved
from fptq.engines.cpu import made_elsewhere
from fptq.engines.footprint import footprint
from fptq.errors import ConfigError
from fptq.graph.load import LoadOptions, load, read_onnx
from fptq.graph.sample import random_feeds
from fptq.graph.trust import Trust
from fptq.graph.write import file_bytes
from fptq.plan import PROFILES
from fptq.plan.place import survey
from fptq.recipes.choose_engine import engines_to_try
from fptq.recipes.prepare import policy_of
from fptq.rewrite import PASSES
from fptq.types import Feeds, Progress, silent

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class InspectionRow:
    """One node: its names, and what becomes of it.

    Attributes:
        node: Name of the node.
        op: Its operation.
        module: Where it is in the user's model; empty where unknown.
        decision: "int8" or "float".
        reason: Why it stays float, or which quantizers it gets.
    """

    node: str
    op: str
    module: str
    decision: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """What the profile of an engine says about a network, before anything is measured.

    Attributes:
        engine: The engine.
        rows: One for each node, in the order of execution.
        notes: What loading changed.
    """

    engine: str
    rows: tuple[InspectionRow, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class BenchRow:
    """One file on one engine.

    Attributes:
        path: The file.
        engine: The engine.
        precision: "f32", or "default" for the engine's own choice of float.
        median_ms: Median latency [ms].
        p95_ms: 95th percentile of the latency [ms].
        peak_memory_mb: Peak memory of a fresh process [MB].
        size_mb: Size of the file [MB].
        load_s: Compile time [s].
    """

    path: str
    engine: str
    precision: str
    median_ms: float
    p95_ms: float
    peak_memory_mb: float
    size_mb: float
    load_s: float


def inspect(model: object, *, recipe: Recipe | None = None) -> Inspection:
    """What would be quantized, what not, and why.

    Args:
        model: What `quantize` takes; a module cannot be inspected without an example, so export it first.
        recipe: Engine and wishes about placement.
    """
    recipe = recipe or Recipe()
    engine = engines_to_try(recipe)[0]
    profile = PROFILES[engine.name]
    options = LoadOptions(dynamic=recipe.dynamic, trust=Trust.given(recipe.trust))
    loaded = load(model, options=options)
    for name in profile.passes:
        loaded = PASSES[name](loaded)
    plan = survey(loaded, profile, profile.variants[0], policy_of(recipe))
    reasons = {refusal.node: refusal.reason for refusal in plan.refusals}
    quantized: dict[str, list[str]] = {}
    for placement, spec in plan.specs.items():
        if placement.consumer is not None:
            quantized.setdefault(placement.consumer, []).append(f"{placement.value}: {spec}")
    rows = []
    for node in loaded.graph:
        name = str(node.name)
        rows.append(
            InspectionRow(
                node=name,
                op=node.op_type,
                module=loaded.module_of(name),
                decision="int8" if name in quantized else "float",
                reason="; ".join(quantized[name]) if name in quantized else reasons.get(name, ""),
            )
        )
    return Inspection(engine=engine.name, rows=tuple(rows), notes=loaded.notes)


def bench(
    paths: Sequence[Path],
    *,
    engines: Sequence[str],
    threads: int | None = None,
    rounds: int = 15,
    progress: Progress = silent,
) -> tuple[BenchRow, ...]:
    """Time files on engines, all interleaved in one run, on random inputs.

    Args:
        paths: ONNX files that take the same inputs.
        engines: Names of engines.
        threads: CPU threads for one run; None: the engine's processor count.
        rounds: Timed rounds.
        progress: Told after every round.

    Raises:
        ConfigError: There is nothing to compare, or the files take different inputs.
    """
    if not (paths and engines):
        raise ConfigError("nothing to time", rule="bench takes at least one file and one engine")
    feeds = _common_feeds(paths)
    made = _compiled(paths, engines, threads or _cpu_count())
    keyed = {" ".join(map(str, key)): session for key, (session, _) in made.items()}
    timings = interleaved(keyed, feeds, rounds=rounds, progress=progress)
    rows = []
    for key, (session, options) in made.items():
        path, name, precision = key
        timing = timings[" ".join(map(str, key))]
        rows.append(
            BenchRow(
                path=str(path),
                engine=name,
                precision=precision,
                median_ms=timing.median_ms,
                p95_ms=timing.p95_ms,
                peak_memory_mb=footprint(path, name, feeds, options).peak_memory_mb,
                size_mb=file_bytes(path) / 1e6,
                load_s=session.load_s,
            )
        )
    return tuple(rows)


def _compiled(
    paths: Sequence[Path], engines: Sequence[str], threads: int
) -> dict[tuple[Path, str, str], tuple[Session, CompileOptions]]:
    """A session for every file, engine and precision of float."""
    made = {}
    for path in paths:
        for name in engines:
            for precision in ("f32", "default") if name == "openvino" else ("f32",):
                options = CompileOptions(threads=threads, float_precision=precision)
                made[path, name, precision] = engine_named(name).compile(path, options), options
    return made


def _common_feeds(paths: Sequence[Path]) -> Feeds:
    models: list[ir.Model] = [read_onnx(path) for path in paths]
    for path, model in zip(paths, models, strict=True):
        if (warning := made_elsewhere(model.metadata_props)) is not None:
            _LOG.warning("%s: %s", path, warning)
    signatures = [[(v.name, v.dtype, str(v.shape)) for v in model.graph.inputs] for model in models]
    for path, signature in zip(paths[1:], signatures[1:], strict=True):
        if signature != signatures[0]:
            raise ConfigError(
                f"{path} takes {signature}", rule=f"files that are compared take the same inputs: {signatures[0]}"
            )
    return {name: np.ascontiguousarray(array) for name, array in next(iter(random_feeds(models[0]))).items()}


def _cpu_count() -> int:
    return os.cpu_count() or 1
