"""A precision for every layer: what a search found, as data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fptq.recipes.formats import Format
from fptq.recipes.study import Realized, Study
from fptq.search import Assignment, Budget, Options, accuracy

if TYPE_CHECKING:
    from fptq.analyze import Sensitivity, Unit


@dataclass(frozen=True, kw_only=True)
class Point:
    """One assignment, with what is known about it.

    Attributes:
        assignment: A format for every unit, with predicted loss and costs.
        verified: Loss of the network when it is run, on the samples that the sensitivities come from; None: not run.
        verdict: What the metric says; None: not measured.
        peak_activations: Most bytes of activations that are alive at one time.
    """

    assignment: Assignment
    verified: float | None
    verdict: accuracy.Verdict | None
    peak_activations: float


@dataclass(frozen=True, kw_only=True)
class Mix:
    """What a search found.

    Attributes:
        study: The network in all formats.
        found: Its sensitivities.
        table: Losses and costs that were chosen from.
        cost: Name of the cost that the front is swept over.
        limits: What was not to be exceeded, by name of the cost: bytes, BOPs, ms.
        float_costs: The float network's.
        points: From the cheapest to the most accurate.
        chosen: The answer, one of the points.
        realized: The network of the answer.
        budget: What was asked for.
        metric: Name of the score that was controlled; empty where none was.
        confidence: One-sided, of the limit of the drop.
        evaluations: Full evaluations of the metric, the float network's included.
        complete: Whether the walk came to its end.
        notes: What a reader must know.
    """

    study: Study
    found: Sensitivity
    table: Options
    cost: str
    limits: Mapping[str, float]
    float_costs: Mapping[str, float]
    points: tuple[Point, ...]
    chosen: Point
    realized: Realized
    budget: Budget
    metric: str = ""
    confidence: float = 0.95
    evaluations: int = 0
    complete: bool = True
    notes: tuple[str, ...] = ()

    @property
    def emulated(self) -> tuple[str, ...]:
        """Formats in use that the engine has no kernels for: their codes live in a wider container."""
        return emulated(self.chosen.assignment, self.study)

    def decisions(self) -> Iterator[tuple[Unit, str, float]]:
        """Every unit with its precision and its predicted loss in it, in the order of execution."""
        for unit in self.found.units:
            precision = self.chosen.assignment[unit.name]
            row, column = self.table.items.index(unit.name), self.table.formats.index(precision)
            yield unit, precision, float(self.table.loss[row, column])

    def layers(self, point: Point) -> dict[str, int]:
        """The number of units in each precision."""
        precisions = [point.assignment[unit.name] for unit in self.found.units]
        return {name: precisions.count(name) for name in self.table.formats}


def emulated(assignment: Assignment, study: Study) -> tuple[str, ...]:
    """Formats of an assignment that no engine has kernels for."""
    used = dict.fromkeys(assignment.formats)
    return tuple(name for name in used if name in study.encodings and Format.parse(name).emulated)


def about_sizes(assignment: Assignment, study: Study, found: Sensitivity) -> Iterator[str]:
    """What a reader must know of sizes: where codes are wider in the file than in the search, or blocks do not fit."""
    narrow = sorted(emulated(assignment, study))
    if narrow:
        yield (
            f"{', '.join(narrow)}: emulated, the engine has no kernels for them; model.onnx holds these codes in 8 "
            "bits, sizes of the search count their own width"
        )
    for name in narrow:
        mine = [p for unit in found.units if assignment[unit.name] == name for p in unit.placements]
        if exceptions := Format.parse(name).exceptions(study.encodings[name].plan.only(*mine)):
            yield f"{name}: {exceptions}"
