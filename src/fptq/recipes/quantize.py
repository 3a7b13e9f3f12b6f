"""The story on one page: open, place, calibrate, measure, materialize, judge."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from fptq.config import Recipe
from fptq.engines import DEPLOYABLE, ENGINES
from fptq.engines.cpu import safe_weight_bits
from fptq.errors import ConfigError, EngineError
from fptq.recipes.choose_engine import engines_to_try, one_engine
from fptq.recipes.evidence import judge
from fptq.recipes.lowbit import low_bit
from fptq.recipes.mixed import find_mix
from fptq.recipes.prepare import Placed, Prepared, placed, prepare
from fptq.recipes.problem import Problem, open_scored
from fptq.recipes.result import Result
from fptq.tasks import Task
from fptq.types import Progress, silent

_LOG = logging.getLogger(__name__)


def quantize(
    model: object,
    *,
    calibration: object,
    evaluate: Callable[..., Any] | str | None = None,
    task: Task | str | None = None,
    validation: object = None,
    labels: str | Path | None = None,
    recipe: Recipe | str | None = None,
    progress: Progress = silent,
    command: str = "",
    **options: object,
) -> Result:
    """Quantize a network, run it on a real engine, and measure what that cost and brought.

    Args:
        model: The path of an ONNX file, an onnx model, an `nn.Module`, or "package.module:function".
        calibration: Unlabelled samples, 100 to 500 as a rule: an iterable of tensors, tuples or dicts, a folder or
            glob, "package.module:function", or what `fptq.record` collected.
        evaluate: A metric: called with a function that takes what the model takes and returns what the model
            returns; gives a number or a dict of numbers.
        task: A ready-made task instead of a metric, or the recipe's option of that name.
        validation: Samples for the agreement with the float network, or volumes for `task="segmentation"` in the
            recipe. Without it some calibration samples are held out.
        labels: Labels of the validation volumes.
        recipe: All options in one record, or how much is tried: "fast", "auto" or "best".
        progress: Told how calibration, timing and evaluation advance.
        command: What the user typed, for the report.
        **options: Options that override the recipe's, by its field names.

    Returns:
        The int8 network with its report; `save` writes the folder.

    Raises:
        FptqError: Something is wrong with the model, the data, the options or the engine; the message says what.
    """
    if isinstance(task, str):
        options, task = {**options, "task": task}, None
    recipe = saturating_weights(Recipe.named(recipe).merged(**options))
    problem = open_scored(
        model, calibration, recipe, evaluate=evaluate, task=task, validation=validation, labels=labels
    )
    way = _mixed if recipe.limits else _low_bit if recipe.bits is not None else _for_best_engine
    prepared, because = way(problem, progress)
    report = judge(problem, prepared, command=command or _call(recipe), because=because, progress=progress)
    return Result(report=report, prepared=prepared, problem=problem)


def _mixed(problem: Problem, progress: Progress) -> tuple[Prepared, str]:
    """The network with a precision of its own for every layer, and why it is for that engine."""
    engine, because = one_engine(problem, progress)
    mix = find_mix(problem, engine, progress=progress)
    prepared = Prepared(
        engine=engine,
        float_model=mix.realized.model,
        encoding=mix.realized.encoding,
        model=mix.realized.network,
        statistics=mix.study.statistics,
        outcome=None,
        tried=mix.study.tried,
        observers=mix.study.observers,
        calibration_s=mix.study.calibration_s,
        warnings=mix.notes,
        mix=mix,
    )
    return prepared, because


def _low_bit(problem: Problem, progress: Progress) -> tuple[Prepared, str]:
    """The network in few bits, and why it is for that engine."""
    engine, because = one_engine(problem, progress)
    return low_bit(problem, engine, progress=progress), because


def _for_best_engine(problem: Problem, progress: Progress) -> tuple[Prepared, str]:
    """The network on the engine where it is fastest, and why it is that one."""
    engines = engines_to_try(problem.recipe)
    if len(engines) == 1:
        given = placed(problem, engines[0], progress=progress)
        prepared = prepare(problem, given, progress=progress)
        prepared = replace(prepared, warnings=tuple(_better_elsewhere(problem, prepared, progress)))
        return prepared, _the_only_one(problem.recipe)
    if problem.recipe.gate == "off":
        raise ConfigError(
            "engine=auto with gate=off", rule="engines are compared by measuring", remedy="Name an engine"
        )
    made: dict[str, tuple[Placed, float]] = {}
    for engine in engines:
        try:
            given = placed(problem, engine, progress=progress)
        except EngineError as error:
            _LOG.warning("%s is left out: %s", engine.name, error)
            continue
        assert given.outcome is not None
        made[engine.name] = given, given.outcome.latency_ms
    if not made:
        raise EngineError("no installed engine runs this network", remedy="Try --engine NAME to see why")
    best = min(made, key=lambda name: made[name][1])
    times = ", ".join(f"{name} {latency:.3g} ms" for name, (_, latency) in made.items())
    return prepare(problem, made[best][0], progress=progress), f"the fastest of those installed ({times})"


def _the_only_one(recipe: Recipe) -> str:
    if recipe.engine != "auto":
        return "asked for"
    return "the plan is for it" if recipe.plan is not None else "the only one installed"


def _better_elsewhere(problem: Problem, prepared: Prepared, progress: Progress) -> Iterator[str]:
    """Where int8 does not pay on the engine that was asked for: the installed engines where it does."""
    if prepared.outcome is None or prepared.outcome.pays:
        return
    for name in DEPLOYABLE:
        engine = ENGINES[name]
        if name == prepared.engine.name or engine.version() is None:
            continue
        other = placed(problem, engine, progress=progress).outcome
        if other is not None and other.pays:
            yield (
                f"int8 does not pay on {prepared.engine.name} for this network; on {name} it does: "
                f"{other.latency_ms:.3g} ms against {prepared.outcome.latency_ms:.3g} ms. Use --engine {name}"
            )


def _call(recipe: Recipe) -> str:
    """The Python call, for the report."""
    changed = {name: value for name, value in recipe if value != getattr(Recipe(), name)}
    shown = "".join(f", {name}={value!r}" for name, value in changed.items())
    return f"fptq.quantize(model, calibration=...{shown})"


def saturating_weights(recipe: Recipe) -> Recipe:
    """On processors whose int8 products saturate in 16 bits (AVX2 without VNNI) weights get 7 bits."""
    safe = safe_weight_bits(recipe.weight_bits)
    return recipe if safe == recipe.weight_bits else recipe.merged(weight_bits=safe)
