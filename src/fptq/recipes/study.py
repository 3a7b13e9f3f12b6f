"""A network with its numbers in several formats, and the samples that judge: what analysis and search begin from."""

from __future__ import annotations

import itertools
import logging
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

import fptq
from fptq.cache import Cache, CacheEntry, cache_key
from fptq.calibrate import CalibrationOptions, Statistics, collect, needed, solve
from fptq.engines.cpu import safe_weight_bits
from fptq.errors import ConfigError, DataError, MissingExtra, ModelError
from fptq.graph.model import Model
from fptq.plan import PROFILES, Plan, materialize, place
from fptq.plan.encoding import Encoding, plan_to_json
from fptq.recipes.prepare import observers_of, options_of, policy_of, rewritten
from fptq.recipes.problem import Problem
from fptq.types import Feeds, Progress

if TYPE_CHECKING:
    from fptq.analyze import Sensitivity, Unit

_LOG = logging.getLogger(__name__)
_FORMAT = re.compile(r"w(\d+)a(\d+)")
_KIND, _VERSION = "sensitivity", 1

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
    """

    model: Model
    encodings: Mapping[str, Encoding]
    samples: tuple[Feeds, ...]
    statistics: Statistics
    calibration_s: float
    observers: tuple[str, str]
    store: Cache
    seed: int

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

        return Realized(model=self.model, encoding=mixed_encoding(self.model, units, self.encodings, formats))

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


def open_study(problem: Problem, engine: str, formats: Sequence[str], progress: Progress) -> Study:
    """Calibrate once, and find the numbers of every format.

    Args:
        problem: The network and its samples.
        engine: Name of the engine whose placement is looked at.
        formats: Such as "w4a8".
        progress: Told about calibration.

    Raises:
        MissingExtra: torch is not installed.
    """
    try:
        import torch  # noqa: F401  the executor runs in it
    except ImportError as error:
        raise MissingExtra("torch", extra="torch", purpose="Sensitivity analysis") from error
    recipe, profile = problem.recipe, PROFILES[engine]
    model = rewritten(problem, profile.passes)
    options: CalibrationOptions = options_of(recipe, problem.threads)
    plan = place(model, profile, profile.variants[0], policy_of(recipe))
    asked = needed(plan, [options.observer])
    start = time.perf_counter()
    statistics = collect(model, asked, problem.calibration, options=options.run, store=problem.store, progress=progress)
    return Study(
        model=model,
        encodings={name: solve(model, _wide(plan, name), statistics, options=options) for name in formats},
        samples=tuple(itertools.islice(problem.calibration, SAMPLES)),
        statistics=statistics,
        calibration_s=time.perf_counter() - start,
        observers=observers_of(recipe),
        store=problem.store,
        seed=recipe.seed,
    )


def check(formats: Sequence[str], method: str) -> None:
    """Refuse what is no format or no method, before any work."""
    if not formats:
        raise DataError("no format was given", rule="a sensitivity is that of a format, such as w8a8")
    for name in formats:
        bits_of(name)
    if method not in METHODS:
        raise ConfigError(f"{method!r} is not a method", rule="the methods are fisher and leave-one-in")


def bits_of(name: str) -> tuple[int, int]:
    """The widths of weights and of activations.

    >>> bits_of("w4a8")
    (4, 8)
    """
    match = _FORMAT.fullmatch(name)
    if match is None or not all(2 <= int(bits) <= 16 for bits in match.groups()):
        raise ConfigError(f"{name!r} is not a format", rule="w4a8 means 4-bit weights and 8-bit activations, 2 to 16")
    return int(match[1]), int(match[2])


def _wide(plan: Plan, name: str) -> Plan:
    weights, activations = bits_of(name)
    weights = safe_weight_bits(weights)
    return plan.with_bits({p: weights if p in plan.weights else activations for p in plan.specs})
