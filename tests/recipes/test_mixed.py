"""From a budget to a plan."""

from __future__ import annotations

import json

import numpy as np
import pytest

import fptq
from fptq.errors import BudgetError, ConfigError
from fptq.recipes import search


@pytest.fixture
def given(net, samples, tmp_path):
    n = net((1, 4, 16, 16), seed=3)
    for c_in, c_out in ((4, 16), (16, 16), (16, 32), (32, 16), (16, 4)):
        n.conv(c_in, c_out)
        n("Relu")
    n.conv(4, 4)
    return n.model().graph_model, {"calibration": samples, "cache": tmp_path / "cache", "threads": 1}


def test_the_budget_is_met_and_the_prediction_holds(given) -> None:
    model, options = given
    found = search(model, max_size="0.4x", engine="openvino", **options)
    assert found.costs["size"] <= found.limits["size"] == pytest.approx(0.4 * found.float_costs["size"])
    assert abs(np.log10(found.predicted / found.verified)) < 0.3
    assert {row.precision for row in found.rows} == {"float", "w8a8"}
    assert sum(point.chosen for point in found.front) == 1
    sizes = [point.costs["size"] for point in found.front]
    losses = [point.predicted for point in found.front]
    assert sizes == sorted(sizes)
    assert losses == sorted(losses, reverse=True)


def test_lower_widths_are_for_what_hurts_least(given) -> None:
    model, options = given
    found = search(model, max_size="0.17x", formats=("w8a8", "w4a4"), engine="openvino", **options)
    assert "w4a4" in {row.precision for row in found.rows}
    all_low = search(model, max_size="0.99x", formats=("w4a4",), engine="openvino", **options)
    assert found.verified < max(point.verified for point in all_low.front)


def test_several_limits_hold_at_once(given) -> None:
    model, options = given
    limits = {"max_size": "0.6x", "max_bops": "0.3x", "max_latency": "50ms"}
    found = search(model, **limits, engine="openvino", **options)
    assert set(found.costs) == {"size", "bops", "latency"}
    for name, limit in found.limits.items():
        assert found.costs[name] <= limit * (1 + 1e-9)


def test_the_plan_is_what_quantize_replays(given, tmp_path) -> None:
    model, options = given
    found = search(model, max_size="0.5x", engine="onnxruntime", **options)
    path = found.save(tmp_path / "plan.json")
    result = fptq.quantize(model, engine="onnxruntime", plan=path, **options)
    kept = {row.layer for row in found.rows if row.precision == "float"}
    assert kept
    assert kept <= {refusal.node for refusal in result.report.refusals}
    assert {p.consumer for p in result.encoding.plan.weights}.isdisjoint(kept)
    assert json.loads(path.read_text())["engine"] == "onnxruntime"


def test_what_nothing_meets_is_answered_with_the_nearest(given) -> None:
    model, options = given
    with pytest.raises(BudgetError, match="nearest budget that can be met is size"):
        search(model, max_size="0.1x", engine="openvino", **options)


def test_a_search_needs_a_limit(given) -> None:
    model, options = given
    with pytest.raises(ConfigError, match="there is no limit"):
        search(model, **options)
