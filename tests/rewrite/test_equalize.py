from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest

from fptq.calibrate import calibrate
from fptq.graph import query
from fptq.graph.model import Model
from fptq.graph.placement import Placement
from fptq.numerics import PerTensor, QuantizerSpec
from fptq.plan import materialize
from fptq.plan.plan import Plan
from fptq.rewrite.equalize import LARGEST, equalized


def weight(model: Model, name: str) -> np.ndarray:
    content = query.constant(model.graph.initializers[name])
    assert content is not None
    return content


def multiply(model: Model, name: str, factors: np.ndarray) -> None:
    """Change a stored tensor in place."""
    array = (weight(model, name) * factors).astype(np.float32)
    model.graph.initializers[name].const_value = ir.tensor(array, name=name)


def sqnr(found: np.ndarray, exact: np.ndarray) -> float:
    return float(10 * np.log10(np.square(exact).sum() / np.square(found - exact).sum()))


def chain(net: Callable, rank: int) -> Model:
    """Every kind of layer and of what may lie between two of them."""
    n = net((2, 3, *[8] * rank))
    n.conv(3, 8, rank=rank)
    n("PRelu", n.stored(8, *[1] * rank))
    n("MaxPool", kernel_shape=[2] * rank, strides=[2] * rank)
    n("Conv", n.stored(8, 1, *[3] * rank), n.stored(8), group=8, pads=[1] * 2 * rank, kernel_shape=[3] * rank)
    n("Relu")
    n("ConvTranspose", n.stored(8, 3, *[2] * rank), n.stored(6), group=2, strides=[2] * rank, kernel_shape=[2] * rank)
    n("LeakyRelu", alpha=0.1)
    n("AveragePool", kernel_shape=[2] * rank, strides=[2] * rank)
    n("Conv", n.stored(4, 3, *[1] * rank), group=2, kernel_shape=[1] * rank)
    n("GlobalAveragePool")
    n("Flatten")
    n("Gemm", n.stored(4, 5), n.stored(5))
    n("Relu")
    n("Gemm", n.stored(3, 5), n.stored(1, 3), transB=1)
    return n.model()


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_what_the_network_computes_stays(net, rank: int, run) -> None:
    model = chain(net, rank)
    rng = np.random.default_rng(1)
    multiply(model, "w0", 10.0 ** rng.uniform(-2, 2, (8, *[1] * (rank + 1))))
    changed = equalized(model)
    assert changed is not None
    x = rng.standard_normal((2, 3, *[8] * rank)).astype(np.float32)
    np.testing.assert_allclose(run(changed, x), run(model, x), rtol=1e-4, atol=1e-5)
    assert [node.name for node in changed.graph] == [node.name for node in model.graph]
    assert list(query.values(changed.graph_model)) == list(query.values(model.graph_model))
    assert all(not np.array_equal(weight(changed, name), weight(model, name)) for name in ("w0", "w3", "w5", "w8"))


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_the_ranges_of_a_channel_become_equal_and_stay_so(net, rank: int) -> None:
    n = net((1, 3, *[6] * rank))
    n.conv(3, 8, rank=rank)
    n("Relu")
    n.conv(8, 4, rank=rank)
    n("Relu")
    n.conv(4, 5, rank=rank)
    model = n.model()
    multiply(model, "w0", np.logspace(-2, 2, 8).reshape(8, *[1] * (rank + 1)))
    changed = equalized(model)
    assert changed is not None
    space = tuple(range(2, 2 + rank))
    for first, second in (("w0", "w2"), ("w2", "w4")):
        out = np.abs(weight(changed, first)).max(axis=(1, *space))
        into = np.abs(weight(changed, second)).max(axis=(0, *space))
        np.testing.assert_allclose(out, into, rtol=2e-3)
    assert equalized(changed) is None


def test_channels_without_weights_are_left_alone(net) -> None:
    n = net((1, 3, 6, 6))
    n.conv(3, 4)
    n("Relu")
    n.conv(4, 4)
    model = n.model()
    multiply(model, "w0", np.array([0, 1, 30, 1e-30]).reshape(4, 1, 1, 1))
    changed = equalized(model)
    assert changed is not None
    for channel in (0, 3):
        np.testing.assert_array_equal(weight(changed, "w0")[channel], weight(model, "w0")[channel])
        np.testing.assert_array_equal(weight(changed, "w1")[channel], weight(model, "w1")[channel])
        np.testing.assert_array_equal(weight(changed, "w2")[:, channel], weight(model, "w2")[:, channel])
    assert np.abs(weight(changed, "w1")).max() < LARGEST * np.abs(weight(model, "w1")).max()


def skip(n) -> None:
    before = n.last
    n("Relu")
    n.conv(4, 4)
    n("Add", before)


def shared(n) -> None:
    n("Relu")
    kernel = n.stored(4, 4, 1, 1)
    n("Conv", kernel, kernel_shape=[1, 1])
    n("Relu")
    n("Conv", kernel, kernel_shape=[1, 1])


def saturating(n) -> None:
    n("Sigmoid")
    n.conv(4, 4)


def scattered(n) -> None:
    n("Relu")
    n("Flatten")
    n("Gemm", n.stored(4 * 36, 2))


def computed_slope(n) -> None:
    n("PRelu", n.last)
    n.conv(4, 4)


@pytest.mark.parametrize("rest", [skip, shared, saturating, scattered, computed_slope])
def test_layers_that_are_no_pair_are_left_alone(net, rest: Callable[..., None]) -> None:
    n = net((1, 3, 6, 6))
    n.conv(3, 4)
    rest(n)
    assert equalized(n.model()) is None


def test_a_result_of_the_network_is_never_scaled(net) -> None:
    n = net((1, 3, 6, 6))
    middle = n.conv(3, 4)
    n("Relu")
    n.conv(4, 4)
    model = n.model()
    assert equalized(model) is not None
    model.graph.outputs.append(middle)
    assert equalized(model) is None


def test_channels_of_unequal_size_survive_one_scale_for_the_whole_weight(net, run) -> None:
    n = net((1, 3, 8, 8))
    n.conv(3, 16)
    n("Relu")
    n.conv(16, 4)
    model = n.model()
    factors = np.logspace(-1.5, 1.5, 16)
    multiply(model, "w0", factors.reshape(16, 1, 1, 1))
    multiply(model, "w1", factors)
    multiply(model, "w2", 1 / factors.reshape(1, 16, 1, 1))
    placements = (Placement("w0", "Conv_0", 1), Placement("w2", "Conv_2", 1))
    spec = QuantizerSpec(bits=8, granularity=PerTensor())
    plan = Plan(engine="", specs=dict.fromkeys(placements, spec), weights=frozenset(placements))
    x = np.random.default_rng(2).standard_normal((1, 3, 8, 8)).astype(np.float32)
    changed = equalized(model)
    assert changed is not None
    before, after = (
        sqnr(run(materialize(made, calibrate(made, plan, [{"x": x}])), x), run(model, x)) for made in (model, changed)
    )
    assert after > before + 10
