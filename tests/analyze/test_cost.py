"""Costs against numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from fptq.analyze import units_of
from fptq.analyze.cost import (
    costs_of,
    multiplications,
    node_latencies,
    peak_activation_bytes,
    shapes_of,
    stored_bytes,
)
from fptq.execute import Executor
from fptq.graph.model import Model
from fptq.graph.placement import Placement
from fptq.numerics import PerBlock, PerChannel, QuantizerSpec
from fptq.plan import PROFILES, place


@pytest.fixture
def sample() -> dict[str, np.ndarray]:
    return {"x": np.zeros((1, 4, 8, 8), np.float32)}


def test_multiplications_of_every_kind(net, sample) -> None:
    n = net((1, 4, 8, 8))
    n.conv(4, 6)
    n("ConvTranspose", n.stored(6, 2, 2, 2), strides=[2, 2])
    n("Flatten")
    n("Gemm", n.stored(512, 5))
    n("MatMul", n.stored(5, 3))
    n("Relu")
    model = n.model()
    shapes = shapes_of(Executor.open(model), sample)
    found = [multiplications(node, shapes) for node in model.graph]
    assert found == [6 * 4 * 9 * 64, 6 * 2 * 4 * 64, 0, 512 * 5, 5 * 3, 0]


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (None, 8 * 6 * 4),
        (QuantizerSpec(bits=8), 48 + 5),
        (QuantizerSpec(bits=8, granularity=PerChannel(axis=0)), 48 + 8 * 5),
        (QuantizerSpec(bits=4, granularity=PerBlock(axis=1, size=3)), 24 + 16 * 4.5),
    ],
)
def test_scales_and_zero_points_count(spec: QuantizerSpec | None, expected: float) -> None:
    assert stored_bytes((8, 6), spec) == expected


def test_every_format_has_its_column(net, sample) -> None:
    n = net((1, 4, 8, 8))
    n.conv(4, 6)
    n.conv(6, 3)
    model: Model = n.model()
    plan = place(model, PROFILES["openvino"], PROFILES["openvino"].variants[0])
    low = plan.with_bits(dict.fromkeys(plan.specs, 4))
    units = units_of(model, plan)
    costs = costs_of(model, units, {"w8a8": plan, "w4a4": low}, shapes_of(Executor.open(model), sample))
    assert costs.formats == ("float", "w8a8", "w4a4")
    macs = np.array([6 * 4 * 9 * 64, 3 * 6 * 9 * 64])
    np.testing.assert_array_equal(costs.bops, np.outer(macs, [32 * 32, 8 * 8, 4 * 4]))
    weights, channels = np.array([6 * 4 * 9, 3 * 6 * 9]), np.array([6, 3])
    np.testing.assert_array_equal(costs.size[:, 0], 4 * weights)
    np.testing.assert_array_equal(costs.size[:, 1], weights + 5 * channels)
    np.testing.assert_array_equal(costs.size[:, 2], weights / 2 + 4.5 * channels)
    np.testing.assert_array_equal(costs.activations[0], 256 * np.array([4, 1, 0.5]))


def test_latencies_are_those_of_the_unit_s_nodes(net) -> None:
    n = net((1, 4, 8, 8))
    n.conv(4, 6)
    n.conv(6, 3)
    model = n.model()
    units = units_of(model, place(model, PROFILES["openvino"], PROFILES["openvino"].variants[0]))
    times = {"float": {"Conv_0": 2.0, "Conv_1": 3.0}, "w8a8": {"Conv_0": 0.5}}
    np.testing.assert_array_equal(node_latencies(units, times), [[2.0, 0.5], [3.0, 0.0]])


def test_peak_activations_are_what_is_alive_at_once(net) -> None:
    n = net((1, 4, 16, 16))
    n.conv(4, 8)
    skip = n("Relu")
    n.conv(8, 8)
    n("Add", skip)
    model = n.model()
    shapes = shapes_of(Executor.open(model), {"x": np.zeros((1, 4, 16, 16), np.float32)})
    plane = 16 * 16 * 4
    # Conv_2 reads the skip and makes its result while the skip waits for Add; then Add makes the sum of both.
    assert peak_activation_bytes(model, {}, shapes) == (8 + 8 + 8) * plane
    eight = QuantizerSpec(bits=8, signed=False, symmetric=False)
    read = {Placement("v1", "Conv_2", 0): eight, Placement("v1", "Add_3", 1): eight, Placement("v2"): eight}
    assert peak_activation_bytes(model, read, shapes) < peak_activation_bytes(model, {}, shapes)
