"""A network of few bits: one format for all layers but the ends, and a method that repairs what rounding breaks."""

from __future__ import annotations

import itertools
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from fptq.calibrate import Statistics, weight_params
from fptq.engines import Engine
from fptq.errors import MissingExtra
from fptq.graph.model import Model
from fptq.plan import PROFILES, Encoding, materialize
from fptq.plan.edges import edges_of
from fptq.recipes.bases import base_of
from fptq.recipes.formats import Format
from fptq.recipes.observers import Pair, calibration_options, first_pair
from fptq.recipes.prepare import Prepared
from fptq.recipes.problem import Problem
from fptq.recipes.trials import Trials
from fptq.search import Amount
from fptq.types import Progress, silent

if TYPE_CHECKING:
    from fptq.execute import Executor
    from fptq.reconstruct.closed_form import ClosedForm
    from fptq.reconstruct.task import ClosedFormOptions

_LEARNED_BELOW = 4
"""Bits of activations below which learning pays: a ResNet-18 on FashionMNIST has, in closed form and learned, 90.0 and
90.9 % at W4A4, 89.9 and 90.3 % at W3A3, 87.2 and 88.7 % at W2A2 (float 91.3 %)."""
_JUDGED = 3
"""Calibration samples that show how far a method fits its own data."""


@dataclass(frozen=True, kw_only=True)
class Repaired:
    """What a method did for a layer or block.

    Attributes:
        name: Its name.
        before: Its error with nearest rounding, in the method's own unit.
        after: Its error with what the method found.
        kept: Whether that was kept.
    """

    name: str
    before: float
    after: float
    kept: bool = True


@dataclass(frozen=True, kw_only=True)
class Repair:
    """How a network of few bits was made.

    Attributes:
        format: Such as "w4a4".
        method: Its name.
        setting: What kept eight bits at the ends.
        seconds: Time of the method.
        nearest_db: Output SQNR with nearest rounding, on held-out samples [dB].
        held_out_db: With the method.
        calibration_db: With the method, on samples that it learned from: far above `held_out_db` it has over-fitted.
        units: Its layers or blocks, in order.
        notes: What a reader must know.
    """

    format: str
    method: str
    setting: str
    seconds: float
    nearest_db: float
    held_out_db: float
    calibration_db: float
    units: tuple[Repaired, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Start:
    """A network of few bits with nearest rounding, and what a method needs.

    Attributes:
        problem: The samples, and the recipe: method, iterations, memory, seed.
        executor: Runs the float network.
        encoding: The numbers.
        observers: Which found them.
        progress: Told how the method advances.
        notes: What a reader must know of how the network came about.
    """

    problem: Problem
    executor: Executor
    encoding: Encoding
    observers: Pair
    progress: Progress
    notes: tuple[str, ...] = ()


Outcome = tuple[Model, Encoding, tuple[Repaired, ...], tuple[str, ...]]
"""The float network that the encoding belongs to, the encoding, what was done for whom, notes."""


def low_bit(problem: Problem, engine: Engine, *, progress: Progress = silent) -> Prepared:
    """Quantize to the recipe's bits by its method.

    Args:
        problem: The network and its samples.
        engine: The target; its placement is used, codes narrower than 8 bits are emulated in 8.
        progress: Told how calibration and the method advance.

    Raises:
        ConfigError: The bits are no format.
        MissingExtra: torch is not installed.
    """
    try:
        from fptq.execute import Executor, verify
    except ImportError as error:
        raise MissingExtra("torch", extra="torch", purpose="Repairing a network of few bits") from error
    recipe = problem.recipe
    Amount.parse(recipe.memory, cost="memory")  # before any work
    Format.parse(recipe.bits or "")
    clock = time.perf_counter()
    base = base_of(problem, PROFILES[engine.name], progress=progress)
    calibration_s = time.perf_counter() - clock
    executor = Executor.open(base.model)
    verify(base.model, problem.held_out[0], executor=executor)
    pair = first_pair(recipe)
    start = Start(
        problem=problem,
        executor=executor,
        encoding=base.encoding,
        observers=pair,
        progress=progress,
        notes=base.notes,
    )
    clock = time.perf_counter()
    outcome = METHODS[recipe.method](start)
    repair = _judged(start, engine, outcome, time.perf_counter() - clock)
    return _prepared(engine, outcome, repair, statistics=base.statistics, calibration_s=calibration_s, pair=pair)


def _prepared(
    engine: Engine, outcome: Outcome, repair: Repair, *, statistics: Statistics, calibration_s: float, pair: Pair
) -> Prepared:
    model, encoding, _, _ = outcome
    return Prepared(
        engine=engine,
        float_model=model,
        encoding=encoding,
        model=materialize(model, encoding),
        statistics=statistics,
        outcome=None,
        tried=(),
        observers=pair,
        calibration_s=calibration_s,
        warnings=repair.notes,
        repair=repair,
    )


def _judged(start: Start, engine: Engine, outcome: Outcome, seconds: float) -> Repair:
    """The repair with its output errors, on the engine."""
    model, encoding, units, notes = outcome
    recipe = start.problem.recipe
    seen = tuple(itertools.islice(start.problem.calibration, _JUDGED))
    with tempfile.TemporaryDirectory(prefix="fptq-") as folder:
        trials = Trials(problem=start.problem, engine=engine, folder=Path(folder))
        nearest = trials.sqnr(start.executor.model, start.encoding)
        held_out, calibration = trials.sqnrs(model, encoding, trials.judges, seen)
    return Repair(
        format=recipe.bits or "",
        method=recipe.method,
        setting=recipe.setting,
        seconds=seconds,
        nearest_db=nearest,
        held_out_db=held_out,
        calibration_db=calibration,
        units=units,
        notes=(*_about_format(start), *start.notes, *notes),
    )


def _about_format(start: Start) -> Iterator[str]:
    """What a reader must know about how the format runs, and where it does not hold."""
    name, plan = start.problem.recipe.bits or "", start.encoding.plan
    given = Format.parse(name)
    if given.emulated:
        yield f"{name}: emulated, {given.realized}"
    wide = edges_of(start.executor.model, plan).wide(start.problem.recipe.setting)
    if exceptions := given.exceptions(plan.without(*wide)):
        yield f"{name}: {exceptions}"


def _nearest(start: Start) -> Outcome:
    return start.executor.model, start.encoding, (), ()


def _gptaq(start: Start) -> Outcome:
    from fptq.reconstruct.closed_form import ClosedFormOptions

    return _rounded(start, ClosedFormOptions())


def _measured(start: Start) -> Outcome:
    from fptq.reconstruct.task import MEASURED

    return _rounded(start, MEASURED)


def _rounded(start: Start, options: ClosedFormOptions) -> Outcome:
    from fptq.reconstruct.closed_form import gptaq

    samples, options = start.problem.calibration, _bounded(start, options)
    return _closed_form(gptaq(start.executor, start.encoding, samples, options=options, progress=start.progress))


def _bounded(start: Start, options: ClosedFormOptions) -> ClosedFormOptions:
    """A closed form's options with the recipe's seed and memory."""
    return replace(options, seed=start.problem.recipe.seed, memory=_memory(start))


def _memory(start: Start) -> int:
    return int(Amount.parse(start.problem.recipe.memory, cost="memory").value)


def _ridge(start: Start) -> Outcome:
    from fptq.reconstruct.closed_form import ClosedFormOptions, ridge_correction

    options = calibration_options(start.problem.recipe, (start.observers[0], "lp"))
    made = ridge_correction(
        start.executor,
        start.encoding,
        start.problem.calibration,
        lambda weight, spec: weight_params(weight, spec, options.weight_observer),
        options=_bounded(start, ClosedFormOptions()),
    )
    return _closed_form(made)


def _corrected(start: Start) -> Outcome:
    from fptq.reconstruct.closed_form import ClosedFormOptions, output_correction

    options = _bounded(start, ClosedFormOptions())
    return _closed_form(output_correction(start.executor, start.encoding, start.problem.calibration, options=options))


def _closed_form(made: ClosedForm) -> Outcome:
    units = tuple(Repaired(name=g.node, before=g.before, after=g.after, kept=g.kept) for g in made.gains)
    notes = tuple(f"{refusal.node} keeps nearest rounding: {refusal.reason}" for refusal in made.skipped)
    return made.executor.model, made.encoding, units, notes


def _learned(start: Start) -> Outcome:
    import torch

    from fptq.execute import Executor
    from fptq.execute.objective import of_task
    from fptq.reconstruct import METHODS as LEARNED
    from fptq.reconstruct import ReconstructionOptions, reconstruct

    recipe = start.problem.recipe
    method = LEARNED[recipe.method]
    options = ReconstructionOptions(
        objective=of_task(start.executor.model, recipe.task),
        seed=recipe.seed,
        memory=_memory(start),
    )
    # Closed forms are a matter of minutes on a CPU; learning is what a GPU is for.
    executor = Executor.open(start.executor.model, device="cuda") if torch.cuda.is_available() else start.executor
    made = reconstruct(
        executor,
        start.encoding,
        start.problem.calibration,
        method=method if recipe.iterations is None else method.shortened(recipe.iterations),
        options=options,
        store=start.problem.store,
        progress=start.progress,
    )
    units = tuple(
        Repaired(name=unit.name, before=unit.initial_loss, after=unit.final_loss, kept=unit.kept) for unit in made.units
    )
    stopped = ("interrupted: the blocks that were not reached keep nearest rounding",) if made.interrupted else ()
    return start.executor.model, made.encoding, units, (*made.notes, *stopped)


def _auto(start: Start) -> Outcome:
    """In closed form where that is enough; learned for narrower activations, or where iterations were asked for."""
    recipe = start.problem.recipe
    enough = Format.parse(recipe.bits or "").activations >= _LEARNED_BELOW
    return _measured(start) if enough and recipe.iterations is None else _learned(start)


METHODS: Mapping[str, Callable[[Start], Outcome]] = MappingProxyType(
    {"auto": _auto, "nearest": _nearest, "correction": _corrected, "gptaq": _gptaq, "ridge": _ridge}
    | dict.fromkeys(("adaround", "brecq", "qdrop", "genie", "pd-quant", "ae-qdrop"), _learned)
)
"""What finds the codes, by the recipe's name for it."""
