"""A network with its numbers in several formats, and the samples that judge: what analysis and search begin from."""

from __future__ import annotations

import itertools
import logging
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

import fptq
from fptq.cache import Cache, CacheEntry, cache_key
from fptq.calibrate import Statistics, collect, needed
from fptq.engines import Engine
from fptq.errors import ConfigError, DataError, MissingExtra, ModelError
from fptq.graph.model import Model
from fptq.plan import PROFILES, Plan, materialize, place
from fptq.plan.encoding import Encoding, plan_to_json
from fptq.recipes.formats import Format
from fptq.recipes.narrow import Source
from fptq.recipes.observers import Pair, calibration_options, first_pair, other_observers
from fptq.recipes.prepare import policy_of, rewritten
from fptq.recipes.problem import Problem
from fptq.recipes.refine import refine
from fptq.recipes.trials import Trials
from fptq.recipes.workbench import Tried, unrefined
from fptq.rewrite import input_means, shifted_biases
from fptq.types import Array, Feeds, Progress

if TYPE_CHECKING:
    from fptq.analyze import Sensitivity, Unit

_LOG = logging.getLogger(__name__)
_KIND, _VERSION = "sensitivity", 1

_MEANS = 8
"""Samples for the channel means of bias correction."""

SAMPLES = 16
"""Samples that judge; calibration uses all."""
METHODS = ("fisher", "leave-one-in")


@dataclass(frozen=True, kw_only=True)
class Realized:
    """A network with its numbers.

    Attributes:
        model: The float network that the numbers belong to.
        encoding: The quantizers.
    """

    model: Model
    encoding: Encoding

    @property
    def network(self) -> Model:
        """The Q/DQ network."""
        return materialize(self.model, self.encoding)


@dataclass(frozen=True, kw_only=True)
class Study:
    """One network in several formats.

    Attributes:
        model: The float network, rewritten for the engine.
        encodings: Numbers of all placements by format.
        samples: What judges.
        statistics: What calibration found.
        calibration_s: Seconds of the pass over the samples.
        observers: Observers of activations and weights.
        store: The cache.
        seed: Of random projections.
        tried: What was tried to lower the output error, and what it brought.
        rewrites: What was changed in the network, one line each.
        means: Of the channels of every layer's input, where biases are corrected; None where they are not.
    """

    model: Model
    encodings: Mapping[str, Encoding]
    samples: tuple[Feeds, ...]
    statistics: Statistics
    calibration_s: float
    observers: Pair
    store: Cache
    seed: int
    tried: tuple[Tried, ...] = ()
    rewrites: tuple[str, ...] = ()
    means: Mapping[str, Array] | None = None

    @property
    def plan(self) -> Plan:
        """The plan of the first format."""
        return next(iter(self.encodings.values())).plan

    def realized(self, units: Sequence[Unit], formats: Mapping[str, str]) -> Realized:
        """The network in which every unit has a format of its own.

        Args:
            units: All units of the plan.
            formats: By the unit's name; "float" leaves a unit alone.
        """
        from fptq.analyze.mixed import mixed_encoding

        encoding = mixed_encoding(self.model, units, self.encodings, formats)
        encoding = replace(encoding, rewrites=self.rewrites if encoding.plan.specs else ())
        corrected = None if self.means is None else shifted_biases(self.model, encoding, self.means)
        return Realized(model=corrected or self.model, encoding=encoding)

    def sensitivity(self, method: str, progress: Progress) -> Sensitivity:
        """The sensitivity of every unit in every format, from the store or computed and stored."""
        from fptq.analyze import Objective, Sensitivity, units_of

        units, key = units_of(self.model, self.plan), self._key(method)
        entry = self.store.get(_KIND, key)
        if entry is None:
            found = self._computed(method, units, progress)
            meta = {"samples": found.samples, "method": found.method, "objective": found.objective.value}
            self.store.put(_KIND, key, CacheEntry(arrays={"loss": found.loss}, meta=meta))
            return found
        return Sensitivity(
            units=units,
            formats=tuple(self.encodings),
            loss=np.asarray(entry.arrays["loss"]),
            objective=Objective(entry.meta["objective"]),
            samples=entry.meta["samples"],
            method=entry.meta["method"],
        )

    def _computed(self, method: str, units: Sequence[Unit], progress: Progress) -> Sensitivity:
        from fptq.analyze import SensitivityOptions, fisher_sensitivity, leave_one_in
        from fptq.execute import Executor, verify
        from fptq.execute.objective import natural

        executor, objective = Executor.open(self.model), natural(self.model)
        verify(self.model, self.samples[0], executor=executor)
        if method == "fisher":
            try:
                options = SensitivityOptions(objective=objective, seed=self.seed)
                return fisher_sensitivity(
                    executor, units, self.encodings, self.samples, options=options, progress=progress
                )
            except ModelError as error:
                _LOG.warning("%s Leave-one-in is used instead", error)
        return leave_one_in(executor, units, self.encodings, self.samples, objective=objective, progress=progress)

    def _key(self, method: str) -> str:
        import torch

        versions = (_VERSION, fptq.__version__, torch.__version__)
        numbers = [
            (name, plan_to_json(encoding.plan), [(p.scale, p.zero_point) for p in encoding.params.values()])
            for name, encoding in self.encodings.items()
        ]
        samples = [dict(sample) for sample in self.samples]
        return cache_key(versions, self.model.sha256, numbers, samples, method, self.seed)


def open_study(problem: Problem, engine: Engine, formats: Sequence[str], progress: Progress) -> Study:
    """Calibrate once, and find the numbers of every format.

    Args:
        problem: The network and its samples.
        engine: The engine whose placement is looked at.
        formats: Such as "w4a8".
        progress: Told about calibration.

    Raises:
        MissingExtra: torch is not installed.
    """
    placed = _placed(problem, engine, progress, others=())
    pair = first_pair(problem.recipe)
    return placed.study(problem, formats, placed.model, placed.statistics, pair)


def refined_study(problem: Problem, engine: Engine, formats: Sequence[str], progress: Progress) -> Study:
    """The same, after what may lower the output error was tried on the widest of the formats.

    Args:
        problem: The network and its samples; its recipe says how much is tried.
        engine: The engine whose placement is looked at; it runs the trials.
        formats: Such as "w4a8".
        progress: Told about calibration.

    Raises:
        MissingExtra: torch is not installed.
    """
    placed = _placed(problem, engine, progress, others=other_observers(problem.recipe))
    widest = Format.parse(max(formats, key=lambda name: Format.parse(name).width))
    with tempfile.TemporaryDirectory(prefix="fptq-") as folder:
        score = Trials(problem=problem, engine=engine, folder=Path(folder)).sqnr
        plan = widest.plan(placed.plan, placed.model)
        first = unrefined(placed.model, plan, statistics=placed.statistics, recipe=problem.recipe)
        found = refine(first, problem=problem, score=score, progress=progress)
    study = placed.study(problem, formats, found.exact, found.statistics, found.observers)
    corrected = found.model is not found.exact
    means = input_means(found.exact, found.encoding, study.samples[:_MEANS]) if corrected else None
    return replace(study, tried=found.tried, rewrites=found.encoding.rewrites, means=means)


@dataclass(frozen=True, kw_only=True)
class _Placed:
    """A network with a placement and what calibration found for it."""

    model: Model
    plan: Plan
    statistics: Statistics
    calibration_s: float

    def study(
        self, problem: Problem, formats: Sequence[str], model: Model, statistics: Statistics, pair: Pair
    ) -> Study:
        samples = tuple(itertools.islice(problem.calibration, SAMPLES))
        source = Source(model=model, statistics=statistics, recipe=problem.recipe, pair=pair, samples=samples)
        given = {name: Format.parse(name) for name in formats}
        return Study(
            model=model,
            encodings={name: source.numbers(one.plan(self.plan, self.model), one) for name, one in given.items()},
            samples=samples,
            statistics=statistics,
            calibration_s=self.calibration_s,
            observers=pair,
            store=problem.store,
            seed=problem.recipe.seed,
        )


def _placed(problem: Problem, engine: Engine, progress: Progress, *, others: Sequence[str]) -> _Placed:
    try:
        import torch  # noqa: F401  the executor runs in it
    except ImportError as error:
        raise MissingExtra("torch", extra="torch", purpose="Sensitivity analysis") from error
    recipe, profile = problem.recipe, PROFILES[engine.name]
    model = rewritten(problem, profile.passes)
    plan = place(model, profile, profile.variants[0], policy_of(recipe))
    options = [
        calibration_options(recipe, (name, "minmax"), problem.threads) for name in (first_pair(recipe)[0], *others)
    ]
    start = time.perf_counter()
    statistics = collect(
        model,
        needed(plan, [option.observer for option in options]),
        problem.calibration,
        options=options[0].run,
        store=problem.store,
        progress=progress,
    )
    return _Placed(model=model, plan=plan, statistics=statistics, calibration_s=time.perf_counter() - start)


def check(formats: Sequence[str], method: str) -> None:
    """Refuse what is no format or no method, before any work."""
    if not formats:
        raise DataError("no format was given", rule="a sensitivity is that of a format, such as w8a8")
    for name in formats:
        Format.parse(name)
    if method not in METHODS:
        raise ConfigError(f"{method!r} is not a method", rule="the methods are fisher and leave-one-in")
