"""One self-contained HTML page from a report: no network, no model, no engine."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any

from fptq.report import cases, layers, plots_search, text, tradeoff, verdict, view
from fptq.report.files import write_text
from fptq.report.limits import limiting
from fptq.report.plots import histogram_figure, plotly_script, sqnr_figure
from fptq.report.policies import conclusion
from fptq.report.report import Report
from fptq.report.tensors import Scale

FILE_NAME = "report.html"


def write_html(report: Report, folder: Path) -> Path:
    """Write `report.html` into a folder; an older one is replaced whole.

    Returns:
        The file.

    Raises:
        OutputError: It cannot be written; an older page is left as it was.
    """
    return write_text(folder / FILE_NAME, render(report))


def render(report: Report) -> str:
    """The page. Names from the report are escaped: a model's author may have called a tensor `<script>`."""
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=PackageLoader("fptq.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    named = (text.number, text.ratio, text.decibels, text.percent, text.score, text.date, text.loss)
    environment.filters.update({function.__name__: function for function in named})
    assets = files("fptq.report") / "templates"
    return environment.get_template("report.html.j2").render(
        report=report,
        style=Markup((assets / "report.css").read_text(encoding="utf-8")),
        script=Markup((assets / "report.js").read_text(encoding="utf-8")),
        **_summary(report),
        **_details(report),
    )


def _summary(report: Report) -> dict[str, Any]:
    return {
        "engine": verdict.engine_title(report),
        "verdict": verdict.verdict(report),
        "tone": verdict.tone(report),
        "cards": view.cards(report),
        "comparisons": view.comparisons(report),
        "bar_groups": view.bar_groups(report),
        "agreement_basis": view.agreement_basis(report),
        "limits": limiting(report),
    }


def _details(report: Report) -> dict[str, Any]:
    rows = layers.layer_rows(report)
    figures = {"sqnr": sqnr_figure(rows), **_search_figures(report)}
    histograms = [histogram_figure(row.record) if row.record.histogram else None for row in rows]
    drawn = any(figures.values()) or any(histograms)
    return {
        "rows": rows,
        "weakest": layers.weakest(report),
        "refusals": layers.refusal_groups(report),
        "operations": layers.operation_times(report),
        "case_tables": cases.case_tables(report),
        "drop_rows": cases.drop_rows(report),
        "policies": conclusion(report.policies) if report.policies else "",
        **_search(report),
        "charts": {"figures": figures, "histograms": histograms, "facts": [_facts(row) for row in rows]},
        "plotly": plotly_script() if drawn else None,
    }


def _search(report: Report) -> dict[str, Any]:
    search = report.search
    return {
        "asked": tradeoff.asked(search) if search else (),
        "cost_names": tradeoff.cost_names(search) if search else (),
        "points": tradeoff.point_rows(search) if search else (),
    }


def _search_figures(report: Report) -> dict[str, dict[str, Any] | None]:
    sensitivity, search = report.sensitivity, report.search
    return {
        "sensitivities": plots_search.sensitivity_figure(sensitivity) if sensitivity else None,
        "bits": plots_search.bits_figure(sensitivity) if sensitivity else None,
        "errors": plots_search.errors_figure(sensitivity) if sensitivity else None,
        "pareto": plots_search.pareto_figure(search) if search else None,
    }


def _facts(row: layers.LayerRow) -> list[tuple[str, str]]:
    record = row.record
    facts = {
        "Tensor": record.tensor,
        "Read by": ", ".join(record.consumers),
        "Requested": record.requested,
        "Ran as": " · ".join(part for part in (record.realized, record.kernel) if part),
        **_scale_facts(record.scale),
        "Values seen": text.interval(*record.range) if record.range else "",
        "Clipped at": text.interval(*record.clipping) if record.clipping else "",
        "SQNR alone": f"{text.decibels(record.sqnr_local_db)} dB" if record.sqnr_local_db is not None else "",
    }
    return [(label, value) for label, value in facts.items() if value]


def _scale_facts(scale: Scale | None) -> dict[str, str]:
    if scale is None:
        return {}
    one = scale.count == 1
    shown = (
        {"Scale": text.number(scale.low)} if one else {f"{scale.count:,} scales": text.interval(scale.low, scale.high)}
    )
    return shown if scale.zero_point is None else {**shown, "Zero point": str(scale.zero_point)}
