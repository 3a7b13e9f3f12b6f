import json

import pytest

from fptq.report.plots_search import bits_figure, by_width, errors_figure, pareto_figure, sensitivity_figure
from fptq.report.search import Point, Search


def trace(figure: dict, name: str) -> dict:
    return next(trace for trace in figure["data"] if trace["name"] == name)


def test_figures_are_plain_json_in_the_colours_of_the_page(report):
    figures = [figure(report.sensitivity) for figure in (sensitivity_figure, errors_figure, bits_figure)]
    text = json.dumps([*figures, pareto_figure(report.search)], allow_nan=False)
    assert '"template"' not in text
    assert "<script" not in text


def test_sensitivities_have_a_trace_a_format_and_a_ring_a_decision(report):
    figure = sensitivity_figure(report.sensitivity)
    assert [t["name"] for t in figure["data"]] == ["w8a8", "w4a8", "w4a4", "what it became"]
    assert all(len(t["x"]) == 30 for t in figure["data"][:3])
    assert len(figure["data"][3]["x"]) == 27
    loss = report.sensitivity.rows[0].loss["w8a8"]
    assert 10 ** (-trace(figure, "w8a8")["y"][0] / 10) == pytest.approx(loss, rel=1e-3)


def test_divergences_have_a_logarithmic_axis_and_nothing_that_is_zero(report):
    first = report.sensitivity.rows[0].model_copy(update={"loss": {"w8a8": 0.0, "w4a8": None}})
    kl = report.sensitivity.model_copy(update={"objective": "kl", "rows": (first, *report.sensitivity.rows[1:])})
    figure = sensitivity_figure(kl)
    assert figure["layout"]["yaxis"]["type"] == "log"
    assert figure["layout"]["yaxis"]["title"]["text"] == "output KL divergence [nats]"
    assert trace(figure, "w8a8")["x"][0] == 2
    assert sensitivity_figure(kl.model_copy(update={"rows": ()})) is None


def test_errors_are_split_by_where_they_were_made(report):
    figure = errors_figure(report.sensitivity)
    here, before = trace(figure, "most made here"), trace(figure, "most from before")
    assert (len(here["x"]), len(before["x"])) == (19, 10)
    assert all(x - y <= 3.02 for x, y in zip(here["x"], here["y"], strict=True))
    assert all(x - y >= 3.0 for x, y in zip(before["x"], before["y"], strict=True))
    unknown = tuple(row.model_copy(update={"local_db": None}) for row in report.sensitivity.rows)
    assert errors_figure(report.sensitivity.model_copy(update={"rows": unknown})) is None


def test_bits_go_up_for_weights_and_down_for_activations(report):
    bars = [t for t in bits_figure(report.sensitivity)["data"] if t["name"] == "w4a8"]
    assert [bar["y"] for bar in bars] == [[2.0] * 5, [-3.0] * 5]
    assert [bar["showlegend"] for bar in bars] == [True, False]
    undecided = tuple(row.model_copy(update={"precision": ""}) for row in report.sensitivity.rows)
    assert bits_figure(report.sensitivity.model_copy(update={"rows": undecided})) is None


def test_the_wide_come_first():
    assert by_width(["w4a4", "w8a8", "float", "w8a8", "?"]) == ["float", "w8a8", "w4a4", "?"]


def test_a_search_is_drawn_with_its_limits_and_its_answer(report):
    figure = pareto_figure(report.search)
    assert [t["name"] for t in figure["data"]] == ["predicted", "verified", "drop, passes", "drop, fails", "chosen"]
    assert trace(figure, "verified")["x"][-1] == pytest.approx(0.52)
    assert trace(figure, "chosen")["x"] == [pytest.approx(0.298)]
    limit, allowed = figure["layout"]["shapes"]
    assert limit["x0"] == limit["x1"] == pytest.approx(0.3)
    assert allowed["y0"] == allowed["y1"] == 0.005
    failed = trace(figure, "drop, fails")
    worst = report.search.points[0]
    assert failed["y"][0] + failed["error_y"]["array"][0] == pytest.approx(worst.upper, rel=1e-3)


def test_without_a_metric_there_is_one_panel_and_without_float_costs_the_cost_itself():
    points = (Point(costs={"latency": 4.0}, predicted=0.01), Point(costs={"latency": None}, predicted=0.1))
    figure = pareto_figure(Search(objective="kl", cost="latency", limits={"latency": 5.0}, points=points))
    assert "yaxis2" not in figure["layout"]
    assert trace(figure, "predicted")["x"] == [4.0]
    assert [shape["x0"] for shape in figure["layout"]["shapes"]] == [5.0]
    assert pareto_figure(Search(objective="kl", cost="size", points=points)) is None
