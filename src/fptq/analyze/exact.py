"""Exact sensitivities: one unit quantized, or one left out, with only what lies behind it run again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from fptq.analyze.sensitivity import Sensitivity
from fptq.analyze.units import Unit
from fptq.execute import Executor, Hook
from fptq.execute.objective import Objective, loss
from fptq.execute.overlay import Overlay
from fptq.graph.model import Model
from fptq.plan.encoding import Encoding
from fptq.types import FeedSource, Progress, silent


def leave_one_in(
    executor: Executor,
    units: Sequence[Unit],
    encodings: Mapping[str, Encoding],
    feeds: FeedSource,
    *,
    objective: Objective = Objective.SQUARED,
    progress: Progress = silent,
) -> Sensitivity:
    """The loss of the network with one unit quantized and all others in float, for every unit and format.

    Args:
        executor: The float network.
        units: What is decided together.
        encodings: For each format the numbers of all placements.
        feeds: Unlabelled samples.
        objective: The loss.
        progress: Told after every sample.
    """
    overlays = [Overlay(encoding=encoding) for encoding in encodings.values()]
    tails = [Tail.of(executor, unit) for unit in units]
    losses, samples, total = np.zeros((len(units), len(overlays))), 0, len(feeds)
    progress(0, total, "leave-one-in")
    for sample in feeds:
        with torch.no_grad():
            known = executor.run(sample, fetch=_boundary(tails))
            for row, (unit, tail) in enumerate(zip(units, tails, strict=True)):
                for column, overlay in enumerate(overlays):
                    changed = tail.run(known, overlay.restricted(unit.placements))
                    losses[row, column] += loss(objective, _outputs(executor, known), changed)
        samples += 1
        progress(samples, total, "leave-one-in")
    return Sensitivity(
        units=tuple(units),
        formats=tuple(encodings),
        loss=losses / max(samples, 1),
        objective=objective,
        samples=samples,
        method="leave-one-in",
    )


def leave_one_out(
    executor: Executor,
    units: Sequence[Unit],
    encoding: Encoding,
    feeds: FeedSource,
    *,
    objective: Objective = Objective.SQUARED,
    progress: Progress = silent,
) -> NDArray[np.float64]:
    """The loss that goes away when one unit of the quantized network is given back its float precision.

    Args:
        executor: The float network.
        units: What is decided together.
        encoding: The quantized network.
        feeds: Unlabelled samples.
        objective: The loss.
        progress: Told after every sample.

    Returns:
        f64[units]: loss of the quantized network minus loss with the unit in float; negative where quantizing the unit
        hides an error of another.
    """
    whole = Overlay(encoding=encoding)
    everything = frozenset(encoding.plan.specs)
    tails = [Tail.of(executor, unit) for unit in units]
    gains, samples, total = np.zeros(len(units)), 0, len(feeds)
    progress(0, total, "leave-one-out")
    for sample in feeds:
        with torch.no_grad():
            reference = executor.run(sample)
            known = executor.run(sample, hook=whole, fetch=_boundary(tails))
            known |= {name: torch.as_tensor(array) for name, array in sample.items()}  # inputs as they were fed
            before = loss(objective, reference, known)
            for row, (unit, tail) in enumerate(zip(units, tails, strict=True)):
                changed = tail.run(known, whole.restricted(everything - unit.placements))
                gains[row] += before - loss(objective, reference, changed)
        samples += 1
        progress(samples, total, "leave-one-out")
    return gains / max(samples, 1)


@dataclass(frozen=True, kw_only=True)
class Tail:
    """What lies behind a unit.

    Attributes:
        part: Computes the network's outputs from the boundary.
        boundary: The values that cross from in front of the unit, or beside it, to behind it.
    """

    part: Executor
    boundary: tuple[str, ...]

    @classmethod
    def of(cls, executor: Executor, unit: Unit) -> Tail:
        """The tail of a unit in a whole network."""
        boundary = boundary_of(executor.model, unit)
        return cls(part=executor.part(boundary, executor.output_names), boundary=boundary)

    def run(self, known: Mapping[str, torch.Tensor], hook: Hook) -> dict[str, torch.Tensor]:
        """The outputs, from the values at the boundary.

        Values that cross the boundary were seen by the hook that computed them; the hook given here must treat them
        alike, for it sees them again, and quantizing twice with one scale changes nothing.
        """
        return self.part.run({name: known[name] for name in self.boundary}, hook=hook)


def boundary_of(model: Model, unit: Unit) -> tuple[str, ...]:
    """The values that must be known to run what lies behind a unit, in the order of the graph."""
    quantized = {placement.value for placement in unit.placements if placement.consumer is None}
    consumers = {placement.consumer for placement in unit.placements}
    changed, behind = set(quantized), []
    for node in model.graph:
        reads = {str(value.name) for value in node.inputs if value is not None}
        makes = {str(value.name) for value in node.outputs}
        # The node that makes a quantized value runs again: the value is known in one precision only.
        if node.name in consumers or (reads & changed) or (makes & quantized):
            behind.append(node)
            changed |= makes
    made = {str(value.name) for node in behind for value in node.outputs}
    read = [str(value.name) for node in behind for value in node.inputs if value is not None]
    wanted = [*read, *(str(value.name) for value in model.graph.outputs)]
    return tuple(dict.fromkeys(n for n in wanted if n not in made and n not in model.graph.initializers))


def _boundary(tails: Sequence[Tail]) -> list[str]:
    return list(dict.fromkeys(name for tail in tails for name in tail.boundary))


def _outputs(executor: Executor, known: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: known[name] for name in executor.output_names}
