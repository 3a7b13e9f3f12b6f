"""Which layer hurts: predicted output error of every layer in every format, and the errors that int8 makes."""

from __future__ import annotations

import itertools
import logging
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

import fptq
from fptq.cache import Cache, CacheEntry, cache_key
from fptq.calibrate import CalibrationOptions, collect, needed, solve
from fptq.config import Recipe
from fptq.errors import ConfigError, DataError, MissingExtra, ModelError
from fptq.graph.model import Model
from fptq.plan import PROFILES, Plan, place
from fptq.plan.encoding import Encoding, plan_to_json
from fptq.recipes.prepare import options_of, policy_of, rewritten
from fptq.recipes.problem import Problem, open_problem
from fptq.recipes.quantize import engines_to_try
from fptq.types import Feeds, Progress, silent

if TYPE_CHECKING:
    from fptq.analyze import LayerError, Sensitivity, Unit

_LOG = logging.getLogger(__name__)
_FORMAT = re.compile(r"w(\d+)a(\d+)")
_KIND, _VERSION = "sensitivity", 1

FORMATS = ("w16a16", "w8a8", "w4a4", "w2a2")
"""Weights of so many bits, activations of so many bits."""
SAMPLES = 16
"""Samples that the sensitivity is averaged over; calibration uses all."""


@dataclass(frozen=True, kw_only=True)
class SensitivityRow:
    """One layer, or layers that share a scale.

    Attributes:
        layer: Name of its first node, or value.
        module: Where that is in the user's model; empty where unknown.
        parameters: Number of weights.
        loss: Predicted output error by format: the sum of squared output differences over that of squared outputs, or
            the KL divergence [nats], of the network with this layer alone quantized.
        local_db: SQNR of its output in the first format of at most 8 bits, on float inputs [dB].
        accumulated_db: The same in the network with all layers in that format [dB].
    """

    layer: str
    module: str
    parameters: int
    loss: Mapping[str, float]
    local_db: float
    accumulated_db: float


@dataclass(frozen=True, kw_only=True)
class SensitivityTable:
    """The layers of a network by how much they hurt.

    Attributes:
        engine: The engine whose placement was analysed.
        formats: The columns of `SensitivityRow.loss`; all are emulated in float.
        compared: The format of the local and accumulated errors.
        objective: "squared" or "kl".
        method: "fisher", or "leave-one-in".
        samples: Samples that were run.
        rows: In the order of execution.
    """

    engine: str
    formats: tuple[str, ...]
    compared: str
    objective: str
    method: str
    samples: int
    rows: tuple[SensitivityRow, ...]


def sensitivity(
    model: object,
    *,
    calibration: object,
    formats: Sequence[str] = FORMATS,
    method: str = "fisher",
    recipe: Recipe | None = None,
    progress: Progress = silent,
    **options: object,
) -> SensitivityTable:
    """How much the output suffers from each layer in each format, without labels.

    Args:
        model: What `fptq.quantize` takes.
        calibration: What `fptq.quantize` takes.
        formats: Such as "w4a8": bits of weights and of activations, 2 to 16.
        method: "fisher": one forward and one backward run per sample for all layers and formats; "leave-one-in":
            exact, one partial run per layer and format.
        recipe: All options in one record.
        progress: Told how calibration and analysis advance.
        **options: Options that override the recipe's, by its field names.

    Raises:
        FptqError: Something is wrong with the model, the data or the options; the message says what.
    """
    _check(formats, method)
    recipe = (recipe or Recipe()).merged(**options)
    problem = open_problem(model, calibration, recipe)
    engine = engines_to_try(recipe)[0]
    float_model = rewritten(problem, PROFILES[engine.name].passes)
    study = _study(problem, float_model, engine.name, formats, progress)
    found = study.cached(method, progress)
    return study.table(found, progress)


@dataclass(frozen=True, kw_only=True)
class _Study:
    """One network with its encodings by format, and the samples that judge."""

    model: Model
    encodings: Mapping[str, Encoding]
    samples: tuple[Feeds, ...]
    store: Cache
    seed: int

    @property
    def plan(self) -> Plan:
        return next(iter(self.encodings.values())).plan

    def cached(self, method: str, progress: Progress) -> Sensitivity:
        """The sensitivity from the store, or computed and stored."""
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

    def table(self, found: Sensitivity, progress: Progress) -> SensitivityTable:
        """The rows, with the errors of the format that the engine's integer kernels have."""
        from fptq.analyze import layer_errors
        from fptq.execute import Executor

        compared = next((f for f in self.encodings if max(_bits(f)) <= 8), next(iter(self.encodings)))
        encoding = self.encodings[compared]
        errors = layer_errors(Executor.open(self.model), found.units, encoding, self.samples, progress=progress)
        by_unit = {error.unit: error for error in reversed(errors)}
        rows = tuple(self._row(unit, found.loss[i], by_unit[unit.name]) for i, unit in enumerate(found.units))
        return SensitivityTable(
            engine=self.plan.engine,
            formats=tuple(self.encodings),
            compared=compared,
            objective=found.objective.value,
            method=found.method,
            samples=found.samples,
            rows=rows,
        )

    def _row(self, unit: Unit, losses: Any, error: LayerError) -> SensitivityRow:
        sizes = [self.model.graph.initializers[placement.value].const_value for placement in unit.weights]
        return SensitivityRow(
            layer=unit.name,
            module=self.model.module_of(unit.name),
            parameters=sum(tensor.size for tensor in sizes if tensor is not None),
            loss=dict(zip(self.encodings, map(float, losses), strict=True)),
            local_db=error.local.sqnr_db,
            accumulated_db=error.accumulated.sqnr_db,
        )

    def _computed(self, method: str, units: Sequence[Unit], progress: Progress) -> Sensitivity:
        from fptq.analyze import SensitivityOptions, fisher_sensitivity, leave_one_in
        from fptq.analyze.objective import natural
        from fptq.execute import Executor, verify

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


def _study(problem: Problem, model: Model, engine: str, formats: Sequence[str], progress: Progress) -> _Study:
    try:
        import torch  # noqa: F401  the executor runs in it
    except ImportError as error:
        raise MissingExtra("torch", extra="torch", purpose="Sensitivity analysis") from error
    recipe, profile = problem.recipe, PROFILES[engine]
    options: CalibrationOptions = options_of(recipe, problem.threads)
    plan = place(model, profile, profile.variants[0], policy_of(recipe))
    asked = needed(plan, [options.observer])
    statistics = collect(model, asked, problem.calibration, options=options.run, store=problem.store, progress=progress)
    encodings = {name: solve(model, _wide(plan, name), statistics, options=options) for name in formats}
    return _Study(
        model=model,
        encodings=encodings,
        samples=tuple(itertools.islice(problem.calibration, SAMPLES)),
        store=problem.store,
        seed=recipe.seed,
    )


def _wide(plan: Plan, name: str) -> Plan:
    weights, activations = _bits(name)
    return plan.with_bits({p: weights if p in plan.weights else activations for p in plan.specs})


def _bits(name: str) -> tuple[int, int]:
    match = _FORMAT.fullmatch(name)
    if match is None or not all(2 <= int(bits) <= 16 for bits in match.groups()):
        raise ConfigError(f"{name!r} is not a format", rule="w4a8 means 4-bit weights and 8-bit activations, 2 to 16")
    return int(match[1]), int(match[2])


def _check(formats: Sequence[str], method: str) -> None:
    if not formats:
        raise DataError("no format was given", rule="a sensitivity is that of a format, such as w8a8")
    for name in formats:
        _bits(name)
    if method not in ("fisher", "leave-one-in"):
        raise ConfigError(f"{method!r} is not a method", rule="the methods are fisher and leave-one-in")


def predicted_db(loss: float) -> float:
    """The output SQNR of a squared loss [dB]."""
    return math.inf if loss <= 0 else -10 * math.log10(loss)
