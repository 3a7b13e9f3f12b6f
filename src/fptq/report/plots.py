"""Interactive charts as Plotly figures; the page turns `var(--name)` into the colours of its light or dark theme."""

from __future__ import annotations

import base64
import gzip
import html
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from fptq.report.layers import LayerRow
from fptq.report.tensors import Histogram, PlacementRecord
from fptq.report.text import decibels, percent, shortened


def sqnr_figure(rows: Sequence[LayerRow]) -> dict[str, Any] | None:
    """SQNR of each tensor in the order of execution, as Plotly JSON; None where none was measured."""
    import plotly.graph_objects as go

    styles = (
        ("weight, alone", "weight", "sqnr_local_db", {"symbol": "square-open", "color": "var(--float)"}),
        ("activation, alone", "activation", "sqnr_local_db", {"symbol": "circle-open", "color": "var(--quantized)"}),
        ("accumulated", "activation", "sqnr_accumulated_db", {"symbol": "circle", "color": "var(--default)"}),
    )
    figure = go.Figure(layout=base_layout(xaxis_title="tensor, in the order of execution", yaxis_title="SQNR [dB]"))
    for name, kind, field, marker in styles:
        shown = [(row, getattr(row.record, field)) for row in rows if row.record.kind == kind]
        shown = [(row, level) for row, level in shown if level is not None]
        if shown:
            figure.add_scatter(
                x=[row.number for row, _ in shown],
                y=[round(level, 2) for _, level in shown],
                text=[f"{_label(row.record)}<br>{decibels(level)} dB" for row, level in shown],
                mode="lines+markers" if field == "sqnr_accumulated_db" else "markers",
                line={"width": 1.5, "color": marker["color"]},
                marker={"size": 7, **marker},
                name=name,
                hoverinfo="text",
            )
    return plain(figure) if figure.data else None


def histogram_figure(record: PlacementRecord) -> dict[str, Any]:
    """The spread of a tensor's values with the clipping drawn, as Plotly JSON.

    Args:
        record: A placement that has a histogram.
    """
    import plotly.graph_objects as go

    if record.histogram is None:
        raise ValueError(f"{record.placement} has no histogram")
    colour = "var(--quantized)" if record.kind == "activation" else "var(--float)"
    layout = base_layout(xaxis_title="value", yaxis_title="count", bargap=0, showlegend=False)
    layout["yaxis"] = {**layout["yaxis"], "type": "log", "dtick": 1}
    low, high = record.clipping or (None, None)
    if low is not None and high is not None:
        layout |= _clipping(record.histogram, (low, high))
        layout["xaxis"] = {**layout["xaxis"], "range": _span(record.histogram, (low, high))}
    bars = {**_bins(record.histogram), "type": "bar", "marker": {"color": colour, "line": {"width": 0}}}
    return plain(go.Figure(data=[bars], layout=layout))


def plotly_script() -> str:
    """Plotly's JavaScript, gzipped and in base64: a third of its size, unpacked by the browser."""
    from plotly.offline import get_plotlyjs

    return base64.b64encode(gzip.compress(get_plotlyjs().encode(), mtime=0)).decode("ascii")


def plain(figure: Any) -> dict[str, Any]:
    """A figure as JSON, without Plotly's own theme."""
    layout = {name: value for name, value in figure.layout.to_plotly_json().items() if name != "template"}
    return {"data": [trace.to_plotly_json() for trace in figure.data], "layout": layout}


def base_layout(**more: Any) -> dict[str, Any]:
    """The layout of every chart, in the colours of the page."""
    axis = {"gridcolor": "var(--line)", "zerolinecolor": "var(--line)", "linecolor": "var(--line)", "ticks": "outside"}
    return {
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"color": "var(--muted)", "size": 12},
        "margin": {"l": 64, "r": 16, "t": 32, "b": 48},
        "xaxis": {**axis, "showgrid": False, "zeroline": False},
        "yaxis": axis,
        "hoverlabel": {"bgcolor": "var(--surface)", "bordercolor": "var(--line)", "font": {"color": "var(--ink)"}},
        "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
        **more,
    }


def _bins(histogram: Histogram) -> dict[str, Any]:
    edges = histogram.edges
    widths = [b - a for a, b in pairwise(edges)]
    shown: dict[str, Any] = {
        "y": [_short(c) for c in histogram.counts],
        "hovertemplate": "%{x:.4g}: %{y:,}<extra></extra>",
    }
    if max(widths) - min(widths) <= 1e-3 * widths[0]:  # equal bins: two numbers instead of a list
        step = (edges[-1] - edges[0]) / len(widths)
        return {**shown, "x0": edges[0] + step / 2, "dx": step, "width": step}
    return {**shown, "x": [_short((a + b) / 2) for a, b in pairwise(edges)], "width": [_short(w) for w in widths]}


def _clipping(histogram: Histogram, ends: tuple[float, float]) -> dict[str, Any]:
    upright = {"xref": "x", "yref": "y domain", "y0": 0, "y1": 1}
    shaded, dashed = {"width": 0}, {"color": "var(--bad)", "width": 1.5, "dash": "dash"}
    shapes = []
    for end, outer in zip(ends, _span(histogram, ends), strict=True):
        area = {"type": "rect", "x0": min(end, outer), "x1": max(end, outer), "line": shaded, "layer": "below"}
        shapes.append({**upright, **area, "fillcolor": "var(--clipped)"})
        shapes.append({**upright, "type": "line", "x0": end, "x1": end, "line": dashed})
    share = histogram.share_outside(*ends)
    text = "nothing is clipped" if share == 0 else f"{percent(share)} of the values are clipped"
    place = {"xref": "paper", "yref": "paper", "x": 1, "y": 1.02, "yanchor": "bottom", "showarrow": False}
    return {"shapes": shapes, "annotations": [{**place, "text": text}]}


def _span(histogram: Histogram, ends: tuple[float, float]) -> list[float]:
    left, right = min(ends[0], histogram.edges[0]), max(ends[1], histogram.edges[-1])
    margin = 0.03 * (right - left)
    return [left - margin, right + margin]


def _short(value: float) -> float:
    return float(f"{value:.6g}")


def _label(record: PlacementRecord) -> str:
    return html.escape(shortened(record.module or record.tensor))
