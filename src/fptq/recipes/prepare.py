"""From a problem to a quantized network for one engine: place, calibrate, measure, choose, correct."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fptq.calibrate import CalibrationOptions, CollectOptions, Statistics, collect, needed, observer, solve
from fptq.calibrate import weight_observer as weight_observer_named
from fptq.config import Recipe
from fptq.engines import ENGINES, CompileOptions, Engine, Session
from fptq.errors import ConfigError
from fptq.graph.model import Model
from fptq.graph.parity import check_parity, graph_reference
from fptq.graph.write import save
from fptq.plan import PROFILES, Policy, materialize
from fptq.plan.encoding import Encoding, plan_from_json, plan_to_json
from fptq.plan.plan import Plan
from fptq.recipes.problem import Problem
from fptq.rewrite import PASSES, corrected_biases
from fptq.search import Candidates, Gate, Outcome
from fptq.tasks import compare
from fptq.types import Progress, silent

if TYPE_CHECKING:
    from fptq.recipes.mixed import Mix

_JUDGES = 3
_MEANS = 8
_AUTO = (("lp", "minmax"), ("minmax", "minmax"))
"""Observers of activations and weights that "auto" compares on held-out samples."""


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A network quantized for an engine.

    Attributes:
        engine: The engine.
        float_model: The network that the encoding belongs to: rewritten for the engine, biases corrected.
        encoding: The quantizers.
        model: The Q/DQ network.
        statistics: What calibration found.
        outcome: What the gate measured; None where it was off or a plan was replayed.
        tried: Recipes compared by output error: what, SQNR [dB], whether it was kept.
        observers: Observers of activations and weights.
        calibration_s: Seconds of the pass over the samples.
        warnings: What the user must know before trusting or using the result.
        mix: The search that chose a precision for every layer; None where there was none.
    """

    engine: Engine
    float_model: Model
    encoding: Encoding
    model: Model
    statistics: Statistics
    outcome: Outcome | None
    tried: tuple[tuple[str, float, bool], ...]
    observers: tuple[str, str]
    calibration_s: float
    warnings: tuple[str, ...] = ()
    mix: Mix | None = None


def prepare(problem: Problem, engine: Engine, *, progress: Progress = silent) -> Prepared:
    """Quantize for one engine.

    Args:
        problem: The network and its samples.
        engine: The target.
        progress: Told about calibration and timing.
    """
    recipe, profile = problem.recipe, PROFILES[engine.name]
    model = rewritten(problem, profile.passes)
    observers, options = _observers(recipe), options_of(recipe, problem.threads)
    candidates = Candidates(model=model, profile=profile, policy=policy_of(recipe), options=options)
    replayed = _replayed(recipe, engine)
    others = [_options(recipe, names, 1).observer for names in observers]
    asked = candidates.statistics_needed(others) if replayed is None else needed(replayed, others)
    start = time.perf_counter()
    statistics = collect(model, asked, problem.calibration, options=options.run, store=problem.store, progress=progress)
    calibration_s = time.perf_counter() - start
    with tempfile.TemporaryDirectory(prefix="fptq-") as folder:
        table = _Table(problem=problem, engine=engine, folder=Path(folder))
        outcome = None
        if replayed is None and recipe.gate == "measured":
            outcome = table.gate(candidates, statistics, progress)
        plan = outcome.candidate.encoding.plan if outcome else replayed or _unmeasured(candidates, statistics)
        chosen, encoding, pair = table.best_numbers(model, plan, statistics, observers)
    return Prepared(
        engine=engine,
        float_model=chosen,
        encoding=encoding,
        model=materialize(chosen, encoding),
        statistics=statistics,
        outcome=outcome,
        tried=tuple(table.tried),
        observers=pair,
        calibration_s=calibration_s,
    )


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


def plan_document(plan: Plan, problem: Problem, *, outcome: Outcome | None = None) -> dict[str, Any]:
    """`plan.json`: the plan with the timings that decided it; replayed exactly by `--plan`."""
    return {
        "format": _PLAN_FORMAT,
        "model_sha256": problem.model.sha256,
        "engine_version": ENGINES[plan.engine].version(),
        "passes": list(PROFILES[plan.engine].passes),
        "timings": [vars(trial) for trial in outcome.trials] if outcome else [],
        **plan_to_json(plan),
    }


_PLAN_FORMAT = "fptq-plan/1"


def _replayed(recipe: Recipe, engine: Engine) -> Plan | None:
    """The plan of a `plan.json`, for the engine that it was made for."""
    if recipe.plan is None:
        return None
    try:
        document: Mapping[str, Any] = json.loads(recipe.plan.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{recipe.plan} is not a readable plan: {error}") from error
    if not isinstance(document, Mapping) or document.get("format") != _PLAN_FORMAT:
        raise ConfigError(f"{recipe.plan} is not a plan", rule=f"its format is {_PLAN_FORMAT}")
    plan = plan_from_json(document)
    if plan.engine != engine.name:
        raise ConfigError(
            f"{recipe.plan} was made for {plan.engine}, not for {engine.name}", remedy=f"Use --engine {plan.engine}"
        )
    return plan


def rewritten(problem: Problem, names: Iterable[str]) -> Model:
    """The network after the engine's passes, which must leave its results as they are.

    Raises:
        ParityError: One of them did not.
    """
    model = problem.model
    for name in names:
        rewritten = PASSES[name](model)
        if rewritten is not model:
            sample = problem.held_out[0]
            reference = graph_reference(model.graph_model, sample, name=f"the network before {name}")
            check_parity(rewritten.graph_model, sample, reference)
        model = rewritten
    return model


def options_of(recipe: Recipe, threads: int) -> CalibrationOptions:
    """The recipe's observers, the first choice where several are compared."""
    return _options(recipe, _observers(recipe)[0], threads)


def observers_of(recipe: Recipe) -> tuple[str, str]:
    """Names of the activations' and the weights' observer, the first choice where several are compared."""
    return _observers(recipe)[0]


def _observers(recipe: Recipe) -> tuple[tuple[str, str], ...]:
    """Names of the activations' and the weights' observer, all pairs that are compared."""
    return _AUTO if recipe.observer == "auto" else ((recipe.observer, "minmax"),)


def _options(recipe: Recipe, names: tuple[str, str], threads: int) -> CalibrationOptions:
    numbers: dict[str, dict[str, float]] = {"percentile": {"percentile": recipe.percentile}, "lp": {"p": recipe.p}}
    return CalibrationOptions(
        observer=observer(names[0].replace("-", "_"), numbers.get(names[0], {})),
        weight_observer=weight_observer_named(names[1], numbers.get(names[1], {})),
        run=CollectOptions(threads=threads),
    )


@dataclass(kw_only=True)
class _Table:
    """Compares encodings on the engine by their output error on held-out samples."""

    problem: Problem
    engine: Engine
    folder: Path
    tried: list[tuple[str, float, bool]] = field(default_factory=list)
    _reference: Session | None = None
    _count: int = 0

    def gate(self, candidates: Candidates, statistics: Statistics, progress: Progress) -> Outcome:
        return Gate(
            engine=self.engine,
            float_model=self.problem.model,
            candidates=candidates,
            statistics=statistics,
            samples=self.problem.held_out[:_JUDGES],
            folder=self.folder,
            threads=self.problem.threads,
            seconds=self.problem.recipe.gate_seconds / 4,
            progress=progress,
        ).choose()

    def best_numbers(
        self, model: Model, plan: Plan, statistics: Statistics, observers: Iterable[tuple[str, str]]
    ) -> tuple[Model, Encoding, tuple[str, str]]:
        """The model and encoding of least output error among observers, then with and without bias correction."""
        solved = {}
        for names in observers:
            encoding = solve(model, plan, statistics, options=_options(self.problem.recipe, names, 1))
            solved[names] = (self._sqnr(model, encoding), encoding)
        best = max(solved, key=lambda names: solved[names][0])
        for names, (sqnr, _) in solved.items():
            self.tried.append((f"activations {names[0]}, weights {names[1]}", sqnr, names == best))
        sqnr, encoding = solved[best]
        if self.problem.recipe.bias_correction == "off":
            return model, encoding, best
        means = [sample for _, sample in zip(range(_MEANS), self.problem.calibration, strict=False)]
        corrected = corrected_biases(model, encoding, means)
        if corrected is None:
            return model, encoding, best
        after = self._sqnr(corrected, encoding)
        self.tried.append(("bias correction", after, after > sqnr))
        if after <= sqnr:
            return model, encoding, best
        note = f"bias correction: output SQNR {sqnr:.2f} -> {after:.2f} dB on held-out samples"
        return corrected, replace(encoding, rewrites=(*encoding.rewrites, note)), best

    def _sqnr(self, model: Model, encoding: Encoding) -> float:
        if self._reference is None:
            self._reference = self._session(self.problem.model)
        session = self._session(materialize(model, encoding))
        return compare(self._reference, session, self.problem.held_out[:_JUDGES]).sqnr_db

    def _session(self, model: Model) -> Session:
        self._count += 1
        path = self.folder / f"numbers_{self._count}.onnx"
        save(model, path)
        return self.engine.compile(path, CompileOptions(threads=self.problem.threads))
