from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from fptq.calibrate import calibrate
from fptq.graph import query
from fptq.graph.model import Model
from fptq.graph.placement import Placement
from fptq.numerics import PerChannel, QuantizerSpec
from fptq.plan import materialize
from fptq.plan.plan import Plan
from fptq.rewrite import bias
from fptq.rewrite.bias import corrected_biases, measured_biases
from fptq.rewrite.channels import channel_means as measured


def weight_plan(name: str, axis: int) -> Plan:
    placement = Placement("w0", name, 1)
    return Plan(
        engine="",
        specs={placement: QuantizerSpec(bits=3, granularity=PerChannel(axis=axis))},
        weights=frozenset({placement}),
    )


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize(("op", "group"), [("Conv", 1), ("Conv", 2), ("ConvTranspose", 1), ("ConvTranspose", 2)])
def test_the_mean_of_each_channel_comes_back(net, rank: int, op: str, group: int, has_bias: bool) -> None:
    n = net((2, 4, *[10] * rank))
    kernel = [1] * rank  # no border: the correction is exact
    shape = (6, 4 // group) if op == "Conv" else (4, 6 // group)
    weight = n.stored(*shape, *kernel)
    n(op, weight, *([n.stored(6)] if has_bias else []), group=group, kernel_shape=kernel)
    model = n.model()
    rng = np.random.default_rng(0)
    x = {"x": (rng.standard_normal((2, 4, *[10] * rank)) + 1.5).astype(np.float32)}
    encoding = calibrate(model, weight_plan(f"{op}_0", 0 if op == "Conv" else 1), [x])
    corrected = corrected_biases(model, encoding, [x])
    assert corrected is not None
    exact, biased = channel_means(model, x), channel_means(materialize(model, encoding), x)
    repaired = channel_means(materialize(corrected, encoding), x)
    assert np.abs(biased - exact).max() > 1e-2
    np.testing.assert_allclose(repaired, exact, atol=1e-4)


def channel_means(model: Model, feeds: dict[str, np.ndarray]) -> np.ndarray:
    proto = ir.to_proto(model.graph_model).SerializeToString()
    (output,) = ort.InferenceSession(proto).run(None, feeds)
    return np.asarray(output).mean(axis=(0, *range(2, output.ndim)))


def branched(net) -> Model:
    """Two branches of unequal length, joined, and a matrix product behind."""
    n = net((4, 3, 8, 8))
    start = n.conv(3, 8)
    n("Relu")
    n.conv(8, 8)
    n("Relu")
    long = n("Conv", n.stored(8, 8, 1, 1), kernel_shape=[1, 1])
    n.last = start
    n.conv(8, 8)
    n("Add", long)
    n("GlobalAveragePool")
    n("Flatten")
    n("Gemm", n.stored(8, 5), n.stored(5))
    return n.model()


def whole_plan(model: Model) -> Plan:
    """Three bits for every weight, five for the first input of every layer: errors that add up."""
    specs, weights = {}, []
    for node in model.graph:
        if node.op_type in ("Conv", "Gemm"):
            weights.append(Placement(str(node.inputs[1].name), str(node.name), 1))
            specs[weights[-1]] = QuantizerSpec(bits=3, granularity=PerChannel(axis=0 if node.op_type == "Conv" else 1))
            specs[Placement(str(node.inputs[0].name))] = QuantizerSpec(bits=5, signed=False, symmetric=False)
    return Plan(engine="", specs=specs, weights=frozenset(weights))


@pytest.mark.parametrize("fast_first", [False, True])
def test_measured_biases_bring_back_the_means_of_every_layer(net, fast_first: bool) -> None:
    model = branched(net)
    rng = np.random.default_rng(0)
    feeds = [{"x": (rng.standard_normal((4, 3, 8, 8)) + 0.5).astype(np.float32)} for _ in range(3)]
    encoding = calibrate(model, whole_plan(model), feeds)
    start = corrected_biases(model, encoding, feeds) if fast_first else model
    assert start is not None
    told: list[tuple[int, int]] = []
    found = measured_biases(
        start, encoding, feeds, reference=model, progress=lambda done, total, what: told.append((done, total))
    )
    assert found is not None
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]  # five layers: two lie side by side
    results = [str(node.outputs[0].name) for node in model.graph if node.op_type in ("Conv", "Gemm")]
    exact = measured(model, dict.fromkeys(results, 1), feeds)
    before = measured(materialize(model, encoding), dict.fromkeys(results, 1), feeds)
    after = measured(materialize(found, encoding), dict.fromkeys(results, 1), feeds)
    for name in results:
        assert np.abs(before[name] - exact[name]).max() > 1e-2
        np.testing.assert_allclose(after[name], exact[name], atol=1e-4)


def test_the_number_of_cuts_is_bounded(net, monkeypatch) -> None:
    monkeypatch.setattr(bias, "MOST_RUNS", 2)
    model = branched(net)
    feeds = [{"x": np.random.default_rng(0).standard_normal((4, 3, 8, 8)).astype(np.float32)}]
    told: list[int] = []
    encoding = calibrate(model, whole_plan(model), feeds)
    assert measured_biases(model, encoding, feeds, progress=lambda done, total, what: told.append(total)) is not None
    assert told == [2, 2]


def test_gemm_is_corrected(net) -> None:
    n = net((16, 6))
    n("Gemm", n.stored(6, 4), n.stored(4))
    model = n.model()
    x = {"x": np.random.default_rng(0).standard_normal((16, 6)).astype(np.float32) + 2}
    encoding = calibrate(model, weight_plan("Gemm_0", 1), [x])
    corrected = corrected_biases(model, encoding, [x])
    assert corrected is not None
    before = query.constant(model.graph.initializers["w1"])
    after = query.constant(corrected.graph.initializers["w1"])
    assert not np.allclose(before, after)


def test_layers_that_a_normalisation_centres_are_left_alone(net) -> None:
    n = net((1, 4, 8, 8))
    n.conv(4, 8)
    n("InstanceNormalization", n.stored(8), n.stored(8))
    model = n.model()
    x = {"x": np.random.default_rng(0).standard_normal((1, 4, 8, 8)).astype(np.float32)}
    encoding = calibrate(model, weight_plan("Conv_0", 0), [x])
    assert corrected_biases(model, encoding, [x]) is None
    assert measured_biases(model, encoding, [x]) is None
