"""Which layer hurts: predicted output error of every layer in every format, and the errors that int8 makes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from fptq.config import Recipe
from fptq.recipes.choose_engine import engines_to_try
from fptq.recipes.formats import Format
from fptq.recipes.problem import open_problem
from fptq.recipes.study import Study, check, open_study
from fptq.types import Progress, silent

if TYPE_CHECKING:
    from fptq.analyze import LayerError, Sensitivity, Unit

FORMATS = ("w16a16", "w8a8", "w4a4", "w2a2")
"""Weights of so many bits, activations of so many bits."""


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
        objective: "squared", "kl" or "binary".
        method: "fisher", or "leave-one-in".
        samples: Samples that were run.
        rows: In the order of execution.
    """

    engine: str
    formats: tuple[str, ...]
    compared: str
    objective: Literal["squared", "kl", "binary"]
    method: Literal["fisher", "leave-one-in"]
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
    check(formats, method)
    recipe = (recipe or Recipe()).merged(**options)
    problem = open_problem(model, calibration, recipe)
    study = open_study(problem, engines_to_try(recipe)[0], formats, progress)
    return sensitivity_table(study, study.sensitivity(method, progress), progress)


def sensitivity_table(study: Study, found: Sensitivity, progress: Progress) -> SensitivityTable:
    """The rows, with the errors of the format that the engine's integer kernels have."""
    from fptq.analyze import layer_errors
    from fptq.execute import Executor

    compared = next((name for name in study.encodings if _narrow(name)), next(iter(study.encodings)))
    executor, encoding = Executor.open(study.model), study.encodings[compared]
    errors = layer_errors(executor, found.units, encoding, study.samples, progress=progress)
    by_unit = {error.unit: error for error in reversed(errors)}
    return SensitivityTable(
        engine=study.plan.engine,
        formats=tuple(study.encodings),
        compared=compared,
        objective=found.objective.value,
        method=found.method,
        samples=found.samples,
        rows=tuple(_row(study, unit, found.loss[i], by_unit[unit.name]) for i, unit in enumerate(found.units)),
    )


def _narrow(name: str) -> bool:
    given = Format.parse(name)
    return max(given.weights, given.activations) <= 8


def _row(study: Study, unit: Unit, losses: Any, error: LayerError) -> SensitivityRow:
    sizes = [study.model.graph.initializers[placement.value].const_value for placement in unit.weights]
    return SensitivityRow(
        layer=unit.name,
        module=study.model.module_of(unit.name),
        parameters=sum(tensor.size for tensor in sizes if tensor is not None),
        loss=dict(zip(study.encodings, map(float, losses), strict=True)),
        local_db=error.local.sqnr_db,
        accumulated_db=error.accumulated.sqnr_db,
    )


def predicted_db(loss: float) -> float:
    """The output SQNR of a squared loss [dB]."""
    return math.inf if loss <= 0 else -10 * math.log10(loss)
