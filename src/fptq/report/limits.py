"""What limits this model: sentences that follow from the report's own numbers, and from nothing else."""

from __future__ import annotations

from collections.abc import Sequence

from fptq.report import text
from fptq.report.layers import layer_rows, operation_times, refusal_groups
from fptq.report.report import Report
from fptq.report.search import Point, Search, Sensitivity
from fptq.report.tradeoff import allowed, emulation

_MOST = 0.8
"""The share that counts as most of an error, of a time, of the weights."""
_MOST_SAID = text.percent(_MOST)
_FEW = 1 / 3
"""Up to this share of the layers are few."""
_BINDS = 0.95
"""A limit binds where this share of it is used."""
_SENTENCES = 5


def limiting(report: Report) -> tuple[str, ...]:
    """What holds the network back, the most useful first; what the data do not show is not said."""
    sentences = (
        _time(report),
        _price(report),
        _carriers(report),
        _made(report),
        _kept(report),
        _emulated(report),
    )
    return tuple(sentence for sentence in sentences if sentence)[:_SENTENCES]


def fewest(values: Sequence[float], share: float = _MOST) -> tuple[int, ...]:
    """The fewest positions that hold so much of the sum, the largest first.

    >>> fewest([1, 7, 2])
    (1, 2)
    """
    total, held, found = sum(values), 0.0, []
    for position in sorted(range(len(values)), key=lambda n: -values[n]):
        if held >= share * total * (1 - 1e-9):
            break
        held += values[position]
        found.append(position)
    return tuple(found)


def _time(report: Report) -> str:
    """Where the time of the quantized network goes."""
    rows = operation_times(report, len(report.nodes) + len(report.float_nodes))
    spent = {row.op: row.rest_ms for row in sorted(rows, key=lambda row: -row.rest_ms)}
    integers = sum(row.integer_ms for row in rows)
    total = integers + sum(spent.values())
    if not total:
        return ""
    if integers == total:
        return "The quantized network spends all of its time on integers."
    largest = [(op, time / total) for op, time in spent.items() if time >= 0.01 * total][:3]
    where = text.enumeration([f"{op} {text.percent(share)}" for op, share in largest])
    in_float = f"{text.percent(1 - integers / total)} in float" + (f": {where}" if where else "")
    return f"The quantized network spends {text.percent(integers / total)} of its time on integers and {in_float}."


def _price(report: Report) -> str:
    """Which limit of the search binds, and whether few layers hold the weights or take the time."""
    search = report.search
    storage, time = _storage(report.sensitivity), _compute(report)
    timed = search is not None and search.cost == "latency"
    parts = (_bound(search), (time or storage) if timed else (storage or time))
    said = "; ".join(part for part in parts if part)
    return f"{said}." if said else ""


def _bound(search: Search | None) -> str:
    """Which limit of the search binds."""
    if search is None or search.chosen is None:
        return ""
    cheaper = search.points[: search.points.index(search.chosen)]
    if cheaper and cheaper[-1].passes is False and search.max_drop is not None:
        return _bound_by_metric(search, cheaper[-1])
    used = _used(search, search.chosen)
    if not used:
        return ""
    name = max(used, key=used.__getitem__)
    share = text.percent(used[name], 3)
    if used[name] > 1 + 1e-6:
        return f"The limit of {name} is exceeded: the chosen mix takes {text.ratio(used[name])} of it"
    if used[name] >= _BINDS:
        return f"The limit of {name} binds: the chosen mix takes {share} of it"
    return f"No limit binds: the chosen mix takes {share} of the nearest one, {name}"


def _bound_by_metric(search: Search, failed: Point) -> str:
    metric, price = search.metric or "The metric", search.relative(search.cost, failed.costs.get(search.cost))
    next_one = f"the next cheaper mix ({text.ratio(price)} of the float {search.cost})" if price else "the next mix"
    upper = f" and may lose {text.score(failed.upper)}" if failed.upper is not None else ""
    return f"{metric} binds: {next_one} loses {text.score(failed.drop)}{upper}, where {allowed(search)} is allowed"


def _used(search: Search, point: Point) -> dict[str, float]:
    """The share of each limit that a mix uses."""
    pairs = {name: (point.costs.get(name), limit) for name, limit in search.limits.items()}
    return {name: cost / limit for name, (cost, limit) in pairs.items() if cost is not None and limit}


def _carriers(report: Report) -> str:
    """Whether few layers carry the predicted error."""
    if report.sensitivity is None:
        return ""
    rows, form = report.sensitivity.rows, report.sensitivity.compared
    mixed = report.search is not None and all(row.precision in ("float", *row.loss) for row in rows)
    losses = [row.loss.get(row.precision if mixed else form) or 0.0 for row in rows]
    first = fewest(losses)
    if not first or len(rows) < 1 / _FEW:
        return ""
    error = f"the predicted error {'of the chosen mix' if mixed else f'at {form}'}"
    if len(first) <= _FEW * len(rows):
        names = _names([rows[n].name for n in first])
        return f"{_of(first, rows, 'layers carries', 'layers carry')} of {error}: {names}."
    return f"No few layers carry {error}: it takes {len(first)} of {len(rows)} to reach {_MOST_SAID}."


def _made(report: Report) -> str:
    """Where error is made, and where it only passes through."""
    if report.sensitivity is None:
        return ""
    known = [row for row in report.sensitivity.rows if row.own_share is not None]
    makers = [row for row in known if (row.own_share or 0.0) >= 0.5]
    if not makers:
        return ""
    worst = min(makers, key=lambda row: row.local_db or 0.0)
    where = f"worst at {text.shortened(worst.name)} ({text.decibels(worst.local_db)} dB alone)"
    form, rest = report.sensitivity.compared, len(known) - len(makers)
    if not rest:
        return f"At {form} every layer makes at least half of the error at its output, {where}."
    passed = "at the other one" if rest == 1 else f"at the other {rest}"
    make, its = ("layers makes", "its output") if len(makers) == 1 else ("layers make", "their output")
    return (
        f"At {form}, {len(makers)} of {len(known)} {make} at least half of the error at {its}, {where}; "
        f"{passed} most of it came from before."
    )


def _kept(report: Report) -> str:
    """What stays float, why, and what was refused by the engine."""
    groups = refusal_groups(report)
    fell = sum(row.fell_back for row in layer_rows(report))
    parts = []
    if groups:
        op, reason, members = groups[0]
        total = text.counted(len(report.refusals), "node is", "nodes are")
        most = f", {len(members)} of them ({op})" if len(groups) > 1 else f" ({op})"
        parts.append(f"{total} kept in float{most} because: {reason.removeprefix('kept float: ').rstrip('.')}")
    if fell:
        parts.append(f"{text.counted(fell, 'tensor', 'tensors')} asked for as integers ran in float on the engine")
    return f"{'; '.join(parts)}." if parts else ""


def _storage(sensitivity: Sensitivity | None) -> str:
    """Whether few layers hold the weights."""
    rows = sensitivity.rows if sensitivity else ()
    first = fewest([row.parameters for row in rows])
    if not 0 < len(first) <= _FEW * len(rows):
        return ""
    return f"{_of(first, rows, 'layers holds', 'layers hold')} of the weights ({_names([rows[n].name for n in first])})"


def _compute(report: Report) -> str:
    """Whether few nodes take the time."""
    first = fewest([node.time_ms or 0.0 for node in report.nodes])
    if not 0 < len(first) <= _FEW * len(report.nodes):
        return ""
    names = _names([" + ".join(report.nodes[n].nodes) or report.nodes[n].op for n in first])
    return f"{_of(first, report.nodes, 'nodes takes', 'nodes take')} of the time ({names})"


def _emulated(report: Report) -> str:
    return f"{emulation(report.search)}." if report.search and report.search.emulated else ""


def _of(some: Sequence[int], everything: Sequence[object], one: str, many: str) -> str:
    return f"{len(some)} of {len(everything)} {one if len(some) == 1 else many} {_MOST_SAID}"


def _names(names: Sequence[str], count: int = 3) -> str:
    """Some names, and how many more."""
    shown = [text.shortened(name, 48) for name in names[:count]]
    more = len(names) - len(shown)
    return text.enumeration([*shown, *([f"{more} more"] if more else [])])
