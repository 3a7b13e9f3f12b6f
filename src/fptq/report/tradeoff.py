"""What the page says of a search: the mixes as rows of a table, and what was asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fptq.report import text
from fptq.report.report import Report
from fptq.report.search import Point, Search


@dataclass(frozen=True, kw_only=True)
class PointRow:
    """One mix of the table.

    Attributes:
        layers: Number of layers by precision, in words.
        costs: Of each cost its share of the float network's, and its amount.
        predicted: Predicted loss, as a level.
        verified: Loss of the network that was run, as a level.
        drop: What the metric lost.
        upper: The upper limit of that.
        passes: "yes", "no", or a dash.
        peak: Memory of the activations that are alive together.
        chosen: Whether it is the answer.
    """

    layers: str
    costs: tuple[tuple[str, str], ...]
    predicted: str
    verified: str
    drop: str
    upper: str
    passes: str
    peak: str
    chosen: bool


def cost_names(search: Search) -> tuple[str, ...]:
    """The costs that some mix has, the swept one first."""
    known = (name for point in search.points for name, value in point.costs.items() if value is not None)
    return tuple(sorted(dict.fromkeys(known), key=lambda name: name != search.cost))


def point_rows(search: Search) -> tuple[PointRow, ...]:
    """The mixes, in the order of the record."""
    return tuple(_row(search, point) for point in search.points)


def asked(search: Search) -> tuple[str, ...]:
    """What the search was asked for and how it went, one sentence each."""
    limits = [f"{name} at most {amount(search, name, limit)}" for name, limit in search.limits.items()]
    counted = text.counted(search.evaluations, "network was", "networks were")
    sentences = (
        f"Limit{'s' if len(limits) > 1 else ''}: {text.enumeration(limits)}." if limits else "",
        f"{search.metric or 'The metric'} may drop by {allowed(search)}." if search.max_drop is not None else "",
        f"{counted} measured on the metric." if search.evaluations else "",
        "" if search.complete else "The search was stopped before its end: a better mix may exist.",
        f"{emulation(search)}." if search.emulated else "",
    )
    return tuple(sentence for sentence in sentences if sentence)


def amount(search: Search, name: str, value: float | None) -> str:
    """A cost as a share of the float network's where that is known, otherwise with its unit."""
    share = search.relative(name, value)
    return text.cost(name, value) if share is None else f"{share:.3g}× of float"


def allowed(search: Search) -> str:
    """How much the metric may drop."""
    level = "" if search.confidence is None else f" with {100 * search.confidence:g} % confidence"
    return f"at most {text.score(search.max_drop)}{level}"


def emulation(search: Search) -> str:
    """Which formats are no faster than int8."""
    blocked = [name for name in search.emulated if "/block" in name]
    narrow = [name for name in search.emulated if name not in blocked]
    parts = [
        f"no kernel for {text.enumeration(names)} and runs {'it' if len(names) == 1 else 'them'} {how}"
        for names, how in ((narrow, "in an int8 container: no faster than int8"), (blocked, "in float"))
        if names
    ]
    return f"The engine has {'; it has '.join(parts)}"


def mix(report: Report) -> str:
    """What the layers became, in one sentence; empty where nothing was searched."""
    search = report.search
    if search is None or search.chosen is None:
        return ""
    counts = _present(search.chosen.layers)
    if not counts:
        return ""
    (first, most), *others = counts.items()
    total = sum(counts.values())
    if not others:
        return f"All {total} layers are {text.precision(first)}{_within(search)}"
    parts = [f"{most} {'is' if most == 1 else 'are'} {text.precision(first)}"]
    parts += [f"{count} {text.precision(name)}" for name, count in others]
    return f"Of {total} layers, {text.enumeration(parts)}{_within(search)}"


def _within(search: Search) -> str:
    shares = {name: search.relative(name, limit) for name, limit in search.limits.items()}
    limits = [f"{share:.3g}× of the float {name}" for name, share in shares.items() if share is not None]
    return f", within {text.enumeration(limits)}" if limits else ""


def _present(layers: Mapping[str, int]) -> dict[str, int]:
    """The precisions that occur, the most frequent first, float last."""
    kept = [(name, count) for name, count in layers.items() if count]
    return dict(sorted(kept, key=lambda item: (item[0] == "float", -item[1])))


def _row(search: Search, point: Point) -> PointRow:
    costs = [(name, point.costs.get(name)) for name in cost_names(search)]
    shares = [(text.ratio(search.relative(name, value)), text.cost(name, value)) for name, value in costs]
    peak = point.peak_activations
    return PointRow(
        layers=", ".join(f"{count}\xa0{name}" for name, count in _present(point.layers).items()),
        costs=tuple(shares),
        predicted=text.loss(point.predicted, search.objective),
        verified=text.loss(point.verified, search.objective),
        drop=text.difference(point.drop),
        upper=text.score(point.upper),
        passes=text.DASH if point.passes is None else "yes" if point.passes else "no",
        peak=text.cost("size", peak),
        chosen=point.chosen,
    )
