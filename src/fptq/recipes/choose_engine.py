"""Which engine a network is made for, where the user leaves that open."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from fptq.config import Recipe
from fptq.engines import DEPLOYABLE, ENGINES, CompileOptions, Engine, Session, engine_named
from fptq.engines.benchmark import interleaved
from fptq.errors import EngineError, MissingExtra
from fptq.feeds import Part
from fptq.graph.write import save
from fptq.plan import materialize
from fptq.recipes.prepare import plan_of
from fptq.recipes.problem import Problem
from fptq.recipes.study import open_study
from fptq.types import Progress


def engines_to_try(recipe: Recipe) -> Sequence[Engine]:
    """The engines that a recipe allows and that are installed; the one of its plan, where it has one.

    Raises:
        MissingExtra: The engine that was asked for, or every engine, is not installed.
    """
    if recipe.engine != "auto":
        return (engine_named(recipe.engine),)
    if recipe.plan is not None:
        return (engine_named(plan_of(recipe.plan).engine),)
    found = [ENGINES[name] for name in DEPLOYABLE if ENGINES[name].version() is not None]
    if not found:
        raise MissingExtra("openvino", extra="openvino", purpose="Running a quantized network")
    return found


def one_engine(problem: Problem, progress: Progress) -> tuple[Engine, str]:
    """The engine to search on, and why it is that one: where the network is fastest with every layer in integers.

    Ranges do not matter for that: one sample gives them.

    Raises:
        EngineError: No installed engine runs this network.
    """
    engines = engines_to_try(problem.recipe)
    if len(engines) == 1:
        return engines[0], "asked for" if problem.recipe.engine != "auto" else "the only one installed"
    brief = replace(problem, calibration=Part(problem.calibration, 1))
    sessions: dict[str, Session] = {}
    with tempfile.TemporaryDirectory(prefix="fptq-") as folder:
        for engine in engines:
            study = open_study(brief, engine, ("w8a8",), progress)
            path = Path(folder) / f"{engine.name}.onnx"
            try:
                save(materialize(study.model, study.encodings["w8a8"]), path)
                options = CompileOptions(threads=problem.threads, float_precision="default")
                sessions[engine.name] = engine.compile(path, options)
            except EngineError:
                continue
        if not sessions:
            raise EngineError("no installed engine runs this network", remedy="Try --engine NAME to see why")
        sample = next(itertools.islice(problem.calibration, 1))
        timings = interleaved(sessions, sample, rounds=9, seconds=20.0, progress=progress)
    best = min(timings, key=lambda name: timings[name].median_ms)
    times = ", ".join(f"{name} {timing.median_ms:.3g} ms" for name, timing in timings.items())
    return ENGINES[best], f"the fastest of those installed with every layer in integers ({times})"
