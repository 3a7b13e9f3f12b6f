"""From a problem to a quantized network for one engine: place, calibrate, measure, choose, refine."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fptq.calibrate import Statistics, collect, needed
from fptq.config import Recipe
from fptq.engines import ENGINES, Engine
from fptq.errors import ConfigError
from fptq.graph.model import Model
from fptq.graph.parity import check_rewrite
from fptq.graph.rest import settle
from fptq.plan import PROFILES, Policy, materialize, packed, packs
from fptq.plan.encoding import Encoding, plan_from_json, plan_to_json
from fptq.plan.float_inputs import with_float_inputs
from fptq.plan.plan import Plan
from fptq.recipes.observers import Pair, calibration_options, first_pair, other_observers
from fptq.recipes.policies.contest import LATENCY_BUDGET, Contest
from fptq.recipes.policies.decisions import Decisions, choices_of
from fptq.recipes.policies.everywhere import everywhere_in_regions
from fptq.recipes.policies.spots import extremes_of, lossy_inputs
from fptq.recipes.policies.two_regions import REGIONS
from fptq.recipes.problem import Problem
from fptq.recipes.refine import EFFORTS, refine
from fptq.recipes.trials import Trials
from fptq.recipes.workbench import Bench, Refined, Tried, unrefined
from fptq.rewrite import PASSES
from fptq.search import Candidates, Outcome
from fptq.types import Progress, silent

if TYPE_CHECKING:
    from fptq.recipes.lowbit import Repair
    from fptq.recipes.mix import Mix


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A network quantized for an engine.

    Attributes:
        engine: The engine.
        float_model: The network that the encoding belongs to: rewritten for the engine, with the rewrites that were
            kept.
        encoding: The quantizers.
        model: The Q/DQ network.
        statistics: What calibration found.
        outcome: What the gate measured; None where it was off or a plan was replayed.
        tried: What was tried to lower the output error, and what it brought.
        observers: Observers of activations and weights.
        calibration_s: Seconds of the pass over the samples.
        warnings: What the user must know before trusting or using the result.
        mix: The search that chose a precision for every layer; None where there was none.
        repair: How a network of few bits was made; None where it is none.
        placed: The plan before policies changed it: what a replay starts from. None: the encoding's.
        policies: What was decided about the activations that lose most; None where nothing was.
    """

    engine: Engine
    float_model: Model
    encoding: Encoding
    model: Model
    statistics: Statistics
    outcome: Outcome | None
    tried: tuple[Tried, ...]
    observers: Pair
    calibration_s: float
    warnings: tuple[str, ...] = ()
    mix: Mix | None = None
    repair: Repair | None = None
    placed: Plan | None = None
    policies: Decisions | None = None

    @cached_property
    def packed(self) -> Model | None:
        """The Q/DQ network whose weights share bytes; None where none has so few bits."""
        return packed(self.model, self.encoding) if packs(self.encoding.plan) else None


@dataclass(frozen=True, kw_only=True)
class Placed:
    """A network with a placement for one engine, before its numbers are refined.

    Attributes:
        engine: The engine.
        model: The float network, rewritten for it.
        plan: Where quantizers stand.
        statistics: What calibration found.
        outcome: What the gate measured; None where it was off or a plan was replayed.
        calibration_s: Seconds of the pass over the samples.
    """

    engine: Engine
    model: Model
    plan: Plan
    statistics: Statistics
    outcome: Outcome | None
    calibration_s: float


def placed(problem: Problem, engine: Engine, *, progress: Progress = silent) -> Placed:
    """Calibrate, and place what pays on one engine.

    Args:
        problem: The network and its samples.
        engine: The target.
        progress: Told about calibration and timing.
    """
    recipe, profile = problem.recipe, PROFILES[engine.name]
    model = rewritten(problem, profile.passes)
    options = calibration_options(recipe, first_pair(recipe), problem.threads)
    candidates = Candidates(model=model, profile=profile, policy=policy_of(recipe), options=options)
    replayed = _replayed(recipe, engine)
    others = [calibration_options(recipe, (name, "minmax")).observer for name in other_observers(recipe)]
    asked = candidates.statistics_needed(others) if replayed is None else needed(replayed, [options.observer, *others])
    asked += needed(_with_float_inputs(Plan(engine=engine.name, specs={}), model, recipe), [options.observer, *others])
    start = time.perf_counter()
    statistics = collect(model, asked, problem.calibration, options=options.run, store=problem.store, progress=progress)
    calibration_s, outcome = time.perf_counter() - start, None
    if replayed is None and recipe.gate == "measured":
        with tempfile.TemporaryDirectory(prefix="fptq-") as folder:
            outcome = Trials(problem=problem, engine=engine, folder=Path(folder)).gate(candidates, statistics, progress)
    plan = outcome.candidate.encoding.plan if outcome else replayed or _unmeasured(candidates, statistics)
    return Placed(
        engine=engine,
        model=model,
        plan=_with_float_inputs(plan, model, recipe),
        statistics=statistics,
        outcome=outcome,
        calibration_s=calibration_s,
    )


def prepare(problem: Problem, given: Placed, *, progress: Progress = silent) -> Prepared:
    """Find the numbers of a placement, and what lowers its output error.

    Args:
        problem: The network and its samples.
        given: The placement.
        progress: Told about the trials.
    """
    with tempfile.TemporaryDirectory(prefix="fptq-") as folder:
        trials = Trials(problem=problem, engine=given.engine, folder=Path(folder))
        first = unrefined(given.model, given.plan, statistics=given.statistics, recipe=problem.recipe)
        found = refine(first, problem=problem, score=trials.sqnr, progress=progress)
        found, policies = _with_policies(found, trials, given.outcome, progress)
    return Prepared(
        engine=given.engine,
        float_model=found.model,
        encoding=found.encoding,
        model=materialize(found.model, found.encoding),
        statistics=found.statistics,
        outcome=given.outcome,
        tried=found.tried,
        observers=found.observers,
        calibration_s=given.calibration_s,
        placed=given.plan,
        policies=policies,
    )


def _with_policies(
    found: Refined, trials: Trials, outcome: Outcome | None, progress: Progress
) -> tuple[Refined, Decisions | None]:
    """The network with what the recipe wants for activations that one scale does not fit."""
    recipe, samples = trials.problem.recipe, trials.problem.calibration
    match recipe.regions:
        case "auto":
            return _contested(found, trials, outcome, progress)
        case "one":
            return found, None
    extremes = extremes_of(found, samples, lossy_inputs(found))
    return everywhere_in_regions(found, extremes, count=REGIONS[recipe.regions], p=recipe.p), None


def _contested(
    found: Refined, trials: Trials, outcome: Outcome | None, progress: Progress
) -> tuple[Refined, Decisions | None]:
    """The network with other policies where they pay, or where a plan says so."""
    problem = trials.problem
    choices = choices_of(plan_document_of(problem.recipe.plan)) if problem.recipe.plan is not None else None
    effort = EFFORTS[problem.recipe.recipe]
    if not (effort.spots if choices is None else choices):
        return found, None
    bench = Bench(problem=problem, effort=effort, score=trials.sqnr, progress=progress, best=found)
    clock = partial(trials.times, progress=progress) if problem.recipe.gate == "measured" else None
    contest = Contest(bench=bench, clock=clock, judges=trials.each_sqnr, limit=_latency_budget(outcome))
    decisions = contest.decide() if choices is None else contest.replay(choices)
    return bench.best, decisions


def _latency_budget(outcome: Outcome | None) -> float:
    """What policies may add: never so much that float would be faster."""
    if outcome is None:
        return LATENCY_BUDGET
    speedup = next(trial.speedup for trial in reversed(outcome.trials) if trial.chosen)
    return max(0.0, min(LATENCY_BUDGET, speedup - 1))


def _with_float_inputs(plan: Plan, model: Model, recipe: Recipe) -> Plan:
    """The plan with what the recipe wants quantized although it brings the engine nothing."""
    return with_float_inputs(model, plan, recipe.also_quantize, policy=policy_of(recipe))


def _unmeasured(candidates: Candidates, statistics: Statistics) -> Plan:
    """The profile's most accurate placement as it is, float layers stored as integers."""
    variant = next(iter(candidates.plans()), None)
    chosen = candidates.make(variant, statistics) if variant is not None else None
    reason = f"no integer kernel of {candidates.profile.engine} fits"
    return candidates.stored(chosen, reason).encoding.plan


def policy_of(recipe: Recipe) -> Policy:
    """The recipe's wishes about placement."""
    return Policy(
        precision={**recipe.precision, **dict.fromkeys(recipe.keep_float, "float")},
        per_channel=recipe.granularity == "channel",
        weight_bits=recipe.weight_bits,
        activation_bits=recipe.activation_bits,
        symmetric=recipe.symmetric,
    )


def plan_document(
    plan: Plan, problem: Problem, *, outcome: Outcome | None = None, policies: Decisions | None = None
) -> dict[str, Any]:
    """`plan.json`: the plan and the policies, with the timings that decided; replayed exactly by `--plan`."""
    return {
        "format": _PLAN_FORMAT,
        "model_sha256": problem.model.sha256,
        "engine_version": ENGINES[plan.engine].version(),
        "passes": list(PROFILES[plan.engine].passes),
        "timings": [vars(trial) for trial in outcome.trials] if outcome else [],
        "policies": policies.to_json() if policies else [],
        **plan_to_json(plan),
    }


_PLAN_FORMAT = "fptq-plan/1"


def _replayed(recipe: Recipe, engine: Engine) -> Plan | None:
    """The plan of a `plan.json`, for the engine that it was made for."""
    if recipe.plan is None:
        return None
    plan = plan_of(recipe.plan)
    if plan.engine != engine.name:
        raise ConfigError(
            f"{recipe.plan} was made for {plan.engine}, not for {engine.name}", remedy=f"Use --engine {plan.engine}"
        )
    return plan


def plan_of(path: Path) -> Plan:
    """The plan of a `plan.json`.

    Raises:
        ConfigError: It is none, or cannot be read.
    """
    return plan_from_json(plan_document_of(path))


def plan_document_of(path: Path) -> Mapping[str, Any]:
    """The document of a `plan.json`; see `plan_of`."""
    try:
        document: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} is not a readable plan: {error}") from error
    if not isinstance(document, Mapping) or document.get("format") != _PLAN_FORMAT:
        raise ConfigError(f"{path} is not a plan", rule=f"its format is {_PLAN_FORMAT}")
    return document


def rewritten(problem: Problem, names: Iterable[str]) -> Model:
    """The network after the engine's passes, which must leave its results as they are.

    Raises:
        ParityError: One of them did not.
    """
    model = problem.model
    for name in names:
        rewritten = PASSES[name](model)
        if rewritten is not model:
            check_rewrite(model.graph_model, rewritten.graph_model, problem.held_out[0], name=name)
        model = rewritten
    settle(model)
    return model
