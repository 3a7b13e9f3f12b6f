import gzip
import json
from base64 import b64decode

import pytest

from fptq.report.layers import layer_rows
from fptq.report.plots import histogram_figure, plotly_script, sqnr_figure
from fptq.report.tensors import Histogram, PlacementRecord


def tensor(**changes: object) -> PlacementRecord:
    fields = {"placement": "t", "tensor": "t", "kind": "weight", "requested": "s8/tensor", **changes}
    return PlacementRecord(**fields)


def test_the_clipping_is_drawn_where_it_is():
    histogram = Histogram(edges=(-2, -1, 0, 1, 2), counts=(10, 40, 40, 10))
    layout = histogram_figure(tensor(histogram=histogram, clipping=(-1.0, 1.5)))["layout"]
    lines = [shape["x0"] for shape in layout["shapes"] if shape["type"] == "line"]
    shaded = [(shape["x0"], shape["x1"]) for shape in layout["shapes"] if shape["type"] == "rect"]
    assert lines == [-1.0, 1.5]
    assert shaded == [(pytest.approx(-2.12), -1.0), (1.5, pytest.approx(2.12))]
    assert layout["annotations"][0]["text"] == "15 % of the values are clipped"


def test_a_range_wider_than_the_values_clips_nothing():
    histogram = Histogram(edges=(0, 1, 2), counts=(1, 1))
    layout = histogram_figure(tensor(histogram=histogram, clipping=(-4, 4)))["layout"]
    assert layout["annotations"][0]["text"] == "nothing is clipped"
    assert layout["xaxis"]["range"] == [pytest.approx(-4.24), pytest.approx(4.24)]


def test_bins_of_any_width_are_drawn_as_wide_as_they_are():
    even = histogram_figure(tensor(histogram=Histogram(edges=(0, 1, 2), counts=(3, 4))))["data"][0]
    assert (even["x0"], even["dx"], even["y"]) == (0.5, 1.0, [3, 4])
    uneven = histogram_figure(tensor(histogram=Histogram(edges=(0, 1, 4), counts=(3, 4))))["data"][0]
    assert (uneven["x"], uneven["width"]) == ([0.5, 2.5], [1, 3])


def test_figures_are_plain_json_without_plotlys_own_theme(report):
    rows = layer_rows(report)
    figures = [sqnr_figure(rows), histogram_figure(report.placements[0])]
    assert '"template"' not in json.dumps(figures, allow_nan=False)
    assert len(json.dumps(figures[1])) < 4000


def test_every_measured_level_is_a_point_and_names_are_escaped(report):
    figure = sqnr_figure(layer_rows(report))
    alone = sum(p.sqnr_local_db is not None for p in report.placements)
    accumulated = sum(p.sqnr_accumulated_db is not None for p in report.placements)
    assert sum(len(trace["x"]) for trace in figure["data"]) == alone + accumulated
    assert "<script" not in json.dumps(figure)
    assert sqnr_figure([]) is None


def test_plotly_is_packed_to_less_than_half():
    packed = plotly_script()
    script = gzip.decompress(b64decode(packed))
    assert b"plotly.js v" in script[:200]
    assert len(packed) < len(script) / 2
    assert packed == plotly_script()
