"""A network whose units have different formats."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

import torch

from fptq.analyze.cost import FLOAT
from fptq.analyze.units import Unit
from fptq.execute import Executor
from fptq.execute.objective import Objective, loss
from fptq.execute.overlay import Overlay
from fptq.graph.model import Model
from fptq.plan.encoding import Encoding
from fptq.plan.plan import Refusal
from fptq.types import FeedSource, Progress


def mixed_encoding(
    model: Model, units: Sequence[Unit], encodings: Mapping[str, Encoding], formats: Mapping[str, str]
) -> Encoding:
    """The encoding in which every unit has the format that was chosen for it.

    Args:
        model: The float network.
        units: All units of the encodings' plan.
        encodings: By format; all of one plan in different widths.
        formats: By the unit's name; "float" leaves a unit alone.
    """
    base = next(iter(encodings.values()))
    chosen = {p: encodings[formats[u.name]] for u in units if formats[u.name] != FLOAT for p in u.placements}
    plan = base.plan.only(*chosen)
    specs = {placement: chosen[placement].plan.specs[placement] for placement in plan.specs}
    return replace(
        base,
        plan=replace(plan, specs=specs).refusing(_kept_float(model, units, formats)),
        params={placement: chosen[placement].params[placement] for placement in specs},
        codes={},
    )


def encoding_losses(
    executor: Executor, encodings: Sequence[Encoding], samples: FeedSource, objective: Objective, *, progress: Progress
) -> list[float]:
    """The losses of quantized networks against their float self, means over the samples.

    Args:
        executor: The float network.
        encodings: The quantized ones.
        samples: At least one.
        objective: The loss.
        progress: Told after every run.
    """
    overlays, total = [Overlay(encoding=encoding) for encoding in encodings], len(encodings) * len(samples)
    losses = [0.0] * len(overlays)
    with torch.no_grad():
        for done, sample in enumerate(samples):
            reference = executor.run(sample)
            for number, overlay in enumerate(overlays):
                losses[number] += loss(objective, reference, executor.run(sample, hook=overlay)) / len(samples)
                progress(done * len(overlays) + number + 1, total, "verify")
    return losses


def _kept_float(model: Model, units: Iterable[Unit], formats: Mapping[str, str]) -> Iterator[Refusal]:
    left = {p.consumer for unit in units if formats[unit.name] == FLOAT for p in unit.placements}
    for node in model.graph:
        if node.name in left:
            reason = "kept float: with this budget, other layers hurt less in integers"
            yield Refusal(node=str(node.name), op=node.op_type, reason=reason)
