"""A precision for every layer under a budget: sensitivities, costs, one integer program, and a plan to replay."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fptq.config import Recipe
from fptq.engines import CompileOptions, Engine
from fptq.errors import ConfigError
from fptq.graph.write import save
from fptq.plan import Plan, materialize
from fptq.plan.encoding import Encoding
from fptq.recipes.layers import node_precisions
from fptq.recipes.prepare import plan_document
from fptq.recipes.problem import Problem, open_problem
from fptq.recipes.quantize import engines_to_try
from fptq.recipes.study import Study, bits_of, check, open_study
from fptq.report.files import write_text
from fptq.search import Assignment, Budget, Options, front, solve
from fptq.search.table import monotone
from fptq.types import Progress, silent

if TYPE_CHECKING:
    from fptq.analyze import Sensitivity, Unit

SEARCHED = ("w8a8",)
"""What a layer may be, beside float: what the engines have integer kernels for."""
_REST = "(everything else)"
_VERIFIED = 8
"""Points of the front that are run."""


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
        verified: Loss of the network so quantized, on the same samples.
        costs: By name: bytes, BOPs, ms.
        layers: Number of layers by precision.
        chosen: Whether this is the answer.
    """

    predicted: float
    verified: float
    costs: Mapping[str, float]
    layers: Mapping[str, int]
    chosen: bool


@dataclass(frozen=True, kw_only=True)
class SearchResult:
    """A plan under a budget.

    Attributes:
        engine: The engine that it is for.
        objective: "squared" or "kl": the unit of all losses.
        limits: What was not to be exceeded, by name of the cost: bytes, BOPs, ms.
        float_costs: The float network's.
        costs: The plan's.
        predicted: Its predicted loss.
        verified: Its loss when the network is run with it, on the same samples.
        rows: One for each layer, in the order of execution.
        front: Least losses at every price of the first limited cost, from the cheapest.
        plan: Which tensor becomes what.
        document: The content of `plan.json`.
    """

    engine: str
    objective: str
    limits: Mapping[str, float]
    float_costs: Mapping[str, float]
    costs: Mapping[str, float]
    predicted: float
    verified: float
    rows: tuple[SearchRow, ...]
    front: tuple[SearchPoint, ...]
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
    budget: Budget,
    formats: Sequence[str] = SEARCHED,
    recipe: Recipe | None = None,
    progress: Progress = silent,
    **options: object,
) -> SearchResult:
    """The precision of every layer that loses least within a budget.

    Args:
        model: What `fptq.quantize` takes.
        calibration: What `fptq.quantize` takes.
        budget: Limits of size, latency and bit operations, any mix of them.
        formats: What a layer may be beside float, such as "w4a8"; widths that the engine has no kernel for are
            emulated.
        recipe: All options in one record.
        progress: Told how calibration and analysis advance.
        **options: Options that override the recipe's, by its field names.

    Raises:
        BudgetError: Nothing meets the budget; the nearest that can be met is named.
        FptqError: Something is wrong with the model, the data or the options; the message says what.
    """
    check(formats, "fisher")
    if not budget.amounts:
        raise ConfigError("there is no budget", rule="a search needs a limit", remedy="Give a size such as 0.3x")
    recipe = (recipe or Recipe()).merged(**options)
    engine = engines_to_try(recipe)[0]
    problem = open_problem(model, calibration, recipe)
    ordered = sorted(dict.fromkeys(formats), key=lambda name: -sum(bits_of(name)))
    study = open_study(problem, engine.name, ordered, progress)
    found = study.sensitivity("fisher", progress)
    table = _table(problem, study, found, engine, timed=budget.max_latency is not None)
    floats = {name: float(values[:, 0].sum()) for name, values in table.costs.items()}
    limits = budget.limits(floats)
    return _Search(study=study, found=found, table=table).result(problem, limits, floats, progress)


@dataclass(frozen=True, kw_only=True)
class _Search:
    study: Study
    found: Sensitivity
    table: Options

    def result(
        self, problem: Problem, limits: Mapping[str, float], floats: Mapping[str, float], progress: Progress
    ) -> SearchResult:
        best = solve(self.table, limits)
        others = [point for point in front(self.table, next(iter(limits)), points=_VERIFIED) if point != best]
        points = self._points([best, *others], progress)
        plan = self._encoding(best).plan
        return SearchResult(
            engine=plan.engine,
            objective=self.found.objective.value,
            limits=dict(limits),
            float_costs=dict(floats),
            costs=dict(best.costs),
            predicted=best.loss,
            verified=points[0].verified,
            rows=tuple(self._row(unit, best) for unit in self.found.units),
            front=tuple(sorted(points, key=lambda point: point.costs[next(iter(limits))])),
            plan=plan,
            document=plan_document(plan, problem),
        )

    def _row(self, unit: Unit, best: Assignment) -> SearchRow:
        row, column = self.table.items.index(unit.name), self.table.formats.index(best[unit.name])
        return SearchRow(
            layer=unit.name,
            module=self.study.model.module_of(unit.name),
            precision=best[unit.name],
            loss=float(self.table.loss[row, column]),
        )

    def _points(self, assignments: Sequence[Assignment], progress: Progress) -> list[SearchPoint]:
        """What was predicted, beside what the networks do; the first one is the answer."""
        from fptq.analyze.mixed import encoding_losses
        from fptq.execute import Executor

        encodings = [self._encoding(assignment) for assignment in assignments]
        executor, samples = Executor.open(self.study.model), self.study.samples
        verified = encoding_losses(executor, encodings, samples, self.found.objective, progress=progress)
        precisions = [[one[unit.name] for unit in self.found.units] for one in assignments]
        return [
            SearchPoint(
                predicted=assignment.loss,
                verified=loss,
                costs=dict(assignment.costs),
                layers={name: chosen.count(name) for name in self.table.formats},
                chosen=assignment is assignments[0],
            )
            for assignment, loss, chosen in zip(assignments, verified, precisions, strict=True)
        ]

    def _encoding(self, assignment: Assignment) -> Encoding:
        from fptq.analyze.mixed import mixed_encoding

        return mixed_encoding(self.study.model, self.found.units, self.study.encodings, assignment.as_dict())


def _table(problem: Problem, study: Study, found: Sensitivity, engine: Engine, *, timed: bool) -> Options:
    """Losses and costs of every unit in every format, and a last row for what is never quantized."""
    from fptq.analyze.cost import FLOAT, costs_of, shapes_of
    from fptq.execute import Executor

    shapes = shapes_of(Executor.open(study.model), study.samples[0])
    plans = {name: encoding.plan for name, encoding in study.encodings.items()}
    known = costs_of(study.model, found.units, plans, shapes)
    tables = {"size": known.size, "bops": known.bops}
    whole = {"size": 4.0 * study.model.parameter_count, "bops": _all_bops(study, shapes)}
    if timed:
        tables["latency"], whole["latency"] = _latencies(problem, study, found, engine)
    loss = np.hstack([np.zeros((len(found.units), 1)), found.loss])
    if timed:  # only what has integer kernels was timed
        loss = np.where(np.isnan(tables["latency"]), np.nan, loss)
    rest = {name: [whole[name] - values[:, 0].sum()] * (1 + len(plans)) for name, values in tables.items()}
    return Options(
        items=(*(unit.name for unit in found.units), _REST),
        formats=(FLOAT, *plans),
        loss=np.vstack([monotone(loss), [0.0, *[np.nan] * len(plans)]]),
        costs={name: np.vstack([np.nan_to_num(values), rest[name]]) for name, values in tables.items()},
    )


def _all_bops(study: Study, shapes: Mapping[str, tuple[int, ...]]) -> float:
    from fptq.analyze.cost import multiplications

    return 32.0 * 32.0 * sum(multiplications(node, shapes) for node in study.model.graph)


def _latencies(problem: Problem, study: Study, found: Sensitivity, engine: Engine) -> tuple[np.ndarray, float]:
    """Time of every unit as float and in 8 bits, by the engine's own profile, and of the whole float network [ms]."""
    from fptq.analyze.cost import node_latencies

    options = CompileOptions(threads=problem.threads, float_precision="default")
    files = {"float": study.model}
    files |= {name: materialize(study.model, e) for name, e in study.encodings.items() if bits_of(name) == (8, 8)}
    profiles = {}
    with tempfile.TemporaryDirectory(prefix="fptq-") as folder:
        for name, network in files.items():
            save(network, Path(folder) / f"{name}.onnx")
            session = engine.compile(Path(folder) / f"{name}.onnx", options)
            profiles[name] = session.profile(study.samples[0], runs=9)
    times = {name: {n: run.time_ms for n, run in node_precisions(runs).items()} for name, runs in profiles.items()}
    measured = node_latencies(found.units, times)
    table = np.full((len(found.units), 1 + len(study.encodings)), np.nan)
    for column, name in enumerate(("float", *study.encodings)):
        if name in times:
            table[:, column] = measured[:, list(times).index(name)]
    return table, sum(run.time_ms for run in profiles["float"])
