"""Charts of sensitivities and of a search, as Plotly figures; lengths of bars, not colours alone, carry the numbers."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Iterable, Sequence
from typing import Any

from fptq.report import text
from fptq.report.plots import base_layout, plain
from fptq.report.search import Point, Search, Sensitivity, SensitivityRow

_SERIES = 5
_CROWDED = 60
"""With more layers than this, marks are smaller."""
_SYMBOLS = ("circle", "square", "diamond", "triangle-up", "triangle-down")
_NOTE = {"text": "limit", "showarrow": False, "xshift": 4}
_UNITS = {"squared": "SQNR [dB]", "kl": "KL divergence [nats]", "binary": "KL divergence [nats]"}
_LAYERS = "layer, in the order of execution"


def sensitivity_figure(sensitivity: Sensitivity) -> dict[str, Any] | None:
    """Output error of each layer alone, one trace a format, as Plotly JSON; None where nothing was found."""
    import plotly.graph_objects as go

    unit = _UNITS[sensitivity.objective]
    layout = base_layout(xaxis_title=_LAYERS, yaxis_title=f"output {unit}")
    figure = go.Figure(layout=_numbered(_logarithmic(layout, sensitivity.objective), len(sensitivity.rows)))
    rows = tuple(enumerate(sensitivity.rows, 1))
    became: list[tuple[int, float]] = []
    crowded = len(rows) > _CROWDED
    for place, name in enumerate(by_width(sensitivity.formats)):
        levels = [(n, row, _level(row.loss.get(name), sensitivity.objective)) for n, row in rows]
        shown = [(n, row, level) for n, row, level in levels if level is not None]
        became += [(n, level) for n, row, level in shown if row.precision == name]
        figure.add_scatter(
            x=[n for n, *_ in shown],
            y=[level for *_, level in shown],
            text=[f"{_label(row)}<br>{name}: {_said(row.loss[name], sensitivity.objective)}" for _, row, _ in shown],
            mode="lines+markers",
            line={"width": 1, "color": _colour(place)},
            marker={"size": 4 if crowded else 6, "color": _colour(place), "symbol": _SYMBOLS[place % _SERIES]},
            name=name,
            hoverinfo="text",
            cliponaxis=False,
        )
    if became:
        figure.add_scatter(**_rings(became, size=8 if crowded else 13))
    return plain(figure) if any(len(trace.x) for trace in figure.data) else None


def errors_figure(sensitivity: Sensitivity) -> dict[str, Any] | None:
    """Local against accumulated error, as Plotly JSON: on the diagonal a layer makes all its error itself."""
    import plotly.graph_objects as go

    shown = [(n, row) for n, row in enumerate(sensitivity.rows, 1) if row.own_share is not None]
    if not shown:
        return None
    levels = [level for _, row in shown for level in (row.local_db, row.accumulated_db) if level is not None]
    ends = [min(levels) - 2, max(levels) + 2]
    layout = base_layout(xaxis_title="SQNR of the layer alone [dB]", yaxis_title="SQNR accumulated [dB]")
    for axis in ("xaxis", "yaxis"):
        layout[axis] = {**layout[axis], "range": ends}
    figure = go.Figure(layout=layout)
    line = {"width": 1, "color": "var(--muted)", "dash": "dash"}
    figure.add_scatter(x=ends, y=ends, mode="lines", line=line, name="all made here", hoverinfo="skip")
    for name, own, marker in (
        ("most made here", True, {"symbol": "circle", "color": "var(--series-2)"}),
        ("most from before", False, {"symbol": "circle-open", "color": "var(--series-1)"}),
    ):
        some = [(n, row) for n, row in shown if ((row.own_share or 0) >= 0.5) == own]
        figure.add_scatter(
            x=[_short(row.local_db) for _, row in some],
            y=[_short(row.accumulated_db) for _, row in some],
            text=[f"{n} · {_label(row)}<br>{_made(row)}" for n, row in some],
            mode="markers",
            marker={"size": 7, **marker},
            name=name,
            hoverinfo="text",
        )
    return plain(figure)


def bits_figure(sensitivity: Sensitivity) -> dict[str, Any] | None:
    """Bits of each layer, weights upward and activations downward, as Plotly JSON; None where nothing was decided."""
    import plotly.graph_objects as go

    known = [(n, row, bits_of(row.precision)) for n, row in enumerate(sensitivity.rows, 1)]
    shown = [(n, row, bits) for n, row, bits in known if bits is not None]
    if not shown:
        return None
    order = by_width([*sensitivity.formats, *(row.precision for _, row, _ in shown)])
    layout = _mirrored(base_layout(xaxis_title=_LAYERS, barmode="overlay"))
    figure = go.Figure(layout=_numbered(layout, len(sensitivity.rows)))
    for name in sorted({row.precision for _, row, _ in shown}, key=order.index):
        some = [(n, row, bits) for n, row, bits in shown if row.precision == name]
        colour = "var(--float)" if name == "float" else _colour(order.index(name) - ("float" in order))
        for side, sign in enumerate((1, -1)):
            figure.add_bar(
                x=[n for n, *_ in some],
                y=[_short(sign * math.log2(bits[side])) for *_, bits in some],
                hovertext=[f"{n} · {_label(row)}<br>{name}, {row.parameters:,} weights" for n, row, _ in some],
                hoverinfo="text",
                width=0.85,  # said for every trace: one with few bars would draw them wider
                marker={"color": colour, "line": {"width": 0}},
                name=name,
                legendgroup=name,
                showlegend=sign > 0,
            )
    return plain(figure)


def pareto_figure(search: Search) -> dict[str, Any] | None:
    """Error against the swept cost, and below it the drop of the metric, as Plotly JSON; None without a point."""
    import plotly.graph_objects as go

    shown = [(x, point) for point in search.points if (x := _price(search, point)) is not None]
    if not shown:
        return None
    measured = [(x, point) for x, point in shown if point.drop is not None]
    figure = go.Figure(layout=_panels(search, drops=bool(measured)))
    for name, place in (("predicted", 1), ("verified", 0)):
        levels = [(x, point, _level(getattr(point, name), search.objective)) for x, point in shown]
        line = {"width": 1.5, "color": _colour(place), "dash": "dot" if name == "predicted" else "solid"}
        figure.add_scatter(
            x=[x for x, _, level in levels if level is not None],
            y=[level for *_, level in levels if level is not None],
            text=[_mix(search, point) for _, point, level in levels if level is not None],
            mode="lines+markers",
            line=line,
            marker={"size": 7, "color": _colour(place), "symbol": _SYMBOLS[place]},
            name=name,
            hoverinfo="text",
        )
    for passes, name in ((True, "drop, passes"), (False, "drop, fails"), (None, "drop")):
        some = [(x, point) for x, point in measured if point.passes is passes]
        if some:
            figure.add_scatter(**_drops(search, some), name=name, marker=_DROP_MARKS[passes])
    ring = _ring(search, shown)
    if ring:
        figure.add_scatter(**ring)
    return plain(figure)


def bits_of(precision: str) -> tuple[int, int] | None:
    """Bits of weights and of activations; None where the name does not say.

    >>> bits_of("w4a8"), bits_of("float"), bits_of("")
    ((4, 8), (32, 32), None)
    """
    if precision == "float":
        return 32, 32
    match = re.fullmatch(r"w([1-9]\d?)a([1-9]\d?)(?:/\w+)?", precision)
    return (int(match[1]), int(match[2])) if match else None


def by_width(formats: Iterable[str]) -> list[str]:
    """Formats without repetition, the widest first."""
    return sorted(dict.fromkeys(formats), key=lambda name: -sum(bits_of(name) or (0, 0)))


def _panels(search: Search, *, drops: bool) -> dict[str, Any]:
    share = search.float_costs.get(search.cost)
    layout = base_layout(xaxis_title=f"{search.cost}, share of float" if share else search.cost)
    layout = _logarithmic({**layout, "yaxis_title": f"output {_UNITS[search.objective]}"}, search.objective)
    limit = search.limits.get(search.cost)
    end = search.relative(search.cost, limit) if share else limit
    dashed = {"type": "line", "line": {"color": "var(--bad)", "width": 1.5, "dash": "dash"}}
    shapes, notes = [], []
    if end is not None:
        shapes.append({**dashed, "xref": "x", "yref": "paper", "x0": end, "x1": end, "y0": 0, "y1": 1})
        notes.append({"xref": "x", "yref": "paper", "x": end, "y": 1, "yanchor": "top", "xanchor": "left"} | _NOTE)
    if drops:
        layout["yaxis"] = {**layout["yaxis"], "domain": [0.46, 1]}
        layout["xaxis"] = {**layout["xaxis"], "anchor": "y2"}
        title = {"text": f"drop in {search.metric or 'the metric'}", "standoff": 14}
        layout["yaxis2"] = {**base_layout()["yaxis"], "domain": [0, 0.36], "title": title, "automargin": True}
        if search.max_drop is not None:
            level = search.max_drop
            shapes.append({**dashed, "xref": "x domain", "yref": "y2", "x0": 0, "x1": 1, "y0": level, "y1": level})
    return {**layout, "shapes": shapes, "annotations": notes}


_DROP_MARKS = {
    True: {"size": 8, "color": "var(--series-3)", "symbol": "circle"},
    False: {"size": 8, "color": "var(--bad)", "symbol": "x"},
    None: {"size": 8, "color": "var(--series-3)", "symbol": "circle-open"},
}


def _drops(search: Search, some: Sequence[tuple[float, Point]]) -> dict[str, Any]:
    """Drops with a bar up to their upper limits."""
    drops = [(point.drop or 0.0, point.upper) for _, point in some]
    above = [0.0 if upper is None else max(0.0, _short(upper - drop) or 0.0) for drop, upper in drops]
    return {
        "x": [x for x, _ in some],
        "y": [_short(drop) for drop, _ in drops],
        "error_y": {"type": "data", "array": above, "arrayminus": [0.0] * len(some), "color": "var(--muted)"},
        "text": [_mix(search, point) for _, point in some],
        "mode": "markers",
        "hoverinfo": "text",
        "yaxis": "y2",
    }


def _rings(places: Sequence[tuple[int, float]], *, size: int) -> dict[str, Any]:
    """What each layer became."""
    marker = {"size": size, "color": "var(--ink)", "symbol": "circle-open", "line": {"width": 1.5 if size > 8 else 1}}
    x, y = zip(*places, strict=True)
    marks = {"mode": "markers", "marker": marker, "name": "what it became", "hoverinfo": "skip"}
    return {"x": x, "y": y, "cliponaxis": False, **marks}


def _ring(search: Search, shown: Sequence[tuple[float, Point]]) -> dict[str, Any] | None:
    for x, point in shown:
        loss = point.verified if point.verified is not None else point.predicted
        level = _level(loss, search.objective)
        if point.chosen and level is not None:
            marker = {"size": 16, "symbol": "circle-open", "color": "var(--ink)", "line": {"width": 2}}
            return {"x": [x], "y": [level], "mode": "markers", "marker": marker, "name": "chosen", "hoverinfo": "skip"}
    return None


def _mirrored(layout: dict[str, Any]) -> dict[str, Any]:
    ticks = (2, 4, 8, 16, 32)
    values = [sign * math.log2(bits) for sign in (1, -1) for bits in ticks]
    axis = {"tickvals": values, "ticktext": [str(bits) for bits in (*ticks, *ticks)], "range": [-5.3, 5.3]}
    title = {"text": "activation bits · weight bits"}
    return {**layout, "yaxis": {**layout["yaxis"], **axis, "title": title, "zerolinecolor": "var(--muted)"}}


def _logarithmic(layout: dict[str, Any], objective: str) -> dict[str, Any]:
    """Decibels are a logarithm already; divergences need the axis to be one."""
    axis = {} if objective == "squared" else {"type": "log", "exponentformat": "e"}
    return {**layout, "yaxis": {**layout["yaxis"], "automargin": True, **axis}}


def _numbered(layout: dict[str, Any], count: int) -> dict[str, Any]:
    return {**layout, "xaxis": {**layout["xaxis"], "range": [0.25, count + 0.75]}}


def _price(search: Search, point: Point) -> float | None:
    cost = point.costs.get(search.cost)
    share = search.relative(search.cost, cost)
    return cost if share is None else _short(share)


def _level(loss: float | None, objective: str) -> float | None:
    """Where a loss is drawn; None where it has no place on a logarithmic axis."""
    if loss is None or loss <= 0:
        return None
    return _short(-10 * math.log10(loss) if objective == "squared" else loss)


def _said(loss: float | None, objective: str) -> str:
    return f"{text.loss(loss, objective)} {'dB' if objective == 'squared' else 'nats'}"


def _mix(search: Search, point: Point) -> str:
    costs = [f"{name} {text.cost(name, value)}" for name, value in point.costs.items()]
    drop = [f"drop {text.score(point.drop)}, at most {text.score(point.upper)}"] if point.drop is not None else []
    layers = ", ".join(f"{count} {name}" for name, count in point.layers.items() if count)
    errors = [f"{kind} {_said(getattr(point, kind), search.objective)}" for kind in ("predicted", "verified")]
    return "<br>".join(html.escape(line) for line in (layers, *costs, *errors, *drop) if line)


def _made(row: SensitivityRow) -> str:
    made = f"makes {text.percent(row.own_share)} of its error"
    return f"{text.decibels(row.local_db)} dB alone, {text.decibels(row.accumulated_db)} dB accumulated<br>{made}"


def _label(row: SensitivityRow) -> str:
    return html.escape(text.shortened(row.name))


def _colour(place: int) -> str:
    return f"var(--series-{place % _SERIES + 1})"


def _short(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.5g}")
