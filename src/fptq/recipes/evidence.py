"""Measure the float and the quantized network side by side, and write down what was found."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from fptq.engines import CompileOptions, Engine, NodeRun, Session
from fptq.engines.benchmark import Timing, interleaved
from fptq.engines.footprint import Footprint, footprint
from fptq.graph.rest import LARGE, float_weights, settle
from fptq.graph.write import file_bytes, save
from fptq.recipes.describe import environment_record, gate_record, model_record, node_records, refusal_records
from fptq.recipes.drops import drops
from fptq.recipes.drops import pictures as slices_of
from fptq.recipes.findings import policies_record, repair_record, search_record, sensitivity_record, tried_records
from fptq.recipes.layers import placement_records
from fptq.recipes.prepare import Prepared
from fptq.recipes.problem import Problem
from fptq.report import decisions, records
from fptq.report.report import Report
from fptq.tasks import Agreement, ClassificationTask, ProteinTask, Scores, SegmentationTask, compare
from fptq.types import Progress, Runner, silent

_FLOAT, _DEFAULT, _QUANTIZED = "float", "float default", "quantized"


@dataclass(frozen=True, kw_only=True)
class _Contender:
    """One form of the network: its file, and how it is compiled."""

    path: Path
    options: CompileOptions


@dataclass(frozen=True, kw_only=True)
class _Measured:
    """Everything that was measured on the compiled networks."""

    timings: Mapping[str, Timing]
    variants: Mapping[str, records.Variant]
    nodes: tuple[NodeRun, ...]
    float_nodes: tuple[NodeRun, ...]
    agreement: Agreement
    scores: Mapping[str, Scores]
    pictures: tuple[decisions.Picture, ...]


def judge(problem: Problem, prepared: Prepared, *, command: str, because: str, progress: Progress = silent) -> Report:
    """Compile, time, score and compare; everything the report says is measured here or was measured by the gate."""
    measured = _measure(problem, prepared, progress)
    settle(problem.model)  # the sessions are over
    mix = prepared.mix
    floats, quantized = measured.variants[_FLOAT], measured.variants[_QUANTIZED]
    ours, default = measured.timings[_QUANTIZED], measured.variants[_DEFAULT]
    has_default = default.precision != "f32"
    return Report(
        model=model_record(problem),
        environment=environment_record(problem),
        engine=records.EngineInfo(
            name=prepared.engine.name,
            version=prepared.engine.version() or "",
            requested=problem.recipe.engine,
            chosen_because=because,
        ),
        float=floats,
        float_default=default if has_default else None,
        quantized=quantized,
        agreement=_agreement(measured),
        drops=drops(measured.scores.get(_FLOAT), measured.scores.get(_QUANTIZED), seed=problem.recipe.seed),
        speedup=ours.speedup_over(measured.timings[_FLOAT]),
        speedup_default=ours.speedup_over(measured.timings[_DEFAULT]) if has_default else None,
        compression=_ratio(floats.size_mb, quantized.size_mb),
        calibration=_calibration(prepared),
        placements=placement_records(problem, prepared, measured.nodes),
        refusals=refusal_records(prepared),
        gate=gate_record(prepared),
        nodes=node_records(measured.nodes),
        float_nodes=node_records(measured.float_nodes),
        rewrites=prepared.encoding.rewrites,
        warnings=(*problem.warnings, *prepared.warnings),
        pictures=measured.pictures,
        repair=repair_record(prepared),
        tried=tried_records(prepared.tried),
        policies=policies_record(prepared),
        sensitivity=sensitivity_record(mix, progress=progress) if mix is not None else None,
        search=search_record(mix) if mix is not None else None,
        seed=problem.recipe.seed,
        command=command,
    )


def _measure(problem: Problem, prepared: Prepared, progress: Progress) -> _Measured:
    sample = problem.held_out[0]
    with tempfile.TemporaryDirectory(prefix="fptq-") as folder:
        contenders = _written(problem, prepared, Path(folder))
        # Other processes do this, so it comes before this one holds the weights.
        prints = {
            name: footprint(contender.path, prepared.engine.name, sample, contender.options)
            for name, contender in contenders.items()
        }
        sessions = _compiled(contenders, prepared.engine, float_weights=float_weights(problem.model))
        timings = interleaved(sessions, sample, rounds=21, seconds=60.0, progress=progress)
        agreement = compare(sessions[_FLOAT], _exact(problem, prepared, contenders, sessions), problem.held_out)
        runners: dict[str, Runner] = {_FLOAT: sessions[_FLOAT], _QUANTIZED: sessions[_QUANTIZED]}
        scores = _scores(problem, runners, progress)
        pictures = slices_of(problem, runners, scores)
        nodes, float_nodes = sessions[_QUANTIZED].profile(sample), sessions[_DEFAULT].profile(sample)
        used = {_FLOAT: "f32", _DEFAULT: _precision(float_nodes), _QUANTIZED: _precision(nodes)}
        variants = {
            name: _variant(contenders[name], timings[name], prints[name], scores.get(name), used[name])
            for name in contenders
        }
    return _Measured(
        timings=timings,
        variants=variants,
        nodes=nodes,
        float_nodes=float_nodes,
        agreement=agreement,
        scores=scores,
        pictures=pictures,
    )


def _agreement(measured: _Measured) -> records.Agreement:
    found = measured.agreement
    return records.Agreement(
        sqnr_db=found.sqnr_db,
        cosine=found.cosine,
        argmax_match=found.argmax_match,
        max_abs=found.max_abs_difference,
        samples=found.samples,
        scores=_report_scores(measured.scores.get("agreement")),
    )


def _calibration(prepared: Prepared) -> records.Calibration:
    activations, weights = prepared.observers
    return records.Calibration(
        samples=len(prepared.statistics.samples),
        observer=f"activations {activations}, weights {weights}",
        seconds=prepared.calibration_s,
    )


def _written(problem: Problem, prepared: Prepared, folder: Path) -> dict[str, _Contender]:
    float_path, quantized_path = folder / "float.onnx", folder / "quantized.onnx"
    settle(problem.model)
    save(problem.model, float_path, limit=LARGE)
    save(prepared.model, quantized_path, limit=LARGE)
    forms = {_FLOAT: (float_path, "f32"), _DEFAULT: (float_path, "default"), _QUANTIZED: (quantized_path, "default")}
    settle(problem.model)
    return {
        name: _Contender(path=path, options=CompileOptions(threads=problem.threads, float_precision=precision))
        for name, (path, precision) in forms.items()
    }


def _compiled(contenders: Mapping[str, _Contender], engine: Engine, *, float_weights: str) -> dict[str, Session]:
    sessions: dict[str, Session] = {}
    for name, contender in contenders.items():
        if name == _DEFAULT and engine.computes_in_f32:
            sessions[name] = sessions[_FLOAT]  # a second one would hold the weights once more
        else:
            weights = "held" if name == _QUANTIZED else float_weights
            sessions[name] = engine.compile(contender.path, replace(contender.options, weights=weights))
    return sessions


def _exact(
    problem: Problem, prepared: Prepared, contenders: Mapping[str, _Contender], sessions: Mapping[str, Session]
) -> Session:
    """The quantized network with its float remainder in f32: agreement is about quantization, not about bf16."""
    if prepared.engine.computes_in_f32:
        return sessions[_QUANTIZED]
    return prepared.engine.compile(contenders[_QUANTIZED].path, CompileOptions(threads=problem.threads))


def _scores(problem: Problem, runners: Mapping[str, Runner], progress: Progress) -> dict[str, Scores]:
    """Scores by network; under "agreement" those of the quantized network against the float one's own output."""
    match problem.task:
        case None:
            return {}
        case SegmentationTask() | ClassificationTask() | ProteinTask() as task:
            found = dict(task.evaluate_all(runners, progress=progress))
            agree = tuple(s for s in found[_QUANTIZED] if s.name.startswith("agreement"))
            for name, scores in list(found.items()):
                kept = tuple(s for s in scores if not s.name.startswith("agreement"))
                found[name] = Scores(entries=kept, cases=scores.cases, notes=scores.notes)
            found["agreement"] = Scores(entries=agree, cases=found[_QUANTIZED].cases)
            return found
        case task:
            return {name: task.evaluate(runner) for name, runner in runners.items()}


def _variant(
    contender: _Contender, timing: Timing, print_: Footprint, scores: Scores | None, precision: str
) -> records.Variant:
    return records.Variant(
        precision=precision,
        scores=_report_scores(scores),
        size_mb=file_bytes(contender.path) / 1e6,
        latency_ms=records.Latency(median=timing.median_ms, p95=timing.p95_ms, runs=timing.runs),
        peak_memory_mb=print_.peak_memory_mb,
        load_s=print_.load_s,
    )


def _report_scores(scores: Scores | None) -> dict[str, records.Score]:
    if scores is None:
        return {}
    return {
        score.name: records.Score(
            value=score.value,
            per_case=dict(zip(scores.cases, score.cases, strict=False)),
            higher_is_better=score.higher_is_better,
            unit=score.unit,
        )
        for score in scores
    }


def _precision(nodes: tuple[NodeRun, ...]) -> str:
    """What the engine spent its time in: "int8 + bf16", "f32", most first."""
    spent: dict[str, float] = {}
    for node in nodes:
        if node.precision in ("int8", "f32", "bf16", "f16"):
            spent[node.precision] = spent.get(node.precision, 0.0) + node.time_ms
    total = sum(spent.values()) or 1.0
    used = sorted((p for p, t in spent.items() if t >= 0.02 * total), key=lambda p: -spent[p])
    if "int8" in used or len(used) < 2:
        return " + ".join(used) or "f32"
    return used[0]


def _ratio(first: float | None, second: float | None) -> float | None:
    return first / second if first and second else None
