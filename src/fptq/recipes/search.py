"""The plan of a search, to read and to replay: no network is written."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from fptq.config import LIMITS, Recipe
from fptq.errors import ConfigError
from fptq.plan import Plan
from fptq.recipes.choose_engine import one_engine
from fptq.recipes.mix import Mix, Point
from fptq.recipes.mixed import find_mix
from fptq.recipes.prepare import plan_document
from fptq.recipes.problem import Problem, open_scored
from fptq.report.files import write_text
from fptq.tasks import Task
from fptq.types import Progress, silent


@dataclass(frozen=True, kw_only=True)
class SearchRow:
    """What one layer became.

    Attributes:
        layer: Name of its first node.
        module: Where that is in the user's model; empty where unknown.
        precision: "float", or a format.
        loss: Its predicted part of the output error.
    """

    layer: str
    module: str
    precision: str
    loss: float


@dataclass(frozen=True, kw_only=True)
class SearchPoint:
    """One assignment of the front.

    Attributes:
        predicted: Sum of the layers' predicted losses.
        verified: Loss of the network so quantized, on the same samples; None: not run.
        drop: Mean loss of the metric against the float network; None: not measured.
        upper: Its one-sided upper confidence limit.
        costs: By name: bytes, BOPs, ms.
        peak_activations: Most bytes of activations alive at one time.
        layers: Number of layers by precision.
        chosen: Whether this is the answer.
    """

    predicted: float
    verified: float | None
    drop: float | None
    upper: float | None
    costs: Mapping[str, float]
    peak_activations: float
    layers: Mapping[str, int]
    chosen: bool


@dataclass(frozen=True, kw_only=True)
class SearchResult:
    """A plan within limits.

    Attributes:
        engine: The engine that it is for.
        objective: "squared", "kl" or "binary": the unit of all losses.
        metric: Name of the score whose drop is limited; empty where none is.
        limits: What was not to be exceeded, by name of the cost: bytes, BOPs, ms.
        float_costs: The float network's.
        costs: The plan's.
        predicted: Its predicted loss.
        verified: Its loss when the network is run with it, on the same samples; None: it was not run.
        evaluations: Full evaluations of the metric.
        complete: Whether the search came to its end.
        rows: One for each layer, in the order of execution.
        front: What was looked at, from the cheapest in the first limited cost.
        notes: What a reader must know.
        plan: Which tensor becomes what.
        document: The content of `plan.json`.
    """

    engine: str
    objective: str
    metric: str
    limits: Mapping[str, float]
    float_costs: Mapping[str, float]
    costs: Mapping[str, float]
    predicted: float
    verified: float | None
    evaluations: int
    complete: bool
    rows: tuple[SearchRow, ...]
    front: tuple[SearchPoint, ...]
    notes: tuple[str, ...]
    plan: Plan = field(repr=False)
    document: Mapping[str, Any] = field(repr=False)

    def summary(self) -> dict[str, Any]:
        """Everything but the plan, as plain data."""
        plain = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("plan", "document")}
        return plain | {"rows": [asdict(row) for row in self.rows], "front": [asdict(point) for point in self.front]}

    def save(self, path: Path) -> Path:
        """Write the plan for `fptq quantize --plan`."""
        return write_text(path, json.dumps(self.document, indent=1) + "\n")


def search(
    model: object,
    *,
    calibration: object,
    evaluate: Callable[..., Any] | str | None = None,
    task: Task | str | None = None,
    validation: object = None,
    labels: str | Path | None = None,
    recipe: Recipe | str | None = None,
    progress: Progress = silent,
    **options: object,
) -> SearchResult:
    """The precision of every layer that loses least within limits, or the cheapest that keeps the metric.

    Limits are options of the recipe: `max_size`, `max_latency`, `max_bops`, `max_drop`, any mix of them, and
    `time_budget`; with a drop the cheapest network that keeps it is found, in the first limited cost or else in bit
    operations; `formats` are what a layer may be beside float, such as "w4a8": widths that the engine has no kernel
    for are emulated.

    Args:
        model: What `fptq.quantize` takes, like all of the following.
        calibration: Unlabelled samples.
        evaluate: A metric; `max_drop` limits its loss.
        task: A ready-made task instead of a metric.
        validation: Samples or volumes to score.
        labels: Labels of the validation volumes.
        recipe: All options in one record, or how much is tried: "fast", "auto" or "best".
        progress: Told how calibration and analysis advance.
        **options: Options that override the recipe's, by its field names.

    Raises:
        BudgetError: Nothing meets the limits; the nearest that can be met is named.
        FptqError: Something is wrong with the model, the data or the options; the message says what.
    """
    if isinstance(task, str):
        options, task = {**options, "task": task}, None
    recipe = Recipe.named(recipe).merged(**options)
    if not recipe.limits:
        raise ConfigError(
            "there is no limit", rule=f"a search keeps one of {', '.join(LIMITS)}", remedy="Give a size such as 0.3x"
        )
    problem = open_scored(
        model, calibration, recipe, evaluate=evaluate, task=task, validation=validation, labels=labels
    )
    engine, _ = one_engine(problem, progress)
    return _result(find_mix(problem, engine, progress=progress), problem)


def _result(mix: Mix, problem: Problem) -> SearchResult:
    chosen, plan = mix.chosen, mix.realized.encoding.plan
    return SearchResult(
        engine=plan.engine,
        objective=mix.found.objective.value,
        metric=mix.metric,
        limits=mix.limits,
        float_costs=mix.float_costs,
        costs=dict(chosen.assignment.costs),
        predicted=chosen.assignment.loss,
        verified=chosen.verified,
        evaluations=mix.evaluations,
        complete=mix.complete,
        rows=tuple(_rows(mix)),
        front=tuple(_point(mix, point) for point in mix.points),
        notes=mix.notes,
        plan=plan,
        document=plan_document(plan, problem),
    )


def _rows(mix: Mix) -> list[SearchRow]:
    return [
        SearchRow(layer=unit.name, module=mix.study.model.module_of(unit.name), precision=precision, loss=loss)
        for unit, precision, loss in mix.decisions()
    ]


def _point(mix: Mix, point: Point) -> SearchPoint:
    verdict = point.verdict
    return SearchPoint(
        predicted=point.assignment.loss,
        verified=point.verified,
        drop=verdict.drop if verdict else None,
        upper=verdict.upper if verdict else None,
        costs=dict(point.assignment.costs),
        peak_activations=point.peak_activations,
        layers=mix.layers(point),
        chosen=point is mix.chosen,
    )
