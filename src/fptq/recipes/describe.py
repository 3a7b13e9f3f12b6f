"""What is known without measuring anything more: model, environment, refusals, the gate's decisions."""

from __future__ import annotations

import datetime
import platform
from pathlib import Path

from fptq import __version__
from fptq.engines import NodeRun
from fptq.engines.cpu import detect
from fptq.engines.installed import installed_version
from fptq.recipes.prepare import Prepared
from fptq.recipes.problem import Problem
from fptq.report import decisions, records
from fptq.search import Trial
from fptq.search.trade import LEAST_GAIN

_PACKAGES = ("numpy", "onnx", "onnx-ir", "onnxscript", "onnxruntime", "openvino", "torch")


def model_record(problem: Problem) -> records.ModelInfo:
    """The network as the user gave it."""
    model = problem.model
    return records.ModelInfo(
        name=Path(model.source).name if model.source else "model",
        source=model.source,
        sha256=model.sha256,
        parameters=model.parameter_count,
        opset=model.opset,
        inputs=tuple(map(str, model.inputs)),
        outputs=tuple(map(str, model.outputs)),
        notes=model.notes,
    )


def environment_record(problem: Problem) -> records.Environment:
    """Where and when."""
    cpu = detect()
    versions = {name: installed_version(name) for name in _PACKAGES}
    return records.Environment(
        fptq=__version__,
        python=platform.python_version(),
        cpu=cpu.name,
        features=tuple(sorted(cpu.features)),
        os=platform.platform(),
        packages={name: version for name, version in versions.items() if version is not None},
        threads=problem.threads,
        date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    )


def refusal_records(prepared: Prepared) -> tuple[decisions.RefusalRecord, ...]:
    """The nodes kept in float, each with its reason."""
    return tuple(
        decisions.RefusalRecord(node=r.node, op=r.op, module=prepared.float_model.module_of(r.node), reason=r.reason)
        for r in prepared.encoding.plan.refusals
    )


def gate_record(prepared: Prepared) -> decisions.Gate | None:
    """What was timed before the placement was settled; None where nothing was."""
    outcome = prepared.outcome
    if outcome is None:
        return None
    timed = [
        decisions.Trial(
            name=trial.name,
            latency_ms=trial.median_ms,
            kept=trial.chosen,
            note=f"{_times(trial, outcome.sizes)} the faster float form, output SQNR {trial.sqnr_db:.1f} dB",
        )
        for trial in outcome.trials
    ]
    stored = {placement.consumer for placement in prepared.encoding.plan.weights}
    reverted = [
        decisions.Reverted(
            node=r.node,
            op=r.op,
            module=prepared.float_model.module_of(r.node),
            reason=r.reason,
            weights_kept=r.node in stored,
        )
        for r in outcome.candidate.taken_back
    ]
    conclusion = "; ".join(outcome.notes) or f"int8 pays on {prepared.engine.name}: {outcome.candidate.variant}."
    return decisions.Gate(tried=tuple(timed), reverted=tuple(reverted), margin=LEAST_GAIN, conclusion=conclusion)


def _times(trial: Trial, sizes: str) -> str:
    """How many times as fast, under every load."""
    sample, *larger = (f"{speedup:.2f}x" for speedup in trial.speedups)
    return f"{sample} on a sample and {larger[0]} on {sizes}" if larger else sample


def node_records(nodes: tuple[NodeRun, ...]) -> tuple[decisions.NodeRecord, ...]:
    """The nodes of the engine's own graph."""
    return tuple(
        decisions.NodeRecord(nodes=n.nodes, op=n.op, precision=n.precision, kernel=n.kernel, time_ms=n.time_ms)
        for n in nodes
    )
