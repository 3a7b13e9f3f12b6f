"""What a search found, as the report keeps it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from fptq.graph.write import file_bytes, save
from fptq.recipes.mix import Mix, Point
from fptq.recipes.policies.decisions import Attempt, Decision
from fptq.recipes.prepare import Prepared
from fptq.recipes.sensitivity import SensitivityTable, sensitivity_table
from fptq.recipes.workbench import Tried
from fptq.report import policies as policy_records
from fptq.report import repair as repairs
from fptq.report import search as records
from fptq.types import Progress, silent


def sensitivity_record(mix: Mix, *, progress: Progress = silent) -> records.Sensitivity:
    """How much every layer hurts in every format, and what it became."""
    precisions = {unit.name: precision for unit, precision, _ in mix.decisions()}
    return recorded(sensitivity_table(mix.study, mix.found, progress), precisions)


def recorded(table: SensitivityTable, precisions: Mapping[str, str]) -> records.Sensitivity:
    """A table of sensitivities as a record.

    Args:
        table: The table.
        precisions: What layers became, by their names.
    """
    return records.Sensitivity(
        objective=table.objective,
        method=table.method,
        samples=table.samples,
        formats=table.formats,
        compared=table.compared,
        rows=tuple(records.SensitivityRow(**vars(row), precision=precisions.get(row.layer, "")) for row in table.rows),
    )


def repair_record(prepared: Prepared) -> repairs.Repair | None:
    """How codes of few bits were found; None where there are none."""
    found = prepared.repair
    if found is None:
        return None
    plain = {name: value for name, value in vars(found).items() if name not in ("units", "notes")}
    units = tuple(repairs.RepairedUnit(**vars(unit)) for unit in found.units)
    return repairs.Repair(**plain, units=units, packed_mb=_packed_mb(prepared))


def _packed_mb(prepared: Prepared) -> float | None:
    if prepared.packed is None:
        return None
    with tempfile.TemporaryDirectory(prefix="fptq-") as folder:
        path = Path(folder) / "packed.onnx"
        save(prepared.packed, path)
        return file_bytes(path) / 1e6


def tried_records(tried: Iterable[Tried]) -> tuple[records.Tried, ...]:
    """What was tried to lower the output error, and what it brought."""
    return tuple(records.Tried(**vars(one)) for one in tried)


def policies_record(prepared: Prepared) -> policy_records.Policies | None:
    """What was decided about the activations that lose most; None where nothing was."""
    found = prepared.policies
    if found is None:
        return None
    return policy_records.Policies(
        budget=found.limit,
        uniform_ms=found.uniform_ms,
        latency=found.cost.ratio if found.cost else None,
        latency_at_most=found.cost.at_most if found.cost else None,
        decisions=tuple(_decision(prepared, decision) for decision in found.made),
        replayed=found.replayed,
    )


def _decision(prepared: Prepared, decision: Decision) -> policy_records.PolicyDecision:
    return policy_records.PolicyDecision(
        tensor=decision.value,
        readers=decision.readers,
        module=prepared.float_model.module_of(decision.readers[0]),
        local_db=decision.sqnr_db,
        before_db=decision.before_db,
        trials=tuple(_policy_trial(attempt) for attempt in decision.attempts),
    )


def _policy_trial(attempt: Attempt) -> policy_records.PolicyTrial:
    cost = attempt.cost
    return policy_records.PolicyTrial(
        policy=attempt.policy,
        detail=attempt.detail,
        local_db=attempt.sqnr_db,
        estimate=attempt.estimate,
        after_db=attempt.after_db,
        latency=cost.ratio if cost else None,
        latency_at_most=cost.at_most if cost else None,
        more=cost.more if cost else None,
        rounds=cost.rounds if cost else 0,
        kept=attempt.kept,
        reason=attempt.reason,
    )


def search_record(mix: Mix) -> records.Search:
    """The limits, and every point that was looked at."""
    controlled = mix.budget.max_drop is not None
    return records.Search(
        objective=mix.found.objective.value,
        cost=mix.cost,
        limits=mix.limits,
        float_costs=mix.float_costs,
        points=tuple(_point(mix, point) for point in mix.points),
        max_drop=mix.budget.max_drop,
        confidence=mix.confidence if controlled else None,
        metric=mix.metric,
        evaluations=mix.evaluations,
        complete=mix.complete,
        emulated=mix.emulated,
        notes=mix.notes,
    )


def _point(mix: Mix, point: Point) -> records.Point:
    verdict = point.verdict
    return records.Point(
        costs=point.assignment.costs,
        predicted=point.assignment.loss,
        verified=point.verified,
        drop=verdict.drop if verdict else None,
        upper=verdict.upper if verdict else None,
        passes=verdict.passes if verdict else None,
        layers=mix.layers(point),
        peak_activations=point.peak_activations,
        chosen=point is mix.chosen,
    )
