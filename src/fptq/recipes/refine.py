"""Try what may lower the output error, and keep what does: rewrites, observers, bias correction."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from types import MappingProxyType

from fptq.feeds import Part
from fptq.graph.model import Model
from fptq.recipes.observers import other_observers
from fptq.recipes.problem import Problem
from fptq.recipes.workbench import TRIED_ON, Bench, Effort, Refined, Score, Smoothing
from fptq.rewrite import (
    branches_levelled,
    corrected_biases,
    equalized,
    logarithmically_smoothed,
    measured_biases,
    smoothed,
)
from fptq.types import Progress, silent

_MEANS = 8
"""Calibration samples for the means of channels."""


def refine(start: Refined, *, problem: Problem, score: Score, progress: Progress = silent) -> Refined:
    """The numbers of a plan, and the rewrites under them, that lose least of the network's output.

    Args:
        start: What is refined; its plan stays.
        problem: The samples, and the recipe: it says how much is tried.
        score: Judges an encoding.
        progress: Told about calibrations and measurements.
    """
    effort = EFFORTS[problem.recipe.recipe]
    if not effort.steps:
        return start
    bench = Bench(problem=problem, effort=effort, score=score, progress=progress, best=start)
    if math.isfinite(bench.best_db) or bench.best_db == -math.inf:  # else nothing is lost, or nothing can be measured
        for step in effort.steps:
            step(bench)
    return replace(bench.best, tried=tuple(bench.tried))


def _try_levelled_branches(bench: Bench) -> None:
    if not bench.best.encoding.plan.activations:  # one scale for two branches is the trouble
        return
    for alpha in bench.effort.alphas:
        for name, model in levelled(bench.problem, bench.best.model, alpha):
            bench.contest(bench.rewritten(name, model))


def levelled(problem: Problem, model: Model, alpha: float) -> Iterator[tuple[str, Model]]:
    """The network with levelled concatenations, and what that is called; nothing where there is none to level."""
    found = branches_levelled(model, Part(problem.calibration, TRIED_ON), alpha=alpha)
    if found is not None:
        yield f"concatenations levelled, alpha {alpha:g}", found


def _try_observers(bench: Bench) -> None:
    if bench.best.encoding.plan.activations:
        names = other_observers(bench.problem.recipe)
        bench.contest((f"activations {name}", bench.observed(name)) for name in names)


def _try_clipped_weights(bench: Bench) -> None:
    bench.contest([("weights lp (clipped)", bench.clipped())])


def _try_equalization(bench: Bench) -> None:
    name, model = "cross-layer equalization", equalized(bench.best.model)
    if model is not None:
        bench.contest(bench.rewritten(name, model))


def _try_smoothing(bench: Bench) -> None:
    if not bench.best.encoding.plan.activations:  # nothing to make smoother
        return
    bench.contest(_smoothed(bench))


def _smoothed(bench: Bench) -> Iterator[tuple[str, Refined]]:
    for name, smoothing in bench.effort.smoothings.items():
        model = smoothing(bench.best.model, Part(bench.problem.calibration, TRIED_ON))
        if model is not None:
            yield from bench.rewritten(name, model)


def _by_name(alphas: Iterable[float]) -> dict[str, Smoothing]:
    return {f"smoothing, alpha {alpha:g}": partial(smoothed, alpha=alpha) for alpha in alphas}


def _try_bias_correction(bench: Bench) -> None:
    if bench.problem.recipe.bias_correction == "off":
        return
    best, means = bench.best, Part(bench.problem.calibration, _MEANS)
    model = corrected_biases(best.model, best.encoding, means)
    if model is not None:
        bench.contest([("bias correction", replace(best, model=model))])


def _try_measured_biases(bench: Bench) -> None:
    if bench.problem.recipe.bias_correction == "off":
        return
    best, means = bench.best, Part(bench.problem.calibration, _MEANS)
    model = measured_biases(best.model, best.encoding, means, reference=best.exact, progress=bench.progress)
    if model is not None:
        bench.contest([("bias correction, measured layer by layer", replace(best, model=model))])


_CHEAP = (
    _try_levelled_branches,
    _try_observers,
    _try_clipped_weights,
    _try_equalization,
    _try_smoothing,
    _try_bias_correction,
)

_ALPHAS = (0.25, 0.5, 0.75)

EFFORTS: Mapping[str, Effort] = MappingProxyType(
    {
        "fast": Effort(judges=0, alphas=(), steps=()),
        "auto": Effort(judges=3, alphas=(0.5,), smoothings=_by_name([0.5]), spots=2, steps=_CHEAP),
        "best": Effort(
            judges=8,
            alphas=_ALPHAS,
            smoothings={**_by_name(_ALPHAS), "logarithmic smoothing": logarithmically_smoothed},
            spots=8,
            calibrates_again=True,
            steps=(*_CHEAP, _try_measured_biases),
        ),
    }
)
"""How much is tried, by the recipe's name for it."""
