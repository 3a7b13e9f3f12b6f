"""The integer program beside one format for all layers and the greedy descent, on networks that are run."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from fptq.analyze.mixed import encoding_losses
from fptq.errors import BudgetError
from fptq.execute.objective import Objective
from fptq.plan.encoding import Encoding
from fptq.search import Assignment, solve
from fptq.search.baselines import greedy, uniform
from fptq.types import Feeds, silent
from layout import Folder
from mixed_study import Listed, Subject, opened
from mixed_subjects import ENGINES
from tables import table

FORMATS = ("w8a8", "w4a8", "w4a4", "w2a4")
SIZES = (0.25, 0.2, 0.15, 0.1)
BOPS = (0.06, 0.03, 0.02)
SINGLE = FORMATS[:3]
"""Formats whose sizes and bit operations are limits, too."""
METHODS = ("uniform", "greedy", "program", "best run")
"""The last: of the others the one with the least loss when run on calibration samples."""
LIMITS: Mapping[str, Sequence[str]] = {
    "deepbrain": ("size 0.2x", "size 0.15x", "size 0.1x", "BOPs 0.06x", "as w8a8", "as w4a8")
}
"""Subjects that are too slow for all of them."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """One method under one limit.

    Attributes:
        limit: As asked for, such as "size 0.2x".
        method: One of `METHODS`.
        predicted: Sum of the layers' predicted losses.
        verified: Loss of the network so quantized, on evaluation samples.
        costs: As fractions of the float network's.
        layers: Number of layers by format.
    """

    limit: str
    method: str
    predicted: float
    verified: float
    costs: Mapping[str, float]
    layers: Mapping[str, int]


@dataclass(frozen=True, kw_only=True)
class Compared:
    """One network.

    Attributes:
        network: Its name.
        objective: "squared" or "kl".
        calibration: Samples of the sensitivity and of the runs that choose.
        evaluation: Samples that the losses are verified on.
        points: All limits and methods.
    """

    network: str
    objective: str
    calibration: int
    evaluation: int
    points: tuple[Point, ...]

    def get(self, limit: str, method: str) -> Point | None:
        return next((one for one in self.points if (one.limit, one.method) == (limit, method)), None)

    @property
    def limits(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(one.limit for one in self.points))

    def lost(self, method: str) -> list[str]:
        """Limits under which uniform or greedy is better than this method when run."""
        found = []
        for limit in self.limits:
            mine = self.get(limit, method)
            for other_method in METHODS[:2]:
                other = self.get(limit, other_method)
                if other and mine and other.verified < mine.verified:
                    found.append(f"{limit} ({other_method}: {other.verified / mine.verified:.2f} of its loss)")
        return found


def compared(network: str, folder: Folder, *, choosing: Sequence[Feeds], evaluation: Sequence[Feeds]) -> Compared:
    """Search under all limits, run what was found.

    Args:
        network: Its name.
        folder: Its files.
        choosing: Calibration samples that are run to choose.
        evaluation: Other samples, to verify on.
    """
    subject = opened(folder, FORMATS, engine=ENGINES[network])
    found = [one for one in _assignments(subject) if one[0] in LIMITS.get(network, (one[0],))]
    distinct = list(dict.fromkeys(one for _, _, one in found))
    encodings = [subject.encoding(one) for one in distinct]
    run, verified = (
        dict(zip(distinct, _losses(subject, encodings, samples), strict=True)) for samples in (choosing, evaluation)
    )
    for limit in dict.fromkeys(limit for limit, _, _ in found):
        candidates = [one for name, _, one in found if name == limit]
        found.append((limit, METHODS[-1], min(candidates, key=lambda one: run[one])))
    return Compared(
        network=network,
        objective=subject.found.objective.value,
        calibration=subject.found.samples,
        evaluation=sum(len(next(iter(sample.values()))) for sample in evaluation),
        points=tuple(_point(subject, limit, method, one, verified[one]) for limit, method, one in found),
    )


def _losses(subject: Subject, encodings: Sequence[Encoding], samples: Sequence[Feeds]) -> list[float]:
    source, objective = Listed(tuple(samples)), subject.found.objective
    return encoding_losses(subject.executor, encodings, source, objective, progress=silent)


def _assignments(subject: Subject) -> Iterator[tuple[str, str, Assignment]]:
    """Every method under every limit; and as small and as cheap as each single format."""
    asked: dict[str, dict[str, float]] = {f"size {share:g}x": {"size": share} for share in SIZES}
    asked |= {f"BOPs {share:g}x": {"bops": share} for share in BOPS}
    for limit, shares in asked.items():
        limits = {name: share * subject.floats[name] for name, share in shares.items()}
        yield from ((limit, method, one) for method, one in _by_method(subject, limits) if one)
    for name in SINGLE:
        single = _single(subject, name)
        limits = {cost: single.costs[cost] for cost in ("size", "bops")}
        yield f"as {name}", "uniform", single
        yield from ((f"as {name}", m, one) for m, one in _by_method(subject, limits) if one and m != "uniform")


def _by_method(subject: Subject, limits: Mapping[str, float]) -> Iterator[tuple[str, Assignment | None]]:
    yield "uniform", uniform(subject.table, limits)
    yield "greedy", greedy(subject.table, limits)
    try:
        yield "program", solve(subject.table, limits)
    except BudgetError:
        yield "program", None


def _single(subject: Subject, name: str) -> Assignment:
    """All layers in one format."""
    table, column = subject.table, subject.table.formats.index(name)
    columns = [column if allowed[column] else 0 for allowed in table.allowed]
    return Assignment(
        items=table.items,
        formats=tuple(table.formats[c] for c in columns),
        loss=math.fsum(table.loss[row, c] for row, c in enumerate(columns)),
        costs={n: math.fsum(v[row, c] for row, c in enumerate(columns)) for n, v in table.costs.items()},
    )


def _point(subject: Subject, limit: str, method: str, one: Assignment, verified: float) -> Point:
    chosen = [one[unit.name] for unit in subject.found.units]
    return Point(
        limit=limit,
        method=method,
        predicted=one.loss,
        verified=verified,
        costs={name: value / subject.floats[name] for name, value in one.costs.items()},
        layers={name: chosen.count(name) for name in subject.table.formats},
    )


def shown(objective: str, loss: float) -> str:
    """A squared loss as an SQNR [dB], a divergence in thousandths [mnat]."""
    if objective == Objective.SQUARED.value:
        return "inf" if loss <= 0 else f"{-10 * math.log10(loss):.1f}"
    return f"{loss * 1e3:.3g}"


def markdown(found: Compared) -> str:
    """One line for each limit: predicted and verified for each method."""
    unit = "SQNR [dB]" if found.objective == Objective.SQUARED.value else "KL [mnat]"
    head = ["limit", *(f"{method}: predicted, verified" for method in METHODS), "size", "BOPs", "layers"]
    text = table(head, (_cells(found, limit) for limit in found.limits))
    lost = [f"Better than {m} when run: {', '.join(found.lost(m)) or 'never'}." for m in METHODS[2:]]
    samples = f"{unit}; {found.calibration} samples of the sensitivity, {found.evaluation} evaluation samples."
    return "\n\n".join([samples, text, *lost])


def _cells(found: Compared, limit: str) -> list[str]:
    cells = [limit]
    for method in METHODS:
        point = found.get(limit, method)
        numbers = (shown(found.objective, loss) for loss in (point.predicted, point.verified)) if point else ("none",)
        cells.append(", ".join(numbers))
    mine = found.get(limit, METHODS[-1])
    if mine is None:
        return [*cells, "-", "-", "-"]
    layers = " ".join(f"{count}x{name}" for name, count in mine.layers.items() if count)
    return [*cells, f"{mine.costs['size']:.3f}x", f"{mine.costs['bops']:.4f}x", layers]


def plain(found: Compared) -> dict[str, Any]:
    return asdict(found) | {"lost": {method: found.lost(method) for method in METHODS[2:]}}
