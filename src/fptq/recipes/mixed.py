"""A precision for every layer within limits: sensitivities, costs, one integer program, and the user's own metric."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from fptq.config import Recipe
from fptq.engines import Engine
from fptq.engines.benchmark import interleaved
from fptq.errors import BudgetError
from fptq.graph.write import save
from fptq.recipes.costs import Target, cost_table
from fptq.recipes.formats import Format
from fptq.recipes.mix import Mix, Point, about_sizes
from fptq.recipes.problem import Problem
from fptq.recipes.scoring import Scorer
from fptq.recipes.study import Realized, Study, check, refined_study
from fptq.recipes.walk import WALKED, Walk, all_float
from fptq.search import Assignment, Budget, Options, accuracy, front, solve
from fptq.search.baselines import greedy, uniform
from fptq.search.budget import shown
from fptq.types import Progress, silent

if TYPE_CHECKING:
    from fptq.analyze import Sensitivity

_VERIFIED = 8
"""Points of the front that are run."""
_RETRIES = 3
"""How often a plan that is slower than its layers' sum is searched again."""


def budget_of(recipe: Recipe) -> Budget:
    """The recipe's limits, read.

    Raises:
        ConfigError: One is no amount.
    """
    return Budget.parse(**recipe.limits, time_budget=recipe.time_budget)


def find_mix(problem: Problem, engine: Engine, *, progress: Progress = silent) -> Mix:
    """The precision of every layer that loses least within the recipe's limits, or the cheapest that keeps the metric.

    Args:
        problem: The network, its samples, the task that scores it, and the limits in its recipe.
        engine: Where it will run.
        progress: Told how calibration, analysis and evaluation advance.

    Raises:
        BudgetError: Nothing meets the limits; the nearest that can be met is named.
        ConfigError: A limit is no amount, a format is none, or a drop is limited without a metric.
    """
    budget = budget_of(problem.recipe)
    check(problem.recipe.formats, "fisher")
    budget.check(has_metric=problem.task is not None, has_engine=True)
    target = Target(engine=engine, threads=problem.threads)
    with tempfile.TemporaryDirectory(prefix="fptq-") as folder:
        return _Search(problem=problem, budget=budget, target=target, folder=Path(folder), progress=progress).mix()


@dataclass(kw_only=True)
class _Search:
    """One search under way."""

    problem: Problem
    budget: Budget
    target: Target
    folder: Path
    progress: Progress
    started: float = field(default_factory=time.monotonic)
    notes: list[str] = field(default_factory=list)
    losses: dict[Assignment, float] = field(default_factory=dict)

    @cached_property
    def study(self) -> Study:
        formats = sorted(dict.fromkeys(self.problem.recipe.formats), key=lambda name: -Format.parse(name).width)
        return refined_study(self.problem, self.target.engine, formats, self.progress)

    @cached_property
    def found(self) -> Sensitivity:
        found = self.study.sensitivity("fisher", self.progress)
        if found.method != "fisher":
            self.notes.append(f"the output has no gradient: sensitivities are exact, by {found.method}")
        return found

    @cached_property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        from fptq.analyze.cost import shapes_of
        from fptq.execute import Executor

        return shapes_of(Executor.open(self.study.model), self.study.samples[0])

    @cached_property
    def table(self) -> Options:
        target = self.target if self.budget.max_latency is not None else None
        return cost_table(self.study, self.found, self.shapes, target=target, progress=self.progress)

    @cached_property
    def floats(self) -> Mapping[str, float]:
        """What the float network costs."""
        return {name: float(values[:, 0].sum()) for name, values in self.table.costs.items()}

    @cached_property
    def limits(self) -> Mapping[str, float]:
        return self.budget.limits(self.floats)

    @property
    def cost(self) -> str:
        """What the front is swept over: the first limited cost, else bit operations.

        A drop alone asks for a fast network. The times of single layers are noisy, and where they are tiny, wrong;
        bit operations stand for them.
        """
        return next(iter(self.limits), "bops")

    @property
    def left_s(self) -> float:
        """Seconds that the time budget leaves."""
        total = math.inf if self.budget.time_budget is None else self.budget.time_budget
        return total - (time.monotonic() - self.started)

    def mix(self) -> Mix:
        """The answer."""
        if self.budget.max_drop is not None:
            return self._controlled(self.budget.max_drop)
        best = self._best_run(self._within_latency())
        return self._told([best, *front(self.table, self.cost, points=_VERIFIED)])

    def _best_run(self, best: Assignment) -> Assignment:
        """The answer, or what simpler rules choose, whichever loses least when it is run.

        Predictions are good to some per cent: where two choices are that near, running them is cheap and decides.
        """
        if "latency" in self.limits or self.left_s <= 0:
            return best
        rivals = [one for rule in (greedy, uniform) if (one := rule(self.table, self.limits)) is not None]
        self._verify([best, *rivals])
        return min((best, *rivals), key=lambda one: self.losses.get(one, math.inf))

    def _within_latency(self) -> Assignment:
        """The best assignment, whose network keeps the latency limit when it is timed as a whole."""
        limits = dict(self.limits)
        for _ in range(_RETRIES):
            best = solve(self.table, limits)
            took = self._timed(best)
            if took <= self.limits.get("latency", math.inf):
                return best
            # Layers by themselves leave out what the engine does between them.
            limits["latency"] *= 0.98 * self.limits["latency"] / took
        self.notes.append(self._too_slow(took))
        return best

    def _too_slow(self, took: float) -> str:
        limit = shown("latency", self.limits["latency"])
        return f"the network takes {took:.3g} ms, the limit is {limit}: its layers' times do not add up on this engine"

    def _timed(self, assignment: Assignment) -> float:
        """Latency of a network [ms], scaled to the float network's in the table; 0 where there is no limit of it."""
        if "latency" not in self.limits:
            return 0.0
        sessions = {}
        for name, model in (("float", self.study.model), ("mix", self._realized(assignment).network)):
            path = self.folder / f"timed_{name}.onnx"
            save(model, path)
            sessions[name] = self.target.engine.compile(path, self.target.options)
        timings = interleaved(sessions, self.study.samples[0], rounds=15, seconds=20.0, progress=self.progress)
        return self.floats["latency"] / timings["mix"].speedup_over(timings["float"])

    def _controlled(self, max_drop: float) -> Mix:
        task = self.problem.task
        assert task is not None
        scorer = Scorer.open(task, self.problem.model, target=self.target, folder=self.folder, store=self.problem.store)
        walked = front(self.table, self.cost, points=WALKED, limits=self.limits)
        walk = Walk(points=walked, scorer=scorer, realized=self._realized, progress=self.progress)
        floor = accuracy.Floor(max_drop=max_drop, seed=self.problem.recipe.seed, seconds=max(self.left_s, 0.0))
        outcome = walk.outcome(floor)
        self.notes += outcome.notes
        best = self._kept(outcome, walked, scorer.metric)
        if (took := self._timed(best)) > self.limits.get("latency", math.inf):
            self.notes.append(self._too_slow(took))
        tried = {verdict.assignment: verdict for verdict in outcome.tried}
        mix = self._told([best, *tried, *walk.spread(_VERIFIED)], tried)
        return replace(
            mix,
            metric=scorer.metric,
            confidence=floor.confidence,
            evaluations=1 + outcome.evaluations,
            complete=outcome.complete,
        )

    def _kept(self, outcome: accuracy.Outcome, walked: Sequence[Assignment], metric: str) -> Assignment:
        """The best point; the float network where nothing else is known to keep the floor.

        Raises:
            BudgetError: No point within the limits keeps it.
        """
        if outcome.best is not None:
            return outcome.best.assignment
        if all_float(walked[-1]):
            self.notes.append("no other point is known to keep the drop: everything stays float")
            return walked[-1]
        least = min((verdict.upper for verdict in outcome.tried), default=math.nan)
        found = (
            f"the best that was measured surely loses less than {least:.4g}" if outcome.tried else "none was measured"
        )
        limits = " and ".join(f"{name} <= {amount}" for name, amount in self.budget.amounts.items())
        raise BudgetError(
            f"nothing within {limits} is known to lose at most {self.budget.max_drop:g} of {metric}",
            rule=found,
            remedy="Allow a larger drop, a larger limit or more time; what was measured is kept",
            minimum={"drop": least},
            nearest={"drop": least, **self.limits},
        )

    def _realized(self, assignment: Assignment) -> Realized:
        return self.study.realized(self.found.units, assignment.as_dict())

    def _told(
        self, assignments: Sequence[Assignment], verdicts: Mapping[Assignment, accuracy.Verdict] = MappingProxyType({})
    ) -> Mix:
        """The points with what the networks really lose; the first one is the answer."""
        unique = list(dict.fromkeys(assignments))
        self._verify(unique[:1])
        if self.left_s > 0:
            self._verify(unique)
        else:
            self.notes.append("the time budget is used up: not all points were run")
        points = [self._point(one, verdicts.get(one)) for one in unique]
        return Mix(
            study=self.study,
            found=self.found,
            table=self.table,
            cost=self.cost,
            limits=dict(self.limits),
            float_costs=dict(self.floats),
            points=tuple(sorted(points, key=lambda p: (p.assignment.costs[self.cost], -p.assignment.loss))),
            chosen=points[0],
            realized=self._realized(unique[0]),
            budget=self.budget,
            notes=tuple(dict.fromkeys((*self.notes, *about_sizes(unique[0], self.study, self.found)))),
        )

    def _point(self, assignment: Assignment, verdict: accuracy.Verdict | None) -> Point:
        from fptq.analyze.cost import peak_activation_bytes

        specs = self._realized(assignment).encoding.plan.specs
        peak = peak_activation_bytes(self.study.model, specs, self.shapes)
        return Point(
            assignment=assignment, verified=self.losses.get(assignment), verdict=verdict, peak_activations=peak
        )

    def _verify(self, assignments: Sequence[Assignment]) -> None:
        """Run networks for their losses, unless they were run before; an interrupt ends it."""
        from fptq.analyze.mixed import encoding_losses
        from fptq.execute import Executor

        new = [one for one in dict.fromkeys(assignments) if one not in self.losses]
        if not new:  # else the float network would run for nothing
            return
        encodings = [self._realized(assignment).encoding for assignment in new]
        executor, samples = Executor.open(self.study.model), self.study.samples
        try:
            found = encoding_losses(executor, encodings, samples, self.found.objective, progress=self.progress)
        except KeyboardInterrupt:
            self.notes.append("interrupted: not all points were run")
            return
        self.losses |= dict(zip(new, found, strict=True))
